//! Model files: any bytes are a model or an error in words, and memory stays in proportion to the file.
#![no_main]

mod peak;

use llm::gguf::{Gguf, GgufError, report};

/// Types of metadata values.
const U32: u32 = 4;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

fn key(name: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
    [&text(name.as_bytes())[..], &value_type.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name.as_bytes());
    out.extend((dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().flat_map(|n| n.to_le_bytes()));
    out.extend(type_id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A small sound model.
fn sound() -> Vec<u8> {
    let number = |n: u32| n.to_le_bytes();
    let array = |item: u32, len: u64, items: &[u8]| [&item.to_le_bytes()[..], &len.to_le_bytes(), items].concat();
    let keys = [
        key("general.architecture", TEXT, &text(b"llama")),
        key("general.alignment", U32, &number(32)),
        key("llama.block_count", U32, &number(2)),
        key("llama.embedding_length", U32, &number(64)),
        key("llama.attention.head_count", U32, &number(4)),
        key("llama.attention.head_count_kv", ARRAY, &array(U32, 2, &[number(2), number(1)].concat())),
        key("tokenizer.ggml.tokens", ARRAY, &array(TEXT, 2, &[text(b"<s>"), text(b"a")].concat())),
        key("tokenizer.chat_template", TEXT, &text(b"{{ messages }}")),
    ];
    let tensors = [tensor("token_embd.weight", &[64, 2], 8, 0), tensor("blk.0.ffn_up_exps.weight", &[4, 2, 2], 0, 160)];
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    file.extend(keys.concat());
    file.extend(tensors.concat());
    file.resize(file.len().next_multiple_of(32) + 160 + 64, 7);
    file
}

/// The sound model with some bytes replaced, or the bytes alone.
fn file(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [0x80..=0xff, high, low, replaced, new @ ..] => {
            let mut file = sound();
            let at = usize::from(u16::from_be_bytes([*high, *low])) % file.len();
            let end = (at + usize::from(replaced % 32)).min(file.len());
            file.splice(at..end, new.iter().copied());
            file
        }
        _ => bytes.to_vec(),
    }
}

fn assert_is_an_error_in_words(error: &GgufError) {
    let words = error.to_string();
    assert!(words.chars().count() <= 1000 && !words.contains(char::is_control), "{words:?}");
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = file(bytes);
    let path = std::env::temp_dir().join(format!("vademecum-fuzz-{}", std::process::id()));
    std::fs::write(&path, &file).expect("a temporary file");
    let (read, peak) = peak::peak(|| match Gguf::open(&path) {
        Ok(model) => {
            let described = report(&model).to_string();
            assert!(described.len() <= 10_000 && !described.contains(|c: char| c.is_control() && c != '\n'), "{described:?}");
            for tensor in model.tensors() {
                assert!(model.tensor_data(tensor).is_some_and(|data| data.len() as u64 == tensor.bytes), "{tensor:?}");
            }
            for key in model.keys() {
                std::hint::black_box(model.value(key));
            }
            let _ = (model.has_sliding_window(), model.parameters(), model.heads());
        }
        Err(error) => assert_is_an_error_in_words(&error),
    });
    let () = read;
    assert!(peak <= 16 * file.len() + (64 << 10), "{peak} bytes for a file of {}", file.len());
});
