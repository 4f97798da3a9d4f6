//! Measuring a generator: what a number of threads brings.

use std::path::Path;
use std::time::{Duration, Instant};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

use super::{Context, ContextOptions, Entry, LlamaError, Placement, Pulse};
use crate::gguf::{Gguf, Kind as ModelKind};
use crate::tune::{Kind, Threads};

/// Tokens of one measured batch.
const BATCH: usize = 32;
/// Tokens before the first one that is decoded: attention over some context is part of the work.
const PROMPT: usize = 96;
/// Positions of the context: prompt and what is decoded after it, before both begin anew.
const CONTEXT: usize = 256;
/// One measurement of decoding ends after this many tokens, or after [`LONGEST`] and at least two tokens.
const TOKENS: usize = 12;
const LONGEST: Duration = Duration::from_millis(250);
/// Most tokens of one pass whose logits are all wanted.
const MOST_VERIFIED: usize = 9;

/// Loads the generator at `path` with a small context of its own and hands `body` the means to measure it. The context needs
/// a few megabytes; the weights are mapped, and shared with whoever has them mapped already.
///
/// # Errors
/// The file is not a generator or cannot be used; what `body` returns otherwise.
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
    entries: Vec<Entry>,
    /// Positions in the KV cache.
    position: usize,
    /// Size of the vocabulary.
    tokens: i32,
    /// The last token that was taken; which ones they are makes no difference to the time.
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
        let reason = "it makes no context; the log says why".to_owned();
        let Some(context) = Context::new(model, &options) else { return Err(LlamaError::Measure { path, reason }) };
        let tokens = model.n_vocab().max(1);
        Ok(Self { context, path, entries: Vec::with_capacity(BATCH), position: 0, tokens, next: 0 })
    }

    /// One measurement, a fraction of a second: tokens per second.
    pub fn measure(&mut self, kind: Kind, threads: usize) -> Result<f64, LlamaError> {
        let (mut done, mut elapsed) = (0, Duration::ZERO);
        match kind {
            Kind::Batch => {
                if self.position + BATCH > CONTEXT {
                    self.begin_anew();
                }
                elapsed = self.compute(BATCH, 1, both(threads))?;
                done = BATCH;
            }
            Kind::Decode => {
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

    /// Decodes one token; the time it took. What must be computed before it (once in some hundred tokens) does not count.
    pub fn decode(&mut self, threads: usize) -> Result<Duration, LlamaError> {
        if self.position < PROMPT || self.position >= CONTEXT {
            self.begin_anew();
            while self.position < PROMPT {
                self.compute(BATCH, 1, both(threads))?;
            }
        }
        self.compute(1, 1, both(threads))
    }

    /// Computes `tokens` (9 at most) in one pass with the logits after each, as guesses are verified; the time it took.
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

    /// `wanted`: of how many tokens at the end the logits are wanted.
    fn compute(&mut self, n: usize, wanted: usize, threads: Threads) -> Result<Duration, LlamaError> {
        self.context.set_threads(threads);
        self.entries.clear();
        for i in 0..n {
            self.next = (self.next + 101) % self.tokens;
            let position = (self.position + i) as u32;
            self.entries.push(Entry { token: LlamaToken(self.next), position, sequence: 0, logits: i + wanted >= n });
        }
        let started = Instant::now();
        let computed = self.context.decode(&self.entries);
        computed.map_err(|error| LlamaError::Measure { path: self.path.clone(), reason: error.to_string() })?;
        // Whoever reads the logits waits until they are there.
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
    use crate::gguf::tests::model;

    #[test]
    fn both_kinds_are_measured_and_encoders_are_refused() {
        let speeds = with_model(&model("generator.gguf"), Placement::PROCESSOR, |bench| {
            let verified = bench.verify(4, both(1))?;
            assert!(verified > Duration::ZERO && bench.verify(1000, both(1))? > Duration::ZERO);
            Ok([bench.measure(Kind::Decode, 1)?, bench.measure(Kind::Batch, 2)?, bench.measure(Kind::Decode, 2)?])
        });
        assert!(speeds.expect("measured").iter().all(|speed| (0.05..1e6).contains(speed)));
        let error = with_model(&model("embedder.gguf"), Placement::PROCESSOR, |_| Ok(())).expect_err("an encoder");
        assert!(error.to_string().contains("bert"), "{error}");
    }

    /// Work whose instructions cross-targets/count.sh counts: passes of so many tokens, on one thread.
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
        bench.measure(Kind::Batch, 1).expect("measured");
        // SmolLM2 has 30 layers of some twenty nodes.
        assert!(pulse.step() > Some(300), "{:?}", pulse.step());
    }
}
