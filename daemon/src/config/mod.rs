//! One typed configuration tree from file, environment and flags.
//!
//! The layers are merged as plain tables first (default, file, environment, flags: later wins) and turned into the
//! typed [`Config`] exactly once, so that every unknown key and every bad value is refused with the place it came from.

mod layers;

pub use layers::{Flags, Loaded, load};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the daemon looks for its configuration when `--config` is not given.
pub const SYSTEM_CONFIG: &str = "/etc/vademecum/vademecum.toml";

/// Largest payload that the embedded broker carries: its largest packet less topic and properties.
const EMBEDDED_MAX_PAYLOAD: usize = 8 * 1024 * 1024 - 128 * 1024;

/// What can be wrong with a configuration; each message names the place, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration {path}: {source}; check the path given with --config and its permissions")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`; {remedy}")]
    UnknownKey {
        /// File, variable or flag.
        origin: String,
        /// Dotted key.
        key: String,
        /// The nearest known key, or where to look.
        remedy: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{origin}: `{key}` {problem}")]
    BadValue {
        /// File, variable or flag.
        origin: String,
        /// Dotted key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl ConfigError {
    /// Whether it was given on the command line.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::UnknownKey { origin, .. } | Self::BadValue { origin, .. } if origin == layers::COMMAND_LINE)
    }
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node's name: the second part of every topic. Empty: the host name.
    pub node: String,
    /// Where documents, vectors and copies of the sources are kept.
    pub data_dir: PathBuf,
    /// The collection that questions and documents use when they name none.
    pub collection: String,
    /// The connection to the broker.
    pub mqtt: Mqtt,
    /// The embedded broker, used when `mqtt.broker` is empty.
    pub broker: EmbeddedBroker,
    /// The generator.
    pub model: Model,
    /// The encoder that turns text into vectors.
    pub embedder: Embedder,
    /// How questions are answered.
    pub answer: Answer,
    /// How documents are read.
    pub ingest: Ingest,
    /// The database.
    pub store: Store,
    /// Start and stop.
    pub service: Service,
    /// What is logged.
    pub log: Log,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    /// `mqtt://host:port`, `mqtts://host:port`, `ws://host:port/path` or `wss://host:port/path`; empty: the embedded broker.
    pub broker: String,
    /// First part of every topic.
    pub base: String,
    /// Protocol: `auto` (5, then 3.1.1 when the broker refuses it), `5` or `3.1.1`.
    pub version: String,
    /// Client id; empty: `vademecum-<node>`.
    pub client_id: String,
    /// User name; empty: systemd's credential `mqtt-username`, else none.
    pub username: String,
    /// File whose first line is the password; empty: systemd's credential `mqtt-password`, else none.
    pub password_file: PathBuf,
    /// PEM file of the authorities that `mqtts` trusts; empty: the system's.
    pub ca_file: PathBuf,
    /// PEM file of our certificate for brokers that want one; empty: none.
    pub cert_file: PathBuf,
    /// PEM file of its private key.
    pub key_file: PathBuf,
    /// Protocols offered by ALPN; empty: none.
    pub alpn: Vec<String>,
    /// Keep-alive in seconds.
    pub keep_alive_s: u64,
    /// Largest payload accepted, in bytes.
    pub max_payload_bytes: usize,
    /// Topic filters that replies may go to, besides the node's own `answer/<id>`.
    pub reply_topics: Vec<String>,
    /// Whether questions at QoS 1 are kept on disk until they are answered, and answers until the broker has them.
    pub durable: bool,
    /// Filters of the reply topics whose questions may have high priority.
    pub high_priority: Vec<String>,
    /// Whether documents may be put and deleted over MQTT; over the control socket they always may.
    pub documents: bool,
    /// Fleet group whose shared subscription this node joins; empty: none.
    pub fleet: String,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedBroker {
    /// Address and port; loopback only.
    pub listen: String,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The generator's GGUF file; empty: `generator.gguf` in the usual places.
    pub generator: PathBuf,
    /// Context in tokens, prompt and answer together.
    pub context: u32,
    /// Threads that decode; 0: chosen by the cores this process may use.
    pub threads: usize,
    /// Threads that read prompts; 0: chosen likewise.
    pub batch_threads: usize,
    /// Whether weights may be copied into memory in the order that is quickest to compute with.
    pub repack: Repack,
    /// Whether the weights' pages are kept from being thrown out of memory.
    pub mlock: bool,
    /// Layers that a graphics processor takes: a number, or `auto`.
    pub n_gpu_layers: String,
    /// Whether the next tokens are looked up in what was read, and several verified at once.
    pub lookup: Lookup,
    /// Questions that are worked on at once.
    pub slots: usize,
    /// Megabytes of disk for the states of passages; 0: none are kept.
    pub passages_mb: u64,
    /// Megabytes of the disk that they leave free.
    pub passages_min_free_mb: u64,
    /// Whether the states of all passages are computed while there is nothing else to do.
    pub precompute: bool,
}

impl Model {
    /// Layers that a graphics processor takes; `None`: as many as fit.
    pub fn gpu_layers(&self) -> Option<u32> {
        self.n_gpu_layers.parse().ok().filter(|layers| *layers <= 1000)
    }
}

/// Whether weights are copied into memory in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repack {
    /// Where there is memory to spare.
    Auto,
    /// Always.
    On,
    /// Never: every page of the weights is one of the file.
    Off,
}

