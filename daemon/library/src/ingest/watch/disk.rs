//! The file system as the rules of watching see it, so that tests can give them another one.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::ingest::walk::{Walk, Wanted, modified_ms};

/// Size and time of a file. A file with the same stamp is the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Size in bytes.
    pub(super) bytes: u64,
    /// Time of the last change, in milliseconds since 1970.
    pub(super) modified_ms: u64,
}

/// A folder's place in the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mount {
    /// Device and inode.
    pub(super) identity: (u64, u64),
    /// Whether another file system begins here.
    pub(super) is_mount_point: bool,
}

/// Read access to the watched folders.
pub(super) trait Disk {
    /// The place of the folder `root`; an error when it is missing or no folder.
    fn mount(&self, root: &Path) -> io::Result<Mount>;

    /// The documents at or below `from`, a path in the folder `root`.
    fn below(&self, root: &Path, from: &Path) -> Walk;

    /// The stamp of a file or folder.
    fn stamp(&self, path: &Path) -> io::Result<Stamp>;

    /// Whether `path` is a file, or a link to one.
    fn is_file(&self, path: &Path) -> bool;

    /// Whether a file that a search did not find is no document of the folder any more. Doubt keeps the document.
    fn is_gone(&self, root: &Path, path: &Path) -> bool {
        match self.stamp(path) {
            Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
            Ok(_) => self.below(root, path).entries.is_empty(),
        }
    }
}

/// The real file system, through the globs of the configuration.
impl Disk for Wanted {
    fn mount(&self, root: &Path) -> io::Result<Mount> {
        let metadata = fs::metadata(root)?;
        if !metadata.is_dir() {
            return Err(io::Error::other("it is not a folder"));
        }
        let parent: Option<PathBuf> = root.canonicalize()?.parent().map(Path::to_owned);
        let parent = parent.map(fs::metadata).transpose()?;
        Ok(Mount {
            identity: (metadata.dev(), metadata.ino()),
            is_mount_point: parent.is_some_and(|parent| parent.dev() != metadata.dev()),
        })
    }

    fn below(&self, root: &Path, from: &Path) -> Walk {
        Wanted::below(self, root, from)
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        let metadata = fs::metadata(path)?;
        Ok(Stamp { bytes: metadata.len(), modified_ms: modified_ms(&metadata) })
    }

    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }
}
