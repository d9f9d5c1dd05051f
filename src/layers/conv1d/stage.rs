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

/// The filter of a block of channels: one row of channels for each tap.
pub(super) struct Filter<'s, A> {
    pub(super) taps: &'s mut [A],
    bias: &'s mut [A],
    pub(super) lanes: usize,
    pub(super) width: usize,
    pub(super) silu: bool,
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
        ws: &mut Workspace<'s>,
    ) -> Result<Self, Error> {
        let (lanes, width) = (channels.len(), weight.dims()[1]);
        let taps = ws.slice::<A>(width * lanes)?;
        for (k, row) in taps.chunks_exact_mut(lanes).enumerate() {
            row.iter_mut().zip(channels.clone()).for_each(|(to, d)| *to = weight.get([d, k]));
        }
        let row = ws.slice::<A>(lanes)?;
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

    /// The sums with SiLU where it is on.
    #[inline]
    pub(super) fn outputs(&self, rows: &[A], outputs: &mut [A]) {
        self.sums(rows, outputs);
        if self.silu {
            outputs.iter_mut().for_each(|v| *v = silu(*v));
        }
    }
}

/// Rows of channels: the W − 1 that came before, then a tile of positions.
pub(super) struct Stage<'s, A> {
    pub(super) rows: &'s mut [A],
    lanes: usize,
    before: usize,
}

impl<'s, A: Real> Stage<'s, A> {
    /// Bytes that [`Stage::new`] takes.
    pub(super) fn bytes(width: usize, lanes: usize) -> usize {
        bytes_of::<A>((width - 1).saturating_add(STEPS).saturating_mul(lanes))
    }

    /// A stage with no inputs before the first: zeros.
    pub(super) fn new(width: usize, lanes: usize, ws: &mut Workspace<'s>) -> Result<Self, Error> {
        let rows = ws.slice::<A>((width - 1 + STEPS) * lanes)?;
        rows.fill(A::ZERO);
        Ok(Stage { rows, lanes, before: width - 1 })
    }

    /// The W − 1 rows that came before.
    pub(super) fn window(&mut self) -> &mut [A] {
        &mut self.rows[..self.before * self.lanes]
    }

    /// Takes the window of state `state`.
    pub(super) fn load_window<I: Input<Accum = A>>(&mut self, from: &View<'_, I, 3>, state: usize) {
        let lanes = self.lanes;
        self.window().chunks_exact_mut(lanes).enumerate().for_each(|(k, row)| load_row(from, [state, k, 0], row));
    }

    /// Takes the tile's positions, after a window of zeros where a later sequence of the span begins.
    pub(super) fn load_tile<I: Input<Accum = A>>(&mut self, x: &View<'_, I, 3>, batch: usize, tile: Tile, positions: &[usize]) {
        if tile.fresh && !tile.first {
            self.window().fill(A::ZERO);
        }
        let rows = self.rows[self.before * self.lanes..].chunks_exact_mut(self.lanes);
        rows.zip(&positions[..tile.count]).for_each(|(row, &t)| load_row(x, [batch, t, 0], row));
    }

    /// Drops the `count` oldest rows, so that the last W − 1 are the window of the next tile.
    pub(super) fn advance(&mut self, count: usize) {
        let lanes = self.lanes;
        self.rows.copy_within(count * lanes..(count + self.before) * lanes, 0);
    }
}
