//! Layer 2: the selective scan (S6) of Mamba (arXiv 2312.00752, section 3), forward, backward and step.
//!
//! ```text
//! Δ'_t = softplus(Δ_t + Δ_bias)                 or Δ_t + Δ_bias without softplus
//! h_t[d,n] = Ā_t[d,n] h_{t−1}[d,n] + B̄_t[d,n] u_t[d]      Ā, B̄ by the `Rule`; Mamba's: exp(Δ'A), Δ'B
//! y_t[d]   = Σ_n C_t[n] h_t[d,n]                (complex A: twice the real part)
//! out_t[d] = (y_t[d] + D[d] u_t[d]) · silu(z_t[d])         D and z optional
//! ```
//!
//! Logical order is (B, L, D) everywhere; the strides say how memory is ordered, so a (B, D, L) buffer is a view with permuted
//! strides. Channel d belongs to group ⌊d·G/D⌋ of a varying B or C.

// The field's names are kept: A, B, C and D are not a, b, c and d.
#![allow(non_snake_case)]

use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::ops::Rule;
use crate::scan::Scan;
use crate::sequences::Sequences;
use crate::view::{Host, Memory, View, ViewMut};

mod check;
pub mod host;

/// How exactly the state is carried over long sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Carry {
    /// In the arithmetic type: an error of 2⁻²⁴ a step for f32, summed over as many steps as the decay remembers; 2⁻²² on a GPU with real A under Euler's rule, where
    /// the hardware approximates the exponential.
    #[default]
    Plain,
    /// In f64, so that f32 stays within 2e-6 of the largest value at any length, on every engine by the accurate exponential.
    Compensated,
}

/// Options of a selective scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SelectiveOptions {
    /// Δ' = softplus(Δ + Δ_bias) instead of Δ + Δ_bias.
    pub delta_softplus: bool,
    /// The discretisation rule.
    pub rule: Rule,
    /// How the state is carried.
    pub carry: Carry,
}

/// B or C: constant, or varying with position. `R` is 4 for scans and 3 for the step.
#[derive(Debug, Clone, Copy)]
pub enum Coefficient<'a, I: Input, W: Weight<Real = I::Accum>, const R: usize = 4, M: Memory = Host> {
    /// (D, N).
    Constant(View<'a, W, 2, M>),
    /// (B, L, G, N) for scans, (B, G, N) for the step; in the storage type of u, or complex pairs of it. G divides D.
    Varying(View<'a, W::Stored<I>, R, M>),
}

/// The gradient of B or C, of the same kind as the operand.
#[derive(Debug)]
pub enum CoefficientGrad<'a, I: Input, W: Weight<Real = I::Accum>, M: Memory = Host> {
    /// (D, N).
    Constant(ViewMut<'a, W, 2, M>),
    /// (B, L, G, N).
    Varying(ViewMut<'a, W::Stored<I>, 4, M>),
}

/// What a selective scan reads. D, z, delta_bias and the initial state are optional.
#[derive(Debug, Clone, Copy)]
pub struct SelectiveInputs<'a, I: Input, W: Weight<Real = I::Accum>, M: Memory = Host> {
    /// (B, L, D).
    pub u: View<'a, I, 3, M>,
    /// (B, L, D).
    pub delta: View<'a, I, 3, M>,
    /// (D, N), real or complex.
    pub A: View<'a, W, 2, M>,
    /// (D, N) or (B, L, G, N).
    pub B: Coefficient<'a, I, W, 4, M>,
    /// (D, N) or (B, L, G, N).
    pub C: Coefficient<'a, I, W, 4, M>,
    /// The skip, (D).
    pub D: Option<View<'a, W::Real, 1, M>>,
    /// The gate, (B, L, D).
    pub z: Option<View<'a, I, 3, M>>,
    /// (D).
    pub delta_bias: Option<View<'a, W::Real, 1, M>>,
    /// (B, D, N), or (k, D, N) with `CuSeqlens`. Without one nothing is read before the first step.
    pub initial_state: Option<View<'a, W, 3, M>>,
    /// Which positions belong together.
    pub sequences: Sequences<'a, M>,
    /// Options.
    pub options: SelectiveOptions,
}

/// Operands of the forward scan.
#[derive(Debug)]
pub struct SelectiveFwd<'a, I: Input, W: Weight<Real = I::Accum>, M: Memory = Host> {
    /// What is read.
    pub inputs: SelectiveInputs<'a, I, W, M>,
    /// (B, L, D); written.
    pub out: ViewMut<'a, I, 3, M>,
    /// The shape of the initial state; written.
    pub last_state: Option<ViewMut<'a, W, 3, M>>,
}

/// Where gradients go: each one that is wanted, in the shape of its tensor; written, not added to.
///
/// Gradients of complex tensors are ∂ℓ/∂re + i·∂ℓ/∂im.
#[derive(Debug)]
pub struct SelectiveGrads<'a, I: Input, W: Weight<Real = I::Accum>, M: Memory = Host> {
    /// (B, L, D).
    pub u: Option<ViewMut<'a, I, 3, M>>,
    /// (B, L, D).
    pub delta: Option<ViewMut<'a, I, 3, M>>,
    /// (D, N).
    pub A: Option<ViewMut<'a, W, 2, M>>,
    /// As B.
    pub B: Option<CoefficientGrad<'a, I, W, M>>,
    /// As C.
    pub C: Option<CoefficientGrad<'a, I, W, M>>,
    /// (D). Only with D.
    pub D: Option<ViewMut<'a, W::Real, 1, M>>,
    /// (B, L, D). Only with z.
    pub z: Option<ViewMut<'a, I, 3, M>>,
    /// (D). Only with delta_bias.
    pub delta_bias: Option<ViewMut<'a, W::Real, 1, M>>,
    /// As the initial state. Only with one.
    pub initial_state: Option<ViewMut<'a, W, 3, M>>,
}

