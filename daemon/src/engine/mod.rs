//! The generator: one OS thread owns the llama.cpp model and context; an [`Engine`] is a cheap handle to it.
//!
//! A [`Request`] goes in through a bounded queue and comes out as a stream of [`Event`]s. Several are worked on at once, in
//! one batch, and between any two batches the thread looks whether they were cancelled or their deadlines have passed.
//!
//! A request is one [`Reading`] or several: what the model reads to answer from. Several are read apart from each other, and
//! the answer that the model finds likeliest, its passage's own likelihood included, is given (RAG-Sequence: Lewis et al. 2020,
//! arXiv 2005.11401).

mod lane;
mod lookup;
mod passages;
mod precompute;
mod prompt;
mod scheduler;
mod sequences;
mod state_file;
mod text;
mod tuner;

pub use passages::{PassageCache, PassageCacheOptions, PassageCacheStats};
pub use precompute::Precomputed;
pub use prompt::{PromptPassage, Reading};
pub use scheduler::BATCH;

use crate::gguf::{Gguf, GgufError};
use crate::tune::{Saved, Topology};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tuner::Tuner;

/// What can go wrong with the generator.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model file cannot be used.
    #[error(transparent)]
    Model(#[from] GgufError),
    /// The boundary to llama.cpp refused.
    #[error(transparent)]
    Llama(#[from] crate::llama::LlamaError),
    /// The file is a model, but not one that generates text.
    #[error(
        "{path} is not a generator: its architecture is `{architecture}`; give a text-generation GGUF with --generator (and a sentence encoder with --embedder)"
    )]
    NotAGenerator {
        /// The file.
        path: PathBuf,
        /// What it is.
        architecture: String,
    },
    /// llama.cpp could not load the file or make a context.
    #[error("llama.cpp cannot use {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// Its words.
        reason: String,
    },
    /// More requests wait than the queue holds.
    #[error("{waiting} questions wait already; ask again later, or raise answer.queue")]
    QueueFull {
        /// The queue's length.
        waiting: usize,
    },
    /// System prompt, question and one passage do not fit into the context.
    #[error(
        "the prompt needs {needed} tokens but only {room} fit beside the answer; shorten the question, lower max_tokens or raise model.context"
    )]
    PromptTooLong {
        /// Tokens of the smallest possible prompt.
        needed: usize,
        /// Tokens that fit.
        room: usize,
    },
    /// llama.cpp failed while it computed.
    #[error("the generator failed: {0}; the question can be asked again")]
    Compute(String),
    /// The owner thread has ended.
    #[error("the generator has stopped; restart the daemon")]
    Stopped,
}

/// How the generator is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Context in tokens.
    pub context: u32,
    /// How many threads decode and read prompts.
    pub tuning: Tuning,
    /// Where the weights lie.
    pub weights: Weights,
    /// Requests that may wait.
    pub queue: usize,
    /// System prompt to compute in advance; its KV entries are reused by every question that begins with it.
    pub system: String,
    /// Requests that are worked on at once.
    pub slots: usize,
    /// Where the states of passages are kept; `None`: nowhere.
    pub passages: Option<PassageCacheOptions>,
}

/// What decides the number of threads.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The cores.
    pub topology: Topology,
    /// Where measurements are kept; `None`: nothing is measured.
    pub saved: Option<Saved>,
    /// Threads that decode; 0: as measured.
    pub decode: usize,
    /// Threads that read prompts; 0: as measured.
    pub batch: usize,
    /// Whether the next tokens are looked up in what was read.
    pub lookup: Lookup,
}

/// Whether the next tokens of an answer are guessed from what was read, and several verified at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// Never.
    Off,
    /// Where it was measured that verifying several tokens takes so little longer than one that it gains.
    #[default]
    Auto,
    /// Always.
    On,
}

/// What follows from measurements, as it stands now.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Tuned {
    /// Threads that decode, to begin with, and that read prompts.
    pub threads: crate::tune::Threads,
    /// Tokens that are guessed at once; 0: none.
    pub draft: usize,
    /// Why.
    pub lookup: String,
}

pub use crate::llama::{GpuLayers, Pulse, Repack, Weights};

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0: greedy, the likeliest token.
    pub temperature: f32,
    /// Smallest set of tokens with this probability mass (nucleus sampling, Holtzman et al. 2020).
    pub top_p: f32,
    /// Tokens less likely than this share of the likeliest are dropped.
    pub min_p: f32,
    /// Random seed.
    pub seed: u32,
}

