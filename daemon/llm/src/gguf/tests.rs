use super::*;

/// A small file made by hand.
struct Builder {
    bytes: Vec<u8>,
    keys: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

impl Builder {
    fn new() -> Builder {
        Builder { bytes: Vec::new(), keys: 0, tensors: Vec::new(), tensor_count: 0 }
    }

    fn string(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
    }

    fn raw(mut self, key: &str, type_id: u32, value: &[u8]) -> Builder {
        Self::string(&mut self.bytes, key.as_bytes());
        self.bytes.extend(type_id.to_le_bytes());
        self.bytes.extend(value);
        self.keys += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Builder {
        let mut bytes = Vec::new();
        Self::string(&mut bytes, value.as_bytes());
        self.raw(key, 8, &bytes)
    }

    fn u32(self, key: &str, value: u32) -> Builder {
        self.raw(key, 4, &value.to_le_bytes())
    }

    fn tensor(mut self, name: &str, type_id: u32, dims: &[u64], offset: u64) -> Builder {
        Self::string(&mut self.tensors, name.as_bytes());
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn build(&self, data: usize) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(&self.bytes);
        file.extend(&self.tensors);
        file.resize(file.len().next_multiple_of(32) + data, 0);
        file
    }
}

fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("vademecum-gguf-{}-{number}", std::process::id()));
    std::fs::write(&path, bytes).expect("written");
    let gguf = Gguf::open(&path);
    std::fs::remove_file(&path).expect("removed");
    gguf
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).expect_err("refused").to_string()
}

#[test]
fn a_generator_is_described() {
    let gguf = Gguf::open(&test_model("generator.gguf")).expect("opens");
    assert_eq!((gguf.architecture(), gguf.kind()), ("llama", ModelKind::Generator));
    assert_eq!((gguf.layers(), gguf.heads(), gguf.kv_heads()), (Some(30), Some(9), Some(3)));
    assert_eq!((gguf.context_length(), gguf.embedding_length()), (Some(8192), Some(576)));
    // Tied embeddings: all tensors are read, 66.4 MB of Q4_1 and 30.1 MB of Q8_0.
    let read = gguf.bytes_per_token();
    assert!((96_000_000..97_000_000).contains(&read), "{read}");
    assert!((134_000_000..135_500_000).contains(&gguf.parameters()));
    assert_eq!(gguf.kv_bytes_per_token(), 30 * 3 * 64 * 2 * 2);
    assert!(gguf.chat_template().is_some_and(|template| template.contains("<|im_start|>")));
    let Some(Value::Array(tokens)) = gguf.value("tokenizer.ggml.tokens") else {
        panic!("a vocabulary");
    };
    assert_eq!((tokens.len(), tokens.texts().count()), (49_152, 49_152));
    let described = report(&gguf);
    assert_eq!(described.tensor_types.iter().map(|share| share.tensors).sum::<u64>(), gguf.tensors().len() as u64);
    let table = described.to_string();
    assert!(table.contains("Q4_1") && table.contains("98,362,432") && table.contains("fingerprint"), "{table}");
    println!("{table}");
    assert!(serde_json::to_string(&described).is_ok());
}

#[test]
fn the_fingerprint_sees_header_data_and_size() {
    let builder = Builder::new().text("general.name", "a").tensor("t", 0, &[1 << 20], 0);
    let file = builder.build(4 << 20);
    let print = |bytes: &[u8]| open(bytes).expect("opens").fingerprint();
    let original = print(&file);
    assert_eq!(original, print(&file));
    let changed = |at: usize| {
        let mut other = file.clone();
        other[at] ^= 1;
        print(&other)
    };
    let name = file.windows(12).position(|window| window == b"general.name").expect("the key");
    assert_ne!(original, changed(name + 12 + 4 + 8), "the name");
    assert_ne!(original, changed(file.len() - 1), "the last byte");
    assert_ne!(original, print(&[file.as_slice(), &[0]].concat()), "the size");
}

#[test]
fn what_is_not_gguf_is_named() {
    assert!(refusal(b"").contains("is not a GGUF file: it is empty"));
    assert!(refusal(b"GG").contains("ends within its first bytes"));
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS pointer"));
    assert!(refusal(b"<!doctype html><html>").contains("web page"));
    assert!(refusal(b"\x10\0\0\0\0\0\0\0{\"a\":1}").contains("safetensors"));
    assert!(refusal(b"PK\x03\x04 and so on").contains("50 4b 03 04"));
    assert!(refusal(b"GGUF\x01\0\0\0").contains("version 1"));
    assert!(refusal(b"GGUF\0\0\0\x03").contains("version 3, big endian"));
    assert!(matches!(Gguf::open(&std::env::temp_dir()), Err(GgufError::NotAFile { .. })));
    assert!(matches!(Gguf::open(Path::new("/nowhere")), Err(GgufError::Io { .. })));
}

