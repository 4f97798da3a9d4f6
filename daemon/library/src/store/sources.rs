//! Copies of the sources as plain files beside the database, from which the store can be built again:
//!
//! ```text
//! sources/ab/abcd…            the bytes, named by their SHA-256
//! sources/ab/abcd….<16 hex>.json   one small record per document made from them (id, collection, title, tags, …)
//! ```
//!
//! Both are written before the database learns of the document, and removed only after the database has forgotten it. The
//! database therefore never names a missing source.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::{DocumentRecord, StoreError};

/// Suffix of files that are being written.
pub(super) const UNFINISHED: &str = ".unfinished";

/// Numbers the staged sources.
static STAGED: AtomicU64 = AtomicU64::new(0);

/// A source on disk that no document refers to yet. Dropped before [`Sources::keep`], it is removed.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    /// Its path; `None` if the source was there already.
    unfinished: Option<PathBuf>,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            // Half a file only fills a full disk. The next start removes a file that cannot be removed now.
            let _ = fs::remove_file(unfinished);
        }
    }
}

/// The folder of sources.
#[derive(Debug)]
pub(super) struct Sources {
    root: PathBuf,
}

/// SHA-256 in lower-case hex, as it names a source.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl Sources {
    pub(super) fn open(root: PathBuf) -> Result<Sources, StoreError> {
        fs::create_dir_all(&root).map_err(StoreError::io("create", &root))?;
        Ok(Sources { root })
    }

    /// The path of the source with this hash; `hash` has been checked to be hex.
    fn path(&self, hash: &str) -> PathBuf {
        self.root.join(&hash[..2]).join(hash)
    }

    fn record_path(&self, record: &DocumentRecord) -> PathBuf {
        self.root.join(&record.document.hash[..2]).join(record_name(record))
    }

    /// Writes a source beside its name, if it is not there yet; on disk when this returns.
    pub(super) fn stage(&self, hash: &str, bytes: &[u8]) -> Result<Staged, StoreError> {
        let path = self.path(hash);
        let folder = self.root.join(&hash[..2]);
        // Two documents may bring the same source at the same time.
        let number = STAGED.fetch_add(1, Ordering::Relaxed);
        let unfinished = folder.join(format!("{hash}.{number}{UNFINISHED}"));
        if fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64) {
            // The link keeps the bytes if the other document is deleted before this one is kept.
            let unfinished = fs::hard_link(&path, &unfinished).is_ok().then_some(unfinished);
            return Ok(Staged { path, unfinished });
        }
        if !folder.is_dir() {
            fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
            sync_folder(&self.root)?;
        }
        let staged = Staged { path, unfinished: Some(unfinished.clone()) };
        write_synced(&unfinished, bytes).map_err(StoreError::io("write", &staged.path))?;
        Ok(staged)
    }

    /// Names a staged source and writes the document's record; both are on disk when this returns.
    pub(super) fn keep(&self, record: &DocumentRecord, mut staged: Staged) -> Result<(), StoreError> {
        match staged.unfinished.as_ref() {
            Some(unfinished) => {
                fs::rename(unfinished, &staged.path).map_err(StoreError::io("write", &staged.path))?;
                // A rename of two links to one file does nothing.
                let _ = fs::remove_file(unfinished);
            }
            // Without links, another document's deletion may have removed it since.
            None => fs::metadata(&staged.path).map(|_| ()).map_err(StoreError::io("find", &staged.path))?,
        }
        staged.unfinished = None;
        self.keep_record(record)
    }

    /// Writes the document's record anew beside its source; on disk when this returns.
    pub(super) fn keep_record(&self, record: &DocumentRecord) -> Result<(), StoreError> {
        let json = serde_json::to_vec_pretty(record)
            .map_err(|error| StoreError::Refused { id: record.document.id.clone(), reason: error.to_string() })?;
        let path = self.record_path(record);
        write_file(&path, &json)?;
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// Whether a record of this document and source is there.
    pub(super) fn has_record(&self, record: &DocumentRecord) -> bool {
        self.record_path(record).exists()
    }

    /// Removes a document's record, on disk when this returns. The source itself stays until [`Sources::drop_source`].
    pub(super) fn drop_record(&self, record: &DocumentRecord) -> Result<(), StoreError> {
        let path = self.record_path(record);
        match fs::remove_file(&path) {
            Ok(()) => path.parent().map_or(Ok(()), sync_folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("remove", &path)(error)),
        }
    }

    /// [`Sources::drop_record`] for a document that the database still has: after a failure, the record is there as before.
    pub(super) fn withdraw_record(&self, record: &DocumentRecord) -> Result<(), StoreError> {
        self.drop_record(record).inspect_err(|_| {
            if !self.has_record(record)
                && let Err(error) = self.keep_record(record)
            {
                log::error!("{} is half removed: {error}", record.document.id);
            }
        })
    }

    /// Removes the source with this hash unless a document's record still stands beside it.
    pub(super) fn drop_source(&self, hash: &str) -> Result<(), StoreError> {
        let path = self.path(hash);
        let records = format!("{hash}.");
        if entries(&self.root.join(&hash[..2]))?.iter().any(|name| name.starts_with(&records) && is_record(name)) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Opens a source by its hash, which comes from a record.
    pub(super) fn open_source(&self, hash: &str) -> io::Result<File> {
        if !super::is_hash(hash) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        File::open(self.path(hash))
    }

    pub(super) fn read(&self, hash: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(hash);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// The records beside the sources, the newest of each document, oldest first.
    pub(super) fn records(&self) -> Result<Vec<DocumentRecord>, StoreError> {
        let mut paths = Vec::new();
        for folder in self.folders()? {
            paths.extend(entries(&folder)?.into_iter().filter(|name| is_record(name)).map(|name| folder.join(name)));
        }
        newest(paths)
    }

    /// Removes the leftovers of a crash: unfinished files, records of replaced versions, and sources without a document.
    /// `current` is the database's documents. A record that is newer than the database, or unknown to it, is kept: the database
    /// may have lost that document.
    ///
    /// Returns the newest record of each document that the database seems to lack. `thorough` returns all records, also those
    /// whose difference only reading tells.
    pub(super) fn sweep(&self, current: &[DocumentRecord], thorough: bool) -> Result<Vec<DocumentRecord>, StoreError> {
        let mut left = Vec::new();
        let expected: HashSet<String> = current.iter().map(record_name).collect();
        let hashes: HashSet<&str> = current.iter().map(|record| record.document.hash.as_str()).collect();
        for folder in self.folders()? {
            let mut kept: HashSet<String> = HashSet::new();
            let mut sources = Vec::new();
            for name in entries(&folder)? {
                if name.ends_with(UNFINISHED) {
                    remove(&folder.join(&name))?;
                } else if !is_record(&name) {
                    sources.push(name);
                } else if !expected.contains(&name) && superseded(&folder.join(&name), current) {
                    remove(&folder.join(&name))?;
                } else if let Some((hash, _)) = name.split_once('.') {
                    kept.insert(hash.to_owned());
                    if thorough || !expected.contains(&name) {
                        left.push(folder.join(&name));
                    }
                }
            }
            for name in sources {
                if name.len() == 64 && !kept.contains(&name) && !hashes.contains(name.as_str()) {
                    remove(&folder.join(&name))?;
                }
            }
        }
        newest(left)
    }

    fn folders(&self) -> Result<Vec<PathBuf>, StoreError> {
        let names = entries(&self.root)?;
        Ok(names.into_iter().filter(|name| name.len() == 2).map(|name| self.root.join(name)).collect())
    }
}

/// The records at `paths`, the newest of each document, oldest first.
fn newest(paths: Vec<PathBuf>) -> Result<Vec<DocumentRecord>, StoreError> {
    let mut newest: HashMap<(String, String), DocumentRecord> = HashMap::new();
    for path in paths {
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let Ok(record) = serde_json::from_slice::<DocumentRecord>(&bytes) else {
            log::warn!("{} is not a document record; it is left alone", path.display());
            continue;
        };
        let key = (record.document.collection.clone(), record.document.id.clone());
        let age = |record: &DocumentRecord| (record.number, record.document.added_unix);
        if newest.get(&key).is_none_or(|known| age(known) < age(&record)) {
            newest.insert(key, record);
        }
    }
    let mut records: Vec<DocumentRecord> = newest.into_values().collect();
    records.sort_by_key(|record| record.number);
    Ok(records)
}

fn record_name(record: &DocumentRecord) -> String {
    let document = &record.document;
    let key = Sha256::digest([document.collection.as_bytes(), b"\0", document.id.as_bytes()].concat());
    format!("{}.{}.json", document.hash, hex(&key[..8]))
}

fn is_record(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "json")
}

/// Whether the record at `path` is of a version that one of `current` has replaced.
fn superseded(path: &Path, current: &[DocumentRecord]) -> bool {
    let Some(record) = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<DocumentRecord>(&bytes).ok()) else {
        return false;
    };
    current.iter().any(|known| {
        known.document.collection == record.document.collection
            && known.document.id == record.document.id
            && known.number >= record.number
    })
}

pub(super) fn entries(folder: &Path) -> Result<Vec<String>, StoreError> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", folder)(error)),
    };
    let names = listing.filter_map(|entry| match entry {
        Ok(entry) => entry.file_name().into_string().ok().map(Ok),
        Err(error) => Some(Err(error)),
    });
    names.collect::<io::Result<_>>().map_err(StoreError::io("list", folder))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    log::info!("removing {}, left by an interrupted change", path.display());
    fs::remove_file(path).map_err(StoreError::io("remove", path))
}

/// Writes a file and makes its folder if need be; on disk when this returns.
pub(super) fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    write_file(path, bytes)?;
    sync_folder(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

/// Writes beside the target, syncs, renames: the name never points to half a file.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(UNFINISHED);
    let unfinished = path.with_file_name(name);
    write_synced(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path)).map_err(|error| {
        // Half a file only fills a full disk.
        let _ = fs::remove_file(&unfinished);
        StoreError::io("write", path)(error)
    })
}

/// Writes a file; its content is on disk when this returns, its name may not be.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
}
