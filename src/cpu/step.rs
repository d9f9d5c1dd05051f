//! The decode step: one position of each row. Tasks are slices of channels, so that A is staged once for all rows.

use core::ops::Range;

use super::Cpu;
use super::grid::{Grid, Shape};
use super::inputs::{Extent, Inputs, SIZED, Staged, Views, block_mut, real, shared};
use super::stage::{Blocks, Region, Sink, Tensor, row_mut, state_mut};
use super::table::{TILE, fwd_blocks};
use crate::arch::{self, Lanes, Planes, fwd_scratch};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::par::SERIAL_BELOW;
use crate::selective::{SelectiveProblem, SelectiveStep};
use crate::view::{Cut, View};
use crate::workspace::{ALIGN, bytes_of};

fn sizes<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem) -> (Extent, Shape) {
    let lanes = cpu.kernels.lanes::<R>();
    let blocks = fwd_blocks::<R>(problem.dim.div_ceil(lanes), lanes, cpu.par.workers());
    let groups = [problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1)];
    let shape = Shape { dim: problem.dim, states: 1, groups, width: blocks * lanes };
    // All blocks of a task are staged at once.
    (Extent::new::<R, W>(cpu.kernels, problem, blocks, 1).in_one_strip(), shape)
}

fn task_bytes<R>(extent: Extent) -> usize {
    let tiles =
        extent.staged_bytes::<R>() + extent.states_bytes::<R>() + extent.steps_bytes::<R>() + bytes_of::<R>(fwd_scratch(extent.lanes));
    tiles.max(row_bytes::<R>(extent))
}

pub(super) fn workspace<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem) -> usize {
    let (extent, shape) = sizes::<R, W>(cpu, problem);
    shape.bytes(cpu.par).saturating_add(cpu.par.scratch_bytes(task_bytes::<R>(extent))).saturating_add(ALIGN)
}

pub(super) fn run<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>, R: Lanes>(
    cpu: &Cpu,
    args: SelectiveStep<'_, I, W, S>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let problem = args.check()?;
    cpu.par.check(1)?;
    let (extent, shape) = sizes::<R, W>(cpu, &problem);
    let views = Views::of_step(&args);
    let inputs = views.erase::<R>(cpu.kernels, problem).in_blocks(extent);
    let mut ws = ws.reborrow();
    let grid = Grid::new(shape, &views.sequences, cpu.par, TILE, &mut ws)?;
    let state = state_mut(args.state).tiles(Cut::Whole, grid.channels_cut());
    let out = row_mut(args.out).tiles(Cut::Whole, grid.channels_cut());
    let slots = args.slots;
    let par = cpu.par.or_seq(problem.batch.saturating_mul(problem.dim).saturating_mul(problem.dstate) < SERIAL_BELOW);
    par.run(0, grid.tasks(), (state, out), &mut ws, task_bytes::<R>(extent), |i, (mut state, mut out), ws| {
        let rows = if is_mambas(&inputs) { rows_of_blocks } else { rows };
        rows(&inputs, grid.task(i).channels, slots, &mut state, &mut out, ws);
    })
}

/// Whether the step has a kernel of its own: see [`StepRow`].
fn is_mambas<R>(inputs: &Inputs<'_, R>) -> bool {
    let problem = &inputs.problem;
    problem.options.rule == Rule::Euler && !inputs.extent.complex && problem.groups_b.is_some() && problem.groups_c.is_some()
}

/// Bytes of workspace of [`row_of_blocks`].
fn row_bytes<R>(extent: Extent) -> usize {
    8 * bytes_of::<R>(extent.blocks.saturating_mul(extent.lanes)) + 2 * (bytes_of::<R>(extent.dstate) + extent.states_bytes::<R>())
}

