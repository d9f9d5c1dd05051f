//! Who runs the parts of an operation: this thread, rayon's, or a host's own threads as part i of n.
//!
//! What a part computes never depends on who runs it, so results have the same bits for any number of threads. This is the
//! only file that names rayon.

use crate::buffer::Workspace;
use crate::error::Error;
use crate::view::{Tiles, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

#[cfg(feature = "model")]
mod team;

#[cfg(feature = "model")]
pub(crate) use team::{Member, Team, share};

/// Elements (channel, step, state) below which waking other threads costs more than it saves: some 10 µs of work.
pub(crate) const SERIAL_BELOW: usize = 1 << 15;

/// The work of one index, with scratch memory of the worker's own.
type Indexed<'f> = &'f (dyn Fn(usize, &mut Workspace<'_>) + Sync);

/// Who runs the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Par {
    /// This thread, one part after another; never allocates.
    Seq,
    /// The threads of the current rayon pool.
    #[cfg(feature = "rayon")]
    Rayon,
    /// Every `count`-th share of the parts, on the calling thread: for hosts that bring their own threads. Each of `count`
    /// threads makes the same call with its own `index`. An operation in several phases needs a barrier between them: all
    /// threads call with `phase` 0, wait for one another, then call with `phase` 1 and the same operands and workspace.
    Part {
        /// Which share, below `count`.
        index: usize,
        /// How many shares.
        count: usize,
        /// Which phase of the operation.
        phase: usize,
    },
}

impl Default for Par {
    /// Rayon where the feature is on, else this thread.
    fn default() -> Self {
        #[cfg(feature = "rayon")]
        return Par::Rayon;
        #[cfg(not(feature = "rayon"))]
        Par::Seq
    }
}

/// Disjoint pieces, each handed out once: tiles of tensors, tuples of them, and options of them.
pub(crate) trait Split: Sync {
    /// One piece.
    type Piece: Send;
    /// How many pieces, or None where any number will do (an absent operand).
    fn pieces(&self) -> Option<usize>;
    /// Piece `index`.
    ///
    /// # Safety
    /// Each index may be taken once only, while `self` is borrowed.
    unsafe fn piece(&self, index: usize) -> Self::Piece;
}

impl<'a, T: Copy + Send + Sync, const R: usize> Split for Tiles<'a, '_, T, R> {
    type Piece = ViewMut<'a, T, R>;
    fn pieces(&self) -> Option<usize> {
        Some(self.count())
    }
    unsafe fn piece(&self, index: usize) -> Self::Piece {
        // SAFETY: the caller takes each index once.
        unsafe { self.tile(index) }
    }
}

impl<S: Split> Split for Option<S> {
    type Piece = Option<S::Piece>;
    fn pieces(&self) -> Option<usize> {
        self.as_ref().and_then(S::pieces)
    }
    unsafe fn piece(&self, index: usize) -> Self::Piece {
        // SAFETY: the caller takes each index once.
        self.as_ref().map(|s| unsafe { s.piece(index) })
    }
}

/// The pieces of a set, each given to the last of `every` indices; the others get None.
pub(crate) struct LastOf<S> {
    /// The pieces.
    pub of: S,
    /// How many indices share one piece.
    pub every: usize,
}

impl<S: Split> Split for LastOf<S> {
    type Piece = Option<S::Piece>;
    fn pieces(&self) -> Option<usize> {
        self.of.pieces().map(|n| n * self.every)
    }
    unsafe fn piece(&self, index: usize) -> Self::Piece {
        // SAFETY: the caller takes each index once, and one of `every` of them takes the piece.
        (index % self.every == self.every - 1).then(|| unsafe { self.of.piece(index / self.every) })
    }
}

/// The same number of pieces in each of two sets, or none said.
fn agree(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    if let (Some(a), Some(b)) = (a, b) {
        assert_eq!(a, b, "operands are cut into different numbers of pieces");
    }
    a.or(b)
}

macro_rules! split_tuple {
    ($($s:ident $i:tt),+) => {
        impl<$($s: Split),+> Split for ($($s,)+) {
            type Piece = ($($s::Piece,)+);
            fn pieces(&self) -> Option<usize> {
                let mut n = None;
                $(n = agree(n, self.$i.pieces());)+
                n
            }
            unsafe fn piece(&self, index: usize) -> Self::Piece {
                // SAFETY: the caller takes each index once, so each set's index is taken once.
                unsafe { ($(self.$i.piece(index),)+) }
            }
        }
    };
}

/// No pieces at all.
impl Split for () {
    type Piece = ();
    fn pieces(&self) -> Option<usize> {
        None
    }
    unsafe fn piece(&self, _index: usize) {}
}

split_tuple!(A 0);
split_tuple!(A 0, B 1);
split_tuple!(A 0, B 1, C 2);
split_tuple!(A 0, B 1, C 2, D 3);
split_tuple!(A 0, B 1, C 2, D 3, E 4);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);

