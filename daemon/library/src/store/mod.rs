//! The owner's documents on disk: records, chunks, vectors and terms in sled, the sources as plain files beside it.
//!
//! ```text
//! <dir>/lock      held with flock(2) while a process uses the store; holds its process id
//! <dir>/closed    marks a database closed in order (see `database`)
//! <dir>/db/       sled 0.34, one tree (see `keys`); every acknowledged change is synced
//! <dir>/sources/  the bytes of every document, content-addressed (see `sources`)
//! <dir>/notes/    copies of the notes that other rooms keep beside a collection
//! <dir>/index/    one file per collection that searches read, derived from the database (see `index`, `sections`)
//! <dir>/damaged   marks a damaged database that is not set aside yet
//! <dir>/store.damaged-<time>/  databases that did not open (see `recovery`)
//! ```
//!
//! One version of a document becomes visible by one atomic batch (see `incoming`): after a crash all of it is there or nothing.
//! Chunks and rows of a version carry a number that is never given again. A reader with an old number therefore finds nothing,
//! never another text. Searching reads [`Index`]: the collection's file, and in memory the changes since it was written. The
//! file can be deleted at any time. A file that is missing, damaged, older than the database or of another database is made
//! again.

pub mod backup;
pub mod database;
pub mod dense;
mod error;
mod failed;
mod incoming;
mod index;
mod keys;
mod language;
mod recovery;
mod reserve;
mod row;
// Public for the fuzzer.
#[doc(hidden)]
pub mod sections;
mod sources;
mod statements;
pub mod terms;
pub mod wholeness;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::names;

pub use error::StoreError;
pub use failed::FailedDocument;
pub use incoming::Incoming;
pub use index::{Index, IndexedDocument, Place, Posting};
pub use sources::sha256_hex;
pub use statements::StatementVectors;

use database::Database;
use index::Origin;
use recovery::Ledger;
use row::Row;
use sections::Unusable;
use sources::Sources;
use terms::Language;

/// Steps that turn a database of each older schema, from 1 on, into one of the next. To change the layout in [`keys`], append a
/// step here; a power cut may make it run twice. Keep a database of the old schema in `tests/data`, with a test that opens it,
/// as `recovery.rs` there does. The library is backed up before the first step.
const UPGRADES: &[Upgrade] = &[];
/// Version of the layout in [`keys`]; a store of a newer one is refused.
const SCHEMA: u32 = UPGRADES.len() as u32 + 1;
/// Most attempts to make an index anew during one search when its file proves to be damaged.
const ATTEMPTS: usize = 3;
/// Longest title and media type, in bytes.
pub const MAX_FIELD_BYTES: usize = 4096;
/// Longest chunk text, in bytes: far above any embedder's reach.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// How the database is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Memory sled may use for its page cache, in bytes.
    pub cache_bytes: u64,
    /// Milliseconds between sled's own syncs. Every change is synced before it is acknowledged, so the default is never: a
    /// timer would only wake an idle board.
    pub flush_every_ms: Option<u64>,
    /// Threads that one search may use at most.
    pub threads: usize,
    /// This program, started as a process of its own to check a database that was not closed in order; `None`: no check.
    pub probe: Option<PathBuf>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions { cache_bytes: 16 << 20, flush_every_ms: None, threads: 1, probe: None }
    }
}

/// The identity of the encoder that made the vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedderId {
    /// The model's name, for people.
    pub name: String,
    /// The model's fingerprint: equal fingerprints make comparable vectors.
    pub fingerprint: String,
    /// Numbers per vector.
    pub dimensions: usize,
}

/// A document as the library lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The owner's name for it, unique within the collection; 1 to 512 bytes without control characters.
    pub id: String,
    /// The collection it belongs to: `[a-z0-9][a-z0-9_-]{0,63}`.
    pub collection: String,
    /// Its title, for people; also indexed.
    pub title: String,
    /// Media type of the source.
    pub media_type: String,
    /// SHA-256 of the source, lower-case hex.
    pub hash: String,
    /// Length of the source in bytes.
    pub bytes: u64,
    /// Number of its chunks.
    pub chunks: u32,
    /// When it was added, in seconds since 1970.
    pub added_unix: u64,
    /// Metadata that a filter may name.
    pub tags: BTreeMap<String, String>,
    /// Whether the title was given with the document, rather than found in it.
    #[serde(default)]
    pub titled: bool,
    /// The way it was read and cut: another way makes other chunks of the same bytes.
    #[serde(default)]
    pub recipe: String,
    /// The file that it follows; `None` if it was put by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<SourceFile>,
    /// A note on its reading for its owner, such as damaged pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Title and size of a document's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its title.
    pub title: String,
    /// Number of its chunks.
    pub chunks: u32,
}

/// The file in a watched folder that a document follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its path.
    pub path: String,
    /// Time of the last change before it was read, in milliseconds since 1970.
    pub modified_ms: u64,
    /// Whether the watched folder was a mount point at that time.
    #[serde(default)]
    pub mounted: bool,
}

