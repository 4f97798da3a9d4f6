//! One typed configuration from file, environment and flags.
//!
//! [`KEYS`] (`keys.rs`) is the one table of all keys: their types, defaults, checks and documentation follow from it. The layers
//! are merged as plain values first (default, file, environment, flags: later wins). Then they become the typed [`Config`],
//! exactly once. Every unknown key and every bad value is thus refused with the place it came from.

mod checks;
mod edit;
mod keys;
mod layers;
mod table;
mod written;

pub use edit::write_keys;
pub use keys::*;
pub use layers::{Flags, Loaded, load};
use mqtt::BrokerUrl;
pub use table::{Bounds, ConfigKey};
pub use written::{effective, reference, template};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Value;
use wire::names;

/// The configuration file that is read without `--config`, if it exists.
pub const SYSTEM_CONFIG: &str = "/etc/vademecum/vademecum.toml";

/// Faults of a configuration; each message names the place, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}: {source}; check the path given with --config and its permissions")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write configuration {path}: {source}; run it with sudo, or print the lines with --print")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`; {remedy}")]
    UnknownKey {
        /// File, variable or flag.
        origin: String,
        /// Dotted key.
        key: String,
        /// The nearest known key, or the place to look.
        remedy: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{origin}: `{key}` {problem}")]
    BadValue {
        /// File, variable or flag.
        origin: String,
        /// Dotted key.
        key: String,
        /// The fault and the remedy, as a clause that follows the key's name.
        problem: String,
    },
}

impl ConfigError {
    /// Whether the fault was on the command line.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::UnknownKey { origin, .. } | Self::BadValue { origin, .. } if origin == layers::COMMAND_LINE)
    }
}

/// An entry of `ingest.watch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedFolder {
    /// The collection of its documents.
    pub collection: String,
    /// Its absolute path.
    pub path: PathBuf,
}

impl Model {
    /// Layers on a graphics processor; `None`: as many as fit.
    pub fn gpu_layers(&self) -> Option<u32> {
        self.n_gpu_layers.parse().ok().filter(|layers| *layers <= checks::MAX_GPU_LAYERS)
    }
}

