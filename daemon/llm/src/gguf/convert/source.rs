//! The Hugging Face directory: configuration, tokenizer, pooling, model card and weights.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{ConvertError, Planned};

/// Longest JSON file that is read (large multilingual tokenizers have 17 MB).
const MAX_JSON_BYTES: u64 = 128 << 20;

/// `config.json`, as far as BERT needs it.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architectures: Vec<String>,
    pub(super) model_type: Option<String>,
    pub(super) hidden_act: Option<String>,
    pub(super) position_embedding_type: Option<String>,
    #[serde(default)]
    pub(super) hidden_size: usize,
    #[serde(default)]
    pub(super) intermediate_size: usize,
    #[serde(default)]
    pub(super) num_attention_heads: usize,
    #[serde(default)]
    pub(super) num_hidden_layers: usize,
    #[serde(default)]
    pub(super) max_position_embeddings: usize,
    #[serde(default)]
    pub(super) vocab_size: usize,
    #[serde(default = "two")]
    pub(super) type_vocab_size: usize,
    #[serde(default = "epsilon")]
    pub(super) layer_norm_eps: f32,
}

fn two() -> usize {
    2
}

fn epsilon() -> f32 {
    1e-12
}

/// Ways of pooling that llama.cpp computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolingMode {
    Mean,
    Cls,
}

/// Name and licence from the model card.
#[derive(Debug, Clone)]
pub(super) struct Card {
    pub(super) name: String,
    pub(super) license: Option<String>,
}

/// A directory with everything the conversion needs, checked as far as possible without knowing the architecture.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) config: Config,
    pub(super) tokenizer: Json,
    pub(super) tokenizer_text: String,
    pub(super) tokenizer_config: Json,
    pub(super) pooling: PoolingMode,
    pub(super) max_seq_length: Option<u32>,
    pub(super) card: Card,
    pub(super) weights: Shards,
    pub(super) notes: Vec<String>,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Directory, ConvertError> {
        let mut notes = Vec::new();
        if !path.is_dir() {
            return Err(missing(path, "give the directory of a Hugging Face model (config.json, model.safetensors, …)"));
        }
        let config: Config = required(&path.join("config.json"), "it names the architecture: download it")?;
        let tokenizer_path = path.join("tokenizer.json");
        let tokenizer_text = read_text(&tokenizer_path)?
            .ok_or_else(|| missing(&tokenizer_path, "download it, or save the tokenizer in its fast form (`save_pretrained`)"))?;
        let tokenizer = parse_json(&tokenizer_path, &tokenizer_text)?;
        let tokenizer_config = optional(&path.join("tokenizer_config.json"))?.unwrap_or(Json::Null);
        let pooling = pooling(path, &mut notes)?;
        let sentence: Json = optional(&path.join("sentence_bert_config.json"))?.unwrap_or(Json::Null);
        let max_seq_length = sentence["max_seq_length"].as_u64().and_then(|n| u32::try_from(n).ok());
        if sentence["do_lower_case"].as_bool() == Some(true) {
            notes.push("`do_lower_case` of sentence_bert_config.json is left to the tokenizer".into());
        }
        Ok(Directory {
            config,
            tokenizer,
            tokenizer_text,
            tokenizer_config,
            pooling,
            max_seq_length,
            card: card(path, &mut notes)?,
            weights: Shards::open(path)?,
            notes,
            path: path.to_path_buf(),
        })
    }
}

fn missing(path: &Path, remedy: &str) -> ConvertError {
    ConvertError::Missing { path: path.to_path_buf(), remedy: remedy.to_owned() }
}

fn damaged(path: &Path, what: impl Into<String>) -> ConvertError {
    ConvertError::Damaged { path: path.to_path_buf(), what: what.into() }
}

/// A text file of bounded size, if it exists.
fn read_text(path: &Path) -> Result<Option<String>, ConvertError> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ConvertError::io(path)(error)),
    };
    if size > MAX_JSON_BYTES {
        return Err(damaged(path, format!("it has {size} bytes, more than any such file")));
    }
    fs::read_to_string(path).map(Some).map_err(ConvertError::io(path))
}

fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConvertError> {
    serde_json::from_str(text).map_err(|error| damaged(path, error.to_string()))
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ConvertError> {
    read_text(path)?.map(|text| parse_json(path, &text)).transpose()
}

fn required<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T, ConvertError> {
    optional(path)?.ok_or_else(|| missing(path, remedy))
}

/// Pooling from the modules of sentence-transformers; modules that llama.cpp would leave out are refused.
fn pooling(dir: &Path, notes: &mut Vec<String>) -> Result<PoolingMode, ConvertError> {
    let modules: Vec<Json> = optional(&dir.join("modules.json"))?.unwrap_or_default();
    let mut folder = "1_Pooling".to_owned();
    for module in &modules {
        let class = module["type"].as_str().unwrap_or_default();
        match class.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" => {}
            "Pooling" => folder = module["path"].as_str().unwrap_or(&folder).to_owned(),
            _ => {
                return Err(ConvertError::Unsupported {
                    what: format!("the module `{class}` of modules.json"),
                    remedy: "its weights would be missing from the result; take a model of transformer and pooling only",
                });
            }
        }
    }
    if Path::new(&folder).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(damaged(&dir.join("modules.json"), format!("the pooling path `{folder}` leaves the directory")));
    }
    let Some(config) = optional::<Json>(&dir.join(&folder).join("config.json"))? else {
        notes.push(format!("{folder}/config.json is missing: mean pooling is assumed"));
        return Ok(PoolingMode::Mean);
    };
    let on: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match (on.as_slice(), config["pooling_mode"].as_str()) {
        (["pooling_mode_mean_tokens"], _) | ([], Some("mean")) => Ok(PoolingMode::Mean),
        (["pooling_mode_cls_token"], _) | ([], Some("cls")) => Ok(PoolingMode::Cls),
        (modes, name) => Err(ConvertError::Unsupported {
            what: format!("the pooling {}", name.map_or_else(|| format!("{modes:?}"), str::to_owned)),
            remedy: "mean and CLS pooling are converted",
        }),
    }
}

/// Name and licence from the front matter and the first heading of README.md.
fn card(dir: &Path, notes: &mut Vec<String>) -> Result<Card, ConvertError> {
    let readme = read_text(&dir.join("README.md"))?.unwrap_or_default();
    let front = readme.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---"));
    let (front, body) = front.unwrap_or(("", &readme));
    let license = front_value(front, "license");
    if license.is_none() {
        notes.push("README.md names no licence: `general.license` is left out".into());
    }
    let heading = body.lines().find_map(|line| line.strip_prefix("# "));
    let folder = || dir.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
    let name =
        front_value(front, "model_name").or_else(|| heading.map(|line| line.trim().chars().take(120).collect())).or_else(folder);
    Ok(Card { name: name.unwrap_or_else(|| "encoder".into()), license })
}

/// The value of `key: value` or the first item of a list under `key:`.
fn front_value(front: &str, key: &str) -> Option<String> {
    let mut lines = front.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?.trim();
    let value = if value.is_empty() { lines.next()?.trim_start().strip_prefix("- ")? } else { value };
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.chars().take(120).collect())
}

/// Takes whole rows and the number of bytes they have in the directory.
type RowSink<'a> = dyn FnMut(&[f32], u64) -> Result<(), ConvertError> + 'a;

/// The mapped safetensors files.
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// Tensor name without the prefix `bert.` and with today's names of norm weights -> shard, name in the shard.
    index: BTreeMap<String, (usize, String)>,
}

struct Shard {
    map: Mmap,
    metadata: Metadata,
    data_offset: usize,
}

impl Shard {
    fn open(path: &Path) -> Result<Shard, ConvertError> {
        let file = File::open(path).map_err(ConvertError::io(path))?;
        // SAFETY: a private read-only mapping; a file shortened while it is converted ends in SIGBUS, nothing worse.
        let map = unsafe { Mmap::map(&file) }.map_err(ConvertError::io(path))?;
        // `deserialize` checks all offsets and that they fill the file, `read_metadata` alone the header only.
        let checked = SafeTensors::deserialize(&map).and_then(|_| SafeTensors::read_metadata(&map));
        let (header, metadata) = checked.map_err(|error| damaged(path, format!("invalid safetensors: {error}")))?;
        Ok(Shard { metadata, data_offset: header + 8, map })
    }
}

