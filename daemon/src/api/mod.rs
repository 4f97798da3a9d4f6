//! What clients may ask of the daemon, whatever way they come: requests, their bounds, replies, error codes.

pub mod wire;

use crate::answer::{AnswerError, Answerer, Mode, Question, rounded};
use crate::engine::{EngineError, Sampling};
use crate::ingest::watch::Watched;
use crate::ingest::{Change, IngestError, Outcome, Pipeline, Source};
use crate::names::{self, MAX_TOP_K};
use crate::retrieve::{Query, RetrieveError};
use crate::store::{Document, StoreError};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use wire::{ErrorCode, PassageReply};

/// Documents in one page of a list.
const LIST_PAGE: usize = 1000;

/// A report in JSON, made when it is asked for.
pub type ReportFn = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// A fresh id: 16 hexadecimal digits.
pub fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Why a request is refused: a word for programs, a sentence for people.
pub type Problem = (ErrorCode, String);

/// What requests may ask for, and what they get when they do not.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Collection used when none is named.
    pub collection: String,
    /// Passages retrieved.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Longest answer that a request may ask for.
    pub max_tokens_cap: usize,
    /// Time allowed when the request names none.
    pub deadline: Duration,
    /// Longest question in bytes.
    pub max_question_bytes: usize,
    /// Largest payload in bytes.
    pub max_payload_bytes: usize,
    /// Questions that may wait.
    pub queue: usize,
    /// Questions at work at once.
    pub workers: usize,
    /// Whether documents may be put and deleted.
    pub documents: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Questions answered.
    pub answered: AtomicU64,
    /// Of those, with `found: false`.
    pub not_found: AtomicU64,
    /// Requests that ended in an error.
    pub errors: AtomicU64,
    /// Time to the first token of the last answer, in microseconds.
    pub last_ttft_us: AtomicU64,
    /// Decoding speed of the last answer, in thousandths of a token per second.
    pub last_milli_tokens_per_s: AtomicU64,
}

/// The rooms that requests need, joined; cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// They change when the configuration is read again.
    limits: Arc<RwLock<Arc<Limits>>>,
    answerer: Answerer,
    pipeline: Arc<Pipeline>,
    counters: Arc<Counters>,
    /// The files of watched folders.
    watched: Watched,
    /// One document at a time: the encoder is shared with the questions.
    turn: Arc<Mutex<()>>,
}

impl Api {
    /// Joins the rooms.
    pub fn new(limits: Limits, answerer: Answerer, pipeline: Pipeline, watched: Watched) -> Self {
        let counters = Arc::new(Counters::default());
        let limits = Arc::new(RwLock::new(Arc::new(limits)));
        Self { limits, answerer, pipeline: Arc::new(pipeline), counters, watched, turn: Arc::default() }
    }

    /// Held while a document is taken in.
    pub fn turn(&self) -> Arc<Mutex<()>> {
        Arc::clone(&self.turn)
    }

    /// What requests may ask for.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces them: for requests that come from now on.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Answers questions.
    pub fn answerer(&self) -> &Answerer {
        &self.answerer
    }

    /// Checks a question's bounds and fills in what it leaves open.
    ///
    /// # Errors
    /// The bound that is broken.
    pub fn question(&self, ask: &wire::Ask, asked: Instant) -> Result<Question, Problem> {
        let limits = self.limits();
        let text = ask.question.trim();
        if text.is_empty() {
            return Err((ErrorCode::BadRequest, "the question is empty".into()));
        }
        if text.len() > limits.max_question_bytes {
            let problem = format!("the question has {} bytes; at most {} are allowed", text.len(), limits.max_question_bytes);
            return Err((ErrorCode::TooLarge, problem));
        }
        let bad = |problem: String| Err((ErrorCode::BadRequest, problem));
        let top_k = ask.top_k.unwrap_or(limits.top_k);
        if !(1..=MAX_TOP_K).contains(&top_k) {
            return bad(format!("top_k is {top_k}; it must be from 1 to {MAX_TOP_K}"));
        }
        let max_tokens = ask.max_tokens.unwrap_or(limits.max_tokens);
        if !(1..=limits.max_tokens_cap).contains(&max_tokens) {
            return bad(format!("max_tokens is {max_tokens}; it must be from 1 to {}", limits.max_tokens_cap));
        }
        let allowed = ask.deadline_ms.map_or(limits.deadline, Duration::from_millis);
        if allowed.is_zero() || allowed > Duration::from_secs(86_400) {
            return bad("deadline_ms must be from 1 to 86400000".into());
        }
        let sampling = Sampling {
            temperature: ask.temperature.unwrap_or(limits.sampling.temperature),
            top_p: ask.top_p.unwrap_or(limits.sampling.top_p),
            min_p: ask.min_p.unwrap_or(limits.sampling.min_p),
            seed: ask.seed.unwrap_or(limits.sampling.seed),
        };
        let share = 0.0..=1.0;
        if !(0.0..=5.0).contains(&sampling.temperature) || !share.contains(&sampling.top_p) || !share.contains(&sampling.min_p) {
            return bad("temperature must be from 0 to 5, top_p and min_p from 0 to 1".into());
        }
        check_filter(&ask.filter)?;
        Ok(Question {
            text: text.to_owned(),
            collection: self.collection(ask.collection.as_deref())?,
            filter: ask.filter.clone(),
            top_k,
            max_tokens,
            mode: ask.mode.unwrap_or(Mode::Answer),
            sampling,
            asked,
            allowed,
        })
    }

