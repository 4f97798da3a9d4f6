//! The generator: one OS thread owns the llama.cpp model and context; an [`Engine`] is a cheap handle to it.
//!
//! A [`Request`] enters through a bounded queue and leaves as a stream of [`Event`]s. Several requests run at once, in common
//! batches. Between two batches the thread checks for cancelled requests and passed deadlines.
//!
//! A request has one [`Reading`] or several, best first. The first one that the model reads within the asker's patience is taken.
//! Tokens whose state is kept cost no time, so a passage that was read before is read whole at once.

mod copying;
mod kv_cache;
mod lane;
mod lookup;
mod precompute;
mod prompt;
mod scheduler;
mod sequences;
mod speed;
// Public for the fuzzer.
#[doc(hidden)]
pub mod state_file;
mod text;
mod tuner;

pub use copying::CopyRules;
pub use kv_cache::{KvCache, KvCacheOptions};
pub use precompute::Precomputed;
pub use prompt::{Asked, PromptPassage, Reading};
pub use scheduler::BATCH;
pub use speed::ReadingSpeed;

use crate::gguf::{Gguf, GgufError};
use crate::tune::{Saved, Topology};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tuner::Tuner;
use wire::{Cancel, ModelInfo, Sampling};

/// An error of the generator.
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
        /// Its architecture.
        architecture: String,
    },
    /// llama.cpp could not load the file or make a context.
    #[error("llama.cpp cannot use {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's message.
        reason: String,
    },
    /// The queue is full.
    #[error("the queue is full ({waiting} questions wait); ask again later, or raise answer.queue")]
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
    #[error("the generator failed: {0}; ask the question again")]
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
    /// Threads that decode and read prompts, and prompt lookup.
    pub tuning: Tuning,
    /// Placement of the weights.
    pub weights: Weights,
    /// Requests that may wait.
    pub queue: usize,
    /// Requests that run at once.
    pub slots: usize,
    /// The KV cache on disk; `None`: off.
    pub kv_cache: Option<KvCacheOptions>,
}

/// Inputs of the choice of thread counts.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// The cores.
    pub topology: Topology,
    /// The file of measurements; `None`: nothing is measured.
    pub saved: Option<Saved>,
    /// Threads that decode; 0: as measured.
    pub decode: usize,
    /// Threads that read prompts; 0: as measured.
    pub batch: usize,
    /// Prompt lookup.
    pub lookup: Lookup,
}

/// Prompt lookup: whether the next tokens of an answer are guessed from the prompt and verified in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lookup {
    /// Never.
    Off,
    /// On if the measurements say that verifying several tokens in one pass gains.
    #[default]
    Auto,
    /// Always.
    On,
}

/// Conclusions from the measurements so far.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Tuned {
    /// Initial number of decoding threads, and threads that read prompts.
    pub threads: crate::tune::Threads,
    /// Tokens guessed at once; 0: prompt lookup is off.
    pub draft: usize,
    /// Why prompt lookup is on or off.
    pub lookup: String,
}

pub use crate::llama::{GpuLayers, Pulse, Repack, Weights};

/// The form of an answer.
#[derive(Debug, Clone, Default)]
pub enum Form {
    /// Text of the model's own.
    #[default]
    Written,
    /// A run of words of the passages that were read; [`Request::sampling`] does not matter.
    Copied(Arc<dyn CopyRules>),
    /// Two groups of words that an answer may begin with; [`Completion::preference`] compares them.
    Compared([Vec<String>; 2]),
}

/// One question to the generator.
#[derive(Debug, Clone)]
pub struct Request {
    /// The system prompt.
    pub system: String,
    /// The readings, best first; at least one.
    pub readings: Vec<Reading>,
    /// Time for reading. The first of `readings` that is read within it is taken, else the one with the fewest unread tokens.
    pub patience: Duration,
    /// The question with its task.
    pub asked: Asked,
    /// The form of the answer.
    pub form: Form,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The instant at which the request is given up.
    pub deadline: Instant,
}

/// Events of a request, in order: one `Chosen`, any number of deltas, then one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// The reading is chosen.
    Chosen {
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
    /// The answer reached `max_tokens` or the end of the context.
    Length,
    /// The request was cancelled.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The whole text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Passages in the prompt.
    pub passages_used: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose state was in the KV cache, in memory or on disk.
    pub reused_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Tokens that prompt lookup guessed.
    pub drafted_tokens: usize,
    /// Guessed tokens that the model confirmed.
    pub accepted_tokens: usize,
    /// ln of the odds that the answer begins with a word of the first group of [`Form::Compared`], not of the second.
    pub preference: Option<f64>,
    /// How sure the model is of a copied answer, 0 or less: ln of the probability that it copies at all, plus ln of that of its
    /// first token. `None` if no whole run was copied: the text is then no answer.
    pub certainty: Option<f64>,
    /// Time in the queue.
    pub waited: Duration,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time to write the answer.
    pub decode: Duration,
}

/// A running request: its events and its cancellation. Dropping it cancels the request.
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
    // Unbounded channel, bounded by max_tokens: the owner thread never waits for a slow reader.
    events: mpsc::UnboundedSender<Event>,
    _permit: OwnedSemaphorePermit,
}

