//! Measures a generator: its speed with a number of threads.

use std::path::Path;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::{BatchEntry, Context, ContextOptions, LlamaError, Placement, Pulse};
use crate::gguf::{Gguf, ModelKind};
use crate::tune::{Threads, WorkKind};

/// Tokens of one measured batch.
const BATCH: usize = 32;
/// Tokens of the prompt before decoding: attention over some context is part of the work.
const PROMPT: usize = 96;
/// Positions of the context. When prompt and decoded tokens fill it, both begin again.
const CONTEXT: usize = 256;
/// One measurement of decoding ends after this many tokens, or after [`LONGEST`] and at least two tokens.
const TOKENS: usize = 12;
const LONGEST: Duration = Duration::from_millis(250);
/// Most tokens of one pass whose logits are all wanted.
const MOST_VERIFIED: usize = 9;

/// Loads the generator at `path` with a small context of its own and hands `body` the means to measure it. The context needs a
/// few megabytes. The weights are mapped and shared with other processes that map the file.
///
/// # Errors
/// The file is not a generator or cannot be used. Errors of `body` are passed on.
pub fn with_model<T>(
    path: &Path,
    placement: Placement,
    body: impl FnOnce(&mut Bench<'_>) -> Result<T, LlamaError>,
) -> Result<T, LlamaError> {
    let unusable = |reason: String| LlamaError::Measure { path: path.display().to_string(), reason };
    let gguf = Gguf::open(path).map_err(|error| unusable(error.to_string()))?;
    if gguf.kind() != ModelKind::Generator {
        return Err(unusable(format!("its architecture is `{}`, not one that generates text", gguf.architecture())));
    }
    super::check_fits(&gguf, CONTEXT as u32, BATCH as u32, &super::available_memory())?;
    let backend = super::backend()?;
    let model = super::load(backend, path, placement).map_err(|error| unusable(error.to_string()))?;
    body(&mut Bench::of(&model, path, Pulse::default())?)
}

/// A generator to measure.
pub struct Bench<'model> {
    context: Context<'model>,
    path: String,
    entries: Vec<BatchEntry>,
    /// Positions in the KV cache.
    position: usize,
    /// Size of the vocabulary.
    tokens: i32,
    /// The last token used; the choice of tokens makes no difference to the time.
    next: i32,
}

impl<'model> Bench<'model> {
    /// Makes a small context of its own for a loaded model, which `path` names. `pulse` beats while it is measured.
    ///
    /// # Errors
    /// llama.cpp makes no context.
    pub fn of(model: &'model LlamaModel, path: &Path, pulse: Pulse) -> Result<Self, LlamaError> {
        let path = path.display().to_string();
        let options = ContextOptions {
            cells: CONTEXT as u32,
            batch: BATCH as u32,
            sequences: 1,
            outputs: MOST_VERIFIED as u32,
            threads: Threads { decode: 1, batch: 1 },
            pulse,
        };
        let reason = "it cannot make a context; see the log".to_owned();
        let Some(context) = Context::new(model, &options) else { return Err(LlamaError::Measure { path, reason }) };
        let tokens = model.n_vocab().max(1);
        Ok(Self { context, path, entries: Vec::with_capacity(BATCH), position: 0, tokens, next: 0 })
    }

    /// One measurement, a fraction of a second: tokens per second.
    pub fn measure(&mut self, kind: WorkKind, threads: usize) -> Result<f64, LlamaError> {
        let (mut done, mut elapsed) = (0, Duration::ZERO);
        match kind {
            WorkKind::Batch => {
                if self.position + BATCH > CONTEXT {
                    self.begin_anew();
                }
                elapsed = self.compute(BATCH, 1, both(threads))?;
                done = BATCH;
            }
            WorkKind::Decode => {
                // The first token wakes the threads.
                self.decode(threads)?;
                while done < TOKENS && (done < 2 || elapsed < LONGEST) {
                    elapsed += self.decode(threads)?;
                    done += 1;
                }
            }
        }
        Ok(done as f64 / elapsed.as_secs_f64().max(1e-9))
    }

