//! The engines under measurement, each in a process of its own that takes one JSON object a line and answers with one.

use crate::Options;
use serde_json::{Value, json};
use std::process::Command;
use vademecum_benches::process::Memory;
use vademecum_benches::{Result, peers, worker};

/// How an index searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// By looking at every row, as far as necessary: its default, the first of its efforts, stays.
    Scan,
    /// Along a graph of near rows: the effort is chosen for the recall.
    Graph,
}

/// A vector index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Engine {
    /// What its worker calls it.
    pub(crate) name: &'static str,
    /// What people call it.
    pub(crate) label: &'static str,
    /// Settings between fast and right; none when it has no such setting.
    pub(crate) efforts: &'static [u32],
    pub(crate) method: Method,
    /// Most rows it is built with: a graph of a million takes half an hour.
    pub(crate) most_rows: usize,
    /// A single query can use more than one thread.
    pub(crate) parallel: bool,
    /// Building takes so long that it is kept in the cache.
    pub(crate) kept: bool,
    /// Takes part in the worst case as well.
    pub(crate) gauss: bool,
}

/// Of an HNSW search: `efSearch`, `expansion_search`, `hnsw_ef`.
const BEAMS: &[u32] = &[16, 32, 64, 128, 256, 512];
const GRAPH: Engine = Engine {
    name: "",
    label: "",
    efforts: BEAMS,
    method: Method::Graph,
    most_rows: 100_000,
    parallel: false,
    kept: true,
    gauss: false,
};
const SCAN: Engine = Engine {
    name: "",
    label: "",
    efforts: &[],
    method: Method::Scan,
    most_rows: usize::MAX,
    parallel: false,
    kept: false,
    gauss: true,
};

/// Ours is the first: plots draw it thicker, tables put it on top.
pub(crate) const ENGINES: [Engine; 13] = [
    // Rows asked for: the rows rescored grow with it.
    Engine { name: "vademecum", label: "vademecum", efforts: &[10, 200, 400, 800], parallel: true, ..SCAN },
    Engine { name: "faiss-flat", label: "FAISS IndexFlatIP", ..SCAN },
    Engine { name: "faiss-flat-sharded", label: "FAISS IndexFlatIP, 2 shards", parallel: true, gauss: false, ..SCAN },
    Engine { name: "faiss-sq8", label: "FAISS SQ8 scan", ..SCAN },
    Engine { name: "faiss-hnsw", label: "FAISS HNSW f32", ..GRAPH },
    Engine { name: "usearch-f32", label: "usearch HNSW f32", ..GRAPH },
    Engine { name: "usearch-i8", label: "usearch HNSW i8", ..GRAPH },
    Engine { name: "usearch-exact", label: "usearch exact f32", parallel: true, gauss: false, ..SCAN },
    Engine { name: "usearch-exact-i8", label: "usearch exact i8", parallel: true, ..SCAN },
    Engine { name: "sqlite-vec", label: "sqlite-vec f32", most_rows: 300_000, gauss: false, ..SCAN },
    Engine { name: "sqlite-vec-int8", label: "sqlite-vec int8", most_rows: 300_000, gauss: false, ..SCAN },
    Engine { name: "qdrant-edge", label: "qdrant-edge HNSW f32", ..GRAPH },
    Engine { name: "qdrant-edge-int8", label: "qdrant-edge HNSW int8", ..GRAPH },
];

/// The full-text indexes beside ours.
pub(crate) const LEXICAL: [(&str, &str); 2] = [("bm25s", "bm25s (numba)"), ("fts5", "SQLite FTS5")];

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct Worker {
    process: worker::Worker,
    /// Its memory before it had anything to search: interpreter and libraries.
    base: Memory,
    pub(crate) version: String,
}

impl Worker {
    /// Starts the worker of `name`; `kind` is `dense`, `lexical` or `library`. Ours is this program, the others run in
    /// the peers' Python.
    pub(crate) fn start(options: &Options, kind: &str, name: &str) -> Result<Self> {
        let mut command = match &options.python {
            Some(python) if name != "vademecum" => {
                let mut command = Command::new(python);
                command.args(["-W", "ignore"]).arg(peers::folder().join("worker.py"));
                // Settings of this shell that would make a peer slower, and threads that spin into the next one's turn.
                command.env_remove("OPENBLAS_CORETYPE").env_remove("OPENBLAS_L2_SIZE").env("OMP_WAIT_POLICY", "passive");
                command
            }
            _ => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("worker");
                command
            }
        };
        command.args([kind, name]);
        let mut process = worker::Worker::start(&mut command, name, &options.scratch.join(format!("{name}.log")))?;
        let hello = process.call(&json!({ "do": "hello" }))?;
        let base = Memory::of_process(process.id())?;
        Ok(Self { process, base, version: hello["version"].as_str().unwrap_or_default().into() })
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn call(&mut self, ask: &Value) -> Result<Value> {
        self.process.call(ask)
    }

    /// What it holds now beyond what it held before it had anything to search: of its own, and of mapped files.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let now = Memory::of_process(self.process.id())?;
        let more = |now: u64, before: u64| now.saturating_sub(before);
        Ok(Memory { anonymous_kb: more(now.anonymous_kb, self.base.anonymous_kb), file_kb: more(now.file_kb, self.base.file_kb) })
    }
}
