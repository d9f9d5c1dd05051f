//! AVX2 with FMA and F16C.

use core::arch::x86_64::*;

use half::bf16;

use crate::arch::generic::operators;
use crate::arch::generic::vector::{Part, Vector, horner};

/// Whether this CPU, and the system, have what [`F32x8`] and [`F64x4`] take.
pub fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

macro_rules! vector {
    ($(#[$doc:meta])* $v:ident: $inner:ident of $lanes:literal $real:ident, {
        splat $splat:ident, zero $zero:ident, add $add:ident, sub $sub:ident, mul $mul:ident, div $div:ident, fma $fma:ident, fnma $fnma:ident,
        max $max:ident, min $min:ident, andnot $andnot:ident, xor $xor:ident, round $round:ident, cmp $cmp:ident, movemask $movemask:ident, blend $blend:ident,
        shift $shift:ident $width:literal, add_int $add_int:ident, to_int $to_int:ident, from_int $from_int:ident
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
            type Mask = $inner;
            const LANES: usize = $lanes;
            const STATES: usize = 4;

            #[inline]
            unsafe fn enter<P: Part<Self>>(part: P) -> P::Out {
                #[inline(never)]
                #[target_feature(enable = "avx2,fma,f16c")]
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
                $v(unsafe { $andnot($splat(-0.0), self.0) })
            }
            #[inline(always)]
            fn round(self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $round::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
            }
            #[inline(always)]
            fn lt(self, other: Self) -> $inner {
                // SAFETY: as in `splat`.
                unsafe { $cmp::<_CMP_LT_OQ>(self.0, other.0) }
            }
            #[inline(always)]
            fn eq(self, other: Self) -> $inner {
                // SAFETY: as in `splat`.
                unsafe { $cmp::<_CMP_EQ_OQ>(self.0, other.0) }
            }
            #[inline(always)]
            fn select(mask: $inner, yes: Self, no: Self) -> Self {
                // SAFETY: the values exist, so the CPU has the instruction set.
                $v(unsafe { $blend(no.0, yes.0, mask) })
            }
            #[inline(always)]
            fn all(mask: $inner) -> bool {
                // SAFETY: the mask comes from a comparison of values, so the CPU has the instruction set.
                unsafe { $movemask(mask) == (1 << $lanes) - 1 }
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
    /// 8 numbers of type f32.
    F32x8: __m256 of 8 f32, {
        splat _mm256_set1_ps, zero _mm256_setzero_ps, add _mm256_add_ps, sub _mm256_sub_ps, mul _mm256_mul_ps, div _mm256_div_ps,
        fma _mm256_fmadd_ps, fnma _mm256_fnmadd_ps, max _mm256_max_ps, min _mm256_min_ps, andnot _mm256_andnot_ps, xor _mm256_xor_ps,
        round _mm256_round_ps, cmp _mm256_cmp_ps, movemask _mm256_movemask_ps, blend _mm256_blendv_ps,
        shift _mm256_slli_epi32 23, add_int _mm256_add_epi32, to_int _mm256_castps_si256, from_int _mm256_castsi256_ps
    }, sums sums_f32,
    #[inline(always)]
    fn widen<const SECOND: bool>(self, from: &[[bf16; 2]]) -> Self {
        let from = &from[..Self::LANES];
        // SAFETY: `from` has as many words as the register; `self` exists, so the CPU has the instruction set.
        Self(unsafe {
            let words = _mm256_loadu_si256(from.as_ptr().cast());
            _mm256_castsi256_ps(if SECOND { _mm256_and_si256(words, _mm256_set1_epi32(-65536)) } else { _mm256_slli_epi32::<16>(words) })
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
        unsafe { load_f16(from, to) }
    }
    #[inline(always)]
    fn store_f16(self, from: &[f32], to: &mut [u16]) {
        // SAFETY: as in `load_f16`.
        unsafe { store_f16(from, to) }
    }
    #[inline(always)]
    fn transpose(self, x: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        // SAFETY: as in `load_f16`.
        unsafe { transpose(x) }
    }
    #[inline(always)]
    fn square(x: &mut [Self]) {
        let x = x.first_chunk_mut().expect("as many vectors as lanes");
        // SAFETY: the values exist, so the CPU has the instruction set.
        unsafe { square(x) }
    }
}

vector! {
    /// 4 numbers of type f64.
    F64x4: __m256d of 4 f64, {
        splat _mm256_set1_pd, zero _mm256_setzero_pd, add _mm256_add_pd, sub _mm256_sub_pd, mul _mm256_mul_pd, div _mm256_div_pd,
        fma _mm256_fmadd_pd, fnma _mm256_fnmadd_pd, max _mm256_max_pd, min _mm256_min_pd, andnot _mm256_andnot_pd, xor _mm256_xor_pd,
        round _mm256_round_pd, cmp _mm256_cmp_pd, movemask _mm256_movemask_pd, blend _mm256_blendv_pd,
        shift _mm256_slli_epi64 52, add_int _mm256_add_epi64, to_int _mm256_castpd_si256, from_int _mm256_castsi256_pd
    }, sums sums_f64,
}

/// The bits of 2^(j/8), rounded, less j·2^20: the bits of a number that has n + j/8 in its lowest bits, shifted by 20, are added.
const ROOTS: [i32; 8] = [0x3f80_0000, 0x3f7b_95c2, 0x3f78_37f0, 0x3f75_fed7, 0x3f75_04f3, 0x3f75_672a, 0x3f77_44fd, 0x3f7a_c0c7];

/// 1.5·2^20: added to a number below 2^19, the sum's lowest bits are eighths.
const EIGHTHS: f32 = 1_572_864.0;

/// (2^r − 1)/r for |r| ≤ 1/16.
#[inline(always)]
fn root_tail(r: F32x8) -> F32x8 {
    horner(&[core::f32::consts::LN_2, 0.240_257_64, 0.055_511_475], r)
}

/// 2^x = 2^(k/8)·2^r, k = 8·n + j, |r| ≤ 1/16: the root from a table by a permutation, the rest by a polynomial of degree 3.
#[inline(always)]
fn exp2_small_by_table(x: F32x8) -> F32x8 {
    let magic = x.splat(EIGHTHS);
    let t = x + magic;
    let r = x - (t - magic);
    // SAFETY: `x` exists, so the CPU has the instruction set.
    let root = unsafe {
        let bits = _mm256_castps_si256(t.0);
        let root = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(ROOTS.as_ptr().cast()), bits);
        F32x8(_mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32::<20>(bits))))
    };
    root_tail(r).mul_add(root * r, root)
}

/// [`exp2_small_by_table`] for any x: 2^n is applied last.
#[inline(always)]
fn exp2_by_table(x: F32x8) -> F32x8 {
    let x = x.at_least(x.splat(-160.0)).at_most(x.splat(160.0));
    let magic = x.splat(EIGHTHS);
    let t = x + magic;
    let k = t - magic;
    let r = x - k;
    // SAFETY: `x` exists, so the CPU has the instruction set.
    let (root, n) = unsafe {
        let j = _mm256_and_si256(_mm256_castps_si256(t.0), _mm256_set1_epi32(7));
        let root = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(ROOTS.as_ptr().cast()), j);
        (F32x8(_mm256_castsi256_ps(_mm256_add_epi32(root, _mm256_slli_epi32::<20>(j)))), F32x8(_mm256_floor_ps(k.0)))
    };
    root_tail(r).mul_add(root * r, root).scale(n)
}

/// See [`Vector::transpose`]: pairs of rows are interleaved twice; halves are exchanged while the rows are read.
///
/// # Safety
/// The CPU must have AVX2. Not a function with target features: those are called with the numbers in memory.
#[inline(always)]
pub(super) unsafe fn transpose(x: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    let mut to = x;
    for half in 0..2 {
        // SAFETY: the caller says that the CPU has the instructions; all addresses are those of 4 or 8 numbers of an array.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 4];
            for c in 0..4 {
                rows[c] = _mm256_set_m128(_mm_loadu_ps(x[c + 4][4 * half..].as_ptr()), _mm_loadu_ps(x[c][4 * half..].as_ptr()));
            }
            let (low, high) = (_mm256_unpacklo_ps(rows[0], rows[1]), _mm256_unpackhi_ps(rows[0], rows[1]));
            let (low2, high2) = (_mm256_unpacklo_ps(rows[2], rows[3]), _mm256_unpackhi_ps(rows[2], rows[3]));
            let to = &mut to[4 * half..4 * half + 4];
            _mm256_storeu_ps(to[0].as_mut_ptr(), _mm256_shuffle_ps::<0b01_00_01_00>(low, low2));
            _mm256_storeu_ps(to[1].as_mut_ptr(), _mm256_shuffle_ps::<0b11_10_11_10>(low, low2));
            _mm256_storeu_ps(to[2].as_mut_ptr(), _mm256_shuffle_ps::<0b01_00_01_00>(high, high2));
            _mm256_storeu_ps(to[3].as_mut_ptr(), _mm256_shuffle_ps::<0b11_10_11_10>(high, high2));
        }
    }
    to
}

