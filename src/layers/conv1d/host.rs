//! The convolution for host memory: forward and step.
//!
//! A span of positions and a block of channels are one part of the work. Rows of the block are staged in the arithmetic type,
//! so that every layout and storage type meets the same arithmetic in the same order.

use core::ops::Range;

use super::stage::{Filter, STEPS, Stage};
use super::{ConvFwd, ConvInputs, ConvProblem, ConvStep};
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::rows::{clear_row, load_row, store_row};
use crate::par::Par;
use crate::sequences::Sequences;
use crate::view::{Cut, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Channels of one part.
const LANES: usize = 64;

/// The channels of block `block`.
pub(super) fn channels(block: usize, lanes: usize, dim: usize) -> Range<usize> {
    block * lanes..(block * lanes + lanes).min(dim)
}

fn fwd_scratch<I: Input>(width: usize) -> usize {
    Filter::<I::Accum>::bytes(width, LANES)
        .saturating_add(Stage::<I::Accum>::bytes(width, LANES))
        .saturating_add(bytes_of::<I::Accum>(LANES) + bytes_of::<usize>(STEPS) + ALIGN)
}

/// Bytes of workspace that [`causal_conv1d_fwd`] takes.
pub fn causal_conv1d_fwd_workspace<I: Input>(problem: &ConvProblem, par: Par) -> usize {
    par.scratch_bytes(fwd_scratch::<I>(problem.width))
}

/// The forward convolution; one phase.
pub fn causal_conv1d_fwd<I: Input>(args: ConvFwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let problem = args.check()?;
    par.check(1)?;
    let ConvFwd { inputs, out, final_window } = args;
    let spans = match inputs.sequences {
        Sequences::CuSeqlens(offsets) => Cut::Packed(1, offsets),
        _ => Cut::Every(0, 1),
    };
    let lanes = Cut::Every(2, LANES);
    let split = (out.tiles(spans, lanes), final_window.map(|v| v.tiles(Cut::Every(0, 1), lanes)));
    let blocks = problem.dim.div_ceil(LANES);
    let work = |i: usize, (out, last): (ViewMut<'_, I, 3>, Option<ViewMut<'_, I, 3>>), ws: &mut Workspace<'_>| {
        forward(&inputs, problem, i / blocks, channels(i % blocks, LANES, problem.dim), out, last, ws)
            .expect("scratch memory as fwd_scratch says");
    };
    par.run(0, problem.states * blocks, split, &mut ws.reborrow(), fwd_scratch::<I>(problem.width), work)
}

/// One span and block of channels. `out` has the span's positions, `last` one window.
fn forward<I: Input>(
    inputs: &ConvInputs<'_, I>,
    problem: ConvProblem,
    state: usize,
    channels: Range<usize>,
    mut out: ViewMut<'_, I, 3>,
    last: Option<ViewMut<'_, I, 3>>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let mut ws = ws.reborrow();
    let lanes = channels.len();
    let filter = Filter::new(&inputs.weight, inputs.bias.as_ref(), inputs.silu, channels.clone(), &mut ws)?;
    let mut stage = Stage::<I::Accum>::new(problem.width, lanes, &mut ws)?;
    let sums = ws.slice::<I::Accum>(lanes)?;
    let positions = ws.slice::<usize>(STEPS)?;
    let span = inputs.sequences.span(state, problem.seqlen);
    let x = inputs.x.slice(2, channels.clone());
    if let Some(window) = inputs.initial_window {
        stage.load_window(&window.slice(2, channels), state);
    }
    if inputs.sequences.may_pad() {
        let padding = span.range.clone().filter(|&t| inputs.sequences.is_padding(span.batch, t));
        padding.for_each(|t| clear_row(&mut out, [0, t - span.range.start, 0]));
    }
    let mut walk = inputs.sequences.walk(&span);
    while let Some(tile) = walk.next(positions) {
        stage.load_tile(&x, span.batch, tile, positions);
        for (i, &t) in positions[..tile.count].iter().enumerate() {
            filter.outputs(&stage.rows[i * lanes..], sums);
            store_row(&mut out, [0, t - span.range.start, 0], sums);
        }
        stage.advance(tile.count);
    }
    if let Some(mut last) = last {
        stage.window().chunks_exact(lanes).enumerate().for_each(|(k, row)| store_row(&mut last, [0, k, 0], row));
    }
    Ok(())
}

fn update_scratch<I: Input>(width: usize) -> usize {
    Filter::<I::Accum>::bytes(width, LANES)
        .saturating_add(bytes_of::<I::Accum>(width.saturating_mul(LANES)))
        .saturating_add(bytes_of::<I::Accum>(LANES) + ALIGN)
}

/// Bytes of workspace that [`causal_conv1d_update`] takes.
pub fn causal_conv1d_update_workspace<I: Input>(problem: &ConvProblem, par: Par) -> usize {
    par.scratch_bytes(update_scratch::<I>(problem.width))
}

/// One decode step; one phase. The bits are those of [`causal_conv1d_fwd`].
pub fn causal_conv1d_update<I: Input>(args: ConvStep<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let ConvProblem { dim, width, .. } = args.check()?;
    par.check(1)?;
    let ConvStep { x, weight, bias, window, slots, out, silu } = args;
    let split = (window.tiles(Cut::Every(2, LANES), Cut::Whole), out.tiles(Cut::Every(1, LANES), Cut::Whole));
    let work = |i: usize, (mut window, mut out): (ViewMut<'_, I, 3>, ViewMut<'_, I, 2>), ws: &mut Workspace<'_>| {
        let of = channels(i, LANES, dim);
        let (x, lanes) = (x.slice(1, of.clone()), of.len());
        let mut take = || -> Result<_, Error> {
            let filter = Filter::new(&weight, bias.as_ref(), silu, of.clone(), ws)?;
            Ok((filter, ws.slice::<I::Accum>(width * lanes)?, ws.slice::<I::Accum>(lanes)?))
        };
        let (filter, rows, sums) = take().expect("scratch memory as update_scratch says");
        for b in 0..x.dims()[0] {
            let slot = slots.map_or(b as i64, |v| i64::from(v.get([b])));
            let Ok(slot) = usize::try_from(slot) else { continue };
            let (before, new) = rows.split_at_mut((width - 1) * lanes);
            before.chunks_exact_mut(lanes).enumerate().for_each(|(k, row)| load_row(&window.as_view(), [slot, k, 0], row));
            load_row(&x, [b, 0], new);
            filter.outputs(rows, sums);
            store_row(&mut out, [b, 0], sums);
            rows[lanes..].chunks_exact(lanes).enumerate().for_each(|(k, row)| store_row(&mut window, [slot, k, 0], row));
        }
    };
    par.run(0, dim.div_ceil(LANES), split, &mut ws.reborrow(), update_scratch::<I>(width), work)
}
