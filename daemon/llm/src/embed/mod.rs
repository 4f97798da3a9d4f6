//! Text to unit vectors: Hugging Face `tokenizers` makes the token ids, llama.cpp runs the encoder.
//!
//! Each worker thread owns a llama.cpp context. Callers tokenise on their own threads and hand packs of sequences to the workers
//! through a bounded queue. Queries overtake waiting batches there, so that a question waits for one forward pass at most while
//! documents are read in.

mod tokens;
mod worker;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::gguf::{Gguf, GgufError, ModelKind, Pooling};
use crate::llama::{self, LlamaError, Pulse};
use tokens::{TextTokenizer, Tokens};
use worker::{Limits, Output, Pooled, Sequence, Worker};

/// Options of an embedder.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// Parallel forward passes, each on one CPU thread and with working memory of its own.
    pub threads: usize,
    /// Tokens of one forward pass; the longest input always fits. Larger is not better: attention within a pass grows with the
    /// square, and a query waits for one pass at most.
    pub batch_tokens: usize,
    /// A tokenizer.json to use instead of the one in or beside the model file.
    pub tokenizer: Option<PathBuf>,
}

impl Default for EmbedOptions {
    fn default() -> EmbedOptions {
        EmbedOptions { threads: 1, batch_tokens: 256, tokenizer: None }
    }
}

/// A text as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Unit length; as many numbers as [`Embedder::dimensions`].
    pub vector: Vec<f32>,
    /// Tokens of the text that went into it, without special tokens.
    pub tokens: usize,
    /// Whether the text was longer than the model takes, and was cut.
    pub truncated: bool,
}

/// A text and its parts, as byte ranges that get vectors of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parted {
    /// The text.
    pub text: String,
    /// The parts, at character boundaries.
    pub parts: Vec<Range<usize>>,
}

impl Parted {
    /// The parts without a token.
    fn without_tokens<'a>(&'a self, tokens: &'a Tokens) -> impl Iterator<Item = String> + 'a {
        let missing = self.parts.iter().zip(&tokens.parts).filter(|(_, found)| found.is_none());
        missing.map(|(part, _)| self.text[part.clone()].to_owned())
    }
}

/// The embedding of a text, and unit vectors of its parts.
pub type WithParts = (Embedding, Vec<Vec<f32>>);

/// An error of the embedder.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The model file cannot be read.
    #[error(transparent)]
    Model(#[from] GgufError),
    /// The model does not fit, or llama.cpp is not available.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A generator, an adapter or the like.
    #[error(
        "{path} is not an embedder: {found}; give a GGUF of a sentence encoder (BERT family), for instance one made \
         with `vademecum model convert`"
    )]
    NotAnEncoder {
        /// The model file.
        path: String,
        /// Its architecture or type.
        found: String,
    },
    /// The file names no pooling, or an unsupported one.
    #[error(
        "{path} cannot be used as an embedder: its pooling is {found}, mean or CLS is needed; convert the model \
         again from its sentence-transformers directory"
    )]
    Pooling {
        /// The model file.
        path: String,
        /// The pooling it names.
        found: String,
    },
    /// Metadata that an encoder must have is absent or contradicts the tensors.
    #[error("{path} is not a complete encoder: {what}; convert the model again")]
    Incomplete {
        /// The model file.
        path: String,
        /// The fault.
        what: String,
    },
    /// Token ids cannot be made.
    #[error(
        "no tokenizer for {path}: it holds no `tokenizer.huggingface.json` and there is no tokenizer.json beside it; put \
         the model's tokenizer.json there, or name it in the configuration"
    )]
    TokenizerMissing {
        /// The model file.
        path: String,
    },
    /// The tokenizer is damaged or belongs to another model.
    #[error("the tokenizer from {from} cannot be used: {what}; take the tokenizer.json that belongs to the model")]
    Tokenizer {
        /// Its file.
        from: String,
        /// The fault.
        what: String,
    },
    /// llama.cpp refused the file, the context or a batch.
    #[error("llama.cpp: {0}; see its log (target `llama.cpp`)")]
    Run(String),
    /// The result is not a vector of finite numbers with a direction.
    #[error("the model gives no usable vector for this text; the model file is probably damaged")]
    NotFinite,
    /// A text without a token for a model without special tokens.
    #[error("the text is empty; give some text")]
    EmptyText,
    /// The owner thread has ended.
    #[error("the embedder has stopped; see the log for the reason and restart")]
    Stopped,
}

/// Handle to a loaded encoder. Clones share it; dropping the last one ends its threads.
#[derive(Clone)]
pub struct Embedder {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    fingerprint: String,
    dimensions: usize,
    limits: Limits,
    /// Whether parts can be pooled. The mean has no meaning for a model that pools its first token.
    pools_parts: bool,
    tokenizer: TextTokenizer,
    worker: Worker,
}

