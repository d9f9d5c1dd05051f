//! The forward selective scan on the GPU.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::{Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveFwd, SelectiveProblem};
use crate::view::Device;

/// Bytes of workspace that [`forward`] takes.
pub(super) fn workspace<I: Input, W: Weight<Real = I::Accum>>(_engine: &Cuda, _problem: &SelectiveProblem) -> usize {
    0
}

/// The forward scan.
pub(super) fn forward<I: Input, W: Weight<Real = I::Accum>>(
    _engine: &Cuda,
    _args: SelectiveFwd<'_, I, W, Device>,
    _ws: &mut Workspace<'_, Device>,
) -> Result<(), Error> {
    Err(Error::Unsupported { what: "selective_scan_fwd".into() })
}
