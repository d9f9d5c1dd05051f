//! Scalar definitions: the affine monoid, softplus, SiLU and the discretisation rules. Every engine computes these.

use crate::element::{Real, Weight};

/// An associative operator with an identity, for scans over anything.
///
/// `combine` must be associative; it need not commute. Scans call it with the earlier element first.
pub trait Monoid: Sync {
    /// The type of the elements.
    type Element: Clone + Send + Sync;
    /// e with e ∘ x = x ∘ e = x.
    fn identity(&self) -> Self::Element;
    /// earlier ∘ later.
    fn combine(&self, earlier: &Self::Element, later: &Self::Element) -> Self::Element;
}

/// The affine maps h ↦ a·h + b, pairs (a, b): (a₁,b₁) ∘ (a₂,b₂) = (a₂·a₁, a₂·b₁ + b₂), identity (1, 0).
///
/// An inclusive scan of the pairs gives the linear recurrence h_t = a_t h_{t−1} + b_t (Blelloch 1990, section 1.4).
#[derive(Debug, Clone, Copy, Default)]
pub struct Affine<W>(core::marker::PhantomData<W>);

impl<W> Affine<W> {
    /// The operator; it has no state.
    pub const fn new() -> Self {
        Affine(core::marker::PhantomData)
    }
}

impl<W: Weight> Monoid for Affine<W> {
    type Element = (W, W);
    fn identity(&self) -> (W, W) {
        (W::ONE, W::ZERO)
    }
    #[inline(always)]
    fn combine(&self, earlier: &(W, W), later: &(W, W)) -> (W, W) {
        (later.0 * earlier.0, later.0 * earlier.1 + later.1)
    }
}

/// softplus(x) = max(x, 0) + ln(1 + e^−|x|): no overflow, NaN passes.
#[inline]
pub fn softplus<R: Real>(x: R) -> R {
    let tail = (-x.abs()).exp().ln_1p();
    // NaN compares false and so passes through the sum.
    if x > R::ZERO {
        x + tail
    } else if x <= R::ZERO {
        tail
    } else {
        x
    }
}

/// sigmoid(x) = 1 / (1 + e^−x), from the side that does not overflow. It is softplus'.
#[inline]
pub fn sigmoid<R: Real>(x: R) -> R {
    let e = (-x.abs()).exp();
    if x >= R::ZERO { R::ONE / (R::ONE + e) } else { e / (R::ONE + e) }
}

/// silu(x) = x · sigmoid(x). silu(−∞) is NaN: −∞ · 0.
#[inline]
pub fn silu<R: Real>(x: R) -> R {
    x * sigmoid(x)
}

/// silu'(x) = s·(1 + x·(1 − s)) with s = sigmoid(x); 1 − s is formed as sigmoid(−x).
#[inline]
pub fn silu_grad<R: Real>(x: R) -> R {
    sigmoid(x) * (R::ONE + x * sigmoid(-x))
}

/// How h' = A h + B x becomes a recurrence with step Δ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Rule {
    /// Mamba's: Ā = exp(ΔA), B̄ = Δ·B (arXiv 2312.00752, section 3).
    #[default]
    Euler,
    /// Zero-order hold: Ā = exp(ΔA), B̄ = Δ·φ₁(ΔA)·B with φ₁(z) = (eᶻ − 1)/z.
    Zoh,
    /// Bilinear (arXiv 2111.00396): Ā = (1 + ΔA/2)/(1 − ΔA/2), B̄ = Δ/(1 − ΔA/2)·B.
    Bilinear,
}

/// Ā and γ of one (step, state): h = Ā·h + (Δ'u)·γ·B.
#[derive(Debug, Clone, Copy)]
pub struct Discrete<W> {
    /// Ā.
    pub abar: W,
    /// B̄ = Δ'·γ·B.
    pub gamma: W,
}

/// The derivatives of a rule at one (step, state).
#[derive(Debug, Clone, Copy)]
pub struct DiscreteGrad<W> {
    /// Ā.
    pub abar: W,
    /// B̄ = Δ'·γ·B, so ∂B̄/∂B = Δ'·γ.
    pub gamma: W,
    /// ∂Ā/∂A = Δ'·slope and ∂Ā/∂Δ' = A·slope.
    pub slope: W,
    /// ∂B̄/∂Δ' = B·bslope.
    pub bslope: W,
    /// ∂B̄/∂A = Δ'²·B·curve.
    pub curve: W,
}

