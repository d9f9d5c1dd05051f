//! Models as folders in the published Hugging Face layout: `config.json` with `model.safetensors`, or its shards and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use super::config::{ModelConfig, Sizes};
use super::file::{self, FileDtype, Tensor, file_error};
use super::parameters::{Kind, Parameters, Spec, expected};
use crate::element::{Dtype, Real};
use crate::error::Error;

/// The file of the configuration.
pub const CONFIG: &str = "config.json";
/// The file of the weights.
pub const WEIGHTS: &str = "model.safetensors";
/// The index of the shards, where the weights are in several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// The largest index that is read, in bytes.
const MAX_INDEX: u64 = 100_000_000;
/// The embedding's name in checkpoints of the original repository.
const OTHER_EMBEDDING: &str = "backbone.embedding.weight";

/// Tensors by name.
pub type TensorMap = BTreeMap<String, Tensor>;

/// Reads the tensors of a folder: `model.safetensors`, or, where that is missing, the shards that `model.safetensors.index.json` lists.
///
/// # Errors
/// [`Error::File`] with the file where one is missing or not valid, an index leads out of the folder or disagrees with its shards.
pub fn load_tensors(folder: &Path) -> Result<TensorMap, Error> {
    let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    if !single.exists() && index.exists() { load_shards(folder, &index) } else { Ok(file::read(&single)?.tensors) }
}

fn load_shards(folder: &Path, index: &Path) -> Result<TensorMap, Error> {
    let bad = |why: String| file_error(index, why);
    let bytes = file::read_bytes(index, MAX_INDEX)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| bad(format!("is not valid JSON: {error}")))?;
    let map = value.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("`weight_map` is not an object".into()))?;
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, shard) in map {
        let shard = shard.as_str().ok_or_else(|| bad(format!("the file of `{name}` is not a string")))?;
        if !plain_name(shard) {
            return Err(bad(format!("the file of `{name}`, {shard:?}, is not a plain file name")));
        }
        shards.entry(shard).or_default().insert(name);
    }
    let mut all = TensorMap::new();
    for (shard, names) in shards {
        let path = folder.join(shard);
        let tensors = file::read(&path)?.tensors;
        if let Some(name) = names.iter().find(|&&name| !tensors.contains_key(name)) {
            return Err(file_error(&path, format!("lacks `{name}`, which the index says it holds")));
        }
        if let Some(name) = tensors.keys().find(|name| !names.contains(name.as_str())) {
            return Err(file_error(&path, format!("holds `{name}`, which the index does not say")));
        }
        all.extend(tensors);
    }
    Ok(all)
}

/// A name that stays in its folder on every platform.
fn plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['/', '\\', ':', '\0'])
}

/// Checks a set of tensors against the sizes and gives every expected one by its published name. `path` is named in errors.
fn validate<'a>(sizes: &Sizes, tensors: &'a TensorMap, path: &Path) -> Result<BTreeMap<String, &'a Tensor>, Error> {
    let bad = |why: String| Err(file_error(path, why));
    let specs = expected(sizes);
    let mut found = BTreeMap::new();
    for (name, tensor) in tensors {
        let published = if name == OTHER_EMBEDDING { Kind::Embedding.name().to_string() } else { name.clone() };
        if found.insert(published, tensor).is_some() {
            return bad(format!("`{OTHER_EMBEDDING}` and `{}` are both there", Kind::Embedding.name()));
        }
    }
    for spec in &specs {
        let Some(tensor) = found.get(&spec.name) else {
            if spec.optional {
                continue;
            }
            return bad(format!("tensor `{}` is missing", spec.name));
        };
        if tensor.dims != spec.dims {
            return bad(format!("tensor `{}` has shape {:?}, wanted {:?}", spec.name, tensor.dims, spec.dims));
        }
        if !matches!(tensor.dtype, FileDtype::F64 | FileDtype::F32 | FileDtype::F16 | FileDtype::BF16) {
            return bad(format!("tensor `{}` has type {:?}, wanted F64, F32, F16 or BF16", spec.name, tensor.dtype));
        }
    }
    let known: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    match found.keys().find(|name| !known.contains(name.as_str())) {
        Some(name) => bad(format!("tensor `{name}` is not part of a Mamba model with this configuration")),
        None => Ok(found),
    }
}

