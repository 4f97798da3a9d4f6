//! Failures of the disk or the database, while the store is open or being opened.
//!
//! A damaged database is set aside and a new one made. The records beside the sources know every document. Documents that the
//! database lacks or has in another version are *missing*, and the owner of an encoder puts them again (see
//! [`Store::next_missing`]).
//!
//! After an error of the disk sled refuses every further write until it is opened anew. It refuses some reads too: those that
//! would tidy a page, or that need a page not written yet. Such a read opens the database anew, as the next change does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use wire::{LibraryWork, Recovery, SetAside};

use super::database::{self, Database};
use super::wholeness::{Unread, Wholeness, beginning};
use super::{Batch, CollectionRecord, Document, DocumentRecord, Store, StoreError, keys};

/// Least time between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Time that a read waits for the database to be opened again. On a slow card that takes as long as a start.
const PATIENCE: Duration = Duration::from_secs(30);
/// More numbers than a database can have given and lost without a trace.
const LOST_NUMBERS: u64 = 1 << 20;
/// Most failed documents that are reported one by one.
const MAX_FAILURES: usize = 20;

/// The trouble of the open database.
#[derive(Debug)]
enum Trouble {
    Disk(String),
    Damage(String),
}

type Key = (String, String);

#[derive(Debug, Default)]
struct State {
    trouble: Option<Trouble>,
    /// The database was closed and could not be opened again.
    disconnected: bool,
    tried: Option<Instant>,
    /// The database was not opened again because the disk is full.
    without_room: bool,
    /// The thread that changes the database or opens it again.
    writer: Option<ThreadId>,
    missing: BTreeMap<Key, DocumentRecord>,
    report: Recovery,
}

/// The store's account of its failures.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    state: Mutex<State>,
    /// Signalled when there is something to rebuild or to mend.
    work: Condvar,
    /// The documents that questions may wait for.
    pub(super) wholeness: Wholeness,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the database can be closed in order.
    pub(super) fn is_sound(&self) -> bool {
        self.state().trouble.is_none()
    }
}

/// The writer's lock, while it is held.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    ledger: &'a Ledger,
    _lock: MutexGuard<'a, ()>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.ledger.state().writer = None;
    }
}

impl Store {
    /// Databases that were set aside, and the state of the rebuild.
    pub fn recovery(&self) -> Recovery {
        let state = self.inner.ledger.state();
        let refusing = match &state.trouble {
            Some(Trouble::Disk(words) | Trouble::Damage(words)) => Some(words.clone()),
            None => None,
        };
        let kept_aside = database::aside_in(&self.inner.dir);
        Recovery { missing: state.missing.len(), kept_aside, refusing, ..state.report.clone() }
    }

    /// The next document to put again, with its source: the likeliest to answer a waiting question, else the oldest; `None`
    /// when there is none. A document whose source has changed counts as failed and is skipped.
    pub fn next_missing(&self) -> Option<(Document, Vec<u8>)> {
        loop {
            let next = self.likeliest_missing()?;
            match self.source(&next.hash) {
                Ok(bytes) if super::sha256_hex(&bytes) == next.hash => return Some((next, bytes)),
                Ok(_) => self.give_up(&next, "its source is damaged; ingest it again"),
                Err(error) => self.give_up(&next, &error.to_string()),
            }
        }
    }

    fn likeliest_missing(&self) -> Option<Document> {
        let whole = self.wholeness();
        if !whole.is_asked() {
            return Some(self.inner.ledger.state().missing.values().min_by_key(|record| record.number)?.document.clone());
        }
        let mut missing: Vec<DocumentRecord> = self.inner.ledger.state().missing.values().cloned().collect();
        missing.sort_unstable_by_key(|record| record.number);
        let unread: Vec<Unread<'_>> = missing.iter().map(|DocumentRecord { document, .. }| Unread::from(document)).collect();
        let begins = |at: usize| beginning(self.inner.sources.open_source(&missing[at].document.hash));
        let next = whole.likeliest(&unread, begins);
        missing.into_iter().nth(next).map(|record| record.document)
    }

