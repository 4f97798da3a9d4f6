//! Which passages of the library answer a question, and how sure that is.
//!
//! Every chunk is scored twice, by the cosine of its embedding and by BM25F over its terms; both are normalised over the
//! collection and summed. The best chunks become passages, neighbours joined; a logistic function of a few features of
//! the scores says how sure the library holds an answer at all.

mod confidence;
mod passages;
mod score;
mod sentences;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

pub use confidence::{Calibration, Features, MARGIN_RANK};
pub use sentences::sentences;

use crate::embed::{EmbedError, Embedder};
use crate::store::{Chunk, Index, IndexedDocument, Store, StoreError};
use score::Scores;

/// Most passages one question may ask for.
pub const MAX_TOP_K: usize = 100;
/// Ranked chunks looked at per passage asked for; the rest is room for neighbours that join.
const CANDIDATES_PER_PASSAGE: usize = 4;

/// A question to the library.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The question.
    pub text: String,
    /// The collection it is asked to.
    pub collection: String,
    /// Tag -> accepted values; a document has to match one value of every tag. `document` stands for the document's id.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Passages wanted, 1 to [`MAX_TOP_K`].
    pub top_k: usize,
}

/// A piece of a document that may answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Id of the document.
    pub document: String,
    /// Its title.
    pub title: String,
    /// Headings above the passage, `A > B`.
    pub heading: String,
    /// Page it begins on, where the source has pages.
    pub page: Option<u32>,
    /// Id of the chunk that ranked highest in it.
    pub chunk: String,
    /// Its fused score, 0 to 1 within this retrieval.
    pub score: f32,
    /// Its cosine with the question.
    pub dense: f32,
    /// Its BM25F score.
    pub lexical: f32,
    /// The text, of one chunk or of neighbours joined.
    pub text: String,
}

/// What a question found.
#[derive(Clone, Debug, Default)]
pub struct Retrieval {
    /// Best first.
    pub passages: Vec<Passage>,
    /// How sure the library holds an answer, 0 to 1; 0 when nothing was found.
    pub confidence: f32,
    /// What the confidence was computed from; `None` when nothing was found.
    pub features: Option<Features>,
    /// The question's unit vector; empty when there was nothing to search.
    pub vector: Vec<f32>,
    /// Milliseconds to embed the question.
    pub embed_ms: f64,
    /// Milliseconds to score, rank and read the passages.
    pub search_ms: f64,
}

