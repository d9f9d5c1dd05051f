//! The variants for real A in f32 under Euler's rule whose N is known: half of a block walks, the other half brings what it needs and takes y out.

use super::Scan;
use crate::cuda::Cuda;
use crate::cuda::chunks::{CHUNK, ScanParams, carry, flag, small, split, split_units};
use crate::cuda::expression::Vars;
use crate::cuda::launch::{Grid, Kernel};
use crate::cuda::params::{Strided, storage};
use crate::cuda::template::{Template, template};
use crate::element::Dtype;
use crate::error::Error;
use crate::selective::SelectiveProblem;

/// What a block walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A sequence.
    Walk,
    /// Carry chunks, from states that the chain left.
    Part,
    /// Carry chunks from zero; no y.
    Local,
}

/// A variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    dtype: Dtype,
    n: usize,
    mode: Mode,
}

/// Threads of a block: half of them walk.
const THREADS: usize = 256;
/// Up to so many chunks of a row the blocks of a split scan chain them themselves.
const CHAINED: usize = 32;
/// States of a channel that no tile is made for go into the next larger tile, up to so many: those of a group of selective_scan_fwd, whose bits these are.
const MOST: usize = 128;
/// Steps of a group.
const UNROLL: usize = 4;

/// Bits of `ScanParams::whole`.
mod whole {
    pub const PAIRS: u32 = 1;
    pub const WIDE: u32 = 2;
    pub const B: u32 = 4;
    pub const C: u32 = 8;
    pub const NEAR: u32 = 16;
    pub const ALL_B: u32 = 32;
    pub const ALL_C: u32 = 64;
    pub const WIDE_B: u32 = 128;
    pub const WIDE_C: u32 = 256;
}

/// What of the operands may be loaded and stored as more than one element: neighbours in memory, and addresses that are multiples of so much.
pub(super) fn whole(params: &ScanParams, dtype: Dtype, tile: Option<Tile>) -> u32 {
    let size = if dtype == Dtype::F32 { 4 } else { 2 };
    let time = params.flags & flag::IN_TIME != 0;
    let (near, far) = if time { (2, 3) } else { (3, 2) };
    let fits = |of: &Strided<4>, by: i64| of[near] == size && of[0] % by == 0 && of[1] % by == 0 && of[far] % by == 0;
    let all = |by: i64| [&params.u, &params.delta, &params.out].iter().all(|of| fits(of, by)) && (params.z[0] == 0 || fits(&params.z, by));
    let rows = |of: &Strided<5>, time: bool, by: i64| {
        let (near, far) = if time { (2, 4) } else { (4, 2) };
        of[near] == size && [of[0], of[1], of[3], of[far]].iter().all(|x| x % by == 0)
    };
    let [b, c] = [flag::B_TIME, flag::C_TIME].map(|bit| params.flags & bit != 0);
    let on = |bit: u32, yes: bool| if yes { bit } else { 0 };
    // Where there are fewer states than the tile has room for, the others are set apart.
    let full = tile.is_some_and(|tile| tile.n == params.dstate as usize);
    on(whole::PAIRS, all(2 * size))
        | on(whole::NEAR, all(size))
        | on(whole::ALL_B | whole::ALL_C, full)
        | on(whole::WIDE, time && all(16))
        | on(whole::B, full && rows(&params.B, b, 2 * size))
        | on(whole::C, full && rows(&params.C, c, 2 * size))
        | on(whole::WIDE_B, full && b && rows(&params.B, b, 16))
        | on(whole::WIDE_C, full && c && rows(&params.C, c, 16))
}

impl Tile {
    /// The variant that walks, where there is one for the problem.
    pub(super) fn of(scan: &Scan, problem: &SelectiveProblem, listed: bool) -> Option<Self> {
        let varying = problem.groups_b.is_some() && problem.groups_c.is_some();
        let known = !scan.rules && !scan.complex && scan.dtype != Dtype::F64;
        // The least that has room for so many states.
        let n = if scan.n == 0 { problem.dstate.next_power_of_two().max(16) } else { scan.n };
        let fits = scan.n != 0 || (1..=MOST).contains(&problem.dstate);
        (varying && known && fits && !listed).then_some(Tile { dtype: scan.dtype, n, mode: Mode::Walk })
    }

    /// States of a lane, of each of two channels.
    fn states(self) -> usize {
        if self.n == 16 { 4 } else { 8 }
    }

    fn lanes(self) -> usize {
        self.n / self.states()
    }

    /// Threads that walk a channel, as a power of two, at eight states each as elsewhere.
    pub(super) fn log_walkers(self) -> u32 {
        (self.n / 8).trailing_zeros()
    }

    /// Whether it is the tile of the fewest states.
    pub(super) fn least(self) -> bool {
        self.n == 16
    }

    /// Channels of a block.
    pub(super) fn channels(self) -> usize {
        THREADS / self.lanes()
    }

    /// Steps of a tile.
    fn steps(self) -> usize {
        match self.n {
            ..=64 => 32,
            128 => 16,
            _ => 8,
        }
    }