/// [`rows`] in Mamba's own case.
fn rows_of_blocks<R: Lanes>(
    inputs: &Inputs<'_, R>,
    channels: Range<usize>,
    slots: Option<View<'_, i32, 1>>,
    state: &mut dyn Tensor<R>,
    out: &mut dyn Sink<R>,
    ws: &mut Workspace<'_>,
) {
    let (extent, problem) = (inputs.extent, &inputs.problem);
    let mut ws = ws.reborrow();
    let all = extent.blocks * extent.lanes;
    let [u, delta, z, d, delta_bias, y, limits, scratch] = [(); 8].map(|()| ws.slice::<R>(all).expect(SIZED));
    let [b, c] = [(); 2].map(|()| ws.slice::<R>(extent.dstate).expect(SIZED));
    let [mut a, mut h] = [(); 2].map(|()| extent.take_states::<R>(&mut ws));
    let (lanes, states) = (Blocks { width: extent.lanes, stride: extent.lanes, first: 0 }, extent.states());
    let region = |outer: usize, rows: usize, cols: &Range<usize>| Region { outer: [outer, 0], rows: 0..rows, cols: cols.clone() };
    inputs.a.stage(region(0, extent.dstate, &channels), states, &mut a);
    for (source, into) in [(inputs.d, &mut *d), (inputs.delta_bias, &mut *delta_bias)] {
        source.into_iter().for_each(|source| source.stage(region(0, 1, &channels), lanes, &mut real(into)));
    }
    let here = 0..channels.len();
    let mut prepared = false;
    for batch in 0..problem.batch {
        let Ok(slot) = slots.map_or(Ok(batch), |s| usize::try_from(s.get([batch]))) else { continue };
        state.stage(region(slot, extent.dstate, &here), states, &mut h);
        for (source, into) in [(Some(inputs.u), &mut *u), (Some(inputs.delta), &mut *delta), (inputs.z, &mut *z)] {
            source.into_iter().for_each(|source| source.stage(region(batch, 1, &channels), lanes, &mut real(into)));
        }
        for (source, groups, into) in [(inputs.b, problem.groups_b, &mut *b), (inputs.c, problem.groups_c, &mut *c)] {
            let group = channels.start * groups.unwrap_or(1) / problem.dim;
            let region = Region { outer: [batch, group], rows: 0..1, cols: 0..extent.dstate };
            source.stage(region, extent.varying(), &mut real(into));
        }
        inputs.kernels.selective_state_update(arch::StepRow {
            blocks: channels.len().div_ceil(extent.lanes),
            dstate: extent.dstate,
            stride: states.stride,
            softplus: problem.options.delta_softplus,
            prepared,
            u,
            delta,
            delta_bias: inputs.delta_bias.map(|_| &*delta_bias),
            z: inputs.z.map(|_| &*z),
            d: inputs.d.map(|_| &*d),
            a: a.re,
            b,
            c,
            h: h.re,
            out: y,
            limits,
            scratch,
        });
        prepared = true;
        state.put(region(slot, extent.dstate, &here), states, &shared(&h));
        out.put(region(batch, 1, &here), lanes, &Planes { re: y, im: None });
    }
}

/// One slice of channels of every row.
fn rows<R: Lanes>(
    inputs: &Inputs<'_, R>,
    channels: Range<usize>,
    slots: Option<View<'_, i32, 1>>,
    state: &mut dyn Tensor<R>,
    out: &mut dyn Sink<R>,
    ws: &mut Workspace<'_>,
) {
    let extent = inputs.extent;
    let mut ws = ws.reborrow();
    let mut staged = Staged::take(extent, &mut ws);
    let mut h = extent.take_states::<R>(&mut ws);
    let y = extent.take_steps::<R>(&mut ws);
    let scratch = ws.slice::<R>(fwd_scratch(extent.lanes)).expect(SIZED);
    staged.positions[0] = 0;
    staged.constants(inputs, channels.clone());
    for batch in 0..inputs.problem.batch {
        let Ok(slot) = slots.map_or(Ok(batch), |s| usize::try_from(s.get([batch]))) else { continue };
        let region = |outer: usize, rows: usize| Region { outer: [outer, 0], rows: 0..rows, cols: 0..channels.len() };
        state.stage(region(slot, extent.dstate), extent.states(), &mut h);
        staged.shared(inputs, batch, 1, channels.clone(), true);
        staged.strip(inputs, batch, 1, channels.clone(), true);
        for k in 0..channels.len().div_ceil(extent.lanes) {
            let out = Some(&mut y[k * extent.steps().stride..]);
            let (tile, h) = (staged.tile(inputs, [k, k], 1, false), block_mut(&mut h, k, extent.states()));
            inputs.kernels.selective_scan_fwd(arch::SelectiveFwd { tile, h, out, scratch: &mut *scratch, ahead: &[] });
        }
        state.put(region(slot, extent.dstate), extent.states(), &shared(&h));
        out.put(region(batch, 1), extent.steps(), &Planes { re: y, im: None });
    }
}
