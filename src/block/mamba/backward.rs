//! The backward block: the forward one from its end to its start.

use super::forward::{Parts, as_rows, decay, write_rows};
use super::{MambaBlock, MambaBwd, MambaGrads, MambaInputs, MambaParams, MambaProblem};
use crate::block::HostEngine;
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::conv1d::{ConvBwd, ConvGrads, ConvInputs};
use crate::layers::linear::LinearBwd;
use crate::par::Par;
use crate::selective::{CoefficientGrad, SelectiveBwd, SelectiveGrads, SelectiveInputs};
use crate::view::{Cut, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Elements of a tile of [`add`]: more than a hundred times what handing it out costs.
const ADD_TILE: usize = 1 << 14;

/// to += from, in tiles.
fn add<I: Input>(par: Par, to: &mut [I], from: &[I], ws: &mut Workspace<'_>) -> Result<(), Error> {
    let count = to.len();
    let tiles = ViewMut::new(to, [count]).tiles(Cut::Every(0, ADD_TILE), Cut::Whole);
    par.run(0, count.div_ceil(ADD_TILE), (tiles,), &mut ws.reborrow(), 0, |i, (tile,), _| {
        let to = tile.into_slice();
        for (to, from) in to.iter_mut().zip(&from[i * ADD_TILE..]) {
            *to = I::store(to.load() + from.load());
        }
    })
}

/// Gradients of activations, in scratch memory.
struct Scratch<'a, I> {
    xz: &'a mut [I],
    x: &'a mut [I],
    x_dbl: &'a mut [I],
    delta: &'a mut [I],
    y: &'a mut [I],
}

/// Where the gradients of δ, B and C go, as strided parts of one buffer.
type Low<'a, I> = (ViewMut<'a, I, 2>, [ViewMut<'a, I, 4>; 2]);

fn low_parts<'a, I: Input>(x_dbl: &'a mut [I], p: &MambaProblem) -> Low<'a, I> {
    let (w, l) = (p.dbl() as isize, p.seqlen as isize);
    let (delta, rest) = ViewMut::new(x_dbl, [p.rows(), p.dbl()]).split(1, p.rank);
    let (b, c) = rest.split(1, p.dstate);
    let wide = |v: ViewMut<'a, I, 2>| v.reshape([p.batch, p.seqlen, 1, p.dstate], [l * w, w, w, 1]);
    (delta, [wide(b), wide(c)])
}