    /// Counts a missing document as failed. Its source stays, and the next start tries again.
    pub fn give_up(&self, document: &Document, reason: &str) {
        let mut state = self.inner.ledger.state();
        if state.missing.remove(&key(document)).is_some() {
            log::warn!("{}: it cannot be rebuilt: {reason}", document.id);
            if state.report.failed.len() < MAX_FAILURES {
                state.report.failed.push((document.id.clone(), reason.to_owned()));
            }
        }
        drop(state);
        self.wholeness().is_settled(&document.collection, &document.id);
    }

    /// Waits until a document is missing or the database has to be opened again; opens it.
    pub fn wait_for_repair(&self) {
        let ledger = &self.inner.ledger;
        let broken = |state: &State| state.disconnected || matches!(state.trouble, Some(Trouble::Damage(_)));
        let idle = |state: &mut State| state.missing.is_empty() && !broken(state);
        drop(ledger.work.wait_while(ledger.state(), idle).unwrap_or_else(PoisonError::into_inner));
        drop(self.writer());
        let still_broken = broken(&ledger.state());
        if still_broken {
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether a document waits to be put again.
    pub(super) fn is_missing(&self, document: &Document) -> bool {
        self.inner.ledger.state().missing.contains_key(&key(document))
    }

    /// Notes that a document was put or deleted, and that the index knows of it: it needs no rebuilding. Returns its record if
    /// it was missing.
    pub(super) fn no_longer_missing(&self, document: &Document, rebuilt: bool) -> Option<DocumentRecord> {
        let record = {
            let mut state = self.inner.ledger.state();
            let record = state.missing.remove(&key(document))?;
            state.report.rebuilt += usize::from(rebuilt);
            record
        };
        self.wholeness().stalls(false);
        self.wholeness().is_settled(&document.collection, &document.id);
        Some(record)
    }

    /// Does `work` on the database. A panic of sled's is damage, and damage is remembered.
    pub(super) fn guarded<T>(&self, work: impl FnOnce(&sled::Tree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let tree = self.tree()?;
        let done = catch_unwind(AssertUnwindSafe(|| work(&tree)));
        let done = done.unwrap_or_else(|panic| {
            Err(StoreError::Damaged { dir: self.inner.dir.clone(), detail: read::panic_message(panic.as_ref()) })
        });
        done.inspect_err(|error| {
            if let StoreError::Damaged { detail, .. } = error {
                self.note_trouble(Trouble::Damage(detail.clone()));
            }
        })
    }

    /// Reads from the database: [`Store::guarded`], [`Store::patiently`].
    pub(super) fn reading<T>(&self, mut work: impl FnMut(&sled::Tree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.patiently(|| self.guarded(&mut work))
    }

    /// Reads, and reads again if the database had to be opened anew. A caller that holds the writer's lock gets the error at
    /// once: it must release the lock first.
    pub(super) fn patiently<T>(&self, mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let epoch = self.inner.epoch.load(Ordering::Relaxed);
            match read() {
                Err(StoreError::Io { action, source }) => {
                    let error = StoreError::Io { action, source };
                    if !self.is_open_again(epoch, &error, until) {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// Whether the database was opened again since `epoch`, after `error` was met in it. Opens it if need be.
    fn is_open_again(&self, epoch: u64, error: &StoreError, until: Instant) -> bool {
        let ledger = &self.inner.ledger;
        if ledger.state().writer == Some(std::thread::current().id()) {
            return false;
        }
        if is_of_a_write(error) {
            self.note_trouble(Trouble::Disk(error.to_string()));
        }
        loop {
            // Waits for another thread that is opening it, too.
            drop(self.writer());
            let state = ledger.state();
            if state.trouble.is_none() && !state.disconnected {
                return self.inner.epoch.load(Ordering::Relaxed) != epoch;
            }
            if state.without_room || self.inner.closed.load(Ordering::Relaxed) || Instant::now() >= until {
                return false;
            }
            drop(state);
            std::thread::sleep(PAUSE / 20);
        }
    }

    /// Lets one change at a time in. Opens the database again first, if need be.
    pub(super) fn writer(&self) -> Writing<'_> {
        let writing = self.writer_as_it_is();
        if !self.inner.closed.load(Ordering::Relaxed) {
            self.mend();
        }
        writing
    }

    /// Lets one change at a time in.
    pub(super) fn writer_as_it_is(&self) -> Writing<'_> {
        let lock = self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.ledger.state().writer = Some(std::thread::current().id());
        Writing { ledger: &self.inner.ledger, _lock: lock }
    }

    /// Remembers that a write has failed: sled takes no other write until it is opened again.
    pub(super) fn note_failed_write(&self, error: &StoreError) {
        if let StoreError::Io { .. } = error {
            self.note_trouble(Trouble::Disk(error.to_string()));
        }
    }

    fn note_trouble(&self, trouble: Trouble) {
        let mut state = self.inner.ledger.state();
        // Damage outweighs a full disk.
        if !matches!(state.trouble, Some(Trouble::Damage(_))) {
            if state.trouble.is_none() {
                let (Trouble::Disk(words) | Trouble::Damage(words)) = &trouble;
                log::error!("{words}; nothing is written until the database is open again");
            }
            if let Trouble::Damage(words) = &trouble {
                // Some damage shows only in use: the next start might not find it.
                database::leave_verdict(&self.inner.dir, words);
                self.wholeness().opens();
            }
            state.trouble = Some(trouble);
        }
        self.inner.ledger.work.notify_all();
    }

    /// Opens the database again if that is needed and possible. The caller holds the writer's lock.
    fn mend(&self) {
        let damage = {
            let mut state = self.inner.ledger.state();
            let damage = match &state.trouble {
                None => return,
                Some(Trouble::Damage(words)) => Some(words.clone()),
                Some(Trouble::Disk(_)) => None,
            };
            if state.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
                return;
            }
            state.tried = Some(Instant::now());
            damage
        };
        // Reads go on with the open database. It is closed only if it can surely be opened again.
        let has_room = database::has_room(&self.inner.dir);
        self.inner.ledger.state().without_room = !has_room;
        self.wholeness().stalls(!has_room);
        if !has_room {
            return;
        }
        let damaged = damage.is_some();
        self.disconnect();
        let opened = match damage {
            Some(reason) => self.replace_database(&reason),
            None => self.connect_or_replace(),
        };
        match opened {
            Ok(()) => {
                {
                    let mut state = self.inner.ledger.state();
                    (state.trouble, state.disconnected) = (None, false);
                }
                self.inner.ledger.work.notify_all();
                if !damaged {
                    log::info!("the database is open again after an error of the disk");
                }
            }
            Err(error) => {
                log::error!("the database cannot be opened again: {error}");
                self.inner.ledger.state().disconnected = true;
                self.inner.ledger.work.notify_all();
            }
        }
    }

    /// Closes the database. Its trouble shows when it is opened again.
    fn disconnect(&self) {
        self.wholeness().opens();
        self.inner.epoch.fetch_add(1, Ordering::Relaxed);
        self.indexes().clear();
        let database = self.inner.database.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(database) = database
            && let Err(error) = database.close(&self.inner.dir)
        {
            log::debug!("closing: {error}");
        }
    }

    /// Opens the database, and a new one in its place if it is damaged.
    pub(super) fn connect_or_replace(&self) -> Result<(), StoreError> {
        match self.connect(true) {
            Err(StoreError::Damaged { detail, .. }) => {
                self.disconnect();
                self.replace_database(&detail)
            }
            other => other,
        }
    }

    /// Sets the database aside and makes a new one.
    pub(super) fn replace_database(&self, reason: &str) -> Result<(), StoreError> {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        let path = database::set_aside(&self.inner.dir)?;
        log::error!("the database was damaged ({reason}); it is set aside as {}, and a new one is made", path.display());
        self.inner.ledger.state().report.set_aside.push(SetAside { path, reason });
        self.inner.ledger.state().trouble = None;
        self.connect(true)
    }

    /// Opens the database and finds out which documents it lacks. `thorough` reads the record of every document.
    pub(super) fn connect(&self, thorough: bool) -> Result<(), StoreError> {
        let existed = database::is_there(&self.inner.dir);
        let database = Database::open(&self.inner.dir, &self.inner.options)?;
        // Sled takes a file that it cannot read for a new one.
        if existed && database.tree.is_empty() && !self.inner.sources.records()?.is_empty() {
            let closed = database.close(&self.inner.dir);
            let detail = closed.map_or_else(|error| error.to_string(), |()| "sled found nothing in it".to_owned());
            return Err(StoreError::Damaged { dir: self.inner.dir.clone(), detail });
        }
        *self.inner.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        self.inner.epoch.fetch_add(1, Ordering::Relaxed);
        self.check_schema()?;
        if let Some(bound) = self.inner.bound.get()
            && self.embedder()?.is_none()
        {
            let mut batch = Batch::default();
            batch.insert(keys::EMBEDDER, self.encode(bound)?);
            self.commit(batch)?;
        }
        self.sweep_unfinished()?;
        self.reconcile(thorough)
    }

    /// Compares the database with the records beside the sources, which hold every acknowledged document. `thorough` also
    /// counts the entries under every number: sled has been seen to open with part of a batch.
    fn reconcile(&self, thorough: bool) -> Result<(), StoreError> {
        let current = self.records(keys::DOCUMENTS)?;
        let kept = self.inner.sources.sweep(&current, thorough)?;
        let newest = kept.iter().map(|record| record.number).max().unwrap_or_default();
        let mut whole: HashMap<Key, u64> = current.iter().map(|record| (key(&record.document), record.number)).collect();
        if thorough {
            let remembered: HashSet<Key> = kept.iter().map(|record| key(&record.document)).collect();
            // A new database has lost no numbers.
            if newest > 0 || self.next_number()? > 1 {
                self.renumber(newest)?;
            }
            for record in self.sweep_strays(&current)? {
                whole.remove(&key(&record.document));
            }
            self.forget_deleted(&current, &remembered)?;
            self.count_anew()?;
        } else if self.next_number()? <= newest {
            self.renumber(newest)?;
        }
        let missing: BTreeMap<Key, DocumentRecord> = kept
            .into_iter()
            .map(|record| (key(&record.document), record))
            .filter(|(key, record)| whole.get(key).is_none_or(|number| *number < record.number))
            .collect();
        // A missing document's collection exists: a question to it finds nothing yet, which is no error.
        let collections: BTreeSet<&String> = missing.keys().map(|(collection, _)| collection).collect();
        for name in collections {
            if self.version(name)? == 0 {
                let mut batch = Batch::default();
                self.count(&mut batch, name, [0, 0])?;
                self.commit(batch)?;
            }
        }
        if !missing.is_empty() {
            log::warn!("{} documents are not in the database; they are rebuilt from their sources", missing.len());
        }
        let work = self.work_to_do(missing.is_empty())?;
        let lost = missing.keys().map(|key| (key.0.as_str(), key.1.as_str(), whole.contains_key(key)));
        self.wholeness().has_lost(lost, work);
        let mut state = self.inner.ledger.state();
        state.missing = missing;
        self.inner.ledger.work.notify_all();
        Ok(())
    }

    /// The work that brings the missing documents: after an interrupted change of the encoder nothing was damaged.
    fn work_to_do(&self, none_missing: bool) -> Result<LibraryWork, StoreError> {
        if self.value(keys::REBOUND)?.is_none() {
            return Ok(LibraryWork::Rebuilding);
        }
        if none_missing {
            let mut batch = Batch::default();
            batch.remove(keys::REBOUND);
            self.commit(batch)?;
        }
        Ok(LibraryWork::Embedding)
    }

    /// Raises the next number beyond any that the database may have lost: records and index files tell versions apart by it.
    fn renumber(&self, newest: u64) -> Result<(), StoreError> {
        let next = self.next_number()?.max(newest) + LOST_NUMBERS;
        let mut batch = Batch::default();
        batch.insert(keys::SEQUENCE, &next.to_be_bytes());
        self.commit(batch)
    }

    /// Removes chunks and rows under numbers that no document has; returns the documents that lack some of theirs.
    fn sweep_strays<'a>(&self, current: &'a [DocumentRecord]) -> Result<Vec<&'a DocumentRecord>, StoreError> {
        let mut found: HashMap<u64, [u32; 2]> = HashMap::new();
        for (place, kind) in [keys::CHUNKS, keys::ROWS].into_iter().enumerate() {
            self.scan(kind, &mut |key, _| {
                let number = key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
                found.entry(number.ok_or_else(|| self.damaged(key))?).or_default()[place] += 1;
                Ok(())
            })?;
        }
        let numbers: HashSet<u64> = current.iter().map(|record| record.number).collect();
        for stray in found.keys().filter(|number| !numbers.contains(number)) {
            self.sweep(*stray)?;
        }
        let is_whole = |record: &&DocumentRecord| {
            let chunks = record.document.chunks;
            found.get(&record.number).copied().unwrap_or_default() == [chunks, chunks]
        };
        Ok(current.iter().filter(|record| !is_whole(record)).collect())
    }

    /// Counts the collections anew, under a new version: index files are brought up to date.
    fn count_anew(&self) -> Result<(), StoreError> {
        let mut held: BTreeMap<String, [i64; 2]> = BTreeMap::new();
        for record in self.records(keys::DOCUMENTS)? {
            let counts = held.entry(record.document.collection).or_default();
            *counts = [counts[0] + 1, counts[1] + i64::from(record.document.chunks)];
        }
        for collection in self.collections()? {
            held.entry(collection.name).or_default();
        }
        for (name, [documents, chunks]) in held {
            let was: CollectionRecord = self.get(&keys::collection(&name))?.unwrap_or_default();
            let mut batch = Batch::default();
            self.count(&mut batch, &name, [documents - was.documents as i64, chunks - was.chunks as i64])?;
            self.commit(batch)?;
        }
        Ok(())
    }

    /// Removes documents without a record beside the sources: the database has lost their deletion. If more documents lack a
    /// record than have one, the sources were lost, and the database is believed.
    fn forget_deleted(&self, current: &[DocumentRecord], remembered: &HashSet<Key>) -> Result<(), StoreError> {
        let is_deleted =
            |record: &&DocumentRecord| !remembered.contains(&key(&record.document)) && !self.inner.sources.has_record(record);
        let deleted: Vec<&DocumentRecord> = current.iter().filter(is_deleted).collect();
        if deleted.len() > 1 && deleted.len() > remembered.len() {
            log::error!("{} of {} documents have no copy of their source any more", deleted.len(), current.len());
            return Ok(());
        }
        for record in deleted {
            let document = &record.document;
            log::warn!("{}: its deletion had not reached the database; it is removed", document.id);
            self.remove(record)?;
        }
        Ok(())
    }
}

fn key(document: &Document) -> Key {
    (document.collection.clone(), document.id.clone())
}

/// Whether the error is one that reading does not meet.
fn is_of_a_write(error: &StoreError) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let StoreError::Io { source, .. } = error else { return false };
    matches!(source.kind(), FileTooLarge | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}
