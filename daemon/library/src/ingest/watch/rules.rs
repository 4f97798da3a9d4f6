//! The rules of watching: when a path is compared, when a file is read, whose document it may replace.
//!
//! The rules have no clock and start nothing. The caller passes the time in and does the work: it watches folders, reads
//! files, removes documents.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use wire::FileState;

use super::{
    disk::{Disk, Stamp},
    folder::{Folder, Tracked},
    inotify::Touched,
};
use crate::{
    ingest::IngestError,
    store::{Document, FailedDocument, StoreError},
};

/// A file is read after so long without a change: one that is still being copied would be read half.
pub(super) const QUIET: Duration = Duration::from_millis(1500);
/// Time between two searches of a folder that inotify does not watch.
pub(super) const RESCAN: Duration = Duration::from_secs(60);
/// Time between two looks at a folder that is away.
pub(super) const RETURN: Duration = Duration::from_secs(5);
/// Time until a document is tried again that the disk did not take.
pub(super) const RETRY: Duration = Duration::from_secs(60);
/// With more paths than this touched at once, the whole folder is searched instead.
pub(super) const MANY: usize = 256;

/// Why a file was not taken in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is being written.
    Busy,
    /// It is there no longer.
    Gone,
    /// The disk failed, not the document: try again.
    Disk(String),
    /// The document is to blame.
    Document(String),
}

/// An answer to the request that folders be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    /// All were watched before.
    Already,
    /// Some are watched only from now on.
    New,
    /// The system refuses.
    Refused,
}

/// The result of comparing a path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sight {
    /// Files that are queued for reading.
    pub(super) changed: Vec<PathBuf>,
    /// Files whose documents are to be removed.
    pub(super) gone: Vec<PathBuf>,
    /// Why the folder is left alone.
    pub(super) away: Option<String>,
}

/// A folder and its schedule.
pub(super) struct Follower {
    pub(super) tracked: Tracked,
    /// Paths to compare, and when.
    look: BTreeMap<PathBuf, Instant>,
    /// Files to read, and when.
    pending: BTreeMap<PathBuf, Instant>,
    /// Whether the folder is searched at intervals, for want of inotify.
    polled: bool,
}

impl Follower {
    /// Follows `folder`, and compares all of it first.
    pub(super) fn new(folder: Folder, documents: &[Document], failed: &[FailedDocument], polled: bool, now: Instant) -> Self {
        let look = [(folder.root.clone(), now)].into();
        Self { tracked: Tracked::new(folder, documents, failed), look, pending: BTreeMap::new(), polled }
    }

    pub(super) fn root(&self) -> &Path {
        &self.tracked.folder.root
    }

