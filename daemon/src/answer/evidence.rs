//! The sentences of a passage that answer best: what is quoted, and what a small model reads.
//!
//! Sentences are scored by the cosine of their vectors with the question's plus the share of the question's terms that they
//! hold, the rarer the more. Their vectors come with the passages; what a library of an older version, or of another kind of encoder, has none for
//! is encoded, and kept for the next question: people ask about the same pages.

use crate::embed::{EmbedError, Embedder};
use crate::retrieve::{Passage, Statement};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Sentences whose computed vectors are kept: 1.5 kB each at 384 dimensions.
const KEPT_VECTORS: usize = 2048;

/// Weight of the share of the question's terms beside the cosine; flat from 0.3 to 0.6 (`benches/results/evidence.md`).
const COVERAGE_WEIGHT: f32 = 0.45;

/// One sentence of a passage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    /// Where it begins in the passage, in bytes.
    pub(super) at: usize,
    /// The sentence.
    pub(super) text: String,
    /// How well it answers.
    pub(super) score: f32,
}

/// Chooses sentences; cheap to clone.
#[derive(Clone)]
pub(super) struct Selector {
    embedder: Embedder,
    kept: Arc<Mutex<Kept>>,
}

/// Vectors of the sentences seen last, by text.
#[derive(Default)]
struct Kept {
    vectors: HashMap<String, Arc<[f32]>>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Kept {
    fn insert(&mut self, text: &str, vector: Arc<[f32]>) {
        if self.vectors.insert(text.to_owned(), vector).is_none() {
            self.order.push_back(text.to_owned());
        }
        while self.order.len() > KEPT_VECTORS {
            if let Some(oldest) = self.order.pop_front() {
                self.vectors.remove(&oldest);
            }
        }
    }
}

impl Selector {
    pub(super) fn new(embedder: Embedder) -> Self {
        Self { embedder, kept: Arc::default() }
    }

    /// The statements of each passage, best first, for a question's vector.
    pub(super) fn rank(&self, asked: &[f32], passages: &[Passage]) -> Result<Vec<Vec<Scored>>, EmbedError> {
        let without = passages.iter().flat_map(|passage| &passage.statements).filter(|statement| statement.vector.is_none());
        let computed = self.vectors(without.map(|statement| statement.text.as_str()))?;
        let score = |statement: &Statement| {
            let vector = statement.vector.as_deref().or_else(|| computed.get(statement.text.as_str()).map(AsRef::as_ref));
            let cosine = vector.map_or(0.0, |vector| asked.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>());
            cosine + COVERAGE_WEIGHT * statement.coverage
        };
        let rank = |passage: &Passage| {
            let scored =
                |statement: &Statement| Scored { at: statement.at, text: statement.text.clone(), score: score(statement) };
            let mut ranked: Vec<Scored> = passage.statements.iter().map(scored).collect();
            ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
            ranked
        };
        Ok(passages.iter().map(rank).collect())
    }

    /// Vectors of the sentences, computing those that are not kept in one call.
    fn vectors<'a>(&self, sentences: impl Iterator<Item = &'a str>) -> Result<HashMap<&'a str, Arc<[f32]>>, EmbedError> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let unique: BTreeSet<&str> = sentences.collect();
            for sentence in unique {
                match kept.vectors.get(sentence) {
                    Some(vector) => {
                        found.insert(sentence, Arc::clone(vector));
                    }
                    None => missing.push(sentence),
                }
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let texts: Vec<String> = missing.iter().map(|sentence| (*sentence).to_owned()).collect();
        let embeddings = self.embedder.embed(&texts)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for (sentence, embedding) in missing.into_iter().zip(embeddings) {
            let vector: Arc<[f32]> = embedding.vector.into();
            kept.insert(sentence, Arc::clone(&vector));
            found.insert(sentence, vector);
        }
        Ok(found)
    }
}

/// How much a passage's score counts beside its sentence's: a good sentence of the best passage before an equal one elsewhere.
const PASSAGE_WEIGHT: f32 = 0.3;

