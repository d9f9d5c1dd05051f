//! Loss and gradients on a device.

use super::lm::{Call, GpuLm};
use super::memory::{GpuMemory, GpuState, Need};
use super::parameters::{GpuParameters, Pieces};
use crate::block::mamba::{MambaBwd, MambaInputs, MambaProblem};
use crate::buffer::Workspace;
use crate::cuda::Targets;
use crate::element::Real;
use crate::error::Error;
use crate::layers::elementwise::Elementwise;
use crate::layers::linear::{Linear, LinearBwd};
use crate::layers::norm::{NormBwd, RmsNorm};
use crate::model::Loss;
use crate::model::config::Sizes;
use crate::model::lm::check_targets;
use crate::view::{Device, View, ViewMut};

impl GpuLm {
    /// The loss of `targets`, (B, L), after `tokens`, (B, L): target t is the token that follows token t, or [`crate::model::IGNORE`].
    ///
    /// `state` is the state of B rows before the first token; afterwards it is that after the last one, so that a long text can be
    /// taken window by window.
    ///
    /// # Errors
    /// [`Error::Value`] where an operand does not fit the model; what the driver says.
    pub fn loss<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        state: Option<&mut GpuState<T>>,
        memory: &mut GpuMemory<T>,
    ) -> Result<Loss, Error> {
        let seqlen = self.check(parameters, tokens, batch)?;
        check_targets(self.sizes(), tokens, targets)?;
        memory.reserve(self.engine(), &self.need::<T>(&self.problem(batch, seqlen, batch), self.head_rows(tokens.len()), false))?;
        memory.tokens.upload_at(0, tokens)?;
        memory.targets.upload_at(0, targets)?;
        let mut call = Call::rows(batch, seqlen, false);
        match state {
            None => self.hidden(parameters, call, memory)?,
            Some(state) => {
                state.check(self.sizes(), batch)?;
                let mut next = GpuState::zeros(self.engine(), self.sizes(), batch)?;
                (call.initial, call.last) = (Some(&*state), Some(&mut next));
                self.hidden(parameters, call, memory)?;
                *state = next;
            }
        }
        self.head_loss(parameters, tokens.len(), None, memory)?;
        read_loss(memory)
    }

    /// The loss of `targets` after `tokens`, both (B, L), and the gradient of its mean by every parameter, written to `gradients`.
    ///
    /// # Errors
    /// [`Error::Value`] where an operand does not fit the model; what the driver says.
    pub fn loss_and_gradients<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        gradients: &mut GpuParameters<T>,
        memory: &mut GpuMemory<T>,
    ) -> Result<Loss, Error> {
        let seqlen = self.check(parameters, tokens, batch)?;
        check_targets(self.sizes(), tokens, targets)?;
        gradients.check("gradients", self.sizes())?;
        memory.reserve(self.engine(), &self.training_need::<T>(batch, seqlen))?;
        memory.tokens.upload_at(0, tokens)?;
        memory.targets.upload_at(0, targets)?;
        self.gradients(parameters, [batch, seqlen], gradients, memory)?;
        read_loss(memory)
    }

    /// What [`GpuLm::gradients`] needs.
    pub(super) fn training_need<T: Real>(&self, batch: usize, seqlen: usize) -> Need {
        self.need::<T>(&self.problem(batch, seqlen, batch), self.head_rows(batch * seqlen), true)
    }

    /// Loss and gradients of the tokens and targets in reserved memory. Nothing is copied to or from the host, allocated or waited for.
    pub(super) fn gradients<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        [batch, seqlen]: [usize; 2],
        gradients: &mut GpuParameters<T>,
        memory: &mut GpuMemory<T>,
    ) -> Result<(), Error> {
        let (rows, hidden) = (batch * seqlen, self.sizes().hidden);
        self.hidden(parameters, Call::rows(batch, seqlen, true), memory)?;
        let mut pieces = gradients.pieces();
        let (mut own, mut table) = (pieces.head(), pieces.embeddings());
        let tied = own.is_none();
        let head = own.as_mut().unwrap_or(&mut table);
        if rows == 0 {
            self.engine().zero(stacked(head.reborrow()))?;
        }
        self.head_loss(parameters, rows, Some(head.reborrow()), memory)?;
        self.layers_backward(parameters, &self.problem(batch, seqlen, batch), &mut pieces, memory)?;
        let (grad, tokens) = (memory.grad[1 - self.sizes().layers % 2].view([rows, hidden]), memory.tokens.view([rows]));
        self.engine().embedding_bwd(grad, tokens, table, tied, &mut memory.scratch.workspace())
    }

    /// The loss of `memory.hidden`, to `memory.loss` and `memory.count`; with `gradient`, that of the head (written there) and ∂ℓ/∂hidden in
    /// `memory.grad[0]`, of the mean.
    fn head_loss<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        rows: usize,
        mut gradient: Option<ViewMut<'_, T, 2, Device>>,
        memory: &mut GpuMemory<T>,
    ) -> Result<(), Error> {
        let (engine, Sizes { vocab, hidden: width, .. }) = (self.engine(), *self.sizes());
        let GpuMemory { targets, hidden, logits, grad: [grad, _], grad_head, row_loss, loss, count, scratch, .. } = memory;
        let (targets, mut ws) = (targets.view([rows]), scratch.workspace());
        engine.count_targets(targets, count.view_mut([1]), &mut ws.reborrow())?;
        let block = self.head_rows(rows);
        for from in (0..rows).step_by(block) {
            let range = from..(from + block).min(rows);
            let (x, weight) = (hidden.view([rows, width]).slice(0, range.clone()), parameters.head());
            let of = Targets { targets: targets.slice(0, range.clone()), count: count.view([1]) };
            let losses = row_loss.view_mut([rows]).slice(0, range.clone());
            let mut logits = logits.view_mut([range.len(), vocab]);
            self.head_forward(parameters, x, logits.reborrow(), &mut ws)?;
            let Some(total) = &mut gradient else {
                engine.cross_entropy(logits.as_view(), of, losses, None)?;
                continue;
            };
            engine.cross_entropy_in_place(logits.reborrow(), of, losses)?;
            // The first block writes the gradient, later ones are added to it.
            let part = if from == 0 { total.reborrow() } else { grad_head.view_mut([vocab, width]) };
            let args = LinearBwd {
                x,
                weight,
                grad_out: logits.as_view(),
                grad_x: Some(grad.view_mut([rows, width]).slice(0, range)),
                grad_weight: Some(part),
                grad_bias: None,
            };
            engine.linear_bwd(args, &mut ws.reborrow())?;
            if from > 0 {
                engine.add(grad_head.view([1, vocab, width]), stacked(total.reborrow()))?;
            }
        }
        engine.sum(row_loss.view([rows]), loss.view_mut([1]), &mut ws)
    }

    /// From ∂ℓ/∂hidden in `memory.grad[0]` through last norm and blocks to ∂ℓ/∂embedded, in `memory.grad[1]` after an even number of layers, else
    /// in the other.
    fn layers_backward<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        p: &MambaProblem,
        gradients: &mut Pieces<'_, T>,
        memory: &mut GpuMemory<T>,
    ) -> Result<(), Error> {
        let (dims, x_dims) = ([p.rows(), p.hidden], [p.batch, p.seqlen, p.hidden]);
        let GpuMemory { layers, out, residual, grad: [first, second], scratch, .. } = memory;
        let mut ws = scratch.workspace();
        // ∂ℓ/∂stream goes to and fro between two buffers; `out` holds what a block gives to its norm.
        let (mut from, mut to) = (first, second);
        self.norm_backward(parameters, None, residual.view(dims), from.view(dims), None, to.view_mut(dims), gradients, &mut ws)?;
        for (i, own) in layers[..self.sizes().layers].iter_mut().enumerate().rev() {
            core::mem::swap(&mut from, &mut to);
            let args = MambaBwd {
                inputs: MambaInputs::new(parameters.block(i, None), own.normed.view(x_dims)),
                saved: &own.block.saved(p)?,
                grad_out: from.view(x_dims),
                grad_final_window: None,
                grad_last_state: None,
                grads: gradients.block(i, out.view_mut(x_dims)),
            };
            self.block().backward(args, &mut ws)?;
            let (stream, normed, after) = (own.residual.view(dims), out.view(dims), Some(from.view(dims)));
            self.norm_backward(parameters, Some(i), stream, normed, after, to.view_mut(dims), gradients, &mut ws)?;
        }
        Ok(())
    }

    fn norm_backward<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        layer: Option<usize>,
        stream: View<'_, T, 2, Device>,
        grad_out: View<'_, T, 2, Device>,
        grad_stream: Option<View<'_, T, 2, Device>>,
        grad_x: ViewMut<'_, T, 2, Device>,
        gradients: &mut Pieces<'_, T>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let args = NormBwd::<T, T, Device> {
            grad_residual_out: grad_stream,
            grad_x: Some(grad_x),
            grad_weight: gradients.norm(layer),
            ..NormBwd::new(stream, parameters.norm(layer), self.config().layer_norm_epsilon, grad_out)
        };
        self.engine().rms_norm_bwd(args, &mut ws.reborrow())
    }
}

/// (rows, columns) as (1, rows, columns).
fn stacked<T: Real>(v: ViewMut<'_, T, 2, Device>) -> ViewMut<'_, T, 3, Device> {
    let ([rows, columns], [row, column]) = (v.dims(), v.strides());
    v.reshape([1, rows, columns], [0, row, column])
}

/// The loss of the last call; waits for the device.
pub(super) fn read_loss<T>(memory: &GpuMemory<T>) -> Result<Loss, Error> {
    let (mut sum, mut count) = ([0.0], [0.0]);
    memory.loss.download_at(0, &mut sum)?;
    memory.count.download_at(0, &mut count)?;
    Ok(Loss { sum: sum[0], count: count[0] as usize })
}
