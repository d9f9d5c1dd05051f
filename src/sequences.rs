//! Packed sequences and walks along them: tiles of positions that never cross a boundary and are counted from their sequence's start.
//!
//! Scans and convolutions of every engine walk a row through a [`Walk`], so that a sequence meets the same tiles, and so the
//! same bits, wherever it stands in a packed row and whatever padding lies inside it.

use core::ops::Range;

use crate::error::Error;
use crate::view::{Host, Memory, View};

/// Which positions belong together.
#[derive(Debug, Clone, Copy, Default)]
pub enum Sequences<'a, M: Memory = Host> {
    /// Each row of the batch is one sequence.
    #[default]
    Rows,
    /// Batch 1, k sequences one after another: k + 1 offsets from 0 to L that do not decrease. States have one entry a sequence,
    /// (k, D, N); an empty sequence passes its initial state through.
    CuSeqlens(View<'a, i64, 1, M>),
    /// (B, L) ids. Non-negative ids do not decrease along a row; the state starts anew where one differs from the last
    /// non-negative one before it. Negative ids are padding: out 0, gradients 0, state held. States are (B, D, N): the initial
    /// one enters the row's first sequence, the last one is that of its last.
    SeqIdx(View<'a, i32, 2, M>),
}

/// Which part of the batch a state belongs to: row `batch`, positions `range`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Row of the batch.
    pub batch: usize,
    /// Positions in that row.
    pub range: Range<usize>,
}

/// A tile of a sequence: `count` positions, collected in the buffer that was passed to [`Walk::next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// How many positions.
    pub count: usize,
    /// Whether the state starts anew here. The first sequence of a span starts from the initial state instead, if there is one.
    pub fresh: bool,
    /// Whether this is the first tile of the span: the initial state enters here.
    pub first: bool,
}

/// A walk along one span, tile by tile. `Copy`, so that a place in the walk can be remembered.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    ids: Option<View<'a, i32, 2>>,
    batch: usize,
    at: usize,
    end: usize,
    /// The id of the sequence that is being walked; None before the first.
    id: Option<i32>,
    first: bool,
}

impl<'a> Sequences<'a> {
    /// The span of state `index` in a batch of rows of length `seqlen`. Operands have been checked.
    pub fn span(&self, index: usize, seqlen: usize) -> Span {
        match self {
            Sequences::CuSeqlens(v) => Span { batch: 0, range: v.get([index]) as usize..v.get([index + 1]) as usize },
            _ => Span { batch: index, range: 0..seqlen },
        }
    }

    /// A walk along a span.
    pub fn walk(&self, span: &Span) -> Walk<'a> {
        let ids = if let Sequences::SeqIdx(v) = self { Some(*v) } else { None };
        Walk { ids, batch: span.batch, at: span.range.start, end: span.range.end, id: None, first: true }
    }

    /// Whether position `t` of row `batch` is padding.
    pub fn is_padding(&self, batch: usize, t: usize) -> bool {
        matches!(self, Sequences::SeqIdx(v) if v.get([batch, t]) < 0)
    }

    /// Whether any position can be padding.
    pub fn may_pad(&self) -> bool {
        matches!(self, Sequences::SeqIdx(_))
    }
}

impl<M: Memory> Sequences<'_, M> {
    /// Checks offsets or ids; the number of states for a batch. Their values are read where they lie in this process's memory; on a
    /// device only their shape is checked, and kernels stay inside their buffers whatever the values are.
    pub fn check(&self, batch: usize, seqlen: usize) -> Result<usize, Error> {
        match self {
            Sequences::Rows => Ok(batch),
            Sequences::CuSeqlens(v) => {
                let n = v.dims()[0];
                v.check("cu_seqlens", [n])?;
                let fault = |why: String| Err(Error::Value { operand: "cu_seqlens", why });
                if batch != 1 {
                    return fault(format!("packed sequences want batch 1, got {batch}"));
                }
                if n == 0 {
                    return fault(format!("offsets run from 0 to the length, {seqlen}"));
                }
                v.on_host().map_or(Ok(()), |v| check_offsets(&v, seqlen))?;
                Ok(n - 1)
            }
            Sequences::SeqIdx(v) => {
                v.check("seq_idx", [batch, seqlen])?;
                v.on_host().map_or(Ok(()), |v| check_ids(&v))?;
                Ok(batch)
            }
        }
    }
}

