//! Ā and γ, and their derivatives, by each rule: h = Ā·h + (Δ'u)·γ·B.

use crate::arch::generic::number::{Number, Real};
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Part, Vector};
use crate::element::{Real as _, Weight};
use crate::ops::{Discrete, DiscreteGrad, Rule};

/// 1 as a number.
#[inline(always)]
fn one<X: Number>(dt: X::V) -> X {
    X::real(dt.splat(Real::<X>::ONE))
}

/// 1 + z·by·next, one step of a series.
#[inline(always)]
fn nest<X: Number>(dt: X::V, z: X, by: f64, next: X) -> X {
    z.scale(dt.splat(Real::<X>::from_f64(by))).mul_add(next, one(dt))
}

/// φ₁(z) = (eᶻ − 1)/z from z and eᶻ − 1, by its series near 0.
#[inline(always)]
fn phi1<X: Number>(dt: X::V, z: X, less: X) -> X {
    let series = nest(dt, z, 1.0 / 2.0, nest(dt, z, 1.0 / 3.0, nest(dt, z, 1.0 / 4.0, one(dt))));
    X::select(z.size().lt(dt.splat(Real::<X>::PHI1_TINY)), series, less.mul(z.reciprocal()))
}

/// φ₁'(z) = (eᶻ − φ₁(z))/z, by its series Σ_{k≥1} k zᵏ⁻¹/(k+1)! for |z| < 1.
#[inline(always)]
fn phi1_grad<X: Number>(dt: X::V, z: X, exp: X, phi1: X) -> X {
    let mut series = one(dt);
    for k in (1..Real::<X>::PHI1_GRAD_TERMS).rev() {
        let k = k as f64;
        series = nest(dt, z, (k + 1.0) / (k * (k + 2.0)), series);
    }
    let series = series.scale(dt.splat(Real::<X>::HALF));
    X::select(z.size().lt(dt.splat(Real::<X>::ONE)), series, exp.sub(phi1).mul(z.reciprocal()))
}

/// Zero-order hold, compiled once a number type.
struct Zoh<X: Number>(X::V, X);

impl<X: Number> Part<X::V> for Zoh<X> {
    type Out = Discrete<X>;
    #[inline(always)]
    fn run(self, _zero: X::V) -> Discrete<X> {
        let Zoh(dt, a) = self;
        let (abar, less) = X::exp_both(dt, a);
        Discrete { abar, gamma: phi1(dt, X::product(dt, a), less) }
    }
}

/// φ₁' of the zero-order hold, compiled once a number type.
struct ZohCurve<X: Number>(X::V, X, Discrete<X>);

impl<X: Number> Part<X::V> for ZohCurve<X> {
    type Out = X;
    #[inline(always)]
    fn run(self, _zero: X::V) -> X {
        let ZohCurve(dt, a, Discrete { abar, gamma }) = self;
        phi1_grad(dt, X::product(dt, a), abar, gamma)
    }
}

/// q = 1/(1 − z/2) and Ā = 1 + z·q, which is (1 + z/2)·q with an error that shrinks with z.
#[inline(always)]
fn bilinear<X: Number>(dt: X::V, a: X) -> Discrete<X> {
    let z = X::product(dt, a);
    let q = one::<X>(dt).sub(z.scale(dt.splat(Real::<X>::HALF))).reciprocal();
    Discrete { abar: z.mul_add(q, one(dt)), gamma: q }
}

/// Ā and γ.
#[inline(always)]
pub fn discretize<X: Number>(rule: Rule, dt: X::V, a: X) -> Discrete<X> {
    match rule {
        Rule::Euler => Discrete { abar: X::exp(dt, a), gamma: one(dt) },
        Rule::Zoh => dt.outline(Zoh(dt, a)),
        Rule::Bilinear => bilinear(dt, a),
    }
}

/// The derivatives that belong to Ā and γ.
#[inline(always)]
pub fn derivatives<X: Number>(rule: Rule, dt: X::V, a: X, discrete: Discrete<X>) -> DiscreteGrad<X> {
    let Discrete { abar, gamma } = discrete;
    match rule {
        Rule::Euler => DiscreteGrad { abar, gamma, slope: abar, bslope: one(dt), curve: X::real(dt.splat(Real::<X>::ZERO)) },
        Rule::Zoh => DiscreteGrad { abar, gamma, slope: abar, bslope: abar, curve: dt.outline(ZohCurve(dt, a, discrete)) },
        Rule::Bilinear => {
            let q2 = gamma.mul(gamma);
            DiscreteGrad { abar, gamma, slope: q2, bslope: q2, curve: q2.scale(dt.splat(Real::<X>::HALF)) }
        }
    }
}
