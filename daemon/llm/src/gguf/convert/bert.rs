//! The plan for a `BertModel`: metadata and tensors as llama.cpp's converter writes them.

use serde_json::Value as Json;

use super::source::{Directory, PoolingMode};
use super::writer::Header;
use super::{ConvertError, MAX_SEQ_LENGTH, Planned, Precision, TOKENIZER_JSON, TensorType};

/// `tokenizer.ggml.token_type` values.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// U+2581, the mark of a word's beginning in llama.cpp's form of WordPiece.
const PHANTOM_SPACE: char = '\u{2581}';

pub(super) fn plan(
    directory: &Directory,
    kind: Precision,
    notes: &mut Vec<String>,
) -> Result<(Header, Vec<Planned>), ConvertError> {
    check_config(directory)?;
    let plan = tensors(directory, kind, notes);
    directory.weights.check(&plan, &is_left_out)?;
    let vocabulary = vocabulary(directory)?;
    if vocabulary.is_none() {
        notes.push("the vocabulary is in the file's tokenizer.json only: this program reads it there, others may not".into());
    }
    let mut header = Header::new(plan.len());
    general(&mut header, directory, kind, &plan)?;
    hyperparameters(&mut header, directory)?;
    tokenizer(&mut header, directory, vocabulary.as_ref())?;
    for planned in &plan {
        header.add_tensor(&planned.name, planned.tensor_type, &planned.shape)?;
    }
    Ok((header, plan))
}

fn check_config(directory: &Directory) -> Result<(), ConvertError> {
    let config = &directory.config;
    let unsupported = |what: String, remedy| Err(ConvertError::Unsupported { what, remedy });
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return unsupported(format!("position embeddings of type `{kind}`"), "llama.cpp's BERT knows absolute positions only");
    }
    if let Some(act) = config.hidden_act.as_deref().filter(|act| *act != "gelu") {
        return unsupported(format!("the activation `{act}`"), "llama.cpp's BERT computes `gelu` only; take another model");
    }
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    let sizes = [
        hidden,
        heads,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
        config.vocab_size,
        config.type_vocab_size,
    ];
    if sizes.iter().any(|n| !(1..=10_000_000).contains(n)) || hidden % heads.max(1) != 0 {
        return Err(ConvertError::Damaged {
            path: directory.path.join("config.json"),
            what: format!("impossible sizes (hidden size {hidden}, {heads} heads, and others: {sizes:?})"),
        });
    }
    Ok(())
}

/// A sentence encoder needs neither the pooling layer nor the heads for pre-training.
fn is_left_out(name: &str) -> bool {
    name == "embeddings.position_ids"
        || ["pooler.", "cls.predictions.", "cls.seq_relationship."].iter().any(|prefix| name.starts_with(prefix))
}

fn tensors(directory: &Directory, kind: Precision, notes: &mut Vec<String>) -> Vec<Planned> {
    let config = &directory.config;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let weight_type = |columns: usize| match kind.tensor_type() {
        TensorType::Q8_0 if !columns.is_multiple_of(32) => TensorType::F16,
        wanted => wanted,
    };
    if weight_type(hidden) != kind.tensor_type() || weight_type(inner) != kind.tensor_type() {
        notes.push("rows that are not a multiple of 32 long are stored as F16".into());
    }
    let mut plan = Vec::new();
    let mut add = |source: String, name: String, shape: &[usize], tensor_type| {
        plan.push(Planned { source, name, shape: shape.to_vec(), tensor_type });
    };
    let f32 = TensorType::F32;
    let tables = [
        ("word", "token_embd", config.vocab_size, weight_type(hidden)),
        ("position", "position_embd", config.max_position_embeddings, f32),
        ("token_type", "token_types", config.type_vocab_size, f32),
    ];
    for (source, name, rows, tensor_type) in tables {
        let source = format!("embeddings.{source}_embeddings.weight");
        add(source, format!("{name}.weight"), &[rows, hidden], tensor_type);
    }
    for part in ["weight", "bias"] {
        add(format!("embeddings.LayerNorm.{part}"), format!("token_embd_norm.{part}"), &[hidden], f32);
    }
    // Source within the layer, name within the block, shape (rows, columns).
    let dense = [
        ("attention.self.query", "attn_q", hidden, hidden),
        ("attention.self.key", "attn_k", hidden, hidden),
        ("attention.self.value", "attn_v", hidden, hidden),
        ("attention.output.dense", "attn_output", hidden, hidden),
        ("intermediate.dense", "ffn_up", inner, hidden),
        ("output.dense", "ffn_down", hidden, inner),
    ];
    let norms = [("attention.output.LayerNorm", "attn_output_norm"), ("output.LayerNorm", "layer_output_norm")];
    for layer in 0..config.num_hidden_layers {
        let from = |source: &str, part: &str| format!("encoder.layer.{layer}.{source}.{part}");
        let to = |name: &str, part: &str| format!("blk.{layer}.{name}.{part}");
        for (source, name, rows, columns) in dense {
            add(from(source, "weight"), to(name, "weight"), &[rows, columns], weight_type(columns));
            add(from(source, "bias"), to(name, "bias"), &[rows], f32);
        }
        for (source, name) in norms {
            for part in ["weight", "bias"] {
                add(from(source, part), to(name, part), &[hidden], f32);
            }
        }
    }
    plan
}

