//! The programs that answer, ours and the peers': how each is started, asked and looked at.

use crate::set::Set;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use vademecum_benches::client::{Asked, Asker, Question};
use vademecum_benches::process::{Memory, Program, free_port};
use vademecum_benches::{Result, peers};

/// Passages of a question.
pub(crate) const TOP_K: usize = 3;

/// Questions that llama-server and the daemon work on at once.
pub(crate) const SLOTS: usize = 4;

/// A program with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The daemon; what its model reads.
    Ours(&'static str),
    /// A stack of `peers/stacks.py`.
    Peer(&'static str),
}

/// Ours by reader, the quickest first; a peer's ratios are to the lean stack.
pub(crate) const OURS: [Contender; 2] = [Contender::Ours("quote"), Contender::Ours("read")];
/// With the reader that it chooses of itself.
pub(crate) const DEFAULT: Contender = Contender::Ours("auto");
pub(crate) const LEAN: Contender = Contender::Peer("lean");
pub(crate) const SERVER: Contender = Contender::Peer("server");
pub(crate) const LANGCHAIN: Contender = Contender::Peer("langchain");
pub(crate) const PEERS: [Contender; 4] = [LEAN, Contender::Peer("lean-flash"), SERVER, LANGCHAIN];

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours("auto") => "vademecum, default reader",
            Self::Ours("quote") => "vademecum, quote",
            Self::Ours("read") => "vademecum, read",
            Self::Peer("lean") => "llama-cpp-python + FAISS",
            Self::Peer("lean-flash") => "the same, flash attention",
            Self::Peer("server") => "llama-server + FAISS",
            Self::Peer("langchain") => "LangChain + Chroma",
            Self::Ours(other) | Self::Peer(other) => other,
        }
    }

    /// Whether its answers are measured: LangChain takes part for its start and memory only.
    pub(crate) fn is_asked(self) -> bool {
        self != LANGCHAIN
    }

    /// Whether it keeps anything of passages beyond the last prompt.
    pub(crate) fn keeps_passages(self) -> bool {
        matches!(self, Self::Ours("read")) || self == SERVER
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Part of its topics and file names.
    pub(crate) fn node(self) -> String {
        match self {
            Self::Ours(reader) => format!("ours-{reader}"),
            Self::Peer(stack) => format!("peer-{stack}"),
        }
    }
}

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) program: PathBuf,
    /// The peers' Python; `None` measures ours alone.
    pub(crate) python: Option<PathBuf>,
    /// The peers' llama.cpp: libraries and llama-server.
    pub(crate) llama: PathBuf,
    /// Gone after the run.
    pub(crate) scratch: PathBuf,
    /// Of the broker.
    pub(crate) port: u16,
    pub(crate) generator: PathBuf,
    /// The generator has no chat template.
    pub(crate) plain_prompt: bool,
    pub(crate) embedder: PathBuf,
    pub(crate) threads: usize,
    /// The longest answer.
    pub(crate) max_tokens: usize,
    /// The peers' threads sleep while they wait for each other; else they wait as OpenMP's library has it, spinning first.
    pub(crate) passive: bool,
}

/// The built daemon.
pub(crate) fn program() -> Result<PathBuf> {
    // Cargo puts this program into target/release/deps.
    let program = std::env::current_exe()?.ancestors().nth(2).map(|dir| dir.join("vademecum")).filter(|path| path.exists());
    program.ok_or_else(|| "the daemon is not built; run this with `make bench`".into())
}

/// A started program with a client of its own.
pub(crate) struct Running {
    pub(crate) contender: Contender,
    processes: Vec<Program>,
    asker: Asker,
}

