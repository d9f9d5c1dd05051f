//! AVX-512 with F, BW, DQ, VL and FMA.

use core::arch::x86_64::*;

use half::bf16;

use crate::arch::generic::operators;
use crate::arch::generic::vector::{Part, Vector, horner};
use crate::arch::x86_64::avx2;

/// Whether this CPU, and the system, have what [`F32x16`] and [`F64x8`] take.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

macro_rules! vector {
    ($(#[$doc:meta])* $v:ident: $inner:ident of $lanes:literal $real:ident, mask $mask:ident, {
        splat $splat:ident, zero $zero:ident, add $add:ident, sub $sub:ident, mul $mul:ident, div $div:ident, fma $fma:ident, fnma $fnma:ident,
        max $max:ident, min $min:ident, abs $abs:ident, xor $xor:ident, round $round:ident, cmp $cmp:ident, blend $blend:ident,
        scalef $scalef:ident, shift $shift:ident $width:literal, add_int $add_int:ident, to_int $to_int:ident, from_int $from_int:ident
    }, sums $sums:ident, $($more:tt)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        #[repr(transparent)]
        pub struct $v($inner);

        operators!($v, Add add $add, Sub sub $sub, Mul mul $mul, Div div $div);

        impl core::ops::Neg for $v {
            type Output = $v;
            #[inline(always)]
            fn neg(self) -> $v {
                // SAFETY: the value exists, so the CPU has the instruction set.
                $v(unsafe { $xor(self.0, $splat(-0.0)) })
            }
        }

        // SAFETY: a transparent register of plain numbers; the field is private and only `enter` makes a value from nothing.
        unsafe impl Vector for $v {
            type Real = $real;
            type Mask = $mask;
            const LANES: usize = $lanes;
            const STATES: usize = 16;
            // Requests into the first cache take the few buffers that its own misses wait for.
            const NEAR: bool = false;

            #[inline]
            unsafe fn enter<P: Part<Self>>(part: P) -> P::Out {
                #[inline(never)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn inside<P: Part<$v>>(part: P) -> P::Out {
                    part.run($v($zero()))
                }
                // SAFETY: the caller says that the CPU has the instruction set.
                unsafe { inside(part) }
            }

            #[inline(always)]
            fn splat(self, x: $real) -> Self {
                // SAFETY: `self` exists, so the CPU has the instruction set.
                $v(unsafe { $splat(x) })
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $fma(self.0, b.0, c.0) })
            }
            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $fnma(self.0, b.0, c.0) })
            }
            #[inline(always)]
            fn at_least(self, low: Self) -> Self {
                // The instruction returns its second operand where either is NaN.
                // SAFETY: as in `splat`.
                $v(unsafe { $max(low.0, self.0) })
            }
            #[inline(always)]
            fn at_most(self, high: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $min(high.0, self.0) })
            }
            #[inline(always)]
            fn abs(self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $abs(self.0) })
            }
            #[inline(always)]
            fn round(self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $round::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
            }
            #[inline(always)]
            fn lt(self, other: Self) -> $mask {
                // SAFETY: as in `splat`.
                unsafe { $cmp::<_CMP_LT_OQ>(self.0, other.0) }
            }
            #[inline(always)]
            fn eq(self, other: Self) -> $mask {
                // SAFETY: as in `splat`.
                unsafe { $cmp::<_CMP_EQ_OQ>(self.0, other.0) }
            }
            #[inline(always)]
            fn select(mask: $mask, yes: Self, no: Self) -> Self {
                // SAFETY: the values exist, so the CPU has the instruction set.
                $v(unsafe { $blend(mask, no.0, yes.0) })
            }
            #[inline(always)]
            fn all(mask: $mask) -> bool {
                mask == <$mask>::MAX
            }
            #[inline(always)]
            fn mantissa_to_exponent(self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $from_int($shift::<$width>($to_int(self.0))) })
            }
            #[inline(always)]
            fn add_exponent(self, t: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $from_int($add_int($to_int(self.0), $shift::<$width>($to_int(t.0)))) })
            }
            #[inline(always)]
            fn scale_down(self, n: Self) -> Self {
                self.scale(n)
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $scalef(self.0, n.0) })
            }
            #[inline(always)]
            fn prefetch<const NEAR: bool>(self, address: usize) {
                let at = address as *const i8;
                // SAFETY: a hint, which reads nothing and takes any address.
                unsafe { if NEAR { _mm_prefetch::<_MM_HINT_T0>(at) } else { _mm_prefetch::<_MM_HINT_T1>(at) } }
            }
            $($more)*
            #[inline(always)]
            fn sums(x: [Self; 4]) -> [$real; 4] {
                // SAFETY: the values exist, so the CPU has the instruction set.
                unsafe { $sums(x[0].0, x[1].0, x[2].0, x[3].0) }
            }
        }
    };
}

