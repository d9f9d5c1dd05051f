//! Training checkpoints: one safetensors file with everything that the next step needs, replaced in one instant.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::ModelConfig;
use super::file::{self, FileDtype, file_error};
use super::optimizer::{AdamW, AdamWOptions};
use super::parameters::Parameters;
use super::weights::{TensorMap, from_tensors, to_tensors};
use crate::error::Error;

/// The header's metadata key.
const KEY: &str = "selective_scan_checkpoint";
/// The version of the layout that is written and read.
const VERSION: u64 = 1;
/// Prefixes of the three sets of tensors.
const PREFIXES: [&str; 3] = ["parameters.", "first.", "second."];
/// The longest text, in bytes, that the caller's notes may make.
pub const MAX_NOTES: usize = 1 << 20;

/// The state of a training run between two steps. Loaded, it goes on bit for bit as if it had never stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The model.
    pub config: ModelConfig,
    /// Its parameters.
    pub parameters: Parameters<f32>,
    /// Options, moments and step of the optimiser.
    pub optimizer: AdamW,
    /// State of the generator that draws the data; see [`super::Rng::state`].
    pub rng: u64,
    /// Position in the data, in the caller's unit.
    pub position: u64,
    /// What else the caller wants back: schedule, loss so far.
    pub notes: Map<String, Value>,
}

impl Checkpoint {
    /// Writes the file. Killed at any instant, the path holds the old checkpoint or the new one, whole.
    ///
    /// # Errors
    /// [`Error::Value`] where the parts do not fit each other or the notes are too long, [`Error::File`] where the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let sizes = self.config.sizes()?;
        let sets = [("parameters", &self.parameters), ("first", &self.optimizer.first), ("second", &self.optimizer.second)];
        let mut tensors = Vec::new();
        for ((operand, set), prefix) in sets.into_iter().zip(PREFIXES) {
            set.check(operand, &sizes)?;
            tensors.extend(to_tensors(set, prefix, |_| FileDtype::F32)?);
        }
        if serde_json::to_string(&self.notes).map_or(0, |text| text.len()) > MAX_NOTES {
            return Err(Error::Value { operand: "notes", why: format!("are longer than {MAX_NOTES} bytes") });
        }
        let text = self.metadata().to_string();
        let bytes = file::serialize(&tensors, (KEY, &text)).map_err(|why| file_error(path, why))?;
        file::write_atomic(path, &bytes)
    }

    fn metadata(&self) -> Value {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, clip } = self.optimizer.options;
        // As bits: clipping may be infinite, which JSON has no word for.
        let options = [beta1, beta2, epsilon, weight_decay, clip].map(f64::to_bits);
        json!({
            "version": VERSION,
            "config": self.config.to_json(),
            "options": options,
            "step": self.optimizer.step,
            "rng": self.rng,
            "position": self.position,
            "notes": self.notes,
        })
    }

    /// Reads a file that [`Checkpoint::save`] wrote, and checks all of it.
    ///
    /// # Errors
    /// [`Error::File`] with the path where it cannot be read, is cut off, is of another version, or a number, key or tensor is wrong.
    pub fn load(path: &Path) -> Result<Checkpoint, Error> {
        let bad = |why: String| file_error(path, why);
        let file::Tensors { tensors, metadata } = file::read(path)?;
        let text = metadata.get(KEY).ok_or_else(|| bad("is not a training checkpoint".into()))?;
        let value: Value = serde_json::from_str(text).map_err(|error| bad(format!("its metadata is not JSON: {error}")))?;
        let number = |key: &str| value.get(key).and_then(Value::as_u64).ok_or_else(|| bad(format!("its `{key}` is not a whole number")));
        let version = number("version")?;
        if version != VERSION {
            return Err(bad(format!("its version is {version}, wanted {VERSION}")));
        }
        let config = value.get("config").and_then(Value::as_str).ok_or_else(|| bad("its `config` is not text".into()))?;
        let config = ModelConfig::from_json(config).map_err(|error| bad(format!("its config: {error}")))?;
        let notes = value.get("notes").and_then(Value::as_object).ok_or_else(|| bad("its `notes` are not an object".into()))?;
        let [parameters, first, second] = split(&config, tensors, path)?;
        if let Some((spec, _)) = second.tensors().into_iter().find(|(_, values)| values.iter().any(|&v| v.is_nan() || v < 0.0)) {
            return Err(bad(format!("`second.{}` has a value that is no mean of squares", spec.name)));
        }
        let mut optimizer = AdamW::new(options(&value).ok_or_else(|| bad("its `options` are not five numbers".into()))?, &parameters)
            .map_err(|error| bad(format!("its options: {error}")))?;
        (optimizer.first, optimizer.second, optimizer.step) = (first, second, number("step")?);
        Ok(Checkpoint { config, parameters, optimizer, rng: number("rng")?, position: number("position")?, notes: notes.clone() })
    }
}

