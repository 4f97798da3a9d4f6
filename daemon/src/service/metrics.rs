//! What `metrics` tells: load, speed, memory, temperature, disk.

use crate::api::Counters;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Collects the figures of this moment.
pub(super) fn collect(counters: &Counters, depth: usize, uptime: Duration, data_dir: &Path) -> Value {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let memory = crate::status_kb(["RssAnon", "RssFile"]);
    json!({
        "uptime_s": uptime.as_secs(),
        "queue": depth,
        "answered": count(&counters.answered),
        "not_found": count(&counters.not_found),
        "errors": count(&counters.errors),
        "ttft_ms": count(&counters.last_ttft_us) as f64 / 1e3,
        "tokens_per_s": count(&counters.last_milli_tokens_per_s) as f64 / 1e3,
        "rss_kb": memory.map(|[anonymous, file]| anonymous + file),
        "rss_anonymous_kb": memory.map(|[anonymous, _]| anonymous),
        "rss_file_kb": memory.map(|[_, file]| file),
        "temperature_c": temperature_c(),
        "disk_free_bytes": crate::free_bytes(data_dir),
    })
}

/// The hottest thermal zone.
pub fn temperature_c() -> Option<f64> {
    let zones = std::fs::read_dir("/sys/class/thermal").ok()?;
    let read = |zone: std::fs::DirEntry| std::fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse::<f64>().ok();
    zones.flatten().filter_map(read).map(|milli| milli / 1e3).max_by(f64::total_cmp)
}
