//! Carry chunks on the GPU: how time is cut, and the states before every chunk for whoever starts in the middle.
//!
//! # The rule
//!
//! A sequence's steps are counted from its start; padding of `seq_idx` does not count. Every [`CHUNK`] steps a chunk ends, and the last
//! chunk ends with the sequence. Whatever schedule runs, the state after a chunk is, with two or four fused multiply-adds a state in one order,
//!
//! ```text
//! h_out = P·h_in + h_local        or h_out = h_local where nothing comes in (no initial state, a new sequence)
//! ```
//!
//! h_in is the state before the chunk; h_local the chunk walked from zero (its first a is not read); P the product of the chunk's a's, which is formed in one way:
//!
//! - rule Euler, real A: exp2(A·log2(e)·ΣΔ'), ΣΔ' summed in the order of steps in the arithmetic type (f32, or f64 for f64), accurate exp2;
//! - rule Euler, complex A: ΣΔ' in f64, the modulus by exp2, the angle reduced in f64 to half a turn before sine and cosine;
//! - the other rules, and `Carry::Compensated`: the running product of the a's, from the first one on.
//!
//! The last, incomplete chunk ends in the same way, so the last state is P·h_in + h_local too. Inside a chunk y uses the state that is walked from h_in.
//!
//! # Slots
//!
//! A split scan keeps h_local, then h_in, and P of every chunk, (slots, D, N) contiguous in the arithmetic type (f64 for `Carry::Compensated`), complex ones as
//! interleaved re/im. The slot of a chunk:
//!
//! - `Rows`: chunk j of row b has slot b·⌈L/128⌉ + j.
//! - `CuSeqlens`: chunk j of sequence s has slot ⌊offset_s/128⌋ + s + j; there are ⌊L/128⌋ + k + 1 slots and some stay unwritten. A block that is given a slot finds s as the
//!   largest one with ⌊offset_s/128⌋ + s ≤ slot, and exits where its chunk begins at or after the end of s. Offsets are clamped to 0..L, the end of a sequence to its start at least.
//! - `SeqIdx` is always walked.
//! - The slot of a sequence's first chunk has the initial state, or 0 where there is none; the first a is not read all the same.

#![allow(non_snake_case)]