/// A message to the owner thread.
enum Work {
    /// An answer.
    Answer(Job),
    /// The state of a passage, to be computed while the generator is idle.
    Precompute(precompute::Wish),
    /// Makes the context and computes a system prompt.
    WarmUp { system: String, reply: std_mpsc::SyncSender<Result<(), EngineError>> },
}

impl Work {
    fn refuse(self, error: EngineError) {
        match self {
            Self::Answer(job) => drop(job.events.send(Event::Failed(error))),
            Self::WarmUp { reply, .. } => drop(reply.send(Err(error))),
            // The reply channel is dropped, which tells the caller.
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
    info: Arc<ModelInfo>,
    tuned: Arc<Mutex<Tuned>>,
    kv_cache: Option<KvCache>,
    speed: ReadingSpeed,
    pulse: Pulse,
}

/// The owner thread, seen from outside. The thread must end before the process does: llama.cpp's threads may not outlive the
/// memory they work on.
struct Owner {
    jobs: Mutex<Option<std_mpsc::Sender<Work>>>,
    /// Set when there is new work.
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
            log::error!("the generator's thread has panicked");
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
    /// The context is most of a generator's own memory. The first question makes it, or [`Engine::warm_up`].
    ///
    /// # Errors
    /// The file is missing, damaged, not a generator or too large. Each error names the file and the remedy.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let gguf = Gguf::open(path)?;
        scheduler::check(&gguf, path, options)?;
        let open = |options: &KvCacheOptions| {
            let failed = |e: std::io::Error| log::warn!("{}: {e}; KV states are not kept on disk", options.dir.display());
            KvCache::open(options).map_err(failed).ok()
        };
        let kv_cache = options.kv_cache.as_ref().and_then(open);
        let (ready_tx, ready_rx) = std_mpsc::sync_channel(1);
        let (jobs, inbox) = std_mpsc::channel::<Work>();
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let asked = Arc::new(AtomicBool::new(false));
        let pulse = Pulse::default();
        let speed = ReadingSpeed::default();
        let needed = crate::llama::context_bytes(&gguf, options.context, BATCH as u32);
        crate::llama::backend()?;
        let placed = options.weights.place(&gguf, needed);
        let tuner = Tuner::new(&options.tuning, &gguf.fingerprint(), placed.placement, path, pulse.clone());
        let tuned = tuner.told();
        let (path, options, cache) = (path.to_owned(), options.clone(), kv_cache.clone());
        let queue = options.queue;
        let start = scheduler::Start {
            path,
            gguf,
            options,
            placed,
            tuner,
            kv_cache: cache,
            asked: Arc::clone(&asked),
            speed: speed.clone(),
            pulse: pulse.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || scheduler::run(start, &ready_tx, &inbox, &told))
            .map_err(|e| EngineError::Compute(format!("cannot start its thread: {e}")))?;
        let owner = Arc::new(Owner { jobs: Mutex::new(Some(jobs)), asked, stopping, thread: Mutex::new(Some(thread)) });
        let info = ready_rx.recv().map_err(|_| EngineError::Stopped)??;
        let kv_cache = if info.kv_cache_off.is_some() { None } else { kv_cache };
        let permits = Arc::new(Semaphore::new(queue));
        Ok(Self { owner, permits, queue, info: Arc::new(info), tuned, kv_cache, speed, pulse })
    }

    /// Ends the running requests and the thread. Later requests get [`EngineError::Stopped`]. Blocks for a token's time.
    pub fn shutdown(&self) {
        self.owner.end();
    }

    /// The loaded model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Conclusions from the measurements so far.
    pub fn tuned(&self) -> Tuned {
        self.tuned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The speed of reading.
    pub fn reading_speed(&self) -> &ReadingSpeed {
        &self.speed
    }

    /// The sign of life of the owner thread.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The KV cache on disk; `None` where none is kept.
    pub fn kv_cache(&self) -> Option<&KvCache> {
        self.kv_cache.as_ref()
    }

    /// Number of requests that wait or run.
    pub fn depth(&self) -> usize {
        self.queue.saturating_sub(self.permits.available_permits())
    }

    /// Makes the context now, so that the first question need not wait for it. Blocks until the context exists. `system` is
    /// computed after that; every question that begins with it reuses its KV cells.
    ///
    /// # Errors
    /// Too little memory is free by now, or llama.cpp makes no context.
    pub fn warm_up(&self, system: &str) -> Result<(), EngineError> {
        let (reply, done) = std_mpsc::sync_channel(1);
        self.owner.ask(Work::WarmUp { system: system.to_owned(), reply })?;
        done.recv().map_err(|_| EngineError::Stopped)?
    }

    /// Precomputes the state of a passage and keeps it on disk. Blocks until that is done. Questions go first:
    /// they get every batch as soon as they arrive.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn precompute(&self, system: &str, passage: PromptPassage) -> Result<Precomputed, EngineError> {
        let (reply, done) = std_mpsc::sync_channel(1);
        self.owner.ask(Work::Precompute(precompute::Wish::new(system, passage, reply)))?;
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
