use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;

use super::*;
use crate::gguf::test_model as model;
use crate::gguf::{Precision, convert};

#[derive(Deserialize)]
struct Reference {
    text: String,
    ids: Vec<u32>,
    truncated: bool,
}

/// Sentences, ids and float32 vectors of sentence-transformers: see `testdata/embed/reference.py`.
fn references() -> (Vec<Reference>, Vec<Vec<f32>>) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/embed");
    let json = std::fs::read(dir.join("sentences.json")).expect("stored sentences");
    let sentences: Vec<Reference> = serde_json::from_slice(&json).expect("sound JSON");
    let bytes = std::fs::read(dir.join("vectors.f32")).expect("stored vectors");
    let numbers = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let numbers: Vec<f32> = numbers.collect();
    let vectors: Vec<Vec<f32>> = numbers.chunks(384).map(<[f32]>::to_vec).collect();
    assert_eq!((sentences.len(), vectors.len()), (20, 20));
    (sentences, vectors)
}

/// A file that is removed at the end of the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vademecum-embed-{}-{number}.gguf", std::process::id());
        Scratch(std::env::temp_dir().join(name))
    }

    fn with(bytes: &[u8]) -> Scratch {
        let scratch = Scratch::new();
        std::fs::write(&scratch.0, bytes).expect("written");
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The test model converted to one precision (a tenth of a second).
fn converted(precision: Precision) -> Scratch {
    let scratch = Scratch::new();
    convert(&model("minilm"), &scratch.0, precision, &mut |_, _| {}).expect("converts");
    scratch
}

fn embedder(precision: Precision) -> Embedder {
    let options = EmbedOptions { threads: 2, ..EmbedOptions::default() };
    Embedder::load(&converted(precision).0, &options).expect("loads")
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Smallest cosine between our vectors and the reference, one by one and in batches.
fn agreement(precision: Precision) -> f64 {
    let (sentences, vectors) = references();
    let embedder = embedder(precision);
    let mut least = 1.0_f64;
    let texts: Vec<String> = sentences.iter().map(|sentence| sentence.text.clone()).collect();
    let batch = embedder.embed(&texts).expect("embeds");
    for ((sentence, reference), in_batch) in sentences.iter().zip(&vectors).zip(&batch) {
        assert_eq!(embedder.token_ids(&sentence.text).expect("encodes"), sentence.ids, "{}", sentence.text);
        assert_eq!(in_batch.truncated, sentence.truncated, "{}", sentence.text);
        assert_eq!(in_batch.tokens + 2, sentence.ids.len());
        let alone = embedder.embed_query(&sentence.text).expect("embeds");
        let (one, other) = (cosine(&alone.vector, reference), cosine(&in_batch.vector, reference));
        println!("{precision:?} {one:.6} {other:.6} {}", sentence.text.chars().take(40).collect::<String>());
        least = least.min(one).min(other);
        let length = cosine(&alone.vector, &alone.vector);
        assert!((length - 1.0).abs() < 1e-6);
    }
    least
}

#[test]
fn f16_agrees_with_the_reference_implementation() {
    let least = agreement(Precision::F16);
    assert!(least >= 0.9999, "{least}");
}

#[test]
fn q8_0_agrees_with_the_reference_implementation() {
    let least = agreement(Precision::Q8_0);
    assert!(least >= 0.998, "{least}");
}

#[test]
fn the_handle_describes_the_model() {
    let embedder = embedder(Precision::Q8_0);
    assert_eq!((embedder.dimensions(), embedder.max_tokens()), (384, 254));
    assert_eq!(embedder.count_tokens("a pump"), 2);
    assert_eq!(embedder.name(), "all-MiniLM-L6-v2");
    assert_eq!(embedder.fingerprint().len(), 64);
}

#[test]
fn an_empty_text_has_a_vector() {
    let embedder = embedder(Precision::Q8_0);
    let empty = embedder.embed_query("").expect("the special tokens alone");
    assert_eq!(empty.tokens, 0);
    assert!(empty.vector.iter().all(|x| x.is_finite()));
    assert!(embedder.embed(&[]).expect("nothing to do").is_empty());
}

#[test]
fn many_texts_come_back_in_order() {
    let embedder = embedder(Precision::Q8_0);
    let words = ["pump", "valve", "fan", "pipe ".repeat(400).leak(), "reset"];
    let texts: Vec<String> = (0..100).map(|n| format!("{} {n}", words[n % words.len()])).collect();
    let all = embedder.embed(&texts).expect("embeds");
    for n in [0, 3, 42, 98, 99] {
        let alone = embedder.embed_query(&texts[n]).expect("embeds");
        assert!(cosine(&alone.vector, &all[n].vector) > 0.9995, "text {n}");
        assert_eq!(alone.truncated, all[n].truncated);
    }
    assert_eq!(all.iter().filter(|each| each.truncated).count(), 20);
}

/// `text` with the parts between bars as its parts.
fn parted(text: &str) -> Parted {
    let mut parted = Parted::default();
    for part in text.split('|') {
        let begins = parted.text.len();
        parted.text += part;
        parted.parts.push(begins..parted.text.len());
    }
    parted
}

#[test]
fn parts_have_vectors_of_the_pass_of_their_text() {
    let embedder = embedder(Precision::F16);
    let texts = [
        parted("The pump is loud. |Bleed the circuit: it holds air.| The warranty covers five years."),
        parted("Öl prüfen. |Straße, naïve café — 漢字 🫠.| Ende."), // typos: ignore
        parted("One part alone."),
    ];
    let embedded = embedder.embed_parted(&texts).expect("embeds");
    let whole: Vec<String> = texts.iter().map(|text| text.text.clone()).collect();
    for (((embedding, parts), text), alone) in embedded.iter().zip(&texts).zip(embedder.embed(&whole).expect("embeds")) {
        assert!(cosine(&embedding.vector, &alone.vector) > 0.99999);
        assert_eq!((embedding.tokens, parts.len()), (alone.tokens, text.parts.len()));
        // The text's vector is the mean of all tokens, so it lies among the vectors of its parts.
        assert!(parts.iter().all(|part| cosine(part, &alone.vector) > 0.3 && (cosine(part, part) - 1.0).abs() < 1e-6));
    }
    let nearest = |question: &str, parts: &[Vec<f32>]| {
        let asked = embedder.embed_query(question).expect("embeds").vector;
        (0..parts.len()).max_by(|a, b| cosine(&parts[*a], &asked).total_cmp(&cosine(&parts[*b], &asked)))
    };
    assert_eq!(nearest("What is to be done about air in the circuit?", &embedded[0].1), Some(1));
    assert_eq!(nearest("How many years of guarantee are there?", &embedded[0].1), Some(2));
}

#[test]
fn parts_out_of_reach_are_embedded_on_their_own() {
    let embedder = embedder(Precision::Q8_0);
    let long = "pump ".repeat(250);
    let text = parted(&format!("{long}|It hums and cracks and leaks at the lower valve.| |After that the valve closes."));
    let (embedding, parts) = embedder.embed_parted(&[text.clone(), text]).expect("embeds").remove(1);
    assert!(embedding.truncated && parts.len() == 4);
    // The second part is cut by the limit, the third has no tokens.
    for (part, said) in [(1, "It hums and cracks and leaks at the lower valve."), (2, " "), (3, "After that the valve closes.")] {
        let alone = embedder.embed_query(said).expect("embeds").vector;
        assert!(cosine(&parts[part], &alone) > 0.9995, "{said:?}");
    }
    assert!(embedder.embed_parted(&[]).expect("nothing to do").is_empty());
}

/// This model pools its first token; it was not trained for means.
#[test]
fn cls_pooling_has_no_parts() {
    let mut bytes = std::fs::read(&converted(Precision::F16).0).expect("a file");
    let at = position(&bytes, "bert.pooling_type") + "bert.pooling_type".len() + 4;
    bytes[at..at + 4].copy_from_slice(&2_u32.to_le_bytes());
    let file = Scratch::with(&bytes);
    let first = Embedder::load(&file.0, &EmbedOptions::default()).expect("loads");
    let text = parted("The pump is loud. |It holds air.");
    let (embedding, parts) = first.embed_parted(std::slice::from_ref(&text)).expect("embeds").remove(0);
    assert!(parts.is_empty());
    assert!(cosine(&embedding.vector, &llama_cpp_pools(&file.0, &first, &text.text)) > 0.99999);
    let mean = embedder(Precision::F16);
    let by_mean = mean.embed_query(&text.text).expect("embeds").vector;
    assert!(cosine(&embedding.vector, &by_mean) < 0.99);
    assert!(cosine(&by_mean, &llama_cpp_pools(&converted(Precision::F16).0, &mean, &text.text)) > 0.99999);
}

/// The vector that llama.cpp pools according to the file.
fn llama_cpp_pools(path: &Path, embedder: &Embedder, text: &str) -> Vec<f32> {
    use llama_cpp_2::context::params::LlamaContextParams;
    use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
    use llama_cpp_2::{llama_batch::LlamaBatch, token::LlamaToken};
    let backend = crate::llama::backend().expect("initialises");
    let model = LlamaModel::load_from_file(backend, path, &LlamaModelParams::default()).expect("loads");
    let params = LlamaContextParams::default().with_n_ctx(std::num::NonZeroU32::new(256)).with_embeddings(true);
    let mut context = model.new_context(backend, params).expect("a context");
    let mut batch = LlamaBatch::new(256, 1);
    for (position, id) in (0..).zip(embedder.token_ids(text).expect("encodes")) {
        batch.add(LlamaToken(id as i32), position, &[0], true).expect("room");
    }
    context.encode(&mut batch).expect("encodes");
    context.embeddings_seq_ith(0).expect("pooled").to_vec()
}

#[test]
fn callers_on_many_threads_share_one_embedder() {
    let embedder = embedder(Precision::Q8_0);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let embedder = embedder.clone();
            scope.spawn(move || {
                let texts: Vec<String> = (0..20).map(|k| format!("text {n} {k}")).collect();
                assert_eq!(embedder.embed(&texts).expect("embeds").len(), 20);
                assert!(embedder.embed_query("a question").is_ok());
            });
        }
    });
}

