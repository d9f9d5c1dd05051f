//! The backward scan: states at the boundaries of tiles by a first walk, then the tiles from the last to the first.
//!
//! ```text
//! λ_t = κ·conj(C_t) ∂y_t + conj(Ā_{t+1}) λ_{t+1},   λ_L += ∂h_L,   ∂Ā_t = λ_t conj(h_{t−1}),   ∂B̄_t = λ_t u_t
//! ```
//!
//! conj(λ) is what is scanned: it follows Ā itself, and Ā shifted by one step is a view of Ā.

#![allow(non_snake_case)]

use core::ops::Range;

use super::reduce::{Partials, Pieces};
use super::tile::{Tile, gather};
use super::{Shape, by_sequence, scan};
use crate::buffer::Workspace;
use crate::element::{Input, Real, Weight, cast, cast_real};
use crate::error::Error;
use crate::ops::{DiscreteGrad, Rule, sigmoid, silu, silu_grad};
use crate::par::Par;
use crate::scan::Scan;
use crate::selective::{SelectiveBwd, SelectiveInputs, SelectiveProblem};
use crate::sequences::Span;
use crate::view::{Cut, Host, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// The mark of a tile that no state enters.
const NONE: usize = usize::MAX;

/// How many states at boundaries a sequence of length `seqlen` keeps.
fn slots(seqlen: usize, shape: &Shape) -> usize {
    seqlen / shape.steps + 1
}

/// Bytes of scratch memory of a task.
fn scratch<K: Weight>(engine: &impl Scan<Memory = Host>, seqlen: usize, shape: &Shape) -> usize {
    let (lanes, sequence) = (shape.lanes(), shape.steps * shape.channels);
    let indices = bytes_of::<usize>(seqlen.saturating_add(1)).saturating_mul(3);
    let states = bytes_of::<K>(slots(seqlen, shape).saturating_mul(lanes)).saturating_add(bytes_of::<K>(lanes) * 2);
    let tensors = bytes_of::<K>((shape.steps + 1).saturating_mul(lanes)).saturating_mul(4);
    let sums = bytes_of::<K::Wide>(lanes * 3) + bytes_of::<f64>(shape.channels * 2) + bytes_of::<K::Real>(sequence) * 4;
    let inner = engine.scan_fwd_workspace::<K>(shape.scan());
    [Tile::<K>::bytes(shape), indices, states, tensors, sums, inner, ALIGN].into_iter().fold(0, usize::saturating_add)
}

pub(super) fn workspace<K: Weight>(engine: &impl Scan<Memory = Host>, par: Par, problem: &SelectiveProblem) -> usize {
    let shape = Shape::backward(problem);
    let scratch = par.scratch_bytes(scratch::<K>(engine, problem.seqlen, &shape));
    Partials::<K>::bytes(problem, &shape).saturating_add(scratch).saturating_add(ALIGN)
}

/// What every task reads.
struct Common<'a, 'e, I: Input, W: Weight<Real = I::Accum>, E> {
    engine: &'e E,
    inputs: SelectiveInputs<'a, I, W>,
    grad_out: View<'a, I, 3>,
    grad_last_state: Option<View<'a, W, 3>>,
    shape: Shape,
}

/// Where a task writes gradients by position and that of the initial state.
struct Outputs<'a, I: Input, W: Weight<Real = I::Accum>> {
    u: Option<ViewMut<'a, I, 3>>,
    delta: Option<ViewMut<'a, I, 3>>,
    z: Option<ViewMut<'a, I, 3>>,
    initial_state: Option<ViewMut<'a, W, 3>>,
}

impl<I: Input, W: Weight<Real = I::Accum>> Outputs<'_, I, W> {
    /// The part of some of the task's channels.
    fn slice(&mut self, channels: Range<usize>) -> Outputs<'_, I, W> {
        fn of<'b, T: Copy>(v: &'b mut Option<ViewMut<'_, T, 3>>, axis: usize, range: &Range<usize>) -> Option<ViewMut<'b, T, 3>> {
            v.as_mut().map(|v| v.reborrow().slice(axis, range.clone()))
        }
        Outputs {
            u: of(&mut self.u, 2, &channels),
            delta: of(&mut self.delta, 2, &channels),
            z: of(&mut self.z, 2, &channels),
            initial_state: of(&mut self.initial_state, 1, &channels),
        }
    }
}

