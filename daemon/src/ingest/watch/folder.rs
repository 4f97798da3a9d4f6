//! One watched folder: what is in it, what the library has of it, and what is to be done about the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::FileState;
use crate::{
    ingest::{Entry, walk::Wanted},
    store::{Document, FailedDocument},
};

/// A folder whose documents the library follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Where it is.
    pub root: PathBuf,
    /// The collection its documents belong to.
    pub collection: String,
    /// Stands before the ids of its documents, which are paths below the folder.
    pub prefix: String,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// The document's id.
    pub(super) id: String,
    /// Size in bytes, and when it was last written, in milliseconds since 1970: as long as both are the same, the file is.
    pub(super) stamp: (u64, u64),
    /// Whether the library has it as it is, will have, or cannot.
    pub(super) state: FileState,
}

/// What a look at a folder has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Files that are to be read.
    pub(super) changed: Vec<PathBuf>,
    /// Files whose documents are to be removed.
    pub(super) gone: Vec<PathBuf>,
    /// Folders that were searched.
    pub(super) folders: Vec<PathBuf>,
}

/// A folder and what is known of it.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) folder: Folder,
    pub(super) files: BTreeMap<PathBuf, File>,
    /// Whether the folder was a mount point when its documents were taken in.
    pub(super) mounted: bool,
    /// Device and number of the folder in which documents were seen last.
    trusted: Option<(u64, u64)>,
    /// What cannot be taken in whatever is in it, as the log was told: a folder is looked at often.
    told: BTreeSet<String>,
}

impl Tracked {
    /// A folder with the documents that the library has of it, and the files that it could not take in, which are tried
    /// again.
    pub(super) fn new(folder: Folder, documents: &[Document], failed: &[FailedDocument]) -> Self {
        let mut tracked = Self { folder, files: BTreeMap::new(), mounted: false, trusted: None, told: BTreeSet::new() };
        let failed = failed.iter().map(|failed| (&failed.document, FileState::Pending));
        // What the library has of a file is more than that a later version of it failed.
        for (document, state) in failed.chain(documents.iter().map(|document| (document, FileState::Ok))) {
            let Some(origin) = &document.origin else { continue };
            let path = PathBuf::from(&origin.path);
            if document.collection == tracked.folder.collection && path.starts_with(&tracked.folder.root) {
                let stamp = (document.bytes, origin.modified_ms);
                tracked.mounted |= origin.mounted;
                tracked.files.insert(path, File { id: document.id.clone(), stamp, state });
            }
        }
        tracked
    }

    /// Whether what is not in the folder now is gone, or the folder itself is away: a card that is not mounted has not
    /// lost its documents.
    ///
    /// # Errors
    /// Why the folder is to be left alone.
    pub(super) fn check(&mut self, wanted: &Wanted) -> Result<(), String> {
        let root = &self.folder.root;
        let metadata = fs::metadata(root).map_err(|error| error.to_string())?;
        if !metadata.is_dir() {
            return Err("it is not a folder".into());
        }
        let is_mount = is_mount_point(root, &metadata).map_err(|error| error.to_string())?;
        if self.mounted && !is_mount && !self.files.is_empty() {
            return Err("nothing is mounted there now".into());
        }
        let identity = (metadata.dev(), metadata.ino());
        if self.trusted != Some(identity) {
            let empty = wanted.below(root, root).entries.is_empty();
            if empty && !self.files.is_empty() {
                return Err("it is empty (if that is meant, remove them with `vademecum documents delete`)".into());
            }
            self.trusted = (!empty).then_some(identity);
        }
        self.mounted = is_mount;
        Ok(())
    }

    /// Compares what is known at or below `path` with what is there. A file that failed is read again when it has changed,
    /// or when it is `path` itself: something was done to it.
    pub(super) fn look(&mut self, wanted: &Wanted, path: &Path) -> Findings {
        let root = self.folder.root.clone();
        let walk = wanted.below(&root, path);
        let told: BTreeSet<String> = walk.failed.iter().map(|(path, reason)| format!("{path}: {reason}")).collect();
        for news in told.difference(&self.told) {
            log::warn!("watched folder {}: {news}", root.display());
        }
        if path == root {
            self.told = told;
        } else {
            self.told.extend(told);
        }
        let mut found = BTreeMap::new();
        for entry in walk.entries {
            found.insert(entry.path.clone(), entry);
        }
        let known = self.files.range(path.to_path_buf()..).map(|(known, _)| known).take_while(|known| known.starts_with(path));
        let is_gone = |known: &&PathBuf| !found.contains_key(*known) && is_gone(wanted, &root, known);
        let gone = known.filter(is_gone).cloned().collect();
        let changed = found.into_values().filter_map(|entry| self.enter(entry, path)).collect();
        Findings { changed, gone, folders: walk.folders }
    }

    /// Enters a file that was found; its path, if it is to be read.
    fn enter(&mut self, entry: Entry, touched: &Path) -> Option<PathBuf> {
        let stamp = (entry.bytes, entry.modified_ms);
        let known = self.files.get(&entry.path);
        let is_done = |file: &File| match file.state {
            FileState::Ok => true,
            FileState::Pending => false,
            FileState::Failed => entry.path != touched,
        };
        if known.is_some_and(|file| file.stamp == stamp && is_done(file)) {
            return None;
        }
        let id = format!("{}{}", self.folder.prefix, entry.id);
        self.files.insert(entry.path.clone(), File { id, stamp, state: FileState::Pending });
        Some(entry.path)
    }
}

/// Whether a file that was not found is no document of the folder any more. When the system cannot say, it is not.
fn is_gone(wanted: &Wanted, root: &Path, path: &Path) -> bool {
    match fs::metadata(path) {
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        Ok(_) => wanted.below(root, path).entries.is_empty(),
    }
}

/// Whether another file system begins at `root`.
fn is_mount_point(root: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
    match root.canonicalize()?.parent() {
        Some(parent) => Ok(fs::metadata(parent)?.dev() != metadata.dev()),
        None => Ok(false),
    }
}
