//! The training run: batches, steps, checkpoints, judging, the loss curve.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use selective_scan::Error;
use selective_scan::block::HostEngine;
#[cfg(feature = "cuda")]
use selective_scan::cuda::Cuda;
use selective_scan::element::Dtype;
use selective_scan::model::{
    AdamW, AdamWOptions, BYTE_VOCAB, Checkpoint, LmMemory, Loss, MambaLm, ModelConfig, ModelState, Parameters, Rng, Schedule,
    bytes_to_tokens, expected, init, load, save,
};
#[cfg(feature = "cuda")]
use selective_scan::model::{GpuLm, GpuMemory, GpuParameters, GpuState, GpuTrainer};
use selective_scan::par::Par;

/// The checkpoint's name in the folder of a run.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The loss curve's name.
pub const CURVE: &str = "loss.tsv";
/// Bytes that are judged in one call; the state is carried from one to the next.
const WINDOW: usize = 8192;
/// Steps whose mean loss makes one line of the curve.
const LINE: u64 = 10;
/// The last rate over the largest.
const FLOOR: f64 = 0.05;
/// The most bytes of one step, and the most parameters: what takes more memory than that is a slip of the keyboard.
const MOST_BYTES: usize = 1 << 24;
const MOST_PARAMETERS: usize = 1 << 30;

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    pub data: PathBuf,
    pub valid: PathBuf,
    pub out: PathBuf,
    pub resume: bool,
    pub layers: usize,
    pub dim: usize,
    pub state: usize,
    pub batch: usize,
    pub seqlen: usize,
    pub steps: u64,
    pub rate: f64,
    pub warmup: u64,
    pub weight_decay: f64,
    pub clip: f64,
    pub seed: u64,
    pub checkpoint_every: u64,
    pub eval_every: u64,
    pub time_limit: Option<f64>,
}

/// What a caller may show.
pub enum Event {
    /// A step is done: its loss in bits a byte, bytes a second.
    Step { done: u64, bits: f64, speed: f64 },
    /// The validation text was judged.
    Judged { done: u64, bits: f64 },
}

/// Why a run ends early.
#[derive(Debug)]
pub enum Fault {
    /// An option or file is wrong.
    Operand(String),
    /// The work itself failed.
    Work(String),
}

fn work(error: impl ToString) -> Fault {
    Fault::Work(error.to_string())
}

fn operand(error: impl ToString) -> Fault {
    Fault::Operand(error.to_string())
}

/// How a run ended.
pub struct Summary {
    pub step: u64,
    pub bits: f64,
}

