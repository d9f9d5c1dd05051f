//! The selective scan, backward, over a staged tile: a few states at a time are walked forward again, keeping Ā, γ and h in
//! scratch memory that fits the first cache, then backward.

use crate::arch::generic::discretize::{derivatives, discretize};
use crate::arch::generic::number::{Cx, Number, Parts, PartsMut, Re, Real, plane_rows, plane_rows_mut, plane_scalars_mut};
use crate::arch::generic::selective_scan::{Coef, Inputs, group, steps};
use crate::arch::generic::silu::{sigmoid, silu_and_grad};
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{BACK, CoefficientMut, SelectiveBwd, SelectiveTile, TILE};
use crate::arch::generic::vector::{Op, Part, Vector, rows, rows_mut};
use crate::element::Weight as _;
use crate::ops::{Discrete, Rule};

/// The gradient of B or C.
enum CoefMut<'a, V: Vector> {
    Varying(PartsMut<'a, V::Real>),
    Constant(PartsMut<'a, V>),
}

impl<'a, V: Vector> CoefMut<'a, V> {
    #[inline(always)]
    fn new(zero: V, to: CoefficientMut<'a, V::Real>, steps: usize, dstate: usize) -> Self {
        match to {
            CoefficientMut::Varying(planes) => CoefMut::Varying(plane_scalars_mut(planes, steps * dstate)),
            CoefficientMut::Constant(planes) => CoefMut::Constant(plane_rows_mut(zero, planes, dstate)),
        }
    }
    /// Takes the share of one step and state: at once where they vary, else in the lanes of `sum`.
    #[inline(always)]
    fn take<X: Number<V = V>>(&mut self, at: usize, share: X, sum: &mut X) {
        match self {
            CoefMut::Varying(parts) => share.write_sum(parts, at),
            CoefMut::Constant(_) => *sum = sum.add(share),
        }
    }
    /// Writes what [`CoefMut::take`] left in `sum`.
    #[inline(always)]
    fn finish<X: Number<V = V>>(&mut self, n: usize, sum: X) {
        if let CoefMut::Constant(parts) = self {
            sum.write(parts, n);
        }
    }
}

/// What the states of one channel block share on their way back.
struct Shared<'t, 'a, X: Number> {
    inputs: Inputs<'a, X::V>,
    u: &'a [X::V],
    /// States before the tile.
    start: Parts<'a, X::V>,
    /// ∂y a step.
    grad_y: &'t [X::V],
    /// Whether y is wanted.
    gated: bool,
    /// Σ_n Re(C·h) a step.
    y: &'t mut [X::V],
    /// Σ_n Re(λ·conj(γB)) a step: ∂u but for Δ'.
    sum_u: &'t mut [X::V],
    /// ∂Δ' a step.
    sum_dt: &'t mut [X::V],
    carry: PartsMut<'a, X::V>,
    grad_a: PartsMut<'a, X::V>,
    grad_b: CoefMut<'a, X::V>,
    grad_c: CoefMut<'a, X::V>,
    /// Ā, `[t][j]`.
    abar: PartsMut<'t, X::V>,
    /// γ, `[t][j]`; unused by Euler's rule.
    gamma: PartsMut<'t, X::V>,
    /// h before step t, `[t][j]`.
    h: PartsMut<'t, X::V>,
}

/// `NB` states from `n` on.
struct States<'s, 't, 'a, X: Number, const NB: usize>(&'s mut Shared<'t, 'a, X>, usize);

impl<X: Number, const NB: usize> Part<X::V> for States<'_, '_, '_, X, NB> {
    type Out = ();
    #[inline(always)]
    fn run(self, zero: X::V) {
        let States(shared, n) = self;
        forward::<X, NB>(zero, shared, n);
        backward::<X, NB>(zero, shared, n);
    }
}

#[inline(always)]
fn forward<X: Number, const NB: usize>(zero: X::V, s: &mut Shared<'_, '_, X>, n: usize) {
    let Inputs { steps, dstate, rule, first, dt, du, a, b, c } = s.inputs;
    let mut h = [X::real(zero); NB];
    if !first {
        for j in 0..NB {
            h[j] = X::read(s.start, n + j);
            h[j].write(&mut s.h, j);
        }
    }
    for t in 0..steps {
        let mut y = zero;
        for j in 0..NB {
            let i = t * NB + j;
            let d = discretize(rule, dt[t], X::read(a, n + j));
            d.abar.write(&mut s.abar, i);
            let mut input = b.at::<X>(zero, t, n + j, dstate);
            if matches!(rule, Rule::Euler) {
                input = input.scale(du[t]);
            } else {
                d.gamma.write(&mut s.gamma, i);
                input = d.gamma.scale(du[t]).mul(input);
            }
            h[j] = if first && t == 0 { input } else { d.abar.mul_add(h[j], input) };
            h[j].write(&mut s.h, i + NB);
            if s.gated {
                y = c.at::<X>(zero, t, n + j, dstate).add_re_mul(h[j], y);
            }
        }
        s.y[t] = s.y[t] + y;
    }
}

