//! What is done element by element between the other layers: copies, zeros, sums, and A of a Mamba block with its gradient.
//!
//! Nothing here takes scratch memory, and each element is computed by itself, so no bit depends on strides or on who runs the parts.
//! A tensor of fewer than three axes is one of three with leading axes of one element.

mod host;

pub use host::{add, copy, decay, scale, zero};

use crate::element::{Element, Input, Real};
use crate::error::Error;
use crate::view::{Memory, View, ViewMut};

/// Elementwise operations. What is read may have any strides; what is written may have any whose elements do not overlap.
pub trait Elementwise {
    /// Where this engine's operands live.
    type Memory: Memory;

    /// to = from, in the shape of `from`.
    fn copy<T: Element>(&self, from: View<'_, T, 3, Self::Memory>, to: ViewMut<'_, T, 3, Self::Memory>) -> Result<(), Error>;

    /// Every element 0.
    fn zero<T: Element>(&self, to: ViewMut<'_, T, 3, Self::Memory>) -> Result<(), Error>;

    /// to = to + from in the arithmetic type, rounded once; in the shape of `from`.
    fn add<I: Input>(&self, from: View<'_, I, 3, Self::Memory>, to: ViewMut<'_, I, 3, Self::Memory>) -> Result<(), Error>;

    /// A = −exp(A_log), both (D, N).
    fn decay<A: Real>(&self, a_log: View<'_, A, 2, Self::Memory>, a: ViewMut<'_, A, 2, Self::Memory>) -> Result<(), Error>;

    /// to = to ⊙ by, both (D, N): with A as `by`, the gradient of A_log from that of A.
    fn scale<A: Real>(&self, by: View<'_, A, 2, Self::Memory>, to: ViewMut<'_, A, 2, Self::Memory>) -> Result<(), Error>;
}

/// Checks what is read, which decides the shape, and what is written; each with its name.
pub(crate) fn check_pair<T: Copy, const R: usize, M: Memory>(
    (read, from): (&'static str, &View<'_, T, R, M>),
    (written, to): (&'static str, &ViewMut<'_, T, R, M>),
) -> Result<(), Error> {
    from.check(read, from.dims())?;
    to.check(written, from.dims())
}