impl Running {
    /// Seconds of processor time, of all its processes.
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.processes.iter().map(Program::cpu).sum()
    }

    /// Resident memory of all its processes.
    pub(crate) fn memory(&self) -> Result<Memory> {
        self.processes.iter().try_fold(Memory::default(), |sum, process| Ok(sum + process.memory()?))
    }

    /// Numbers of its processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Program::id).collect()
    }

    pub(crate) fn ask(&mut self, question: Question<'_>) -> Result<Asked> {
        let Self { asker, processes, contender } = self;
        let cpu = || processes.iter().map(Program::cpu).sum();
        asker.ask(question, &cpu).map_err(|error| format!("{}: {error}", contender.name()).into())
    }

    /// Ends it and waits until the broker knows.
    pub(crate) fn stop(mut self) -> Result<()> {
        for process in self.processes.drain(..) {
            // Python ends by the signal itself, without a farewell: the broker sends the last will.
            if self.contender.is_ours() { process.stop()? } else { drop(process) }
        }
        self.asker.wait_for_state("offline")
    }
}

impl Site {
    /// A question as most parts ask it.
    pub(crate) fn question<'a>(&self, text: &'a str) -> Question<'a> {
        Question { text, top_k: TOP_K, max_tokens: self.max_tokens }
    }

    /// Starts a program whose library is in place; milliseconds until a client sees that it is online.
    pub(crate) fn start(&self, contender: Contender) -> Result<(Running, f64)> {
        let node = contender.node();
        let mut asker = Asker::connect(self.port, &format!("asks-{node}"), &node)?;
        let begun = Instant::now();
        let processes = match contender {
            Contender::Ours(reader) => {
                let mut command = self.daemon("run", &node);
                command.args(["--broker", &format!("mqtt://127.0.0.1:{}", self.port)]);
                command.args(["--set", &format!("answer.strategy={reader}")]);
                vec![Program::start(&mut command, &self.log(&node))?]
            }
            Contender::Peer(stack) => self.start_peer(stack, &node)?,
        };
        match asker.wait_for_state("online") {
            Ok(()) => {
                let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
                Ok((Running { contender, processes, asker }, milliseconds))
            }
            Err(error) => Err(format!("{error}; it said:\n{}", fs::read_to_string(self.log(&node))?).into()),
        }
    }

    /// A command of the daemon with models, threads and data directory of the node.
    pub(crate) fn daemon(&self, name: &str, node: &str) -> Command {
        let mut command = Command::new(&self.program);
        // Settings of a daemon that runs here must not reach this one.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("VADEMECUM_")) {
            command.env_remove(key);
        }
        command.args([name, "--config", "/dev/null", "--node", node]);
        command.arg("--data-dir").arg(self.data_dir(node));
        command.arg("--generator").arg(&self.generator).arg("--embedder").arg(&self.embedder);
        // As many as the peers have; and nothing is measured in idle moments, which are another program's turn.
        for key in ["model.threads", "model.batch_threads"] {
            command.args(["--set", &format!("{key}={}", self.threads)]);
        }
        command
    }

    pub(crate) fn data_dir(&self, node: &str) -> PathBuf {
        self.scratch.join("data").join(node)
    }

    /// Copies the library of one node to another that has none.
    pub(crate) fn copy_library(&self, from: &str, to: &str) -> Result<()> {
        let copied = Command::new("cp").arg("-a").arg(self.data_dir(from)).arg(self.data_dir(to)).status()?;
        if copied.success() { Ok(()) } else { Err("cannot copy the library".into()) }
    }

    fn start_peer(&self, stack: &str, node: &str) -> Result<Vec<Program>> {
        let mut processes = Vec::new();
        let mut worker = self.peer("serve", stack)?;
        worker.args(["--node", node, "--port", &self.port.to_string()]);
        if stack == "server" {
            let address = format!("127.0.0.1:{}", free_port()?);
            processes.push(self.start_server(&address)?);
            worker.args(["--server", &address]);
        }
        processes.push(Program::start(&mut worker, &self.log(node))?);
        Ok(processes)
    }

    fn start_server(&self, address: &str) -> Result<Program> {
        let (host, port) = address.split_once(':').unwrap_or(("127.0.0.1", address));
        let threads = self.threads.to_string();
        let context = (2048 * SLOTS).to_string();
        let mut command = Command::new(self.llama.join("llama-server"));
        self.surround(&mut command);
        command.arg("--model").arg(&self.generator);
        command.args(["--host", host, "--port", port, "--threads", &threads, "--threads-batch", &threads]);
        command.args(["--parallel", &SLOTS.to_string(), "--ctx-size", &context]);
        Program::start(&mut command, &self.log("llama-server"))
    }

    /// A command of the peers' worker.
    fn peer(&self, what: &str, stack: &str) -> Result<Command> {
        let mut command = Command::new(self.python.as_ref().ok_or("there are no peers here")?);
        self.surround(&mut command);
        command.env("LLAMA_CPP_LIB_PATH", &self.llama);
        command.args(["-W", "ignore"]).arg(peers::folder().join("answer.py")).args([what, stack]);
        command.arg("--generator").arg(&self.generator).arg("--embedder").arg(&self.embedder);
        command.arg("--library").arg(self.index(stack)).args(["--threads", &self.threads.to_string()]);
        if self.plain_prompt {
            command.arg("--plain");
        }
        Ok(command)
    }

    /// The surroundings of a peer's process.
    fn surround(&self, command: &mut Command) {
        // Settings of this shell that would make it slower.
        command.env_remove("OPENBLAS_CORETYPE").env_remove("OPENBLAS_L2_SIZE").env_remove("OMP_WAIT_POLICY");
        if self.passive {
            command.env("OMP_WAIT_POLICY", "passive");
        }
    }

    fn index(&self, stack: &str) -> PathBuf {
        self.scratch.join(if stack == "langchain" { "chroma" } else { "faiss" })
    }

    /// Makes the peer's search index, where another peer has not made it.
    pub(crate) fn build_index(&self, contender: Contender, set: &Set) -> Result<()> {
        let Contender::Peer(stack) = contender else { return Ok(()) };
        let index = self.index(stack);
        if index.exists() {
            return Ok(());
        }
        let output = self.peer("build", stack)?.arg("--passages").arg(&set.passages).output()?;
        if output.status.success() {
            return Ok(());
        }
        let _ = fs::remove_dir_all(index);
        Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it builds no index").to_owned().into())
    }

    pub(crate) fn log(&self, node: &str) -> PathBuf {
        self.scratch.join(format!("{node}.log"))
    }

    /// Versions of what is compared.
    pub(crate) fn versions(&self) -> Vec<String> {
        let first_line = |command: &mut Command| {
            let output = command.output().ok()?;
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).lines().find(|line| !line.trim().is_empty()).map(str::trim).map(str::to_owned)
        };
        let mut versions = vec![first_line(Command::new(&self.program).arg("--version")).unwrap_or_default()];
        if self.python.is_some() {
            let pinned = fs::read_to_string(peers::folder().join("speed.txt")).unwrap_or_default();
            versions.extend(pinned.lines().filter(|line| !line.starts_with('#')).map(|line| line.replace("==", " ")));
            versions.extend(self.llama_flags());
        }
        versions.push(format!("the daemon's {}", llm::llama::build()));
        versions
    }

    /// The processor features that the peers' llama.cpp was built with.
    fn llama_flags(&self) -> Option<String> {
        let cache = fs::read_to_string(self.llama.parent()?.join("CMakeCache.txt")).ok()?;
        let on = |line: &&str| {
            let named = [
                "GGML_NATIVE",
                "GGML_AVX",
                "GGML_FMA",
                "GGML_F16C",
                "GGML_BMI2",
                "GGML_SSE42",
                "GGML_OPENMP:",
                "GGML_CPU_ARM_ARCH",
            ];
            named.iter().any(|name| line.starts_with(name)) && (line.ends_with("=ON") || line.starts_with("GGML_NATIVE"))
        };
        let flags: Vec<&str> = cache.lines().filter(on).filter_map(|line| line.strip_prefix("GGML_")).collect();
        let flags = flags.join(" ").replace(":BOOL", "");
        Some(format!("llama.cpp of llama-cpp-python, built here with its llama-server: {flags}"))
    }
}
