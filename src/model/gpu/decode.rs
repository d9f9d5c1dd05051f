//! Prefill and decode on a device: a step is one recorded graph for each number of rows.

use super::lm::{Call, GpuLm};
use super::memory::{GpuMemory, GpuState, Need};
use super::parameters::GpuParameters;
use crate::block::mamba::{MAMBA_OPTIONS, MambaStep};
use crate::cuda::{Cuda, DeviceBuffer, Recordings};
use crate::element::Real;
use crate::error::Error;
use crate::layers::elementwise::Elementwise;
use crate::model::config::ModelConfig;
use crate::model::generate::{Decode, LanguageModel};
use crate::model::lm::{ModelState, check_step, joined};
use crate::sequences::{Sequences, check_slots};
use crate::view::View;

/// What a step uses.
#[derive(Debug)]
struct Steps<'m, T> {
    model: &'m GpuLm,
    parameters: &'m GpuParameters<T>,
    /// A of each layer, (D, N), made once.
    decay: Vec<DeviceBuffer<T>>,
    state: GpuState<T>,
    /// Its tokens are those of the next step; logits are those of the last.
    memory: GpuMemory<T>,
    slots: DeviceBuffer<i32>,
    /// The likeliest token of each row of the logits.
    likeliest: DeviceBuffer<u32>,
}

/// A batch of texts that grow token by token, on a device.
///
/// The launches of a step are recorded the second time that so many rows take one, and replayed from then on: the same kernels with the same
/// operands, so the same bits. What goes to the device in a step is a token and a slot for each row; logits or the likeliest tokens come back
/// when they are asked for.
#[derive(Debug)]
pub struct GpuDecoder<'m, T> {
    steps: Recordings<Steps<'m, T>>,
    rows: usize,
    /// What the device has as slots.
    slots: Vec<i32>,
    /// The logits of the last call, once they are asked for.
    logits: Option<Vec<T>>,
}

impl<'m, T: Real> GpuDecoder<'m, T> {
    /// Reads `prompts`, each of at least one token, packed into one call.
    ///
    /// # Errors
    /// [`Error::Value`] where a prompt is empty, a token is not in the vocabulary or the parameters do not fit; what the driver says.
    pub fn new(model: &'m GpuLm, parameters: &'m GpuParameters<T>, prompts: &[&[u32]]) -> Result<Self, Error> {
        let (tokens, offsets) = joined(prompts)?;
        model.check(parameters, &tokens, 1)?;
        let (engine, sizes, rows) = (model.engine(), *model.sizes(), prompts.len());
        let made = |i| {
            let (dims, mut decay) = ([sizes.inner, sizes.state], engine.buffer(sizes.inner * sizes.state)?);
            engine.decay(parameters.a_log(i), decay.view_mut(dims))?;
            Ok(decay)
        };
        let mut steps = Steps {
            model,
            parameters,
            decay: (0..sizes.layers).map(made).collect::<Result<_, Error>>()?,
            state: GpuState::zeros(engine, &sizes, rows)?,
            memory: GpuMemory::new(engine)?,
            slots: engine.buffer(rows)?,
            likeliest: engine.buffer(rows)?,
        };
        let slots: Vec<i32> = (0..rows as i32).collect();
        steps.slots.upload(&slots)?;
        steps.prefill(&tokens, &offsets)?;
        Ok(GpuDecoder { steps: Recordings::new(engine.clone(), steps, step), rows, slots, logits: None })
    }

    /// Whether steps are recorded and replayed, as they are at first, or launched one kernel after another. No bit depends on it.
    pub fn record(&mut self, on: bool) {
        self.steps.record(on);
    }

