//! What this machine has, and which engine the planner picks for a problem, and why.

#[allow(dead_code)]
#[path = "common/mod.rs"]
mod common;

use std::process::ExitCode;

use selective_scan::arch::Isa;
use selective_scan::element::Dtype;
use selective_scan::plan::{Machine, Plan, Problem};
use selective_scan::scan::ScanProblem;
use selective_scan::selective::{SelectiveOptions, SelectiveProblem};

const HELP: &str = "\
Shows the instruction sets, the threads and the GPU of this machine, and which engine the planner picks for a problem.

    cargo run --release --example engines -- [OPTIONS]

    --engine NAME   only what concerns this engine, naive, blelloch, cpu or cuda; all of them by default
    --batch N    rows of the batch, 1 by default
    --seqlen N   steps; 1 is a decode step; 2048 by default
    --dim N      channels, 1536 by default
    --dstate N   states a channel, 16 by default; 0 plans the plain recurrence of layer 1
    --type T     how inputs are stored, f32, f64, f16 or bf16; f32 by default; a GPU's plan depends on it
    --multiprocessors N   plans for a GPU of so many, which need not be there
    --help       this text

The environment variable SELECTIVE_SCAN_ISA=portable|neon|avx2|avx512 caps the instruction sets.
Exit status: 0, or 2 where the command line or that variable is wrong, or where `--engine cuda` finds no GPU and none is described.";

/// The engines' names, and what they are.
const ENGINES: [(&str, &str); 4] =
    [("naive", "the specification"), ("blelloch", "a tree over time"), ("cpu", "fused SIMD"), ("cuda", "PTX, with its feature")];

/// What is asked.
struct Asked {
    engine: Option<&'static str>,
    /// B, L, D, N.
    sizes: [usize; 4],
    input: Dtype,
    multiprocessors: Option<u32>,
}

impl Asked {
    /// Reads the command line; None where help was asked for. `Err` is one sentence.
    fn parse(given: Vec<String>) -> Result<Option<Asked>, String> {
        let mut given = given.into_iter();
        let mut asked = Asked { engine: None, sizes: [1, 2048, 1536, 16], input: Dtype::F32, multiprocessors: None };
        while let Some(option) = given.next() {
            let names = ["--batch", "--seqlen", "--dim", "--dstate"];
            match option.as_str() {
                "--help" | "-h" => return Ok(None),
                "--type" => {
                    let types = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16];
                    let named = given.next().and_then(|name| types.into_iter().find(|t| t.name() == name));
                    asked.input = named.ok_or("--type wants f32, f64, f16 or bf16")?;
                }
                "--engine" => {
                    let named = given.next().and_then(|name| ENGINES.iter().map(|e| e.0).find(|e| *e == name));
                    asked.engine = Some(named.ok_or("--engine wants naive, blelloch, cpu or cuda")?);
                }
                "--multiprocessors" => asked.multiprocessors = Some(number(&option, given.next())?),
                name => {
                    let at = names.iter().position(|n| *n == name).ok_or_else(|| format!("{option} is not an option"))?;
                    asked.sizes[at] = number(&option, given.next())?;
                }
            }
        }
        if asked.sizes[2] == 0 { Err("--dim wants at least one channel".into()) } else { Ok(Some(asked)) }
    }

    /// Whether the host is asked for, and the GPU.
    fn wants(&self) -> [bool; 2] {
        [self.engine != Some("cuda"), self.engine.is_none_or(|engine| engine == "cuda")]
    }

    fn problem(&self) -> Problem {
        let [batch, seqlen, dim, dstate] = self.sizes;
        if dstate == 0 {
            return Problem::Scan(ScanProblem { batch, seqlen, dim });
        }
        let (groups_b, groups_c, options) = (Some(1), Some(1), SelectiveOptions { delta_softplus: true, ..Default::default() });
        Problem::Selective(SelectiveProblem { batch, seqlen, dim, dstate, states: batch, groups_b, groups_c, options })
    }
}

fn number<T: std::str::FromStr>(option: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or_else(|| format!("{option} wants a number"))?;
    value.parse().map_err(|_| format!("{option} wants a number, not `{value}`"))
}

