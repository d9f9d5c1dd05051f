//! Paths to cases, and cases to findings.

use std::path::{Path, PathBuf};

use selective_scan::Error;
use selective_scan::element::Dtype;

use super::case::Case;
use super::conv1d::Conv1d;
use super::engines::Entry;
use super::operation::Checked;
use super::report::Findings;
use super::scan::Scan;
use super::selective::Selective;

/// A case by its operator.
pub enum Problem {
    Scan(Checked<Scan>),
    Selective(Box<Checked<Selective>>),
    Conv1d(Checked<Conv1d>),
    /// An operator or a kind of case that is not built yet.
    Skipped,
}

/// A case that was read.
pub struct Loaded {
    pub name: String,
    pub op: String,
    pub problem: Problem,
}

/// The file that makes a directory in the Hugging Face layout a case.
const EXPECTED: &str = "expected.safetensors";

impl Loaded {
    /// Reads a case: a file, or a model directory. `Err` is one sentence.
    pub fn read(path: &Path) -> Result<Self, String> {
        if path.is_dir() {
            let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
            return Ok(Loaded { name, op: "model".into(), problem: Problem::Skipped });
        }
        let case = Case::read(path)?;
        let (name, op) = (case.name.clone(), case.op.clone());
        let in_file = |why: String| format!("{}: {why}", path.display());
        let problem = match op.as_str() {
            "scan" => Problem::Scan(Scan::read(case).map_err(in_file)?),
            "selective_scan" => Problem::Selective(Box::new(Selective::read(case).map_err(in_file)?)),
            "causal_conv1d" => Problem::Conv1d(Conv1d::read(case).map_err(in_file)?),
            "mamba_block" | "ssd" | "mamba3_siso" | "s4d_kernel" => Problem::Skipped,
            other => return Err(in_file(format!("option `op` is {other:?}, which is no operator of this format"))),
        };
        Ok(Loaded { name, op, problem })
    }

    /// Runs it on one engine in one storage type; None where it is skipped.
    pub fn on(&self, entry: &Entry, dtype: Dtype) -> Option<Result<Findings, Error>> {
        match &self.problem {
            Problem::Scan(case) => Some(case.on(entry, dtype)),
            Problem::Selective(case) => Some(case.on(entry, dtype)),
            Problem::Conv1d(case) => Some(case.on(entry, dtype)),
            Problem::Skipped => None,
        }
    }
}

/// The cases that a path stands for: itself, or those in a directory in the order of their names.
pub fn cases(path: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |e: std::io::Error| format!("{}: {e}", path.display());
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() || path.join(EXPECTED).exists() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let is_file = entry.extension().is_some_and(|e| e == "safetensors") && !entry.is_dir();
        if is_file || entry.join(EXPECTED).exists() {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}
