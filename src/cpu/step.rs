//! The decode step: one position of each row. Tasks are slices of channels, so that A is staged once for all rows.

use super::Cpu;
use super::grid::{Grid, Shape};
use super::inputs::{Extent, Inputs, SIZED, Staged, Views, block_mut, shared};
use super::stage::{Region, Sink, Tensor, row_mut, state_mut};
use super::table::{TILE, fwd_blocks};
use crate::arch::{self, Lanes, Planes, fwd_scratch};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::par::SERIAL_BELOW;
use crate::selective::{SelectiveProblem, SelectiveStep};
use crate::view::{Cut, View};
use crate::workspace::{ALIGN, bytes_of};

fn sizes<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem) -> (Extent, Shape) {
    let lanes = cpu.kernels.lanes::<R>();
    let blocks = fwd_blocks::<R>(problem.dim.div_ceil(lanes), lanes, cpu.par.workers());
    let groups = [problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1)];
    let shape = Shape { dim: problem.dim, states: 1, groups, width: blocks * lanes };
    (Extent::new::<R, W>(cpu.kernels, problem, blocks), shape)
}

fn task_bytes<R>(extent: Extent) -> usize {
    extent.staged_bytes::<R>() + extent.states_bytes::<R>() + extent.steps_bytes::<R>() + bytes_of::<R>(fwd_scratch(extent.lanes))
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
    let inputs = views.erase::<R>(cpu.kernels, problem).in_blocks(extent.blocks);
    let mut ws = ws.reborrow();
    let grid = Grid::new(shape, &views.sequences, cpu.par, TILE, &mut ws)?;
    let state = state_mut(args.state).tiles(Cut::Whole, grid.channels_cut());
    let out = row_mut(args.out).tiles(Cut::Whole, grid.channels_cut());
    let slots = args.slots;
    let par = cpu.par.or_seq(problem.batch.saturating_mul(problem.dim).saturating_mul(problem.dstate) < SERIAL_BELOW);
    par.run(0, grid.tasks(), (state, out), &mut ws, task_bytes::<R>(extent), |i, (mut state, mut out), ws| {
        rows(&inputs, grid.task(i).channels, slots, &mut state, &mut out, ws);
    })
}

/// One slice of channels of every row.
fn rows<R: Lanes>(
    inputs: &Inputs<'_, R>,
    channels: core::ops::Range<usize>,
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
        staged.steps(inputs, batch, 1, channels.clone(), true);
        for k in 0..channels.len().div_ceil(extent.lanes) {
            let out = Some(&mut y[k * extent.steps().stride..]);
            let (tile, h) = (staged.tile(inputs, k, 1, false), block_mut(&mut h, k, extent.states()));
            inputs.kernels.selective_scan_fwd(arch::SelectiveFwd { tile, h, out, scratch: &mut *scratch });
        }
        state.put(region(slot, extent.dstate), extent.states(), &shared(&h));
        out.put(region(batch, 1), extent.steps(), &Planes { re: y, im: None });
    }
}
