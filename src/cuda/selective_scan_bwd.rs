//! The backward selective scan on the GPU.
//!
//! Time is cut into items of at most 128 steps, counted from the start of each sequence; `SeqIdx` packs whole short sequences and the last pieces of long ones
//! into one item; `plan` lists them. What an item makes from zero, the state at its end and the gradient at its beginning, is combined from item to item as
//! P·h + h_local, P the product of its decays, in f64 for `Carry::Compensated`. `rows` and `totals` add what blocks and items wrote apart, in f64 and in a fixed order.
//!
//! Euler's rule with real A, varying B and C and f32 arithmetic runs in tiles of 16 steps, sixteen states at a time: `local` and `lambda` make what items make from zero,
//! `carry` combines it, `states` writes the state before every tile, `back` walks tiles from the last to the first. Where rows fill the card, `states` and
//! `back` walk whole rows instead (`Regime::Walk`) and combine items on the way by the same operations: the same bits without `local`, `lambda` and `carry`.
//! The states before tiles are what a forward call may hand over.
//!
//! All else: `local` walks each item from zero; `carry`; `chunk` then walks each item ahead and back from the true state and the true gradient. Items are
//! independent, and both regimes run this way.

#![allow(non_snake_case)]

use super::chunks::runs;
use super::params::{Strided, optional, optional_mut, strided, strided_mut};
use super::{Cuda, Regime, launch::Grid, selective_scan_fwd};
use crate::buffer::Workspace;
use crate::element::{Dtype, Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::selective::{Carry, Coefficient, CoefficientGrad, SelectiveBwd, SelectiveGrads, SelectiveInputs, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Device, View};
use crate::workspace::{ALIGN, bytes_of};

pub(super) mod kernels;

use kernels::{
    CHUNK, CarryParams, Kind, Padding, PaddingParams, Plan, PlanParams, Rows, RowsParams, Tiles, Totals, TotalsParams, Types, Walk,
    WalkParams,
};

/// Bytes that the shares of ∂B and ∂C may take, unless a single item takes more.
const SHARES: usize = 256 << 20;
/// Steps between states that are kept, by the forward scan too.
pub(super) const KEPT: usize = Tiles::STEPS;
/// Bytes of an item's description, and of a sequence's.
const ITEM: usize = 32;
const RANGE: usize = 16;

/// A problem as its kernels see it.
#[derive(Debug, Clone, Copy)]
struct Shape {
    problem: SelectiveProblem,
    types: Types,
    fast: bool,
    /// In tiles.
    tiles: bool,
    /// Whether blocks may take whole rows.
    walk: bool,
    /// Channels that share their groups of B and of C, and blocks that they take.
    cell: usize,
    per_cell: usize,
    /// Blocks of channels.
    blocks: usize,
}

impl Shape {
    fn new<I: Input, W: Weight<Real = I::Accum>>(engine: &Cuda, problem: &SelectiveProblem) -> Self {
        let SelectiveProblem { batch, dim, dstate, groups_b, groups_c, options, .. } = *problem;
        let wide = options.carry == Carry::Compensated && I::DTYPE != Dtype::F64;
        let types = Types { storage: I::DTYPE, complex: W::COMPLEX, wide };
        let fast = !W::COMPLEX && !wide && options.rule == Rule::Euler && groups_b.is_some() && groups_c.is_some();
        let cells = runs(problem);
        let cell = dim / cells;
        let tiles = fast && types.arith() == 4;
        let channels = if tiles { Tiles::CHANNELS } else { Walk::new(types, fast, dstate, false).channels() };
        let per_cell = cell.div_ceil(channels);
        let blocks = cells.saturating_mul(per_cell);
        // Two blocks a multiprocessor take rows in full, or as good as.
        let many = batch.saturating_mul(blocks).saturating_mul(10) >= engine.properties().multiprocessors as usize * 2 * 9;
        let walk = tiles && engine.regime.map_or(many, |regime| regime == Regime::Walk);
        Shape { problem: *problem, types, fast, tiles, walk, cell, per_cell, blocks }
    }

    fn walk(&self, local: bool) -> Walk {
        Walk::new(self.types, self.fast, self.problem.dstate, local)
    }

    /// Bytes of (D, N) in the type that is computed in.
    fn state(&self) -> usize {
        let numbers = self.problem.dim.saturating_mul(self.problem.dstate);
        numbers.saturating_mul(self.types.parts() * self.types.arith())
    }

    /// Items that sequences of each kind may take; the largest count of all kinds where `None`.
    fn items(&self, kind: Option<i32>) -> usize {
        let SelectiveProblem { batch, seqlen, states, .. } = self.problem;
        let row = seqlen.div_ceil(CHUNK);
        match kind {
            Some(0) => batch.saturating_mul(row),
            Some(1) if states == 0 => 0,
            Some(1) => (seqlen / CHUNK).saturating_add(states),
            // Two neighbouring items of a row hold more than 128 steps together.
            Some(_) => batch.saturating_mul(2 * row + 1),
            None => (0..3).map(|kind| self.items(Some(kind))).max().unwrap_or(0),
        }
    }

    /// How many of B and C vary.
    fn varying(&self) -> usize {
        usize::from(self.problem.groups_b.is_some()) + usize::from(self.problem.groups_c.is_some())
    }

    /// Bytes of one item's shares of ∂B, or of ∂C.
    fn share(&self) -> usize {
        let numbers = self.blocks.saturating_mul(CHUNK).saturating_mul(self.problem.dstate);
        numbers.saturating_mul(self.types.parts() * self.types.arith())
    }

    /// Items whose shares are held at once.
    fn slab(&self, items: usize) -> usize {
        if self.walk {
            return items.max(1);
        }
        (SHARES / self.share().saturating_mul(self.varying()).max(1)).clamp(1, items.max(1))
    }

    /// Blocks of channels of a launch, times items or rows, that have room for their sums over states, where these are taken sixteen at a time.
    fn rooms(&self, items: usize) -> usize {
        if !self.multi() {
            return 0;
        }
        let most = (SHARES / (self.blocks.saturating_mul(Tiles::ROOM)).max(1)).clamp(1, items.max(1));
        if self.walk { most.max(self.problem.batch) } else { most }
    }

    /// In tiles, with more than sixteen states.
    fn multi(&self) -> bool {
        self.tiles && self.problem.dstate > Tiles::STATES
    }

    /// Bytes of the states before tiles.
    fn kept(&self, items: usize) -> usize {
        if self.tiles { items.saturating_mul(self.state()).saturating_mul(CHUNK / Tiles::STEPS) } else { 0 }
    }

    /// Bytes of the pieces of the workspace, in the order of [`Room`].
    fn pieces(&self, items: usize, list: bool, kept: bool) -> [usize; 12] {
        let SelectiveProblem { batch, seqlen, dim, states, .. } = self.problem;
        let state = items.saturating_mul(self.state());
        let shares = self.slab(items).saturating_mul(self.share());
        let only = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        [
            items.saturating_mul(ITEM),
            states.saturating_mul(RANGE),
            only(list, batch.saturating_mul(seqlen).saturating_mul(4)),
            state,
            state,
            state,
            items.saturating_mul(dim).saturating_mul(2 * self.types.arith()),
            only(self.problem.groups_b.is_some(), shares),
            only(self.problem.groups_c.is_some(), shares),
            only(self.tiles, state),
            only(kept, self.kept(items)),
            self.rooms(items).saturating_mul(self.blocks).saturating_mul(Tiles::ROOM),
        ]
    }
}

/// Bytes of workspace that [`backward`] takes.
pub(super) fn workspace<I: Input, W: Weight<Real = I::Accum>>(engine: &Cuda, problem: &SelectiveProblem) -> usize {
    let shape = Shape::new::<I, W>(engine, problem);
    let pieces = shape.pieces(shape.items(None), true, true);
    pieces.into_iter().fold(ALIGN, |sum, bytes| sum.saturating_add(bytes_of::<u8>(bytes)))
}

/// Bytes of the states before every 16 steps, as the forward scan keeps them or [`save`] writes them.
pub(super) fn saved<I: Input, W: Weight<Real = I::Accum>>(engine: &Cuda, problem: &SelectiveProblem) -> usize {
    let shape = Shape::new::<I, W>(engine, problem);
    shape.kept(shape.items(None))
}

/// Addresses of the pieces of the workspace.
#[derive(Debug, Clone, Copy)]
struct Room {
    items: i64,
    ranges: i64,
    /// Positions of every row that hold data; 0 but for `SeqIdx`.
    list: i64,
    /// Products of decays, then shares of ∂A.
    prod: i64,
    /// States before items, then shares of a constant ∂B.
    state: i64,
    /// Gradients of states after items, then shares of a constant ∂C.
    lambda: i64,
    /// Shares of ∂D and ∂bias.
    rows: i64,
    /// Shares of ∂B and ∂C of a slab.
    shares: [i64; 2],
    /// Products of decays for gradients.
    decay: i64,
    /// States before tiles.
    kept: i64,
    /// Sums over states.
    sums: i64,
}

impl Room {
    /// With the states before tiles at `kept`, or in the workspace.
    fn new(shape: &Shape, items: usize, list: bool, kept: Option<i64>, ws: &mut Workspace<'_, Device>) -> Result<Self, Error> {
        let mut at = [0; 12];
        for (at, bytes) in at.iter_mut().zip(shape.pieces(items, list, kept.is_none())) {
            let piece = ws.tensor::<u8, 1>([bytes])?;
            *at = if bytes == 0 { 0 } else { strided_mut::<u8, 1, 2>(&piece)[0] };
        }
        let [items, ranges, list, prod, state, lambda, rows, b, c, decay, own, sums] = at;
        let kept = kept.unwrap_or(own);
        Ok(Room { items, ranges, list, prod, state, lambda, rows, shares: [b, c], decay, kept, sums })
    }
}

/// States of a row before tiles where the forward scan has kept them; 0 where [`save`] has.
fn kept_row<I: Input, W: Weight<Real = I::Accum>>(args: &SelectiveBwd<'_, I, W, Device>, shape: &Shape) -> i64 {
    let forward = shape.tiles && selective_scan_fwd::keeps::<I, W>(&shape.problem, &args.inputs.sequences);
    if forward { shape.problem.seqlen.div_ceil(KEPT) as i64 } else { 0 }
}

/// The backward scan; `saved` is what the forward scan has kept, or [`save`] has written, for the same inputs.
pub(super) fn backward<I: Input, W: Weight<Real = I::Accum>>(
    engine: &Cuda,
    args: SelectiveBwd<'_, I, W, Device>,
    saved: Option<i64>,
    ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    let mut ws = ws.reborrow();
    let run = Run::new(engine, &args, saved, &mut ws)?;
    run.plan(args.inputs.initial_state.is_some())?;
    run.padding(&args.grads)?;
    let mut params = run.walk_params(&args);
    if saved.is_some() {
        params.kept_row = kept_row(&args, &run.shape);
    }
    if run.shape.tiles {
        if saved.is_none() {
            run.states(&args, &params)?;
        }
        run.tiles(&args, &params)?;
        return run.totals(&args.grads);
    }
    // A sequence of one item only asks what reaches its initial state.
    if run.shape.problem.seqlen > CHUNK || args.grads.initial_state.is_some() {
        run.walk(true, 0, run.items, &params)?;
    }
    run.carry(&args, Known::Nothing)?;
    run.slabs(&params, &args.grads)?;
    run.totals(&args.grads)
}

/// Writes the states before every 16 steps to `saved`, for [`backward`].
pub(super) fn save<I: Input, W: Weight<Real = I::Accum>>(
    engine: &Cuda,
    inputs: SelectiveInputs<'_, I, W, Device>,
    saved: i64,
    ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    // No gradient is wanted; any operand by position stands for that of out.
    let args = SelectiveBwd { inputs, grad_out: inputs.u, grad_last_state: None, grads: SelectiveGrads::default() };
    let mut ws = ws.reborrow();
    let run = Run::new(engine, &args, Some(saved), &mut ws)?;
    run.plan(inputs.initial_state.is_some())?;
    run.states(&args, &run.walk_params(&args))
}

/// What of the carry is known already, or nobody's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    States,
    Gradients,
}

