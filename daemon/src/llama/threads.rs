//! Changing the threads of a context between two calls of llama.cpp, and measuring what a number of threads brings.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::LlamaError;
use crate::gguf::{Gguf, Kind as ModelKind};
use crate::tune::{Kind, Threads};

/// Sets the threads of the next calls of `decode`: for single tokens, and for batches. Takes a microsecond.
///
/// Returns whether it could be done; if not, the context keeps the threads it was made with.
pub fn set_threads(ctx: &mut LlamaContext<'_>, threads: Threads) -> bool {
    let Some(raw) = raw(ctx) else { return false };
    let count = |n: usize| n.clamp(1, MOST_THREADS) as i32;
    // SAFETY: `raw` is this context, borrowed exclusively here; the call stores two numbers in it.
    unsafe { sys::llama_set_n_threads(raw, count(threads.decode), count(threads.batch)) };
    true
}

/// The pointer inside: llama-cpp-2 wraps neither the call nor the pointer, but its debug form, which the pinned version
/// derives, tells the address.
fn raw(ctx: &LlamaContext<'_>) -> Option<*mut sys::llama_context> {
    let text = format!("{ctx:?}");
    let digits = text.split_once("context: 0x")?.1;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit())?;
    let address = usize::from_str_radix(&digits[..end], 16).ok().filter(|address| *address != 0)?;
    Some(std::ptr::with_exposed_provenance_mut(address))
}

/// ggml's own bound, `GGML_MAX_N_THREADS`.
const MOST_THREADS: usize = 512;

/// Tokens of one measured batch.
const BATCH: usize = 32;
/// Tokens before the first one that is decoded: attention over some context is part of the work.
const PROMPT: usize = 96;
/// Positions of the context: prompt and what is decoded after it, before both begin anew.
const CONTEXT: usize = 256;
/// One measurement of decoding ends after this many tokens, or after [`LONGEST`] and at least two tokens.
const TOKENS: usize = 12;
const LONGEST: Duration = Duration::from_millis(250);

/// Loads the generator at `path` with a small context of its own and hands `body` the means to measure it. The context needs
/// a few megabytes; the weights are mapped, and shared with whoever has them mapped already.
///
/// # Errors
/// The file is not a generator or cannot be used; what `body` returns otherwise.
pub fn with_model<T>(path: &Path, body: impl FnOnce(&mut Bench<'_>) -> Result<T, LlamaError>) -> Result<T, LlamaError> {
    let unusable = |reason: String| LlamaError::Measure { path: path.display().to_string(), reason };
    let gguf = Gguf::open(path).map_err(|error| unusable(error.to_string()))?;
    if gguf.kind() != ModelKind::Generator {
        return Err(unusable(format!("its architecture is `{}`, not one that generates text", gguf.architecture())));
    }
    super::check_fits(&gguf, CONTEXT as u32, BATCH as u32, &super::available_memory())?;
    let backend = super::backend()?;
    let model = LlamaModel::load_from_file(backend, path, &LlamaModelParams::default().with_n_gpu_layers(0))
        .map_err(|error| unusable(error.to_string()))?;
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(CONTEXT as u32))
        .with_n_batch(BATCH as u32)
        .with_n_ubatch(BATCH as u32)
        .with_flash_attention_policy(sys::LLAMA_FLASH_ATTN_TYPE_ENABLED);
    let ctx = model.new_context(backend, params).map_err(|error| unusable(error.to_string()))?;
    let tokens = model.n_vocab().max(1);
    let path = path.display().to_string();
    body(&mut Bench { ctx, path, batch: LlamaBatch::new(BATCH, 1), position: 0, tokens, next: 0 })
}

/// A generator to measure.
pub struct Bench<'model> {
    ctx: LlamaContext<'model>,
    path: String,
    batch: LlamaBatch<'static>,
    /// Positions in the KV cache.
    position: usize,
    /// Size of the vocabulary.
    tokens: i32,
    /// The last token that was taken; which ones they are makes no difference to the time.
    next: i32,
}

impl Bench<'_> {
    /// One measurement, a fraction of a second: tokens per second.
    pub fn measure(&mut self, kind: Kind, threads: usize) -> Result<f64, LlamaError> {
        let (mut done, mut elapsed) = (0, Duration::ZERO);
        match kind {
            Kind::Batch => {
                if self.position + BATCH > CONTEXT {
                    self.begin_anew();
                }
                elapsed = self.compute(BATCH, threads)?;
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
                self.compute(BATCH, threads)?;
            }
        }
        self.compute(1, threads)
    }

    fn begin_anew(&mut self) {
        self.ctx.clear_kv_cache();
        self.position = 0;
    }

    fn compute(&mut self, n: usize, threads: usize) -> Result<Duration, LlamaError> {
        let failed = |reason: String| LlamaError::Measure { path: self.path.clone(), reason };
        if !set_threads(&mut self.ctx, Threads { decode: threads, batch: threads }) {
            return Err(failed("this version of llama-cpp-2 hides its context".into()));
        }
        self.batch.clear();
        for i in 0..n {
            self.next = (self.next + 101) % self.tokens;
            let (token, position) = (LlamaToken(self.next), (self.position + i) as i32);
            self.batch.add(token, position, &[0], i + 1 == n).map_err(|error| failed(error.to_string()))?;
        }
        let started = Instant::now();
        self.ctx.decode(&mut self.batch).map_err(|error| failed(error.to_string()))?;
        self.ctx.synchronize();
        self.position += n;
        Ok(started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::tests::model;

    #[test]
    fn the_threads_of_a_context_can_be_changed() {
        let threads = with_model(&model("generator.gguf"), |bench| {
            let mut seen = Vec::new();
            for threads in [1, 3, 2, 1] {
                bench.decode(threads)?;
                let raw = raw(&bench.ctx).expect("the address");
                // SAFETY: it is the context's, which lives; both calls only read.
                seen.push(unsafe { (sys::llama_n_threads(raw), sys::llama_n_threads_batch(raw), sys::llama_n_ctx(raw)) });
            }
            Ok(seen)
        });
        assert_eq!(threads.expect("measured"), [1, 3, 2, 1].map(|n| (n, n, CONTEXT as u32)));
    }

    #[test]
    fn both_kinds_are_measured_and_encoders_are_refused() {
        let speeds = with_model(&model("generator.gguf"), |bench| {
            Ok([bench.measure(Kind::Decode, 1)?, bench.measure(Kind::Batch, 2)?, bench.measure(Kind::Decode, 2)?])
        });
        assert!(speeds.expect("measured").iter().all(|speed| (0.05..1e6).contains(speed)));
        let error = with_model(&model("embedder.gguf"), |_| Ok(())).expect_err("an encoder");
        assert!(error.to_string().contains("bert"), "{error}");
    }
}
