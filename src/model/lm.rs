//! The language model: embedding, blocks with their norms, last norm, head.
//!
//! ```text
//! r_0 = embedding[token]
//! r_{i+1} = r_i + block_i(RMSNorm(r_i))
//! logits = head · RMSNorm(r_layers)
//! ```
//!
//! Arithmetic and activations are f32 or f64; weights of 16 bits are widened when they are loaded. So the residual stream is never
//! narrower than f32. Training keeps for each layer 2M + 4D + R + 2N numbers a position, and logits of a block of rows at a time.

use super::config::{ModelConfig, Sizes};
use super::parameters::{Layer, Parameters};
use crate::block::HostEngine;
use crate::block::mamba::{MAMBA_OPTIONS, MambaBlock, MambaFwd, MambaInputs, MambaMemory, MambaParams, MambaProblem};
use crate::buffer::{Buffer, Workspace};
use crate::element::Real;
use crate::error::Error;
use crate::layers::linear::LinearProblem;
use crate::layers::norm::NormFwd;
use crate::par::Par;
use crate::sequences::Sequences;
use crate::view::{Cut, View, ViewMut};

mod backward;
mod decode;
mod fused;
mod loss;

pub use decode::Decoder;
#[cfg(feature = "cuda")]
pub(super) use decode::{check_step, joined};
pub(super) use loss::check_targets;
pub use loss::{IGNORE, Loss};

/// Rows of the stream that one thread takes at a time.
const ROWS: usize = 32;

/// A Mamba language model on one engine. It holds no parameters: each call borrows them.
#[derive(Debug, Clone)]
pub struct MambaLm<E> {
    engine: E,
    par: Par,
    config: ModelConfig,
    sizes: Sizes,
    packing: Packing,
}

/// How a decoder of the SIMD engine in f32 keeps its copy of the weights of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// With the values they have: as bf16 where all of them are numbers of bf16, else as f32.
    #[default]
    Exact,
    /// Rounded to bf16, which halves what a step reads. Prompts are read with the weights as they were given.
    Bf16,
}

/// The state of every layer for a number of rows or sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelState<T> {
    /// Number of rows.
    pub rows: usize,
    /// For each layer the convolution's window, (rows, W − 1, D).
    pub windows: Vec<Vec<T>>,
    /// For each layer the scan's state, (rows, D, N).
    pub states: Vec<Vec<T>>,
}

impl<T: Real> ModelState<T> {
    /// The state at the start of a text: zeros.
    pub fn zeros(sizes: &Sizes, rows: usize) -> Self {
        let filled = |count: usize| (0..sizes.layers).map(|_| vec![T::ZERO; rows * count]).collect();
        ModelState { rows, windows: filled((sizes.conv - 1) * sizes.inner), states: filled(sizes.inner * sizes.state) }
    }

    fn check(&self, sizes: &Sizes, rows: usize) -> Result<(), Error> {
        let whole = |of: &Vec<Vec<T>>, each: usize| of.len() == sizes.layers && of.iter().all(|v| v.len() == rows * each);
        if self.rows == rows && whole(&self.windows, (sizes.conv - 1) * sizes.inner) && whole(&self.states, sizes.inner * sizes.state) {
            return Ok(());
        }
        Err(Error::Value { operand: "state", why: format!("it is not the state of {rows} rows of this model") })
    }
}

/// What one layer keeps: the stream it read, that stream normed, and what its block keeps.
#[derive(Debug, Default)]
struct Kept<T> {
    residual: Vec<T>,
    normed: Vec<T>,
    block: MambaMemory<T>,
}

/// Memory that calls reuse: activations, logits and scratch. It grows where a call is larger than all before it.
#[derive(Debug)]
pub struct LmMemory<T> {
    layers: Vec<Kept<T>>,
    /// What a block adds to the stream; in backward ∂ℓ/∂stream.
    out: Vec<T>,
    residual: Vec<T>,
    hidden: Vec<T>,
    logits: Vec<T>,
    grad: [Vec<T>; 2],
    grad_weight: Vec<T>,
    row_loss: Vec<f64>,
    order: Vec<usize>,
    starts: Vec<usize>,
    next: Option<ModelState<T>>,
    buffer: Buffer,
}

