//! The work-efficient scan: an up-sweep that sums over a balanced tree, then a down-sweep that turns the sums into prefixes
//! (Blelloch, "Prefix Sums and Their Applications", 1990, section 1.3).
//!
//! The tree is binary: at level s = 1, 2, 4 … node k covers the items from 2sk to 2s(k + 1) or the end. It keeps its sum in the
//! place of its last item. A node whose right half would lie past the end is its left half, so any length works without padding.
//! The tree depends on the length alone; so do the bits of the result, whoever runs its parts.

use crate::ops::Monoid;
use crate::par::Par;

/// Items of a subtree that one thread sweeps on its own. A power of two, so that the subtree is part of the tree.
const BLOCK: usize = 1024;

/// Replaces the later operand by earlier ∘ later.
pub(crate) trait Fold<T>: Fn(&T, &mut T) + Sync {}

impl<T, F: Fn(&T, &mut T) + Sync> Fold<T> for F {}

/// Up-sweep over the levels from `from` on: afterwards the last item of every node is the node's sum.
pub(crate) fn up<T>(items: &mut [T], from: usize, fold: &impl Fold<T>) {
    let n = items.len();
    let mut s = from;
    while s < n {
        let mut start = 0;
        while start + s < n {
            let end = (start + 2 * s).min(n);
            let (left, right) = items.split_at_mut(end - 1);
            fold(&left[start + s - 1], &mut right[0]);
            start += 2 * s;
        }
        s *= 2;
    }
}

/// The first level of the down-sweep of `n` items: the largest power of two below n, or 0.
fn top(n: usize) -> usize {
    if n < 2 { 0 } else { 1 << (n - 1).ilog2() }
}

/// Down-sweep to inclusive prefixes after an up-sweep, from the top to level `to`. `items` are all but the last item, which as the
/// sum of all is a prefix once the carry is in it; `carry` is the prefix before them.
///
/// A node gives the prefix before it to the sum of its left half; the right half's sum becomes the node's own prefix.
pub(crate) fn down<T>(carry: Option<&T>, items: &mut [T], to: usize, fold: &impl Fold<T>) {
    let n = items.len() + 1;
    let mut s = top(n);
    while s >= to.max(1) {
        if let Some(carry) = carry {
            fold(carry, &mut items[s - 1]);
        }
        let mut start = 2 * s;
        while start + s < n {
            let (left, right) = items.split_at_mut(start + s - 1);
            fold(&left[start - 1], &mut right[0]);
            start += 2 * s;
        }
        s /= 2;
    }
}

/// Down-sweep to exclusive prefixes after an up-sweep, from the top to level `to`; the last item holds the prefix before `items`.
///
/// By the book: the left half gets the node's prefix, the right half that prefix ∘ the sum of the left.
fn down_exclusive<O: Monoid>(op: &O, items: &mut [O::Element], to: usize) {
    let n = items.len();
    let mut s = top(n);
    while s >= to.max(1) {
        let mut start = 0;
        while start + s < n {
            let (mid, end) = (start + s - 1, (start + 2 * s).min(n) - 1);
            let prefix = items[end].clone();
            let sum = core::mem::replace(&mut items[mid], prefix);
            items[end] = op.combine(&items[end], &sum);
            start += 2 * s;
        }
        s /= 2;
    }
}

/// The up-sweep, its lower levels in parallel.
fn up_parallel<O: Monoid>(op: &O, items: &mut [O::Element], par: Par) {
    let fold = |earlier: &O::Element, later: &mut O::Element| *later = op.combine(earlier, later);
    par.chunks_mut(items, BLOCK, |_, block| up(block, 1, &fold));
    up(items, BLOCK, &fold);
}

/// Replaces item t by x_1 ∘ … ∘ x_t. At most 2n combinations, at most 2·⌈log₂ n⌉ of them one after another.
pub fn scan_inclusive<O: Monoid>(op: &O, items: &mut [O::Element], par: Par) {
    let fold = |earlier: &O::Element, later: &mut O::Element| *later = op.combine(earlier, later);
    up_parallel(op, items, par);
    let Some((_, items)) = items.split_last_mut() else { return };
    down(None, items, BLOCK, &fold);
    // Blocks are cut one item early, so that each has the prefix before it at its front.
    let (head, rest) = items.split_at_mut(items.len().min(BLOCK - 1));
    down(None, head, 1, &fold);
    par.chunks_mut(rest, BLOCK, |_, block| {
        let (carry, block) = block.split_at_mut(1);
        down(Some(&carry[0]), block, 1, &fold);
    });
}

/// Replaces item t by x_1 ∘ … ∘ x_{t−1}, the first by the identity, and returns the sum of all. The costs are those of [`scan_inclusive`].
pub fn scan_exclusive<O: Monoid>(op: &O, items: &mut [O::Element], par: Par) -> O::Element {
    up_parallel(op, items, par);
    let Some(root) = items.last_mut() else { return op.identity() };
    let total = core::mem::replace(root, op.identity());
    down_exclusive(op, items, BLOCK);
    par.chunks_mut(items, BLOCK, |_, block| down_exclusive(op, block, 1));
    total
}
