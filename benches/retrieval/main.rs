//! Retrieval beside the programs people use for it: how fast, how right, how large.
//!
//! `make bench-retrieval` runs it. It says what it found and never judges: there is no time that it asserts. See `README.md`.

mod corpus;
mod dense;
mod engine;
mod library;
mod ours;
mod random;
mod results;
mod vectors;

use corpus::Corpus;
use dense::Dense;
use library::Library;
use llm::embed::{EmbedOptions, Embedder};
use std::fs;
use std::path::PathBuf;
use vademecum_benches::process::Scratch;
use vademecum_benches::{Result, peers, report};
use vectors::{Kind, Set};

const USAGE: &str =
    "usage: make bench-retrieval [ARGS=\"-- [--quick] [--no-peers] [--rows N,N,...] [--chunks N,N,...] [--threads N,N,...]\"]";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // How this program starts itself as the engine under measurement.
        ["worker", kind, _] => ours::serve(kind),
        _ => run(&arguments),
    };
    if let Err(error) = done {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}

/// What is measured, and where things are.
#[derive(Debug)]
struct Options {
    /// Sizes of the vector indexes, rising.
    rows: Vec<usize>,
    /// Sizes of the libraries of text.
    chunks: Vec<usize>,
    threads: Vec<usize>,
    rounds: usize,
    /// Most seconds one engine may take for its share of a round.
    seconds: f64,
    /// The peers' Python; `None` measures ours alone.
    python: Option<PathBuf>,
    embedder: PathBuf,
    /// Kept from run to run.
    cache: PathBuf,
    /// Gone after the run.
    scratch: PathBuf,
}

impl Options {
    /// The size at which everything is looked at.
    fn focus(&self) -> usize {
        let below = self.rows.iter().copied().filter(|rows| *rows <= dense::FOCUS).max();
        below.or_else(|| self.rows.first().copied()).unwrap_or(dense::FOCUS)
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let load_before = report::load()?;
    // On the disk of the cache, not in a temporary folder that may be memory.
    let root = vademecum_benches::cache()?;
    let cache = root.join("bench");
    fs::create_dir_all(&cache)?;
    let scratch = Scratch::within(&cache)?;
    let options = parse(arguments, &root, cache, scratch.path().to_owned())?;
    // One for each core: two passes of one thread are faster than one of two.
    let load = || Embedder::load(&options.embedder, &EmbedOptions::default());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let embedders = (0..cores)
        .map(|_| load())
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| format!("{e}; `make setup` fetches the test models"))?;
    let embedder = embedders.first().ok_or("no cores")?;

    let corpus = Corpus::prepare(&options.cache, embedder)?;
    let most = options.rows.iter().chain(&options.chunks).copied().max().unwrap_or(0);
    let text = Set::prepare(Kind::Text, &options.cache, &corpus, &embedders, most)?;
    let gauss = Set::prepare(Kind::Gauss, &options.cache, &corpus, &embedders, options.focus())?;
    text.truths(&options.rows, None)?;

    let dense = Dense::measure(&options, &text, &gauss)?;
    let library = Library::measure(&options, &corpus, &text, embedder)?;
    let mut conditions = report::machine()?;
    conditions["load_before_and_after"] = serde_json::json!([load_before, report::load()?]);
    results::write(&options, &conditions, &corpus, &text, &dense, &library)?;
    if load_before > 0.5 {
        println!("\nThe machine was busy before this began (load {load_before}): do not compare these figures with others.");
    }
    Ok(())
}

fn parse(arguments: &[String], root: &std::path::Path, cache: PathBuf, scratch: PathBuf) -> Result<Options> {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let mut options = Options {
        rows: if quick { vec![10_000, 30_000] } else { vec![10_000, 30_000, 100_000, 300_000, 1_000_000] },
        chunks: if quick { vec![2_000] } else { vec![10_000, 100_000] },
        threads: vec![1, 2],
        rounds: if quick { 2 } else { 3 },
        seconds: if quick { 0.2 } else { 1.0 },
        python: None,
        embedder: root.join("models/embedder.gguf"),
        cache,
        scratch,
    };
    let mut peers = true;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut numbers = || -> Result<Vec<usize>> {
            let list = rest.next().map(String::as_str).unwrap_or_default();
            let mut numbers =
                list.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>().map_err(|_| USAGE)?;
            numbers.sort_unstable();
            numbers.dedup();
            if numbers.contains(&0) { Err(USAGE.into()) } else { Ok(numbers) }
        };
        match argument.as_str() {
            "--quick" => {}
            "--no-peers" => peers = false,
            "--rows" => options.rows = numbers()?,
            "--chunks" => options.chunks = numbers()?,
            "--threads" => options.threads = numbers()?,
            _ => return Err(USAGE.into()),
        }
    }
    // One thread is what settings are chosen with.
    if !options.threads.contains(&1) {
        options.threads.insert(0, 1);
    }
    options.python = if peers { peers::python(&options.cache, "retrieval") } else { None };
    Ok(options)
}
