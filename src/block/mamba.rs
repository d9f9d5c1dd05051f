//! The Mamba block (arXiv 2312.00752, section 3.4): input (B, L, M), D inner channels, N states, Δ rank R, conv width W.
//!
//! ```text
//! [x | z]     = in_proj(input)                M → 2D
//! x           = silu(conv1d(x))               causal, depthwise
//! [δ | B | C] = x_proj(x)                     D → R + 2N
//! Δ           = dt_proj(δ)                    R → D; its bias is Δ_bias of the scan
//! y           = selective_scan(x, Δ, A = −exp(A_log), B, C, D, z, Δ_bias)
//! out         = out_proj(y)                   D → M
//! ```
//!
//! x, z, δ, B and C are read in place, as strided parts of the products that made them. A forward call for training keeps in
//! [`MambaSaved`] the products and sums that backward would have to repeat at length: [x | z], x after the convolution,
//! [δ | B | C] and y, 4D + R + 2N numbers a position. Backward makes Δ anew (a product of rank R) and the scan recomputes its
//! states, so nothing of size B·L·D·N exists.
//!
//! What is bit-equal: a row's results do not depend on what else is in the batch, but for products by cuBLASLt, which may pick their
//! order of summation by the number of rows.

// The field's names are kept: A, B, C and D are not a, b, c and d.
#![allow(non_snake_case)]

use crate::element::{Element, Input};
use crate::layers::conv1d::ConvProblem;
use crate::layers::linear::LinearProblem;
use crate::ops::Rule;
use crate::selective::{Carry, SelectiveOptions, SelectiveProblem};
use crate::sequences::Sequences;
use crate::view::{Host, Memory, View, ViewMut};
use crate::workspace::bytes_of;

mod backward;
mod check;
mod forward;
mod saved;
mod step;

pub use saved::{MambaMemory, MambaSaved};

/// The options of every published Mamba model: softplus on Δ, Mamba's rule, the plain carry.
pub const MAMBA_OPTIONS: SelectiveOptions = SelectiveOptions { delta_softplus: true, rule: Rule::Euler, carry: Carry::Plain };

/// The parameters of a block, borrowed. Projections in the storage type, the rest in the arithmetic type. Published names: `mixer.NAME`.
#[derive(Debug, Clone, Copy)]
pub struct MambaParams<'a, I: Input, M: Memory = Host> {
    /// `in_proj.weight`, (2D, M): x first, then z.
    pub in_proj: View<'a, I, 2, M>,
    /// `in_proj.bias`, (2D).
    pub in_proj_bias: Option<View<'a, I::Accum, 1, M>>,
    /// `conv1d.weight`, (D, W), published as (D, 1, W).
    pub conv_weight: View<'a, I::Accum, 2, M>,
    /// `conv1d.bias`, (D).
    pub conv_bias: Option<View<'a, I::Accum, 1, M>>,
    /// `x_proj.weight`, (R + 2N, D): δ, then B, then C.
    pub x_proj: View<'a, I, 2, M>,
    /// `dt_proj.weight`, (D, R).
    pub dt_proj: View<'a, I, 2, M>,
    /// `dt_proj.bias`, (D): Δ_bias.
    pub dt_bias: View<'a, I::Accum, 1, M>,
    /// `A_log`, (D, N): A = −exp(A_log).
    pub A_log: View<'a, I::Accum, 2, M>,
    /// A itself, (D, N), where the caller has it already, as decoding does; else each call makes it from `A_log`.
    pub A: Option<View<'a, I::Accum, 2, M>>,
    /// The skip `D`, (D).
    pub D: View<'a, I::Accum, 1, M>,
    /// `out_proj.weight`, (M, D).
    pub out_proj: View<'a, I, 2, M>,
    /// `out_proj.bias`, (M).
    pub out_proj_bias: Option<View<'a, I::Accum, 1, M>>,
}

/// Where gradients of parameters go, in the arithmetic type: each one that is wanted; written, not added to.
#[derive(Debug)]
pub struct MambaGrads<'a, I: Input, M: Memory = Host> {
    /// ∂ℓ/∂input, (B, L, M), in the storage type.
    pub x: Option<ViewMut<'a, I, 3, M>>,
    /// (2D, M).
    pub in_proj: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (2D). Only with the bias.
    pub in_proj_bias: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// (D, W).
    pub conv_weight: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (D). Only with the bias.
    pub conv_bias: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// (R + 2N, D).
    pub x_proj: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (D, R).
    pub dt_proj: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (D).
    pub dt_bias: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// (D, N).
    pub A_log: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (D).
    pub D: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// (M, D).
    pub out_proj: Option<ViewMut<'a, I::Accum, 2, M>>,
    /// (M). Only with the bias.
    pub out_proj_bias: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// As the initial window, in the storage type. Only with one.
    pub initial_window: Option<ViewMut<'a, I, 3, M>>,
    /// As the initial state. Only with one.
    pub initial_state: Option<ViewMut<'a, I::Accum, 3, M>>,
}

impl<I: Input, M: Memory> Default for MambaGrads<'_, I, M> {
    fn default() -> Self {
        MambaGrads {
            x: None,
            in_proj: None,
            in_proj_bias: None,
            conv_weight: None,
            conv_bias: None,
            x_proj: None,
            dt_proj: None,
            dt_bias: None,
            A_log: None,
            D: None,
            out_proj: None,
            out_proj_bias: None,
            initial_window: None,
            initial_state: None,
        }
    }
}

