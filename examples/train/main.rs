//! Trains a byte-level Mamba model on a text file.

#[path = "../common/mod.rs"]
mod common;
mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Arguments, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use run::{Event, Options, Summary, judge_folder, train};
use selective_scan::block::HostEngine;
#[cfg(feature = "cuda")]
use selective_scan::cuda::Cuda;
use selective_scan::par::Par;

const HELP: &str = "\
Trains a byte-level Mamba language model on a text file, with AdamW, a cosine schedule with warm-up, and gradient clipping.

    cargo run --release --example train -- --data FILE --valid FILE --out DIR [OPTIONS]
    cargo run --release --example train -- --judge DIR --valid FILE

    --data FILE            text to learn
    --valid FILE           text to be judged on: the whole of it, as one sequence
    --out DIR              gets checkpoint.safetensors, loss.tsv and, at the end, the model in the published layout (f16)
    --judge DIR            no training: bits a byte of the model in DIR on the validation text
    --resume               go on from DIR's checkpoint; the result has the same bits as without the interruption
    --layers N             blocks, 4                  --dim N              width, 256
    --state N              states a channel, 16       --batch N            sequences a step, 16
    --seqlen N             bytes a sequence, 256      --steps N            steps in all, 4000
    --lr X                 largest rate, 3e-3         --warmup N           steps of warm-up, 100
    --weight-decay X       on matrices, 0.1           --clip X             largest gradient norm, 1
    --seed N               of everything drawn, 1     --threads N          all cores by default
    --checkpoint-every N   steps, 200                 --eval-every N       steps, 500
    --time-limit SECONDS   save a checkpoint and the model as it is, and stop
    --engine NAME          naive, blelloch, cpu (default), or cuda: a GPU, in builds with --features cuda
    --help                 this text

Exit status: 0, 1 where training fails, 2 where the command line or a file is wrong.";

const NAMES: [&str; 20] = [
    "judge",
    "data",
    "valid",
    "out",
    "layers",
    "dim",
    "state",
    "batch",
    "seqlen",
    "steps",
    "lr",
    "warmup",
    "weight-decay",
    "clip",
    "seed",
    "threads",
    "checkpoint-every",
    "eval-every",
    "time-limit",
    "engine",
];

/// More are no machine's.
const MOST_THREADS: usize = 4096;

fn options(given: &Arguments) -> Result<Options, String> {
    let path = |name: &str| given.get::<PathBuf>(name)?.ok_or_else(|| format!("--{name} is wanted"));
    Ok(Options {
        data: path("data")?,
        valid: path("valid")?,
        out: path("out")?,
        resume: given.has("resume"),
        layers: given.or("layers", 4)?,
        dim: given.or("dim", 256)?,
        state: given.or("state", 16)?,
        batch: given.or("batch", 16)?,
        seqlen: given.or("seqlen", 256)?,
        steps: given.or("steps", 4000)?,
        rate: given.or("lr", 3e-3)?,
        warmup: given.or("warmup", 100)?,
        weight_decay: given.or("weight-decay", 0.1)?,
        clip: given.or("clip", 1.0)?,
        seed: given.or("seed", 1)?,
        checkpoint_every: given.or("checkpoint-every", 200)?,
        eval_every: given.or("eval-every", 500)?,
        time_limit: given.get("time-limit")?,
    })
}

fn show<E: HostEngine>(engine: E, par: Par, isa: &str, options: &Options) -> Result<(), Failure> {
    let bar = bar(options);
    let last = train(engine, par, options, |event| draw(&bar, isa, event))?;
    finish(&bar, options, &last);
    Ok(())
}

#[cfg(feature = "cuda")]
fn show_on(engine: Cuda, options: &Options) -> Result<(), Failure> {
    let (bar, how) = (bar(options), format!("{}, products by {}", engine.properties().name, engine.products_line()));
    let last = run::train_on(engine, options, |event| draw(&bar, &how, event))?;
    finish(&bar, options, &last);
    Ok(())
}

fn bar(options: &Options) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} left {eta} {msg}").expect("a template of known keys");
    ProgressBar::new(options.steps).with_style(style)
}

fn draw(bar: &ProgressBar, how: &str, event: Event) {
    match event {
        Event::Step { done, bits, speed, .. } => {
            bar.set_position(done);
            bar.set_message(format!("{bits:.3} bits/byte, {speed:.0} bytes/s, {how}"));
        }
        Event::Judged { done, bits } => bar.suspend(|| say!("step {done}: {bits:.4} bits a byte on the validation text")),
    }
}

fn finish(bar: &ProgressBar, options: &Options, last: &Summary) {
    bar.finish_and_clear();
    say!(
        "{} of {} steps, {:.4} bits a byte on the validation text, model in {}",
        last.step,
        options.steps,
        last.bits,
        options.out.display()
    );
}

fn judged<E: HostEngine>(engine: E, par: Par, _: &str, folder: &Path, valid: &Path) -> Result<(), Failure> {
    say_judged(judge_folder(engine, par, folder, valid)?, folder, valid);
    Ok(())
}

#[cfg(feature = "cuda")]
fn judged_on(engine: Cuda, folder: &Path, valid: &Path) -> Result<(), Failure> {
    say_judged(run::judge_folder_on(engine, folder, valid)?, folder, valid);
    Ok(())
}

fn say_judged(bits: f64, folder: &Path, valid: &Path) {
    say!("{bits:.4} bits a byte on {}, model in {}", valid.display(), folder.display());
}

impl From<run::Fault> for Failure {
    fn from(fault: run::Fault) -> Failure {
        match fault {
            run::Fault::Operand(why) => Failure::usage(why),
            run::Fault::Work(why) => Failure::work(why),
        }
    }
}

fn start() -> Result<(), Failure> {
    let given = common::words().and_then(|words| Arguments::parse(words, &NAMES, &["resume"])).map_err(Failure::usage)?;
    let Some(given) = given else {
        say!("{HELP}");
        return Ok(());
    };
    if let Some(threads) = given.get::<usize>("threads").map_err(Failure::usage)? {
        if threads > MOST_THREADS {
            return Err(Failure::usage(format!("--threads is {threads}, at most {MOST_THREADS} are taken")));
        }
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(Failure::work)?;
    }
    let name = given.or("engine", "cpu".to_string()).map_err(Failure::usage)?;
    if let Some(folder) = given.get::<PathBuf>("judge").map_err(Failure::usage)? {
        let valid = given.get::<PathBuf>("valid").map_err(Failure::usage)?.ok_or_else(|| Failure::usage("--valid is wanted"))?;
        return with_engine!(name.as_str(), judged or judged_on, &folder, &valid);
    }
    let options = options(&given).map_err(Failure::usage)?;
    with_engine!(name.as_str(), show or show_on, &options)
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("train: {}", failure.why);
            ExitCode::from(failure.status)
        }
    }
}
