//! The backward scan: the states of one channel are recomputed, then λ runs back over them.
//!
//! ```text
//! λ_t = κ·conj(C_t) ∂y_t + conj(Ā_{t+1}) λ_{t+1},   λ_L += ∂h_L,   ∂Ā_t = λ_t conj(h_{t−1}),   ∂B̄_t = λ_t u_t
//! ```

#![allow(non_snake_case)]

use super::channel::{Channel, Steps, cast, cast_real, pairwise};
use crate::element::{Element, Input, Real, Weight};
use crate::error::Error;
use crate::ops::{Rule, Sum, sigmoid, silu, silu_grad};
use crate::selective::{CoefficientGrad, SelectiveBwd, SelectiveGrads, SelectiveProblem};
use crate::view::{View, ViewMut};

/// A sum of real or complex terms whose error does not grow with the count.
#[derive(Clone, Copy, Default)]
struct Total {
    re: Sum,
    im: Sum,
}

impl Total {
    fn add<W: Weight>(&mut self, term: W) {
        self.re.add(term.re().to_f64());
        self.im.add(term.im().to_f64());
    }

    fn value<W: Weight>(self) -> W {
        W::from_parts(W::Real::from_f64(self.re.value()), W::Real::from_f64(self.im.value()))
    }
}

/// ∂B or ∂C while it is summed: over the channels of a group at each step, or over all steps for each channel.
#[derive(Default)]
struct Shared {
    totals: Vec<Total>,
    varying: bool,
    /// Channels in a group.
    width: usize,
}

impl Shared {
    fn new<I: Input, W: Weight<Real = I::Accum>>(grad: Option<&CoefficientGrad<'_, I, W>>, problem: &SelectiveProblem) -> Self {
        match grad {
            None => Shared::default(),
            Some(CoefficientGrad::Constant(_)) => {
                Shared { totals: vec![Total::default(); problem.dim * problem.dstate], varying: false, width: 1 }
            }
            Some(CoefficientGrad::Varying(v)) => Shared { totals: Vec::new(), varying: true, width: problem.dim / v.dims()[2] },
        }
    }

    /// Adds the (steps, N) terms of channel `d`.
    fn add<W: Weight>(&mut self, d: usize, dstate: usize, terms: &[W]) {
        if self.width == 0 {
            return;
        }
        if self.varying && d.is_multiple_of(self.width) {
            self.totals.clear();
            self.totals.resize(terms.len(), Total::default());
        }
        for (i, &term) in terms.iter().enumerate() {
            self.totals[if self.varying { i } else { d * dstate + i % dstate }].add(term);
        }
    }

    /// Writes a varying gradient where channel `d` is the last one of its group.
    fn flush<I: Input, W: Weight<Real = I::Accum>>(&self, grad: Option<&mut CoefficientGrad<'_, I, W>>, steps: &Steps, d: usize) {
        if let Some(CoefficientGrad::Varying(v)) = grad
            && (d + 1).is_multiple_of(self.width)
        {
            let [_, _, _, dstate] = v.dims();
            for (i, &t) in steps.positions.iter().enumerate() {
                for n in 0..dstate {
                    v.set([steps.batch, t, d / self.width, n], Element::store(self.totals[i * dstate + n].value()));
                }
            }
        }
    }

    /// Writes a constant gradient.
    fn finish<I: Input, W: Weight<Real = I::Accum>>(&self, grad: Option<&mut CoefficientGrad<'_, I, W>>) {
        if let Some(CoefficientGrad::Constant(v)) = grad {
            write_matrix(v, &self.totals);
        }
    }
}

fn write_matrix<W: Weight>(out: &mut ViewMut<'_, W, 2>, totals: &[Total]) {
    let [rows, columns] = out.dims();
    for r in 0..rows {
        (0..columns).for_each(|c| out.set([r, c], totals[r * columns + c].value()));
    }
}

/// The gradients of one channel over one span.
struct ChannelGrads<W: Weight> {
    u: Vec<W::Real>,
    delta: Vec<W::Real>,
    z: Vec<W::Real>,
    /// (steps, N), before the sum over channels.
    B: Vec<W>,
    /// (steps, N), before the sum over channels.
    C: Vec<W>,
    A: Vec<Total>,
    skip: Sum,
    bias: Sum,
    /// ∂h_0, or what ∂h_L becomes where there are no steps.
    initial: Vec<W>,
}

