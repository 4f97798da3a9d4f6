//! Watched folders: what is in them is in the library, within seconds.
//!
//! One thread sleeps until inotify says that something was touched, waits until it is quiet, compares what is there with
//! what is known ([`folder`]) and takes the difference in, one document at a time. What is known comes from the library
//! itself: every document remembers the file it follows, so that a restart finds what has changed meanwhile. Where inotify
//! cannot be had, the folder is looked through at intervals.

mod board;
mod folder;
mod inotify;

use std::{
    collections::BTreeMap,
    fs::Metadata,
    ops::ControlFlow,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::{
    Entry, IngestError, Pipeline, counted,
    walk::{Wanted, load, modified_ms},
};
use crate::store::{Document, SourceFile, StoreError, sha256_hex};
use folder::Tracked;
use inotify::{Touched, Watches};

pub use board::{FileState, Listed, Watched};
pub use folder::Folder;

/// A file is read when nothing has been done to it for so long: one that is still being copied would be read half.
const QUIET: Duration = Duration::from_millis(1500);
/// How often a folder is looked through for which inotify cannot be had.
const RESCAN: Duration = Duration::from_secs(60);
/// How often it is tried whether a folder that is away is there again.
const RETURN: Duration = Duration::from_secs(5);
/// After how long a document is tried again that the disk did not take.
const RETRY: Duration = Duration::from_secs(60);
/// So many paths touched at once are not looked at one by one: the folder is looked through.
const MANY: usize = 256;

/// What is watched, and how.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The folders.
    pub folders: Vec<Folder>,
    /// Which files are documents, see [`super::walk`].
    pub include: Vec<String>,
    /// Which are left out.
    pub exclude: Vec<String>,
    /// Largest document in bytes.
    pub max_document_bytes: u64,
}

/// The thread that follows folders, for as long as the process lives.
pub struct Watcher(Arc<Orders>);

/// What the thread is told from outside.
struct Orders {
    /// To be followed instead of what was followed before.
    wanted: Mutex<Option<WatchOptions>>,
    /// Readable when there is something wanted.
    bell: OwnedFd,
}

impl Watcher {
    /// Starts to follow the folders. `turn` is held while a document is taken in, `changed` is called after every change of the
    /// library; `watched` is kept current.
    ///
    /// # Errors
    /// A glob that does not parse, the store's trouble, or no thread to be had.
    pub fn start(
        pipeline: Pipeline,
        options: &WatchOptions,
        watched: Watched,
        turn: Arc<tokio::sync::Mutex<()>>,
        changed: impl Fn() + Send + 'static,
    ) -> Result<Self, IngestError> {
        let failed = |source| IngestError::Io { path: "watch".into(), source };
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let orders = Arc::new(Orders { wanted: Mutex::default(), bell });
        let mut watch = Watch::new(pipeline, options, watched, turn, Box::new(changed), Arc::clone(&orders))?;
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            loop {
                watch.step();
            }
        });
        thread.map(|_| Self(orders)).map_err(failed)
    }

    /// Follows other folders, or reads other files in them, as soon as the document is read that is being read.
    pub fn follow(&self, options: WatchOptions) {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(options);
        // It fails where it has been rung often and not heard: it will be.
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
    }
}

