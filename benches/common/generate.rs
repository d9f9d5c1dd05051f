//! Whole models of the published shapes with random weights: a prompt that is read, then tokens one after another.

use std::ops::ControlFlow;
use std::time::Instant;

use selective_scan::block::HostEngine;
use selective_scan::error::Error;
use selective_scan::model::{Generation, Kind, MambaLm, ModelConfig, Packing, Parameters, Sampling, generate};
use selective_scan::par::Par;

use super::operator::Work;
use super::place::data;

/// Name, width and blocks of the published models.
pub const MODELS: [(&str, usize, usize); 6] =
    [("tiny", 64, 2), ("130m", 768, 24), ("370m", 1024, 48), ("790m", 1536, 48), ("1.4b", 2048, 48), ("2.8b", 2560, 64)];

/// What is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub model: String,
    pub batch: usize,
    pub prompt: usize,
    pub tokens: usize,
    /// How the host's decoder keeps weights.
    pub packing: Packing,
}

/// Seconds of reading the prompts and of a step, each for the whole batch.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub prefill: f64,
    pub step: f64,
}

impl Plan {
    /// `130m_b1_l512`.
    pub fn shape(&self) -> String {
        format!("{}_b{}_l{}", self.model, self.batch, self.prompt)
    }

    /// The model's configuration.
    pub fn config(&self) -> Result<ModelConfig, String> {
        let names = MODELS.map(|m| m.0).join(", ");
        let found = MODELS.iter().find(|m| m.0 == self.model).ok_or_else(|| format!("`{}` is none of {names}", self.model))?;
        let &(_, hidden_size, num_hidden_layers) = found;
        let vocab_size = if self.model == "tiny" { 256 } else { 50280 };
        let (intermediate_size, time_step_rank) = (2 * hidden_size, hidden_size.div_ceil(16));
        Ok(ModelConfig { vocab_size, hidden_size, intermediate_size, time_step_rank, num_hidden_layers, ..ModelConfig::default() })
    }

    /// Weights in the ranges of the published initialisation, which repeat, so that billions are made fast.
    pub fn parameters(&self, config: &ModelConfig) -> Result<Parameters<f32>, Error> {
        let mut seed = 0;
        Parameters::build(config.sizes()?, |spec| {
            seed += 1;
            let (count, root) = (spec.count(), 1.0 / (spec.dims[spec.dims.len() - 1] as f64).sqrt());
            Ok(match spec.kind {
                Kind::Norm | Kind::FinalNorm | Kind::Skip => vec![1.0; count],
                Kind::ALog => (0..count).map(|i| ((i % config.state_size + 1) as f32).ln()).collect(),
                Kind::DtBias => data(count, [-6.9, -2.25], seed),
                Kind::Embedding => data(count, [-0.02, 0.02], seed),
                _ => data(count, [-root, root], seed),
            })
        })
    }

    /// Prompts of pseudo-random tokens.
    fn prompts(&self, config: &ModelConfig) -> Vec<Vec<u32>> {
        let token = |i: usize| (i.wrapping_mul(2_654_435_761) % config.vocab_size) as u32;
        (0..self.batch).map(|row| (0..self.prompt).map(|t| token(row * self.prompt + t + 1)).collect()).collect()
    }

    /// The least work of reading so many tokens of each row: weights once, two floating-point operations a weight and token, the scans, the states of a step.
    pub fn work(&self, config: &ModelConfig, seqlen: usize) -> Work {
        let (m, d, n) = (config.hidden_size, config.intermediate_size, config.state_size);
        let block = 3 * m * d + d * (config.time_step_rank + 2 * n) + config.time_step_rank * d;
        let (blocks, head) = ((config.num_hidden_layers * block) as f64, (config.vocab_size * m) as f64);
        let (rows, tokens) = (self.batch as f64, (self.batch * seqlen) as f64);
        let (states, products) = (tokens * (config.num_hidden_layers * d * n) as f64, tokens * blocks + rows * head);
        let carried = if seqlen == 1 { 8.0 * states } else { 0.0 };
        let weight = if seqlen == 1 && self.packing == Packing::Bf16 { 2.0 } else { 4.0 };
        Work {
            elements: tokens,
            bytes: weight * (blocks + head) + carried,
            fp32: products + 4.0 * states,
            exponentials: states,
            multiply_adds: products + 9.0 * states,
        }
    }

    /// On the host.
    pub fn host<E: HostEngine>(&self, engine: E, par: Par, config: &ModelConfig, parameters: &Parameters<f32>) -> Result<Taken, Error> {
        let model = MambaLm::new(config.clone(), engine, par)?.with_packing(self.packing);
        let prompts = self.prompts(config);
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let sampling = Sampling { temperature: 0.0, top_k: None, top_p: None };
        let how = Generation { tokens: self.tokens.max(3), sampling, seed: 1, stop_at_eos: false };
        let (start, mut times) = (Instant::now(), Vec::new());
        generate(&model, parameters, &prompts, &how, |row, _| {
            if row == 0 {
                times.push(start.elapsed().as_secs_f64());
            }
            ControlFlow::Continue(())
        })?;
        let prefill = times[0];
        let mut steps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        steps.sort_by(f64::total_cmp);
        Ok(Taken { prefill, step: steps[steps.len() / 2] })
    }

    /// On a GPU, where steps are recorded and replayed without waiting in between.
    #[cfg(feature = "cuda")]
    pub fn gpu(
        &self,
        engine: &selective_scan::cuda::Cuda,
        config: &ModelConfig,
        parameters: &selective_scan::model::GpuParameters<f32>,
    ) -> Result<Taken, Error> {
        use selective_scan::model::{Decode, GpuLm, LanguageModel};
        let model = GpuLm::new(config.clone(), engine.clone())?;
        let prompts = self.prompts(config);
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let mut prefills = Vec::new();
        let mut last = None;
        for _ in 0..4 {
            drop(last.take());
            engine.synchronize()?;
            let start = Instant::now();
            let mut decoder = model.decoder(parameters, &prompts)?;
            Decode::likeliest(&mut decoder, self.batch)?;
            prefills.push(start.elapsed().as_secs_f64());
            last = Some(decoder);
        }
        let mut decoder = last.expect("four were made");
        // The first step runs plainly, the second is recorded.
        decoder.greedy(3)?;
        let count = self.tokens.max(3);
        let mut steps = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            decoder.greedy(count)?;
            steps.push(start.elapsed().as_secs_f64() / count as f64);
        }
        prefills.remove(0);
        prefills.sort_by(f64::total_cmp);
        steps.sort_by(f64::total_cmp);
        Ok(Taken { prefill: prefills[1], step: steps[1] })
    }
}
