//! The cores that this process may use, and the number of threads to run on them.
//!
//! [`Topology`] describes the cores, [`calibrate()`] measures a model on them, [`Saved`] keeps the measurements, and [`Plan`]
//! combines them with the configuration. [`Governor`] adapts to the load from token to token. Nothing here calls llama.cpp or
//! sleeps: the owner of a model measures it.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use vademecum_llm::tune::{WorkKind, Plan, Saved, Topology, calibrate};
//!
//! let topology = Topology::detect();
//! let saved = Saved::in_dir(std::path::Path::new("/tmp"));
//! let key = topology.key("fingerprint of the model", "mapped", "version of llama.cpp");
//! let mut plan = Plan::new(&topology, saved.find(&key), 0, 0);
//! if plan.wants_calibration() {
//!     let started = Instant::now();
//!     let measure = |_: WorkKind, threads: usize| Ok::<_, std::io::Error>(threads as f64); // tokens per second
//!     let found = calibrate(&topology.candidates(), Duration::from_secs(5), || started.elapsed(), measure)?;
//!     plan = Plan::new(&topology, found, 0, 0);
//! }
//! let mut governor = plan.governor();
//! // For each token: set the context to this many threads, decode, and tell how long it took.
//! let threads = governor.decode_threads();
//! governor.observe(threads, 1, Duration::from_millis(20));
//! # Ok::<(), std::io::Error>(())
//! ```

mod calibrate;
pub mod cgroup;
mod drafts;
mod governor;
mod quiet;
mod saved;
mod topology;

pub use calibrate::{Calibration, ThreadSpeed, calibrate};
pub use drafts::{Drafts, Pass, verify};
pub use governor::Governor;
pub use quiet::Busy;
pub use saved::{CalibrationKey, Saved};
pub use topology::{Core, Topology};

use std::time::Duration;

/// Longest time of a calibration.
pub const CALIBRATION: Duration = Duration::from_secs(5);

/// The two kinds of work, each with a thread count of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkKind {
    /// One token at a time.
    Decode,
    /// Many tokens in one pass.
    Batch,
}

/// Thread counts for the two kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Threads {
    /// Threads that decode one token at a time.
    pub decode: usize,
    /// Threads that read prompts and encode text: compute-bound, every usable core helps.
    pub batch: usize,
}

/// Origin of a thread count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration sets the count.
    Configured,
    /// The count was measured.
    Measured,
    /// One per usable core.
    Cores,
}

/// The thread counts of a generator, and why.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Plan {
    /// Initial counts; [`Plan::governor`] adapts them to the load.
    pub threads: Threads,
    /// Origin of the number of decoding threads.
    pub decode_origin: Origin,
    /// Origin of the number of batch threads.
    pub batch_origin: Origin,
    /// The measurements.
    pub calibration: Option<Calibration>,
    /// Numbers of threads to choose from.
    pub candidates: Vec<usize>,
}

impl Plan {
    /// The configuration (0: none) goes before the measurements, and those before the number of cores.
    pub fn new(topology: &Topology, calibration: Option<Calibration>, decode: usize, batch: usize) -> Self {
        let measured = calibration.as_ref().map(|calibration| calibration.best);
        let choose = |configured: usize, measured: Option<usize>| match (configured, measured) {
            (0, Some(measured)) => (measured, Origin::Measured),
            (0, None) => (topology.usable(), Origin::Cores),
            (configured, _) => (configured, Origin::Configured),
        };
        let (decode, decode_origin) = choose(decode, measured.map(|best| best.decode));
        let (batch, batch_origin) = choose(batch, measured.map(|best| best.batch));
        let candidates = topology.candidates();
        Self { threads: Threads { decode, batch }, decode_origin, batch_origin, calibration, candidates }
    }

    /// Whether a calibration could change anything. It could not with one core, or if all counts are configured or measured.
    pub fn wants_calibration(&self) -> bool {
        self.calibration.is_none()
            && self.candidates.len() > 1
            && (self.decode_origin != Origin::Configured || self.batch_origin != Origin::Configured)
    }

    /// The governor that chooses the decoding threads from token to token.
    pub fn governor(&self) -> Governor {
        match (&self.calibration, self.decode_origin) {
            (_, Origin::Configured) => Governor::fixed(self.threads.decode),
            (Some(calibration), _) => Governor::new(calibration),
            (None, _) => Governor::among(self.candidates.clone(), self.threads.decode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::topology::Board;
    use super::*;

    #[test]
    fn configuration_before_measurement_before_cores() {
        let board = Board::new("0-3");
        (0..4).for_each(|cpu| board.cpu(cpu, &cpu.to_string(), None, None));
        let topology = board.detect();
        let cores = Plan::new(&topology, None, 0, 0);
        assert_eq!((cores.threads, cores.decode_origin), (Threads { decode: 4, batch: 4 }, Origin::Cores));
        assert!(cores.wants_calibration());
        assert_eq!(cores.governor().decode_threads(), 4);

        let row = |threads| ThreadSpeed { threads, median: 2.0, min: 1.0, max: 3.0, samples: 3 };
        let calibration = Calibration {
            best: Threads { decode: 2, batch: 3 },
            decode: vec![row(2)],
            batch: vec![row(3)],
            verify: vec![],
            seconds: 1.0,
        };
        let measured = Plan::new(&topology, Some(calibration.clone()), 0, 0);
        assert_eq!((measured.threads, measured.batch_origin), (calibration.best, Origin::Measured));
        assert!(!measured.wants_calibration());

        let configured = Plan::new(&topology, Some(calibration), 1, 0);
        assert_eq!((configured.threads, configured.decode_origin), (Threads { decode: 1, batch: 3 }, Origin::Configured));
        assert_eq!(configured.governor().decode_threads(), 1);
        assert!(!Plan::new(&topology, None, 1, 7).wants_calibration());
        let board = Board::new("2");
        assert!(!Plan::new(&board.detect(), None, 0, 0).wants_calibration());
    }
}