impl Embedder {
    /// Loads the encoder. Everything on which llama.cpp would abort is checked first.
    pub fn load(path: &Path, options: &EmbedOptions) -> Result<Embedder, EmbedError> {
        let gguf = Gguf::open(path)?;
        let pooling = check_kind(&gguf)?;
        let (dimensions, positions) = check_shape(&gguf)?;
        let longest = gguf.unsigned(crate::gguf::MAX_SEQ_LENGTH).map_or(positions, |max| positions.min(max as usize));
        let (tokenizer, source_hash) = TextTokenizer::load(&gguf, options.tokenizer.as_deref(), longest)?;
        let limits = Limits::new(options, longest);
        llama::check_fits(&gguf, limits.batch_tokens as u32, limits.batch_tokens as u32, &llama::available_memory())?;
        let mut fingerprint = gguf.fingerprint();
        if let Some(hash) = source_hash {
            // Another tokenizer makes other vectors.
            fingerprint = format!("{}+{}", &fingerprint[..32], &hash[..31]);
        }
        let name = gguf.name();
        // The worker maps the file itself.
        drop(gguf);
        let worker = Worker::start(path, limits, options.threads.clamp(1, 256), Output { dimensions, pooling })?;
        let pools_parts = pooling == Pooling::Mean;
        Ok(Embedder { shared: Arc::new(Shared { name, fingerprint, dimensions, limits, pools_parts, tokenizer, worker }) })
    }

    /// The signs of life of the worker threads.
    pub fn pulses(&self) -> &[Pulse] {
        self.shared.worker.pulses()
    }

    /// The model's name, from its file.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Identity of model and tokenizer: vectors of different fingerprints must not be compared.
    pub fn fingerprint(&self) -> &str {
        &self.shared.fingerprint
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.shared.dimensions
    }

    /// Longest text in tokens, as [`Embedder::count_tokens`] counts them; longer ones are truncated.
    pub fn max_tokens(&self) -> usize {
        self.shared.tokenizer.max_text_tokens()
    }

    /// Tokens of a text, without special tokens and without truncation. Does not wait for the encoder. A text that
    /// cannot be tokenised counts as 0 here and is an error in [`Embedder::embed`].
    pub fn count_tokens(&self, text: &str) -> usize {
        self.shared.tokenizer.count(text)
    }

    /// Letters for each token, over the words of a text; 0 without words. A vocabulary that knows a language has most of its words
    /// whole: 4 letters and more. An unknown word counts as many tokens as letters. Letters are weighed by script, so that the
    /// figure means the same for all (`docs/decisions/0048-the-encoder-counts-as-far-as-it-knows-the-language.md`).
    pub fn letters_per_token(&self, text: &str) -> f32 {
        self.shared.tokenizer.letters_per_token(text)
    }

    /// The token ids that the encoder sees for a text: with special tokens, truncated.
    pub fn token_ids(&self, text: &str) -> Result<Vec<u32>, EmbedError> {
        let tokens = self.shared.tokenizer.encode(text, &[])?;
        Ok(tokens.ids.iter().map(|id| *id as u32).collect())
    }

    /// Embeds one text ahead of all batches that wait. Blocks for at most the pass that runs, then its own.
    pub fn embed_query(&self, text: &str) -> Result<Embedding, EmbedError> {
        let tokens = self.shared.tokenizer.encode(text, &[])?;
        let sequence = Sequence { ids: tokens.ids.clone(), parts: Vec::new() };
        let pooled = self.shared.worker.query(sequence)?;
        pooled.into_iter().next().map(|pooled| embedding(pooled.whole, &tokens)).ok_or(EmbedError::Stopped)
    }

    /// Embeds texts, in order. Blocks; passes are packed by tokens, texts of similar length together. An empty text has
    /// the vector of its special tokens alone.
    pub fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, EmbedError> {
        let all = texts.iter().map(|text| self.shared.tokenizer.encode(text, &[])).collect::<Result<Vec<_>, _>>()?;
        let pooled = self.pooled(&all)?;
        Ok(pooled.into_iter().zip(&all).map(|(pooled, tokens)| embedding(pooled.whole, tokens)).collect())
    }