#[test]
fn a_pass_of_any_size_is_accepted() {
    for batch_tokens in [0, 257, 1024] {
        let options = EmbedOptions { batch_tokens, ..EmbedOptions::default() };
        let embedder = Embedder::load(&converted(Precision::Q8_0).0, &options).expect("loads");
        let texts: Vec<String> = (0..12).map(|n| format!("w{n} ").repeat(n * 10)).collect();
        assert_eq!(embedder.embed(&texts).expect("embeds").len(), 12);
    }
}

#[test]
fn other_files_than_encoders_are_refused() {
    let error = |path: &Path| Embedder::load(path, &EmbedOptions::default()).err().expect("refused").to_string();
    let generator = error(&model("generator.gguf"));
    assert!(generator.contains("it is a generator (architecture `llama`)"), "{generator}");
    assert!(error(Path::new("/nowhere/x.gguf")).contains("cannot read model /nowhere/x.gguf"));
    let whole = std::fs::read(&converted(Precision::Q8_0).0).expect("a file");
    let truncated = error(&Scratch::with(&whole[..whole.len() / 2]).0);
    assert!(truncated.contains("is truncated: tensor"), "{truncated}");
    // The same file with the pooling type's key renamed, so that it has none.
    let mut without = whole;
    let at = position(&without, "bert.pooling_type");
    without[at..at + 6].copy_from_slice(b"bert.x");
    let without = error(&Scratch::with(&without).0);
    assert!(without.contains("its pooling is none"), "{without}");
}

