//! The backward block: the forward one from its end to its start.

use super::forward::{Parts, deep, deep_mut, unmerged};
use super::{MambaBlock, MambaBwd, MambaGrads, MambaInputs, MambaParams, MambaProblem};
use crate::block::{Engine, MemoryOf};
use crate::buffer::Workspace;
use crate::element::Input;
use crate::error::Error;
use crate::layers::conv1d::{ConvBwd, ConvGrads, ConvInputs};
use crate::layers::linear::LinearBwd;
use crate::selective::{CoefficientGrad, SelectiveBwd, SelectiveGrads, SelectiveInputs};
use crate::view::{Memory, View, ViewMut};
use crate::workspace::{ALIGN, bytes_of};

/// Gradients of activations, in scratch memory.
struct Scratch<'a, I: Input, M: Memory> {
    /// (B·L, 2D).
    xz: ViewMut<'a, I, 2, M>,
    /// (B·L, D).
    x: ViewMut<'a, I, 2, M>,
    /// (B·L, R + 2N).
    x_dbl: ViewMut<'a, I, 2, M>,
    /// (B·L, D).
    delta: ViewMut<'a, I, 2, M>,
    /// (B·L, D).
    y: ViewMut<'a, I, 2, M>,
}

impl<'a, I: Input, M: Memory> Scratch<'a, I, M> {
    fn carve(p: &MambaProblem, ws: &mut Workspace<'a, M>) -> Result<Self, Error> {
        let rows = p.rows();
        Ok(Scratch {
            xz: ws.tensor([rows, 2 * p.inner])?,
            x: ws.tensor([rows, p.inner])?,
            x_dbl: ws.tensor([rows, p.dbl()])?,
            delta: ws.tensor([rows, p.inner])?,
            y: ws.tensor([rows, p.inner])?,
        })
    }
}

/// Where the gradients of δ, (B·L, R), B and C, (B, L, 1, N) each, go, as strided parts of one tensor.
type Low<'a, I, M> = (ViewMut<'a, I, 2, M>, [ViewMut<'a, I, 4, M>; 2]);

fn low_parts<'a, I: Input, M: Memory>(x_dbl: ViewMut<'a, I, 2, M>, p: &MambaProblem) -> Low<'a, I, M> {
    let (delta, rest) = x_dbl.split(1, p.rank);
    let (b, c) = rest.split(1, p.dstate);
    let wide = |v: ViewMut<'a, I, 2, M>| {
        let ([batch, seqlen, dstate], [row, step, column]) = unmerged(p, v.dims(), v.strides());
        v.reshape([batch, seqlen, 1, dstate], [row, step, step, column])
    };
    (delta, [wide(b), wide(c)])
}