impl<W: Weight> Channel<W> {
    /// h after every step, (steps, N).
    fn states(&self) -> Vec<W> {
        let (mut h, mut all) = (self.start(), Vec::with_capacity(self.u.len() * self.dstate()));
        for i in 0..self.u.len() {
            self.advance(i, &mut h);
            all.extend_from_slice(&h);
        }
        all
    }

    /// Walks back from `grad_last`, the gradient of the last state.
    fn backward(&self, grad_out: &[W::Real], grad_last: Vec<W>, softplus: bool) -> ChannelGrads<W> {
        let (steps, dstate) = (self.u.len(), self.dstate());
        let real = vec![W::Real::ZERO; steps];
        let mut grads = ChannelGrads {
            u: real.clone(),
            delta: real.clone(),
            z: real,
            B: vec![W::ZERO; steps * dstate],
            C: vec![W::ZERO; steps * dstate],
            A: vec![Total::default(); dstate],
            skip: Sum::default(),
            bias: Sum::default(),
            initial: grad_last,
        };
        let (states, mut terms) = (self.states(), Vec::new());
        for i in (0..steps).rev() {
            let h = &states[i * dstate..(i + 1) * dstate];
            let y = self.contract(i, h, &mut terms);
            let y = self.skipped(i, y);
            let grad_y = self.z.as_ref().map_or(grad_out[i], |z| grad_out[i] * silu(z[i]));
            grads.z[i] = self.z.as_ref().map_or(W::Real::ZERO, |z| grad_out[i] * y * silu_grad(z[i]));
            grads.skip.add((grad_y * self.u[i]).to_f64());
            let before = if i > 0 { Some(&states[(i - 1) * dstate..i * dstate]) } else { self.initial.as_deref() };
            let (grad_u, grad_dt) = self.step_back(i, h, before.filter(|_| self.continues(i)), grad_y, &mut grads);
            grads.u[i] = self.skip.map_or(grad_u, |skip| grad_u + skip * grad_y);
            grads.delta[i] = if softplus { grad_dt * sigmoid(self.raw[i]) } else { grad_dt };
            grads.bias.add(grads.delta[i].to_f64());
        }
        grads
    }

    /// One step back over all n. `grads.initial` carries conj(Ā_{t+1}) λ_{t+1} in and conj(Ā_t) λ_t out, or 0 where nothing
    /// stands before. Returns the terms of ∂u and ∂Δ' that are sums over n.
    fn step_back(&self, i: usize, h: &[W], before: Option<&[W]>, grad_y: W::Real, grads: &mut ChannelGrads<W>) -> (W::Real, W::Real) {
        let (dstate, u, dt) = (h.len(), self.u[i], self.dt[i]);
        let kappa_y = if W::COMPLEX { grad_y + grad_y } else { grad_y };
        let (B, C) = (self.B.at(i, dstate), self.C.at(i, dstate));
        let (mut u_terms, mut dt_terms) = (Vec::with_capacity(dstate), Vec::with_capacity(dstate));
        for n in 0..dstate {
            let (a, b) = (self.A[n], B[n]);
            let rule = self.rule.discretize_grad(dt, a);
            let lambda = C[n].conj().scale(kappa_y) + grads.initial[n];
            let grad_abar = before.map_or(W::ZERO, |h| lambda * h[n].conj());
            let grad_bbar = lambda.scale(u);
            grads.C[i * dstate + n] = h[n].conj().scale(kappa_y);
            grads.B[i * dstate + n] = (grad_bbar * rule.gamma.conj()).scale(dt);
            let mut grad_a = (grad_abar * rule.slope.conj()).scale(dt);
            if self.rule != Rule::Euler {
                // Δ² may overflow where the curve is 0, so Euler's rule has no such term at all.
                grad_a += grad_bbar.scale(dt) * (b * rule.curve).scale(dt).conj();
            }
            grads.A[n].add(grad_a);
            u_terms.push(lambda.dot((rule.gamma * b).scale(dt)));
            dt_terms.push(grad_abar.dot(a * rule.slope) + grad_bbar.dot(b * rule.bslope));
            grads.initial[n] = if before.is_some() { rule.abar.conj() * lambda } else { W::ZERO };
        }
        (pairwise(&u_terms), pairwise(&dt_terms))
    }
}