impl Options {
    fn check(&self) -> Result<(), Fault> {
        let sizes = [
            ("batch", self.batch),
            ("seqlen", self.seqlen),
            ("checkpoint-every", self.checkpoint_every as usize),
            ("eval-every", self.eval_every as usize),
        ];
        match sizes.into_iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(operand(format!("--{name} is at least 1"))),
            None if self.batch.saturating_mul(self.seqlen) > MOST_BYTES => {
                Err(operand(format!("--batch times --seqlen is {}, at most {MOST_BYTES} is taken", self.batch.saturating_mul(self.seqlen))))
            }
            None if !(self.rate > 0.0 && self.rate.is_finite()) => Err(operand("--lr is a finite number above 0")),
            None if self.time_limit.is_some_and(|limit| limit.is_nan() || limit < 0.0) => {
                Err(operand("--time-limit is a number of at least 0"))
            }
            None if self.out.as_os_str().is_empty() => Err(operand("--out is the name of a folder")),
            None => self.check_parameters(),
        }
    }

    /// Refuses a model that is too large before any of it is made.
    fn check_parameters(&self) -> Result<(), Fault> {
        let sizes = self.config().sizes().map_err(operand)?;
        let count: usize = expected(&sizes).iter().map(|spec| spec.dims.iter().product::<usize>()).sum();
        if count > MOST_PARAMETERS {
            return Err(operand(format!("--layers, --dim and --state make {count} parameters, at most {MOST_PARAMETERS} are taken")));
        }
        Ok(())
    }

    fn config(&self) -> ModelConfig {
        ModelConfig {
            vocab_size: BYTE_VOCAB,
            hidden_size: self.dim,
            intermediate_size: self.dim.saturating_mul(2),
            state_size: self.state,
            num_hidden_layers: self.layers,
            time_step_rank: self.dim.div_ceil(16),
            rescale_prenorm_residual: true,
            bos_token_id: None,
            eos_token_id: Vec::new(),
            pad_token_id: None,
            ..ModelConfig::default()
        }
    }

    /// What must be the same when a run is resumed, and the data's length.
    fn notes(&self, data: usize) -> serde_json::Map<String, serde_json::Value> {
        let value = serde_json::json!({
            "batch": self.batch, "seqlen": self.seqlen, "steps": self.steps, "rate": self.rate, "warmup": self.warmup,
            "seed": self.seed, "data": data,
        });
        value.as_object().cloned().unwrap_or_default()
    }

    fn fresh(&self, data: usize) -> Result<Checkpoint, Fault> {
        let config = self.config();
        let parameters = init::<f32>(&config, self.seed).map_err(operand)?;
        let how = AdamWOptions { weight_decay: self.weight_decay, clip: self.clip, ..AdamWOptions::default() };
        let optimizer = AdamW::new(how, &parameters).map_err(operand)?;
        let rng = Rng::keyed(self.seed, "batches").state();
        Ok(Checkpoint { config, parameters, optimizer, rng, position: 0, notes: self.notes(data) })
    }

    /// The run's state: fresh, or from the folder's checkpoint.
    fn begin(&self, data: usize) -> Result<Checkpoint, Fault> {
        let (path, fresh) = (self.out.join(CHECKPOINT), self.fresh(data)?);
        if !self.resume {
            return match path.exists() {
                true => Err(operand(format!("{} is there: --resume goes on from it", path.display()))),
                false => Ok(fresh),
            };
        }
        if !path.exists() {
            return Ok(fresh);
        }
        let found = Checkpoint::load(&path).map_err(operand)?;
        let same = found.notes == fresh.notes && found.config == fresh.config && found.optimizer.options == fresh.optimizer.options;
        if same { Ok(found) } else { Err(operand(format!("{} is of a run with other options", path.display()))) }
    }
}

fn text(path: &Path, least: usize) -> Result<Vec<u32>, Fault> {
    let fault = |error: &dyn std::fmt::Display| operand(format!("{}: {error}", path.display()));
    // A pipe or a device may never end.
    if !fs::metadata(path).map_err(|error| fault(&error))?.is_file() {
        return Err(fault(&"is not a regular file"));
    }
    let bytes = fs::read(path).map_err(|error| fault(&error))?;
    if bytes.len() < least {
        return Err(operand(format!("{} has {} bytes, at least {least} are wanted", path.display(), bytes.len())));
    }
    Ok(bytes_to_tokens(&bytes))
}

/// Random windows of the text and the bytes that follow theirs.
fn draw(text: &[u32], options: &Options, rng: &mut Rng, tokens: &mut Vec<u32>, targets: &mut Vec<u32>) {
    tokens.clear();
    targets.clear();
    for _ in 0..options.batch {
        let at = rng.below((text.len() - options.seqlen) as u64) as usize;
        tokens.extend(&text[at..at + options.seqlen]);
        targets.extend(&text[at + 1..at + options.seqlen + 1]);
    }
}

/// Bits a byte on a whole text, read as one sequence.
pub fn judge<E: HostEngine>(
    model: &MambaLm<E>,
    parameters: &Parameters<f32>,
    text: &[u32],
    memory: &mut LmMemory<f32>,
) -> Result<f64, Fault> {
    let mut state = ModelState::zeros(model.sizes(), 1);
    in_windows(text, |tokens, targets| model.loss(parameters, tokens, targets, 1, Some(&mut state), memory))
}

/// Bits a byte on a text, by its windows one after another.
fn in_windows(text: &[u32], mut loss: impl FnMut(&[u32], &[u32]) -> Result<Loss, Error>) -> Result<f64, Fault> {
    let (mut sum, mut count) = (0.0, 0);
    let (tokens, targets) = (&text[..text.len() - 1], &text[1..]);
    for (tokens, targets) in tokens.chunks(WINDOW).zip(targets.chunks(WINDOW)) {
        let loss = loss(tokens, targets).map_err(work)?;
        (sum, count) = (sum + loss.sum, count + loss.count);
    }
    Ok(sum / count as f64 * std::f64::consts::LOG2_E)
}

/// A saved model of bytes.
fn load_bytes(folder: &Path) -> Result<(ModelConfig, Parameters<f32>), Fault> {
    let (config, parameters) = load::<f32>(folder).map_err(operand)?;
    if config.vocab_size != BYTE_VOCAB {
        return Err(operand(format!("{}: its vocabulary is {}, wanted bytes, {BYTE_VOCAB}", folder.display(), config.vocab_size)));
    }
    Ok((config, parameters))
}