/// Whether the next tokens are looked up in what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// Never.
    Off,
    /// Where `tune` measured that it gains.
    Auto,
    /// Always.
    On,
}

/// What the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// `quote` for generators of less than 500 million weights, else `evidence`.
    Auto,
    /// Nothing: the best sentences are the answer.
    Quote,
    /// The best few sentences of all passages.
    Evidence,
    /// The chunk that ranked highest, alone.
    Best,
    /// Each passage by itself; the likeliest answer is given.
    Each,
    /// All passages in one prompt.
    Joined,
}

/// `[embedder]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Embedder {
    /// The encoder's GGUF file; empty: `embedder.gguf` in the usual places.
    pub path: PathBuf,
    /// The Hugging Face `tokenizer.json`; empty: from the GGUF, or beside it.
    pub tokenizer: PathBuf,
    /// Threads; 0: chosen by the cores this process may use.
    pub threads: usize,
    /// Tokens in one forward pass.
    pub batch_tokens: usize,
}

/// `[answer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// Passages retrieved for a question.
    pub top_k: usize,
    /// What the model reads.
    pub reader: Reader,
    /// Sentences that it reads where it reads sentences, the best ones of all passages.
    pub sentences: usize,
    /// Answers that are kept for the same question over the same library; 0: none.
    pub cache: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Below this confidence (0 to 1) the answer is `found: false`.
    pub threshold: f32,
    /// What is said when the library holds no answer.
    pub not_found: String,
    /// The system prompt.
    pub system: String,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus sampling: smallest set of tokens with this probability mass.
    pub top_p: f32,
    /// Tokens less likely than this share of the likeliest are dropped.
    pub min_p: f32,
    /// Random seed, used when the temperature is above 0.
    pub seed: u32,
    /// A question without a deadline of its own gets this one, in milliseconds.
    pub deadline_ms: u64,
    /// Questions that may wait; one more is answered `queue_full`.
    pub queue: usize,
    /// Longest question in bytes.
    pub max_question_bytes: usize,
}

/// `[ingest]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingest {
    /// Tokens of the embedder in one chunk, heading path included.
    pub chunk_tokens: usize,
    /// Globs of the files to read; empty: every readable kind.
    pub include: Vec<String>,
    /// Globs of the files to leave out.
    pub exclude: Vec<String>,
    /// Largest document in bytes.
    pub max_document_bytes: u64,
    /// Folders whose documents the library follows: `/path`, or `collection=/path`.
    pub watch: Vec<String>,
}

/// An entry of `ingest.watch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedFolder {
    /// The collection its documents go into.
    pub collection: String,
    /// Where it is: an absolute path.
    pub path: PathBuf,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// sled's page cache in bytes.
    pub cache_bytes: u64,
}