fn general(header: &mut Header, directory: &Directory, kind: Precision, plan: &[Planned]) -> Result<(), ConvertError> {
    let parameters: usize = plan.iter().map(|planned| planned.shape.iter().product::<usize>()).sum();
    header.text("general.architecture", "bert")?;
    header.text("general.type", "model")?;
    header.text("general.name", &directory.card.name)?;
    header.text("general.size_label", &format!("{}M", (parameters + 500_000) / 1_000_000))?;
    if let Some(license) = &directory.card.license {
        header.text("general.license", license)?;
    }
    header.u32("general.file_type", kind.file_type())?;
    header.u32("general.quantization_version", 2)
}

fn hyperparameters(header: &mut Header, directory: &Directory) -> Result<(), ConvertError> {
    let config = &directory.config;
    header.u32("bert.block_count", config.num_hidden_layers as u32)?;
    header.u32("bert.context_length", config.max_position_embeddings as u32)?;
    header.u32("bert.embedding_length", config.hidden_size as u32)?;
    header.u32("bert.feed_forward_length", config.intermediate_size as u32)?;
    header.u32("bert.attention.head_count", config.num_attention_heads as u32)?;
    header.f32("bert.attention.layer_norm_epsilon", config.layer_norm_eps)?;
    header.boolean("bert.attention.causal", false)?;
    let pooling = match directory.pooling {
        PoolingMode::Mean => 1,
        PoolingMode::Cls => 2,
    };
    header.u32("bert.pooling_type", pooling)?;
    if let Some(max) = directory.max_seq_length {
        header.u32(MAX_SEQ_LENGTH, max)?;
    }
    Ok(())
}

/// Tokens by id, their types, and the ids of the special ones.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    /// Metadata key (without `tokenizer.ggml.`) and id.
    special: Vec<(&'static str, u32)>,
}

/// `None` for a Unigram vocabulary, as multilingual encoders have it: the text is always tokenised by tokenizer.json, and llama.cpp
/// gets ids only.
fn vocabulary(directory: &Directory) -> Result<Option<Vocabulary>, ConvertError> {
    let json = &directory.tokenizer;
    let damaged = |what: String| ConvertError::Damaged { path: directory.path.join("tokenizer.json"), what };
    let model = json.pointer("/model/type").and_then(Json::as_str).unwrap_or("WordPiece");
    if model == "Unigram" {
        return Ok(None);
    }
    if model != "WordPiece" {
        return Err(ConvertError::Unsupported {
            what: format!("a BERT with a `{model}` tokenizer"),
            remedy: "only WordPiece and Unigram vocabularies are converted here; take a ready-made GGUF",
        });
    }
    let pieces = json.pointer("/model/vocab").and_then(Json::as_object);
    let pieces = pieces.ok_or_else(|| damaged("it has no `model.vocab`".into()))?;
    let size = directory.config.vocab_size;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("{PHANTOM_SPACE}[PAD{id}]")).collect();
    let mut types = vec![UNUSED; size];
    let mut set = |text: &str, id: u64, kind: i32| -> Result<(), ConvertError> {
        let slot = usize::try_from(id).ok().and_then(|id| tokens.get_mut(id).zip(types.get_mut(id)));
        let (token, stored) =
            slot.ok_or_else(|| damaged(format!("token `{text}` has the id {id}, config.json allows {size}")))?;
        *token = phantom(text, kind);
        *stored = kind;
        Ok(())
    };
    for (piece, id) in pieces {
        let id = id.as_u64().ok_or_else(|| damaged(format!("token `{piece}` has no id")))?;
        set(piece, id, NORMAL)?;
    }
    for added in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let (Some(text), Some(id)) = (added["content"].as_str(), added["id"].as_u64()) else {
            return Err(damaged("an entry of `added_tokens` has no content or id".into()));
        };
        set(text, id, if added["special"].as_bool() == Some(true) { CONTROL } else { USER_DEFINED })?;
    }
    let special = special_ids(directory, pieces)?;
    Ok(Some(Vocabulary { tokens, types, special }))
}

