//! Safetensors files and writes that cannot leave half a file.
//!
//! The format: eight bytes of header length, a JSON header, the tensors' bytes. Parsing is the `safetensors` crate's; what it lets pass
//! (a name that stands twice, offsets whose sum overflows) is refused here first.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

pub use safetensors::Dtype as FileDtype;

use crate::element::{Element, Real};
use crate::error::Error;

/// The longest header that is parsed, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// An [`Error::File`].
pub(super) fn file_error(path: &Path, why: impl fmt::Display) -> Error {
    Error::File { path: path.display().to_string(), why: why.to_string() }
}

/// One tensor as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Its element type.
    pub dtype: FileDtype,
    /// Its elements in row-major order, little-endian; as many as `dims` and `dtype` say.
    pub bytes: Vec<u8>,
}

fn each<const K: usize, T>(bytes: &[u8], from: impl Fn([u8; K]) -> T) -> Vec<T> {
    let (groups, _) = bytes.as_chunks::<K>();
    groups.iter().map(|&group| from(group)).collect()
}

impl Tensor {
    /// A tensor of `values` rounded to `dtype`: F64, F32, F16 or BF16. `None` where a finite value is too large for it.
    pub fn from_reals<T: Real>(dims: &[usize], dtype: FileDtype, values: &[T]) -> Option<Tensor> {
        let mut bytes = Vec::with_capacity(values.len() * dtype.bitsize() / 8);
        for &value in values {
            let wide = value.to_f64();
            let finite = match dtype {
                FileDtype::F64 => push(&mut bytes, wide.to_le_bytes(), true),
                FileDtype::F32 => push(&mut bytes, (wide as f32).to_le_bytes(), (wide as f32).is_finite()),
                FileDtype::F16 => push(&mut bytes, f16::from_f64(wide).to_le_bytes(), f16::from_f64(wide).is_finite()),
                FileDtype::BF16 => push(&mut bytes, bf16::from_f64(wide).to_le_bytes(), bf16::from_f64(wide).is_finite()),
                _ => return None,
            };
            if wide.is_finite() && !finite {
                return None;
            }
        }
        Some(Tensor { dims: dims.to_vec(), dtype, bytes })
    }

    /// The elements as `T`, exact where `T` is at least as wide. `None` where the tensor is not F64, F32, F16 or BF16.
    pub fn to_reals<T: Real>(&self) -> Option<Vec<T>> {
        Some(match self.dtype {
            FileDtype::F64 => each(&self.bytes, |b| T::from_f64(f64::from_le_bytes(b))),
            FileDtype::F32 => each(&self.bytes, |b| T::from_f64(f64::from(f32::from_le_bytes(b)))),
            FileDtype::F16 => each(&self.bytes, |b| T::from_f64(f64::from(f16::from_le_bytes(b).load()))),
            FileDtype::BF16 => each(&self.bytes, |b| T::from_f64(f64::from(bf16::from_le_bytes(b).load()))),
            _ => return None,
        })
    }
}

fn push<const K: usize>(bytes: &mut Vec<u8>, element: [u8; K], finite: bool) -> bool {
    bytes.extend(element);
    finite
}

impl safetensors::View for &Tensor {
    fn dtype(&self) -> FileDtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.dims
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// What a safetensors file holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tensors {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The header's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Collects the names of a header and refuses one that stands twice: the parser would keep the last.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = std::collections::BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            // A tensor's offsets are (begin, end); both are checked against the file by the parser, after this limit keeps its sums in range.
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                let info: safetensors::tensor::TensorInfo = map.next_value()?;
                if info.data_offsets.1 > isize::MAX as usize {
                    return Err(serde::de::Error::custom(format!("tensor `{name}` ends beyond any file")));
                }
            }
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom(format!("tensor `{name}` stands twice")));
            }
        }
        Ok(())
    }
}

/// Checks the header before the parser sees it.
fn check_header(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(format!("the header's length is {length}, the file has {} bytes after it", rest.len()));
    }
    let mut json = serde_json::Deserializer::from_slice(&rest[..length as usize]);
    json.deserialize_map(Names).and_then(|()| json.end()).map_err(|error| format!("the header is not valid: {error}"))
}

/// Parses the bytes of a safetensors file.
///
/// # Errors
/// In words, what is wrong: a bad header, offsets that overlap, leave the file or disagree with the dimensions, a name that stands twice.
pub fn parse(bytes: &[u8]) -> Result<Tensors, String> {
    check_header(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a valid safetensors file: {error}"))?;
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| format!("not a valid safetensors file: {error}"))?;
    let own = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        (name.to_string(), Tensor { dims: view.shape().to_vec(), dtype: view.dtype(), bytes: view.data().to_vec() })
    };
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Tensors { tensors: parsed.iter().map(own).collect(), metadata })
}

/// Reads a safetensors file.
///
/// # Errors
/// [`Error::File`] with the path where it cannot be read or is not valid.
pub fn read(path: &Path) -> Result<Tensors, Error> {
    let bytes = read_bytes(path, u64::MAX)?;
    parse(&bytes).map_err(|why| file_error(path, why))
}