#[test]
fn absurd_lengths_are_refused_without_memory() {
    let header = |tensors: u64, keys: u64| {
        let counts = [tensors.to_le_bytes(), keys.to_le_bytes()].concat();
        [b"GGUF\x03\0\0\0".as_slice(), &counts, &[0; 100]].concat()
    };
    assert!(refusal(&header(0, u64::MAX)).contains("metadata keys"));
    assert!(refusal(&header(u64::MAX, 0)).contains("tensors"));
    assert!(refusal(&header(200_000, 0)).contains("truncated"));
    let huge = u64::MAX.to_le_bytes();
    let long_array = [8_u32.to_le_bytes().as_slice(), &huge].concat();
    assert!(refusal(&Builder::new().raw("a", 9, &long_array).build(64)).contains("metadata `a`"));
    let wide_array = [10_u32.to_le_bytes().as_slice(), &huge].concat();
    assert!(refusal(&Builder::new().raw("a", 9, &wide_array).build(64)).contains("truncated"));
    assert!(refusal(&Builder::new().raw("a", 8, &huge).build(64)).contains("truncated"));
    let nested = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat();
    assert!(refusal(&Builder::new().raw("a", 9, &nested).build(64)).contains("array of arrays"));
    assert!(refusal(&Builder::new().raw("a", 77, &[]).build(64)).contains("value type 77"));
    assert!(refusal(&Builder::new().u32("a", 1).u32("a", 1).build(64)).contains("occurs twice"));
    assert!(refusal(&Builder::new().u32("general.alignment", 7).build(64)).contains("alignment"));
}

#[test]
fn a_refusal_is_short_and_safe_to_print() {
    let long = "\u{1b}[2Jx".repeat(10_000);
    let tensor = |name: &str| Builder::new().tensor(name, 0, &[0], 0).build(64);
    for file in [
        Builder::new().raw(&long, 77, &[]).build(64),
        Builder::new().u32(&long, 1).u32(&long, 1).build(64),
        Builder::new().text("general.alignment", &long).build(64),
        tensor("a\nb\u{1b}[2J"),
    ] {
        let words = refusal(&file);
        assert!(words.len() < 500 && !words.contains(char::is_control), "{words:?}");
    }
}

#[test]
fn impossible_tensors_are_refused() {
    let tensor = |type_id, dims: &[u64], offset| refusal(&Builder::new().tensor("t", type_id, dims, offset).build(64));
    assert!(tensor(0, &[u64::MAX, 2], 0).contains("impossible shape"));
    assert!(tensor(0, &[0], 0).contains("impossible shape"));
    assert!(tensor(0, &[1, 1, 1, 1, 1], 0).contains("5 dimensions"));
    assert!(tensor(0, &[], 0).contains("0 dimensions"));
    assert!(tensor(4, &[32], 0).contains("type 4"));
    assert!(tensor(8, &[33], 0).contains("cannot have the shape"));
    assert!(tensor(0, &[17], 0).contains("truncated: tensor `t`"));
    assert!(tensor(0, &[1], 33).contains("aligned"));
    assert!(tensor(0, &[1], u64::MAX - 31).contains("truncated"));
    let twice = Builder::new().tensor("t", 0, &[1], 0).tensor("t", 0, &[1], 32);
    assert!(refusal(&twice.build(64)).contains("`t` occurs twice"));
}

#[test]
fn a_file_cut_or_altered_anywhere_never_panics() {
    let builder = Builder::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .raw("list", 9, &[8_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes(), b"x"].concat())
        .tensor("token_embd.weight", 8, &[32, 4], 0);
    let file = builder.build(136);
    assert_eq!(open(&file).expect("sound").kind(), ModelKind::Generator);
    for end in 0..file.len() {
        assert!(open(&file[..end]).is_err(), "cut at {end}");
    }
    for at in 0..file.len() - 136 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut other = file.clone();
            other[at] = value;
            if let Ok(gguf) = open(&other) {
                let _ = report(&gguf).to_string();
            }
        }
    }
}

#[test]
fn only_the_part_read_per_token_counts() {
    let builder = Builder::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.expert_count", 8)
        .u32("llama.expert_used_count", 2)
        .tensor("token_embd.weight", 0, &[8, 4], 0)
        .tensor("output.weight", 0, &[8, 4], 128)
        .tensor("blk.0.ffn_up_exps.weight", 0, &[8, 8], 256);
    let gguf = open(&builder.build(512)).expect("opens");
    assert_eq!(gguf.bytes_per_token(), 128 + 256 / 4);
    assert_eq!(gguf.parameters(), 32 + 32 + 64);
}