    /// Where things lie in shared memory, and how much it is.
    fn places(self) -> ([(&'static str, usize); 6], usize) {
        let (rows, channels) = (2 * self.steps(), self.channels());
        // Behind every four steps, as the template says.
        let (gap, gap_y) = match self.n {
            ..=32 => (16, 48),
            64 => (32, 0),
            _ => (0, 0),
        };
        let y = usize::from(self.mode != Mode::Local);
        // Of a thread's states: those before the chunk, or before the block's other chunks.
        let held = match self.mode {
            Mode::Walk => 1,
            Mode::Part => (1 << self.most_chained()) - 1,
            Mode::Local => 0,
        };
        let sizes = [
            ("OPAIR", rows * channels * 8 + rows / 4 * gap),
            ("OB", rows * self.n * 4),
            ("OC", rows * self.n * 4 * y),
            ("OU", (rows * (channels * 4 + 8) + rows / 4 * gap_y) * y),
            ("OY", (rows * (channels * 4 + 8) + rows / 4 * gap_y) * y),
            ("OHIN", THREADS * self.states() * 4 * held),
        ];
        let mut at = 0;
        let places = sizes.map(|(name, size)| {
            at += size;
            (name, at - size)
        });
        (places, at)
    }

    fn run(self, engine: &Cuda, units: usize, params: &ScanParams) -> Result<(), Error> {
        let blocks = units.saturating_mul(params.row_blocks as usize);
        let grid = Grid { blocks: blocks as u64, threads: THREADS as u32, shared: self.places().1 as u32 };
        engine.run(&self, grid, params)
    }

    /// Whole sequences.
    pub(super) fn walk(self, engine: &Cuda, problem: &SelectiveProblem, params: &ScanParams) -> Result<(), Error> {
        Tile { mode: Mode::Walk, ..self }.run(engine, problem.states, params)
    }

    /// Chunks side by side.
    pub(super) fn split(self, engine: &Cuda, scan: Scan, problem: &SelectiveProblem, params: &ScanParams) -> Result<(), Error> {
        let mut params = split(problem, params);
        let mut units = split_units(problem, &params);
        if params.flags & flag::CU_SEQLENS == 0 {
            let chunks = problem.seqlen.div_ceil(CHUNK);
            params.unit_log = self.unit_log(engine, problem, &params);
            params.chained = u32::from((1..=CHAINED).contains(&chunks) && params.unit_log <= self.most_chained());
            let row = chunks.div_ceil(1 << params.unit_log);
            params.row_units = small(row, "blocks of a row")?;
            units = problem.batch.saturating_mul(row);
        }
        Tile { mode: Mode::Local, ..self }.run(engine, units, &params)?;
        if params.chained == 0 {
            carry(engine, scan, problem, &params)?;
        }
        Tile { mode: Mode::Part, ..self }.run(engine, units, &params)
    }

    /// Chunks of a block that chains, at most, as a power of two.
    fn most_chained(self) -> u32 {
        if self.states() == 4 { 2 } else { 1 }
    }

    /// Chunks of a block, as a power of two: what takes least time in tiles, with three to begin and end a block.
    fn unit_log(self, engine: &Cuda, problem: &SelectiveProblem, params: &ScanParams) -> u32 {
        let chunks = problem.seqlen.div_ceil(CHUNK);
        let blocks = |log: u32| problem.batch.saturating_mul(chunks.div_ceil(1 << log)).saturating_mul(params.row_blocks as usize);
        let together = 2 * engine.properties().multiprocessors.max(1) as usize;
        let time = |log: u32| blocks(log).div_ceil(together).saturating_mul((CHUNK << log) / self.steps() + 3);
        (0..6).min_by_key(|&log| time(log)).unwrap_or(0)
    }
}

impl Kernel for Tile {
    const TEMPLATE: Template = template!("selective_scan_fwd_tile");
    type Params = ScanParams;

    fn entry(&self) -> String {
        let mode = match self.mode {
            Mode::Walk => "walk",
            Mode::Part => "part",
            Mode::Local => "local",
        };
        format!("selective_scan_fwd_tile_{mode}_{}_n{}", self.dtype.name(), self.n)
    }

    fn vars(&self) -> Vars {
        let log = |x: usize| x.trailing_zeros();
        let (states, lanes, channels, steps) = (self.states(), self.lanes(), self.channels(), self.steps());
        let mut vars = storage(Vars::new(), self.dtype);
        vars = vars.int("N", self.n).int("LOGN", log(self.n)).int("S", states).int("P", lanes).int("LOGP", log(lanes));
        vars = vars.int("C", channels).int("LOGC", log(channels)).int("K", steps).int("LOGK", log(steps));
        vars = vars.int("U", UNROLL).int("LOGU", log(UNROLL)).int("CTAS", 2);
        vars = vars.int("J", (steps * channels / THREADS).max(1)).int("JB", steps * self.n / THREADS).int("TH", THREADS / 2);
        for (name, mode) in [("walk", Mode::Walk), ("part", Mode::Part), ("local", Mode::Local)] {
            vars = vars.flag(name, self.mode == mode);
        }
        self.places().0.iter().fold(vars, |vars, (name, at)| vars.int(name, *at))
    }

    fn shipped() -> Vec<Self> {
        let modes = [Mode::Walk, Mode::Part, Mode::Local];
        let types = [Dtype::F32, Dtype::F16, Dtype::Bf16];
        let sizes = types.into_iter().flat_map(|dtype| [16, 32, 64, 128, 256].map(|n| (dtype, n)));
        sizes.flat_map(|(dtype, n)| modes.map(|mode| Tile { dtype, n, mode })).collect()
    }
}
