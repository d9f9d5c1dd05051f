//! Layer 1 on the GPU: the linear recurrence, forward, reverse and adjoint.
//!
//! A row is cut into segments of 32 runs of a few steps, counted from its start in scan order. Every way to run it combines runs and segments in
//! the same order, so layout, regime and launch change no bits.

use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{Strided, optional, optional_mut, params, storage, strided, strided_mut};
use super::template::{Template, template};
use super::{Cuda, Regime};
use crate::buffer::Workspace;
use crate::element::{Dtype, Element};
use crate::error::Error;
use crate::regime::{Call, Gpu, Reason};
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use crate::view::{Device, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Warps of a block that takes a row, at most.
const WARPS: usize = 4;
/// The same of the adjoint, which walks a row twice: fewer rows are under way at once, so that the second walk meets them in the second-level cache.
const WARPS_BACK: usize = 16;
/// Rows a multiprocessor from which on they fill a card without a split.
const FULL_ROWS: usize = 16;
/// Segments up to which a split does not pay.
const FEW_SEGMENTS: usize = 7;

/// An element type as templates see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind(Dtype);

/// The types, in the order of tables.
const KINDS: [Kind; 8] = [
    Kind(Dtype::F32),
    Kind(Dtype::F64),
    Kind(Dtype::F16),
    Kind(Dtype::Bf16),
    Kind(Dtype::C32),
    Kind(Dtype::C64),
    Kind(Dtype::Cf16),
    Kind(Dtype::Cbf16),
];

impl Kind {
    fn of<E: Element>() -> Self {
        Kind(E::DTYPE)
    }

    /// The storage type of a part, and whether there are two.
    fn parts(self) -> (Dtype, bool) {
        match self.0 {
            Dtype::C32 => (Dtype::F32, true),
            Dtype::C64 => (Dtype::F64, true),
            Dtype::Cf16 => (Dtype::F16, true),
            Dtype::Cbf16 => (Dtype::Bf16, true),
            real => (real, false),
        }
    }

    /// The type that it is computed in.
    fn arith(self) -> Self {
        Kind(match self.parts() {
            (Dtype::F64, false) => Dtype::F64,
            (Dtype::F64, true) => Dtype::C64,
            (_, false) => Dtype::F32,
            (_, true) => Dtype::C32,
        })
    }

    /// Steps of a run.
    fn run(self) -> usize {
        if self.0 == Dtype::C64 { 4 } else { 8 }
    }

    /// Segments of a row.
    fn segments(self, seqlen: usize) -> usize {
        seqlen.div_ceil(32 * self.run())
    }

    /// Channels of a strip, at most, as a power of two.
    fn shift(self) -> u32 {
        if self.0 == Dtype::C64 { 3 } else { 4 }
    }

    fn vars(self) -> Vars {
        let (part, complex) = self.parts();
        let vars = storage(Vars::new(), part).flag("X", complex).int("K", self.run());
        let (bytes, arith_bytes) = match part {
            Dtype::F64 => (8, 8),
            Dtype::F32 => (4, 4),
            _ => (2, 4),
        };
        let (zero, one) = if arith_bytes == 8 { ("0d0000000000000000", "0d3FF0000000000000") } else { ("0f00000000", "0f3F800000") };
        let parts = 1 + i64::from(complex);
        let vars = vars.int("EB", bytes * parts).int("SB", arith_bytes * parts).text("zero", zero).text("one", one);
        vars.int("one_bits", if part == Dtype::Bf16 { 0x3f80 } else { 0x3c00 })
    }
}

/// A variant of the forward kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    kind: Kind,
    /// Whether neighbouring threads take neighbouring channels; or else neighbouring runs of a row.
    strip: bool,
}

/// A variant of the adjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backward(Forward);

/// A variant of the scan over segments: an arithmetic type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carry(Kind);

/// What a launch is for.
mod mode {
    pub const WALK: u32 = 0;
    pub const PAIRS: u32 = 1;
    pub const STATES: u32 = 2;
    pub const FROM_STATES: u32 = 3;
    /// Of the adjoint by rows: states forwards, then backwards.
    pub const BOTH: u32 = 4;
}

