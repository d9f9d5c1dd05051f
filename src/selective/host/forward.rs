//! The forward scan: tiles along time, the state handed from one to the next.

use core::ops::Range;

use super::tile::Tile;
use super::{Shape, by_sequence, scan};
use crate::buffer::Workspace;
use crate::element::{Input, Weight, cast, cast_real};
use crate::error::Error;
use crate::ops::silu;
use crate::par::Par;
use crate::scan::Scan;
use crate::selective::{SelectiveFwd, SelectiveInputs, SelectiveProblem};
use crate::view::{Cut, Host, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Bytes of scratch memory of a task.
fn scratch<K: Weight>(engine: &impl Scan<Memory = Host>, shape: &Shape) -> usize {
    let tensors = bytes_of::<K>(shape.steps.saturating_mul(shape.lanes())).saturating_mul(3);
    let small = bytes_of::<usize>(shape.steps) + bytes_of::<K>(shape.lanes()) * 2;
    let inner = engine.scan_fwd_workspace::<K>(shape.scan());
    Tile::<K>::bytes(shape).saturating_add(tensors).saturating_add(small).saturating_add(inner).saturating_add(ALIGN)
}

pub(super) fn workspace<K: Weight>(engine: &impl Scan<Memory = Host>, par: Par, problem: &SelectiveProblem) -> usize {
    par.scratch_bytes(scratch::<K>(engine, &Shape::forward(problem))).saturating_add(ALIGN)
}

/// What every task reads.
struct Common<'a, 'e, I: Input, W: Weight<Real = I::Accum>, E> {
    engine: &'e E,
    inputs: SelectiveInputs<'a, I, W>,
    shape: Shape,
}

/// Computed in `K`.
pub(super) fn run<I: Input, W: Weight<Real = I::Accum>, K: Weight>(
    engine: &(impl Scan<Memory = Host> + Sync),
    par: Par,
    args: SelectiveFwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    par.check(1)?;
    let problem = args.check()?;
    let SelectiveFwd { inputs, out, last_state } = args;
    let shape = Shape::forward(&problem);
    let common = Common { engine, inputs, shape };
    let split = (
        out.tiles(by_sequence(&inputs.sequences, 0), Cut::Every(2, shape.width)),
        last_state.map(|v| v.tiles(Cut::Every(0, 1), Cut::Every(1, shape.width))),
    );
    par.run(0, problem.states * shape.parts, split, ws, scratch::<K>(engine, &shape), |index, (mut out, mut last), ws| {
        let (state, start) = (index / shape.parts, index % shape.parts * shape.width);
        let end = problem.dim.min(start + shape.width);
        if inputs.sequences.may_pad() {
            out.fill(I::default());
        }
        for first in (start..end).step_by(shape.channels) {
            let channels = first..end.min(first + shape.channels);
            let local = channels.start - start..channels.end - start;
            let out = out.reborrow().slice(2, local.clone());
            let last = last.as_mut().map(|v| v.reborrow().slice(1, local));
            common.channels::<K>(state, channels, out, last, &mut ws.reborrow()).expect("the query counts a task");
        }
    })
}

impl<I: Input, W: Weight<Real = I::Accum>, E: Scan<Memory = Host>> Common<'_, '_, I, W, E> {
    /// Some channels of one sequence, tile by tile.
    fn channels<K: Weight>(
        &self,
        state: usize,
        channels: Range<usize>,
        mut out: ViewMut<'_, I, 3>,
        last: Option<ViewMut<'_, W, 3>>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let Common { engine, inputs, shape } = self;
        let span = inputs.sequences.span(state, inputs.u.dims()[1]);
        let mut ws = ws.reborrow();
        let mut tile = Tile::<K>::new(inputs, channels.clone(), shape, &mut ws)?;
        let lanes = tile.lanes();
        let positions = ws.slice::<usize>(shape.steps)?;
        let (a, b, h) = (ws.slice::<K>(shape.steps * lanes)?, ws.slice::<K>(shape.steps * lanes)?, ws.slice::<K>(shape.steps * lanes)?);
        let (mut carry, mut next) = (ws.slice::<K>(lanes)?, ws.slice::<K>(lanes)?);
        let lane = |i: usize| [state, channels.start + i / shape.dstate, i % shape.dstate];
        carry.iter_mut().enumerate().for_each(|(i, x)| *x = inputs.initial_state.map_or(K::ZERO, |v| cast(v.get(lane(i)))));

        let mut walk = inputs.sequences.walk(&span);
        while let Some(found) = walk.next(positions) {
            let (count, positions) = (found.count, &positions[..found.count]);
            tile.gather(inputs, span.batch, positions);
            tile.discretize(count, a, b);
            let continues = !found.fresh || (found.first && inputs.initial_state.is_some());
            let n = count * lanes;
            scan(*engine, [&a[..n], &b[..n]], continues.then_some(&*carry), &mut h[..n], Some(next), false, lanes, &mut ws)?;
            core::mem::swap(&mut carry, &mut next);
            self.finish(&tile, positions, h, span.range.start, &mut out);
        }
        if let Some(mut last) = last {
            for (i, &x) in carry.iter().enumerate() {
                last.set([0, i / shape.dstate, i % shape.dstate], cast(x));
            }
        }
        Ok(())
    }

    /// out = (Σ C h + D u) · silu(z).
    fn finish<K: Weight>(&self, tile: &Tile<'_, K>, positions: &[usize], h: &[K], start: usize, out: &mut ViewMut<'_, I, 3>) {
        let (width, dstate) = (tile.channels.len(), tile.dstate);
        for (t, &position) in positions.iter().enumerate() {
            for c in 0..width {
                let i = t * width + c;
                let y = tile.contract(t, c, &h[i * dstate..(i + 1) * dstate], self.inputs.D.is_some());
                let y = if self.inputs.z.is_some() { y * silu(tile.z[i]) } else { y };
                out.set([0, position - start, c], I::store(cast_real(y)));
            }
        }
    }
}
