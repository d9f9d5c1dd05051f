//! RMSNorm with a residual stream on the GPU.

use super::Cuda;
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::norm::{NormBwd, NormFwd, RmsNorm};
use crate::view::Device;

impl RmsNorm for Cuda {
    type Memory = Device;

    fn rms_norm_fwd_workspace<I: Input>(&self, _dims: [usize; 2]) -> usize {
        0
    }

    fn rms_norm_fwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        _args: NormFwd<'_, I, R, Device>,
        _ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        Err(Error::Unsupported { what: "rms_norm_fwd".into() })
    }

    fn rms_norm_bwd_workspace<I: Input>(&self, _dims: [usize; 2]) -> usize {
        0
    }

    fn rms_norm_bwd<I: Input, R: Input<Accum = I::Accum>>(
        &self,
        _args: NormBwd<'_, I, R, Device>,
        _ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        Err(Error::Unsupported { what: "rms_norm_bwd".into() })
    }
}
