//! The backward convolution for host memory.
//!
//! One part of the work is a block of channels over the whole batch, so that the gradients of the filter are summed by one
//! worker in the order of the batch. With g_t = ∂out_t · act'(sum_t):
//!
//! ```text
//! ∂x_s = Σ_k w_k g_{s+(W−1)−k}     ∂w_k = Σ_t g_t x_{t−(W−1)+k}     ∂bias = Σ_t g_t
//! ```

use core::ops::Range;

use super::host::channels;
use super::stage::{ConvKernel, Filter, Plain, RowGrads, STEPS, Stage, TileGrads};
use super::{ConvBwd, ConvGrads, ConvInputs, ConvProblem};
use crate::buffer::Workspace;
use crate::element::{Input, Real, Weight};
use crate::error::Error;
use crate::layers::rows::{clear_row, load_row, store_row};
use crate::ops::Sum;
use crate::par::Par;
use crate::view::{Cut, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Channels of one part: fewer than forward, since the batch is not cut.
const LANES: usize = 64;

/// Where the gradient of a staged row goes: a position, or, from here down, row 0, 1, … of the initial window.
const WINDOW: usize = usize::MAX / 2;
/// It goes nowhere: the zeros before a later sequence of a row.
const NOWHERE: usize = usize::MAX;

fn scratch<I: Input>(width: usize) -> usize {
    let taps = width.saturating_add(1).saturating_mul(LANES);
    Filter::<I::Accum>::bytes(width, LANES)
        .saturating_add(Stage::<I::Accum>::bytes(width, LANES).saturating_mul(2))
        .saturating_add(Stage::<I::Accum>::bytes(1, LANES))
        .saturating_add(bytes_of::<usize>(width.saturating_add(STEPS)))
        .saturating_add(bytes_of::<f64>(taps))
        .saturating_add(bytes_of::<Sum>(taps))
        .saturating_add(bytes_of::<I::Accum>(LANES) + bytes_of::<usize>(STEPS) + ALIGN)
        .saturating_add(3 * bytes_of::<I::Accum>((width - 1).saturating_mul(LANES)))
        .saturating_add(bytes_of::<f64>(taps))
}

/// Bytes of workspace that [`causal_conv1d_bwd`] takes.
pub fn causal_conv1d_bwd_workspace<I: Input>(problem: &ConvProblem, par: Par) -> usize {
    par.scratch_bytes(scratch::<I>(problem.width))
}

/// The backward convolution; one phase.
pub fn causal_conv1d_bwd<I: Input>(args: ConvBwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    bwd_with(Plain, args, par, ws)
}

/// As [`causal_conv1d_bwd`], with an engine's kernel, whose lanes divide [`LANES`]; the workspace is the same.
pub(crate) fn bwd_with<I: Input>(kernel: impl ConvKernel, args: ConvBwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let problem = args.check()?;
    par.check(1)?;
    let ConvBwd { inputs, grad_out, grad_final_window, grads } = args;
    let lanes = |axis| Cut::Every(axis, LANES);
    let split = (
        grads.x.map(|v| v.tiles(lanes(2), Cut::Whole)),
        grads.weight.map(|v| v.tiles(lanes(0), Cut::Whole)),
        grads.bias.map(|v| v.tiles(lanes(0), Cut::Whole)),
        grads.initial_window.map(|v| v.tiles(lanes(2), Cut::Whole)),
    );
    type Pieces<'p, I> = (
        Option<ViewMut<'p, I, 3>>,
        Option<ViewMut<'p, <I as Input>::Accum, 2>>,
        Option<ViewMut<'p, <I as Input>::Accum, 1>>,
        Option<ViewMut<'p, I, 3>>,
    );
    let work = |i: usize, (x, weight, bias, initial_window): Pieces<'_, I>, ws: &mut Workspace<'_>| {
        let of = channels(i, LANES, problem.dim);
        let block = Block { inputs, problem, grad_out, grad_final_window, grads: ConvGrads { x, weight, bias, initial_window } };
        block.of_channels(of).backward(kernel, ws).expect("scratch memory as `scratch` says");
    };
    par.run(0, problem.dim.div_ceil(LANES), split, &mut ws.reborrow(), scratch::<I>(problem.width), work)
}

