//! Element types: what tensors are stored as (`Element`, `Input`) and what is computed in (`Weight`, `Real`).

use core::fmt::Debug;
use core::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use bytemuck::Pod;
use half::{bf16, f16};
use num_complex::Complex;

/// The name of an element type, for dispatch and for printing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// Complex of f32.
    C32,
    /// Complex of f64.
    C64,
    /// Complex of f16.
    Cf16,
    /// Complex of bf16.
    Cbf16,
}

impl Dtype {
    /// A short name: `f32`, `bf16`, `c32` …
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::C32 => "c32",
            Dtype::C64 => "c64",
            Dtype::Cf16 => "cf16",
            Dtype::Cbf16 => "cbf16",
        }
    }
}

/// A type that a tensor can be stored as. Arithmetic is done in `Arith`.
pub trait Element: Copy + Send + Sync + Default + Debug + PartialEq + Pod {
    /// The type it is computed in.
    type Arith: Weight;
    /// Its name.
    const DTYPE: Dtype;
    /// Widens to the arithmetic type; exact.
    fn load(self) -> Self::Arith;
    /// Rounds to nearest even from the arithmetic type.
    fn store(value: Self::Arith) -> Self;
}

/// A real storage type of u, delta, z, out: f32, f64, f16, bf16.
pub trait Input: Element<Arith = Self::Accum> {
    /// The type it is computed in: f64 for f64, f32 for the others. A real A takes B and C in the storage type itself.
    type Accum: Real<Stored<Self> = Self>;
}

/// A type that is computed in: f32, f64 and the complex numbers over them. A and the states have such a type.
pub trait Weight:
    Element<Arith = Self> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self> + AddAssign
{
    /// The real type beneath.
    type Real: Real;
    /// The same kind of number over f64.
    type Wide: Weight<Real = f64>;
    /// What a varying B or C is stored as beside inputs of type `I`: `I` itself, or complex pairs of it.
    type Stored<I: Input<Accum = Self::Real>>: Element<Arith = Self>;
    /// Whether this is a complex type.
    const COMPLEX: bool;
    /// κ: 2 for complex A (y takes twice the real part), 1 for real.
    const KAPPA: f64;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Real and imaginary part to number; a real type drops `im`.
    fn from_parts(re: Self::Real, im: Self::Real) -> Self;
    /// A real number as this type.
    fn from_real(re: Self::Real) -> Self;
    /// Real part.
    fn re(self) -> Self::Real;
    /// Imaginary part, 0 for real types.
    fn im(self) -> Self::Real;
    /// Complex conjugate.
    fn conj(self) -> Self;
    /// Product with a real number.
    fn scale(self, by: Self::Real) -> Self;
    /// e to the power of this.
    fn exp(self) -> Self;
    /// exp(x) − 1 without cancellation near 0.
    fn exp_m1(self) -> Self;
    /// Absolute value.
    fn modulus(self) -> Self::Real;
    /// To the same kind of number over f64; exact.
    fn widen(self) -> Self::Wide;
    /// From the same kind of number over f64, rounded.
    fn narrow(wide: Self::Wide) -> Self;
    /// Real part of self · conj(other).
    fn dot(self, other: Self) -> Self::Real {
        self.re() * other.re() + self.im() * other.im()
    }
}

