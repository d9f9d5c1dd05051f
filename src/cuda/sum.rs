//! Sums in f64 in a fixed order: of flat arrays, of the columns of a matrix, and the norm of gradients.

use super::Cuda;
use super::expression::Vars;
use super::launch::{Grid, Kernel};
use super::params::{Strided, params, storage, strided, strided_mut};
use super::template::{Template, template};
use crate::buffer::Workspace;
use crate::element::{Dtype, Real};
use crate::error::Error;
use crate::view::{Device, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Elements that one block sums.
const PART: usize = 8192;
/// Threads of such a block, and of the one that adds up the parts.
const THREADS: u32 = 256;
const LAST_THREADS: u32 = 1024;
/// Columns of a block of `SumColumns`.
const COLUMNS: usize = 32;

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Term {
    Plain,
    Squares,
    /// 1 for each number that is not `IGNORE`.
    Count,
}

/// A variant of the sum of a flat array.
pub(super) struct Sum {
    term: Term,
    dtype: Dtype,
}

params! {
    /// `to` has a number for each block, which takes `part` elements; the root of it where `root` is not 0.
    pub struct SumParams {
        from: Strided<2>,
        to: u64,
        count: u64,
        part: u64,
        root: u64,
    }
}

impl Kernel for Sum {
    const TEMPLATE: Template = template!("sum");
    type Params = SumParams;

    fn entry(&self) -> String {
        match self.term {
            Term::Plain => format!("sum_{}", self.dtype.name()),
            Term::Squares => format!("sum_squares_{}", self.dtype.name()),
            Term::Count => "sum_count".into(),
        }
    }

    fn vars(&self) -> Vars {
        let op = match self.term {
            Term::Plain => "plain",
            Term::Squares => "squares",
            Term::Count => "count",
        };
        storage(Vars::new(), self.dtype).text("OP", op)
    }

    fn shipped() -> Vec<Self> {
        let variants = [(Term::Plain, Dtype::F64), (Term::Squares, Dtype::F32), (Term::Squares, Dtype::F64), (Term::Count, Dtype::F64)];
        variants.map(|(term, dtype)| Sum { term, dtype }).into()
    }
}

/// A variant of the sum of a matrix's columns, by the type of the result.
pub(super) struct SumColumns {
    dtype: Dtype,
}

params! {
    /// `partial` is (count, columns) in f64, contiguous.
    pub struct ColumnsParams {
        partial: u64,
        count: u64,
        columns: u64,
        out: Strided<2>,
    }
}

impl Kernel for SumColumns {
    const TEMPLATE: Template = template!("sum_columns");
    type Params = ColumnsParams;

    fn entry(&self) -> String {
        format!("sum_columns_{}", self.dtype.name())
    }

    fn vars(&self) -> Vars {
        storage(Vars::new(), self.dtype)
    }

    fn shipped() -> Vec<Self> {
        [Dtype::F32, Dtype::F64].map(|dtype| SumColumns { dtype }).into()
    }
}

/// The address of a contiguous piece of a workspace.
pub(super) fn address<T: Copy, const R: usize>(piece: &ViewMut<'_, T, R, Device>) -> u64 {
    piece.as_view().buffer().0 as u64
}

impl Cuda {
    /// out = the sum of the rows of `partial`, (count, M), which is contiguous.
    pub(super) fn sum_columns<A: Real>(&self, partial: &ViewMut<'_, f64, 2, Device>, out: &ViewMut<'_, A, 1, Device>) -> Result<(), Error> {
        let [count, columns] = partial.dims();
        let params = ColumnsParams { partial: address(partial), count: count as u64, columns: columns as u64, out: strided_mut(out) };
        self.run(&SumColumns { dtype: A::DTYPE }, Grid::new(columns.div_ceil(COLUMNS), 1024), &params)
    }

    /// Bytes of workspace that [`Cuda::sum`], [`Cuda::gradient_norm`] and [`Cuda::count_targets`] take for an array of so many elements.
    pub fn sum_workspace(&self, count: usize) -> usize {
        bytes_of::<f64>(count.div_ceil(PART)).saturating_add(ALIGN)
    }

    /// to (1) = Σ from, (n), in an order that depends on n only.
    ///
    /// # Errors
    /// Where an operand does not fit, or the workspace is too small.
    pub fn sum(
        &self,
        from: View<'_, f64, 1, Device>,
        to: ViewMut<'_, f64, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        from.check("from", from.dims())?;
        to.check("to", [1])?;
        self.sum_of(Term::Plain, Dtype::F64, from.dims()[0], strided(&from), &to, false, ws)
    }

    /// norm (1) = √Σ g² over all gradients, (n): what clipping compares, as the host's `gradient_norm`. Not finite where a gradient is not.
    ///
    /// # Errors
    /// As for [`Cuda::sum`].
    pub fn gradient_norm<T: Real>(
        &self,
        gradients: View<'_, T, 1, Device>,
        norm: ViewMut<'_, f64, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        gradients.check("gradients", gradients.dims())?;
        norm.check("norm", [1])?;
        self.sum_of(Term::Squares, T::DTYPE, gradients.dims()[0], strided(&gradients), &norm, true, ws)
    }

    /// count (1) = how many of the targets, (n), are not `IGNORE`, as a number in f64.
    ///
    /// # Errors
    /// As for [`Cuda::sum`].
    pub fn count_targets(
        &self,
        targets: View<'_, u32, 1, Device>,
        count: ViewMut<'_, f64, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        targets.check("targets", targets.dims())?;
        count.check("count", [1])?;
        self.sum_of(Term::Count, Dtype::F64, targets.dims()[0], strided(&targets), &count, false, ws)
    }

    fn sum_of(
        &self,
        term: Term,
        dtype: Dtype,
        count: usize,
        from: Strided<2>,
        to: &ViewMut<'_, f64, 1, Device>,
        root: bool,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let parts = count.div_ceil(PART).max(1);
        let partial = ws.reborrow().tensor::<f64, 1>([count.div_ceil(PART)])?;
        let first = SumParams { from, to: address(&partial), count: count as u64, part: PART as u64, root: 0 };
        let to = strided_mut::<_, 1, 2>(to)[0] as u64;
        if parts == 1 {
            return self.run(&Sum { term, dtype }, Grid::new(1, THREADS), &SumParams { to, root: u64::from(root), ..first });
        }
        self.run(&Sum { term, dtype }, Grid::new(parts, THREADS), &first)?;
        let last = SumParams { from: strided(&partial.as_view()), to, count: parts as u64, part: parts as u64, root: u64::from(root) };
        self.run(&Sum { term: Term::Plain, dtype: Dtype::F64 }, Grid::new(1, LAST_THREADS), &last)
    }
}
