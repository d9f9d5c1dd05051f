//! The command line of `measure`.

use super::common::Arguments;
use super::shape::{Layout, Shape};

/// Operators: name, the usual shape, what is counted as elements.
pub const OPERATORS: [(&str, Shape, &str); 22] = [
    ("selective_scan_fwd", Shape::new([1, 1536, 2048, 16]), "B·L·D·N"),
    ("selective_scan_bwd", Shape::new([1, 1536, 2048, 16]), "B·L·D·N"),
    ("selective_scan_fwd_saving", Shape::new([1, 1536, 2048, 16]), "B·L·D·N"),
    ("selective_scan_bwd_from", Shape::new([1, 1536, 2048, 16]), "B·L·D·N"),
    ("selective_state_update", Shape::new([1, 1536, 1, 16]), "B·D·N; layout bdl is a state of (B, N, D)"),
    ("causal_conv1d_fwd", Shape::new([1, 1536, 2048, 4]), "B·L·D; n is the number of taps"),
    ("causal_conv1d_bwd", Shape::new([1, 1536, 2048, 4]), "B·L·D"),
    ("causal_conv1d_update", Shape::new([1, 1536, 1, 4]), "B·D"),
    ("linear_scan_fwd", Shape::new([1, 1536, 2048, 1]), "B·L·D"),
    ("linear_scan_bwd", Shape::new([1, 1536, 2048, 1]), "B·L·D"),
    ("rms_norm_fwd", Shape::new([1, 768, 2048, 1]), "B·L·D"),
    ("rms_norm_bwd", Shape::new([1, 768, 2048, 1]), "B·L·D"),
    ("linear_fwd", Shape::new([1, 1536, 512, 768]), "multiply-adds: b·l rows, n in, d out"),
    ("linear_bwd", Shape::new([1, 1536, 512, 768]), "multiply-adds of both gradients"),
    ("mamba_block_fwd", Shape::new([1, 1536, 512, 16]), "B·L·D; d is inside the block, d/2 outside"),
    ("mamba_block_bwd", Shape::new([1, 1536, 512, 16]), "B·L·D"),
    ("mamba_block_step", Shape::new([1, 1536, 1, 16]), "B·D"),
    ("exp", Shape::new([1, 2048, 1, 1]), "numbers, always 2048; also softplus and silu"),
    ("softplus", Shape::new([1, 2048, 1, 1]), "numbers"),
    ("silu", Shape::new([1, 2048, 1, 1]), "numbers"),
    ("generate", Shape::new([1, 1536, 512, 16]), "tokens; the shape is a model, rows, prompt: 130m_b1_l512"),
    ("ceilings", Shape::new([1, 1, 1, 1]), "multiply-adds, exponentials, bytes/4"),
];

/// What to print for `--help`.
pub const HELP: &str = "\
Times one operator of this library on this machine, after checking its results against another engine.

    cargo run --release --example measure -- OPERATOR [OPTIONS]

    --engine NAME    cpu (default), naive, blelloch, or cuda in builds with --features cuda
    --isa NAME       portable, neon, avx2 or avx512 for the engine cpu; the best by default
    --shape SHAPE    b1_d1536_l2048_n16: sizes in any order; others are the operator's usual ones
                     for generate 130m_b1_l512: a model of 130m 370m 790m 1.4b 2.8b, rows, tokens of a prompt
    --layout NAME    bld (default: channels are neighbours in memory) or bdl
    --type NAME      of inputs: f32 (default), f64, f16, bf16; for linear_scan also c32
    --weight NAME    of A: as inputs are computed in by default; c32 beside f32; for generate on the engine cpu also bf16, of a decoder's products
    --state NAME     of states of a step: as the weight by default; bf16 beside f32 and bf16, f16 beside f16
    --threads N      of the engine cpu, 1 by default; blelloch's too
    --regime NAME    walk or split: how scans on a GPU are spread; as the engine chooses by default
    --tokens N       steps of generate, 32 by default
    --json           one object a line: op engine isa input weight shape threads ms elements_per_s bytes_per_s ceiling ratio
    --from FILE      every line of a file is such a command line; the same run does them all
    --list           the operators, their usual shapes, and what is counted as elements
    --help           this text