/// llama.cpp's form of a WordPiece token: continuations lose their `##`, beginnings of words get a mark.
fn phantom(token: &str, kind: i32) -> String {
    match token.strip_prefix("##") {
        _ if kind == CONTROL => token.to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!("{PHANTOM_SPACE}{token}"),
    }
}

/// Ids of the special tokens: names from tokenizer_config.json, else BERT's own. BOS and EOS stand for CLS and SEP.
fn special_ids(directory: &Directory, pieces: &serde_json::Map<String, Json>) -> Result<Vec<(&'static str, u32)>, ConvertError> {
    let roles: [(&str, &str, &[&'static str]); 5] = [
        ("cls_token", "[CLS]", &["bos_token_id", "cls_token_id"]),
        ("sep_token", "[SEP]", &["eos_token_id", "seperator_token_id"]),
        ("unk_token", "[UNK]", &["unknown_token_id"]),
        ("pad_token", "[PAD]", &["padding_token_id"]),
        ("mask_token", "[MASK]", &["mask_token_id"]),
    ];
    let mut special = Vec::new();
    for (role, usual, keys) in roles {
        let named = &directory.tokenizer_config[role];
        let name = named.as_str().or_else(|| named["content"].as_str()).unwrap_or(usual);
        match pieces.get(name).and_then(Json::as_u64) {
            Some(id) => special.extend(keys.iter().map(|key| (*key, id as u32))),
            None if role == "mask_token" => {}
            None => {
                return Err(ConvertError::Damaged {
                    path: directory.path.join("tokenizer.json"),
                    what: format!("its vocabulary lacks the {role} `{name}`"),
                });
            }
        }
    }
    Ok(special)
}

fn tokenizer(header: &mut Header, directory: &Directory, vocabulary: Option<&Vocabulary>) -> Result<(), ConvertError> {
    header.u32("tokenizer.ggml.token_type_count", directory.config.type_vocab_size as u32)?;
    let Some(vocabulary) = vocabulary else {
        header.text("tokenizer.ggml.model", "no_vocab")?;
        header.u32("bert.vocab_size", directory.config.vocab_size as u32)?;
        return header.text(TOKENIZER_JSON, &directory.tokenizer_text);
    };
    header.text("tokenizer.ggml.model", "bert")?;
    // llama.cpp's WordPiece ignores this value; its converter uses it for English BERT vocabularies.
    header.text("tokenizer.ggml.pre", "bert-bge")?;
    header.texts("tokenizer.ggml.tokens", &vocabulary.tokens)?;
    header.i32s("tokenizer.ggml.token_type", &vocabulary.types)?;
    for (key, id) in &vocabulary.special {
        header.u32(&format!("tokenizer.ggml.{key}"), *id)?;
    }
    header.boolean("tokenizer.ggml.add_bos_token", true)?;
    header.boolean("tokenizer.ggml.add_eos_token", true)?;
    header.boolean("tokenizer.ggml.add_sep_token", false)?;
    header.boolean("tokenizer.ggml.normalizer.lowercase", lowercases(&directory.tokenizer["normalizer"]))?;
    header.text(TOKENIZER_JSON, &directory.tokenizer_text)
}

/// Whether a normalizer of tokenizer.json, or one within it, lowercases.
fn lowercases(normalizer: &Json) -> bool {
    match normalizer["type"].as_str() {
        Some("Lowercase") => true,
        Some("BertNormalizer") => normalizer["lowercase"].as_bool() != Some(false),
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().any(lowercases),
        _ => false,
    }
}
