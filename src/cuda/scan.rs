//! Layer 1 on the GPU: the linear recurrence, forward, reverse and adjoint.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::Element;
use crate::error::Error;
use crate::scan::{Scan, ScanBwd, ScanFwd, ScanProblem};
use crate::view::Device;

impl Scan for Cuda {
    type Memory = Device;

    fn scan_fwd_workspace<E: Element>(&self, _problem: ScanProblem) -> usize {
        0
    }

    fn scan_fwd<E: Element>(&self, _args: ScanFwd<'_, E, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "linear_scan".into() })
    }

    fn scan_bwd_workspace<E: Element>(&self, _problem: ScanProblem) -> usize {
        0
    }

    fn scan_bwd<E: Element>(&self, _args: ScanBwd<'_, E, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "linear_scan".into() })
    }
}
