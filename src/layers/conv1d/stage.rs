//! What a block of channels is worked on with: its filter, and a stage of rows in the arithmetic type.

use core::ops::Range;

use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::Error;
use crate::layers::rows::{copy_lanes, load_row};
use crate::ops::{silu, silu_grad};
use crate::sequences::Tile;
use crate::view::{Rows, RowsMut, View};
use crate::workspace::bytes_of;

/// Positions that are staged at a time. Gradients of the weights are summed by tiles of so many.
pub(super) const STEPS: usize = 32;

/// The arithmetic of a tile of positions and a block of channels. Steps and forward calls that are to agree in bits use one kernel.
pub(crate) trait ConvKernel: Copy + Sync {
    /// Channels of a block of numbers of type `A`.
    fn block<A: Real>(self) -> usize;
    /// Channels in a row of a block of so many channels: all of them, or the lanes of a vector. Then the block is several
    /// groups of rows, the last one filled up with zeros, and what comes of those is not used.
    fn lanes<A: Real>(self, channels: usize) -> usize;
    /// The outputs of one group for as many positions as `outputs` has rows. `rows` begins with the W − 1 rows before the first.
    fn forward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]);
    /// Whether there is an [`ConvKernel::in_place`] for so many taps.
    fn has_in_place(self, _width: usize) -> bool {
        false
    }
    /// All outputs of whole groups of channels with the bits of `forward`: the lines of `x` are W − 1 rows before the first output and then
    /// its own and the next ones'; outputs are the lines of `out` from `first` on.
    fn in_place<A: Real>(self, _filter: &Filter<'_, A>, _x: &Rows<'_, A>, _out: &mut RowsMut<'_, A>, _first: usize, _steps: usize) {
        unreachable!("a kernel without it")
    }
    /// The gradients of whole groups of channels with the bits of `backward`.
    fn backward_in_place<A: Real>(self, _filter: &Filter<'_, A>, _rows: RowGrads<'_, '_, A>) {
        unreachable!("a kernel without it")
    }
    /// The gradients of one group for as many positions as `grad_out` has rows, from `rows` as in `forward`; `grad_out` is overwritten.
    fn backward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], grad_out: &mut [A], grads: TileGrads<'_, A>);
}

/// Where the gradients of one tile of positions and group of channels go.
pub(crate) struct TileGrads<'t, A> {
    /// ∂x of the W − 1 rows before and the tile's, added to.
    pub(crate) x: &'t mut [A],
    /// ∂w_k and then ∂bias, a row of channels each, overwritten.
    pub(crate) filter: &'t mut [f64],
}

/// Some positions of whole rows, backward: see [`ConvKernel::backward_in_place`].
pub(crate) struct RowGrads<'t, 'v, A> {
    /// Inputs, a row a position.
    pub(crate) x: &'t Rows<'v, A>,
    /// ∂out.
    pub(crate) grad_out: &'t Rows<'v, A>,
    /// ∂x, written W − 1 rows late.
    pub(crate) grad_x: Option<&'t mut RowsMut<'v, A>>,
    /// L.
    pub(crate) seqlen: usize,
    /// The first position.
    pub(crate) first: usize,
    /// How many.
    pub(crate) steps: usize,
    /// The W − 1 inputs before, and what is known of their ∂; (groups, W − 1, lanes) each. On return those of the last positions.
    pub(crate) window: &'t mut [A],
    pub(crate) open: &'t mut [A],
    /// ∂ of the rows before position 0, (W − 1, channels), as far as it is complete.
    pub(crate) head: &'t mut [A],
    /// (groups, W + 1, lanes): ∂w_k and then ∂bias of these positions.
    pub(crate) filter: &'t mut [f64],
}

/// Plain loops in f64, each output rounded once: what follows in a block magnifies the rounding of each tap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain;

impl ConvKernel for Plain {
    fn block<A: Real>(self) -> usize {
        64
    }

    fn lanes<A: Real>(self, channels: usize) -> usize {
        channels
    }

