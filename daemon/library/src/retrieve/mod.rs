//! Retrieval: the passages of the library that answer a question, and the confidence that they do.
//!
//! Every chunk is scored twice, by the cosine of its embedding and by BM25F over its terms. The best of both are fused. The
//! first of the fused ranking are read to see whether they hold the question's words in its order. The best chunks become
//! passages, joined with their neighbours. A logistic function of a few features of the scores gives the confidence that the
//! library holds an answer at all.

mod confidence;
mod fluency;
mod fuse;
mod passages;
mod score;
mod sentences;
mod statements;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Instant;

pub use confidence::{Calibration, FEATURES, Features, Fitted, MARGIN_RANK};
pub use sentences::sentences;
pub use statements::{ChunkStatement, VERSION as STATEMENTS_VERSION, statements_of_chunk};

use fluency::Fluencies;
use roaring::RoaringBitmap;
use wire::ErrorCode;

use crate::store::terms::{self, Language};
use crate::store::{Chunk, Index, IndexedDocument, Outline, Store, StoreError, head_of};
use crate::{EncodeError, Encoder};
use fuse::{Fusion, READ, Weighed};
use passages::Run;
use score::Hit;

/// Most passages of one query; evaluations ask for more than a client may.
pub const MOST_PASSAGES: usize = 100;
/// Ranked chunks whose statements tell whether the library holds an answer.
const STATEMENTS_OF: usize = 3;
/// Ranked chunks examined per passage asked for: room for neighbours that join.
const CANDIDATES_PER_PASSAGE: usize = 4;

/// A question to the library.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The question.
    pub text: String,
    /// The collection to search.
    pub collection: String,
    /// Tag -> accepted values. A document has to match one value of every tag. `document` stands for the document's id.
    pub filter: BTreeMap<String, Vec<String>>,
    /// Ids of documents that are hidden from this query. Measurements ask so whether an answer is missed.
    pub without: BTreeSet<String>,
    /// Passages wanted, 1 to [`MOST_PASSAGES`].
    pub top_k: usize,
}

/// A piece of a document that may answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// Id of the document.
    pub document: String,
    /// Number of this version of the document: never given twice.
    pub number: u64,
    /// The document's title.
    pub title: String,
    /// Headings above the sentence that holds most of the question's words, `A > B`.
    pub heading: String,
    /// Page of that sentence, if the source has pages.
    pub page: Option<u32>,
    /// Id of the passage's highest ranked chunk.
    pub chunk: String,
    /// Its place in the document.
    pub ordinal: u32,
    /// Language of the document.
    pub language: Language,
    /// Fused score of that chunk, 0 to 1 within this retrieval.
    pub score: f32,
    /// Cosine of that chunk with the question.
    pub dense: f32,
    /// BM25F score of that chunk, with its gain for words in the question's order.
    pub lexical: f32,
    /// The text, of one chunk or of neighbours joined.
    pub text: String,
    /// Place of that chunk in the text, in bytes. Its words are the same for every question, whatever neighbours join.
    pub best: Range<usize>,
    /// Offsets in the text, in bytes, at which pages begin, ascending; empty if the source has no pages.
    pub pages: Vec<(usize, u32)>,
    /// Offsets in the text, in bytes, at which other headings begin to hold, ascending, with those headings.
    pub headings: Vec<(usize, String)>,
    /// The passage's statements, in reading order.
    pub statements: Vec<Statement>,
}

/// A section of a document: the neighbouring chunks under one heading, the headings below it included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Number of the document's version.
    pub number: u64,
    /// Headings above it, outermost first.
    pub heading: Vec<String>,
    /// Page on which it begins, if the source has pages.
    pub page: Option<u32>,
    /// Its text. The words are the same for every question that finds the same chunk.
    pub text: String,
}

/// A sentence, list item or table row of a passage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statement {
    /// Offset in the passage's text, in bytes.
    pub at: usize,
    /// The statement; a row with its column heads.
    pub text: String,
    /// The statement as a person would write it.
    pub shown: String,
    /// The unit vector that was kept with the chunk, if there is one.
    pub vector: Option<Vec<f32>>,
    /// Share of the question's terms that the statement holds, weighted by their rarity in the collection; 0 to 1.
    pub coverage: f32,
}

