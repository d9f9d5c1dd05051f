//! Prefill and decode: prompts of different lengths packed into one call, then one token of every row a call.

use core::any::Any;
use std::borrow::Cow;

use super::fused::{self, Fused};
use super::{Call, LmMemory, MambaLm, ModelState, block_params, embed, grown, head_weight};
use crate::block::HostEngine;
use crate::block::mamba::{MAMBA_OPTIONS, MambaParams, MambaStep};
use crate::element::Real;
use crate::error::Error;
use crate::model::config::{ModelConfig, Sizes};
use crate::model::generate::{Decode, LanguageModel};
use crate::model::parameters::{Layer, Parameters};
use crate::model::sample::greedy;
use crate::sequences::Sequences;
use crate::view::{View, ViewMut};

/// A weight (N, K) that lies in memory as (K, N).
#[derive(Debug)]
struct Transposed<T> {
    data: Vec<T>,
    dims: [usize; 2],
}

impl<T: Real> Transposed<T> {
    fn new(weight: &[T], inputs: usize) -> Self {
        let outputs = weight.len() / inputs;
        let column = |k: usize| weight.iter().skip(k).step_by(inputs).copied();
        Transposed { data: (0..inputs).flat_map(column).collect(), dims: [outputs, inputs] }
    }

    fn view(&self) -> View<'_, T, 2> {
        View::strided(&self.data, 0, self.dims, [1, self.dims[0] as isize])
    }
}

/// What the steps of a layer read beside its parameters.
#[derive(Debug)]
struct Prepared<T> {
    /// A, (D, N).
    decay: Vec<T>,
    in_proj: Transposed<T>,
    x_proj: Transposed<T>,
    out_proj: Transposed<T>,
}

impl<T: Real> Prepared<T> {
    fn new<E: HostEngine>(engine: &E, layer: &Layer<T>, sizes: &Sizes) -> Result<Self, Error> {
        let mut decay = vec![T::ZERO; layer.a_log.len()];
        let dims = [sizes.inner, sizes.state];
        engine.decay(View::new(&layer.a_log, dims), ViewMut::new(&mut decay, dims))?;
        Ok(Prepared {
            decay,
            in_proj: Transposed::new(&layer.in_proj, sizes.hidden),
            x_proj: Transposed::new(&layer.x_proj, sizes.inner),
            out_proj: Transposed::new(&layer.out_proj, sizes.inner),
        })
    }

    /// The layer's parameters, of the same values as they were given.
    fn params<'a>(&'a self, layer: &'a Layer<T>, sizes: &Sizes) -> MambaParams<'a, T> {
        MambaParams {
            in_proj: self.in_proj.view(),
            x_proj: self.x_proj.view(),
            out_proj: self.out_proj.view(),
            ..block_params(layer, sizes, Some(&self.decay))
        }
    }
}

/// Prompts one after another, and the offset of each, with the end of the last.
pub(in crate::model) fn joined(prompts: &[&[u32]]) -> Result<(Vec<u32>, Vec<i64>), Error> {
    if let Some(i) = prompts.iter().position(|prompt| prompt.is_empty()) {
        return Err(Error::Value { operand: "prompts", why: format!("prompt {i} is empty: it has no last token to go on from") });
    }
    let mut offsets = vec![0i64];
    for prompt in prompts {
        offsets.push(offsets[offsets.len() - 1] + prompt.len() as i64);
    }
    Ok((prompts.concat(), offsets))
}

/// Checks the tokens of a step and that there is a slot for each; which slots there are is known to the operators.
pub(in crate::model) fn check_step(sizes: &Sizes, tokens: &[u32], slots: &[i32]) -> Result<(), Error> {
    let rows = tokens.len();
    if slots.len() != rows || slots.iter().any(|&slot| slot < 0) {
        return Err(Error::Value { operand: "slots", why: format!("{} slots for {rows} tokens, each at least 0", slots.len()) });
    }
    match tokens.iter().find(|&&id| id as usize >= sizes.vocab) {
        Some(id) => Err(Error::Value { operand: "tokens", why: format!("{id} is not below the vocabulary, {}", sizes.vocab) }),
        None => Ok(()),
    }
}

