//! The main job, measured from outside: documents in, questions over MQTT 5, cited answers out.
//!
//! `make bench` runs it. It says what it found and never judges: there is no time that it asserts. See `README.md`.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vademecum_benches::Result;
use vademecum_benches::client::{Asked, Asker};
use vademecum_benches::process::{Memory, Program, Scratch, mosquitto};
use vademecum_benches::report::{self, Column, Rows, Spread};

const NODE: &str = "bench";

/// How long the daemon may go on warming up after it is ready, before its memory is read.
const SETTLE: Duration = Duration::from_secs(1);

/// Distinct, each answered somewhere in the sample manual: what is reused from one to the next is the system prompt.
const QUESTIONS: [&str; 10] = [
    "What is the lowest permitted heating water pressure?",
    "How tightly must the housing screws be fastened?",
    "What does error code E-24 mean and what must I do at once?",
    "How long may the cable of a temperature sensor be?",
    "How do I acknowledge a locking fault?",
    "Which fuse protects the circulation pump?",
    "How far must the controller be kept from frequency inverters?",
    "What should I do when the display stays dark?",
    "Which refrigerants may the heat pump use?",
    "How do I lock the keys so that children cannot press them?",
];

/// What is measured, in the order of the table. A peer's column fills in what it can.
const ROWS: &Rows = &[
    ("start_ms", "start to ready", "ms"),
    ("ready_anonymous_mib", "memory of its own when ready", "MiB"),
    ("ready_file_mib", "mapped files when ready", "MiB"),
    ("asked_anonymous_mib", "memory of its own after the questions", "MiB"),
    ("asked_file_mib", "mapped files after the questions", "MiB"),
    ("ingest_chunks_per_s", "ingest, chunks per second", ""),
    ("ingest_chunks_per_cpu_s", "ingest, chunks per CPU-second", ""),
    ("evidence_ms", "question to evidence", "ms"),
    ("first_token_ms", "question to first token", "ms"),
    ("total_ms", "question to whole answer", "ms"),
    ("tokens_per_s", "decoding, tokens per second", ""),
    ("cpu_ms", "CPU time per question", "ms"),
];

fn main() {
    if let Err(error) = run() {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let starts = starts()?;
    let load_before = report::load()?;
    let scratch = Scratch::new()?;
    let mut job = Job::new(scratch.path())?;

    let mut figures = job.ingest()?;
    let begun = job.starts(starts)?;
    figures.push(("start_ms", begun));
    let (asked, memory) = job.questions()?;
    figures.extend(memory);
    figures.extend(of_questions(&asked));

    let details = json!({ "starts": starts, "questions": asked.iter().map(|(question, asked, cpu)| detail(question, asked, *cpu)).collect::<Vec<_>>() });
    let columns = [Column { program: job.version()?, values: figures, details }];
    let mut conditions = report::machine()?;
    conditions["load_before_and_after"] = json!([load_before, report::load()?]);
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    report::write(&results, "main-job", &conditions, ROWS, &columns)?;
    print!("{}", report::table(ROWS, &columns));
    println!("\nmedian (min to max); written to {}/main-job.json and .md", results.display());
    if load_before > 0.5 {
        println!("The machine was busy before this began (load {load_before}): do not compare these figures with others.");
    }
    Ok(())
}

/// How often the daemon is started: `--starts N`.
fn starts() -> Result<usize> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(7),
        ["--starts", n] => n.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("--starts {n}: give a number above 0").into()),
        _ => Err("usage: make bench [ARGS=\"-- --starts N\"]".into()),
    }
}

/// The programs and files of one measurement.
struct Job {
    program: PathBuf,
    models: PathBuf,
    dir: PathBuf,
    port: u16,
    asker: Asker,
    _broker: Program,
}