The ceiling is in elements a second, from what the machine does in the same run: multiply-adds of the instruction set and reads of a buffer of
the operands' size on the host; copies, exponentials and floating-point instructions on a GPU, where time is taken by its own events.
Exit status: 0, 1 where something fails, 2 where the command line is wrong.";

const NAMES: [&str; 11] = ["engine", "isa", "shape", "layout", "type", "weight", "state", "threads", "regime", "tokens", "from"];

/// One measurement that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub op: String,
    pub engine: String,
    pub isa: Option<String>,
    /// Sizes; of `generate` those of the prompts.
    pub shape: Shape,
    /// The model of `generate`.
    pub model: String,
    pub input: String,
    pub weight: String,
    pub state: String,
    pub threads: usize,
    pub regime: Option<String>,
    pub tokens: usize,
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    Help,
    List,
    /// Measurements, and whether they are printed as JSON.
    Measure(Vec<Options>, bool),
}

/// Reads a command line. `Err` is one sentence.
pub fn parse(mut words: Vec<String>) -> Result<Asked, String> {
    let op = if words.first().is_some_and(|word| !word.starts_with('-')) { Some(words.remove(0)) } else { None };
    let Some(given) = Arguments::parse(words, &NAMES, &["json", "list"])? else { return Ok(Asked::Help) };
    if given.has("list") {
        return Ok(Asked::List);
    }
    let mut all = Vec::new();
    if let Some(file) = given.get::<String>("from")? {
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
            match parse(line.split_whitespace().map(String::from).collect()).map_err(|e| format!("{file}:{}: {e}", i + 1))? {
                Asked::Measure(some, _) => all.extend(some),
                _ => return Err(format!("{file}:{}: it measures nothing", i + 1)),
            }
        }
    } else if op.is_none() {
        return Err("an operator is wanted; --list shows them".into());
    }
    if let Some(op) = op {
        all.push(Options::new(op, &given)?);
    }
    Ok(Asked::Measure(all, given.has("json")))
}

impl Options {
    fn new(op: String, given: &Arguments) -> Result<Self, String> {
        let known = OPERATORS.iter().find(|(name, ..)| *name == op).ok_or_else(|| format!("`{op}` is no operator; --list shows them"))?;
        let (mut text, mut model) = (given.or("shape", String::new())?, String::from("130m"));
        if op == "generate" {
            let named = text.split('_').next().is_some_and(|first| first.starts_with(|c: char| c.is_ascii_digit()) || first == "tiny");
            if named {
                let (first, rest) = text.split_once('_').map_or((text.clone(), String::new()), |(a, b)| (a.into(), b.into()));
                (model, text) = (first, rest);
            }
        }
        let mut shape = if text.is_empty() { known.1 } else { Shape::parse(&text, known.1)? };
        match given.get::<String>("layout")?.as_deref() {
            None => {}
            Some("bld") => shape.layout = Layout::Bld,
            Some("bdl") => shape.layout = Layout::Bdl,
            Some(other) => return Err(format!("--layout is bld or bdl, not `{other}`")),
        }
        let input = given.or("type", "f32".to_string())?;
        let plain = if input == "f64" { "f64" } else { "f32" };
        let weight = given.or("weight", plain.to_string())?;
        let state = given.or("state", weight.clone())?;
        let threads = given.or("threads", 1)?;
        if threads == 0 {
            return Err("--threads wants at least one".into());
        }
        let engine = given.or("engine", "cpu".to_string())?;
        if !["cpu", "naive", "blelloch", "cuda"].contains(&engine.as_str()) {
            return Err(format!("--engine is cpu, naive, blelloch or cuda, not `{engine}`"));
        }
        let regime = given.get::<String>("regime")?;
        if let Some(other) = regime.as_deref().filter(|name| !["walk", "split"].contains(name)) {
            return Err(format!("--regime is walk or split, not `{other}`"));
        }
        let (isa, tokens) = (given.get("isa")?, given.or("tokens", 32)?);
        Ok(Options { op, engine, isa, shape, model, input, weight, state, threads, regime, tokens })
    }
}
