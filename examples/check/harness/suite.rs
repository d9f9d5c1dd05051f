//! Paths to cases, and cases to findings.

use std::path::{Path, PathBuf};

use super::case::Case;
use super::conv1d::Conv1d;
use super::mamba_block::MambaBlock;
use super::operation::Check;
use super::scan::Scan;
use super::selective::Selective;

/// A case that was read.
pub struct Loaded {
    pub name: String,
    pub op: String,
    /// None where it is of an operator that is not built.
    pub problem: Option<Box<dyn Check>>,
}

/// The file that makes a directory in the Hugging Face layout a case.
pub const EXPECTED: &str = "expected.safetensors";

impl Loaded {
    /// Reads a case: a file, or a model directory. `Err` is one sentence.
    pub fn read(path: &Path) -> Result<Self, String> {
        if path.is_dir() {
            let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
            return Ok(Loaded { name, op: "model".into(), problem: model(path)? });
        }
        let case = Case::read(path)?;
        let (name, op) = (case.name.clone(), case.op.clone());
        let problem = problem(case).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Loaded { name, op, problem })
    }
}

fn problem(case: Case) -> Result<Option<Box<dyn Check>>, String> {
    Ok(Some(match case.op.as_str() {
        "scan" => Box::new(Scan::read(case)?),
        "selective_scan" => Box::new(Selective::read(case)?),
        "causal_conv1d" => Box::new(Conv1d::read(case)?),
        "mamba_block" => Box::new(MambaBlock::read(case)?),
        "ssd" | "mamba3_siso" | "s4d_kernel" => return Ok(None),
        other => return Err(format!("option `op` is {other:?}, which is no operator of this format")),
    }))
}

#[cfg(feature = "model")]
fn model(path: &Path) -> Result<Option<Box<dyn Check>>, String> {
    Ok(Some(Box::new(super::model::Model::read(path)?)))
}

/// Without the feature `model` there is nothing that could run it.
#[cfg(not(feature = "model"))]
fn model(_: &Path) -> Result<Option<Box<dyn Check>>, String> {
    Ok(None)
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