impl<T: Real> Default for LmMemory<T> {
    fn default() -> Self {
        LmMemory {
            layers: Vec::new(),
            out: Vec::new(),
            residual: Vec::new(),
            hidden: Vec::new(),
            logits: Vec::new(),
            grad: [Vec::new(), Vec::new()],
            grad_weight: Vec::new(),
            row_loss: Vec::new(),
            order: Vec::new(),
            starts: Vec::new(),
            next: None,
            buffer: Buffer::new(),
        }
    }
}

/// The first `count` elements; the vector grows where it is shorter.
fn grown<T: bytemuck::Pod>(vec: &mut Vec<T>, count: usize) -> &mut [T] {
    if vec.len() < count {
        *vec = bytemuck::zeroed_vec(count);
    }
    &mut vec[..count]
}

/// The tokens of one call and where states come from and go to.
struct Call<'a, T> {
    tokens: &'a [u32],
    batch: usize,
    sequences: Sequences<'a>,
    states: usize,
    initial: Option<&'a ModelState<T>>,
    last: Option<&'a mut ModelState<T>>,
    /// Whether backward follows.
    keep: bool,
}

/// The parameters of a layer as its block takes them.
fn block_params<'a, T: Real>(layer: &'a Layer<T>, sizes: &Sizes, decay: Option<&'a [T]>) -> MambaParams<'a, T> {
    let Sizes { hidden, inner, state, rank, conv, .. } = *sizes;
    fn vector<T: Real>(v: &[T]) -> View<'_, T, 1> {
        View::new(v, [v.len()])
    }
    MambaParams {
        in_proj: View::new(&layer.in_proj, [2 * inner, hidden]),
        in_proj_bias: layer.in_proj_bias.as_deref().map(vector),
        conv_weight: View::new(&layer.conv_weight, [inner, conv]),
        conv_bias: layer.conv_bias.as_deref().map(vector),
        x_proj: View::new(&layer.x_proj, [rank + 2 * state, inner]),
        dt_proj: View::new(&layer.dt_proj, [inner, rank]),
        dt_bias: vector(&layer.dt_bias),
        A_log: View::new(&layer.a_log, [inner, state]),
        A: decay.map(|a| View::new(a, [inner, state])),
        D: vector(&layer.d),
        out_proj: View::new(&layer.out_proj, [hidden, inner]),
        out_proj_bias: layer.out_proj_bias.as_deref().map(vector),
    }
}

impl<E: HostEngine> MambaLm<E> {
    /// A model of a configuration on an engine; `par` runs what no engine does: embedding, loss and their gradients.
    ///
    /// # Errors
    /// [`Error::Value`] naming the key of the configuration that makes no model.
    pub fn new(config: ModelConfig, engine: E, par: Par) -> Result<Self, Error> {
        let sizes = config.sizes()?;
        if matches!(par, Par::Part { .. }) {
            return Err(Error::Unsupported { what: "a model whose caller brings the threads".into() });
        }
        Ok(MambaLm { engine, par, config, sizes, packing: Packing::Exact })
    }

    /// The same model with another packing of the weights of its decoders.
    pub fn with_packing(self, packing: Packing) -> Self {
        MambaLm { packing, ..self }
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn block(&self) -> MambaBlock<'_, E> {
        MambaBlock { engine: &self.engine }
    }

    fn problem(&self, batch: usize, seqlen: usize, states: usize) -> MambaProblem {
        let Sizes { hidden, inner, state, rank, conv, .. } = self.sizes;
        MambaProblem { batch, seqlen, hidden, inner, dstate: state, rank, width: conv, states, options: MAMBA_OPTIONS }
    }

    fn head(&self, rows: usize) -> LinearProblem {
        LinearProblem { rows, inputs: self.sizes.hidden, outputs: self.sizes.vocab }
    }