/// Sums that run over the batch and time.
struct Totals {
    A: Vec<Total>,
    skip: Vec<Sum>,
    bias: Vec<Sum>,
    B: Shared,
    C: Shared,
}

/// Padding has gradient 0.
fn clear<I: Input, W: Weight<Real = I::Accum>>(grads: &mut SelectiveGrads<'_, I, W>) {
    for v in [grads.u.as_mut(), grads.delta.as_mut(), grads.z.as_mut()].into_iter().flatten() {
        v.fill(I::default());
    }
    for v in [grads.B.as_mut(), grads.C.as_mut()].into_iter().flatten() {
        if let CoefficientGrad::Varying(v) = v {
            v.fill(Default::default());
        }
    }
}

/// The backward scan, computed in `C`.
pub(super) fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>, C: Weight>(args: SelectiveBwd<'_, I, W>) -> Result<(), Error> {
    let problem = args.check()?;
    let SelectiveBwd { inputs, grad_out, grad_last_state, mut grads } = args;
    if inputs.sequences.may_pad() {
        clear(&mut grads);
    }
    let mut totals = Totals {
        A: vec![Total::default(); problem.dim * problem.dstate],
        skip: vec![Sum::default(); problem.dim],
        bias: vec![Sum::default(); problem.dim],
        B: Shared::new(grads.B.as_ref(), &problem),
        C: Shared::new(grads.C.as_ref(), &problem),
    };
    for state in 0..problem.states {
        let steps = Steps::of(&inputs.sequences, &inputs.sequences.span(state, problem.seqlen));
        for d in 0..problem.dim {
            let upstream: Vec<C::Real> = steps.positions.iter().map(|&t| cast_real(grad_out.get([steps.batch, t, d]).load())).collect();
            let last = |v: View<'_, W, 3>| (0..problem.dstate).map(|n| cast(v.get([state, d, n]))).collect();
            let last: Vec<C> = grad_last_state.map_or_else(|| vec![C::ZERO; problem.dstate], last);
            let channel = Channel::<C>::gather(&inputs, &steps, state, d);
            let found = channel.backward(&upstream, last, inputs.options.delta_softplus);
            totals.B.add(d, problem.dstate, &found.B);
            totals.C.add(d, problem.dstate, &found.C);
            totals.B.flush(grads.B.as_mut(), &steps, d);
            totals.C.flush(grads.C.as_mut(), &steps, d);
            for (total, found) in totals.A[d * problem.dstate..].iter_mut().zip(&found.A) {
                total.add::<num_complex::Complex<f64>>(found.value());
            }
            totals.skip[d].add(found.skip.value());
            totals.bias[d].add(found.bias.value());
            write_positions(&mut grads, &steps, d, &found);
            if let Some(v) = grads.initial_state.as_mut() {
                found.initial.into_iter().enumerate().for_each(|(n, g)| v.set([state, d, n], cast(g)));
            }
        }
    }
    finish(&mut grads, &totals);
    Ok(())
}

fn write_positions<I: Input, W: Weight<Real = I::Accum>, C: Weight>(
    grads: &mut SelectiveGrads<'_, I, W>,
    steps: &Steps,
    d: usize,
    found: &ChannelGrads<C>,
) {
    let sources = [(grads.u.as_mut(), &found.u), (grads.delta.as_mut(), &found.delta), (grads.z.as_mut(), &found.z)];
    for (out, values) in sources {
        if let Some(out) = out {
            for (&t, &g) in steps.positions.iter().zip(values) {
                out.set([steps.batch, t, d], I::store(cast_real(g)));
            }
        }
    }
}

fn finish<I: Input, W: Weight<Real = I::Accum>>(grads: &mut SelectiveGrads<'_, I, W>, totals: &Totals) {
    if let Some(v) = grads.A.as_mut() {
        write_matrix(v, &totals.A);
    }
    for (out, sums) in [(grads.D.as_mut(), &totals.skip), (grads.delta_bias.as_mut(), &totals.bias)] {
        if let Some(v) = out {
            sums.iter().enumerate().for_each(|(d, sum)| v.set([d], W::Real::from_f64(sum.value())));
        }
    }
    totals.B.finish(grads.B.as_mut());
    totals.C.finish(grads.C.as_mut());
}
