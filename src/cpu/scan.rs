//! Layer 1: the linear recurrence, rows × slices of channels.

use super::Cpu;
use super::grid::{Grid, Shape, Task};
use super::inputs::{SIZED, block, block_mut, clear, shared};
use super::stage::{Blocks, Region, Sink, Source, row, row_mut, sequence, sequence_mut};
use super::table::{TILE, fwd_blocks};
use crate::arch::{Kernels, Lanes, PlanesMut, ScanTile};
use crate::buffer::Workspace;
use crate::element::{Element, Weight};
use crate::error::Error;
use crate::scan::{ScanFwd, ScanProblem};
use crate::sequences::Sequences;
use crate::workspace::{ALIGN, bytes_of};

/// The sizes of a task.
#[derive(Debug, Clone, Copy)]
struct Extent {
    kernels: Kernels,
    lanes: usize,
    blocks: usize,
    complex: bool,
    /// Numbers from block to block of one row.
    stride: usize,
    seqlen: usize,
}

impl Extent {
    fn new<R: Lanes>(cpu: &Cpu, problem: ScanProblem, complex: bool) -> Self {
        let lanes = cpu.kernels.lanes::<R>();
        let all = problem.dim.div_ceil(lanes).max(1);
        let blocks = fwd_blocks::<R>(all.saturating_mul(problem.batch), lanes, cpu.par.workers()).min(all);
        let stride = lanes.next_multiple_of(ALIGN / size_of::<R>());
        Extent { kernels: cpu.kernels, lanes, blocks, complex, stride, seqlen: problem.seqlen }
    }

    fn shape(self, problem: ScanProblem) -> Shape {
        Shape { dim: problem.dim.max(1), states: problem.batch, groups: [1, 1], width: self.blocks * self.lanes }
    }

    fn steps(self) -> Blocks {
        Blocks { width: self.lanes, stride: TILE * self.stride, first: 0 }
    }

    fn rows(self) -> Blocks {
        Blocks { width: self.lanes, stride: self.stride, first: 0 }
    }

    fn bytes<R>(self) -> usize {
        let tiles = 3 * bytes_of::<R>(self.blocks * self.steps().stride) + bytes_of::<R>(self.blocks * self.stride);
        tiles * (1 + usize::from(self.complex))
    }

    fn take<'s, R: Lanes>(self, ws: &mut Workspace<'s>, each: usize) -> PlanesMut<'s, R> {
        let re = ws.slice(self.blocks * each).expect(SIZED);
        PlanesMut { re, im: self.complex.then(|| ws.slice(self.blocks * each).expect(SIZED)) }
    }
}

pub(super) fn workspace<E: Element, R: Lanes>(cpu: &Cpu, problem: ScanProblem) -> usize {
    let extent = Extent::new::<R>(cpu, problem, E::Arith::COMPLEX);
    let each = cpu.par.scratch_bytes(extent.bytes::<R>());
    extent.shape(problem).bytes(cpu.par).saturating_add(each).saturating_add(ALIGN)
}

/// What a task reads.
struct Inputs<'a, R> {
    a: &'a dyn Source<R>,
    b: &'a dyn Source<R>,
    initial_state: Option<&'a dyn Source<R>>,
}

pub(super) fn run<E: Element, R: Lanes>(cpu: &Cpu, args: ScanFwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let problem = args.check()?;
    cpu.par.check(1)?;
    if problem.dim == 0 {
        return Ok(());
    }
    let args = args.forwards();
    let extent = Extent::new::<R>(cpu, problem, E::Arith::COMPLEX);
    let (a, b, initial) = (sequence(args.a), sequence(args.b), args.initial_state.map(row));
    let inputs = Inputs { a: &a, b: &b, initial_state: initial.as_ref().map(|v| v as &dyn Source<R>) };
    let mut ws = ws.reborrow();
    let grid = Grid::new(extent.shape(problem), &Sequences::Rows, cpu.par, TILE, &mut ws)?;
    let h = sequence_mut(args.h).tiles(grid.positions_cut(), grid.channels_cut());
    let last = args.last_state.map(|v| row_mut(v).tiles(grid.states_cut(), grid.channels_cut()));
    cpu.par.run(0, grid.tasks(), (h, last), &mut ws, extent.bytes::<R>(), |i, (mut h, mut last), ws| {
        walk(extent, &inputs, &grid.task(i), &mut h, last.as_mut().map(|v| v as &mut dyn Sink<R>), ws);
    })
}

/// The rows of one task.
fn walk<R: Lanes>(
    extent: Extent,
    inputs: &Inputs<'_, R>,
    task: &Task,
    out: &mut dyn Sink<R>,
    mut last: Option<&mut dyn Sink<R>>,
    ws: &mut Workspace<'_>,
) {
    let mut ws = ws.reborrow();
    let (tiles, rows) = (extent.steps(), extent.rows());
    let [mut a, mut b, mut y] = core::array::from_fn(|_| extent.take::<R>(&mut ws, tiles.stride));
    let mut h = extent.take::<R>(&mut ws, rows.stride);
    let here = 0..task.channels.len();
    for batch in task.states.clone() {
        let region = |outer: usize, rows, cols: &core::ops::Range<usize>| Region { outer: [outer, 0], rows, cols: cols.clone() };
        match inputs.initial_state {
            Some(source) => source.stage(region(batch, 0..1, &task.channels), rows, &mut h),
            None => clear(&mut h),
        }
        for start in (0..extent.seqlen).step_by(TILE) {
            let range = start..(start + TILE).min(extent.seqlen);
            inputs.a.stage(region(batch, range.clone(), &task.channels), tiles, &mut a);
            inputs.b.stage(region(batch, range.clone(), &task.channels), tiles, &mut b);
            for k in 0..here.len().div_ceil(extent.lanes) {
                extent.kernels.scan(ScanTile {
                    steps: range.len(),
                    first: start == 0 && inputs.initial_state.is_none(),
                    a: block(&a, k, tiles),
                    b: block(&b, k, tiles),
                    h: block_mut(&mut h, k, rows),
                    out: block_mut(&mut y, k, tiles),
                });
            }
            out.put(region(batch - task.states.start, range, &here), tiles, &shared(&y));
        }
        if let Some(last) = last.as_mut() {
            last.put(region(batch - task.states.start, 0..1, &here), rows, &shared(&h));
        }
    }
}