/// The GPU and how it multiplies.
#[cfg(feature = "cuda")]
fn gpu(engine: &Result<selective_scan::cuda::Cuda, selective_scan::Error>) {
    let engine = match engine {
        Ok(engine) => engine,
        Err(why) => return say!("gpu         none: {why}"),
    };
    let card = engine.properties();
    let (major, minor) = card.capability;
    say!(
        "gpu         {}, {} multiprocessors, compute capability {major}.{minor}, driver for CUDA {}.{}",
        card.name,
        card.multiprocessors,
        card.driver / 1000,
        card.driver % 1000 / 10
    );
    say!("products    {}", engine.products_line());
}

/// How a GPU runs the problem: that of this machine, or one that is described.
#[cfg(feature = "cuda")]
fn gpu_plan(asked: &Asked, engine: &Result<selective_scan::cuda::Cuda, selective_scan::Error>) {
    use selective_scan::plan::{Call, Gpu};
    let call = Call { input: asked.input, ..Call::default() };
    let (what, plan) = match (asked.multiprocessors, engine) {
        (Some(multiprocessors), _) => {
            let gpu = Gpu { multiprocessors, capability: (9, 0) };
            (format!("a gpu of {multiprocessors} multiprocessors"), Plan::on_gpu(asked.problem(), call, &gpu))
        }
        (None, Ok(engine)) => ("the gpu".into(), Plan::by_cuda(asked.problem(), call, engine)),
        (None, Err(_)) => return,
    };
    say!("\non {what}, where tensors are there, real and stored as {}:", asked.input.name());
    say!("{plan}");
}

/// The instruction sets and threads.
fn host(machine: &Machine) {
    say!("instruction sets");
    for isa in Isa::ALL {
        let state = match (isa.is_available(), machine.isas.contains(&isa)) {
            (false, _) => "no",
            (true, false) => "switched off by SELECTIVE_SCAN_ISA",
            (true, true) if isa == machine.best() => "yes, in use",
            (true, true) => "yes",
        };
        say!("  {:<9} {state}", isa.name());
    }
    say!("threads     {}", machine.threads);
}

/// `Err` where only the GPU is asked for and there is none.
fn show(asked: &Asked, machine: &Machine) -> Result<(), String> {
    let [on_host, on_gpu] = asked.wants();
    #[cfg(feature = "cuda")]
    let engine = selective_scan::cuda::Cuda::new(0);
    #[cfg(feature = "cuda")]
    if let (false, None, Err(why)) = (on_host, asked.multiprocessors, &engine) {
        return Err(why.to_string());
    }
    #[cfg(not(feature = "cuda"))]
    if !on_host {
        return Err("the engine `cuda` is not in this build, which is without the feature `cuda`".into());
    }
    if on_host {
        host(machine);
    }
    if on_gpu {
        #[cfg(feature = "cuda")]
        gpu(&engine);
        #[cfg(not(feature = "cuda"))]
        say!("gpu         not looked for: this build is without the feature `cuda`");
    }
    let shown = ENGINES.iter().filter(|(name, _)| asked.engine.is_none_or(|engine| engine == *name));
    say!("engines     {}", shown.map(|(name, what)| format!("{name} ({what})")).collect::<Vec<_>>().join(", "));
    let [batch, seqlen, dim, dstate] = asked.sizes;
    say!(
        "\nfor B = {batch}, L = {seqlen}, D = {dim}, {}:",
        if dstate == 0 { "a plain recurrence".into() } else { format!("N = {dstate}") }
    );
    if on_host {
        say!("{}", Plan::new(asked.problem(), machine));
    }
    if on_gpu {
        #[cfg(feature = "cuda")]
        gpu_plan(asked, &engine);
        #[cfg(not(feature = "cuda"))]
        if asked.multiprocessors.is_some() {
            say!("\na gpu's plan wants the feature `cuda`");
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let asked = match common::words().and_then(Asked::parse) {
        Ok(Some(asked)) => asked,
        Ok(None) => {
            say!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("engines: {why}; see --help");
            return ExitCode::from(2);
        }
    };
    match Machine::here().map_err(|why| why.to_string()).and_then(|machine| show(&asked, &machine)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("engines: {why}");
            ExitCode::from(2)
        }
    }
}
