//! The forward selective scan on the GPU.

mod tile;

use super::Cuda;
use super::Regime;
use super::chunks::{
    CHUNK, CarryParams, ScanParams, THREADS, carry, closer, flag, local, most_slots, scan_of, scan_params, scratch_bytes, slots,
    state_bytes, take,
};
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, optional_mut, storage, strided_mut};
use super::selective_scan_bwd::KEPT;
use super::template::{Template, template};
use crate::buffer::Workspace;
use crate::element::{Dtype, Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::regime::{Call, Gpu, Reason};
use crate::selective::{Carry, SelectiveFwd, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Device, ViewMut};
use crate::workspace::{ALIGN, bytes_of};
pub use tile::Tile;

/// What the kernels of a scan are specialised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// How u, Δ, B, C, z and out are stored.
    dtype: Dtype,
    /// Whether A and the states are complex.
    complex: bool,
    /// Whether f32 and 16-bit storage is computed in f64 (`Carry::Compensated`).
    wide: bool,
    /// N, or 0 for any.
    n: usize,
    /// Whether the rule is a flag; Euler's otherwise.
    rules: bool,
}

/// The forward scan, of whole sequences or of one chunk a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward(pub Scan);

/// One chunk a block from zero: the first part of a split scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local(pub Scan);

/// The chain over chunks: the second part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carries(pub Scan);

/// How a channel's states lie in threads.
#[derive(Debug, Clone, Copy)]
struct Lanes {
    /// States of a lane.
    states: usize,
    /// Steps of a tile.
    steps: usize,
    /// Steps of a group, walked together.
    unroll: usize,
}

impl Scan {
    /// The variant for N and a rule.
    pub(super) fn new(dtype: Dtype, complex: bool, compensated: bool, dstate: usize, rule: Rule) -> Self {
        let wide = compensated && dtype != Dtype::F64;
        let rules = wide || rule != Rule::Euler;
        let known = !rules && Self::sizes(dtype, complex).contains(&dstate);
        Scan { dtype, complex, wide, n: if known { dstate } else { 0 }, rules }
    }

