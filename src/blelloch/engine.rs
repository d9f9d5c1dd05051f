//! The engine: layer 1 by up-sweep and down-sweep over lanes of channels.
//!
//! A row's channels are taken `N` at a time and its time in blocks, which are subtrees of the one tree over the whole row. Phase 0
//! sweeps each block up for its sum, phase 1 scans the sums of a row, phase 2 sweeps each block up again and down from the prefix
//! before it. Sweeping a block up twice costs n more combinations and saves keeping (B, L, D) pairs. A row of one block needs phase 2 only.

use super::sweep;
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::par::{LastOf, Par};
use crate::scan::tile::{load, read, store, write};
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem, host};
use crate::selective::{self, SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveScan, SelectiveStep};
use crate::view::{Cut, Host, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Positions of a block: a power of two, so that a block is a subtree.
const BLOCK: usize = 256;
/// Channels swept together.
const LANES: usize = 16;

/// The pairs (a, b) of `N` channels at one position.
type Pairs<W, const N: usize> = [[W; N]; 2];

/// Scans as trees (Blelloch 1990): up-sweep, down-sweep, parallel over rows, channels and blocks of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blelloch {
    /// Who runs the parts.
    pub par: Par,
}

impl Blelloch {
    /// On the default threads.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the parts run by `par`. Its forward scan has three phases.
    pub fn with_par(par: Par) -> Self {
        Blelloch { par }
    }
}

/// earlier ∘ later, into `later`: (a₂·a₁, a₂·b₁ + b₂) in every lane.
#[inline(always)]
fn compose<W: Weight, const N: usize>(earlier: &Pairs<W, N>, later: &mut Pairs<W, N>) {
    apply(earlier, later);
    (0..N).for_each(|i| later[0][i] = later[0][i] * earlier[0][i]);
}

/// As [`compose`], where only the b of a prefix is wanted.
#[inline(always)]
fn apply<W: Weight, const N: usize>(earlier: &Pairs<W, N>, later: &mut Pairs<W, N>) {
    (0..N).for_each(|i| later[1][i] = later[0][i] * earlier[1][i] + later[1][i]);
}

/// Up-sweep of one block.
fn up<W: Weight, const N: usize>(block: &mut [Pairs<W, N>]) {
    sweep::up(block, 1, &compose);
}

/// Down-sweep of one block from the prefix before it.
fn down<W: Weight, const N: usize>(carry: Option<&Pairs<W, N>>, block: &mut [Pairs<W, N>]) {
    let Some((last, block)) = block.split_last_mut() else { return };
    if let Some(carry) = carry {
        apply(carry, last);
    }
    sweep::down(carry, block, 1, &apply);
}

/// Inclusive prefixes of the sums of blocks.
fn prefixes<W: Weight, const N: usize>(sums: &mut [Pairs<W, N>]) {
    sweep::up(sums, 1, &compose);
    if let Some((_, sums)) = sums.split_last_mut() {
        sweep::down(None, sums, 1, &apply);
    }
}

/// What a task reads: one of the blocks of `N` channels of a row.
struct Source<'a, E: Element> {
    a: View<'a, E, 3>,
    b: View<'a, E, 3>,
    initial_state: Option<View<'a, E::Arith, 2>>,
    reverse: bool,
}

/// The place of a task: row, first channel and positions in scan order.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    channel: usize,
    start: usize,
    count: usize,
    lanes: usize,
}

impl Place {
    /// Task `index` of `problem` cut into blocks of `N` channels, blocks of time innermost.
    fn of<const N: usize>(problem: ScanProblem, index: usize) -> Self {
        let (blocks, tiles) = (problem.seqlen.div_ceil(BLOCK).max(1), problem.dim.div_ceil(N));
        let (task, start, channel) = (index / blocks, index % blocks * BLOCK, index / blocks % tiles * N);
        Place { row: task / tiles, channel, start, count: BLOCK.min(problem.seqlen - start), lanes: N.min(problem.dim - channel) }
    }

    /// Maps positions of this block in memory order to scan order, and back.
    fn order(self, reverse: bool) -> impl Fn(usize) -> usize {
        move |t| if reverse { self.count - 1 - t } else { t }
    }

    /// The part of a tensor that stands here.
    fn of_view<'a, T: Copy>(self, view: View<'a, T, 3>, reverse: bool) -> View<'a, T, 3> {
        let seqlen = view.dims()[1];
        let start = if reverse { seqlen - self.start - self.count } else { self.start };
        let channels = self.channel..self.channel + self.lanes;
        view.slice(0, self.row..self.row + 1).slice(1, start..start + self.count).slice(2, channels)
    }
}

impl<E: Element> Source<'_, E> {
    /// The pairs at `place`. The initial state is folded into the first b; without one the first a is not read.
    fn gather<const N: usize>(&self, place: Place, block: &mut [Pairs<E::Arith, N>]) {
        let order = place.order(self.reverse);
        block.fill([[E::Arith::ZERO; N]; 2]);
        read(place.of_view(self.a, self.reverse), |t, i, run| load(run, &mut block[order(t)][0][i..]));
        read(place.of_view(self.b, self.reverse), |t, i, run| load(run, &mut block[order(t)][1][i..]));
        if place.start > 0 {
            return;
        }
        let Some(first) = block.first_mut() else { return };
        match self.initial_state {
            Some(h) => (0..place.lanes).for_each(|i| first[1][i] = first[0][i] * h.get([place.row, place.channel + i]) + first[1][i]),
            None => first[0] = [E::Arith::ZERO; N],
        }
    }
}

