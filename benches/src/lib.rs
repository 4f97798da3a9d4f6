//! Shared parts of the benchmarks: programs under measurement, an MQTT client, figures of a process, and the report.
//!
//! Nothing here links the daemon: it is measured from outside, as a client and the system see it.

pub mod client;
pub mod process;
pub mod report;

/// A benchmark stops at the first thing that does not work; its message is for the person who started it.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
