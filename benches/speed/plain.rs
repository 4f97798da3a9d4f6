//! Plain reading and writing of tokens: the daemon's engine beside llama-bench's loop over the same llama.cpp, by number of threads,
//! and what the memory would allow.

use crate::contenders::Site;
use llm::gguf::Gguf;
use serde_json::{Value, json};
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};
use vademecum_benches::Result;
use vademecum_benches::progress::Stage;
use vademecum_benches::report::Spread;
use vademecum_benches::worker::Worker;

/// Let the threads of one settle before the other's turn.
const REST: Duration = Duration::from_millis(50);
/// Each thread reads so many bytes, more than any cache holds.
const READ: usize = 256 << 20;

/// Tokens per second at one number of threads, run by run.
#[derive(Debug, Default)]
pub(crate) struct Plain {
    pub(crate) threads: usize,
    pub(crate) engine: Speeds,
    /// llama-bench's loop, its threads waiting as OpenMP's library has it, and asleep.
    pub(crate) default: Speeds,
    pub(crate) passive: Speeds,
    /// Bytes per second that as many threads read from memory.
    pub(crate) bandwidth: f64,
}

/// Tokens per second of one program.
#[derive(Debug, Default)]
pub(crate) struct Speeds {
    pub(crate) prompt: Vec<f64>,
    pub(crate) generate: Vec<f64>,
}

/// At every number of threads.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) rows: Vec<Plain>,
    /// Of the weights, read for each token.
    pub(crate) bytes_per_token: u64,
    /// Tokens of the last prompt, and written after it.
    pub(crate) prompt: usize,
    pub(crate) generated: usize,
}

impl Findings {
    /// Whether llama-bench's threads write faster when they sleep while they wait: so on a busy machine.
    pub(crate) fn passive_wins(&self) -> bool {
        let median = |speeds: &[f64]| Spread::of(speeds.iter().copied()).map_or(0.0, |spread| spread.median);
        self.rows.last().is_some_and(|row| median(&row.passive.generate) > median(&row.default.generate))
    }
}

/// All programs in turn, round after round, each with the very numbers of tokens that the engine had.
pub(crate) fn measure(site: &Site, gguf: &Gguf, quick: bool) -> Result<Findings> {
    // Words of the engine's prompt are numbers, which take several tokens each: some 512 tokens, as llama-bench reads.
    let (rounds, words, generate) = if quick { (2, 20, 16) } else { (5, 100, 128) };
    let stage = Stage::begin("plain reading and writing");
    let mut findings = Findings { rows: vec![], bytes_per_token: gguf.bytes_per_token(), prompt: 0, generated: 0 };
    // 1, 2, 4 and so on, and all.
    let mut counts: Vec<usize> = (0..usize::BITS).map(|power| 1 << power).take_while(|count| *count < site.threads).collect();
    counts.push(site.threads);
    let model = site.generator.as_os_str();
    for threads in counts.iter().copied() {
        let mut engine = Worker::start(
            Command::new(std::env::current_exe()?).arg("engine").arg(model).arg(threads.to_string()),
            "the daemon's engine",
            &site.log("engine"),
        )?;
        let mut peers = [None, Some("passive")].map(|waiting| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_llama-loop"));
            command.arg(model).env_remove("OMP_WAIT_POLICY").envs(waiting.map(|waiting| ("OMP_WAIT_POLICY", waiting)));
            Worker::start(&mut command, "llama-loop", &site.log("llama-loop"))
        });
        // Threads that still start up are not measured.
        engine.call(&json!({ "words": 10, "generate": 8 }))?;
        let mut row = Plain { threads, bandwidth: bandwidth(threads), ..Plain::default() };
        for round in 0..rounds {
            stage.step(findings.rows.len() * rounds + round, counts.len() * rounds);
            let done = engine.call(&json!({ "words": words, "generate": generate }))?;
            row.engine.note(&done);
            let count = |key: &str| done[key].as_u64().unwrap_or(0);
            (findings.prompt, findings.generated) = (count("computed") as usize, count("generated") as usize);
            let same = json!({
                "prompt": count("computed"), "depth": count("prompt"), "generate": count("generated"), "threads": threads,
            });
            std::thread::sleep(REST);
            for (peer, speeds) in peers.iter_mut().zip([&mut row.default, &mut row.passive]) {
                let peer = peer.as_mut().map_err(|error| error.to_string())?;
                speeds.note(&peer.call(&same)?);
                std::thread::sleep(REST);
            }
        }
        findings.rows.push(row);
    }
    Ok(findings)
}

impl Speeds {
    fn note(&mut self, answer: &Value) {
        self.prompt.extend(answer["prompt_per_s"].as_f64());
        self.generate.extend(answer["generate_per_s"].as_f64());
    }
}

/// Bytes per second that so many threads read from memory at once; the best of three.
fn bandwidth(threads: usize) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..threads as u64).map(|i| vec![i + 1; READ / 8]).collect();
    let once = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for buffer in &buffers {
                // Sums that do not wait for each other.
                scope.spawn(|| {
                    let mut sums = [0_u64; 16];
                    for part in buffer.chunks_exact(16) {
                        for (sum, word) in sums.iter_mut().zip(part) {
                            *sum = sum.wrapping_add(*word);
                        }
                    }
                    black_box(sums)
                });
            }
        });
        (threads * READ) as f64 / begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}