/// What a block reads. With `CuSeqlens` windows and states have one entry a sequence, (k, …), else one a row of the batch.
#[derive(Debug, Clone, Copy)]
pub struct MambaInputs<'a, I: Input, M: Memory = Host> {
    /// Parameters.
    pub params: MambaParams<'a, I, M>,
    /// (B, L, M).
    pub x: View<'a, I, 3, M>,
    /// The W − 1 inputs of the convolution before the start, (B, W − 1, D), oldest first.
    pub initial_window: Option<View<'a, I, 3, M>>,
    /// (B, D, N).
    pub initial_state: Option<View<'a, I::Accum, 3, M>>,
    /// Which positions belong together, for convolution and scan alike. Padding has the out of y = 0: out_proj's bias, or 0.
    pub sequences: Sequences<'a, M>,
    /// Options of the scan; [`MAMBA_OPTIONS`] are the published ones.
    pub options: SelectiveOptions,
}

impl<'a, I: Input, M: Memory> MambaInputs<'a, I, M> {
    /// Rows from the start: no window, no state, published options.
    pub fn new(params: MambaParams<'a, I, M>, x: View<'a, I, 3, M>) -> Self {
        MambaInputs { params, x, initial_window: None, initial_state: None, sequences: Sequences::Rows, options: MAMBA_OPTIONS }
    }
}

/// Operands of the forward block.
#[derive(Debug)]
pub struct MambaFwd<'a, I: Input, M: Memory = Host> {
    /// What is read.
    pub inputs: MambaInputs<'a, I, M>,
    /// (B, L, M); written.
    pub out: ViewMut<'a, I, 3, M>,
    /// (B, W − 1, D); written.
    pub final_window: Option<ViewMut<'a, I, 3, M>>,
    /// (B, D, N); written.
    pub last_state: Option<ViewMut<'a, I::Accum, 3, M>>,
}

/// Operands of the backward block.
#[derive(Debug)]
pub struct MambaBwd<'a, I: Input, M: Memory = Host> {
    /// What the forward call read.
    pub inputs: MambaInputs<'a, I, M>,
    /// What that call kept.
    pub saved: &'a MambaSaved<'a, I, M>,
    /// ∂ℓ/∂out, (B, L, M).
    pub grad_out: View<'a, I, 3, M>,
    /// ∂ℓ/∂(final window), in its shape.
    pub grad_final_window: Option<View<'a, I, 3, M>>,
    /// ∂ℓ/∂(last state), in its shape.
    pub grad_last_state: Option<View<'a, I::Accum, 3, M>>,
    /// Where gradients go.
    pub grads: MambaGrads<'a, I, M>,
}

/// Operands of one decode step: window and state are updated in place. `S` is how states are stored.
#[derive(Debug)]
pub struct MambaStep<'a, I: Input, S: Element<Arith = I::Accum>, M: Memory = Host> {
    /// Parameters.
    pub params: MambaParams<'a, I, M>,
    /// (B, M).
    pub x: View<'a, I, 2, M>,
    /// (slots, W − 1, D), oldest first; updated in place. Without `slots`, slot b is row b and there are B of them.
    pub window: ViewMut<'a, I, 3, M>,
    /// (slots, D, N); updated in place.
    pub state: ViewMut<'a, S, 3, M>,
    /// The slot of each row, (B); each slot at most once. A negative one skips its row: window and state are not touched, and its
    /// out is that of y = 0.
    pub slots: Option<View<'a, i32, 1, M>>,
    /// (B, M); written.
    pub out: ViewMut<'a, I, 2, M>,
    /// Options of the scan.
    pub options: SelectiveOptions,
}

/// The sizes and options that a workspace depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MambaProblem {
    /// B.
    pub batch: usize,
    /// L.
    pub seqlen: usize,
    /// M.
    pub hidden: usize,
    /// D.
    pub inner: usize,
    /// N.
    pub dstate: usize,
    /// R.
    pub rank: usize,
    /// W.
    pub width: usize,
    /// Entries of windows and states: B, or the number of packed sequences, or the slots of a step.
    pub states: usize,
    /// Options of the scan.
    pub options: SelectiveOptions,
}

impl MambaProblem {
    pub(crate) fn rows(&self) -> usize {
        self.batch.saturating_mul(self.seqlen)
    }

    /// Columns of [δ | B | C].
    fn dbl(&self) -> usize {
        self.rank.saturating_add(self.dstate.saturating_mul(2))
    }

    /// Bytes of A, which is made of its logarithm.
    fn decay_bytes<I: Input>(&self) -> usize {
        bytes_of::<I::Accum>(self.inner.saturating_mul(self.dstate))
    }

    fn linear(&self, inputs: usize, outputs: usize) -> LinearProblem {
        LinearProblem { rows: self.rows(), inputs, outputs }
    }

    /// The four products, in the order of the block.
    fn products(&self) -> [LinearProblem; 4] {
        [
            self.linear(self.hidden, self.inner.saturating_mul(2)),
            self.linear(self.inner, self.dbl()),
            self.linear(self.rank, self.inner),
            self.linear(self.inner, self.hidden),
        ]
    }

    fn conv(&self) -> ConvProblem {
        ConvProblem { batch: self.batch, seqlen: self.seqlen, dim: self.inner, width: self.width, states: self.states }
    }

    fn selective(&self) -> SelectiveProblem {
        SelectiveProblem {
            batch: self.batch,
            seqlen: self.seqlen,
            dim: self.inner,
            dstate: self.dstate,
            states: self.states,
            groups_b: Some(1),
            groups_c: Some(1),
            options: self.options,
        }
    }
}

/// The block on one engine, in that engine's memory. Each call takes its scratch memory from a workspace and allocates nothing itself.
#[derive(Debug)]
pub struct MambaBlock<'e, E> {
    /// The engine.
    pub engine: &'e E,
}

#[cfg(test)]
mod tests;
