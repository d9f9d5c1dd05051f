//! Ways to pack sequences, with the ends at which implementations differ.

use super::array::Array;
use super::pairs::Draw;
use super::transform::Packing;

/// Which positions belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Rows,
    /// Offsets, with empty sequences in front, in the middle and at the end.
    CuSeqlens,
    /// Ids with padding anywhere.
    Inside,
    /// Ids with padding in front and at the end.
    Ends,
    /// Ids that begin with a large one and jump; of three rows the last is nothing but padding.
    Late,
}
pub const ORDERS: [Order; 5] = [Order::Rows, Order::CuSeqlens, Order::Inside, Order::Ends, Order::Late];

impl Order {
    fn id(self, [b, t]: [usize; 2], seqlen: usize, draw: &mut Draw) -> i32 {
        match self {
            Order::Inside if draw.below(4) == 0 => -1 - draw.below(3) as i32,
            Order::Inside => 2 * (t * (b + 2) / seqlen) as i32,
            Order::Ends if t < 3 + b || t + seqlen / 4 >= seqlen => -1,
            Order::Ends => i32::from(t > seqlen / 2),
            _ if b == 2 => -1,
            _ if t + 2 > seqlen => i32::MAX,
            _ if t < seqlen / 3 => 7,
            _ => 40,
        }
    }

    /// Offsets or ids for (B, L); offsets want B = 1.
    pub fn packing(self, dims @ [batch, seqlen]: [usize; 2], draw: &mut Draw) -> Packing {
        match self {
            Order::Rows => Packing::Rows,
            Order::CuSeqlens => {
                let [third, half, late] = [seqlen / 3, seqlen / 2, seqlen - seqlen / 7];
                Packing::CuSeqlens([0, 0, third, third, half, late, seqlen, seqlen].map(|x| x as i64).to_vec())
            }
            _ => {
                let at = (0..batch).flat_map(|b| (0..seqlen).map(move |t| [b, t]));
                Packing::SeqIdx { ids: at.map(|at| self.id(at, seqlen, draw)).collect(), dims }
            }
        }
    }
}

/// NaN in everything that is padding: whoever reads it shows it.
pub fn padding<'a>(packing: &Packing, arrays: impl IntoIterator<Item = &'a mut Array>) {
    let Packing::SeqIdx { ids, .. } = packing else { return };
    for array in arrays {
        let width = array.data.len() / ids.len().max(1);
        ids.iter().enumerate().filter(|(_, id)| **id < 0).for_each(|(at, _)| array.data[at * width..][..width].fill(f64::NAN));
    }
}
