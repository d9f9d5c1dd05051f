//! What this machine has, and which engine the planner picks for a problem, and why.

#[allow(dead_code)]
#[path = "common/mod.rs"]
mod common;

use std::process::ExitCode;

use selective_scan::arch::Isa;
use selective_scan::plan::{Machine, Plan, Problem};
use selective_scan::scan::ScanProblem;
use selective_scan::selective::{SelectiveOptions, SelectiveProblem};

const HELP: &str = "\
Shows the instruction sets and threads of this machine, and which engine the planner picks for a problem.

    cargo run --release --example engines -- [OPTIONS]

    --batch N    rows of the batch, 1 by default
    --seqlen N   steps; 1 is a decode step; 2048 by default
    --dim N      channels, 1536 by default
    --dstate N   states a channel, 16 by default; 0 plans the plain recurrence of layer 1
    --help       this text

The environment variable SELECTIVE_SCAN_ISA=portable|neon|avx2|avx512 caps the instruction sets.
Exit status: 0, or 2 where the command line or that variable is wrong.";

/// The sizes of the problem: B, L, D, N.
struct Sizes([usize; 4]);

impl Sizes {
    /// Reads the command line; None where help was asked for. `Err` is one sentence.
    fn parse(given: Vec<String>) -> Result<Option<Sizes>, String> {
        let mut given = given.into_iter();
        let mut sizes = [1, 2048, 1536, 16];
        while let Some(option) = given.next() {
            let at = match option.as_str() {
                "--batch" => 0,
                "--seqlen" => 1,
                "--dim" => 2,
                "--dstate" => 3,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("{option} is not an option")),
            };
            let value = given.next().ok_or_else(|| format!("{option} wants a number"))?;
            sizes[at] = value.parse().map_err(|_| format!("{option} wants a number, not `{value}`"))?;
        }
        if sizes[2] == 0 { Err("--dim wants at least one channel".into()) } else { Ok(Some(Sizes(sizes))) }
    }

    fn problem(&self) -> Problem {
        let [batch, seqlen, dim, dstate] = self.0;
        if dstate == 0 {
            return Problem::Scan(ScanProblem { batch, seqlen, dim });
        }
        let (groups_b, groups_c, options) = (Some(1), Some(1), SelectiveOptions { delta_softplus: true, ..Default::default() });
        Problem::Selective(SelectiveProblem { batch, seqlen, dim, dstate, states: batch, groups_b, groups_c, options })
    }
}

/// The GPU, how it multiplies, and how it would run the problem.
#[cfg(feature = "cuda")]
fn gpu(sizes: &Sizes) {
    use selective_scan::cuda::Cuda;
    let engine = match Cuda::new(0) {
        Ok(engine) => engine,
        Err(why) => return say!("gpu         none: {why}"),
    };
    let card = engine.properties();
    let (major, minor) = card.capability;
    say!(
        "gpu         {}, compute capability {major}.{minor}, driver for CUDA {}.{}",
        card.name,
        card.driver / 1000,
        card.driver % 1000 / 10
    );
    say!("products    {}", engine.products_line());
    let regime = match sizes.problem() {
        Problem::Selective(problem) => engine.selective_regime(&problem),
        Problem::Scan(problem) => engine.scan_regime(problem),
    };
    say!("on the gpu  {regime:?}: {}", regime.why());
}

#[cfg(not(feature = "cuda"))]
fn gpu(_sizes: &Sizes) {
    say!("gpu         not looked for: this build is without the feature `cuda`");
}

fn show(sizes: &Sizes, machine: &Machine) {
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
    gpu(sizes);
    say!("engines     naive (the specification), blelloch (a tree over time), cpu (fused SIMD), cuda (PTX, with its feature)");
    let [batch, seqlen, dim, dstate] = sizes.0;
    say!(
        "\nfor B = {batch}, L = {seqlen}, D = {dim}, {}:",
        if dstate == 0 { "a plain recurrence".into() } else { format!("N = {dstate}") }
    );
    say!("{}", Plan::new(sizes.problem(), machine));
}

fn main() -> ExitCode {
    let sizes = match common::words().and_then(Sizes::parse) {
        Ok(Some(sizes)) => sizes,
        Ok(None) => {
            say!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("engines: {why}; see --help");
            return ExitCode::from(2);
        }
    };
    match Machine::here() {
        Ok(machine) => {
            show(&sizes, &machine);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("engines: {why}");
            ExitCode::from(2)
        }
    }
}