params! {
    /// Parameters of the forward kernel.
    pub struct ForwardParams {
        a: Strided<4>,
        b: Strided<4>,
        h: Strided<4>,
        initial: Strided<3>,
        last: Strided<3>,
        /// Of segments, (B·D, segments).
        products: u64,
        states: u64,
        seqlen: u64,
        dim: u64,
        segments: u64,
        mode: u32,
        /// How memory is read and written, see `access`.
        mode_a: u32,
        mode_b: u32,
        mode_h: u32,
        /// Blocks of one tile of time; those of a batch row; tiles that a block takes.
        blocks: u32,
        across: u32,
        tiles: u32,
        /// Channels of a strip, as a power of two.
        shift: u32,
    }
}

params! {
    /// Parameters of the adjoint.
    pub struct BackwardParams {
        a: Strided<4>,
        b: Strided<4>,
        grad_h: Strided<4>,
        grad_a: Strided<4>,
        grad_b: Strided<4>,
        initial: Strided<3>,
        grad_last: Strided<3>,
        grad_initial: Strided<3>,
        /// Of segments, (B·D, segments).
        products: u64,
        states: u64,
        grads: u64,
        seqlen: u64,
        dim: u64,
        segments: u64,
        mode: u32,
        mode_a: u32,
        mode_b: u32,
        mode_g: u32,
        mode_ga: u32,
        mode_gb: u32,
        has_initial: u32,
        blocks: u32,
        across: u32,
        tiles: u32,
        shift: u32,
        unused: u32,
    }
}

params! {
    /// Parameters of the scan over segments.
    pub struct CarryParams {
        start: Strided<3>,
        end: Strided<3>,
        products: u64,
        sums: u64,
        rows: u64,
        dim: u64,
        segments: u64,
        reverse: u32,
        unused: u32,
    }
}

impl Forward {
    fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter().flat_map(|kind| [false, true].map(|strip| Forward { kind, strip }))
    }

    fn suffix(self) -> String {
        format!("{}_{}", self.kind.0.name(), if self.strip { "strip" } else { "rows" })
    }

    fn variables(self, warps: usize) -> Vars {
        let threads = if self.strip { 32 << self.kind.shift() } else { 32 * warps };
        self.kind.vars().flag("strip", self.strip).int("MAXT", threads).int("W", warps)
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = template!("linear_scan");
    type Params = ForwardParams;

    fn entry(&self) -> String {
        format!("linear_scan_{}", self.suffix())
    }

    fn vars(&self) -> Vars {
        self.variables(WARPS)
    }

    fn shipped() -> Vec<Self> {
        Forward::all().collect()
    }
}

impl Kernel for Backward {
    const TEMPLATE: Template = template!("linear_scan_bwd");
    type Params = BackwardParams;

    fn entry(&self) -> String {
        format!("linear_scan_bwd_{}", self.0.suffix())
    }

    fn vars(&self) -> Vars {
        self.0.variables(WARPS_BACK)
    }

    fn shipped() -> Vec<Self> {
        Forward::all().map(Backward).collect()
    }
}

impl Kernel for Carry {
    const TEMPLATE: Template = template!("linear_scan_carry");
    type Params = CarryParams;

    fn entry(&self) -> String {
        format!("linear_scan_carry_{}", self.0.0.name())
    }

    fn vars(&self) -> Vars {
        self.0.vars()
    }

    fn shipped() -> Vec<Self> {
        [Dtype::F32, Dtype::F64, Dtype::C32, Dtype::C64].map(|dtype| Carry(Kind(dtype))).into()
    }
}