impl Passage {
    /// The words of the chunk that ranked highest.
    pub fn best_chunk(&self) -> &str {
        self.text.get(self.best.clone()).unwrap_or(&self.text)
    }

    /// The page at an offset in the text, in bytes.
    pub fn page_at(&self, at: usize) -> Option<u32> {
        at_place(&self.pages, at).copied()
    }

    /// The beginning of the section that holds an offset in the text, in bytes.
    pub fn section_at(&self, at: usize) -> usize {
        self.headings.iter().map(|(begins, _)| *begins).take_while(|begins| *begins <= at).last().unwrap_or(0)
    }

    /// The headings at an offset in the text, in bytes.
    pub fn heading_at(&self, at: usize) -> &str {
        at_place(&self.headings, at).map_or(self.heading.as_str(), String::as_str)
    }
}

/// The result of a retrieval.
#[derive(Clone, Debug, Default)]
pub struct Retrieval {
    /// Best first.
    pub passages: Vec<Passage>,
    /// The confidence that the library holds an answer, 0 to 1; 0 when nothing was found.
    pub confidence: f32,
    /// The inputs of the confidence; `None` when nothing was found.
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
        /// The names of all collections.
        known: Vec<String>,
    },
    /// The question's vector cannot be compared with the stored ones.
    #[error(
        "the embedder makes {found} numbers per text, the store holds {expected}; use the embedder the store was made with, or run \
         `vademecum ingest --re-embed`"
    )]
    Dimensions {
        /// Numbers per stored vector.
        expected: usize,
        /// Numbers per vector of this embedder.
        found: usize,
    },
    /// The question could not be embedded.
    #[error("the question cannot be embedded: {0}")]
    Encode(#[source] EncodeError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RetrieveError {
    /// The error's code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownCollection { .. } => ErrorCode::UnknownCollection,
            Self::Store(_) => ErrorCode::Storage,
            Self::Dimensions { .. } | Self::Encode(_) => ErrorCode::Internal,
        }
    }
}

/// Answers queries from a store; cheap to clone.
#[derive(Clone)]
pub struct Retriever {
    store: Store,
    encoder: Arc<dyn Encoder>,
    /// Number of constants kept by this process.
    fits: Arc<AtomicU64>,
    /// Set once the log was told that a calibration is out of date.
    warned: Arc<Once>,
    /// How well the encoder knows the languages of each collection.
    fluencies: Arc<fluency::Known>,
}

/// A ranked chunk.
struct Candidate {
    document: String,
    number: u64,
    ordinal: u32,
    language: Language,
    dense: f32,
    lexical: f32,
    /// How well the encoder knows its language, 0 to 1.
    fluent: f32,
    /// Fused score, comparable within one retrieval.
    sum: f32,
    /// The chunk, once it was read.
    chunk: Option<Chunk>,
}

/// Chunks in the order of their fused scores.
struct Ranking {
    /// Best first; at least one.
    candidates: Vec<Candidate>,
    fusion: Fusion,
    features: Features,
    /// Whether the library has too few chunks for the margin to mean anything.
    small: bool,
    /// Whether the first candidates hold the error code that the question names, if it names one.
    holds_code: bool,
    question: Weighed,
}

/// Features that statements give.
struct StatementFeatures {
    /// The highest cosine with the question; `None` without vectors.
    cosine: Option<f32>,
    /// The largest share of the question's terms that one of them holds.
    told: f32,
    /// See [`Ranking::holds_code`].
    holds_code: bool,
}

impl Retriever {
    /// A number that grows with each change of a collection or of its calibration.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn version(&self, collection: &str) -> Result<u64, RetrieveError> {
        Ok(self.store.version(collection)? + self.fits.load(Ordering::Acquire))
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Title and number of chunks of each document, by the number of its version.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn outlines(&self) -> Result<BTreeMap<u64, Outline>, RetrieveError> {
        Ok(self.store.outlines()?)
    }

    /// A retriever over `store` with the encoder that made its vectors.
    pub fn new(store: Store, encoder: Arc<dyn Encoder>) -> Retriever {
        Retriever { store, encoder, fits: Arc::default(), warned: Arc::new(Once::new()), fluencies: Arc::default() }
    }