/// Writes a tile of the last state.
fn put_state<W: Weight>(out: Option<ViewMut<'_, W, 2>>, of: impl Fn(usize) -> W) {
    if let Some(mut out) = out {
        (0..out.dims()[1]).for_each(|i| out.set([0, i], of(i)));
    }
}

fn workspace<W: Weight, const N: usize>(par: Par, problem: ScanProblem) -> usize {
    let ScanProblem { batch, seqlen, dim } = problem;
    let blocks = seqlen.div_ceil(BLOCK);
    let sums = if blocks > 1 { batch.saturating_mul(dim.div_ceil(N)).saturating_mul(blocks) } else { 0 };
    let scratch = par.scratch_bytes(bytes_of::<Pairs<W, N>>(BLOCK.min(seqlen)));
    bytes_of::<Pairs<W, N>>(sums).saturating_add(scratch).saturating_add(ALIGN)
}

fn fwd<E: Element, const N: usize>(par: Par, args: ScanFwd<'_, E>, problem: ScanProblem, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let ScanFwd { a, b, initial_state, h, last_state, reverse } = args;
    let source = Source { a, b, initial_state, reverse };
    let ScanProblem { batch, seqlen, dim } = problem;
    let (rows, blocks) = (batch * dim.div_ceil(N), seqlen.div_ceil(BLOCK));
    let scratch = bytes_of::<Pairs<E::Arith, N>>(BLOCK.min(seqlen));
    let mut ws = ws.reborrow();
    let mut sums = ws.tensor::<Pairs<E::Arith, N>, 2>(if blocks > 1 { [rows, blocks] } else { [0, 0] })?;
    if blocks > 1 {
        let tiles = sums.reborrow().tiles(Cut::Every(0, 1), Cut::Every(1, 1));
        par.run(0, rows * blocks, (tiles,), &mut ws.reborrow(), scratch, |index, (mut sum,), ws| {
            let place = Place::of::<N>(problem, index);
            // The sum of the last block carries nowhere.
            if place.start + place.count < seqlen {
                let block = ws.slice(place.count).expect("the query counts a block");
                source.gather(place, block);
                up(block);
                sum.set([0, 0], block[place.count - 1]);
            }
        })?;
        let tiles = sums.reborrow().tiles(Cut::Every(0, 1), Cut::Whole);
        par.run(1, rows, (tiles,), &mut ws.reborrow(), 0, |_, (mut sums,), _| {
            prefixes(&mut sums.row_mut([0, 0]).expect("contiguous")[..blocks - 1]);
        })?;
    }
    let sums = sums.as_view();
    let parts = blocks.max(1);
    // Blocks of h are counted in scan order.
    let h = if reverse { h.flip(1) } else { h };
    let h = (blocks > 0).then(|| h.tiles(Cut::Every(0, 1), Cut::Every(2, N)).cut(Cut::Every(1, BLOCK)));
    let last = last_state.map(|v| LastOf { of: v.tiles(Cut::Every(0, 1), Cut::Every(1, N)), every: parts });
    par.run(2, rows * parts, (h, last), &mut ws, scratch, |index, (h, last), ws| {
        let place = Place::of::<N>(problem, index);
        let Some(h) = h else {
            let initial = |i: usize| initial_state.map_or(E::Arith::ZERO, |v| v.get([place.row, place.channel + i]));
            return put_state(last.flatten(), initial);
        };
        let block = ws.slice(place.count).expect("the query counts a block");
        source.gather(place, block);
        up(block);
        let carry = (place.start > 0).then(|| sums.get([index / parts, index % parts - 1]));
        down(carry.as_ref(), block);
        put_state(last.flatten(), |i| block[place.count - 1][1][i]);
        let (mut h, order) = (if reverse { h.flip(1) } else { h }, place.order(reverse));
        write(&mut h, |t, i, run| store(&block[order(t)][1][i..], run));
    })
}

/// One channel has no lanes to share.
fn is_narrow(problem: ScanProblem) -> bool {
    problem.dim == 1
}

impl Scan for Blelloch {
    type Memory = Host;

    fn scan_fwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        if is_narrow(problem) { workspace::<E::Arith, 1>(self.par, problem) } else { workspace::<E::Arith, LANES>(self.par, problem) }
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        self.par.check(3)?;
        let problem = args.check()?;
        if is_narrow(problem) { fwd::<E, 1>(self.par, args, problem, ws) } else { fwd::<E, LANES>(self.par, args, problem, ws) }
    }

    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        host::scan_bwd_workspace::<E>(&self.alone(), self.par, problem)
    }

    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        host::scan_bwd(&self.alone(), self.par, args, ws)
    }
}

impl Blelloch {
    /// The same engine on the calling thread: inside tasks that run in parallel already.
    fn alone(self) -> Self {
        Blelloch { par: Par::Seq }
    }
}

impl SelectiveScan for Blelloch {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        selective::host::selective_scan_fwd_workspace::<I, W>(&self.alone(), self.par, problem)
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        selective::host::selective_scan_fwd(&self.alone(), self.par, args, ws)
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        selective::host::selective_scan_bwd_workspace::<I, W>(&self.alone(), self.par, problem)
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        selective::host::selective_scan_bwd(&self.alone(), self.par, args, ws)
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _: &SelectiveProblem) -> usize {
        selective::host::selective_state_update_workspace(self.par)
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        selective::host::selective_state_update(self.par, args, ws)
    }
}