/// The operands of a block of channels.
struct Block<'a, I: Input> {
    inputs: ConvInputs<'a, I>,
    problem: ConvProblem,
    grad_out: View<'a, I, 3>,
    grad_final_window: Option<View<'a, I, 3>>,
    grads: ConvGrads<'a, I>,
}

/// What a worker adds up along one block of channels.
struct Sums<'s, A> {
    filter: Filter<'s, A>,
    stage: Stage<'s, A>,
    /// ∂ of the staged rows, row by row.
    grads: Stage<'s, A>,
    /// ∂out of a tile.
    grad_out: Stage<'s, A>,
    /// Where the rows of `grads` go.
    places: &'s mut [usize],
    /// ∂w_k and then ∂bias of one tile and group, a row of channels each; and of all tiles, group by group.
    tile: &'s mut [f64],
    total: &'s mut [Sum],
    /// One row of all channels.
    line: &'s mut [A],
    /// Where rows are used in place: see [`RowGrads`].
    window: &'s mut [A],
    open: &'s mut [A],
    head: &'s mut [A],
    tiles: &'s mut [f64],
}

impl<'a, I: Input> Block<'a, I> {
    /// The inputs cut to these channels; `grads` are theirs already.
    fn of_channels(mut self, of: Range<usize>) -> Self {
        self.inputs.x = self.inputs.x.slice(2, of.clone());
        self.inputs.weight = self.inputs.weight.slice(0, of.clone());
        self.inputs.bias = self.inputs.bias.map(|v| v.slice(0, of.clone()));
        self.inputs.initial_window = self.inputs.initial_window.map(|v| v.slice(2, of.clone()));
        self.grad_out = self.grad_out.slice(2, of.clone());
        self.grad_final_window = self.grad_final_window.map(|v| v.slice(2, of.clone()));
        self.problem.dim = of.len();
        self
    }

