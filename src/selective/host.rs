//! Layer 2 for host memory in terms of an engine's layer 1: discretise a tile, scan it, contract it with C.
//!
//! A task is one sequence (or row) and some channels of one group. It walks time in tiles of T steps and takes a few channels with
//! all their states at once, so it holds O(T·64) numbers and what crosses a boundary of tiles; nowhere is there a (B, L, D, N) tensor.
//! Tiles are counted from the start of a sequence and depend on D, N and the groups only, and so do the bits.
//!
//! The engine is called by the workers of `par`, for small scans: it should do its work on the thread that calls it.

use super::{Carry, SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveStep};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::par::Par;
use crate::scan::{Scan, ScanFwd, ScanProblem};
use crate::sequences::Sequences;
use crate::view::{Cut, Host, View, ViewMut};

mod backward;
mod forward;
mod reduce;
mod step;
mod tile;

/// States scanned together at least: as many channels as give so many.
const LANES: usize = 64;
/// Numbers of a tile, about: it should stay in the second-level cache.
const TILE: usize = 16 * 1024;
/// Into how many tasks the backward scan cuts the channels of a group. Each has its own partial sums of ∂B and ∂C.
const PARTS: usize = 8;

/// How a problem is cut. A function of D, N and the groups only.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// N.
    dstate: usize,
    /// Channels of a tile.
    channels: usize,
    /// Steps of a tile.
    steps: usize,
    /// Channels of a task, in one group of B and of C.
    width: usize,
    /// Tasks along the channels.
    parts: usize,
}

impl Shape {
    fn forward(problem: &SelectiveProblem) -> Self {
        Self::new(problem, (LANES / problem.dstate).max(1))
    }

    fn backward(problem: &SelectiveProblem) -> Self {
        let channels = (LANES / problem.dstate).max(1);
        Self::new(problem, (problem.dim / cells(problem)).div_ceil(PARTS).next_multiple_of(channels))
    }

    /// Tasks of `at_least` channels, or a little more where groups want it.
    fn new(problem: &SelectiveProblem, at_least: usize) -> Self {
        let (dim, dstate, cells) = (problem.dim, problem.dstate, cells(problem));
        let cell = dim / cells;
        let least = at_least.clamp(1, cell);
        // Several groups: tasks of one width must end where groups do.
        let width = if cells == 1 { least } else { (least..=cell).find(|w| cell.is_multiple_of(*w)).unwrap_or(cell) };
        let channels = (LANES / dstate).clamp(1, width);
        let steps = (TILE / LANES.max(dstate)).clamp(16, 256);
        Shape { dstate, channels, steps, width, parts: dim.div_ceil(width) }
    }

    fn lanes(&self) -> usize {
        self.channels * self.dstate
    }

    /// The scan of a tile, for the engine's query.
    fn scan(&self) -> ScanProblem {
        ScanProblem { batch: 1, seqlen: self.steps, dim: self.lanes() }
    }
}

/// Runs of channels that share their groups of B and of C.
fn cells(problem: &SelectiveProblem) -> usize {
    let (b, c) = (problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1));
    let (mut x, mut y) = (b, c);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    b / x * c
}

/// Cuts a tensor with rows on axis `row` and positions on the next one by sequence.
fn by_sequence<'c>(sequences: &Sequences<'c>, row: usize) -> Cut<'c> {
    match sequences {
        Sequences::CuSeqlens(offsets) => Cut::Packed(row + 1, *offsets),
        _ => Cut::Every(row, 1),
    }
}

/// One layer-1 scan of a contiguous (1, steps, lanes) tile.
fn scan<K: Weight>(
    engine: &impl Scan<Memory = Host>,
    [a, b]: [&[K]; 2],
    initial: Option<&[K]>,
    h: &mut [K],
    last: Option<&mut [K]>,
    reverse: bool,
    lanes: usize,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let dims = [1, h.len() / lanes, lanes];
    let args = ScanFwd {
        a: View::new(a, dims),
        b: View::new(b, dims),
        initial_state: initial.map(|v| View::new(v, [1, lanes])),
        h: ViewMut::new(h, dims),
        last_state: last.map(|v| ViewMut::new(v, [1, lanes])),
        reverse,
    };
    engine.scan_fwd(args, ws)
}

/// Bytes of workspace that [`selective_scan_fwd`] takes.
pub fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(
    engine: &impl Scan<Memory = Host>,
    par: Par,
    problem: &SelectiveProblem,
) -> usize {
    match problem.options.carry {
        Carry::Plain => forward::workspace::<W>(engine, par, problem),
        Carry::Compensated => forward::workspace::<W::Wide>(engine, par, problem),
    }
}

/// The forward scan in terms of `engine`'s; one phase. With `Carry::Compensated` the tiles are discretised and scanned in f64.
pub fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
    engine: &(impl Scan<Memory = Host> + Sync),
    par: Par,
    args: SelectiveFwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    match args.inputs.options.carry {
        Carry::Plain => forward::run::<I, W, W>(engine, par, args, ws),
        Carry::Compensated => forward::run::<I, W, W::Wide>(engine, par, args, ws),
    }
}

/// Bytes of workspace that [`selective_scan_bwd`] takes.
pub fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(
    engine: &impl Scan<Memory = Host>,
    par: Par,
    problem: &SelectiveProblem,
) -> usize {
    match problem.options.carry {
        Carry::Plain => backward::workspace::<W>(engine, par, problem),
        Carry::Compensated => backward::workspace::<W::Wide>(engine, par, problem),
    }
}

/// The backward scan in terms of `engine`'s forward scan; two phases. States are kept at the boundaries of tiles and recomputed inside.
pub fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
    engine: &(impl Scan<Memory = Host> + Sync),
    par: Par,
    args: SelectiveBwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    match args.inputs.options.carry {
        Carry::Plain => backward::run::<I, W, W>(engine, par, args, ws),
        Carry::Compensated => backward::run::<I, W, W::Wide>(engine, par, args, ws),
    }
}

/// Bytes of workspace that [`selective_state_update`] takes.
pub fn selective_state_update_workspace(par: Par) -> usize {
    step::workspace(par)
}

/// One decode step; one phase. A single step of the recurrence is written out: there is nothing to scan.
pub fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    par: Par,
    args: SelectiveStep<'_, I, W, S>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    step::run(par, args, ws)
}
