//! The engines under measurement, each in a process of its own that takes one JSON object a line and answers with one.

use crate::Options;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use vademecum_benches::Result;
use vademecum_benches::process::Memory;

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
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
    log: PathBuf,
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
                command.args(["-W", "ignore"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/worker.py"));
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
        let log = options.scratch.join(format!("{name}.log"));
        command.args([kind, name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().map_err(|e| format!("cannot start the worker of {name}: {e}"))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("the worker of {name} has no pipes").into());
        };
        let answers = BufReader::new(answers);
        let mut worker =
            Self { child, requests, answers, name: name.to_owned(), log, base: Memory::default(), version: String::new() };
        let hello = worker.call(&json!({ "do": "hello" }))?;
        worker.version = hello["version"].as_str().unwrap_or_default().into();
        worker.base = Memory::of_process(worker.child.id())?;
        Ok(worker)
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn call(&mut self, ask: &Value) -> Result<Value> {
        let said = |log: &Path| fs::read_to_string(log).unwrap_or_default();
        writeln!(self.requests, "{ask}")
            .map_err(|e| format!("the worker of {} has ended ({e}): {}", self.name, said(&self.log)))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("the worker of {} has ended at {}: {}", self.name, ask["do"], said(&self.log)).into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => Err(format!("{}: {} fails: {error}", self.name, ask["do"]).into()),
            None => Ok(answer),
        }
    }

    /// What it holds now beyond what it held before it had anything to search: of its own, and of mapped files.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let now = Memory::of_process(self.child.id())?;
        let more = |now: u64, before: u64| now.saturating_sub(before);
        Ok(Memory { anonymous_kb: more(now.anonymous_kb, self.base.anonymous_kb), file_kb: more(now.file_kb, self.base.file_kb) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the peers' Python environment in the cache when it is not there, with the versions of `requirements.txt`.
/// `None`, with the reason said, when that is not possible: then ours is measured alone.
pub(crate) fn python(cache: &Path) -> Option<PathBuf> {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/requirements.txt");
    let folder = cache.join("venv");
    let (python, stamp) = (folder.join("bin/python"), folder.join("installed.txt"));
    let installed = fs::read(&stamp).ok();
    if python.exists() && installed.is_some() && installed == fs::read(&requirements).ok() {
        return Some(python);
    }
    eprintln!("bench: installing the peers into {}", folder.display());
    let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("bench: no peers: python3 cannot make a virtual environment (Debian: apt-get install python3-venv)");
        return None;
    }
    // One by one, so that a peer this platform has no wheel of costs only itself.
    let lines = fs::read_to_string(&requirements).ok()?;
    let mut complete = true;
    for package in lines.lines().filter(|line| !line.starts_with('#')) {
        let installed = Command::new(&python).args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", package]).status();
        if !installed.is_ok_and(|status| status.success()) {
            eprintln!("bench: {package} cannot be installed here; its peers are skipped");
            complete = false;
        }
    }
    if complete {
        fs::copy(&requirements, &stamp).ok()?;
    }
    Some(python)
}