    fn backward(mut self, kernel: impl ConvKernel, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let (inputs, count, width) = (self.inputs, self.problem.dim, self.problem.width);
        let lanes = kernel.lanes::<I::Accum>(count);
        let groups = count.div_ceil(lanes);
        let mut ws = ws.reborrow();
        let mut s = Sums {
            filter: Filter::new(&inputs.weight, inputs.bias.as_ref(), inputs.silu, 0..count, lanes, &mut ws)?,
            stage: Stage::new(width, count, lanes, &mut ws)?,
            grads: Stage::new(width, count, lanes, &mut ws)?,
            grad_out: Stage::new(1, count, lanes, &mut ws)?,
            places: ws.slice(width - 1 + STEPS)?,
            tile: ws.slice((width + 1) * lanes)?,
            total: ws.slice((width + 1) * groups * lanes)?,
            line: ws.slice(count)?,
            window: ws.slice((width - 1) * groups * lanes)?,
            open: ws.slice((width - 1) * groups * lanes)?,
            head: ws.slice((width - 1) * groups * lanes)?,
            tiles: ws.slice((width + 1) * groups * lanes)?,
        };
        s.total.fill(Sum::default());
        let positions = ws.slice::<usize>(STEPS)?;
        let in_place = kernel.has_in_place(width) && count.is_multiple_of(lanes) && !inputs.sequences.may_pad();
        for state in 0..self.problem.states {
            if !(in_place && self.rows(kernel, state, &mut s)) {
                self.span(kernel, state, &mut s, positions);
            }
        }
        for (i, row) in s.total.chunks_exact(lanes).enumerate() {
            let (first, k) = (i / (width + 1) * lanes, i % (width + 1));
            for (d, sum) in (first..count).zip(row) {
                let value = I::Accum::from_f64(sum.value());
                match (k == width, &mut self.grads.weight, &mut self.grads.bias) {
                    (false, Some(weight), _) => weight.set([d, k], value),
                    (true, _, Some(bias)) => bias.set([d], value),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Walks one span. A row of `grads` is complete once the W − 1 positions after it are through.
    fn span(&mut self, kernel: impl ConvKernel, state: usize, s: &mut Sums<'_, I::Accum>, positions: &mut [usize]) {
        let (inputs, before) = (self.inputs, self.problem.width - 1);
        let span = inputs.sequences.span(state, self.problem.seqlen);
        if let (Some(x), true) = (&mut self.grads.x, inputs.sequences.may_pad()) {
            let padding = span.range.clone().filter(|&t| inputs.sequences.is_padding(span.batch, t));
            padding.for_each(|t| clear_row(x, [span.batch, t, 0]));
        }
        match &inputs.initial_window {
            Some(window) => s.stage.load_window(window, state),
            None => s.stage.rows.fill(I::Accum::ZERO),
        }
        s.grads.rows.fill(I::Accum::ZERO);
        s.places[..before].iter_mut().enumerate().for_each(|(k, place)| *place = WINDOW + k);
        let mut walk = inputs.sequences.walk(&span);
        while let Some(tile) = walk.next(positions) {
            if tile.fresh && !tile.first {
                self.flush(before, span.batch, state, s);
                s.grads.rows.fill(I::Accum::ZERO);
                s.places[..before].fill(NOWHERE);
            }
            s.stage.load_tile(&inputs.x, span.batch, tile, positions);
            s.places[before..before + tile.count].copy_from_slice(&positions[..tile.count]);
            s.add_tile(kernel, &self.grad_out, span.batch, &positions[..tile.count]);
            self.flush(tile.count, span.batch, state, s);
            s.advance(tile.count);
        }
        if let Some(last) = &self.grad_final_window {
            for k in 0..before {
                load_row(last, [state, k, 0], s.line);
                s.grads.add_row(k, s.line);
            }
        }
        self.flush(before, span.batch, state, s);
    }

    /// As [`Block::span`], on rows where they lie; false where they are not of the arithmetic type or not contiguous.
    fn rows(&mut self, kernel: impl ConvKernel, state: usize, s: &mut Sums<'_, I::Accum>) -> bool {
        let (before, count, span) = (self.problem.width - 1, self.problem.dim, self.inputs.sequences.span(state, self.problem.seqlen));
        let (lanes, seqlen, b) = (s.filter.lanes, span.range.len(), span.batch);
        let lines = |v: View<'a, I, 3>| v.slice(0, b..b + 1).slice(1, span.range.clone()).same::<I::Accum>()?.lines();
        let (Some(x), Some(grad_out)) = (lines(self.inputs.x), lines(self.grad_out)) else { return false };
        let wanted = self.grads.x.is_some();
        let to = self.grads.x.as_mut().map(|v| v.reborrow().slice(0, b..b + 1).slice(1, span.range.clone()));
        let mut grad_x = to.and_then(|v| v.same::<I::Accum>()?.into_rows());
        if wanted && grad_x.is_none() {
            return false;
        }
        s.open.fill(I::Accum::ZERO);
        s.window.fill(I::Accum::ZERO);
        if let Some(window) = &self.inputs.initial_window {
            for k in 0..before {
                load_row(window, [state, k, 0], s.line);
                scatter(s.line, s.window, [k, before, lanes]);
            }
        }
        for first in (0..seqlen).step_by(STEPS) {
            let steps = STEPS.min(seqlen - first);
            let (window, open, head, filter) = (&mut *s.window, &mut *s.open, &mut *s.head, &mut *s.tiles);
            let rows = RowGrads { x: &x, grad_out: &grad_out, grad_x: grad_x.as_mut(), seqlen, first, steps, window, open, head, filter };
            kernel.backward_in_place(&s.filter, rows);
            s.total.iter_mut().zip(s.tiles.iter()).for_each(|(total, tile)| total.add(*tile));
        }
        // Rows before the first position, then the last ones.
        let initial = self.grads.initial_window.as_mut();
        let mut put = |row: usize, from: &[I::Accum], initial: Option<&mut ViewMut<'a, I, 3>>| match (row.checked_sub(before), initial) {
            (Some(t), _) => grad_x.iter_mut().for_each(|rows| rows.several::<1>(t)[0].copy_from_slice(from)),
            (None, Some(window)) => store_row(window, [state, row, 0], from),
            (None, None) => {}
        };
        let mut initial = initial;
        for (row, from) in s.head.chunks_exact(count).enumerate().take(seqlen) {
            put(row, from, initial.as_deref_mut());
        }
        for k in 0..before {
            gather(s.open, s.line, [k, before, lanes]);
            if let Some(last) = &self.grad_final_window {
                let mut index = [state, k, 0];
                for (d, sum) in s.line.iter_mut().enumerate() {
                    index[2] = d;
                    *sum += last.get(index).load();
                }
            }
            put(seqlen + k, s.line, initial.as_deref_mut());
        }
        true
    }

    /// Writes the first `count` rows of `grads` where they belong.
    fn flush(&mut self, count: usize, batch: usize, state: usize, s: &mut Sums<'_, I::Accum>) {
        for (k, &place) in s.places[..count].iter().enumerate() {
            let row = s.grads.row(k);
            match (&mut self.grads.x, &mut self.grads.initial_window) {
                (Some(x), _) if place < WINDOW => store_row(x, [batch, place, 0], row),
                (_, Some(window)) if place >= WINDOW && place != NOWHERE => store_row(window, [state, place - WINDOW, 0], row),
                _ => {}
            }
        }
    }
}

/// A row of channels to row `k` of `rows` of each group.
fn scatter<A: Copy>(from: &[A], to: &mut [A], [k, rows, lanes]: [usize; 3]) {
    for (from, group) in from.chunks_exact(lanes).zip(to.chunks_exact_mut(rows * lanes)) {
        group[k * lanes..][..lanes].copy_from_slice(from);
    }
}

/// The way back.
fn gather<A: Copy>(from: &[A], to: &mut [A], [k, rows, lanes]: [usize; 3]) {
    for (group, to) in from.chunks_exact(rows * lanes).zip(to.chunks_exact_mut(lanes)) {
        to.copy_from_slice(&group[k * lanes..][..lanes]);
    }
}

impl<A: Real> Sums<'_, A> {
    /// Adds the gradients of one tile of positions.
    fn add_tile<I: Input<Accum = A>>(&mut self, kernel: impl ConvKernel, grad_out: &View<'_, I, 3>, batch: usize, positions: &[usize]) {
        let (lanes, width, count) = (self.filter.lanes, self.filter.width, positions.len());
        positions.iter().enumerate().for_each(|(i, &t)| self.grad_out.load(i, grad_out, [batch, t, 0]));
        for (g, total) in self.total.chunks_exact_mut((width + 1) * lanes).enumerate() {
            let x = &mut self.grads.group_mut(g)[..(width - 1 + count) * lanes];
            let grad_out = &mut self.grad_out.group_mut(g)[..count * lanes];
            kernel.backward(&self.filter.group(g), self.stage.group(g), grad_out, TileGrads { x, filter: self.tile });
            total.iter_mut().zip(self.tile.iter()).for_each(|(total, tile)| total.add(*tile));
        }
    }

    /// Makes the last W − 1 rows the first, and clears the rows of gradients behind them.
    fn advance(&mut self, count: usize) {
        let (before, lanes) = (self.filter.width - 1, self.filter.lanes);
        self.stage.advance(count);
        self.grads.advance(count);
        self.grads.rows.chunks_exact_mut((before + STEPS) * lanes).for_each(|group| group[before * lanes..].fill(A::ZERO));
        self.places.copy_within(count..count + before, 0);
    }
}