    /// When there is something to do next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.look.values().chain(self.pending.values()).min().copied()
    }

    /// Schedules a touched path. Every touch puts it off: it is compared when it has been quiet.
    pub(super) fn touch(&mut self, touched: &Touched, now: Instant) {
        let path = match touched {
            Touched::Path(path) if path.starts_with(self.root()) => path.clone(),
            Touched::Path(_) => return,
            Touched::Anything => self.root().to_owned(),
        };
        self.look.insert(path, now + QUIET);
    }

    /// Takes the paths out of the schedule that are due for comparing; parents before children.
    pub(super) fn quiet(&mut self, now: Instant) -> Vec<PathBuf> {
        let quiet: Vec<PathBuf> = self.look.extract_if(.., |_, due| *due <= now).map(|(path, _)| path).collect();
        if quiet.len() > MANY { vec![self.root().to_owned()] } else { quiet }
    }

    /// Compares the known files at or below `path` with the disk, and queues the changed ones. `watch` is called with the
    /// folders that were searched.
    pub(super) fn compare(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        now: Instant,
        watch: &mut dyn FnMut(&[PathBuf]) -> Watching,
    ) -> Sight {
        let mut sight = Sight { away: self.check(disk, now), ..Sight::default() };
        if sight.away.is_some() {
            return sight;
        }
        loop {
            let findings = self.tracked.look(disk, path);
            self.queue(&findings.changed, now);
            sight.changed.extend(findings.changed);
            sight.gone = findings.gone;
            match if self.polled { Watching::Already } else { watch(&findings.folders) } {
                // A file may have come between the search and the watch: search again.
                Watching::New => {}
                Watching::Already => break,
                Watching::Refused => {
                    self.polled = true;
                    break;
                }
            }
        }
        // The folder may have gone away during the search.
        if !sight.gone.is_empty() {
            sight.away = self.check(disk, now);
            if sight.away.is_some() {
                sight.gone.clear();
                return sight;
            }
        }
        if self.polled {
            self.look.insert(self.root().to_owned(), now + RESCAN);
        }
        sight
    }

    /// Why the folder is away; then nothing is scheduled but the next look.
    fn check(&mut self, disk: &dyn Disk, now: Instant) -> Option<String> {
        let away = self.tracked.check(disk).err()?;
        self.look = [(self.root().to_owned(), now + RETURN)].into();
        Some(away)
    }

    /// Queues a file that came while `reading` is taken in, which may last. Only the list needs it: the file is compared
    /// properly afterwards.
    pub(super) fn hear(&mut self, disk: &dyn Disk, touched: &Touched, reading: &Path, now: Instant) -> Vec<PathBuf> {
        self.touch(touched, now);
        let Touched::Path(path) = touched else { return Vec::new() };
        if path == reading || !path.starts_with(self.root()) || !disk.is_file(path) {
            return Vec::new();
        }
        let changed = self.tracked.look(disk, path).changed;
        self.queue(&changed, now);
        changed
    }

    fn queue(&mut self, changed: &[PathBuf], now: Instant) {
        self.pending.extend(changed.iter().map(|path| (path.clone(), now)));
    }

    /// The files that are due for reading.
    pub(super) fn due_files(&self, now: Instant) -> impl Iterator<Item = &Path> {
        self.pending.iter().filter(move |(_, due)| **due <= now).map(|(path, _)| path.as_path())
    }

    /// Schedules a file anew, or not, after it was read; returns its state for the list, where that is news.
    pub(super) fn settle(
        &mut self,
        path: &Path,
        result: Result<(), Trouble>,
        now: Instant,
    ) -> Option<(FileState, Option<String>)> {
        self.pending.remove(path);
        match result {
            Ok(()) => Some((FileState::Ok, None)),
            Err(Trouble::Busy) => {
                self.pending.insert(path.to_owned(), now + QUIET);
                None
            }
            Err(Trouble::Gone) => {
                self.look.insert(path.to_owned(), now);
                None
            }
            Err(Trouble::Disk(reason)) => {
                self.pending.insert(path.to_owned(), now + RETRY);
                Some((FileState::Pending, Some(reason)))
            }
            Err(Trouble::Document(reason)) => Some((FileState::Failed, Some(reason))),
        }
    }

    /// Forgets a file whose document was removed.
    pub(super) fn forget(&mut self, path: &Path) {
        self.tracked.files.remove(path);
        self.pending.remove(path);
    }

    /// Schedules another try at removing a document.
    pub(super) fn remove_later(&mut self, path: &Path, now: Instant) {
        self.look.insert(path.to_owned(), now + RETRY);
    }
}

/// Whether a document follows this file.
pub(super) fn follows(document: &Document, path: &Path) -> bool {
    document.origin.as_ref().is_some_and(|origin| Path::new(&origin.path) == path)
}

/// Whether a file may replace the document `present`: its own, or that of a file which no watched folder has any longer.
pub(super) fn may_replace(followers: &[Follower], present: &Document, path: &Path) -> bool {
    let Some(origin) = &present.origin else { return false };
    let before = Path::new(&origin.path);
    let has_it = |follower: &Follower| {
        follower.tracked.folder.collection == present.collection && follower.tracked.files.contains_key(before)
    };
    before == path || !followers.iter().any(has_it)
}

/// The trouble of a file whose id belongs to the document `present`.
pub(super) fn taken(present: &Document) -> Trouble {
    Trouble::Document(match &present.origin {
        Some(origin) => format!("{} has the same id; give one of the two folders another collection", origin.path),
        None => format!(
            "another document {:?} was put by hand; delete it (`vademecum documents delete`) and touch this file",
            present.id
        ),
    })
}

/// The stamp of a file that nobody is writing. `now_ms` is the wall clock, in milliseconds since 1970.
pub(super) fn quiet_stamp(disk: &dyn Disk, path: &Path, now_ms: u64) -> Result<Stamp, Trouble> {
    let stamp = disk.stamp(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Trouble::Gone,
        _ => Trouble::Document(error.to_string()),
    })?;
    // An mtime in the future means that the clock was changed, not that the file is still being written.
    let age = now_ms.checked_sub(stamp.modified_ms);
    if age.is_some_and(|age| age < QUIET.as_millis() as u64) { Err(Trouble::Busy) } else { Ok(stamp) }
}

/// The trouble that an error of the pipeline means.
pub(super) fn trouble(error: &IngestError, id: &str) -> Trouble {
    match error {
        IngestError::Store(StoreError::Io { .. }) => Trouble::Disk(error.to_string()),
        error => Trouble::Document(error.reason(id)),
    }
}

#[cfg(test)]
mod tests;
