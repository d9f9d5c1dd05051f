//! The forward scan and the decode step, straight from the recurrence.

#![allow(non_snake_case)]

use super::channel::{Channel, Rows, Steps, cast, cast_real, pairwise};
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::ops::{silu, softplus};
use crate::selective::{Coefficient, SelectiveFwd, SelectiveStep};
use crate::view::View;

impl<W: Weight> Channel<W> {
    /// h of step `i` from the h before it, in place. Where nothing stands before, the step selects b and h is not read.
    pub fn advance(&self, i: usize, h: &mut [W]) {
        let (input, continues) = (self.dt[i] * self.u[i], self.continues(i));
        for ((h, &a), &b) in h.iter_mut().zip(&self.A).zip(self.B.at(i, self.dstate())) {
            let discrete = self.rule.discretize(self.dt[i], a);
            let b = (discrete.gamma * b).scale(input);
            *h = if continues { discrete.abar * *h + b } else { b };
        }
    }

    /// y of step `i`: Σ_n C_n h_n, for complex A twice the real part.
    pub fn contract(&self, i: usize, h: &[W], terms: &mut Vec<W::Real>) -> W::Real {
        terms.clear();
        terms.extend(self.C.at(i, h.len()).iter().zip(h).map(|(&c, &h)| (c * h).re()));
        let y = pairwise(terms);
        if W::COMPLEX { y + y } else { y }
    }

    /// y + D u.
    pub fn skipped(&self, i: usize, y: W::Real) -> W::Real {
        self.skip.map_or(y, |skip| y + skip * self.u[i])
    }

    /// The state before the first step: the initial one, or zeros that no step reads.
    pub fn start(&self) -> Vec<W> {
        self.initial.clone().unwrap_or_else(|| vec![W::ZERO; self.dstate()])
    }

    /// Every out, and the last state.
    fn forward(&self) -> (Vec<W::Real>, Vec<W>) {
        let (mut h, mut terms) = (self.start(), Vec::new());
        let outs = (0..self.u.len()).map(|i| {
            self.advance(i, &mut h);
            let y = self.contract(i, &h, &mut terms);
            let y = self.skipped(i, y);
            self.z.as_ref().map_or(y, |z| y * silu(z[i]))
        });
        (outs.collect(), h)
    }
}

/// The forward scan, computed in `C`.
pub(super) fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>, C: Weight>(args: SelectiveFwd<'_, I, W>) -> Result<(), Error> {
    let problem = args.check()?;
    let SelectiveFwd { inputs, mut out, mut last_state } = args;
    if inputs.sequences.may_pad() {
        out.fill(I::default());
    }
    for state in 0..problem.states {
        let steps = Steps::of(&inputs.sequences, &inputs.sequences.span(state, problem.seqlen));
        for d in 0..problem.dim {
            let (outs, last) = Channel::<C>::gather(&inputs, &steps, state, d).forward();
            for (&t, y) in steps.positions.iter().zip(outs) {
                out.set([steps.batch, t, d], I::store(cast_real(y)));
            }
            if let Some(v) = last_state.as_mut() {
                last.into_iter().enumerate().for_each(|(n, h)| v.set([state, d, n], cast(h)));
            }
        }
    }
    Ok(())
}

/// One position of one row of a step's B or C.
fn row_of<I: Input, W: Weight<Real = I::Accum>>(from: &Coefficient<'_, I, W, 3>, batch: usize, d: usize, dim: usize) -> Rows<W> {
    match from {
        Coefficient::Constant(v) => Rows::Constant((0..v.dims()[1]).map(|n| v.get([d, n])).collect()),
        Coefficient::Varying(v) => {
            let [_, groups, dstate] = v.dims();
            Rows::Constant((0..dstate).map(|n| v.get([batch, d * groups / dim, n]).load()).collect())
        }
    }
}

/// One decode step: the scan of one position from the stored state.
pub(super) fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    args: SelectiveStep<'_, I, W, S>,
) -> Result<(), Error> {
    let problem = args.check()?;
    let SelectiveStep { u, delta, A, B, C, D, z, delta_bias, mut state, slots, mut out, options } = args;
    for batch in 0..problem.batch {
        let Ok(slot) = usize::try_from(slots.map_or(batch as i64, |v| i64::from(v.get([batch])))) else { continue };
        for d in 0..problem.dim {
            let at = |v: View<'_, I, 2>| v.get([batch, d]).load();
            let raw = delta_bias.map_or(at(delta), |bias| at(delta) + bias.get([d]));
            let channel = Channel::<W> {
                fresh: vec![true],
                u: vec![at(u)],
                raw: vec![raw],
                dt: vec![if options.delta_softplus { softplus(raw) } else { raw }],
                z: z.map(|z| vec![at(z)]),
                A: (0..problem.dstate).map(|n| A.get([d, n])).collect(),
                B: row_of(&B, batch, d, problem.dim),
                C: row_of(&C, batch, d, problem.dim),
                skip: D.map(|v| v.get([d])),
                initial: Some((0..problem.dstate).map(|n| state.get([slot, d, n]).load()).collect()),
                rule: options.rule,
            };
            let (outs, h) = channel.forward();
            h.into_iter().enumerate().for_each(|(n, h)| state.set([slot, d, n], S::store(h)));
            out.set([batch, d], I::store(outs[0]));
        }
    }
    Ok(())
}
