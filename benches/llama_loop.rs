//! What llama-bench does, with the llama.cpp that the daemon is built with: reads a prompt of random tokens, and decodes random
//! tokens one by one. `speed` starts it beside the daemon's own engine.
//!
//! It links llama.cpp and nothing of the daemon, so that its threads are those of OpenMP's run-time library, waiting as that has it.
//! Requests come one JSON object a line, `{"prompt": N, "depth": N, "generate": N, "threads": N}`: tokens per second of a
//! prompt of so many tokens, and of so many tokens after `depth` others. Settings as llama-bench's: a context as long
//! as needed, batches of 2048 in steps of 512, flash attention where llama.cpp would use it.

use llama_cpp_sys_2 as sys;
use serde_json::{Value, json};
use std::ffi::CString;
use std::io::BufRead as _;
use std::ptr::NonNull;
use std::time::Instant;
use vademecum_benches::Result;

const BATCH: usize = 2048;
const STEP: u32 = 512;

fn main() {
    if let Err(error) = run() {
        eprintln!("llama-loop: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: llama-loop MODEL.gguf")?;
    let model = Model::load(&path)?;
    for line in std::io::stdin().lock().lines() {
        let answer = model.measure(&serde_json::from_str(&line?)?).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        println!("{answer}");
    }
    Ok(())
}

struct Model {
    raw: NonNull<sys::llama_model>,
    tokens: i32,
}

impl Model {
    fn load(path: &str) -> Result<Self> {
        let path = CString::new(path)?;
        // SAFETY: the callback takes what llama.cpp passes and does nothing; the path ends with a zero and lives until the call returns.
        let raw = unsafe {
            sys::llama_log_set(Some(silent), std::ptr::null_mut());
            sys::llama_backend_init();
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            sys::llama_model_load_from_file(path.as_ptr(), params)
        };
        let raw = NonNull::new(raw).ok_or("llama.cpp does not load the model")?;
        // SAFETY: the model lives as long as this program.
        let tokens = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(raw.as_ptr())) };
        Ok(Self { raw, tokens: tokens.max(1) })
    }

    fn measure(&self, request: &Value) -> Result<Value> {
        let number = |key: &str| request[key].as_u64().unwrap_or(0) as usize;
        let (prompt, depth, generate, threads) =
            (number("prompt"), number("depth"), number("generate"), number("threads").max(1));
        let mut context = Context::new(self, depth.max(prompt) + generate + 1, threads)?;
        // As llama-bench does: a first run warms up.
        context.read(depth.max(prompt))?;
        context.generate(1)?;
        context.clear();
        let prompt_per_s = timed(prompt, || context.read(prompt))?;
        context.read(depth.saturating_sub(prompt))?;
        let generate_per_s = timed(generate, || context.generate(generate))?;
        Ok(json!({ "prompt_per_s": prompt_per_s, "generate_per_s": generate_per_s }))
    }
}

/// Tokens per second.
fn timed(tokens: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

struct Context<'model> {
    raw: NonNull<sys::llama_context>,
    model: &'model Model,
    next: i32,
}

impl<'model> Context<'model> {
    fn new(model: &'model Model, tokens: usize, threads: usize) -> Result<Self> {
        // SAFETY: a plain struct of numbers; the model outlives the context.
        let raw = unsafe {
            let mut params = sys::llama_context_default_params();
            params.n_ctx = tokens as u32;
            params.n_batch = BATCH as u32;
            params.n_ubatch = STEP;
            params.n_threads = threads as i32;
            params.n_threads_batch = threads as i32;
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_AUTO;
            params.swa_full = false;
            sys::llama_init_from_model(model.raw.as_ptr(), params)
        };
        Ok(Self { raw: NonNull::new(raw).ok_or("llama.cpp makes no context")?, model, next: 1 })
    }

    fn read(&mut self, tokens: usize) -> Result<()> {
        let mut left = tokens;
        while left > 0 {
            let n = left.min(BATCH);
            let tokens: Vec<i32> = (0..n).map(|_| self.token()).collect();
            self.decode(tokens)?;
            left -= n;
        }
        self.synchronize();
        Ok(())
    }

    fn generate(&mut self, tokens: usize) -> Result<()> {
        for _ in 0..tokens {
            let token = self.token();
            self.decode(vec![token])?;
            self.synchronize();
        }
        Ok(())
    }

    /// Which token it is makes no difference to the time.
    fn token(&mut self) -> i32 {
        self.next = (self.next + 101) % self.model.tokens;
        self.next
    }

    fn decode(&mut self, mut tokens: Vec<i32>) -> Result<()> {
        // SAFETY: the batch points into `tokens`, which lives until the call returns.
        let result = unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            sys::llama_decode(self.raw.as_ptr(), batch)
        };
        if result == 0 { Ok(()) } else { Err(format!("llama_decode returned {result}").into()) }
    }

    fn synchronize(&mut self) {
        // SAFETY: the context lives.
        unsafe { sys::llama_synchronize(self.raw.as_ptr()) }
    }

    fn clear(&mut self) {
        // SAFETY: the context lives, and with it its memory.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw.as_ptr()), false) }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: made by llama_init_from_model, freed once.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
    }
}

unsafe extern "C" fn silent(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}
