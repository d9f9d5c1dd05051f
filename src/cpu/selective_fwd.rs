//! The selective scan, forward: time tiles outside, channel blocks inside, so that blocks share the staged B and C.

use super::grid::{Grid, Shape, Task};
use super::inputs::{Extent, Inputs, SIZED, Staged, Views, block_mut, clear, shared};
use super::stage::{Blocks, Region, Sink, runs, sequence_mut, state_mut};
use super::table::{TILE, fwd_blocks};
use super::{Cpu, wide};
use core::ops::Range;

use crate::arch::{self, Lanes, Planes, PlanesMut, fwd_scratch};
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveFwd, SelectiveProblem};
use crate::sequences::{Sequences, Span};
use crate::workspace::{ALIGN, bytes_of};

pub(super) fn shape(problem: &SelectiveProblem, width: usize) -> Shape {
    let groups = [problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1)];
    Shape { dim: problem.dim, states: problem.states, groups, width }
}

fn sizes<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem, input: usize) -> (Extent, Shape) {
    let lanes = cpu.kernels.lanes::<R>();
    let a_row = problem.dim.div_ceil(lanes);
    let blocks = fwd_blocks::<R>(a_row.saturating_mul(problem.states.max(1)), lanes, cpu.par.workers()).min(a_row);
    (Extent::new::<R, W>(cpu.kernels, problem, blocks, input), shape(problem, blocks * lanes))
}

fn task_bytes<R>(extent: Extent) -> usize {
    extent.staged_bytes::<R>() + extent.states_bytes::<R>() + extent.steps_bytes::<R>() + bytes_of::<R>(fwd_scratch(extent.lanes))
}

pub(super) fn workspace<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem, input: usize) -> usize {
    let (extent, shape) = sizes::<R, W>(cpu, problem, input);
    shape.bytes(cpu.par).saturating_add(cpu.par.scratch_bytes(task_bytes::<R>(extent))).saturating_add(ALIGN)
}

pub(super) fn run<I: Input, W: Weight<Real = I::Accum>>(
    cpu: &Cpu,
    args: SelectiveFwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let problem = args.check()?;
    cpu.par.check(1)?;
    if wide::<W>(&problem) { run_in::<I, W, f64>(cpu, &problem, args, ws) } else { run_in::<I, W, f32>(cpu, &problem, args, ws) }
}

fn run_in<I: Input, W: Weight<Real = I::Accum>, R: Lanes>(
    cpu: &Cpu,
    problem: &SelectiveProblem,
    args: SelectiveFwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let (extent, shape) = sizes::<R, W>(cpu, problem, size_of::<I>());
    let views = Views::new(&args.inputs);
    let inputs = views.erase::<R>(cpu.kernels, *problem).in_blocks(extent);
    let mut ws = ws.reborrow();
    let grid = Grid::new(shape, &args.inputs.sequences, cpu.par, TILE, &mut ws)?;
    let out = sequence_mut(args.out).tiles(grid.positions_cut(), grid.channels_cut());
    let last = args.last_state.map(|v| state_mut(v).tiles(grid.states_cut(), grid.channels_cut()));
    cpu.par.run(0, grid.tasks(), (out, last), &mut ws, task_bytes::<R>(extent), |i, (mut out, mut last), ws| {
        let last = last.as_mut().map(|v| v as &mut dyn Sink<R>);
        walk(&inputs, &grid.task(i), &mut out, last, ws);
    })
}

/// Writes zeros at the padding of a task's rows.
pub(super) fn zero_padding<R>(sequences: &Sequences<'_>, task: &Task, seqlen: usize, out: &mut dyn Sink<R>) {
    if !sequences.may_pad() {
        return;
    }
    for batch in task.states.clone() {
        for t in (0..seqlen).filter(|&t| sequences.is_padding(batch, t)) {
            out.zero(Region { outer: [batch - task.origin[0], 0], rows: t..t + 1, cols: 0..task.channels.len() });
        }
    }
}

/// Stores positions of a task's piece of a (B, 1, L, D) tensor.
pub(super) fn put_positions<R>(
    sink: &mut dyn Sink<R>,
    task: &Task,
    batch: usize,
    positions: &[usize],
    channels: Range<usize>,
    blocks: Blocks,
    from: &Planes<'_, R>,
) {
    for (first, range) in runs(positions) {
        sink.put(local(task, batch, range, channels.clone()), Blocks { first, ..blocks }, from);
    }
}

