//! Programs that a benchmark starts, and what the system says of them.

use crate::Result;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

    /// Both kinds.
    pub fn resident_kb(self) -> u64 {
        self.anonymous_kb + self.file_kb
    }

    fn of(status: &str) -> Self {
        let kb = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self { anonymous_kb: kb("RssAnon"), file_kb: kb("RssFile") }
    }
}

impl std::ops::Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { anonymous_kb: self.anonymous_kb + other.anonymous_kb, file_kb: self.file_kb + other.file_kb }
    }
}

/// The processor time of another process from its own clock, which counts nanoseconds; `/proc/<pid>/stat` counts steps of 10 ms.
fn cpu_of_process(process: u32) -> std::io::Result<f64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both calls write into the value that they are given.
    let failed = unsafe {
        let failed = libc::clock_getcpuclockid(process as libc::pid_t, &raw mut clock);
        if failed == 0 && libc::clock_gettime(clock, &raw mut time) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        failed
    };
    if failed == 0 { Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9) } else { Err(std::io::Error::from_raw_os_error(failed)) }
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

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of CPU time used so far, all threads, user and system.
    ///
    /// # Errors
    /// The program has ended.
    pub fn cpu(&self) -> Result<f64> {
        cpu_of_process(self.id()).map_err(|e| format!("{} has ended: {e}", self.name).into())
    }

    /// Resident memory now.
    ///
    /// # Errors
    /// The program has ended.
    pub fn memory(&self) -> Result<Memory> {
        Memory::of_process(self.id()).map_err(|e| format!("{} has ended: {e}", self.name).into())
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

/// A port of the loopback address that nobody listens on now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts mosquitto on a free port of the loopback address; returns it with the port.
///
/// # Errors
/// mosquitto is missing or does not listen.
pub fn mosquitto(dir: &Path) -> Result<(Program, u16)> {
    let port = free_port()?;
    let config = dir.join("mosquitto.conf");
    // Without `set_tcp_nodelay` it holds a message back until the one before is acknowledged.
    fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_another_process_is_counted_finely() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell");
        let begun = Instant::now();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|cpu| *cpu < 0.05) && begun.elapsed() < Duration::from_secs(20) {
            seen.push(cpu_of_process(child.id()).expect("it runs"));
        }
        child.kill().expect("it runs");
        child.wait().expect("it has ended");
        seen.dedup();
        assert!(seen.is_sorted() && seen.len() > 10, "{seen:?}");
        assert!(cpu_of_process(child.id()).is_err(), "it has ended");
    }
}