/// The bytes of a safetensors file. The same tensors give the same bytes, as long as `metadata` has at most one key.
pub(super) fn serialize(tensors: &[(String, Tensor)], metadata: (&str, &str)) -> Result<Vec<u8>, String> {
    let metadata = [(metadata.0.to_string(), metadata.1.to_string())].into();
    let views = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
}

/// Reads a regular file of at most `most` bytes.
pub(super) fn read_bytes(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|error| file_error(path, error))?;
    let about = file.metadata().map_err(|error| file_error(path, error))?;
    if !about.is_file() {
        return Err(file_error(path, "is not a regular file"));
    }
    if about.len() > most {
        return Err(file_error(path, format!("has {} bytes; at most {most} are read", about.len())));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(|error| file_error(path, error))?;
    Ok(bytes)
}

/// Where a file is written before it is renamed: the same folder, so that the rename stays in one file system.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Writes a file so that, killed at any instant, the path holds either what it held before or all of `bytes`.
///
/// The bytes go to `PATH.tmp`, are flushed to the disk, then renamed over the path; the folder is flushed last, so that the rename holds too.
/// One process may write a path at a time.
///
/// # Errors
/// [`Error::File`] with the path; what it held before is untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = temporary(path);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        file_error(path, error)
    })?;
    sync_folder(path).map_err(|error| file_error(path, error))
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Elsewhere a folder cannot be opened as a file; the rename itself is atomic.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{folder, golden};

    /// A file with this header and so many bytes of data.
    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn hostile_headers() {
        let max = usize::MAX;
        let cases = [
            (
                "overlap",
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#.into(),
                6,
            ),
            ("hole", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(), 8),
            ("reversed", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.into(), 4),
            (
                "twice",
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.into(),
                4,
            ),
            ("unknown type", r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#.into(), 4),
            ("wrong type", r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#.into(), 4),
            ("huge dims", format!(r#"{{"a":{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,4]}}}}"#), 4),
            ("huge end", format!(r#"{{"a":{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}}}"#), 4),
            ("wraps", format!(r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, max - 70), 0),
            ("negative", r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.into(), 4),
            ("short data", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(), 7),
            ("long data", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(), 9),
            ("array", "[]".into(), 0),
            ("text after", "{} x".into(), 0),
            ("deep", format!("{{\"__metadata__\":{}", "[".repeat(100_000)), 0),
            ("empty", String::new(), 0),
        ];
        for (what, header, data) in cases {
            assert!(parse(&with_header(&header, data)).is_err(), "{what}");
        }
        assert!(parse(&with_header("{}", 0)).unwrap().tensors.is_empty());
        for length in [1u64, 1 << 40, u64::MAX, u64::MAX - 7] {
            assert!(parse(&length.to_le_bytes()).is_err());
        }
    }

    #[test]
    fn every_truncation_and_many_flips_are_no_panic() {
        let bytes = fs::read(golden().join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for end in (0..header + 20).chain([bytes.len() - 1]) {
            assert!(parse(&bytes[..end]).is_err(), "{end}");
        }
        let small = with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
        for place in 0..small.len() {
            for bit in 0..8 {
                let mut flipped = small.clone();
                flipped[place] ^= 1 << bit;
                let _ = parse(&flipped);
            }
        }
    }

    #[test]
    fn reals_round_trip_and_overflow_is_refused() {
        let values = [0.0f32, -1.5, 65504.0, f32::NAN, f32::INFINITY, 2.0f32.powi(-24)];
        for dtype in [FileDtype::F64, FileDtype::F32, FileDtype::F16, FileDtype::BF16] {
            let tensor = Tensor::from_reals(&[6], dtype, &values).unwrap();
            let back: Vec<f32> = tensor.to_reals().unwrap();
            let same =
                values.iter().zip(&back).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()) || dtype == FileDtype::BF16 && *b == 65536.0);
            assert!(same, "{dtype:?} {back:?}");
        }
        assert!(Tensor::from_reals(&[1], FileDtype::F16, &[65520.0f32]).is_none());
        assert!(Tensor::from_reals(&[1], FileDtype::F32, &[1e39f64]).is_none());
        assert!(Tensor::from_reals(&[1], FileDtype::I64, &[1.0f32]).is_none());
        let ints = Tensor { dims: vec![1], dtype: FileDtype::I64, bytes: vec![0; 8] };
        assert!(ints.to_reals::<f32>().is_none());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = folder("failed-write");
        let path = folder.join("file");
        write_atomic(&path, b"old").unwrap();
        // What a killed writer leaves behind does not disturb.
        fs::write(temporary(&path), b"ha").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        // A folder where the temporary file would go makes the write fail.
        fs::create_dir(temporary(&path)).unwrap();
        assert!(write_atomic(&path, b"newer").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(read_bytes(&path, 2).is_err() && read_bytes(&folder, 99).is_err());
    }
}
