//! Precomputes the KV states of all chunks while the daemon is idle, so that already the first question about a chunk finds its
//! state. Off unless configured.

use super::{Answerer, Strategy, chunk_passage, passage_set};
use library::retrieve::RetrieveError;
use llm::engine::{EngineError, Precomputed};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use wire::PrecomputeReport;

/// Work starts after the library has been unchanged for this long: documents come in groups, and the encoder is busy meanwhile.
const QUIET: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Progress {
    done: AtomicU64,
    to_do: AtomicU64,
    full: AtomicBool,
}

/// Handle to the precomputing thread; cheap to clone. The thread ends with the last handle.
#[derive(Clone)]
pub struct Precompute {
    changed: Option<SyncSender<()>>,
    progress: Arc<Progress>,
    off: Option<String>,
}

impl Precompute {
    /// Starts the thread if the strategy reads single chunks and KV states are stored; otherwise logs why not.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(answerer: Answerer) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let off = why_not(&answerer);
        if let Some(why) = &off {
            log::warn!("model.precompute: {why}");
            return Ok(Self { changed: None, progress, off });
        }
        let (sender, changed) = sync_channel(1);
        let worker = Worker::new(answerer, &progress);
        std::thread::Builder::new().name("precompute".into()).spawn(move || worker.run(&changed))?;
        Ok(Self { changed: Some(sender), progress, off })
    }

    /// Precomputes everything at once, and reports the progress.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn all(answerer: Answerer) -> Result<PrecomputeReport, RetrieveError> {
        let (_open, changed) = sync_channel(1);
        let done = Self { changed: None, progress: Arc::default(), off: why_not(&answerer) };
        if done.off.is_none() {
            Worker::new(answerer, &done.progress).round(&changed)?;
        }
        Ok(done.progress())
    }

    /// Call at the start and after every change of the library.
    pub fn library_changed(&self) {
        if let Some(changed) = &self.changed {
            // A signal that is still waiting stands for this one as well.
            let _ = changed.try_send(());
        }
    }

    /// The progress so far.
    pub fn progress(&self) -> PrecomputeReport {
        PrecomputeReport {
            done: self.progress.done.load(Ordering::Relaxed),
            to_do: self.progress.to_do.load(Ordering::Relaxed),
            full: self.progress.full.load(Ordering::Relaxed),
            off: self.off.clone(),
        }
    }
}

fn why_not(answerer: &Answerer) -> Option<String> {
    if !matches!(answerer.strategy(), Strategy::Best | Strategy::Each) {
        return Some("only the strategies best and each read single passages, and another one is in use".into());
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
    fn new(answerer: Answerer, progress: &Arc<Progress>) -> Self {
        Self { answerer, progress: Arc::clone(progress), done: HashSet::new(), impossible: HashSet::new() }
    }

    fn run(mut self, changed: &Receiver<()>) {
        let mut pending = false;
        loop {
            if !pending && changed.recv().is_err() {
                return;
            }
            loop {
                match changed.recv_timeout(QUIET) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            match self.round(changed) {
                Ok(Ended::Finished) => pending = false,
                Ok(Ended::Changed) => pending = true,
                Ok(Ended::Stopped) => return,
                Err(error) => {
                    log::warn!("KV states are not precomputed: {error}; the next change of the library starts another attempt");
                    pending = false;
                }
            }
        }
    }

    /// Visits all chunks once.
    fn round(&mut self, changed: &Receiver<()>) -> Result<Ended, RetrieveError> {
        let documents = self.answerer.retriever.chunk_counts()?;
        for chunks in [&mut self.done, &mut self.impossible] {
            chunks.retain(|(number, _)| documents.contains_key(number));
        }
        self.progress.full.store(false, Ordering::Relaxed);
        self.count(&documents);
        for (number, chunks) in &documents {
            for ordinal in 0..*chunks {
                let at = (*number, ordinal);
                if self.done.contains(&at) || self.impossible.contains(&at) {
                    continue;
                }
                if changed.try_recv().is_ok() {
                    return Ok(Ended::Changed);
                }
                // The document was replaced or deleted; the signal of that change follows.
                let Some(text) = self.answerer.retriever.chunk_text(*number, ordinal)? else { break };
                let asked = passage_set(vec![chunk_passage(1, *number, &text)]);
                match self.answerer.engine.precompute(&self.answerer.options.system, asked) {
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

    fn count(&self, documents: &BTreeMap<u64, u32>) {
        let all: u64 = documents.values().map(|chunks| u64::from(*chunks)).sum();
        let settled = (self.done.len() + self.impossible.len()) as u64;
        self.progress.done.store(self.done.len() as u64, Ordering::Relaxed);
        self.progress.to_do.store(all.saturating_sub(settled), Ordering::Relaxed);
    }
}
