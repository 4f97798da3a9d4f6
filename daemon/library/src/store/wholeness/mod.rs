//! Whether the library is whole: the one place that knows which documents it still lacks.
//!
//! A document is *lacking* from the moment somebody knows of it until it can be searched or has failed. Three rooms report here:
//!
//! | room | lacking |
//! |---|---|
//! | `recovery` | documents that the database has lost, and all of them while it is opened anew |
//! | `ingest::watch` | files that wait to be read, and folders that nobody has looked through yet |
//! | a door's put | the document on its way, and those that its sender has announced |
//!
//! A question that finds nothing gets a [`Waiting`]: it ends its wait with the documents that were lacking when it came, however
//! many come after them. It leaves its words here, and the readers take the likeliest documents first (`likely`).

mod likely;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use wire::{LibraryState, LibraryWork};

use super::{CollectionRecord, Store, StoreError, keys};

use likely::{Asked, Readers};
pub(crate) use likely::{Unread, beginning};

/// Time that an announced document may take to arrive after the one before. A sender that has died announces nothing more.
const LAPSE: Duration = Duration::from_secs(5);

/// Who reports a lacking document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Reporter {
    /// The database has lost it.
    Database,
    /// A file of a watched folder. A folder itself has the empty id.
    File(String),
    /// A put, by its number.
    Put(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    collection: String,
    document: String,
    from: Reporter,
}

#[derive(Debug)]
struct Lack {
    /// Its number: later ones have higher numbers.
    since: u64,
    work: LibraryWork,
    /// Whether an older version can be searched.
    present: bool,
    /// Whether it is not to be waited for: the disk refuses, or the folder is away.
    stalled: bool,
}

/// Documents that a sender has announced.
#[derive(Debug)]
struct Announced {
    since: u64,
    count: usize,
    /// The end of the announcement; `None` while a document of the sender is on its way.
    lapses: Option<Instant>,
}

impl Announced {
    fn holds(&self, now: Instant) -> bool {
        self.count > 0 && self.lapses.is_none_or(|at| now < at)
    }
}

#[derive(Debug, Default)]
struct Lacks {
    /// The next number.
    next: u64,
    lacking: BTreeMap<Key, Lack>,
    /// The database is being opened, and nobody knows which documents it has: the number of this, if so.
    opening: Option<u64>,
    /// The database cannot be rebuilt at the moment.
    stalled: bool,
    /// By collection.
    announced: BTreeMap<String, Announced>,
    /// Questions that wait, oldest first.
    asked: BTreeMap<u64, Asked>,
}

/// The documents that are lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// The work that brings them.
    pub(crate) work: LibraryWork,
    /// Those that cannot be searched in any version. At least one is counted where nobody knows the number.
    pub(crate) absent: usize,
    /// Those with an older version that can be searched.
    pub(crate) outdated: usize,
}

/// The documents that the library lacks; clones share it.
#[derive(Debug, Clone)]
pub struct Wholeness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lacks: Mutex<Lacks>,
    readers: Mutex<Readers>,
    /// Signalled with every change.
    turns: watch::Sender<()>,
}

impl Default for Wholeness {
    fn default() -> Self {
        Self(Arc::new(Inner { lacks: Mutex::default(), readers: Mutex::default(), turns: watch::Sender::new(()) }))
    }
}

impl Store {
    /// The documents that are still lacking.
    pub fn wholeness(&self) -> &Wholeness {
        &self.inner.ledger.wholeness
    }

    /// The state of a collection, or of all together.
    ///
    /// # Errors
    /// The store's trouble.
    pub fn library_state(&self, collection: Option<&str>) -> Result<LibraryState, StoreError> {
        let lacking = self.wholeness().lacking(collection);
        let documents = match collection {
            Some(name) => self.get::<CollectionRecord>(&keys::collection(name))?.unwrap_or_default().documents,
            None => self.collections()?.iter().map(|collection| collection.documents).sum(),
        };
        let Some(lacking) = lacking else {
            return Ok(LibraryState { state: LibraryWork::Whole, have: documents, of: documents });
        };
        let have = documents.saturating_sub(lacking.outdated as u64);
        Ok(LibraryState { state: lacking.work, have, of: have + (lacking.outdated + lacking.absent) as u64 })
    }
}

impl Wholeness {
    fn lacks(&self) -> MutexGuard<'_, Lacks> {
        self.0.lacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, and wakes everybody who waits for one.
    fn change<T>(&self, change: impl FnOnce(&mut Lacks) -> T) -> T {
        let done = change(&mut self.lacks());
        self.0.turns.send_replace(());
        done
    }

    /// A receiver that is woken by every change.
    pub fn turns(&self) -> watch::Receiver<()> {
        self.0.turns.subscribe()
    }

    /// A question's view: the documents of its collection that are lacking now.
    pub fn waiting(&self, collection: &str) -> Waiting {
        let turns = self.turns();
        let before = self.lacks().next;
        Waiting { whole: self.clone(), turns, collection: collection.to_owned(), before, left: 0, number: None }
    }

