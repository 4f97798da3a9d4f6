//! A context for generation. `engine` needs a few calls of llama.cpp that `llama-cpp-2` does not offer together: threads that
//! change while it runs, states of sequences as bytes, bounds on outputs.
//!
//! Sequences are numbered from 0. All of them share one pool of cells, so that a copied prefix takes no memory.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::OnceLock;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::Pulse;
use super::pages::{Fresh, give_back_zeros};
use crate::tune::Threads;

/// How a context is made.
#[derive(Debug, Clone)]
pub struct ContextOptions {
    /// Cells of all sequences together, in tokens.
    pub cells: u32,
    /// Most tokens in one [`Context::decode`].
    pub batch: u32,
    /// Sequences that can be told apart.
    pub sequences: u32,
    /// Most entries of one batch that ask for logits.
    pub outputs: u32,
    /// Threads for one token, and for several.
    pub threads: Threads,
    /// Beats with every node that is computed.
    pub pulse: Pulse,
}

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry {
    /// The token.
    pub token: LlamaToken,
    /// Its position in its sequence.
    pub position: u32,
    /// Its sequence.
    pub sequence: u32,
    /// Whether the logits after it are wanted.
    pub logits: bool,
}

/// Why a batch was not computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeFailure {
    /// No cells are free; nothing has changed.
    #[error("no room in the KV cache")]
    NoRoom,
    /// A sequence cannot be truncated. Only models without prompt lookup fail so.
    #[error("llama.cpp cannot truncate a sequence")]
    NotCut,
    /// The caller gave it up; nothing has changed.
    #[error("given up")]
    GivenUp,
    /// Anything else, with llama.cpp's number.
    #[error("llama_decode returned {0}")]
    Failed(i32),
}

/// The answer for batches that are never given up.
const NEVER: *const dyn Fn() -> bool = &|| false;

/// User data of the abort callback. llama.cpp's calls also serve as signs of life.
struct Asked {
    /// Tells whether to give up the current batch.
    given_up: Cell<*const dyn Fn() -> bool>,
    pulse: Pulse,
}

/// llama.cpp's abort callback: the computing thread calls it between two nodes of a graph.
///
/// # Safety
/// `data` is a context's `asked`.
unsafe extern "C" fn is_given_up(data: *mut c_void) -> bool {
    // SAFETY: see above; the context lives while its batch is computed.
    let asked = unsafe { &*data.cast::<Asked>() };
    asked.pulse.beat();
    // SAFETY: the closure lives while the batch is computed, and only the computing thread calls it.
    unsafe { (*asked.given_up.get())() }
}

/// A llama.cpp context, used by the thread that made it.
pub struct Context<'model> {
    raw: NonNull<sys::llama_context>,
    memory: sys::llama_memory_t,
    vocabulary: usize,
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    counts: Vec<i32>,
    sequences: Vec<sys::llama_seq_id>,
    wanted: Vec<i8>,
    /// llama.cpp holds a pointer to it.
    fresh: Box<Fresh>,
    /// llama.cpp holds a pointer to it.
    asked: Box<Asked>,
    _model: PhantomData<&'model LlamaModel>,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made by llama_init_from_model, freed once.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

impl<'model> Context<'model> {
    /// Makes a context; `None` when llama.cpp cannot (its log says why).
    pub fn new(model: &'model LlamaModel, options: &ContextOptions) -> Option<Self> {
        // SAFETY: a plain struct of numbers.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = options.cells;
        params.n_batch = options.batch;
        params.n_ubatch = options.batch;
        params.n_seq_max = options.sequences;
        params.n_outputs_max = options.outputs;
        params.n_threads = options.threads.decode as i32;
        params.n_threads_batch = options.threads.batch as i32;
        // 1.35 times faster prefill on CPUs than without.
        params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
        params.kv_unified = true;
        // Sliding-window layers keep all positions too, so that sequences can be cut and copied.
        params.swa_full = true;
        params.no_perf = true;
        let mut fresh = Box::new(Fresh::new());
        params.cb_eval = Some(give_back_zeros);
        params.cb_eval_user_data = std::ptr::from_mut(&mut *fresh).cast();
        let asked = Box::new(Asked { given_up: Cell::new(NEVER), pulse: options.pulse.clone() });
        params.abort_callback = Some(is_given_up);
        params.abort_callback_data = std::ptr::from_ref(&*asked).cast_mut().cast();
        // SAFETY: the model outlives the context, by the lifetime; making a context does not change it.
        let raw = NonNull::new(unsafe { sys::llama_init_from_model(raw_model(model), params) })?;
        // SAFETY: the context lives.
        let memory = unsafe { sys::llama_get_memory(raw.as_ptr()) };
        let vocabulary = model.vocab().n_tokens().unsigned_abs() as usize;
        Some(Self {
            raw,
            memory,
            vocabulary,
            tokens: vec![],
            positions: vec![],
            counts: vec![],
            sequences: vec![],
            wanted: vec![],
            fresh,
            asked,
            _model: PhantomData,
        })
    }

