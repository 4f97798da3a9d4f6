//! Readers of complex formats run in a child process, so that a hostile file costs only itself.
//!
//! The child is this same program, called as `vademecum read-document FORMAT`. Standard input is the document, standard output
//! the result in CBOR. Both are files in memory: the parent pumps nothing and only waits for the child's end. The child limits
//! itself before it reads a byte: memory, processor time, wall-clock time, size of output, files, processes. It has no other file
//! open and is killed with its parent. Without [`use_own_process`], as in tests and when the crate is used as a library, readers
//! run in the caller's process, where only panics are caught.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
};
use serde::{Deserialize, Serialize};

use crate::error::{ReadError, refused};
use crate::formats::{Fault, Format, Parsed};

/// Address space of the child, the program itself included. The largest manual tried takes a quarter, and a board with 1 GB
/// survives it.
const MEMORY_BYTES: u64 = 512 << 20;

/// Processor time: a thousand pages take a second on a desktop and about ten on a small board.
const CPU_SECONDS: u64 = 120;

/// Wall-clock time, in case the child sleeps or starves.
const WALL_SECONDS: u32 = 600;

/// Most bytes of a result.
const MAX_RESULT_BYTES: u64 = 128 << 20;

/// Most bytes of its standard error that are read.
const MAX_WORDS_BYTES: u64 = 4096;

/// The first argument of the child: a hidden command, checked before the user's commands.
const COMMAND: &str = "read-document";

static OWN_PROCESS: AtomicBool = AtomicBool::new(false);

/// Declares that this program understands the hidden command, so that readers run in child processes.
pub fn use_own_process() {
    OWN_PROCESS.store(true, Ordering::Relaxed);
}

/// This program, if it understands its hidden commands.
pub fn own_program() -> Option<std::path::PathBuf> {
    OWN_PROCESS.load(Ordering::Relaxed).then(|| "/proc/self/exe".into())
}

/// The format to read, if this process is such a child.
pub fn asked_for() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == COMMAND).then(|| arguments.next())?
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Parsed(Parsed),
    Fault(Fault),
    Panicked(String),
}

/// Reads a document of a complex format.
pub(crate) fn read(format: &Format, bytes: &[u8]) -> Result<Parsed, ReadError> {
    if !OWN_PROCESS.load(Ordering::Relaxed) {
        return format.parse(bytes.to_vec()).map_err(refused);
    }
    match ask(format, bytes).map_err(|error| ReadError::NoReader { reason: error.to_string() })? {
        Ok(Answer::Parsed(parsed)) => Ok(parsed),
        Ok(Answer::Fault(fault)) => Err(refused(fault)),
        Ok(Answer::Panicked(message)) => Err(ReadError::ReaderFailed { message }),
        Err(end) => Err(end.error()),
    }
}

/// The end of a child without an answer.
struct End {
    status: ExitStatus,
    words: String,
}

impl End {
    fn error(&self) -> ReadError {
        let signal = self.status.signal().and_then(Signal::from_named_raw);
        match signal {
            Some(Signal::XCPU) => ReadError::TooSlow { seconds: CPU_SECONDS },
            Some(Signal::ALARM) => ReadError::TooSlow { seconds: WALL_SECONDS.into() },
            Some(Signal::XFSZ) => ReadError::TooMuchText { limit: MAX_RESULT_BYTES },
            // Rust's allocator says so and aborts.
            Some(Signal::ABORT) if self.words.contains("memory allocation") => ReadError::TooMuchMemory { limit: MEMORY_BYTES },
            // Killed from outside: the child is the kernel's first choice (see `confine`).
            Some(Signal::KILL) => ReadError::NoMemory,
            _ => {
                let words = self.words.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
                ReadError::ReaderFailed { message: format!("{}: {words}", self.status) }
            }
        }
    }
}

/// Starts a child and waits for its answer. The outer error is the system's.
fn ask(format: &Format, bytes: &[u8]) -> std::io::Result<Result<Answer, End>> {
    let memory_file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
    let mut document = memory_file("document")?;
    document.write_all(bytes)?;
    document.rewind()?;
    let (mut result, mut words) = (memory_file("result")?, memory_file("words")?);
    let status = Command::new("/proc/self/exe")
        .arg0("vademecum")
        .args([COMMAND, &format.name.to_ascii_lowercase()])
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(document))
        .stdout(Stdio::from(result.try_clone()?))
        .stderr(Stdio::from(words.try_clone()?))
        .status()?;
    result.rewind()?;
    if status.success()
        && let Ok(answer) = ciborium::from_reader(std::io::BufReader::new(result.take(MAX_RESULT_BYTES)))
    {
        return Ok(Ok(answer));
    }
    words.rewind()?;
    let mut said = Vec::new();
    words.take(MAX_WORDS_BYTES).read_to_end(&mut said)?;
    Ok(Err(End { status, words: String::from_utf8_lossy(&said).into_owned() }))
}

/// The child: reads the document from standard input and writes the answer to standard output.
pub fn run(format: &str) -> Result<(), String> {
    confine().map_err(|error| format!("cannot limit itself: {error}"))?;
    let format = Format::named(format).ok_or("no such format")?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let answer = match std::panic::catch_unwind(|| format.parse(bytes)) {
        Ok(Ok(parsed)) => Answer::Parsed(parsed),
        Ok(Err(fault)) => Answer::Fault(fault),
        Err(panic) => Answer::Panicked(crate::panic_message(panic.as_ref())),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    ciborium::into_writer(&answer, &mut out).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())
}

/// Limits this process, for good.
#[allow(unsafe_code, reason = "close_range and alarm have no safe wrapper")]
fn confine() -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    let limits = [
        (Resource::As, MEMORY_BYTES),
        (Resource::Cpu, CPU_SECONDS),
        (Resource::Fsize, MAX_RESULT_BYTES),
        (Resource::Core, 0),
        (Resource::Nofile, 16),
        (Resource::Nproc, 0),
    ];
    for (resource, limit) in limits {
        // The kernel kills one second later: SIGXCPU at the soft limit tells the reason.
        let hard = if resource == Resource::Cpu { limit + 1 } else { limit };
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(hard) })?;
    }
    // The kernel kills this process first if the board runs out of memory. Not every container allows this.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // SAFETY: neither call touches memory; no other thread runs, and nothing here uses a file beyond the first three. C libraries
    // leave their files open to children. An old kernel has no close_range; the files then stay open, unused.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
        libc::alarm(WALL_SECONDS);
    }
    Ok(())
}
