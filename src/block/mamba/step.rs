//! One decode step of the block.

use super::forward::Parts;
use super::{MambaBlock, MambaProblem, MambaStep};
use crate::block::{Engine, MemoryOf};
use crate::buffer::Workspace;
use crate::element::{Element, Input};
use crate::error::Error;
use crate::layers::conv1d::ConvStep;
use crate::layers::linear::LinearFwd;
use crate::selective::{Coefficient, SelectiveStep};
use crate::view::{Memory, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

impl<E: Engine> MambaBlock<'_, E> {
    /// Bytes of workspace that `step` takes; L of the problem is 1.
    pub fn step_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_fwd_workspace::<I>(q)).into_iter().max().unwrap_or(0);
        let others = engine
            .causal_conv1d_update_workspace::<I>(&p.conv())
            .max(engine.selective_state_update_workspace::<I, I::Accum>(&p.selective()));
        let rows = |columns: usize| bytes_of::<I>(p.batch.saturating_mul(columns));
        let inner = rows(p.inner).saturating_mul(3).saturating_add(rows(p.inner.saturating_mul(2))).saturating_add(rows(p.dbl()));
        inner.saturating_add(p.decay_bytes::<I>()).saturating_add(products.max(others)).saturating_add(ALIGN)
    }

    /// The block at one position: convolution window and state are updated in place.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn step<I: Input, S: Element<Arith = I::Accum>>(
        &self,
        args: MambaStep<'_, I, S, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
    ) -> Result<(), Error> {
        let p = args.check()?;
        let mut ws = ws.reborrow();
        let dims = [p.batch, p.inner];
        let MambaStep { params, x: input, window, state, slots, out, options } = args;
        let mut xz = ws.tensor::<I, 2>([p.batch, 2 * p.inner])?;
        let first = LinearFwd { x: input, weight: params.in_proj, bias: params.in_proj_bias, out: xz.reborrow() };
        self.engine.linear_fwd(first, &mut ws.reborrow())?;
        let xz = xz.into_view();
        let (mut x, mut y) = (ws.tensor::<I, 2>(dims)?, ws.tensor::<I, 2>(dims)?);
        if slots.is_some() {
            // Skipped rows are not written below, and the products read every row.
            self.engine.zero(stacked(&mut x))?;
            self.engine.zero(stacked(&mut y))?;
        }
        let conv = ConvStep {
            x: xz.slice(1, 0..p.inner),
            weight: params.conv_weight,
            bias: params.conv_bias,
            window,
            slots,
            out: x.reborrow(),
            silu: true,
        };
        self.engine.causal_conv1d_update(conv, &mut ws.reborrow())?;
        let x = x.into_view();
        let mut x_dbl = ws.tensor::<I, 2>([p.batch, p.dbl()])?;
        let low = LinearFwd { x, weight: params.x_proj, bias: None, out: x_dbl.reborrow() };
        self.engine.linear_fwd(low, &mut ws.reborrow())?;
        let parts = Parts { xz, x, x_dbl: x_dbl.into_view(), p };
        let delta = self.delta(&params, &parts, &mut ws)?;
        let [b, c] = parts.coefficients().map(grouped);
        let scan = SelectiveStep {
            u: x,
            delta,
            A: self.decay(&params, &mut ws)?,
            B: Coefficient::Varying(b),
            C: Coefficient::Varying(c),
            D: Some(params.D),
            z: Some(parts.z()),
            delta_bias: Some(params.dt_bias),
            state,
            slots,
            out: y.reborrow(),
            options,
        };
        self.engine.selective_state_update(scan, &mut ws.reborrow())?;
        let last = LinearFwd { x: y.as_view(), weight: params.out_proj, bias: params.out_proj_bias, out };
        self.engine.linear_fwd(last, &mut ws.reborrow())
    }
}

/// (B, D) as (1, B, D).
fn stacked<'a, I: Input, M: Memory>(rows: &'a mut ViewMut<'_, I, 2, M>) -> ViewMut<'a, I, 3, M> {
    let ([batch, dim], [row, column]) = (rows.dims(), rows.strides());
    rows.reborrow().reshape([1, batch, dim], [0, row, column])
}

/// (B, N) as (B, 1, N).
fn grouped<'a, I: Input, M: Memory>(rows: View<'a, I, 2, M>) -> View<'a, I, 3, M> {
    let ([batch, dstate], [row, column]) = (rows.dims(), rows.strides());
    rows.reshape([batch, 1, dstate], [row, row, column])
}
