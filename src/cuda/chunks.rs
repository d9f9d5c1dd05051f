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
//! # States before chunks, for the backward scan
//!
//! [`states`] fills a workspace with h_in of every chunk, (slots, D, N) contiguous in the arithmetic type (f64 for `Carry::Compensated`), complex ones as
//! interleaved re/im. The slot of a chunk:
//!
//! - `Rows`: chunk j of row b has slot b·⌈L/128⌉ + j.
//! - `CuSeqlens`: chunk j of sequence s has slot ⌊offset_s/128⌋ + s + j; there are ⌊L/128⌋ + k + 1 slots and some stay unwritten. A block that is given a slot finds s as the
//!   largest one with ⌊offset_s/128⌋ + s ≤ slot, and exits where its chunk begins at or after the end of s. Offsets are clamped to 0..L, the end of a sequence to its start at least.
//! - In both, the slot of the first chunk has the initial state, or 0 where there is none. Whoever reads 0 there must still not read the first a: "nothing comes in".
//! - `SeqIdx`: a chunk that continues (something comes in) and whose first step stands at position t of row b has slot b·(⌊L/128⌋ + 1) + ⌊t/128⌋: two chunks that
//!   continue are at least 128 positions apart, so no two share one. Other slots stay unwritten. The chunks of a row stand in a list of i64, [`States::list`], (B, L): entry j of
//!   row b is 2·t + fresh, t the first step's position and fresh 1 where nothing comes in (then there is no slot to read); [`States::counts`], (B) of i64, has the number of
//!   chunks of each row. Chunk j reaches from its t to the t of chunk j + 1, or to L, and its steps are the positions with id ≥ 0 in between: at most 128.

use super::Cuda;
use super::params::{Strided, optional, params, strided};
use super::selective_scan_fwd::{Carries, Local, Scanning, Walking};
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::selective::{Carry, Coefficient, SelectiveInputs, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Device, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Steps of a carry chunk.
pub(super) const CHUNK: usize = 128;
/// Threads of a block.
pub(super) const THREADS: usize = 128;

/// The states before every chunk, where they lie in the workspace. The views keep the workspace borrowed.
#[derive(Debug)]
pub(super) struct States<'w> {
    /// Address of (slots, D, N) in the arithmetic type.
    pub states: i64,
    /// How many slots.
    pub slots: usize,
    /// `SeqIdx`: address of the list of chunks, (B, L) of i64; else 0.
    pub list: i64,
    /// `SeqIdx`: address of the number of chunks of each row, (B) of i64; else 0.
    pub counts: i64,
    /// What is borrowed.
    pub held: Vec<ViewMut<'w, u8, 1, Device>>,
}