/// One call.
struct Run<'e> {
    engine: &'e Cuda,
    shape: Shape,
    room: Room,
    items: usize,
    kind: i32,
    sequences: Strided<3>,
}

fn flag(condition: bool) -> i32 {
    i32::from(condition)
}

/// B or C: where it lies, its number of groups, and whether time lies closer in memory than states.
fn coefficient<I: Input, W: Weight<Real = I::Accum>>(v: &Coefficient<'_, I, W, 4, Device>) -> (Strided<5>, usize, bool) {
    match v {
        Coefficient::Constant(v) => {
            let [address, d, n]: Strided<3> = strided(v);
            ([address, d, n, 0, 0], 1, false)
        }
        Coefficient::Varying(v) => {
            let at: Strided<5> = strided(v);
            let [_, seqlen, groups, dstate] = v.dims();
            (at, groups, along(seqlen, dstate, at[2], at[4]))
        }
    }
}

/// Whether neighbours in time lie closer than those along an axis of `other` elements.
fn along(seqlen: usize, other: usize, time: i64, stride: i64) -> bool {
    other == 1 || (seqlen > 1 && time.unsigned_abs() < stride.unsigned_abs())
}

/// The gradient of a varying B or C.
type Varying<'v, 'a, I, W> = Option<&'v crate::view::ViewMut<'a, <W as Weight>::Stored<I>, 4, Device>>;

