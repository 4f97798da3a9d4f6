//! (being written)
#[cfg(feature = "broker")]
pub mod broker;