/// The parameters that a set of tensors holds. A head beside a configuration that ties it is checked and left out.
///
/// # Errors
/// [`Error::File`] with `path`, naming the first tensor that is missing, not known, or of an unexpected shape or type.
pub fn from_tensors<T: Real>(sizes: &Sizes, tensors: &TensorMap, path: &Path) -> Result<Parameters<T>, Error> {
    let found = validate(sizes, tensors, path)?;
    Parameters::build(*sizes, |spec| {
        let values = found.get(&spec.name).and_then(|tensor| tensor.to_reals());
        values.ok_or_else(|| file_error(path, format!("tensor `{}` cannot be read", spec.name)))
    })
}

/// Loads a folder: its configuration and its parameters.
///
/// # Errors
/// [`Error::File`] with the file, naming the key or tensor that is wrong.
pub fn load<T: Real>(folder: &Path) -> Result<(ModelConfig, Parameters<T>), Error> {
    let config = ModelConfig::read(&folder.join(CONFIG))?;
    let parameters = from_tensors(&config.sizes()?, &load_tensors(folder)?, folder)?;
    Ok((config, parameters))
}

/// What a tensor is stored as in a file of `dtype`. In a 16-bit file the tensors that are few and sensitive stay F32: A_log (an exponent of an
/// exponent), D, Δ's bias (its softplus spans decades) and the norms. They are below 2 % of a model, and every reader takes mixed types.
fn stored_as(kind: Kind, dtype: FileDtype) -> FileDtype {
    use Kind::{ALog, DtBias, FinalNorm, Norm, Skip};
    let keep = matches!(kind, ALog | Skip | DtBias | Norm | FinalNorm);
    if keep && dtype != FileDtype::F64 { FileDtype::F32 } else { dtype }
}

/// The tensors of a model as a file of `dtype` holds them; `prefix` stands before every name.
pub(super) fn to_tensors<T: Real>(
    parameters: &Parameters<T>,
    prefix: &str,
    as_type: impl Fn(Kind) -> FileDtype,
) -> Result<Vec<(String, Tensor)>, Error> {
    let one = |(spec, values): (Spec, &[T])| {
        let dtype = as_type(spec.kind);
        let tensor = Tensor::from_reals(&spec.dims, dtype, values);
        let why = || format!("`{}` has a value too large for {dtype:?}", spec.name);
        Ok((format!("{prefix}{}", spec.name), tensor.ok_or_else(|| Error::Value { operand: "parameters", why: why() })?))
    };
    parameters.tensors().into_iter().map(one).collect()
}

