//! The daemon's reports: `info`, `metrics`, `status`.

use crate::assemble::Answering;
use crate::config::Config;
use answer::Precompute;
use desk::Desk;
use library::store::Store;
use llm::engine::KvCache;
use mqtt::Server;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use wire::{CollectionInfo, Info, LimitsInfo, MAX_TOP_K, Metrics, Status, StoreMetrics, ThreadCounts};

/// Builds the reports; cheap to clone.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) desk: Desk,
    pub(super) answering: Answering,
    pub(super) store: Store,
    pub(super) config: Arc<Config>,
    pub(super) embedder: String,
    pub(super) started: Instant,
    pub(super) precompute: Precompute,
}

impl Reporter {
    /// The report on the topic `info`, retained.
    pub(super) fn info(&self) -> Info {
        let (limits, answerer) = (self.desk.limits(), &self.answering.0);
        let engine = answerer.engine();
        let tuned = engine.tuned();
        let collections = self.store.collections().unwrap_or_default();
        let collection =
            |c: library::store::Collection| CollectionInfo { name: c.name, documents: c.documents, chunks: c.chunks };
        Info {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.config.node_name(),
            model: engine.info().clone(),
            processor: llm::llama::variant().map(str::to_owned),
            strategy: answerer.strategy().word().into(),
            kv_cache: engine.kv_cache().map(KvCache::stats),
            precompute: self.precompute.progress(),
            embedder: self.embedder.clone(),
            collections: collections.into_iter().map(collection).collect(),
            library: self.store.library_state(None).unwrap_or_default(),
            limits: LimitsInfo {
                question_bytes: limits.max_question_bytes,
                payload_bytes: limits.max_payload_bytes,
                max_tokens: limits.max_tokens_cap,
                top_k: MAX_TOP_K,
                questions: limits.queue + limits.workers,
                deadline_ms: limits.deadline.as_millis() as u64,
                documents: limits.documents,
            },
            recovery: self.store.recovery(),
            threads: ThreadCounts { decode: tuned.threads.decode, batch: tuned.threads.batch },
            lookup: tuned.lookup,
        }
    }

    /// The report on the topic `metrics`.
    pub(super) fn metrics(&self, server: &Server) -> Metrics {
        let figures = self.desk.figures();
        let memory = llm::resources::status_kb(["RssAnon", "RssFile"]);
        Metrics {
            uptime_s: self.started.elapsed().as_secs(),
            queue: figures.depth,
            answered: figures.answered,
            not_found: figures.not_found,
            errors: figures.errors,
            ttft_ms: figures.ttft_ms,
            tokens_per_s: figures.tokens_per_s,
            rss_kb: memory.map(|[anonymous, file]| anonymous + file),
            rss_anonymous_kb: memory.map(|[anonymous, _]| anonymous),
            rss_file_kb: memory.map(|[_, file]| file),
            temperature_c: temperature_c(Path::new("/sys/class/thermal")),
            disk_free_bytes: wire::free_bytes(&self.config.data_dir()),
            delivery: server.delivery(),
            kv_cache: self.answering.0.engine().kv_cache().map(KvCache::stats),
            precompute: self.precompute.progress(),
            store: StoreMetrics::from(&self.store.recovery()),
        }
    }

    /// Both reports, for the control socket.
    pub(super) fn status(&self, server: &Server) -> Status {
        Status { info: self.info(), metrics: self.metrics(server) }
    }
}

/// The hottest thermal zone below `zones`, in degrees Celsius.
pub fn temperature_c(zones: &Path) -> Option<f64> {
    let read = |zone: std::fs::DirEntry| std::fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse::<f64>().ok();
    std::fs::read_dir(zones).ok()?.flatten().filter_map(read).map(|milli| milli / 1e3).max_by(f64::total_cmp)
}