    /// Decodes one token; returns its time. Computing the prompt before it (once in some hundred tokens) does not count.
    pub fn decode(&mut self, threads: usize) -> Result<Duration, LlamaError> {
        if self.position < PROMPT || self.position >= CONTEXT {
            self.begin_anew();
            while self.position < PROMPT {
                self.compute(BATCH, 1, both(threads))?;
            }
        }
        self.compute(1, 1, both(threads))
    }

    /// Computes `tokens` (9 at most) in one pass with the logits after each, as prompt lookup does; returns its time.
    pub fn verify(&mut self, tokens: usize, threads: Threads) -> Result<Duration, LlamaError> {
        let tokens = tokens.clamp(1, MOST_VERIFIED);
        if self.position < PROMPT || self.position + tokens > CONTEXT {
            self.begin_anew();
            while self.position < PROMPT {
                self.compute(BATCH, 1, threads)?;
            }
        }
        self.compute(tokens, tokens, threads)
    }

    fn begin_anew(&mut self) {
        self.context.clear();
        self.position = 0;
    }

    /// `wanted`: number of tokens at the end whose logits are wanted.
    fn compute(&mut self, n: usize, wanted: usize, threads: Threads) -> Result<Duration, LlamaError> {
        self.context.set_threads(threads);
        self.entries.clear();
        for i in 0..n {
            self.next = (self.next + 101) % self.tokens;
            let position = (self.position + i) as u32;
            self.entries.push(BatchEntry { token: LlamaToken(self.next), position, sequence: 0, logits: i + wanted >= n });
        }
        let started = Instant::now();
        let computed = self.context.decode(&self.entries);
        computed.map_err(|error| LlamaError::Measure { path: self.path.clone(), reason: error.to_string() })?;
        // Reading the logits waits until they are computed.
        let _ = self.context.logits(n - 1);
        self.position += n;
        Ok(started.elapsed())
    }
}

fn both(threads: usize) -> Threads {
    Threads { decode: threads, batch: threads }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_model as model;

    #[test]
    fn generators_are_measured_encoders_refused() {
        let speeds = with_model(&model("generator.gguf"), Placement::PROCESSOR, |bench| {
            let verified = bench.verify(4, both(1))?;
            assert!(verified > Duration::ZERO && bench.verify(1000, both(1))? > Duration::ZERO);
            Ok([bench.measure(WorkKind::Decode, 1)?, bench.measure(WorkKind::Batch, 2)?, bench.measure(WorkKind::Decode, 2)?])
        });
        assert!(speeds.expect("measured").iter().all(|speed| (0.05..1e6).contains(speed)));
        let error = with_model(&model("embedder.gguf"), Placement::PROCESSOR, |_| Ok(())).expect_err("an encoder");
        assert!(error.to_string().contains("bert"), "{error}");
    }

    /// Work whose instructions cross-targets/count.sh counts: passes of given numbers of tokens, on one thread.
    #[test]
    #[ignore = "VADEMECUM_PASSES says what is to be computed"]
    fn passes() {
        let passes = std::env::var("VADEMECUM_PASSES").expect("numbers of tokens");
        let passes: Vec<usize> = passes.split_whitespace().map(|tokens| tokens.parse().expect("a number")).collect();
        assert!(passes.iter().all(|tokens| (1..=BATCH).contains(tokens)) && passes.iter().sum::<usize>() <= CONTEXT);
        let computed = with_model(&model("generator.gguf"), Placement::PROCESSOR, |bench| {
            passes.iter().try_for_each(|tokens| bench.compute(*tokens, 1, both(1)).map(drop))
        });
        computed.expect("computed");
        println!("processor: {}", crate::llama::variant().unwrap_or("as compiled"));
    }

    #[test]
    fn the_pulse_beats_with_the_nodes_of_a_pass() {
        let path = model("generator.gguf");
        let backend = crate::llama::backend().expect("initialises");
        let loaded = crate::llama::load(backend, &path, crate::llama::Placement::PROCESSOR).expect("loads");
        let pulse = Pulse::default();
        let mut bench = Bench::of(&loaded, &path, pulse.clone()).expect("a context");
        assert_eq!(pulse.step(), None, "at rest");
        pulse.set_at_work(true);
        assert_eq!(pulse.step(), Some(0));
        bench.measure(WorkKind::Batch, 1).expect("measured");
        // SmolLM2 has 30 layers of some twenty nodes.
        assert!(pulse.step() > Some(300), "{:?}", pulse.step());
    }
}