/// How steps are taken.
#[derive(Debug)]
enum Way<T> {
    /// By the operators of the engine.
    Layers { prepared: Vec<Prepared<T>>, head: Transposed<T>, state: ModelState<T> },
    /// Fused; T is f32.
    Fused(Box<Fused>),
}

/// `parameters` where their type is f32.
fn single<T: Real>(parameters: &Parameters<T>) -> Option<&Parameters<f32>> {
    (parameters as &dyn Any).downcast_ref()
}

/// A batch of texts that grow token by token. After the first step a step allocates nothing in the model; an engine may.
///
/// It keeps a copy of the large weights in an order that products of few rows read several times faster. In f32 on the SIMD engine steps
/// are fused: their bits depend on neither the threads nor the other rows, and differ from those of a forward call by rounding.
#[derive(Debug)]
pub struct Decoder<'m, E, T> {
    model: &'m MambaLm<E>,
    parameters: &'m Parameters<T>,
    way: Way<T>,
    memory: LmMemory<T>,
    logits: Vec<T>,
}

impl<'m, E: HostEngine, T: Real> Decoder<'m, E, T> {
    /// Reads `prompts`, each of at least one token, packed into one call.
    ///
    /// # Errors
    /// [`Error::Value`] where a prompt is empty, a token is not in the vocabulary or the parameters do not fit.
    pub fn new(model: &'m MambaLm<E>, parameters: &'m Parameters<T>, prompts: &[&[u32]]) -> Result<Self, Error> {
        let (tokens, offsets) = joined(prompts)?;
        model.check(parameters, &tokens, 1)?;
        let fused = model.engine.simd().filter(|cpu| fused::suits(&model.sizes, cpu.par())).zip(single(parameters));
        let way = match fused {
            Some((cpu, parameters)) => {
                let eps = model.config.layer_norm_epsilon;
                Way::Fused(Box::new(Fused::new(cpu, parameters, &model.sizes, eps, prompts.len(), model.packing)))
            }
            None => {
                let prepared = parameters.layers.iter().map(|layer| Prepared::new(&model.engine, layer, &model.sizes));
                let head = Transposed::new(head_weight(parameters), model.sizes.hidden);
                Way::Layers { prepared: prepared.collect::<Result<_, _>>()?, head, state: ModelState::zeros(&model.sizes, 0) }
            }
        };
        let mut decoder = Decoder { model, parameters, way, memory: LmMemory::default(), logits: Vec::new() };
        decoder.prefill(&tokens, &offsets)?;
        Ok(decoder)
    }

    fn prefill(&mut self, tokens: &[u32], offsets: &[i64]) -> Result<(), Error> {
        let (model, rows, hidden) = (self.model, offsets.len() - 1, self.model.sizes.hidden);
        let sequences = Sequences::CuSeqlens(View::new(offsets, [rows + 1]));
        let mut last = ModelState::zeros(&model.sizes, rows);
        let call = Call { tokens, batch: 1, sequences, states: rows, initial: None, last: Some(&mut last), keep: false };
        model.hidden(self.parameters, call, &mut self.memory)?;
        // The last position of each prompt, moved together.
        let ends = grown(&mut self.memory.out, rows * hidden);
        for (to, &end) in ends.chunks_exact_mut(hidden).zip(&offsets[1..]) {
            to.copy_from_slice(&self.memory.hidden[(end as usize - 1) * hidden..][..hidden]);
        }
        let logits = grown(&mut self.logits, rows * model.sizes.vocab);
        match &mut self.way {
            Way::Layers { head, state, .. } => {
                *state = last;
                model.head_forward(head.view(), &self.memory.out, rows, logits, &mut self.memory.buffer)
            }
            Way::Fused(fused) => {
                fused.load((&last as &dyn Any).downcast_ref().expect("fused steps are in f32"));
                fused.head_of(bytemuck::cast_slice(&self.memory.out), rows, bytemuck::cast_slice_mut(logits));
                Ok(())
            }
        }
    }

    /// The logits after the last token of each row of the last call, (rows, vocab).
    pub fn logits(&self) -> &[T] {
        &self.logits
    }

