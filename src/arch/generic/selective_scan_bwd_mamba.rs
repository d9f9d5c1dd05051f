//! The backward pass of Mamba's own case: Euler's rule, real numbers, B and C varying.

use crate::arch::generic::number::Re;
use crate::arch::generic::selective_scan::{Ahead, Inputs, PART};
use crate::arch::generic::selective_scan_bwd::Shared;
use crate::arch::generic::tables::Tables as _;
use crate::arch::generic::vector::{Part, Vector};

/// `NB` states from `n` on, and perhaps all exponents `SMALL`.
pub(super) struct Mamba<'s, 't, 'a, V: Vector, const NB: usize, const SMALL: bool> {
    pub(super) shared: &'s mut Shared<'t, 'a, Re<V>>,
    /// B `[t][n]`.
    pub(super) b: &'a [V::Real],
    /// C `[t][n]`.
    pub(super) c: &'a [V::Real],
    pub(super) n: usize,
}

/// What a group of states carries from step to step on the way back. A and h are read from memory where they are used: registers
/// are few.
struct Walk<V, const NB: usize> {
    /// Ā·λ of the step after.
    carry: [V; NB],
    grad_a: [V; NB],
}

/// What one step reads.
struct Step<'r, V: Vector, const NB: usize> {
    a: &'r [V; NB],
    b: &'r [V::Real; NB],
    c: &'r [V::Real; NB],
    abar: &'r [V; NB],
    /// h before and after the step.
    h: &'r [[V; NB]; 2],
    dt: V,
    du: V,
    grad_y: V,
}

/// The shares of one step.
struct Shares<V, const NB: usize> {
    /// ∂u but for Δ'.
    u: V,
    /// ∂Δ' but for what comes by way of Δ'u.
    dt: V,
    b: [Re<V>; NB],
    c: [Re<V>; NB],
}

impl<V: Vector, const NB: usize, const SMALL: bool> Part<V> for Mamba<'_, '_, '_, V, NB, SMALL> {
    type Out = ();
    #[inline(always)]
    fn run(mut self, zero: V) {
        let [forward, back] = self.ahead();
        if self.shared.gated {
            self.forward::<true>(zero, forward);
        } else {
            self.forward::<false>(zero, forward);
        }
        self.backward(zero, back);
    }
}

/// `NB` numbers from `at` on.
#[inline(always)]
fn at<R, const NB: usize>(from: &[R], at: usize) -> &[R; NB] {
    from[at..at + NB].try_into().expect("so many were cut")
}

impl<'a, V: Vector, const NB: usize, const SMALL: bool> Mamba<'_, '_, 'a, V, NB, SMALL> {
    /// Steps between two rounds of [`Ahead`]: where the loops leave registers for it, few at once and on both ways, so that the misses of
    /// their own memory do not wait.
    const EVERY: usize = if V::NEAR { PART } else { 2 };

    /// What is asked for on the way forward, and on the way back.
    #[inline(always)]
    fn ahead(&self) -> [Ahead<'a>; 2] {
        let inputs = &self.shared.inputs;
        let all = inputs.ahead_of(self.n, NB);
        let (forward, back) = all.split_at(if V::NEAR { 0 } else { all.len() / 2 });
        [forward, back].map(|part| Ahead::new(part, inputs.steps, Self::EVERY))
    }

