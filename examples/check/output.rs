//! What is printed, and the exit status.

use std::process::ExitCode;

use selective_scan::element::Dtype;
use serde_json::{Map, Value, json};

use crate::harness::engines::Entry;
use crate::harness::report::Findings;
use crate::harness::suite::Loaded;
use crate::say;

/// One case on one engine in one storage type.
pub struct Line<'a> {
    pub case: &'a str,
    pub op: &'a str,
    pub entry: &'a Entry,
    pub dtype: Dtype,
    pub findings: &'a Findings,
}

impl Line<'_> {
    fn json(&self) -> Value {
        let tensors: Map<String, Value> = self
            .findings
            .list
            .iter()
            .map(|f| (f.tensor.clone(), json!({ "error": f.worst.error, "share_of_bound": f.worst.used, "seen": f.how })))
            .collect();
        json!({
            "case": self.case, "op": self.op, "engine": self.entry.name, "isa": self.entry.isa, "kernel": self.entry.kernel(self.op),
            "dtype": self.dtype.name(), "seconds": self.findings.seconds,
            "passed": self.findings.exceeding().next().is_none(), "tensors": tensors,
        })
    }

    fn print(&self) {
        let Line { case, entry, dtype, findings, .. } = self;
        let errors: Vec<String> = findings.list.iter().map(|f| format!("{} {:.1e}", f.tensor, f.worst.error)).collect();
        let (engine, isa, milliseconds) = (entry.name, entry.isa, findings.seconds * 1e3);
        say!("{case:36} {engine:9} {isa:9} {:5} {milliseconds:9.2} ms  {}", dtype.name(), errors.join("  "));
        for f in findings.exceeding() {
            say!(
                "  EXCEEDS: `{}` by {:.3} of its bound, error {:.3e} of its largest value ({})",
                f.tensor,
                f.worst.used,
                f.worst.error,
                f.how
            );
        }
    }
}

/// Counts over everything that was asked for.
#[derive(Debug, Default)]
pub struct Totals {
    lines: usize,
    failed: usize,
    malformed: usize,
    skipped: Vec<String>,
}

impl Totals {
    /// One line of the table.
    pub fn line(&mut self, line: &Line<'_>, as_json: bool) {
        if self.lines == 0 && !as_json {
            say!("{:36} {:9} {:9} {:5} {:>12}  worst error over the largest reference", "case", "engine", "isa", "type", "time");
        }
        self.lines += 1;
        self.failed += usize::from(line.findings.exceeding().next().is_some());
        if as_json { say!("{}", line.json()) } else { line.print() }
    }

    /// A file that cannot be checked.
    pub fn malformed(&mut self, why: &str) {
        self.malformed += 1;
        eprintln!("check: {why}");
    }

    /// A case of an operator that is not built yet.
    pub fn skipped(&mut self, case: &Loaded, as_json: bool) {
        let name = format!("{} ({})", case.name, case.op);
        if as_json {
            say!("{}", json!({ "case": case.name, "op": case.op, "skipped": true }));
        }
        self.skipped.push(name);
    }

    /// Prints the sums; the exit status.
    pub fn finish(self, as_json: bool) -> ExitCode {
        if !as_json {
            say!("{} checked, {} exceed a bound, {} malformed, {} skipped", self.lines, self.failed, self.malformed, self.skipped.len());
            if !self.skipped.is_empty() {
                say!("skipped: {}", self.skipped.join(", "));
            }
        }
        if self.failed > 0 {
            return ExitCode::from(1);
        }
        if self.lines == 0 && self.malformed == 0 {
            eprintln!("check: nothing could be checked");
        }
        if self.lines == 0 || self.malformed > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS }
    }
}