    /// The documents that a collection, or any, lacks; `None` if it is whole.
    pub(crate) fn lacking(&self, collection: Option<&str>) -> Option<Lacking> {
        self.lacks().count(collection, Instant::now())
    }

    /// Notes that the database is being opened anew: any document may be lost.
    pub(crate) fn opens(&self) {
        self.change(|lacks| {
            if lacks.opening.is_none() {
                lacks.opening = Some(lacks.number());
            }
        });
    }

    /// Notes the documents that the opened database has lost: collection, id, and whether it has an older version.
    pub(crate) fn has_lost<'a>(&self, documents: impl Iterator<Item = (&'a str, &'a str, bool)>, work: LibraryWork) {
        self.change(|lacks| {
            let before = lacks.opening.take();
            lacks.stalled = false;
            let was: BTreeMap<Key, u64> = lacks
                .lacking
                .extract_if(.., |key, _| key.from == Reporter::Database)
                .map(|(key, lack)| (key, lack.since))
                .collect();
            for (collection, document, present) in documents {
                let key = Key { collection: collection.to_owned(), document: document.to_owned(), from: Reporter::Database };
                // A question that came while the database was opened waits for these documents.
                let since = was.get(&key).copied().or(before).unwrap_or_else(|| lacks.number());
                lacks.lacking.insert(key, Lack { since, work, present, stalled: false });
            }
        });
    }

    /// Notes that a lost document is back, is deleted or cannot be rebuilt.
    pub(crate) fn is_settled(&self, collection: &str, document: &str) {
        let key = Key { collection: collection.to_owned(), document: document.to_owned(), from: Reporter::Database };
        if self.lacks().lacking.contains_key(&key) {
            self.change(|lacks| lacks.lacking.remove(&key));
        }
    }

    /// Notes whether the disk refuses to take the lost documents.
    pub(crate) fn stalls(&self, stalled: bool) {
        if self.lacks().stalled != stalled {
            self.change(|lacks| lacks.stalled = stalled);
        }
    }

    /// Notes a folder that nobody has looked through yet.
    pub(crate) fn has_folder(&self, collection: &str, root: &Path) {
        self.has_file(collection, "", root, false, false);
    }

    /// Notes that a folder was looked through, or is away.
    pub(crate) fn has_seen_folder(&self, collection: &str, root: &Path) {
        self.has_read(collection, "", root);
    }

    /// Notes a file that waits to be read. `present`: an older version can be searched. `stalled`: the disk refuses it.
    pub(crate) fn has_file(&self, collection: &str, document: &str, path: &Path, present: bool, stalled: bool) {
        let key = file(collection, document, path);
        self.change(|lacks| {
            let known = lacks.lacking.get(&key).map(|lack| lack.since);
            let since = known.unwrap_or_else(|| lacks.number());
            lacks.lacking.insert(key, Lack { since, work: LibraryWork::Ingesting, present, stalled });
        });
    }

    /// Notes that a file was read, has failed or is gone.
    pub(crate) fn has_read(&self, collection: &str, document: &str, path: &Path) {
        let key = file(collection, document, path);
        if self.lacks().lacking.contains_key(&key) {
            self.change(|lacks| lacks.lacking.remove(&key));
        }
    }

    /// Notes whether a watched folder is away: its files are not waited for.
    pub(crate) fn is_away(&self, root: &Path, away: bool) {
        self.change(|lacks| {
            let below = |key: &Key| matches!(&key.from, Reporter::File(path) if Path::new(path).starts_with(root));
            lacks.lacking.iter_mut().filter(|(key, _)| below(key)).for_each(|(_, lack)| lack.stalled = away);
        });
    }

    /// Forgets all files and folders: others are watched from now on.
    pub(crate) fn forget_files(&self) {
        self.change(|lacks| lacks.lacking.retain(|key, _| !matches!(key.from, Reporter::File(_))));
    }

    /// Notes a document on its way through a door, until the value is dropped. `present`: an older version can be searched.
    /// `more`: documents that its sender puts after this one, if the sender tells; 0 ends its announcement.
    pub fn puts(&self, collection: &str, document: &str, present: bool, more: Option<usize>) -> Putting {
        let key = self.change(|lacks| lacks.begin(collection, document, present, more, Instant::now()));
        Putting { whole: self.clone(), key, announces: more.is_some() }
    }

    /// The place of the document to read next among `candidates`: the likeliest to answer a waiting question, else the first.
    /// `begins` reads the beginning of the text of the candidate at a place.
    pub(crate) fn likeliest(&self, candidates: &[Unread<'_>], begins: impl Fn(usize) -> String) -> usize {
        let asked: Vec<Asked> = self.lacks().asked.values().cloned().collect();
        let mut readers = self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.likeliest(&asked, candidates, begins)
    }

    /// Whether a question waits.
    pub(crate) fn is_asked(&self) -> bool {
        !self.lacks().asked.is_empty()
    }
}