    fn forward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]) {
        let lanes = filter.lanes;
        for (i, out) in outputs.chunks_exact_mut(lanes).enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                let tap = |k: usize| filter.taps[k * lanes + lane].to_f64() * rows[(i + k) * lanes + lane].to_f64();
                let sum = (0..filter.width).fold(filter.bias[lane].to_f64(), |sum, k| sum + tap(k));
                *out = A::from_f64(if filter.silu { silu(sum) } else { sum });
            }
        }
    }

    fn backward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], grad_out: &mut [A], grads: TileGrads<'_, A>) {
        let (lanes, width) = (filter.lanes, filter.width);
        grads.filter.fill(0.0);
        for (i, g) in grad_out.chunks_exact_mut(lanes).enumerate() {
            let rows = &rows[i * lanes..(i + width) * lanes];
            if filter.silu {
                for (lane, g) in g.iter_mut().enumerate() {
                    let sum = (0..width).fold(filter.bias[lane], |sum, k| sum + filter.taps[k * lanes + lane] * rows[k * lanes + lane]);
                    *g = *g * silu_grad(sum);
                }
            }
            let to_x = grads.x[i * lanes..(i + width) * lanes].chunks_exact_mut(lanes);
            for (to_x, tap) in to_x.zip(filter.taps.chunks_exact(lanes)) {
                to_x.iter_mut().zip(tap).zip(g.iter()).for_each(|((to, w), g)| *to += *w * *g);
            }
            let (taps, bias) = grads.filter.split_at_mut(width * lanes);
            for (sums, row) in taps.chunks_exact_mut(lanes).zip(rows.chunks_exact(lanes)) {
                sums.iter_mut().zip(row).zip(g.iter()).for_each(|((to, x), g)| *to += x.to_f64() * g.to_f64());
            }
            bias.iter_mut().zip(g.iter()).for_each(|(to, g)| *to += g.to_f64());
        }
    }
}

/// The filter of a block of channels, group by group: one row of channels for each tap.
pub(crate) struct Filter<'s, A> {
    /// (groups, W, lanes).
    pub(crate) taps: &'s [A],
    /// (groups, lanes); zeros where there is no bias.
    pub(crate) bias: &'s [A],
    pub(crate) lanes: usize,
    pub(crate) width: usize,
    pub(crate) silu: bool,
}

impl<'s, A: Real> Filter<'s, A> {
    /// Bytes that [`Filter::new`] takes.
    pub(super) fn bytes(width: usize, lanes: usize) -> usize {
        bytes_of::<A>(width.saturating_mul(lanes)).saturating_add(bytes_of::<A>(lanes))
    }

    /// Copies weight (D, W) and bias (D) for some channels.
    pub(super) fn new(
        weight: &View<'_, A, 2>,
        bias: Option<&View<'_, A, 1>>,
        silu: bool,
        channels: Range<usize>,
        lanes: usize,
        ws: &mut Workspace<'s>,
    ) -> Result<Self, Error> {
        let (width, groups) = (weight.dims()[1], channels.len().div_ceil(lanes));
        let (taps, row) = (ws.slice::<A>(groups * width * lanes)?, ws.slice::<A>(groups * lanes)?);
        taps.fill(A::ZERO);
        row.fill(A::ZERO);
        for (i, d) in channels.enumerate() {
            row[i] = bias.map_or(A::ZERO, |v| v.get([d]));
            (0..width).for_each(|k| taps[(i / lanes * width + k) * lanes + i % lanes] = weight.get([d, k]));
        }
        Ok(Filter { taps, bias: row, lanes, width, silu })
    }

    /// The filter of one group of channels.
    pub(super) fn group(&self, group: usize) -> Filter<'_, A> {
        let (taps, bias) = (&self.taps[group * self.width * self.lanes..], &self.bias[group * self.lanes..]);
        Filter { taps: &taps[..self.width * self.lanes], bias: &bias[..self.lanes], ..*self }
    }
}

/// Rows of channels, group by group: the W − 1 that came before, then a tile of positions.
pub(super) struct Stage<'s, A> {
    pub(super) rows: &'s mut [A],
    /// One row of all channels.
    line: &'s mut [A],
    lanes: usize,
    before: usize,
    channels: usize,
}

