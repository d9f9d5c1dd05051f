//! Layer 2 on the GPU: each method is one operator's file.

use super::{Cuda, selective_scan_bwd, selective_scan_fwd, selective_state_update};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveScan, SelectiveStep};
use crate::view::Device;

impl SelectiveScan for Cuda {
    fn selective_scan_fwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        selective_scan_fwd::workspace::<I, W>(self, problem)
    }

    fn selective_scan_fwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        selective_scan_fwd::forward(self, args, ws)
    }

    fn selective_scan_bwd_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        selective_scan_bwd::workspace::<I, W>(self, problem)
    }

    fn selective_scan_bwd<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        selective_scan_bwd::backward(self, args, ws)
    }

    fn selective_state_update_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, _problem: &SelectiveProblem) -> usize {
        0
    }

    fn selective_state_update<I: Input, W: Weight<Real = I::Accum>, S: Element<Arith = W>>(
        &self,
        args: SelectiveStep<'_, I, W, S, Device>,
        _ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        selective_state_update::update(self, args)
    }
}
