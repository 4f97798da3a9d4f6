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

/// systemd's watchdog (`WatchdogSec=`). It hears of us while the runtime runs what it is given and the generator, when it works, gets
/// on: a prompt that takes minutes does, a thread that hangs in a pass does not.
pub(super) struct Watchdog {
    timeout: Option<Duration>,
    pulse: Pulse,
    /// The generator's last step that was seen.
    step: Option<u64>,
    /// Whether systemd is not told at present.
    silent: bool,
}

impl Watchdog {
    /// As systemd asks for in the environment; without it the watchdog asks for nothing.
    pub(super) fn from_environment(pulse: &Pulse) -> Self {
        let mut micros = 0;
        let timeout = sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros));
        Self { timeout, pulse: pulse.clone(), step: None, silent: false }
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
        let step = self.pulse.step();
        let gets_on = step.is_none() || step != self.step;
        self.step = step;
        if gets_on && ready {
            notify(&[NotifyState::Watchdog]);
        } else if gets_on {
            notify(&[NotifyState::ExtendTimeoutUsec(timeout.as_micros() as u32)]);
        }
        if gets_on == self.silent {
            self.silent = !gets_on;
            if gets_on {
                log::info!("the generator gets on again");
            } else {
                let every = (timeout / SIGNS).as_secs_f64();
                log::error!("the generator has not got on by a step in {every:.1} s; systemd hears of us when it does");
            }
        }
    }
}
