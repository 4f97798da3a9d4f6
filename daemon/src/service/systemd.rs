//! What systemd is told (sd_notify(3)), where it is there: readiness, reloading, the end, and that the daemon lives.

use crate::engine::Pulse;
use sd_notify::NotifyState;
use std::time::Duration;

/// How often in the time that systemd waits for a sign of life one is given.
const SIGNS: u32 = 4;

/// Tells systemd, when it is there.
pub(super) fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        log::debug!("sd_notify: {error}");
    }
}

/// Says that the configuration is read again; [`NotifyState::Ready`] ends it. systemd asks for the time, to tell this reload
/// from an earlier one.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration again")]),
        Err(error) => log::debug!("the clock cannot be read: {error}"),
    }
}

/// Looks in which the encoder may stand at the same pass: its passes are long on a small board, and cannot be looked into.
const ENCODER_LOOKS: u32 = 3;

/// A thread that is looked at.
struct Watched {
    name: &'static str,
    pulse: Pulse,
    /// Looks that have to find the same step before it counts as hanging.
    patience: u32,
    /// Its last step that was seen, and how often it has been seen again.
    step: Option<u64>,
    still: u32,
}

impl Watched {
    fn new(name: &'static str, pulse: &Pulse, patience: u32) -> Self {
        Self { name, pulse: pulse.clone(), patience, step: None, still: 0 }
    }

    /// Whether it waits for work or has got on.
    fn gets_on(&mut self) -> bool {
        let step = self.pulse.step();
        self.still = if step.is_some() && step == self.step { self.still + 1 } else { 0 };
        self.step = step;
        self.still < self.patience
    }
}

/// systemd's watchdog (`WatchdogSec=`). It hears of us while the runtime runs what it is given and generator and encoder, when they work,
/// get on: a prompt that takes minutes does, a thread that hangs in a pass does not.
pub(super) struct Watchdog {
    timeout: Option<Duration>,
    watched: Vec<Watched>,
    /// Who hangs, so that systemd is not told at present.
    hanging: Option<&'static str>,
}

impl Watchdog {
    /// As systemd asks for in the environment; without it the watchdog asks for nothing.
    pub(super) fn from_environment(generator: &Pulse, encoder: &[Pulse]) -> Self {
        let mut micros = 0;
        let timeout = sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros));
        let mut watched = vec![Watched::new("generator", generator, 1)];
        watched.extend(encoder.iter().map(|pulse| Watched::new("encoder", pulse, ENCODER_LOOKS)));
        Self { timeout, watched, hanging: None }
    }

    /// When to look.
    pub(super) fn ticks(&self) -> Option<tokio::time::Interval> {
        let every = self.timeout? / SIGNS;
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Some(ticks)
    }

    /// Looks, and gives a sign of life when there is one. `ready`: whether we have said that we are; until then systemd is asked for
    /// more time, for the broker may be away for long.
    pub(super) async fn look(&mut self, ready: bool) {
        let Some(timeout) = self.timeout else { return };
        // The questions are served by the runtime's own thread; this one runs beside it.
        if tokio::spawn(async {}).await.is_err() {
            return;
        }
        // Each is looked at, every time.
        let hanging = self.watched.iter_mut().filter_map(|watched| (!watched.gets_on()).then_some(watched.name)).last();
        if hanging.is_none() && ready {
            notify(&[NotifyState::Watchdog]);
        } else if hanging.is_none() {
            notify(&[NotifyState::ExtendTimeoutUsec(timeout.as_micros() as u32)]);
        }
        match (self.hanging, hanging) {
            (Some(name), None) => log::info!("the {name} gets on again"),
            (None, Some(name)) => {
                log::error!("the {name} has not got on since systemd was told last; systemd hears of us when it does");
            }
            _ => {}
        }
        self.hanging = hanging;
    }
}
