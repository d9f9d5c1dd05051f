//! The command line.

use std::path::PathBuf;

use crate::harness::engines::engines;

/// What `--help` prints.
pub const HELP: &str = "\
Runs reference cases on every engine of this machine, in every storage type, and compares with their float64 results.

    cargo run --release --example check -- CASE.safetensors … | DIRECTORY …

A directory stands for the cases in it; one in the Hugging Face layout with expected.safetensors beside is itself a case, run in
f64 and f32. Each case runs forward and backward, in every memory layout, packed and with padding, in two calls, and as a prefill
followed by decode steps; a model also generates greedily, and on the engine cuda once more with its parameters on the device.

    --engine NAME   only this engine
    --isa NAME      only this instruction set
    --json          one JSON object a line instead of a table
    --help          this text

Exit status: 0 all within bounds, 1 a tensor exceeds its bound, 2 nothing could be checked or a file is malformed.";

/// What is to be done.
#[derive(Debug)]
pub enum Asked {
    Help,
    Run(Arguments),
}

/// What is to be checked, and how it is printed.
#[derive(Debug, Default)]
pub struct Arguments {
    pub paths: Vec<PathBuf>,
    pub json: bool,
    engine: Option<String>,
    isa: Option<String>,
}

impl Arguments {
    /// Reads the command line. `Err` is one sentence.
    pub fn parse(given: Vec<String>) -> Result<Asked, String> {
        let mut given = given.into_iter();
        let mut arguments = Arguments::default();
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--json" => arguments.json = true,
                "--engine" => arguments.engine = Some(given.next().ok_or("--engine wants a name")?),
                "--isa" => arguments.isa = Some(given.next().ok_or("--isa wants a name")?),
                option if option.starts_with('-') => return Err(format!("{option} is not an option")),
                path => arguments.paths.push(path.into()),
            }
        }
        if arguments.paths.is_empty() {
            return Err("no case is given".into());
        }
        let here = engines();
        if !here.iter().any(|e| arguments.wants(e.name, e.isa)) {
            let have: Vec<String> = here.iter().map(|e| format!("{}/{}", e.name, e.isa)).collect();
            let why =
                without_gpu().filter(|_| arguments.engine.as_deref() == Some("cuda")).map_or(String::new(), |why| format!(" ({why})"));
            return Err(format!("no such engine here{why}; this machine has {}", have.join(", ")));
        }
        Ok(Asked::Run(arguments))
    }

    /// Whether an engine at an ISA level is asked for.
    pub fn wants(&self, engine: &str, isa: &str) -> bool {
        self.engine.as_deref().is_none_or(|e| e == engine) && self.isa.as_deref().is_none_or(|i| i == isa)
    }
}

/// Why the engine on a GPU is not in the table, where it is not.
fn without_gpu() -> Option<String> {
    #[cfg(feature = "cuda")]
    return crate::harness::engines::gpu().err().map(|why| why.to_string());
    #[cfg(not(feature = "cuda"))]
    return Some("this build is without the feature `cuda`".into());
}
