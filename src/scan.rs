//! Layer 1: the affine recurrence h_t = a_t ⊙ h_{t−1} + b_t over strided (B, L, D), and its adjoint.

use crate::buffer::Workspace;
use crate::element::Element;
use crate::error::Error;
use crate::view::{Host, Memory, View, ViewMut};

pub mod host;
pub(crate) mod tile;

/// Operands of the recurrence: h_t = a_t ⊙ h_{t−1} + b_t for t = 1 … L, or from t = L down to 1 where `reverse` is on.
///
/// Real or complex; |a| ≤ 1 and |a| > 1 alike. A reset, a_t = 0, lets nothing finite through. Without an initial state the first
/// h is b and the first a is not read.
#[derive(Debug)]
pub struct ScanFwd<'a, E: Element, M: Memory = Host> {
    /// (B, L, D).
    pub a: View<'a, E, 3, M>,
    /// (B, L, D).
    pub b: View<'a, E, 3, M>,
    /// h before the first step in scan order, (B, D).
    pub initial_state: Option<View<'a, E::Arith, 2, M>>,
    /// Every h, (B, L, D); written.
    pub h: ViewMut<'a, E, 3, M>,
    /// The last h in scan order, (B, D), not rounded to storage; written. With L = 0 the initial state, or 0.
    pub last_state: Option<ViewMut<'a, E::Arith, 2, M>>,
    /// From t = L down to 1.
    pub reverse: bool,
}

/// Operands of the adjoint. With g_t = ∂ℓ/∂h_t: λ_t = g_t + conj(a_{t+1}) λ_{t+1}, ∂b_t = λ_t, ∂a_t = λ_t conj(h_{t−1}),
/// ∂h_0 = conj(a_1) λ_1; ∂ℓ/∂(last state) is added to the last g. h is recomputed, so storage never rounds it.
///
/// Gradients of complex tensors are ∂ℓ/∂re + i·∂ℓ/∂im. Without an initial state the first ∂a is 0.
#[derive(Debug)]
pub struct ScanBwd<'a, E: Element, M: Memory = Host> {
    /// As in the forward call, (B, L, D).
    pub a: View<'a, E, 3, M>,
    /// As in the forward call, (B, L, D).
    pub b: View<'a, E, 3, M>,
    /// As in the forward call, (B, D).
    pub initial_state: Option<View<'a, E::Arith, 2, M>>,
    /// ∂ℓ/∂h, (B, L, D).
    pub grad_h: View<'a, E, 3, M>,
    /// ∂ℓ/∂(last state), (B, D).
    pub grad_last_state: Option<View<'a, E::Arith, 2, M>>,
    /// ∂ℓ/∂a, (B, L, D); written.
    pub grad_a: Option<ViewMut<'a, E, 3, M>>,
    /// ∂ℓ/∂b, (B, L, D); written.
    pub grad_b: Option<ViewMut<'a, E, 3, M>>,
    /// ∂ℓ/∂(initial state), (B, D); written. Only with an initial state.
    pub grad_initial_state: Option<ViewMut<'a, E::Arith, 2, M>>,
    /// As in the forward call.
    pub reverse: bool,
}

/// Sizes of a scan: (B, L, D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanProblem {
    /// B.
    pub batch: usize,
    /// L.
    pub seqlen: usize,
    /// D.
    pub dim: usize,
}

/// Layer 1, the one thing an engine must do. An engine that implements `scan_fwd` alone is a complete Mamba engine.
pub trait Scan {
    /// Where this engine's operands live.
    type Memory: Memory;

    /// Bytes of workspace that `scan_fwd` takes.
    fn scan_fwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize;

    /// h_t = a_t ⊙ h_{t−1} + b_t.
    fn scan_fwd<E: Element>(&self, args: ScanFwd<'_, E, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;

    /// Bytes of workspace that `scan_bwd` takes.
    fn scan_bwd_workspace<E: Element>(&self, problem: ScanProblem) -> usize;

    /// The adjoint of `scan_fwd`.
    fn scan_bwd<E: Element>(&self, args: ScanBwd<'_, E, Self::Memory>, ws: &mut Workspace<'_, Self::Memory>) -> Result<(), Error>;
}

impl<E: Element, M: Memory> ScanFwd<'_, E, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<ScanProblem, Error> {
        let dims @ [batch, seqlen, dim] = self.b.dims();
        self.a.check("a", dims)?;
        self.b.check("b", dims)?;
        self.h.check("h", dims)?;
        let state = [batch, dim];
        self.initial_state.as_ref().map_or(Ok(()), |v| v.check("initial_state", state))?;
        self.last_state.as_ref().map_or(Ok(()), |v| v.check("last_state", state))?;
        Ok(ScanProblem { batch, seqlen, dim })
    }

    /// The same recurrence written forwards: where `reverse` is on, time is walked by negated strides instead.
    pub fn forwards(mut self) -> Self {
        if self.reverse {
            (self.a, self.b, self.h, self.reverse) = (self.a.flip(1), self.b.flip(1), self.h.flip(1), false);
        }
        self
    }
}

impl<E: Element, M: Memory> ScanBwd<'_, E, M> {
    /// Checks every operand; the sizes.
    pub fn check(&self) -> Result<ScanProblem, Error> {
        let dims @ [batch, seqlen, dim] = self.b.dims();
        self.a.check("a", dims)?;
        self.b.check("b", dims)?;
        self.grad_h.check("grad_h", dims)?;
        self.grad_a.as_ref().map_or(Ok(()), |v| v.check("grad_a", dims))?;
        self.grad_b.as_ref().map_or(Ok(()), |v| v.check("grad_b", dims))?;
        let state = [batch, dim];
        self.initial_state.as_ref().map_or(Ok(()), |v| v.check("initial_state", state))?;
        self.grad_last_state.as_ref().map_or(Ok(()), |v| v.check("grad_last_state", state))?;
        self.grad_initial_state.as_ref().map_or(Ok(()), |v| v.check("grad_initial_state", state))?;
        if self.grad_initial_state.is_some() && self.initial_state.is_none() {
            return Err(Error::Value { operand: "grad_initial_state", why: "there is no initial state to have a gradient".into() });
        }
        Ok(ScanProblem { batch, seqlen, dim })
    }

    /// The same adjoint written forwards, as [`ScanFwd::forwards`].
    pub fn forwards(mut self) -> Self {
        if self.reverse {
            (self.a, self.b, self.grad_h, self.reverse) = (self.a.flip(1), self.b.flip(1), self.grad_h.flip(1), false);
            (self.grad_a, self.grad_b) = (self.grad_a.map(|v| v.flip(1)), self.grad_b.map(|v| v.flip(1)));
        }
        self
    }
}
