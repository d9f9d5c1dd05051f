//! The constants of the vector functions, for f32 and for f64.
//!
//! The polynomials are Chebyshev fits in 60-digit arithmetic (`exp2_tail` of f32 has the least relative error of 2^r instead), over the
//! intervals that the argument reductions leave; the factored forms make the leading terms exact, so that p(0) = 1 holds for the
//! exponentials. Longer types take more terms.

use crate::arch::generic::vector::{Vector, horner, polynomial as polynomial_of};
use crate::element::Real;

/// The constants of one type.
pub trait Tables: Real {
    /// 1/2.
    const HALF: Self;
    /// 2.
    const TWO: Self;
    /// 1.5·2^m + bias, m the width of the mantissa: added to an integer, the sum's lowest bits are the exponent of 2^n.
    const EXPONENT_MAGIC: Self;
    /// 1.5·2^m: added to a number below 2^(m−1), the sum's lowest bits are that number to the nearest integer.
    const ROUND_MAGIC: Self;
    /// [`Tables::ROUND_MAGIC`] + k, and 2^−k: exponents down to twice the least are brought into range by k, and the result back.
    const DOWN_MAGIC: Self;
    /// See [`Tables::DOWN_MAGIC`].
    const DOWN: Self;
    /// [`Tables::EXPONENT_MAGIC`] + k.
    const DOWN_POWER: Self;
    /// x·e^x is 0 at and below this.
    const SILU_MIN: Self;
    /// 1 + e^−x is 1 at and above this.
    const SILU_MAX: Self;
    /// 2^x is normal for |x| below this, and so is its product with what is left of x after a reduction.
    const EXP2_SMALL: Self;
    /// Twice the least normal exponent.
    const SCALE_MIN: Self;
    /// Twice the greatest exponent.
    const SCALE_MAX: Self;
    /// log₂ e.
    const LOG2_E: Self;
    /// ln 2 in two parts, the first short enough that its products with exponents are exact.
    const LN_2: [Self; 2];
    /// e^x, and x·e^x, is 0 at and below this.
    const EXP_MIN: Self;
    /// e^x is infinite at and above this.
    const EXP_MAX: Self;
    /// 2^x is 0 at and below this.
    const EXP2_MIN: Self;
    /// 2/π.
    const FRAC_2_PI: Self;
    /// π/2 in three parts, the first two short enough that their products with quadrants are exact.
    const PI_2: [Self; 3];
    /// Angles below this are reduced by the three parts of π/2.
    const ANGLE_MAX: Self;
    /// Below this modulus four terms of φ₁'s series are exact.
    const PHI1_TINY: Self;
    /// Above this modulus squares are taken of a scaled number.
    const HUGE: Self;
    /// What such a number is scaled by.
    const SHRINK: Self;
    /// The largest finite number.
    const MAX: Self;
    /// Terms of φ₁'’s series for |z| < 1.
    const PHI1_GRAD_TERMS: usize;
    /// From a small integer.
    fn of(n: usize) -> Self {
        Self::from_f64(n as f64)
    }
    /// (2^r − 1)/r for |r| ≤ 1/2.
    fn exp2_tail<V: Vector<Real = Self>>(r: V) -> V;
    /// (e^r − 1 − r)/r² for |r| ≤ ln(2)/2.
    fn exp_m1_tail<V: Vector<Real = Self>>(r: V) -> V;
    /// (2·atanh(s) − 2s)/s³ as a function of s² ≤ 1/9.
    fn ln_1p_tail<V: Vector<Real = Self>>(s2: V) -> V;
    /// (sin(r) − r)/r³ as a function of r² ≤ (π/4)².
    fn sin_tail<V: Vector<Real = Self>>(r2: V) -> V;
    /// (cos(r) − 1 + r²/2)/r⁴ as a function of r² ≤ (π/4)².
    fn cos_tail<V: Vector<Real = Self>>(r2: V) -> V;
}

macro_rules! polynomial {
    ($name:ident, [$($c:expr),+ $(,)?]) => {
        #[inline(always)]
        fn $name<V: Vector<Real = Self>>(x: V) -> V {
            polynomial_of(&[$($c),+], x)
        }
    };
}

