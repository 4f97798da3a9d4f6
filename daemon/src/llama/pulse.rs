//! The sign of life of a thread that computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts the steps of what a thread computes, for another thread to see whether it gets on. Clones are the same pulse.
///
/// The generator's step is a node of a graph: milliseconds on a small board, at most a second or two with a large model. So a long prompt
/// beats all along, and a thread that hangs in llama.cpp does not. The encoder's is a pass.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug, Default)]
struct Beats {
    steps: AtomicU64,
    at_work: AtomicBool,
}

impl Pulse {
    /// The thread has got on by a step. Only one thread may do so.
    pub(crate) fn beat(&self) {
        // One writer: a plain addition, which costs less than an atomic one.
        self.0.steps.store(self.0.steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The thread begins to work, or waits for work.
    pub fn set_at_work(&self, at_work: bool) {
        self.0.at_work.store(at_work, Ordering::Relaxed);
    }

    /// The number of the last step; `None` while the thread waits for work.
    pub fn step(&self) -> Option<u64> {
        self.0.at_work.load(Ordering::Relaxed).then(|| self.0.steps.load(Ordering::Relaxed))
    }
}