    /// The N that have kernels of their own.
    fn sizes(dtype: Dtype, complex: bool) -> &'static [usize] {
        match (dtype == Dtype::F64, complex) {
            (_, false) | (false, true) => &[16, 32, 64, 128, 256],
            // More would not fit in 48 KB of shared memory.
            (true, true) => &[16, 32, 64, 128],
        }
    }

    /// Whether it is computed in f64.
    fn double(&self) -> bool {
        self.wide || self.dtype == Dtype::F64
    }

    /// Bytes of a state in the arithmetic type.
    pub(super) fn element(&self) -> usize {
        (if self.double() { 8 } else { 4 }) * (1 + usize::from(self.complex))
    }

    fn lanes(&self) -> Lanes {
        let (states, unroll) = match (self.double(), self.complex, self.n) {
            (false, false, 0) => (4, 2),
            (false, false, _) => (8, 2),
            (true, false, 256) | (false, true, 256) => (8, 2),
            (true, true, 0..=64) => (2, 1),
            (true, true, _) => (4, 1),
            _ => (4, 2),
        };
        let steps = match (self.double(), self.complex, self.n) {
            (false, false, 0) => 16,
            (_, _, 0) => 8,
            (false, false, 16..=64) | (false, true, 16..=32) => 32,
            (false, false, 128) | (false, true, 64) | (true, false, 16..=64) | (true, true, 16..=32) => 16,
            _ => 8,
        };
        Lanes { states, steps, unroll: if self.rules { 1 } else { unroll } }
    }

    /// Blocks of the forward kernel on a multiprocessor at least, so that registers suffice without spills.
    fn blocks(&self) -> usize {
        match (self.double(), self.n) {
            (true, 256) => 2,
            (true, 128) if self.complex => 2,
            (false, 256) if self.complex => 2,
            (true, _) | (false, 0) => 3,
            _ => 4,
        }
    }

    /// The same for the local walk.
    fn local_blocks(&self) -> usize {
        match (self.double(), self.complex, self.n) {
            (true, ..) | (false, _, 0) => 3,
            (false, true, 256) => 4,
            _ => 5,
        }
    }

    /// Lanes of a channel, as a power of two.
    pub(super) fn log_lanes(&self, dstate: usize) -> u32 {
        dstate.div_ceil(self.lanes().states).next_power_of_two().trailing_zeros().min(5)
    }

    /// How many groups of states there are, of as many as the lanes of a channel hold.
    pub(super) fn groups(&self, dstate: usize) -> usize {
        dstate.div_ceil(self.lanes().states << self.log_lanes(dstate))
    }

    fn name(&self, op: &str) -> String {
        let weight = match (self.dtype == Dtype::F64, self.complex) {
            (false, false) => "f32",
            (false, true) => "c32",
            (true, false) => "f64",
            (true, true) => "c64",
        };
        let wide = if self.wide { "_wide" } else { "" };
        let rules = if self.rules { "_rules" } else { "" };
        format!("selective_scan_{op}_{}_{weight}_n{}{wide}{rules}", self.dtype.name(), self.n)
    }

    /// The variables that templates share, and the places of tiles in shared memory.
    fn common(&self) -> Vars {
        let Lanes { states, steps, unroll } = self.lanes();
        let real = if self.double() { 8 } else { 4 };
        let log_lanes = if self.n == 0 { 0 } else { self.log_lanes(self.n) };
        // Without a fixed N, room for the most channels and for the most lanes.
        let channels = (THREADS >> log_lanes) as usize;
        let row = if self.n == 0 { states * 32 } else { self.n };
        let batch = if self.n == 0 { 1 } else { (steps >> log_lanes).clamp(1, 4) };
        let sizes = [
            ("OPAIR", steps * (channels + 1) * 2 * real),
            ("OSK", steps * (channels + 1) * real),
            ("OB", (steps * row).max(states * THREADS as usize) * self.element()),
            ("OC", (steps * row).max(states * THREADS as usize) * self.element()),
            ("OHIN", states * THREADS as usize * self.element()),
            ("OPOS", steps * 8),
            ("OSKIP", channels * real),
            ("OBIAS", channels * real),
        ];
        let mut at = 0;
        let mut vars = storage(Vars::new(), self.dtype);
        let weight = if self.dtype == Dtype::F64 { ("f64", 8) } else { ("f32", 4) };
        vars = vars.text("W", weight.0).int("WB", weight.1).text("A", if real == 8 { "f64" } else { "f32" }).int("AB", real);
        for (name, size) in sizes {
            vars = vars.int(name, at);
            at += size.next_multiple_of(16);
        }
        let log = |x: usize| x.trailing_zeros();
        let vars = vars.int("SH", at).flag("cx", self.complex).flag("anyrule", self.rules).int("N", self.n).int("S", states);
        let vars = vars.int("LOGS", log(states)).int("K", steps).int("LOGK", log(steps)).int("U", unroll).int("LOGU", log(unroll));
        vars.int("Q", batch)
            .int("LOGQ", log(batch))
            .int("LP", log_lanes)
            .int("P", 1 << log_lanes)
            .int("CTAS", self.blocks())
            .int("CTAS_LOCAL", self.local_blocks())
    }

    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (dtype, complex) in STORAGE.into_iter().flat_map(|t| [(t, false), (t, true)]) {
            let scan = Scan { dtype, complex, wide: false, n: 0, rules: false };
            all.extend(Self::sizes(dtype, complex).iter().map(|&n| Scan { n, ..scan }));
            all.extend([scan, Scan { rules: true, ..scan }]);
            if dtype != Dtype::F64 {
                all.push(Scan { wide: true, rules: true, ..scan });
            }
        }
        all
    }
}

impl Kernel for Forward {
    const TEMPLATE: Template = template!("selective_scan_fwd");
    type Params = ScanParams;

    fn entry(&self) -> String {
        self.0.name("fwd")
    }

    fn vars(&self) -> Vars {
        self.0.common()
    }

    fn shipped() -> Vec<Self> {
        Scan::all().into_iter().map(Forward).collect()
    }
}

impl Kernel for Local {
    const TEMPLATE: Template = template!("selective_scan_local");
    type Params = ScanParams;

    fn entry(&self) -> String {
        self.0.name("local")
    }

    fn vars(&self) -> Vars {
        self.0.common()
    }

    fn shipped() -> Vec<Self> {
        Scan::all().into_iter().map(Local).collect()
    }
}

impl Carries {
    /// The chain depends on the types of the states only.
    fn reduced(&self) -> Scan {
        let dtype = if self.0.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
        Scan { dtype, n: 0, rules: false, ..self.0 }
    }
}

impl Kernel for Carries {
    const TEMPLATE: Template = template!("selective_scan_carry");
    type Params = CarryParams;

