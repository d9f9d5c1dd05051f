//! The decode step: one position of each row. Tasks are slices of channels, so that A is staged once for all rows.

use core::ops::Range;

use super::Cpu;
use super::grid::{Grid, Shape};
use super::inputs::{Extent, Inputs, SIZED, Staged, Views, block_mut, real, shared};
use super::stage::{Blocks, Region, Sink, Source, Tensor, row_mut, state_mut};
use super::table::{TILE, fwd_blocks};
use crate::arch::{self, Lanes, Planes, fwd_scratch, step_scratch};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::par::{Par, SERIAL_BELOW};
use crate::selective::{SelectiveProblem, SelectiveStep};
use crate::view::{Cut, Rows, RowsMut, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Who runs the parts: this thread where there is little to do.
fn par(cpu: &Cpu, problem: &SelectiveProblem) -> Par {
    cpu.par.or_seq(problem.batch.saturating_mul(problem.dim).saturating_mul(problem.dstate) < SERIAL_BELOW)
}

fn sizes<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem) -> (Extent, Shape) {
    let lanes = cpu.kernels.lanes::<R>();
    let all = problem.dim.div_ceil(lanes);
    // Mamba's own case walks its blocks in strips; the others stage all of a task.
    let blocks = match par(cpu, problem).workers() {
        1 if is_mambas(problem, W::COMPLEX) => all.max(1),
        workers => fwd_blocks::<R>(all, lanes, workers),
    };
    let groups = [problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1)];
    let shape = Shape { dim: problem.dim, states: 1, groups, width: blocks * lanes };
    // All blocks of a task are staged at once.
    (Extent::new::<R, W>(cpu.kernels, problem, blocks, 1).in_one_strip(), shape)
}

fn task_bytes<R, W: Weight>(problem: &SelectiveProblem, extent: Extent) -> usize {
    if is_mambas(problem, W::COMPLEX) {
        return row_bytes::<R>(extent);
    }
    extent.staged_bytes::<R>() + extent.states_bytes::<R>() + extent.steps_bytes::<R>() + bytes_of::<R>(fwd_scratch(extent.lanes))
}

pub(super) fn workspace<R: Lanes, W: Weight>(cpu: &Cpu, problem: &SelectiveProblem) -> usize {
    let (extent, shape) = sizes::<R, W>(cpu, problem);
    let scratch = par(cpu, problem).scratch_bytes(task_bytes::<R, W>(problem, extent));
    shape.bytes(cpu.par).saturating_add(scratch).saturating_add(ALIGN)
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
    let par = par(cpu, &problem);
    par.run(0, grid.tasks(), (state, out), &mut ws, task_bytes::<R, W>(&problem, extent), |i, (mut state, mut out), ws| {
        let rows = if is_mambas(&problem, W::COMPLEX) { rows_of_blocks } else { rows };
        rows(&inputs, grid.task(i).channels, slots, &mut state, &mut out, ws);
    })
}

/// Whether the step has a kernel of its own: see [`StepRow`](arch::StepRow).
fn is_mambas(problem: &SelectiveProblem, complex: bool) -> bool {
    problem.options.rule == Rule::Euler && !complex && problem.groups_b.is_some() && problem.groups_c.is_some()
}

/// Bytes of workspace of [`blocks_of_rows`].
fn row_bytes<R>(extent: Extent) -> usize {
    let (all, dstate) = (extent.blocks.saturating_mul(extent.lanes), extent.dstate);
    7 * bytes_of::<R>(all)
        + bytes_of::<R>(step_scratch(extent.lanes))
        + 2 * bytes_of::<R>(dstate)
        + 2 * bytes_of::<R>(dstate.saturating_mul(all))
        + bytes_of::<R>(dstate.saturating_mul(extent.lanes))
}

/// [`rows`] in Mamba's own case: whole blocks, whose A and states are used where they lie, and the channels after them.
fn rows_of_blocks<R: Lanes>(
    inputs: &Inputs<'_, R>,
    channels: Range<usize>,
    slots: Option<View<'_, i32, 1>>,
    state: &mut dyn Tensor<R>,
    out: &mut dyn Sink<R>,
    ws: &mut Workspace<'_>,
) {
    let whole = channels.len() / inputs.extent.lanes * inputs.extent.lanes;
    for here in [0..whole, whole..channels.len()] {
        if !here.is_empty() {
            blocks_of_rows(inputs, [channels.clone(), here], slots, state, out, ws);
        }
    }
}

