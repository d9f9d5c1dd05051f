//! Generation: a batch of prompts of different lengths, each row with its own stream of random numbers.

use core::ops::ControlFlow;

use super::{ModelConfig, Rng, Sampler, Sampling};
use crate::element::Real;
use crate::error::Error;

/// How to generate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generation {
    /// The most tokens a row gets.
    pub tokens: usize,
    /// How a token is drawn.
    pub sampling: Sampling,
    /// Row i draws from a stream keyed by this seed alone, so that a prompt's text does not depend on what else is in the batch.
    pub seed: u64,
    /// Whether a row ends after a token of the configuration's `eos_token_id`.
    pub stop_at_eos: bool,
}

/// A batch of texts that grow token by token, on any engine.
pub trait Decode {
    /// The type of the logits.
    type Number: Real;

    /// The logits after the last token of each row of the last call, (rows, vocab) and perhaps more behind them.
    fn logits(&mut self) -> Result<&[Self::Number], Error>;

    /// The likeliest token of each of the `rows` rows of the last call; of equal ones the lowest.
    fn likeliest(&mut self, rows: usize) -> Result<Vec<u32>, Error>;

    /// Takes one more token for some rows: `tokens[i]` belongs to prompt `slots[i]`. Afterwards row i of the logits is theirs.
    fn step(&mut self, tokens: &[u32], slots: &[i32]) -> Result<(), Error>;
}

/// A model that text can be generated with; `P` are its parameters.
pub trait LanguageModel<P> {
    /// What takes its steps.
    type Decoder<'m>: Decode
    where
        Self: 'm,
        P: 'm;

    /// Its configuration.
    fn config(&self) -> &ModelConfig;

    /// Reads `prompts`, each of at least one token.
    fn decoder<'m>(&'m self, parameters: &'m P, prompts: &[&[u32]]) -> Result<Self::Decoder<'m>, Error>;
}

/// The tokens that follow each prompt, without the prompt.
///
/// `on_token` sees every token as it is drawn, with its row; `Break` ends that row. Prompts are read in one packed call and rows that
/// have ended leave the batch. What a row draws depends on its own logits and the seed only. Matrix products of another number of rows
/// may differ in the last bit, which can show where two tokens are as good as tied.
///
/// # Errors
/// [`Error::Value`] where a prompt is empty, a token is not in the vocabulary, or an option is out of range.
pub fn generate<M: LanguageModel<P>, P>(
    model: &M,
    parameters: &P,
    prompts: &[&[u32]],
    how: &Generation,
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, Error> {
    let sampler = Sampler::new(how.sampling, Rng::keyed(how.seed, "generate").state())?;
    let mut samplers = vec![sampler; prompts.len()];
    let mut texts = vec![Vec::new(); prompts.len()];
    if how.tokens == 0 || prompts.is_empty() {
        return Ok(texts);
    }
    let vocab = model.config().vocab_size;
    let mut decoder = model.decoder(parameters, prompts)?;
    let mut slots: Vec<i32> = (0..prompts.len() as i32).collect();
    let mut tokens: Vec<u32> = Vec::with_capacity(prompts.len());
    loop {
        tokens.clear();
        if how.sampling.temperature == 0.0 {
            tokens.extend(decoder.likeliest(slots.len())?);
        } else {
            let logits = decoder.logits()?.chunks_exact(vocab);
            for (&slot, logits) in slots.iter().zip(logits) {
                tokens.push(samplers[slot as usize].next(logits)?);
            }
        }
        let mut active = 0;
        for i in 0..slots.len() {
            let (row, token) = (slots[i] as usize, tokens[i]);
            texts[row].push(token);
            let ended = how.stop_at_eos && model.config().eos_token_id.contains(&token);
            if on_token(row, token).is_continue() && !ended && texts[row].len() < how.tokens {
                (slots[active], tokens[active]) = (slots[i], token);
                active += 1;
            }
        }
        slots.truncate(active);
        tokens.truncate(active);
        if slots.is_empty() {
            return Ok(texts);
        }
        decoder.step(&tokens, &slots)?;
    }
}