/// A piece of a document's text, as long as the embedder reads well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Id of the document.
    pub document: String,
    /// Place in the document, from 0 without gaps.
    pub ordinal: u32,
    /// Headings above it, outermost first.
    pub heading: Vec<String>,
    /// Page at its beginning, from 1, if the source has pages.
    pub page: Option<u32>,
    /// The text.
    pub text: String,
    /// Offsets in the text at which further pages begin, in bytes, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<u32>,
    /// Sections that begin inside it, in order, if small ones were joined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<Subsection>,
    /// Offset in the document's text, in bytes.
    pub offset: u64,
    /// Its length in embedder tokens.
    pub tokens: u32,
}

/// A section that begins inside a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subsection {
    /// Offset of its heading in the chunk's text, in bytes. The heading stands there as words on a line of their own.
    pub at: u32,
    /// Offset of its text; the same as `at` if the heading is all there is.
    pub body: u32,
    /// Its headings, outermost first, its own last.
    pub heading: Vec<String>,
}

impl Chunk {
    /// The chunk's name in citations: `<document>#<ordinal>`.
    pub fn id(&self) -> String {
        format!("{}#{}", self.document, self.ordinal)
    }
}

/// The change that [`Store::put`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The document is new.
    Added,
    /// An older version has been replaced.
    Replaced,
}

/// A collection and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// Documents in it.
    pub documents: u64,
    /// Chunks in it.
    pub chunks: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct CollectionRecord {
    documents: u64,
    chunks: u64,
    version: u64,
}

/// A document with the number of this version of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct DocumentRecord {
    number: u64,
    document: Document,
    /// The language of its stems. Documents of older versions were all taken for English.
    #[serde(default)]
    language: Language,
    /// The [`terms::VERSION`] of the terms in its rows. Terms of another version are made anew with each index.
    #[serde(default)]
    terms: u32,
}

/// A step from one schema to the next.
type Upgrade = fn(&Store) -> Result<(), StoreError>;

/// Changes that are applied together.
#[derive(Debug, Default)]
struct Batch {
    changes: sled::Batch,
    keys: Vec<sled::IVec>,
}

impl Batch {
    fn insert(&mut self, key: impl Into<sled::IVec>, value: impl Into<sled::IVec>) {
        let key = key.into();
        self.keys.push(key.clone());
        self.changes.insert(key, value);
    }

    fn remove(&mut self, key: impl Into<sled::IVec>) {
        let key = key.into();
        self.keys.push(key.clone());
        self.changes.remove(key);
    }
}

/// A visitor of entries: key, value.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError> + 'a;

/// The store; clones share one database.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    options: StoreOptions,
    /// `None` while the database is opened again, and after the store was closed.
    database: RwLock<Option<Database>>,
    /// Changes whenever the database is let go of or opened. A put that has written ahead to an earlier opening has lost its
    /// chunks.
    epoch: AtomicU64,
    ledger: Ledger,
    closed: AtomicBool,
    sources: Sources,
    /// See [`keys::IDENTITY`].
    identity: AtomicU64,
    /// The encoder that this process uses.
    bound: OnceLock<EmbedderId>,
    threads: usize,
    /// One change at a time. The lock is also held while an index is read from the database.
    writer: Mutex<()>,
    indexes: Mutex<HashMap<String, Arc<RwLock<Index>>>>,
    _lock: File,
}

impl Store {
    /// Tells whether the store is free, without opening it. The check is cheap and creates nothing.
    ///
    /// # Errors
    /// [`StoreError::Locked`].
    pub fn check_free(dir: &Path) -> Result<(), StoreError> {
        if dir.join("lock").exists() { lock(dir).map(drop) } else { Ok(()) }
    }

