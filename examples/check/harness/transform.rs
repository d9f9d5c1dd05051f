//! The same work arranged in another way: sliced, packed, taken apart, with padding between.

use selective_scan::sequences::Sequences;
use selective_scan::view::View;

use super::array::{Array, Index};

/// Which positions belong together, with its own memory.
#[derive(Debug, Clone, PartialEq)]
pub enum Packing {
    Rows,
    CuSeqlens(Vec<i64>),
    SeqIdx { ids: Vec<i32>, dims: [usize; 2] },
}

impl Packing {
    /// As operands borrow it.
    pub fn sequences(&self) -> Sequences<'_> {
        match self {
            Packing::Rows => Sequences::Rows,
            Packing::CuSeqlens(offsets) => Sequences::CuSeqlens(View::new(offsets, [offsets.len()])),
            Packing::SeqIdx { ids, dims } => Sequences::SeqIdx(View::new(ids, *dims)),
        }
    }
}

/// A new arrangement of an old problem.
#[derive(Debug, Clone)]
pub struct Transform {
    pub label: String,
    /// Where every new position comes from.
    pub index: Index,
    pub packing: Packing,
    /// Where every new state comes from.
    pub states: Vec<usize>,
    /// Whether every old position is there once, so that shared gradients are the same sums.
    pub whole: bool,
}

impl Transform {
    /// Positions `from..to` of every row.
    pub fn slice(batch: usize, from: usize, to: usize) -> Self {
        let index = (0..batch).map(|row| (from..to).map(|t| Some((row, t))).collect()).collect();
        Transform { label: format!("positions {from} to {to}"), index, packing: Packing::Rows, states: (0..batch).collect(), whole: false }
    }

    /// Rows of a batch as packed sequences, one after another.
    pub fn pack(batch: usize, seqlen: usize) -> Self {
        let index = vec![(0..batch).flat_map(|row| (0..seqlen).map(move |t| Some((row, t)))).collect()];
        let offsets = (0..=batch).map(|row| (row * seqlen) as i64).collect();
        let states = (0..batch).collect();
        Transform { label: "packed by cu_seqlens".into(), index, packing: Packing::CuSeqlens(offsets), states, whole: true }
    }

    /// One packed sequence alone.
    pub fn alone(offsets: &[i64], sequence: usize) -> Self {
        let index = vec![(offsets[sequence]..offsets[sequence + 1]).map(|t| Some((0, t as usize))).collect()];
        let states = vec![sequence];
        Transform { label: format!("sequence {sequence} alone"), index, packing: Packing::Rows, states, whole: false }
    }

    /// Rows of a batch with padding before, between and after their positions.
    pub fn padded(batch: usize, seqlen: usize) -> Self {
        let rows: Vec<_> = (0..batch).map(|row| with_padding((0..seqlen).map(|t| ((row, t), 4)), row)).collect();
        Self::by_seq_idx("padding by seq_idx", rows, (0..batch).collect())
    }

    /// Sequences, each a list of (row, position), in one row by seq_idx with padding between. Only for problems without states.
    pub fn chain(sequences: &[Vec<(usize, usize)>]) -> Self {
        let last = sequences.iter().rposition(|s| !s.is_empty()).unwrap_or(0);
        // Ids may skip numbers.
        let all = sequences.iter().enumerate().flat_map(|(i, s)| s.iter().map(move |&from| (from, 2 * i as i32)));
        Self::by_seq_idx("packed by seq_idx", vec![with_padding(all, 1)], vec![last])
    }

    fn by_seq_idx(label: &str, mut rows: Vec<Row>, states: Vec<usize>) -> Self {
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row.resize(width, (None, -1)));
        let ids = rows.iter().flatten().map(|&(_, id)| id).collect();
        let dims = [rows.len(), width];
        let index = rows.into_iter().map(|row| row.into_iter().map(|(from, _)| from).collect()).collect();
        Transform { label: label.into(), index, packing: Packing::SeqIdx { ids, dims }, states, whole: true }
    }

    /// Positions of an old result where they stand now; 0 at padding.
    pub fn positions(&self, old: &Array) -> Array {
        old.gather(&self.index, 0.0)
    }

    /// Positions of an old input where they stand now. Padding is NaN: whoever reads it shows it.
    pub fn input(&self, old: &Array) -> Array {
        old.gather(&self.index, f64::NAN)
    }
}

type Row = Vec<(Option<(usize, usize)>, i32)>;

/// Padding in front, after every `2 + shift` positions, and at the end.
fn with_padding(positions: impl Iterator<Item = ((usize, usize), i32)>, shift: usize) -> Row {
    let mut row = vec![(None, -1); 1 + shift];
    for (i, (from, id)) in positions.enumerate() {
        row.push((Some(from), id));
        if i % (2 + shift) == 1 {
            row.push((None, -9));
        }
    }
    row.push((None, -1));
    row
}