    fn collection(&self, named: Option<&str>) -> Result<String, Problem> {
        let limits = self.limits();
        let name = named.unwrap_or(&limits.collection);
        if names::is_collection(name) {
            Ok(name.to_owned())
        } else {
            Err((ErrorCode::BadRequest, format!("the collection is called {name:?}; {}", names::COLLECTION_RULE)))
        }
    }

    /// Passages without an answer.
    ///
    /// # Errors
    /// A broken bound, an unknown collection, or the store's trouble.
    pub async fn search(&self, id: String, ask: &wire::Ask) -> Result<wire::SearchReply, Problem> {
        let question = self.question(ask, Instant::now())?;
        let query =
            Query { text: question.text, collection: question.collection, filter: question.filter, top_k: question.top_k };
        let retriever = self.answerer.retriever().clone();
        let retrieval = blocking(move || retriever.search(&query)).await?.map_err(|e| (code_of_retrieval(&e), e.to_string()))?;
        Ok(search_reply(id, retrieval, self.answerer.threshold()))
    }

    /// Puts a document.
    ///
    /// # Errors
    /// The document cannot be read, a bound is broken, or the store refuses.
    pub async fn put(&self, put: wire::Put) -> Result<(String, Outcome), Problem> {
        let collection = self.collection(put.collection.as_deref())?;
        let bytes = match (put.data, put.text) {
            (Some(data), None) => data.into_vec(),
            (None, Some(text)) => text.into_bytes(),
            _ => return Err((ErrorCode::BadRequest, "a document has either text or data".to_owned())),
        };
        let source = Source {
            id: put.document.clone(),
            name: put.document,
            media_type: put.media_type,
            bytes,
            title: put.title,
            tags: put.tags,
            origin: None,
        };
        let turn = self.turn().lock_owned().await;
        let (pipeline, into) = (Arc::clone(&self.pipeline), collection.clone());
        // A client that hangs up drops this future, and with it the guard.
        let given_up = Arc::new(AtomicBool::new(false));
        let _guard = SetOnDrop(Arc::clone(&given_up));
        let put = move || {
            let _turn = turn;
            let mut go_on =
                |_, _| if given_up.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            pipeline.put_with_progress(&into, source, &mut go_on)
        };
        let outcome = blocking(put).await?.map_err(|e| (code_of_ingest(&e), e.to_string()))?;
        Ok((collection, outcome))
    }

    /// Deletes a document, and forgets that one of this id failed; `false` when there was neither.
    ///
    /// # Errors
    /// A broken bound, or the store's trouble.
    pub async fn delete(&self, delete: &wire::Delete) -> Result<bool, Problem> {
        let collection = self.collection(delete.collection.as_deref())?;
        let (store, watched, document) = (self.pipeline.store().clone(), self.watched.clone(), delete.document.clone());
        let delete = move || store.delete(&collection, &document).inspect(|_| watched.forget_failed(&collection, &document));
        blocking(delete).await?.map_err(|e| (code_of_store(&e), e.to_string()))
    }

    /// Remembers that a document could not be taken in: that whoever wanted to bring it could not even send it.
    ///
    /// # Errors
    /// A broken bound, or the store's trouble.
    pub async fn note_failed(&self, failed: wire::Failed) -> Result<(), Problem> {
        let collection = self.collection(failed.collection.as_deref())?;
        let document = Document { id: failed.document, collection, bytes: failed.bytes, ..Document::default() };
        let store = self.pipeline.store().clone();
        blocking(move || store.note_failed(&document, &failed.reason)).await?.map_err(|e| (code_of_store(&e), e.to_string()))
    }

