//! Vademecum: answers questions about the owner's documents, offline, over MQTT.
//!
//! This crate assembles the rooms into the only program. The rooms are separate crates (see `ARCHITECTURE.md`):
//!
//! | module | one job |
//! |---|---|
//! | [`cli`] | the commands, one file each |
//! | [`daemon`] | start order, readiness, signals, reloading, shutdown |
//! | [`assemble`] | rooms from the configuration |
//! | [`models`] | known models, and how they get here |
//! | [`config`] | one typed tree from file, environment and flags |
#![deny(unsafe_code)]

pub mod assemble;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod models;

#[cfg(all(feature = "openmp", not(feature = "dynamic-backends")))]
llm::define_openmp!();