    fn entry(&self) -> String {
        self.reduced().name("carry").replace("_n0", "")
    }

    fn vars(&self) -> Vars {
        self.reduced().common()
    }

    fn shipped() -> Vec<Self> {
        let one = |dtype, wide, complex| Carries(Scan { dtype, complex, wide, n: 0, rules: false });
        let types = [(Dtype::F32, false), (Dtype::F32, true), (Dtype::F64, false)];
        types.into_iter().flat_map(|(t, wide)| [one(t, wide, false), one(t, wide, true)]).collect()
    }
}

/// Below so many threads a multiprocessor that walk, time is split: not quite six warps, 24 · 1024 threads on a card of 132.
const WALKERS: usize = 186;
/// The same for the tiles of N up to 16, which walk 6144 channels faster than they split them: 10 · 1024 on such a card.
const FEW: usize = 78;
/// Sequences up to this length are walked in any case.
const SHORT: usize = 2 * CHUNK;

/// How it runs on a card, and why; no bit depends on it. `listed` are rows with ids.
fn reason(scan: &Scan, problem: &SelectiveProblem, listed: bool, gpu: &Gpu) -> Reason {
    if listed {
        return Reason::Ids;
    }
    if scan.groups(problem.dstate) > 1 {
        return Reason::States;
    }
    let tile = Tile::of(scan, problem, listed);
    let log = tile.map_or_else(|| scan.log_lanes(problem.dstate), Tile::log_walkers);
    let walkers = problem.states.saturating_mul(problem.dim).saturating_mul(1 << log);
    let enough = if tile.is_some_and(Tile::least) { FEW } else { WALKERS };
    Reason::of(walkers, enough * gpu.multiprocessors as usize, problem.seqlen, SHORT)
}

/// The same, for planners.
pub(super) fn planned(problem: &SelectiveProblem, call: Call, gpu: &Gpu) -> Reason {
    let compensated = problem.options.carry == Carry::Compensated;
    let scan = Scan::new(call.input, call.complex, compensated, problem.dstate, problem.options.rule);
    reason(&scan, problem, call.seq_idx, gpu)
}

fn regime(engine: &Cuda, scan: &Scan, problem: &SelectiveProblem, listed: bool) -> Regime {
    engine.settle(reason(scan, problem, listed, &engine.gpu())).regime()
}

/// Bytes of workspace that [`forward`] takes.
pub(super) fn workspace<I: Input, W: Weight<Real = I::Accum>>(engine: &Cuda, problem: &SelectiveProblem) -> usize {
    let scan = scan_of::<I, W>(problem);
    let states = match regime(engine, &scan, problem, false) {
        Regime::Walk => 0,
        Regime::Split => bytes_of::<u8>(state_bytes(&scan, most_slots(problem), problem)).saturating_mul(2),
    };
    let scratch = bytes_of::<u8>(scratch_bytes(&scan, problem));
    if states == 0 && scratch == 0 { 0 } else { states.saturating_add(scratch).saturating_add(ALIGN) }
}

/// Where states on the way go: the address of (slots, D, N), slots of a row, and the steps between them as a power of two.
#[derive(Debug, Clone, Copy)]
struct Saved {
    address: i64,
    row: usize,
    log: u32,
}

/// The forward scan.
pub(super) fn forward<I: Input, W: Weight<Real = I::Accum>>(
    engine: &Cuda,
    args: SelectiveFwd<'_, I, W, Device>,
    ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    let problem = args.check()?;
    run(engine, args, &problem, ws, None)
}

/// The forward scan that also keeps the states of whole rows for backward tiles, as [`Cuda::selective_scan_fwd_with_states`] does.
pub(super) fn keeping<I: Input, W: Weight<Real = I::Accum>>(
    engine: &Cuda,
    args: SelectiveFwd<'_, I, W, Device>,
    problem: &SelectiveProblem,
    address: i64,
    ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    run(engine, args, problem, ws, Some(Saved { address, row: problem.seqlen.div_ceil(KEPT), log: KEPT.ilog2() }))
}

/// Whether [`keeping`] can do so: where tiles walk.
pub(super) fn keeps<I: Input, W: Weight<Real = I::Accum>>(problem: &SelectiveProblem, sequences: &Sequences<'_, Device>) -> bool {
    matches!(sequences, Sequences::Rows) && Tile::of(&scan_of::<I, W>(problem), problem, false).is_some()
}

