//! The model file: reading, checking and describing GGUF, and making one from a Hugging Face directory.
//!
//! GGUF is the container of llama.cpp: a header, typed key/value metadata, tensor descriptions, aligned tensor data
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). A file comes from outside, and llama.cpp ends the process on
//! some damaged files. So [`Gguf::open`] checks every count, length and offset against the size of the file before it allocates
//! anything or calls llama.cpp.

mod convert;
mod fingerprint;
mod metadata;
mod parse;
mod places;
mod report;
mod tensor_type;

use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use convert::{ConvertError, Converted, Precision, convert};
pub(crate) use convert::{MAX_SEQ_LENGTH, TOKENIZER_JSON};
pub use metadata::{Array, Value, ValueType};
pub use places::{places, test_model};
pub use report::{ModelReport, TypeShare, report};
pub use tensor_type::TensorType;

/// A fault of a model file, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("cannot read model {path}: {source}; check the path and its permissions", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A directory, device or the like.
    #[error("model {path} is not a regular file; give the .gguf file itself", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The first bytes are not `GGUF`.
    #[error("{path} is not a GGUF file: {found}; {remedy}", path = path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its likely type.
        found: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// A version or a byte order that is not supported.
    #[error("{path} is GGUF of an unsupported form ({found}); versions 2 and 3, little endian, are read: convert the model again", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version or byte order found.
        found: String,
    },
    /// The file is shorter than its header announces.
    #[error("{path} is truncated: {what} needs {needed} bytes, the file has {size}; download or copy it again", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that does not fit.
        what: String,
        /// Bytes the file would need at least.
        needed: u64,
        /// Bytes it has.
        size: u64,
    },
    /// Contents that contradict themselves or exceed the format's limits.
    #[error("{path} is damaged: {what}; download or convert it again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        what: String,
    },
}

/// How an encoder turns its token vectors into one vector (`<architecture>.pooling_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The file does not say, or says none.
    None,
    /// The average over all tokens.
    Mean,
    /// The vector of the first token.
    Cls,
    /// The vector of the last token.
    Last,
    /// A score of a pair: a reranker, not an embedder.
    Rank,
    /// A number this version does not know.
    Unknown(u32),
}

/// The purpose of a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// Writes text, token by token.
    Generator,
    /// Turns text into a vector.
    Encoder(Pooling),
    /// Neither: an adapter, a vision projector, a vocabulary without weights.
    Other,
}

/// One tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, for instance `blk.0.attn_q.weight`.
    pub name: String,
    /// Elements per dimension, the contiguous one (a row) first, as ggml orders them.
    pub dims: Vec<u64>,
    /// Storage type of its elements.
    pub tensor_type: TensorType,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// More layers than any model has.
const MAX_LAYERS: usize = 4096;

/// Architectures that only encode: llama.cpp runs them without a KV cache.
const ENCODERS: [&str; 9] = [
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "neo-bert",
    "eurobert",
    "modern-bert",
    "gemma-embedding",
];

/// A GGUF file, memory-mapped and checked.
///
/// Metadata and tensor descriptions are valid as long as the file on disk is not changed. Replace a model by renaming a new file
/// over it, never by writing into it; llama.cpp maps it in the same way.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    version: u32,
    entries: Vec<metadata::MetadataEntry>,
    tensors: Vec<Tensor>,
    data_offset: u64,
}

