//! A model directory in the Hugging Face layout with `expected.safetensors` beside: logits, loss, greedy tokens and gradients.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use selective_scan::Error;
use selective_scan::element::{Dtype, Real};
use selective_scan::model::file::{self, FileDtype, Tensor};
use selective_scan::model::{
    Decode, Generation, IGNORE, LanguageModel, LmMemory, MambaLm, ModelConfig, Parameters, Sampling, expected as parameter_specs, generate,
    load,
};
#[cfg(feature = "cuda")]
use selective_scan::model::{GpuLm, GpuMemory, GpuParameters};
use selective_scan::par::Par;

use super::array::Array;
use super::compare::{Bound, compare};
use super::engines::{Entry, HostEngine, Visit};
use super::operation::{Check, Reference};
use super::report::Findings;

/// Tokens of each row that greedy generation starts from.
const PROMPT: usize = 7;

/// The published package takes this token, where a prompt holds it, for padding and masks its position: what it then generates is
/// not the model's continuation of that prompt, so such a row of `greedy` says nothing.
const PAD: u32 = 0;

/// A model and what the published package made of it.
pub struct Model {
    config: ModelConfig,
    parameters: Parameters<f64>,
    ids: Vec<u32>,
    batch: usize,
    greedy: usize,
    reference: Reference,
}

/// The tensors of `expected.safetensors`, taken out by name.
struct Expected(std::collections::BTreeMap<String, Tensor>);

impl Expected {
    fn tensor(&mut self, name: &str, among: &[FileDtype]) -> Result<Tensor, String> {
        let tensor = self.0.remove(name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
        if among.contains(&tensor.dtype) {
            return Ok(tensor);
        }
        let wanted: Vec<String> = among.iter().map(|dtype| format!("{dtype:?}")).collect();
        Err(format!("tensor `{name}` is {:?}, wanted {}", tensor.dtype, wanted.join(" or ")))
    }

    fn reals(&mut self, name: &str, dims: &[usize]) -> Result<(String, Array), String> {
        let tensor = self.tensor(name, &[FileDtype::F64, FileDtype::F32])?;
        if tensor.dims != dims {
            return Err(format!("tensor `{name}` has shape {:?}, wanted {dims:?}", tensor.dims));
        }
        let data = tensor.to_reals().ok_or_else(|| format!("tensor `{name}` does not hold numbers"))?;
        Ok((name.into(), Array { dims: tensor.dims, data, complex: false }))
    }

    /// A matrix of tokens, and how many rows it has.
    fn tokens(&mut self, name: &str, vocab: usize) -> Result<(Vec<u32>, [usize; 2]), String> {
        let tensor = self.tensor(name, &[FileDtype::I64])?;
        let [rows, columns] = tensor.dims[..] else {
            return Err(format!("tensor `{name}` has shape {:?}, wanted 2 axes", tensor.dims));
        };
        let ids = tensor.bytes.as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b));
        let token = |id: i64| match u32::try_from(id) {
            Ok(token) if (token as usize) < vocab => Ok(token),
            _ => Err(format!("tensor `{name}` holds {id}, which is no token of a vocabulary of {vocab}")),
        };
        Ok((ids.map(token).collect::<Result<_, _>>()?, [rows, columns]))
    }
}

impl Model {
    /// Reads a directory. `Err` is one sentence about what is malformed.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let (config, parameters) = load::<f64>(folder).map_err(|e| e.to_string())?;
        let path = folder.join(super::suite::EXPECTED);
        let expected = file::read(&path).map_err(|e| e.to_string())?;
        Self::new(config, parameters, Expected(expected.tensors)).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn new(config: ModelConfig, parameters: Parameters<f64>, mut expected: Expected) -> Result<Self, String> {
        let sizes = *parameters.sizes();
        let (ids, [batch, seqlen]) = expected.tokens("input_ids", sizes.vocab)?;
        let (greedy, [rows, each]) = expected.tokens("greedy", sizes.vocab)?;
        if batch == 0 || seqlen < PROMPT || rows != batch || each <= PROMPT {
            return Err(format!(
                "tensors `input_ids` and `greedy` have shapes {:?} and {:?}, wanted the same rows, at least {PROMPT} and more columns",
                [batch, seqlen],
                [rows, each]
            ));
        }
        let mut reference = vec![expected.reals("logits", &[batch, seqlen, sizes.vocab])?, expected.reals("loss", &[1])?];
        reference.push(("greedy".into(), tokens_array(&greedy, [rows, each])));
        for spec in parameter_specs(&sizes) {
            reference.push(expected.reals(&format!("grad.{}", spec.name), &spec.dims)?);
        }
        match expected.0.keys().next() {
            Some(name) => Err(format!("tensor `{name}` has no meaning for this model")),
            None => Ok(Model { config, parameters, ids, batch, greedy: each - PROMPT, reference }),
        }
    }