    /// Opens the store in `dir`, or creates it, and holds its lock until the last clone is dropped.
    ///
    /// A damaged database is set aside, and a new one made. [`Store::recovery`] tells of it; [`Store::next_missing`] gives the
    /// documents to put again.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).map_err(StoreError::io("create", dir))?;
        reserve::release_if_full(dir);
        let lock = lock(dir)?;
        backup::tidy(dir);
        let inner = Inner {
            dir: dir.to_owned(),
            options: options.clone(),
            database: RwLock::default(),
            epoch: AtomicU64::default(),
            ledger: Ledger::default(),
            closed: AtomicBool::default(),
            sources: Sources::open(dir.join("sources"))?,
            identity: AtomicU64::default(),
            bound: OnceLock::new(),
            threads: options.threads,
            writer: Mutex::default(),
            indexes: Mutex::default(),
            _lock: lock,
        };
        let store = Store { inner: Arc::new(inner) };
        store.open_database()?;
        reserve::set_aside(dir);
        Ok(store)
    }

    fn open_database(&self) -> Result<(), StoreError> {
        let dir = &self.inner.dir;
        let _writer = self.writer_as_it_is();
        let exists = dir.join("db").exists();
        if exists && let Some(reason) = database::verdict(dir) {
            return self.replace_database(&reason);
        }
        if database::take_marker(dir)? && exists {
            return match self.connect(false) {
                Err(StoreError::Damaged { .. }) => self.connect_or_replace(),
                other => other,
            };
        }
        if exists && let Err(StoreError::Damaged { detail, .. }) = database::probe(dir, &self.inner.options) {
            return self.replace_database(&detail);
        }
        self.connect_or_replace()
    }

    /// Syncs and closes the database in order. Every clone of the store is useless from then on.
    pub fn close(&self) -> Result<(), StoreError> {
        let flushed = self.flush();
        let _writer = self.writer();
        self.inner.close();
        flushed
    }

    fn tree(&self) -> Result<sled::Tree, StoreError> {
        let database = self.inner.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(|database| database.tree.clone()).ok_or_else(|| {
            let source = std::io::Error::other("it is closed, or being opened again");
            StoreError::Io { action: format!("use the database {}", self.inner.dir.join("db").display()), source }
        })
    }

    /// The directory the store was opened in.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The embedder whose vectors the store holds; `None` before the first document.
    pub fn embedder(&self) -> Result<Option<EmbedderId>, StoreError> {
        self.get(keys::EMBEDDER)
    }

    /// Binds the store to an embedder: the first one is recorded, any other one refused.
    pub fn bind_embedder(&self, id: &EmbedderId) -> Result<(), StoreError> {
        let _writer = self.writer();
        let _ = self.inner.bound.set(id.clone());
        match self.embedder()? {
            Some(bound) if bound.fingerprint == id.fingerprint && bound.dimensions == id.dimensions => Ok(()),
            Some(bound) => Err(StoreError::EmbedderMismatch {
                stored: format!("{} ({}, {} dimensions)", bound.name, bound.fingerprint, bound.dimensions),
                offered: format!("{} ({}, {} dimensions)", id.name, id.fingerprint, id.dimensions),
            }),
            None => {
                let mut batch = Batch::default();
                batch.insert(keys::EMBEDDER, self.encode(id)?);
                self.commit(batch)
            }
        }
    }

    /// Binds the store to another encoder and forgets every document's chunks and vectors, which are obsolete. The sources and
    /// their records stay: [`Store::kept`] lists the documents to put again.
    pub fn rebind_embedder(&self, id: &EmbedderId) -> Result<(), StoreError> {
        let _writer = self.writer();
        // One document at a time keeps the batches small. The binding changes last: an interrupted run leaves a smaller store
        // of the old encoder and can be started again.
        for record in self.records(keys::DOCUMENTS)? {
            let mut batch = Batch::default();
            remove_rows(&mut batch, &record);
            batch.remove(keys::document(&record.document.collection, &record.document.id));
            self.count(&mut batch, &record.document.collection, [-1, -i64::from(record.document.chunks)])?;
            self.commit(batch)?;
        }
        self.indexes().clear();
        let mut batch = Batch::default();
        batch.insert(keys::EMBEDDER, self.encode(id)?);
        batch.insert(keys::REBOUND, &[]);
        self.commit(batch)
    }

    /// The documents whose sources are kept as files, oldest first, whether or not the database knows them. The store is
    /// rebuilt from them, with [`Store::source`].
    pub fn kept(&self) -> Result<Vec<Document>, StoreError> {
        Ok(self.inner.sources.records()?.into_iter().map(|record| record.document).collect())
    }

    /// Makes a collection known before it has documents.
    pub fn create_collection(&self, name: &str) -> Result<(), StoreError> {
        check_collection(name)?;
        let _writer = self.writer();
        if self.get::<CollectionRecord>(&keys::collection(name))?.is_some() {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.count(&mut batch, name, [0, 0])?;
        self.commit(batch)
    }

    /// Stores a document with its chunks and their unit vectors at once; [`Store::begin_put`] does so in pieces.
    pub fn put(&self, document: &Document, source: &[u8], chunks: &[Chunk], vectors: &[Vec<f32>]) -> Result<Put, StoreError> {
        let mut incoming = self.begin_put(document, source)?;
        incoming.append(chunks, vectors)?;
        incoming.commit()
    }

    /// Applies a committed put to the collection's index, if the index is in memory.
    fn index_put(&self, old: Option<&DocumentRecord>, new: &DocumentRecord) {
        self.update_index(&new.document.collection, |index| {
            if let Some(old) = old {
                index.remove_document(old.number);
            }
            self.read_rows(new, index).is_ok()
        });
    }

    /// [`Store::documents`] of a collection that must be known.
    pub fn known_documents(&self, collection: Option<&str>) -> Result<Vec<Document>, StoreError> {
        let documents = self.documents(collection)?;
        match collection {
            Some(name) if documents.is_empty() && self.version(name)? == 0 => {
                let known = self.collections()?.into_iter().map(|collection| collection.name).collect();
                Err(StoreError::UnknownCollection { name: name.to_owned(), known })
            }
            _ => Ok(documents),
        }
    }

    /// Records the file that a document follows from now on, and nothing else. Returns whether the document is there. Durable
    /// when this returns.
    pub fn set_origin(&self, collection: &str, id: &str, origin: Option<SourceFile>) -> Result<bool, StoreError> {
        check_collection(collection)?;
        check_id(id)?;
        let _writer = self.writer();
        let key = keys::document(collection, id);
        let Some(mut record) = self.get::<DocumentRecord>(&key)? else {
            return Ok(false);
        };
        record.document.origin = origin;
        self.inner.sources.keep_record(&record)?;
        let mut batch = Batch::default();
        batch.insert(key, self.encode(&record)?);
        self.commit(batch)?;
        Ok(true)
    }

    /// A document's record.
    pub fn document(&self, collection: &str, id: &str) -> Result<Option<Document>, StoreError> {
        check_collection(collection)?;
        check_id(id)?;
        let record: Option<DocumentRecord> = self.get(&keys::document(collection, id))?;
        Ok(record.map(|record| record.document))
    }

    /// The documents of a collection, or of all, ordered by collection and id.
    pub fn documents(&self, collection: Option<&str>) -> Result<Vec<Document>, StoreError> {
        let prefix = match collection {
            Some(name) => {
                check_collection(name)?;
                keys::documents_of(name)
            }
            None => keys::DOCUMENTS.to_vec(),
        };
        Ok(self.records(&prefix)?.into_iter().map(|record| record.document).collect())
    }

    /// Numbers of the versions of all documents (see [`IndexedDocument::number`]).
    pub fn numbers(&self) -> Result<HashSet<u64>, StoreError> {
        Ok(self.records(keys::DOCUMENTS)?.into_iter().map(|record| record.number).collect())
    }

    /// Title and number of chunks of each document, by the number of its version.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn outlines(&self) -> Result<BTreeMap<u64, Outline>, StoreError> {
        let outline = |document: Document| Outline { title: document.title, chunks: document.chunks };
        Ok(self.records(keys::DOCUMENTS)?.into_iter().map(|record| (record.number, outline(record.document))).collect())
    }

    /// Identity of the database: the documents' numbers mean nothing outside it.
    pub fn identity(&self) -> u64 {
        self.inner.identity.load(Ordering::Relaxed)
    }

    /// Removes a document with its chunks, vectors and terms, and forgets a failed one of this id. The source goes too unless
    /// another document has the same one. Returns whether there was either. Durable when this returns.
    pub fn delete(&self, collection: &str, id: &str) -> Result<bool, StoreError> {
        check_collection(collection)?;
        check_id(id)?;
        let _writer = self.writer();
        let document = Document { id: id.to_owned(), collection: collection.to_owned(), ..Document::default() };
        let missing = self.no_longer_missing(&document, false);
        if let Some(missing) = &missing {
            self.inner.sources.withdraw_record(missing)?;
            self.forget_source(missing, true);
        }
        let failed = self.drop_failed(collection, id)?;
        let key = keys::document(collection, id);
        let Some(old) = self.get::<DocumentRecord>(&key)? else {
            return Ok(missing.is_some() || failed);
        };
        // The record beside the source goes first. In the other order, a rebuild after a crash in between would bring back a
        // deleted document.
        self.inner.sources.withdraw_record(&old)?;
        self.remove(&old)?;
        Ok(true)
    }

    /// Removes a document whose record beside the source is gone. The caller holds the writer's lock.
    fn remove(&self, old: &DocumentRecord) -> Result<(), StoreError> {
        let collection = &old.document.collection;
        let mut batch = Batch::default();
        remove_rows(&mut batch, old);
        batch.remove(keys::document(collection, &old.document.id));
        self.count(&mut batch, collection, [-1, -i64::from(old.document.chunks)])?;
        self.commit(batch)?;
        self.update_index(collection, |index| {
            index.remove_document(old.number);
            true
        });
        self.forget_source(old, true);
        Ok(())
    }

    /// The collections by name, with their sizes.
    pub fn collections(&self) -> Result<Vec<Collection>, StoreError> {
        let mut collections = Vec::new();
        self.scan(keys::COLLECTIONS, &mut |key, value| {
            let record: CollectionRecord = self.decode(key, value)?;
            let name = String::from_utf8_lossy(&key[keys::COLLECTIONS.len()..]).into_owned();
            collections.push(Collection { name, documents: record.documents, chunks: record.chunks });
            Ok(())
        })?;
        Ok(collections)
    }

    /// The bytes of a source by its SHA-256 in hex.
    pub fn source(&self, hash: &str) -> Result<Vec<u8>, StoreError> {
        let missing = || StoreError::NoSource { hash: hash.to_owned(), dir: self.inner.dir.join("sources") };
        if !is_hash(hash) {
            return Err(missing());
        }
        self.inner.sources.read(hash)?.ok_or_else(missing)
    }

    /// A number that grows with each change of the collection and never repeats; 0 if there is no such collection.
    pub fn version(&self, collection: &str) -> Result<u64, StoreError> {
        let record: Option<CollectionRecord> = self.get(&keys::collection(collection))?;
        Ok(record.map_or(0, |record| record.version))
    }

    /// The value that another room keeps beside a collection under a name of its own, see [`Store::keep_note`].
    pub fn note<T: DeserializeOwned>(&self, collection: &str, name: &str) -> Result<Option<T>, StoreError> {
        check_collection(collection)?;
        match self.get(&keys::note(collection, name))? {
            Some(note) => Ok(Some(note)),
            // The database may be a new one.
            None => {
                Ok(std::fs::read(self.note_path(collection, name)).ok().and_then(|bytes| ciborium::from_reader(&bytes[..]).ok()))
            }
        }
    }

    fn note_path(&self, collection: &str, name: &str) -> PathBuf {
        self.inner.dir.join("notes").join(format!("{collection}.{name}"))
    }

    /// Keeps a small value beside a collection, in place of an older one with the same name. Durable when this returns.
    pub fn keep_note<T: Serialize>(&self, collection: &str, name: &str, value: &T) -> Result<(), StoreError> {
        check_collection(collection)?;
        let _writer = self.writer();
        let encoded = self.encode(value)?;
        sources::write_beside(&self.note_path(collection, name), &encoded)?;
        let mut batch = Batch::default();
        batch.insert(keys::note(collection, name), encoded);
        self.commit(batch)
    }

    /// Every chunk of a collection, by document id and ordinal, handed to `visit` one by one.
    pub fn for_each_chunk(&self, collection: &str, visit: &mut dyn FnMut(Chunk)) -> Result<(), StoreError> {
        check_collection(collection)?;
        for record in self.records(&keys::documents_of(collection))? {
            for ordinal in 0..record.document.chunks {
                if let Some(chunk) = self.chunk(record.number, ordinal)? {
                    visit(chunk);
                }
            }
        }
        Ok(())
    }

    /// Syncs the database, and writes the index files that would take longer to bring up to date at the next start. Changes of
    /// documents are already synced when they return.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _writer = self.writer();
        let indexes: Vec<_> = self.indexes().iter().map(|(name, index)| (name.clone(), index.clone())).collect();
        for (collection, index) in indexes {
            if index.read().unwrap_or_else(PoisonError::into_inner).is_worth_keeping() {
                self.write_index(&collection, &index);
            }
        }
        self.sync()
    }

    fn sync(&self) -> Result<(), StoreError> {
        let synced = self.guarded(|tree| tree.flush().map_err(|error| self.database(error)));
        synced.map(|_| ()).inspect_err(|error| self.note_failed_write(error))
    }

    /// Reads the collection's search index, opening or making it first if need be; `None` when there is no such collection.
    /// Changes wait while `read` runs, so it should only compute. `read` runs again on a new index if the index proves to be
    /// damaged.
    pub fn search<R>(&self, collection: &str, read: impl Fn(&Index) -> R) -> Result<Option<R>, StoreError> {
        for _ in 0..ATTEMPTS {
            let known = self.indexes().get(collection).cloned();
            let index = match known {
                Some(index) => index,
                None => match self.load_index(collection)? {
                    Some(index) => index,
                    None => return Ok(None),
                },
            };
            let held = index.read().unwrap_or_else(PoisonError::into_inner);
            let found = read(&held);
            if !held.is_damaged() {
                return Ok(Some(found));
            }
            drop(held);
            self.discard_index(collection, &index);
        }
        let path = self.index_path(collection);
        let source = std::io::Error::other("the file does not read back as it was written");
        Err(StoreError::io("read", &path)(source))
    }

    /// A chunk by the number of its document's version (see [`IndexedDocument::number`]) and its ordinal; `None` when
    /// that version has been replaced or deleted.
    pub fn chunk(&self, number: u64, ordinal: u32) -> Result<Option<Chunk>, StoreError> {
        self.get(&keys::chunk(number, ordinal))
    }

    /// The vectors of a chunk's statements; `None` when none were kept with it. Damaged ones count as none: they can be
    /// computed.
    pub fn statements(&self, number: u64, ordinal: u32) -> Result<Option<StatementVectors>, StoreError> {
        let value = self.value(&keys::statements(number, ordinal))?;
        Ok(value.and_then(|value| statements::decode(&value)))
    }

    /// Opens the collection's index file and adds the changes since it was written; without a file, all rows.
    fn load_index(&self, collection: &str) -> Result<Option<Arc<RwLock<Index>>>, StoreError> {
        self.patiently(|| self.load_index_once(collection))
    }

    fn load_index_once(&self, collection: &str) -> Result<Option<Arc<RwLock<Index>>>, StoreError> {
        let _writer = self.writer();
        if let Some(index) = self.indexes().get(collection) {
            return Ok(Some(index.clone()));
        }
        let Some(origin) = self.origin(collection)? else { return Ok(None) };
        let path = self.index_path(collection);
        let (index, version) = match Index::open(&path, &origin, self.inner.threads) {
            Ok(opened) => opened,
            Err(reason) => {
                if !matches!(reason, Unusable::Missing) {
                    log::warn!("{} is not used, {reason}; it is made again", path.display());
                    let _ = std::fs::remove_file(&path);
                }
                let dimensions = self.embedder()?.map_or(0, |embedder| embedder.dimensions);
                (Index::new(dimensions, self.inner.threads), 0)
            }
        };
        let index = Arc::new(RwLock::new(index));
        if version < origin.version {
            self.guarded(|_| self.catch_up(collection, &index))?;
        }
        self.indexes().insert(collection.to_owned(), index.clone());
        Ok(Some(index))
    }

    /// Brings an index up to date with the database.
    fn catch_up(&self, collection: &str, index: &RwLock<Index>) -> Result<(), StoreError> {
        let mut records = self.records(&keys::documents_of(collection))?;
        records.sort_unstable_by_key(|record| record.number);
        let numbers: HashSet<u64> = records.iter().map(|record| record.number).collect();
        let write = || index.write().unwrap_or_else(PoisonError::into_inner);
        write().retain_documents(&numbers);
        for record in records {
            let known = write().rows_of(record.number);
            match known {
                Some(rows) if rows == record.document.chunks => {}
                Some(_) => return Err(self.damaged(&keys::rows_of(record.number))),
                None => self.read_rows(&record, &mut write())?,
            }
            if write().is_full() {
                self.write_index(collection, index);
            }
        }
        if write().is_worth_keeping() {
            self.write_index(collection, index);
        }
        Ok(())
    }

    /// Reads the rows of a document from the database into the index.
    fn read_rows(&self, record: &DocumentRecord, index: &mut Index) -> Result<(), StoreError> {
        index.add_document(indexed(record));
        let mut rows = 0;
        self.scan(&keys::rows_of(record.number), &mut |key, value| {
            let row = row::decode(value).ok_or_else(|| self.damaged(key))?;
            let appended = if record.terms == terms::VERSION {
                index.append(&row)
            } else {
                let anew = self.with_terms(record, &row, rows)?;
                row::decode(&anew).and_then(|row| index.append(&row))
            };
            appended.ok_or_else(|| self.damaged(key))?;
            rows += 1;
            Ok(())
        })?;
        if rows == record.document.chunks { Ok(()) } else { Err(self.damaged(&keys::rows_of(record.number))) }
    }

    /// A row of a document that an older version has put, with the terms that this version finds in its chunk.
    fn with_terms(&self, record: &DocumentRecord, row: &Row<'_>, ordinal: u32) -> Result<Vec<u8>, StoreError> {
        let chunk = self.chunk(record.number, ordinal)?.ok_or_else(|| self.damaged(&keys::chunk(record.number, ordinal)))?;
        let head = head_of(&record.document.title, &chunk.heading);
        Ok(row::encode_anew(row, &head, &chunk.text, record.language))
    }

    /// Applies a committed change to the collection's index, if the index is open. An index that the change does not fit is
    /// dropped, and made again when next needed.
    fn update_index(&self, collection: &str, change: impl FnOnce(&mut Index) -> bool) {
        let known = self.indexes().get(collection).cloned();
        let Some(index) = known else { return };
        let (fits, worn) = {
            let mut index = index.write().unwrap_or_else(PoisonError::into_inner);
            (change(&mut index), index.is_worn())
        };
        if !fits {
            self.indexes().remove(collection);
        } else if worn {
            self.write_index(collection, &index);
        }
    }

    /// Writes the collection's index file and searches it from now on. The caller holds the writer's lock, so nothing changes
    /// meanwhile; searches go on. If the file cannot be written, they go on from memory.
    fn write_index(&self, collection: &str, index: &RwLock<Index>) {
        let path = self.index_path(collection);
        let written = || -> Result<Index, String> {
            let origin = self.origin(collection).map_err(|error| error.to_string())?.unwrap_or_default();
            let held = index.read().unwrap_or_else(PoisonError::into_inner);
            path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| error.to_string())?;
            held.write(&path, &origin).map_err(|error| error.to_string())?;
            let (fresh, _) = Index::open(&path, &origin, self.inner.threads).map_err(|error| error.to_string())?;
            Ok(fresh)
        };
        let started = std::time::Instant::now();
        match written() {
            Ok(fresh) => {
                log::info!("wrote {} with {} rows in {:.1} s", path.display(), fresh.rows(), started.elapsed().as_secs_f32());
                *index.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                // Gives back the many small pieces of the tail. Sled's own memory after a read of all rows is not among them
                // (some 80 MB at 100,000 chunks).
                crate::heap::give_back();
            }
            Err(reason) => {
                log::warn!("{} cannot be written, {reason}; the index stays in memory", path.display());
                index.write().unwrap_or_else(PoisonError::into_inner).postpone_writing();
            }
        }
    }

    /// Drops a damaged index and its file, unless another search has done so already.
    fn discard_index(&self, collection: &str, damaged: &Arc<RwLock<Index>>) {
        let _writer = self.writer();
        let mut indexes = self.indexes();
        if indexes.get(collection).is_some_and(|known| Arc::ptr_eq(known, damaged)) {
            let path = self.index_path(collection);
            log::warn!("{} is damaged; it is made again", path.display());
            let _ = std::fs::remove_file(&path);
            indexes.remove(collection);
        }
    }

    fn index_path(&self, collection: &str) -> PathBuf {
        self.inner.dir.join("index").join(format!("{collection}.index"))
    }

    /// The origin of an index of the collection's present state; `None` when there is no such collection.
    fn origin(&self, collection: &str) -> Result<Option<Origin>, StoreError> {
        let Some(record) = self.get::<CollectionRecord>(&keys::collection(collection))? else { return Ok(None) };
        let embedder = self.embedder()?.map(|embedder| embedder.fingerprint).unwrap_or_default();
        Ok(Some(Origin { store: self.identity(), embedder, terms: terms::VERSION, version: record.version }))
    }

    /// Adds to the batch the collection's new counts and version, and the sequence both are drawn from.
    fn count(&self, batch: &mut Batch, collection: &str, change: [i64; 2]) -> Result<(), StoreError> {
        let key = keys::collection(collection);
        let mut record: CollectionRecord = self.get(&key)?.unwrap_or_default();
        let sequence = self.next_number()?;
        record.documents = record.documents.saturating_add_signed(change[0]);
        record.chunks = record.chunks.saturating_add_signed(change[1]);
        record.version = sequence;
        batch.insert(key, self.encode(&record)?);
        batch.insert(keys::SEQUENCE, &sequence.to_be_bytes());
        Ok(())
    }

    fn next_number(&self) -> Result<u64, StoreError> {
        match self.value(keys::SEQUENCE)? {
            None => Ok(1),
            Some(bytes) => {
                let bytes: [u8; 8] = bytes.as_ref().try_into().map_err(|_| self.damaged(keys::SEQUENCE))?;
                Ok(u64::from_be_bytes(bytes) + 1)
            }
        }
    }

    /// Removes the rest of an old version after a committed change. The change stands whatever happens here; the next start
    /// sweeps up.
    fn forget_source(&self, old: &DocumentRecord, all: bool) {
        if !all {
            return;
        }
        let sources = &self.inner.sources;
        if let Err(error) = sources.drop_record(old).and_then(|()| sources.drop_source(&old.document.hash)) {
            log::warn!("{error}; the next start tries again");
        }
    }

    /// Applies a batch and syncs it. After a failure nobody knows how much of it the database holds, so the indexes are read
    /// from the database again.
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.apply(batch).and_then(|()| self.sync()).inspect_err(|_| self.indexes().clear())
    }

    /// Applies a batch; it is on disk after the next [`Store::commit`]. Sled splits an oversized page on its next access, even
    /// a read, and fails the read if it cannot write. Every key is therefore touched now, while the error can still be
    /// reported.
    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        let applied = self.guarded(|tree| {
            let apply = || {
                tree.apply_batch(batch.changes)?;
                batch.keys.iter().try_for_each(|key| tree.contains_key(key).map(drop))
            };
            apply().map_err(|error| self.database(error))
        });
        applied.inspect_err(|error| self.note_failed_write(error))
    }

    /// Brings a database of an older schema up to date. A backup is made first, with which an older version can go on.
    fn upgrade(&self, found: u32, upgrades: &[Upgrade]) -> Result<(), StoreError> {
        let steps = upgrades.iter().zip(1..).filter(|(_, schema)| *schema >= found);
        for (number, (step, schema)) in steps.enumerate() {
            if number == 0 {
                let path = self.inner.dir.join(format!("before-schema-{}.tar.gz", upgrades.len() + 1));
                self.back_up_beside(&path)?;
                log::info!("the database has schema {found}; it is upgraded, and {} is a backup from before", path.display());
            }
            step(self)?;
            let mut batch = Batch::default();
            batch.insert(keys::SCHEMA, self.encode(&(schema + 1))?);
            self.commit(batch)?;
        }
        Ok(())
    }

    /// Refuses a database of a newer schema; gives a new one its schema and its identity.
    fn check_schema(&self) -> Result<(), StoreError> {
        let found: Option<u32> = self.get(keys::SCHEMA)?;
        if let Some(found) = found.filter(|found| *found > SCHEMA) {
            return Err(StoreError::SchemaTooNew { dir: self.inner.dir.clone(), found, known: SCHEMA });
        }
        self.upgrade(found.unwrap_or(SCHEMA), UPGRADES)?;
        let identity = match self.get(keys::IDENTITY)? {
            Some(identity) => identity,
            None => {
                let identity = fastrand::u64(..);
                let mut batch = Batch::default();
                batch.insert(keys::SCHEMA, self.encode(&SCHEMA)?);
                batch.insert(keys::IDENTITY, self.encode(&identity)?);
                self.commit(batch)?;
                identity
            }
        };
        self.inner.identity.store(identity, Ordering::Relaxed);
        Ok(())
    }

    fn records(&self, prefix: &[u8]) -> Result<Vec<DocumentRecord>, StoreError> {
        let mut records = Vec::new();
        self.scan(prefix, &mut |key, value| {
            records.push(self.decode(key, value)?);
            Ok(())
        })?;
        Ok(records)
    }

    /// Hands every entry whose key begins with `prefix` to `visit`, in the order of the keys.
    fn scan(&self, prefix: &[u8], visit: &mut Visit) -> Result<(), StoreError> {
        let mut last: Option<sled::IVec> = None;
        self.reading(|tree| {
            let entries = match last.clone() {
                None => tree.scan_prefix(prefix),
                Some(last) => tree.range((Bound::Excluded(last), Bound::Unbounded)),
            };
            for entry in entries {
                let (key, value) = entry.map_err(|error| self.database(error))?;
                if !key.starts_with(prefix) {
                    break;
                }
                visit(&key, &value)?;
                last = Some(key);
            }
            Ok(())
        })
    }

    fn value(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.reading(|tree| tree.get(key).map_err(|error| self.database(error)))
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.reading(|tree| {
            let value = tree.get(key).map_err(|error| self.database(error))?;
            value.map(|value| self.decode(key, &value)).transpose()
        })
    }

    fn decode<T: DeserializeOwned>(&self, key: &[u8], value: &[u8]) -> Result<T, StoreError> {
        ciborium::from_reader(value).map_err(|_| self.damaged(key))
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).map_err(|error| StoreError::Damaged {
            dir: self.inner.dir.clone(),
            detail: format!("a record cannot be encoded: {error}"),
        })?;
        Ok(bytes)
    }

    fn damaged(&self, key: &[u8]) -> StoreError {
        StoreError::Damaged {
            dir: self.inner.dir.clone(),
            detail: format!("the record {:?} cannot be read", String::from_utf8_lossy(key)),
        }
    }

    fn database(&self, error: sled::Error) -> StoreError {
        StoreError::database(&self.inner.dir, error)
    }

    fn indexes(&self) -> MutexGuard<'_, HashMap<String, Arc<RwLock<Index>>>> {
        self.inner.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Closes the database, and marks it as closed if all of it is on disk.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        match database.map(|database| database.close(&self.dir)) {
            Some(Ok(())) if self.ledger.is_sound() => database::leave_marker(&self.dir),
            Some(Err(error)) => log::error!("{error}"),
            _ => {}
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The lock, the last of the fields, is released after this.
        self.close();
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(StoreError::Locked { dir: dir.to_owned(), pid: text.trim().parse().ok() });
        }
        Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write().map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// Title and headings as one text. A first heading that repeats the title does not count twice.
