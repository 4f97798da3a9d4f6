//! Thread counts of the owner thread: measured when it is idle, adapted from token to token, measured again when the machine has
//! changed.

use super::{Lookup, Tuned, Tuning, Work};
use crate::llama::{Bench, LlamaError, Placement, Pulse};
use crate::tune::{Busy, CALIBRATION, Drafts, Governor, Plan, Saved, Threads, Topology, calibrate, verify};
use llama_cpp_2::model::LlamaModel;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Idle time before a measurement: no request, and nothing else computed.
const IDLE: Duration = Duration::from_secs(3);
/// Time between two checks whether the machine is quiet.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Least time between two measurements after a drift, and after a change of cores or quota. Both may change again and again.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
const ANEW_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Tuner {
    pub(super) plan: Plan,
    governor: Governor,
    topology: Topology,
    saved: Option<Saved>,
    /// Fingerprint of the model file.
    fingerprint: String,
    /// Placement of its weights.
    weights: String,
    path: PathBuf,
    configured: (usize, usize),
    measured: Option<Instant>,
    lookup: Lookup,
    /// Why prompt lookup is off regardless of measurements.
    no_lookup: Option<&'static str>,
    /// Tokens guessed at once.
    draft: usize,
    /// The conclusions, shared with [`super::Engine::tuned`].
    told: Arc<Mutex<Tuned>>,
    /// Sign of life: whether the thread works or waits.
    pulse: Pulse,
}

/// Tokens guessed at once if prompt lookup is configured and nothing was measured.
const DRAFT: usize = 4;

/// Why a measurement ended early.
enum Ended {
    Asked(Box<Work>),
    Stopping,
    Failed(LlamaError),
}

impl Tuner {
    pub(super) fn new(tuning: &Tuning, fingerprint: &str, placement: Placement, path: &Path, pulse: Pulse) -> Self {
        let weights = placement.to_string();
        let key = tuning.topology.key(fingerprint, &weights, crate::llama::build());
        let found = tuning.saved.as_ref().and_then(|saved| saved.find(&key));
        let plan = Plan::new(&tuning.topology, found, tuning.decode, tuning.batch);
        let told = Tuned { threads: plan.threads, draft: 0, lookup: String::new() };
        let mut tuner = Self {
            governor: plan.governor(),
            plan,
            topology: tuning.topology.clone(),
            saved: tuning.saved.clone(),
            fingerprint: fingerprint.to_owned(),
            weights,
            path: path.to_owned(),
            configured: (tuning.decode, tuning.batch),
            measured: None,
            lookup: tuning.lookup,
            no_lookup: None,
            draft: 0,
            told: Arc::new(Mutex::new(told)),
            pulse,
        };
        tuner.tell();
        tuner
    }

    /// Turns prompt lookup off, for a model whose sequences cannot be truncated after a wrong guess.
    pub(super) fn without_lookup(mut self, why: &'static str) -> Self {
        self.no_lookup = Some(why);
        self.tell();
        self
    }

    /// The shared conclusions from the measurements.
    pub(super) fn told(&self) -> Arc<Mutex<Tuned>> {
        Arc::clone(&self.told)
    }

    /// Tokens to guess at once.
    pub(super) fn draft(&self) -> usize {
        self.draft
    }

    /// Draws the conclusions from the measurements.
    fn tell(&mut self) {
        let drafts = self.plan.calibration.as_ref().and_then(|calibration| Drafts::of(&calibration.verify));
        let (draft, lookup) = match (self.no_lookup, self.lookup, drafts) {
            (Some(why), _, _) => (0, format!("off: {why}")),
            (None, Lookup::Off, _) => (0, "off: model.lookup".to_owned()),
            (None, Lookup::On, drafts) => (drafts.map_or(DRAFT, |drafts| drafts.tokens), "on: model.lookup".to_owned()),
            (None, Lookup::Auto, None) => {
                (0, "off: not measured; run `vademecum tune`, or let an idle daemon with automatic threads measure".to_owned())
            }
            (None, Lookup::Auto, Some(drafts)) => (if drafts.gains() { drafts.tokens } else { 0 }, drafts.to_string()),
        };
        self.draft = draft;
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Tuned { threads: self.plan.threads, draft, lookup };
    }