impl Config {
    /// Dotted keys whose values differ from those of `other`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (flat(self), flat(other));
        ours.into_iter().filter(|(key, value)| theirs.get(key) != Some(value)).map(|(key, _)| key).collect()
    }

    /// This configuration with the live keys of `other`.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn with_live_keys_of(&self, other: &Self) -> Result<Self, String> {
        let (mut next, mut theirs) = (flat(self), flat(other));
        let live = KEYS.iter().filter(|key| key.live);
        next.extend(live.filter_map(|key| theirs.remove_entry(key.name)));
        typed(next).map_err(|error| error.to_string())
    }

    /// Checks bounds, forms, and values that must fit together.
    ///
    /// # Errors
    /// The key, and the fault as a clause that follows its name.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let values = flat(self);
        for key in KEYS {
            let bounds = values.get(key.name).map_or(Ok(()), |value| key.bounds.check(value));
            bounds.and_then(|()| (key.check)(self)).map_err(|problem| (key.name, problem))?;
        }
        Ok(())
    }

    /// The configured node name, or the host name.
    pub fn node_name(&self) -> String {
        if self.node.is_empty() { host_name() } else { self.node.clone() }
    }

    /// Base of every topic: `<mqtt.base>/<node>`.
    pub fn topic_base(&self) -> String {
        format!("{}/{}", self.mqtt.base, self.node_name())
    }

    /// The broker to connect to: the configured one, or the embedded one's address.
    ///
    /// # Errors
    /// The fault of the address.
    pub fn broker_url(&self) -> Result<BrokerUrl, String> {
        if self.mqtt.broker.is_empty() {
            let listen: SocketAddr =
                self.broker.listen.parse().map_err(|_| format!("`{}` is not address:port", self.broker.listen))?;
            return Ok(BrokerUrl { host: listen.ip().to_string(), port: listen.port(), tls: false, web_socket: None });
        }
        BrokerUrl::parse(&self.mqtt.broker)
    }

    /// The data directory: configured, systemd's `STATE_DIRECTORY`, `/var/lib/vademecum` for root, else the user's.
    pub fn data_dir(&self) -> PathBuf {
        if !self.data_dir.as_os_str().is_empty() {
            return self.data_dir.clone();
        }
        if let Some(state) = std::env::var_os("STATE_DIRECTORY") {
            return PathBuf::from(state);
        }
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/vademecum");
        }
        match (std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME")) {
            (Some(data), _) => PathBuf::from(data).join("vademecum"),
            (None, Some(home)) => PathBuf::from(home).join(".local/share/vademecum"),
            (None, None) => PathBuf::from("/var/lib/vademecum"),
        }
    }

    /// The watched folders.
    ///
    /// # Errors
    /// The fault of an entry.
    pub fn watched_folders(&self) -> Result<Vec<WatchedFolder>, String> {
        let mut folders: Vec<WatchedFolder> = Vec::new();
        for entry in &self.ingest.watch {
            let (collection, path) = match entry.split_once('=') {
                Some((collection, path)) if !collection.contains('/') => (collection, path),
                _ => (self.collection.as_str(), entry.as_str()),
            };
            if !names::is_collection(collection) {
                return Err(format!("has `{entry}`; {}", names::COLLECTION_RULE));
            }
            // `components` drops `.` and a slash at the end.
            let folder = WatchedFolder { collection: collection.into(), path: Path::new(path).components().collect() };
            if !folder.path.is_absolute() || folder.path.file_name().is_none() {
                return Err(format!("has `{entry}`; write /path/to/folder, or collection=/path/to/folder"));
            }
            let overlaps = |other: &&WatchedFolder| {
                let inside = other.path.starts_with(&folder.path) || folder.path.starts_with(&other.path);
                other.collection == folder.collection && (inside || other.path.file_name() == folder.path.file_name())
            };
            if let Some(other) = folders.iter().find(overlaps) {
                return Err(format!(
                    "has `{entry}` and `{}` in one collection; folders inside each other or of the same name need collections of their own (collection=/path)",
                    other.path.display()
                ));
            }
            folders.push(folder);
        }
        Ok(folders)
    }

    /// The directory for recomputable files: systemd's `CACHE_DIRECTORY`, else the data directory.
    pub fn cache_dir(&self) -> PathBuf {
        std::env::var_os("CACHE_DIRECTORY").map_or_else(|| self.data_dir(), PathBuf::from)
    }

    /// The folder of the kv cache.
    pub fn kv_cache_dir(&self) -> PathBuf {
        self.cache_dir().join("kv-cache")
    }

    /// The local control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir().join("control.sock")
    }

    /// The generator's file: configured, or the first `generator.gguf` found in the usual places.
    pub fn generator_path(&self) -> PathBuf {
        self.model_path(&self.model.generator, "generator.gguf")
    }

    /// The embedder's file: configured, or the first `embedder.gguf` found in the usual places.
    pub fn embedder_path(&self) -> PathBuf {
        self.model_path(&self.embedder.path, "embedder.gguf")
    }

    /// The folder of the owner's prompt files, if there is one.
    pub fn prompts(&self) -> Option<&Path> {
        Some(self.answer.prompts.as_path()).filter(|folder| !folder.as_os_str().is_empty())
    }

    fn model_path(&self, configured: &Path, name: &str) -> PathBuf {
        if !configured.as_os_str().is_empty() {
            return configured.to_owned();
        }
        let places = self.model_places();
        let first = places[0].join(name);
        places.into_iter().map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or(first)
    }

    /// The folder that `model pull` fills: `$VADEMECUM_MODELS`, for root the data directory's, else the user's cache.
    pub fn pull_dir(&self) -> PathBuf {
        if let Some(named) = std::env::var_os("VADEMECUM_MODELS") {
            return PathBuf::from(named);
        }
        let cache = if rustix::process::geteuid().is_root() { None } else { user_model_cache() };
        cache.unwrap_or_else(|| self.data_dir().join("models"))
    }

    /// The places of unnamed models: `$VADEMECUM_MODELS`, the data directory, the system, and the cache of `make setup`.
    pub fn model_places(&self) -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = std::env::var_os("VADEMECUM_MODELS").map(PathBuf::from).into_iter().collect();
        places.extend([self.data_dir().join("models"), PathBuf::from("/usr/share/vademecum/models")]);
        places.extend(user_model_cache());
        places
    }
}

/// The values, by dotted key.
fn flat(config: &Config) -> BTreeMap<String, Value> {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let sections = table.into_iter().map(|(name, value)| match value {
        Value::Table(section) => section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect(),
        value => vec![(name, value)],
    });
    sections.flatten().collect()
}

/// The typed configuration from values by dotted key.
fn typed(values: BTreeMap<String, Value>) -> Result<Config, toml::de::Error> {
    let mut table = toml::Table::new();
    for (key, value) in values {
        match key.split_once('.') {
            None => drop(table.insert(key, value)),
            Some((section, leaf)) => {
                let section = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
                if let Value::Table(section) = section {
                    section.insert(leaf.to_owned(), value);
                }
            }
        }
    }
    table.try_into()
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let first = name.split('.').next().unwrap_or_default().to_owned();
    if first.is_empty() { "node".to_owned() } else { first }
}

fn user_model_cache() -> Option<PathBuf> {
    let base = std::env::var_os("VADEMECUM_CACHE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"))).map(|dir| dir.join("vademecum"))
    });
    base.map(|dir| dir.join("models"))
}

#[cfg(test)]
mod tests;
