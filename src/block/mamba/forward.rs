//! The forward block, with and without keeping what backward needs.

use super::{MambaBlock, MambaFwd, MambaParams, MambaProblem, MambaSaved};
use crate::block::{Engine, MemoryOf};
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::conv1d::{ConvFwd, ConvInputs};
use crate::layers::linear::LinearFwd;
use crate::selective::{Coefficient, SelectiveFwd, SelectiveInputs};
use crate::sequences::Sequences;
use crate::view::{Memory, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Dimensions and strides of (B·L, columns) rows as (B, L, columns).
pub(super) fn unmerged(p: &MambaProblem, [_, columns]: [usize; 2], [row, column]: [isize; 2]) -> ([usize; 3], [isize; 3]) {
    let seqlen = isize::try_from(p.seqlen).unwrap_or(isize::MAX);
    ([p.batch, p.seqlen, columns], [row.saturating_mul(seqlen), row, column])
}

/// Rows (B·L, columns) as (B, L, columns).
pub(super) fn deep<'a, I: Input, M: Memory>(rows: View<'a, I, 2, M>, p: &MambaProblem) -> View<'a, I, 3, M> {
    let (dims, strides) = unmerged(p, rows.dims(), rows.strides());
    rows.reshape(dims, strides)
}

/// As [`deep`], of what is written.
pub(super) fn deep_mut<'a, I: Input, M: Memory>(rows: ViewMut<'a, I, 2, M>, p: &MambaProblem) -> ViewMut<'a, I, 3, M> {
    let (dims, strides) = unmerged(p, rows.dims(), rows.strides());
    rows.reshape(dims, strides)
}

/// What both directions read of the activations.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a, I: Input, M: Memory> {
    /// (B·L, 2D).
    pub xz: View<'a, I, 2, M>,
    /// (B·L, D).
    pub x: View<'a, I, 2, M>,
    /// (B·L, R + 2N).
    pub x_dbl: View<'a, I, 2, M>,
    pub p: MambaProblem,
}

impl<'a, I: Input, M: Memory> Parts<'a, I, M> {
    pub fn of(saved: &'a MambaSaved<'_, I, M>, p: &MambaProblem) -> Self {
        Parts { xz: saved.xz.as_view(), x: saved.x.as_view(), x_dbl: saved.x_dbl.as_view(), p: *p }
    }

    /// x before the convolution, (B, L, D).
    pub fn before_conv(&self) -> View<'a, I, 3, M> {
        deep(self.xz.slice(1, 0..self.p.inner), &self.p)
    }

    /// z, (B·L, D).
    pub fn z(&self) -> View<'a, I, 2, M> {
        self.xz.slice(1, self.p.inner..2 * self.p.inner)
    }

    /// δ, (B·L, R).
    pub fn low_rank(&self) -> View<'a, I, 2, M> {
        self.x_dbl.slice(1, 0..self.p.rank)
    }

    /// B and C, (B·L, N) each.
    pub fn coefficients(&self) -> [View<'a, I, 2, M>; 2] {
        [self.p.rank, self.p.rank + self.p.dstate].map(|from| self.x_dbl.slice(1, from..from + self.p.dstate))
    }

    /// What the scan reads, given Δ, (B·L, D), and A.
    pub fn scan_inputs(
        &self,
        params: &MambaParams<'a, I, M>,
        delta: View<'a, I, 2, M>,
        A: View<'a, I::Accum, 2, M>,
    ) -> SelectiveInputs<'a, I, I::Accum, M> {
        let [b, c] = self.coefficients().map(|v| {
            let ([batch, seqlen, dstate], [row, step, column]) = unmerged(&self.p, v.dims(), v.strides());
            Coefficient::Varying(v.reshape([batch, seqlen, 1, dstate], [row, step, step, column]))
        });
        SelectiveInputs {
            u: deep(self.x, &self.p),
            delta: deep(delta, &self.p),
            A,
            B: b,
            C: c,
            D: Some(params.D),
            z: Some(deep(self.z(), &self.p)),
            delta_bias: Some(params.dt_bias),
            initial_state: None,
            sequences: Sequences::Rows,
            options: self.p.options,
        }
    }
}