pub(crate) fn head_of(title: &str, heading: &[String]) -> String {
    let heading = match heading.split_first() {
        Some((first, rest)) if first == title => rest,
        _ => heading,
    };
    std::iter::once(title).chain(heading.iter().map(String::as_str)).collect::<Vec<_>>().join("\n")
}

fn indexed(record: &DocumentRecord) -> IndexedDocument {
    let DocumentRecord { number, document, language, .. } = record;
    IndexedDocument { id: document.id.clone(), number: *number, tags: document.tags.clone(), language: *language }
}

fn remove_rows(batch: &mut Batch, record: &DocumentRecord) {
    for ordinal in 0..record.document.chunks {
        batch.remove(keys::chunk(record.number, ordinal));
        batch.remove(keys::row(record.number, ordinal));
        batch.remove(keys::statements(record.number, ordinal));
    }
}

/// Whether `name` is a collection name.
pub fn check_collection(name: &str) -> Result<(), StoreError> {
    if names::is_collection(name) { Ok(()) } else { Err(StoreError::CollectionName(shown(name))) }
}

/// Whether `id` is a document id.
pub fn check_id(id: &str) -> Result<(), StoreError> {
    names::check_document_id(id).map_err(|_| StoreError::DocumentId(shown(id)))
}

/// The beginning of a refused name, short enough for an error message.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

fn is_hash(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn check_fields(document: &Document) -> Result<(), StoreError> {
    let refused = |reason: String| Err(StoreError::Refused { id: document.id.clone(), reason });
    if [&document.title, &document.media_type].into_iter().any(|field| field.len() > MAX_FIELD_BYTES) {
        return refused(format!("title and media type may have {MAX_FIELD_BYTES} bytes each"));
    }
    names::check_tags(document.tags.iter()).or_else(refused)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
