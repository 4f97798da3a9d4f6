//! Computes KV states while the generator is idle: of sections that a question found and had no time to read, and, if configured,
//! of the whole library. The next question about such a section has it read at once.

use super::Answerer;
use crate::reading::{self, SECTION_TOKENS};
use library::retrieve::RetrieveError;
use library::store::Outline;
use llm::engine::{EngineError, Precomputed, PromptPassage};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use wire::PrecomputeReport;

/// Work on the whole library starts after it has been unchanged for this long: documents come in groups, and the encoder is busy
/// meanwhile.
const QUIET: Duration = Duration::from_secs(3);

/// Sections that may wait. Further ones are dropped: the next question asks for them again.
const WISHES: usize = 16;

/// A message to the thread.
enum Signal {
    /// The library has changed.
    Changed,
    /// A section that a question had no time to read.
    Wish(PromptPassage),
}

/// The way of wishes to the thread, once it runs.
#[derive(Clone, Default)]
pub(super) struct Wishes(Arc<OnceLock<SyncSender<Signal>>>);

impl Wishes {
    /// Asks for the state of a passage. Never waits.
    pub(super) fn ask(&self, passage: PromptPassage) {
        if let Some(sender) = self.0.get() {
            let _ = sender.try_send(Signal::Wish(passage));
        }
    }
}

#[derive(Default)]
struct Progress {
    done: AtomicU64,
    to_do: AtomicU64,
    full: AtomicBool,
}

/// Handle to the precomputing thread; cheap to clone.
#[derive(Clone)]
pub struct Precompute {
    sender: Option<SyncSender<Signal>>,
    progress: Arc<Progress>,
    /// Whether the whole library is precomputed.
    whole: bool,
    off: Option<String>,
}

impl Precompute {
    /// Starts the thread if the generator reads sections and KV states are stored. `whole`: the whole library is precomputed, and
    /// the log tells why not.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(answerer: &Answerer, whole: bool) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let off = why_not(answerer);
        if let Some(why) = &off {
            if whole {
                log::warn!("model.precompute: {why}");
            }
            return Ok(Self { sender: None, progress, whole, off });
        }
        let (sender, signals) = sync_channel(WISHES);
        // The thread's own answerer sends no wishes: the channel closes when the others are gone.
        let own = Answerer { wishes: Wishes::default(), ..answerer.clone() };
        let _ = answerer.wishes.0.set(sender.clone());
        let worker = Worker::new(own, &progress, whole);
        std::thread::Builder::new().name("precompute".into()).spawn(move || worker.run(&signals))?;
        Ok(Self { sender: Some(sender), progress, whole, off })
    }

    /// Precomputes the whole library at once, and reports the progress.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn all(answerer: Answerer) -> Result<PrecomputeReport, RetrieveError> {
        let (_open, signals) = sync_channel(1);
        let done = Self { sender: None, progress: Arc::default(), whole: true, off: why_not(&answerer) };
        if done.off.is_none() {
            Worker::new(answerer, &done.progress, true).round(&signals)?;
        }
        Ok(done.progress().unwrap_or_default())
    }

    /// Call at the start and after every change of the library.
    pub fn library_changed(&self) {
        if let Some(sender) = self.sender.as_ref().filter(|_| self.whole) {
            // A signal that is still waiting stands for this one as well.
            let _ = sender.try_send(Signal::Changed);
        }
    }

    /// The progress on the whole library so far; `None` if only wishes are computed.
    pub fn progress(&self) -> Option<PrecomputeReport> {
        self.whole.then(|| PrecomputeReport {
            done: self.progress.done.load(Ordering::Relaxed),
            to_do: self.progress.to_do.load(Ordering::Relaxed),
            full: self.progress.full.load(Ordering::Relaxed),
            off: self.off.clone(),
        })
    }
}

fn why_not(answerer: &Answerer) -> Option<String> {
    if !answerer.reads() {
        return Some("the generator reads no passages (answer.strategy)".into());
    }
    match &answerer.engine().info().kv_cache_off {
        Some(why) => Some(why.clone()),
        None if answerer.engine().kv_cache().is_none() => Some("no KV states are stored (model.kv_cache_mb)".into()),
        None => None,
    }
}

