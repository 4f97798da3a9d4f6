//! Shared parts of the benchmarks: programs under measurement, an MQTT client, figures of a process, report and plots.
//!
//! Nothing here links the daemon: it is measured from outside, as a client and the system see it. (`retrieval`, `threads` and one
//! worker of `speed` do, in processes of their own: they measure the library.)

pub mod client;
pub mod peers;
pub mod plot;
pub mod process;
pub mod progress;
pub mod report;
pub mod worker;

use std::path::PathBuf;

/// A benchmark stops at the first thing that does not work; its message is for the person who started it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The cache that `make setup` fills: `VADEMECUM_CACHE`, else the user's.
///
/// # Errors
/// Neither that nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let user = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/vademecum"));
    Ok(std::env::var_os("VADEMECUM_CACHE").map(PathBuf::from).or_else(user).ok_or("HOME is not set")?)
}