fn varying<'v, 'a, I: Input, W: Weight<Real = I::Accum>>(grad: Option<&'v CoefficientGrad<'a, I, W, Device>>) -> Varying<'v, 'a, I, W> {
    match grad {
        Some(CoefficientGrad::Varying(v)) => Some(v),
        _ => None,
    }
}

/// The gradient of a constant B or C; zeros where there is none.
fn constant<I: Input, W: Weight<Real = I::Accum>>(grad: Option<&CoefficientGrad<'_, I, W, Device>>) -> Strided<3> {
    match grad {
        Some(CoefficientGrad::Constant(v)) => strided_mut(v),
        _ => [0; 3],
    }
}

impl<'e> Run<'e> {
    fn new<I: Input, W: Weight<Real = I::Accum>>(
        engine: &'e Cuda,
        args: &SelectiveBwd<'_, I, W, Device>,
        saved: Option<i64>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<Self, Error> {
        let shape = Shape::new::<I, W>(engine, &args.check()?);
        let (kind, sequences) = match &args.inputs.sequences {
            Sequences::Rows => (0, [0; 3]),
            Sequences::CuSeqlens(v) => {
                let [address, stride]: Strided<2> = strided(v);
                (1, [address, stride, 0])
            }
            Sequences::SeqIdx(v) => (2, strided(v)),
        };
        let SelectiveProblem { seqlen, .. } = shape.problem;
        if kind == 2 && seqlen >= 1 << 31 {
            return Err(Error::Unsupported { what: format!("seq_idx with rows of {seqlen} positions") });
        }
        let items = shape.items(Some(kind));
        let room = Room::new(&shape, items, kind == 2, saved, ws)?;
        Ok(Run { engine, shape, room, items, kind, sequences })
    }

    fn plan(&self, initial: bool) -> Result<(), Error> {
        let SelectiveProblem { batch, seqlen, states, .. } = self.shape.problem;
        let row = seqlen.div_ceil(CHUNK);
        let params = PlanParams {
            sequences: self.sequences,
            items: self.room.items,
            ranges: self.room.ranges,
            list: self.room.list,
            count: self.items as i64,
            states: if self.kind == 2 { batch } else { states } as i64,
            seqlen: seqlen as i64,
            per_row: if self.kind == 2 { 2 * row + 1 } else { row } as i64,
            kind: self.kind,
            initial: flag(initial),
        };
        let threads = if self.kind == 2 { batch.saturating_mul(32) } else { self.items.max(states) };
        self.engine.run(&Plan, Grid::new(threads.div_ceil(128), 128), &params)
    }

    /// Gradients by position are 0 at padding.
    fn padding<I: Input, W: Weight<Real = I::Accum>>(&self, grads: &SelectiveGrads<'_, I, W, Device>) -> Result<(), Error> {
        if self.kind != 2 || self.sequences[0] == 0 {
            return Ok(());
        }
        let SelectiveProblem { batch, seqlen, dim, dstate, .. } = self.shape.problem;
        let clear = |grad: Strided<5>, outer: usize, inner: usize, pair: bool| {
            let [rows, seqlen, outer, inner] = [batch, seqlen, outer, inner].map(|n| n as i64);
            let params = PaddingParams { ids: self.sequences, grad, rows, seqlen, outer, inner };
            self.engine.run(
                &Padding { bytes: size_of::<I>(), pair },
                Grid::new((batch * self.shape.problem.seqlen).div_ceil(128), 128),
                &params,
            )
        };
        for v in [&grads.u, &grads.delta, &grads.z].into_iter().flatten() {
            let [address, row, time, channel]: Strided<4> = strided_mut(v);
            clear([address, row, time, channel, 0], dim, 1, false)?;
        }
        for v in [varying(grads.B.as_ref()), varying(grads.C.as_ref())].into_iter().flatten() {
            clear(strided_mut(v), v.dims()[2], dstate, W::COMPLEX)?;
        }
        Ok(())
    }

    fn walk_params<I: Input, W: Weight<Real = I::Accum>>(&self, args: &SelectiveBwd<'_, I, W, Device>) -> WalkParams {
        let (shape, room, inputs, grads) = (&self.shape, &self.room, &args.inputs, &args.grads);
        let SelectiveProblem { seqlen, dim, dstate, groups_b, groups_c, options, .. } = shape.problem;
        let ((B, groups_of_b, along_b), (C, groups_of_c, along_c)) = (coefficient(&inputs.B), coefficient(&inputs.C));
        let u: Strided<4> = strided(&inputs.u);
        let wanted = |grad: bool, address: i64| if grad { address } else { 0 };
        WalkParams {
            u,
            delta: strided(&inputs.delta),
            z: optional(inputs.z.as_ref()),
            gout: strided(&args.grad_out),
            A: strided(&inputs.A),
            B,
            C,
            D: optional(inputs.D.as_ref()),
            bias: optional(inputs.delta_bias.as_ref()),
            gu: optional_mut(grads.u.as_ref()),
            gdelta: optional_mut(grads.delta.as_ref()),
            gz: optional_mut(grads.z.as_ref()),
            items: room.items,
            list: room.list,
            prod: room.prod,
            state: room.state,
            lambda: room.lambda,
            part_b: wanted(grads.B.is_some(), room.shares[0]),
            part_c: wanted(grads.C.is_some(), room.shares[1]),
            rows: room.rows,
            dim: dim as i64,
            dstate: dstate as i64,
            seqlen: seqlen as i64,
            first: 0,
            cell: shape.cell as i64,
            width_b: (dim / groups_of_b) as i64,
            width_c: (dim / groups_of_c) as i64,
            blocks: shape.blocks as i32,
            per_cell: shape.per_cell as i32,
            slab: shape.slab(self.items) as i32,
            softplus: flag(options.delta_softplus),
            rule: match options.rule {
                Rule::Euler => 0,
                Rule::Zoh => 1,
                Rule::Bilinear => 2,
            },
            along: flag(along(seqlen, dim, u[2], u[3])),
            along_b: flag(along_b),
            along_c: flag(along_c),
            vary_b: flag(groups_b.is_some()),
            vary_c: flag(groups_c.is_some()),
            state_blocks: dstate.div_ceil(Tiles::STATES) as i32,
            unused: 0,
            kept: room.kept,
            kept_row: 0,
            kept_step: (dim * dstate * 4) as i64,
            per_row: seqlen.div_ceil(CHUNK) as i64,
            room: room.sums,
            decay: room.decay,
            initial: optional(inputs.initial_state.as_ref()),
            grad_last: optional(args.grad_last_state.as_ref()),
            grad_initial: optional_mut(grads.initial_state.as_ref()),
        }
    }

    /// `count` items from `first` on.
    fn walk(&self, local: bool, first: usize, count: usize, params: &WalkParams) -> Result<(), Error> {
        let walk = self.shape.walk(local);
        let mut grid = Grid::new(count * self.shape.blocks, walk.threads() as u32);
        grid.shared = walk.shared() as u32;
        self.engine.run(&walk, grid, &WalkParams { first: first as i64, ..*params })
    }

    /// One kernel in tiles over `count` items from `first` on, or over as many rows from the first one on.
    fn tile(&self, kind: Kind, walk: bool, [first, count]: [usize; 2], params: &WalkParams) -> Result<(), Error> {
        let multi = self.shape.multi();
        let kernel = Tiles { storage: self.shape.types.storage, kind, walk, multi };
        // All but the gradients take states side by side.
        let states = if multi && kind != Kind::Back { self.shape.problem.dstate.div_ceil(Tiles::STATES) } else { 1 };
        let mut grid = Grid::new(count * self.shape.blocks * states, Tiles::THREADS as u32);
        grid.shared = kernel.shared() as u32;
        self.engine.run(&kernel, grid, &WalkParams { first: first as i64, ..*params })
    }

    /// Rows that blocks walk; none where items run side by side.
    fn walked(&self) -> Option<usize> {
        let SelectiveProblem { batch, seqlen, .. } = self.shape.problem;
        (self.kind == 0 && self.shape.walk && seqlen > 0).then_some(batch)
    }

    /// The states before every tile: of whole rows by blocks that walk, or of items side by side.
    fn states<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: &SelectiveBwd<'_, I, W, Device>,
        params: &WalkParams,
    ) -> Result<(), Error> {
        if let Some(rows) = self.walked() {
            return self.tile(Kind::States, true, [0, rows], params);
        }
        if self.shape.problem.seqlen > CHUNK {
            self.tile(Kind::Local, false, [0, self.items], params)?;
        }
        self.carry(args, Known::Gradients)?;
        self.tile(Kind::States, false, [0, self.items], params)
    }

