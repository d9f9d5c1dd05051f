//! RMSNorm with a residual stream kept in the arithmetic type: operands, checks and trait.
//!
//! ```text
//! r = residual + x          (r = x where there is no residual)
//! out = r / sqrt(mean(r²) + ε) · w          the mean over the last axis
//! ```

mod host;

pub use host::{rms_norm_bwd, rms_norm_bwd_workspace, rms_norm_fwd, rms_norm_fwd_workspace};

use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::view::{Host, Memory, View, ViewMut};

/// Operands of the forward norm over (rows, M). `R` is how the residual stream is stored: f32 beside 16-bit inputs, if wanted.
#[derive(Debug)]
pub struct NormFwd<'a, I: Input, R: Input<Accum = I::Accum>, M: Memory = Host> {
    /// (rows, M).
    pub x: View<'a, I, 2, M>,
    /// The stream so far, (rows, M).
    pub residual: Option<View<'a, R, 2, M>>,
    /// (M).
    pub weight: View<'a, I::Accum, 1, M>,
    /// ε.
    pub eps: f64,
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
    /// ε.
    pub eps: f64,
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
