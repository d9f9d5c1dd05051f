//! The largest of each row on the GPU: the greedy choice of a token.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{STORAGE, Strided, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Input};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};

/// Blocks, at most; they go on with further rows.
const BLOCKS: usize = 1 << 16;
/// Threads of a block, at most, and the columns that each has at least where rows are long enough.
const THREADS: usize = 1024;
const COLUMNS: usize = 8;

/// A variant.
pub(super) struct Argmax {
    dtype: Dtype,
}

params! {
    /// (rows, columns) and an id for each row.
    pub struct ArgmaxParams {
        logits: Strided<3>,
        ids: Strided<2>,
        rows: u64,
        columns: u64,
    }
}

impl Kernel for Argmax {
    const TEMPLATE: Template = template!("argmax");
    type Params = ArgmaxParams;

    fn entry(&self) -> String {
        format!("argmax_{}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        let infinity = if self.dtype == Dtype::F64 { "0d7FF0000000000000" } else { "0f7F800000" };
        storage(Vars::new(), self.dtype).text("INFINITY", infinity)
    }

    fn shipped() -> Vec<Self> {
        STORAGE.map(|dtype| Argmax { dtype }).into()
    }
}

impl Cuda {
    /// ids (rows) = the column of the largest of each row of `logits`, (rows, vocab); of equal ones the lowest. As the host's `greedy`, but where
    /// that is an `Err` (a NaN, +∞, or nothing but −∞) the id is `u32::MAX`, which is no token.
    ///
    /// # Errors
    /// Where an operand does not fit, or a row has nothing or more than ids.
    pub fn argmax<I: Input>(&self, logits: View<'_, I, 2, Device>, ids: ViewMut<'_, u32, 1, Device>) -> Result<(), Error> {
        let [rows, columns] = logits.dims();
        logits.check("logits", [rows, columns])?;
        ids.check("ids", [rows])?;
        if columns == 0 || columns >= u32::MAX as usize - THREADS {
            return Err(Error::Value { operand: "logits", why: format!("{columns} columns of which none or too many could be an id") });
        }
        let params = ArgmaxParams { logits: strided(&logits), ids: strided_mut(&ids), rows: rows as u64, columns: columns as u64 };
        let threads = columns.div_ceil(COLUMNS).next_multiple_of(32).min(THREADS) as u32;
        self.run(&Argmax { dtype: I::DTYPE }, Grid::new(rows.min(BLOCKS), threads), &params)
    }
}
