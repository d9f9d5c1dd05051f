//! Causal depthwise conv1d on the GPU: forward, backward and step.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvProblem, ConvStep};
use crate::view::Device;

impl CausalConv1d for Cuda {
    type Memory = Device;

    fn causal_conv1d_fwd_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_fwd<I: Input>(&self, _args: ConvFwd<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "causal_conv1d_fwd".into() })
    }

    fn causal_conv1d_bwd_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_bwd<I: Input>(&self, _args: ConvBwd<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "causal_conv1d_bwd".into() })
    }

    fn causal_conv1d_update_workspace<I: Input>(&self, _problem: &ConvProblem) -> usize {
        0
    }

    fn causal_conv1d_update<I: Input>(&self, _args: ConvStep<'_, I, Device>, _ws: &mut Workspace<'_, Device>) -> Result<(), Error> {
        Err(Error::Unsupported { what: "causal_conv1d_update".into() })
    }
}