vector! {
    /// 16 numbers of type f32.
    F32x16: __m512 of 16 f32, mask __mmask16, {
        splat _mm512_set1_ps, zero _mm512_setzero_ps, add _mm512_add_ps, sub _mm512_sub_ps, mul _mm512_mul_ps, div _mm512_div_ps,
        fma _mm512_fmadd_ps, fnma _mm512_fnmadd_ps, max _mm512_max_ps, min _mm512_min_ps, abs _mm512_abs_ps, xor _mm512_xor_ps,
        round _mm512_roundscale_ps, cmp _mm512_cmp_ps_mask, blend _mm512_mask_blend_ps,
        scalef _mm512_scalef_ps, shift _mm512_slli_epi32 23, add_int _mm512_add_epi32, to_int _mm512_castps_si512, from_int _mm512_castsi512_ps
    }, sums sums_f32,
    #[inline(always)]
    fn widen<const SECOND: bool>(self, from: &[[bf16; 2]]) -> Self {
        let from = &from[..Self::LANES];
        // SAFETY: `from` has as many words as the register; `self` exists, so the CPU has the instruction set.
        Self(unsafe {
            let words = _mm512_loadu_si512(from.as_ptr().cast());
            _mm512_castsi512_ps(if SECOND { _mm512_and_si512(words, _mm512_set1_epi32(-65536)) } else { _mm512_slli_epi32::<16>(words) })
        })
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        exp2_by_table(self)
    }
    #[inline(always)]
    fn exp2_small(self) -> Self {
        exp2_small_by_table(self)
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16], to: &mut [f32]) {
        // SAFETY: `self` exists, so the CPU has the instruction set.
        unsafe { avx2::load_f16(from, to) }
    }
    #[inline(always)]
    fn store_f16(self, from: &[f32], to: &mut [u16]) {
        // SAFETY: as in `load_f16`.
        unsafe { avx2::store_f16(from, to) }
    }
    #[inline(always)]
    fn transpose(self, x: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        // SAFETY: as in `load_f16`.
        unsafe { avx2::transpose(x) }
    }
    #[inline(always)]
    fn square(x: &mut [Self]) {
        let x = x.first_chunk_mut().expect("as many vectors as lanes");
        // SAFETY: the values exist, so the CPU has the instruction set.
        unsafe { square(x) }
    }
}

vector! {
    /// 8 numbers of type f64.
    F64x8: __m512d of 8 f64, mask __mmask8, {
        splat _mm512_set1_pd, zero _mm512_setzero_pd, add _mm512_add_pd, sub _mm512_sub_pd, mul _mm512_mul_pd, div _mm512_div_pd,
        fma _mm512_fmadd_pd, fnma _mm512_fnmadd_pd, max _mm512_max_pd, min _mm512_min_pd, abs _mm512_abs_pd, xor _mm512_xor_pd,
        round _mm512_roundscale_pd, cmp _mm512_cmp_pd_mask, blend _mm512_mask_blend_pd,
        scalef _mm512_scalef_pd, shift _mm512_slli_epi64 52, add_int _mm512_add_epi64, to_int _mm512_castpd_si512, from_int _mm512_castsi512_pd
    }, sums sums_f64,
}

/// The bits of 2^(j/16), rounded, less j·2^19: the bits of a number that has n + j/16 in its lowest bits, shifted by 19, are added.
const ROOTS: [i32; 16] = [
    0x3f80_0000,
    0x3f7d_aac3,
    0x3f7b_95c2,
    0x3f79_c3d3,
    0x3f78_37f0,
    0x3f76_f532,
    0x3f75_fed7,
    0x3f75_583f,
    0x3f75_04f3,
    0x3f75_08a4,
    0x3f75_672a,
    0x3f76_248c,
    0x3f77_44fd,
    0x3f78_ccdf,
    0x3f7a_c0c7,
    0x3f7d_257d,
];

/// 1.5·2^19: added to a number below 2^18, the sum's lowest bits are sixteenths.
const SIXTEENTHS: f32 = 786_432.0;

/// (2^r − 1)/r for |r| ≤ 1/32.
#[inline(always)]
fn root_tail(r: F32x16) -> F32x16 {
    horner(&[core::f32::consts::LN_2, 0.240_234_29, 0.055_505_95], r)
}