impl Gguf {
    /// Maps the file and reads header, metadata and tensor descriptions, all bounded by the size of the file.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let io = |source| GgufError::Io { path: path.to_path_buf(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(GgufError::NotAFile { path: path.to_path_buf() });
        }
        // SAFETY: the mapping is private and read-only. Access ends in SIGBUS if another process shortens the file. Model files
        // must not be shortened, as documented; llama.cpp's own mapping has the same condition.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let parsed = parse::parse(path, &map)?;
        Ok(Gguf {
            path: path.to_path_buf(),
            map,
            version: parsed.version,
            entries: parsed.entries,
            tensors: parsed.tensors,
            data_offset: parsed.data_offset,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the container, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The keys of the metadata, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str())
    }

    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        entry.decode(&self.map)
    }

    /// A metadata string. Strings that are not UTF-8 count as absent.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A metadata integer of any width, if it is not negative.
    pub fn unsigned(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// A metadata truth value.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Bool(b) => Some(b),
            _ => None,
        }
    }

    /// An integer of the model's architecture: `architecture_value("context_length")` is `llama.context_length`.
    pub fn architecture_value(&self, key: &str) -> Option<u64> {
        self.unsigned(&format!("{}.{key}", self.architecture()))
    }

    /// `general.architecture`, for instance `llama` or `bert`; empty when the file does not say.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// `general.name`, else the file's name without its extension.
    pub fn name(&self) -> String {
        match self.text("general.name") {
            Some(name) if !name.trim().is_empty() => name.trim().chars().take(200).collect(),
            _ => self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// Tensors in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The stored bytes of a tensor of this file.
    pub fn tensor_data(&self, tensor: &Tensor) -> Option<&[u8]> {
        let start = usize::try_from(tensor.offset).ok()?;
        let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
        self.map.get(start..end)
    }

    /// Positions the model was trained for.
    pub fn context_length(&self) -> Option<u64> {
        self.architecture_value("context_length")
    }

    /// Number of layers.
    pub fn layers(&self) -> Option<u64> {
        self.architecture_value("block_count")
    }

    /// Attention heads per layer; the largest one where layers differ.
    pub fn heads(&self) -> Option<u64> {
        self.per_layer("attention.head_count").into_iter().max()
    }

    /// Key/value heads per layer; the largest one where layers differ; as many as heads when the file does not say.
    pub fn kv_heads(&self) -> Option<u64> {
        let kv_heads = self.per_layer("attention.head_count_kv").into_iter().max();
        kv_heads.or_else(|| self.heads())
    }

    /// Width of the hidden state, which is the length of an embedding.
    pub fn embedding_length(&self) -> Option<u64> {
        self.architecture_value("embedding_length")
    }

    /// The model's Jinja chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// `general.license`, usually an SPDX id in lower case.
    pub fn license(&self) -> Option<&str> {
        self.text("general.license")
    }

    /// Number of parameters: the elements of all tensors (a tied output is stored, and counted, once).
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(Tensor::elements).sum()
    }

    /// Bytes of weights read for each generated token, the quantity that memory bandwidth bounds.
    ///
    /// All tensors count in full, with two exceptions. An embedding table that is only looked up (one row) does not count, unless
    /// it is tied: the output matrix too. A mixture's experts count with the share in use. `general.file_type` does not tell
    /// this: mixed files differ from their label by up to 30 %.
    pub fn bytes_per_token(&self) -> u64 {
        let tied = self.tensor("output.weight").is_none() && !self.is_encoder_architecture();
        let expert_share = match (self.architecture_value("expert_used_count"), self.architecture_value("expert_count")) {
            (Some(used), Some(count)) if count > 0 && used <= count => (used, count),
            _ => (1, 1),
        };
        let read = |tensor: &Tensor| match tensor.name.as_str() {
            "token_embd.weight" if !tied => 0,
            "position_embd.weight" | "token_types.weight" | "per_layer_token_embd.weight" => 0,
            name if name.contains("_exps.") => {
                (u128::from(tensor.bytes) * u128::from(expert_share.0) / u128::from(expert_share.1)) as u64
            }
            _ => tensor.bytes,
        };
        self.tensors.iter().map(read).sum()
    }

    /// Whether some layers have a sliding window.
    pub fn has_sliding_window(&self) -> bool {
        self.architecture_value("attention.sliding_window").is_some_and(|window| window > 0)
    }

    /// Bytes of f16 keys and values that each token in the context takes; 0 for encoders, which keep none.
    ///
    /// An upper bound for models whose layers partly use a sliding window.
    pub fn kv_bytes_per_token(&self) -> u64 {
        if self.is_encoder_architecture() {
            return 0;
        }
        let (Some(layers), Some(heads), Some(width)) = (self.layers(), self.heads(), self.embedding_length()) else {
            return 0;
        };
        let head_width = width / heads.max(1);
        let key = self.architecture_value("attention.key_length").unwrap_or(head_width);
        let value = self.architecture_value("attention.value_length").unwrap_or(head_width);
        let per_layer = self.per_layer("attention.head_count_kv");
        let kv_heads = match per_layer.as_slice() {
            [] => heads.saturating_mul(layers),
            [same] => same.saturating_mul(layers),
            each => each.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)),
        };
        kv_heads.saturating_mul(key.saturating_add(value)).saturating_mul(2)
    }

    /// The model's purpose.
    pub fn kind(&self) -> ModelKind {
        let of_model = self.text("general.type").is_none_or(|kind| kind == "model");
        if !of_model || self.tensor("token_embd.weight").is_none() || self.layers().is_none() {
            return ModelKind::Other;
        }
        match self.pooling() {
            pooling if self.is_encoder_architecture() => ModelKind::Encoder(pooling),
            Pooling::None => ModelKind::Generator,
            pooling => ModelKind::Encoder(pooling),
        }
    }

    /// A short identity of the file's contents; `fingerprint.rs` says which parts it covers.
    pub fn fingerprint(&self) -> String {
        fingerprint::fingerprint(&self.map, self.data_offset)
    }

    /// Whether llama.cpp runs this architecture as an encoder, without a KV cache.
    pub fn is_encoder_architecture(&self) -> bool {
        ENCODERS.contains(&self.architecture())
    }

    fn pooling(&self) -> Pooling {
        match self.architecture_value("pooling_type") {
            None | Some(0) => Pooling::None,
            Some(1) => Pooling::Mean,
            Some(2) => Pooling::Cls,
            Some(3) => Pooling::Last,
            Some(4) => Pooling::Rank,
            Some(other) => Pooling::Unknown(other as u32),
        }
    }

    /// A number that some architectures give once and others per layer.
    fn per_layer(&self, key: &str) -> Vec<u64> {
        match self.value(&format!("{}.{key}", self.architecture())) {
            Some(Value::Unsigned(n)) => vec![n],
            Some(Value::Signed(n)) => u64::try_from(n).into_iter().collect(),
            Some(Value::Array(array)) => array.unsigned().take(MAX_LAYERS).collect(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
