//! Watched folders: their files are in the library within seconds.
//!
//! One thread sleeps until inotify reports a touch and the path is quiet again. It compares the disk with the known files
//! and takes the difference in, one document at a time. The known files come from the library itself: every document
//! remembers the file it follows, so a restart finds the changes since. Without inotify the folder is searched at intervals.
//!
//! | module | one job |
//! |---|---|
//! | `rules` | when and what: no clock, no files, no store |
//! | `folder` | one folder against the library's documents from it |
//! | `disk` | the file system behind a trait |
//! | `inotify` | the kernel's reports |
//! | `board` | the watched files in `documents list` |
//! | this one | the thread; it watches, reads and removes |

mod board;
mod disk;
mod folder;
mod inotify;
mod rules;

use std::{
    fs::File,
    ops::ControlFlow,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use wire::FileState;

use super::{
    FoundFile, IngestError, Pipeline, counted,
    walk::{Wanted, load},
};
use crate::store::sha256_hex;
use crate::store::wholeness::{Unread, beginning};
use inotify::{Touched, Watches};
use rules::{Follower, RESCAN, Trouble, Watching, follows, may_replace, quiet_stamp, taken, trouble};

pub use board::Watched;
pub use folder::Folder;

/// The watched folders and their globs.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The folders.
    pub folders: Vec<Folder>,
    /// Globs of the files that are documents, see [`super::walk()`].
    pub include: Vec<String>,
    /// Globs of the files that are left out.
    pub exclude: Vec<String>,
    /// Largest document in bytes.
    pub max_document_bytes: u64,
}

/// The thread that follows folders, for as long as the process lives.
pub struct Watcher(Arc<Orders>);

/// Orders for the thread.
struct Orders {
    /// The folders to follow from now on.
    wanted: Mutex<Option<WatchOptions>>,
    /// Readable when there is an order.
    bell: OwnedFd,
}

impl Watcher {
    /// Starts to follow the folders. `turn` is held while a document is taken in; `changed` is called after every change of the
    /// library; `watched` is kept current.
    ///
    /// # Errors
    /// A glob that does not parse, the store's trouble, or no thread.
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

    /// Follows other folders, or other files in them, after the document that is being read.
    pub fn follow(&self, options: WatchOptions) {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(options);
        // The write fails only if the bell has rung often and unheard: it will be heard.
        let _ = rustix::io::write(&self.0.bell, &1_u64.to_ne_bytes());
    }
}

impl Orders {
    /// Waits for an order or for `other` to be readable, at most `timeout` (`None`: for ever).
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

    /// Follows these folders instead of the earlier ones.
    fn follow(&mut self, options: &WatchOptions) -> Result<(), IngestError> {
        let wanted = Wanted::new(&options.include, &options.exclude)?;
        let (documents, failed) = (self.pipeline.store().documents(None)?, self.pipeline.store().failed(None)?);
        let watches = Watches::new().inspect_err(|error| log::warn!("no inotify ({error}); {}", every_minute())).ok();
        for Folder { root, collection, .. } in &options.folders {
            log::info!("watching {} for the collection {collection}", root.display());
        }
        let now = Instant::now();
        let follower = |folder: &Folder| {
            let polled = watches.is_none() || is_remote(&folder.root);
            Follower::new(folder.clone(), &documents, &failed, polled, now)
        };
        self.followers = options.folders.iter().map(follower).collect();
        self.watched.clear();
        let whole = self.pipeline.store().wholeness();
        whole.forget_files();
        for Folder { root, collection, .. } in &options.folders {
            whole.has_folder(collection, root);
            // A question to a collection whose documents are still to come finds nothing yet, which is no error.
            if let Err(error) = self.pipeline.store().create_collection(collection) {
                log::warn!("the collection {collection} is not made before its first document: {error}");
            }
        }
        (self.wanted, self.watches, self.max_document_bytes) = (wanted, watches, options.max_document_bytes);
        Ok(())
    }