    /// The gradients from the states before tiles.
    fn tiles<I: Input, W: Weight<Real = I::Accum>>(&self, args: &SelectiveBwd<'_, I, W, Device>, params: &WalkParams) -> Result<(), Error> {
        if let Some(rows) = self.walked() {
            self.tile(Kind::Back, true, [0, rows], params)?;
            return self.shares(&args.grads, 0, self.items);
        }
        if self.shape.problem.seqlen > CHUNK || args.grads.initial_state.is_some() {
            self.tile(Kind::Lambda, false, [0, self.items], params)?;
        }
        self.carry(args, Known::States)?;
        let slab = self.shape.slab(self.items);
        let slab = if self.shape.multi() { slab.min(self.shape.rooms(self.items)) } else { slab };
        for first in (0..self.items).step_by(slab) {
            let count = slab.min(self.items - first);
            self.tile(Kind::Back, false, [first, count], params)?;
            self.shares(&args.grads, first, count)?;
        }
        Ok(())
    }

    fn carry<I: Input, W: Weight<Real = I::Accum>>(&self, args: &SelectiveBwd<'_, I, W, Device>, known: Known) -> Result<(), Error> {
        let SelectiveProblem { dim, dstate, states, .. } = self.shape.problem;
        let state = |v: Option<&View<'_, W, 3, Device>>| -> Strided<4> { optional(v) };
        let params = CarryParams {
            initial: state(args.inputs.initial_state.as_ref()),
            grad_last: state(args.grad_last_state.as_ref()),
            grad_initial: optional_mut(args.grads.initial_state.as_ref()),
            items: self.room.items,
            ranges: self.room.ranges,
            prod: self.room.prod,
            state: self.room.state,
            lambda: self.room.lambda,
            states: states as i64,
            dim: dim as i64,
            dstate: dstate as i64,
            decay: if self.shape.tiles { self.room.decay } else { self.room.prod },
            known: known as i64,
        };
        let grid = Grid::new(states.saturating_mul(dim).saturating_mul(dstate).div_ceil(128), 128);
        self.engine.run(&kernels::Carry(self.shape.types.weights_only()), grid, &params)
    }

