//! Messages to systemd (sd_notify(3)), if it is there: readiness, reloading, the end, and signs of life.

use llm::engine::Pulse;
use sd_notify::NotifyState;
use std::time::Duration;

/// Signs of life in each watchdog period.
const SIGNS: u32 = 4;

/// Sends states to systemd, if it is there.
pub(super) fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        log::debug!("sd_notify: {error}");
    }
}

/// Announces a reload; [`NotifyState::Ready`] ends it. systemd needs the time to distinguish this reload from an earlier one.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]),
        Err(error) => log::debug!("the clock cannot be read: {error}"),
    }
}

/// Looks during which the encoder may be in the same pass: passes are long on a small board, and give no sign of life.
const ENCODER_LOOKS: u32 = 3;

/// A supervised thread.
struct Watched {
    name: &'static str,
    pulse: Pulse,
    /// Looks at the same step after which the thread counts as hanging.
    patience: u32,
    /// The last step seen, and the number of further looks at it.
    step: Option<u64>,
    still: u32,
}

impl Watched {
    fn new(name: &'static str, pulse: &Pulse, patience: u32) -> Self {
        Self { name, pulse: pulse.clone(), patience, step: None, still: 0 }
    }

    /// Whether the thread waits for work or has made progress.
    fn gets_on(&mut self) -> bool {
        let step = self.pulse.step();
        self.still = if step.is_some() && step == self.step { self.still + 1 } else { 0 };
        self.step = step;
        self.still < self.patience
    }
}

/// systemd's watchdog (`WatchdogSec=`). It gets a sign of life as long as the runtime runs its tasks and the busy threads of
/// generator and encoder make progress. A prompt of several minutes makes progress, a thread that hangs in a pass does not.
pub(super) struct Watchdog {
    timeout: Option<Duration>,
    watched: Vec<Watched>,
    /// The hanging thread, which keeps back signs of life.
    hanging: Option<&'static str>,
}

impl Watchdog {
    /// The watchdog that systemd asks for in the environment; inactive without it.
    pub(super) fn from_environment(generator: &Pulse, encoder: &[Pulse]) -> Self {
        let mut micros = 0;
        let timeout = sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros));
        let mut watched = vec![Watched::new("generator", generator, 1)];
        watched.extend(encoder.iter().map(|pulse| Watched::new("encoder", pulse, ENCODER_LOOKS)));
        Self { timeout, watched, hanging: None }
    }

    /// The times to look.
    pub(super) fn ticks(&self) -> Option<tokio::time::Interval> {
        let every = self.timeout? / SIGNS;
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Some(ticks)
    }

    /// Looks at the threads, and sends a sign of life if all make progress. Before `ready`, asks systemd for more time instead,
    /// because the broker may be away for long.
    pub(super) async fn look(&mut self, ready: bool) {
        let Some(timeout) = self.timeout else { return };
        // The runtime's own thread serves the questions; this task runs beside it.
        if tokio::spawn(async {}).await.is_err() {
            return;
        }
        // `last` looks at every thread, every time.
        let hanging = self.watched.iter_mut().filter_map(|watched| (!watched.gets_on()).then_some(watched.name)).last();
        if hanging.is_none() && ready {
            notify(&[NotifyState::Watchdog]);
        } else if hanging.is_none() {
            notify(&[NotifyState::ExtendTimeoutUsec(timeout.as_micros() as u32)]);
        }
        match (self.hanging, hanging) {
            (Some(name), None) => log::info!("the {name} gets on again"),
            (None, Some(name)) => {
                log::error!("the {name} makes no progress; systemd gets no sign of life until it does");
            }
            _ => {}
        }
        self.hanging = hanging;
    }
}
