//! AVX2 with FMA and F16C.

use core::arch::x86_64::*;

use half::bf16;

use crate::arch::generic::operators;
use crate::arch::generic::vector::{Part, Vector};

/// Whether this CPU, and the system, have what [`F32x8`] and [`F64x4`] take.
pub fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

macro_rules! vector {
    ($(#[$doc:meta])* $v:ident: $inner:ident of $lanes:literal $real:ident, {
        splat $splat:ident, zero $zero:ident, add $add:ident, sub $sub:ident, mul $mul:ident, div $div:ident, fma $fma:ident, fnma $fnma:ident,
        max $max:ident, min $min:ident, andnot $andnot:ident, xor $xor:ident, round $round:ident, cmp $cmp:ident, movemask $movemask:ident, blend $blend:ident,
        shift $shift:ident $width:literal, to_int $to_int:ident, from_int $from_int:ident
    }, sums $sums:ident, $($widen:tt)*) => {
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
            fn prefetch(self, at: *const u32) {
                // SAFETY: a hint, which reads nothing and takes any address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }
            $($widen)*
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
        shift _mm256_slli_epi32 23, to_int _mm256_castps_si256, from_int _mm256_castsi256_ps
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
}

vector! {
    /// 4 numbers of type f64.
    F64x4: __m256d of 4 f64, {
        splat _mm256_set1_pd, zero _mm256_setzero_pd, add _mm256_add_pd, sub _mm256_sub_pd, mul _mm256_mul_pd, div _mm256_div_pd,
        fma _mm256_fmadd_pd, fnma _mm256_fnmadd_pd, max _mm256_max_pd, min _mm256_min_pd, andnot _mm256_andnot_pd, xor _mm256_xor_pd,
        round _mm256_round_pd, cmp _mm256_cmp_pd, movemask _mm256_movemask_pd, blend _mm256_blendv_pd,
        shift _mm256_slli_epi64 52, to_int _mm256_castpd_si256, from_int _mm256_castsi256_pd
    }, sums sums_f64,
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
