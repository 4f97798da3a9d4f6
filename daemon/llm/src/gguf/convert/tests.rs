use super::*;
use crate::gguf::test_model as model;
use crate::gguf::{ModelKind, Pooling, Value};

/// A directory for one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("vademecum-convert-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        Dir(dir)
    }

    /// A copy of the test model whose files can be changed; the weights are linked.
    fn minilm(name: &str) -> Dir {
        let (dir, source) = (Dir::new(name), model("minilm"));
        fs::create_dir_all(dir.0.join("1_Pooling")).expect("a directory");
        for file in ["config.json", "tokenizer.json", "modules.json", "README.md", "1_Pooling/config.json"] {
            fs::copy(source.join(file), dir.0.join(file)).expect("copied");
        }
        let weights = fs::canonicalize(source.join("model.safetensors")).expect("weights");
        std::os::unix::fs::symlink(weights, dir.0.join("model.safetensors")).expect("linked");
        dir
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.contains(from), "{file} holds {from}");
        fs::write(path, text.replace(from, to)).expect("written");
    }

    fn convert(&self) -> Result<Converted, ConvertError> {
        convert(&self.0, &self.0.join("out.gguf"), Precision::F16, &mut |_, _| {})
    }

    fn refusal(&self) -> String {
        let error = self.convert().expect_err("refused").to_string();
        let left: Vec<_> = fs::read_dir(&self.0).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("out.gguf")), "{left:?}");
        error
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn names_and_types_are_those_of_llama_cpp() {
    let dir = Dir::minilm("names");
    let mut steps = Vec::new();
    let out = dir.0.join("out.gguf");
    let converted = convert(&model("minilm"), &out, Precision::Q8_0, &mut |done, total| steps.push((done, total)));
    let converted = converted.expect("converts");
    assert!(converted.notes.is_empty(), "{:?}", converted.notes);
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    assert_eq!((first.0, last.0), (0, last.1));
    let gguf = Gguf::open(&out).expect("opens");
    assert_eq!(gguf.kind(), ModelKind::Encoder(Pooling::Mean));
    assert_eq!((gguf.name().as_str(), gguf.license()), ("all-MiniLM-L6-v2", Some("apache-2.0")));
    let stored = |name: &str| gguf.tensor(name).map(|tensor| (tensor.tensor_type.name, tensor.dims.clone()));
    assert_eq!(stored("token_embd.weight"), Some(("Q8_0", vec![384, 30_522])));
    assert_eq!(stored("position_embd.weight"), Some(("F32", vec![384, 512])));
    assert_eq!(stored("token_types.weight"), Some(("F32", vec![384, 2])));
    assert_eq!(stored("blk.5.ffn_down.weight"), Some(("Q8_0", vec![1536, 384])));
    assert_eq!(stored("blk.5.attn_output_norm.bias"), Some(("F32", vec![384])));
    assert_eq!(gguf.tensors().len(), 5 + 6 * 16);
    assert_eq!(gguf.unsigned(MAX_SEQ_LENGTH), Some(256));
    assert_eq!(gguf.boolean("bert.attention.causal"), Some(false));
    assert_eq!(gguf.unsigned("tokenizer.ggml.seperator_token_id"), Some(102));
    let Some(Value::Array(tokens)) = gguf.value("tokenizer.ggml.tokens") else {
        panic!("a vocabulary");
    };
    let tokens: Vec<&str> = tokens.texts().collect();
    assert_eq!(tokens.len(), 30_522);
    // [CLS], a beginning of a word, a continuation (`##s`).
    assert_eq!((tokens[101], tokens[1037], tokens[2015]), ("[CLS]", "\u{2581}a", "s"));
    let json = fs::read_to_string(model("minilm").join("tokenizer.json")).expect("a tokenizer");
    assert_eq!(gguf.text(TOKENIZER_JSON), Some(json.as_str()));
    println!("{}", converted.report);
}