/// Saves a folder, made if missing: `config.json` and `model.safetensors` in f64, f32, f16 or bf16 (A_log, D, Δ's bias and norms stay f32 in the latter two).
///
/// Each file is replaced in one instant. The weights go first, so a folder that was empty is a model only when both are whole.
///
/// # Errors
/// [`Error::Unsupported`] for a complex type, [`Error::Value`] where configuration and parameters disagree or a value overflows the type,
/// [`Error::File`] where a file cannot be written.
pub fn save<T: Real>(folder: &Path, config: &ModelConfig, parameters: &Parameters<T>, dtype: Dtype) -> Result<(), Error> {
    let (stored, word) = match dtype {
        Dtype::F64 => (FileDtype::F64, "float64"),
        Dtype::F32 => (FileDtype::F32, "float32"),
        Dtype::F16 => (FileDtype::F16, "float16"),
        Dtype::Bf16 => (FileDtype::BF16, "bfloat16"),
        other => return Err(Error::Unsupported { what: format!("weights saved as {}", other.name()) }),
    };
    parameters.check("parameters", &config.sizes()?)?;
    let tensors = to_tensors(parameters, "", |kind| stored_as(kind, stored))?;
    let path = folder.join(WEIGHTS);
    // Other readers ask for this key.
    let bytes = file::serialize(&tensors, ("format", "pt")).map_err(|why| file_error(&path, why))?;
    std::fs::create_dir_all(folder).map_err(|error| file_error(folder, error))?;
    file::write_atomic(&path, &bytes)?;
    let mut config = config.clone();
    config.extra.remove("torch_dtype");
    config.extra.insert("dtype".into(), word.into());
    file::write_atomic(&folder.join(CONFIG), config.to_json().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::init::init;
    use crate::model::testing::{folder, golden, small};

    fn error_of(sizes: &Sizes, tensors: &TensorMap) -> String {
        from_tensors::<f32>(sizes, tensors, Path::new("some/model")).unwrap_err().to_string()
    }

    #[test]
    fn golden_model_loads_and_saves_the_same_bits() {
        let (config, parameters) = load::<f32>(&golden()).unwrap();
        assert_eq!(parameters.count(), 104320 / 4);
        let tensors = load_tensors(&golden()).unwrap();
        let folder = folder("golden-save");
        save(&folder, &config, &parameters, Dtype::F32).unwrap();
        assert_eq!(load_tensors(&folder).unwrap(), tensors);
        let (again, same) = load::<f32>(&folder).unwrap();
        assert_eq!((again, same), (config, parameters));
    }

    #[test]
    fn every_type_round_trips() {
        let mut config = small();
        config.use_bias = true;
        let parameters = init::<f64>(&config, 1).unwrap();
        for (dtype, unit) in [(Dtype::F64, 0.0), (Dtype::F32, 6e-8), (Dtype::F16, 4.9e-4), (Dtype::Bf16, 3.91e-3)] {
            let folder = folder(&format!("types-{}", dtype.name()));
            save(&folder, &config, &parameters, dtype).unwrap();
            let (_, back) = load::<f64>(&folder).unwrap();
            for ((spec, a), (_, b)) in parameters.tensors().into_iter().zip(back.tensors()) {
                let unit = if stored_as(spec.kind, FileDtype::F16) == FileDtype::F32 && dtype != Dtype::F64 { 6e-8 } else { unit };
                assert!(
                    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= unit * a.abs() + 3e-8 * unit.min(1e-3) / 4e-4),
                    "{} {}",
                    spec.name,
                    dtype.name()
                );
            }
            // Saving what was loaded changes nothing more.
            let once = load_tensors(&folder).unwrap();
            save(&folder, &config, &back, dtype).unwrap();
            assert_eq!(load_tensors(&folder).unwrap(), once);
        }
        assert!(matches!(save(&folder("complex"), &config, &parameters, Dtype::C32), Err(Error::Unsupported { .. })));
        let mut large = parameters;
        large.layers[0].x_proj[3] = 1e6;
        let error = save(&folder("large"), &config, &large, Dtype::F16).unwrap_err().to_string();
        assert!(error.contains("layers.0.mixer.x_proj.weight"), "{error}");
    }

    #[test]
    fn wrong_tensors_are_named() {
        let (config, _) = load::<f32>(&golden()).unwrap();
        let (sizes, tensors) = (config.sizes().unwrap(), load_tensors(&golden()).unwrap());
        for spec in expected(&sizes) {
            let mut without = tensors.clone();
            without.remove(&spec.name);
            let error = error_of(&sizes, &without);
            assert!(error.contains("some/model") && error.contains(&format!("`{}` is missing", spec.name)), "{error}");
            let mut misshapen = tensors.clone();
            misshapen.get_mut(&spec.name).unwrap().dims.insert(0, 1);
            assert!(error_of(&sizes, &misshapen).contains(&format!("`{}` has shape", spec.name)));
            let mut typed = tensors.clone();
            typed.get_mut(&spec.name).unwrap().dtype = FileDtype::I32;
            assert!(error_of(&sizes, &typed).contains(&format!("`{}` has type I32", spec.name)));
        }
        let mut more = tensors.clone();
        more.insert("backbone.layers.0.mixer.in_proj.bias".into(), tensors["backbone.norm_f.weight"].clone());
        assert!(error_of(&sizes, &more).contains("in_proj.bias"));
    }

    #[test]
    fn the_other_spelling_and_tied_heads() {
        let (config, parameters) = load::<f32>(&golden()).unwrap();
        let (mut sizes, mut tensors) = (config.sizes().unwrap(), load_tensors(&golden()).unwrap());
        let embedding = tensors.remove("backbone.embeddings.weight").unwrap();
        tensors.insert(OTHER_EMBEDDING.into(), embedding.clone());
        assert_eq!(from_tensors::<f32>(&sizes, &tensors, &golden()).unwrap(), parameters);
        sizes.tied = true;
        assert!(from_tensors::<f32>(&sizes, &tensors, &golden()).unwrap().lm_head.is_none());
        tensors.get_mut("lm_head.weight").unwrap().dims.reverse();
        assert!(error_of(&sizes, &tensors).contains("`lm_head.weight` has shape"));
        tensors.remove("lm_head.weight");
        assert!(from_tensors::<f32>(&sizes, &tensors, &golden()).is_ok());
        tensors.insert("backbone.embeddings.weight".into(), embedding);
        assert!(error_of(&sizes, &tensors).contains("both"));
    }

    /// The golden model in two shards; `change` may spoil the index.
    fn sharded(name: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) -> Result<TensorMap, Error> {
        let folder = folder(name);
        let tensors: Vec<(String, Tensor)> = load_tensors(&golden()).unwrap().into_iter().collect();
        let mut map = serde_json::Map::new();
        for (shard, part) in ["a.safetensors", "b.safetensors"].iter().zip(tensors.chunks(tensors.len().div_ceil(2))) {
            fs::write(folder.join(shard), file::serialize(part, ("format", "pt")).unwrap()).unwrap();
            map.extend(part.iter().map(|(name, _)| (name.clone(), Value::from(*shard))));
        }
        change(&mut map);
        fs::write(folder.join(INDEX), serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string()).unwrap();
        load_tensors(&folder)
    }

    #[test]
    fn shards() {
        assert_eq!(sharded("shards", |_| ()).unwrap(), load_tensors(&golden()).unwrap());
        let cases: [(&str, Value, &str); 7] = [
            ("lm_head.weight", "../a.safetensors".into(), "plain file name"),
            ("lm_head.weight", "/etc/passwd".into(), "plain file name"),
            ("lm_head.weight", "..".into(), "plain file name"),
            ("lm_head.weight", "x\\a.safetensors".into(), "plain file name"),
            ("lm_head.weight", 3.into(), "not a string"),
            ("new.weight", "missing.safetensors".into(), "missing.safetensors"),
            ("new.weight", "a.safetensors".into(), "lacks `new.weight`"),
        ];
        for (i, (name, shard, why)) in cases.into_iter().enumerate() {
            let spoil = |map: &mut serde_json::Map<String, Value>| drop(map.insert(name.into(), shard.clone()));
            let error = sharded(&format!("shards-{i}"), spoil).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let error = sharded("shards-less", |map| drop(map.remove("lm_head.weight"))).unwrap_err().to_string();
        assert!(error.contains("holds `lm_head.weight`"), "{error}");
    }

    #[test]
    fn damaged_folders() {
        let folder = folder("damaged");
        assert!(load::<f32>(&folder).unwrap_err().to_string().contains(CONFIG));
        fs::copy(golden().join(CONFIG), folder.join(CONFIG)).unwrap();
        assert!(load::<f32>(&folder).unwrap_err().to_string().contains(WEIGHTS));
        let bytes = fs::read(golden().join(WEIGHTS)).unwrap();
        fs::write(folder.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
        assert!(load::<f32>(&folder).unwrap_err().to_string().contains(WEIGHTS));
        fs::remove_file(folder.join(WEIGHTS)).unwrap();
        for text in ["", "[]", "{}", r#"{"weight_map": []}"#] {
            fs::write(folder.join(INDEX), text).unwrap();
            assert!(load::<f32>(&folder).unwrap_err().to_string().contains(INDEX));
        }
        // An index of nothing is a model without tensors.
        fs::write(folder.join(INDEX), r#"{"weight_map": {}}"#).unwrap();
        assert!(load::<f32>(&folder).unwrap_err().to_string().contains("is missing"));
    }
}