impl<E: Engine> MambaBlock<'_, E> {
    /// Bytes of workspace that `forward` takes.
    pub fn forward_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        self.saving_workspace::<I>(p).saturating_add(p.saved_bytes::<I>())
    }

    /// Bytes of workspace that `forward_saving` takes.
    pub fn saving_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_fwd_workspace::<I>(q)).into_iter().max().unwrap_or(0);
        let others =
            engine.causal_conv1d_fwd_workspace::<I>(&p.conv()).max(engine.selective_scan_fwd_workspace::<I, I::Accum>(&p.selective()));
        let rows = |columns: usize| bytes_of::<I>(p.rows().saturating_mul(columns));
        let own = p.decay_bytes::<I>().saturating_add(rows(p.inner)).saturating_add(rows(p.hidden).saturating_mul(2));
        own.saturating_add(products.max(others)).saturating_add(ALIGN)
    }

    /// The forward block.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn forward<I: Input>(&self, args: MambaFwd<'_, I, MemoryOf<E>>, ws: &mut Workspace<'_, MemoryOf<E>>) -> Result<(), Error> {
        let p = args.check()?;
        let (mut ws, mut kept) = (ws.reborrow(), None);
        let mut activations = MambaSaved::carve(&p, &mut ws, &mut kept)?;
        self.forward_with(args, &p, &mut activations, &mut ws)
    }

    /// The forward block that keeps in `saved` what backward needs.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn forward_saving<I: Input>(
        &self,
        args: MambaFwd<'_, I, MemoryOf<E>>,
        saved: &mut MambaSaved<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
    ) -> Result<(), Error> {
        let p = args.check()?;
        saved.check(&p)?;
        *saved.kept = None;
        self.forward_with(args, &p, saved, &mut ws.reborrow())?;
        *saved.kept = Some(p);
        Ok(())
    }

    fn forward_with<I: Input>(
        &self,
        args: MambaFwd<'_, I, MemoryOf<E>>,
        p: &MambaProblem,
        activations: &mut MambaSaved<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
    ) -> Result<(), Error> {
        let MambaFwd { inputs, out, final_window, last_state } = args;
        let params = &inputs.params;
        let mut ws = ws.reborrow();
        let x = self.as_rows(inputs.x, &mut ws)?;
        let first = LinearFwd { x, weight: params.in_proj, bias: params.in_proj_bias, out: activations.xz.reborrow() };
        self.engine.linear_fwd(first, &mut ws.reborrow())?;
        let MambaSaved { xz, x, x_dbl, y, .. } = activations;
        let conv = ConvInputs {
            x: deep(xz.as_view().slice(1, 0..p.inner), p),
            weight: params.conv_weight,
            bias: params.conv_bias,
            initial_window: inputs.initial_window,
            sequences: inputs.sequences,
            silu: true,
        };
        self.engine.causal_conv1d_fwd(ConvFwd { inputs: conv, out: deep_mut(x.reborrow(), p), final_window }, &mut ws.reborrow())?;
        let low = LinearFwd { x: x.as_view(), weight: params.x_proj, bias: None, out: x_dbl.reborrow() };
        self.engine.linear_fwd(low, &mut ws.reborrow())?;
        let parts = Parts { xz: xz.as_view(), x: x.as_view(), x_dbl: x_dbl.as_view(), p: *p };
        let delta = self.delta(params, &parts, &mut ws)?;
        let A = self.decay(params, &mut ws)?;
        let scan =
            SelectiveInputs { initial_state: inputs.initial_state, sequences: inputs.sequences, ..parts.scan_inputs(params, delta, A) };
        self.engine.selective_scan_fwd(SelectiveFwd { inputs: scan, out: deep_mut(y.reborrow(), p), last_state }, &mut ws.reborrow())?;
        let y = y.as_view();
        self.write_rows(out, &mut ws, |out, ws| {
            self.engine.linear_fwd(LinearFwd { x: y, weight: params.out_proj, bias: params.out_proj_bias, out }, &mut ws.reborrow())
        })
    }

    /// Δ before its bias and softplus, (B·L, D), in scratch memory.
    pub(super) fn delta<'a, I: Input>(
        &self,
        params: &MambaParams<'_, I, MemoryOf<E>>,
        parts: &Parts<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'a, MemoryOf<E>>,
    ) -> Result<View<'a, I, 2, MemoryOf<E>>, Error> {
        let mut delta = ws.tensor::<I, 2>([parts.p.rows(), parts.p.inner])?;
        let product = LinearFwd { x: parts.low_rank(), weight: params.dt_proj, bias: None, out: delta.reborrow() };
        self.engine.linear_fwd(product, &mut ws.reborrow())?;
        Ok(delta.into_view())
    }

    /// A from the caller or made in scratch memory.
    pub(super) fn decay<'a, I: Input>(
        &self,
        params: &MambaParams<'a, I, MemoryOf<E>>,
        ws: &mut Workspace<'a, MemoryOf<E>>,
    ) -> Result<View<'a, I::Accum, 2, MemoryOf<E>>, Error> {
        if let Some(a) = params.A {
            return Ok(a);
        }
        let mut made = ws.tensor::<I::Accum, 2>(params.A_log.dims())?;
        self.engine.decay(params.A_log, made.reborrow())?;
        Ok(made.into_view())
    }

    /// (B, L, M) as (B·L, M); copied where strides do not merge.
    pub(super) fn as_rows<'a, I: Input>(
        &self,
        x: View<'a, I, 3, MemoryOf<E>>,
        ws: &mut Workspace<'a, MemoryOf<E>>,
    ) -> Result<View<'a, I, 2, MemoryOf<E>>, Error> {
        if let Some(rows) = x.rows() {
            return Ok(rows);
        }
        let mut copy = ws.tensor::<I, 3>(x.dims())?;
        self.engine.copy(x, copy.reborrow())?;
        Ok(copy.into_view().rows().expect("a contiguous tensor has rows"))
    }

    /// Runs `write` on `out` as (B·L, M); through a copy where strides do not merge.
    pub(super) fn write_rows<'a, I: Input>(
        &self,
        mut out: ViewMut<'_, I, 3, MemoryOf<E>>,
        ws: &mut Workspace<'a, MemoryOf<E>>,
        write: impl FnOnce(ViewMut<'_, I, 2, MemoryOf<E>>, &mut Workspace<'a, MemoryOf<E>>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Some(rows) = out.rows_mut() {
            return write(rows, ws);
        }
        let mut copy = ws.tensor::<I, 3>(out.dims())?;
        write(copy.rows_mut().expect("a contiguous tensor has rows"), ws)?;
        self.engine.copy(copy.as_view(), out)
    }
}