    /// Computes a batch of at most `options.batch` entries. `given_up` is called some thousand times a second.
    ///
    /// # Errors
    /// There is no room, or the batch was given up, or llama.cpp failed. After a failure sequences may hold part of the batch.
    pub fn decode_unless(&mut self, entries: &[BatchEntry], given_up: &dyn Fn() -> bool) -> Result<(), DecodeFailure> {
        // The pointer is reset before the closure ends. Its type claims a static lifetime.
        #[allow(clippy::transmute_ptr_to_ptr, reason = "a cast does not change the lifetime")]
        // SAFETY: only the lifetime changes.
        let forever = unsafe { std::mem::transmute::<*const dyn Fn() -> bool, *const (dyn Fn() -> bool + 'static)>(given_up) };
        self.asked.given_up.set(forever);
        let result = self.decode(entries);
        self.asked.given_up.set(NEVER);
        result
    }

    /// Computes a batch of at most `options.batch` entries.
    ///
    /// # Errors
    /// There is no room, or llama.cpp failed. After a failure sequences may hold part of the batch.
    pub fn decode(&mut self, entries: &[BatchEntry]) -> Result<(), DecodeFailure> {
        self.tokens.clear();
        self.tokens.extend(entries.iter().map(|entry| entry.token.0));
        self.positions.clear();
        self.positions.extend(entries.iter().map(|entry| entry.position as sys::llama_pos));
        self.sequences.clear();
        self.sequences.extend(entries.iter().map(|entry| entry.sequence as sys::llama_seq_id));
        self.wanted.clear();
        self.wanted.extend(entries.iter().map(|entry| i8::from(entry.logits)));
        self.counts.clear();
        self.counts.resize(entries.len(), 1);
        let mut lists: Vec<*mut sys::llama_seq_id> = self.sequences.iter_mut().map(std::ptr::from_mut).collect();
        let batch = sys::llama_batch {
            n_tokens: entries.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: self.wanted.as_mut_ptr(),
        };
        // SAFETY: all arrays have n_tokens elements and live until the call returns.
        let result: c_int = unsafe { sys::llama_decode(self.raw.as_ptr(), batch) };
        self.fresh.wanted = false;
        match result {
            0 => Ok(()),
            1 => Err(DecodeFailure::NoRoom),
            2 => Err(DecodeFailure::GivenUp),
            other => Err(DecodeFailure::Failed(other)),
        }
    }

    /// The logits after entry `index` of the last batch, one per token of the vocabulary. The entry must have asked for them.
    pub fn logits(&self, index: usize) -> &[f32] {
        // SAFETY: llama.cpp returns a row of the vocabulary's length, or null if the entry asked for none.
        unsafe {
            let row = sys::llama_get_logits_ith(self.raw.as_ptr(), index as i32);
            if row.is_null() { &[] } else { std::slice::from_raw_parts(row, self.vocabulary) }
        }
    }

    /// Copies the first `upto` positions of `from` to sequence `to`; both share the cells.
    pub fn copy(&mut self, from: u32, to: u32, upto: usize) {
        // SAFETY: numbers only; both sequences are below n_seq_max.
        unsafe { sys::llama_memory_seq_cp(self.memory, from as i32, to as i32, 0, upto as i32) }
    }

    /// Drops everything of a sequence from position `from` on; `false` where the model cannot go back.
    pub fn truncate(&mut self, sequence: u32, from: usize) -> bool {
        // SAFETY: numbers only.
        unsafe { sys::llama_memory_seq_rm(self.memory, sequence as i32, from as i32, -1) }
    }

    /// Drops all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context lives.
        unsafe { sys::llama_memory_clear(self.memory, true) }
    }

    /// First position that a sequence holds; `None` when it is empty.
    pub fn first_position(&self, sequence: u32) -> Option<usize> {
        // SAFETY: numbers only.
        usize::try_from(unsafe { sys::llama_memory_seq_pos_min(self.memory, sequence as i32) }).ok()
    }

    /// Last position that a sequence holds; `None` when it is empty.
    pub fn last_position(&self, sequence: u32) -> Option<usize> {
        // SAFETY: numbers only.
        usize::try_from(unsafe { sys::llama_memory_seq_pos_max(self.memory, sequence as i32) }).ok()
    }

    /// The state of a sequence in llama.cpp's own format, after `head` bytes for the caller. `None` when llama.cpp cannot write
    /// it.
    pub fn state(&self, sequence: u32, head: usize) -> Option<Vec<u8>> {
        // SAFETY: the buffer has the size that llama.cpp asked for.
        unsafe {
            let size = sys::llama_state_seq_get_size(self.raw.as_ptr(), sequence as i32);
            let mut bytes = vec![0; head + size];
            let written = sys::llama_state_seq_get_data(self.raw.as_ptr(), bytes[head..].as_mut_ptr(), size, sequence as i32);
            (size > 0 && written == size).then_some(bytes)
        }
    }

    /// Replaces a sequence by a state of [`Self::state`]. `false` when the state does not fit; the sequence is then empty.
    ///
    /// The bytes must come from a context of the same model and build: llama.cpp's parser trusts them.
    pub fn restore(&mut self, sequence: u32, state: &[u8]) -> bool {
        // SAFETY: the buffer has the given length.
        let read = unsafe { sys::llama_state_seq_set_data(self.raw.as_ptr(), state.as_ptr(), state.len(), sequence as i32) };
        if read != state.len() {
            self.truncate(sequence, 0);
        }
        read == state.len()
    }

    /// Changes the threads from the next batch on.
    pub fn set_threads(&mut self, threads: Threads) {
        // SAFETY: numbers only.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), threads.decode as i32, threads.batch as i32) }
    }
}

/// Whether a model keeps a running state instead of keys and values for each position. Such a state cannot be truncated.
pub fn is_recurrent(model: &LlamaModel) -> bool {
    // SAFETY: the model lives.
    unsafe { sys::llama_model_is_recurrent(raw_model(model)) || sys::llama_model_is_hybrid(raw_model(model)) }
}

/// Longest sequence, in tokens, that [`Context::state`] holds completely. llama.cpp writes only the window of sliding-window
/// layers. `None`: there is no such limit.
pub fn longest_state(model: &LlamaModel) -> Option<usize> {
    // SAFETY: the model lives.
    let window = unsafe { sys::llama_model_n_swa(raw_model(model)) };
    usize::try_from(window).ok().filter(|window| *window > 0)
}

/// The part of a state's format that depends on neither model nor tokens: llama.cpp's build, and the instructions it uses.
pub fn build() -> &'static str {
    static BUILD: OnceLock<String> = OnceLock::new();
    BUILD.get_or_init(|| {
        // The code for this processor may have to be loaded first. Loading a model reports the failure.
        let _ = super::backend();
        // SAFETY: llama.cpp returns its own string, valid until the next call; this is the only call.
        let system = unsafe { std::ffi::CStr::from_ptr(sys::llama_print_system_info()) };
        format!("llama-cpp-sys-2 {BINDINGS}; {}", system.to_string_lossy())
    })
}

/// The version of `llama-cpp-sys-2` in Cargo.toml, in place of llama.cpp's own.
const BINDINGS: &str = "0.1.161";

fn raw_model(model: &LlamaModel) -> *mut sys::llama_model {
    const { assert!(size_of::<LlamaModel>() == size_of::<NonNull<sys::llama_model>>()) };
    // SAFETY: `LlamaModel` is a transparent wrapper of that pointer (the version is pinned, the size checked).
    unsafe { *std::ptr::from_ref(model).cast::<*mut sys::llama_model>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bindings_are_those_of_the_manifest() {
        let manifest = include_str!("../../../../Cargo.toml");
        assert!(manifest.contains(&format!("llama-cpp-sys-2 = {{ version = \"={BINDINGS}\"")));
    }
}
