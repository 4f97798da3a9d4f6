//! The sign of life of a thread that computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts the steps of a computing thread, so that another thread sees its progress. Clones are the same pulse.
///
/// The generator's step is a node of a graph: milliseconds on a small board, at most a second or two with a large model. So a
/// long prompt beats all along, and a thread that hangs in llama.cpp does not. The encoder's step is a pass.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug, Default)]
struct Beats {
    steps: AtomicU64,
    at_work: AtomicBool,
}

impl Pulse {
    /// Counts a step. Only one thread may call this.
    pub(crate) fn beat(&self) {
        // There is one writer: a plain addition costs less than an atomic one.
        self.0.steps.store(self.0.steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Notes that the thread begins to work, or waits for work.
    pub fn set_at_work(&self, at_work: bool) {
        self.0.at_work.store(at_work, Ordering::Relaxed);
    }

    /// The number of the last step; `None` while the thread waits for work.
    pub fn step(&self) -> Option<u64> {
        self.0.at_work.load(Ordering::Relaxed).then(|| self.0.steps.load(Ordering::Relaxed))
    }
}
