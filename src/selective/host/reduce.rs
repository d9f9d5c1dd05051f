//! Partial sums of the gradients that many tasks add to, and their reduction in a fixed order.
//!
//! ∂A, ∂D, ∂Δ_bias and the gradients of constant B and C are sums over b and t: one partial a sequence. Those of varying B and C
//! are sums over the channels of a group: one partial a task. All are kept in f64.

#![allow(non_snake_case)]

use core::ops::Range;

use super::{Shape, by_sequence};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Real, Weight, cast};
use crate::error::Error;
use crate::ops::Sum;
use crate::par::{Par, Split};
use crate::selective::{CoefficientGrad, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Cut, View, ViewMut};
use crate::workspace::bytes_of;

/// Positions that one task of the reduction sums.
const POSITIONS: usize = 64;

/// Partial sums of every task.
pub(super) struct Partials<'w, K: Weight> {
    /// Sums for A, constant B and constant C, (states, D, N, 3).
    sums: ViewMut<'w, K::Wide, 4>,
    /// Sums for D and Δ_bias, (states, D, 2).
    real_sums: ViewMut<'w, f64, 3>,
    /// Sums for varying B and C, (parts, B, L, N).
    rows: [Option<ViewMut<'w, K::Wide, 4>>; 2],
}

/// The partial sums of one task.
pub(super) struct Pieces<'w, K: Weight> {
    sums: ViewMut<'w, K::Wide, 4>,
    real_sums: ViewMut<'w, f64, 3>,
    rows: [Option<ViewMut<'w, K::Wide, 4>>; 2],
}

/// The gradients that are reduced.
type Grads<'a, I, W> = (
    Option<ViewMut<'a, W, 2>>,
    Option<CoefficientGrad<'a, I, W>>,
    Option<CoefficientGrad<'a, I, W>>,
    Option<ViewMut<'a, <W as Weight>::Real, 1>>,
    Option<ViewMut<'a, <W as Weight>::Real, 1>>,
);

/// The tensor of a varying gradient, or that of a constant one.
type Kinds<'a, I, W> = (Option<ViewMut<'a, <W as Weight>::Stored<I>, 4>>, Option<ViewMut<'a, W, 2>>);

fn kinds<I: Input, W: Weight<Real = I::Accum>>(grad: Option<CoefficientGrad<'_, I, W>>) -> Kinds<'_, I, W> {
    match grad {
        Some(CoefficientGrad::Varying(v)) => (Some(v), None),
        Some(CoefficientGrad::Constant(v)) => (None, Some(v)),
        None => (None, None),
    }
}

/// A sum of real or complex numbers in order.
fn total<W: Weight>(terms: impl Iterator<Item = W>) -> W {
    let (mut re, mut im) = (Sum::default(), Sum::default());
    for term in terms {
        re.add(term.re().to_f64());
        im.add(term.im().to_f64());
    }
    W::from_parts(W::Real::from_f64(re.value()), W::Real::from_f64(im.value()))
}

impl<'w, K: Weight> Partials<'w, K> {
    /// Bytes that [`Partials::new`] takes.
    pub fn bytes(problem: &SelectiveProblem, shape: &Shape) -> usize {
        let SelectiveProblem { batch, seqlen, dim, dstate, states, .. } = *problem;
        let count = |dims: &[usize]| dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let rows = bytes_of::<K::Wide>(count(&[shape.parts, batch, seqlen, dstate]));
        let varying = usize::from(problem.groups_b.is_some()) + usize::from(problem.groups_c.is_some());
        let sums = bytes_of::<K::Wide>(count(&[states, dim, dstate, 3])).saturating_add(bytes_of::<f64>(count(&[states, dim, 2])));
        rows.saturating_mul(varying).saturating_add(sums)
    }

    pub fn new(problem: &SelectiveProblem, shape: &Shape, ws: &mut Workspace<'w>) -> Result<Self, Error> {
        let SelectiveProblem { batch, seqlen, dim, dstate, states, groups_b, groups_c, .. } = *problem;
        let sums = ws.tensor([states, dim, dstate, 3])?;
        let real_sums = ws.tensor([states, dim, 2])?;
        let mut rows = |groups: Option<usize>| groups.map(|_| ws.tensor([shape.parts, batch, seqlen, dstate])).transpose();
        Ok(Partials { sums, real_sums, rows: [rows(groups_b)?, rows(groups_c)?] })
    }

    /// One set of pieces a task, sequences outermost.
    pub fn tiles<'s>(&'s mut self, sequences: &Sequences<'s>, shape: &Shape) -> impl Split<Piece = RawPieces<'s, K>> {
        let (state, channels) = (Cut::Every(0, 1), Cut::Every(1, shape.width));
        let [b, c] = &mut self.rows;
        let rows = |v: Option<ViewMut<'s, K::Wide, 4>>| v.map(|v| v.tiles(by_sequence(sequences, 1), Cut::Every(0, 1)));
        (
            self.sums.reborrow().tiles(state, channels),
            self.real_sums.reborrow().tiles(state, channels),
            rows(b.as_mut().map(ViewMut::reborrow)),
            rows(c.as_mut().map(ViewMut::reborrow)),
        )
    }

    /// Sums the partials and writes the gradients; phase 1 of the operation.
    pub fn reduce<'g, I: Input, W: Weight<Real = I::Accum>>(
        &self,
        par: Par,
        problem: &SelectiveProblem,
        shape: &Shape,
        (A, B, C, D, delta_bias): Grads<'g, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let ((rows_B, B), (rows_C, C)) = (kinds(B), kinds(C));
        let channels = Cut::Every(0, shape.width);
        let matrix = |v: Option<ViewMut<'g, W, 2>>| v.map(|v| v.tiles(channels, Cut::Whole));
        let vector = |v: Option<ViewMut<'g, W::Real, 1>>| v.map(|v| v.tiles(channels, Cut::Whole));
        let split = (matrix(A), matrix(B), matrix(C), vector(D), vector(delta_bias));
        par.run(1, shape.parts, split, &mut ws.reborrow(), 0, |part, (A, B, C, D, bias), _| {
            for (kind, out) in [A, B, C].into_iter().enumerate() {
                self.sum_matrix(part * shape.width, kind, out);
            }
            for (kind, out) in [D, bias].into_iter().enumerate() {
                self.sum_vector(part * shape.width, kind, out);
            }
        })?;
        let tasks = problem.seqlen.div_ceil(POSITIONS);
        let cut = |v: ViewMut<'g, W::Stored<I>, 4>| v.tiles(Cut::Every(0, 1), Cut::Every(1, POSITIONS));
        par.run(1, problem.batch * tasks, (rows_B.map(cut), rows_C.map(cut)), ws, 0, |index, (B, C), _| {
            let place = [index / tasks, index % tasks * POSITIONS];
            for (partial, out) in self.rows.iter().zip([B, C]) {
                if let (Some(partial), Some(out)) = (partial, out) {
                    sum_rows(partial.as_view(), place, out);
                }
            }
        })
    }

    /// ∂A or that of a constant B or C, for the channels from `start`.
    fn sum_matrix<W: Weight>(&self, start: usize, kind: usize, out: Option<ViewMut<'_, W, 2>>) {
        let Some(mut out) = out else { return };
        let [channels, dstate] = out.dims();
        for c in 0..channels {
            for n in 0..dstate {
                let terms = (0..self.sums.dims()[0]).map(|state| self.sums.get([state, start + c, n, kind]));
                out.set([c, n], cast(total(terms)));
            }
        }
    }

    /// ∂D or ∂Δ_bias, for the channels from `start`.
    fn sum_vector<R: Real>(&self, start: usize, kind: usize, out: Option<ViewMut<'_, R, 1>>) {
        let Some(mut out) = out else { return };
        for c in 0..out.dims()[0] {
            let terms = (0..self.real_sums.dims()[0]).map(|state| self.real_sums.get([state, start + c, kind]));
            out.set([c], R::from_f64(total(terms)));
        }
    }
}

