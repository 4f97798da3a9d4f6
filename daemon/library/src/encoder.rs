//! The encoder as the library sees it. [`Encoder`] is the border: no model and no llama.cpp is known behind it.

use std::{error::Error, ops::Range};

use crate::store::EmbedderId;

/// Turns texts into unit vectors. Vectors of different fingerprints must not be compared.
pub trait Encoder: Send + Sync {
    /// The model's name, for people.
    fn name(&self) -> &str;

    /// Identity of model and tokenizer.
    fn fingerprint(&self) -> &str;

    /// Numbers per vector.
    fn dimensions(&self) -> usize;

    /// Longest text in tokens; longer ones are truncated.
    fn max_tokens(&self) -> usize;

    /// Tokens of a text, without truncation.
    fn count_tokens(&self, text: &str) -> usize;

    /// Letters for each token, over the words of a text: how well the vocabulary knows the language. 0 without words.
    fn letters_per_token(&self, text: &str) -> f32;

    /// The vector of a question, ahead of all texts that wait. Blocks.
    fn embed_query(&self, text: &str) -> Result<Vec<f32>, EncodeError>;

    /// The vectors of texts and of their parts, in order. Blocks.
    fn embed_parted(&self, texts: Vec<Parted>) -> Result<Vec<Encoded>, EncodeError>;

    /// The encoder as a store is bound to it.
    fn id(&self) -> EmbedderId {
        EmbedderId { name: self.name().into(), fingerprint: self.fingerprint().into(), dimensions: self.dimensions() }
    }
}

/// A text and the parts of it that get vectors of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parted {
    /// The text.
    pub text: String,
    /// The parts: byte ranges at characters' boundaries.
    pub parts: Vec<Range<usize>>,
}

/// The vectors of a [`Parted`].
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The text's unit vector.
    pub vector: Vec<f32>,
    /// Whether the text was longer than the model takes, and was cut.
    pub truncated: bool,
    /// The parts' unit vectors, in order.
    pub parts: Vec<Vec<f32>>,
}

/// A failure of the encoder, in its own words.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EncodeError(Box<dyn Error + Send + Sync>);

impl EncodeError {
    /// Wraps the encoder's own error.
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }
}

/// The real encoder, for tests.
#[cfg(test)]
pub(crate) mod real {
    use std::sync::Arc;

    use llm::embed::{EmbedOptions, Embedder};

    use super::{EncodeError, Encoded, Encoder, Parted};

    /// Loads the encoder that `make setup` fetches.
    pub(crate) fn embedder() -> Embedder {
        Embedder::load(&llm::gguf::test_model("embedder.gguf"), &EmbedOptions::default()).expect("the encoder loads")
    }

    /// `embedder` behind the border.
    pub(crate) fn encoder(embedder: &Embedder) -> Arc<dyn Encoder> {
        Arc::new(Real(embedder.clone()))
    }

    struct Real(Embedder);

    impl Encoder for Real {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn fingerprint(&self) -> &str {
            self.0.fingerprint()
        }

        fn dimensions(&self) -> usize {
            self.0.dimensions()
        }

        fn max_tokens(&self) -> usize {
            self.0.max_tokens()
        }

        fn count_tokens(&self, text: &str) -> usize {
            self.0.count_tokens(text)
        }

        fn letters_per_token(&self, text: &str) -> f32 {
            self.0.letters_per_token(text)
        }

        fn embed_query(&self, text: &str) -> Result<Vec<f32>, EncodeError> {
            Ok(self.0.embed_query(text).map_err(EncodeError::new)?.vector)
        }

        fn embed_parted(&self, texts: Vec<Parted>) -> Result<Vec<Encoded>, EncodeError> {
            let texts: Vec<_> = texts.into_iter().map(|Parted { text, parts }| llm::embed::Parted { text, parts }).collect();
            let embedded = self.0.embed_parted(&texts).map_err(EncodeError::new)?;
            let encoded =
                |(whole, parts): llm::embed::WithParts| Encoded { vector: whole.vector, truncated: whole.truncated, parts };
            Ok(embedded.into_iter().map(encoded).collect())
        }
    }
}