/// How a row's steps lie: 1 where they are contiguous and every run starts at a multiple of 16 bytes, 2 where they are so backwards, 0 otherwise.
fn access([address, batch, step, dim]: Strided<4>, kind: Kind, element: usize) -> u32 {
    let (element, run) = (element as i64, kind.run() as i64);
    let aligned = |first: i64| [first, batch, dim].iter().all(|x| x % 16 == 0);
    match step {
        _ if step == element && aligned(address) => 1,
        _ if step == -element && aligned(address - (run - 1) * element) => 2,
        _ => 0,
    }
}

/// Whether neighbouring threads should take channels: more of the tensors have neighbouring channels than neighbouring steps.
fn strip(tensors: &[Strided<4>], problem: ScanProblem, element: usize) -> bool {
    let near = |axis: usize| tensors.iter().filter(|t| t[0] != 0 && t[axis].unsigned_abs() == element as u64).count();
    near(3) > near(2) || problem.batch.saturating_mul(problem.dim) > i32::MAX as usize
}

/// How a problem is spread over blocks.
struct Spread {
    threads: u32,
    /// Blocks side by side, those of a batch row, tiles of time.
    blocks: usize,
    across: usize,
    tiles: usize,
    shift: u32,
}

impl Forward {
    fn spread(self, problem: ScanProblem, most: usize) -> Spread {
        let ScanProblem { batch, seqlen, dim } = problem;
        let segments = self.kind.segments(seqlen);
        if self.strip {
            let mut shift = self.kind.shift();
            while shift > 0 && dim <= 1 << (shift - 1) {
                shift -= 1;
            }
            let across = dim.div_ceil(1 << shift);
            return Spread { threads: 32 << shift, blocks: batch.saturating_mul(across), across, tiles: segments, shift };
        }
        let warps = segments.clamp(1, most);
        let (blocks, tiles) = (batch.saturating_mul(dim), segments.div_ceil(warps));
        Spread { threads: 32 * warps as u32, blocks, across: dim, tiles, shift: 0 }
    }
}

impl Spread {
    /// The grid, and the tiles that a block takes.
    fn grid(&self, mode: u32) -> (Grid, u32) {
        let split = matches!(mode, mode::PAIRS | mode::FROM_STATES);
        let (times, tiles) = if split { (self.tiles, 1) } else { (1, self.tiles) };
        (Grid::new(self.blocks.saturating_mul(times), self.threads), tiles as u32)
    }

    fn check(&self) -> Result<(), Error> {
        let what = || format!("linear_scan of {} rows and {} tiles of time", self.blocks, self.tiles);
        if self.blocks.max(self.tiles).max(self.across) > i32::MAX as usize { Err(Error::Unsupported { what: what() }) } else { Ok(()) }
    }
}

/// The address of a piece of workspace.
fn address<T: Copy>(piece: &ViewMut<'_, T, 2, Device>) -> u64 {
    strided_mut::<T, 2, 3>(piece)[0] as u64
}

/// How it runs on a card, and why; no bit depends on it.
fn reason(problem: ScanProblem, kind: Kind, gpu: &Gpu) -> Reason {
    // A warp takes a row.
    let rows = problem.batch.saturating_mul(problem.dim);
    let [walkers, from] = [rows, FULL_ROWS * gpu.multiprocessors as usize].map(|warps| warps.saturating_mul(32));
    Reason::of(walkers, from, problem.seqlen, FEW_SEGMENTS * 32 * kind.run())
}

/// The same, for planners.
pub(super) fn planned(problem: ScanProblem, call: Call, gpu: &Gpu) -> Reason {
    let kind = Kind(match (call.input, call.complex) {
        (Dtype::F32, true) => Dtype::C32,
        (Dtype::F64, true) => Dtype::C64,
        (Dtype::F16, true) => Dtype::Cf16,
        (Dtype::Bf16, true) => Dtype::Cbf16,
        (real, _) => real,
    });
    reason(problem, kind, gpu)
}

impl Cuda {
    fn scan_splits(&self, problem: ScanProblem, kind: Kind) -> bool {
        self.settle(reason(problem, kind, &self.gpu())).regime() == Regime::Split
    }

