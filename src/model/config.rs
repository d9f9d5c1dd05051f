//! `config.json` of a Mamba model in the published Hugging Face layout.

use std::path::Path;

use serde_json::{Map, Value};

use super::file::{self, file_error};
use crate::error::Error;

/// The largest `config.json` that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Limits of single sizes: far above every published model, low enough that their products fit 64 bits.
const MAX_VOCAB: usize = 1 << 24;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_INNER: usize = 1 << 20;
const MAX_STATE: usize = 1 << 14;
const MAX_LAYERS: usize = 1 << 12;
const MAX_CONV: usize = 1 << 10;
const MAX_EXPAND: usize = 1 << 10;
/// The most parameters a configuration may ask for.
const MAX_PARAMETERS: u64 = 1 << 37;

/// How dt_proj's weight is initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepInit {
    /// Uniform in ±scale·R^(−1/2).
    Random,
    /// scale·R^(−1/2) everywhere.
    Constant,
}

/// The hyperparameters of a Mamba model. Names, meaning and defaults are those of the published `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width M of the residual stream.
    pub hidden_size: usize,
    /// Channels D of the scan; `expand · hidden_size` where the file does not say.
    pub intermediate_size: usize,
    /// States N a channel.
    pub state_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width W of the causal convolution.
    pub conv_kernel: usize,
    /// D / M.
    pub expand: usize,
    /// Rank R of the Δ projection; "auto" in a file is ⌈M/16⌉.
    pub time_step_rank: usize,
    /// Whether in_proj and out_proj have a bias.
    pub use_bias: bool,
    /// Whether the convolution has a bias.
    pub use_conv_bias: bool,
    /// ε of every RMSNorm.
    pub layer_norm_epsilon: f64,
    /// Whether the residual stream stays in f32 where weights are narrower.
    pub residual_in_fp32: bool,
    /// Whether the head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Whether the file says that out_proj was divided by √layers at initialisation.
    pub rescale_prenorm_residual: bool,
    /// Smallest Δ₀ at initialisation.
    pub time_step_min: f64,
    /// Largest Δ₀ at initialisation.
    pub time_step_max: f64,
    /// Floor under Δ₀.
    pub time_step_floor: f64,
    /// Scale of dt_proj's weight at initialisation.
    pub time_step_scale: f64,
    /// Kind of dt_proj's weight at initialisation.
    pub time_step_init_scheme: StepInit,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; the file has one number, a list or null.
    pub eos_token_id: Vec<u32>,
    /// Token that fills a batch up.
    pub pad_token_id: Option<u32>,
    /// Keys that mean nothing here, kept for the next save.
    pub extra: Map<String, Value>,
}

impl Default for ModelConfig {
    /// The published defaults: what an empty `config.json` means.
    fn default() -> ModelConfig {
        ModelConfig {
            vocab_size: 50280,
            hidden_size: 768,
            intermediate_size: 1536,
            state_size: 16,
            num_hidden_layers: 32,
            conv_kernel: 4,
            expand: 2,
            time_step_rank: 48,
            use_bias: false,
            use_conv_bias: true,
            layer_norm_epsilon: 1e-5,
            residual_in_fp32: true,
            tie_word_embeddings: true,
            rescale_prenorm_residual: false,
            time_step_min: 0.001,
            time_step_max: 0.1,
            time_step_floor: 1e-4,
            time_step_scale: 1.0,
            time_step_init_scheme: StepInit::Random,
            bos_token_id: Some(0),
            eos_token_id: vec![0],
            pad_token_id: Some(0),
            extra: Map::new(),
        }
    }
}

/// The sizes that decide every tensor's dimensions; made by [`ModelConfig::sizes`], so they are within limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Token ids.
    pub vocab: usize,
    /// M.
    pub hidden: usize,
    /// D.
    pub inner: usize,
    /// N.
    pub state: usize,
    /// R.
    pub rank: usize,
    /// W.
    pub conv: usize,
    /// Blocks.
    pub layers: usize,
    /// in_proj and out_proj have a bias.
    pub bias: bool,
    /// The convolution has a bias.
    pub conv_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
}

fn bad(operand: &'static str, why: impl Into<String>) -> Error {
    Error::Value { operand, why: why.into() }
}

/// A value as an error shows it: short, whatever the file holds.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(40).chain(['…']).collect() }
}

/// The keys of a file, taken out one by one; what is left at the end is kept as it is.
struct Keys(Map<String, Value>);

impl Keys {
    fn usize(&mut self, key: &'static str, default: usize) -> Result<usize, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(default) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| bad(key, format!("{} is not a whole number of at least 0 in range", shown(&value))))
    }

    fn real(&mut self, key: &'static str, default: f64) -> Result<f64, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| bad(key, format!("{} is not a number", shown(&value))))
    }

