//! The states of all passages, computed while the daemon has nothing else to do, so that already the first question about one
//! finds its state. Off unless configured.

use super::{Answerer, Strategy, chunk_passage, reading};
use crate::engine::{EngineError, Precomputed};
use crate::retrieve::RetrieveError;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// The library has not changed for this long: documents come in groups, and the encoder has work to do meanwhile.
const QUIET: Duration = Duration::from_secs(3);

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct PrecomputeProgress {
    /// Chunks whose states are kept.
    pub done: u64,
    /// Chunks whose states are not.
    pub to_do: u64,
    /// There is no room for more: the rest is computed when it is asked about.
    pub full: bool,
    /// Why nothing is computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
}

#[derive(Default)]
struct Progress {
    done: AtomicU64,
    to_do: AtomicU64,
    full: AtomicBool,
}

/// Handle to the thread that asks for one state after another; cheap to clone. It ends with the last handle.
#[derive(Clone)]
pub struct Precompute {
    changed: Option<SyncSender<()>>,
    progress: Arc<Progress>,
    off: Option<String>,
}

impl Precompute {
    /// Starts the thread, where the reader reads single chunks and states are kept; else it says why it does not.
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

    /// Computes what can be computed, at once, and says how far that was.
    ///
    /// # Errors
    /// The library cannot be read.
    pub fn all(answerer: Answerer) -> Result<PrecomputeProgress, RetrieveError> {
        let (_open, changed) = sync_channel(1);
        let done = Self { changed: None, progress: Arc::default(), off: why_not(&answerer) };
        if done.off.is_none() {
            Worker::new(answerer, &done.progress).round(&changed)?;
        }
        Ok(done.progress())
    }

    /// To be called at the start and after every change of the library.
    pub fn library_changed(&self) {
        if let Some(changed) = &self.changed {
            // One that waits already stands for this one as well.
            let _ = changed.try_send(());
        }
    }

    /// How far it is.
    pub fn progress(&self) -> PrecomputeProgress {
        PrecomputeProgress {
            done: self.progress.done.load(Ordering::Relaxed),
            to_do: self.progress.to_do.load(Ordering::Relaxed),
            full: self.progress.full.load(Ordering::Relaxed),
            off: self.off.clone(),
        }
    }
}

fn why_not(answerer: &Answerer) -> Option<String> {
    if !matches!(answerer.strategy(), Strategy::Best | Strategy::Each) {
        return Some("the readers best and each alone read single passages, and another one is in use".into());
    }
    match &answerer.engine().info().passages_off {
        Some(why) => Some(why.clone()),
        None if answerer.engine().passages().is_none() => Some("no states are kept (model.kv_cache_mb)".into()),
        None => None,
    }
}

struct Worker {
    answerer: Answerer,
    progress: Arc<Progress>,
    /// Number of the document and ordinal of the chunk, as far as this process knows.
    done: HashSet<(u64, u32)>,
    impossible: HashSet<(u64, u32)>,
}

/// Why a round ended.
enum Ended {
    /// There is nothing left that can be done.
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
        let mut known = false;
        loop {
            if !known && changed.recv().is_err() {
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
                Ok(Ended::Finished) => known = false,
                Ok(Ended::Changed) => known = true,
                Ok(Ended::Stopped) => return,
                Err(error) => {
                    log::warn!("states are not computed in advance: {error}; it is tried again after the next change");
                    known = false;
                }
            }
        }
    }

    /// Goes through all chunks once.
    fn round(&mut self, changed: &Receiver<()>) -> Result<Ended, RetrieveError> {
        let documents = self.answerer.retriever.chunk_counts()?;
        for known in [&mut self.done, &mut self.impossible] {
            known.retain(|(number, _)| documents.contains_key(number));
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
                // Replaced or deleted meanwhile: the change is told soon.
                let Some(text) = self.answerer.retriever.chunk_text(*number, ordinal)? else { break };
                let asked = reading(vec![chunk_passage(1, *number, &text)]);
                match self.answerer.engine.precompute(&self.answerer.options.system, asked) {
                    Ok(Precomputed::Held | Precomputed::Kept) => drop(self.done.insert(at)),
                    Ok(Precomputed::Impossible) => drop(self.impossible.insert(at)),
                    Ok(Precomputed::NoRoom) => {
                        self.progress.full.store(true, Ordering::Relaxed);
                        log::info!(
                            "no room for more states of passages (model.kv_cache_mb); the rest is computed when asked about"
                        );
                        return Ok(Ended::Finished);
                    }
                    Ok(Precomputed::Failed) => return Ok(Ended::Finished),
                    Err(EngineError::Stopped) => return Ok(Ended::Stopped),
                    Err(error) => {
                        log::warn!("states are not computed in advance: {error}");
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
