//! One channel of one sequence span, gathered from its views and widened to the type that it is computed in.

#![allow(non_snake_case)]

use crate::element::{Element, Input, Real, Weight};
pub(super) use crate::element::{cast, cast_real};
use crate::ops::{Rule, softplus};
use crate::selective::{Coefficient, SelectiveInputs};
use crate::sequences::{Sequences, Span};

/// Σ of the terms, by halves: the error grows with the logarithm of the count, and the order is fixed by the count.
pub(super) fn pairwise<R: Real>(terms: &[R]) -> R {
    if terms.len() <= 4 {
        return terms.iter().fold(R::ZERO, |sum, &x| sum + x);
    }
    let (front, back) = terms.split_at(terms.len() / 2);
    pairwise(front) + pairwise(back)
}

/// The positions of a span that hold data, in order, and where the state starts anew.
pub(super) struct Steps {
    pub batch: usize,
    pub positions: Vec<usize>,
    /// Nothing stands before this step but, at step 0, the initial state.
    pub fresh: Vec<bool>,
}

impl Steps {
    pub fn of(sequences: &Sequences<'_>, span: &Span) -> Self {
        let mut steps = Steps { batch: span.batch, positions: Vec::new(), fresh: Vec::new() };
        let (mut walk, mut tile) = (sequences.walk(span), [0; 64]);
        while let Some(found) = walk.next(&mut tile) {
            steps.positions.extend_from_slice(&tile[..found.count]);
            steps.fresh.extend((0..found.count).map(|i| i == 0 && found.fresh));
        }
        steps
    }
}

/// B or C of one channel.
pub(super) enum Rows<W> {
    Constant(Vec<W>),
    Varying(Vec<W>),
}

impl<W> Rows<W> {
    /// The N numbers of step `i`.
    pub fn at(&self, i: usize, dstate: usize) -> &[W] {
        match self {
            Rows::Constant(row) => row,
            Rows::Varying(rows) => &rows[i * dstate..(i + 1) * dstate],
        }
    }

    fn gather<I: Input, S: Weight<Real = I::Accum>>(
        from: &Coefficient<'_, I, S>,
        steps: &Steps,
        d: usize,
        dim: usize,
        dstate: usize,
    ) -> Self
    where
        W: Weight,
    {
        match from {
            Coefficient::Constant(v) => Rows::Constant((0..dstate).map(|n| cast(v.get([d, n]))).collect()),
            Coefficient::Varying(v) => {
                let group = d * v.dims()[2] / dim;
                let row = |&t: &usize| (0..dstate).map(move |n| cast(v.get([steps.batch, t, group, n]).load()));
                Rows::Varying(steps.positions.iter().flat_map(row).collect())
            }
        }
    }
}

/// What one channel computes with. `W` is the arithmetic, which may be wider than the operands'.
pub(super) struct Channel<W: Weight> {
    pub fresh: Vec<bool>,
    pub u: Vec<W::Real>,
    /// Δ + Δ_bias, before softplus.
    pub raw: Vec<W::Real>,
    /// Δ'.
    pub dt: Vec<W::Real>,
    pub z: Option<Vec<W::Real>>,
    pub A: Vec<W>,
    pub B: Rows<W>,
    pub C: Rows<W>,
    pub skip: Option<W::Real>,
    pub initial: Option<Vec<W>>,
    pub rule: Rule,
}

impl<W: Weight> Channel<W> {
    /// Channel `d` of the span of state `state`, whose steps are given.
    pub fn gather<I: Input, S: Weight<Real = I::Accum>>(inputs: &SelectiveInputs<'_, I, S>, steps: &Steps, state: usize, d: usize) -> Self {
        let [_, _, dim] = inputs.u.dims();
        let dstate = inputs.A.dims()[1];
        let along = |v: &crate::view::View<'_, I, 3>| -> Vec<W::Real> {
            steps.positions.iter().map(|&t| cast_real(v.get([steps.batch, t, d]).load())).collect()
        };
        let bias = inputs.delta_bias.map(|v| cast_real::<_, W::Real>(v.get([d])));
        let raw: Vec<W::Real> = along(&inputs.delta).into_iter().map(|x| bias.map_or(x, |b| x + b)).collect();
        let dt = raw.iter().map(|&x| if inputs.options.delta_softplus { softplus(x) } else { x }).collect();
        Channel {
            fresh: steps.fresh.clone(),
            u: along(&inputs.u),
            raw,
            dt,
            z: inputs.z.as_ref().map(along),
            A: (0..dstate).map(|n| cast(inputs.A.get([d, n]))).collect(),
            B: Rows::gather(&inputs.B, steps, d, dim, dstate),
            C: Rows::gather(&inputs.C, steps, d, dim, dstate),
            skip: inputs.D.map(|v| cast_real(v.get([d]))),
            initial: inputs.initial_state.map(|v| (0..dstate).map(|n| cast(v.get([state, d, n]))).collect()),
            rule: inputs.options.rule,
        }
    }

    /// N.
    pub fn dstate(&self) -> usize {
        self.A.len()
    }

    /// Whether anything stands before step `i`: a state of the same sequence, or the initial one.
    pub fn continues(&self, i: usize) -> bool {
        !self.fresh[i] || (i == 0 && self.initial.is_some())
    }
}