/// The place of a key in a file.
fn position(bytes: &[u8], key: &str) -> usize {
    let found = bytes.windows(key.len()).position(|window| window == key.as_bytes());
    found.expect("the key")
}

#[test]
fn altered_metadata_never_abort() {
    let whole = std::fs::read(&converted(Precision::Q8_0).0).expect("a file");
    let try_with = |key: &str, value: u32| {
        let mut bytes = whole.clone();
        let at = position(&bytes, key) + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let embedder = Embedder::load(&Scratch::with(&bytes).0, &EmbedOptions::default())?;
        let texts: Vec<String> = (0..40).map(|n| "word ".repeat(n)).collect();
        embedder.embed(&texts).map(|_| embedder.max_tokens())
    };
    let nan = f32::NAN.to_bits();
    let refused = [
        ("bert.block_count", 0),
        ("bert.block_count", 5),
        ("bert.block_count", 513),
        ("bert.context_length", 513),
        ("bert.context_length", u32::MAX),
        ("bert.embedding_length", 0),
        ("bert.feed_forward_length", u32::MAX),
        ("bert.attention.head_count", 0),
        ("bert.attention.head_count", 5),
        ("bert.attention.layer_norm_epsilon", nan),
        ("bert.pooling_type", 3),
        ("vademecum.max_seq_length", 2),
        ("tokenizer.ggml.token_type_count", 3),
    ];
    for (key, value) in refused {
        let outcome = try_with(key, value);
        assert!(outcome.is_err(), "{key} = {value}: {outcome:?}");
    }
    // Short limits make small passes, the sizes on which context creation is delicate.
    for (value, expected) in [(3, 1), (16, 14), (40, 38), (u32::MAX, 510)] {
        let outcome = try_with("vademecum.max_seq_length", value);
        assert!(outcome.as_ref().is_ok_and(|max| *max == expected), "{value}: {outcome:?}");
    }
}

