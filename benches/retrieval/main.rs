//! Retrieval beside the programs people use for it: how fast, how right, how large.
//!
//! `make bench-retrieval` runs it. It says what it found and never judges: there is no time that it asserts. See `README.md`.

mod corpus;
mod random;
mod vectors;

use corpus::Corpus;
use std::path::PathBuf;
use vademecum::embed::{EmbedOptions, Embedder};
use vademecum_benches::Result;
use vectors::{Kind, Set};

fn main() {
    if let Err(error) = run() {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let cache = PathBuf::from(std::env::var_os("VADEMECUM_CACHE").ok_or("VADEMECUM_CACHE is not set")?);
    let embedder = Embedder::load(&cache.join("models/embedder.gguf"), &EmbedOptions { threads: 2, ..EmbedOptions::default() })?;
    let cache = cache.join("bench");
    let corpus = Corpus::prepare(&cache, &embedder, 100_000)?;
    println!("{} {:?}", corpus.chunks, corpus.packages);
    let rows = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(100_000);
    for kind in [Kind::Text, Kind::Gauss] {
        let set = Set::prepare(kind, &cache, &corpus, &embedder, rows)?;
        for size in [3000, 10_000, rows] {
            println!("{kind:?} {size} {:?}", set.nearness(size)?);
        }
    }
    Ok(())
}
