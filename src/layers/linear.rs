//! Linear: out = x·Wᵀ + bias, and its gradients: operands, checks and trait.

mod host;

pub use host::{linear_bwd, linear_bwd_workspace, linear_fwd, linear_fwd_workspace};

use crate::buffer::Workspace;
use crate::element::{Input, Real};
use crate::error::Error;
use crate::view::{Host, Memory, View, ViewMut};

/// Operands of the forward product. 16-bit storage is multiplied in f32 and rounded once.
///
/// Any layout of the weight gives the same bits. With few rows, as in decode, the one with stride 1 along N (a transposed copy)
/// is several times faster than the usual one.
#[derive(Debug)]
pub struct LinearFwd<'a, I: Input, M: Memory = Host> {
    /// (rows, K).
    pub x: View<'a, I, 2, M>,
    /// (N, K).
    pub weight: View<'a, I, 2, M>,
    /// (N).
    pub bias: Option<View<'a, I::Accum, 1, M>>,
    /// (rows, N); written.
    pub out: ViewMut<'a, I, 2, M>,
}

/// Operands of the backward product: ∂x = ∂out·W, ∂W = ∂outᵀ·x, ∂bias = Σ_rows ∂out.
#[derive(Debug)]
pub struct LinearBwd<'a, I: Input, M: Memory = Host> {
    /// (rows, K).
    pub x: View<'a, I, 2, M>,
    /// (N, K).
    pub weight: View<'a, I, 2, M>,
    /// ∂ℓ/∂out, (rows, N).
    pub grad_out: View<'a, I, 2, M>,
    /// (rows, K); written.
    pub grad_x: Option<ViewMut<'a, I, 2, M>>,
    /// (N, K), in the arithmetic type whatever the storage; written.
    pub grad_weight: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (N); written.
    pub grad_bias: Option<ViewMut<'a, I::Accum, 1, M>>,
}

/// Sizes of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearProblem {
    /// Rows of x.
    pub rows: usize,
    /// K, features in.
    pub inputs: usize,
    /// N, features out.
    pub outputs: usize,
}

/// Linear.
pub trait Linear {
    /// Where this engine's operands live.
    type Memory: Memory;

    /// Bytes of workspace that `linear_fwd` takes.
    fn linear_fwd_workspace<I: Input>(&self, problem: LinearProblem) -> usize;

    /// The forward product.
    fn linear_fwd<I: Input>(&self, args: LinearFwd<'_, I, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;

    /// Bytes of workspace that `linear_bwd` takes.
    fn linear_bwd_workspace<I: Input>(&self, problem: LinearProblem) -> usize;

    /// The backward product.
    fn linear_bwd<I: Input>(&self, args: LinearBwd<'_, I, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;
}

/// The crate `gemm` has kernels of their own, which sum in another order, for one row or column and, where both factors are
/// contiguous along the depth, for at most so many numbers. They are avoided: by a repeated row or column, and by a copy.
const SMALL: usize = 256;

/// The sizes that a product of m by n numbers is run with: at least two each way.
fn padded(m: usize, n: usize) -> [usize; 2] {
    [m.max(2), n.max(2)]
}

/// Whether a product must not have both factors contiguous along the depth.
fn is_small(m: usize, n: usize) -> bool {
    padded(m, n).iter().product::<usize>() <= SMALL
}

/// sums = lhs·rhs for (m, k) by (k, n), or added to what is there, row by row of the padded sizes; those that were not asked for are
/// arbitrary. Strides of the factors are not negative. Each sum is one chain of multiply-adds in the order of k, which is at most 512.
#[cfg(feature = "gemm")]
fn multiply<A: Real>(lhs: View<'_, A, 2>, rhs: View<'_, A, 2>, sums: &mut [A], add: bool) {
    let ([m, k], n) = (lhs.dims(), rhs.dims()[1]);
    let [rows, columns] = padded(m, n);
    assert!(rhs.dims()[0] == k && sums.len() == rows * columns && m > 0 && n > 0 && k > 0);
    lhs.check("lhs", [m, k]).and(rhs.check("rhs", [k, n])).expect("factors inside their buffers");
    let ([mut lhs_row, lhs_depth], [rhs_depth, mut rhs_column]) = (lhs.strides(), rhs.strides());
    assert!(lhs_row.min(lhs_depth).min(rhs_depth).min(rhs_column) >= 0);
    if m == 1 {
        lhs_row = 0;
    }
    if n == 1 {
        rhs_column = 0;
    }
    let (zero, one) = (A::from_f64(0.0), A::from_f64(1.0));
    // SAFETY: both factors lie inside borrowed buffers, as checked above, and where a row or column is repeated its stride is 0,
    // so the padded sizes reach no further. `sums` has rows × columns numbers, is written only here and overlaps neither factor.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            k,
            sums.as_mut_ptr(),
            1,
            columns as isize,
            add,
            lhs.as_ptr(),
            lhs_depth,
            lhs_row,
            rhs.as_ptr(),
            rhs_column,
            rhs_depth,
            if add { one } else { zero },
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// sums = lhs·rhs for (m, k) by (k, n), or added to what is there, row by row of the padded sizes; those that were not asked for stay.
#[cfg(not(feature = "gemm"))]
fn multiply<A: Real>(lhs: View<'_, A, 2>, rhs: View<'_, A, 2>, sums: &mut [A], add: bool) {
    let ([m, k], n) = (lhs.dims(), rhs.dims()[1]);
    if !add {
        sums.fill(A::ZERO);
    }
    for (i, row) in sums.chunks_exact_mut(padded(m, n)[1]).take(m).enumerate() {
        for p in 0..k {
            let left = lhs.get([i, p]);
            row[..n].iter_mut().enumerate().for_each(|(j, sum)| *sum += left * rhs.get([p, j]));
        }
    }
}