impl Par {
    /// How many threads work at once at most; each has its own scratch memory.
    pub fn workers(self) -> usize {
        match self {
            Par::Seq => 1,
            #[cfg(feature = "rayon")]
            Par::Rayon => rayon::current_num_threads(),
            Par::Part { count, .. } => count,
        }
    }

    /// This thread where the work is too little to wake others for. A host's own threads share it all the same.
    pub(crate) fn or_seq(self, little: bool) -> Par {
        if little && !matches!(self, Par::Part { .. }) { Par::Seq } else { self }
    }

    /// An error unless a part's index and phase make sense for an operation of `phases` phases.
    pub(crate) fn check(self, phases: usize) -> Result<(), Error> {
        let Par::Part { index, count, phase } = self else { return Ok(()) };
        if index < count && phase < phases {
            return Ok(());
        }
        Err(Error::Value { operand: "par", why: format!("part {index} of {count}, phase {phase}: this operation has {phases} phase(s)") })
    }

    /// Bytes of workspace that [`Par::run`] takes with `each` bytes of scratch memory for a worker.
    pub(crate) fn scratch_bytes(self, each: usize) -> usize {
        bytes_of::<u8>(self.workers().saturating_mul(each.next_multiple_of(ALIGN))).saturating_add(ALIGN)
    }

    /// Calls `work(index, chunk)` for each chunk of `width` items, the last one shorter. A slice has one owner, so a part does it all.
    pub(crate) fn chunks_mut<T: Send>(self, items: &mut [T], width: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        #[cfg(feature = "rayon")]
        if self == Par::Rayon && items.len() > width {
            use rayon::prelude::*;
            items.par_chunks_mut(width).enumerate().for_each(|(i, chunk)| work(i, chunk));
            return;
        }
        items.chunks_mut(width).enumerate().for_each(|(i, chunk)| work(i, chunk));
    }

    /// Calls `work(index, piece, scratch)` once for each of `count` indices, in any order and on any thread, in phase
    /// `phase` of the operation. Each worker has `each` bytes of scratch memory, taken from `ws`.
    pub(crate) fn run<S: Split>(
        self,
        phase: usize,
        count: usize,
        split: S,
        ws: &mut Workspace<'_>,
        each: usize,
        work: impl Fn(usize, S::Piece, &mut Workspace<'_>) + Sync,
    ) -> Result<(), Error> {
        assert_eq!(agree(split.pieces(), Some(count)), Some(count));
        // SAFETY: `each_index` calls it once for each index.
        self.each_index(phase, count, ws, each, &|i, ws| work(i, unsafe { split.piece(i) }, &mut ws.reborrow()))
    }

    /// [`Par::run`] without the pieces. It is not generic, so that rayon's machinery is compiled once and not once for every operation and type.
    fn each_index(self, phase: usize, count: usize, ws: &mut Workspace<'_>, each: usize, work: Indexed<'_>) -> Result<(), Error> {
        let scratch = ws.scratch(self.workers(), each)?.tiles(crate::view::Cut::Every(0, 1), crate::view::Cut::Whole);
        // SAFETY: each worker takes its own row, once.
        let scratch_of = |worker: usize| Workspace::of_row(unsafe { scratch.tile(worker) });
        match self {
            Par::Seq => {
                let mut mine = scratch_of(0);
                (0..count).for_each(|i| work(i, &mut mine));
            }
            #[cfg(feature = "rayon")]
            Par::Rayon => {
                let workers = self.workers().min(count);
                if workers <= 1 {
                    let mut mine = scratch_of(0);
                    (0..count).for_each(|i| work(i, &mut mine));
                    return Ok(());
                }
                let next = core::sync::atomic::AtomicUsize::new(0);
                let share = |worker: usize| {
                    let mut mine = scratch_of(worker);
                    loop {
                        let i = next.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
                        if i >= count {
                            return;
                        }
                        work(i, &mut mine);
                    }
                };
                let share = &share;
                rayon::scope(|s| (0..workers).for_each(|w| s.spawn(move |_| share(w))));
            }
            Par::Part { index, count: parts, phase: now } => {
                if now == phase {
                    let mut mine = scratch_of(index);
                    let bound = |p: usize| (count as u128 * p as u128 / parts as u128) as usize;
                    (bound(index)..bound(index + 1)).for_each(|i| work(i, &mut mine));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