/// Of each passage what the model reads: the `count` best sentences of all passages together, each where it belongs.
/// A passage without any gets an empty text.
pub(super) fn best_of_all(ranked: &[Vec<Scored>], passage_scores: &[f32], count: usize) -> Vec<String> {
    let weighted =
        |passage: usize, sentence: &Scored| sentence.score + PASSAGE_WEIGHT * passage_scores.get(passage).copied().unwrap_or(0.0);
    let mut all: Vec<(usize, &Scored)> =
        ranked.iter().enumerate().flat_map(|(i, sentences)| sentences.iter().map(move |s| (i, s))).collect();
    all.sort_by(|a, b| weighted(b.0, b.1).total_cmp(&weighted(a.0, a.1)));
    all.truncate(count);
    let of = |passage: usize| {
        let mut chosen: Vec<&Scored> = all.iter().filter(|(i, _)| *i == passage).map(|(_, sentence)| *sentence).collect();
        chosen.sort_by_key(|sentence| sentence.at);
        chosen.iter().map(|sentence| sentence.text.as_str()).collect::<Vec<_>>().join("\n")
    };
    (0..ranked.len()).map(of).collect()
}

/// The `count` best sentences in the order in which they stand in the passage.
pub(super) fn best(ranked: &[Scored], count: usize) -> String {
    let mut chosen: Vec<&Scored> = ranked.iter().take(count).collect();
    chosen.sort_by_key(|sentence| sentence.at);
    chosen.iter().map(|sentence| sentence.text.as_str()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::EmbedOptions;

    #[test]
    fn the_best_sentences_stand_in_reading_order() {
        let scored = |at, text: &str, score| Scored { at, text: text.to_owned(), score };
        let ranked = [scored(2, "c.", 0.9), scored(0, "a.", 0.5), scored(1, "b.", 0.1)];
        assert_eq!(best(&ranked, 2), "a.\nc.");
        assert_eq!(best(&ranked, 9), "a.\nb.\nc.");
        assert_eq!(best(&[], 2), "");
    }

    #[test]
    fn the_oldest_vectors_make_room() {
        let mut kept = Kept::default();
        for i in 0..KEPT_VECTORS + 5 {
            kept.insert(&i.to_string(), vec![0.0].into());
            kept.insert(&i.to_string(), vec![0.0].into());
        }
        assert_eq!(kept.vectors.len(), KEPT_VECTORS);
        assert!(!kept.vectors.contains_key("4") && kept.vectors.contains_key("5"));
    }

    #[test]
    fn passages_of_an_older_library_are_ranked_as_well() {
        let embedder = Embedder::load(&crate::gguf::tests::model("embedder.gguf"), &EmbedOptions::default()).expect("loads");
        let selector = Selector::new(embedder.clone());
        let asked = embedder.embed_query("How long is the warranty?").expect("embeds").vector;
        let said = ["The pump hums.", "The guarantee covers five years.", "Wear parts are excluded."].map(str::to_owned);
        let vectors = embedder.embed(&said).expect("embeds").into_iter().map(|embedding| embedding.vector);
        let statement =
            |(text, vector): (&String, Vec<f32>)| Statement { text: text.clone(), vector: Some(vector), ..Statement::default() };
        let kept = Passage { statements: said.iter().zip(vectors).map(statement).collect(), ..Passage::default() };
        let mut old = kept.clone();
        old.statements.iter_mut().for_each(|statement| statement.vector = None);
        let ranked = selector.rank(&asked, &[old, kept]).expect("ranks");
        assert_eq!(ranked[0][0].text, said[1]);
        for (old, kept) in ranked[0].iter().zip(&ranked[1]) {
            assert_eq!(old.text, kept.text);
            assert!((old.score - kept.score).abs() < 1e-3);
        }
        assert_eq!(selector.kept.lock().expect("sound").vectors.len(), 3, "only what came without vectors is encoded");
        let unlike = Statement { text: said[0].clone(), vector: Some(asked.clone()), ..Statement::default() };
        let ranked = selector.rank(&asked, &[Passage { statements: vec![unlike], ..Passage::default() }]).expect("ranks");
        assert!(ranked[0][0].score > 0.99, "what was kept counts, not what would be computed");
    }
}