    /// Bytes of `count` numbers for each segment.
    fn scan_pieces<E: Element>(problem: ScanProblem, count: usize) -> usize {
        let segments = Kind::of::<E>().segments(problem.seqlen);
        let numbers = problem.batch.saturating_mul(problem.dim).saturating_mul(segments);
        if count == 0 { 0 } else { bytes_of::<E::Arith>(numbers).saturating_mul(count).saturating_add(ALIGN) }
    }

    /// The scan over segments.
    fn scan_carry<E: Element>(
        &self,
        problem: ScanProblem,
        start: Option<&View<'_, E::Arith, 2, Device>>,
        (products, sums): (u64, u64),
        reverse: bool,
    ) -> Result<(), Error> {
        let (rows, segments) = (problem.batch * problem.dim, Kind::of::<E>().segments(problem.seqlen) as u64);
        let (start, reverse, dim) = (optional(start), u32::from(reverse), problem.dim as u64);
        let params = CarryParams { start, products, sums, rows: rows as u64, dim, segments, reverse, ..Default::default() };
        self.run(&Carry(Kind::of::<E>().arith()), Grid::new(rows.div_ceil(4), 128), &params)
    }

    /// A scan of no steps: the last state is the first, or 0.
    fn scan_empty<E: Element>(
        &self,
        problem: ScanProblem,
        start: Option<&View<'_, E::Arith, 2, Device>>,
        end: Option<&ViewMut<'_, E::Arith, 2, Device>>,
    ) -> Result<(), Error> {
        let rows = if end.is_some() { problem.batch.saturating_mul(problem.dim) } else { 0 };
        let params = CarryParams {
            start: optional(start),
            end: optional_mut(end),
            rows: rows as u64,
            dim: problem.dim as u64,
            ..Default::default()
        };
        self.run(&Carry(Kind::of::<E>().arith()), Grid::new(rows.div_ceil(4), 128), &params)
    }
}

impl Scan for Cuda {
    type Memory = Device;