    /// Bytes of scratch memory for a forward call, and for backward where one follows.
    fn scratch_bytes<T: Real>(&self, p: &MambaProblem, head_rows: usize, backward: bool) -> usize {
        let (engine, block) = (&self.engine, self.block());
        let dims = [p.batch * p.seqlen, p.hidden];
        let forward = engine
            .rms_norm_fwd_workspace::<T>(dims)
            .max(engine.linear_fwd_workspace::<T>(self.head(head_rows)))
            .max(self.par.scratch_bytes(p.hidden * size_of::<f64>()));
        if !backward {
            return forward.max(block.forward_workspace::<T>(p));
        }
        forward
            .max(block.saving_workspace::<T>(p))
            .max(block.backward_workspace::<T>(p))
            .max(engine.rms_norm_bwd_workspace::<T>(dims))
            .max(engine.linear_bwd_workspace::<T>(self.head(head_rows)))
    }

    /// Checks tokens and parameters; L.
    fn check<T: Real>(&self, parameters: &Parameters<T>, tokens: &[u32], batch: usize) -> Result<usize, Error> {
        parameters.check("parameters", &self.sizes)?;
        check_tokens(&self.sizes, tokens, batch)
    }

    /// The logits of every position, (B, L, vocab); `tokens` are (B, L) in row-major order.
    ///
    /// # Errors
    /// [`Error::Value`] where tokens or parameters do not fit the model.
    pub fn logits<T: Real>(
        &self,
        parameters: &Parameters<T>,
        tokens: &[u32],
        batch: usize,
        memory: &mut LmMemory<T>,
    ) -> Result<Vec<T>, Error> {
        self.check(parameters, tokens, batch)?;
        let call = Call { tokens, batch, sequences: Sequences::Rows, states: batch, initial: None, last: None, keep: false };
        self.hidden(parameters, call, memory)?;
        let mut logits = vec![T::ZERO; tokens.len() * self.sizes.vocab];
        let weight = View::new(head_weight(parameters), [self.sizes.vocab, self.sizes.hidden]);
        self.head_forward(weight, &memory.hidden, tokens.len(), &mut logits, &mut memory.buffer)?;
        Ok(logits)
    }

    /// logits = head · hidden for `rows` rows.
    fn head_forward<T: Real>(
        &self,
        weight: View<'_, T, 2>,
        hidden: &[T],
        rows: usize,
        logits: &mut [T],
        buffer: &mut Buffer,
    ) -> Result<(), Error> {
        let Sizes { vocab, hidden: width, .. } = self.sizes;
        let product = crate::layers::linear::LinearFwd {
            x: View::new(hidden, [rows, width]),
            weight,
            bias: None,
            out: ViewMut::new(logits, [rows, vocab]),
        };
        let bytes = self.engine.linear_fwd_workspace::<T>(self.head(rows));
        self.engine.linear_fwd(product, &mut buffer.workspace(bytes))
    }

    /// Runs embedding, blocks and last norm; the result, (B·L, M), is in `memory.hidden`.
    fn hidden<T: Real>(&self, parameters: &Parameters<T>, mut call: Call<'_, T>, memory: &mut LmMemory<T>) -> Result<(), Error> {
        let rows = call.tokens.len();
        let seqlen = rows.checked_div(call.batch).unwrap_or(0);
        let p = self.problem(call.batch, seqlen, call.states);
        let layers = self.sizes.layers;
        // Without backward two layers' worth of streams serve by turns.
        let kept = if call.keep { layers } else { layers.min(2) };
        while memory.layers.len() < kept {
            memory.layers.push(Kept::default());
        }
        let mut ws = memory.buffer.workspace(self.scratch_bytes::<T>(&p, 0, call.keep));
        let out = grown(&mut memory.out, rows * p.hidden);
        embed(self.par, call.tokens, &parameters.embeddings, out, p.hidden, &mut ws)?;
        for (i, layer) in parameters.layers.iter().enumerate() {
            let mut own = core::mem::take(&mut memory.layers[i % kept]);
            let before = i.checked_sub(1).map(|i| memory.layers[i % kept].residual.as_slice());
            let normed = grown(&mut own.normed, rows * p.hidden);
            self.norm([rows, p.hidden], &layer.norm, out, before, grown(&mut own.residual, rows * p.hidden), normed, &mut ws)?;
            self.run_block(i, block_params(layer, &self.sizes, None), &p, &mut call, &mut own, out, &mut ws)?;
            memory.layers[i % kept] = own;
        }
        let before = layers.checked_sub(1).map(|i| memory.layers[i % kept].residual.as_slice());
        let (residual, hidden) = (grown(&mut memory.residual, rows * p.hidden), grown(&mut memory.hidden, rows * p.hidden));
        self.norm([rows, p.hidden], &parameters.norm_f, out, before, residual, hidden, &mut ws)
    }