    fn bool(&mut self, key: &'static str, default: bool) -> Result<bool, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| bad(key, format!("{} is not true or false", shown(&value))))
    }

    /// A word that must be one of a list; the list's first word is the default. Gives its place in the list.
    fn word(&mut self, key: &'static str, words: &[&str]) -> Result<usize, Error> {
        let Some(value) = self.0.remove(key) else { return Ok(0) };
        let place = value.as_str().and_then(|given| words.iter().position(|&word| word == given));
        place.ok_or_else(|| bad(key, format!("{} is not supported; wanted \"{}\"", shown(&value), words.join("\" or \""))))
    }

    fn token(&mut self, key: &'static str, default: Option<u32>) -> Result<Option<u32>, Error> {
        match self.0.remove(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => token_id(key, &value).map(Some),
        }
    }

    fn tokens(&mut self, key: &'static str, default: &[u32]) -> Result<Vec<u32>, Error> {
        match self.0.remove(key) {
            None => Ok(default.to_vec()),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(|id| token_id(key, id)).collect(),
            Some(value) => Ok(vec![token_id(key, &value)?]),
        }
    }

    fn rank(&mut self, hidden: usize) -> Result<usize, Error> {
        const KEY: &str = "time_step_rank";
        match self.0.get(KEY) {
            Some(Value::String(word)) if word == "auto" => self.0.remove(KEY),
            _ => return self.usize(KEY, hidden.div_ceil(16)),
        };
        Ok(hidden.div_ceil(16))
    }
}

fn token_id(key: &'static str, value: &Value) -> Result<u32, Error> {
    let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
    id.ok_or_else(|| bad(key, format!("{} is not a token id", shown(value))))
}