    /// The passages that fit the query best. An empty library finds nothing; an unknown collection is an error.
    pub fn search(&self, query: &Query) -> Result<Retrieval, RetrieveError> {
        let count = query.top_k.clamp(1, MOST_PASSAGES);
        let (vector, embed_ms) = self.embed(&query.text)?;
        let started = Instant::now();
        let Some(mut ranking) = self.rank(query, &vector, count * CANDIDATES_PER_PASSAGE)? else {
            return Ok(Retrieval { embed_ms, search_ms: milliseconds(started), ..Retrieval::default() });
        };
        log::debug!("{:?}", ranking.features);
        let passages = self.passages(&query.collection, &mut ranking, count)?;
        Ok(Retrieval {
            confidence: self.confidence(&query.collection, &ranking, &vector, &passages)?,
            vector,
            passages,
            features: Some(ranking.features),
            embed_ms,
            search_ms: milliseconds(started),
        })
    }

    /// The section around a chunk, at most `most_tokens` encoder tokens long, but that chunk at least. A
    /// longer section is cut: the chunks that follow count more than those before. `None` when that version of the document is
    /// gone.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn section(&self, number: u64, ordinal: u32, most_tokens: u32) -> Result<Option<Section>, RetrieveError> {
        let Some(chunk) = self.store.chunk(number, ordinal)? else { return Ok(None) };
        let mut run = Run::of(number, chunk);
        self.widen(&mut run, most_tokens)?;
        let page = run.chunks.first().and_then(|chunk| chunk.page);
        let heading = run.chunks[run.best].heading.clone();
        Ok(Some(Section { number, heading, page, text: run.joined().text }))
    }

    /// Widens a run to the section around its best chunk: the neighbours under the same heading, those that follow first.
    fn widen(&self, run: &mut Run, most_tokens: u32) -> Result<(), RetrieveError> {
        let heading = run.chunks[run.best].heading.clone();
        let (first, last) = (run.chunks[0].ordinal, run.chunks[run.chunks.len() - 1].ordinal);
        let mut after = std::iter::successors(last.checked_add(1), |place| place.checked_add(1));
        let mut before = std::iter::successors(first.checked_sub(1), |place| place.checked_sub(1));
        for places in [&mut after as &mut dyn Iterator<Item = u32>, &mut before] {
            for place in places {
                let Some(chunk) = self.store.chunk(run.number, place)? else { break };
                if !chunk.heading.starts_with(&heading) || run.tokens() + chunk.tokens > most_tokens {
                    break;
                }
                run.add(chunk);
            }
        }
        Ok(())
    }

    /// The confidence that the library holds an answer. A code is found by its letters or not at all. In a library of a few
    /// chunks the margin means nothing and a chunk covers many subjects, so the best statement counts as well.
    fn confidence(
        &self,
        collection: &str,
        ranking: &Ranking,
        question: &[f32],
        passages: &[Passage],
    ) -> Result<f32, RetrieveError> {
        if passages.is_empty() {
            return Ok(0.0);
        }
        let fluent = ranking.candidates.first().map_or(1.0, |best| best.fluent);
        let calibration = self.own_calibration(collection)?.unwrap_or_else(|| confidence::DEFAULT.for_fluency(fluent));
        let mut confidence = calibration.confidence(&ranking.features);
        if ranking.question.unknown_code || !ranking.holds_code {
            return Ok(confidence.min(confidence::UNKNOWN_CODE));
        }
        if ranking.question.names_code() {
            confidence = confidence.max(confidence::of_code(ranking.features.coverage));
        }
        if !ranking.small {
            return Ok(confidence);
        }
        let vectors = passages.iter().flat_map(|passage| &passage.statements).filter_map(|said| said.vector.as_ref());
        let cosine = |vector: &Vec<f32>| question.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        Ok(confidence.max(fluent * confidence::of_statement(vectors.map(cosine).fold(0.0, f32::max))))
    }

    /// The constants fitted to a collection with any encoder; `None` when there are none.
    pub fn fitted(&self, collection: &str) -> Result<Option<Fitted>, RetrieveError> {
        Ok(self.store.note(collection, confidence::NOTE)?)
    }

    /// Keeps constants for a collection, to be used from the next question on.
    pub fn keep_fitted(&self, collection: &str, fitted: &Fitted) -> Result<(), RetrieveError> {
        self.store.keep_note(collection, confidence::NOTE, fitted)?;
        self.fits.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The constants of a collection's confidence: those fitted to it with this encoder, or the defaults.
    pub fn calibration(&self, collection: &str) -> Result<Calibration, RetrieveError> {
        Ok(self.own_calibration(collection)?.unwrap_or(confidence::DEFAULT))
    }

    /// The constants fitted to a collection with this encoder.
    fn own_calibration(&self, collection: &str) -> Result<Option<Calibration>, RetrieveError> {
        match self.fitted(collection)? {
            Some(fitted) if fitted.embedder == self.encoder.fingerprint() => Ok(Some(fitted.calibration)),
            Some(_) => {
                self.warned.call_once(|| {
                    log::warn!(
                        "collection {collection} was calibrated with another embedder: the defaults are used; \
                         run `vademecum calibrate`"
                    );
                });
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// The features of a question, as [`Retriever::search`] computes them; `None` when nothing takes part.
    pub fn features(&self, query: &Query) -> Result<Option<Features>, RetrieveError> {
        let (vector, _) = self.embed(&query.text)?;
        Ok(self.rank(query, &vector, READ)?.map(|ranking| ranking.features))
    }

    /// The features of a question as if one chunk held another text, whose vector is given. Questions made from the text itself
    /// must not find themselves.
    pub fn features_with(&self, query: &Query, changed: &Chunk, vector: &[f32]) -> Result<Option<Features>, RetrieveError> {
        let (asked, _) = self.embed(&query.text)?;
        let Some(ranking) = self.rank_among(query, &asked, READ, Some(changed))? else { return Ok(None) };
        let dense = asked.iter().zip(vector).map(|(a, b)| a * b).sum::<f32>();
        let language = ranking.candidates[0].language;
        let terms = terms::analyze(&format!("{}\n{}", head_of("", &changed.heading), changed.text), language).terms;
        let coverage = ranking.question.coverage(language, &terms);
        let Features { dense: best, margin, coverage: other, statement, told } = ranking.features;
        // The mean over the next ones is that of the others, or nearly so.
        let next = best - margin;
        let first = dense.max(best);
        Ok(Some(Features {
            dense: first,
            coverage: if dense >= best { coverage } else { coverage.max(other) },
            margin: first - next,
            statement,
            told,
        }))
    }

    /// Whole documents ranked by their best chunk: ids and scores of the `count` best, best first.
    pub fn rank_documents(&self, query: &Query, count: usize) -> Result<Vec<(String, f32)>, RetrieveError> {
        let (vector, _) = self.embed(&query.text)?;
        let Some(ranking) = self.rank(query, &vector, usize::MAX)? else { return Ok(Vec::new()) };
        let mut best: HashMap<String, f32> = HashMap::new();
        for candidate in ranking.candidates {
            let score = best.entry(candidate.document).or_insert(candidate.sum);
            *score = score.max(candidate.sum);
        }
        let mut ranked: Vec<(String, f32)> = best.into_iter().collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        ranked.truncate(count);
        Ok(ranked)
    }

    /// The best chunks: at most `count`, at least the ones that are read; `None` when nothing takes part.
    fn rank(&self, query: &Query, vector: &[f32], count: usize) -> Result<Option<Ranking>, RetrieveError> {
        self.rank_among(query, vector, count, None)
    }

    /// [`Retriever::rank`] without one chunk.
    fn rank_among(
        &self,
        query: &Query,
        vector: &[f32],
        count: usize,
        without: Option<&Chunk>,
    ) -> Result<Option<Ranking>, RetrieveError> {
        let fluencies = self.fluencies(&query.collection, vector)?;
        let ranked = self.with_index(&query.collection, vector, |index| {
            let hidden = hidden(index, &query.without);
            let question = score::weigh(index, &query.text, &hidden);
            let selected = index.select(|document| accepts(&query.filter, document)) - hidden;
            let mut hits = score::hits(index, vector, &question, &selected);
            if let Some(chunk) = without {
                let is_it = |hit: &Hit| {
                    let place = index.place(hit.row);
                    place.ordinal == chunk.ordinal && index.document(place.slot).is_some_and(|d| d.id == chunk.document)
                };
                hits.retain(|hit| !is_it(hit));
            }
            let fusion = Fusion::over(&hits, &question);
            let fluent = |hit: &Hit| {
                let document = index.document(index.place(hit.row).slot);
                document.map_or(1.0, |document| fluencies.in_language(document.language))
            };
            let scored = |hit| {
                let fluent = fluent(hit);
                (fusion.sum(hit.dense, hit.lexical, fluent), fluent, hit)
            };
            let mut order: Vec<(f32, f32, &Hit)> = hits.iter().map(scored).collect();
            order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.2.row.cmp(&b.2.row)));
            order.truncate(count.max(READ));
            let found = order.into_iter().filter_map(|(sum, fluent, hit)| candidate(index, sum, fluent, hit));
            let candidates: Vec<Candidate> = found.collect();
            (candidates, fusion, dense_features(&hits), hits.len() <= MARGIN_RANK, question)
        })?;
        let Some((mut candidates, fusion, mut features, small, question)) = ranked else { return Ok(None) };
        let first_terms = self.read_and_reorder(&mut candidates, &query.collection, &fusion, &question)?;
        if candidates.is_empty() {
            return Ok(None);
        }
        features.coverage = question.coverage(candidates[0].language, &first_terms);
        let StatementFeatures { cosine, told, holds_code } = self.statement_features(&candidates, vector, &question)?;
        // Libraries of some encoders have no vectors of statements. The chunk's stands in.
        (features.statement, features.told) = (cosine.unwrap_or(features.dense), told);
        Ok(Some(Ranking { candidates, fusion, features, small, holds_code, question }))
    }

    /// How well the encoder knows the languages of a collection, told from a few chunks of each.
    fn fluencies(&self, collection: &str, vector: &[f32]) -> Result<Arc<Fluencies>, RetrieveError> {
        let version = self.store.version(collection)?;
        if let Some(known) = self.fluencies.get(collection, version) {
            return Ok(known);
        }
        let places = self.with_index(collection, vector, |index| {
            let of = |language| {
                let rows = index.select(|document| document.language == language);
                let step = (rows.len() as usize).div_ceil(fluency::SAMPLED).max(1);
                let place = |row| {
                    let place = index.place(row);
                    Some((index.document(place.slot)?.number, place.ordinal))
                };
                (language, rows.iter().step_by(step).filter_map(place).collect::<Vec<_>>())
            };
            index.languages().into_iter().map(of).collect::<Vec<_>>()
        })?;
        let mut texts: BTreeMap<Language, Vec<String>> = BTreeMap::new();
        for (language, places) in places.unwrap_or_default() {
            for (number, ordinal) in places {
                // A document that was replaced meanwhile is left out.
                texts.entry(language).or_default().extend(self.store.chunk(number, ordinal)?.map(|chunk| chunk.text));
            }
        }
        let fluencies = Arc::new(Fluencies::of(texts, |text| self.encoder.letters_per_token(text)));
        self.fluencies.keep(collection, version, &fluencies);
        Ok(fluencies)
    }

    /// The features of the statements of the first candidates.
    fn statement_features(
        &self,
        candidates: &[Candidate],
        vector: &[f32],
        question: &Weighed,
    ) -> Result<StatementFeatures, RetrieveError> {
        let (mut cosine, mut told, mut holds_code) = (None, 0.0_f32, candidates.is_empty());
        for candidate in candidates.iter().take(STATEMENTS_OF) {
            let Some(chunk) = &candidate.chunk else { continue };
            if !holds_code {
                holds_code = question.holds_error_code(candidate.language, &terms_of("", chunk, candidate.language));
            }
            for said in statements_of_chunk(&chunk.text) {
                told = told.max(question.coverage(candidate.language, &terms::analyze(&said.text, candidate.language).terms));
            }
            let kept = self.store.statements(candidate.number, candidate.ordinal)?;
            for kept in kept.into_iter().flat_map(|kept| kept.vectors) {
                let own = vector.iter().zip(&kept).map(|(a, b)| a * b).sum::<f32>();
                cosine = Some(cosine.map_or(own, |best: f32| best.max(own)));
            }
        }
        Ok(StatementFeatures { cosine, told, holds_code })
    }

    /// Reads the first [`READ`] candidates and counts the order of their words. Returns the terms of the new first candidate. A
    /// document that was replaced since the ranking is left out.
    fn read_and_reorder(
        &self,
        candidates: &mut Vec<Candidate>,
        collection: &str,
        fusion: &Fusion,
        question: &Weighed,
    ) -> Result<Vec<String>, RetrieveError> {
        let mut first: Option<(f32, Vec<String>)> = None;
        for candidate in candidates.iter_mut().take(READ) {
            candidate.chunk = self.store.chunk(candidate.number, candidate.ordinal)?;
            let Some(chunk) = &candidate.chunk else {
                candidate.sum = f32::NEG_INFINITY;
                continue;
            };
            let title = self.store.document(collection, &chunk.document)?.map(|document| document.title).unwrap_or_default();
            let terms = terms_of(&title, chunk, candidate.language);
            candidate.lexical += question.pairs(candidate.language, &terms);
            candidate.sum = fusion.sum(candidate.dense, candidate.lexical, candidate.fluent);
            if first.as_ref().is_none_or(|(sum, _)| candidate.sum > *sum) {
                first = Some((candidate.sum, terms));
            }
        }
        candidates.retain(|candidate| candidate.sum > f32::NEG_INFINITY);
        // A stable sort: equal candidates stay in the order they were stored.
        candidates.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        Ok(first.map(|(_, terms)| terms).unwrap_or_default())
    }

    fn embed(&self, text: &str) -> Result<(Vec<f32>, f64), RetrieveError> {
        let started = Instant::now();
        let vector = self.encoder.embed_query(text).map_err(RetrieveError::Encode)?;
        Ok((vector, milliseconds(started)))
    }

    /// Hands the collection's index to `read`; `None` when the library is empty.
    fn with_index<R>(&self, collection: &str, vector: &[f32], read: impl Fn(&Index) -> R) -> Result<Option<R>, RetrieveError> {
        let scored = self.store.search(collection, |index| {
            if index.live().is_empty() {
                return Ok(None);
            }
            if index.dimensions() != vector.len() {
                return Err(RetrieveError::Dimensions { expected: index.dimensions(), found: vector.len() });
            }
            Ok(Some(read(index)))
        })?;
        if let Some(scored) = scored {
            return scored;
        }
        let known: Vec<String> = self.store.collections()?.into_iter().map(|collection| collection.name).collect();
        if known.is_empty() {
            return Ok(None);
        }
        Err(RetrieveError::UnknownCollection { name: collection.chars().take(64).collect(), known })
    }

    /// Makes passages of the ranked chunks.
    fn passages(&self, collection: &str, ranking: &mut Ranking, count: usize) -> Result<Vec<Passage>, RetrieveError> {
        let best_lexical = ranking.candidates.iter().map(|candidate| candidate.lexical).fold(0.0, f32::max);
        let mut chunks: Vec<(usize, u64, Chunk)> = Vec::with_capacity(ranking.candidates.len());
        for (at, candidate) in ranking.candidates.iter_mut().enumerate() {
            let chunk = match candidate.chunk.take() {
                Some(chunk) => Some(chunk),
                None => self.store.chunk(candidate.number, candidate.ordinal)?,
            };
            chunks.extend(chunk.map(|chunk| (at, candidate.number, chunk)));
        }
        let origins: Vec<usize> = chunks.iter().map(|(at, _, _)| *at).collect();
        let mut runs = passages::group(chunks.into_iter().map(|(_, number, chunk)| (number, chunk)), count);
        // The best passage is read and quoted as a whole section.
        if let Some(first) = runs.first_mut() {
            self.widen(first, passages::MAX_TOKENS)?;
            let within: HashSet<String> = first.chunks.iter().map(Chunk::id).collect();
            let mut is_first = true;
            // Another passage may have become a part of it.
            runs.retain(|run| std::mem::take(&mut is_first) || run.chunks.iter().any(|chunk| !within.contains(&chunk.id())));
        }
        let mut passages = Vec::with_capacity(runs.len());
        for run in runs {
            let candidate = &ranking.candidates[origins[run.rank]];
            let best = &run.chunks[run.best];
            let document = self.store.document(collection, &best.document)?;
            let joined = run.joined();
            let kept = run.chunks.iter().map(|chunk| self.store.statements(run.number, chunk.ordinal));
            let coverage =
                |said: &str| ranking.question.coverage(candidate.language, &terms::analyze(said, candidate.language).terms);
            let statements = joined.statements(&run, kept.collect::<Result<_, _>>()?, &coverage);
            let at = joined.place_of(&run, run.best);
            let passages::Joined { text, pages, headings, .. } = joined;
            let best_place = match (pages.as_slice(), headings.as_slice()) {
                ([] | [_], [] | [_]) => 0,
                _ => ranking.question.best_sentence(candidate.language, &text),
            };
            passages.push(Passage {
                document: best.document.clone(),
                number: run.number,
                title: document.map(|document| document.title).unwrap_or_default(),
                heading: at_place(&headings, best_place).cloned().unwrap_or_default(),
                page: at_place(&pages, best_place).copied(),
                chunk: best.id(),
                ordinal: best.ordinal,
                language: candidate.language,
                score: ranking.fusion.readable(candidate.sum, best_lexical, candidate.fluent),
                dense: candidate.dense,
                lexical: candidate.lexical,
                text,
                best: at,
                pages,
                headings,
                statements,
            });
        }
        Ok(passages)
    }
}

/// The `count` chunks that fit the words of `text` best, by BM25F alone: ids and scores, best first. No encoder is needed.
pub fn rank_lexical(store: &Store, collection: &str, text: &str, count: usize) -> Result<Vec<(String, f32)>, RetrieveError> {
    let ranked = store.search(collection, |index| {
        let scores = score::lexical(index, &score::weigh(index, text, &RoaringBitmap::new()));
        let mut rows = score::highest(&scores, index.live(), count);
        rows.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let named = rows.into_iter().filter_map(|(row, score)| {
            let place = index.place(row);
            Some((format!("{}#{}", index.document(place.slot)?.id, place.ordinal), score))
        });
        named.collect()
    })?;
    Ok(ranked.unwrap_or_default())
}

/// The value that holds at an offset in a text, given ascending offsets at which values begin.
fn at_place<T>(begun: &[(usize, T)], at: usize) -> Option<&T> {
    begun.iter().take_while(|(begins, _)| *begins <= at).last().map(|(_, what)| what)
}

fn candidate(index: &Index, sum: f32, fluent: f32, hit: &Hit) -> Option<Candidate> {
    let place = index.place(hit.row);
    let document = index.document(place.slot)?;
    Some(Candidate {
        document: document.id.clone(),
        number: document.number,
        ordinal: place.ordinal,
        language: document.language,
        dense: hit.dense,
        lexical: hit.lexical,
        fluent,
        sum,
        chunk: None,
    })
}

/// The terms of title and headings, a gap, and the terms of the text. The gap keeps them from being neighbours.
fn terms_of(title: &str, chunk: &Chunk, language: Language) -> Vec<String> {
    let mut terms = terms::analyze(&head_of(title, &chunk.heading), language).terms;
    terms.push(String::new());
    terms.extend(terms::analyze(&chunk.text, language).terms);
    terms
}

/// The features that the chunks' cosines give; the others are left at 0.
fn dense_features(hits: &[Hit]) -> Features {
    let mut dense: Vec<f32> = hits.iter().map(|hit| hit.dense).collect();
    dense.sort_unstable_by(|a, b| b.total_cmp(a));
    dense.truncate(MARGIN_RANK + 1);
    let (top, next) = dense.split_first().map_or((0.0, &[][..]), |(top, next)| (*top, next));
    let mean = if next.is_empty() { top } else { next.iter().sum::<f32>() / next.len() as f32 };
    Features { dense: top, coverage: 0.0, margin: top - mean, statement: 0.0, told: 0.0 }
}

/// The rows of some documents.
fn hidden(index: &Index, documents: &BTreeSet<String>) -> RoaringBitmap {
    if documents.is_empty() {
        return RoaringBitmap::new();
    }
    index.select(|document| documents.contains(&document.id))
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