/// Running sums of one state over the steps.
#[derive(Clone, Copy)]
struct Sums<X> {
    /// conj(Ā)·λ of the step after.
    carry: X,
    a: X,
    b: X,
    c: X,
}

#[inline(always)]
fn backward<X: Number, const NB: usize>(zero: X::V, s: &mut Shared<'_, '_, X>, n: usize) {
    let none = X::real(zero);
    let mut sums = [Sums { carry: none, a: none, b: none, c: none }; NB];
    for j in 0..NB {
        sums[j].carry = X::read(s.carry.as_parts(), n + j);
    }
    for t in (0..s.inputs.steps).rev() {
        let (mut u, mut dt) = (s.sum_u[t], s.sum_dt[t]);
        for j in 0..NB {
            let (to_u, to_dt) = back_step::<X, NB>(zero, s, n, t, j, &mut sums[j]);
            u = u + to_u;
            dt = dt + to_dt;
        }
        s.sum_u[t] = u;
        s.sum_dt[t] = dt;
    }
    for j in 0..NB {
        sums[j].carry.write(&mut s.carry, n + j);
        sums[j].a.write(&mut s.grad_a, n + j);
        s.grad_b.finish(n + j, sums[j].b);
        s.grad_c.finish(n + j, sums[j].c);
    }
}

/// One step of one state; returns its shares of `sum_u` and `sum_dt`.
#[inline(always)]
fn back_step<X: Number, const NB: usize>(
    zero: X::V,
    s: &mut Shared<'_, '_, X>,
    n: usize,
    t: usize,
    j: usize,
    sums: &mut Sums<X>,
) -> (X::V, X::V) {
    let Inputs { dstate, rule, first, dt, du, a, b, c, .. } = s.inputs;
    let (i, at) = (t * NB + j, t * dstate + n + j);
    let (a, b) = (X::read(a, n + j), b.at::<X>(zero, t, n + j, dstate));
    let grad_y = if X::COMPLEX { s.grad_y[t] + s.grad_y[t] } else { s.grad_y[t] };
    let adjoint = c.at::<X>(zero, t, n + j, dstate).conj().scale(grad_y).add(sums.carry);
    let h = X::read(s.h.as_parts(), i + NB);
    s.grad_c.take(at, h.conj().scale(grad_y), &mut sums.c);

    let abar = X::read(s.abar.as_parts(), i);
    let gamma = if matches!(rule, Rule::Euler) { X::real(zero.splat(Real::<X>::ONE)) } else { X::read(s.gamma.as_parts(), i) };
    let d = derivatives(rule, dt[t], a, Discrete { abar, gamma });
    s.grad_b.take(at, adjoint.mul_conj(d.gamma).scale(du[t]), &mut sums.b);
    let to_u = adjoint.dot(d.gamma.mul(b));
    let mut to_dt = adjoint.dot(d.bslope.mul(b)) * s.u[t];
    if !matches!(rule, Rule::Euler) {
        sums.a = sums.a.add(adjoint.mul_conj(d.curve.mul(b)).scale(du[t] * dt[t]));
    }
    if first && t == 0 {
        sums.carry = X::real(zero);
        return (to_u, to_dt);
    }
    let through = adjoint.mul_conj(d.slope).mul_conj(X::read(s.h.as_parts(), i));
    to_dt = to_dt + through.dot(a);
    sums.a = sums.a.add(through.scale(dt[t]));
    sums.carry = adjoint.mul_conj(abar);
    (to_u, to_dt)
}

/// ∂y = ∂out·silu(z).
#[inline(always)]
fn output_gradients<V: Vector>(zero: V, tile: &SelectiveTile<'_, V::Real>, grad_out: &[V], grad_y: &mut [V]) {
    match tile.z {
        Some(z) => {
            let z = rows(zero, z, tile.steps);
            for t in 0..tile.steps {
                grad_y[t] = grad_out[t] * silu_and_grad(z[t]).0;
            }
        }
        None => grad_y.copy_from_slice(grad_out),
    }
}

/// The gradients that belong to steps, from their sums over states.
struct PerStep<'t, 'a, V: Vector> {
    tile: &'t SelectiveTile<'a, V::Real>,
    grad_out: &'t [V],
    grad_y: &'t [V],
    /// κ·Σ_n Re(C·h).
    y: &'t [V],
    dt: &'t [V],
    grad_u: &'t mut [V],
    grad_delta: &'t mut [V],
    grad_z: Option<&'t mut [V]>,
}

