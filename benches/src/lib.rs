//! Shared parts of the benchmarks: programs under measurement, an MQTT client, figures of a process, report and plots.
//!
//! Nothing here links the daemon: it is measured from outside, as a client and the system see it. (`retrieval` does, in a
//! process beside the peers': it measures the library.)

pub mod client;
pub mod plot;
pub mod process;
pub mod report;

/// A benchmark stops at the first thing that does not work; its message is for the person who started it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
