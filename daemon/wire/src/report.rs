//! The daemon's reports on itself: `info`, `metrics`, and both together as `status`.

use crate::LibraryState;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The topic `info`, retained: the daemon's version, models, collections and limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// The program's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The generator.
    pub model: ModelInfo,
    /// The variant of llama.cpp's code for this processor, if it is chosen at the start.
    pub processor: Option<String>,
    /// The answering strategy in use; never `auto`.
    pub strategy: String,
    /// The KV cache on disk; `None` if there is none.
    pub kv_cache: Option<KvCacheReport>,
    /// Precomputing KV states; `None` if it is off.
    pub precompute: Option<PrecomputeReport>,
    /// The encoder's name.
    pub embedder: String,
    /// The collections.
    pub collections: Vec<CollectionInfo>,
    /// The state of all collections together.
    pub library: LibraryState,
    /// The bounds of requests.
    pub limits: LimitsInfo,
    /// The state of a store after damage.
    pub recovery: Recovery,
    /// Threads of the generator.
    pub threads: ThreadCounts,
    /// Whether prompt lookup is used, and why.
    pub lookup: String,
}

/// The generator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The model's own name, or its file's.
    pub model: String,
    /// Architecture, for example `llama`.
    pub architecture: String,
    /// Digest that identifies the file's content.
    pub fingerprint: String,
    /// Number of its weights.
    pub parameters: u64,
    /// Context in tokens.
    pub context: u32,
    /// Whether the chat template is the model's own; else a plain instruct prompt is used.
    pub own_template: bool,
    /// Whether weights were copied into the memory layout that computes fastest, and why.
    pub repack: String,
    /// Bytes of own memory that this copy takes; 0 without one.
    #[serde(default)]
    pub repacked_bytes: u64,
    /// Whether the weights are locked in memory, if the configuration asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlock: Option<String>,
    /// Layers on a graphics processor, or why none; present if the build or the configuration mentions one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Requests processed at once.
    pub slots: usize,
    /// The reason why no KV states are stored, if the configuration asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_off: Option<String>,
    /// Longest prompt prefix whose KV state is stored, in tokens, if the model's sliding window sets a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_up_to: Option<usize>,
}

/// Thread counts for the two kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadCounts {
    /// Threads that decode one token at a time.
    pub decode: usize,
    /// Threads that read prompts and encode text.
    pub batch: usize,
}

/// The KV cache on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCacheReport {
    /// KV states on disk.
    pub states: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Most bytes allowed.
    pub max_bytes: u64,
    /// Prefixes whose KV state was found.
    pub hits: u64,
    /// Prefixes that had to be computed.
    pub misses: u64,
    /// Unusable files that were removed.
    pub damaged: u64,
    /// Why the latest KV state could not be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Progress of precomputing KV states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrecomputeReport {
    /// Chunks whose KV states are stored.
    pub done: u64,
    /// Chunks whose KV states are missing.
    pub to_do: u64,
    /// There is no room for more. The remaining states are computed on demand.
    pub full: bool,
    /// Why nothing is precomputed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
}

/// A collection in `info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// Its name.
    pub name: String,
    /// Its documents.
    pub documents: u64,
    /// Their chunks.
    pub chunks: u64,
}

/// The bounds of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsInfo {
    /// Longest question, in bytes.
    pub question_bytes: usize,
    /// Largest payload, in bytes.
    pub payload_bytes: usize,
    /// Longest answer allowed, in tokens.
    pub max_tokens: usize,
    /// Most passages allowed.
    pub top_k: usize,
    /// Most questions in the queue or at work.
    pub questions: usize,
    /// Time allowed for a question without a deadline, in milliseconds.
    pub deadline_ms: u64,
    /// Whether documents may be put and deleted over MQTT.
    pub documents: bool,
}

/// The state of a store after damage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Databases set aside since the store was opened, and why.
    pub set_aside: Vec<SetAside>,
    /// All databases beside the one in use, oldest first; they may be removed.
    pub kept_aside: Vec<PathBuf>,
    /// Documents that the database lacks, although their sources are stored.
    pub missing: usize,
    /// Documents rebuilt since the store was opened.
    pub rebuilt: usize,
    /// The first documents that could not be rebuilt, with the reason.
    pub failed: Vec<(String, String)>,
    /// Why writing is impossible at the moment.
    pub refusing: Option<String>,
}

/// A database that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// Its present path.
    pub path: PathBuf,
    /// The damage found.
    pub reason: String,
}

/// The topic `metrics`: the current figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Questions waiting or at work.
    pub queue: usize,
    /// Questions answered since the start.
    pub answered: u64,
    /// Answers with `found: false`, included in `answered`.
    pub not_found: u64,
    /// Requests that ended in an error since the start.
    pub errors: u64,
    /// Time to the first token of the last answer, in milliseconds.
    pub ttft_ms: f64,
    /// Decoding speed of the last answer, in tokens per second.
    pub tokens_per_s: f64,
    /// Memory of this process, in kB.
    pub rss_kb: Option<u64>,
    /// Anonymous memory, included in `rss_kb`.
    pub rss_anonymous_kb: Option<u64>,
    /// File pages, included in `rss_kb`.
    pub rss_file_kb: Option<u64>,
    /// The hottest thermal zone, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Free disk below the data directory, in bytes.
    pub disk_free_bytes: Option<u64>,
    /// Delivery over MQTT.
    pub delivery: Delivery,
    /// The KV cache on disk; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCacheReport>,
    /// Precomputing KV states; absent if it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precompute: Option<PrecomputeReport>,
    /// The store.
    pub store: StoreMetrics,
}

/// Delivery in `metrics`: the queue, the inbox and the outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Whether questions at QoS 1 are stored on disk.
    pub durable: bool,
    /// Why the inbox cannot be written.
    pub problem: Option<String>,
    /// Questions in the queue.
    pub waiting: usize,
    /// Questions on disk without an answer.
    pub inbox: usize,
    /// Answers on disk that the broker has not acknowledged.
    pub outbox: usize,
    /// Repetitions of questions, which were ignored.
    pub repeated: u64,
    /// Questions refused because the queue was full.
    pub refused: u64,
    /// Questions of an earlier run that were resumed.
    pub resumed: u64,
    /// Questions that expired while they waited.
    pub expired: u64,
    /// Questions given up because the daemon had died while it worked on them.
    pub given_up: u64,
    /// Mean time of a question at work, in milliseconds.
    pub service_ms: f64,
}

/// The store in `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMetrics {
    /// Databases set aside.
    pub set_aside: usize,
    /// Documents that the database lacks, although their sources are stored.
    pub missing: usize,
    /// Documents rebuilt since the start.
    pub rebuilt: usize,
    /// Documents that could not be rebuilt.
    pub failed: usize,
    /// Why writing is impossible at the moment.
    pub refusing: Option<String>,
}

impl From<&Recovery> for StoreMetrics {
    fn from(recovery: &Recovery) -> Self {
        Self {
            set_aside: recovery.kept_aside.len(),
            missing: recovery.missing,
            rebuilt: recovery.rebuilt,
            failed: recovery.failed.len(),
            refusing: recovery.refusing.clone(),
        }
    }
}

/// The reply of the control socket to `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// As on the topic `info`.
    pub info: Info,
    /// As on the topic `metrics`.
    pub metrics: Metrics,
}