/// ∂B or ∂C of some positions of a row: the sum over the parts of each group.
fn sum_rows<T: Element, W: Weight>(partial: View<'_, W, 4>, [batch, start]: [usize; 2], mut out: ViewMut<'_, T, 4>) {
    let [_, count, groups, dstate] = out.dims();
    let parts = partial.dims()[0] / groups;
    for t in 0..count {
        for g in 0..groups {
            for n in 0..dstate {
                let terms = (g * parts..(g + 1) * parts).map(|part| partial.get([part, batch, start + t, n]));
                out.set([0, t, g, n], T::store(cast(total(terms))));
            }
        }
    }
}

/// What `Par::run` hands to a task.
pub(super) type RawPieces<'w, K> = (
    ViewMut<'w, <K as Weight>::Wide, 4>,
    ViewMut<'w, f64, 3>,
    Option<ViewMut<'w, <K as Weight>::Wide, 4>>,
    Option<ViewMut<'w, <K as Weight>::Wide, 4>>,
);

impl<'w, K: Weight> Pieces<'w, K> {
    pub fn new((sums, real_sums, b, c): RawPieces<'w, K>) -> Self {
        Pieces { sums, real_sums, rows: [b, c] }
    }

    /// Starts every sum at 0; so the gradients of padding are 0.
    pub fn clear(&mut self) {
        self.sums.fill(K::Wide::ZERO);
        self.real_sums.fill(0.0);
        self.rows.iter_mut().flatten().for_each(|v| v.fill(K::Wide::ZERO));
    }

    /// The sums over channels for varying B and C at one position.
    pub fn rows(&mut self, position: usize) -> [Option<&mut [K::Wide]>; 2] {
        let [b, c] = &mut self.rows;
        [b, c].map(|v| v.as_mut().map(|v| v.row_mut([0, 0, position, 0]).expect("contiguous")))
    }

    /// Adds the sums of a tile, for the channels `local` of the task.
    pub fn add_sums(&mut self, local: &Range<usize>, sums: &[K::Wide], real_sums: &[f64]) {
        let dstate = self.sums.dims()[2];
        for (lane, sums) in sums.chunks_exact(3).enumerate() {
            let row = self.sums.row_mut([0, local.start + lane / dstate, lane % dstate, 0]).expect("contiguous");
            row.iter_mut().zip(sums).for_each(|(x, &sum)| *x += sum);
        }
        for (c, sums) in real_sums.chunks_exact(2).enumerate() {
            let row = self.real_sums.row_mut([0, local.start + c, 0]).expect("contiguous");
            row.iter_mut().zip(sums).for_each(|(x, &sum)| *x += sum);
        }
    }
}
