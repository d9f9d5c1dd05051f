//! What the tests of this folder share.

use std::path::{Path, PathBuf};

use super::config::{ModelConfig, Sizes};
use super::parameters::Parameters;
use super::rng::Rng;

/// The golden model's folder.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mamba-tiny-hf")
}

/// An empty folder for one test.
pub fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("selective-scan-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    folder
}

/// A small configuration with every size different.
pub fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 37,
        hidden_size: 6,
        intermediate_size: 10,
        state_size: 5,
        num_hidden_layers: 3,
        conv_kernel: 4,
        time_step_rank: 2,
        tie_word_embeddings: false,
        ..ModelConfig::default()
    }
}

/// Random numbers in the structure of a model's parameters.
pub fn random(sizes: &Sizes, seed: u64) -> Parameters<f32> {
    let Ok(random) = Parameters::build::<core::convert::Infallible>(*sizes, |spec| {
        let mut rng = Rng::keyed(seed, &spec.name);
        Ok((0..spec.count()).map(|_| rng.normal() as f32).collect())
    });
    random
}
