//! The backward selective scan on the GPU.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveBwd, SelectiveProblem};
use crate::view::Device;

/// Bytes of workspace that [`backward`] takes.
pub(super) fn workspace<I: Input, W: Weight<Real = I::Accum>>(_engine: &Cuda, _problem: &SelectiveProblem) -> usize {
    0
}

/// The backward scan.
pub(super) fn backward<I: Input, W: Weight<Real = I::Accum>>(
    _engine: &Cuda,
    _args: SelectiveBwd<'_, I, W, Device>,
    _ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    Err(Error::Unsupported { what: "selective_scan_bwd".into() })
}