    /// The logits after the last token of each row of the last call, (rows, vocab); waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn logits(&mut self) -> Result<&[T], Error> {
        if self.logits.is_none() {
            let Steps { model, memory, .. } = self.steps.memory();
            let mut logits = vec![T::ZERO; self.rows * model.sizes().vocab];
            memory.logits.download_at(0, &mut logits)?;
            self.logits = Some(logits);
        }
        Ok(self.logits.as_deref().unwrap_or_default())
    }

    /// The likeliest token of each row of the last call, of equal ones the lowest; chosen on the device, which is waited for.
    ///
    /// # Errors
    /// [`Error::Value`] where the logits of a row are all −∞, or one is NaN or +∞.
    pub fn likeliest(&self) -> Result<Vec<u32>, Error> {
        let mut tokens = vec![0; self.rows];
        self.steps.memory().likeliest.download_at(0, &mut tokens)?;
        real(tokens)
    }

    /// The state of every row; waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn state(&self) -> Result<ModelState<T>, Error> {
        self.steps.memory().state.download()
    }

    /// Takes one more token for some rows: `tokens[i]` belongs to prompt `slots[i]`. Afterwards row i of the logits is theirs. Does not wait.
    ///
    /// # Errors
    /// [`Error::Value`] where a token is not in the vocabulary, a slot is out of range or stands twice.
    pub fn step(&mut self, tokens: &[u32], slots: &[i32]) -> Result<(), Error> {
        let (Steps { model, state, .. }, rows) = (self.steps.memory(), tokens.len());
        check_step(model.sizes(), tokens, slots)?;
        check_slots(&View::new(slots, [rows]), rows, state.rows)?;
        self.reserve(rows)?;
        self.steps.upload(|steps| &mut steps.memory.tokens, tokens)?;
        if self.slots != slots {
            self.slots.clear();
            self.steps.upload(|steps| &mut steps.slots, slots)?;
            self.slots.extend(slots);
        }
        (self.rows, self.logits) = (rows, None);
        self.steps.run([rows, 1])
    }

    /// Takes `count` steps, each with the likeliest token of the one before, for all rows of the last call, without waiting for the device in
    /// between. The tokens that were taken, those of a step together: (count, rows).
    ///
    /// # Errors
    /// As for [`GpuDecoder::likeliest`]; what the driver says.
    pub fn greedy(&mut self, count: usize) -> Result<Vec<u32>, Error> {
        let rows = self.rows;
        self.reserve(rows)?;
        let mut taken = self.steps.engine().buffer::<u32>(count.saturating_mul(rows))?;
        self.logits = None;
        for at in 0..count {
            taken.copy_at(at * rows, &self.steps.memory().likeliest, rows)?;
            self.steps.with(|steps| steps.memory.tokens.copy_at(0, &steps.likeliest, rows))?;
            self.steps.run([rows, 1])?;
        }
        real(taken.to_vec()?)
    }

    /// Makes room for a step of so many rows, before anything of it is recorded.
    fn reserve(&mut self, rows: usize) -> Result<(), Error> {
        let Steps { model, memory, state, .. } = self.steps.memory();
        let p = model.problem(rows, 1, state.rows);
        let forward = model.need::<T>(&p, rows, false);
        let scratch = forward.scratch.max(model.block().step_workspace::<T>(&p));
        let need = Need { layers: 0, grad: forward.stream, scratch, ..forward };
        if memory.fits(&need) { Ok(()) } else { self.steps.memory_mut().reserve(&need) }
    }
}

/// Tokens that the device chose.
fn real(tokens: Vec<u32>) -> Result<Vec<u32>, Error> {
    if tokens.contains(&u32::MAX) {
        return Err(Error::Value { operand: "logits", why: "those of a row are all −∞, or one of them is NaN or +∞".into() });
    }
    Ok(tokens)
}

