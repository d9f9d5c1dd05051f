//! Linear: out = x·Wᵀ + bias, and its gradients: operands, checks and trait.

use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::view::{Host, Memory, View, ViewMut};

/// Operands of the forward product. 16-bit storage is multiplied in f32 and rounded once.
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
