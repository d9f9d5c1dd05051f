//! The forward block, with and without keeping what backward needs.

use super::{MambaBlock, MambaFwd, MambaParams, MambaProblem, MambaSaved};
use crate::block::HostEngine;
use crate::buffer::Workspace;
use crate::element::{Input, Weight as _};
use crate::error::Error;
use crate::layers::conv1d::{ConvFwd, ConvInputs};
use crate::layers::linear::LinearFwd;
use crate::selective::{Coefficient, SelectiveFwd, SelectiveInputs};
use crate::view::{View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// The activations of one call, in saved or in scratch memory.
pub(super) struct Activations<'a, I> {
    pub xz: &'a mut [I],
    pub x: &'a mut [I],
    pub x_dbl: &'a mut [I],
    pub y: &'a mut [I],
}

/// What both directions read of them.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a, I> {
    pub xz: &'a [I],
    pub x: &'a [I],
    pub x_dbl: &'a [I],
    pub p: MambaProblem,
}

impl<'a, I: Input> Parts<'a, I> {
    fn sequence(&self, of: &'a [I], from: usize, width: usize, columns: usize) -> View<'a, I, 3> {
        let (seqlen, columns) = (self.p.seqlen as isize, columns as isize);
        View::strided(of, from, [self.p.batch, self.p.seqlen, width], [seqlen * columns, columns, 1])
    }

    /// x before the convolution, (B, L, D).
    pub fn before_conv(&self) -> View<'a, I, 3> {
        self.sequence(self.xz, 0, self.p.inner, 2 * self.p.inner)
    }

    /// z, (B, L, D).
    pub fn z(&self) -> View<'a, I, 3> {
        self.sequence(self.xz, self.p.inner, self.p.inner, 2 * self.p.inner)
    }

    /// δ, (B·L, R).
    pub fn low_rank(&self) -> View<'a, I, 2> {
        View::strided(self.x_dbl, 0, [self.p.rows(), self.p.rank], [self.p.dbl() as isize, 1])
    }

    /// B and C, (B, L, 1, N) each.
    pub fn coefficients(&self) -> [View<'a, I, 4>; 2] {
        let (w, l) = (self.p.dbl() as isize, self.p.seqlen as isize);
        [self.p.rank, self.p.rank + self.p.dstate]
            .map(|from| View::strided(self.x_dbl, from, [self.p.batch, self.p.seqlen, 1, self.p.dstate], [l * w, w, w, 1]))
    }

    /// What the scan reads, given Δ and A.
    pub fn scan_inputs(&self, params: &MambaParams<'a, I>, delta: &'a [I], A: View<'a, I::Accum, 2>) -> SelectiveInputs<'a, I, I::Accum> {
        let dims = [self.p.batch, self.p.seqlen, self.p.inner];
        let [b, c] = self.coefficients();
        SelectiveInputs {
            u: View::new(self.x, dims),
            delta: View::new(delta, dims),
            A,
            B: Coefficient::Varying(b),
            C: Coefficient::Varying(c),
            D: Some(params.D),
            z: Some(self.z()),
            delta_bias: Some(params.dt_bias),
            initial_state: None,
            sequences: crate::sequences::Sequences::Rows,
            options: self.p.options,
        }
    }
}

impl<I: Input> MambaSaved<I> {
    /// Room for a problem of these sizes.
    fn resize(&mut self, p: &MambaProblem) -> Activations<'_, I> {
        let rows = p.rows();
        self.kept = Some(*p);
        Activations {
            xz: grown(&mut self.xz, rows * 2 * p.inner),
            x: grown(&mut self.x, rows * p.inner),
            x_dbl: grown(&mut self.x_dbl, rows * p.dbl()),
            y: grown(&mut self.y, rows * p.inner),
        }
    }
}

/// The first `count` elements; the vector grows where it is shorter.
fn grown<I: Input>(vec: &mut Vec<I>, count: usize) -> &mut [I] {
    if vec.len() < count {
        *vec = bytemuck::zeroed_vec(count);
    }
    &mut vec[..count]
}

/// A from the caller or made in scratch memory.
pub(super) fn decay<'a, I: Input>(params: &MambaParams<'a, I>, ws: &mut Workspace<'a>) -> Result<View<'a, I::Accum, 2>, Error> {
    if let Some(a) = params.A {
        return Ok(a);
    }
    let dims @ [inner, dstate] = params.A_log.dims();
    let made = ws.slice::<I::Accum>(inner * dstate)?;
    for (i, a) in made.iter_mut().enumerate() {
        *a = -params.A_log.get([i / dstate, i % dstate]).exp();
    }
    Ok(View::new(made, dims))
}

/// (B, L, M) as (B·L, M); copied where strides do not merge.
pub(super) fn as_rows<'a, I: Input>(x: View<'a, I, 3>, ws: &mut Workspace<'a>) -> Result<View<'a, I, 2>, Error> {
    if let Some(rows) = x.rows() {
        return Ok(rows);
    }
    let [batch, seqlen, dim] = x.dims();
    let copy = ws.slice::<I>(batch * seqlen * dim)?;
    for (i, to) in copy.iter_mut().enumerate() {
        *to = x.get([i / (seqlen * dim), i / dim % seqlen, i % dim]);
    }
    Ok(View::new(copy, [batch * seqlen, dim]))
}

