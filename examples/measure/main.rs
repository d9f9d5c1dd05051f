//! Times any operator of this library on this machine.

#[path = "../../benches/common/mod.rs"]
mod bench;
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod models;
mod operators;
mod options;

use std::process::ExitCode;

use bench::shape;
use operators::{Machine, measure};
use options::{Asked, HELP, OPERATORS, parse};

fn start() -> Result<bool, String> {
    let (all, json) = match common::words().and_then(parse)? {
        Asked::Help => {
            say!("{HELP}");
            return Ok(true);
        }
        Asked::List => {
            for (name, shape, what) in OPERATORS {
                say!("{name:<24} {:<24} {what}", shape.to_string());
            }
            return Ok(true);
        }
        Asked::Measure(all, json) => (all, json),
    };
    let (machine, mut done) = (Machine::default(), true);
    for options in &all {
        match measure(options, &machine) {
            Ok(lines) if json => lines.iter().for_each(|line| say!("{}", line.json())),
            Ok(lines) => lines.iter().for_each(|line| say!("{line}")),
            Err(why) => {
                eprintln!("measure: {} {}: {why}", options.op, options.shape);
                done = false;
            }
        }
    }
    Ok(done)
}

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("measure: {why}");
            ExitCode::from(2)
        }
    }
}
