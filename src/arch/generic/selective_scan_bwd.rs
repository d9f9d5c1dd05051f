//! The selective scan, backward, over a staged tile: a few states at a time are walked forward again, keeping Ā, γ and h in
//! scratch memory that fits the first cache, then backward.

use crate::arch::generic::discretize::{derivatives, discretize};
use crate::arch::generic::exp::exp_of_negative;
use crate::arch::generic::number::{Cx, Number, Parts, PartsMut, Re, Real, plane_rows, plane_rows_mut, plane_scalars_mut};
use crate::arch::generic::selective_scan::{self, Coef, Inputs, all_small, group};
use crate::arch::generic::selective_scan_bwd_mamba::Mamba;
use crate::arch::generic::silu::silu_and_grad;
use crate::arch::generic::softplus::softplus_and_grad;
use crate::arch::generic::tables::Tables;
use crate::arch::generic::tiles::{BACK, CoefficientMut, SelectiveBwd, SelectiveTile, TILE};
use crate::arch::generic::vector::{Op, Part, Vector, rows, rows_mut};
use crate::element::Weight as _;
use crate::ops::{Discrete, Rule};

/// The gradient of B or C.
pub(super) enum CoefMut<'a, V: Vector> {
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
    /// Takes the shares of one step and its states: at once where they vary, else in the lanes of `sums`.
    #[inline(always)]
    fn take<X: Number<V = V>, const NB: usize>(&mut self, at: usize, shares: &[X; NB], sums: &mut [X; NB]) {
        self.share(at, shares);
        if let CoefMut::Constant(_) = self {
            for j in 0..NB {
                sums[j] = sums[j].add(shares[j]);
            }
        }
    }
    /// Adds the shares of one step and its states, where they vary.
    #[inline(always)]
    pub(super) fn share<X: Number<V = V>, const NB: usize>(&mut self, at: usize, shares: &[X; NB]) {
        if let CoefMut::Varying(parts) = self {
            X::add_sums(shares, parts, at);
        }
    }
    /// Writes what [`CoefMut::take`] left in `sums`.
    #[inline(always)]
    fn finish<X: Number<V = V>, const NB: usize>(&mut self, n: usize, sums: &[X; NB]) {
        if let CoefMut::Constant(parts) = self {
            for j in 0..NB {
                sums[j].write(parts, n + j);
            }
        }
    }
}

