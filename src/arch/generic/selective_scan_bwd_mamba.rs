//! The state loop of the backward selective scan in Mamba's own case: Euler's rule, real numbers, B and C varying.

use crate::arch::generic::exp::exp2;
use crate::arch::generic::number::Re;
use crate::arch::generic::selective_scan_bwd::Shared;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::vector::{Part, Vector};

/// The varying operands of one channel block.
pub(super) struct Varying<'b, R> {
    /// B `[t][n]`.
    pub(super) b: &'b [R],
    /// C `[t][n]`.
    pub(super) c: &'b [R],
}

/// `NB` states from `n` on, in place of the general `States`.
pub(super) struct Mamba<'s, 't, 'a, V: Vector, const NB: usize> {
    pub(super) shared: &'s mut Shared<'t, 'a, Re<V>>,
    pub(super) from: Varying<'a, V::Real>,
    pub(super) n: usize,
}

/// What a group of states carries from step to step.
struct Walk<V, const NB: usize> {
    a: [V; NB],
    /// h after the step.
    h: [V; NB],
    /// Ā·λ of the step after.
    carry: [V; NB],
    grad_a: [V; NB],
}

impl<V: Vector, const NB: usize> Part<V> for Mamba<'_, '_, '_, V, NB> {
    type Out = ();
    #[inline(always)]
    fn run(mut self, zero: V) {
        let mut walk = Walk { a: [zero; NB], h: [zero; NB], carry: [zero; NB], grad_a: [zero; NB] };
        for j in 0..NB {
            walk.a[j] = self.shared.inputs.a.re[self.n + j];
            walk.carry[j] = self.shared.carry.re[self.n + j];
        }
        self.forward(zero, &mut walk);
        for t in (1..self.shared.inputs.steps).rev() {
            self.back::<false>(zero, &mut walk, t);
        }
        if self.shared.inputs.first {
            self.back::<true>(zero, &mut walk, 0)
        } else {
            self.back::<false>(zero, &mut walk, 0)
        }
        for j in 0..NB {
            self.shared.carry.re[self.n + j] = walk.carry[j];
            self.shared.grad_a.re[self.n + j] = walk.grad_a[j];
        }
    }
}

impl<V: Vector, const NB: usize> Mamba<'_, '_, '_, V, NB> {
    /// Keeps Ā and the state before every step, and leaves the last state in `walk.h`.
    #[inline(always)]
    fn forward(&mut self, zero: V, walk: &mut Walk<V, NB>) {
        let s = &mut *self.shared;
        let (dstate, first) = (s.inputs.dstate, s.inputs.first);
        let mut scaled = walk.a;
        for j in 0..NB {
            scaled[j] = scaled[j] * zero.splat(V::Real::LOG2_E);
            walk.h[j] = if first { zero } else { s.start.re[self.n + j] };
        }
        for t in 0..s.inputs.steps {
            let (dt, du) = (s.inputs.dt[t], s.inputs.du[t]);
            let at = t * dstate + self.n;
            let (b, c) = (&self.from.b[at..at + NB], &self.from.c[at..at + NB]);
            let abar = &mut s.abar.re[t * NB..(t + 1) * NB];
            let before = &mut s.h.re[t * NB..(t + 1) * NB];
            let mut y = zero;
            for j in 0..NB {
                before[j] = walk.h[j];
                abar[j] = exp2(dt * scaled[j]);
                let input = du * zero.splat(b[j]);
                walk.h[j] = if first && t == 0 { input } else { abar[j].mul_add(walk.h[j], input) };
                y = walk.h[j].mul_add(zero.splat(c[j]), y);
            }
            s.y[t] = s.y[t] + y;
        }
    }

    #[inline(always)]
    fn back<const FIRST: bool>(&mut self, zero: V, walk: &mut Walk<V, NB>, t: usize) {
        let s = &mut *self.shared;
        let at = t * s.inputs.dstate + self.n;
        let (b, c) = (&self.from.b[at..at + NB], &self.from.c[at..at + NB]);
        let abar = &s.abar.re[t * NB..(t + 1) * NB];
        let before = &s.h.re[t * NB..(t + 1) * NB];
        let (dt, du, grad_y) = (s.inputs.dt[t], s.inputs.du[t], s.grad_y[t]);
        let (mut share_b, mut share_c) = ([Re(zero); NB], [Re(zero); NB]);
        let (mut to_u, mut to_dt) = (zero, zero);
        for j in 0..NB {
            let adjoint = grad_y.mul_add(zero.splat(c[j]), walk.carry[j]);
            share_c[j] = Re(grad_y * walk.h[j]);
            share_b[j] = Re(du * adjoint);
            to_u = adjoint.mul_add(zero.splat(b[j]), to_u);
            if FIRST {
                walk.carry[j] = zero;
                continue;
            }
            walk.carry[j] = abar[j] * adjoint;
            let through = walk.carry[j] * before[j];
            to_dt = through.mul_add(walk.a[j], to_dt);
            walk.grad_a[j] = through.mul_add(dt, walk.grad_a[j]);
            walk.h[j] = before[j];
        }
        s.sum_u[t] = s.sum_u[t] + to_u;
        s.sum_dt[t] = s.sum_dt[t] + to_u.mul_add(s.u[t], to_dt);
        s.grad_b.share(at, &share_b);
        s.grad_c.share(at, &share_c);
    }
}