impl Cuda {
    /// The forward scan, which also keeps the states before steps 0, E, 2E, … of every sequence, E being `every`, a power of two from 16 to 128: `saved` is
    /// (slots, D, N), contiguous. Step k·E of row b has slot b·⌈L/E⌉ + k; that of packed sequence s, from offset_s on, ⌊offset_s/E⌋ + s + k, of ⌊L/E⌋ + sequences + 1.
    ///
    /// # Errors
    /// Those of the forward scan; [`Error::Unsupported`] for rows with ids, constant B or C, and variants of other kinds than [`Tile`].
    #[doc(hidden)]
    pub fn selective_scan_fwd_with_states<I: Input<Accum = f32>>(
        &self,
        args: SelectiveFwd<'_, I, f32, Device>,
        every: usize,
        saved: &mut ViewMut<'_, f32, 3, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let problem = args.check()?;
        let log = every.trailing_zeros().min(CHUNK.ilog2());
        let (rows, packed) = (problem.seqlen.div_ceil(1 << log), (problem.seqlen >> log).saturating_add(problem.states).saturating_add(1));
        let slots = match args.inputs.sequences {
            Sequences::Rows => problem.batch.saturating_mul(rows),
            _ => packed,
        };
        let [address, slot, channel, state] = strided_mut(saved);
        let size = size_of::<f32>() as i64;
        let (n, dim) = (problem.dstate as i64, problem.dim as i64);
        let contiguous = state == size && (dim == 1 || channel == n * size) && (slots == 1 || slot == dim * n * size) && address % 16 == 0;
        let listed = matches!(args.inputs.sequences, Sequences::SeqIdx(_));
        let known = Tile::of(&scan_of::<I, f32>(&problem), &problem, listed).is_some();
        let right = (16..=CHUNK).contains(&every) && every.is_power_of_two() && saved.dims() == [slots, problem.dim, problem.dstate];
        if !known || !right || !(contiguous || saved.dims().contains(&0)) {
            return Err(Error::Unsupported { what: "states kept on the way of such a scan, or in such a tensor".into() });
        }
        run(self, args, &problem, ws, Some(Saved { address, row: rows, log }))
    }
}

fn run<I: Input, W: Weight<Real = I::Accum>>(
    engine: &Cuda,
    args: SelectiveFwd<'_, I, W, Device>,
    problem: &SelectiveProblem,
    ws: &mut Workspace<'_, Device>,
    saved: Option<Saved>,
) -> Result<(), Error> {
    let SelectiveFwd { inputs, out, last_state } = args;
    let scan = scan_of::<I, W>(problem);
    if problem.states == 0 {
        return Ok(());
    }
    let listed = matches!(inputs.sequences, Sequences::SeqIdx(_));
    let regime = regime(engine, &scan, problem, listed);
    let tile = Tile::of(&scan, problem, listed);
    let channels = tile.map_or_else(|| (THREADS >> scan.log_lanes(problem.dstate)) as usize, |t| t.channels());
    let mut params = scan_params(&inputs, problem, &scan, channels)?;
    params.out = strided_mut(&out);
    params.last = optional_mut(last_state.as_ref());
    if closer(&params.out, 2, 3) {
        params.flags |= flag::OUT_TIME;
    }
    params.whole = tile::whole(&params, I::DTYPE, tile);
    if let Some(Saved { address, row, log }) = saved {
        (params.saved, params.saved_row, params.saved_log) = (address, row as i64, log);
    }
    let mut ws = ws.reborrow();
    let mut units = problem.states;
    match regime {
        Regime::Walk => params.scratch = take(&mut ws, scratch_bytes(&scan, problem))?,
        Regime::Split => {
            units = slots(&inputs, problem);
            params.states = take(&mut ws, state_bytes(&scan, units, problem))?;
            params.products = take(&mut ws, state_bytes(&scan, units, problem))?;
            if let Some(tile) = tile {
                return tile.split(engine, scan, problem, &params);
            }
            local(engine, scan, problem, &params)?;
            carry(engine, scan, problem, &params)?;
            if problem.seqlen == 0 {
                return Ok(());
            }
            params.chunks = problem.seqlen.div_ceil(CHUNK) as i64;
            params.flags |= flag::SPLIT;
        }
    }
    if let Some(tile) = tile {
        return tile.walk(engine, problem, &params);
    }
    engine.run(&Forward(scan), Grid::new(units.saturating_mul(params.row_blocks as usize), THREADS), &params)
}