/// Why a question could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// No collection has that name.
    #[error("there is no collection {name:?}; there are: {}", known.join(", "))]
    UnknownCollection {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The question's vector cannot be compared with the stored ones.
    #[error(
        "the embedder makes {found} numbers per text, the store holds {expected}; use the embedder the store was made with, or run `vademecum ingest --re-embed`"
    )]
    Dimensions {
        /// Numbers per stored vector.
        expected: usize,
        /// Numbers per vector of this embedder.
        found: usize,
    },
    /// The question could not be embedded.
    #[error("the question cannot be embedded: {0}")]
    Embed(#[source] EmbedError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Answers queries from a store; cheap to clone.
#[derive(Clone)]
pub struct Retriever {
    store: Store,
    embedder: Embedder,
}

/// A ranked chunk, not read yet.
struct Candidate {
    number: u64,
    ordinal: u32,
    fused: f32,
    dense: f32,
    lexical: f32,
}

impl Retriever {
    /// A retriever over `store` with the embedder that made its vectors.
    pub fn new(store: Store, embedder: Embedder) -> Retriever {
        Retriever { store, embedder }
    }

    /// The passages that fit the query best. An empty library finds nothing; an unknown collection is an error.
    pub fn search(&self, query: &Query) -> Result<Retrieval, RetrieveError> {
        let count = query.top_k.clamp(1, MAX_TOP_K);
        let (vector, embed_ms) = self.embed(&query.text)?;
        let started = Instant::now();
        let found = self.with_scores(query, &vector, |index, scores, terms| {
            let best = scores.best(count * CANDIDATES_PER_PASSAGE);
            let features = best.first().map(|&at| features(index, scores, terms, at));
            let small = scores.taking_part <= MARGIN_RANK;
            let candidates = best.into_iter().filter_map(|at| candidate(index, scores, at)).collect::<Vec<_>>();
            (candidates, features, small)
        })?;
        let Some((candidates, Some(features), small)) = found else {
            return Ok(Retrieval { embed_ms, search_ms: milliseconds(started), ..Retrieval::default() });
        };
        log::debug!("{features:?}");
        let passages = self.read_passages(&query.collection, &candidates, count)?;
        Ok(Retrieval {
            confidence: self.confidence(&features, small, &vector, &passages)?,
            vector,
            passages,
            features: Some(features),
            embed_ms,
            search_ms: milliseconds(started),
        })
    }

    /// How sure the library holds an answer. In a library of a few chunks the margin means nothing and a chunk speaks of many
    /// things, so there the best sentence counts as well.
    fn confidence(&self, features: &Features, small: bool, question: &[f32], passages: &[Passage]) -> Result<f32, RetrieveError> {
        if passages.is_empty() {
            return Ok(0.0);
        }
        let confidence = confidence::DEFAULT.confidence(features);
        if !small {
            return Ok(confidence);
        }
        let texts: Vec<String> = passages.iter().flat_map(|passage| sentences(&passage.text)).map(str::to_owned).collect();
        let embeddings = self.embedder.embed(&texts).map_err(RetrieveError::Embed)?;
        let cosine =
            |embedding: &crate::embed::Embedding| question.iter().zip(&embedding.vector).map(|(a, b)| a * b).sum::<f32>();
        let best = embeddings.iter().map(cosine).fold(0.0, f32::max);
        Ok(confidence.max(confidence::of_sentence(best)))
    }

    /// Whole documents ranked by their best chunk: ids and fused scores of the `count` best, best first.
    pub fn rank_documents(&self, query: &Query, count: usize) -> Result<Vec<(String, f32)>, RetrieveError> {
        let (vector, _) = self.embed(&query.text)?;
        let ranked = self.with_scores(query, &vector, |index, scores, _| {
            let mut best: HashMap<u32, f32> = HashMap::new();
            for (&row, &fused) in scores.rows.iter().zip(&scores.fused) {
                let score = best.entry(index.place(row).slot).or_insert(fused);
                *score = score.max(fused);
            }
            let named = best.into_iter().filter_map(|(slot, score)| Some((index.document(slot)?.id.clone(), score)));
            let mut ranked: Vec<(String, f32)> = named.collect();
            ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
            ranked.truncate(count);
            ranked
        })?;
        Ok(ranked.unwrap_or_default())
    }

    fn embed(&self, text: &str) -> Result<(Vec<f32>, f64), RetrieveError> {
        let started = Instant::now();
        let embedding = self.embedder.embed_query(text).map_err(RetrieveError::Embed)?;
        Ok((embedding.vector, milliseconds(started)))
    }

    /// Scores the collection and hands the scores to `read`; `None` when the library is empty.
    fn with_scores<R>(
        &self,
        query: &Query,
        vector: &[f32],
        read: impl Fn(&Index, &Scores, &BTreeMap<String, u32>) -> R,
    ) -> Result<Option<R>, RetrieveError> {
        let terms = score::query_terms(&query.text);
        let scored = self.store.search(&query.collection, |index| {
            if index.live().is_empty() {
                return Ok(None);
            }
            if index.dimensions() != vector.len() {
                return Err(RetrieveError::Dimensions { expected: index.dimensions(), found: vector.len() });
            }
            let selected = if query.filter.is_empty() {
                Cow::Borrowed(index.live())
            } else {
                Cow::Owned(index.select(|document| accepts(&query.filter, document)))
            };
            let scores = Scores::new(index, vector, &terms, &selected);
            Ok(Some(read(index, &scores, &terms)))
        })?;
        if let Some(scored) = scored {
            return scored;
        }
        let known: Vec<String> = self.store.collections()?.into_iter().map(|collection| collection.name).collect();
        if known.is_empty() {
            return Ok(None);
        }
        Err(RetrieveError::UnknownCollection { name: query.collection.chars().take(64).collect(), known })
    }

    /// Reads the candidates' chunks and makes passages of them. A document replaced since it was ranked is left out.
    fn read_passages(&self, collection: &str, candidates: &[Candidate], count: usize) -> Result<Vec<Passage>, RetrieveError> {
        let mut chunks: Vec<(usize, u64, Chunk)> = Vec::with_capacity(candidates.len());
        for (at, candidate) in candidates.iter().enumerate() {
            if let Some(chunk) = self.store.chunk(candidate.number, candidate.ordinal)? {
                chunks.push((at, candidate.number, chunk));
            }
        }
        let origins: Vec<usize> = chunks.iter().map(|(at, _, _)| *at).collect();
        let runs = passages::group(chunks.into_iter().map(|(_, number, chunk)| (number, chunk)), count);
        let mut passages = Vec::with_capacity(runs.len());
        for run in runs {
            let candidate = &candidates[origins[run.rank]];
            let best = &run.chunks[run.best];
            let document = self.store.document(collection, &best.document)?;
            passages.push(Passage {
                document: best.document.clone(),
                title: document.map(|document| document.title).unwrap_or_default(),
                heading: best.heading.join(" > "),
                page: run.chunks.first().and_then(|chunk| chunk.page),
                chunk: best.id(),
                score: candidate.fused,
                dense: candidate.dense,
                lexical: candidate.lexical,
                text: run.text(),
            });
        }
        Ok(passages)
    }
}

/// The `count` chunks that fit the words of `text` best, by BM25F alone: ids and scores, best first. Needs no embedder.
pub fn rank_lexical(store: &Store, collection: &str, text: &str, count: usize) -> Result<Vec<(String, f32)>, RetrieveError> {
    let terms = score::query_terms(text);
    let ranked = store.search(collection, |index| {
        let scores = score::lexical(index, &terms);
        let mut rows: Vec<u32> = (0..index.rows() as u32).filter(|row| scores[*row as usize] > 0.0).collect();
        let order = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        if count < rows.len() {
            rows.select_nth_unstable_by(count, order);
            rows.truncate(count);
        }
        rows.sort_unstable_by(order);
        let named = rows.into_iter().filter_map(|row| {
            let place = index.place(row);
            Some((format!("{}#{}", index.document(place.slot)?.id, place.ordinal), scores[row as usize]))
        });
        named.collect()
    })?;
    Ok(ranked.unwrap_or_default())
}

fn candidate(index: &Index, scores: &Scores, at: usize) -> Option<Candidate> {
    let place = index.place(scores.rows[at]);
    Some(Candidate {
        number: index.document(place.slot)?.number,
        ordinal: place.ordinal,
        fused: scores.fused[at],
        dense: scores.dense[at],
        lexical: scores.lexical[at],
    })
}

fn features(index: &Index, scores: &Scores, terms: &BTreeMap<String, u32>, best: usize) -> Features {
    let mut dense = scores.dense.clone();
    let wanted = dense.len().min(MARGIN_RANK + 1);
    if wanted < dense.len() {
        dense.select_nth_unstable_by(wanted, |a, b| b.total_cmp(a));
        dense.truncate(wanted);
    }
    dense.sort_unstable_by(|a, b| b.total_cmp(a));
    let (top, next) = dense.split_first().map_or((0.0, &[][..]), |(top, next)| (*top, next));
    let mean = if next.is_empty() { top } else { next.iter().sum::<f32>() / next.len() as f32 };
    Features { dense: top, coverage: score::coverage(index, terms, scores.rows[best]), margin: top - mean }
}

fn accepts(filter: &BTreeMap<String, Vec<String>>, document: &IndexedDocument) -> bool {
    filter.iter().all(|(key, values)| {
        let value = if key == "document" { Some(&document.id) } else { document.tags.get(key) };
        value.is_some_and(|value| values.contains(value))
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