/// Positions and channels in a task's piece of a (B, 1, L, D) tensor.
pub(super) fn local(task: &Task, batch: usize, rows: Range<usize>, channels: Range<usize>) -> Region {
    let ([row, start], first) = (task.origin, task.channels.start);
    Region { outer: [batch - row, 0], rows: rows.start - start..rows.end - start, cols: channels.start - first..channels.end - first }
}

/// The positions, gaps and all, and channels that are worked on after a strip: the same with the next one, or what comes then with
/// the first.
fn next_strip(positions: &[usize], span: &Span, next: Option<&(usize, Range<usize>)>, task: &Task) -> (Range<usize>, Range<usize>) {
    let (first, end) = (positions[0], positions[positions.len() - 1] + 1);
    match next {
        Some((_, channels)) => (first..end.min(first + TILE), channels.clone()),
        None => (end..(end + TILE).min(span.range.end), task.channels.start..task.channels.end.min(task.channels.start + ALIGN / 4)),
    }
}

/// The state before a task's sequence `index`: the initial one, or zeros.
pub(super) fn initial<R: Lanes>(inputs: &Inputs<'_, R>, task: &Task, index: usize, h: &mut PlanesMut<'_, R>) {
    match inputs.initial_state {
        Some(source) => {
            let region = Region { outer: [index, 0], rows: 0..inputs.extent.dstate, cols: task.channels.clone() };
            source.stage(region, inputs.extent.states(), h);
        }
        None => clear(h),
    }
}

/// Walks the sequences of one task.
fn walk<R: Lanes>(inputs: &Inputs<'_, R>, task: &Task, out: &mut dyn Sink<R>, mut last: Option<&mut dyn Sink<R>>, ws: &mut Workspace<'_>) {
    let extent = inputs.extent;
    let mut ws = ws.reborrow();
    let mut staged = Staged::take(extent, &mut ws);
    let mut h = extent.take_states::<R>(&mut ws);
    let y = extent.take_steps::<R>(&mut ws);
    let scratch = ws.slice::<R>(fwd_scratch(extent.lanes)).expect(SIZED);
    let cols = 0..task.channels.len();
    staged.constants(inputs, task.channels.clone());
    zero_padding(&inputs.sequences, task, inputs.problem.seqlen, out);
    for index in task.states.clone() {
        let span = inputs.sequences.span(index, inputs.problem.seqlen);
        let mut walk = inputs.sequences.walk(&span);
        initial(inputs, task, index, &mut h);
        while let Some(tile) = walk.next(staged.positions) {
            let first = tile.fresh && !(tile.first && inputs.initial_state.is_some());
            staged.shared(inputs, span.batch, tile.count, task.channels.clone(), true);
            let mut strips = extent.strips(task.channels.clone()).peekable();
            while let Some((block, channels)) = strips.next() {
                staged.strip(inputs, span.batch, tile.count, channels.clone(), true);
                let next = next_strip(&staged.positions[..tile.count], &span, strips.peek(), task);
                staged.ask_strip(inputs, span.batch, next.0.clone(), next.1.clone(), true);
                staged.ask(|to| out.lines(local(task, span.batch, next.0, next.1), to));
                let blocks = channels.len().div_ceil(extent.lanes);
                for at in 0..blocks {
                    let tile = staged.tile(inputs, [block + at, at], tile.count, first);
                    let out = Some(&mut y[at * extent.steps().stride..]);
                    let (h, ahead) = (block_mut(&mut h, block + at, extent.states()), staged.ahead(at, blocks));
                    inputs.kernels.selective_scan_fwd(arch::SelectiveFwd { tile, h, out, scratch: &mut *scratch, ahead });
                }
                let y = Planes { re: y, im: None };
                put_positions(out, task, span.batch, &staged.positions[..tile.count], channels, extent.steps(), &y);
            }
        }
        if let Some(last) = last.as_mut() {
            let region = Region { outer: [index - task.states.start, 0], rows: 0..extent.dstate, cols: cols.clone() };
            last.put(region, extent.states(), &shared(&h));
        }
    }
}