impl<E: Engine> MambaBlock<'_, E> {
    /// Bytes of workspace that `backward` takes.
    pub fn backward_workspace<I: Input>(&self, p: &MambaProblem) -> usize {
        let engine = self.engine;
        let products = p.products().map(|q| engine.linear_bwd_workspace::<I>(q).max(engine.linear_fwd_workspace::<I>(q)));
        let others =
            engine.causal_conv1d_bwd_workspace::<I>(&p.conv()).max(engine.selective_scan_bwd_workspace::<I, I::Accum>(&p.selective()));
        let rows = |columns: usize| bytes_of::<I>(p.rows().saturating_mul(columns));
        let wide = [rows(p.inner).saturating_mul(4), rows(p.inner.saturating_mul(2)), rows(p.dbl()), rows(p.hidden).saturating_mul(3)];
        let own = wide.into_iter().fold(p.decay_bytes::<I>(), usize::saturating_add);
        own.saturating_add(products.into_iter().max().unwrap_or(0).max(others)).saturating_add(ALIGN)
    }

    /// The backward block: the gradient of every parameter, the input, window and state that is wanted.
    ///
    /// # Errors
    /// What a check of the operands finds, before anything is written.
    pub fn backward<I: Input>(&self, args: MambaBwd<'_, I, MemoryOf<E>>, ws: &mut Workspace<'_, MemoryOf<E>>) -> Result<(), Error> {
        let p = args.check()?;
        let mut ws = ws.reborrow();
        let mut scratch = Scratch::carve(&p, &mut ws)?;
        let MambaBwd { inputs, saved, grad_out, grad_final_window, grad_last_state, mut grads } = args;
        let params = &inputs.params;
        let parts = Parts::of(saved, &p);
        let last = LinearBwd {
            x: saved.y.as_view(),
            weight: params.out_proj,
            grad_out: self.as_rows(grad_out, &mut ws)?,
            grad_x: Some(scratch.y.reborrow()),
            grad_weight: grads.out_proj.take(),
            grad_bias: grads.out_proj_bias.take(),
        };
        self.engine.linear_bwd(last, &mut ws.reborrow())?;
        let delta = self.delta(params, &parts, &mut ws)?;
        let A = self.decay(params, &mut ws)?;
        let scan =
            SelectiveInputs { initial_state: inputs.initial_state, sequences: inputs.sequences, ..parts.scan_inputs(params, delta, A) };
        self.scan_backward(&p, scan, grad_last_state, &mut scratch, &mut grads, &mut ws)?;
        self.projections_backward(&parts, params, &mut scratch, &mut grads, &mut ws)?;
        self.inputs_backward(&parts, &inputs, grad_final_window, &mut scratch, grads, &mut ws)
    }

    /// ∂x → ∂[x | z] through the convolution, then → ∂input, and the gradients of both weights and the window.
    fn inputs_backward<I: Input>(
        &self,
        parts: &Parts<'_, I, MemoryOf<E>>,
        inputs: &MambaInputs<'_, I, MemoryOf<E>>,
        grad_final_window: Option<View<'_, I, 3, MemoryOf<E>>>,
        scratch: &mut Scratch<'_, I, MemoryOf<E>>,
        grads: MambaGrads<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
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
        let grad_x = deep(scratch.x.as_view(), p);
        let (grad_before, _) = halves(scratch.xz.reborrow(), p);
        let conv_grads =
            ConvGrads { x: Some(grad_before), weight: grads.conv_weight, bias: grads.conv_bias, initial_window: grads.initial_window };
        let conv = ConvBwd { inputs: conv, grad_out: grad_x, grad_final_window, grads: conv_grads };
        self.engine.causal_conv1d_bwd(conv, &mut ws.reborrow())?;
        let first = LinearBwd {
            x: self.as_rows(inputs.x, &mut ws)?,
            weight: params.in_proj,
            grad_out: scratch.xz.as_view(),
            grad_x: None,
            grad_weight: grads.in_proj,
            grad_bias: grads.in_proj_bias,
        };
        match grads.x {
            Some(grad) => self.write_rows(grad, &mut ws, |grad, ws| {
                self.engine.linear_bwd(LinearBwd { grad_x: Some(grad), ..first }, &mut ws.reborrow())
            }),
            None => self.engine.linear_bwd(first, &mut ws),
        }
    }

    /// ∂y → ∂x (its first part), ∂Δ, ∂B, ∂C, ∂z and the gradients of A_log, D, Δ_bias and the initial state.
    fn scan_backward<I: Input>(
        &self,
        p: &MambaProblem,
        inputs: SelectiveInputs<'_, I, I::Accum, MemoryOf<E>>,
        grad_last_state: Option<View<'_, I::Accum, 3, MemoryOf<E>>>,
        scratch: &mut Scratch<'_, I, MemoryOf<E>>,
        grads: &mut MambaGrads<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
    ) -> Result<(), Error> {
        let (_, grad_z) = halves(scratch.xz.reborrow(), p);
        let (_, [grad_b, grad_c]) = low_parts(scratch.x_dbl.reborrow(), p);
        let A = inputs.A;
        let scan_grads = SelectiveGrads {
            u: Some(deep_mut(scratch.x.reborrow(), p)),
            delta: Some(deep_mut(scratch.delta.reborrow(), p)),
            A: grads.A_log.as_mut().map(ViewMut::reborrow),
            B: Some(CoefficientGrad::Varying(grad_b)),
            C: Some(CoefficientGrad::Varying(grad_c)),
            D: grads.D.take(),
            z: Some(grad_z),
            delta_bias: grads.dt_bias.take(),
            initial_state: grads.initial_state.take(),
        };
        let grad_out = deep(scratch.y.as_view(), p);
        self.engine.selective_scan_bwd(SelectiveBwd { inputs, grad_out, grad_last_state, grads: scan_grads }, &mut ws.reborrow())?;
        // A = −exp(A_log), so its derivative is A itself.
        match grads.A_log.take() {
            Some(grad) => self.engine.scale(A, grad),
            None => Ok(()),
        }
    }

    /// ∂Δ → ∂δ, then [∂δ | ∂B | ∂C] → the second part of ∂x, and the gradients of both weights.
    fn projections_backward<I: Input>(
        &self,
        parts: &Parts<'_, I, MemoryOf<E>>,
        params: &MambaParams<'_, I, MemoryOf<E>>,
        scratch: &mut Scratch<'_, I, MemoryOf<E>>,
        grads: &mut MambaGrads<'_, I, MemoryOf<E>>,
        ws: &mut Workspace<'_, MemoryOf<E>>,
    ) -> Result<(), Error> {
        let p = &parts.p;
        let (grad_low, _) = low_parts(scratch.x_dbl.reborrow(), p);
        let dt = LinearBwd {
            x: parts.low_rank(),
            weight: params.dt_proj,
            grad_out: scratch.delta.as_view(),
            grad_x: Some(grad_low),
            grad_weight: grads.dt_proj.take(),
            grad_bias: None,
        };
        self.engine.linear_bwd(dt, &mut ws.reborrow())?;
        // ∂y has been read by now, so its memory takes the second part of ∂x.
        let low = LinearBwd {
            x: parts.x,
            weight: params.x_proj,
            grad_out: scratch.x_dbl.as_view(),
            grad_x: Some(scratch.y.reborrow()),
            grad_weight: grads.x_proj.take(),
            grad_bias: None,
        };
        self.engine.linear_bwd(low, &mut ws.reborrow())?;
        self.engine.add(deep(scratch.y.as_view(), p), deep_mut(scratch.x.reborrow(), p))
    }
}

/// The halves of [x | z], (B, L, D) each.
fn halves<'a, I: Input, M: Memory>(xz: ViewMut<'a, I, 2, M>, p: &MambaProblem) -> (ViewMut<'a, I, 3, M>, ViewMut<'a, I, 3, M>) {
    let (x, z) = xz.split(1, p.inner);
    (deep_mut(x, p), deep_mut(z, p))
}