    /// The gradients, as many items at a time as the shares of B and C have room for. No bit depends on how many.
    fn slabs<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        params: &WalkParams,
        grads: &SelectiveGrads<'_, I, W, Device>,
    ) -> Result<(), Error> {
        let slab = self.shape.slab(self.items);
        for first in (0..self.items).step_by(slab) {
            let count = slab.min(self.items - first);
            self.walk(false, first, count, params)?;
            self.shares(grads, first, count)?;
        }
        Ok(())
    }

    /// ∂B and ∂C of the items of a slab.
    fn shares<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        grads: &SelectiveGrads<'_, I, W, Device>,
        first: usize,
        count: usize,
    ) -> Result<(), Error> {
        for (grad, parts) in [&grads.B, &grads.C].into_iter().zip(self.room.shares) {
            if let Some(v) = varying(grad.as_ref()) {
                self.rows(strided_mut(v), v.dims()[2], parts, [first, count])?;
            }
        }
        Ok(())
    }

    fn rows(&self, grad: Strided<5>, groups: usize, parts: i64, [first, count]: [usize; 2]) -> Result<(), Error> {
        let SelectiveProblem { seqlen, dstate, .. } = self.shape.problem;
        let params = RowsParams {
            grad,
            items: self.room.items,
            list: self.room.list,
            parts,
            first: first as i64,
            slab: count as i64,
            stride: self.shape.slab(self.items) as i64,
            per_group: (self.shape.blocks / groups) as i64,
            groups: groups as i64,
            dstate: dstate as i64,
            seqlen: seqlen as i64,
        };
        let grid = Grid::new((count * CHUNK * groups * dstate).div_ceil(128), 128);
        self.engine.run(&Rows(self.shape.types), grid, &params)
    }

    /// Sums over items.
    fn totals<I: Input, W: Weight<Real = I::Accum>>(&self, grads: &SelectiveGrads<'_, I, W, Device>) -> Result<(), Error> {
        let SelectiveProblem { dim, dstate, .. } = self.shape.problem;
        let types = self.shape.types.weights_only();
        let sum = |grad: Strided<3>, parts: i64, columns: usize, stride: usize, complex: bool| {
            if grad[0] == 0 {
                return Ok(());
            }
            let inner = dim * columns;
            let params = TotalsParams {
                grad,
                items: self.room.items,
                parts,
                count: self.items as i64,
                inner: inner as i64,
                columns: columns as i64,
                stride: stride as i64,
            };
            self.engine.run(&Totals(Types { complex, ..types }), Grid::new(inner.div_ceil(32), 256), &params)
        };
        let (state, row) = (self.shape.state(), dim * types.arith());
        sum(optional_mut(grads.A.as_ref()), self.room.prod, dstate, state, types.complex)?;
        sum(constant(grads.B.as_ref()), self.room.state, dstate, state, types.complex)?;
        sum(constant(grads.C.as_ref()), self.room.lambda, dstate, state, types.complex)?;
        for (grad, parts) in [(&grads.D, self.room.rows), (&grads.delta_bias, self.room.rows + row as i64)] {
            let [address, stride]: Strided<2> = optional_mut(grad.as_ref());
            sum([address, stride, 0], parts, 1, 2 * row, false)?;
        }
        Ok(())
    }
}
