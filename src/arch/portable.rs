//! Vectors by the `wide` crate, for whatever the compiler's target has.

use core::ops;

use half::bf16;
use wide::{f32x8, f64x4, u32x8, u64x4};

use crate::arch::generic::operators;
use crate::arch::generic::vector::{Part, Vector};

macro_rules! vector {
    ($(#[$doc:meta])* $v:ident: $inner:ident of $lanes:literal $real:ident, bits $bits:ident << $width:literal, no fraction from $whole:expr, split by $split:expr; $($widen:tt)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        #[repr(transparent)]
        pub struct $v($inner);

        operators!($v, Add add ops::Add::add, Sub sub ops::Sub::sub, Mul mul ops::Mul::mul, Div div ops::Div::div);

        impl ops::Neg for $v {
            type Output = $v;
            #[inline(always)]
            fn neg(self) -> $v {
                $v(self.0 ^ $inner::splat(-0.0))
            }
        }

        // SAFETY: a transparent array of plain numbers, for any CPU.
        unsafe impl Vector for $v {
            type Real = $real;
            type Mask = $inner;
            const LANES: usize = $lanes;
            const STATES: usize = 4;

            #[inline]
            unsafe fn enter<P: Part<Self>>(part: P) -> P::Out {
                #[inline(never)]
                fn inside<P: Part<$v>>(part: P) -> P::Out {
                    part.run($v($inner::ZERO))
                }
                inside(part)
            }

            #[inline(always)]
            fn splat(self, x: $real) -> Self {
                $v($inner::splat(x))
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                $v(self.0.mul_add(b.0, c.0))
            }
            #[inline(always)]
            fn neg_mul_add(self, b: Self, c: Self) -> Self {
                $v(self.0.mul_neg_add(b.0, c.0))
            }
            #[inline(always)]
            fn at_least(self, low: Self) -> Self {
                Self::select(self.lt(low), low, self)
            }
            #[inline(always)]
            fn at_most(self, high: Self) -> Self {
                Self::select(high.lt(self), high, self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $v(self.0.abs())
            }
            #[inline(always)]
            fn round(self) -> Self {
                // Adding 1.5·2^m leaves no room for a fraction.
                let magic = $inner::splat($whole * 1.5);
                let rounded = $v((self.0 + magic) - magic);
                Self::select(self.abs().lt(self.splat($whole / 2.0)), rounded, self)
            }
            #[inline(always)]
            fn lt(self, other: Self) -> $inner {
                self.0.simd_lt(other.0)
            }
            #[inline(always)]
            fn eq(self, other: Self) -> $inner {
                self.0.simd_eq(other.0)
            }
            #[inline(always)]
            fn select(mask: $inner, yes: Self, no: Self) -> Self {
                $v(mask.bitselect(yes.0, no.0))
            }
            #[inline(always)]
            fn all(mask: $inner) -> bool {
                mask.all()
            }
            #[inline(always)]
            fn mantissa_to_exponent(self) -> Self {
                let bits: $bits = bytemuck::cast(self.0);
                $v(bytemuck::cast(bits << $width))
            }
            $($widen)*
            #[inline(always)]
            fn add_exponent(self, t: Self) -> Self {
                let (bits, t): ($bits, $bits) = (bytemuck::cast(self.0), bytemuck::cast(t.0));
                $v(bytemuck::cast(bits + (t << $width)))
            }
            #[inline(always)]
            fn residual(self, b: Self, product: Self) -> Self {
                // There may be no fused multiply-add: split both factors in halves whose products are exact (Dekker 1971).
                let (a1, a2) = self.halves();
                let (b1, b2) = b.halves();
                let rest = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
                // Splitting overflows for huge factors, whose residual does not matter.
                Self::select(rest.abs().lt(product.abs()), rest, self.splat(0.0))
            }
        }

        impl $v {
            #[inline(always)]
            fn halves(self) -> (Self, Self) {
                let big = self * self.splat($split);
                let high = big - (big - self);
                (high, self - high)
            }
        }
    };
}

vector! {
    /// 8 numbers of type f32.
    F32x8: f32x8 of 8 f32, bits u32x8 << 23, no fraction from 8_388_608.0, split by 4097.0;
    #[inline(always)]
    fn widen<const SECOND: bool>(self, from: &[[bf16; 2]]) -> Self {
        let words: u32x8 = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&from[..Self::LANES]));
        F32x8(bytemuck::cast(if SECOND { words & u32x8::splat(0xffff_0000) } else { words << 16u32 }))
    }
}

vector! {
    /// 4 numbers of type f64.
    F64x4: f64x4 of 4 f64, bits u64x4 << 52, no fraction from 4_503_599_627_370_496.0, split by 134_217_729.0;
}
