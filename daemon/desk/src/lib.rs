//! The desk: the life of a question and of a document, whatever door they come through.
//!
//! ```text
//! door -> Desk::admit (bounds, duplicates, room, fair shares) -> Desk::enter -> queue -> a worker -> Asker::progress, Asker::end
//! door -> Desk::put, delete, list, search -> Library
//! ```
//!
//! | module | one job |
//! |---|---|
//! | `bounds` | the bounds of requests |
//! | [`state`] | the life of a question as a state machine, without IO and without a clock |
//! | `queue` | waiting questions: bounded, clients in turn, by priority |
//! | `questions` | the tokio shell around the state machine |
//! | `documents` | the life of a document, and the signal that the library has changed |
//!
//! The desk knows tickets, not topics, packets or sockets. A door implements [`Asker`]; the rooms behind the desk implement
//! [`Answers`] and [`Library`].
#![forbid(unsafe_code)]

mod bounds;
mod documents;
#[doc(hidden)]
pub mod made_up;
mod questions;
mod queue;
#[cfg(test)]
mod rooms;
pub mod state;

pub use bounds::Limits;
pub use documents::{Backup, Library, Outcome, Put};
pub use questions::{Admission, Asked, Asker, End, Place, Presence, Safe};
pub use state::Ticket;

use state::{Counts, Lifecycle};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use wire::{Answer, Cancel, Fault, Progress, Question};

/// A future behind a trait.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The room that answers questions.
pub trait Answers: Send + Sync + 'static {
    /// Answers one question, and reports the evidence and each piece of the answer to `progress`.
    ///
    /// # Errors
    /// The collection is unknown, the deadline passed, the question was cancelled, a room failed.
    fn answer<'a>(
        &'a self,
        question: &'a Question,
        cancel: &'a Cancel,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Pending<'a, Result<Answer, Fault>>;
}

/// Counts since the start.
#[derive(Debug, Default)]
struct Counters {
    answered: AtomicU64,
    not_found: AtomicU64,
    errors: AtomicU64,
    last_ttft_us: AtomicU64,
    last_milli_tokens_per_s: AtomicU64,
}

/// The desk's figures, for `metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// Questions waiting or at work.
    pub depth: usize,
    /// Questions that wait.
    pub waiting: usize,
    /// Questions answered since the start.
    pub answered: u64,
    /// Answers with `found: false`, included in `answered`.
    pub not_found: u64,
    /// Requests that ended in an error since the start.
    pub errors: u64,
    /// Time to the first token of the last answer, in milliseconds.
    pub ttft_ms: f64,
    /// Decoding speed of the last answer, in tokens per second.
    pub tokens_per_s: f64,
    /// Mean time of a question at work, in milliseconds.
    pub service_ms: f64,
    /// Repeated questions, questions refused by a full queue, and questions that expired while they waited.
    pub counts: Counts,
}

/// The desk; cheap to clone.
#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    /// Replaced when the configuration is reloaded.
    limits: RwLock<Arc<Limits>>,
    state: Mutex<Lifecycle>,
    jobs: questions::Jobs,
    answers: Arc<dyn Answers>,
    library: Arc<dyn Library>,
    counters: Counters,
    /// Signals a new time for the next tick.
    wake: questions::Wake,
    /// Signals that a question has left the desk.
    gone: Notify,
    /// Signals every change of the library.
    changed: Arc<Notify>,
    /// One document at a time: ingesting and answering share the encoder.
    ingest_lock: Arc<tokio::sync::Mutex<()>>,
}

impl Desk {
    /// A desk in front of these rooms. The desk notifies `changed` after every change of the library.
    pub fn new(limits: Limits, answers: Arc<dyn Answers>, library: Arc<dyn Library>, changed: Arc<Notify>) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(Lifecycle::new(limits.workers, limits.queue)),
            limits: RwLock::new(Arc::new(limits)),
            jobs: questions::Jobs::default(),
            answers,
            library,
            counters: Counters::default(),
            wake: questions::Wake::default(),
            gone: Notify::new(),
            changed,
            ingest_lock: Arc::default(),
        }))
    }

    /// The bounds of requests.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.0.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the bounds for later requests. The number of workers stays.
    pub fn set_limits(&self, limits: Limits) {
        self.state().set_queue(limits.queue);
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
    }

    /// The lock that is held while a document is ingested.
    pub fn ingest_lock(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.0.ingest_lock)
    }

    /// The current figures.
    pub fn figures(&self) -> Figures {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        let state = self.state();
        Figures {
            depth: state.depth(),
            waiting: state.waiting(),
            answered: count(&counters.answered),
            not_found: count(&counters.not_found),
            errors: count(&counters.errors),
            ttft_ms: count(&counters.last_ttft_us) as f64 / 1e3,
            tokens_per_s: count(&counters.last_milli_tokens_per_s) as f64 / 1e3,
            service_ms: millis(state.mean()),
            counts: state.counts(),
        }
    }

    /// Counts and logs a refused request. Doors call it for their own refusals, too.
    pub fn refuse(&self, id: &str, fault: &Fault) {
        self.0.counters.errors.fetch_add(1, Ordering::Relaxed);
        log::warn!("request {id:?} is refused: {fault}");
    }

    fn count(&self, answer: &Answer) {
        let counters = &self.0.counters;
        counters.answered.fetch_add(1, Ordering::Relaxed);
        if !answer.found {
            counters.not_found.fetch_add(1, Ordering::Relaxed);
        }
        if answer.usage.answer_tokens > 0 {
            counters.last_ttft_us.store((answer.timings.ttft_ms * 1e3) as u64, Ordering::Relaxed);
            counters.last_milli_tokens_per_s.store((answer.timings.tokens_per_s * 1e3) as u64, Ordering::Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, Lifecycle> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