use super::Cuda;
use super::launch::Grid;
use super::params::{Strided, optional, params, strided};
use super::selective_scan_fwd::{Carries, Local, Scan};
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::selective::{Carry, Coefficient, SelectiveInputs, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::Device;

/// Steps of a carry chunk.
pub(super) const CHUNK: usize = 128;
/// Threads of a block.
pub(super) const THREADS: u32 = 128;

params! {
    /// Parameters of the forward scan and of its first part where it is split.
    pub struct ScanParams {
        u: Strided<4>,
        delta: Strided<4>,
        z: Strided<4>,
        out: Strided<4>,
        A: Strided<3>,
        /// Rows, positions, groups, states; channels for groups where constant.
        B: Strided<5>,
        C: Strided<5>,
        D: Strided<2>,
        bias: Strided<2>,
        initial: Strided<4>,
        last: Strided<4>,
        /// cu_seqlens.
        offsets: Strided<2>,
        /// seq_idx.
        ids: Strided<3>,
        /// (slots, D, N), h_local and then h_in.
        states: i64,
        /// (slots, D, N), the products of a's.
        products: i64,
        /// Four of (states, D, N), where N is more than lanes hold.
        scratch: i64,
        /// Bytes of each of the four.
        scratch_size: i64,
        seqlen: i64,
        /// Packed sequences.
        sequences: i64,
        /// Slots of a row.
        chunks: i64,
        /// States kept on the way, (slots, D, N), or 0; and the slots of a row.
        saved: i64,
        saved_row: i64,
        dim: u32,
        dstate: u32,
        /// Channels that share their groups.
        run: u32,
        /// Blocks of such a run.
        run_blocks: u32,
        /// Blocks of all channels.
        row_blocks: u32,
        /// Channels of a group of B.
        per_b: u32,
        per_c: u32,
        log_lanes: u32,
        /// Groups of states along the grid.
        grid_groups: u32,
        flags: u32,
        /// Chunks of a block as a power of two, and blocks of a row, where it is split and not packed.
        unit_log: u32,
        row_units: u32,
        /// Steps between states that are kept, as a power of two.
        saved_log: u32,
        /// What may be loaded and stored as pairs: u, delta, z and out; as 16 bytes in time; B; C.
        whole: u32,
        /// Whether the blocks of a split scan chain the chunks before theirs themselves.
        chained: u32,
        spare: u32,
    }
}

params! {
    /// Parameters of the chain over chunks.
    pub struct CarryParams {
        initial: Strided<4>,
        last: Strided<4>,
        offsets: Strided<2>,
        states: i64,
        products: i64,
        seqlen: i64,
        chunks: i64,
        /// D·N.
        items: i64,
        dstate: u32,
        /// Blocks of a sequence.
        state_blocks: u32,
    }
}

/// Bits of `ScanParams::flags`.
pub(super) mod flag {
    pub const SOFTPLUS: u32 = 1;
    pub const B_CONSTANT: u32 = 2;
    pub const C_CONSTANT: u32 = 4;
    pub const ZOH: u32 = 8;
    pub const BILINEAR: u32 = 16;
    /// A block takes one chunk.
    pub const SPLIT: u32 = 32;
    pub const CU_SEQLENS: u32 = 64;
    pub const SEQ_IDX: u32 = 128;
    /// Neighbours in a warp are steps, not channels: u and delta; z and out; or steps, not states: B; C.
    pub const IN_TIME: u32 = 256;
    pub const OUT_TIME: u32 = 512;
    pub const B_TIME: u32 = 1024;
    pub const C_TIME: u32 = 2048;
}

/// Whether axis i lies closer in memory than axis j.
pub(super) fn closer<const S: usize>(of: &Strided<S>, i: usize, j: usize) -> bool {
    of[i] != 0 && of[i].unsigned_abs() < of[j].unsigned_abs()
}

/// Runs of channels that share their groups of B and of C: the least common multiple of the numbers of groups, at least one.
pub(super) fn runs(problem: &SelectiveProblem) -> usize {
    let (b, c) = (problem.groups_b.unwrap_or(1), problem.groups_c.unwrap_or(1));
    let (mut x, mut y) = (b, c);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    // A problem that no call has checked may have no groups.
    (b / x.max(1)).saturating_mul(c).max(1)
}

fn coefficient<I: Input, W: Weight<Real = I::Accum>>(of: &Coefficient<'_, I, W, 4, Device>) -> Strided<5> {
    match of {
        Coefficient::Constant(v) => {
            let [address, channel, state]: Strided<3> = strided(v);
            [address, 0, 0, channel, state]
        }
        Coefficient::Varying(v) => strided(v),
    }
}

pub(super) fn small(size: usize, what: &str) -> Result<u32, Error> {
    let fits = i32::try_from(size).map_err(|_| Error::Unsupported { what: format!("{size} {what}") })?;
    Ok(fits.unsigned_abs())
}

/// Slots of the states before chunks.
pub(super) fn slots<I: Input, W: Weight<Real = I::Accum>>(inputs: &SelectiveInputs<'_, I, W, Device>, problem: &SelectiveProblem) -> usize {
    match inputs.sequences {
        Sequences::Rows => problem.batch.saturating_mul(problem.seqlen.div_ceil(CHUNK)),
        Sequences::CuSeqlens(_) => packed_slots(problem),
        Sequences::SeqIdx(_) => 0,
    }
}

/// Slots of packed sequences.
fn packed_slots(problem: &SelectiveProblem) -> usize {
    (problem.seqlen / CHUNK).saturating_add(problem.states).saturating_add(1)
}

/// As many slots as any kind of sequences may want.
pub(super) fn most_slots(problem: &SelectiveProblem) -> usize {
    let packed = if problem.batch == 1 { packed_slots(problem) } else { 0 };
    problem.batch.saturating_mul(problem.seqlen.div_ceil(CHUNK)).max(packed)
}

/// Bytes of one (count, D, N) in the arithmetic type.
pub(super) fn state_bytes(scan: &Scan, count: usize, problem: &SelectiveProblem) -> usize {
    count.saturating_mul(problem.dim).saturating_mul(problem.dstate).saturating_mul(scan.element())
}

/// Takes bytes; their address.
pub(super) fn take(ws: &mut Workspace<'_, Device>, bytes: usize) -> Result<i64, Error> {
    let piece = ws.tensor::<u8, 1>([bytes])?;
    let [address, _]: Strided<2> = super::params::strided_mut(&piece);
    Ok(address)
}

/// The scratch memory of a walk whose N is more than lanes hold: its bytes, 0 where it needs none.
pub(super) fn scratch_bytes(scan: &Scan, problem: &SelectiveProblem) -> usize {
    if scan.groups(problem.dstate) > 1 { state_bytes(scan, problem.states, problem).saturating_mul(4) } else { 0 }
}

/// The parameters that inputs decide, for blocks of so many channels; outputs and the workspace are the caller's to add.
pub(super) fn scan_params<I: Input, W: Weight<Real = I::Accum>>(
    inputs: &SelectiveInputs<'_, I, W, Device>,
    problem: &SelectiveProblem,
    scan: &Scan,
    channels: usize,
) -> Result<ScanParams, Error> {
    let run = problem.dim / runs(problem);
    let log_lanes = scan.log_lanes(problem.dstate);
    let run_blocks = run.div_ceil(channels);
    let (offsets, ids, kind) = match &inputs.sequences {
        Sequences::Rows => ([0; 2], [0; 3], 0),
        Sequences::CuSeqlens(v) => (strided(v), [0; 3], flag::CU_SEQLENS),
        Sequences::SeqIdx(v) => ([0; 2], strided(v), flag::SEQ_IDX),
    };
    let (u, B, C) = (strided(&inputs.u), coefficient(&inputs.B), coefficient(&inputs.C));
    let flags = [
        (inputs.options.delta_softplus, flag::SOFTPLUS),
        (problem.groups_b.is_none(), flag::B_CONSTANT),
        (problem.groups_c.is_none(), flag::C_CONSTANT),
        (inputs.options.rule == Rule::Zoh, flag::ZOH),
        (inputs.options.rule == Rule::Bilinear, flag::BILINEAR),
        (closer(&u, 2, 3), flag::IN_TIME),
        (closer(&B, 2, 4), flag::B_TIME),
        (closer(&C, 2, 4), flag::C_TIME),
    ];
    Ok(ScanParams {
        u,
        delta: strided(&inputs.delta),
        z: optional(inputs.z.as_ref()),
        A: strided(&inputs.A),
        B,
        C,
        D: optional(inputs.D.as_ref()),
        bias: optional(inputs.delta_bias.as_ref()),
        initial: optional(inputs.initial_state.as_ref()),
        offsets,
        ids,
        scratch_size: state_bytes(scan, problem.states, problem) as i64,
        seqlen: problem.seqlen as i64,
        sequences: problem.states as i64,
        dim: small(problem.dim, "channels")?,
        dstate: small(problem.dstate, "states a channel")?,
        run: run as u32,
        run_blocks: run_blocks as u32,
        row_blocks: small(run_blocks.saturating_mul(runs(problem)), "blocks of channels")?,
        per_b: (problem.dim / problem.groups_b.unwrap_or(1)) as u32,
        per_c: (problem.dim / problem.groups_c.unwrap_or(1)) as u32,
        log_lanes,
        grid_groups: 1,
        flags: kind | flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum::<u32>(),
        ..ScanParams::default()
    })
}

/// Blocks along time of a split scan: one for each slot.
pub(super) fn split_units(problem: &SelectiveProblem, params: &ScanParams) -> usize {
    let packed = params.flags & flag::CU_SEQLENS != 0;
    let chunks = problem.seqlen.div_ceil(CHUNK);
    let units = if packed { packed_slots(problem) } else { problem.batch.saturating_mul(chunks) };
    if problem.seqlen == 0 || problem.states == 0 { 0 } else { units }
}

/// The parameters of the parts of a split scan: a block takes a chunk.
pub(super) fn split(problem: &SelectiveProblem, params: &ScanParams) -> ScanParams {
    let packed = params.flags & flag::CU_SEQLENS != 0;
    let chunks = if packed { 0 } else { problem.seqlen.div_ceil(CHUNK) };
    ScanParams { flags: params.flags | flag::SPLIT, chunks: chunks as i64, ..*params }
}

/// The first part of a split scan: every chunk from zero. `params` has the workspace.
pub(super) fn local(engine: &Cuda, scan: Scan, problem: &SelectiveProblem, params: &ScanParams) -> Result<(), Error> {
    let groups = scan.groups(problem.dstate);
    let blocks = split_units(problem, params).saturating_mul(params.row_blocks as usize).saturating_mul(groups);
    let params = ScanParams { grid_groups: small(groups, "groups of states")?, ..split(problem, params) };
    engine.run(&Local(scan), Grid::new(blocks, THREADS), &params)
}

/// The second part: the chain over chunks. Afterwards `params.states` has the state before every chunk, and the last state is written where it is wanted.
pub(super) fn carry(engine: &Cuda, scan: Scan, problem: &SelectiveProblem, params: &ScanParams) -> Result<(), Error> {
    let items = problem.dim.saturating_mul(problem.dstate);
    let state_blocks = items.div_ceil(THREADS as usize);
    let carry = CarryParams {
        initial: params.initial,
        last: params.last,
        offsets: params.offsets,
        states: params.states,
        products: params.products,
        seqlen: params.seqlen,
        chunks: split(problem, params).chunks,
        items: items as i64,
        dstate: params.dstate,
        state_blocks: small(state_blocks, "blocks of states")?,
    };
    engine.run(&Carries(scan), Grid::new(problem.states.saturating_mul(state_blocks), THREADS), &carry)
}

/// The variant that computes such a scan.
pub(super) fn scan_of<I: Input, W: Weight<Real = I::Accum>>(problem: &SelectiveProblem) -> Scan {
    let options = &problem.options;
    Scan::new(I::DTYPE, W::COMPLEX, options.carry == Carry::Compensated, problem.dstate, options.rule)
}