/// Computed in `K`.
pub(super) fn run<I: Input, W: Weight<Real = I::Accum>, K: Weight>(
    engine: &(impl Scan<Memory = Host> + Sync),
    par: Par,
    args: SelectiveBwd<'_, I, W>,
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    par.check(2)?;
    let problem = args.check()?;
    let SelectiveBwd { inputs, grad_out, grad_last_state, grads } = args;
    let shape = Shape::backward(&problem);
    let common = Common { engine, inputs, grad_out, grad_last_state, shape };
    let mut ws = ws.reborrow();
    let mut partials = Partials::<K>::new(&problem, &shape, &mut ws)?;
    let (sequence, channels) = (by_sequence(&inputs.sequences, 0), Cut::Every(2, shape.width));
    let split = (
        grads.u.map(|v| v.tiles(sequence, channels)),
        grads.delta.map(|v| v.tiles(sequence, channels)),
        grads.z.map(|v| v.tiles(sequence, channels)),
        grads.initial_state.map(|v| v.tiles(Cut::Every(0, 1), Cut::Every(1, shape.width))),
        partials.tiles(&inputs.sequences, &shape),
    );
    let scratch = scratch::<K>(engine, problem.seqlen, &shape);
    par.run(0, problem.states * shape.parts, split, &mut ws.reborrow(), scratch, |index, (u, delta, z, initial_state, pieces), ws| {
        let mut outputs = Outputs { u, delta, z, initial_state };
        let (state, start) = (index / shape.parts, index % shape.parts * shape.width);
        let end = problem.dim.min(start + shape.width);
        common.task::<K>(state, start..end, &mut outputs, Pieces::new(pieces), ws).expect("the query counts a task");
    })?;
    partials.reduce(par, &problem, &shape, (grads.A, grads.B, grads.C, grads.D, grads.delta_bias), &mut ws)
}

/// The tiles of one sequence, remembered so that they can be walked backwards.
struct Plan<'w> {
    span: Span,
    positions: &'w [usize],
    /// Tile k is `positions[starts[k]..starts[k + 1]]`.
    starts: &'w [usize],
    /// Which kept state enters tile k, or `NONE`.
    slots: &'w [usize],
}

impl<'w> Plan<'w> {
    fn new<I: Input, W: Weight<Real = I::Accum>>(
        inputs: &SelectiveInputs<'_, I, W>,
        state: usize,
        steps: usize,
        ws: &mut Workspace<'w>,
    ) -> Result<Self, Error> {
        let span = inputs.sequences.span(state, inputs.u.dims()[1]);
        let length = span.range.len();
        let (positions, starts, slots) = (ws.slice(length)?, ws.slice(length + 1)?, ws.slice(length)?);
        let (mut at, mut tiles, mut kept) = (0, 0, 0);
        let mut walk = inputs.sequences.walk(&span);
        starts[0] = 0;
        loop {
            let end = length.min(at + steps);
            let Some(found) = walk.next(&mut positions[at..end]) else { break };
            let continues = !found.fresh || (found.first && inputs.initial_state.is_some());
            slots[tiles] = if continues { kept } else { NONE };
            kept += usize::from(continues);
            (at, tiles) = (at + found.count, tiles + 1);
            starts[tiles] = at;
        }
        Ok(Plan { span, positions: &positions[..at], starts: &starts[..=tiles], slots: &slots[..tiles] })
    }

    fn tile(&self, k: usize) -> &'w [usize] {
        &self.positions[self.starts[k]..self.starts[k + 1]]
    }

    fn slot(&self, k: usize) -> Option<usize> {
        self.slots.get(k).copied().filter(|&slot| slot != NONE)
    }
}

