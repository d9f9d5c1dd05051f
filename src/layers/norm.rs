//! RMSNorm with a residual stream kept in the arithmetic type, and with a gate: operands, checks and trait.
//!
//! ```text
//! r = residual + x                          (r = x where there is no residual)
//! out = norm(r)·w                           without a gate
//! out = norm(r·silu(z))·w                   with z: Mamba-2's, norm_before_gate = false
//! out = norm(r)·w·silu(z)                   with z and norm_before_gate
//! norm(v) = v / sqrt(mean(v²) + ε)          the mean over the last axis, or over its groups of group_size neighbours
//! ```
//!
//! The residual comes first: r is what is gated and normed, and what goes on as the stream; neither gate nor norm touches the stream. SiLU and the product
//! r·silu(z) are formed in the arithmetic type, whose range they must not leave; squares are summed in f64.

mod host;

pub use host::{rms_norm_bwd, rms_norm_bwd_workspace, rms_norm_fwd, rms_norm_fwd_workspace};

use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::view::{Host, Memory, View, ViewMut};

/// How the gate and the norm go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct NormOptions {
    /// Whether the norm comes before the gate: norm(r)·w·silu(z). Otherwise norm(r·silu(z))·w. Of no effect without z.
    pub norm_before_gate: bool,
    /// Columns that are normed together, neighbours; M is a multiple of it. The whole row where `None`.
    pub group_size: Option<usize>,
}

/// Operands of the forward norm over (rows, M). `R` is how the residual stream is stored: f32 beside 16-bit inputs, if wanted.
#[derive(Debug)]
pub struct NormFwd<'a, I: Input, R: Input<Accum = I::Accum>, M: Memory = Host> {
    /// (rows, M).
    pub x: View<'a, I, 2, M>,
    /// The stream so far, (rows, M).
    pub residual: Option<View<'a, R, 2, M>>,
    /// (M).
    pub weight: View<'a, I::Accum, 1, M>,
    /// The gate, (rows, M).
    pub z: Option<View<'a, I, 2, M>>,
    /// ε.
    pub eps: f64,
    /// Order of norm and gate, and groups.
    pub options: NormOptions,
    /// (rows, M); written.
    pub out: ViewMut<'a, I, 2, M>,
    /// r, the stream with x added, (rows, M); written. The norm is taken of r before it is rounded to storage.
    pub residual_out: Option<ViewMut<'a, R, 2, M>>,
}

/// Operands of the backward norm.
#[derive(Debug)]
pub struct NormBwd<'a, I: Input, R: Input<Accum = I::Accum>, M: Memory = Host> {
    /// r, as `residual_out` gave it (or x itself where there was no residual and `R` is `I`), (rows, M).
    pub residual_out: View<'a, R, 2, M>,
    /// (M).
    pub weight: View<'a, I::Accum, 1, M>,
    /// The gate, (rows, M).
    pub z: Option<View<'a, I, 2, M>>,
    /// ε.
    pub eps: f64,
    /// Order of norm and gate, and groups.
    pub options: NormOptions,
    /// ∂ℓ/∂out, (rows, M).
    pub grad_out: View<'a, I, 2, M>,
    /// ∂ℓ/∂r from the stream after this layer, (rows, M).
    pub grad_residual_out: Option<View<'a, R, 2, M>>,
    /// ∂ℓ/∂x, (rows, M); written.
    pub grad_x: Option<ViewMut<'a, I, 2, M>>,
    /// ∂ℓ/∂residual, (rows, M), the same numbers in the stream's storage; written.
    pub grad_residual: Option<ViewMut<'a, R, 2, M>>,
    /// ∂ℓ/∂w, (M); written.
    pub grad_weight: Option<ViewMut<'a, I::Accum, 1, M>>,
    /// ∂ℓ/∂z, (rows, M); written. Only where there is z.
    pub grad_z: Option<ViewMut<'a, I, 2, M>>,
}

impl<'a, I: Input, R: Input<Accum = I::Accum>, M: Memory> NormFwd<'a, I, R, M> {
    /// Of x alone: no residual, no gate, the whole row.
    pub fn new(x: View<'a, I, 2, M>, weight: View<'a, I::Accum, 1, M>, eps: f64, out: ViewMut<'a, I, 2, M>) -> Self {
        NormFwd { x, residual: None, weight, z: None, eps, options: NormOptions::default(), out, residual_out: None }
    }
}

impl<'a, I: Input, R: Input<Accum = I::Accum>, M: Memory> NormBwd<'a, I, R, M> {
    /// Without a gate, of the whole row, and as yet without any gradient that is written.
    pub fn new(residual_out: View<'a, R, 2, M>, weight: View<'a, I::Accum, 1, M>, eps: f64, grad_out: View<'a, I, 2, M>) -> Self {
        NormBwd {
            residual_out,
            weight,
            z: None,
            eps,
            options: NormOptions::default(),
            grad_out,
            grad_residual_out: None,
            grad_x: None,
            grad_residual: None,
            grad_weight: None,
            grad_z: None,
        }
    }
}

/// RMSNorm.
pub trait RmsNorm {
    /// Where this engine's operands live.
    type Memory: Memory;

    /// Bytes of workspace that `rms_norm_fwd` takes for (rows, M).
    fn rms_norm_fwd_workspace<I: Input>(&self, dims: [usize; 2]) -> usize;

    /// The forward norm.
    fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        args: NormFwd<'_, I, R, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;

    /// Bytes of workspace that `rms_norm_bwd` takes for (rows, M).
    fn rms_norm_bwd_workspace<I: Input>(&self, dims: [usize; 2]) -> usize;

    /// The backward norm.
    fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        args: NormBwd<'_, I, R, Self::Memory>,
        ws: &mut Workspace<'_, Self::Memory>,
    ) -> Result<(), Error>;
}
