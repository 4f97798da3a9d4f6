//! Vademecum: answers questions about the owner's documents, offline, over MQTT.
//!
//! The house, room by room; arrows point downwards only (see `ARCHITECTURE.md`):
//!
//! | room | one job |
//! |---|---|
//! | [`cli`] | the commands, one file each |
//! | [`service`] | start order, readiness, signals, shutdown |
//! | [`mqtt`] | connection, topics, codec, embedded broker |
//! | [`mail`] | inbox and outbox: what must survive until it is answered and delivered |
//! | [`http`] | the local control socket |
//! | [`api`] | what clients may ask: requests, bounds, replies |
//! | [`eval`] | retrieval and answer quality on labelled sets |
//! | [`answer`] | a question becomes a cited answer |
//! | [`ingest`] | files become chunks in the store |
//! | [`retrieve`] | which passages, and how sure |
//! | [`engine`] | the generator: one thread owns the llama.cpp context |
//! | [`embed`] | text to unit vectors |
//! | [`store`] | documents, chunks, vectors and postings in sled |
//! | [`llama`] | the boundary to llama.cpp that `engine` and `embed` share |
//! | [`gguf`] | the model file: reading, checking, converting |
//! | [`tune`] | which cores, how many threads |
//! | [`config`] | one typed tree from file, environment and flags |
//! | [`names`] | names and bounds that several rooms check |
pub mod answer;
pub mod api;
pub mod cli;
pub mod config;
pub mod embed;
pub mod engine;
pub mod eval;
pub mod gguf;
pub mod http;
pub mod ingest;
pub mod llama;
pub mod mail;
pub mod mqtt;
pub mod names;
pub mod retrieve;
pub mod service;
pub mod store;
pub mod tune;

/// Bytes that an ordinary user may still write to the file system of `path`, which exists.
pub(crate) fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let about = rustix::fs::statvfs(path).ok()?;
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Sizes from /proc/self/status (proc(5)) by their names, in kB.
pub(crate) fn status_kb<const N: usize>(names: [&str; N]) -> Option<[u64; N]> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let size = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
    };
    let mut sizes = [0; N];
    for (place, name) in sizes.iter_mut().zip(names) {
        *place = size(name)?;
    }
    Some(sizes)
}

/// Gives freed memory back to the system: after many small pieces glibc keeps it.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What to do about an error of the file system below the data directory, to be put behind its words.
pub(crate) fn remedy(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or move the data directory",
        ErrorKind::PermissionDenied => "; give the user that runs vademecum write access to the data directory",
        // What was read is wrong, not the disk.
        ErrorKind::InvalidData | ErrorKind::AlreadyExists => "",
        ErrorKind::ReadOnlyFilesystem => "; the file system is mounted read-only: check the card or disk for errors",
        _ => "; check the disk and the data directory",
    }
}

/// The words of a panic that was caught.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    words.unwrap_or_else(|| "a panic without a message".into())
}
