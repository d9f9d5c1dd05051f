//! The adjoint for host memory, in terms of an engine's forward scan.

use super::tile::{load, read, write};
use super::{Scan, ScanBwd, ScanFwd, ScanProblem};
use crate::buffer::Workspace;
use crate::element::{Element, Weight};
use crate::error::Error;
use crate::par::Par;
use crate::view::{Cut, Host, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Channels of a tile: a task is a row's tile of channels.
const CHANNELS: usize = 16;

/// A task's scan, (1, L, at most 16).
fn tile_problem(problem: ScanProblem) -> ScanProblem {
    ScanProblem { batch: 1, dim: problem.dim.min(CHANNELS), ..problem }
}

/// Bytes of scratch memory of a task: a, b or the upstream gradient, h and λ, each (1, L, 16).
fn scratch<E: Element>(engine: &impl Scan<Memory = Host>, problem: ScanProblem) -> usize {
    let tile @ ScanProblem { seqlen, dim, .. } = tile_problem(problem);
    let tensors = bytes_of::<E::Arith>(seqlen.saturating_add(1).saturating_mul(dim)).saturating_mul(4);
    tensors.saturating_add(engine.scan_fwd_workspace::<E::Arith>(tile)).saturating_add(ALIGN)
}

/// Bytes of workspace that [`scan_bwd`] takes: four tiles of 16 channels of a row for each worker, and what the engine takes.
pub fn scan_bwd_workspace<E: Element>(engine: &impl Scan<Memory = Host>, par: Par, problem: ScanProblem) -> usize {
    par.scratch_bytes(scratch::<E>(engine, problem)).saturating_add(ALIGN)
}

/// What a task reads.
struct Source<'a, E: Element> {
    a: View<'a, E, 3>,
    b: View<'a, E, 3>,
    grad_h: View<'a, E, 3>,
    initial_state: Option<View<'a, E::Arith, 2>>,
    grad_last_state: Option<View<'a, E::Arith, 2>>,
}

/// Where a task writes ∂a, ∂b and ∂h_0.
type Grads<'a, E> = (Option<ViewMut<'a, E, 3>>, Option<ViewMut<'a, E, 3>>, Option<ViewMut<'a, <E as Element>::Arith, 2>>);

/// The adjoint: h by one forward scan, λ by one reverse scan over a shifted by one step, then products.
///
/// The rows and tiles of channels are run by `par`; `engine` is called from its workers and must do its work on the thread that calls it.
pub fn scan_bwd<E: Element>(
    engine: &(impl Scan<Memory = Host> + Sync),
    par: Par,
    args: ScanBwd<'_, E>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    par.check(1)?;
    let problem = args.check()?;
    let ScanBwd { a, b, initial_state, grad_h, grad_last_state, grad_a, grad_b, grad_initial_state, .. } = args.forwards();
    let source = Source { a, b, grad_h, initial_state, grad_last_state };
    let tiles = problem.dim.div_ceil(CHANNELS);
    let (row, channels) = (Cut::Every(0, 1), Cut::Every(2, CHANNELS));
    let grads = (
        grad_a.map(|v| v.tiles(row, channels)),
        grad_b.map(|v| v.tiles(row, channels)),
        grad_initial_state.map(|v| v.tiles(row, Cut::Every(1, CHANNELS))),
    );
    par.run(0, problem.batch * tiles, grads, ws, scratch::<E>(engine, problem), |index, grads, ws| {
        task(engine, &source.at(index / tiles, index % tiles * CHANNELS), grads, ws).expect("the query counts a task");
    })
}

impl<'a, E: Element> Source<'a, E> {
    /// The operands of one row's tile of channels.
    fn at(&self, row: usize, channel: usize) -> Self {
        let channels = channel..self.b.dims()[2].min(channel + CHANNELS);
        let tensor = |v: View<'a, E, 3>| v.slice(0, row..row + 1).slice(2, channels.clone());
        let state = |v: View<'a, E::Arith, 2>| v.slice(0, row..row + 1).slice(1, channels.clone());
        let (a, b, grad_h) = (tensor(self.a), tensor(self.b), tensor(self.grad_h));
        Source { a, b, grad_h, initial_state: self.initial_state.map(state), grad_last_state: self.grad_last_state.map(state) }
    }
}

/// One row's tile of channels.
fn task<E: Element>(
    engine: &impl Scan<Memory = Host>,
    source: &Source<'_, E>,
    (grad_a, grad_b, grad_initial_state): Grads<'_, E>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let Source { initial_state, grad_last_state, .. } = *source;
    let dims @ [_, seqlen, dim] = source.b.dims();
    // One more step: a shifted by one is a view of it. Neither scan reads the extra a.
    let mut a = ws.tensor::<E::Arith, 3>([1, seqlen + 1, dim])?;
    let mut b = ws.tensor::<E::Arith, 3>(dims)?;
    let mut h = ws.tensor::<E::Arith, 3>(dims)?;
    let mut lambda = ws.tensor::<E::Arith, 3>(dims)?;
    a.fill(E::Arith::ZERO);
    read(source.a, |t, c, run| load(run, &mut a.row_mut([0, t, 0]).expect("contiguous")[c..]));
    read(source.b, |t, c, run| load(run, &mut b.row_mut([0, t, 0]).expect("contiguous")[c..]));
    let all = a.as_view();
    let forward = ScanFwd { a: all.slice(1, 0..seqlen), b: b.as_view(), initial_state, h: h.reborrow(), last_state: None, reverse: false };
    engine.scan_fwd(forward, ws)?;

    // conj(λ) follows a itself: no conjugate of a is needed.
    read(source.grad_h, |t, c, run| {
        let to = b.row_mut([0, t, 0]).expect("contiguous")[c..].iter_mut();
        to.zip(run).for_each(|(to, g)| *to = g.load().conj());
    });
    if let (Some(g), Some(last)) = (grad_last_state, seqlen.checked_sub(1)) {
        (0..dim).for_each(|c| b.set([0, last, c], b.get([0, last, c]) + g.get([0, c]).conj()));
    }
    let shifted = all.slice(1, 1..seqlen + 1);
    let reverse = ScanFwd { a: shifted, b: b.as_view(), initial_state: None, h: lambda.reborrow(), last_state: None, reverse: true };
    engine.scan_fwd(reverse, ws)?;

    let (h, lambda) = (h.as_view(), lambda.as_view());
    if let Some(mut out) = grad_b {
        write(&mut out, |t, c, run| {
            let lambda = lambda.row([0, t, 0]).expect("contiguous")[c..].iter();
            run.iter_mut().zip(lambda).for_each(|(x, l)| *x = E::store(l.conj()));
        });
    }
    if let Some(mut out) = grad_a {
        let before = |t: usize, c: usize| if t == 0 { initial_state.map(|v| v.get([0, c])) } else { Some(h.get([0, t - 1, c])) };
        write(&mut out, |t, c, run| {
            for (c, x) in (c..).zip(run) {
                *x = E::store(before(t, c).map_or(E::Arith::ZERO, |h| (lambda.get([0, t, c]) * h).conj()));
            }
        });
    }
    if let Some(mut out) = grad_initial_state {
        let empty = |c: usize| grad_last_state.map_or(E::Arith::ZERO, |g| g.get([0, c]));
        (0..dim).for_each(|c| {
            let g = if seqlen == 0 { empty(c) } else { (a.get([0, 0, c]) * lambda.get([0, 0, c])).conj() };
            out.set([0, c], g);
        });
    }
    Ok(())
}