impl Job {
    fn new(dir: &Path) -> Result<Self> {
        // Cargo puts this program into target/release/deps.
        let program = std::env::current_exe()?.ancestors().nth(2).map(|dir| dir.join("vademecum")).filter(|path| path.exists());
        let program = program.ok_or("the daemon is not built; run this with `make bench`")?;
        let models = models()?;
        let (broker, port) = mosquitto(dir)?;
        let asker = Asker::connect(port, NODE)?;
        Ok(Self { program, models, dir: dir.to_owned(), port, asker, _broker: broker })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        // Settings of a daemon that runs here must not reach this one.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("VADEMECUM_")) {
            command.env_remove(key);
        }
        command.args([name, "--config", "/dev/null", "--node", NODE, "--broker", &format!("mqtt://127.0.0.1:{}", self.port)]);
        command.arg("--data-dir").arg(self.dir.join("data"));
        command
            .arg("--generator")
            .arg(self.models.join("generator.gguf"))
            .arg("--embedder")
            .arg(self.models.join("embedder.gguf"))
            // The generator is what is measured; so small a one would be left out.
            .args(["--set", "answer.reader=evidence"]);
        command
    }

    fn version(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Starts the daemon; milliseconds until a client sees that it is online.
    fn start(&mut self) -> Result<(Program, f64)> {
        let log = self.dir.join("daemon.log");
        let begun = Instant::now();
        let daemon = Program::start(&mut self.command("run"), &log)?;
        match self.asker.wait_for_state("online") {
            Ok(()) => Ok((daemon, begun.elapsed().as_secs_f64() * 1e3)),
            Err(error) => Err(format!("{error}; the daemon said:\n{}", std::fs::read_to_string(log)?).into()),
        }
    }

    fn stop(&mut self, daemon: Program) -> Result<()> {
        daemon.stop()?;
        self.asker.wait_for_state("offline")
    }

    /// The sample manual through the running daemon, whose CPU time is counted.
    fn ingest(&mut self) -> Result<Vec<(&'static str, Spread)>> {
        eprintln!("bench: ingesting the sample manual");
        let (daemon, _) = self.start()?;
        std::thread::sleep(SETTLE);
        let before = daemon.cpu()?;
        let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/demo");
        let output = self.command("ingest").arg("--json").arg(manual).args(["--include", "*.md"]).output()?;
        if !output.status.success() {
            return Err(format!("ingest failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let summary: Value = serde_json::from_slice(&output.stdout)?;
        let (Some(chunks), Some(seconds)) = (summary["chunks"].as_f64(), summary["seconds"].as_f64()) else {
            return Err(format!("ingest gives no chunks and seconds: {summary}").into());
        };
        let cpu = daemon.cpu()? - before;
        self.stop(daemon)?;
        let once = |key, value| Spread::of([value]).map(|spread| (key, spread));
        Ok([once("ingest_chunks_per_s", chunks / seconds), once("ingest_chunks_per_cpu_s", chunks / cpu)]
            .into_iter()
            .flatten()
            .collect())
    }

    /// Starts with the library in place and the files in the page cache.
    fn starts(&mut self, times: usize) -> Result<Spread> {
        eprintln!("bench: starting {times} times");
        let mut series = Vec::new();
        for _ in 0..times {
            let (daemon, milliseconds) = self.start()?;
            series.push(milliseconds);
            // Its warming up is not to reach into the next start.
            std::thread::sleep(SETTLE);
            self.stop(daemon)?;
        }
        Spread::of(series).ok_or_else(|| "no start was measured".into())
    }

    /// Every question once, one after the other, with the daemon's CPU time and memory.
    #[allow(clippy::type_complexity)]
    fn questions(&mut self) -> Result<(Vec<(&'static str, Asked, f64)>, Vec<(&'static str, Spread)>)> {
        let (daemon, _) = self.start()?;
        std::thread::sleep(SETTLE);
        let ready = daemon.memory()?;
        let mut all = Vec::new();
        for (i, question) in QUESTIONS.iter().enumerate() {
            eprintln!("bench: question {} of {}", i + 1, QUESTIONS.len());
            let before = daemon.cpu()?;
            let asked = self.asker.ask(&format!("q{i}"), question)?;
            all.push((*question, asked, (daemon.cpu()? - before) * 1e3));
        }
        let after = daemon.memory()?;
        self.stop(daemon)?;
        let mut memory = of_memory(["ready_anonymous_mib", "ready_file_mib"], ready);
        memory.extend(of_memory(["asked_anonymous_mib", "asked_file_mib"], after));
        Ok((all, memory))
    }
}

/// The test models: `VADEMECUM_CACHE` as `make setup` understands it, else the user's cache.
fn models() -> Result<PathBuf> {
    let cache = std::env::var_os("VADEMECUM_CACHE").map(PathBuf::from);
    let user = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/vademecum"));
    let models = cache.or_else(user).ok_or("HOME is not set")?.join("models");
    if models.join("generator.gguf").exists() && models.join("embedder.gguf").exists() {
        return Ok(models);
    }
    Err(format!("no models in {}; `make setup` fetches them", models.display()).into())
}

fn of_memory(keys: [&'static str; 2], memory: Memory) -> Vec<(&'static str, Spread)> {
    let mib = [memory.anonymous_kb, memory.file_kb].map(|kb| kb as f64 / 1024.0);
    keys.into_iter().zip(mib).filter_map(|(key, value)| Some((key, Spread::of([value])?))).collect()
}

fn of_questions(asked: &[(&'static str, Asked, f64)]) -> Vec<(&'static str, Spread)> {
    let generated = || asked.iter().filter(|(_, asked, _)| asked.first_token_ms.is_some());
    [
        ("evidence_ms", Spread::of(asked.iter().map(|(_, asked, _)| asked.evidence_ms))),
        ("first_token_ms", Spread::of(asked.iter().filter_map(|(_, asked, _)| asked.first_token_ms))),
        ("total_ms", Spread::of(asked.iter().map(|(_, asked, _)| asked.total_ms))),
        ("tokens_per_s", Spread::of(generated().filter_map(|(_, asked, _)| asked.answer["timings"]["tokens_per_s"].as_f64()))),
        ("cpu_ms", Spread::of(asked.iter().map(|(_, _, cpu)| *cpu))),
    ]
    .into_iter()
    .filter_map(|(key, spread)| Some((key, spread?)))
    .collect()
}

fn detail(question: &str, asked: &Asked, cpu_ms: f64) -> Value {
    json!({
        "question": question,
        "answer": asked.answer["answer"],
        "found": asked.answer["found"],
        "evidence_ms": asked.evidence_ms,
        "first_token_ms": asked.first_token_ms,
        "total_ms": asked.total_ms,
        "cpu_ms": cpu_ms,
        "timings": asked.answer["timings"],
        "usage": asked.answer["usage"],
    })
}