    /// Keeps Ā and the states before and after every step.
    #[inline(always)]
    fn forward<const GATED: bool>(&mut self, zero: V, mut ahead: Ahead<'_>) {
        let s = &mut *self.shared;
        let Inputs { steps, dstate, dt, du, first, .. } = s.inputs;
        let (mut a, mut h) = ([zero; NB], [zero; NB]);
        for j in 0..NB {
            a[j] = s.inputs.a.re[self.n + j] * zero.splat(V::Real::LOG2_E);
            h[j] = if first { zero } else { s.start.re[self.n + j] };
        }
        let (kept_abar, kept_h) = (s.abar.re.as_chunks_mut::<NB>().0, s.h.re.as_chunks_mut::<NB>().0);
        let (kept_abar, kept_h) = (&mut kept_abar[..steps], &mut kept_h[..steps + 1]);
        let (dt, du, y) = (&dt[..steps], &du[..steps], &mut s.y[..steps]);
        kept_h[0] = h;
        for t in 0..steps {
            if !V::NEAR && t % Self::EVERY == 0 {
                ahead.part(zero);
            }
            let (b, c) = (at::<_, NB>(self.b, t * dstate + self.n), at::<_, NB>(self.c, t * dstate + self.n));
            let mut sum = zero;
            for j in 0..NB {
                let x = dt[t] * a[j];
                let abar = if SMALL { x.exp2_small() } else { x.exp2() };
                kept_abar[t][j] = abar;
                let input = du[t] * zero.splat(b[j]);
                // Without a state before it, the first step's Ā is not to spoil anything.
                h[j] = if t == 0 && first { input } else { abar.mul_add(h[j], input) };
                kept_h[t + 1][j] = h[j];
                if GATED {
                    sum = if j == 0 { h[j] * zero.splat(c[j]) } else { h[j].mul_add(zero.splat(c[j]), sum) };
                }
            }
            if GATED {
                y[t] = y[t] + sum;
            }
        }
    }

    #[inline(always)]
    fn backward(&mut self, zero: V, mut ahead: Ahead<'_>) {
        let s = &mut *self.shared;
        let Inputs { steps, dstate, dt, du, first, .. } = s.inputs;
        let mut walk = Walk { carry: [zero; NB], grad_a: [zero; NB] };
        let a = at::<_, NB>(s.inputs.a.re, self.n);
        for j in 0..NB {
            walk.carry[j] = s.carry.re[self.n + j];
        }
        let (abar, h) = (&s.abar.re.as_chunks::<NB>().0[..steps], &s.h.re.as_chunks::<NB>().0[..steps + 1]);
        let (dt, du, grad_y, u) = (&dt[..steps], &du[..steps], &s.grad_y[..steps], &s.u[..steps]);
        let (sum_u, sum_dt) = (&mut s.sum_u[..steps], &mut s.sum_dt[..steps]);
        // By number: iterators from behind are not inlined, and a call spills every register.
        for t in (0..steps).rev() {
            if t % Self::EVERY == 0 {
                ahead.part(zero);
            }
            let i = t * dstate + self.n;
            let step = Step {
                a,
                b: at(self.b, i),
                c: at(self.c, i),
                abar: &abar[t],
                h: h[t..t + 2].try_into().expect("two of them"),
                dt: dt[t],
                du: du[t],
                grad_y: grad_y[t],
            };
            let shares =
                if first && t == 0 { Self::back::<true>(zero, &mut walk, step) } else { Self::back::<false>(zero, &mut walk, step) };
            sum_u[t] = sum_u[t] + shares.u;
            sum_dt[t] = sum_dt[t] + shares.u.mul_add(u[t], shares.dt);
            s.grad_b.share(i, &shares.b);
            s.grad_c.share(i, &shares.c);
        }
        for j in 0..NB {
            s.carry.re[self.n + j] = walk.carry[j];
            s.grad_a.re[self.n + j] = walk.grad_a[j];
        }
    }

    #[inline(always)]
    fn back<const FIRST: bool>(zero: V, walk: &mut Walk<V, NB>, step: Step<'_, V, NB>) -> Shares<V, NB> {
        let mut shares = Shares { u: zero, dt: zero, b: [Re(zero); NB], c: [Re(zero); NB] };
        for j in 0..NB {
            let adjoint = step.grad_y.mul_add(zero.splat(step.c[j]), walk.carry[j]);
            shares.c[j] = Re(step.grad_y * step.h[1][j]);
            shares.b[j] = Re(step.du * adjoint);
            shares.u = adjoint.mul_add(zero.splat(step.b[j]), shares.u);
            if FIRST {
                walk.carry[j] = zero;
                continue;
            }
            walk.carry[j] = step.abar[j] * adjoint;
            let through = walk.carry[j] * step.h[0][j];
            shares.dt = through.mul_add(step.a[j], shares.dt);
            walk.grad_a[j] = through.mul_add(step.dt, walk.grad_a[j]);
        }
        shares
    }
}