fn check_offsets(v: &View<'_, i64, 1>, seqlen: usize) -> Result<(), Error> {
    let n = v.dims()[0];
    let fault = |why: String| Err(Error::Value { operand: "cu_seqlens", why });
    if v.get([0]) != 0 || v.get([n - 1]) != seqlen as i64 {
        return fault(format!("offsets run from 0 to the length, {seqlen}"));
    }
    match (1..n).find(|&i| v.get([i]) < v.get([i - 1])) {
        Some(i) => fault(format!("offset {i} is {}, below the one before it, {}", v.get([i]), v.get([i - 1]))),
        None => Ok(()),
    }
}

fn check_ids(v: &View<'_, i32, 2>) -> Result<(), Error> {
    let [batch, seqlen] = v.dims();
    for b in 0..batch {
        let mut before = 0;
        for t in 0..seqlen {
            let id = v.get([b, t]);
            if id >= 0 && id < before {
                let why = format!("id {id} at row {b}, position {t} is below {before}, which stands before it");
                return Err(Error::Value { operand: "seq_idx", why });
            }
            before = before.max(id);
        }
    }
    Ok(())
}

/// Slots lie below `states` and no two rows share one, where they lie in this process's memory; on a device only their shape is
/// checked. Compares pairs: batches of decode are small, and nothing is allocated.
pub(crate) fn check_slots<M: Memory>(slots: &View<'_, i32, 1, M>, batch: usize, states: usize) -> Result<(), Error> {
    slots.check("slots", [batch])?;
    let Some(slots) = slots.on_host() else { return Ok(()) };
    let fault = |why: String| Err(Error::Value { operand: "slots", why });
    for i in 0..batch {
        let slot = slots.get([i]);
        if slot >= 0 && slot as usize >= states {
            return fault(format!("row {i} asks for slot {slot} of {states}"));
        }
        if slot >= 0 && (0..i).any(|j| slots.get([j]) == slot) {
            return fault(format!("slot {slot} is used by more than one row"));
        }
    }
    Ok(())
}

impl Walk<'_> {
    /// Collects the next positions of one sequence, at most as many as `positions` holds; None at the end of the span.
    pub fn next(&mut self, positions: &mut [usize]) -> Option<Tile> {
        let mut tile = Tile { count: 0, fresh: self.first, first: self.first };
        while self.at < self.end && tile.count < positions.len() {
            if let Some(ids) = self.ids {
                let id = ids.get([self.batch, self.at]);
                if id < 0 {
                    self.at += 1;
                    continue;
                }
                if self.id != Some(id) {
                    if tile.count > 0 {
                        break;
                    }
                    tile.fresh = true;
                    self.id = Some(id);
                }
            }
            positions[tile.count] = self.at;
            tile.count += 1;
            self.at += 1;
        }
        self.first &= tile.count == 0;
        (tile.count > 0).then_some(tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;

    fn tiles(sequences: &Sequences<'_>, state: usize, seqlen: usize, width: usize) -> Vec<(Vec<usize>, bool, bool)> {
        let mut walk = sequences.walk(&sequences.span(state, seqlen));
        let mut positions = vec![0; width];
        core::iter::from_fn(|| walk.next(&mut positions).map(|t| (positions[..t.count].to_vec(), t.fresh, t.first))).collect()
    }

    #[test]
    fn tiles_count_from_the_sequence_start_and_skip_padding() {
        let ids = [-1, 0, -1, 0, 0, 3, -7, 3, 3, 4, -1];
        let got = tiles(&Sequences::SeqIdx(View::new(&ids, [1, 11])), 0, 11, 2);
        let want =
            [(vec![1, 3], true, true), (vec![4], false, false), (vec![5, 7], true, false), (vec![8], false, false), (vec![9], true, false)];
        assert_eq!(got, want);
    }

    #[test]
    fn offsets_give_one_span_a_sequence() {
        let offsets = [0i64, 3, 3, 5];
        let sequences = Sequences::CuSeqlens(View::new(&offsets, [4]));
        assert_eq!(sequences.check(1, 5), Ok(3));
        assert_eq!(tiles(&sequences, 0, 5, 2), [(vec![0, 1], true, true), (vec![2], false, false)]);
        assert_eq!(tiles(&sequences, 1, 5, 2), []);
        assert_eq!(tiles(&sequences, 2, 5, 2), [(vec![3, 4], true, true)]);
    }
}