impl<T: Real> Steps<'_, T> {
    fn reserve(&mut self, need: &Need) -> Result<(), Error> {
        self.memory.reserve(self.model.engine(), need)
    }

    fn prefill(&mut self, tokens: &[u32], offsets: &[i64]) -> Result<(), Error> {
        let (model, rows, [count, width]) = (self.model, offsets.len() - 1, [tokens.len(), self.model.sizes().hidden]);
        let engine = model.engine();
        let packed = engine.upload(offsets)?;
        self.reserve(&model.need::<T>(&model.problem(1, count, rows), rows, false))?;
        self.memory.tokens.upload_at(0, tokens)?;
        let sequences = Sequences::CuSeqlens(packed.view([rows + 1]));
        let call = Call { batch: 1, seqlen: count, sequences, states: rows, initial: None, last: Some(&mut self.state), keep: false };
        model.hidden(self.parameters, call, &mut self.memory)?;
        // The last position of each prompt, moved together as an embedding moves rows.
        let ends: Vec<u32> = offsets[1..].iter().map(|&end| (end - 1) as u32).collect();
        let GpuMemory { targets, hidden, out, .. } = &mut self.memory;
        targets.upload_at(0, &ends)?;
        engine.embedding_fwd(hidden.view([count, width]), targets.view([rows]), out.view_mut([rows, width]))?;
        core::mem::swap(hidden, out);
        self.choose(rows)
    }

    /// Logits of the first rows of `memory.hidden`, and the likeliest of each.
    fn choose(&mut self, rows: usize) -> Result<(), Error> {
        let (model, GpuMemory { hidden, logits, scratch, .. }) = (self.model, &mut self.memory);
        let (x, dims) = (hidden.view([rows, model.sizes().hidden]), [rows, model.sizes().vocab]);
        model.head_forward(self.parameters, x, logits.view_mut(dims), &mut scratch.workspace())?;
        model.engine().argmax(logits.view(dims), self.likeliest.view_mut([self.state.rows]).slice(0, 0..rows))
    }
}

/// One step of the first `rows` tokens and slots.
fn step<T: Real>(engine: &Cuda, steps: &mut Steps<'_, T>, [rows, _]: [usize; 2]) -> Result<(), Error> {
    let Steps { model, parameters, decay, state, memory, slots, .. } = steps;
    let p = model.problem(rows, 1, state.rows);
    let (dims, decay_dims) = ([rows, p.hidden], [p.inner, p.dstate]);
    let GpuMemory { tokens, out, hidden: normed, grad: [first, second], scratch, .. } = memory;
    let mut ws = scratch.workspace();
    // Two streams by turns, as in the forward call.
    let (mut before, mut after) = (first, second);
    engine.embedding_fwd(parameters.embeddings(), tokens.view([rows]), out.view_mut(dims))?;
    for (i, decay) in decay.iter().enumerate() {
        let stream = (i > 0).then_some(before.view(dims));
        model.norm(parameters.norm(Some(i)), out.view(dims), stream, after.view_mut(dims), normed.view_mut(dims), &mut ws)?;
        core::mem::swap(&mut before, &mut after);
        let args = MambaStep {
            params: parameters.block(i, Some(decay.view(decay_dims))),
            x: normed.view(dims),
            window: state.windows[i].view_mut([p.states, p.width - 1, p.inner]),
            state: state.states[i].view_mut([p.states, p.inner, p.dstate]),
            slots: Some(slots.view([rows])),
            out: out.view_mut(dims),
            options: MAMBA_OPTIONS,
        };
        model.block().step(args, &mut ws)?;
    }
    let stream = (model.sizes().layers > 0).then_some(before.view(dims));
    model.norm(parameters.norm(None), out.view(dims), stream, after.view_mut(dims), normed.view_mut(dims), &mut ws)?;
    steps.choose(rows)
}

impl<T: Real> LanguageModel<GpuParameters<T>> for GpuLm {
    type Decoder<'m> = GpuDecoder<'m, T>;

    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn decoder<'m>(&'m self, parameters: &'m GpuParameters<T>, prompts: &[&[u32]]) -> Result<GpuDecoder<'m, T>, Error> {
        GpuDecoder::new(self, parameters, prompts)
    }
}

impl<T: Real> Decode for GpuDecoder<'_, T> {
    type Number = T;

    fn logits(&mut self) -> Result<&[T], Error> {
        GpuDecoder::logits(self)
    }

    fn likeliest(&mut self, _rows: usize) -> Result<Vec<u32>, Error> {
        GpuDecoder::likeliest(self)
    }

    fn step(&mut self, tokens: &[u32], slots: &[i32]) -> Result<(), Error> {
        GpuDecoder::step(self, tokens, slots)
    }
}
