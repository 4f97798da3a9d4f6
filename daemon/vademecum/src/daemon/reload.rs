//! Reload by SIGHUP: reads the configuration again and applies its live keys (`live` in `config/keys.rs`).
//!
//! All or nothing: a refused configuration or an unreadable password changes nothing.

use super::logging;
use super::start::watch_options;
use crate::assemble::{ServiceError, credentials, limits};
use crate::config::{Config, ConfigError, ConfigKey, Loaded};
use desk::Desk;
use library::ingest::watch::Watcher;
use mqtt::connection::{Credentials, Sender};

/// Reads the configuration again, from the same places as at the start.
pub type Reread = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// The state that a reload changes.
pub(super) struct Reload {
    pub(super) reread: Reread,
    /// The configuration in effect.
    pub(super) config: Config,
    /// The credentials last shown to the broker.
    pub(super) credentials: Option<Credentials>,
    /// The generator's context, in tokens.
    pub(super) context: u32,
    pub(super) desk: Desk,
    pub(super) sender: Sender,
    pub(super) watcher: Watcher,
}

impl Reload {
    /// Reads the configuration again. The log names the applied keys and the keys that need a restart, or why nothing changed.
    pub(super) fn reload(&mut self) {
        match self.apply() {
            Ok(Changes { applied, waiting }) => {
                let said = match (applied.as_slice(), waiting.as_slice()) {
                    ([], []) => "nothing has changed".to_owned(),
                    (applied, []) => format!("in effect now: {}", applied.join(", ")),
                    ([], waiting) => format!("in effect after a restart: {}", waiting.join(", ")),
                    (applied, waiting) => {
                        format!("in effect now: {}; after a restart: {}", applied.join(", "), waiting.join(", "))
                    }
                };
                // Logged at the higher of both levels, so that the message appears whether the level was raised or lowered.
                let level = log::max_level();
                logging::set_level(&self.config);
                let new = log::max_level();
                log::set_max_level(level.max(new));
                log::info!("configuration read again: {said}");
                log::set_max_level(new);
            }
            Err(error) => log::error!("configuration not taken over, all stays as it was: {error}"),
        }
    }

    fn apply(&mut self) -> Result<Changes, ServiceError> {
        let loaded = (self.reread)().map_err(|error| ServiceError::System(error.to_string()))?;
        loaded.log_hints();
        let read = loaded.config;
        let changed = self.config.differences(&read);
        let (mut applied, mut waiting): (Vec<String>, Vec<String>) =
            changed.into_iter().partition(|key| ConfigKey::named(key).is_some_and(|key| key.live));
        let next = self.config.with_live_keys_of(&read).map_err(ServiceError::System)?;
        // A new value may not fit an old one that stays until a restart.
        next.validate().map_err(|(key, problem)| {
            ServiceError::System(format!("`{key}` {problem}, together with keys that change only at a restart"))
        })?;
        let credentials = credentials(&next.mqtt)?;
        let folders = watch_options(&next)?;

        match (&self.credentials, &credentials) {
            (before, now) if before == now => {}
            (_, Some(now)) => {
                self.sender.renew(now.clone());
                applied.push("the credentials for the broker".into());
            }
            // A connection that has shown credentials cannot drop them.
            (_, None) => waiting.push("removing the credentials for the broker".into()),
        }
        if credentials.is_some() {
            self.credentials = credentials;
        }
        if applied.iter().any(|key| key.starts_with("ingest.")) {
            self.watcher.follow(folders);
        }
        self.desk.set_limits(limits(&next, self.context));
        self.config = next;
        Ok(Changes { applied, waiting })
    }
}

/// Changed keys, by the time they take effect.
struct Changes {
    applied: Vec<String>,
    waiting: Vec<String>,
}
