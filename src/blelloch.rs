//! Scans as trees: Blelloch's work-efficient up-sweep and down-sweep, for any associative operator and as an engine.

use crate::ops::Monoid;
use crate::par::Par;

pub mod chunked;
mod engine;
mod layers;
pub mod sweep;

pub use engine::Blelloch;

/// The order in which a scan combines its items. Each depends on their number alone, so a result has the same bits on any threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// One after another: n − 1 combinations, all in a chain.
    Sequential,
    /// Up-sweep and down-sweep over a tree: at most 2n combinations, 2·⌈log₂ n⌉ in a chain ([`sweep`]).
    Blelloch,
    /// Reduce each chunk, scan the sums, scan each chunk again: about 2n combinations, √n in a chain ([`chunked`]).
    Chunked,
}

/// Inclusive scan in place for any associative operator: item t becomes x_1 ∘ … ∘ x_t, or x_n ∘ … ∘ x_t where `reverse` is on.
///
/// The operator is called with the operand that comes first in scan order first. The slice has one owner, so [`Par::Part`]
/// means the calling thread.
///
/// ```
/// use selective_scan::{blelloch::{scan_with, Schedule}, ops::Monoid, par::Par};
///
/// /// The largest value so far.
/// struct Max;
/// impl Monoid for Max {
///     type Element = i32;
///     fn identity(&self) -> i32 {
///         i32::MIN
///     }
///     fn combine(&self, earlier: &i32, later: &i32) -> i32 {
///         *earlier.max(later)
///     }
/// }
///
/// let mut items = [3, 1, 4, 1, 5];
/// scan_with(&Max, &mut items, Schedule::Blelloch, false, Par::Seq);
/// assert_eq!(items, [3, 3, 4, 4, 5]);
/// ```
pub fn scan_with<O: Monoid>(op: &O, items: &mut [O::Element], schedule: Schedule, reverse: bool, par: Par) {
    if reverse {
        items.reverse();
    }
    match schedule {
        Schedule::Sequential => chunked::scan_sequential(op, items),
        Schedule::Blelloch => sweep::scan_inclusive(op, items, par),
        Schedule::Chunked => chunked::scan_inclusive(op, items, par),
    }
    if reverse {
        items.reverse();
    }
}
