//! Programs that a benchmark starts, and what the system says of them.

use crate::Result;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Clock ticks per second in `/proc/<pid>/stat` (`USER_HZ`, 100 on every Linux architecture Rust runs on).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program; it is ended when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
}

/// Resident memory in kB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Of its own (`RssAnon`).
    pub anonymous_kb: u64,
    /// Mapped files, which the kernel can drop and read again (`RssFile`).
    pub file_kb: u64,
}

impl Memory {
    /// Of the process with that number.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of_process(process: u32) -> Result<Self> {
        Ok(Self::of(&fs::read_to_string(format!("/proc/{process}/status"))?))
    }

    fn of(status: &str) -> Self {
        let kb = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self { anonymous_kb: kb("RssAnon"), file_kb: kb("RssFile") }
    }
}

impl Program {
    /// Starts `command` with its words in `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        Ok(Self { child: child.map_err(|e| format!("cannot start {name}: {e}"))?, name })
    }

    /// Seconds of CPU time used so far, all threads, user and system, in steps of 10 ms.
    ///
    /// # Errors
    /// The program has ended.
    pub fn cpu(&self) -> Result<f64> {
        let stat = self.proc("stat")?;
        // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
    }

    /// Resident memory now.
    ///
    /// # Errors
    /// The program has ended.
    pub fn memory(&self) -> Result<Memory> {
        Ok(Memory::of(&self.proc("status")?))
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(path).map_err(|e| format!("{} has ended: {e}", self.name).into())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM) and waits, at most 15 s.
    ///
    /// # Errors
    /// It does not end, or ends with an error.
    pub fn stop(mut self) -> Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", self.name).into()) };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{} does not end", self.name).into())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder that goes when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in the system's temporary folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    /// Makes one in `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn within(parent: &Path) -> Result<Self> {
        let dir = parent.join(format!("vademecum-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Starts mosquitto on a free port of the loopback address; returns it with the port.
///
/// # Errors
/// mosquitto is missing or does not listen.
pub fn mosquitto(dir: &Path) -> Result<(Program, u16)> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = dir.join("mosquitto.conf");
    fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"))?;
    let mut broker = Program::start(Command::new("mosquitto").arg("-c").arg(&config), &dir.join("mosquitto.log"))
        .map_err(|e| format!("{e}; `make setup` installs it"))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline || !broker.is_running() {
            return Err(format!("mosquitto does not listen: {}", fs::read_to_string(dir.join("mosquitto.log"))?).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((broker, port))
}
