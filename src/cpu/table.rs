//! Every size that was chosen rather than given, in one table. None of them changes the bits of an output by position; the ones
//! that shape the order of sums over batch and channels say so.

/// Steps in a tile, and between saved states in backward.
pub(super) use crate::arch::TILE;

/// Channel blocks that a forward task walks side by side at most, so that they share the staged B and C. Staged tiles of eight
/// blocks stay within a second-level cache.
pub(super) const FWD_BLOCKS: usize = 8;

/// Forward tasks for each thread that are aimed at, so that a slow thread does not keep the others waiting.
pub(super) const TASKS_A_THREAD: usize = 4;

/// Channel slices of backward: one partial sum of ∂B and ∂C each, so memory grows with this number. It shapes the sums.
pub(super) const BWD_SLICES: usize = 16;

/// Groups of sequences: one partial sum of the shared gradients each. It shapes the sums.
pub(super) const SPAN_GROUPS: usize = 64;

/// Channels that a task of the reductions over sequences takes.
pub(super) const REDUCE_CHANNELS: usize = 64;