/// `[service]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// Seconds that the running question gets to finish after SIGTERM.
    pub shutdown_grace_s: u64,
    /// Seconds between two `metrics` messages; 0: none.
    pub metrics_every_s: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            data_dir: PathBuf::new(),
            collection: "default".into(),
            mqtt: Mqtt::default(),
            broker: EmbeddedBroker::default(),
            model: Model::default(),
            embedder: Embedder::default(),
            answer: Answer::default(),
            ingest: Ingest::default(),
            store: Store::default(),
            service: Service::default(),
            log: Log::default(),
        }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            broker: String::new(),
            base: "vademecum".into(),
            version: "auto".into(),
            client_id: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            alpn: vec![],
            keep_alive_s: 30,
            max_payload_bytes: 1024 * 1024,
            reply_topics: ["reply/#", "+/reply/#", "response/#", "+/response/#"].map(String::from).to_vec(),
            durable: true,
            high_priority: vec![],
            documents: false,
            fleet: String::new(),
        }
    }
}

impl Default for EmbeddedBroker {
    fn default() -> Self {
        Self { listen: "127.0.0.1:1883".into() }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            generator: PathBuf::new(),
            context: 2048,
            threads: 0,
            batch_threads: 0,
            repack: Repack::Auto,
            mlock: false,
            n_gpu_layers: "auto".into(),
            lookup: Lookup::Auto,
            slots: 4,
            passages_mb: 512,
            passages_min_free_mb: 256,
            precompute: false,
        }
    }
}

impl Default for Embedder {
    fn default() -> Self {
        Self { path: PathBuf::new(), tokenizer: PathBuf::new(), threads: 0, batch_tokens: 256 }
    }
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            top_k: 3,
            reader: Reader::Auto,
            sentences: 2,
            cache: 0,
            max_tokens: 128,
            threshold: 0.5,
            not_found: "The library does not hold an answer to this question.".into(),
            system: "Answer questions with a few words copied from the given text.".into(),
            stop: vec![],
            temperature: 0.0,
            top_p: 0.95,
            min_p: 0.05,
            seed: 0,
            deadline_ms: 120_000,
            queue: 16,
            max_question_bytes: 4096,
        }
    }
}

impl Default for Ingest {
    fn default() -> Self {
        Self { chunk_tokens: 176, include: vec![], exclude: vec![], max_document_bytes: 32 * 1024 * 1024, watch: vec![] }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { cache_bytes: 16 * 1024 * 1024 }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self { shutdown_grace_s: 10, metrics_every_s: 60 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}

/// A broker's address, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is encrypted (`mqtts`, `wss`).
    pub tls: bool,
    /// Path of the WebSocket that MQTT goes through (`ws`, `wss`).
    pub web_socket: Option<String>,
}

impl BrokerUrl {
    /// Parses `mqtt[s]://host[:port]`, with the ports 1883 and 8883 left open, or `ws[s]://host[:port][/path]`, with 80, 443 and `/mqtt`.
    ///
    /// # Errors
    /// What is wrong with the text, as a clause that follows the key's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let (tls, web, default_port) = match scheme {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            _ => {
                let text = without_password(text);
                return Err(format!("is `{text}`; write mqtt://host:port or mqtts://host:port (or ws://, wss://)"));
            }
        };
        let (rest, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.strip_suffix('/').unwrap_or(path);
        if text.contains(['@', '?', '#', ' ']) || text.chars().any(char::is_control) || (!web && !path.is_empty()) {
            let what = if web { "host, port and path" } else { "host and port" };
            let (text, keys) = (without_password(text), "mqtt.username and mqtt.password_file");
            return Err(format!("is `{text}`; only {what} may follow the scheme (for user name and password there are {keys})"));
        }
        let bad_port = |port: &str| format!("has the port `{port}`; write a number from 1 to 65535");
        let parse_port = |port: &str| port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| bad_port(port));
        let (host, port) = if let Some(v6) = rest.strip_prefix('[') {
            let (host, tail) =
                v6.split_once(']').ok_or_else(|| format!("is `{text}`; the bracket of the IPv6 address is not closed"))?;
            (host, tail.strip_prefix(':').map(parse_port).transpose()?)
        } else {
            match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(parse_port(port)?)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(format!("is `{text}`; the host is missing"));
        }
        let web_socket = web.then(|| if path.is_empty() { "/mqtt" } else { path }.to_owned());
        Ok(Self { host: host.to_owned(), port: port.unwrap_or(default_port), tls, web_socket })
    }
}

