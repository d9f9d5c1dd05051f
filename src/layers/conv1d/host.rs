//! The convolution for host memory: forward and step.
//!
//! A span of positions and a block of channels are one part of the work. Rows of the block are staged in the arithmetic type,
//! so that every layout and storage type meets the same arithmetic in the same order.

use core::ops::Range;

use super::stage::{ConvKernel, Filter, Plain, STEPS, Stage};
use super::{ConvFwd, ConvInputs, ConvProblem, ConvStep};
use crate::buffer::Workspace;
use crate::element::{Input, Real, Weight};
use crate::error::Error;
use crate::layers::rows::{clear_row, copy_lanes, load_row, store_row};
use crate::par::{Par, SERIAL_BELOW};
use crate::sequences::Sequences;
use crate::view::{Cut, Rows, RowsMut, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// The channels of block `block`.
pub(super) fn channels(block: usize, lanes: usize, dim: usize) -> Range<usize> {
    block * lanes..(block * lanes + lanes).min(dim)
}

/// Channels of a part: the kernel's, or several times that where few threads want parts, since long rows are read faster.
fn block_of<A: Real>(kernel: impl ConvKernel, dim: usize, par: Par) -> usize {
    let block = kernel.block::<A>();
    let parts = block.saturating_mul(2).saturating_mul(par.workers());
    if par.workers() == 1 { block * (dim / block).clamp(1, 4) } else { block * (dim / parts).clamp(1, 4) }
}

fn fwd_scratch<I: Input>(block: usize, width: usize) -> usize {
    bytes_of::<I::Accum>((width - 1).saturating_mul(2).saturating_mul(block)).saturating_add(tile_scratch::<I>(block, width))
}

fn tile_scratch<I: Input>(block: usize, width: usize) -> usize {
    Filter::<I::Accum>::bytes(width, block)
        .saturating_add(Stage::<I::Accum>::bytes(width, block))
        .saturating_add(bytes_of::<I::Accum>(STEPS * block) + bytes_of::<I::Accum>(block) + bytes_of::<usize>(STEPS) + ALIGN)
}

/// Bytes of workspace that [`causal_conv1d_fwd`] takes.
pub fn causal_conv1d_fwd_workspace<I: Input>(problem: &ConvProblem, par: Par) -> usize {
    fwd_workspace_with::<I>(Plain, problem, par)
}

/// The forward convolution; one phase.
pub fn causal_conv1d_fwd<I: Input>(args: ConvFwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    fwd_with(Plain, args, par, ws)
}

/// As [`causal_conv1d_fwd_workspace`], with an engine's kernel.
pub(crate) fn fwd_workspace_with<I: Input>(kernel: impl ConvKernel, problem: &ConvProblem, par: Par) -> usize {
    par.scratch_bytes(fwd_scratch::<I>(block_of::<I::Accum>(kernel, problem.dim, par), problem.width))
}

/// As [`causal_conv1d_fwd`], with an engine's kernel.
pub(crate) fn fwd_with<I: Input>(kernel: impl ConvKernel, args: ConvFwd<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let problem = args.check()?;
    par.check(1)?;
    let ConvFwd { inputs, out, final_window } = args;
    let spans = match inputs.sequences {
        Sequences::CuSeqlens(offsets) => Cut::Packed(1, offsets),
        _ => Cut::Every(0, 1),
    };
    let block = block_of::<I::Accum>(kernel, problem.dim, par);
    let lanes = Cut::Every(2, block);
    let split = (out.tiles(spans, lanes), final_window.map(|v| v.tiles(Cut::Every(0, 1), lanes)));
    let blocks = problem.dim.div_ceil(block);
    let work = |i: usize, (out, last): (ViewMut<'_, I, 3>, Option<ViewMut<'_, I, 3>>), ws: &mut Workspace<'_>| {
        let of = channels(i % blocks, block, problem.dim);
        forward(kernel, &inputs, problem, i / blocks, of, out, last, ws).expect("scratch memory as fwd_scratch says");
    };
    par.run(0, problem.states * blocks, split, &mut ws.reborrow(), fwd_scratch::<I>(block, problem.width), work)
}

