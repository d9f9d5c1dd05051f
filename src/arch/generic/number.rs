//! Lanes of real or of complex numbers, so that the general kernels are written once for both.

use crate::arch::generic::exp::{exp, exp2};
use crate::arch::generic::expm1::exp_m1;
use crate::arch::generic::sincos::sin_cos;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{Planes, PlanesMut};
use crate::arch::generic::vector::{Vector, rows, rows_mut};
use crate::element::Weight;

/// Planes as vectors, or as the scalars of a varying coefficient. `im` is empty for real numbers.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a, T> {
    /// Real parts.
    pub re: &'a [T],
    /// Imaginary parts.
    pub im: &'a [T],
}

/// [`Parts`] to write to.
#[derive(Debug)]
pub struct PartsMut<'a, T> {
    /// Real parts.
    pub re: &'a mut [T],
    /// Imaginary parts.
    pub im: &'a mut [T],
}

impl<'a, T> Parts<'a, T> {
    /// From index `start` on.
    #[inline(always)]
    pub fn from(self, start: usize) -> Self {
        Parts { re: &self.re[start..], im: if self.im.is_empty() { self.im } else { &self.im[start..] } }
    }
}

impl<T> PartsMut<'_, T> {
    /// The same to read.
    #[inline(always)]
    pub fn as_parts(&self) -> Parts<'_, T> {
        Parts { re: self.re, im: self.im }
    }
    /// From index `start` on, `count` of them.
    #[inline(always)]
    pub fn range(&mut self, start: usize, count: usize) -> PartsMut<'_, T> {
        let im: &mut [T] = if self.im.is_empty() { &mut [] } else { &mut self.im[start..start + count] };
        PartsMut { re: &mut self.re[start..start + count], im }
    }
}

/// The first `count` rows of each plane.
#[inline(always)]
pub fn plane_rows<'a, V: Vector>(proof: V, planes: Planes<'a, V::Real>, count: usize) -> Parts<'a, V> {
    Parts { re: rows(proof, planes.re, count), im: planes.im.map_or(&[], |im| rows(proof, im, count)) }
}

/// [`plane_rows`], to write to.
#[inline(always)]
pub fn plane_rows_mut<'a, V: Vector>(proof: V, planes: PlanesMut<'a, V::Real>, count: usize) -> PartsMut<'a, V> {
    let im: &mut [V] = match planes.im {
        Some(im) => rows_mut(proof, im, count),
        None => &mut [],
    };
    PartsMut { re: rows_mut(proof, planes.re, count), im }
}

