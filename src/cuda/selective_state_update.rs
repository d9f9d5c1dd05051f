//! One decode step of the selective scan on the GPU.

use super::Cuda;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::selective::SelectiveStep;
use crate::view::Device;

/// The step.
pub(super) fn update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
    _engine: &Cuda,
    _args: SelectiveStep<'_, I, W, S, Device>,
) -> Result<(), Error> {
    Err(Error::Unsupported { what: "selective_state_update".into() })
}
