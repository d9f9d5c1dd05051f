//! What a block of channels is worked on with: its filter, and a stage of rows in the arithmetic type.

use core::ops::Range;

use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::Error;
use crate::layers::rows::load_row;
use crate::ops::silu;
use crate::sequences::Tile;
use crate::view::View;
use crate::workspace::bytes_of;

/// Positions that are staged at a time. Gradients of the weights are summed by tiles of so many.
pub(super) const STEPS: usize = 32;

/// The arithmetic of a tile of positions and a block of channels. Steps and forward calls that are to agree in bits use one kernel.
pub(crate) trait ConvKernel: Copy + Sync {
    /// Channels of a block of numbers of type `A`.
    fn block<A: Real>(self) -> usize;
    /// Numbers in a row that holds so many channels; those behind the channels are 0, and what comes of them is not used.
    fn lanes<A: Real>(self, channels: usize) -> usize;
    /// The outputs of as many positions as `outputs` has rows. `rows` begins with the W − 1 rows before the first.
    fn forward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]);
}

/// Plain loops.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl ConvKernel for Plain {
    fn block<A: Real>(self) -> usize {
        64
    }

    fn lanes<A: Real>(self, channels: usize) -> usize {
        channels
    }

    fn forward<A: Real>(self, filter: &Filter<'_, A>, rows: &[A], outputs: &mut [A]) {
        for (i, out) in outputs.chunks_exact_mut(filter.lanes).enumerate() {
            filter.sums(&rows[i * filter.lanes..], out);
            if filter.silu {
                out.iter_mut().for_each(|v| *v = silu(*v));
            }
        }
    }
}

/// The filter of a block of channels: one row of channels for each tap.
pub(crate) struct Filter<'s, A> {
    /// (W, lanes).
    pub(crate) taps: &'s [A],
    /// A row; zeros where there is no bias.
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
        let width = weight.dims()[1];
        let taps = ws.slice::<A>(width * lanes)?;
        taps.fill(A::ZERO);
        for (k, row) in taps.chunks_exact_mut(lanes).enumerate() {
            row.iter_mut().zip(channels.clone()).for_each(|(to, d)| *to = weight.get([d, k]));
        }
        let row = ws.slice::<A>(lanes)?;
        row.fill(A::ZERO);
        row.iter_mut().zip(channels).for_each(|(to, d)| *to = bias.map_or(A::ZERO, |v| v.get([d])));
        Ok(Filter { taps, bias: row, lanes, width, silu })
    }

    /// bias + Σ_k w_k x_k for one position; `rows` begins with the oldest of the W rows it reads.
    #[inline]
    pub(super) fn sums(&self, rows: &[A], sums: &mut [A]) {
        sums.copy_from_slice(self.bias);
        for (tap, row) in self.taps.chunks_exact(self.lanes).zip(rows.chunks_exact(self.lanes)) {
            for ((sum, w), x) in sums.iter_mut().zip(tap).zip(row) {
                *sum = *sum + *w * *x;
            }
        }
    }
}

/// Rows of channels: the W − 1 that came before, then a tile of positions.
pub(super) struct Stage<'s, A> {
    pub(super) rows: &'s mut [A],
    lanes: usize,
    before: usize,
    channels: usize,
}

impl<'s, A: Real> Stage<'s, A> {
    /// Bytes that [`Stage::new`] takes.
    pub(super) fn bytes(width: usize, lanes: usize) -> usize {
        bytes_of::<A>((width - 1).saturating_add(STEPS).saturating_mul(lanes))
    }

    /// A stage with no inputs before the first: zeros.
    pub(super) fn new(width: usize, channels: usize, lanes: usize, ws: &mut Workspace<'s>) -> Result<Self, Error> {
        let rows = ws.slice::<A>((width - 1 + STEPS) * lanes)?;
        rows.fill(A::ZERO);
        Ok(Stage { rows, lanes, before: width - 1, channels })
    }

    /// The W − 1 rows that came before.
    pub(super) fn window(&mut self) -> &mut [A] {
        &mut self.rows[..self.before * self.lanes]
    }

    /// Takes the window of state `state`.
    pub(super) fn load_window<I: Input<Accum = A>>(&mut self, from: &View<'_, I, 3>, state: usize) {
        let (lanes, channels) = (self.lanes, self.channels);
        let rows = self.window().chunks_exact_mut(lanes).enumerate();
        rows.for_each(|(k, row)| load_row(from, [state, k, 0], &mut row[..channels]));
    }

    /// Takes the tile's positions, after a window of zeros where a later sequence of the span begins.
    pub(super) fn load_tile<I: Input<Accum = A>>(&mut self, x: &View<'_, I, 3>, batch: usize, tile: Tile, positions: &[usize]) {
        if tile.fresh && !tile.first {
            self.window().fill(A::ZERO);
        }
        let rows = self.rows[self.before * self.lanes..].chunks_exact_mut(self.lanes);
        rows.zip(&positions[..tile.count]).for_each(|(row, &t)| load_row(x, [batch, t, 0], &mut row[..self.channels]));
    }

    /// Drops the `count` oldest rows, so that the last W − 1 are the window of the next tile.
    pub(super) fn advance(&mut self, count: usize) {
        let lanes = self.lanes;
        self.rows.copy_within(count * lanes..(count + self.before) * lanes, 0);
    }
}
