//! Runs reference cases on every engine of this machine and says how far the results are from the float64 references.

#[macro_use]
mod kinds_macro;

mod arguments;
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
// The tests use more of it than this example.
#[allow(dead_code)]
mod harness;
mod kinds;
mod output;

use std::process::ExitCode;

use harness::engines::engines;
use harness::suite::{Loaded, cases};
use indicatif::{ProgressBar, ProgressStyle};
use kinds::table as engine_table;

use arguments::{Arguments, Asked};
use output::{Line, Totals};

fn main() -> ExitCode {
    let arguments = match common::words().and_then(Arguments::parse) {
        Ok(Asked::Help) => {
            say!("{}", arguments::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Run(arguments)) => arguments,
        Err(why) => {
            eprintln!("check: {why}; see --help");
            return ExitCode::from(2);
        }
    };
    let mut totals = Totals::default();
    check(&arguments, &mut totals);
    totals.finish(arguments.json)
}

/// Reads and runs every case that was asked for.
fn check(arguments: &Arguments, totals: &mut Totals) {
    let mut paths = Vec::new();
    for path in &arguments.paths {
        match cases(path) {
            Ok(found) => paths.extend(found),
            Err(why) => totals.malformed(&why),
        }
    }
    let entries: Vec<_> = engines().into_iter().filter(|e| arguments.wants(e.name, e.isa)).collect();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").expect("a template of known keys");
    let bar = ProgressBar::new(paths.len() as u64).with_style(style);
    for path in &paths {
        let loaded = match Loaded::read(path) {
            Ok(loaded) => loaded,
            Err(why) => {
                bar.suspend(|| totals.malformed(&why));
                continue;
            }
        };
        bar.set_message(loaded.name.clone());
        let Some(problem) = &loaded.problem else {
            bar.suspend(|| totals.skipped(&loaded, arguments.json));
            continue;
        };
        for (entry, &dtype) in entries.iter().flat_map(|e| problem.dtypes().iter().map(move |d| (e, d))) {
            match problem.on(entry, dtype) {
                Ok(findings) => {
                    let line = Line { case: &loaded.name, op: &loaded.op, entry, dtype, findings: &findings };
                    bar.suspend(|| totals.line(&line, arguments.json));
                }
                Err(why) => {
                    bar.suspend(|| totals.malformed(&format!("{}: {why}", path.display())));
                    break;
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
}