/// Below this modulus four terms of φ₁'s series are exact in f64.
const TINY: f64 = 1e-4;
/// Below this modulus φ₁' is summed as a series.
const SERIES_BELOW: f64 = 1.0;
/// Terms of the series: 1/22! is below f64's roundoff.
const SERIES_TERMS: u32 = 22;

/// φ₁(z) = (eᶻ − 1)/z, φ₁(0) = 1, by expm1: no cancellation near 0.
pub fn phi1<W: Weight>(z: W) -> W {
    let real = |x: f64| W::from_real(W::Real::from_f64(x));
    if z.modulus().to_f64() < TINY {
        // Also keeps a complex division away from numbers whose squares underflow.
        W::ONE + z * real(1.0 / 2.0) * (W::ONE + z * real(1.0 / 3.0) * (W::ONE + z * real(1.0 / 4.0)))
    } else {
        z.exp_m1() / z
    }
}

/// φ₁'(z) = (eᶻ − φ₁(z))/z, by its series Σ_{k≥1} k zᵏ⁻¹/(k+1)! for |z| < 1.
pub fn phi1_grad<W: Weight>(z: W) -> W {
    if z.modulus().to_f64() < SERIES_BELOW {
        let real = |x: f64| W::from_real(W::Real::from_f64(x));
        // c_k = k/(k+1)!, and c_{k+1}/c_k = (k+1)/(k·(k+2)).
        let mut sum = W::ONE;
        for k in (1..SERIES_TERMS).rev() {
            let k = f64::from(k);
            sum = W::ONE + z * real((k + 1.0) / (k * (k + 2.0))) * sum;
        }
        sum * real(0.5)
    } else {
        (z.exp() - phi1(z)) / z
    }
}

impl Rule {
    /// Ā and γ for Δ' = `dt` and A = `a`.
    #[inline]
    pub fn discretize<W: Weight>(self, dt: W::Real, a: W) -> Discrete<W> {
        let z = a.scale(dt);
        match self {
            Rule::Euler => Discrete { abar: z.exp(), gamma: W::ONE },
            Rule::Zoh => Discrete { abar: z.exp(), gamma: phi1(z) },
            Rule::Bilinear => {
                let half = z.scale(W::Real::from_f64(0.5));
                let q = W::ONE / (W::ONE - half);
                Discrete { abar: (W::ONE + half) * q, gamma: q }
            }
        }
    }

    /// Ā, γ and the derivatives for Δ' = `dt` and A = `a`.
    #[inline]
    pub fn discretize_grad<W: Weight>(self, dt: W::Real, a: W) -> DiscreteGrad<W> {
        let Discrete { abar, gamma } = self.discretize(dt, a);
        match self {
            Rule::Euler => DiscreteGrad { abar, gamma, slope: abar, bslope: W::ONE, curve: W::ZERO },
            Rule::Zoh => DiscreteGrad { abar, gamma, slope: abar, bslope: abar, curve: phi1_grad(a.scale(dt)) },
            Rule::Bilinear => {
                let q2 = gamma * gamma;
                DiscreteGrad { abar, gamma, slope: q2, bslope: q2, curve: q2.scale(W::Real::from_f64(0.5)) }
            }
        }
    }
}

/// A running sum whose error does not grow with the count: f64 with Neumaier's compensation.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Sum {
    total: f64,
    lost: f64,
}

impl Sum {
    /// Adds one term.
    #[inline]
    pub fn add(&mut self, term: f64) {
        let next = self.total + term;
        self.lost += if self.total.abs() >= term.abs() { (self.total - next) + term } else { (term - next) + self.total };
        self.total = next;
    }

    /// The sum so far. A non-finite total is returned as it is: its compensation is NaN.
    #[inline]
    pub fn value(self) -> f64 {
        if self.total.is_finite() { self.total + self.lost } else { self.total }
    }
}

#[cfg(test)]
mod tests;