/// What the states of one channel block share on their way back.
pub(super) struct Shared<'t, 'a, X: Number> {
    pub(super) inputs: Inputs<'a, X::V>,
    pub(super) u: &'a [X::V],
    /// States before the tile.
    pub(super) start: Parts<'a, X::V>,
    /// ∂y a step.
    pub(super) grad_y: &'t [X::V],
    /// Whether y is wanted.
    pub(super) gated: bool,
    /// Σ_n Re(C·h) a step.
    pub(super) y: &'t mut [X::V],
    /// Σ_n Re(λ·conj(γB)) a step: ∂u but for Δ'.
    pub(super) sum_u: &'t mut [X::V],
    /// ∂Δ' a step.
    pub(super) sum_dt: &'t mut [X::V],
    pub(super) carry: PartsMut<'a, X::V>,
    pub(super) grad_a: PartsMut<'a, X::V>,
    pub(super) grad_b: CoefMut<'a, X::V>,
    pub(super) grad_c: CoefMut<'a, X::V>,
    /// Ā, `[t][j]`.
    pub(super) abar: PartsMut<'t, X::V>,
    /// γ, `[t][j]`; unused by Euler's rule.
    pub(super) gamma: PartsMut<'t, X::V>,
    /// h before step t, `[t][j]`.
    pub(super) h: PartsMut<'t, X::V>,
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
    let Inputs { steps, dstate, rule, first, dt, du, a, b, c, .. } = s.inputs;
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

/// What a group of states carries from step to step.
struct Walk<X, const NB: usize> {
    /// conj(Ā)·λ of the step after.
    carry: [X; NB],
    a: [X; NB],
    b: [X; NB],
    c: [X; NB],
}

#[inline(always)]
fn backward<X: Number, const NB: usize>(zero: X::V, s: &mut Shared<'_, '_, X>, n: usize) {
    let none = [X::real(zero); NB];
    let mut walk = Walk { carry: none, a: none, b: none, c: none };
    for j in 0..NB {
        walk.carry[j] = X::read(s.carry.as_parts(), n + j);
    }
    for t in (0..s.inputs.steps).rev() {
        let (mut shares_b, mut shares_c) = (none, none);
        for j in 0..NB {
            (shares_b[j], shares_c[j]) = back_step(zero, s, n, t, j, &mut walk);
        }
        let at = t * s.inputs.dstate + n;
        s.grad_b.take(at, &shares_b, &mut walk.b);
        s.grad_c.take(at, &shares_c, &mut walk.c);
    }
    for j in 0..NB {
        walk.carry[j].write(&mut s.carry, n + j);
        walk.a[j].write(&mut s.grad_a, n + j);
    }
    s.grad_b.finish(n, &walk.b);
    s.grad_c.finish(n, &walk.c);
}

/// One step of one state; returns its shares of ∂B and ∂C.
#[inline(always)]
fn back_step<X: Number, const NB: usize>(
    zero: X::V,
    s: &mut Shared<'_, '_, X>,
    n: usize,
    t: usize,
    j: usize,
    walk: &mut Walk<X, NB>,
) -> (X, X) {
    let Inputs { dstate, rule, first, dt, du, a, b, c, .. } = s.inputs;
    let i = t * NB + j;
    let (a, b) = (X::read(a, n + j), b.at::<X>(zero, t, n + j, dstate));
    let grad_y = if X::COMPLEX { s.grad_y[t] + s.grad_y[t] } else { s.grad_y[t] };
    let adjoint = c.at::<X>(zero, t, n + j, dstate).conj().scale(grad_y).add(walk.carry[j]);
    let share_c = X::read(s.h.as_parts(), i + NB).conj().scale(grad_y);

    let abar = X::read(s.abar.as_parts(), i);
    let gamma = if matches!(rule, Rule::Euler) { X::real(zero.splat(Real::<X>::ONE)) } else { X::read(s.gamma.as_parts(), i) };
    let d = derivatives(rule, dt[t], a, Discrete { abar, gamma });
    let share_b = adjoint.mul_conj(d.gamma).scale(du[t]);
    s.sum_u[t] = s.sum_u[t] + adjoint.dot(d.gamma.mul(b));
    s.sum_dt[t] = adjoint.dot(d.bslope.mul(b)).mul_add(s.u[t], s.sum_dt[t]);
    if !matches!(rule, Rule::Euler) {
        walk.a[j] = walk.a[j].add(adjoint.mul_conj(d.curve.mul(b)).scale(du[t] * dt[t]));
    }
    if first && t == 0 {
        walk.carry[j] = X::real(zero);
        return (share_b, share_c);
    }
    let through = adjoint.mul_conj(d.slope).mul_conj(X::read(s.h.as_parts(), i));
    s.sum_dt[t] = s.sum_dt[t] + through.dot(a);
    walk.a[j] = walk.a[j].add(through.scale(dt[t]));
    walk.carry[j] = adjoint.mul_conj(abar);
    (share_b, share_c)
}

/// A loop over states `n..`, returning how many it took.
trait Back<X: Number> {
    fn states(zero: X::V, shared: &mut Shared<'_, '_, X>, n: usize) -> usize;
}

/// [`States`].
struct General;

impl<X: Number> Back<X> for General {
    #[inline(always)]
    fn states(zero: X::V, shared: &mut Shared<'_, '_, X>, n: usize) -> usize {
        let size = group(BACK, shared.inputs.dstate - n);
        match size {
            4 => zero.outline(States::<X, 4>(shared, n)),
            2 => zero.outline(States::<X, 2>(shared, n)),
            _ => zero.outline(States::<X, 1>(shared, n)),
        }
        size
    }
}

/// [`Mamba`] where it fits, else [`States`].
struct Fast;

impl<V: Vector> Back<Re<V>> for Fast {
    #[inline(always)]
    fn states(zero: V, shared: &mut Shared<'_, '_, Re<V>>, n: usize) -> usize {
        let (Rule::Euler, Coef::Varying(b), Coef::Varying(c)) = (shared.inputs.rule, shared.inputs.b, shared.inputs.c) else {
            return <General as Back<Re<V>>>::states(zero, shared, n);
        };
        let (b, c) = (b.re, c.re);
        let size = group(BACK, shared.inputs.dstate - n);
        match (size, shared.inputs.small) {
            (4, true) => zero.outline(Mamba::<V, 4, true> { shared, b, c, n }),
            (4, false) => zero.outline(Mamba::<V, 4, false> { shared, b, c, n }),
            (2, true) => zero.outline(Mamba::<V, 2, true> { shared, b, c, n }),
            (2, false) => zero.outline(Mamba::<V, 2, false> { shared, b, c, n }),
            (_, true) => zero.outline(Mamba::<V, 1, true> { shared, b, c, n }),
            (_, false) => zero.outline(Mamba::<V, 1, false> { shared, b, c, n }),
        }
        size
    }
}

/// Δ' and Δ'·u of every step, and what [`PerStep`] takes of softplus.
#[inline(always)]
fn steps<V: Vector>(zero: V, tile: &SelectiveTile<'_, V::Real>, slope: &mut [V], dt: &mut [V], du: &mut [V]) {
    let (u, delta) = (rows(zero, tile.u, tile.steps), rows(zero, tile.delta, tile.steps));
    let bias = tile.delta_bias.map_or(zero, |bias| rows(zero, bias, 1)[0]);
    if !tile.softplus {
        return selective_scan::steps(zero, tile, slope, dt, du);
    }
    // In two passes, as forward.
    for (decay, delta) in slope.iter_mut().zip(delta) {
        *decay = exp_of_negative(-(*delta + bias).abs());
    }
    for ((((dt, du), slope), delta), u) in dt.iter_mut().zip(du).zip(slope).zip(delta).zip(u) {
        (*dt, *slope) = softplus_and_grad(*delta + bias, *slope);
        *du = *dt * *u;
    }
}

/// ∂y = ∂out·silu(z), and ∂out·silu'(z) to `through_gate`.
#[inline(always)]
fn output_gradients<V: Vector>(zero: V, tile: &SelectiveTile<'_, V::Real>, grad_out: &[V], grad_y: &mut [V], through_gate: &mut [V]) {
    match tile.z {
        Some(z) => {
            let z = rows(zero, z, tile.steps);
            for (((grad_y, through_gate), grad_out), z) in grad_y.iter_mut().zip(through_gate).zip(grad_out).zip(z) {
                let (value, slope) = silu_and_grad(*z);
                *grad_y = *grad_out * value;
                *through_gate = *grad_out * slope;
            }
        }
        None => grad_y.copy_from_slice(grad_out),
    }
}

/// The gradients that belong to steps, from their sums over states.
struct PerStep<'t, 'a, V: Vector> {
    tile: &'t SelectiveTile<'a, V::Real>,
    through_gate: &'t [V],
    grad_y: &'t [V],
    /// softplus'(Δ + bias).
    slope: &'t [V],
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
        let u = rows(zero, tile.u, tile.steps);
        let row = |operand: Option<_>| operand.map_or(zero, |x| rows(zero, x, 1)[0]);
        let skip = row(tile.d);
        let (mut grad_d, mut grad_bias) = (zero, zero);
        for t in 0..tile.steps {
            grad_d = self.grad_y[t].mul_add(u[t], grad_d);
            let through_skip = if tile.d.is_some() { skip * self.grad_y[t] } else { zero };
            self.grad_u[t] = self.dt[t].mul_add(self.grad_u[t], through_skip);
            if tile.softplus {
                self.grad_delta[t] = self.grad_delta[t] * self.slope[t];
            }
            grad_bias = grad_bias + self.grad_delta[t];
        }
        if let Some(grad_z) = self.grad_z {
            for t in 0..tile.steps {
                let y = if tile.d.is_some() { skip.mul_add(u[t], self.y[t]) } else { self.y[t] };
                grad_z[t] = self.through_gate[t] * y;
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
fn run<X: Number, W: Back<X>>(zero: X::V, args: SelectiveBwd<'_, Real<X>>) {
    let tile = args.tile;
    let SelectiveTile { steps: count, dstate, rule, first, .. } = tile;
    assert!((1..=TILE).contains(&count) && dstate > 0, "a tile of {count} steps and {dstate} states");
    assert!(tile.z.is_some() == args.grad_z.is_some() && tile.d.is_some() == args.grad_d.is_some());
    let mut scratch = rows_mut(zero, args.scratch, (6 + 6 * BACK) * (TILE + 1));
    let [dt, du, y, grad_y, slope, through_gate] = core::array::from_fn(|_| cut(&mut scratch, count));
    let [abar_re, abar_im, gamma_re, gamma_im, h_re, h_im] = core::array::from_fn(|_| cut(&mut scratch, (count + 1) * BACK));
    steps(zero, &tile, slope, dt, du);
    let grad_out = rows(zero, args.grad_out, count);
    output_gradients(zero, &tile, grad_out, grad_y, through_gate);
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
            small: !X::COMPLEX && all_small(zero, dt, a.re),
            ahead: args.ahead,
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
        n += W::states(zero, &mut shared, n);
    }
    let Shared { y, sum_u, sum_dt, grad_y, .. } = shared;
    if X::COMPLEX {
        for y in y.iter_mut() {
            *y = *y + *y;
        }
    }
    let grad_z = args.grad_z.map(|grad| rows_mut(zero, grad, count));
    let (grad_d, grad_bias) =
        zero.outline(PerStep { tile: &tile, through_gate, grad_y, slope, y, dt, grad_u: sum_u, grad_delta: sum_dt, grad_z });
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
        if self.tile.a.im.is_some() { run::<Cx<V>, General>(zero, self) } else { run::<Re<V>, Fast>(zero, self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::testing_scan::{Case, case, cases, error_over, flat, run_bwd};
    use crate::arch::{Kernels, Lanes};
    use num_complex::Complex;

    /// Central differences of the loss with respect to `count` numbers that `at` picks.
    fn differences(case: &Case, count: usize, at: impl Fn(&mut Case, usize) -> &mut f64) -> Vec<f64> {
        let step = 1e-5;
        let loss = |i, by: f64| {
            let mut moved = case.clone();
            *at(&mut moved, i) += by;
            moved.loss()
        };
        (0..count).map(|i| (loss(i, step) - loss(i, -step)) / (2.0 * step)).collect()
    }

    fn close(name: &str, got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-7 * (1.0 + w.abs()), "{name}: {g} against {w}");
        }
        assert_eq!(got.len(), want.len(), "{name}");
    }

    fn part(z: &mut [Complex<f64>], i: usize) -> &mut f64 {
        if i.is_multiple_of(2) { &mut z[i / 2].re } else { &mut z[i / 2].im }
    }

    /// The loops that the kernels are held against are themselves held against differences.
    #[test]
    fn reference_against_central_differences() {
        for rule in [Rule::Euler, Rule::Zoh, Rule::Bilinear] {
            for options in [0b1110_0010, 0b1110_0011, 0b1111_1011, 0b1100_0101, 0b0010_0100, 0b0001_1010] {
                let mut case = case(2, 3, 3, rule, options);
                // κ·Re is the loss's only use of C: with complex numbers every part is free.
                case.complex = options & 1 == 1;
                let g = case.gradients();
                let named = |want: &str| g.named().into_iter().find(|(name, _)| *name == want).unwrap().1;
                let parts = |x: &[f64]| -> Vec<f64> { if case.complex { x.to_vec() } else { x.iter().copied().step_by(2).collect() } };
                let stride = if case.complex { 1 } else { 2 };
                let count = |n: usize| 2 * n / stride;
                close("u", &named("u"), &differences(&case, case.u.len(), |c, i| &mut c.u[i]));
                close("delta", &named("delta"), &differences(&case, case.u.len(), |c, i| &mut c.delta[i]));
                close("a", &parts(&named("a")), &differences(&case, count(case.a.len()), |c, i| part(&mut c.a, i * stride)));
                close("b", &parts(&named("b")), &differences(&case, count(case.b.len()), |c, i| part(&mut c.b, i * stride)));
                close("c", &parts(&named("c")), &differences(&case, count(case.c.len()), |c, i| part(&mut c.c, i * stride)));
                close("h", &parts(&named("h")), &differences(&case, count(case.h.len()), |c, i| part(&mut c.h, i * stride)));
                close("z", &named("z"), &differences(&case, g.z.len(), |c, i| &mut c.z.as_mut().unwrap()[i]));
                close("d", &named("d"), &differences(&case, g.d.len(), |c, i| &mut c.d.as_mut().unwrap()[i]));
                if case.bias.is_some() {
                    close("bias", &named("bias"), &differences(&case, g.bias.len(), |c, i| &mut c.bias.as_mut().unwrap()[i]));
                }
            }
        }
    }

    /// Within `base` + 2·R::UNIT a step in effect.
    fn check<R: Lanes>(base: f64) {
        for k in Kernels::available() {
            for case in cases(k.lanes::<R>()) {
                let (got, want) = (run_bwd::<R>(k, &case), case.gradients());
                let bound = base + 2.0 * R::UNIT * case.steps_in_effect();
                // Sums over states and channels cancel, more so in tiny cases: measured by their terms, of which the largest are O(1).
                let terms = [("b", case.lanes as f64), ("c", case.lanes as f64)];
                for ((name, got), (_, want)) in got.named().iter().zip(want.named()) {
                    let scale = want.iter().fold(1f64, |m, x| m.max(x.abs()));
                    let scale = terms.iter().find(|t| t.0 == *name).map_or(scale, |t| scale.max(t.1.sqrt()));
                    let worst = error_over(scale, got, &want);
                    assert!(
                        worst <= bound,
                        "{:?}: {worst:e} in {name} for {} steps, {} states, {:?}, complex {}, first {}",
                        k.isa(),
                        case.steps,
                        case.dstate,
                        case.rule,
                        case.complex,
                        case.first
                    );
                }
            }
        }
    }

    #[test]
    fn backward_in_f32() {
        check::<f32>(4e-6);
    }

    #[test]
    fn backward_in_f64() {
        check::<f64>(2e-14);
    }

    /// Padded lanes contribute nothing and the others do not feel them.
    #[test]
    fn padding_is_harmless() {
        for k in Kernels::available() {
            let lanes = k.lanes::<f64>();
            let mut padded = case(lanes, 6, 5, Rule::Euler, 0b1110_0010);
            for t in 0..6 {
                let i = t * lanes + lanes - 1;
                padded.u[i] = 0.0;
                padded.delta[i] = 0.0;
                padded.grad_out[i] = 0.0;
                padded.z.as_mut().unwrap()[i] = 0.0;
            }
            for n in 0..5 {
                let i = n * lanes + lanes - 1;
                (padded.a[i], padded.h[i], padded.carry[i]) = (Complex::default(), Complex::default(), Complex::default());
            }
            let got = run_bwd::<f64>(k, &padded);
            let of_padding = |x: &[f64]| x.iter().skip(lanes - 1).step_by(lanes).all(|&x| x == 0.0);
            let re = |z: &[Complex<f64>]| z.iter().map(|z| z.re).collect::<Vec<_>>();
            assert!(of_padding(&got.u) && of_padding(&got.delta) && of_padding(&re(&got.a)) && of_padding(&re(&got.h)));
        }
    }

    /// Without an initial state the old one is not read, and nothing flows to it.
    #[test]
    fn first_step_selects() {
        for k in Kernels::available() {
            for (rule, options) in [(Rule::Euler, 0b110), (Rule::Euler, 0b111), (Rule::Zoh, 0b110), (Rule::Bilinear, 0b101)] {
                let mut case = case(k.lanes::<f64>(), 5, 7, rule, options);
                case.h.fill(Complex::new(f64::NAN, f64::NAN));
                let got = run_bwd::<f64>(k, &case);
                assert!(got.named().iter().all(|(_, x)| x.iter().all(|x| x.is_finite())));
                assert!(flat(&got.h).iter().all(|&x| x == 0.0));
            }
        }
    }
}