    fn seqlen(&self) -> usize {
        self.ids.len() / self.batch
    }

    /// The first `count` tokens of each row.
    fn prompts(&self, count: usize) -> Vec<&[u32]> {
        self.ids.chunks(self.seqlen()).map(|row| &row[..count]).collect()
    }

    /// The next token at each position, none at the last one of a row.
    fn targets(&self) -> Vec<u32> {
        let ids = &self.ids;
        (0..ids.len()).map(|i| if (i + 1) % self.seqlen() == 0 { IGNORE } else { ids[i + 1] }).collect()
    }

    fn answer<T: Real, E: HostEngine>(&self, engine: E) -> Result<(Vec<Answer>, f64), Error> {
        let parameters = self.parameters.convert::<T>();
        let model = MambaLm::new(self.config.clone(), engine, Par::default())?;
        let mut memory = LmMemory::default();
        let started = Instant::now();
        let mut answers = vec![Answer::new("logits", "plain", &model.logits(&parameters, &self.ids, self.batch, &mut memory)?)];
        let (ids, targets) = (&self.ids, self.targets());
        let mut gradients = parameters.zeros_like();
        let loss = model.loss_and_gradients(&parameters, ids, &targets, self.batch, &mut gradients, &mut memory)?;
        let seconds = started.elapsed().as_secs_f64();
        answers.push(Answer::new("loss", "with gradients", &[loss.mean()]));
        let alone = model.loss(&parameters, ids, &targets, self.batch, None, &mut memory)?;
        answers.push(Answer::new("loss", "without gradients", &[alone.mean()]));
        answers.extend(gradients.tensors().iter().map(|(spec, grad)| Answer::new(&format!("grad.{}", spec.name), "plain", grad)));
        answers.extend(self.continued(&model, &parameters)?);
        Ok((answers, seconds))
    }

    /// The same by the model whose parameters and states are on the device.
    #[cfg(feature = "cuda")]
    fn on_device<T: Real>(&self) -> Result<Vec<Answer>, Error> {
        let engine = super::engines::gpu()?;
        let model = GpuLm::new(self.config.clone(), engine.clone())?;
        let parameters = GpuParameters::upload(engine, &self.parameters.convert::<T>())?;
        let (mut memory, mut gradients) = (GpuMemory::new(engine)?, parameters.zeros_like(engine)?);
        let mut answers = vec![Answer::new("logits", "plain", &model.logits(&parameters, &self.ids, self.batch, &mut memory)?)];
        let (ids, targets) = (&self.ids, self.targets());
        let loss = model.loss_and_gradients(&parameters, ids, &targets, self.batch, &mut gradients, &mut memory)?;
        answers.push(Answer::new("loss", "with gradients", &[loss.mean()]));
        let alone = model.loss(&parameters, ids, &targets, self.batch, None, &mut memory)?;
        answers.push(Answer::new("loss", "without gradients", &[alone.mean()]));
        let gradients = gradients.download()?;
        answers.extend(gradients.tensors().iter().map(|(spec, grad)| Answer::new(&format!("grad.{}", spec.name), "plain", grad)));
        answers.extend(self.continued(&model, &parameters)?);
        answers.iter_mut().for_each(|answer| answer.how.push_str(", on the device"));
        Ok(answers)
    }

    /// What follows the prompts, greedily, and what decode steps say of the rest of the tokens.
    fn continued<M: LanguageModel<P>, P>(&self, model: &M, parameters: &P) -> Result<[Answer; 2], Error> {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let how = Generation { tokens: self.greedy, sampling, seed: 0, stop_at_eos: false };
        let texts = generate(model, parameters, &self.prompts(PROMPT), &how, |_, _| ControlFlow::Continue(()))?;
        Ok([self.greedy_answer(&texts), self.decoded(model, parameters)?])
    }