    /// Sleeps until something is due, then compares every quiet path and reads one document.
    fn step(&mut self) {
        let due = self.followers.iter().filter_map(Follower::due).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        self.orders.wait(self.watches.as_ref().map(Watches::fd), timeout);
        if let Some(options) = self.orders.take()
            && let Err(error) = self.follow(&options)
        {
            log::error!("the watched folders remain unchanged: {error}");
        }
        let now = Instant::now();
        for touched in self.touched() {
            self.followers.iter_mut().for_each(|follower| follower.touch(&touched, now));
        }
        for number in 0..self.followers.len() {
            for path in self.followers[number].quiet(Instant::now()) {
                self.compare(number, &path);
            }
        }
        self.read_one();
    }

    fn touched(&mut self) -> Vec<Touched> {
        self.watches.as_mut().map(Watches::touched).unwrap_or_default()
    }

    /// Compares a path, removes the documents of files that are gone, and lists the changed ones.
    fn compare(&mut self, number: usize, path: &Path) {
        let follower = &mut self.followers[number];
        let root = follower.root().to_owned();
        let mut watches = self.watches.as_mut();
        let mut watch = |folders: &[PathBuf]| watches.as_mut().map_or(Watching::Already, |all| watch(all, &root, folders));
        let sight = follower.compare(&self.wanted, path, Instant::now(), &mut watch);
        let whole = self.pipeline.store().wholeness().clone();
        if self.watched.note_folder(&root, sight.away.as_deref()) {
            whole.is_away(&root, sight.away.is_some());
            match &sight.away {
                Some(reason) => log::warn!(
                    "watched folder {}: {reason}; its documents are kept, and it is left alone until it is back",
                    root.display()
                ),
                None => log::info!("watched folder {} is there again", root.display()),
            }
        }
        for path in sight.changed {
            self.note(number, &path, FileState::Pending, None);
        }
        for path in sight.gone {
            self.remove(number, &path);
        }
        if path == root {
            whole.has_seen_folder(&self.followers[number].tracked.folder.collection, &root);
        }
    }

    /// Removes the document of a file that is gone, if it followed this file.
    fn remove(&mut self, number: usize, path: &Path) {
        let tracked = &self.followers[number].tracked;
        let Some(id) = tracked.files.get(path).map(|file| file.id.clone()) else { return };
        let (store, collection) = (self.pipeline.store(), &tracked.folder.collection);
        let removed = match store.document(collection, &id) {
            Ok(Some(document)) if follows(&document, path) => store.delete(collection, &id),
            other => other.map(|_| false),
        };
        match removed {
            Ok(removed) => {
                self.note(number, path, FileState::Ok, None);
                self.followers[number].forget(path);
                if removed {
                    log::info!("{id}: removed, {} is gone", path.display());
                    (self.changed)();
                }
            }
            Err(error) => {
                log::warn!("{id}: {error}; removing it is tried again");
                self.followers[number].remove_later(path, Instant::now());
            }
        }
    }

    /// Takes in one file that is due.
    fn read_one(&mut self) {
        let Some((number, path)) = self.next() else { return };
        let result = self.take(number, &path);
        match &result {
            Err(Trouble::Disk(reason)) => log::warn!("{}: {reason}; it is tried again", path.display()),
            Err(Trouble::Document(reason)) => log::warn!("{}: {reason}", path.display()),
            _ => {}
        }
        if let Some((state, reason)) = self.followers[number].settle(&path, result, Instant::now()) {
            self.note(number, &path, state, reason);
        }
    }

    /// The next file to read: the likeliest to answer a waiting question, else the first one.
    fn next(&self) -> Option<(usize, PathBuf)> {
        let (now, whole) = (Instant::now(), self.pipeline.store().wholeness());
        let mut due = self
            .followers
            .iter()
            .enumerate()
            .flat_map(|(number, follower)| follower.due_files(now).map(move |path| (number, path.to_owned())));
        if !whole.is_asked() {
            return due.next();
        }
        let due: Vec<(usize, PathBuf)> = due.collect();
        let unread = due.iter().map(|(number, path)| {
            let tracked = &self.followers[*number].tracked;
            let id = tracked.files.get(path).map_or("", |file| file.id.as_str());
            Unread { collection: &tracked.folder.collection, id, title: "" }
        });
        let next = whole.likeliest(&unread.collect::<Vec<_>>(), |at| beginning(File::open(&due[at].1)));
        due.into_iter().nth(next)
    }

