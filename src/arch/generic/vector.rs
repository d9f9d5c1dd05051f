//! The trait that kernels are written over: one vector register of f32 or f64.

use core::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use crate::arch::generic::exp;
use crate::arch::generic::tables::Tables;
use crate::element::Real as _;

/// One vector register.
///
/// A value of such a type is the proof that the CPU has its instruction set, so that everything which takes one is safe:
/// the first value comes from [`Vector::enter`], all others are made from others.
///
/// Methods and the functions over them are `#[inline(always)]`: they must end up inside a function that has the target
/// features, which is what `enter` and `outline` compile. For the same reason kernels use loops, not closures.
///
/// # Safety
/// The type is `LANES` numbers of type `Real` one after another, without padding, any bits valid, aligned to at most 64 bytes,
/// and only `enter` makes a value from nothing.
pub unsafe trait Vector:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// The type of a lane.
    type Real: Tables;
    /// One truth value a lane.
    type Mask: Copy;
    /// Lanes in a register.
    const LANES: usize;
    /// How many states of a scan stay in registers at most.
    const STATES: usize;
    /// Whether lines that are wanted only after thousands of cycles are asked for into the nearest cache too.
    const NEAR: bool = true;

    /// Runs `part` in a function of its own that has the target features.
    ///
    /// # Safety
    /// The CPU must have the instruction set.
    unsafe fn enter<P: Part<Self>>(part: P) -> P::Out;
    /// Runs `part` in a function of its own, so that large pieces are compiled once and not inlined everywhere.
    #[inline(always)]
    fn outline<P: Part<Self>>(self, part: P) -> P::Out {
        // SAFETY: `self` exists, so the CPU has the instruction set.
        unsafe { Self::enter(part) }
    }

    /// `x` in every lane.
    fn splat(self, x: Self::Real) -> Self;
    /// self·b + c, rounded once (the portable type may round twice).
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// c − self·b, rounded once (the portable type may round twice).
    fn neg_mul_add(self, b: Self, c: Self) -> Self;
    /// max(self, low); NaN in `self` passes.
    fn at_least(self, low: Self) -> Self;
    /// min(self, high); NaN in `self` passes.
    fn at_most(self, high: Self) -> Self;
    /// |self|.
    fn abs(self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// self < other, false for NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// self = other, false for NaN.
    fn eq(self, other: Self) -> Self::Mask;
    /// `yes` where the mask is set, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Whether the mask is set in every lane.
    fn all(mask: Self::Mask) -> bool;
    /// The bits shifted left by the width of the mantissa: its lowest bits become the exponent.
    fn mantissa_to_exponent(self) -> Self;
    /// The bits of `self` plus those of `t` shifted left by the width of the mantissa: self·2^n for n in t's lowest bits, as long as
    /// neither `self` nor the result is subnormal or out of range.
    fn add_exponent(self, t: Self) -> Self;
    /// Rows for columns.
    #[inline(always)]
    fn transpose(self, x: [[Self::Real; 8]; 8]) -> [[Self::Real; 8]; 8] {
        let mut to = x;
        for r in 0..8 {
            for c in 0..8 {
                to[r][c] = x[c][r];
            }
        }
        to
    }
    /// Rows for columns of `LANES` vectors.
    #[inline(always)]
    fn square(x: &mut [Self]) {
        for r in 0..Self::LANES {
            for c in 0..r {
                let (low, high) = (x[c].lanes()[r], x[r].lanes()[c]);
                x[r].lanes_mut()[c] = low;
                x[c].lanes_mut()[r] = high;
            }
        }
    }
    /// Numbers of type f16, as bits, to as many numbers.
    #[inline(always)]
    fn load_f16(self, from: &[u16], to: &mut [Self::Real]) {
        for (to, &bits) in to.iter_mut().zip(from) {
            *to = Self::Real::from_f64(f16::from_bits(bits).to_f64());
        }
    }
    /// Numbers of type f32 to as many of type f16, rounded to nearest even.
    #[inline(always)]
    fn store_f16(self, from: &[Self::Real], to: &mut [u16]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f16::from_f64(from.to_f64()).to_bits();
        }
    }
    /// 2^self, see [`exp2`](crate::arch::generic::exp::exp2).
    #[inline(always)]
    fn exp2(self) -> Self {
        exp::exp2_by_polynomial(self)
    }
    /// 2^self where |self| is below [`Tables::EXP2_SMALL`], else anything: the bits of [`Vector::exp2`] in fewer instructions.
    #[inline(always)]
    fn exp2_small(self) -> Self {
        exp::exp2_small_by_polynomial(self)
    }
    /// self·2^n for an integer n from twice the least normal exponent to 1, rounded once, to subnormal numbers where it must.
    #[inline(always)]
    fn scale_down(self, n: Self) -> Self {
        let n = n + n.splat(Self::Real::DOWN_MAGIC);
        self.add_exponent(n) * n.splat(Self::Real::DOWN)
    }

    /// 2^n for integers n in the range of normal exponents.
    #[inline(always)]
    fn pow2(self) -> Self {
        (self + self.splat(Self::Real::EXPONENT_MAGIC)).mantissa_to_exponent()
    }

    /// self·2^n for an integer n, rounded once, to subnormal numbers or infinity where it must.
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // Two factors, each normal, span more than the type's range.
        let n = n.at_least(n.splat(Self::Real::SCALE_MIN)).at_most(n.splat(Self::Real::SCALE_MAX));
        let half = (n * n.splat(Self::Real::HALF)).round();
        self * half.pow2() * (n - half).pow2()
    }

    /// The first bf16 of each of `LANES` pairs, or the second: exact.
    #[inline(always)]
    fn widen<const SECOND: bool>(self, from: &[[bf16; 2]]) -> Self {
        let mut wide = self;
        for (lane, pair) in wide.lanes_mut().iter_mut().zip(&from[..Self::LANES]) {
            *lane = <Self::Real as crate::element::Real>::from_f64(f64::from(pair[usize::from(SECOND)]));
        }
        wide
    }

    /// Asks for a cache line that is read soon, at any address, into every cache if `NEAR` and else into all but the nearest;
    /// where there is no such instruction it does nothing.
    #[inline(always)]
    fn prefetch<const NEAR: bool>(self, _address: usize) {}

    /// self·b − product, where `product` is the rounded self·b: what rounding took away.
    #[inline(always)]
    fn residual(self, b: Self, product: Self) -> Self {
        self.mul_add(b, -product)
    }

    /// Whether every lane's |self| is below `limit`; false if one is NaN.
    #[inline(always)]
    fn all_below(self, limit: Self::Real) -> bool {
        Self::all(self.abs().lt(self.splat(limit)))
    }

    /// The lanes.
    #[inline(always)]
    fn lanes(&self) -> &[Self::Real] {
        // SAFETY: the type is LANES numbers.
        unsafe { core::slice::from_raw_parts((self as *const Self).cast(), Self::LANES) }
    }

    /// The lanes, to write to.
    #[inline(always)]
    fn lanes_mut(&mut self) -> &mut [Self::Real] {
        // SAFETY: the type is LANES numbers and any bits are valid.
        unsafe { core::slice::from_raw_parts_mut((self as *mut Self).cast(), Self::LANES) }
    }

    /// The sum over the lanes, by halves.
    #[inline(always)]
    fn sum(mut self) -> Self::Real {
        let lanes = self.lanes_mut();
        let mut width = Self::LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane, if none is NaN.
    #[inline(always)]
    fn largest(mut self) -> Self::Real {
        let lanes = self.lanes_mut();
        let mut width = Self::LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i] < lanes[i + width] { lanes[i + width] } else { lanes[i] };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// [`Vector::sum`] of four at once.
    #[inline(always)]
    fn sums(x: [Self; 4]) -> [Self::Real; 4] {
        [x[0].sum(), x[1].sum(), x[2].sum(), x[3].sum()]
    }
}

