//! What examples share: the command line, lines on standard output, `--name value` pairs and the choice of an engine.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::str::FromStr;

/// The words after the program's name. `Err` is one sentence about the first that is not UTF-8.
pub fn words() -> Result<Vec<String>, String> {
    let word = |word: std::ffi::OsString| word.into_string().map_err(|word| format!("the argument {word:?} is not UTF-8"));
    std::env::args_os().skip(1).map(word).collect()
}

/// Prints a line. A reader that went away, as `head` does, misses the rest; the work and its exit status stay the same. A full disk ends
/// the program with status 1.
pub fn line(text: fmt::Arguments<'_>) {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("standard output: {error}");
            std::process::exit(1)
        }
        _ => (),
    }
}

/// `println!` by way of [`line`].
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::common::line(format_args!($($text)*)) };
}

/// Options given on a command line.
pub struct Arguments {
    given: BTreeMap<String, String>,
    flags: Vec<String>,
}

impl Arguments {
    /// Reads `--name value` for `options` and `--name` for `flags`; None where help was asked for. `Err` is one sentence.
    pub fn parse(given: Vec<String>, options: &[&str], flags: &[&str]) -> Result<Option<Arguments>, String> {
        let mut given = given.into_iter();
        let mut all = Arguments { given: BTreeMap::new(), flags: Vec::new() };
        while let Some(word) = given.next() {
            if word == "--help" || word == "-h" {
                return Ok(None);
            }
            let name = word.strip_prefix("--").ok_or_else(|| format!("`{word}` is not an option"))?;
            if flags.contains(&name) {
                all.flags.push(name.to_string());
            } else if options.contains(&name) {
                let value = given.next().ok_or_else(|| format!("{word} wants a value"))?;
                if all.given.insert(name.to_string(), value).is_some() {
                    return Err(format!("{word} is given twice"));
                }
            } else {
                return Err(format!("{word} is not an option"));
            }
        }
        Ok(Some(all))
    }

    /// The value of an option, if it was given.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(value) = self.given.get(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| format!("--{name} cannot be `{value}`"))
    }

    /// The value of an option, or a default.
    pub fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    /// Whether a flag was given.
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag == name)
    }
}

/// Why an example ends early: the sentence for stderr and the exit status.
pub struct Failure {
    /// One sentence.
    pub why: String,
    /// 1 where the work failed, 2 where it could not begin.
    pub status: u8,
}

impl Failure {
    /// The work failed.
    pub fn work(why: impl ToString) -> Failure {
        Failure { why: why.to_string(), status: 1 }
    }

    /// The command line or a file it names is wrong.
    pub fn usage(why: impl ToString) -> Failure {
        Failure { why: why.to_string(), status: 2 }
    }
}

/// Calls `$run(engine, par, isa, $arg…)` with the engine of that name, or `$gpu(engine, $arg…)` with a GPU's; an `Err` that lists the names
/// otherwise. `isa` is how the engine computes, for printing.
#[macro_export]
macro_rules! with_engine {
    ($name:expr, $run:ident or $gpu:ident $(, $arg:expr)*) => {{
        use selective_scan::par::Par;
        match $name {
            "naive" => $run(selective_scan::naive::Naive, Par::default(), "scalar", $($arg),*),
            "blelloch" => $run(selective_scan::blelloch::Blelloch::new(), Par::default(), "scalar", $($arg),*),
            // A cap that is not a name is an error here, while the engine itself takes it for none.
            "cpu" => match selective_scan::arch::Isa::cap() {
                Ok(_) => {
                    let engine = selective_scan::cpu::Cpu::new();
                    $run(engine, Par::default(), engine.isa().name(), $($arg),*)
                }
                Err(error) => Err($crate::common::Failure::usage(error)),
            },
            #[cfg(feature = "cuda")]
            "cuda" => match selective_scan::cuda::Cuda::new(0) {
                Ok(engine) => $gpu(engine, $($arg),*),
                Err(error) => Err($crate::common::Failure::usage(error)),
            },
            #[cfg(not(feature = "cuda"))]
            "cuda" => Err($crate::common::Failure::usage("--engine cuda is not in this build, which is made without `--features cuda`")),
            other => Err($crate::common::Failure::usage(format!("--engine is naive, blelloch, cpu or cuda, not `{other}`"))),
        }
    }};
}
