//! SIGHUP: the configuration is read again, and its live keys take effect (`live` in `config/keys.rs`).
//!
//! All or nothing: a configuration that is refused, or a password that cannot be read, changes nothing.

use super::{ServiceError, credentials, limits, logging, watch_options};
use crate::api::Api;
use crate::config::{Config, ConfigError, Key, Loaded};
use crate::ingest::watch::Watcher;
use crate::mqtt::Server;
use crate::mqtt::connection::{Credentials, Sender};
use std::sync::Arc;

/// Reads the configuration as it was read at the start.
pub type Reread = Box<dyn Fn() -> Result<Loaded, ConfigError> + Send + Sync>;

/// The state that a reload changes.
pub(super) struct Reload {
    pub(super) reread: Reread,
    /// The configuration in effect.
    pub(super) config: Config,
    /// The credentials that the broker was shown.
    pub(super) credentials: Option<Credentials>,
    /// Tokens of the generator's context.
    pub(super) context: u32,
    pub(super) api: Api,
    pub(super) server: Arc<Server>,
    pub(super) sender: Sender,
    pub(super) watcher: Watcher,
}

impl Reload {
    /// Reads the configuration again. The log tells which keys changed, which wait for a restart, or why nothing changed.
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
                // Told whether the level was raised or lowered.
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
            changed.into_iter().partition(|key| Key::named(key).is_some_and(|key| key.live));
        let next = self.config.with_live_keys_of(&read).map_err(ServiceError::System)?;
        // A new value may not fit an old one that stays until a restart.
        next.validate().map_err(|(key, problem)| {
            ServiceError::System(format!("`{key}` {problem}, beside what stays as it is until a restart"))
        })?;
        let credentials = credentials::credentials(&next.mqtt)?;
        let folders = watch_options(&next)?;

        match (&self.credentials, &credentials) {
            (before, now) if before == now => {}
            (_, Some(now)) => {
                self.sender.renew(now.clone());
                applied.push("the credentials for the broker".into());
            }
            // A connection that has shown some cannot be without.
            (_, None) => waiting.push("to be without credentials for the broker".into()),
        }
        if credentials.is_some() {
            self.credentials = credentials;
        }
        if applied.iter().any(|key| key.starts_with("ingest.")) {
            self.watcher.follow(folders);
        }
        self.api.set_limits(limits(&next, self.context));
        self.server.set_queue(next.answer.queue);
        self.config = next;
        Ok(Changes { applied, waiting })
    }
}

/// Keys, by when they take effect.
struct Changes {
    applied: Vec<String>,
    waiting: Vec<String>,
}