/// A piece of a kernel that is compiled as a function of its own.
pub trait Part<V: Vector> {
    /// What it returns.
    type Out;
    /// Its body; implementations are `#[inline(always)]`. `zero` is a vector to make others from.
    fn run(self, zero: V) -> Self::Out;
}

/// A computation over vectors, whatever their instruction set.
pub trait Op<R: Tables> {
    /// What it returns.
    type Out;
    /// Its body; implementations are `#[inline(always)]`. `zero` is a vector to make others from.
    fn run<V: Vector<Real = R>>(self, zero: V) -> Self::Out;
}

/// The first `rows` rows of staged numbers as vectors.
#[inline(always)]
pub fn rows<V: Vector>(_proof: V, numbers: &[V::Real], rows: usize) -> &[V] {
    let numbers = &numbers[..rows * V::LANES];
    assert!(numbers.as_ptr().cast::<V>().is_aligned(), "a staged row is not aligned");
    // SAFETY: rows·LANES numbers are there, aligned; a vector is LANES of them; `_proof` says that the CPU has its instructions.
    unsafe { core::slice::from_raw_parts(numbers.as_ptr().cast(), rows) }
}

/// [`rows`], to write to.
#[inline(always)]
pub fn rows_mut<V: Vector>(_proof: V, numbers: &mut [V::Real], rows: usize) -> &mut [V] {
    let numbers = &mut numbers[..rows * V::LANES];
    assert!(numbers.as_ptr().cast::<V>().is_aligned(), "a staged row is not aligned");
    // SAFETY: as in `rows`, and the exclusive borrow goes over to the result.
    unsafe { core::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), rows) }
}

/// A vector that may lie anywhere.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed)]
pub struct Loose<V>(V);

impl<V: Copy> Loose<V> {
    /// It.
    #[inline(always)]
    pub fn get(self) -> V {
        self.0
    }
    /// Another.
    #[inline(always)]
    pub fn set(&mut self, to: V) {
        self.0 = to;
    }
}