/// See [`Vector::square`]: neighbours are interleaved, then pairs, then halves.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn square(x: &mut [F32x8; 8]) {
    // SAFETY: the caller says that the CPU has the instructions.
    unsafe {
        let mut quads = [_mm256_setzero_ps(); 8];
        for half in [0, 4] {
            let [a, b, c, d] = [x[half].0, x[half + 1].0, x[half + 2].0, x[half + 3].0];
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (low2, high2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            quads[half] = _mm256_shuffle_ps::<0b01_00_01_00>(low, low2);
            quads[half + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low, low2);
            quads[half + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(high, high2);
            quads[half + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(high, high2);
        }
        for i in 0..4 {
            x[i] = F32x8(_mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]));
            x[i + 4] = F32x8(_mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]));
        }
    }
}

/// Numbers of type f16 to as many of type f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_f16(from: &[u16], to: &mut [f32]) {
    let ((from, rest), (to, last)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = bytemuck::cast(_mm256_cvtph_ps(bytemuck::cast(*from)));
    }
    for (to, bits) in last.iter_mut().zip(rest) {
        *to = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(*bits))));
    }
}

/// Numbers of type f32 to as many of type f16, to nearest even.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store_f16(from: &[f32], to: &mut [u16]) {
    let ((from, rest), (to, last)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (to, from) in to.iter_mut().zip(from) {
        *to = bytemuck::cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(bytemuck::cast(*from)));
    }
    for (to, x) in last.iter_mut().zip(rest) {
        *to = _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(*x))) as u16;
    }
}

/// The sums over the lanes of four vectors: neighbours are added while vectors are interleaved, then halves are added.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_f32(x0: __m256, x1: __m256, x2: __m256, x3: __m256) -> [f32; 4] {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(x0, x1), _mm256_hadd_ps(x2, x3));
    bytemuck::cast(_mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves)))
}

/// [`sums_f32`] for f64.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_f64(x0: __m256d, x1: __m256d, x2: __m256d, x3: __m256d) -> [f64; 4] {
    let (x01, x23) = (_mm256_hadd_pd(x0, x1), _mm256_hadd_pd(x2, x3));
    let low = _mm256_permute2f128_pd::<0x20>(x01, x23);
    let high = _mm256_permute2f128_pd::<0x31>(x01, x23);
    bytemuck::cast(_mm256_add_pd(low, high))
}