struct Worker {
    answerer: Answerer,
    progress: Arc<Progress>,
    whole: bool,
    /// Number of the document and ordinal of the chunk; known to this process only.
    done: HashSet<(u64, u32)>,
    impossible: HashSet<(u64, u32)>,
}

/// The end of a round.
enum Ended {
    /// No chunk is left that can be precomputed.
    Finished,
    /// The library has changed.
    Changed,
    Stopped,
}

impl Worker {
    fn new(answerer: Answerer, progress: &Arc<Progress>, whole: bool) -> Self {
        Self { answerer, progress: Arc::clone(progress), whole, done: HashSet::new(), impossible: HashSet::new() }
    }

    fn run(mut self, signals: &Receiver<Signal>) {
        // When work on the whole library may begin.
        let mut due: Option<Instant> = None;
        loop {
            let signal = match due {
                None => signals.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => signals.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match signal {
                Ok(Signal::Changed) => due = self.whole.then(|| Instant::now() + QUIET),
                Ok(Signal::Wish(passage)) => match self.compute(passage) {
                    Err(EngineError::Stopped) => return,
                    Err(error) => log::warn!("a section's KV state is not computed: {error}"),
                    Ok(_) => {}
                },
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    due = match self.round(signals) {
                        Ok(Ended::Finished) => None,
                        Ok(Ended::Changed) => Some(Instant::now() + QUIET),
                        Ok(Ended::Stopped) => return,
                        Err(error) => {
                            log::warn!(
                                "KV states are not precomputed: {error}; the next change of the library starts another attempt"
                            );
                            None
                        }
                    }
                }
            }
        }
    }

    fn compute(&self, passage: PromptPassage) -> Result<Precomputed, EngineError> {
        self.answerer.engine.precompute(self.answerer.options.system(), passage)
    }

    /// Visits the section of each chunk once.
    fn round(&mut self, signals: &Receiver<Signal>) -> Result<Ended, RetrieveError> {
        let documents = self.answerer.retriever.outlines()?;
        for chunks in [&mut self.done, &mut self.impossible] {
            chunks.retain(|(number, _)| documents.contains_key(number));
        }
        self.progress.full.store(false, Ordering::Relaxed);
        self.count(&documents);
        for (number, outline) in &documents {
            for ordinal in 0..outline.chunks {
                let at = (*number, ordinal);
                if self.done.contains(&at) || self.impossible.contains(&at) {
                    continue;
                }
                match signals.try_recv() {
                    Ok(Signal::Changed) => return Ok(Ended::Changed),
                    Ok(Signal::Wish(passage)) => drop(self.compute(passage)),
                    Err(TryRecvError::Disconnected) => return Ok(Ended::Stopped),
                    Err(TryRecvError::Empty) => {}
                }
                // The document was replaced or deleted; the signal of that change follows.
                let Some(section) = self.answerer.retriever.section(*number, ordinal, SECTION_TOKENS)? else { break };
                let passage = reading::section_prompt(&self.answerer.options.prompts, &outline.title, &section);
                match self.compute(passage) {
                    Ok(Precomputed::Held | Precomputed::Kept) => drop(self.done.insert(at)),
                    Ok(Precomputed::Impossible) => drop(self.impossible.insert(at)),
                    Ok(Precomputed::NoRoom) => {
                        self.progress.full.store(true, Ordering::Relaxed);
                        log::info!("no room for more KV states (model.kv_cache_mb); the remaining ones are computed on demand");
                        return Ok(Ended::Finished);
                    }
                    Ok(Precomputed::Failed) => return Ok(Ended::Finished),
                    Err(EngineError::Stopped) => return Ok(Ended::Stopped),
                    Err(error) => {
                        log::warn!("KV states are not precomputed: {error}");
                        return Ok(Ended::Finished);
                    }
                }
                self.count(&documents);
            }
        }
        Ok(Ended::Finished)
    }

    fn count(&self, documents: &BTreeMap<u64, Outline>) {
        let all: u64 = documents.values().map(|outline| u64::from(outline.chunks)).sum();
        let settled = (self.done.len() + self.impossible.len()) as u64;
        self.progress.done.store(self.done.len() as u64, Ordering::Relaxed);
        self.progress.to_do.store(all.saturating_sub(settled), Ordering::Relaxed);
    }
}