/// f32 or f64.
pub trait Real: Weight<Real = Self, Wide = f64> + Input<Accum = Self> + PartialOrd {
    /// Half the distance from 1 to the next number: the unit roundoff.
    const UNIT: f64;
    /// From f64, rounded.
    fn from_f64(value: f64) -> Self;
    /// To f64, exact.
    fn to_f64(self) -> f64;
    /// ln(1 + x).
    fn ln_1p(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Sine and cosine.
    fn sin_cos(self) -> (Self, Self);
    /// |x|.
    fn abs(self) -> Self;
    /// x·y + z, rounded once.
    fn fma(self, y: Self, z: Self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
}

/// The same number in another arithmetic: exact to a wider one, rounded to a narrower one.
#[inline(always)]
pub(crate) fn cast<From: Weight, To: Weight>(x: From) -> To {
    To::from_parts(cast_real(x.re()), cast_real(x.im()))
}

/// As [`cast`], for real numbers.
#[inline(always)]
pub(crate) fn cast_real<From: Real, To: Real>(x: From) -> To {
    To::from_f64(x.to_f64())
}

macro_rules! real {
    ($t:ident, $dtype:ident, $unit:expr) => {
        impl Element for $t {
            type Arith = $t;
            const DTYPE: Dtype = Dtype::$dtype;
            #[inline(always)]
            fn load(self) -> $t {
                self
            }
            #[inline(always)]
            fn store(value: $t) -> $t {
                value
            }
        }
        impl Input for $t {
            type Accum = $t;
        }
        impl Weight for $t {
            type Real = $t;
            type Wide = f64;
            type Stored<I: Input<Accum = $t>> = I;
            const COMPLEX: bool = false;
            const KAPPA: f64 = 1.0;
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            #[inline(always)]
            fn from_parts(re: $t, _im: $t) -> $t {
                re
            }
            #[inline(always)]
            fn from_real(re: $t) -> $t {
                re
            }
            #[inline(always)]
            fn re(self) -> $t {
                self
            }
            #[inline(always)]
            fn im(self) -> $t {
                0.0
            }
            #[inline(always)]
            fn conj(self) -> $t {
                self
            }
            #[inline(always)]
            fn scale(self, by: $t) -> $t {
                self * by
            }
            #[inline]
            fn exp(self) -> $t {
                $t::exp(self)
            }
            #[inline]
            fn exp_m1(self) -> $t {
                $t::exp_m1(self)
            }
            #[inline(always)]
            fn modulus(self) -> $t {
                $t::abs(self)
            }
            #[inline(always)]
            fn widen(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn narrow(wide: f64) -> $t {
                wide as $t
            }
            #[inline(always)]
            fn dot(self, other: $t) -> $t {
                self * other
            }
        }
        impl Real for $t {
            const UNIT: f64 = $unit;
            #[inline(always)]
            fn from_f64(value: f64) -> $t {
                value as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline]
            fn ln_1p(self) -> $t {
                $t::ln_1p(self)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
            #[inline]
            fn sin_cos(self) -> ($t, $t) {
                $t::sin_cos(self)
            }
            #[inline(always)]
            fn abs(self) -> $t {
                $t::abs(self)
            }
            #[inline]
            fn fma(self, y: $t, z: $t) -> $t {
                $t::mul_add(self, y, z)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
        }
    };
}

real!(f32, F32, 1.0 / (1u64 << 24) as f64);
real!(f64, F64, 1.0 / (1u64 << 53) as f64);

macro_rules! narrow_storage {
    ($t:ident, $dtype:ident) => {
        impl Element for $t {
            type Arith = f32;
            const DTYPE: Dtype = Dtype::$dtype;
            #[inline]
            fn load(self) -> f32 {
                self.to_f32()
            }
            #[inline]
            fn store(value: f32) -> $t {
                $t::from_f32(value)
            }
        }
        impl Input for $t {
            type Accum = f32;
        }
    };
}

narrow_storage!(f16, F16);
narrow_storage!(bf16, Bf16);

impl<I: Input> Element for Complex<I>
where
    Complex<I::Accum>: Weight,
{
    type Arith = Complex<I::Accum>;
    const DTYPE: Dtype = match I::DTYPE {
        Dtype::F64 => Dtype::C64,
        Dtype::F16 => Dtype::Cf16,
        Dtype::Bf16 => Dtype::Cbf16,
        _ => Dtype::C32,
    };
    #[inline(always)]
    fn load(self) -> Complex<I::Accum> {
        Complex { re: self.re.load(), im: self.im.load() }
    }
    #[inline(always)]
    fn store(value: Complex<I::Accum>) -> Self {
        Complex { re: I::store(value.re), im: I::store(value.im) }
    }
}

macro_rules! complex {
    ($t:ident) => {
        impl Weight for Complex<$t> {
            type Real = $t;
            type Wide = Complex<f64>;
            type Stored<I: Input<Accum = $t>> = Complex<I>;
            const COMPLEX: bool = true;
            const KAPPA: f64 = 2.0;
            const ZERO: Self = Complex { re: 0.0, im: 0.0 };
            const ONE: Self = Complex { re: 1.0, im: 0.0 };
            #[inline(always)]
            fn from_parts(re: $t, im: $t) -> Self {
                Complex { re, im }
            }
            #[inline(always)]
            fn from_real(re: $t) -> Self {
                Complex { re, im: 0.0 }
            }
            #[inline(always)]
            fn re(self) -> $t {
                self.re
            }
            #[inline(always)]
            fn im(self) -> $t {
                self.im
            }
            #[inline(always)]
            fn conj(self) -> Self {
                Complex { re: self.re, im: -self.im }
            }
            #[inline(always)]
            fn scale(self, by: $t) -> Self {
                Complex { re: self.re * by, im: self.im * by }
            }
            #[inline]
            fn exp(self) -> Self {
                let r = self.re.exp();
                let (s, c) = self.im.sin_cos();
                // Where e^re underflows, 0 times the cosine of an infinite angle would be NaN; exp underflows to 0.
                if r == 0.0 && !self.im.is_nan() { Self::ZERO } else { Complex { re: r * c, im: r * s } }
            }
            #[inline]
            fn exp_m1(self) -> Self {
                let (s, c) = self.im.sin_cos();
                let half = (self.im * 0.5).sin();
                let em1 = $t::exp_m1(self.re);
                Complex { re: em1 * c - 2.0 * half * half, im: (em1 + 1.0) * s }
            }
            #[inline]
            fn modulus(self) -> $t {
                self.re.hypot(self.im)
            }
            #[inline(always)]
            fn widen(self) -> Complex<f64> {
                Complex { re: f64::from(self.re), im: f64::from(self.im) }
            }
            #[inline(always)]
            fn narrow(wide: Complex<f64>) -> Self {
                Complex { re: wide.re as $t, im: wide.im as $t }
            }
        }
    };
}

complex!(f32);
complex!(f64);