/// 2^x = 2^(k/16)·2^r, k = 16·n + j, r ≤ 1/32: the root from a table by a permutation, the rest by a polynomial of degree 3.
#[inline(always)]
fn exp2_small_by_table(x: F32x16) -> F32x16 {
    let magic = x.splat(SIXTEENTHS);
    let t = x + magic;
    let r = x - (t - magic);
    // SAFETY: `x` exists, so the CPU has the instruction set.
    let root = unsafe {
        let bits = _mm512_castps_si512(t.0);
        let root = _mm512_permutexvar_epi32(bits, _mm512_loadu_si512(ROOTS.as_ptr().cast()));
        F32x16(_mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32::<19>(bits))))
    };
    root_tail(r).mul_add(root * r, root)
}

/// [`exp2_small_by_table`] for any x: 2^n is applied last, by an instruction that takes the integer below its operand.
#[inline(always)]
fn exp2_by_table(x: F32x16) -> F32x16 {
    let x = x.at_least(x.splat(-160.0)).at_most(x.splat(160.0));
    let magic = x.splat(SIXTEENTHS);
    let t = x + magic;
    let k = t - magic;
    let r = x - k;
    // SAFETY: `x` exists, so the CPU has the instruction set.
    let root = unsafe {
        let j = _mm512_and_si512(_mm512_castps_si512(t.0), _mm512_set1_epi32(15));
        let root = _mm512_permutexvar_epi32(j, _mm512_loadu_si512(ROOTS.as_ptr().cast()));
        F32x16(_mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32::<19>(j))))
    };
    root_tail(r).mul_add(root * r, root).scale(k)
}

/// See [`Vector::square`]: in each quarter of the registers 4 × 4 numbers change places, then the quarters do.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn square(x: &mut [F32x16; 16]) {
    // SAFETY: the caller says that the CPU has the instructions.
    unsafe {
        let mut quads = [_mm512_setzero_ps(); 16];
        for first in [0, 4, 8, 12] {
            let [a, b, c, d] = [x[first].0, x[first + 1].0, x[first + 2].0, x[first + 3].0];
            let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (low2, high2) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            quads[first] = _mm512_shuffle_ps::<0b01_00_01_00>(low, low2);
            quads[first + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low, low2);
            quads[first + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high, high2);
            quads[first + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high, high2);
        }
        for i in 0..4 {
            // Quarters 0 and 2, and 1 and 3, of two rows of four.
            let [a, b, c, d] = [quads[i], quads[i + 4], quads[i + 8], quads[i + 12]];
            let (even, odd) = (_mm512_shuffle_f32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
            let (even2, odd2) = (_mm512_shuffle_f32x4::<0b10_00_10_00>(c, d), _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d));
            x[i] = F32x16(_mm512_shuffle_f32x4::<0b10_00_10_00>(even, even2));
            x[i + 4] = F32x16(_mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd2));
            x[i + 8] = F32x16(_mm512_shuffle_f32x4::<0b11_01_11_01>(even, even2));
            x[i + 12] = F32x16(_mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd2));
        }
    }
}

/// The sums over the lanes of four vectors: neighbours are added while vectors are interleaved, then quarters are added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn sums_f32(x0: __m512, x1: __m512, x2: __m512, x3: __m512) -> [f32; 4] {
    let x01 = _mm512_add_ps(_mm512_unpacklo_ps(x0, x1), _mm512_unpackhi_ps(x0, x1));
    let x23 = _mm512_add_ps(_mm512_unpacklo_ps(x2, x3), _mm512_unpackhi_ps(x2, x3));
    let low = _mm512_shuffle_ps::<0b01_00_01_00>(x01, x23);
    let high = _mm512_shuffle_ps::<0b11_10_11_10>(x01, x23);
    let quarters = _mm512_add_ps(low, high);
    let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    bytemuck::cast(sums)
}

/// [`sums_f32`] for f64.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn sums_f64(x0: __m512d, x1: __m512d, x2: __m512d, x3: __m512d) -> [f64; 4] {
    let x01 = _mm512_add_pd(_mm512_unpacklo_pd(x0, x1), _mm512_unpackhi_pd(x0, x1));
    let x23 = _mm512_add_pd(_mm512_unpacklo_pd(x2, x3), _mm512_unpackhi_pd(x2, x3));
    let even = _mm512_shuffle_f64x2::<0b10_00_10_00>(x01, x23);
    let odd = _mm512_shuffle_f64x2::<0b11_01_11_01>(x01, x23);
    let pairs = _mm512_add_pd(even, odd);
    let low = _mm512_shuffle_f64x2::<0b10_00_10_00>(pairs, pairs);
    let high = _mm512_shuffle_f64x2::<0b11_01_11_01>(pairs, pairs);
    bytemuck::cast(_mm256_add_pd(_mm512_castpd512_pd256(low), _mm512_castpd512_pd256(high)))
}
