//! One decode step of the block.

use super::forward::{Parts, decay};
use super::{MambaBlock, MambaProblem, MambaStep};
use crate::block::HostEngine;
use crate::buffer::Workspace;
use crate::element::{Element, Input};
use crate::error::Error;
use crate::layers::conv1d::ConvStep;
use crate::layers::linear::LinearFwd;
use crate::selective::{Coefficient, SelectiveStep};
use crate::view::{View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

impl<E: HostEngine> MambaBlock<'_, E> {
    /// Bytes of workspace that `step` takes; L of the problem is 1.
    pub fn step_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_fwd_workspace::<I>(q)).into_iter().max().unwrap_or(0);
        let others = engine
            .causal_conv1d_update_workspace::<I>(&p.conv())
            .max(engine.selective_state_update_workspace::<I, I::Accum>(&p.selective()));
        let inner = 3 * bytes_of::<I>(p.batch * p.inner) + bytes_of::<I>(p.batch * 2 * p.inner) + bytes_of::<I>(p.batch * p.dbl());
        (inner + bytes_of::<I::Accum>(p.inner * p.dstate)).saturating_add(products.max(others)).saturating_add(ALIGN)
    }

    /// The block at one position: convolution window and state are updated in place.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn step<I: Input, S: Element<Arith = I::Accum>>(&self, args: MambaStep<'_, I, S>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let p = args.check()?;
        let mut ws = ws.reborrow();
        let (rows, dims) = (p.batch, [p.batch, p.inner]);
        let MambaStep { params, x: input, window, state, slots, out, options } = args;
        let xz = ws.slice::<I>(rows * 2 * p.inner)?;
        let first = LinearFwd { x: input, weight: params.in_proj, bias: params.in_proj_bias, out: ViewMut::new(xz, [rows, 2 * p.inner]) };
        self.engine.linear_fwd(first, &mut ws.reborrow())?;
        let (before, z) = (half(xz, 0, &p), half(xz, p.inner, &p));
        let (x, y) = (ws.slice::<I>(rows * p.inner)?, ws.slice::<I>(rows * p.inner)?);
        // Skipped rows are not written below, and the products read every row.
        x.fill(I::default());
        y.fill(I::default());
        let conv = ConvStep {
            x: before,
            weight: params.conv_weight,
            bias: params.conv_bias,
            window,
            slots,
            out: ViewMut::new(x, dims),
            silu: true,
        };
        self.engine.causal_conv1d_update(conv, &mut ws.reborrow())?;
        let x_dbl = ws.slice::<I>(rows * p.dbl())?;
        let low = LinearFwd { x: View::new(x, dims), weight: params.x_proj, bias: None, out: ViewMut::new(x_dbl, [rows, p.dbl()]) };
        self.engine.linear_fwd(low, &mut ws.reborrow())?;
        let parts = Parts { xz, x, x_dbl, p };
        let delta = self.delta(&params, &parts, &mut ws)?;
        let [b, c] = [p.rank, p.rank + p.dstate]
            .map(|from| View::strided(parts.x_dbl, from, [rows, 1, p.dstate], [p.dbl() as isize, p.dstate as isize, 1]));
        let scan = SelectiveStep {
            u: View::new(x, dims),
            delta: View::new(delta, dims),
            A: decay(&params, &mut ws)?,
            B: Coefficient::Varying(b),
            C: Coefficient::Varying(c),
            D: Some(params.D),
            z: Some(z),
            delta_bias: Some(params.dt_bias),
            state,
            slots,
            out: ViewMut::new(y, dims),
            options,
        };
        self.engine.selective_state_update(scan, &mut ws.reborrow())?;
        let last = LinearFwd { x: View::new(y, dims), weight: params.out_proj, bias: params.out_proj_bias, out };
        self.engine.linear_fwd(last, &mut ws.reborrow())
    }
}

/// D columns of [x | z] from `from`, (B, D).
fn half<'a, I: Input>(xz: &'a [I], from: usize, p: &MambaProblem) -> View<'a, I, 2> {
    View::strided(xz, from, [p.batch, p.inner], [2 * p.inner as isize, 1])
}
