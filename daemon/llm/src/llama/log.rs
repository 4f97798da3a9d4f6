//! Passes llama.cpp's log to the `log` crate.

use std::ffi::{CStr, c_char, c_void};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use llama_cpp_sys_2 as sys;
use log::Level;

const TARGET: &str = "llama.cpp";
/// Longest line; longer ones are passed on in parts.
const MAX_LINE_BYTES: usize = 8192;

/// Sends llama.cpp's messages to the `log` crate from now on.
pub(super) fn redirect() {
    // SAFETY: both callbacks are plain functions that live as long as the process, take no user data and do not unwind.
    unsafe {
        sys::llama_log_set(Some(on_message), ptr::null_mut());
        sys::ggml_set_abort_callback(Some(on_abort));
    }
}

/// The line in progress; llama.cpp's threads share it, as they would share a terminal.
static LINE: Mutex<Line> = Mutex::new(Line::new());

unsafe extern "C" fn on_message(level: sys::ggml_log_level, text: *const c_char, _user_data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a string that ends in zero and stays valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A panic in a logger must not unwind into C.
    let _ = catch_unwind(|| {
        let complete = LINE.lock().unwrap_or_else(PoisonError::into_inner).push(level, &text);
        for (level, line) in complete {
            log::log!(target: TARGET, level, "{line}");
        }
    });
}

/// Called with the failed assertion just before `abort()`. It also keeps ggml from starting a debugger for a backtrace. Setting
/// `GGML_NO_BACKTRACE` instead would change the environment of a process with threads.
unsafe extern "C" fn on_abort(message: *const c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: ggml passes a string that ends in zero and stays valid during the call.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    let _ = catch_unwind(|| {
        log::error!(target: TARGET, "{message}");
        log::logger().flush();
    });
    // The process ends now: standard error shows the message even without a logger.
    eprintln!("llama.cpp: {message}");
}

/// Joins parts of lines: a message without a line break continues in the next one, whatever its level.
struct Line {
    level: Level,
    text: String,
}

impl Line {
    const fn new() -> Line {
        Line { level: Level::Debug, text: String::new() }
    }

    /// Takes a message; returns the lines it completes.
    fn push(&mut self, level: sys::ggml_log_level, text: &str) -> Vec<(Level, String)> {
        let mut complete = Vec::new();
        if level != sys::GGML_LOG_LEVEL_CONT {
            // A new message ends a line that was left open.
            self.finish(&mut complete);
            self.level = level_of(level);
        }
        let mut parts = text.split('\n').peekable();
        while let Some(part) = parts.next() {
            self.text.push_str(part);
            if parts.peek().is_some() || self.text.len() > MAX_LINE_BYTES {
                self.finish(&mut complete);
            }
        }
        complete
    }

    fn finish(&mut self, complete: &mut Vec<(Level, String)>) {
        let text = std::mem::take(&mut self.text);
        // Load progress comes as single dots.
        if !text.trim_matches(['.', ' ']).is_empty() {
            let harmless = HARMLESS.iter().any(|known| text.contains(known));
            let level = if harmless { Level::Debug } else { self.level };
            complete.push((level, text.trim_end().to_owned()));
        }
    }
}

/// Warnings and errors about intended behaviour.
const HARMLESS: [&str; 8] = [
    // A batch was given up on request; other failures have other numbers.
    "ggml_backend_sched_graph_compute_async failed with error 1",
    "failed to compute graph, compute status: 1",
    "removing memory module entries for seq_id",
    "failed to decode, ret = 2",
    // BERT has no end-of-sequence token of its own.
    "special_eos_id is not in special_eog_ids",
    // Our embedder pools the vectors.
    "model default pooling_type is",
    // The tokenizer of such an encoder is not llama.cpp's.
    " dummy tokens",
    // Weights that are not repacked stay pages of the file.
    "tensor overrides to CPU are used with mmap enabled",
];

/// llama.cpp's information (each tensor, each buffer) only helps to find faults.
fn level_of(level: sys::ggml_log_level) -> Level {
    match level {
        sys::GGML_LOG_LEVEL_ERROR => Level::Error,
        sys::GGML_LOG_LEVEL_WARN => Level::Warn,
        sys::GGML_LOG_LEVEL_DEBUG => Level::Trace,
        _ => Level::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_lines_are_joined() {
        let mut line = Line::new();
        assert!(line.push(sys::GGML_LOG_LEVEL_WARN, "loading ").is_empty());
        assert!(line.push(sys::GGML_LOG_LEVEL_CONT, "tensors").is_empty());
        let lines = line.push(sys::GGML_LOG_LEVEL_CONT, " done\n");
        assert_eq!(lines, [(Level::Warn, "loading tensors done".to_owned())]);
    }

    #[test]
    fn a_new_message_ends_an_open_line() {
        let mut line = Line::new();
        assert!(line.push(sys::GGML_LOG_LEVEL_INFO, "one").is_empty());
        let lines = line.push(sys::GGML_LOG_LEVEL_ERROR, "two\nthree\n");
        let expected = [(Level::Debug, "one"), (Level::Error, "two"), (Level::Error, "three")];
        assert_eq!(lines, expected.map(|(level, text)| (level, text.to_owned())));
        assert!(line.push(sys::GGML_LOG_LEVEL_CONT, ".....").is_empty());
        assert!(line.push(sys::GGML_LOG_LEVEL_CONT, "\n").is_empty());
    }
}