/// One span and block of channels. `out` has the span's positions, `last` one window.
fn forward<I: Input>(
    kernel: impl ConvKernel,
    inputs: &ConvInputs<'_, I>,
    problem: ConvProblem,
    state: usize,
    of: Range<usize>,
    mut out: ViewMut<'_, I, 3>,
    last: Option<ViewMut<'_, I, 3>>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let mut ws = ws.reborrow();
    let (count, lanes) = (of.len(), kernel.lanes::<I::Accum>(of.len()));
    let filter = Filter::new(&inputs.weight, inputs.bias.as_ref(), inputs.silu, of.clone(), lanes, &mut ws)?;
    let span = inputs.sequences.span(state, problem.seqlen);
    if kernel.has_in_place(problem.width) && count.is_multiple_of(lanes) && !inputs.sequences.may_pad() {
        let (b, l) = (span.batch, span.range.clone());
        let x = inputs.x.slice(0, b..b + 1).slice(1, l).slice(2, of.clone()).same::<I::Accum>().and_then(|x| x.lines());
        if let Some(x) = x
            && let Some(out) = out.reborrow().same::<I::Accum>().and_then(ViewMut::into_rows)
        {
            let window = inputs.initial_window.map(|window| window.slice(0, state..state + 1).slice(2, of));
            return in_place(kernel, &filter, [problem.width - 1, span.range.len()], (&x, out), window, last, &mut ws);
        }
    }
    let mut stage = Stage::<I::Accum>::new(problem.width, count, lanes, &mut ws)?;
    let groups = count.div_ceil(lanes);
    let (outputs, line) = (ws.slice::<I::Accum>(STEPS * groups * lanes)?, ws.slice::<I::Accum>(groups * lanes)?);
    let positions = ws.slice::<usize>(STEPS)?;
    let x = inputs.x.slice(2, of.clone());
    if let Some(window) = inputs.initial_window {
        stage.load_window(&window.slice(2, of), state);
    }
    if inputs.sequences.may_pad() {
        let padding = span.range.clone().filter(|&t| inputs.sequences.is_padding(span.batch, t));
        padding.for_each(|t| clear_row(&mut out, [0, t - span.range.start, 0]));
    }
    let mut walk = inputs.sequences.walk(&span);
    while let Some(tile) = walk.next(positions) {
        stage.load_tile(&x, span.batch, tile, positions);
        for (g, outputs) in outputs.chunks_exact_mut(STEPS * lanes).enumerate() {
            kernel.forward(&filter.group(g), stage.group(g), &mut outputs[..tile.count * lanes]);
        }
        for (i, &t) in positions[..tile.count].iter().enumerate() {
            for (group, part) in outputs.chunks_exact(STEPS * lanes).zip(line.chunks_exact_mut(lanes)) {
                copy_lanes(&group[i * lanes..][..lanes], part);
            }
            store_row(&mut out, [0, t - span.range.start, 0], &line[..count]);
        }
        stage.advance(tile.count);
    }
    if let Some(mut last) = last {
        (0..problem.width - 1).for_each(|k| store_row(&mut last, [0, k, 0], stage.row(k)));
    }
    Ok(())
}

