//! Opening sled under watch. Sled 0.34 answers some damage with an error, some with a panic, some with neither. It can loop,
//! ask for all memory there is, or open and lose unreadable records.
//!
//! After a closing in order (see `take_marker`) a thread opens the database, with a time limit and panics caught. After any
//! other end a process of its own opens it first and reads every record: its crash costs nobody else anything. The process is
//! this program again, called as `vademecum probe-store DIR`, as the readers of PDF are.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{StoreError, StoreOptions};

/// The first argument of the probing process. Commands are parsed later, so it is no command of the user's.
const COMMAND: &str = "probe-store";
/// Exit code of the probing process when it has found damage and says so.
const DAMAGED: u8 = 3;
/// The file that marks a database as closed in order.
const MARKER: &str = "closed";
/// The file that marks the database as damaged.
const VERDICT: &str = "damaged";
/// The name of a database that was set aside, before the time.
const ASIDE: &str = "store.damaged-";
/// Most databases that are kept aside.
const KEPT_ASIDE: usize = 3;
/// Time that opening may take at any size, and the bytes that allow a second more: a tenth of a slow card's reading speed.
const OPENING: Duration = Duration::from_secs(10);
const BYTES_A_SECOND: u64 = 2 << 20;
/// Free space without which the database is not opened again: sled writes segments of half a megabyte.
const ROOM: u64 = 4 << 20;
/// Time that closing may take.
pub(super) const CLOSING: Duration = Duration::from_secs(10);
/// Time to wait for another handle of this process on the database, such as a search's.
const LET_GO: Duration = Duration::from_secs(5);

/// An open database.
#[derive(Debug)]
pub(super) struct Database {
    // Fields drop in this order.
    pub(super) tree: sled::Tree,
    database: sled::Db,
}

impl Database {
    /// Opens the database below `dir`, making it when it is not there, and reads its first records.
    pub(super) fn open(dir: &Path, options: &StoreOptions) -> Result<Database, StoreError> {
        let (within, options) = (dir.to_owned(), options.clone());
        let begun = Instant::now();
        loop {
            let (path, options) = (within.clone(), options.clone());
            match watched(dir, time_limit(dir), move || Database::open_unwatched(&path, &options)) {
                Err(StoreError::Io { source, .. }) if is_held(&source) && begun.elapsed() < LET_GO => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => return opened,
            }
        }
    }

    fn open_unwatched(dir: &Path, options: &StoreOptions) -> Result<Database, StoreError> {
        let database = sled::Config::new()
            .path(dir.join("db"))
            .cache_capacity(options.cache_bytes)
            .flush_every_ms(options.flush_every_ms)
            .mode(sled::Mode::LowSpace)
            .open()
            .map_err(|error| StoreError::opening(dir, error))?;
        let tree = database.open_tree("library").map_err(|error| StoreError::opening(dir, error))?;
        for entry in tree.scan_prefix(super::keys::DOCUMENTS) {
            entry.map_err(|error| StoreError::opening(dir, error))?;
        }
        Ok(Database { tree, database })
    }

    /// Closes it, giving up after [`CLOSING`].
    pub(super) fn close(self, dir: &Path) -> Result<(), StoreError> {
        let within = dir.to_owned();
        watched(dir, CLOSING, move || {
            let flushed = self.database.flush().map_err(|error| StoreError::database(&within, error));
            drop(self);
            flushed.map(|_| ())
        })
    }
}

/// Sled's own lock on its file.
fn is_held(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// Does `work` in a thread; a panic and more than `limit` are damage. A thread that does not end is left behind.
fn watched<T: Send + 'static>(
    dir: &Path,
    limit: Duration,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = mpsc::channel();
    let done = move || {
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
    };
    std::thread::Builder::new().name("store".into()).spawn(done).map_err(StoreError::io("start a thread for", dir))?;
    let detail = match receiver.recv_timeout(limit) {
        Ok(Ok(result)) => return result,
        Ok(Err(panic)) => read::panic_message(panic.as_ref()),
        Err(RecvTimeoutError::Timeout) => format!("sled did not answer within {} s", limit.as_secs()),
        Err(RecvTimeoutError::Disconnected) => "sled ended its thread".to_owned(),
    };
    Err(StoreError::Damaged { dir: dir.to_owned(), detail })
}

fn time_limit(dir: &Path) -> Duration {
    let bytes = fs::metadata(dir.join("db/db")).map_or(0, |file| file.len());
    OPENING + Duration::from_secs(bytes / BYTES_A_SECOND)
}

/// Removes the marker of a closing in order; returns whether it was there. On disk when this returns.
pub(super) fn take_marker(dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join(MARKER);
    match fs::remove_file(&path) {
        Ok(()) => sync(dir).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("remove", &path)(error)),
    }
}

/// Marks the database as closed in order. If the disk refuses the marker, the next start checks the database more closely.
pub(super) fn leave_marker(dir: &Path) {
    let path = dir.join(MARKER);
    if let Err(error) = File::create(&path).and_then(|file| file.sync_all()) {
        log::warn!("cannot write {}: {error}; the next start checks the database", path.display());
    }
}

/// Writes down the database's damage, as far as the disk allows.
pub(super) fn leave_verdict(dir: &Path, reason: &str) {
    let _ = fs::write(dir.join(VERDICT), reason);
}

