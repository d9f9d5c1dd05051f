//! Mamba models in the published Hugging Face layout: configuration, parameters and files, initialisation, sampling, optimiser, checkpoints.

mod checkpoint;
mod config;
pub mod file;
mod generate;
#[cfg(feature = "cuda")]
mod gpu;
mod init;
mod lm;
mod optimizer;
mod parameters;
mod rng;
mod sample;
#[cfg(test)]
mod testing;
mod text;
mod weights;

pub use checkpoint::{Checkpoint, MAX_NOTES};
pub use config::{ModelConfig, Sizes, StepInit};
pub use generate::{Decode, Generation, LanguageModel, generate};
#[cfg(feature = "cuda")]
pub use gpu::{GpuDecoder, GpuLm, GpuMemory, GpuParameters, GpuState, GpuTrainer, StepReport};
pub use init::init;
pub use lm::{Decoder, IGNORE, LmMemory, Loss, MambaLm, ModelState, Packing};
pub use optimizer::{AdamW, AdamWOptions, Schedule, gradient_norm};
pub use parameters::{Kind, Layer, Parameters, Spec, expected};
pub use rng::Rng;
pub use sample::{Sampler, Sampling, greedy};
pub use text::{BYTE_VOCAB, Utf8Stream, bytes_to_tokens, tokens_to_bytes};
pub use weights::{CONFIG, INDEX, TensorMap, WEIGHTS, from_tensors, load, load_tensors, save};
