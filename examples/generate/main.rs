//! Streams text from a byte-level Mamba model.

#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Arguments, Failure};
use selective_scan::block::HostEngine;
use selective_scan::model::{
    BYTE_VOCAB, Generation, LanguageModel, MambaLm, ModelConfig, Parameters, Sampler, Sampling, Utf8Stream, bytes_to_tokens, generate, load,
};
use selective_scan::par::Par;

/// The checked-in model, relative to the repository.
const MODEL: &str = "models/shakespeare";

const HELP: &str = "\
Streams text from a byte-level Mamba model.

    cargo run --release --example generate -- [OPTIONS]

    --prompt TEXT     text to go on from; \"ROMEO:\" by default
    --tokens N        bytes to write, 600 by default
    --model DIR       a model in the published layout with a vocabulary of 256; models/shakespeare by default
    --engine NAME     naive, blelloch, cpu (default), or cuda: a GPU, in builds with --features cuda
    --seed N          of the draws, 1 by default
    --temperature X   0 takes the likeliest byte each time; 0.8 by default
    --top-k N         draw from the N likeliest only
    --top-p X         draw from the likeliest that together reach probability X; 0.95 by default
    --help            this text

Exit status: 0, 1 where generation fails, 2 where the command line or the model is wrong.";

const NAMES: [&str; 8] = ["prompt", "tokens", "model", "engine", "seed", "temperature", "top-k", "top-p"];

struct Options {
    prompt: String,
    model: PathBuf,
    engine: String,
    how: Generation,
}

impl Options {
    fn new(given: &Arguments) -> Result<Options, String> {
        let sampling =
            Sampling { temperature: given.or("temperature", 0.8)?, top_k: given.get("top-k")?, top_p: Some(given.or("top-p", 0.95)?) };
        // Said before a byte is written, not in the middle of the text.
        Sampler::new(sampling, 0).map_err(|error| error.to_string())?;
        let prompt = given.or("prompt", "ROMEO:".to_string())?;
        if prompt.is_empty() {
            return Err("--prompt wants at least one byte".into());
        }
        Ok(Options {
            prompt,
            model: given.get("model")?.unwrap_or_else(default_model),
            engine: given.or("engine", "cpu".to_string())?,
            how: Generation { tokens: given.or("tokens", 600)?, sampling, seed: given.or("seed", 1)?, stop_at_eos: false },
        })
    }
}

/// The model below the working directory, else below the source of this example.
fn default_model() -> PathBuf {
    let here = PathBuf::from(MODEL);
    if here.exists() { here } else { Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL) }
}

/// The model that was asked for.
fn read(options: &Options) -> Result<(ModelConfig, Parameters<f32>), Failure> {
    let (config, parameters) = load::<f32>(&options.model).map_err(Failure::usage)?;
    if config.vocab_size != BYTE_VOCAB {
        let why = format!("{}: its vocabulary is {}, this example writes bytes, {BYTE_VOCAB}", options.model.display(), config.vocab_size);
        return Err(Failure::usage(why));
    }
    Ok((config, parameters))
}

fn host<E: HostEngine>(engine: E, par: Par, isa: &str, options: &Options) -> Result<(), Failure> {
    let (config, parameters) = read(options)?;
    let model = MambaLm::new(config, engine, par).map_err(Failure::usage)?;
    stream(&model, &parameters, isa, options)
}

#[cfg(feature = "cuda")]
fn gpu(engine: selective_scan::cuda::Cuda, options: &Options) -> Result<(), Failure> {
    use selective_scan::model::{GpuLm, GpuParameters};
    let (config, parameters) = read(options)?;
    let how = format!("{}, products by {}", engine.properties().name, engine.products_line());
    let parameters = GpuParameters::upload(&engine, &parameters).map_err(Failure::work)?;
    let model = GpuLm::new(config, engine).map_err(Failure::usage)?;
    stream(&model, &parameters, &how, options)
}

/// Writes text as it is drawn, and at the end how fast that was.
fn stream<M: LanguageModel<P>, P>(model: &M, parameters: &P, how: &str, options: &Options) -> Result<(), Failure> {
    let prompt = bytes_to_tokens(options.prompt.as_bytes());
    let mut out = std::io::stdout().lock();
    let mut failed = None;
    // A reader that went away, as `head` does, ends the text without a complaint.
    let mut write = |text: &str, failed: &mut Option<std::io::Error>| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            *failed = Some(error);
            ControlFlow::Break(())
        }
    };
    let mut text = Utf8Stream::new();
    if write(&options.prompt, &mut failed).is_break() {
        return ended(failed);
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    let texts = generate(model, parameters, &[&prompt], &options.how, |_, token| {
        times.push(Instant::now());
        write(&text.push(&[token as u8]), &mut failed)
    });
    let seconds = start.elapsed().as_secs_f64();
    let count = texts.map_err(|error| Failure::work(format!("{}: {error}", options.model.display())))?[0].len();
    let _ = write(&text.finish(), &mut failed);
    let (engine, speed, each) = (&options.engine, count as f64 / seconds, median(&times).as_secs_f64() * 1e6);
    let _ = write(&format!("\n\nengine {engine}, {how}, {count} tokens, {speed:.0} tokens/s, {each:.0} µs a token\n"), &mut failed);
    ended(failed)
}

/// The middle one of the times between tokens: the prompt and what is done once are not in it.
fn median(times: &[Instant]) -> Duration {
    let mut gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied().unwrap_or_default()
}

fn ended(failed: Option<std::io::Error>) -> Result<(), Failure> {
    match failed {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::work(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}

fn start() -> Result<(), Failure> {
    let given = common::words().and_then(|words| Arguments::parse(words, &NAMES, &[])).map_err(Failure::usage)?;
    let Some(given) = given else {
        say!("{HELP}");
        return Ok(());
    };
    let options = Options::new(&given).map_err(Failure::usage)?;
    with_engine!(options.engine.as_str(), host or gpu, &options)
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("generate: {}", failure.why);
            ExitCode::from(failure.status)
        }
    }
}