    /// Like [`Embedder::embed`], with a unit vector for each part of each text. A part's vector is the mean of its tokens'
    /// vectors from the same pass, which depend on the whole text (late chunking, Günther et al. 2024, arXiv 2409.04701).
    ///
    /// A part beyond the model's longest text, or without a token, is embedded on its own. With a model whose pooling is
    /// not the mean there are no vectors of parts.
    pub fn embed_parted(&self, texts: &[Parted]) -> Result<Vec<WithParts>, EmbedError> {
        let all = texts.iter().map(|text| {
            let parts = if self.shared.pools_parts { text.parts.as_slice() } else { &[] };
            self.shared.tokenizer.encode(&text.text, parts)
        });
        let all = all.collect::<Result<Vec<_>, _>>()?;
        let alone: Vec<String> = texts.iter().zip(&all).flat_map(|(text, tokens)| text.without_tokens(tokens)).collect();
        let mut alone = self.embed(&alone)?.into_iter().map(|embedding| embedding.vector);
        let mut embedded = Vec::with_capacity(texts.len());
        for (pooled, tokens) in self.pooled(&all)?.into_iter().zip(&all) {
            let mut pooled_parts = pooled.parts.into_iter();
            let vector = |part: &Option<_>| if part.is_some() { pooled_parts.next() } else { alone.next() };
            let parts = tokens.parts.iter().map(vector).collect::<Option<Vec<_>>>().ok_or(EmbedError::Stopped)?;
            embedded.push((embedding(pooled.whole, tokens), parts));
        }
        Ok(embedded)
    }

    /// The vectors of texts, in order.
    fn pooled(&self, all: &[Tokens]) -> Result<Vec<Pooled>, EmbedError> {
        let packs = pack(all, &self.shared.limits);
        let sequence = |index: usize| {
            let tokens: &Tokens = &all[index];
            Sequence { ids: tokens.ids.clone(), parts: tokens.parts.iter().flatten().cloned().collect() }
        };
        let mut pooled: Vec<Option<Pooled>> = vec![None; all.len()];
        for (index, vectors) in self.shared.worker.batches(&packs, sequence)? {
            pooled[index] = Some(vectors);
        }
        pooled.into_iter().map(|each| each.ok_or(EmbedError::Stopped)).collect()
    }
}

fn embedding(vector: Vec<f32>, tokens: &Tokens) -> Embedding {
    Embedding { vector, tokens: tokens.of_text, truncated: tokens.truncated }
}

fn check_kind(gguf: &Gguf) -> Result<Pooling, EmbedError> {
    let path = gguf.path().display().to_string();
    let not_an_encoder = |found: String| EmbedError::NotAnEncoder { path: path.clone(), found };
    match gguf.kind() {
        ModelKind::Encoder(pooling @ (Pooling::Mean | Pooling::Cls)) if gguf.is_encoder_architecture() => Ok(pooling),
        ModelKind::Encoder(Pooling::Rank) => Err(not_an_encoder("it is a reranker".into())),
        ModelKind::Encoder(_) if !gguf.is_encoder_architecture() => {
            Err(not_an_encoder(format!("it is an embedder made of a generator (architecture `{}`)", gguf.architecture())))
        }
        ModelKind::Encoder(pooling) => Err(EmbedError::Pooling { found: format!("{pooling:?}").to_lowercase(), path }),
        ModelKind::Generator => Err(not_an_encoder(format!("it is a generator (architecture `{}`)", gguf.architecture()))),
        ModelKind::Other => Err(not_an_encoder("it holds no complete model".into())),
    }
}

/// The dimensions and the number of positions, if they and the tensors agree.
fn check_shape(gguf: &Gguf) -> Result<(usize, usize), EmbedError> {
    let incomplete = |what: &str| EmbedError::Incomplete { path: gguf.path().display().to_string(), what: what.to_owned() };
    let width = gguf.embedding_length().filter(|n| (1..=65_536).contains(n));
    let width = width.ok_or_else(|| incomplete("it gives no usable embedding length"))?;
    let heads = gguf.heads().filter(|n| *n > 0 && width % n == 0);
    heads.ok_or_else(|| incomplete("its number of attention heads does not divide the embedding length"))?;
    let positions = gguf.context_length().filter(|n| (8..=1 << 20).contains(n));
    let mut positions = positions.ok_or_else(|| incomplete("it gives no usable context length"))?;
    match gguf.tensor("token_embd.weight").map(|tensor| tensor.dims.as_slice()) {
        Some([columns, _]) if *columns == width => {}
        _ => {
            return Err(incomplete("its token embedding is missing or has another width"));
        }
    }
    if let Some(table) = gguf.tensor("position_embd.weight") {
        // llama.cpp reads a position beyond the table from other memory, or ends the process.
        positions = positions.min(table.dims.get(1).copied().unwrap_or(1));
    }
    Ok((width as usize, positions as usize))
}

/// Packs texts into passes: sorted by length, filled up to the limits of a pass.
fn pack(all: &[Tokens], limits: &Limits) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|index| all[*index].ids.len());
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        let len = all[index].ids.len();
        match packs.last_mut() {
            Some(pack) if tokens + len <= limits.batch_tokens && pack.len() < limits.sequences => {
                pack.push(index);
            }
            _ => {
                packs.push(vec![index]);
                tokens = 0;
            }
        }
        tokens += len;
    }
    packs
}

#[cfg(test)]
mod tests;
