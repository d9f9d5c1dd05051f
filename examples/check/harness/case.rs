//! Reading a reference case: one safetensors file, all float64, the options as JSON in its metadata under `options`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use super::array::Array;

/// The largest dimension of a tensor without elements: sizes that no bytes stand for are the only ones that a small file can make huge.
const MOST_EMPTY: usize = 256;

/// The most numbers of a state, whose size is a product of several tensors' sizes.
const MOST_STATES: usize = 1 << 27;

/// Refuses a state that is too large, before it is made.
pub fn check_state(name: &str, dims: &[usize]) -> Result<(), String> {
    match dims.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) {
        Some(count) if count <= MOST_STATES => Ok(()),
        _ => Err(format!("`{name}` has shape {dims:?}, at most {MOST_STATES} numbers are taken")),
    }
}

/// A case as it was read. Tensors and options are taken out by name; what is left over has no meaning and is an error.
pub struct Case {
    pub name: String,
    pub op: String,
    options: Map<String, Value>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Case {
    /// Reads a file. The error is one sentence that names the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let unreadable = |e: std::io::Error| format!("{}: {e}", path.display());
        // A pipe or a device may never end.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(format!("{}: is not a regular file", path.display()));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        Case::parse(name, &bytes).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// Reads the bytes of a file.
    pub fn parse(name: String, bytes: &[u8]) -> Result<Self, String> {
        let not = |e: safetensors::SafeTensorError| format!("not a safetensors file: {e}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not)?;
        let options = header.metadata().as_ref().and_then(|m| m.get("options")).ok_or("there is no `options` in its metadata")?;
        let options: Value = serde_json::from_str(options).map_err(|e| format!("`options` is not JSON: {e}"))?;
        let Value::Object(mut options) = options else { return Err("`options` is not a JSON object".into()) };
        let Some(Value::String(op)) = options.remove("op") else { return Err("option `op` is not a string".into()) };
        let mut tensors = BTreeMap::new();
        for (tensor, view) in SafeTensors::deserialize(bytes).map_err(not)?.iter() {
            if view.dtype() != Dtype::F64 {
                return Err(format!("tensor `{tensor}` is {:?}, wanted F64", view.dtype()));
            }
            if view.data().is_empty() && view.shape().iter().any(|&size| size > MOST_EMPTY) {
                return Err(format!("tensor `{tensor}` has shape {:?}: without elements, sizes are at most {MOST_EMPTY}", view.shape()));
            }
            let data = view.data().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
            tensors.insert(tensor.to_owned(), (view.shape().to_vec(), data));
        }
        Ok(Case { name, op, options, tensors })
    }

    /// A true or false option; `default` where it is absent.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.options.remove(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(on)) => Ok(on),
            Some(other) => Err(format!("option `{name}` is {other}, wanted true or false")),
        }
    }

    /// A string option.
    pub fn text(&mut self, name: &str, default: &str) -> Result<String, String> {
        match self.options.remove(name) {
            None | Some(Value::Null) => Ok(default.into()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(format!("option `{name}` is {other}, wanted a string")),
        }
    }

    /// A count, if given.
    pub fn count(&mut self, name: &str) -> Result<Option<usize>, String> {
        match self.options.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(format!("option `{name}` is {value}, wanted a count")),
            },
        }
    }

    /// The offsets of packed sequences, if given.
    pub fn cu_seqlens(&mut self) -> Result<Option<Vec<i64>>, String> {
        match self.options.remove("cu_seqlens") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(offsets)) => match offsets.iter().map(Value::as_i64).collect() {
                Some(offsets) => Ok(Some(offsets)),
                None => Err("option `cu_seqlens` holds something that is not an offset".into()),
            },
            Some(other) => Err(format!("option `cu_seqlens` is {other}, wanted a list of offsets")),
        }
    }

    /// Whether a tensor that is still there has `axes` axes and so ends in (re, im).
    pub fn is_complex(&self, name: &str, axes: usize) -> bool {
        self.tensors.get(name).is_some_and(|(dims, _)| dims.len() == axes)
    }

    /// A tensor of one of the given ranks, if it is there. A complex one has an axis (re, im) more.
    pub fn optional(&mut self, name: &str, ranks: &[usize], complex: bool) -> Result<Option<Array>, String> {
        let Some((mut dims, data)) = self.tensors.remove(name) else { return Ok(None) };
        let shape = dims.clone();
        if complex && dims.pop() != Some(2) {
            return Err(format!("tensor `{name}` has shape {shape:?}, which does not end in an axis (re, im)"));
        }
        if !ranks.contains(&dims.len()) {
            return Err(format!(
                "tensor `{name}` has shape {shape:?}, wanted {ranks:?} axes{}",
                if complex { " and (re, im)" } else { "" }
            ));
        }
        Ok(Some(Array { dims, data, complex }))
    }

    /// A tensor that must be there.
    pub fn tensor(&mut self, name: &str, ranks: &[usize], complex: bool) -> Result<Array, String> {
        self.optional(name, ranks, complex)?.ok_or_else(|| format!("tensor `{name}` is missing"))
    }

    /// A reference tensor: it must be there and have the shape of what it refers to.
    pub fn reference(&mut self, name: &str, like: &Array) -> Result<Array, String> {
        let found = self.tensor(name, &[like.dims.len()], like.complex)?;
        if found.dims == like.dims { Ok(found) } else { Err(format!("tensor `{name}` has shape {:?}, wanted {:?}", found.dims, like.dims)) }
    }

    /// An error if anything was not understood.
    pub fn finish(self) -> Result<(), String> {
        if let Some(name) = self.tensors.keys().next() {
            return Err(format!("tensor `{name}` has no meaning for op `{}` with these options", self.op));
        }
        match self.options.keys().next() {
            Some(name) => Err(format!("option `{name}` has no meaning for op `{}`", self.op)),
            None => Ok(()),
        }
    }
}