impl<I: Input, W: Weight<Real = I::Accum>, M: Memory> Default for SelectiveGrads<'_, I, W, M> {
    fn default() -> Self {
        SelectiveGrads { u: None, delta: None, A: None, B: None, C: None, D: None, z: None, delta_bias: None, initial_state: None }
    }
}

/// Operands of the backward scan. Nothing is kept from the forward call but its inputs: states are recomputed.
#[derive(Debug)]
pub struct SelectiveBwd<'a, I: Input, W: Weight<Real = I::Accum>, M: Memory = Host> {
    /// What the forward call read.
    pub inputs: SelectiveInputs<'a, I, W, M>,
    /// ∂ℓ/∂out, (B, L, D).
    pub grad_out: View<'a, I, 3, M>,
    /// ∂ℓ/∂(last state), in its shape.
    pub grad_last_state: Option<View<'a, W, 3, M>>,
    /// Where gradients go.
    pub grads: SelectiveGrads<'a, I, W, M>,
}

/// Operands of one decode step: the scan of one position, the state updated in place.
///
/// `S` is how states are stored: as `W`, or as f16 or bf16 (pairs of them for complex A).
#[derive(Debug)]
pub struct SelectiveStep<'a, I: Input, W: Weight<Real = I::Accum>, S: crate::element::Element<Arith = W>, M: Memory = Host> {
    /// (B, D).
    pub u: View<'a, I, 2, M>,
    /// (B, D).
    pub delta: View<'a, I, 2, M>,
    /// (D, N).
    pub A: View<'a, W, 2, M>,
    /// (D, N) or (B, G, N).
    pub B: Coefficient<'a, I, W, 3, M>,
    /// (D, N) or (B, G, N).
    pub C: Coefficient<'a, I, W, 3, M>,
    /// The skip, (D).
    pub D: Option<View<'a, W::Real, 1, M>>,
    /// The gate, (B, D).
    pub z: Option<View<'a, I, 2, M>>,
    /// (D).
    pub delta_bias: Option<View<'a, W::Real, 1, M>>,
    /// (slots, D, N); updated in place. Without `slots`, slot b is row b and there are B of them.
    pub state: ViewMut<'a, S, 3, M>,
    /// The state slot of each row, (B); each slot at most once. A negative one skips its row: neither its state nor its out is touched.
    pub slots: Option<View<'a, i32, 1, M>>,
    /// (B, D); written.
    pub out: ViewMut<'a, I, 2, M>,
    /// Options. `carry` has no effect on one step.
    pub options: SelectiveOptions,
}

/// The sizes and options that a workspace and a plan depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SelectiveProblem {
    /// B.
    pub batch: usize,
    /// L.
    pub seqlen: usize,
    /// D.
    pub dim: usize,
    /// N.
    pub dstate: usize,
    /// Entries of the initial and last state: B, or the number of packed sequences.
    pub states: usize,
    /// Groups of a varying B; None where B is constant.
    pub groups_b: Option<usize>,
    /// Groups of a varying C; None where C is constant.
    pub groups_c: Option<usize>,
    /// Options.
    pub options: SelectiveOptions,
}

/// Layer 2. `I` is how u, Δ, B, C, z and out are stored, `W` the type of A and the states.
pub trait SelectiveScan: Scan {
    /// Bytes of workspace that `selective_scan_fwd` takes.
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize;

    /// The forward scan.
    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;

    /// Bytes of workspace that `selective_scan_bwd` takes. On the host they depend on how many threads there are, as those of the forward scan do: ask
    /// in the thread pool of the call.
    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize;

    /// The backward scan: states are kept at chunk boundaries and recomputed between them.
    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;

    /// Bytes of the buffer in which [`SelectiveScan::selective_scan_fwd_saving`] keeps what [`SelectiveScan::selective_scan_bwd_from`] uses instead of
    /// computing it again: what that is, and in which order, is the engine's own affair. 0 where it has no use for one; such a buffer is not looked at.
    fn selective_scan_saved_bytes<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        let _ = problem;
        0
    }

    /// Bytes of workspace that [`SelectiveScan::selective_scan_fwd_saving`] takes.
    fn selective_scan_fwd_saving_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        self.selective_scan_fwd_workspace::<I, W>(problem)
    }

    /// The forward scan of a training step: it also writes `saved`, of at least [`SelectiveScan::selective_scan_saved_bytes`].
    fn selective_scan_fwd_saving<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W, Self::Memory>,
        saved: ViewMut<'_, u8, 1, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error> {
        let _ = saved;
        self.selective_scan_fwd(args, ws)
    }

    /// The backward scan from what [`SelectiveScan::selective_scan_fwd_saving`] has saved for the same inputs by the same engine: the gradients that
    /// [`SelectiveScan::selective_scan_bwd`] gives, with its workspace, in less time. As exact, and the same bits on every call; not always those of a call that
    /// computes the states again, whose softplus may be rounded otherwise.
    fn selective_scan_bwd_from<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W, Self::Memory>,
        saved: View<'_, u8, 1, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error> {
        let _ = saved;
        self.selective_scan_bwd(args, ws)
    }

    /// Bytes of workspace that `selective_state_update` takes.
    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize;

    /// One decode step.
    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: crate::element::Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;
}