    /// Threads for the next batch.
    pub(super) fn threads(&self) -> Threads {
        Threads { decode: self.governor.decode_threads(), batch: self.plan.threads.batch }
    }

    /// Takes the time of a single token.
    pub(super) fn observe(&mut self, elapsed: Duration) {
        self.governor.observe(self.governor.decode_threads(), 1, elapsed);
    }

    /// Waits for the next message, and measures meanwhile if that is due. `None` when all handles are gone.
    pub(super) fn wait(&mut self, model: &LlamaModel, jobs: &Receiver<Work>, stopping: &AtomicBool) -> Option<Work> {
        self.pulse.set_at_work(false);
        let work = self.wait_or_measure(model, jobs, stopping);
        self.pulse.set_at_work(true);
        work
    }

    fn wait_or_measure(&mut self, model: &LlamaModel, jobs: &Receiver<Work>, stopping: &AtomicBool) -> Option<Work> {
        // The check reads files: it runs only while no message waits.
        if let Ok(work) = jobs.try_recv() {
            return Some(work);
        }
        if !self.due() {
            return jobs.recv().ok();
        }
        // A figure measured beside other work would be wrong for good.
        loop {
            let before = Busy::now();
            match jobs.recv_timeout(IDLE) {
                Ok(work) => return Some(work),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            match (before, Busy::now()) {
                (Some(before), Some(now)) if !now.was_quiet_since(before, IDLE) => {}
                _ => break,
            }
            match jobs.recv_timeout(LOOK_AGAIN) {
                Ok(work) => return Some(work),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.pulse.set_at_work(true);
        let measured = self.measure(model, jobs, stopping);
        self.pulse.set_at_work(false);
        match measured {
            Ok(()) => jobs.recv().ok(),
            // The next quiet moment measures again.
            Err(Ended::Asked(work)) => Some(*work),
            Err(Ended::Stopping) => None,
            Err(Ended::Failed(error)) => {
                log::warn!("the thread counts cannot be measured: {error}");
                self.measured = Some(Instant::now());
                jobs.recv().ok()
            }
        }
    }

    /// Whether a measurement would tell something new.
    fn due(&self) -> bool {
        if self.saved.is_none() {
            return false;
        }
        let rested = |pause| self.measured.is_none_or(|at| at.elapsed() >= pause);
        rested(AGAIN_AFTER) && (self.plan.wants_calibration() || self.governor.drifted())
            || rested(ANEW_AFTER) && Topology::detect() != self.topology
    }

    fn measure(&mut self, model: &LlamaModel, jobs: &Receiver<Work>, stopping: &AtomicBool) -> Result<(), Ended> {
        let topology = Topology::detect();
        let mut bench = Bench::of(model, &self.path, self.pulse.clone()).map_err(Ended::Failed)?;
        let started = Instant::now();
        let undisturbed = || {
            if stopping.load(Ordering::Relaxed) {
                return Err(Ended::Stopping);
            }
            jobs.try_recv().map_or(Ok(()), |work| Err(Ended::Asked(Box::new(work))))
        };
        let mut found = calibrate(
            &topology.candidates(),
            CALIBRATION,
            || started.elapsed(),
            |kind, threads| {
                undisturbed()?;
                bench.measure(kind, threads).map_err(Ended::Failed)
            },
        )?;
        if let Some(calibration) = &mut found {
            calibration.verify = verify(
                CALIBRATION,
                || started.elapsed(),
                |tokens| {
                    undisturbed()?;
                    bench.verify(tokens, calibration.best).map_err(Ended::Failed)
                },
            )?;
        }
        self.measured = Some(Instant::now());
        if let (Some(calibration), Some(saved)) = (&found, &self.saved)
            && let Err(error) = saved.keep(&topology.key(&self.fingerprint, &self.weights, crate::llama::build()), calibration)
        {
            log::warn!("the measured thread counts are not saved: {error}");
        }
        self.topology = topology;
        self.plan = Plan::new(&self.topology, found, self.configured.0, self.configured.1);
        self.governor = self.plan.governor();
        self.tell();
        log::info!("measured: {} threads decode, {} read prompts", self.plan.threads.decode, self.plan.threads.batch);
        Ok(())
    }
}
