//! A model with a sliding window in most layers: Gemma's architecture with random weights.

use super::*;
use std::fmt::Write as _;

const WIDTH: u64 = 64;
const HEAD: u64 = 32;
const HEADS: u64 = 2;
const INNER: u64 = 128;
const LAYERS: u64 = 6;

/// A GGUF file in the making.
#[derive(Default)]
struct File {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
    chance: u64,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl File {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        string(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
    }

    fn number(&mut self, name: &str, value: u64) {
        self.key(name, 4, &(value as u32).to_le_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        let mut bytes = vec![];
        string(&mut bytes, value);
        self.key(name, 8, &bytes);
    }

    fn texts(&mut self, name: &str, values: &[String]) {
        let mut bytes = [8u32.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
        for value in values {
            string(&mut bytes, value);
        }
        self.key(name, 9, &bytes);
    }

    /// A tensor in single precision; `None`: all ones, else uniform within the bound.
    fn tensor(&mut self, name: &str, dims: &[u64], bound: Option<f32>) {
        string(&mut self.tensors, name);
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        for n in dims {
            self.tensors.extend(n.to_le_bytes());
        }
        self.tensors.extend(0u32.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.tensor_count += 1;
        for _ in 0..dims.iter().product::<u64>() {
            self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (self.chance >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            self.data.extend(bound.map_or(1.0, |bound| uniform * bound).to_le_bytes());
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.key_count.to_le_bytes());
        file.extend(&self.keys);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

/// One token for each byte, in the letters of byte-level BPE, and an end token.
fn vocabulary() -> Vec<String> {
    let plain = |byte: u32| (0x21..0x7F).contains(&byte) || (0xA1..0xAD).contains(&byte) || (0xAE..0x100).contains(&byte);
    let others = (0..256).filter(|byte| !plain(*byte)).zip(0x100u32..).collect::<Vec<_>>();
    let letter = |byte: u32| others.iter().find(|(other, _)| *other == byte).map_or(byte, |(_, letter)| *letter);
    let letters = (0..256).filter_map(|byte| char::from_u32(letter(byte))).map(String::from);
    letters.chain(["th".into(), "<end>".into()]).collect()
}

/// `window`: tokens that five of six layers see; 0: all of them do.
fn tiny_gemma(path: &Path, window: u64) {
    let mut file = File { chance: 7, ..File::default() };
    let tokens = vocabulary();
    file.text("general.architecture", "gemma3");
    file.text("general.name", "tiny");
    for (name, value) in [
        ("block_count", LAYERS),
        ("context_length", 4096),
        ("embedding_length", WIDTH),
        ("feed_forward_length", INNER),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", 1),
        ("attention.key_length", HEAD),
        ("attention.value_length", HEAD),
        ("attention.sliding_window", window),
    ] {
        file.number(&format!("gemma3.{name}"), value);
    }
    file.key("gemma3.attention.layer_norm_rms_epsilon", 6, &1e-6f32.to_le_bytes());
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", "gpt-2");
    let kinds: Vec<u8> = (0..tokens.len()).flat_map(|i| if i + 1 == tokens.len() { 3i32 } else { 1 }.to_le_bytes()).collect();
    let head = [5u32.to_le_bytes().to_vec(), (tokens.len() as u64).to_le_bytes().to_vec()].concat();
    file.key("tokenizer.ggml.token_type", 9, &[head, kinds].concat());
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.texts("tokenizer.ggml.merges", &["t h".into()]);
    for special in ["bos", "eos"] {
        file.number(&format!("tokenizer.ggml.{special}_token_id"), tokens.len() as u64 - 1);
    }
    let of = |inputs: u64| Some((3.0 / inputs as f32).sqrt());
    file.tensor("token_embd.weight", &[WIDTH, tokens.len() as u64], of(WIDTH));
    file.tensor("output_norm.weight", &[WIDTH], None);
    for layer in 0..LAYERS {
        let mut tensor = |name: &str, dims: &[u64], bound| file.tensor(&format!("blk.{layer}.{name}.weight"), dims, bound);
        for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
            tensor(norm, &[WIDTH], None);
        }
        tensor("attn_q_norm", &[HEAD], None);
        tensor("attn_k_norm", &[HEAD], None);
        tensor("attn_q", &[WIDTH, HEAD * HEADS], of(WIDTH));
        tensor("attn_k", &[WIDTH, HEAD], of(WIDTH));
        tensor("attn_v", &[WIDTH, HEAD], of(WIDTH));
        tensor("attn_output", &[HEAD * HEADS, WIDTH], of(HEAD * HEADS));
        tensor("ffn_gate", &[WIDTH, INNER], of(WIDTH));
        tensor("ffn_up", &[WIDTH, INNER], of(WIDTH));
        tensor("ffn_down", &[INNER, WIDTH], of(INNER));
    }
    std::fs::write(path, file.bytes()).expect("written");
}

const WINDOW: u64 = 256;

fn load(dir: &Path, window: u64, kept: bool) -> Engine {
    let path = dir.join(format!("{window}.gguf"));
    tiny_gemma(&path, window);
    let cache = KvCacheOptions { dir: dir.join("states"), max_bytes: 100_000_000, min_free: 0 };
    let options = EngineOptions { kv_cache: kept.then_some(cache), ..options(2048) };
    let engine = Engine::load(&path, &options).expect("loads");
    if let Some(cache) = engine.kv_cache() {
        cache.bind(DATABASE);
    }
    engine
}

/// `count` sentences; each token is one byte.
fn valves(count: u32) -> String {
    let mut text = String::new();
    for i in 0..count {
        let _ = write!(text, "Valve {i} opens at {} bar. ", i * i % 17);
    }
    text
}

/// Questions longer than the window, so that the passage leaves it.
fn questions() -> [String; 3] {
    ["At how many bar?", "Which valve opens first?", "Why?"].map(|question| question.repeat(400 / question.len()))
}

#[test]
fn states_with_a_sliding_window_are_exact() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = valves(4);
    let said = |engine: &Engine, question: &str| ask(engine, about(1, question, &text)).1.expect("answers");
    let all = |window| questions().map(|question| said(&load(dir.path(), window, false), &question).text);
    let computed = all(WINDOW);
    for (i, question) in questions().iter().enumerate() {
        let engine = load(dir.path(), WINDOW, true);
        assert_eq!(engine.info().kv_cache_up_to, Some(WINDOW as usize));
        let answer = said(&engine, question);
        assert_eq!(answer.text, computed[i], "{question}");
        let stats = engine.kv_cache().expect("they are kept").stats();
        assert_eq!((stats.hits, stats.misses, stats.damaged), if i == 0 { (0, 1, 0) } else { (1, 0, 0) });
        assert!(i == 0 || answer.reused_tokens >= text.len(), "{answer:?}");
    }
    // The comparison means something: the question changes the answer, and so does the window.
    assert!(computed[0] != computed[1] && computed[1] != computed[2], "{computed:?}");
    assert_ne!(all(0), computed);
}

#[test]
fn no_lookup_with_a_sliding_window() {
    let dir = tempfile::tempdir().expect("a directory");
    let drafts = |window| {
        let path = dir.path().join(format!("{window}.gguf"));
        tiny_gemma(&path, window);
        let tuning = Tuning { lookup: Lookup::On, ..options(2048).tuning };
        Engine::load(&path, &EngineOptions { tuning, ..options(2048) }).expect("loads").tuned()
    };
    let (sliding, full) = (drafts(WINDOW), drafts(0));
    assert!(sliding.draft == 0 && sliding.lookup.contains("sliding window"), "{sliding:?}");
    assert_eq!((full.draft, full.lookup.as_str()), (4, "on: model.lookup"));
}

#[test]
fn states_beyond_the_window_are_computed() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = valves(40);
    let said = |engine: &Engine| ask(engine, about(1, "Which valve opens first?", &text)).1.expect("answers").text;
    let computed = said(&load(dir.path(), WINDOW, false));
    for _ in 0..2 {
        let engine = load(dir.path(), WINDOW, true);
        assert_eq!(said(&engine), computed);
        let long = about(1, "", &text).readings.remove(0).remove(0);
        assert_eq!(engine.precompute(SYSTEM, long).expect("runs"), Precomputed::Impossible);
    }
    assert!(!states_of(&dir.path().join("states"), 1).exists());
}