/// Scratch memory of some channels: tensors of (steps, lanes) unless said otherwise.
struct Room<'w, K: Weight> {
    /// Ā, and in one more step the first Ā of the tile after it.
    a: &'w mut [K],
    /// B̄u, then κ C ∂y.
    b: &'w mut [K],
    h: &'w mut [K],
    /// conj(λ).
    lambda: &'w mut [K],
    /// The states that enter tiles, (slots, lanes).
    kept: &'w mut [K],
    /// conj(λ) and Ā at the start of the tile after this one, (lanes).
    after: [&'w mut [K]; 2],
    /// ∂out, (steps, channels).
    grad_out: &'w mut [K::Real],
    /// ∂y, ∂u and ∂Δ, (steps, channels).
    grads: [&'w mut [K::Real]; 3],
    /// Sums over the tile for A, B and C, (lanes, 3).
    sums: &'w mut [K::Wide],
    /// Sums over the tile for D and Δ_bias, (channels, 2).
    real_sums: &'w mut [f64],
}

impl<'w, K: Weight> Room<'w, K> {
    fn new(shape: &Shape, width: usize, length: usize, ws: &mut Workspace<'w>) -> Result<Self, Error> {
        let (lanes, sequence) = (width * shape.dstate, shape.steps * width);
        let tensor = (shape.steps + 1) * lanes;
        Ok(Room {
            a: ws.slice(tensor)?,
            b: ws.slice(tensor)?,
            h: ws.slice(tensor)?,
            lambda: ws.slice(tensor)?,
            kept: ws.slice(slots(length, shape) * lanes)?,
            after: [ws.slice(lanes)?, ws.slice(lanes)?],
            grad_out: ws.slice(sequence)?,
            grads: [ws.slice(sequence)?, ws.slice(sequence)?, ws.slice(sequence)?],
            sums: ws.slice(lanes * 3)?,
            real_sums: ws.slice(width * 2)?,
        })
    }
}

impl<I: Input, W: Weight<Real = I::Accum>, E: Scan<Memory = Host>> Common<'_, '_, I, W, E> {
    /// All channels of one task.
    fn task<K: Weight>(
        &self,
        state: usize,
        task: Range<usize>,
        outputs: &mut Outputs<'_, I, W>,
        mut pieces: Pieces<'_, K>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let shape = &self.shape;
        pieces.clear();
        if self.inputs.sequences.may_pad() {
            [&mut outputs.u, &mut outputs.delta, &mut outputs.z].into_iter().flatten().for_each(|v| v.fill(I::default()));
        }
        let plan = Plan::new(&self.inputs, state, shape.steps, ws)?;
        for first in task.clone().step_by(shape.channels) {
            let channels = first..task.end.min(first + shape.channels);
            let local = channels.start - task.start..channels.end - task.start;
            let mut ws = ws.reborrow();
            let tile = Tile::new(&self.inputs, channels, shape, &mut ws)?;
            let room = Room::new(shape, local.len(), plan.span.range.len(), &mut ws)?;
            let mut walk = Walker { common: self, plan: &plan, state, tile, room, local: local.clone() };
            walk.keep_states(&mut ws)?;
            walk.back(&mut outputs.slice(local), &mut pieces, &mut ws)?;
        }
        Ok(())
    }
}

/// Some channels of one sequence.
struct Walker<'c, 'a, 'e, 'w, I: Input, W: Weight<Real = I::Accum>, K: Weight, E> {
    common: &'c Common<'a, 'e, I, W, E>,
    plan: &'c Plan<'w>,
    state: usize,
    tile: Tile<'w, K>,
    room: Room<'w, K>,
    /// The channels, counted from the task's first.
    local: Range<usize>,
}

impl<I: Input, W: Weight<Real = I::Accum>, K: Weight, E: Scan<Memory = Host>> Walker<'_, '_, '_, '_, I, W, K, E> {
    /// Index of lane `i` in a tensor of states.
    fn lane(&self, i: usize) -> [usize; 3] {
        [self.state, self.tile.channels.start + i / self.tile.dstate, i % self.tile.dstate]
    }

    fn load(&mut self, k: usize) -> usize {
        let positions = self.plan.tile(k);
        self.tile.gather(&self.common.inputs, self.plan.span.batch, positions);
        self.tile.discretize(positions.len(), self.room.a, self.room.b);
        positions.len()
    }

    /// The first walk: keeps the state that enters each tile.
    fn keep_states(&mut self, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let lanes = self.tile.lanes();
        if let (Some(slot), Some(v)) = (self.plan.slot(0), self.common.inputs.initial_state) {
            (0..lanes).for_each(|i| self.room.kept[slot * lanes + i] = cast(v.get(self.lane(i))));
        }
        for k in 0..self.plan.slots.len() {
            let Some(to) = self.plan.slot(k + 1) else { continue };
            let n = self.load(k) * lanes;
            let Room { a, b, h, kept, .. } = &mut self.room;
            // Slots are counted along the walk, so the state that enters this tile stands before the one that leaves it.
            let (before, after) = kept.split_at_mut(to * lanes);
            let initial = self.plan.slot(k).map(|from| &before[from * lanes..(from + 1) * lanes]);
            scan(self.common.engine, [&a[..n], &b[..n]], initial, &mut h[..n], Some(&mut after[..lanes]), false, lanes, ws)?;
        }
        Ok(())
    }

    /// The second walk, backwards.
    fn back(&mut self, outputs: &mut Outputs<'_, I, W>, pieces: &mut Pieces<'_, K>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let lanes = self.tile.lanes();
        let tiles = self.plan.slots.len();
        for k in (0..tiles).rev() {
            let n = self.load(k) * lanes;
            let slot = self.plan.slot(k);
            let Room { a, b, h, kept, .. } = &mut self.room;
            let initial = slot.map(|slot| &kept[slot * lanes..(slot + 1) * lanes]);
            scan(self.common.engine, [&a[..n], &b[..n]], initial, &mut h[..n], None, false, lanes, ws)?;

            self.upstream(k, outputs);
            // What stands after this tile is of the same sequence only where a state enters the next tile.
            let continues = self.plan.slot(k + 1).is_some();
            let Room { a, b, lambda, after, .. } = &mut self.room;
            a[n..n + lanes].copy_from_slice(after[1]);
            let initial = continues.then_some(&*after[0]);
            scan(self.common.engine, [&a[lanes..n + lanes], &b[..n]], initial, &mut lambda[..n], None, true, lanes, ws)?;
            after[0].copy_from_slice(&lambda[..lanes]);
            after[1].copy_from_slice(&a[..lanes]);

            self.products(k, pieces);
            self.store(k, outputs);
            pieces.add_sums(&self.local, self.room.sums, self.room.real_sums);
        }
        if let Some(out) = &mut outputs.initial_state {
            let [lambda, a] = &self.room.after;
            for i in 0..lanes {
                let upstream = || self.common.grad_last_state.map_or(K::ZERO, |v| cast(v.get(self.lane(i))));
                let grad: K = if tiles == 0 { upstream() } else { (a[i] * lambda[i]).conj() };
                out.set([0, i / self.tile.dstate, i % self.tile.dstate], cast(grad));
            }
        }
        Ok(())
    }

    /// ∂y and ∂z of tile k, the sum for D, and the inputs of the reverse scan: κ C ∂y, to the last one of all conj(∂h_L) added.
    fn upstream(&mut self, k: usize, outputs: &mut Outputs<'_, I, W>) {
        let (inputs, plan, tile) = (&self.common.inputs, self.plan, &self.tile);
        let (width, dstate, positions) = (tile.channels.len(), tile.dstate, plan.tile(k));
        let Room { b, h, grad_out, grads: [grad_y, ..], real_sums, .. } = &mut self.room;
        gather(&self.common.grad_out, plan.span.batch, positions, tile.channels.clone(), grad_out);
        real_sums.fill(0.0);
        for (t, &position) in positions.iter().enumerate() {
            for c in 0..width {
                let i = t * width + c;
                let row = i * dstate..(i + 1) * dstate;
                grad_y[i] = grad_out[i];
                if inputs.z.is_some() {
                    grad_y[i] = grad_out[i] * silu(tile.z[i]);
                    if let Some(out) = &mut outputs.z {
                        let y = tile.contract(t, c, &h[row.clone()], inputs.D.is_some());
                        let grad = grad_out[i] * y * silu_grad(tile.z[i]);
                        out.set([0, position - plan.span.range.start, c], I::store(cast_real(grad)));
                    }
                }
                real_sums[c * 2] += (grad_y[i] * tile.u[i]).to_f64();
                let scale = kappa::<K>(grad_y[i]);
                b[row].iter_mut().zip(tile.C.at(t, c)).for_each(|(g, &C)| *g = C.scale(scale));
            }
        }
        if let (Some(v), true) = (self.common.grad_last_state, k + 1 == plan.slots.len()) {
            let last = (positions.len() - 1) * width * dstate;
            for i in 0..width * dstate {
                let grad: K = cast(v.get(self.lane(i)));
                self.room.b[last + i] += grad.conj();
            }
        }
    }

    /// ∂u and ∂Δ of tile k, and the sums for A, B, C and Δ_bias.
    fn products(&mut self, k: usize, pieces: &mut Pieces<'_, K>) {
        let (plan, width) = (self.plan, self.tile.channels.len());
        let softplus = self.common.inputs.options.delta_softplus;
        let has_skip = self.common.inputs.D.is_some();
        self.room.sums.fill(K::Wide::ZERO);
        for (t, &position) in plan.tile(k).iter().enumerate() {
            let mut rows = pieces.rows(position - plan.span.range.start);
            for c in 0..width {
                let i = t * width + c;
                let before = if t > 0 { Some(None) } else { plan.slot(k).map(Some) };
                let (grad_u, grad_dt) = self.product(t, c, before, &mut rows);
                let tile = &self.tile;
                let [grad_y, grads_u, grads_delta] = &mut self.room.grads;
                grads_u[i] = if has_skip { grad_u + tile.skip[c] * grad_y[i] } else { grad_u };
                grads_delta[i] = if softplus { grad_dt * sigmoid(tile.raw[i]) } else { grad_dt };
                self.room.real_sums[c * 2 + 1] += grads_delta[i].to_f64();
            }
        }
    }

    /// The products of one step and channel, over all n. `before` says where h_{t−1} stands: nowhere, in h, or among the kept
    /// states. Returns the terms of ∂u and ∂Δ' that are sums over n.
    fn product(
        &mut self,
        t: usize,
        c: usize,
        before: Option<Option<usize>>,
        [rows_B, rows_C]: &mut [Option<&mut [K::Wide]>; 2],
    ) -> (K::Real, K::Real) {
        let Walker { tile, room, .. } = self;
        let (width, dstate, lanes) = (tile.channels.len(), tile.dstate, tile.lanes());
        let i = t * width + c;
        let (u, dt, grad_y) = (tile.u[i], tile.dt[i], kappa::<K>(room.grads[0][i]));
        let lane = i * dstate;
        let before = before.map(|kept| match kept {
            Some(slot) => &room.kept[slot * lanes + c * dstate..],
            None => &room.h[lane - lanes..],
        });
        let (mut sum_u, mut sum_dt) = (0.0, 0.0);
        for n in 0..dstate {
            let (A, B, h) = (tile.A[c * dstate + n], tile.B.at(t, c)[n], room.h[lane + n]);
            let rule = derivatives(tile.rule, dt, A, room.a[lane + n]);
            let lambda = room.lambda[lane + n].conj();
            let grad_abar = before.map_or(K::ZERO, |before| lambda * before[n].conj());
            let grad_bbar = lambda.scale(u);
            let mut grad_A = (grad_abar * rule.slope.conj()).scale(dt);
            if tile.rule != Rule::Euler {
                // Δ² may overflow where the curve is 0, so Euler's rule has no such term at all.
                grad_A += grad_bbar.scale(dt) * (B * rule.curve).scale(dt).conj();
            }
            let grad_B = (grad_bbar * rule.gamma.conj()).scale(dt);
            let grad_C = h.conj().scale(grad_y);
            let [sum_A, sum_B, sum_C] = room.sums[(c * dstate + n) * 3..].first_chunk_mut().expect("three sums a lane");
            *sum_A += cast(grad_A);
            *rows_B.as_mut().map_or(sum_B, |row| &mut row[n]) += cast(grad_B);
            *rows_C.as_mut().map_or(sum_C, |row| &mut row[n]) += cast(grad_C);
            sum_u += lambda.dot((rule.gamma * B).scale(dt)).to_f64();
            sum_dt += (grad_abar.dot(A * rule.slope) + grad_bbar.dot(B * rule.bslope)).to_f64();
        }
        (K::Real::from_f64(sum_u), K::Real::from_f64(sum_dt))
    }

    /// Writes ∂u and ∂Δ of tile k.
    fn store(&self, k: usize, outputs: &mut Outputs<'_, I, W>) {
        let width = self.tile.channels.len();
        let [_, grads_u, grads_delta] = &self.room.grads;
        for (out, values) in [(&mut outputs.u, grads_u), (&mut outputs.delta, grads_delta)] {
            let Some(out) = out else { continue };
            for (row, &position) in values.chunks(width).zip(self.plan.tile(k)) {
                let at = position - self.plan.span.range.start;
                row.iter().enumerate().for_each(|(c, &x)| out.set([0, at, c], I::store(cast_real(x))));
            }
        }
    }
}

/// κ·x.
fn kappa<K: Weight>(x: K::Real) -> K::Real {
    if K::COMPLEX { x + x } else { x }
}

/// The derivatives of `rule`; Mamba's are known from Ā.
#[inline(always)]
fn derivatives<K: Weight>(rule: Rule, dt: K::Real, A: K, abar: K) -> DiscreteGrad<K> {
    match rule {
        Rule::Euler => DiscreteGrad { abar, gamma: K::ONE, slope: abar, bslope: K::ONE, curve: K::ZERO },
        _ => rule.discretize_grad(dt, A),
    }
}