impl Orders {
    /// Waits until something is wanted or `other` is readable, at most `timeout` (`None`: for ever).
    fn wait(&self, other: Option<&OwnedFd>, timeout: Option<Duration>) {
        let timeout = timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
        let fds = std::iter::once(&self.bell).chain(other);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // An interrupted wait has only ended early.
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    fn take(&self) -> Option<WatchOptions> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A folder and what is to be done about it, when.
struct Follower {
    tracked: Tracked,
    /// Paths to compare.
    look: BTreeMap<PathBuf, Instant>,
    /// Files to read.
    pending: BTreeMap<PathBuf, Instant>,
    /// Whether it is looked through at intervals.
    polled: bool,
}

struct Watch {
    pipeline: Pipeline,
    wanted: Wanted,
    max_document_bytes: u64,
    watched: Watched,
    turn: Arc<tokio::sync::Mutex<()>>,
    changed: Box<dyn Fn() + Send>,
    watches: Option<Watches>,
    followers: Vec<Follower>,
    orders: Arc<Orders>,
}

/// Why a file was not taken in.
enum Trouble {
    /// It is being written.
    Busy,
    /// It is there no longer.
    Gone,
    /// The disk's, not the document's: to be tried again.
    Disk(String),
    /// The document's own.
    Document(String),
}

impl Watch {
    fn new(
        pipeline: Pipeline,
        options: &WatchOptions,
        watched: Watched,
        turn: Arc<tokio::sync::Mutex<()>>,
        changed: Box<dyn Fn() + Send>,
        orders: Arc<Orders>,
    ) -> Result<Self, IngestError> {
        let wanted = Wanted::new(&options.include, &options.exclude)?;
        let max_document_bytes = options.max_document_bytes;
        let (watches, followers) = (None, Vec::new());
        let mut watch = Self { pipeline, wanted, max_document_bytes, watched, turn, changed, watches, followers, orders };
        watch.follow(options)?;
        Ok(watch)
    }

    /// Follows these folders, and no longer those that were followed before.
    fn follow(&mut self, options: &WatchOptions) -> Result<(), IngestError> {
        let wanted = Wanted::new(&options.include, &options.exclude)?;
        let (documents, failed) = (self.pipeline.store().documents(None)?, self.pipeline.store().failed(None)?);
        let watches = Watches::new().inspect_err(|error| log::warn!("no inotify ({error}); {}", every_minute())).ok();
        for Folder { root, collection, .. } in &options.folders {
            log::info!("watching {} for the collection {collection}", root.display());
        }
        let follower = |folder: &Folder| Follower {
            tracked: Tracked::new(folder.clone(), &documents, &failed),
            look: [(folder.root.clone(), Instant::now())].into(),
            pending: BTreeMap::new(),
            polled: watches.is_none() || is_remote(&folder.root),
        };
        self.followers = options.folders.iter().map(follower).collect();
        self.watched.clear();
        (self.wanted, self.watches, self.max_document_bytes) = (wanted, watches, options.max_document_bytes);
        Ok(())
    }

    /// Sleeps until there is something to do, and does a piece of it: everything quiet is compared, one document read.
    fn step(&mut self) {
        let due = self.followers.iter().flat_map(|follower| follower.look.values().chain(follower.pending.values())).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        self.orders.wait(self.watches.as_ref().map(Watches::fd), timeout);
        if let Some(options) = self.orders.take()
            && let Err(error) = self.follow(&options)
        {
            log::error!("the watched folders stay as they were: {error}");
        }
        let touched = self.watches.as_mut().map(Watches::touched).unwrap_or_default();
        for touched in touched {
            self.touch(&touched);
        }
        for number in 0..self.followers.len() {
            for path in self.followers[number].quiet() {
                self.look(number, &path);
            }
        }
        self.read_one();
    }

    fn touch(&mut self, touched: &Touched) {
        let due = Instant::now() + QUIET;
        for follower in &mut self.followers {
            match touched {
                Touched::Path(path) if path.starts_with(&follower.tracked.folder.root) => {
                    follower.look.insert(path.clone(), due);
                }
                Touched::Path(_) => {}
                Touched::Anything => {
                    follower.look.insert(follower.tracked.folder.root.clone(), due);
                }
            }
        }
    }

    /// Compares what is at or below `path` with what is known, removes what is gone and queues what has changed.
    fn look(&mut self, number: usize, path: &Path) {
        let root = self.followers[number].tracked.folder.root.clone();
        if !self.is_present(number) {
            return;
        }
        let findings = loop {
            let findings = self.followers[number].tracked.look(&self.wanted, path);
            self.queue(number, &findings.changed);
            // What came into a folder between looking and watching is found by looking again.
            if !self.watch(number, &findings.folders) {
                break findings;
            }
        };
        // It may have gone away while it was looked at.
        if !findings.gone.is_empty() && self.is_present(number) {
            for path in findings.gone {
                self.remove(number, &path);
            }
        }
        let follower = &mut self.followers[number];
        if follower.polled {
            follower.look.insert(root, Instant::now() + RESCAN);
        }
    }

    /// Whether the folder is there. When it is not, nothing is done but to look again soon.
    fn is_present(&mut self, number: usize) -> bool {
        let follower = &mut self.followers[number];
        let away = follower.tracked.check(&self.wanted).err();
        let root = follower.tracked.folder.root.clone();
        if self.watched.note_folder(&root, away.as_deref()) {
            match &away {
                Some(reason) => log::warn!(
                    "watched folder {}: {reason}; its documents are kept, and it is left alone until it is back",
                    root.display()
                ),
                None => log::info!("watched folder {} is there again", root.display()),
            }
        }
        if away.is_some() {
            follower.look = [(root, Instant::now() + RETURN)].into();
        }
        away.is_none()
    }

    /// Watches folders; whether one of them was not watched before.
    fn watch(&mut self, number: usize, folders: &[PathBuf]) -> bool {
        let follower = &mut self.followers[number];
        let Some(watches) = self.watches.as_mut().filter(|_| !follower.polled) else { return false };
        let mut new = false;
        for folder in folders {
            match watches.add(folder) {
                Ok(added) => new |= added,
                // Gone again; its parent's event says so.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => {
                    let root = &follower.tracked.folder.root;
                    let reason = match error {
                        Errno::NOSPC => {
                            "the system's limit of inotify watches is reached (raise fs.inotify.max_user_watches)".into()
                        }
                        error => format!("{} cannot be watched ({error})", folder.display()),
                    };
                    log::warn!("watched folder {}: {reason}; {}", root.display(), every_minute());
                    watches.remove(root);
                    follower.polled = true;
                    return false;
                }
            }
        }
        new
    }

    fn queue(&mut self, number: usize, changed: &[PathBuf]) {
        for path in changed {
            self.followers[number].pending.insert(path.clone(), Instant::now());
            self.note(number, path, FileState::Pending, None);
        }
    }

    /// Removes the document of a file that is gone, if it followed this file.
    fn remove(&mut self, number: usize, path: &Path) {
        let Some(file) = self.followers[number].tracked.files.get(path).cloned() else { return };
        let (store, collection) = (self.pipeline.store(), &self.followers[number].tracked.folder.collection);
        let removed = match store.document(collection, &file.id) {
            Ok(Some(document)) if follows(&document, path) => store.delete(collection, &file.id),
            other => other.map(|_| false),
        };
        match removed {
            Ok(removed) => {
                self.note(number, path, FileState::Ok, None);
                let follower = &mut self.followers[number];
                follower.tracked.files.remove(path);
                follower.pending.remove(path);
                if removed {
                    log::info!("{}: removed, {} is gone", file.id, path.display());
                    (self.changed)();
                }
            }
            Err(error) => {
                log::warn!("{}: {error}; removing it is tried again", file.id);
                self.followers[number].look.insert(path.to_owned(), Instant::now() + RETRY);
            }
        }
    }

    /// Takes in one file that waits and whose time has come.
    fn read_one(&mut self) {
        let now = Instant::now();
        let due = |follower: &Follower| follower.pending.iter().find(|(_, due)| **due <= now).map(|(path, _)| path.clone());
        let next = self.followers.iter().enumerate().find_map(|(number, follower)| Some((number, due(follower)?)));
        let Some((number, path)) = next else { return };
        let result = self.take(number, &path);
        self.followers[number].pending.remove(&path);
        let now = Instant::now();
        match result {
            Ok(()) => self.note(number, &path, FileState::Ok, None),
            Err(Trouble::Busy) => {
                self.followers[number].pending.insert(path, now + QUIET);
            }
            Err(Trouble::Gone) => {
                self.followers[number].look.insert(path, now);
            }
            Err(Trouble::Disk(reason)) => {
                log::warn!("{}: {reason}; it is tried again", path.display());
                self.note(number, &path, FileState::Pending, Some(reason));
                self.followers[number].pending.insert(path, now + RETRY);
            }
            Err(Trouble::Document(reason)) => {
                log::warn!("{}: {reason}", path.display());
                self.note(number, &path, FileState::Failed, Some(reason));
            }
        }
    }

    /// Lists what has come while `reading` is taken in, which may last; it is looked at properly afterwards.
    fn hear(&mut self, reading: &Path) {
        let touched = self.watches.as_mut().map(Watches::touched).unwrap_or_default();
        for touched in &touched {
            self.touch(touched);
            let Touched::Path(path) = touched else { continue };
            if path == reading || !path.is_file() {
                continue;
            }
            for number in 0..self.followers.len() {
                let tracked = &mut self.followers[number].tracked;
                if path.starts_with(&tracked.folder.root) {
                    let findings = tracked.look(&self.wanted, path);
                    self.queue(number, &findings.changed);
                }
            }
        }
    }

    /// Takes one file in.
    fn take(&mut self, number: usize, path: &Path) -> Result<(), Trouble> {
        let tracked = &mut self.followers[number].tracked;
        let (collection, mounted) = (tracked.folder.collection.clone(), tracked.mounted);
        let Some(file) = tracked.files.get_mut(path) else { return Err(Trouble::Gone) };
        let (bytes, modified_ms) = quiet_stamp(path)?;
        file.stamp = (bytes, modified_ms);
        let id = file.id.clone();
        let turn = Arc::clone(&self.turn);
        let _turn = turn.blocking_lock();
        let entry = Entry { path: path.to_owned(), id, bytes, modified_ms };
        let mut source = load(&entry, self.max_document_bytes).map_err(|error| trouble(&error, &entry.id))?;
        if quiet_stamp(path)? != (bytes, modified_ms) {
            return Err(Trouble::Busy);
        }
        let present = self.pipeline.store().document(&collection, &entry.id);
        if let Some(present) = present.map_err(|error| trouble(&error.into(), &entry.id))?
            && !self.may_replace(&present, path)
        {
            return if present.hash == sha256_hex(&source.bytes) { Ok(()) } else { Err(taken(&present)) };
        }
        source.origin = Some(SourceFile { path: path.to_string_lossy().into_owned(), modified_ms, mounted });
        let pipeline = self.pipeline.clone();
        let mut hear = |_, _| {
            self.hear(path);
            ControlFlow::Continue(())
        };
        let put = pipeline.put_with_progress(&collection, source, &mut hear);
        // It may have been seen otherwise meanwhile; what was read is what is known of it, until it is looked at again.
        if let Some(file) = self.followers[number].tracked.files.get_mut(path) {
            file.stamp = (bytes, modified_ms);
        }
        let outcome = put.map_err(|error| trouble(&error, &entry.id))?;
        let chunks = counted(u64::from(outcome.chunks), "chunk");
        log::info!("{}: {:?}, {chunks}, from {}", entry.id, outcome.change, path.display());
        (self.changed)();
        Ok(())
    }

    /// Whether a document is this file's, or was that of a file which no watched folder has any longer.
    fn may_replace(&self, present: &Document, path: &Path) -> bool {
        let Some(origin) = &present.origin else { return false };
        let before = Path::new(&origin.path);
        let is_other = |follower: &Follower| {
            follower.tracked.folder.collection == present.collection && follower.tracked.files.contains_key(before)
        };
        before == path || !self.followers.iter().any(is_other)
    }

    /// Notes a known file's state, here and for the list; that it failed, in the library too.
    fn note(&mut self, number: usize, path: &Path, state: FileState, reason: Option<String>) {
        let tracked = &mut self.followers[number].tracked;
        let Some(file) = tracked.files.get_mut(path) else { return };
        file.state = state;
        let (bytes, modified_ms) = file.stamp;
        let origin = SourceFile { path: path.to_string_lossy().into_owned(), modified_ms, mounted: tracked.mounted };
        let (id, collection) = (file.id.clone(), tracked.folder.collection.clone());
        let document = Document { id, collection, bytes, origin: Some(origin), ..Document::default() };
        let store = self.pipeline.store();
        let written = match (state, &reason) {
            (FileState::Ok, _) => store.forget_failed(&document.collection, &document.id).map(drop),
            (FileState::Failed, Some(reason)) => store.note_failed(&document, reason),
            _ => Ok(()),
        };
        if let Err(error) = written {
            log::warn!("what failed cannot be written down: {error}");
        }
        self.watched.note(document, state, reason);
    }
}

impl Follower {
    /// The paths that have been quiet long enough to be looked at, and no longer wait for it; parents before children.
    fn quiet(&mut self) -> Vec<PathBuf> {
        let now = Instant::now();
        let quiet: Vec<PathBuf> = self.look.extract_if(.., |_, due| *due <= now).map(|(path, _)| path).collect();
        if quiet.len() > MANY { vec![self.tracked.folder.root.clone()] } else { quiet }
    }
}

/// Whether a document follows this file.
fn follows(document: &Document, path: &Path) -> bool {
    document.origin.as_ref().is_some_and(|origin| Path::new(&origin.path) == path)
}

/// Size and time of a file that is not being written.
fn quiet_stamp(path: &Path) -> Result<(u64, u64), Trouble> {
    let metadata: Metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Trouble::Gone,
        _ => Trouble::Document(error.to_string()),
    })?;
    let modified_ms = modified_ms(&metadata);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    // A time to come is a clock that was set, not a hand that writes.
    let age = now_ms.checked_sub(modified_ms);
    if age.is_some_and(|age| age < QUIET.as_millis() as u64) {
        return Err(Trouble::Busy);
    }
    Ok((metadata.len(), modified_ms))
}

fn trouble(error: &IngestError, id: &str) -> Trouble {
    match error {
        IngestError::Store(StoreError::Io { .. }) => Trouble::Disk(error.to_string()),
        error => Trouble::Document(error.reason(id)),
    }
}

fn taken(present: &Document) -> Trouble {
    let owner = match &present.origin {
        Some(origin) => format!("{} has the same id; give one of the two folders another collection", origin.path),
        None => format!(
            "another document {:?} was put by hand; delete it (`vademecum documents delete`) and touch this file",
            present.id
        ),
    };
    Trouble::Document(owner)
}

fn every_minute() -> String {
    format!("looking through it every {} s instead", RESCAN.as_secs())
}

/// Whether a folder lies on a network file system, of whose changes elsewhere inotify hears nothing.
fn is_remote(root: &Path) -> bool {
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const NINE_P: i64 = 0x0102_1997;
    let Ok(found) = rustix::fs::statfs(root) else { return false };
    let remote = [NFS, SMB, SMB2, NINE_P].contains(&(found.f_type & 0xffff_ffff));
    if remote {
        log::info!("watched folder {} is on a network; {}", root.display(), every_minute());
    }
    remote
}
