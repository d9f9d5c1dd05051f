//! The language model on a device: the forward pass and logits.

use super::memory::{GpuMemory, GpuState, Kept, Need, turn};
use super::parameters::GpuParameters;
use crate::block::mamba::{MAMBA_OPTIONS, MambaBlock, MambaFwd, MambaInputs, MambaProblem};
use crate::buffer::Workspace;
use crate::cuda::{Cuda, DeviceBuffer};
use crate::element::Real;
use crate::error::Error;
use crate::layers::linear::{Linear, LinearFwd, LinearProblem};
use crate::layers::norm::{NormFwd, RmsNorm};
use crate::model::config::{ModelConfig, Sizes};
use crate::model::lm::check_tokens;
use crate::sequences::Sequences;
use crate::view::{Device, View, ViewMut};

/// The most logits that exist at a time; positions are taken in blocks of rows.
const LOGITS: usize = 1 << 26;

/// A Mamba language model on a GPU. It holds no parameters: each call borrows them. Of a call only the tokens go to the device, and only
/// what is returned comes back.
#[derive(Debug, Clone)]
pub struct GpuLm {
    engine: Cuda,
    config: ModelConfig,
    sizes: Sizes,
}

/// Where states come from and go to. The tokens are in the memory of the call.
pub(super) struct Call<'a, T> {
    pub batch: usize,
    pub seqlen: usize,
    pub sequences: Sequences<'a, Device>,
    pub states: usize,
    pub initial: Option<&'a GpuState<T>>,
    pub last: Option<&'a mut GpuState<T>>,
    /// Whether backward follows.
    pub keep: bool,
}

impl<T> Call<'_, T> {
    /// Rows from the start.
    pub fn rows(batch: usize, seqlen: usize, keep: bool) -> Self {
        Call { batch, seqlen, sequences: Sequences::Rows, states: batch, initial: None, last: None, keep }
    }
}

impl GpuLm {
    /// A model of a configuration on an engine.
    ///
    /// # Errors
    /// [`Error::Value`] naming the key of the configuration that makes no model.
    pub fn new(config: ModelConfig, engine: Cuda) -> Result<Self, Error> {
        let sizes = config.sizes()?;
        Ok(GpuLm { engine, config, sizes })
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Its engine.
    pub fn engine(&self) -> &Cuda {
        &self.engine
    }

    pub(super) fn block(&self) -> MambaBlock<'_, Cuda> {
        MambaBlock { engine: &self.engine }
    }

    pub(super) fn problem(&self, batch: usize, seqlen: usize, states: usize) -> MambaProblem {
        let Sizes { hidden, inner, state, rank, conv, .. } = self.sizes;
        MambaProblem { batch, seqlen, hidden, inner, dstate: state, rank, width: conv, states, options: MAMBA_OPTIONS }
    }

    fn head(&self, rows: usize) -> LinearProblem {
        LinearProblem { rows, inputs: self.sizes.hidden, outputs: self.sizes.vocab }
    }

    /// Rows whose logits exist at a time.
    pub(super) fn head_rows(&self, rows: usize) -> usize {
        (LOGITS / self.sizes.vocab).clamp(1, rows.max(1))
    }

    /// What a forward call needs, with logits of `logits` rows and products of up to so many; backward too where it follows.
    pub(super) fn need<T: Real>(&self, p: &MambaProblem, logits: usize, backward: bool) -> Need {
        let (engine, block, rows) = (&self.engine, self.block(), p.rows());
        let (dims, head) = ([rows, p.hidden], self.head(logits));
        let forward = [
            engine.rms_norm_fwd_workspace::<T>(dims),
            engine.linear_fwd_workspace::<T>(head),
            engine.sum_workspace(rows),
            if backward { block.saving_workspace::<T>(p) } else { block.forward_workspace::<T>(p) },
        ];
        let mut scratch = forward.into_iter().fold(0, usize::max);
        let stream = rows * p.hidden;
        let need = Need { rows, stream, logits: logits * self.sizes.vocab, ..Need::default() };
        if !backward {
            return Need { layers: self.sizes.layers.min(2), scratch, ..need };
        }
        let further = [
            block.backward_workspace::<T>(p),
            engine.rms_norm_bwd_workspace::<T>(dims),
            engine.linear_bwd_workspace::<T>(head),
            engine.embedding_bwd_workspace(rows, self.sizes.vocab),
        ];
        scratch = further.into_iter().fold(scratch, usize::max);
        let grad_head = if logits < rows { self.sizes.vocab * p.hidden } else { 0 };
        Need { layers: self.sizes.layers, kept: p.saved_bytes::<T>(), grad: stream, grad_head, scratch, ..need }
    }

    /// Checks operands; L.
    pub(super) fn check<T: Real>(&self, parameters: &GpuParameters<T>, tokens: &[u32], batch: usize) -> Result<usize, Error> {
        parameters.check("parameters", &self.sizes)?;
        check_tokens(&self.sizes, tokens, batch)
    }

