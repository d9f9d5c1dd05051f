//! Layer 2 on the GPU: each method is one operator's file.

use super::{Cuda, selective_scan_bwd, selective_scan_fwd, selective_state_update};
use crate::buffer::Workspace;
use crate::element::{Element, Input, Weight};
use crate::error::Error;
use crate::selective::{SelectiveBwd, SelectiveFwd, SelectiveProblem, SelectiveScan, SelectiveStep};
use crate::view::{Device, View, ViewMut};

/// Where what is saved lies; nowhere for no bytes.
fn saved_at(saved: &View<'_, u8, 1, Device>, bytes: usize) -> Result<Option<i64>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    let [len] = saved.dims();
    let [address, stride]: super::params::Strided<2> = super::params::strided(saved);
    if len < bytes || stride != 1 || address % 16 != 0 {
        return Err(Error::Layout { operand: "saved", why: format!("{bytes} bytes side by side from a multiple of 16 on are wanted") });
    }
    Ok(Some(address))
}

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
        selective_scan_bwd::backward(self, args, None, ws)
    }

    fn selective_scan_saved_bytes<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        selective_scan_bwd::saved::<I, W>(self, problem)
    }

    fn selective_scan_fwd_saving_workspace<I: Input, W: Weight<Real = I::Accum>>(&self, problem: &SelectiveProblem) -> usize {
        let forward = selective_scan_fwd::workspace::<I, W>(self, problem);
        match selective_scan_bwd::saved::<I, W>(self, problem) {
            0 => forward,
            _ => forward.max(selective_scan_bwd::workspace::<I, W>(self, problem)),
        }
    }

    fn selective_scan_fwd_saving<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveFwd<'_, I, W, Device>,
        saved: ViewMut<'_, u8, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let (inputs, problem) = (args.inputs, args.check()?);
        match saved_at(&saved.as_view(), selective_scan_bwd::saved::<I, W>(self, &problem))? {
            None => selective_scan_fwd::forward(self, args, ws),
            Some(address) if selective_scan_fwd::keeps::<I, W>(&problem, &inputs.sequences) => {
                selective_scan_fwd::keeping(self, args, &problem, address, ws)
            }
            Some(address) => {
                selective_scan_fwd::forward(self, args, ws)?;
                selective_scan_bwd::save(self, inputs, address, ws)
            }
        }
    }

    fn selective_scan_bwd_from<I: Input, W: Weight<Real = I::Accum>>(
        &self,
        args: SelectiveBwd<'_, I, W, Device>,
        saved: View<'_, u8, 1, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let address = saved_at(&saved, selective_scan_bwd::saved::<I, W>(self, &args.check()?))?;
        selective_scan_bwd::backward(self, args, address, ws)
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