fn file(collection: &str, document: &str, path: &Path) -> Key {
    let from = Reporter::File(path.to_string_lossy().into_owned());
    Key { collection: collection.to_owned(), document: document.to_owned(), from }
}

impl Lacks {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn is_stalled(&self, key: &Key, lack: &Lack) -> bool {
        lack.stalled || (self.stalled && key.from == Reporter::Database)
    }

    fn count(&self, collection: Option<&str>, now: Instant) -> Option<Lacking> {
        let wanted = |name: &str| collection.is_none_or(|wanted| wanted == name);
        let mut work = self.opening.map(|_| LibraryWork::Rebuilding);
        let mut documents: BTreeMap<(&str, &str), bool> = BTreeMap::new();
        for (key, lack) in self.lacking.iter().filter(|(key, _)| wanted(&key.collection)) {
            work = work.max(Some(lack.work));
            // Two rooms may bring the same document.
            *documents.entry((&key.collection, &key.document)).or_default() |= lack.present;
        }
        let announced: usize =
            self.announced.iter().filter(|(name, of)| wanted(name) && of.holds(now)).map(|(_, of)| of.count).sum();
        work = work.max((announced > 0).then_some(LibraryWork::Ingesting));
        let outdated = documents.values().filter(|present| **present).count();
        let absent = documents.len() - outdated + announced + usize::from(self.opening.is_some());
        work.map(|work| Lacking { work, absent, outdated })
    }

    /// Documents of a collection with numbers below `before` that will come, and the time at which that changes by itself.
    fn left(&self, collection: &str, before: u64, now: Instant) -> (usize, Option<Instant>) {
        let comes =
            |(key, lack): &(&Key, &Lack)| key.collection == collection && lack.since < before && !self.is_stalled(key, lack);
        let opening = self.opening.is_some_and(|since| since < before && !self.stalled);
        let announced = self.announced.get(collection).filter(|of| of.since < before && of.holds(now));
        let count = self.lacking.iter().filter(comes).count() + usize::from(opening) + announced.map_or(0, |of| of.count);
        (count, announced.and_then(|of| of.lapses))
    }

    fn begin(&mut self, collection: &str, document: &str, present: bool, more: Option<usize>, now: Instant) -> Key {
        let number = self.number();
        let mut since = number;
        if let Some(count) = more {
            // An announced document has been lacking since it was announced.
            since = self.announced.get(collection).filter(|of| of.holds(now)).map_or(number, |of| of.since);
            self.announced.insert(collection.to_owned(), Announced { since, count, lapses: None });
        }
        let key = Key { collection: collection.to_owned(), document: document.to_owned(), from: Reporter::Put(number) };
        self.lacking.insert(key.clone(), Lack { since, work: LibraryWork::Ingesting, present, stalled: false });
        key
    }

    fn end(&mut self, key: &Key, announces: bool, now: Instant) {
        self.lacking.remove(key);
        if announces && let Some(announced) = self.announced.get_mut(&key.collection) {
            announced.lapses = Some(now + LAPSE);
        }
        self.announced.retain(|_, of| of.holds(now));
    }
}

/// A put on its way.
#[derive(Debug)]
pub struct Putting {
    whole: Wholeness,
    key: Key,
    announces: bool,
}

impl Drop for Putting {
    fn drop(&mut self) {
        self.whole.change(|lacks| lacks.end(&self.key, self.announces, Instant::now()));
    }
}

/// A question's view of the documents that were lacking when it came.
#[derive(Debug)]
pub struct Waiting {
    whole: Wholeness,
    turns: watch::Receiver<()>,
    collection: String,
    before: u64,
    left: usize,
    number: Option<u64>,
}

impl Waiting {
    /// Whether one of the documents is still to come. Ask before each search: [`Waiting::changed`] tells of later changes.
    pub fn comes(&mut self) -> bool {
        self.turns.mark_unchanged();
        self.left = self.left_now().0;
        self.left > 0
    }

    fn left_now(&self) -> (usize, Option<Instant>) {
        self.whole.lacks().left(&self.collection, self.before, Instant::now())
    }

    /// Leaves the question's words: documents that share them are read first.
    pub fn ask(&mut self, text: &str) {
        let asked = Asked::new(&self.collection, text);
        let mut lacks = self.whole.lacks();
        let number = lacks.asked.last_key_value().map_or(0, |(last, _)| last + 1);
        lacks.asked.insert(number, asked);
        self.number = Some(number);
    }

    /// Waits until one of the documents has come, or comes no more.
    pub async fn changed(&mut self) {
        loop {
            let (left, lapses) = self.left_now();
            if left != self.left {
                return;
            }
            let lapse = async {
                match lapses {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                turned = self.turns.changed() => if turned.is_err() { return },
                () = lapse => {}
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.whole.lacks().asked.remove(&number);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