/// One question to the generator.
#[derive(Debug, Clone)]
pub struct Request {
    /// The system prompt.
    pub system: String,
    /// What the model reads, likeliest first. Of several the weakest are left out when they do not fit together.
    pub readings: Vec<Reading>,
    /// Tells an answer that says there is none: such a reading loses against others.
    pub no_answer: fn(&str) -> bool,
    /// The question, never cut.
    pub question: String,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to give up.
    pub deadline: Instant,
}

/// What comes back, in order: which reading the answer comes from, any number of deltas, then one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// The reading is chosen.
    Reading {
        /// Its number, from 0.
        reading: usize,
        /// Passages in its prompt, counted from the strongest.
        passages_used: usize,
    },
    /// A piece of the answer, whole UTF-8 characters.
    Delta(String),
    /// The answer is complete, or was ended early.
    Done(Completion),
    /// The answer could not be made.
    Failed(EngineError),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached `max_tokens` or the end of the context.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Deadline,
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The whole text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Passages that were read, in all readings together.
    pub passages_used: usize,
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Of those, tokens whose state was in the KV cache or on disk.
    pub reused_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Tokens that were guessed, and of those, tokens that the model said.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// Time in the queue.
    pub waited: Duration,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time to write the answer.
    pub decode: Duration,
}

/// What is loaded.
#[derive(Debug, Clone, serde::Serialize)]
pub struct EngineInfo {
    /// The model's own name, or its file's.
    pub model: String,
    /// Architecture, for example `llama`.
    pub architecture: String,
    /// Identifies the file's content.
    pub fingerprint: String,
    /// Number of its weights.
    pub parameters: u64,
    /// Context in tokens.
    pub context: u32,
    /// Whether the chat template is the model's own; else a plain instruct prompt is used.
    pub own_template: bool,
    /// Whether weights were copied into memory in the order that is quickest to compute with, and why.
    pub repack: String,
    /// Whether the weights are locked in memory, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlock: Option<String>,
    /// How many layers a graphics processor has, or why none; where build or configuration speaks of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Requests that are worked on at once.
    pub slots: usize,
    /// Why no states of passages are kept, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passages_off: Option<String>,
    /// Tokens of system prompt and passage up to which states are kept, where the model's sliding window sets a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passages_up_to: Option<usize>,
}

/// Ends a running or waiting request when told to.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(AtomicBool, Notify)>);

impl Cancel {
    /// Ends the request at the next token.
    pub fn cancel(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_waiters();
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) {
        loop {
            let notified = self.0.1.notified();
            if self.is_cancelled() {
                return;
            }
            notified.await;
        }
    }
}