/// The first `count` scalars of each plane.
#[inline(always)]
pub fn plane_scalars<R>(planes: Planes<'_, R>, count: usize) -> Parts<'_, R> {
    Parts { re: &planes.re[..count], im: planes.im.map_or(&[], |im| &im[..count]) }
}

/// [`plane_scalars`], to write to.
#[inline(always)]
pub fn plane_scalars_mut<R>(planes: PlanesMut<'_, R>, count: usize) -> PartsMut<'_, R> {
    let im: &mut [R] = match planes.im {
        Some(im) => &mut im[..count],
        None => &mut [],
    };
    PartsMut { re: &mut planes.re[..count], im }
}

/// Lanes of numbers, real ([`Re`]) or complex ([`Cx`]).
pub trait Number: Copy {
    /// The vector of the parts.
    type V: Vector;
    /// Whether there is an imaginary part.
    const COMPLEX: bool;
    /// A real number.
    fn real(re: Self::V) -> Self;
    /// Element `i`.
    fn read(from: Parts<'_, Self::V>, i: usize) -> Self;
    /// Element `i`, in every lane.
    fn broadcast(zero: Self::V, from: Parts<'_, Real<Self>>, i: usize) -> Self;
    /// To element `i`.
    fn write(self, to: &mut PartsMut<'_, Self::V>, i: usize);
    /// Adds the sums over the lanes to the elements from `i` on.
    fn add_sums<const NB: usize>(from: &[Self; NB], to: &mut PartsMut<'_, Real<Self>>, i: usize);
    /// The real part.
    fn re(self) -> Self::V;
    /// self + other.
    fn add(self, other: Self) -> Self;
    /// self − other.
    fn sub(self, other: Self) -> Self;
    /// self·other.
    fn mul(self, other: Self) -> Self;
    /// self·conj(other).
    fn mul_conj(self, other: Self) -> Self;
    /// self·other + plus.
    fn mul_add(self, other: Self, plus: Self) -> Self;
    /// plus + Re(self·other).
    fn add_re_mul(self, other: Self, plus: Self::V) -> Self::V;
    /// Re(self·conj(other)).
    fn dot(self, other: Self) -> Self::V;
    /// self·by, `by` real.
    fn scale(self, by: Self::V) -> Self;
    /// The conjugate.
    fn conj(self) -> Self;
    /// 1/self, for numbers whose squares may overflow but do not underflow.
    fn reciprocal(self) -> Self;
    /// An upper bound of the modulus, at most twice it.
    fn size(self) -> Self::V;
    /// Lanewise choice.
    fn select(mask: <Self::V as Vector>::Mask, yes: Self, no: Self) -> Self;
    /// Δ'·A. Overflow ends at the largest number, so that decays underflow as they should; NaN passes.
    fn product(dt: Self::V, a: Self) -> Self;
    /// e^(Δ'·A).
    fn exp(dt: Self::V, a: Self) -> Self;
    /// (e^(Δ'·A), e^(Δ'·A) − 1).
    fn exp_both(dt: Self::V, a: Self) -> (Self, Self);
}

/// The type of a lane of a number's parts.
pub type Real<X> = <<X as Number>::V as Vector>::Real;

#[inline(always)]
fn finite<V: Vector>(x: V) -> V {
    x.at_least(x.splat(-V::Real::MAX)).at_most(x.splat(V::Real::MAX))
}

/// Adds the sums over the lanes, four at once where there are four.
#[inline(always)]
fn sums<V: Vector, const NB: usize>(from: &[V; NB], to: &mut [V::Real]) {
    if let (Ok(four), Ok(to)) = (<[V; 4]>::try_from(from.as_slice()), <&mut [V::Real; 4]>::try_from(&mut *to)) {
        let sums = V::sums(four);
        for j in 0..4 {
            to[j] += sums[j];
        }
        return;
    }
    for j in 0..NB {
        to[j] += from[j].sum();
    }
}

/// Real numbers.
#[derive(Debug, Clone, Copy)]
pub struct Re<V>(pub V);

impl<V: Vector> Number for Re<V> {
    type V = V;
    const COMPLEX: bool = false;
    #[inline(always)]
    fn real(re: V) -> Self {
        Re(re)
    }
    #[inline(always)]
    fn read(from: Parts<'_, V>, i: usize) -> Self {
        Re(from.re[i])
    }
    #[inline(always)]
    fn broadcast(zero: V, from: Parts<'_, V::Real>, i: usize) -> Self {
        Re(zero.splat(from.re[i]))
    }
    #[inline(always)]
    fn write(self, to: &mut PartsMut<'_, V>, i: usize) {
        to.re[i] = self.0;
    }
    #[inline(always)]
    fn add_sums<const NB: usize>(from: &[Self; NB], to: &mut PartsMut<'_, V::Real>, i: usize) {
        let mut re = [from[0].0; NB];
        for j in 0..NB {
            re[j] = from[j].0;
        }
        sums(&re, &mut to.re[i..i + NB]);
    }
    #[inline(always)]
    fn re(self) -> V {
        self.0
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Re(self.0 + other.0)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Re(self.0 - other.0)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Re(self.0 * other.0)
    }
    #[inline(always)]
    fn mul_conj(self, other: Self) -> Self {
        Re(self.0 * other.0)
    }
    #[inline(always)]
    fn mul_add(self, other: Self, plus: Self) -> Self {
        Re(self.0.mul_add(other.0, plus.0))
    }
    #[inline(always)]
    fn add_re_mul(self, other: Self, plus: V) -> V {
        self.0.mul_add(other.0, plus)
    }
    #[inline(always)]
    fn dot(self, other: Self) -> V {
        self.0 * other.0
    }
    #[inline(always)]
    fn scale(self, by: V) -> Self {
        Re(self.0 * by)
    }
    #[inline(always)]
    fn conj(self) -> Self {
        self
    }
    #[inline(always)]
    fn reciprocal(self) -> Self {
        Re(self.0.splat(V::Real::ONE) / self.0)
    }
    #[inline(always)]
    fn size(self) -> V {
        self.0.abs()
    }
    #[inline(always)]
    fn select(mask: V::Mask, yes: Self, no: Self) -> Self {
        Re(V::select(mask, yes.0, no.0))
    }
    #[inline(always)]
    fn product(dt: V, a: Self) -> Self {
        Re(finite(dt * a.0))
    }
    #[inline(always)]
    fn exp(dt: V, a: Self) -> Self {
        Re(exp2(dt * (a.0 * dt.splat(V::Real::LOG2_E))))
    }
    #[inline(always)]
    fn exp_both(dt: V, a: Self) -> (Self, Self) {
        let x = dt * a.0;
        (Re(exp(x)), Re(exp_m1(x)))
    }
}

/// Complex numbers.
#[derive(Debug, Clone, Copy)]
pub struct Cx<V> {
    /// Real parts.
    pub re: V,
    /// Imaginary parts.
    pub im: V,
}

/// The angle Δ'·Im A as a rounded product and its residual.
#[inline(always)]
fn angle<V: Vector>(dt: V, im: V) -> (V, V) {
    let high = finite(dt * im);
    (high, dt.residual(im, high))
}

impl<V: Vector> Number for Cx<V> {
    type V = V;
    const COMPLEX: bool = true;
    #[inline(always)]
    fn real(re: V) -> Self {
        Cx { re, im: re.splat(V::Real::ZERO) }
    }
    #[inline(always)]
    fn read(from: Parts<'_, V>, i: usize) -> Self {
        Cx { re: from.re[i], im: from.im[i] }
    }
    #[inline(always)]
    fn broadcast(zero: V, from: Parts<'_, V::Real>, i: usize) -> Self {
        Cx { re: zero.splat(from.re[i]), im: zero.splat(from.im[i]) }
    }
    #[inline(always)]
    fn write(self, to: &mut PartsMut<'_, V>, i: usize) {
        to.re[i] = self.re;
        to.im[i] = self.im;
    }
    #[inline(always)]
    fn add_sums<const NB: usize>(from: &[Self; NB], to: &mut PartsMut<'_, V::Real>, i: usize) {
        let (mut re, mut im) = ([from[0].re; NB], [from[0].im; NB]);
        for j in 0..NB {
            (re[j], im[j]) = (from[j].re, from[j].im);
        }
        sums(&re, &mut to.re[i..i + NB]);
        sums(&im, &mut to.im[i..i + NB]);
    }
    #[inline(always)]
    fn re(self) -> V {
        self.re
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Cx { re: self.re + other.re, im: self.im + other.im }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Cx { re: self.re - other.re, im: self.im - other.im }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Cx { re: self.im.neg_mul_add(other.im, self.re * other.re), im: self.im.mul_add(other.re, self.re * other.im) }
    }
    #[inline(always)]
    fn mul_conj(self, other: Self) -> Self {
        self.mul(other.conj())
    }
    #[inline(always)]
    fn mul_add(self, other: Self, plus: Self) -> Self {
        Cx {
            re: self.im.neg_mul_add(other.im, self.re.mul_add(other.re, plus.re)),
            im: self.im.mul_add(other.re, self.re.mul_add(other.im, plus.im)),
        }
    }
    #[inline(always)]
    fn add_re_mul(self, other: Self, plus: V) -> V {
        self.im.neg_mul_add(other.im, self.re.mul_add(other.re, plus))
    }
    #[inline(always)]
    fn dot(self, other: Self) -> V {
        self.im.mul_add(other.im, self.re * other.re)
    }
    #[inline(always)]
    fn scale(self, by: V) -> Self {
        Cx { re: self.re * by, im: self.im * by }
    }
    #[inline(always)]
    fn conj(self) -> Self {
        Cx { re: self.re, im: -self.im }
    }
    #[inline(always)]
    fn reciprocal(self) -> Self {
        let (one, huge) = (self.re.splat(V::Real::ONE), self.re.splat(V::Real::HUGE));
        let by = V::select(huge.lt(self.size()), self.re.splat(V::Real::SHRINK), one);
        let small = self.scale(by);
        small.conj().scale(one / small.dot(small)).scale(by)
    }
    #[inline(always)]
    fn size(self) -> V {
        // The larger part alone would overflow less, but let a NaN in the other part go.
        self.re.abs() + self.im.abs()
    }
    #[inline(always)]
    fn select(mask: V::Mask, yes: Self, no: Self) -> Self {
        Cx { re: V::select(mask, yes.re, no.re), im: V::select(mask, yes.im, no.im) }
    }
    #[inline(always)]
    fn product(dt: V, a: Self) -> Self {
        Cx { re: finite(dt * a.re), im: finite(dt * a.im) }
    }
    #[inline(always)]
    fn exp(dt: V, a: Self) -> Self {
        let r = exp(dt * a.re);
        let (high, low) = angle(dt, a.im);
        let (sin, cos) = sin_cos(high, low);
        Cx { re: r * cos, im: r * sin }
    }
    #[inline(always)]
    fn exp_both(dt: V, a: Self) -> (Self, Self) {
        let (x, half) = (dt * a.re, dt.splat(V::Real::HALF));
        let (r, less) = (exp(x), exp_m1(x));
        let (high, low) = angle(dt, a.im);
        // By the half angle, 1 − cos θ = 2 sin² θ/2 does not cancel.
        let (s, c) = sin_cos(high * half, low * half);
        let (versine, sin) = ((s + s) * s, (s + s) * c);
        let cos = dt.splat(V::Real::ONE) - versine;
        (Cx { re: r * cos, im: r * sin }, Cx { re: less.mul_add(cos, -versine), im: r * sin })
    }
}