#[test]
fn f16_rounds_and_f32_stays() {
    let dir = Dir::minilm("values");
    dir.convert().expect("converts");
    let gguf = Gguf::open(&dir.0.join("out.gguf")).expect("opens");
    let file = fs::read(dir.0.join("model.safetensors")).expect("weights");
    let weights = safetensors::SafeTensors::deserialize(&file).expect("sound");
    let data = |name: &str| gguf.tensor_data(gguf.tensor(name).expect("a tensor")).expect("its data").to_vec();
    let source = |name: &str| weights.tensor(name).expect("a tensor").data().to_vec();
    assert_eq!(data("position_embd.weight"), source("embeddings.position_embeddings.weight"));
    let exact = source("encoder.layer.3.output.dense.weight");
    let rounded = data("blk.3.ffn_down.weight");
    for (exact, rounded) in exact.chunks_exact(4).zip(rounded.chunks_exact(2)) {
        let exact = f32::from_le_bytes([exact[0], exact[1], exact[2], exact[3]]);
        assert_eq!(half::f16::from_f32(exact).to_le_bytes(), [rounded[0], rounded[1]]);
    }
}

#[test]
fn unsupported_models_are_refused_by_name() {
    let cases = [
        ("config.json", "\"BertModel\"", "\"XLMRobertaModel\"", "the architecture XLMRobertaModel"),
        ("config.json", "\"absolute\"", "\"relative_key\"", "position embeddings of type `relative_key`"),
        ("config.json", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "the activation `relu`"),
        ("config.json", "\"hidden_size\": 384", "\"hidden_size\": 768", "config.json asks for [30522, 768]"),
        (
            "config.json",
            "\"num_hidden_layers\": 6",
            "\"num_hidden_layers\": 7",
            "encoder.layer.6.attention.self.query.weight` is missing",
        ),
        ("config.json", "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 5", "the tensor `encoder.layer.5."),
        ("config.json", "\"num_attention_heads\": 12", "\"num_attention_heads\": 0", "impossible sizes"),
        ("config.json", "{", "", "config.json is damaged"),
        ("1_Pooling/config.json", "mean_tokens\": true", "max_tokens\": true", "the pooling"),
        ("modules.json", "models.Normalize", "models.Dense", "the module `sentence_transformers.models.Dense`"),
        ("modules.json", "1_Pooling", "../1_Pooling", "leaves the directory"),
        ("tokenizer.json", "\"type\":\"WordPiece\"", "\"type\":\"BPE\"", "a `BPE` tokenizer"),
    ];
    for (number, (file, from, to, expected)) in cases.into_iter().enumerate() {
        let dir = Dir::minilm(&format!("refuse{number}"));
        dir.edit(file, from, to);
        let refusal = dir.refusal();
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn missing_and_damaged_files_are_named() {
    for (file, expected) in [
        ("tokenizer.json", "tokenizer.json is missing"),
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
    ] {
        let dir = Dir::minilm(&format!("missing-{file}"));
        fs::remove_file(dir.0.join(file)).expect("removed");
        assert!(dir.refusal().contains(expected), "{}", dir.refusal());
    }
    let dir = Dir::minilm("old");
    fs::rename(dir.0.join("model.safetensors"), dir.0.join("pytorch_model.bin")).expect("renamed");
    assert!(dir.refusal().contains("pytorch_model.bin is not converted"), "{}", dir.refusal());
    fs::write(dir.0.join("model.safetensors"), b"no weights at all").expect("written");
    assert!(dir.refusal().contains("invalid safetensors"), "{}", dir.refusal());
    assert!(Directory::open(Path::new("/nowhere")).err().is_some_and(|error| error.to_string().contains("/nowhere")));
}

#[test]
fn mean_is_assumed_without_a_pooling_file() {
    let dir = Dir::minilm("pooling");
    fs::remove_file(dir.0.join("1_Pooling/config.json")).expect("removed");
    fs::remove_file(dir.0.join("README.md")).expect("removed");
    let converted = dir.convert().expect("converts");
    assert_eq!(converted.notes.len(), 2, "{:?}", converted.notes);
    assert!(converted.notes[0].contains("mean pooling is assumed"));
    dir.edit("modules.json", "1_Pooling", "2_Pooling");
    fs::create_dir_all(dir.0.join("2_Pooling")).expect("a directory");
    fs::write(dir.0.join("2_Pooling/config.json"), "{\"pooling_mode_cls_token\": true}").expect("written");
    dir.convert().expect("converts");
    let gguf = Gguf::open(&dir.0.join("out.gguf")).expect("opens");
    assert_eq!(gguf.kind(), ModelKind::Encoder(Pooling::Cls));
}