impl Shards {
    fn open(dir: &Path) -> Result<Shards, ConvertError> {
        let mut shards = Vec::new();
        for file in shard_files(dir)? {
            shards.push(Shard::open(&dir.join(file))?);
        }
        let mut index = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                index.insert(today(&name), (number, name));
            }
        }
        Ok(Shards { shards, index })
    }

    /// Checks that all planned tensors have the planned shape. Other tensors must be among those that may be left out.
    pub(super) fn check(&self, plan: &[Planned], is_left_out: &dyn Fn(&str) -> bool) -> Result<(), ConvertError> {
        let wrong = |name: &str, problem: String| ConvertError::Tensor { name: name.to_owned(), problem };
        for planned in plan {
            let name = &planned.source;
            let (dtype, shape, _) = self.view(name).ok_or_else(|| wrong(name, "is missing".into()))?;
            if shape != planned.shape {
                return Err(wrong(name, format!("has the shape {shape:?}, config.json asks for {:?}", planned.shape)));
            }
            if element_bytes(dtype).is_none() {
                return Err(wrong(name, format!("is of type {dtype:?}; F32, F16 and BF16 are converted")));
            }
        }
        let known = |name: &str| is_left_out(name) || plan.iter().any(|planned| planned.source == name);
        match self.index.keys().find(|name| !known(name)) {
            Some(extra) => Err(ConvertError::Unsupported {
                what: format!("the tensor `{extra}`, which a plain BERT encoder does not have"),
                remedy: "it would be missing from the result; take a model without additions (adapters, heads)",
            }),
            None => Ok(()),
        }
    }

    /// Bytes of a tensor in the directory.
    pub(super) fn bytes_of(&self, name: &str) -> u64 {
        self.view(name).map_or(0, |(_, _, data)| data.len() as u64)
    }

    /// Calls `sink` with whole rows as f32 and the number of their source bytes, at most about `step` at a time.
    pub(super) fn rows(&self, planned: &Planned, step: usize, sink: &mut RowSink) -> Result<(), ConvertError> {
        let Some((dtype, shape, data)) = self.view(&planned.source) else {
            return Ok(());
        };
        let row = shape.last().copied().unwrap_or(1) * element_bytes(dtype).unwrap_or(4);
        let chunk = (step / row).max(1) * row;
        for bytes in data.chunks(chunk) {
            let numbers = to_f32(dtype, bytes);
            // One NaN in a weight would end up in every vector.
            if numbers.iter().any(|x| !x.is_finite()) {
                return Err(ConvertError::Tensor {
                    name: planned.source.clone(),
                    problem: "holds values that are not finite numbers".into(),
                });
            }
            sink(&numbers, bytes.len() as u64)?;
        }
        Ok(())
    }

    fn view(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let (number, stored) = self.index.get(name)?;
        let shard = self.shards.get(*number)?;
        let info = shard.metadata.info(stored)?;
        let (start, end) = info.data_offsets;
        let data = shard.map.get(shard.data_offset + start..shard.data_offset + end)?;
        Some((info.dtype, &info.shape, data))
    }
}

/// File names of the shards, from the index if there is one.
fn shard_files(dir: &Path) -> Result<Vec<String>, ConvertError> {
    let single = "model.safetensors";
    if dir.join(single).is_file() {
        return Ok(vec![single.to_owned()]);
    }
    let index_path = dir.join("model.safetensors.index.json");
    let Some(index) = optional::<Json>(&index_path)? else {
        let others = ["pytorch_model.bin", "tf_model.h5", "model.onnx"];
        let remedy = match others.iter().find(|name| dir.join(name).is_file()) {
            Some(other) => {
                format!("{other} is not converted: download the model in safetensors format")
            }
            None => "download the model's weights in safetensors format".to_owned(),
        };
        return Err(missing(&dir.join(single), &remedy));
    };
    let map = index["weight_map"].as_object().into_iter().flatten();
    let mut files: Vec<String> = map.filter_map(|(_, file)| file.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    match files.iter().find(|file| file.contains('/') || !dir.join(file).is_file()) {
        Some(lost) => Err(missing(&dir.join(lost), "the index names it: download all parts")),
        None if files.is_empty() => Err(damaged(&index_path, "it names no file")),
        None => Ok(files),
    }
}

/// The tensor's name in today's form: without the prefix of a model with heads, `gamma`/`beta` of old checkpoints renamed.
fn today(name: &str) -> String {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    match name.rsplit_once('.') {
        Some((stem, "gamma")) => format!("{stem}.weight"),
        Some((stem, "beta")) => format!("{stem}.bias"),
        _ => name.to_owned(),
    }
}

fn element_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