impl<V: Vector> Part<V> for PerStep<'_, '_, V> {
    /// ∂D and ∂bias.
    type Out = (V, V);
    #[inline(always)]
    fn run(self, zero: V) -> (V, V) {
        let tile = self.tile;
        let (u, delta) = (rows(zero, tile.u, tile.steps), rows(zero, tile.delta, tile.steps));
        let row = |operand: Option<_>| operand.map_or(zero, |x| rows(zero, x, 1)[0]);
        let (skip, bias) = (row(tile.d), row(tile.delta_bias));
        let (mut grad_d, mut grad_bias) = (zero, zero);
        for t in 0..tile.steps {
            grad_d = self.grad_y[t].mul_add(u[t], grad_d);
            let through_skip = if tile.d.is_some() { skip * self.grad_y[t] } else { zero };
            self.grad_u[t] = self.dt[t].mul_add(self.grad_u[t], through_skip);
            if tile.softplus {
                self.grad_delta[t] = self.grad_delta[t] * sigmoid(delta[t] + bias);
            }
            grad_bias = grad_bias + self.grad_delta[t];
        }
        if let (Some(z), Some(grad_z)) = (tile.z, self.grad_z) {
            let z = rows(zero, z, tile.steps);
            for t in 0..tile.steps {
                let y = if tile.d.is_some() { skip.mul_add(u[t], self.y[t]) } else { self.y[t] };
                grad_z[t] = self.grad_out[t] * y * silu_and_grad(z[t]).1;
            }
        }
        (grad_d, grad_bias)
    }
}

/// Cuts `count` rows off scratch memory.
#[inline(always)]
fn cut<'a, V>(scratch: &mut &'a mut [V], count: usize) -> &'a mut [V] {
    let (head, rest) = core::mem::take(scratch).split_at_mut(count);
    *scratch = rest;
    head
}

#[inline(always)]
fn run<X: Number>(zero: X::V, args: SelectiveBwd<'_, Real<X>>) {
    let tile = args.tile;
    let SelectiveTile { steps: count, dstate, rule, first, .. } = tile;
    assert!((1..=TILE).contains(&count) && dstate > 0, "a tile of {count} steps and {dstate} states");
    assert!(tile.z.is_some() == args.grad_z.is_some() && tile.d.is_some() == args.grad_d.is_some());
    let mut scratch = rows_mut(zero, args.scratch, (4 + 6 * BACK) * (TILE + 1));
    let [dt, du, y, grad_y] = core::array::from_fn(|_| cut(&mut scratch, count));
    let [abar_re, abar_im, gamma_re, gamma_im, h_re, h_im] = core::array::from_fn(|_| cut(&mut scratch, (count + 1) * BACK));
    steps(zero, &tile, dt, du);
    let grad_out = rows(zero, args.grad_out, count);
    output_gradients(zero, &tile, grad_out, grad_y);
    let (grad_u, grad_delta) = (rows_mut(zero, args.grad_u, count), rows_mut(zero, args.grad_delta, count));
    y.fill(zero);
    grad_u.fill(zero);
    grad_delta.fill(zero);
    let (a, dt) = (plane_rows(zero, tile.a, dstate), &*dt);
    let mut shared = Shared::<X> {
        inputs: Inputs {
            steps: count,
            dstate,
            rule,
            first,
            dt,
            du,
            a,
            b: Coef::new(zero, tile.b, count, dstate),
            c: Coef::new(zero, tile.c, count, dstate),
        },
        u: rows(zero, tile.u, count),
        start: plane_rows(zero, args.h, dstate),
        grad_y,
        gated: tile.z.is_some(),
        y,
        sum_u: grad_u,
        sum_dt: grad_delta,
        carry: plane_rows_mut(zero, args.carry, dstate),
        grad_a: plane_rows_mut(zero, args.grad_a, dstate),
        grad_b: CoefMut::new(zero, args.grad_b, count, dstate),
        grad_c: CoefMut::new(zero, args.grad_c, count, dstate),
        abar: PartsMut { re: abar_re, im: abar_im },
        gamma: PartsMut { re: gamma_re, im: gamma_im },
        h: PartsMut { re: h_re, im: h_im },
    };
    let mut n = 0;
    while n < dstate {
        let size = group(BACK, dstate - n);
        match size {
            4 => zero.outline(States::<X, 4>(&mut shared, n)),
            2 => zero.outline(States::<X, 2>(&mut shared, n)),
            _ => zero.outline(States::<X, 1>(&mut shared, n)),
        }
        n += size;
    }
    let Shared { y, sum_u, sum_dt, grad_y, .. } = shared;
    if X::COMPLEX {
        for y in y.iter_mut() {
            *y = *y + *y;
        }
    }
    let grad_z = args.grad_z.map(|grad| rows_mut(zero, grad, count));
    let (grad_d, grad_bias) = zero.outline(PerStep { tile: &tile, grad_out, grad_y, y, dt, grad_u: sum_u, grad_delta: sum_dt, grad_z });
    if let Some(to) = args.grad_d {
        rows_mut(zero, to, 1)[0] = grad_d;
    }
    if let Some(to) = args.grad_delta_bias {
        rows_mut(zero, to, 1)[0] = grad_bias;
    }
}

impl<R: Tables> Op<R> for SelectiveBwd<'_, R> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector<Real = R>>(self, zero: V) {
        if self.tile.a.im.is_some() { run::<Cx<V>>(zero, self) } else { run::<Re<V>>(zero, self) }
    }
}