    /// The state of every row.
    pub fn state(&self) -> Cow<'_, ModelState<T>> {
        match &self.way {
            Way::Layers { state, .. } => Cow::Borrowed(state),
            Way::Fused(fused) => {
                let state: Box<dyn Any> = Box::new(fused.state());
                Cow::Owned(*state.downcast().expect("fused steps are in f32"))
            }
        }
    }

    /// Takes one more token for some rows: `tokens[i]` belongs to prompt `slots[i]`. Afterwards row i of the logits is theirs.
    ///
    /// # Errors
    /// [`Error::Value`] where a token is not in the vocabulary, a slot is out of range or stands twice.
    pub fn step(&mut self, tokens: &[u32], slots: &[i32]) -> Result<&[T], Error> {
        let (model, parameters, rows) = (self.model, self.parameters, tokens.len());
        check_step(&model.sizes, tokens, slots)?;
        let vocab = model.sizes.vocab;
        let (prepared, head, state) = match &mut self.way {
            Way::Fused(fused) => {
                fused.check(slots)?;
                let logits = grown(&mut self.logits, rows * vocab);
                fused.step(bytemuck::cast_slice(&parameters.embeddings), tokens, slots, bytemuck::cast_slice_mut(logits));
                return Ok(logits);
            }
            Way::Layers { prepared, head, state } => (prepared, head, state),
        };
        let p = model.problem(rows, 1, state.rows);
        let dims = [rows, p.hidden];
        let count = rows * p.hidden;
        let memory = &mut self.memory;
        let bytes = model.scratch_bytes::<T>(&p, rows, false).max(model.block().step_workspace::<T>(&p));
        let mut ws = memory.buffer.workspace(bytes);
        // Two streams by turns, as in the forward call.
        let out = grown(&mut memory.out, count);
        let (normed, [first, second]) = (grown(&mut memory.hidden, count), &mut memory.grad);
        let (mut before, mut after) = (grown(first, count), grown(second, count));
        embed(model.par, tokens, &parameters.embeddings, out, p.hidden, &mut ws)?;
        for (i, layer) in parameters.layers.iter().enumerate() {
            model.norm(dims, &layer.norm, out, (i > 0).then_some(&*before), after, normed, &mut ws)?;
            core::mem::swap(&mut before, &mut after);
            let args = MambaStep {
                params: prepared[i].params(layer, &model.sizes),
                x: View::new(normed, dims),
                window: ViewMut::new(&mut state.windows[i], [p.states, p.width - 1, p.inner]),
                state: ViewMut::new(&mut state.states[i], [p.states, p.inner, p.dstate]),
                slots: Some(View::new(slots, [rows])),
                out: ViewMut::new(out, dims),
                options: MAMBA_OPTIONS,
            };
            model.block().step(args, &mut ws)?;
        }
        model.norm(dims, &parameters.norm_f, out, Some(before), after, normed, &mut ws)?;
        let logits = grown(&mut self.logits, rows * vocab);
        model.head_forward(head.view(), &memory.hidden, rows, logits, &mut memory.buffer)?;
        Ok(logits)
    }
}

impl<E: HostEngine, T: Real> LanguageModel<Parameters<T>> for MambaLm<E> {
    type Decoder<'m>
        = Decoder<'m, E, T>
    where
        E: 'm;

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn decoder<'m>(&'m self, parameters: &'m Parameters<T>, prompts: &[&[u32]]) -> Result<Decoder<'m, E, T>, Error> {
        Decoder::new(self, parameters, prompts)
    }
}

impl<E: HostEngine, T: Real> Decode for Decoder<'_, E, T> {
    type Number = T;

    fn logits(&mut self) -> Result<&[T], Error> {
        Ok(&self.logits)
    }

    fn likeliest(&mut self, rows: usize) -> Result<Vec<u32>, Error> {
        self.logits.chunks_exact(self.model.sizes.vocab).take(rows).map(greedy).collect()
    }

    fn step(&mut self, tokens: &[u32], slots: &[i32]) -> Result<(), Error> {
        Decoder::step(self, tokens, slots).map(|_| ())
    }
}