/// Channels `here` of `channels`.
fn blocks_of_rows<R: Lanes>(
    inputs: &Inputs<'_, R>,
    [channels, here]: [Range<usize>; 2],
    slots: Option<View<'_, i32, 1>>,
    state: &mut dyn Tensor<R>,
    out: &mut dyn Sink<R>,
    ws: &mut Workspace<'_>,
) {
    let (mut ws, dstate, lanes) = (ws.reborrow(), inputs.extent.dstate, inputs.extent.lanes);
    let channels = channels.start + here.start..channels.start + here.end;
    let (width, whole) = (here.len().next_multiple_of(lanes), here.len().is_multiple_of(lanes));
    let slot = |batch: usize| slots.map_or(Some(batch), |s| usize::try_from(s.get([batch])).ok());
    let Some(some) = (0..inputs.problem.batch).find_map(slot) else { return };
    let region = |outer: usize, cols: &Range<usize>| Region { outer: [outer, 0], rows: 0..dstate, cols: cols.clone() };
    let [a, h] = [(); 2].map(|()| ws.slice::<R>(dstate * width).expect(SIZED));
    let states = Blocks { width, stride: 0, first: 0 };
    let by_channel = whole && dstate.is_multiple_of(lanes) && state.in_place(region(some, &here), true).is_some();
    let turned = inputs.a.in_place(region(0, &channels), true).filter(|_| whole && dstate.is_multiple_of(lanes));
    let by_channel = by_channel && turned.is_some();
    let a = match (turned, inputs.a.in_place(region(0, &channels), false).filter(|_| whole)) {
        (Some(a), _) if by_channel => a,
        (_, Some(a)) => a,
        (from, _) => {
            match from {
                Some(from) => {
                    let [from] = from.several::<1>(0);
                    inputs.kernels.turn(arch::Turn { blocks: width / lanes, dstate, from, to: &mut *a });
                }
                None => inputs.a.stage(region(0, &channels), states, &mut real(a)),
            }
            View::new(&*a, [dstate, width]).lines().expect("contiguous")
        }
    };
    let mut row = Row::new(inputs, &channels, &mut ws);
    for batch in 0..inputs.problem.batch {
        let Some(slot) = slot(batch) else { continue };
        if let Some(mut h) = state.in_place(region(slot, &here), by_channel).filter(|_| whole) {
            row.step(inputs, (batch, &channels), by_channel, &a, &mut h);
        } else {
            state.stage(region(slot, &here), states, &mut real(h));
            let mut rows = ViewMut::new(&mut *h, [dstate, width]).into_rows().expect("contiguous");
            row.step(inputs, (batch, &channels), false, &a, &mut rows);
            state.put(region(slot, &here), states, &Planes { re: h, im: None });
        }
        out.put(Region { outer: [batch, 0], rows: 0..1, cols: here.clone() }, row.blocks, &Planes { re: row.out, im: None });
    }
}

/// What a step of some channels works on beside A and the states.
struct Row<'s, R> {
    blocks: Blocks,
    count: usize,
    prepared: bool,
    d: Option<&'s [R]>,
    delta_bias: Option<&'s [R]>,
    /// Room for u, Δ and z where they are not used where they lie.
    staged: [&'s mut [R]; 3],
    b: &'s mut [R],
    c: &'s mut [R],
    out: &'s mut [R],
    bounds: &'s mut [R],
    scratch: &'s mut [R],
    columns: &'s mut [R],
}

/// One row of channels, where it lies if it can be used there, or else in `room`.
fn place<'s, R: Lanes>(source: &'s dyn Source<R>, row: Region, blocks: Blocks, room: &'s mut [R]) -> &'s [R] {
    match source.in_place(row.clone(), false) {
        Some(rows) if row.cols.len() == room.len() => rows.several::<1>(0)[0],
        _ => {
            source.stage(row, blocks, &mut real(room));
            room
        }
    }
}

impl<'s, R: Lanes> Row<'s, R> {
    /// Takes memory, and what does not vary by row.
    fn new(inputs: &'s Inputs<'_, R>, channels: &Range<usize>, ws: &mut Workspace<'s>) -> Self {
        let Extent { lanes, dstate, .. } = inputs.extent;
        let count = channels.len().div_ceil(lanes);
        let mut take = || ws.slice::<R>(count * lanes).expect(SIZED);
        let (staged, [d, delta_bias, out, bounds]) = ([(); 3].map(|()| take()), [(); 4].map(|()| take()));
        let scratch = ws.slice::<R>(step_scratch(lanes)).expect(SIZED);
        let [b, c, columns] = [1, 1, lanes].map(|width| ws.slice::<R>(dstate * width).expect(SIZED));
        let blocks = Blocks { width: count * lanes, stride: 0, first: 0 };
        let all = Region { outer: [0, 0], rows: 0..1, cols: channels.clone() };
        let d = inputs.d.map(|source| place(source, all.clone(), blocks, d));
        let delta_bias = inputs.delta_bias.map(|source| place(source, all, blocks, delta_bias));
        Row { blocks, count, prepared: false, d, delta_bias, staged, b, c, out, bounds, scratch, columns }
    }

    /// Row `batch`.
    fn step(
        &mut self,
        inputs: &Inputs<'_, R>,
        (batch, channels): (usize, &Range<usize>),
        by_channel: bool,
        a: &Rows<'_, R>,
        h: &mut RowsMut<'_, R>,
    ) {
        let (problem, row) = (&inputs.problem, Region { outer: [batch, 0], rows: 0..1, cols: channels.clone() });
        for (source, groups, into) in [(inputs.b, problem.groups_b, &mut *self.b), (inputs.c, problem.groups_c, &mut *self.c)] {
            let group = channels.start * groups.unwrap_or(1) / problem.dim;
            let region = Region { outer: [batch, group], rows: 0..1, cols: 0..inputs.extent.dstate };
            source.stage(region, inputs.extent.varying(), &mut real(into));
        }
        let [u, delta, z] = &mut self.staged;
        inputs.kernels.selective_state_update(arch::StepRow {
            blocks: self.count,
            dstate: inputs.extent.dstate,
            by_channel,
            softplus: problem.options.delta_softplus,
            prepared: self.prepared,
            u: place(inputs.u, row.clone(), self.blocks, u),
            delta: place(inputs.delta, row.clone(), self.blocks, delta),
            delta_bias: self.delta_bias,
            z: inputs.z.map(|source| place(source, row, self.blocks, z)),
            d: self.d,
            a,
            b: self.b,
            c: self.c,
            h,
            out: self.out,
            bounds: self.bounds,
            scratch: self.scratch,
            columns: self.columns,
        });
        self.prepared = true;
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