/// Runs `write` on `out` as (B·L, M); through a copy where strides do not merge.
pub(super) fn write_rows<'a, I: Input>(
    mut out: ViewMut<'_, I, 3>,
    ws: &mut Workspace<'a>,
    write: impl FnOnce(ViewMut<'_, I, 2>, &mut Workspace<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    if let Some(rows) = out.rows_mut() {
        return write(rows, ws);
    }
    let [batch, seqlen, dim] = out.dims();
    let copy = ws.slice::<I>(batch * seqlen * dim)?;
    write(ViewMut::new(copy, [batch * seqlen, dim]), ws)?;
    for (i, &from) in copy.iter().enumerate() {
        out.set([i / (seqlen * dim), i / dim % seqlen, i % dim], from);
    }
    Ok(())
}

impl<E: HostEngine> MambaBlock<'_, E> {
    /// Bytes of workspace that `forward` takes.
    pub fn forward_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let rows = p.rows();
        self.saving_workspace::<I>(p)
            .saturating_add(bytes_of::<I>(rows * 2 * p.inner))
            .saturating_add(bytes_of::<I>(rows * p.dbl()))
            .saturating_add(2 * bytes_of::<I>(rows * p.inner))
    }

    /// Bytes of workspace that `forward_saving` takes.
    pub fn saving_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_fwd_workspace::<I>(q)).into_iter().max().unwrap_or(0);
        let others =
            engine.causal_conv1d_fwd_workspace::<I>(&p.conv()).max(engine.selective_scan_fwd_workspace::<I, I::Accum>(&p.selective()));
        let own = bytes_of::<I::Accum>(p.inner * p.dstate) + bytes_of::<I>(p.rows() * p.inner) + 2 * bytes_of::<I>(p.rows() * p.hidden);
        own.saturating_add(products.max(others)).saturating_add(ALIGN)
    }

    /// The forward block.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn forward<I: Input>(&self, args: MambaFwd<'_, I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let p = args.check()?;
        let mut ws = ws.reborrow();
        let rows = p.rows();
        let activations = Activations {
            xz: ws.slice(rows * 2 * p.inner)?,
            x: ws.slice(rows * p.inner)?,
            x_dbl: ws.slice(rows * p.dbl())?,
            y: ws.slice(rows * p.inner)?,
        };
        self.forward_with(args, &p, activations, &mut ws)
    }

    /// The forward block that keeps in `saved` what backward needs.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn forward_saving<I: Input>(&self, args: MambaFwd<'_, I>, saved: &mut MambaSaved<I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let p = args.check()?;
        self.forward_with(args, &p, saved.resize(&p), &mut ws.reborrow())
    }

    fn forward_with<I: Input>(
        &self,
        args: MambaFwd<'_, I>,
        p: &MambaProblem,
        activations: Activations<'_, I>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let MambaFwd { inputs, out, final_window, last_state } = args;
        let params = &inputs.params;
        let Activations { xz, x, x_dbl, y } = activations;
        let mut ws = ws.reborrow();
        let (rows, dims) = (p.rows(), [p.batch, p.seqlen, p.inner]);
        let input = as_rows(inputs.x, &mut ws)?;
        let first = LinearFwd { x: input, weight: params.in_proj, bias: params.in_proj_bias, out: ViewMut::new(xz, [rows, 2 * p.inner]) };
        self.engine.linear_fwd(first, &mut ws.reborrow())?;
        let conv = ConvInputs {
            x: Parts { xz, x: &[], x_dbl: &[], p: *p }.before_conv(),
            weight: params.conv_weight,
            bias: params.conv_bias,
            initial_window: inputs.initial_window,
            sequences: inputs.sequences,
            silu: true,
        };
        self.engine.causal_conv1d_fwd(ConvFwd { inputs: conv, out: ViewMut::new(x, dims), final_window }, &mut ws.reborrow())?;
        let product =
            LinearFwd { x: View::new(x, [rows, p.inner]), weight: params.x_proj, bias: None, out: ViewMut::new(x_dbl, [rows, p.dbl()]) };
        self.engine.linear_fwd(product, &mut ws.reborrow())?;
        let parts = Parts { xz, x, x_dbl, p: *p };
        let delta = self.delta(params, &parts, &mut ws)?;
        let A = decay(params, &mut ws)?;
        let scan =
            SelectiveInputs { initial_state: inputs.initial_state, sequences: inputs.sequences, ..parts.scan_inputs(params, delta, A) };
        self.engine.selective_scan_fwd(SelectiveFwd { inputs: scan, out: ViewMut::new(y, dims), last_state }, &mut ws.reborrow())?;
        let y = View::new(y, [rows, p.inner]);
        write_rows(out, &mut ws, |out, ws| {
            self.engine.linear_fwd(LinearFwd { x: y, weight: params.out_proj, bias: params.out_proj_bias, out }, &mut ws.reborrow())
        })
    }

    /// Δ before its bias and softplus, (B·L, D), in scratch memory.
    pub(super) fn delta<'a, I: Input>(
        &self,
        params: &MambaParams<'_, I>,
        parts: &Parts<'_, I>,
        ws: &mut Workspace<'a>,
    ) -> Result<&'a [I], Error> {
        let (rows, inner) = (parts.p.rows(), parts.p.inner);
        let delta = ws.slice::<I>(rows * inner)?;
        let product = LinearFwd { x: parts.low_rank(), weight: params.dt_proj, bias: None, out: ViewMut::new(delta, [rows, inner]) };
        self.engine.linear_fwd(product, &mut ws.reborrow())?;
        Ok(delta)
    }
}