impl<'s, A: Real> Stage<'s, A> {
    /// Bytes that [`Stage::new`] takes, with `channels` a multiple of the lanes.
    pub(super) fn bytes(width: usize, channels: usize) -> usize {
        bytes_of::<A>((width - 1).saturating_add(STEPS).saturating_mul(channels)).saturating_add(bytes_of::<A>(channels))
    }

    /// A stage with no inputs before the first: zeros.
    pub(super) fn new(width: usize, channels: usize, lanes: usize, ws: &mut Workspace<'s>) -> Result<Self, Error> {
        let padded = channels.next_multiple_of(lanes);
        let (rows, line) = (ws.slice::<A>((width - 1 + STEPS) * padded)?, ws.slice::<A>(padded)?);
        rows.fill(A::ZERO);
        line.fill(A::ZERO);
        Ok(Stage { rows, line, lanes, before: width - 1, channels })
    }

    /// The rows of one group.
    pub(super) fn group(&self, group: usize) -> &[A] {
        let size = (self.before + STEPS) * self.lanes;
        &self.rows[group * size..][..size]
    }

    /// The rows of one group, to write to.
    pub(super) fn group_mut(&mut self, group: usize) -> &mut [A] {
        let size = (self.before + STEPS) * self.lanes;
        &mut self.rows[group * size..][..size]
    }

    /// Adds to row `row` of all channels.
    pub(super) fn add_row(&mut self, row: usize, from: &[A]) {
        for (group, part) in from.chunks(self.lanes).enumerate() {
            let at = row * self.lanes;
            self.group_mut(group)[at..at + part.len()].iter_mut().zip(part).for_each(|(to, x)| *to += *x);
        }
    }

    /// Takes one row from a tensor.
    pub(super) fn load<I: Input<Accum = A>, const R: usize>(&mut self, row: usize, from: &View<'_, I, R>, at: [usize; R]) {
        let (lanes, size) = (self.lanes, (self.before + STEPS) * self.lanes);
        if self.channels == lanes {
            return load_row(from, at, &mut self.rows[row * lanes..][..lanes]);
        }
        load_row(from, at, &mut self.line[..self.channels]);
        for (group, part) in self.rows.chunks_exact_mut(size).zip(self.line.chunks_exact(lanes)) {
            copy_lanes(part, &mut group[row * lanes..][..lanes]);
        }
    }

    /// Row `row` of all channels.
    pub(super) fn row(&mut self, row: usize) -> &[A] {
        let (lanes, size) = (self.lanes, (self.before + STEPS) * self.lanes);
        for (group, part) in self.rows.chunks_exact(size).zip(self.line.chunks_exact_mut(lanes)) {
            copy_lanes(&group[row * lanes..][..lanes], part);
        }
        &self.line[..self.channels]
    }

    /// Takes the window of state `state`.
    pub(super) fn load_window<I: Input<Accum = A>>(&mut self, from: &View<'_, I, 3>, state: usize) {
        (0..self.before).for_each(|k| self.load(k, from, [state, k, 0]));
    }

    /// Takes the tile's positions, after a window of zeros where a later sequence of the span begins.
    pub(super) fn load_tile<I: Input<Accum = A>>(&mut self, x: &View<'_, I, 3>, batch: usize, tile: Tile, positions: &[usize]) {
        if tile.fresh && !tile.first {
            self.rows.fill(A::ZERO);
        }
        let before = self.before;
        positions[..tile.count].iter().enumerate().for_each(|(i, &t)| self.load(before + i, x, [batch, t, 0]));
    }

    /// Takes row `batch` of (B, D) as the only position.
    pub(super) fn load_new<I: Input<Accum = A>>(&mut self, x: &View<'_, I, 2>, batch: usize) {
        self.load(self.before, x, [batch, 0]);
    }

    /// Drops the `count` oldest rows, so that the last W − 1 are the window of the next tile.
    pub(super) fn advance(&mut self, count: usize) {
        let (lanes, before) = (self.lanes, self.before);
        let groups = self.rows.chunks_exact_mut((before + STEPS) * lanes);
        groups.for_each(|group| group.copy_within(count * lanes..(count + before) * lanes, 0));
    }
}
