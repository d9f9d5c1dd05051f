//! The chunked scan: reduce each chunk, scan the sums, scan each chunk again from the sum before it.

use crate::ops::Monoid;
use crate::par::Par;

/// Length of a chunk of `n` items: about √n, so that the sums are as few as the items of a chunk. It depends on n alone, as the bits do.
fn chunk_len(n: usize) -> usize {
    n.isqrt().clamp(16, 4096)
}

/// Replaces item t by x_1 ∘ … ∘ x_t, chunk by chunk. About 2n combinations, √n of them one after another where threads are many.
pub fn scan_inclusive<O: Monoid>(op: &O, items: &mut [O::Element], par: Par) {
    let width = chunk_len(items.len());
    let sum = |chunk: &[O::Element]| chunk[1..].iter().fold(chunk[0].clone(), |sum, x| op.combine(&sum, x));
    let mut carries: Vec<Option<O::Element>> = vec![None; items.len().div_ceil(width)];
    {
        let items = &*items;
        // The first chunk has no carry; the last chunk's sum carries nowhere.
        let rest = carries.get_mut(1..).unwrap_or_default();
        par.chunks_mut(rest, 1, |i, carry| carry[0] = Some(sum(&items[i * width..(i + 1) * width])));
    }
    for i in 2..carries.len() {
        let before = carries[i - 1].clone();
        carries[i] = before.zip(carries[i].take()).map(|(before, sum)| op.combine(&before, &sum));
    }
    par.chunks_mut(items, width, |i, chunk| {
        if let Some(carry) = &carries[i] {
            chunk[0] = op.combine(carry, &chunk[0]);
        }
        scan_sequential(op, chunk);
    });
}

/// Replaces item t by x_1 ∘ … ∘ x_t, one after another: n − 1 combinations.
pub fn scan_sequential<O: Monoid>(op: &O, items: &mut [O::Element]) {
    for t in 1..items.len() {
        items[t] = op.combine(&items[t - 1], &items[t]);
    }
}