/// As [`rows`], of numbers that may lie anywhere.
#[inline(always)]
pub fn loose<V: Vector>(_proof: V, numbers: &[V::Real], rows: usize) -> &[Loose<V>] {
    let numbers = &numbers[..rows * V::LANES];
    // SAFETY: as in `rows`; the type of the result has no alignment.
    unsafe { core::slice::from_raw_parts(numbers.as_ptr().cast(), rows) }
}

/// [`loose`], to write to.
#[inline(always)]
pub fn loose_mut<V: Vector>(_proof: V, numbers: &mut [V::Real], rows: usize) -> &mut [Loose<V>] {
    let numbers = &mut numbers[..rows * V::LANES];
    // SAFETY: as in `loose`, and the exclusive borrow goes over to the result.
    unsafe { core::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), rows) }
}

/// Σ_k c_k·x^k for coefficients c_0, c_1 ….
#[inline(always)]
pub fn horner<V: Vector, const N: usize>(coefficients: &[V::Real; N], x: V) -> V {
    let mut sum = x.splat(coefficients[N - 1]);
    for k in (0..N - 1).rev() {
        sum = sum.mul_add(x, x.splat(coefficients[k]));
    }
    sum
}

/// As [`horner`], in pairs of terms, so that the chain of multiply-adds is half as long.
#[inline(always)]
pub fn polynomial<V: Vector, const N: usize>(coefficients: &[V::Real; N], x: V) -> V {
    let term = |k: usize| x.splat(coefficients[k]);
    let pair = |k: usize| if k + 1 < N { term(k + 1).mul_add(x, term(k)) } else { term(k) };
    let x2 = x * x;
    let mut k = (N - 1) / 2 * 2;
    let mut sum = pair(k);
    while k > 0 {
        k -= 2;
        sum = sum.mul_add(x2, pair(k));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Kernels, Lanes};

    /// `sums`, `all` and `round` on numbers that tell the lanes apart.
    struct Pieces;

    impl<R: Tables> Op<R> for Pieces {
        type Out = ();
        #[inline(always)]
        fn run<V: Vector<Real = R>>(self, zero: V) {
            let mut x = [zero; 4];
            for (k, x) in x.iter_mut().enumerate() {
                for (i, lane) in x.lanes_mut().iter_mut().enumerate() {
                    *lane = R::of(1 << (i + k)) - R::of(k * 100);
                }
            }
            let want = |k: usize| R::of(((1 << V::LANES) - 1) << k) - R::of(V::LANES * k * 100);
            assert_eq!(V::sums(x), [want(0), want(1), want(2), want(3)]);
            assert_eq!(x[0].largest(), R::of(1 << (V::LANES - 1)));
            assert!(V::all(x[0].lt(zero.splat(R::of(1 << 16)))));
            for i in 0..V::LANES {
                let mut one = zero;
                one.lanes_mut()[i] = R::of(5);
                assert!(!V::all(one.lt(zero.splat(R::of(2)))));
                assert!(!(one / zero).all_below(R::MAX));
            }
            for (x, want) in [(0.5, 0.0), (1.5, 2.0), (-2.5, -2.0), (-0.49, 0.0), (8.0e15, 8.0e15), (f64::INFINITY, f64::INFINITY)] {
                assert_eq!(zero.splat(R::from_f64(x)).round().lanes()[0], R::from_f64(want));
            }
            let pairs: [[bf16; 2]; 16] =
                core::array::from_fn(|i| [bf16::from_f32(1.5 * i as f32), bf16::from_f32(-3.0e38 / (i + 1) as f32)]);
            for i in 0..V::LANES {
                assert_eq!(zero.widen::<false>(&pairs).lanes()[i].to_f64(), f64::from(pairs[i][0]));
                assert_eq!(zero.widen::<true>(&pairs).lanes()[i].to_f64(), f64::from(pairs[i][1]));
            }
            let numbers: [R; 300] = core::array::from_fn(R::of);
            let mut square = [zero; 16];
            for (r, x) in square[..V::LANES].iter_mut().enumerate() {
                *x = loose(zero, &numbers[1 + r * V::LANES..], 1)[0].get();
            }
            V::square(&mut square[..V::LANES]);
            let mut to = [R::ZERO; 20];
            for (r, x) in square[..V::LANES].iter().enumerate() {
                loose_mut(zero, &mut to[1..], 1)[0].set(*x);
                for c in 0..V::LANES {
                    assert_eq!(to[1 + c], R::of(1 + c * V::LANES + r));
                }
                assert_eq!(to[1 + V::LANES], R::ZERO);
            }
            zero.prefetch::<true>(0);
            zero.prefetch::<false>(usize::MAX);
            let nan = zero.splat(R::from_f64(f64::NAN));
            for x in [nan.round(), nan.at_least(zero), nan.at_most(zero), nan.scale(zero), nan.abs()] {
                assert!(x.lanes().iter().all(|x| x.to_f64().is_nan()));
            }
        }
    }

    fn check<R: Lanes>() {
        for k in Kernels::available() {
            k.run::<R, _>(Pieces);
        }
    }

    #[test]
    fn pieces() {
        check::<f32>();
        check::<f64>();
    }
}