/// The last key before a byte of a JSON text, so that a syntax error (NaN, Infinity, a number out of range) can name it.
fn key_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = before.saturating_add(column).min(text.len());
    let head = String::from_utf8_lossy(&text.as_bytes()[..end]).into_owned();
    let colon = head.rfind("\":")?;
    let open = text.get(..colon)?.rfind('"')?;
    text.get(open + 1..colon)
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, is not JSON, or a key has a value that makes no model; the key is named.
    pub fn read(path: &Path) -> Result<ModelConfig, Error> {
        let bytes = file::read_bytes(path, MAX_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| file_error(path, "is not UTF-8"))?;
        ModelConfig::from_json(&text).map_err(|error| file_error(path, error))
    }

    /// Reads the text of a `config.json`. Keys that are missing take the published defaults; unknown ones are kept in `extra`.
    ///
    /// # Errors
    /// [`Error::Value`] naming the first key whose value makes no model.
    pub fn from_json(text: &str) -> Result<ModelConfig, Error> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let key = key_before(text, error.line(), error.column()).map_or(String::new(), |key| format!(" (at or after key `{key}`)"));
            bad("config.json", format!("is not valid JSON: {error}{key}"))
        })?;
        let Value::Object(map) = value else { return Err(bad("config.json", "is not a JSON object")) };
        let mut keys = Keys(map);
        keys.word("model_type", &["mamba"])?;
        keys.word("hidden_act", &["silu"])?;
        // Written anew by every save.
        keys.0.remove("architectures");
        let default = ModelConfig::default();
        let hidden_size = within("hidden_size", keys.usize("hidden_size", default.hidden_size)?, MAX_HIDDEN)?;
        let expand = within("expand", keys.usize("expand", default.expand)?, MAX_EXPAND)?;
        let schemes = [StepInit::Random, StepInit::Constant];
        let config = ModelConfig {
            vocab_size: keys.usize("vocab_size", default.vocab_size)?,
            hidden_size,
            intermediate_size: keys.usize("intermediate_size", expand * hidden_size)?,
            state_size: keys.usize("state_size", default.state_size)?,
            num_hidden_layers: keys.usize("num_hidden_layers", default.num_hidden_layers)?,
            conv_kernel: keys.usize("conv_kernel", default.conv_kernel)?,
            expand,
            time_step_rank: keys.rank(hidden_size)?,
            use_bias: keys.bool("use_bias", default.use_bias)?,
            use_conv_bias: keys.bool("use_conv_bias", default.use_conv_bias)?,
            layer_norm_epsilon: keys.real("layer_norm_epsilon", default.layer_norm_epsilon)?,
            residual_in_fp32: keys.bool("residual_in_fp32", default.residual_in_fp32)?,
            tie_word_embeddings: keys.bool("tie_word_embeddings", default.tie_word_embeddings)?,
            rescale_prenorm_residual: keys.bool("rescale_prenorm_residual", default.rescale_prenorm_residual)?,
            time_step_min: keys.real("time_step_min", default.time_step_min)?,
            time_step_max: keys.real("time_step_max", default.time_step_max)?,
            time_step_floor: keys.real("time_step_floor", default.time_step_floor)?,
            time_step_scale: keys.real("time_step_scale", default.time_step_scale)?,
            time_step_init_scheme: schemes[keys.word("time_step_init_scheme", &["random", "constant"])?],
            bos_token_id: keys.token("bos_token_id", default.bos_token_id)?,
            eos_token_id: keys.tokens("eos_token_id", &default.eos_token_id)?,
            pad_token_id: keys.token("pad_token_id", default.pad_token_id)?,
            extra: keys.0,
        };
        config.sizes()?;
        Ok(config)
    }

    /// The text of a `config.json` that [`ModelConfig::from_json`] reads back as the same configuration.
    pub fn to_json(&self) -> String {
        let mut map = self.extra.clone();
        let scheme = match self.time_step_init_scheme {
            StepInit::Random => "random",
            StepInit::Constant => "constant",
        };
        let eos = match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => Value::from(*one),
            many => Value::from(many),
        };
        map.insert("architectures".into(), Value::from(vec!["MambaForCausalLM"]));
        let pairs: [(&str, Value); 24] = [
            ("model_type", "mamba".into()),
            ("hidden_act", "silu".into()),
            ("vocab_size", self.vocab_size.into()),
            ("hidden_size", self.hidden_size.into()),
            ("intermediate_size", self.intermediate_size.into()),
            ("state_size", self.state_size.into()),
            ("num_hidden_layers", self.num_hidden_layers.into()),
            ("conv_kernel", self.conv_kernel.into()),
            ("expand", self.expand.into()),
            ("time_step_rank", self.time_step_rank.into()),
            ("use_bias", self.use_bias.into()),
            ("use_conv_bias", self.use_conv_bias.into()),
            ("layer_norm_epsilon", self.layer_norm_epsilon.into()),
            ("residual_in_fp32", self.residual_in_fp32.into()),
            ("tie_word_embeddings", self.tie_word_embeddings.into()),
            ("rescale_prenorm_residual", self.rescale_prenorm_residual.into()),
            ("time_step_min", self.time_step_min.into()),
            ("time_step_max", self.time_step_max.into()),
            ("time_step_floor", self.time_step_floor.into()),
            ("time_step_scale", self.time_step_scale.into()),
            ("time_step_init_scheme", scheme.into()),
            ("bos_token_id", self.bos_token_id.map_or(Value::Null, Value::from)),
            ("eos_token_id", eos),
            ("pad_token_id", self.pad_token_id.map_or(Value::Null, Value::from)),
        ];
        map.extend(pairs.into_iter().map(|(key, value)| (key.to_string(), value)));
        // The alternate form indents.
        format!("{:#}\n", Value::Object(map))
    }

    /// Checks every value and gives the sizes of the tensors.
    ///
    /// # Errors
    /// [`Error::Value`] naming the first key whose value makes no model: zero, above its limit, or not finite.
    pub fn sizes(&self) -> Result<Sizes, Error> {
        self.check_reals()?;
        let sizes = Sizes {
            vocab: within("vocab_size", self.vocab_size, MAX_VOCAB)?,
            hidden: within("hidden_size", self.hidden_size, MAX_HIDDEN)?,
            inner: within("intermediate_size", self.intermediate_size, MAX_INNER)?,
            state: within("state_size", self.state_size, MAX_STATE)?,
            rank: within("time_step_rank", self.time_step_rank, MAX_HIDDEN)?,
            conv: within("conv_kernel", self.conv_kernel, MAX_CONV)?,
            layers: within("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?,
            bias: self.use_bias,
            conv_bias: self.use_conv_bias,
            tied: self.tie_word_embeddings,
        };
        within("expand", self.expand, MAX_EXPAND)?;
        let [vocab, hidden, inner] = [sizes.vocab, sizes.hidden, sizes.inner].map(|n| n as u64);
        let [state, rank, conv] = [sizes.state, sizes.rank, sizes.conv].map(|n| n as u64);
        let layer = inner * (3 * hidden + 2 * rank + 3 * state + conv + 4) + 2 * hidden;
        for (key, count) in
            [("vocab_size", 2 * vocab * hidden), ("intermediate_size", layer), ("num_hidden_layers", layer * sizes.layers as u64)]
        {
            // The last limit is the address space, on a 32-bit machine.
            if count > MAX_PARAMETERS || count > (isize::MAX as u64) / 8 {
                return Err(bad(key, format!("with the other sizes it makes {count} parameters; at most {MAX_PARAMETERS} are taken")));
            }
        }
        Ok(sizes)
    }

    fn check_reals(&self) -> Result<(), Error> {
        let reals = [
            ("layer_norm_epsilon", self.layer_norm_epsilon, 1.0),
            ("time_step_min", self.time_step_min, 1e3),
            ("time_step_max", self.time_step_max, 1e3),
            ("time_step_floor", self.time_step_floor, 1e3),
            ("time_step_scale", self.time_step_scale, 1e6),
        ];
        for (key, value, most) in reals {
            // A NaN is in no range. The least is a number that f32 still holds.
            if !(1e-30..=most).contains(&value) {
                return Err(bad(key, format!("{value:?} is not a number from 1e-30 to {most}")));
            }
        }
        if self.time_step_min > self.time_step_max {
            return Err(bad("time_step_min", format!("{} is above `time_step_max`, {}", self.time_step_min, self.time_step_max)));
        }
        Ok(())
    }
}