    fn scan_fwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        Cuda::scan_pieces::<E>(problem, if self.scan_splits(problem, Kind::of::<E>()) { 2 } else { 0 })
    }

    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        let problem @ ScanProblem { batch, seqlen, dim } = args.check()?;
        let ScanFwd { a, b, initial_state, h, last_state, .. } = args.forwards();
        if seqlen == 0 {
            return self.scan_empty::<E>(problem, initial_state.as_ref(), last_state.as_ref());
        }
        let (a, b, h, kind, element) = (strided(&a), strided(&b), strided_mut(&h), Kind::of::<E>(), size_of::<E>());
        let kernel = Forward { kind, strip: strip(&[a, b, h], problem, element) };
        let spread = kernel.spread(problem, WARPS);
        spread.check()?;
        let [mode_a, mode_b, mode_h] = [a, b, h].map(|v| access(v, kind, element));
        let (initial, last) = (optional(initial_state.as_ref()), optional_mut(last_state.as_ref()));
        let segments = kind.segments(seqlen);
        let (blocks, across, shift) = (spread.blocks as u32, spread.across as u32, spread.shift);
        let (seqlen, dim_param) = (seqlen as u64, dim as u64);
        let mut params =
            ForwardParams { a, b, h, initial, last, mode_a, mode_b, mode_h, seqlen, blocks, across, shift, ..Default::default() };
        (params.dim, params.segments) = (dim_param, segments as u64);
        let launch = |mode: u32, mut params: ForwardParams| {
            let (grid, tiles) = spread.grid(mode);
            (params.mode, params.tiles) = (mode, tiles);
            self.run(&kernel, grid, &params)
        };
        if !self.scan_splits(problem, kind) {
            return launch(mode::WALK, params);
        }
        let rows = batch * dim;
        let (products, states) = (ws.tensor::<E::Arith, 2>([rows, segments])?, ws.tensor::<E::Arith, 2>([rows, segments])?);
        (params.products, params.states) = (address(&products), address(&states));
        launch(mode::PAIRS, params)?;
        self.scan_carry::<E>(problem, initial_state.as_ref(), (params.products, params.states), false)?;
        launch(mode::FROM_STATES, params)
    }

    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize {
        Cuda::scan_pieces::<E>(problem, if self.scan_splits(problem, Kind::of::<E>()) { 3 } else { 1 })
    }

    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E, Device>, ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        let problem @ ScanProblem { batch, seqlen, dim } = args.check()?;
        let args = args.forwards();
        if seqlen == 0 {
            return self.scan_empty::<E>(problem, args.grad_last_state.as_ref(), args.grad_initial_state.as_ref());
        }
        let (kind, element) = (Kind::of::<E>(), size_of::<E>());
        let (mut params, kernel) = backward::<E>(&args, problem);
        let spread = kernel.spread(problem, WARPS_BACK);
        spread.check()?;
        (params.blocks, params.across, params.shift) = (spread.blocks as u32, spread.across as u32, spread.shift);
        let launch = |mode: u32, mut params: BackwardParams| {
            let (grid, tiles) = spread.grid(mode);
            (params.mode, params.tiles) = (mode, tiles);
            self.run(&Backward(kernel), grid, &params)
        };
        let (rows, segments) = (batch * dim, kind.segments(seqlen));
        let states = ws.tensor::<E::Arith, 2>([rows, segments])?;
        params.states = address(&states);
        if !self.scan_splits(problem, kind) && !kernel.strip {
            return launch(mode::BOTH, params);
        }
        if !self.scan_splits(problem, kind) {
            let (grid, tiles) = spread.grid(mode::STATES);
            let [mode_a, mode_b] = [params.a, params.b].map(|v| access(v, kind, element));
            let BackwardParams { a, b, states, seqlen, dim, segments, blocks, across, shift, .. } = params;
            let initial = optional(args.initial_state.as_ref());
            let walk =
                ForwardParams { a, b, initial, states, seqlen, dim, segments, mode: mode::STATES, mode_a, mode_b, ..Default::default() };
            self.run(&kernel, grid, &ForwardParams { blocks, across, tiles, shift, ..walk })?;
            return launch(mode::WALK, params);
        }
        let (products, grads) = (ws.tensor::<E::Arith, 2>([rows, segments])?, ws.tensor::<E::Arith, 2>([rows, segments])?);
        (params.products, params.grads) = (address(&products), address(&grads));
        launch(mode::PAIRS, params)?;
        self.scan_carry::<E>(problem, args.initial_state.as_ref(), (params.products, params.states), false)?;
        self.scan_carry::<E>(problem, args.grad_last_state.as_ref(), (params.products, params.grads), true)?;
        launch(mode::FROM_STATES, params)
    }
}

/// The adjoint's operands, and the variant that suits them.
fn backward<E: Element>(args: &ScanBwd<'_, E, Device>, problem: ScanProblem) -> (BackwardParams, Forward) {
    let (kind, element) = (Kind::of::<E>(), size_of::<E>());
    let tensors =
        [strided(&args.a), strided(&args.b), strided(&args.grad_h), optional_mut(args.grad_a.as_ref()), optional_mut(args.grad_b.as_ref())];
    let [a, b, grad_h, grad_a, grad_b] = tensors;
    let [mode_a, mode_b, mode_g, mode_ga, mode_gb] = tensors.map(|v| access(v, kind, element));
    let params = BackwardParams {
        a,
        b,
        grad_h,
        grad_a,
        grad_b,
        initial: optional(args.initial_state.as_ref()),
        grad_last: optional(args.grad_last_state.as_ref()),
        grad_initial: optional_mut(args.grad_initial_state.as_ref()),
        seqlen: problem.seqlen as u64,
        dim: problem.dim as u64,
        segments: kind.segments(problem.seqlen) as u64,
        mode_a,
        mode_b,
        mode_g,
        mode_ga,
        mode_gb,
        has_initial: u32::from(args.initial_state.is_some()),
        ..Default::default()
    };
    (params, Forward { kind, strip: strip(&tensors, problem, element) })
}