/// Bits a byte of a saved model on a whole text.
pub fn judge_folder<E: HostEngine>(engine: E, par: Par, folder: &Path, valid: &Path) -> Result<f64, Fault> {
    let (config, parameters) = load_bytes(folder)?;
    let (valid, model) = (text(valid, 2)?, MambaLm::new(config, engine, par).map_err(operand)?);
    judge(&model, &parameters, &valid, &mut LmMemory::default())
}

/// As [`judge_folder`], on a GPU.
#[cfg(feature = "cuda")]
pub fn judge_folder_on(engine: Cuda, folder: &Path, valid: &Path) -> Result<f64, Fault> {
    let (config, parameters) = load_bytes(folder)?;
    let (valid, model) = (text(valid, 2)?, GpuLm::new(config, engine).map_err(operand)?);
    let parameters = GpuParameters::upload(model.engine(), &parameters).map_err(work)?;
    let mut memory = GpuMemory::new(model.engine()).map_err(work)?;
    let mut state = GpuState::zeros(model.engine(), model.sizes(), 1).map_err(work)?;
    in_windows(&valid, |tokens, targets| model.loss(&parameters, tokens, targets, 1, Some(&mut state), &mut memory))
}

/// A model in training with its optimiser, on any engine.
pub trait Trainer {
    /// One step; the loss before it.
    fn step(&mut self, tokens: &[u32], targets: &[u32], batch: usize, rate: f64) -> Result<Loss, Error>;

    /// Bits a byte on a whole text.
    fn judge(&mut self, text: &[u32]) -> Result<f64, Fault>;

    /// Parameters and optimiser as they are, for a file.
    fn current(&self) -> Result<(Parameters<f32>, AdamW), Error>;
}

/// On an engine of this process's memory.
struct HostTrainer<E> {
    model: MambaLm<E>,
    parameters: Parameters<f32>,
    optimizer: AdamW,
    gradients: Parameters<f32>,
    memory: LmMemory<f32>,
}

impl<E: HostEngine> Trainer for HostTrainer<E> {
    fn step(&mut self, tokens: &[u32], targets: &[u32], batch: usize, rate: f64) -> Result<Loss, Error> {
        let loss = self.model.loss_and_gradients(&self.parameters, tokens, targets, batch, &mut self.gradients, &mut self.memory)?;
        self.optimizer.step(&mut self.parameters, &self.gradients, rate)?;
        Ok(loss)
    }

    fn judge(&mut self, text: &[u32]) -> Result<f64, Fault> {
        judge(&self.model, &self.parameters, text, &mut self.memory)
    }

    fn current(&self) -> Result<(Parameters<f32>, AdamW), Error> {
        Ok((self.parameters.clone(), self.optimizer.clone()))
    }
}

#[cfg(feature = "cuda")]
impl Trainer for GpuTrainer {
    fn step(&mut self, tokens: &[u32], targets: &[u32], batch: usize, rate: f64) -> Result<Loss, Error> {
        GpuTrainer::step(self, tokens, targets, batch, rate)?;
        Ok(self.report()?.loss)
    }

    fn judge(&mut self, text: &[u32]) -> Result<f64, Fault> {
        let mut state = GpuState::zeros(self.model().engine(), self.model().sizes(), 1).map_err(work)?;
        in_windows(text, |tokens, targets| self.loss(tokens, targets, 1, Some(&mut state)))
    }

    fn current(&self) -> Result<(Parameters<f32>, AdamW), Error> {
        self.download()
    }
}

/// The loss curve: lines `step, kind, bits a byte, rate, seconds of this process`.
struct Curve {
    path: PathBuf,
    text: String,
    start: Instant,
    sum: f64,
}

impl Curve {
    /// The lines up to a step that a file already has.
    fn begin(out: &Path, step: u64) -> Curve {
        let path = out.join(CURVE);
        let old = fs::read_to_string(&path).unwrap_or_default();
        let keep = |line: &&str| line.split('\t').next().and_then(|n| n.parse().ok()).is_some_and(|n: u64| n <= step);
        let mut text = String::from("step\ttext\tbits_per_byte\trate\tseconds\n");
        old.lines().filter(keep).for_each(|line| text.extend([line, "\n"]));
        Curve { path, text, start: Instant::now(), sum: 0.0 }
    }