fn within(key: &'static str, value: usize, most: usize) -> Result<usize, Error> {
    if value == 0 || value > most {
        return Err(bad(key, format!("{value} is not a number from 1 to {most}")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_means_the_published_defaults() {
        assert_eq!(ModelConfig::from_json("{}").unwrap(), ModelConfig::default());
    }

    #[test]
    fn golden_config() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mamba-tiny-hf/config.json");
        let config = ModelConfig::read(&path).unwrap();
        let sizes = config.sizes().unwrap();
        assert_eq!((sizes.vocab, sizes.hidden, sizes.inner, sizes.state), (96, 32, 64, 16));
        assert_eq!((sizes.rank, sizes.conv, sizes.layers), (2, 4, 2));
        assert_eq!((sizes.bias, sizes.conv_bias, sizes.tied), (false, true, false));
        assert_eq!(config.extra["initializer_range"], 0.1);
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn rank_ids_and_derived_sizes() {
        let config =
            ModelConfig::from_json(r#"{"hidden_size": 33, "time_step_rank": "auto", "eos_token_id": [1, 2], "pad_token_id": null}"#)
                .unwrap();
        assert_eq!((config.time_step_rank, config.intermediate_size), (3, 66));
        assert_eq!((config.eos_token_id.as_slice(), config.pad_token_id), ([1, 2].as_slice(), None));
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
        let config = ModelConfig::from_json(r#"{"eos_token_id": null, "time_step_max": 0.12345678901234567}"#).unwrap();
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn hostile_values_name_their_key() {
        let sizes = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "state_size",
            "num_hidden_layers",
            "conv_kernel",
            "expand",
            "time_step_rank",
        ];
        let reals = ["layer_norm_epsilon", "time_step_min", "time_step_max", "time_step_floor", "time_step_scale"];
        let flags = ["use_bias", "use_conv_bias", "residual_in_fp32", "tie_word_embeddings", "rescale_prenorm_residual"];
        let words = ["model_type", "hidden_act", "time_step_init_scheme"];
        let bads = ["-1", "\"x\"", "NaN", "Infinity", "-Infinity", "1e999", "[]", "{}", "18446744073709551615", "99999999999999999999999"];
        let check = |key: &str, value: &str| {
            let error = ModelConfig::from_json(&format!("{{\n  \"{key}\": {value}\n}}")).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{key} {value}: {error}");
        };
        for value in bads {
            sizes.iter().chain(&reals).chain(&flags).chain(&words).for_each(|key| check(key, value));
        }
        sizes.iter().for_each(|key| ["0", "0.5", "null", "1e300"].iter().for_each(|value| check(key, value)));
        reals.iter().for_each(|key| ["0", "-0.0", "1e300", "null", "1e-320"].iter().for_each(|value| check(key, value)));
        ["bos_token_id", "eos_token_id", "pad_token_id"]
            .iter()
            .for_each(|key| ["-1", "1.5", "\"x\"", "NaN", "4294967296"].iter().for_each(|v| check(key, v)));
        check("time_step_min", "0.2");
    }

    #[test]
    fn products_beyond_the_limit() {
        for (text, key) in [
            (r#"{"vocab_size": 16777216, "hidden_size": 262144}"#, "vocab_size"),
            (r#"{"intermediate_size": 1048576, "hidden_size": 262144, "vocab_size": 1}"#, "intermediate_size"),
            (r#"{"num_hidden_layers": 4096, "hidden_size": 8192, "vocab_size": 1}"#, "num_hidden_layers"),
        ] {
            let error = ModelConfig::from_json(text).unwrap_err();
            assert!(matches!(error, Error::Value { operand, .. } if operand == key), "{error}");
        }
    }

    #[test]
    fn not_json_at_all() {
        for text in ["", "[]", "null", "{", "\u{fffd}", "{\"a\" 1}", "\"", &"[".repeat(100_000)] {
            assert!(matches!(ModelConfig::from_json(text), Err(Error::Value { .. })));
        }
        let error = ModelConfig::read(Path::new("/nonexistent/config.json")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.json"));
    }
}
