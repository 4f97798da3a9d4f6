//! The description of a model file that `vademecum model show` prints.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Gguf, ModelKind, Pooling};

/// A description of a model file, for people (`Display`) and programs (`Serialize`).
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The file.
    pub path: String,
    /// `general.name`, else the file's name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// `generator`, `encoder (mean pooling)` or the like.
    pub kind: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Size of the file.
    pub file_bytes: u64,
    /// Bytes of weights read per token: see [`Gguf::bytes_per_token`].
    pub bytes_per_token: u64,
    /// Bytes of f16 keys and values per token of context.
    pub kv_bytes_per_token: u64,
    /// Tensor types by bytes, the largest share first.
    pub tensor_types: Vec<TypeShare>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Attention heads.
    pub heads: Option<u64>,
    /// Key/value heads.
    pub kv_heads: Option<u64>,
    /// Width of the hidden state.
    pub embedding_length: Option<u64>,
    /// Positions the model was trained for.
    pub context_length: Option<u64>,
    /// Longest input in tokens that the embedder takes, where the file says so.
    pub max_seq_length: Option<u64>,
    /// First line of the chat template.
    pub chat_template: Option<String>,
    /// `tokenizer.ggml.model`.
    pub tokenizer: Option<String>,
    /// Licence.
    pub license: Option<String>,
    /// Identity of the contents: see [`Gguf::fingerprint`].
    pub fingerprint: String,
}

/// The tensors of one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeShare {
    /// ggml's name of the type.
    #[serde(rename = "type")]
    pub name: &'static str,
    /// Number of tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Describes a model file.
pub fn report(gguf: &Gguf) -> ModelReport {
    ModelReport {
        path: gguf.path().display().to_string(),
        name: gguf.name(),
        architecture: first_line(gguf.architecture()),
        kind: describe(gguf.kind()),
        parameters: gguf.parameters(),
        file_bytes: gguf.file_bytes(),
        bytes_per_token: gguf.bytes_per_token(),
        kv_bytes_per_token: gguf.kv_bytes_per_token(),
        tensor_types: tensor_types(gguf),
        layers: gguf.layers(),
        heads: gguf.heads(),
        kv_heads: gguf.kv_heads(),
        embedding_length: gguf.embedding_length(),
        context_length: gguf.context_length(),
        max_seq_length: gguf.unsigned(super::convert::MAX_SEQ_LENGTH),
        chat_template: gguf.chat_template().map(first_line),
        tokenizer: gguf.text("tokenizer.ggml.model").map(first_line),
        license: gguf.license().map(first_line),
        fingerprint: gguf.fingerprint(),
    }
}

fn describe(kind: ModelKind) -> String {
    match kind {
        ModelKind::Generator => "generator".into(),
        ModelKind::Encoder(Pooling::None) => "encoder (no pooling)".into(),
        ModelKind::Encoder(Pooling::Mean) => "encoder (mean pooling)".into(),
        ModelKind::Encoder(Pooling::Cls) => "encoder (CLS pooling)".into(),
        ModelKind::Encoder(Pooling::Last) => "encoder (last-token pooling)".into(),
        ModelKind::Encoder(Pooling::Rank) => "reranker".into(),
        ModelKind::Encoder(Pooling::Unknown(n)) => format!("encoder (pooling {n})"),
        ModelKind::Other => "neither generator nor encoder".into(),
    }
}

fn tensor_types(gguf: &Gguf) -> Vec<TypeShare> {
    let mut shares: BTreeMap<&'static str, TypeShare> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let name = tensor.tensor_type.name;
        let share = shares.entry(name).or_insert(TypeShare { name, tensors: 0, bytes: 0 });
        share.tensors += 1;
        share.bytes += tensor.bytes;
    }
    let mut shares: Vec<TypeShare> = shares.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    shares
}

/// Text from the file, kept short.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(72).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<u64>| value.map_or_else(|| "not given".to_owned(), grouped);
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "not given".into());
        let rows = [
            ("file", self.path.clone()),
            ("name", self.name.clone()),
            ("kind", self.kind.clone()),
            ("architecture", self.architecture.clone()),
            ("parameters", grouped(self.parameters)),
            ("file bytes", grouped(self.file_bytes)),
            ("bytes per token", grouped(self.bytes_per_token)),
            ("KV bytes per token", format!("{} (f16)", grouped(self.kv_bytes_per_token))),
            ("layers", number(self.layers)),
            ("heads / KV heads", format!("{} / {}", number(self.heads), number(self.kv_heads))),
            ("embedding length", number(self.embedding_length)),
            ("context", number(self.context_length)),
            ("longest input", number(self.max_seq_length)),
            ("tokenizer", text(&self.tokenizer)),
            ("chat template", self.chat_template.clone().unwrap_or_else(|| "none".into())),
            ("licence", text(&self.license)),
            ("fingerprint", self.fingerprint.clone()),
        ];
        for (label, value) in rows {
            // The strings come from the file: control characters must not reach the terminal.
            let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            writeln!(f, "{label:<20}{value}")?;
        }
        writeln!(f, "{:<20}{:<10}{:>8}{:>18}", "tensors", "type", "count", "bytes")?;
        for share in &self.tensor_types {
            let (count, bytes) = (grouped(share.tensors), grouped(share.bytes));
            writeln!(f, "{:<20}{:<10}{count:>8}{bytes:>18}", "", share.name)?;
        }
        Ok(())
    }
}

/// A number with its digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
