//! Cross-entropy of logits on the GPU, and its gradient.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{Strided, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::element::{Dtype, Real};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};

/// Columns that a thread has at a time.
const KEPT: usize = 8;
/// Threads of a block, at most.
const THREADS: usize = 512;
/// Blocks, at most; they go on with further rows.
const BLOCKS: usize = 1 << 16;

/// A variant.
pub(super) struct CrossEntropy {
    dtype: Dtype,
}

params! {
    /// Operands; `count` is the address of a number in f64.
    pub struct CrossEntropyParams {
        logits: Strided<3>,
        grad: Strided<3>,
        targets: Strided<2>,
        loss: Strided<2>,
        count: u64,
        rows: u64,
        columns: u64,
    }
}

impl Kernel for CrossEntropy {
    const TEMPLATE: Template = template!("cross_entropy");
    type Params = CrossEntropyParams;

    fn entry(&self) -> String {
        format!("cross_entropy_{}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        let (zero, infinity) =
            if self.dtype == Dtype::F64 { ("0d0000000000000000", "0d7FF0000000000000") } else { ("0f00000000", "0f7F800000") };
        storage(Vars::new(), self.dtype).int("K", KEPT).text("ZERO", zero).text("INFINITY", infinity)
    }

    fn shipped() -> Vec<Self> {
        [Dtype::F32, Dtype::F64].map(|dtype| CrossEntropy { dtype }).into()
    }
}

/// What the loss is taken of, besides the logits.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// The token that follows each position, (rows), or `IGNORE`: such a row has loss and gradient 0. A number that is neither makes loss and
    /// gradient of its row NaN, which a step of the optimiser then refuses.
    pub targets: View<'a, u32, 1, Device>,
    /// (1): the number of targets of the whole call, as [`Cuda::count_targets`] leaves it. Gradients are divided by it, where it is above 1.
    pub count: View<'a, f64, 1, Device>,
}

impl Cuda {
    /// loss (rows), in f64 = `−ln softmax(logits)[target]` in nats, of logits (rows, vocab); with `grad`, (rows, vocab), the gradient of the
    /// mean: (softmax − one-hot)/count.
    ///
    /// # Errors
    /// Where an operand does not fit.
    pub fn cross_entropy<A: Real>(
        &self,
        logits: View<'_, A, 2, Device>,
        of: Targets<'_>,
        loss: ViewMut<'_, f64, 1, Device>,
        grad: Option<ViewMut<'_, A, 2, Device>>,
    ) -> Result<(), Error> {
        logits.check("logits", logits.dims())?;
        if let Some(grad) = &grad {
            grad.check("grad", logits.dims())?;
        }
        let at = grad.map_or([0; 3], |v| strided_mut(&v));
        self.cross_entropy_at(&logits, of, &loss, at)
    }

    /// As [`Cuda::cross_entropy`], with the gradient written over the logits.
    ///
    /// # Errors
    /// As there.
    pub fn cross_entropy_in_place<A: Real>(
        &self,
        logits: ViewMut<'_, A, 2, Device>,
        of: Targets<'_>,
        loss: ViewMut<'_, f64, 1, Device>,
    ) -> Result<(), Error> {
        logits.check("logits", logits.dims())?;
        self.cross_entropy_at(&logits.as_view(), of, &loss, strided_mut(&logits))
    }

    fn cross_entropy_at<A: Real>(
        &self,
        logits: &View<'_, A, 2, Device>,
        of: Targets<'_>,
        loss: &ViewMut<'_, f64, 1, Device>,
        grad: Strided<3>,
    ) -> Result<(), Error> {
        let [rows, columns] = logits.dims();
        of.targets.check("targets", [rows])?;
        of.count.check("count", [1])?;
        loss.check("loss", [rows])?;
        if columns == 0 {
            return Err(Error::Value { operand: "logits", why: "a vocabulary of no token".into() });
        }
        let params = CrossEntropyParams {
            logits: strided(logits),
            grad,
            targets: strided(&of.targets),
            loss: strided_mut(loss),
            count: strided::<_, 1, 2>(&of.count)[0] as u64,
            rows: rows as u64,
            columns: columns as u64,
        };
        let threads = columns.div_ceil(KEPT).next_multiple_of(32).min(THREADS) as u32;
        self.run(&CrossEntropy { dtype: A::DTYPE }, Grid::new(rows.min(BLOCKS), threads), &params)
    }
}
