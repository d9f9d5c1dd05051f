//! Causal depthwise conv1d: operands, checks and trait.
//!
//! ```text
//! out_t[d] = act(bias[d] + Σ_{k<W} w[d,k] x_{t−(W−1)+k}[d])     act: SiLU or none; x before the start from the window, or 0
//! ```

mod backward;
mod check;
mod host;
mod stage;

pub(crate) use backward::bwd_with;
pub(crate) use host::{fwd_with, fwd_workspace_with, update_with, update_workspace_with};
pub(crate) use stage::{ConvKernel, Filter, Plain, RowGrads, TileGrads};

pub use backward::{causal_conv1d_bwd, causal_conv1d_bwd_workspace};
pub use host::{causal_conv1d_fwd, causal_conv1d_fwd_workspace, causal_conv1d_update, causal_conv1d_update_workspace};

use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::sequences::Sequences;
use crate::view::{Host, Memory, View, ViewMut};

/// What a convolution reads.
#[derive(Debug, Clone, Copy)]
pub struct ConvInputs<'a, I: Input, M: Memory = Host> {
    /// (B, L, D).
    pub x: View<'a, I, 3, M>,
    /// (D, W), W ≥ 1.
    pub weight: View<'a, I::Accum, 2, M>,
    /// (D).
    pub bias: Option<View<'a, I::Accum, 1, M>>,
    /// The W − 1 inputs before the start, (B, W − 1, D), or (k, W − 1, D) with `CuSeqlens`; oldest first.
    pub initial_window: Option<View<'a, I, 3, M>>,
    /// Which positions belong together. Padding has out 0 and holds the window.
    pub sequences: Sequences<'a, M>,
    /// SiLU on the sum.
    pub silu: bool,
}

/// Operands of the forward convolution.
#[derive(Debug)]
pub struct ConvFwd<'a, I: Input, M: Memory = Host> {
    /// What is read.
    pub inputs: ConvInputs<'a, I, M>,
    /// (B, L, D); written.
    pub out: ViewMut<'a, I, 3, M>,
    /// The last W − 1 inputs of each sequence (those of the initial window, or 0, where it is shorter); written.
    pub final_window: Option<ViewMut<'a, I, 3, M>>,
}

/// Where gradients go: each one that is wanted; written, not added to.
#[derive(Debug)]
pub struct ConvGrads<'a, I: Input, M: Memory = Host> {
    /// (B, L, D).
    pub x: Option<ViewMut<'a, I, 3, M>>,
    /// (D, W).
    pub weight: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (D). Only with a bias.
    pub bias: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// As the initial window. Only with one.
    pub initial_window: Option<ViewMut<'a, I, 3, M>>,
}

impl<I: Input, M: Memory> Default for ConvGrads<'_, I, M> {
    fn default() -> Self {
        ConvGrads { x: None, weight: None, bias: None, initial_window: None }
    }
}

/// Operands of the backward convolution. The sum before SiLU is recomputed.
#[derive(Debug)]
pub struct ConvBwd<'a, I: Input, M: Memory = Host> {
    /// What the forward call read.
    pub inputs: ConvInputs<'a, I, M>,
    /// ∂ℓ/∂out, (B, L, D).
    pub grad_out: View<'a, I, 3, M>,
    /// ∂ℓ/∂(final window), in its shape.
    pub grad_final_window: Option<View<'a, I, 3, M>>,
    /// Where gradients go.
    pub grads: ConvGrads<'a, I, M>,
}

/// Operands of one decode step: the window is shifted in place.
#[derive(Debug)]
pub struct ConvStep<'a, I: Input, M: Memory = Host> {
    /// (B, D).
    pub x: View<'a, I, 2, M>,
    /// (D, W).
    pub weight: View<'a, I::Accum, 2, M>,
    /// (D).
    pub bias: Option<View<'a, I::Accum, 1, M>>,
    /// (slots, W − 1, D), oldest first; updated in place.
    pub window: ViewMut<'a, I, 3, M>,
    /// The window slot of each row, (B); each slot at most once. A negative one skips its row: neither its window nor its out is touched.
    pub slots: Option<View<'a, i32, 1, M>>,
    /// (B, D); written.
    pub out: ViewMut<'a, I, 2, M>,
    /// SiLU on the sum.
    pub silu: bool,
}

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvProblem {
    /// B.
    pub batch: usize,
    /// L.
    pub seqlen: usize,
    /// D.
    pub dim: usize,
    /// W.
    pub width: usize,
    /// Entries of the initial and final window: B, or the number of packed sequences.
    pub states: usize,
}

/// Causal depthwise conv1d.
pub trait CausalConv1d {
    /// Where this engine's operands live.
    type Memory: Memory;

    /// Bytes of workspace that `causal_conv1d_fwd` takes.
    fn causal_conv1d_fwd_workspace<I: Input>(&self, problem: &ConvProblem) -> usize;

    /// The forward convolution.
    fn causal_conv1d_fwd<I: Input>(&self, args: ConvFwd<'_, I, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;

    /// Bytes of workspace that `causal_conv1d_bwd` takes.
    fn causal_conv1d_bwd_workspace<I: Input>(&self, problem: &ConvProblem) -> usize;

    /// The backward convolution.
    fn causal_conv1d_bwd<I: Input>(&self, args: ConvBwd<'_, I, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;

    /// Bytes of workspace that `causal_conv1d_update` takes.
    fn causal_conv1d_update_workspace<I: Input>(&self, problem: &ConvProblem) -> usize;

    /// One decode step.
    fn causal_conv1d_update<I: Input>(
        &self,
        args: ConvStep<'_, I, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;
}
