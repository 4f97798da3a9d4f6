//! Readers of complex formats run in a process of their own, so that a hostile file costs only itself.
//!
//! The process is this same program, called as `vademecum read-document FORMAT`: the document lies on its standard input, the result comes on
//! its standard output as CBOR. Both are files in memory, so there is nothing to pump and nothing to wait for but
//! its end. It limits itself before it reads a byte: memory, processor time, time on the clock, size of what it writes, files,
//! processes; it has no file open but these and is killed with whoever started it. A program that never said
//! [`use_own_process`] (a test, a library's user) reads in its own process, where only panics are caught.

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

use super::{
    IngestError,
    formats::{Fault, Format, Parsed, parse},
};

/// Address space of the process, the program itself included: the largest manual tried takes a quarter of it, and a board
/// with 1 GB survives it.
const MEMORY_BYTES: u64 = 512 << 20;

/// Processor time: a thousand pages take a second on a desk and about ten on a small board.
const CPU_SECONDS: u64 = 120;

/// Time on the clock, should the process ever sleep or be starved.
const WALL_SECONDS: u32 = 600;

/// Most bytes of a result.
const MAX_RESULT_BYTES: u64 = 128 << 20;

/// Most bytes of what it said on standard error that are looked at.
const MAX_WORDS_BYTES: u64 = 4096;

/// The first argument of the reading process. No command of the user's: it is looked for before they are.
const COMMAND: &str = "read-document";

static OWN_PROCESS: AtomicBool = AtomicBool::new(false);

/// Says that this program understands the command, so that documents can be read in processes of their own.
pub(crate) fn use_own_process() {
    OWN_PROCESS.store(true, Ordering::Relaxed);
}

/// This program, if it understands its hidden commands.
pub(crate) fn own_program() -> Option<std::path::PathBuf> {
    OWN_PROCESS.load(Ordering::Relaxed).then(|| "/proc/self/exe".into())
}

/// The format to read, if this process was started to do so.
pub(crate) fn asked_for() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == COMMAND).then(|| arguments.next())?
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Parsed(Parsed),
    Fault(Fault),
    Panicked(String),
}

/// Reads a document of a complex format. `id` names it in errors.
pub(super) fn read(id: &str, format: Format, bytes: &[u8]) -> Result<Parsed, IngestError> {
    if !OWN_PROCESS.load(Ordering::Relaxed) {
        return parse(format, bytes.to_vec()).map_err(|fault| refused(id, fault));
    }
    match ask(format, bytes).map_err(|error| IngestError::NoReader { id: id.into(), reason: error.to_string() })? {
        Ok(Answer::Parsed(parsed)) => Ok(parsed),
        Ok(Answer::Fault(fault)) => Err(refused(id, fault)),
        Ok(Answer::Panicked(message)) => Err(IngestError::ReaderFailed { id: id.into(), message }),
        Err(end) => Err(end.error(id)),
    }
}

/// The error that a fault means to the owner of the document.
pub(super) fn refused(id: &str, fault: Fault) -> IngestError {
    let id = id.to_owned();
    match fault {
        Fault::Damaged(reason) => IngestError::Damaged { id, reason },
        Fault::DamagedPdf(reason) => IngestError::DamagedPdf { id, reason },
        #[cfg(not(feature = "pdf"))]
        Fault::NotBuilt(format) => IngestError::NotBuilt { id, format: format.name() },
        Fault::Locked => IngestError::Locked { id },
        Fault::NoText { pages } => IngestError::NoText { id, pages },
        Fault::TooSlow(limit) => IngestError::TooSlow { id, seconds: limit.as_secs() },
    }
}

/// How a reading process ended that gave no answer.
struct End {
    status: ExitStatus,
    words: String,
}

impl End {
    fn error(&self, id: &str) -> IngestError {
        let id = id.to_owned();
        let signal = self.status.signal().and_then(Signal::from_named_raw);
        match signal {
            Some(Signal::XCPU) => IngestError::TooSlow { id, seconds: CPU_SECONDS },
            Some(Signal::ALARM) => IngestError::TooSlow { id, seconds: WALL_SECONDS.into() },
            Some(Signal::XFSZ) => IngestError::TooMuchText { id, limit: MAX_RESULT_BYTES },
            // Rust's allocator says so and aborts.
            Some(Signal::ABORT) if self.words.contains("memory allocation") => {
                IngestError::TooMuchMemory { id, limit: MEMORY_BYTES }
            }
            // From outside; it is the first to go (see `confine`).
            Some(Signal::KILL) => IngestError::NoMemory { id },
            _ => {
                let words = self.words.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
                IngestError::ReaderFailed { id, message: format!("{}: {words}", self.status) }
            }
        }
    }
}

/// Starts a reading process and waits for its answer. The outer error is the system's.
fn ask(format: Format, bytes: &[u8]) -> std::io::Result<Result<Answer, End>> {
    let memory_file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
    let mut document = memory_file("document")?;
    document.write_all(bytes)?;
    document.rewind()?;
    let (mut result, mut words) = (memory_file("result")?, memory_file("words")?);
    let status = Command::new("/proc/self/exe")
        .arg0("vademecum")
        .args([COMMAND, format.name()])
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

/// The reading process: reads the document on standard input and writes the answer to standard output.
pub(crate) fn run(format: &str) -> Result<(), String> {
    confine().map_err(|error| format!("cannot limit itself: {error}"))?;
    let format = Format::from_name(format).ok_or("no such format")?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let answer = match std::panic::catch_unwind(|| parse(format, bytes)) {
        Ok(Ok(parsed)) => Answer::Parsed(parsed),
        Ok(Err(fault)) => Answer::Fault(fault),
        Err(panic) => Answer::Panicked(crate::panic_message(panic.as_ref())),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    ciborium::into_writer(&answer, &mut out).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())
}

/// Limits this process, for good.
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
        // One second more before the kernel kills: SIGXCPU comes at the soft limit and says why.
        let hard = if resource == Resource::Cpu { limit + 1 } else { limit };
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(hard) })?;
    }
    // Should the whole board run out of memory, this is what to kill. Not every container lets a process say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // SAFETY: neither call touches memory; no other thread runs, and nothing here uses a file beyond the first three. Libraries
    // written in C leave theirs open to children. An old kernel knows no close_range; the files then stay open, unused.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
        libc::alarm(WALL_SECONDS);
    }
    Ok(())
}