    fn write(&self) -> Result<(), Fault> {
        fs::write(&self.path, &self.text).map_err(|error| work(format!("{}: {error}", self.path.display())))
    }

    fn line(&mut self, step: u64, kind: &str, bits: f64, rate: f64) -> Result<(), Fault> {
        let seconds = self.start.elapsed().as_secs_f64();
        writeln!(self.text, "{step}\t{kind}\t{bits:.4}\t{rate:.3e}\t{seconds:.1}").map_err(work)?;
        self.write()
    }
}

/// Trains; `show` sees what happens.
pub fn train<E: HostEngine>(engine: E, par: Par, options: &Options, show: impl FnMut(Event)) -> Result<Summary, Fault> {
    let make = |run: &Checkpoint| {
        let (parameters, optimizer) = (run.parameters.clone(), run.optimizer.clone());
        let (model, gradients) = (MambaLm::new(run.config.clone(), engine, par)?, parameters.zeros_like());
        Ok(HostTrainer { model, parameters, optimizer, gradients, memory: LmMemory::default() })
    };
    train_by(make, options, show)
}

/// As [`train`], on a GPU. Its checkpoints and models are the same files.
#[cfg(feature = "cuda")]
pub fn train_on(engine: Cuda, options: &Options, show: impl FnMut(Event)) -> Result<Summary, Fault> {
    let make = |run: &Checkpoint| GpuTrainer::new(GpuLm::new(run.config.clone(), engine)?, &run.parameters, &run.optimizer);
    train_by(make, options, show)
}

/// Brings a checkpoint up to the trainer's present state, and writes it.
fn store(run: &mut Checkpoint, trainer: &impl Trainer, path: &Path) -> Result<(), Fault> {
    (run.parameters, run.optimizer) = trainer.current().map_err(work)?;
    run.save(path).map_err(work)
}

fn train_by<T: Trainer>(
    make: impl FnOnce(&Checkpoint) -> Result<T, Error>,
    options: &Options,
    mut show: impl FnMut(Event),
) -> Result<Summary, Fault> {
    options.check()?;
    let (data, valid) = (text(&options.data, options.seqlen + 1)?, text(&options.valid, 2)?);
    let mut run = options.begin(data.len())?;
    fs::create_dir_all(&options.out).map_err(|error| operand(format!("{}: {error}", options.out.display())))?;
    let path = options.out.join(CHECKPOINT);
    let mut trainer = make(&run).map_err(operand)?;
    let schedule = Schedule { peak: options.rate, floor: options.rate * FLOOR, warmup: options.warmup, total: options.steps };
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    let mut curve = Curve::begin(&options.out, run.position);
    // A folder that cannot be written is found now and not after many steps.
    curve.write()?;
    let began = (Instant::now(), run.position);
    let late = || options.time_limit.is_some_and(|limit| began.0.elapsed().as_secs_f64() >= limit);
    while run.position < options.steps && !late() {
        let mut rng = Rng::new(run.rng);
        draw(&data, options, &mut rng, &mut tokens, &mut targets);
        let rate = schedule.rate(run.position);
        let loss = trainer.step(&tokens, &targets, options.batch, rate).map_err(work)?;
        (run.rng, run.position) = (rng.state(), run.position + 1);
        let speed = ((run.position - began.1) as usize * tokens.len()) as f64 / began.0.elapsed().as_secs_f64();
        show(Event::Step { done: run.position, bits: loss.bits(), speed });
        curve.sum += loss.bits();
        if run.position.is_multiple_of(LINE) {
            let mean = core::mem::take(&mut curve.sum) / LINE as f64;
            curve.line(run.position, "train", mean, rate)?;
        }
        if run.position.is_multiple_of(options.checkpoint_every) {
            store(&mut run, &trainer, &path)?;
        }
        if run.position.is_multiple_of(options.eval_every) && run.position < options.steps {
            let bits = trainer.judge(&valid)?;
            curve.line(run.position, "valid", bits, rate)?;
            show(Event::Judged { done: run.position, bits });
        }
    }
    store(&mut run, &trainer, &path)?;
    let bits = trainer.judge(&valid)?;
    curve.line(run.position, "valid", bits, schedule.rate(run.position))?;
    save(&options.out, &run.config, &run.parameters, Dtype::F16).map_err(work)?;
    Ok(Summary { step: run.position, bits })
}