impl Tables for f32 {
    const HALF: f32 = 0.5;
    const TWO: f32 = 2.0;
    const EXPONENT_MAGIC: f32 = 12_582_912.0 + 127.0;
    const ROUND_MAGIC: f32 = 12_582_912.0;
    const DOWN_MAGIC: f32 = 12_582_912.0 + 64.0;
    const DOWN: f32 = 1.0 / 18_446_744_073_709_551_616.0;
    const DOWN_POWER: f32 = 12_582_912.0 + 127.0 + 64.0;
    const SILU_MIN: f32 = -109.0;
    const SILU_MAX: f32 = 18.0;
    const EXP2_SMALL: f32 = 100.0;
    const SCALE_MIN: f32 = -252.0;
    const SCALE_MAX: f32 = 254.0;
    const LOG2_E: f32 = core::f32::consts::LOG2_E;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const EXP_MIN: f32 = -110.0;
    const EXP_MAX: f32 = 89.0;
    const EXP2_MIN: f32 = -160.0;
    const FRAC_2_PI: f32 = core::f32::consts::FRAC_2_PI;
    const PI_2: [f32; 3] = [1.570_312_5, 4.837_513e-4, 7.549_79e-8];
    const ANGLE_MAX: f32 = 8192.0;
    const PHI1_TINY: f32 = 0.01;
    const HUGE: f32 = 1.152_921_5e18;
    const SHRINK: f32 = 1.355_252_7e-20;
    const MAX: f32 = f32::MAX;
    const PHI1_GRAD_TERMS: usize = 12;
    #[inline(always)]
    fn exp2_tail<V: Vector<Real = Self>>(r: V) -> V {
        // Where a multiply-add rounds twice, pairs of terms cost a quarter of the accuracy.
        horner(&[core::f32::consts::LN_2, 0.24022282, 0.055505585, 0.009669694, 0.0013300616], r)
    }
    polynomial!(exp_m1_tail, [0.5, 0.16666576, 0.041666556, 0.008363195, 0.0013926204]);
    polynomial!(ln_1p_tail, [0.6666667, 0.39999706, 0.28592357, 0.21706575, 0.2322433]);
    polynomial!(sin_tail, [-0.16666664, 0.008332746, -0.00019587387]);
    polynomial!(cos_tail, [0.041666664, -0.00138883, 2.4547437e-5]);
}

impl Tables for f64 {
    const HALF: f64 = 0.5;
    const TWO: f64 = 2.0;
    const EXPONENT_MAGIC: f64 = 6_755_399_441_055_744.0 + 1023.0;
    const ROUND_MAGIC: f64 = 6_755_399_441_055_744.0;
    const DOWN_MAGIC: f64 = 6_755_399_441_055_744.0 + 128.0;
    const DOWN: f64 = 1.0 / 340_282_366_920_938_463_463_374_607_431_768_211_456.0;
    const DOWN_POWER: f64 = 6_755_399_441_055_744.0 + 1023.0 + 128.0;
    const SILU_MIN: f64 = -752.0;
    const SILU_MAX: f64 = 38.0;
    const EXP2_SMALL: f64 = 1020.0;
    const SCALE_MIN: f64 = -2044.0;
    const SCALE_MAX: f64 = 2046.0;
    const LOG2_E: f64 = core::f64::consts::LOG2_E;
    const LN_2: [f64; 2] = [0.6931471806019545, -4.200915072681083e-11];
    const EXP_MIN: f64 = -760.0;
    const EXP_MAX: f64 = 710.0;
    const EXP2_MIN: f64 = -1100.0;
    const FRAC_2_PI: f64 = core::f64::consts::FRAC_2_PI;
    const PI_2: [f64; 3] = [1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21];
    const ANGLE_MAX: f64 = 1e6;
    const PHI1_TINY: f64 = 1e-4;
    const HUGE: f64 = 1.157_920_892_373_162e77;
    const SHRINK: f64 = 1.8645851828000517e-155;
    const MAX: f64 = f64::MAX;
    const PHI1_GRAD_TERMS: usize = 22;
    polynomial!(
        exp2_tail,
        [
            core::f64::consts::LN_2,
            0.24022650695910097,
            0.0555041086648216,
            0.009618129107606854,
            0.0013333558146416916,
            0.00015403530441794136,
            1.525273382986708e-5,
            1.3215442552522291e-6,
            1.0178062426976924e-7,
            7.072593027878997e-9,
            4.4549643712692967e-10
        ]
    );
    polynomial!(
        exp_m1_tail,
        [
            0.5000000000000001,
            0.16666666666666669,
            0.04166666666662404,
            0.008333333333330055,
            0.0013888888917258759,
            0.00019841269863088255,
            2.4801521225986432e-5,
            2.7557268406190795e-6,
            2.7620121717381933e-7,
            2.51004110820149e-8
        ]
    );
    polynomial!(
        ln_1p_tail,
        [
            0.6666666666666666,
            0.40000000000014585,
            0.2857142856710876,
            0.22222222717427864,
            0.18181789436132859,
            0.15385570064958623,
            0.13314144209654935,
            0.12001072809590713,
            0.08800738486144674,
            0.1616404561194353
        ]
    );
    polynomial!(
        sin_tail,
        [
            -0.16666666666666666,
            0.008333333333333331,
            -0.00019841269841265017,
            2.755731921930192e-6,
            -2.5052106219521895e-8,
            1.6058529572267877e-10,
            -7.586576588171073e-13
        ]
    );
    polynomial!(
        cos_tail,
        [
            0.041666666666666664,
            -0.0013888888888888887,
            2.4801587301584618e-5,
            -2.7557319221382114e-7,
            2.087675578389404e-9,
            -1.1470459749675607e-11,
            4.745804889760674e-14
        ]
    );
}
