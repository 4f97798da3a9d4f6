//! One watched folder: its files, the library's documents from it, and the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use wire::FileState;

use super::disk::{Disk, Stamp};
use crate::{
    ingest::{FoundFile, PassedOver},
    store::{Document, FailedDocument, SourceFile},
};

/// A folder whose documents the library follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Its path.
    pub root: PathBuf,
    /// The collection its documents belong to.
    pub collection: String,
    /// Stands before the ids of its documents, which are paths below the folder.
    pub prefix: String,
}

/// A file that was seen or that a document came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownFile {
    /// The document's id.
    pub(super) id: String,
    /// The stamp when it was seen last.
    pub(super) stamp: Stamp,
    /// Whether the library has it as it is, will have, or cannot.
    pub(super) state: FileState,
}

/// The difference between a folder and the library.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Files that are to be read.
    pub(super) changed: Vec<PathBuf>,
    /// Files whose documents are to be removed.
    pub(super) gone: Vec<PathBuf>,
    /// Folders that were searched.
    pub(super) folders: Vec<PathBuf>,
}

/// A folder and its known files.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) folder: Folder,
    pub(super) files: BTreeMap<PathBuf, KnownFile>,
    /// Whether the folder was a mount point when its documents were taken in.
    mounted: bool,
    /// Device and inode of the folder in which documents were seen last.
    trusted: Option<(u64, u64)>,
    /// Failures that the log was told of: a folder is searched often.
    told: BTreeSet<String>,
    /// Files that no glob takes, as the log was told.
    passed_over: PassedOver,
}

impl Tracked {
    /// A folder with the library's documents from it, and with the files that failed, which are tried again.
    pub(super) fn new(folder: Folder, documents: &[Document], failed: &[FailedDocument]) -> Self {
        let mut tracked = Self {
            folder,
            files: BTreeMap::new(),
            mounted: false,
            trusted: None,
            told: BTreeSet::new(),
            passed_over: PassedOver::default(),
        };
        let failed = failed.iter().map(|failed| (&failed.document, FileState::Pending));
        // A document overrides the failure of a later version of its file.
        for (document, state) in failed.chain(documents.iter().map(|document| (document, FileState::Ok))) {
            let Some(origin) = &document.origin else { continue };
            let path = PathBuf::from(&origin.path);
            if document.collection == tracked.folder.collection && path.starts_with(&tracked.folder.root) {
                let stamp = Stamp { bytes: document.bytes, modified_ms: origin.modified_ms };
                tracked.mounted |= origin.mounted;
                tracked.files.insert(path, KnownFile { id: document.id.clone(), stamp, state });
            }
        }
        tracked
    }

    /// Tells a folder that lost files from a folder that is away: a card that is not mounted has not lost its documents.
    ///
    /// # Errors
    /// Why the folder is to be left alone.
    pub(super) fn check(&mut self, disk: &dyn Disk) -> Result<(), String> {
        let root = &self.folder.root;
        let mount = disk.mount(root).map_err(|error| error.to_string())?;
        if self.mounted && !mount.is_mount_point && !self.files.is_empty() {
            return Err("nothing is mounted there now".into());
        }
        if self.trusted != Some(mount.identity) {
            let empty = disk.below(root, root).entries.is_empty();
            if empty && !self.files.is_empty() {
                return Err("it is empty (if that is meant, remove them with `vademecum documents delete`)".into());
            }
            self.trusted = (!empty).then_some(mount.identity);
        }
        self.mounted = mount.is_mount_point;
        Ok(())
    }

    /// Compares the known files at or below `path` with the disk. A file that failed is read again when it has changed, or
    /// when `path` names it: somebody did something to it.
    pub(super) fn look(&mut self, disk: &dyn Disk, path: &Path) -> Findings {
        let root = self.folder.root.clone();
        let walk = disk.below(&root, path);
        let told: BTreeSet<String> = walk.failed.iter().map(|(path, reason)| format!("{path}: {reason}")).collect();
        for news in told.difference(&self.told) {
            log::warn!("watched folder {}: {news}", root.display());
        }
        // A search of the whole folder counts them all.
        if path == root && walk.passed_over != self.passed_over {
            if walk.passed_over.count > 0 {
                log::info!(
                    "watched folder {}: {}; add their endings to `ingest.include` to take them",
                    root.display(),
                    walk.passed_over
                );
            }
            self.passed_over = walk.passed_over;
        }
        if path == root {
            self.told = told;
        } else {
            self.told.extend(told);
        }
        let mut found = BTreeMap::new();
        for file in walk.entries {
            found.insert(file.path.clone(), file);
        }
        let known = self.files.range(path.to_path_buf()..).map(|(known, _)| known).take_while(|known| known.starts_with(path));
        let is_gone = |known: &&PathBuf| !found.contains_key(*known) && disk.is_gone(&root, known);
        let gone = known.filter(is_gone).cloned().collect();
        let changed = found.into_values().filter_map(|file| self.enter(file, path)).collect();
        Findings { changed, gone, folders: walk.folders }
    }

    /// Enters a file that was found; returns its path if it is to be read.
    fn enter(&mut self, found: FoundFile, touched: &Path) -> Option<PathBuf> {
        let stamp = Stamp { bytes: found.bytes, modified_ms: found.modified_ms };
        let is_done = |file: &KnownFile| match file.state {
            FileState::Ok => true,
            FileState::Pending => false,
            FileState::Failed => found.path != touched,
        };
        if self.files.get(&found.path).is_some_and(|file| file.stamp == stamp && is_done(file)) {
            return None;
        }
        let id = format!("{}{}", self.folder.prefix, found.id);
        self.files.insert(found.path.clone(), KnownFile { id, stamp, state: FileState::Pending });
        Some(found.path)
    }

    /// The file as a document remembers it.
    pub(super) fn origin(&self, path: &Path, stamp: Stamp) -> SourceFile {
        SourceFile { path: path.to_string_lossy().into_owned(), modified_ms: stamp.modified_ms, mounted: self.mounted }
    }

    /// Sets a known file's state; returns the record that the list of documents shows for the file.
    pub(super) fn set_state(&mut self, path: &Path, state: FileState) -> Option<Document> {
        let file = self.files.get_mut(path)?;
        file.state = state;
        let (id, stamp) = (file.id.clone(), file.stamp);
        let (collection, origin) = (self.folder.collection.clone(), Some(self.origin(path, stamp)));
        Some(Document { id, collection, bytes: stamp.bytes, origin, ..Document::default() })
    }
}