/// An address as it may be shown: what stands before an `@` may be a password.
fn without_password(text: &str) -> String {
    match (text.find("://").map_or(0, |at| at + 3), text.rfind('@')) {
        (begin, Some(at)) if begin <= at => format!("{}...{}", &text[..begin], &text[at..]),
        _ => text.to_owned(),
    }
}

impl Config {
    /// Dotted keys whose values differ from those of `other`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (flat(self), flat(other));
        ours.into_iter().filter(|(key, value)| theirs.get(key) != Some(value)).map(|(key, _)| key).collect()
    }

    /// These values, but those of `other` under these dotted keys.
    ///
    /// # Errors
    /// A value that TOML cannot hold.
    pub fn with_keys_of(&self, other: &Self, keys: &[&str]) -> Result<Self, String> {
        let table = |config: &Self| toml::Table::try_from(config).map_err(|error| error.to_string());
        let (mut next, theirs) = (table(self)?, table(other)?);
        for (section, leaf) in keys.iter().filter_map(|key| key.split_once('.')) {
            let ours = next.get_mut(section).and_then(|section| section.get_mut(leaf));
            if let (Some(ours), Some(theirs)) = (ours, theirs.get(section).and_then(|section| section.get(leaf))) {
                ours.clone_from(theirs);
            }
        }
        next.try_into().map_err(|error: toml::de::Error| error.to_string())
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
    /// What is wrong with the address.
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
    /// What is wrong with an entry.
    pub fn watched_folders(&self) -> Result<Vec<WatchedFolder>, String> {
        let mut folders: Vec<WatchedFolder> = Vec::new();
        for entry in &self.ingest.watch {
            let (collection, path) = match entry.split_once('=') {
                Some((collection, path)) if !collection.contains('/') => (collection, path),
                _ => (self.collection.as_str(), entry.as_str()),
            };
            if !collection_name_is_valid(collection) {
                return Err(format!("has `{entry}`; {COLLECTION_RULE}"));
            }
            // Without a slash at the end and without `.`.
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

    /// Where states of passages are kept, which can be computed again: systemd's `CACHE_DIRECTORY`, else the data directory.
    pub fn cache_dir(&self) -> PathBuf {
        std::env::var_os("CACHE_DIRECTORY").map_or_else(|| self.data_dir(), PathBuf::from)
    }

    /// The folder of the states of passages.
    pub fn passages_dir(&self) -> PathBuf {
        self.cache_dir().join("passages")
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

    fn model_path(&self, configured: &Path, name: &str) -> PathBuf {
        if !configured.as_os_str().is_empty() {
            return configured.to_owned();
        }
        let places = self.model_places();
        let first = places[0].join(name);
        places.into_iter().map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or(first)
    }

    /// Where models are looked for that no key names: `$VADEMECUM_MODELS`, the data directory, the system, the cache that
    /// `make setup` fills.
    pub fn model_places(&self) -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = std::env::var_os("VADEMECUM_MODELS").map(PathBuf::from).into_iter().collect();
        places.extend([self.data_dir().join("models"), PathBuf::from("/usr/share/vademecum/models")]);
        places.extend(user_model_cache());
        places
    }

    /// Checks what types cannot: ranges and forms.
    ///
    /// # Errors
    /// `(key, what is wrong and what would be right)`.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let between = |key, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err((key, format!("is {value}; it must be from {low} to {high}")))
            }
        };
        let share = |key, value: f32| {
            if (0.0..=1.0).contains(&value) { Ok(()) } else { Err((key, format!("is {value}; it must be from 0 to 1"))) }
        };
        let level = |key, text: &str| {
            let fits = !text.is_empty()
                && text.len() <= 64
                && !text.contains(['+', '#', '/', '\0', '$'])
                && !text.contains(char::is_whitespace);
            if fits {
                Ok(())
            } else {
                Err((key, format!("is `{text}`; use up to 64 letters, digits, `-`, `_` or `.`: it is one level of a topic")))
            }
        };
        level("node", &self.node_name())?;
        for part in self.mqtt.base.split('/') {
            level("mqtt.base", part)?;
        }
        if !self.mqtt.fleet.is_empty() {
            level("mqtt.fleet", &self.mqtt.fleet)?;
        }
        if !collection_name_is_valid(&self.collection) {
            return Err(("collection", format!("is `{}`; {COLLECTION_RULE}", self.collection)));
        }
        if !self.mqtt.broker.is_empty() {
            let url = BrokerUrl::parse(&self.mqtt.broker).map_err(|problem| ("mqtt.broker", problem))?;
            let for_tls = [
                ("mqtt.ca_file", !self.mqtt.ca_file.as_os_str().is_empty()),
                ("mqtt.cert_file", !self.mqtt.cert_file.as_os_str().is_empty()),
                ("mqtt.alpn", !self.mqtt.alpn.is_empty()),
            ];
            if let Some((key, _)) = for_tls.into_iter().find(|(_, is_set)| *is_set && !url.tls) {
                return Err((key, "is set, but mqtt.broker is not encrypted; write mqtts:// or wss:// there".into()));
            }
        }
        match self.broker.listen.parse::<SocketAddr>() {
            Err(_) => {
                return Err((
                    "broker.listen",
                    format!("is `{}`; write address:port, for example 127.0.0.1:1883", self.broker.listen),
                ));
            }
            Ok(listen) if !listen.ip().is_loopback() => {
                let problem = format!(
                    "is `{listen}`; the embedded broker has no access control and serves loopback only: for other machines run mosquitto and set mqtt.broker"
                );
                return Err(("broker.listen", problem));
            }
            Ok(_) => {}
        }
        if !matches!(self.mqtt.version.as_str(), "auto" | "5" | "3.1.1") {
            return Err(("mqtt.version", format!("is `{}`; write \"auto\", \"5\" or \"3.1.1\"", self.mqtt.version)));
        }
        for (key, given, other, missing) in [
            ("mqtt.cert_file", &self.mqtt.cert_file, "mqtt.key_file", &self.mqtt.key_file),
            ("mqtt.key_file", &self.mqtt.key_file, "mqtt.cert_file", &self.mqtt.cert_file),
        ] {
            if !given.as_os_str().is_empty() && missing.as_os_str().is_empty() {
                return Err((
                    key,
                    format!("is {}, but {other} is not set; certificate and key belong together", given.display()),
                ));
            }
        }
        if let Some(protocol) = self.mqtt.alpn.iter().find(|protocol| !(1..=255).contains(&protocol.len())) {
            return Err(("mqtt.alpn", format!("has `{protocol}`; a protocol's name has 1 to 255 bytes, for example mqtt")));
        }
        for (key, filters) in [("mqtt.reply_topics", &self.mqtt.reply_topics), ("mqtt.high_priority", &self.mqtt.high_priority)] {
            if let Some(filter) = filters.iter().find(|f| !topic_filter_is_valid(f)) {
                let problem =
                    format!("has `{filter}`, which is not a topic filter: `+` and `#` stand alone in a level, `#` last");
                return Err((key, problem));
            }
        }
        for (key, globs) in [("ingest.include", &self.ingest.include), ("ingest.exclude", &self.ingest.exclude)] {
            if let Some(error) = globs.iter().find_map(|glob| globset::Glob::new(glob).err()) {
                return Err((key, format!("holds a pattern that does not parse: {error}")));
            }
        }
        self.watched_folders().map_err(|problem| ("ingest.watch", problem))?;
        if self.log.level.parse::<log::LevelFilter>().is_err() {
            return Err(("log.level", format!("is `{}`; write error, warn, info, debug or trace", self.log.level)));
        }
        between("mqtt.keep_alive_s", self.mqtt.keep_alive_s as usize, 5, 65_535)?;
        between("mqtt.max_payload_bytes", self.mqtt.max_payload_bytes, 1024, 64 * 1024 * 1024)?;
        between("model.context", self.model.context as usize, 512, 131_072)?;
        between("model.threads", self.model.threads, 0, 512)?;
        between("model.batch_threads", self.model.batch_threads, 0, 512)?;
        if self.model.n_gpu_layers != "auto" && self.model.gpu_layers().is_none() {
            let problem = format!("is `{}`; write \"auto\" or a number of layers up to 1000", self.model.n_gpu_layers);
            return Err(("model.n_gpu_layers", problem));
        }
        between("model.slots", self.model.slots, 1, 16)?;
        between("model.passages_mb", self.model.passages_mb as usize, 0, 1 << 20)?;
        between("model.passages_min_free_mb", self.model.passages_min_free_mb as usize, 0, 1 << 20)?;
        between("embedder.threads", self.embedder.threads, 0, 512)?;
        between("embedder.batch_tokens", self.embedder.batch_tokens, 64, 8192)?;
        between("answer.top_k", self.answer.top_k, 1, 20)?;
        between("answer.sentences", self.answer.sentences, 1, 100)?;
        between("answer.cache", self.answer.cache, 0, 100_000)?;
        between("answer.max_tokens", self.answer.max_tokens, 1, 4096)?;
        between("answer.deadline_ms", self.answer.deadline_ms as usize, 100, 86_400_000)?;
        between("answer.queue", self.answer.queue, 1, 4096)?;
        between("answer.max_question_bytes", self.answer.max_question_bytes, 16, 65_536)?;
        between("ingest.chunk_tokens", self.ingest.chunk_tokens, 32, 2048)?;
        between("ingest.max_document_bytes", self.ingest.max_document_bytes as usize, 1024, 1 << 30)?;
        between("store.cache_bytes", self.store.cache_bytes as usize, 1 << 20, 1 << 32)?;
        between("service.shutdown_grace_s", self.service.shutdown_grace_s as usize, 0, 600)?;
        between("service.metrics_every_s", self.service.metrics_every_s as usize, 0, 86_400)?;
        share("answer.threshold", self.answer.threshold)?;
        share("answer.top_p", self.answer.top_p)?;
        share("answer.min_p", self.answer.min_p)?;
        if !(0.0..=5.0).contains(&self.answer.temperature) {
            return Err(("answer.temperature", format!("is {}; it must be from 0 to 5", self.answer.temperature)));
        }
        if self.mqtt.broker.is_empty() && self.mqtt.max_payload_bytes > EMBEDDED_MAX_PAYLOAD {
            let problem =
                format!("is {}; the embedded broker carries at most {EMBEDDED_MAX_PAYLOAD}", self.mqtt.max_payload_bytes);
            return Err(("mqtt.max_payload_bytes", problem));
        }
        if self.answer.max_tokens + 256 > self.model.context as usize {
            let problem = format!(
                "is {}, which leaves no room for passages in model.context = {}",
                self.answer.max_tokens, self.model.context
            );
            return Err(("answer.max_tokens", problem));
        }
        Ok(())
    }
}

/// The values by their dotted keys.
fn flat(config: &Config) -> BTreeMap<String, toml::Value> {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let sections = table.into_iter().map(|(name, value)| match value {
        toml::Value::Table(section) => section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)).collect(),
        value => vec![(name, value)],
    });
    sections.flatten().collect()
}

/// The rule for collection names, as a clause.
pub const COLLECTION_RULE: &str = "a collection is named with 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or digit";

/// Whether `name` follows [`COLLECTION_RULE`].
pub fn collection_name_is_valid(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| plain(b) || b == b'-' || b == b'_')
        && name.bytes().next().is_some_and(plain)
}

/// Whether `filter` is an MQTT topic filter (MQTT 5.0, section 4.7.1).
pub fn topic_filter_is_valid(filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    !filter.is_empty()
        && filter.len() <= 1024
        && !filter.contains('\0')
        && levels.iter().enumerate().all(|(i, level)| match *level {
            "+" => true,
            "#" => i + 1 == levels.len(),
            other => !other.contains(['+', '#']),
        })
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
