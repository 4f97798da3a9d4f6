//! The boundary to llama.cpp that `engine` and `embed` share: one initialisation, its log, and the checks before a model is
//! loaded. Without the checks llama.cpp ends the process where this crate wants an error.

mod backends;
mod bench;
mod context;
mod gpu;
mod load;
mod log;
mod memory;
mod pages;
mod pulse;
pub mod team;

use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;

use crate::gguf::{Gguf, Value};
pub use backends::variant;
pub use bench::{Bench, with_model};
pub use context::{BatchEntry, Context, ContextOptions, DecodeFailure, build, is_recurrent, longest_state};
pub use gpu::GpuLayers;
pub use load::{Placed, Placement, Repack, Repacking, Weights, load, locked};
pub use memory::{Memory, available_memory};
pub use pulse::Pulse;
pub use team::{Waiting, set_waiting};

/// Why a model is not loaded, or llama.cpp not initialised.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The library did not initialise.
    #[error("llama.cpp cannot be initialised: {0}")]
    Backend(String),
    /// The file is larger than all memory the process may use. Mapped pages would be dropped and read again for every token.
    #[error(
        "model {path} is too large: {file_bytes} bytes, this process may use {total} bytes in all; \
         take a smaller model (`vademecum model list` shows those that fit), or raise the memory limit"
    )]
    FileTooLarge {
        /// The model file.
        path: String,
        /// Its size.
        file_bytes: u64,
        /// Memory the process may use.
        total: u64,
    },
    /// Metadata on which llama.cpp would end the process.
    #[error("model {path} is damaged: {what}; download or convert it again")]
    Damaged {
        /// The model file.
        path: String,
        /// The fault.
        what: String,
    },
    /// A model could not be measured.
    #[error("cannot measure {path}: {reason}; give a text-generation GGUF that `vademecum doctor` accepts")]
    Measure {
        /// The model file.
        path: String,
        /// The reason.
        reason: String,
    },
    /// Keys, values and buffers need more memory than is free.
    #[error(
        "model {path} does not fit: a context of {n_ctx} tokens needs {needed} bytes, {available} are available; \
         lower the context length, or free memory"
    )]
    ContextTooLarge {
        /// The model file.
        path: String,
        /// Tokens of context asked for.
        n_ctx: u32,
        /// Bytes of anonymous memory that the context needs.
        needed: u64,
        /// Bytes available now.
        available: u64,
    },
}

static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();

/// Initialises llama.cpp on the first call, for the life of the process, and returns the proof.
///
/// llama.cpp's messages go to the `log` crate with the target `llama.cpp`; its information level arrives as debug. A failed
/// assertion is logged as an error before the process ends. No debugger is started.
pub fn backend() -> Result<&'static LlamaBackend, LlamaError> {
    let backend = BACKEND.get_or_init(|| {
        log::redirect();
        backends::load()?;
        LlamaBackend::init().map_err(|error| format!("{error}; nothing else in this process may initialise it"))
    });
    backend.as_ref().map_err(|error| LlamaError::Backend(error.clone()))
}

/// Bytes of anonymous memory that a context takes: keys and values in f16, and the buffers of one forward pass.
///
/// The buffers are estimated from above as the activations of `n_ubatch` tokens: logits, feed-forward, and attention
/// scores where flash attention does not avoid them.
pub fn context_bytes(gguf: &Gguf, n_ctx: u32, n_ubatch: u32) -> u64 {
    let kv = gguf.kv_bytes_per_token().saturating_mul(u64::from(n_ctx));
    let width = gguf.embedding_length().unwrap_or(0);
    let inner = gguf.architecture_value("feed_forward_length").unwrap_or(width.saturating_mul(4));
    let vocabulary = match gguf.tensor("token_embd.weight").map(|tensor| tensor.dims.as_slice()) {
        Some([_, rows]) => *rows,
        _ => 0,
    };
    let numbers = width.saturating_mul(6).saturating_add(inner.saturating_mul(2)).saturating_add(vocabulary);
    kv.saturating_add(numbers.saturating_mul(4).saturating_mul(u64::from(n_ubatch)))
}

/// Layers that llama.cpp has room for (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u64 = 512;

/// Refuses metadata that make an assertion of llama.cpp fail; found by loading altered files.
fn check_metadata(gguf: &Gguf) -> Result<(), LlamaError> {
    let damaged = |what: String| LlamaError::Damaged { path: gguf.path().display().to_string(), what };
    let layers = gguf.layers().unwrap_or(0);
    if !(1..=MAX_LAYERS).contains(&layers) {
        return Err(damaged(format!("it has {layers} layers, 1 to {MAX_LAYERS} are possible")));
    }
    for key in ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"] {
        match gguf.value(&format!("{}.{key}", gguf.architecture())) {
            Some(Value::Float(epsilon)) if !(0.0..1.0).contains(&epsilon) => {
                return Err(damaged(format!("its {key} is {epsilon}, a small positive number is possible")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that the model fits the memory and that its metadata do not make llama.cpp abort. Returns the bytes of anonymous memory
/// that its context takes.
///
/// Weights are mapped, and the system can drop and reread their pages. So they need not fit the free memory, only the memory that
/// the process may use. The context is anonymous memory and must be free.
pub fn check_fits(gguf: &Gguf, n_ctx: u32, n_ubatch: u32, memory: &Memory) -> Result<u64, LlamaError> {
    check_metadata(gguf)?;
    let path = gguf.path().display().to_string();
    if gguf.file_bytes() > memory.total {
        return Err(LlamaError::FileTooLarge { path, file_bytes: gguf.file_bytes(), total: memory.total });
    }
    let needed = context_bytes(gguf, n_ctx, n_ubatch);
    if needed > memory.available {
        return Err(LlamaError::ContextTooLarge { path, n_ctx, needed, available: memory.available });
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::test_model as model;

    #[test]
    fn the_backend_initialises_once() {
        let first: *const LlamaBackend = backend().expect("initialises");
        assert!(std::ptr::eq(first, backend().expect("stays initialised")));
    }

    #[test]
    fn file_fits_the_limit_and_context_free_memory() {
        let gguf = Gguf::open(&model("generator.gguf")).expect("a model");
        let roomy = Memory { total: 1 << 30, available: 1 << 30 };
        // 30 layers, 3 KV heads of 64, keys and values, 2 bytes each: 23,040 bytes per token; 2048 tokens are 47 MB.
        let needed = check_fits(&gguf, 2048, 512, &roomy).expect("fits");
        assert!((47_000_000..200_000_000).contains(&needed), "{needed}");
        let limited = Memory { total: 50_000_000, ..roomy };
        let error = check_fits(&gguf, 2048, 512, &limited).expect_err("file above the limit");
        assert!(error.to_string().contains("98362432 bytes"), "{error}");
        // Mapped weights do not need free memory, only the context does.
        let full = Memory { available: needed, ..roomy };
        assert!(check_fits(&gguf, 2048, 512, &full).is_ok());
        let error = check_fits(&gguf, 8192, 512, &full).expect_err("context above what is free");
        assert!(matches!(error, LlamaError::ContextTooLarge { n_ctx: 8192, .. }), "{error}");
    }
}
