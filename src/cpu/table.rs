//! Every size that was chosen rather than given, in one table. None of them changes the bits of an output by position; the ones
//! that shape the order of sums over batch and channels say so.

/// Steps in a tile, and between saved states in backward.
pub(super) use crate::arch::TILE;
use crate::workspace::ALIGN;

/// Bytes of an input's row that are staged at a time: a cache line.
pub(super) const STRIP_BYTES: usize = ALIGN;

/// Lines that are asked for at most while a strip is worked on: eight tensors of 64 rows.
pub(super) const AHEAD: usize = 512;

/// Bytes of a staged row, over all the channel blocks that a forward task walks side by side. Long rows are read faster (rows of
/// 512 bytes cost 30 % of the speed), and four staged tensors of 64 rows stay within a second-level cache.
pub(super) const ROW_BYTES: usize = 2048;

/// Forward tasks for each thread that are aimed at, so that a slow thread does not keep the others waiting.
pub(super) const TASKS_A_THREAD: usize = 2;

/// Blocks of `lanes` numbers of type `R` in a forward task, where there are `all` of them in all tasks together.
pub(super) fn fwd_blocks<R>(all: usize, lanes: usize, workers: usize) -> usize {
    all.div_ceil(workers.saturating_mul(TASKS_A_THREAD)).clamp(1, ROW_BYTES / size_of::<R>() / lanes)
}

/// Channel slices of backward: one partial sum of ∂B and ∂C each, so memory grows with this number. It shapes the sums.
pub(super) const BWD_SLICES: usize = 16;

/// Slices of `width` channels in a backward task, where there are `all` of them in all tasks together.
pub(super) fn bwd_slices<R>(all: usize, width: usize, workers: usize) -> usize {
    all.div_ceil(workers.saturating_mul(TASKS_A_THREAD)).clamp(1, (ROW_BYTES / size_of::<R>() / width).max(1))
}

/// Blocks whose shares of ∂B and ∂C are added up in the type that is computed in before the sum goes on in f64: few enough that
/// rounding does not grow with D. It shapes the sums.
pub(super) const SUBTOTAL_BLOCKS: usize = 16;

/// Groups of sequences: one partial sum of the shared gradients each. It shapes the sums.
pub(super) const SPAN_GROUPS: usize = 64;

/// Channels that a task of the reductions over sequences takes.
pub(super) const REDUCE_CHANNELS: usize = 64;