/// The damage that an earlier process wrote down.
pub(super) fn verdict(dir: &Path) -> Option<String> {
    fs::read(dir.join(VERDICT)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn sync(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync", dir))
}

/// Whether a database is there and has been written to.
pub(super) fn is_there(dir: &Path) -> bool {
    fs::metadata(dir.join("db/db")).is_ok_and(|file| file.len() > 0)
}

/// Refuses when the disk is all but full.
pub(super) fn check_room(dir: &Path) -> Result<(), StoreError> {
    if wire::free_bytes(dir).is_none_or(|free| free >= ROOM) {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::StorageFull, format!("less than {} MiB of the disk are free", ROOM >> 20));
    Err(StoreError::io("write to", dir)(source))
}

/// Whether the disk has room for sled's writes at opening.
pub(super) fn has_room(dir: &Path) -> bool {
    if check_room(dir).is_err() {
        return false;
    }
    let path = dir.join("room.unfinished");
    let allocated = File::create(&path).and_then(|file| {
        // Allocated, not written: that wears no card. If files cannot be allocated, the free space has to do.
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, ROOM) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    });
    let _ = fs::remove_file(&path);
    allocated.is_ok()
}

/// Sets the database aside and removes the oldest ones there. Returns its new place.
pub(super) fn set_aside(dir: &Path) -> Result<PathBuf, StoreError> {
    let mut before = aside_in(dir);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Names sort by time, even two in one second or after the clock was put back.
    let seconds = before.last().and_then(|path| seconds_of(path)).map_or(now, |last| now.max(last + 1));
    let (database, aside) = (dir.join("db"), dir.join(format!("{ASIDE}{seconds}")));
    fs::rename(&database, &aside).map_err(StoreError::io("set aside", &database))?;
    let _ = fs::remove_file(dir.join(VERDICT));
    sync(dir)?;
    while before.len() >= KEPT_ASIDE {
        let oldest = before.remove(0);
        match fs::remove_dir_all(&oldest) {
            Ok(()) => log::info!("removed {}, the oldest of the damaged databases", oldest.display()),
            Err(error) => log::warn!("cannot remove {}: {error}", oldest.display()),
        }
    }
    Ok(aside)
}

fn seconds_of(aside: &Path) -> Option<u64> {
    aside.file_name()?.to_str()?.strip_prefix(ASIDE)?.parse().ok()
}

/// The databases that were set aside in `dir`, oldest first.
pub(super) fn aside_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| seconds_of(path).is_some()).collect();
    found.sort_by_key(|path| seconds_of(path));
    found
}

/// Has a process of its own open the database and read all of it.
///
/// # Errors
/// [`StoreError::Damaged`] with the end of that process. If it cannot be started or meets an error of the disk, the database
/// remains unchecked, which is no error here.
pub(super) fn probe(dir: &Path, options: &StoreOptions) -> Result<(), StoreError> {
    let Some(program) = &options.probe else { return Ok(()) };
    let begun = Instant::now();
    let detail = match ask(program, dir, time_limit(dir)) {
        Ok(Finding::Sound) => {
            log::info!(
                "the database was not closed in order; read through in {:.2} s, it is sound",
                begun.elapsed().as_secs_f32()
            );
            return Ok(());
        }
        Ok(Finding::Unknown(words)) => {
            log::warn!("the database could not be looked through: {words}");
            return Ok(());
        }
        Ok(Finding::Damaged(words)) => words,
        Err(error) => {
            log::warn!("no process to look through the database: {error}");
            return Ok(());
        }
    };
    Err(StoreError::Damaged { dir: dir.to_owned(), detail })
}

enum Finding {
    Sound,
    Damaged(String),
    Unknown(String),
}

fn ask(program: &Path, dir: &Path, limit: Duration) -> io::Result<Finding> {
    let mut child = Command::new(program)
        .arg0("vademecum")
        .arg(COMMAND)
        .arg(dir)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take();
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let (mut words, mut rest) = (String::new(), Vec::new());
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(4096).read_to_string(&mut words);
            let _ = stderr.read_to_end(&mut rest);
        }
        let _ = sender.send(words);
    };
    std::thread::Builder::new().name("store".into()).spawn(read)?;
    // Its standard error closes at its end.
    let Ok(words) = receiver.recv_timeout(limit) else {
        let _ = child.kill();
        let _ = child.wait();
        return Ok(Finding::Damaged(format!("sled did not answer within {} s", limit.as_secs())));
    };
    let status = child.wait()?;
    let words = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned();
    Ok(match status.code() {
        Some(0) => Finding::Sound,
        Some(code) if code == i32::from(DAMAGED) => Finding::Damaged(words),
        Some(_) => Finding::Unknown(words),
        None => Finding::Damaged(format!("opening it ended with {status}: {words}")),
    })
}

/// The directory to look into, if this process was started to probe.
pub fn asked_for() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == COMMAND).then(|| arguments.next())?.map(PathBuf::from)
}

/// The probing process: opens the database and reads every record. The exit code tells the result, and the last line on
/// standard error says it in words. The caller holds the store's lock.
pub fn run(dir: &Path) -> ExitCode {
    // The process must not outlive its caller: sled's lock would stay held. Some sandboxes forbid the call.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let read = || {
        let database = Database::open_unwatched(dir, &StoreOptions::default())?;
        for entry in &database.tree {
            entry.map_err(|error| StoreError::opening(dir, error))?;
        }
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(StoreError::Damaged { detail, .. })) => {
            eprintln!("{detail}");
            ExitCode::from(DAMAGED)
        }
        Ok(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(panic) => {
            eprintln!("sled panicked: {}", read::panic_message(panic.as_ref()).lines().next().unwrap_or_default());
            ExitCode::from(DAMAGED)
        }
    }
}
