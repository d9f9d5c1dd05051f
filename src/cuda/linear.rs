//! Linear on the GPU.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::linear::{Linear, LinearBwd, LinearFwd, LinearProblem};
use crate::view::Device;

impl Linear for Cuda {
    type Memory = Device;

    fn linear_fwd_workspace<I: Input>(&self, _problem: LinearProblem) -> usize {
        0
    }

    fn linear_fwd<I: Input>(&self, _args: LinearFwd<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "linear_fwd".into() })
    }

    fn linear_bwd_workspace<I: Input>(&self, _problem: LinearProblem) -> usize {
        0
    }

    fn linear_bwd<I: Input>(&self, _args: LinearBwd<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "linear_bwd".into() })
    }
}
