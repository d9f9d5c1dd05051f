//! Sums of backward over sequences and channels, in f64 and in a fixed order: the second phase.

use core::ops::Range;

use super::Cpu;
use super::grid::Grid;
use super::inputs::{SIZED, real};
use super::selective_bwd::Sizes;
use super::stage::{Blocks, Region, Sink, Source, vector_mut, weight_mut};
use super::table::{REDUCE_CHANNELS, TILE};
use crate::arch::{Lanes, Planes};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::selective::{CoefficientGrad, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Cut, Tiles, View, ViewMut};
use crate::workspace::bytes_of;

/// Where the gradients of shared parameters stand in a partial sum, row by row: planes of ∂A, of a constant ∂B and ∂C, ∂D, ∂bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    /// First rows of ∂A, ∂B and ∂C; those of varying coefficients are not used.
    pub start: [usize; 3],
    /// Row of ∂D.
    pub d: usize,
    /// Row of ∂bias.
    pub delta_bias: usize,
    /// Rows in all.
    pub count: usize,
}

impl Rows {
    pub fn new(problem: &SelectiveProblem, planes: usize) -> Self {
        let each = problem.dstate * planes;
        let b = each;
        let c = b + if problem.groups_b.is_none() { each } else { 0 };
        let d = c + if problem.groups_c.is_none() { each } else { 0 };
        Rows { start: [0, b, c], d, delta_bias: d + 1, count: d + 2 }
    }
}

/// Adds numbers to sums.
pub(super) fn add<R: Lanes>(sums: &mut [f64], shares: &[R]) {
    sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share.to_f64());
}

/// Bytes of scratch memory for the tasks of this phase.
pub(super) fn task_bytes(sizes: &Sizes) -> usize {
    let shared = 2 * bytes_of::<f64>(sizes.rows.count * REDUCE_CHANNELS);
    let varying = (1 + sizes.extent.planes()) * bytes_of::<f64>(TILE * sizes.extent.dstate);
    shared.max(varying)
}

/// Where the gradients of shared parameters go.
pub(super) struct Shared<'a, W: Weight> {
    pub a: Option<ViewMut<'a, W, 2>>,
    pub b: Option<ViewMut<'a, W, 2>>,
    pub c: Option<ViewMut<'a, W, 2>>,
    pub d: Option<ViewMut<'a, W::Real, 1>>,
    pub delta_bias: Option<ViewMut<'a, W::Real, 1>>,
}

/// Cuts D of (…, D).
fn by_channel<T: Copy>(v: Option<ViewMut<'_, T, 4>>) -> Option<Tiles<'_, 'static, T, 4>> {
    v.map(|v| v.tiles(Cut::Whole, Cut::Every(3, REDUCE_CHANNELS)))
}

/// Sums the gradients of shared parameters over groups of sequences.
pub(super) fn shared<W: Weight>(
    cpu: &Cpu,
    sizes: &Sizes,
    partials: View<'_, f64, 4>,
    into: Shared<'_, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let [groups, _, count, dim] = partials.dims();
    let (rows, n, planes) = (sizes.rows, sizes.extent.dstate, sizes.extent.planes());
    let Shared { a, b, c, d, delta_bias } = into;
    let outputs = (by_channel(a.map(weight_mut)), by_channel(b.map(weight_mut)), by_channel(c.map(weight_mut)));
    let outputs = (outputs, by_channel(d.map(vector_mut)), by_channel(delta_bias.map(vector_mut)));
    cpu.par.run(1, dim.div_ceil(REDUCE_CHANNELS), outputs, ws, task_bytes(sizes), |i, ((a, b, c), d, bias), ws| {
        let cols = i * REDUCE_CHANNELS..((i + 1) * REDUCE_CHANNELS).min(dim);
        let mut ws = ws.reborrow();
        let sum = ws.slice::<f64>(count * REDUCE_CHANNELS).expect(SIZED);
        let one = ws.slice::<f64>(count * REDUCE_CHANNELS).expect(SIZED);
        let blocks = Blocks { width: REDUCE_CHANNELS, stride: 0, first: 0 };
        sum.fill(0.0);
        for group in 0..groups {
            partials.stage(Region { outer: [group, 0], rows: 0..count, cols: cols.clone() }, blocks, &mut real(one));
            add(sum, one);
        }
        let from = |row: usize| &sum[row * REDUCE_CHANNELS..];
        let here = |rows: usize| Region { outer: [0, 0], rows: 0..rows, cols: 0..cols.len() };
        for (sink, start) in [a, b, c].into_iter().zip(rows.start) {
            let Some(mut sink) = sink else { continue };
            sink.put(here(n), blocks, &Planes { re: from(start), im: (planes == 2).then(|| from(start + n)) });
        }
        for (sink, row) in [(d, rows.d), (bias, rows.delta_bias)] {
            sink.into_iter().for_each(|mut sink| sink.put(here(1), blocks, &Planes { re: from(row), im: None }));
        }
    })
}