impl<E: HostEngine> MambaBlock<'_, E> {
    /// Bytes of workspace that `backward` takes.
    pub fn backward_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_bwd_workspace::<I>(q).max(engine.linear_fwd_workspace::<I>(q)));
        let others = engine
            .causal_conv1d_bwd_workspace::<I>(&p.conv())
            .max(engine.selective_scan_bwd_workspace::<I, I::Accum>(&p.selective()))
            .max(self.par.scratch_bytes(0));
        let rows = p.rows();
        let inner = 4 * bytes_of::<I>(rows * p.inner) + bytes_of::<I>(rows * 2 * p.inner) + bytes_of::<I>(rows * p.dbl());
        let own = inner + bytes_of::<I::Accum>(p.inner * p.dstate) + 3 * bytes_of::<I>(rows * p.hidden);
        own.saturating_add(products.into_iter().max().unwrap_or(0).max(others)).saturating_add(ALIGN)
    }

    /// The backward block: the gradient of every parameter, the input, window and state that is wanted.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn backward<I: Input>(&self, args: MambaBwd<'_, I>, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let p = args.check()?;
        let mut ws = ws.reborrow();
        let rows = p.rows();
        let mut scratch = Scratch {
            xz: ws.slice(rows * 2 * p.inner)?,
            x: ws.slice(rows * p.inner)?,
            x_dbl: ws.slice(rows * p.dbl())?,
            delta: ws.slice(rows * p.inner)?,
            y: ws.slice(rows * p.inner)?,
        };
        let MambaBwd { inputs, saved, grad_out, grad_final_window, grad_last_state, mut grads } = args;
        let params = &inputs.params;
        let parts = Parts { xz: &saved.xz, x: &saved.x, x_dbl: &saved.x_dbl, p };
        let last = LinearBwd {
            x: View::new(&saved.y, [rows, p.inner]),
            weight: params.out_proj,
            grad_out: as_rows(grad_out, &mut ws)?,
            grad_x: Some(ViewMut::new(scratch.y, [rows, p.inner])),
            grad_weight: grads.out_proj.take(),
            grad_bias: grads.out_proj_bias.take(),
        };
        self.engine.linear_bwd(last, &mut ws.reborrow())?;
        let delta = self.delta(params, &parts, &mut ws)?;
        let A = decay(params, &mut ws)?;
        let scan =
            SelectiveInputs { initial_state: inputs.initial_state, sequences: inputs.sequences, ..parts.scan_inputs(params, delta, A) };
        self.scan_backward(&p, scan, grad_last_state, &mut scratch, &mut grads, &mut ws)?;
        self.projections_backward(&parts, params, &mut scratch, &mut grads, &mut ws)?;
        self.inputs_backward(&parts, &inputs, grad_final_window, &mut scratch, grads, &mut ws)
    }

    /// ∂x → ∂[x | z] through the convolution, then → ∂input, and the gradients of both weights and the window.
    fn inputs_backward<I: Input>(
        &self,
        parts: &Parts<'_, I>,
        inputs: &MambaInputs<'_, I>,
        grad_final_window: Option<View<'_, I, 3>>,
        scratch: &mut Scratch<'_, I>,
        grads: MambaGrads<'_, I>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let (p, params) = (&parts.p, &inputs.params);
        let mut ws = ws.reborrow();
        let conv = ConvInputs {
            x: parts.before_conv(),
            weight: params.conv_weight,
            bias: params.conv_bias,
            initial_window: inputs.initial_window,
            sequences: inputs.sequences,
            silu: true,
        };
        let (grad_before, _) = gate(scratch.xz, p);
        let conv_grads =
            ConvGrads { x: Some(grad_before), weight: grads.conv_weight, bias: grads.conv_bias, initial_window: grads.initial_window };
        let grad_out = View::new(&*scratch.x, [p.batch, p.seqlen, p.inner]);
        let conv = ConvBwd { inputs: conv, grad_out, grad_final_window, grads: conv_grads };
        self.engine.causal_conv1d_bwd(conv, &mut ws.reborrow())?;
        let first = LinearBwd {
            x: as_rows(inputs.x, &mut ws)?,
            weight: params.in_proj,
            grad_out: View::new(&*scratch.xz, [p.rows(), 2 * p.inner]),
            grad_x: None,
            grad_weight: grads.in_proj,
            grad_bias: grads.in_proj_bias,
        };
        match grads.x {
            Some(grad) => {
                write_rows(grad, &mut ws, |grad, ws| self.engine.linear_bwd(LinearBwd { grad_x: Some(grad), ..first }, &mut ws.reborrow()))
            }
            None => self.engine.linear_bwd(first, &mut ws),
        }
    }

    /// ∂y → ∂x (its first part), ∂Δ, ∂B, ∂C, ∂z and the gradients of A_log, D, Δ_bias and the initial state.
    fn scan_backward<I: Input>(
        &self,
        p: &MambaProblem,
        inputs: SelectiveInputs<'_, I, I::Accum>,
        grad_last_state: Option<View<'_, I::Accum, 3>>,
        scratch: &mut Scratch<'_, I>,
        grads: &mut MambaGrads<'_, I>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let dims = [p.batch, p.seqlen, p.inner];
        let (_, grad_z) = gate(scratch.xz, p);
        let (_, [grad_b, grad_c]) = low_parts(scratch.x_dbl, p);
        let A = inputs.A;
        let scan_grads = SelectiveGrads {
            u: Some(ViewMut::new(scratch.x, dims)),
            delta: Some(ViewMut::new(scratch.delta, dims)),
            A: grads.A_log.as_mut().map(ViewMut::reborrow),
            B: Some(CoefficientGrad::Varying(grad_b)),
            C: Some(CoefficientGrad::Varying(grad_c)),
            D: grads.D.take(),
            z: Some(grad_z),
            delta_bias: grads.dt_bias.take(),
            initial_state: grads.initial_state.take(),
        };
        let grad_out = View::new(&*scratch.y, dims);
        self.engine.selective_scan_bwd(SelectiveBwd { inputs, grad_out, grad_last_state, grads: scan_grads }, &mut ws.reborrow())?;
        // A = −exp(A_log), so its derivative is A itself.
        if let Some(grad) = &mut grads.A_log {
            for (d, n) in (0..p.inner).flat_map(|d| (0..p.dstate).map(move |n| (d, n))) {
                grad.set([d, n], grad.get([d, n]) * A.get([d, n]));
            }
        }
        Ok(())
    }

    /// ∂Δ → ∂δ, then [∂δ | ∂B | ∂C] → the second part of ∂x, and the gradients of both weights.
    fn projections_backward<I: Input>(
        &self,
        parts: &Parts<'_, I>,
        params: &MambaParams<'_, I>,
        scratch: &mut Scratch<'_, I>,
        grads: &mut MambaGrads<'_, I>,
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let p = &parts.p;
        let rows = p.rows();
        let (grad_low, _) = low_parts(scratch.x_dbl, p);
        let dt = LinearBwd {
            x: parts.low_rank(),
            weight: params.dt_proj,
            grad_out: View::new(&*scratch.delta, [rows, p.inner]),
            grad_x: Some(grad_low),
            grad_weight: grads.dt_proj.take(),
            grad_bias: None,
        };
        self.engine.linear_bwd(dt, &mut ws.reborrow())?;
        // ∂y has been read by now, so its memory takes the second part of ∂x.
        let low = LinearBwd {
            x: View::new(parts.x, [rows, p.inner]),
            weight: params.x_proj,
            grad_out: View::new(&*scratch.x_dbl, [rows, p.dbl()]),
            grad_x: Some(ViewMut::new(scratch.y, [rows, p.inner])),
            grad_weight: grads.x_proj.take(),
            grad_bias: None,
        };
        self.engine.linear_bwd(low, &mut ws.reborrow())?;
        add(self.par, scratch.x, scratch.y, ws)
    }
}

/// The halves of [x | z] as (B, L, D).
fn gate<'a, I: Input>(xz: &'a mut [I], p: &MambaProblem) -> (ViewMut<'a, I, 3>, ViewMut<'a, I, 3>) {
    ViewMut::new(xz, [p.batch, p.seqlen, 2 * p.inner]).split(2, p.inner)
}