    /// Prompts and what was generated; a row that cannot be compared as the reference has it.
    fn greedy_answer(&self, texts: &[Vec<u32>]) -> Answer {
        let (_, reference) = self.reference.iter().find(|(name, _)| name == "greedy").expect("it was read");
        let (mut data, mut left_out) = (Vec::new(), Vec::new());
        let rows = self.prompts(PROMPT).into_iter().zip(texts).zip(reference.data.chunks(PROMPT + self.greedy)).enumerate();
        for (row, ((prompt, text), wanted)) in rows {
            if prompt.contains(&PAD) {
                left_out.push(row);
                data.extend_from_slice(wanted);
            } else {
                data.extend(prompt.iter().chain(text).map(|&token| f64::from(token)));
            }
        }
        let how = if left_out.is_empty() {
            "generated".into()
        } else {
            format!("generated; rows {left_out:?} left out, token {PAD} in the prompt was masked as padding")
        };
        Answer { tensor: "greedy".into(), how, data }
    }

    /// The logits of a prefill in the middle followed by steps; before its last position they are the reference's own.
    fn decoded<M: LanguageModel<P>, P>(&self, model: &M, parameters: &P) -> Result<Answer, Error> {
        let (seqlen, vocab, split) = (self.seqlen(), self.parameters.sizes().vocab, self.seqlen() / 2);
        let mut data = self.reference[0].1.data.clone();
        let mut note = |at: usize, logits: &[<M::Decoder<'_> as Decode>::Number]| {
            for (row, logits) in logits[..self.batch * vocab].chunks(vocab).enumerate() {
                let to = &mut data[(row * seqlen + at) * vocab..][..vocab];
                to.iter_mut().zip(logits).for_each(|(to, &x)| *to = x.to_f64());
            }
        };
        let mut decoder = model.decoder(parameters, &self.prompts(split))?;
        note(split - 1, decoder.logits()?);
        let slots: Vec<i32> = (0..self.batch as i32).collect();
        for at in split..seqlen {
            let tokens: Vec<u32> = self.ids.chunks(seqlen).map(|row| row[at]).collect();
            decoder.step(&tokens, &slots)?;
            note(at, decoder.logits()?);
        }
        Ok(Answer { tensor: "logits".into(), how: format!("steps from {split}"), data })
    }
}

fn tokens_array(ids: &[u32], dims: [usize; 2]) -> Array {
    Array { dims: dims.to_vec(), data: ids.iter().map(|&id| f64::from(id)).collect(), complex: false }
}

/// One tensor that came out, widened.
struct Answer {
    tensor: String,
    how: String,
    data: Vec<f64>,
}

impl Answer {
    fn new<T: Real>(tensor: &str, how: &str, values: &[T]) -> Self {
        Answer { tensor: tensor.into(), how: how.into(), data: values.iter().map(|x| x.to_f64()).collect() }
    }
}

struct Asked<'a> {
    model: &'a Model,
    dtype: Dtype,
}

impl Visit for Asked<'_> {
    type Output = Result<(Vec<Answer>, f64), Error>;

    fn visit<E: HostEngine>(self, engine: &E) -> Self::Output {
        match self.dtype {
            Dtype::F64 => self.model.answer::<f64, E>(*engine),
            Dtype::F32 => self.model.answer::<f32, E>(*engine),
            other => panic!("a model computes in f32 or f64, not {other:?}"),
        }
    }
}

impl Check for Model {
    fn dtypes(&self) -> &'static [Dtype] {
        &[Dtype::F64, Dtype::F32]
    }

    fn on(&self, entry: &Entry, dtype: Dtype) -> Result<Findings, Error> {
        #[allow(unused_mut)]
        let (mut answers, seconds) = entry.visit(Asked { model: self, dtype })?;
        #[cfg(feature = "cuda")]
        if entry.name == "cuda" {
            answers.extend(if dtype == Dtype::F64 { self.on_device::<f64>()? } else { self.on_device::<f32>()? });
        }
        let mut findings = Findings { seconds, ..Findings::default() };
        for answer in answers {
            let (name, wanted) = self.reference.iter().find(|(name, _)| *name == answer.tensor).expect("each tensor has a reference");
            let bound = if name == "greedy" { Bound::exact() } else { Bound::published() };
            findings.add(name, compare(&answer.data, &wanted.data, bound), &answer.how);
        }
        Ok(findings)
    }

    fn reference_mut(&mut self) -> &mut Reference {
        &mut self.reference
    }
}