#[test]
fn a_tokenizer_beside_the_file_or_named_is_used() {
    let dir = std::env::temp_dir().join(format!("vademecum-beside-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let mut bytes = std::fs::read(&converted(Precision::Q8_0).0).expect("a file");
    let key = b"tokenizer.huggingface.json";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the key");
    bytes[at..at + key.len()].copy_from_slice(b"tokenizer.huggingface.jso_");
    let path = dir.join("plain.gguf");
    std::fs::write(&path, bytes).expect("written");
    let error = Embedder::load(&path, &EmbedOptions::default()).err().expect("no tokenizer").to_string();
    assert!(error.contains("no tokenizer for"), "{error}");
    let source = model("minilm").join("tokenizer.json");
    let named = EmbedOptions { tokenizer: Some(source.clone()), ..EmbedOptions::default() };
    let named = Embedder::load(&path, &named).expect("loads");
    std::fs::copy(source, dir.join("tokenizer.json")).expect("copied");
    let beside = Embedder::load(&path, &EmbedOptions::default()).expect("loads");
    assert_eq!(named.fingerprint(), beside.fingerprint());
    assert_eq!(named.fingerprint().len(), 64);
    std::fs::remove_dir_all(&dir).expect("removed");
}

/// The tokenizer.json of a Unigram vocabulary, as multilingual encoders have it, with the ids of the test model.
fn unigram_of(word_piece: &str) -> String {
    let mut json: serde_json::Value = serde_json::from_str(word_piece).expect("JSON");
    let pieces = json["model"]["vocab"].as_object().expect("a vocabulary").clone();
    let mut vocabulary = vec![serde_json::Value::Null; pieces.len()];
    for (piece, id) in &pieces {
        let id = id.as_u64().expect("an id") as usize;
        let text = match piece.strip_prefix("##") {
            // Letters of a vocabulary's words and of their continuations differ there; here no text reaches these.
            Some(rest) => format!("{rest}\u{1}"),
            None if piece.starts_with('[') && piece.len() > 1 => piece.clone(),
            None => format!("\u{2581}{piece}"),
        };
        vocabulary[id] = serde_json::json!([text, -1.0]);
    }
    json["normalizer"] = serde_json::json!({ "type": "Lowercase" });
    json["pre_tokenizer"] =
        serde_json::json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true });
    json["decoder"] = serde_json::Value::Null;
    json["model"] = serde_json::json!({ "type": "Unigram", "unk_id": 100, "vocab": vocabulary, "byte_fallback": false });
    json.to_string()
}

#[test]
fn an_encoder_with_a_unigram_vocabulary_is_converted_and_runs() {
    let (dir, source) = (std::env::temp_dir().join(format!("vademecum-unigram-{}", std::process::id())), model("minilm"));
    std::fs::create_dir_all(dir.join("1_Pooling")).expect("a directory");
    for file in ["config.json", "modules.json", "README.md", "sentence_bert_config.json", "1_Pooling/config.json"] {
        std::fs::copy(source.join(file), dir.join(file)).expect("copied");
    }
    let weights = std::fs::canonicalize(source.join("model.safetensors")).expect("weights");
    std::os::unix::fs::symlink(weights, dir.join("model.safetensors")).expect("linked");
    let json = std::fs::read_to_string(source.join("tokenizer.json")).expect("a tokenizer");
    std::fs::write(dir.join("tokenizer.json"), unigram_of(&json)).expect("written");
    let path = dir.join("unigram.gguf");
    let made = convert(&dir, &path, Precision::Q8_0, &mut |_, _| {}).expect("converts");
    assert!(made.notes.iter().any(|note| note.contains("tokenizer.json only")), "{:?}", made.notes);
    let (unigram, word_piece) = (Embedder::load(&path, &EmbedOptions::default()).expect("loads"), embedder(Precision::Q8_0));
    let text = "The pump is red";
    assert_eq!(unigram.token_ids(text).expect("encodes"), word_piece.token_ids(text).expect("encodes"));
    let [one, other] = [&unigram, &word_piece].map(|embedder| embedder.embed_query(text).expect("embeds").vector);
    assert!(cosine(&one, &other) > 0.9999, "the same weights read the same ids");
    std::fs::remove_dir_all(&dir).expect("removed");
}

/// Other GGUF tools tokenise with the vocabulary in the file, which must give the same ids. The ids differ where llama.cpp treats
/// accents unlike BERT (Hangul syllables, Devanagari vowel signs). That is why this crate tokenises itself.
#[test]
fn llama_cpp_reads_the_same_vocabulary() {
    use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
    let params = LlamaModelParams::default().with_vocab_only(true);
    let file = converted(Precision::Q8_0);
    let backend = crate::llama::backend().expect("initialises");
    let llama = LlamaModel::load_from_file(backend, &file.0, &params).expect("loads");
    let differs = |sentence: &Reference| {
        let ids = llama.vocab().tokenize(sentence.text.as_bytes(), true, false);
        let ids: Vec<u32> = ids.iter().map(|id| id.0 as u32).collect();
        !sentence.truncated && ids != sentence.ids
    };
    let (sentences, _) = references();
    let different: Vec<&str> = sentences.iter().filter(|s| differs(s)).map(|s| s.text.as_str()).collect();
    println!("{different:#?}");
    assert!(different.iter().all(|text| text.contains('\u{d38c}') || text.contains('\u{928}')), "{different:#?}");
    assert_eq!(llama.vocab().sep().0, 102);
}