    /// The logits of every position, (B, L, vocab); `tokens` are (B, L) in row-major order.
    ///
    /// # Errors
    /// [`Error::Value`] where tokens or parameters do not fit the model; what the driver says.
    pub fn logits<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        tokens: &[u32],
        batch: usize,
        memory: &mut GpuMemory<T>,
    ) -> Result<Vec<T>, Error> {
        let seqlen = self.check(parameters, tokens, batch)?;
        let (rows, vocab) = (tokens.len(), self.sizes.vocab);
        let block = self.head_rows(rows);
        memory.reserve(&self.engine, &self.need::<T>(&self.problem(batch, seqlen, batch), block, false))?;
        memory.tokens.upload_at(0, tokens)?;
        self.hidden(parameters, Call::rows(batch, seqlen, false), memory)?;
        let mut logits = vec![T::ZERO; rows * vocab];
        for from in (0..rows).step_by(block) {
            let n = block.min(rows - from);
            let (x, ws) = (memory.hidden.view([rows, self.sizes.hidden]).slice(0, from..from + n), &mut memory.scratch.workspace());
            self.head_forward(parameters, x, memory.logits.view_mut([n, vocab]), ws)?;
            memory.logits.download_at(0, &mut logits[from * vocab..][..n * vocab])?;
        }
        Ok(logits)
    }

    /// logits = head · x for some rows.
    pub(super) fn head_forward<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        x: View<'_, T, 2, Device>,
        logits: ViewMut<'_, T, 2, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let product = LinearFwd { x, weight: parameters.head(), bias: None, out: logits };
        self.engine.linear_fwd(product, &mut ws.reborrow())
    }

    /// Runs embedding, blocks and last norm on `memory.tokens`; the result, (B·L, M), is in `memory.hidden`. Memory has been reserved.
    pub(super) fn hidden<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        mut call: Call<'_, T>,
        memory: &mut GpuMemory<T>,
    ) -> Result<(), Error> {
        let p = self.problem(call.batch, call.seqlen, call.states);
        let (layers, dims) = (self.sizes.layers, [p.rows(), p.hidden]);
        // Without backward two layers' worth of streams serve by turns.
        let kept = if call.keep { layers } else { layers.min(2) };
        let GpuMemory { tokens, layers: streams, out, residual, hidden, scratch, .. } = memory;
        let mut ws = scratch.workspace();
        self.engine.embedding_fwd(parameters.embeddings(), tokens.view([dims[0]]), out.view_mut(dims))?;
        for i in 0..layers {
            let (own, before) = turn(streams, i, kept);
            let before = before.map(|kept| kept.residual.view(dims));
            let (stream, normed) = (own.residual.view_mut(dims), own.normed.view_mut(dims));
            self.norm(parameters.norm(Some(i)), out.view(dims), before, stream, normed, &mut ws)?;
            self.run_block(parameters, i, &p, &mut call, own, out, &mut ws)?;
        }
        let before = layers.checked_sub(1).map(|i| streams[i % kept].residual.view(dims));
        self.norm(parameters.norm(None), out.view(dims), before, residual.view_mut(dims), hidden.view_mut(dims), &mut ws)
    }

    /// residual_out = before + x and normed = RMSNorm(residual_out) · weight.
    pub(super) fn norm<T: Real>(
        &self,
        weight: View<'_, T, 1, Device>,
        x: View<'_, T, 2, Device>,
        before: Option<View<'_, T, 2, Device>>,
        residual_out: ViewMut<'_, T, 2, Device>,
        normed: ViewMut<'_, T, 2, Device>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let eps = self.config.layer_norm_epsilon;
        let args = NormFwd::<T, T, Device> { residual: before, residual_out: Some(residual_out), ..NormFwd::new(x, weight, eps, normed) };
        self.engine.rms_norm_fwd(args, &mut ws.reborrow())
    }

    fn run_block<T: Real>(
        &self,
        parameters: &GpuParameters<T>,
        i: usize,
        p: &MambaProblem,
        call: &mut Call<'_, T>,
        own: &mut Kept<T>,
        out: &mut DeviceBuffer<T>,
        ws: &mut Workspace<'_, Device>,
    ) -> Result<(), Error> {
        let (x_dims, window, state) = ([p.batch, p.seqlen, p.hidden], [p.states, p.width - 1, p.inner], [p.states, p.inner, p.dstate]);
        let initial = call.initial;
        let inputs = MambaInputs {
            initial_window: initial.map(|s| s.windows[i].view(window)),
            initial_state: initial.map(|s| s.states[i].view(state)),
            sequences: call.sequences,
            ..MambaInputs::new(parameters.block(i, None), own.normed.view(x_dims))
        };
        let (final_window, last_state) = match &mut call.last {
            Some(last) => (Some(last.windows[i].view_mut(window)), Some(last.states[i].view_mut(state))),
            None => (None, None),
        };
        let args = MambaFwd { inputs, out: out.view_mut(x_dims), final_window, last_state };
        match call.keep {
            true => self.block().forward_saving(args, &mut own.block.saved(p)?, ws),
            false => self.block().forward(args, ws),
        }
    }
}