    /// Lists documents, those that could not be taken in, and the files of watched folders on their way to become some, a
    /// page at a time.
    ///
    /// # Errors
    /// A broken bound, an unknown collection, or the store's trouble.
    pub async fn list(&self, id: String, list: &wire::List) -> Result<wire::ListReply, Problem> {
        let collection = list.collection.as_deref().map(|name| self.collection(Some(name))).transpose()?;
        let (store, watched) = (self.pipeline.store().clone(), self.watched.clone());
        let documents = blocking(move || watched.list(&store, collection.as_deref()))
            .await?
            .map_err(|e| (code_of_store(&e), e.to_string()))?;
        let total = documents.len();
        let (skip, limit) = (list.skip.unwrap_or(0), list.limit.unwrap_or(LIST_PAGE).min(LIST_PAGE));
        Ok(wire::ListReply { id, documents: documents.into_iter().skip(skip).take(limit).collect(), total })
    }

    /// The library of this moment, for a backup.
    ///
    /// # Errors
    /// The store's trouble.
    pub fn snapshot(&self) -> Result<crate::store::backup::Snapshot, StoreError> {
        self.pipeline.store().snapshot()
    }

    /// What became of a store that was damaged.
    pub fn recovery(&self) -> crate::store::Recovery {
        self.pipeline.store().recovery()
    }

    /// The store's collections.
    ///
    /// # Errors
    /// The store's trouble.
    pub fn collections(&self) -> Result<Vec<crate::store::Collection>, crate::store::StoreError> {
        self.pipeline.store().collections()
    }

    /// Counts an answer.
    pub fn count(&self, answer: &crate::answer::Answer) {
        let counters = &self.counters;
        counters.answered.fetch_add(1, Ordering::Relaxed);
        if !answer.found {
            counters.not_found.fetch_add(1, Ordering::Relaxed);
        }
        if answer.usage.answer_tokens > 0 {
            counters.last_ttft_us.store((answer.timings.ttft_ms * 1e3) as u64, Ordering::Relaxed);
            counters.last_milli_tokens_per_s.store((answer.timings.tokens_per_s * 1e3) as u64, Ordering::Relaxed);
        }
    }
}

/// Tells, when dropped, that nobody waits any longer.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The word for a change.
pub fn change_word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Replaced => "replaced",
        Change::Unchanged => "unchanged",
    }
}

/// A search's result as it crosses the wire.
pub fn search_reply(id: String, retrieval: crate::retrieve::Retrieval, threshold: f32) -> wire::SearchReply {
    let passage = |(i, p): (usize, crate::retrieve::Passage)| PassageReply {
        n: i + 1,
        document: p.document,
        title: p.title,
        heading: p.heading,
        page: p.page,
        chunk: p.chunk,
        score: p.score,
        text: p.text,
    };
    wire::SearchReply {
        id,
        found: !retrieval.passages.is_empty() && retrieval.confidence >= threshold,
        confidence: retrieval.confidence,
        embed_ms: rounded(retrieval.embed_ms),
        search_ms: rounded(retrieval.search_ms),
        passages: retrieval.passages.into_iter().enumerate().map(passage).collect(),
    }
}

fn check_filter(filter: &BTreeMap<String, Vec<String>>) -> Result<(), Problem> {
    let values: usize = filter.values().map(Vec::len).sum();
    if filter.len() > 16 || values > 256 || filter.values().any(Vec::is_empty) {
        return Err((
            ErrorCode::BadRequest,
            "a filter has at most 16 keys and 256 values, and at least one value for each key".into(),
        ));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|e| (ErrorCode::Internal, format!("an internal task failed: {e}")))
}

/// The contract's word for an answer's error.
pub fn code_of(error: &AnswerError) -> ErrorCode {
    match error {
        AnswerError::Retrieve(error) => code_of_retrieval(error),
        AnswerError::Engine(EngineError::QueueFull { .. }) => ErrorCode::QueueFull,
        AnswerError::Engine(EngineError::PromptTooLong { .. }) => ErrorCode::TooLarge,
        AnswerError::Engine(_) | AnswerError::Embed(_) | AnswerError::Internal(_) => ErrorCode::Internal,
        AnswerError::DeadlineExceeded(_) => ErrorCode::DeadlineExceeded,
        AnswerError::Cancelled => ErrorCode::Cancelled,
    }
}

fn code_of_retrieval(error: &RetrieveError) -> ErrorCode {
    match error {
        RetrieveError::UnknownCollection { .. } => ErrorCode::UnknownCollection,
        RetrieveError::Store(_) => ErrorCode::Storage,
        _ => ErrorCode::Internal,
    }
}

/// A name or a document that the store does not take is the client's matter, everything else the storage's.
fn code_of_store(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::UnknownCollection { .. } => ErrorCode::UnknownCollection,
        StoreError::CollectionName(_) | StoreError::DocumentId(_) | StoreError::Refused { .. } => ErrorCode::BadRequest,
        _ => ErrorCode::Storage,
    }
}

fn code_of_ingest(error: &IngestError) -> ErrorCode {
    match error {
        IngestError::Store(error) => code_of_store(error),
        IngestError::Embed(_) => ErrorCode::Internal,
        _ => ErrorCode::BadRequest,
    }
}
