//! Publishes `metrics` and `info`, and keeps the KV states in line with the library.

use super::report::Reporter;
use super::tick;
use answer::Precompute;
use library::store::Store;
use llm::engine::KvCache;
use mqtt::Server;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The KV states that depend on the library.
pub(super) struct KvStates {
    pub(super) store: Store,
    pub(super) cache: Option<KvCache>,
    pub(super) precompute: Precompute,
}

impl KvStates {
    /// Drops the states of removed documents. Call at the start and after every change of the library.
    fn library_changed(&self) {
        if let Some(cache) = &self.cache {
            match self.store.numbers() {
                Ok(numbers) => cache.retain(numbers),
                Err(error) => log::warn!("KV states of removed documents stay: {error}"),
            }
        }
        self.precompute.library_changed();
    }
}

/// Publishes `metrics` at this interval in seconds (0: never), and `info` after every change that it shows. Publishing waits for the broker;
/// nobody waits for this task.
pub(super) async fn publish(
    server: Arc<Server>,
    reporter: Reporter,
    states: KvStates,
    changed: Arc<Notify>,
    mut every: watch::Receiver<u64>,
) {
    states.library_changed();
    let mut library = states.store.wholeness().turns();
    let interval = |seconds: u64| {
        let every = Duration::from_secs(seconds);
        (seconds > 0).then(|| tokio::time::interval_at(tokio::time::Instant::now() + every, every))
    };
    let mut ticks = interval(*every.borrow_and_update());
    loop {
        tokio::select! {
            () = tick(&mut ticks) => {
                server.publish_metrics(&reporter.metrics(&server)).await;
                server.renew_info().await;
            }
            () = changed.notified() => {
                states.library_changed();
                server.renew_info().await;
            }
            Ok(()) = library.changed() => server.renew_info().await,
            Ok(()) = every.changed() => ticks = interval(*every.borrow_and_update()),
        }
    }
}