/// Sums ∂B or ∂C over the parts of channels of each group.
pub(super) fn varying<T: Element, R: Lanes>(
    cpu: &Cpu,
    sizes: &Sizes,
    sequences: &Sequences<'_>,
    grid: &Grid<'_>,
    partials: View<'_, R, 4>,
    into: ViewMut<'_, T, 4>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let into = into.permute([0, 2, 1, 3]);
    let [batch, groups, seqlen, n] = into.dims();
    let (tiles, planes, dim) = (seqlen.div_ceil(TILE), sizes.extent.planes(), sizes.shape.dim);
    let blocks = Blocks { width: n, stride: 0, first: 0 };
    let pieces = (into.tiles(Cut::Every(0, 1), Cut::Every(2, TILE)),);
    cpu.par.run(1, batch * tiles, pieces, ws, task_bytes(sizes), |i, (mut into,), ws| {
        let (row, start) = (i / tiles, i % tiles * TILE);
        let range = start..(start + TILE).min(seqlen);
        let mut ws = ws.reborrow();
        let mut sums: [&mut [f64]; 2] = [0, 1].map(|p| ws.slice(if p < planes { TILE * n } else { 0 }).expect(SIZED));
        let one = ws.slice::<f64>(TILE * n).expect(SIZED);
        let used = range.len() * n;
        for group in 0..groups {
            let slices = grid.slices_of(group * (dim / groups)..(group + 1) * (dim / groups));
            for (plane, sum) in sums.iter_mut().enumerate().take(planes) {
                sum[..used].fill(0.0);
                for part in slices.clone().flat_map(|slice| sizes.parts(slice, grid.channels(slice).len())) {
                    let region = Region { outer: [row, part * planes + plane], rows: range.clone(), cols: 0..n };
                    partials.stage(region, blocks, &mut real(one));
                    add(&mut sum[..used], &one[..used]);
                }
            }
            let from = Planes { re: &*sums[0], im: (planes == 2).then_some(&*sums[1]) };
            into.put(Region { outer: [0, group], rows: 0..range.len(), cols: 0..n }, blocks, &from);
            for t in range.clone().filter(|&t| sequences.is_padding(row, t)) {
                let region = Region { outer: [0, group], rows: t - start..t - start + 1, cols: 0..n };
                Sink::<f64>::zero(&mut into, region);
            }
        }
    })
}

/// The gradient of a constant and that of a varying coefficient, of which at most one is there.
pub(super) type Either<'a, I, W> = (Option<ViewMut<'a, W, 2>>, Option<ViewMut<'a, <W as Weight>::Stored<I>, 4>>);

/// The constant or the varying gradient.
pub(super) fn either<'a, I: Input, W: Weight<Real = I::Accum>>(grad: Option<CoefficientGrad<'a, I, W>>) -> Either<'a, I, W> {
    match grad {
        None => (None, None),
        Some(CoefficientGrad::Constant(v)) => (Some(v), None),
        Some(CoefficientGrad::Varying(v)) => (None, Some(v)),
    }
}

/// The rows of one block of partial sums.
pub(super) fn rows_of(sums: &mut [f64], block: usize, stride: usize, lanes: usize, rows: Range<usize>) -> &mut [f64] {
    &mut sums[block * stride + rows.start * lanes..block * stride + rows.end * lanes]
}