/// The three sets of a file, by prefix.
fn split(config: &ModelConfig, tensors: TensorMap, path: &Path) -> Result<[Parameters<f32>; 3], Error> {
    let sizes = config.sizes()?;
    let mut sets: [TensorMap; 3] = Default::default();
    for (name, tensor) in tensors {
        let place = PREFIXES.iter().position(|prefix| name.starts_with(prefix));
        let Some(place) = place.filter(|_| tensor.dtype == FileDtype::F32) else {
            return Err(file_error(path, format!("tensor `{name}` of type {:?} is not part of a checkpoint", tensor.dtype)));
        };
        sets[place].insert(name[PREFIXES[place].len()..].to_string(), tensor);
    }
    let read = |place: usize| {
        from_tensors(&sizes, &sets[place], path).map_err(|error| match error {
            Error::File { path, why } => Error::File { path, why: format!("{}: {why}", PREFIXES[place].trim_end_matches('.')) },
            other => other,
        })
    };
    Ok([read(0)?, read(1)?, read(2)?])
}

fn options(value: &Value) -> Option<AdamWOptions> {
    let list = value.get("options")?.as_array()?;
    let bits: Option<Vec<f64>> = list.iter().map(|bits| bits.as_u64().map(f64::from_bits)).collect();
    let [beta1, beta2, epsilon, weight_decay, clip] = bits?.try_into().ok()?;
    Some(AdamWOptions { beta1, beta2, epsilon, weight_decay, clip })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::model::file::Tensor;
    use crate::model::init::init;
    use crate::model::rng::Rng;
    use crate::model::testing::{folder, random, small};

    fn fresh() -> Checkpoint {
        let config = small();
        let parameters = init::<f32>(&config, 1).unwrap();
        let options = AdamWOptions { clip: f64::INFINITY, epsilon: 1.234_567_890_123_456_7e-8, ..AdamWOptions::default() };
        let optimizer = AdamW::new(options, &parameters).unwrap();
        Checkpoint { config, parameters, optimizer, rng: u64::MAX - 5, position: 0, notes: Map::new() }
    }

    /// A step whose gradient depends on the parameters, the generator and the position, as training does.
    fn train(run: &mut Checkpoint, steps: usize) {
        for _ in 0..steps {
            let mut rng = Rng::new(run.rng);
            let mut gradients = random(run.parameters.sizes(), rng.next_u64() ^ run.position);
            for ((_, g), (_, p)) in gradients.tensors_mut().into_iter().zip(run.parameters.tensors()) {
                g.iter_mut().zip(p).for_each(|(g, p)| *g += p);
            }
            run.optimizer.step(&mut run.parameters, &gradients, 1e-2).unwrap();
            (run.rng, run.position) = (rng.state(), run.position + 17);
        }
    }

    #[test]
    fn resumed_training_is_the_same_bits() {
        let path = folder("resume").join("checkpoint.safetensors");
        let mut whole = fresh();
        whole.notes.insert("loss".into(), json!([0.1, 2.0]));
        let mut parts = whole.clone();
        train(&mut whole, 9);
        for steps in [2, 3, 4] {
            parts.save(&path).unwrap();
            parts = Checkpoint::load(&path).unwrap();
            train(&mut parts, steps);
        }
        assert!(parts == whole);
        // Equality of f32 takes −0 for 0; the files compare bits.
        whole.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        parts.save(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    /// The variable that turns `a_killed_writer_leaves_a_whole_checkpoint` into the writer that is killed.
    const WRITER: &str = "SELECTIVE_SCAN_TEST_WRITER";

    #[test]
    fn a_killed_writer_leaves_a_whole_checkpoint() {
        if let Some(path) = std::env::var_os(WRITER) {
            let mut run = fresh();
            loop {
                run.save(Path::new(&path)).unwrap();
                train(&mut run, 1);
            }
        }
        let path = folder("killed").join("checkpoint.safetensors");
        let mut last = 0;
        for kill in 0..6u64 {
            let mut writer = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "model::checkpoint::tests::a_killed_writer_leaves_a_whole_checkpoint"])
                .env(WRITER, &path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            while !path.exists() {
                assert!(writer.try_wait().unwrap().is_none(), "the writer ended by itself");
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(20_000 + 3_700 * kill));
            writer.kill().unwrap();
            writer.wait().unwrap();
            let found = Checkpoint::load(&path).unwrap();
            let mut same = fresh();
            train(&mut same, found.optimizer.step as usize);
            assert!(found == same, "step {}", found.optimizer.step);
            last = last.max(found.optimizer.step);
        }
        assert!(last > 0, "no writer came past its first checkpoint");
    }

    #[test]
    fn damage_is_named() {
        let folder = folder("checkpoint-damage");
        let path = folder.join("c.safetensors");
        let mut run = fresh();
        train(&mut run, 1);
        run.save(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        for end in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..end]).unwrap();
            assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("c.safetensors"));
        }
        let whole = file::parse(&bytes).unwrap();
        let text = &whole.metadata[KEY];
        let write = |tensors: &TensorMap, text: &str| {
            let list: Vec<(String, Tensor)> = tensors.clone().into_iter().collect();
            fs::write(&path, file::serialize(&list, (KEY, text)).unwrap()).unwrap();
            Checkpoint::load(&path).map_err(|error| error.to_string())
        };
        assert!(write(&whole.tensors, text).unwrap() == run);
        for (key, value) in [
            ("version", json!(2)),
            ("config", json!("{\"hidden_size\": 0}")),
            ("config", json!(7)),
            ("step", json!(-1)),
            ("rng", json!(0.5)),
            ("position", json!("x")),
            ("notes", json!([])),
            ("options", json!([1, 2])),
            ("options", json!([u64::MAX, 0, 0, 0, 0])),
        ] {
            let mut changed: Value = serde_json::from_str(text).unwrap();
            changed[key] = value;
            let error = write(&whole.tensors, &changed.to_string()).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
        assert!(write(&whole.tensors, "[").is_err() && write(&whole.tensors, "[]").is_err());
        let mut less = whole.tensors.clone();
        less.remove("second.backbone.norm_f.weight");
        assert!(write(&less, text).unwrap_err().contains("second: tensor `backbone.norm_f.weight` is missing"));
        let mut more = whole.tensors.clone();
        more.insert("third.x".into(), more["first.backbone.norm_f.weight"].clone());
        assert!(write(&more, text).unwrap_err().contains("`third.x`"));
        let mut negative = whole.tensors.clone();
        negative.get_mut("second.backbone.norm_f.weight").unwrap().bytes[..4].copy_from_slice(&(-1f32).to_le_bytes());
        assert!(write(&negative, text).unwrap_err().contains("second.backbone.norm_f.weight"));
        assert!(Checkpoint::load(&folder.join("missing")).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_not_saved() {
        let path = folder("unfit").join("c.safetensors");
        let mut run = fresh();
        run.optimizer.first.norm_f.push(0.0);
        assert!(run.save(&path).unwrap_err().to_string().contains("`first`"));
        let mut run = fresh();
        run.notes.insert("long".into(), "x".repeat(MAX_NOTES).into());
        assert!(run.save(&path).is_err());
        assert!(!path.exists());
    }
}
