//! Adapts llama.cpp's encoder to the library's interface.

use library::{EncodeError, Encoded, Parted};
use llm::embed::{Embedder, WithParts};

/// An [`Embedder`] for the library.
#[derive(Clone)]
pub struct Encoder(pub Embedder);

impl library::Encoder for Encoder {
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
        let encoded = |(whole, parts): WithParts| Encoded { vector: whole.vector, truncated: whole.truncated, parts };
        Ok(embedded.into_iter().map(encoded).collect())
    }
}