    /// residual_out = before + x and normed = RMSNorm(residual_out) · weight.
    fn norm<T: Real>(
        &self,
        dims: [usize; 2],
        weight: &[T],
        x: &[T],
        before: Option<&[T]>,
        residual_out: &mut [T],
        normed: &mut [T],
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let (x, weight, eps) = (View::new(x, dims), View::new(weight, [dims[1]]), self.config.layer_norm_epsilon);
        let args = NormFwd::<T, T> {
            residual: before.map(|r| View::new(r, dims)),
            residual_out: Some(ViewMut::new(residual_out, dims)),
            ..NormFwd::new(x, weight, eps, ViewMut::new(normed, dims))
        };
        self.engine.rms_norm_fwd(args, &mut ws.reborrow())
    }

    fn run_block<T: Real>(
        &self,
        i: usize,
        params: MambaParams<'_, T>,
        p: &MambaProblem,
        call: &mut Call<'_, T>,
        own: &mut Kept<T>,
        out: &mut [T],
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let (x_dims, window, state) = ([p.batch, p.seqlen, p.hidden], [p.states, p.width - 1, p.inner], [p.states, p.inner, p.dstate]);
        let initial = call.initial;
        let inputs = MambaInputs {
            initial_window: initial.map(|s| View::new(&s.windows[i], window)),
            initial_state: initial.map(|s| View::new(&s.states[i], state)),
            sequences: call.sequences,
            ..MambaInputs::new(params, View::new(&own.normed, x_dims))
        };
        let (final_window, last_state) = match &mut call.last {
            Some(last) => (Some(ViewMut::new(&mut last.windows[i], window)), Some(ViewMut::new(&mut last.states[i], state))),
            None => (None, None),
        };
        let args = MambaFwd { inputs, out: ViewMut::new(out, x_dims), final_window, last_state };
        match call.keep {
            true => self.block().forward_saving(args, &mut own.block.saved(p), ws),
            false => self.block().forward(args, ws),
        }
    }
}

/// Checks tokens of `batch` rows; L.
pub(super) fn check_tokens(sizes: &Sizes, tokens: &[u32], batch: usize) -> Result<usize, Error> {
    let fault = |why: String| Err(Error::Value { operand: "tokens", why });
    if let Some((i, id)) = tokens.iter().enumerate().find(|&(_, &id)| id as usize >= sizes.vocab) {
        return fault(format!("token {i} is {id}, the vocabulary has {}", sizes.vocab));
    }
    if batch == 0 && tokens.is_empty() {
        return Ok(0);
    }
    if batch == 0 || !tokens.len().is_multiple_of(batch) {
        return fault(format!("{} tokens are not {batch} rows of one length", tokens.len()));
    }
    Ok(tokens.len() / batch)
}

/// The head's weight: its own or the embedding.
fn head_weight<T>(parameters: &Parameters<T>) -> &[T] {
    parameters.lm_head.as_ref().unwrap_or(&parameters.embeddings)
}

/// out[row] = embedding[token of row].
fn embed<T: Real>(par: Par, tokens: &[u32], table: &[T], out: &mut [T], hidden: usize, ws: &mut Workspace<'_>) -> Result<(), Error> {
    let rows = tokens.len();
    let tiles = ViewMut::new(out, [rows, hidden]).tiles(Cut::Every(0, ROWS), Cut::Whole);
    par.run(0, rows.div_ceil(ROWS), (tiles,), &mut ws.reborrow(), 0, |i, (tile,), _| {
        for (to, &token) in tile.into_slice().chunks_exact_mut(hidden).zip(&tokens[i * ROWS..]) {
            to.copy_from_slice(&table[token as usize * hidden..][..hidden]);
        }
    })
}