    /// Lists the files that come while `reading` is taken in.
    fn hear(&mut self, reading: &Path) {
        for touched in self.touched() {
            for number in 0..self.followers.len() {
                for path in self.followers[number].hear(&self.wanted, &touched, reading, Instant::now()) {
                    self.note(number, &path, FileState::Pending, None);
                }
            }
        }
    }

    /// Takes one file in.
    fn take(&mut self, number: usize, path: &Path) -> Result<(), Trouble> {
        let tracked = &mut self.followers[number].tracked;
        let collection = tracked.folder.collection.clone();
        let Some(file) = tracked.files.get_mut(path) else { return Err(Trouble::Gone) };
        let stamp = quiet_stamp(&self.wanted, path, now_ms())?;
        file.stamp = stamp;
        let id = file.id.clone();
        let origin = tracked.origin(path, stamp);
        let turn = Arc::clone(&self.turn);
        let _turn = turn.blocking_lock();
        let found = FoundFile { path: path.to_owned(), id, bytes: stamp.bytes, modified_ms: stamp.modified_ms };
        let id = &found.id;
        let mut source = load(&found, self.max_document_bytes).map_err(|error| trouble(&error, id))?;
        if quiet_stamp(&self.wanted, path, now_ms())? != stamp {
            return Err(Trouble::Busy);
        }
        let present = self.pipeline.store().document(&collection, id).map_err(|error| trouble(&error.into(), id))?;
        if let Some(present) = present
            && !may_replace(&self.followers, &present, path)
        {
            return if present.hash == sha256_hex(&source.bytes) { Ok(()) } else { Err(taken(&present)) };
        }
        source.origin = Some(origin);
        let pipeline = self.pipeline.clone();
        let mut hear = |_, _| {
            self.hear(path);
            ControlFlow::Continue(())
        };
        let put = pipeline.put_with_progress(&collection, source, &mut hear);
        // `hear` may have seen a later version. The version that was read counts until the next comparison.
        if let Some(file) = self.followers[number].tracked.files.get_mut(path) {
            file.stamp = stamp;
        }
        let outcome = put.map_err(|error| trouble(&error, id))?;
        let chunks = counted(u64::from(outcome.chunks), "chunk");
        log::info!("{id}: {}, {chunks}, from {}", outcome.change.word(), path.display());
        (self.changed)();
        Ok(())
    }

    /// Notes a known file's state for the list, and a failure in the library too.
    fn note(&mut self, number: usize, path: &Path, state: FileState, reason: Option<String>) {
        let Some(document) = self.followers[number].tracked.set_state(path, state) else { return };
        let (store, whole) = (self.pipeline.store(), self.pipeline.store().wholeness());
        if state == FileState::Pending {
            let present = store.document(&document.collection, &document.id).is_ok_and(|present| present.is_some());
            whole.has_file(&document.collection, &document.id, path, present, reason.is_some());
        } else {
            whole.has_read(&document.collection, &document.id, path);
        }
        let written = match (state, &reason) {
            (FileState::Ok, _) => store.forget_failed(&document.collection, &document.id).map(drop),
            (FileState::Failed, Some(reason)) => store.note_failed(&document, reason),
            _ => Ok(()),
        };
        if let Err(error) = written {
            log::warn!("the list of failed documents cannot be written: {error}");
        }
        self.watched.note(document, state, reason);
    }
}

/// Watches folders of the folder `root`.
fn watch(watches: &mut Watches, root: &Path, folders: &[PathBuf]) -> Watching {
    let mut watching = Watching::Already;
    for folder in folders {
        match watches.add(folder) {
            Ok(true) => watching = Watching::New,
            // A folder that is gone again: the event of its parent says so.
            Ok(false) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => {
                let reason = match error {
                    Errno::NOSPC => "the system's limit of inotify watches is reached (raise fs.inotify.max_user_watches)".into(),
                    error => format!("{} cannot be watched ({error})", folder.display()),
                };
                log::warn!("watched folder {}: {reason}; {}", root.display(), every_minute());
                watches.remove(root);
                return Watching::Refused;
            }
        }
    }
    watching
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn every_minute() -> String {
    format!("looking through it every {} s instead", RESCAN.as_secs())
}

/// Whether a folder lies on a network file system: inotify does not hear of changes made elsewhere.
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
