//! Advanced SIMD, which every aarch64 CPU that runs an operating system has.

use core::arch::aarch64::*;
use core::convert::identity;

use half::bf16;

use crate::arch::generic::operators;
use crate::arch::generic::vector::{Part, Vector};

/// Whether this CPU has what [`F32x4`] and [`F64x2`] take.
pub fn available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

macro_rules! vector {
    ($(#[$doc:meta])* $v:ident: $inner:ident of $lanes:literal $real:ident, mask $mask:ident, {
        splat $splat:ident, add $add:ident, sub $sub:ident, mul $mul:ident, div $div:ident, fma $fma:ident, fnma $fnma:ident,
        max $max:ident, min $min:ident, abs $abs:ident, neg $neg:ident, round $round:ident, lt $lt:ident, eq $eq:ident, blend $blend:ident, words $words:ident,
        shift $shift:ident $width:literal, add_int $add_int:ident, to_int $to_int:ident, from_int $from_int:ident
    }, $($more:tt)*) => {
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
                $v(unsafe { $neg(self.0) })
            }
        }

        // SAFETY: a transparent register of plain numbers; the field is private and only `enter` makes a value from nothing.
        unsafe impl Vector for $v {
            type Real = $real;
            type Mask = $mask;
            const LANES: usize = $lanes;
            const STATES: usize = 8;

            #[inline]
            unsafe fn enter<P: Part<Self>>(part: P) -> P::Out {
                #[inline(never)]
                #[target_feature(enable = "neon")]
                fn inside<P: Part<$v>>(part: P) -> P::Out {
                    part.run($v($splat(0.0)))
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
                $v(unsafe { $fma(c.0, self.0, b.0) })
            }
            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                // SAFETY: as in `splat`.
                $v(unsafe { $fnma(c.0, self.0, b.0) })
            }
            #[inline(always)]
            fn at_least(self, low: Self) -> Self {
                // These instructions return NaN where either operand is NaN.
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
                $v(unsafe { $round(self.0) })
            }
            #[inline(always)]
            fn lt(self, other: Self) -> $mask {
                // SAFETY: as in `splat`.
                unsafe { $lt(self.0, other.0) }
            }
            #[inline(always)]
            fn eq(self, other: Self) -> $mask {
                // SAFETY: as in `splat`.
                unsafe { $eq(self.0, other.0) }
            }
            #[inline(always)]
            fn select(mask: $mask, yes: Self, no: Self) -> Self {
                // SAFETY: the values exist, so the CPU has the instruction set.
                $v(unsafe { $blend(mask, yes.0, no.0) })
            }
            #[inline(always)]
            fn all(mask: $mask) -> bool {
                // SAFETY: the mask comes from a comparison of values, so the CPU has the instruction set.
                unsafe { vminvq_u32($words(mask)) == u32::MAX }
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
            $($more)*
        }
    };
}

vector! {
    /// 4 numbers of type f32.
    F32x4: float32x4_t of 4 f32, mask uint32x4_t, {
        splat vdupq_n_f32, add vaddq_f32, sub vsubq_f32, mul vmulq_f32, div vdivq_f32, fma vfmaq_f32, fnma vfmsq_f32,
        max vmaxq_f32, min vminq_f32, abs vabsq_f32, neg vnegq_f32, round vrndnq_f32, lt vcltq_f32, eq vceqq_f32, blend vbslq_f32, words identity,
        shift vshlq_n_u32 23, add_int vaddq_u32, to_int vreinterpretq_u32_f32, from_int vreinterpretq_f32_u32
    },
    #[inline(always)]
    fn widen<const SECOND: bool>(self, from: &[[bf16; 2]]) -> Self {
        let from = &from[..Self::LANES];
        // SAFETY: `from` has as many words as the register; `self` exists, so the CPU has the instruction set.
        Self(unsafe {
            let words = vreinterpretq_u32_u8(vld1q_u8(from.as_ptr().cast()));
            vreinterpretq_f32_u32(if SECOND { vandq_u32(words, vdupq_n_u32(0xffff_0000)) } else { vshlq_n_u32::<16>(words) })
        })
    }
}

vector! {
    /// 2 numbers of type f64.
    F64x2: float64x2_t of 2 f64, mask uint64x2_t, {
        splat vdupq_n_f64, add vaddq_f64, sub vsubq_f64, mul vmulq_f64, div vdivq_f64, fma vfmaq_f64, fnma vfmsq_f64,
        max vmaxq_f64, min vminq_f64, abs vabsq_f64, neg vnegq_f64, round vrndnq_f64, lt vcltq_f64, eq vceqq_f64, blend vbslq_f64, words vreinterpretq_u32_u64,
        shift vshlq_n_u64 52, add_int vaddq_u64, to_int vreinterpretq_u64_f64, from_int vreinterpretq_f64_u64
    },
}