/// A running request: its events, and the way to end it. Dropping it cancels.
#[derive(Debug)]
pub struct Generation {
    /// Events in order.
    pub events: mpsc::UnboundedReceiver<Event>,
    cancel: Cancel,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

struct Job {
    request: Request,
    cancel: Cancel,
    queued: Instant,
    // Bounded by max_tokens: the owner thread never waits for a slow reader.
    events: mpsc::UnboundedSender<Event>,
    _permit: OwnedSemaphorePermit,
}

/// What the owner thread is asked for.
enum Work {
    /// An answer.
    Answer(Job),
    /// The state of a passage, while there is nothing else to do.
    Precompute(precompute::Wish),
    /// To be ready for questions.
    WarmUp(std_mpsc::SyncSender<Result<(), EngineError>>),
}

impl Work {
    fn refuse(self, error: EngineError) {
        match self {
            Self::Answer(job) => drop(job.events.send(Event::Failed(error))),
            Self::WarmUp(reply) => drop(reply.send(Err(error))),
            // Dropped, its reply says so.
            Self::Precompute(_) => log::warn!("{error}"),
        }
    }
}

/// Handle to the generator's thread; cheap to clone. The thread ends when the last handle is gone, or at
/// [`Engine::shutdown`].
#[derive(Clone)]
pub struct Engine {
    owner: Arc<Owner>,
    permits: Arc<Semaphore>,
    queue: usize,
    info: Arc<EngineInfo>,
    tuned: Arc<Mutex<Tuned>>,
    passages: Option<PassageCache>,
    pulse: Pulse,
}

/// The owner thread, seen from outside. It must have ended before the process does: llama.cpp's threads may not outlive
/// the memory they work on.
struct Owner {
    jobs: Mutex<Option<std_mpsc::Sender<Work>>>,
    /// Set for the thread to see that there is new work.
    asked: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    fn ask(&self, work: Work) -> Result<(), EngineError> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().ok_or(EngineError::Stopped)?.send(work).map_err(|_| EngineError::Stopped)?;
        self.asked.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
            && thread.join().is_err()
        {
            log::error!("the generator's thread had panicked");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.end();
    }
}

impl Engine {
    /// Checks the model file and the memory it will need, maps it, and starts the owner thread. Blocks until the model is loaded.
    /// The context, most of a generator's own memory, is made for the first question, or by [`Engine::warm_up`].
    ///
    /// # Errors
    /// The file is missing, damaged, not a generator or too large; each names the file and the remedy.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let gguf = Gguf::open(path)?;
        scheduler::check(&gguf, path, options)?;
        let open = |options: &PassageCacheOptions| {
            let failed = |e: std::io::Error| log::warn!("{}: {e}; states of passages are not kept", options.dir.display());
            PassageCache::open(options).map_err(failed).ok()
        };
        let passages = options.passages.as_ref().and_then(open);
        let (ready_tx, ready_rx) = std_mpsc::sync_channel(1);
        let (jobs, inbox) = std_mpsc::channel::<Work>();
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let asked = Arc::new(AtomicBool::new(false));
        let pulse = Pulse::default();
        let needed = crate::llama::context_bytes(&gguf, options.context, BATCH as u32);
        crate::llama::backend()?;
        let placed = options.weights.place(&gguf, needed);
        let tuner = Tuner::new(&options.tuning, &gguf.fingerprint(), placed.placement, path, pulse.clone());
        let tuned = tuner.told();
        let (path, options, cache) = (path.to_owned(), options.clone(), passages.clone());
        let queue = options.queue;
        let start = scheduler::Start {
            path,
            gguf,
            options,
            placed,
            tuner,
            passages: cache,
            asked: Arc::clone(&asked),
            pulse: pulse.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || scheduler::run(start, &ready_tx, &inbox, &told))
            .map_err(|e| EngineError::Compute(format!("cannot start its thread: {e}")))?;
        let owner = Arc::new(Owner { jobs: Mutex::new(Some(jobs)), asked, stopping, thread: Mutex::new(Some(thread)) });
        let info = ready_rx.recv().map_err(|_| EngineError::Stopped)??;
        let passages = if info.passages_off.is_some() { None } else { passages };
        let permits = Arc::new(Semaphore::new(queue));
        Ok(Self { owner, permits, queue, info: Arc::new(info), tuned, passages, pulse })
    }

    /// Ends what is being computed and the thread; later requests get [`EngineError::Stopped`]. Blocks for a token's time.
    pub fn shutdown(&self) {
        self.owner.end();
    }

    /// What is loaded.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// What follows from the measurements made so far.
    pub fn tuned(&self) -> Tuned {
        self.tuned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells whether the thread gets on with what it computes.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The states of passages that are kept, where they are.
    pub fn passages(&self) -> Option<&PassageCache> {
        self.passages.as_ref()
    }

    /// Requests that wait or run.
    pub fn depth(&self) -> usize {
        self.queue.saturating_sub(self.permits.available_permits())
    }

    /// Makes the context now, so that the first question need not wait for it. Blocks until it is there; the system prompt is
    /// computed after that.
    ///
    /// # Errors
    /// There is not enough memory any more, or llama.cpp makes no context.
    pub fn warm_up(&self) -> Result<(), EngineError> {
        let (reply, done) = std_mpsc::sync_channel(1);
        self.owner.ask(Work::WarmUp(reply))?;
        done.recv().map_err(|_| EngineError::Stopped)?
    }

    /// Computes and keeps the state of the first passage of a reading while nobody asks anything, and blocks until that is done:
    /// for as long as there are questions. Theirs is every batch as soon as they come.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn precompute(&self, system: &str, reading: Reading) -> Result<Precomputed, EngineError> {
        let (reply, done) = std_mpsc::sync_channel(1);
        self.owner.ask(Work::Precompute(precompute::Wish::new(system, reading, reply)))?;
        done.recv().map_err(|_| EngineError::Stopped)
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] when too many wait, [`EngineError::Stopped`] when the thread has ended.
    pub fn generate(&self, request: Request, cancel: Cancel) -> Result<Generation, EngineError> {
        let full = |_| EngineError::QueueFull { waiting: self.queue };
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(full)?;
        let (events, receiver) = mpsc::unbounded_channel();
        let job = Job { request, cancel: cancel.clone(), queued: Instant::now(), events, _permit: permit };
        self.owner.ask(Work::Answer(job))?;
        Ok(Generation { events: receiver, cancel })
    }
}

#[cfg(test)]
mod tests;