/// One span and block of channels by a kernel that reads and writes where the rows lie. `before` is W − 1.
fn in_place<I: Input>(
    kernel: impl ConvKernel,
    filter: &Filter<'_, I::Accum>,
    [before, seqlen]: [usize; 2],
    (x, mut out): (&Rows<'_, I::Accum>, RowsMut<'_, I::Accum>),
    window: Option<View<'_, I, 3>>,
    last: Option<ViewMut<'_, I, 3>>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let count = filter.bias.len();
    // The window and the first inputs, which the first outputs take.
    let (head, of_window) = (before.min(seqlen), before * count);
    let first = ws.slice::<I::Accum>(2 * of_window)?;
    for (k, row) in first.chunks_exact_mut(count).take(before + head).enumerate() {
        match &window {
            _ if k >= before => row.copy_from_slice(x.several::<1>(k - before)[0]),
            Some(window) => load_row(window, [0, k, 0], row),
            None => row.fill(I::Accum::ZERO),
        }
    }
    let staged = View::new(&*first, [2 * before, count]).lines().expect("contiguous");
    kernel.in_place(filter, &staged, &mut out, 0, head);
    kernel.in_place(filter, x, &mut out, head, seqlen - head);
    if let Some(mut last) = last {
        for k in 0..before {
            let at = seqlen + k;
            let [row] = if at < 2 * before { staged.several::<1>(at) } else { x.several::<1>(at - before) };
            store_row(&mut last, [0, k, 0], row);
        }
    }
    Ok(())
}

/// Bytes of workspace that [`causal_conv1d_update`] takes.
pub fn causal_conv1d_update_workspace<I: Input>(problem: &ConvProblem, par: Par) -> usize {
    update_workspace_with::<I>(Plain, problem, par)
}

/// One decode step; one phase. The bits are those of [`causal_conv1d_fwd`].
pub fn causal_conv1d_update<I: Input>(args: ConvStep<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    update_with(Plain, args, par, ws)
}

/// As [`causal_conv1d_update_workspace`], with an engine's kernel.
pub(crate) fn update_workspace_with<I: Input>(kernel: impl ConvKernel, problem: &ConvProblem, par: Par) -> usize {
    par.scratch_bytes(tile_scratch::<I>(kernel.block::<I::Accum>(), problem.width))
}

/// As [`causal_conv1d_update`], with an engine's kernel.
pub(crate) fn update_with<I: Input>(kernel: impl ConvKernel, args: ConvStep<'_, I>, par: Par, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let ConvProblem { dim, width, .. } = args.check()?;
    par.check(1)?;
    let ConvStep { x, weight, bias, window, slots, out, silu } = args;
    let block = kernel.block::<I::Accum>();
    let split = (window.tiles(Cut::Every(2, block), Cut::Whole), out.tiles(Cut::Every(1, block), Cut::Whole));
    let work = |i: usize, (mut window, mut out): (ViewMut<'_, I, 3>, ViewMut<'_, I, 2>), ws: &mut Workspace<'_>| {
        let of = channels(i, block, dim);
        let (x, count, lanes) = (x.slice(1, of.clone()), of.len(), kernel.lanes::<I::Accum>(of.len()));
        let mut take = || -> Result<_, Error> {
            let filter = Filter::new(&weight, bias.as_ref(), silu, of.clone(), lanes, ws)?;
            let stage = Stage::<I::Accum>::new(width, count, lanes, ws)?;
            Ok((filter, stage, ws.slice::<I::Accum>(count.next_multiple_of(lanes))?))
        };
        let (filter, mut stage, line) = take().expect("scratch memory as fwd_scratch says");
        for b in 0..x.dims()[0] {
            let slot = slots.map_or(b as i64, |v| i64::from(v.get([b])));
            let Ok(slot) = usize::try_from(slot) else { continue };
            stage.load_window(&window.as_view(), slot);
            stage.load_new(&x, b);
            let groups = line.chunks_exact_mut(lanes).enumerate();
            groups.for_each(|(g, outputs)| kernel.forward(&filter.group(g), stage.group(g), outputs));
            store_row(&mut out, [b, 0], &line[..count]);
            stage.advance(1);
            (0..width - 1).for_each(|k| store_row(&mut window, [slot, k, 0], stage.row(k)));
        }
    };
    let par = par.or_seq(x.dims()[0].saturating_mul(dim).saturating_mul(width) < SERIAL_BELOW);
    par.run(0, dim.div_ceil(block), split, &mut ws.reborrow(), tile_scratch::<I>(block, width), work)
}
