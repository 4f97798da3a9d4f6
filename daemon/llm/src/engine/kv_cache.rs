//! The KV cache on disk: states of [system prompt + passage]. The model reads a passage once, not for every question.
//!
//! ```text
//! <dir>/<database>/<document number>/<key>.kv :  magic 8 bytes, key 32 bytes, CRC-32 of the rest u32 (little endian), state
//! ```
//!
//! The key hashes everything that decides the state: the model, llama.cpp's build, and the tokens of system prompt, template and
//! passage. llama.cpp's parser gets the state only when key and checksum are right; anything else is a miss. A thread of its own
//! writes, touches and evicts the files: a question waits for one read at most.
//!
//! Document numbers are valid within one database. Nothing is kept before [`KvCache::bind`] names the database; states of other
//! databases are removed then. A precomputed state has the time 0 until a question loads it. It is evicted first, and writing it
//! never evicts another state.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::state_file;
use llama_cpp_2::token::LlamaToken;
use sha2::{Digest, Sha256};
use wire::KvCacheReport;

const EXTENSION: &str = "kv";
/// Tasks that may wait for the writer. Further ones are dropped: the state is computed again another time.
const PENDING: usize = 4;
/// Share of the limit that an eviction goes down to, so that not every write evicts. Precomputed states stay below it too: an
/// eviction leaves them no room to come back to.
const EVICT_TO: f64 = 0.9;
/// A file's time is renewed when it is older than this: it only decides the order of eviction.
const TOUCH_AFTER: Duration = Duration::from_secs(600);

/// The place and the limits of the KV cache on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCacheOptions {
    /// The directory; made when missing. Files in it that are not states stay.
    pub dir: PathBuf,
    /// Most bytes of all files together.
    pub max_bytes: u64,
    /// Bytes of the disk that stay free.
    pub min_free: u64,
}

/// Names a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StateKey([u8; 32]);

/// The common beginning of all keys of a context.
#[derive(Debug, Clone)]
pub(super) struct StateKeys(Sha256);

impl StateKeys {
    /// `model` identifies the weights; `placement` says how they lie in memory and which processor uses them.
    pub(super) fn new(model: &str, placement: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [model, placement, crate::llama::build(), "f16 f16 flash unified"] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash)
    }

    /// The key of the state after these tokens.
    pub(super) fn of(&self, tokens: &[LlamaToken]) -> StateKey {
        let mut hash = self.0.clone();
        for token in tokens {
            hash.update(token.0.to_le_bytes());
        }
        StateKey(hash.finalize().into())
    }
}

impl StateKey {
    fn name(&self) -> String {
        let hex: String = self.0[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}.{EXTENSION}")
    }
}

/// Why a state was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A question used it.
    Asked,
    /// The generator precomputed it while idle.
    InAdvance,
}

#[derive(Default)]
struct Counters {
    states: AtomicU64,
    bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    problem: Mutex<Option<String>>,
}

enum Task {
    /// Finds the states of a database and removes those of others.
    Bind(PathBuf),
    Write {
        path: PathBuf,
        bytes: Vec<u8>,
        reason: Reason,
    },
    Touch(PathBuf),
    Remove(PathBuf),
    /// Removes the states of documents that are not in the set.
    Retain(HashSet<u64>),
}

/// Handle to the KV cache; cheap to clone. The writer thread ends with the last handle.
#[derive(Clone)]
pub struct KvCache {
    options: Arc<KvCacheOptions>,
    /// The database's folder, once it is known.
    folder: Arc<OnceLock<PathBuf>>,
    counters: Arc<Counters>,
    writer: Arc<Writer>,
}

struct Writer {
    tasks: Mutex<Option<SyncSender<Task>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The thread ends early only by a panic, which was logged.
            let _ = thread.join();
        }
    }
}

impl KvCache {
    /// Opens a directory and starts the writer.
    ///
    /// # Errors
    /// The directory cannot be made, or no thread started.
    pub(super) fn open(options: &KvCacheOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let (sender, tasks) = sync_channel(PENDING);
        let options = Arc::new(options.clone());
        let counters = Arc::new(Counters::default());
        let mut keeper = Keeper {
            options: Arc::clone(&options),
            counters: Arc::clone(&counters),
            folder: PathBuf::new(),
            files: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("kv-cache".into()).spawn(move || keeper.run(&tasks))?;
        let writer = Writer { tasks: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) };
        Ok(Self { options, folder: Arc::default(), counters, writer: Arc::new(writer) })
    }

    /// Names the database that document numbers refer to; the first call counts. The writer removes the states of other
    /// databases.
    pub fn bind(&self, database: u64) {
        let folder = self.options.dir.join(format!("{database:016x}"));
        if self.folder.set(folder.clone()).is_ok() {
            self.tell_surely(Task::Bind(folder));
        }
    }

    /// Size and use so far.
    pub fn stats(&self) -> KvCacheReport {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KvCacheReport {
            states: of(&self.counters.states),
            bytes: of(&self.counters.bytes),
            max_bytes: self.options.max_bytes,
            hits: of(&self.counters.hits),
            misses: of(&self.counters.misses),
            damaged: of(&self.counters.damaged),
            problem: self.counters.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Removes the states of all documents but `documents`. Blocks while the writer's queue is full.
    pub fn retain(&self, documents: HashSet<u64>) {
        self.tell_surely(Task::Retain(documents));
    }

    /// Whether a precomputed state of this size can be kept without evicting another and with `min_free` left on the disk.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.options.has_room(self.counters.bytes.load(Ordering::Relaxed), bytes)
    }

    /// The checked file of the state that `key` names, its head (see [`state_file::HEAD`]) included.
    pub(super) fn load(&self, document: u64, key: &StateKey) -> Option<Vec<u8>> {
        let path = self.path(document, key)?;
        match self.read(&path) {
            Ok(bytes) if state_file::is_whole(&bytes, &key.0) => {
                self.tell(Task::Touch(path));
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                return Some(bytes);
            }
            Ok(_) => {
                log::warn!("{}: damaged or foreign; the state is computed again", path.display());
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                self.tell(Task::Remove(path));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("{}: {error}; the state is computed again", path.display()),
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// A foreign file may be a pipe that never ends, or larger than the memory; neither is read.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let about = fs::symlink_metadata(path)?;
        let ours = about.is_file() && about.len() <= self.options.max_bytes;
        if ours { fs::read(path) } else { Ok(vec![]) }
    }

    /// Whether a file of this state exists; the file is not read.
    pub(super) fn holds(&self, document: u64, key: &StateKey) -> bool {
        self.path(document, key).is_some_and(|path| path.exists())
    }

    /// Keeps a state: `bytes` are [`state_file::HEAD`] bytes to be filled in, then the state. Never waits: `false` when the
    /// writer's queue is full and the state is not kept.
    pub(super) fn keep(&self, document: u64, key: &StateKey, mut bytes: Vec<u8>, reason: Reason) -> bool {
        let Some(path) = self.path(document, key) else { return false };
        state_file::seal(&mut bytes, &key.0);
        self.tell(Task::Write { path, bytes, reason })
    }

    /// Removes a state that llama.cpp refused, and counts it.
    pub(super) fn refuse(&self, document: u64, key: &StateKey) {
        self.counters.hits.fetch_sub(1, Ordering::Relaxed);
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        if let Some(path) = self.path(document, key) {
            self.tell(Task::Remove(path));
        }
    }

    /// `None` before the database is known.
    fn path(&self, document: u64, key: &StateKey) -> Option<PathBuf> {
        Some(self.folder.get()?.join(document.to_string()).join(key.name()))
    }

    /// Blocks while the writer's queue is full.
    fn tell_surely(&self, task: Task) {
        let sender = self.writer.tasks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = sender {
            let _ = sender.send(task);
        }
    }

    /// `false` when the writer's queue is full.
    fn tell(&self, task: Task) -> bool {
        let sender = self.writer.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_some_and(|sender| sender.try_send(task).is_ok())
    }
}

impl KvCacheOptions {
    /// See [`KvCache::has_room`]. `held`: bytes of the states on disk.
    fn has_room(&self, held: u64, bytes: u64) -> bool {
        held + bytes <= (self.max_bytes as f64 * EVICT_TO) as u64 && !self.is_nearly_full(bytes)
    }

    /// Whether writing `bytes` would leave less than `min_free` on the disk.
    fn is_nearly_full(&self, bytes: u64) -> bool {
        wire::free_bytes(&self.dir).is_some_and(|free| free < self.min_free + bytes)
    }
}

/// The writer's side.
struct Keeper {
    options: Arc<KvCacheOptions>,
    counters: Arc<Counters>,
    /// The database's folder; empty before it is known.
    folder: PathBuf,
    /// Size and last use of each file. The epoch marks a precomputed state that no question has used.
    files: HashMap<PathBuf, (u64, SystemTime)>,
}

impl Keeper {
    fn run(&mut self, tasks: &Receiver<Task>) {
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Bind(folder) => self.bind(folder),
                Task::Write { path, bytes, reason } => self.write(path, &bytes, reason),
                Task::Touch(path) => self.touch(&path),
                Task::Remove(path) => self.remove(&path),
                Task::Retain(documents) => self.retain(&documents),
            }
            self.count();
        }
    }

    fn count(&self) {
        self.counters.states.store(self.files.len() as u64, Ordering::Relaxed);
        self.counters.bytes.store(self.bytes(), Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|(bytes, _)| bytes).sum()
    }

    /// Finds the files of earlier runs. Removes leftovers of interrupted writes and of other databases.
    fn bind(&mut self, folder: PathBuf) {
        for entry in fs::read_dir(&self.options.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // Our folders are named after a database, or a document in the layout of earlier versions: hexadecimal or decimal
            // digits.
            let ours = name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_hexdigit()));
            if ours && entry.path() != folder {
                remove_states(&entry.path());
            }
        }
        for (document, _) in folders(&folder) {
            for entry in fs::read_dir(&document).into_iter().flatten().flatten() {
                let path = entry.path();
                match path.extension().and_then(|extension| extension.to_str()) {
                    Some(EXTENSION) => {
                        if let Ok(about) = entry.metadata() {
                            self.files.insert(path, (about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
                        }
                    }
                    Some("part") => drop(fs::remove_file(&path)),
                    _ => {}
                }
            }
        }
        self.folder = folder;
        self.evict(0);
    }

    fn write(&mut self, path: PathBuf, bytes: &[u8], reason: Reason) {
        let size = bytes.len() as u64;
        if size > self.options.max_bytes {
            let words = format!("a state has {} MB, and model.kv_cache_mb allows less", size.div_ceil(1_000_000));
            return self.trouble(Some(&words));
        }
        if reason == Reason::Asked {
            self.evict(size);
            if self.options.is_nearly_full(size) {
                // Other programs need the space more.
                self.evict_to((self.bytes() as f64 * 0.5) as u64);
                if self.options.is_nearly_full(size) {
                    return self.trouble(Some("the disk is nearly full"));
                }
            }
        } else if self.files.contains_key(&path) || !self.options.has_room(self.bytes(), size) {
            return;
        }
        let used = if reason == Reason::Asked { SystemTime::now() } else { SystemTime::UNIX_EPOCH };
        let part = path.with_extension("part");
        let written = || -> io::Result<()> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            // Not synced: a file torn by a power cut fails its checksum and is a miss.
            let mut file = File::create(&part)?;
            file.write_all(bytes)?;
            file.set_modified(used)?;
            fs::rename(&part, &path)
        };
        match written() {
            Ok(()) => {
                self.files.insert(path, (size, used));
                self.trouble(None);
            }
            Err(error) => {
                let _ = fs::remove_file(&part);
                self.trouble(Some(&error.to_string()));
            }
        }
    }

    /// Logs why states are not kept, once for each reason, and that they are kept again.
    fn trouble(&self, reason: Option<&str>) {
        let now = reason.map(|reason| format!("{}: {reason}; KV states are not kept on disk", self.options.dir.display()));
        let mut told = self.counters.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == now {
            return;
        }
        match &now {
            Some(problem) => log::warn!("{problem}"),
            None => log::info!("KV states are kept on disk again"),
        }
        *told = now;
    }

    fn touch(&mut self, path: &Path) {
        let Some((_, used)) = self.files.get_mut(path) else { return };
        let now = SystemTime::now();
        *used = now;
        // After a restart the file's own time counts.
        if let Ok(file) = File::options().append(true).open(path)
            && let Ok(written) = file.metadata().and_then(|about| about.modified())
            && now.duration_since(written).unwrap_or(TOUCH_AFTER) >= TOUCH_AFTER
        {
            let _ = file.set_modified(now);
        }
    }

    fn remove(&mut self, path: &Path) {
        self.files.remove(path);
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("{}: {error}", path.display());
        }
    }

    fn retain(&mut self, documents: &HashSet<u64>) {
        for (folder, document) in folders(&self.folder) {
            if !documents.contains(&document) {
                self.files.retain(|path, _| !path.starts_with(&folder));
                remove_states(&folder);
            }
        }
    }

    /// Makes room for `more` bytes: the files used longest ago are removed.
    fn evict(&mut self, more: u64) {
        if self.bytes() + more > self.options.max_bytes {
            self.evict_to(((self.options.max_bytes as f64 * EVICT_TO) as u64).saturating_sub(more));
        }
    }

    fn evict_to(&mut self, bytes: u64) {
        let mut held = self.bytes();
        let mut oldest: Vec<(SystemTime, u64, PathBuf)> =
            self.files.iter().map(|(path, (size, used))| (*used, *size, path.clone())).collect();
        oldest.sort();
        for (_, size, path) in oldest {
            if held <= bytes {
                break;
            }
            self.remove(&path);
            held -= size;
        }
    }
}

/// The folders of documents, each with its document's number.
fn folders(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.file_name().to_str()?.parse().ok()?))).collect()
}

/// Removes the states in a folder and in its document folders, then the empty folders.
fn remove_states(folder: &Path) {
    for (document, _) in folders(folder) {
        remove_states(&document);
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION || extension == "part")
            && let Err(error) = fs::remove_file(&path)
        {
            log::warn!("{}: {error}", path.display());
        }
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::state_file::HEAD;
    use super::*;

    const DATABASE: u64 = 0xda7a;

    fn options(dir: &Path, max_bytes: u64) -> KvCacheOptions {
        KvCacheOptions { dir: dir.to_owned(), max_bytes, min_free: 0 }
    }

    fn state(fill: u8) -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        bytes.extend([fill; 1000]);
        bytes
    }

    fn key(n: i32) -> StateKey {
        StateKeys::new("model", "").of(&[LlamaToken(n)])
    }

    fn opened(options: &KvCacheOptions) -> KvCache {
        let cache = KvCache::open(options).expect("opens");
        cache.bind(DATABASE);
        cache
    }

    /// Ends the writer, so that its work is done, and opens the directory again.
    fn reopened(cache: KvCache, options: &KvCacheOptions) -> KvCache {
        drop(cache);
        opened(options)
    }

    /// Sets a file's time of last use.
    fn set_used(cache: &KvCache, document: u64, key: &StateKey, seconds: u64) {
        let file = File::options().append(true).open(cache.path(document, key).expect("bound")).expect("written");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect("its time");
    }

    #[test]
    fn a_state_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = options(dir.path(), 100_000);
        let cache = opened(&options);
        assert!(cache.load(7, &key(1)).is_none());
        cache.keep(7, &key(1), state(5), Reason::Asked);
        let mut cache = reopened(cache, &options);
        let bytes = cache.load(7, &key(1)).expect("kept");
        assert_eq!(bytes[HEAD..], [5; 1000]);
        assert!(cache.load(8, &key(1)).is_none() && cache.load(7, &key(2)).is_none());
        // One flipped bit, a cut, a file under another key's name.
        let path = cache.path(7, &key(1)).expect("bound");
        let whole = fs::read(&path).expect("a file");
        let mut bit = whole.clone();
        bit[500] ^= 1;
        for damaged in [&bit[..], &whole[..700], &whole[..HEAD], &[]] {
            cache = reopened(cache, &options);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, damaged).expect("written");
            assert!(cache.load(7, &key(1)).is_none());
            assert_eq!(cache.stats().damaged, 1);
        }
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(cache.path(7, &key(2)).expect("bound"), &whole).expect("written");
        assert!(cache.load(7, &key(2)).is_none());
        assert_eq!(cache.stats().damaged, 2);
        let cache = reopened(cache, &options);
        assert!(!cache.holds(7, &key(1)), "a damaged file is removed");
    }

    #[test]
    fn problems_of_keeping_states_are_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = options(dir.path(), 100_000);
        // A file in the place of the database's folder.
        fs::write(dir.path().join(format!("{DATABASE:016x}")), "in the way").expect("writes");
        let cache = opened(&options);
        cache.keep(1, &key(1), state(1), Reason::Asked);
        cache.retain(HashSet::from([1]));
        let counters = Arc::clone(&cache.counters);
        let problem = || counters.problem.lock().expect("told").clone();
        drop(cache);
        assert!(problem().is_some_and(|why| why.ends_with("KV states are not kept on disk")), "{:?}", problem());

        let cache = opened(&KvCacheOptions { min_free: u64::MAX / 2, ..options.clone() });
        let full = Arc::clone(&cache.counters);
        cache.keep(1, &key(1), state(1), Reason::Asked);
        drop(cache);
        let told = full.problem.lock().expect("told").clone();
        assert!(told.as_deref().is_some_and(|why| why.contains("nearly full")), "{told:?}");
    }

    #[test]
    fn the_oldest_states_are_evicted_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = options(dir.path(), 5 * (1000 + HEAD as u64));
        let mut cache = opened(&options);
        for n in 0..5 {
            cache.keep(n as u64 % 2, &key(n), state(n as u8), Reason::Asked);
            cache = reopened(cache, &options);
            set_used(&cache, n as u64 % 2, &key(n), 1 + n as u64);
        }
        // The first state is used again: it is now the newest.
        let mut cache = reopened(cache, &options);
        assert!(cache.load(0, &key(0)).is_some());
        cache.keep(0, &key(9), state(9), Reason::Asked);
        cache = reopened(cache, &options);
        let there: Vec<i32> = (0..10).filter(|n| cache.holds(*n as u64 % 2, &key(*n)) || cache.holds(0, &key(*n))).collect();
        assert_eq!(there, [0, 3, 4, 9]);
        cache.retain(HashSet::from([1]));
        cache = reopened(cache, &options);
        assert!(!cache.holds(0, &key(9)) && cache.holds(1, &key(3)));
        let folder = cache.path(0, &key(9)).expect("bound").parent().expect("of its document").to_owned();
        drop(cache);
        assert!(!folder.exists());
    }

    #[test]
    fn precomputed_states_evict_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        // Room for ten states; precomputed ones fill nine tenths.
        let options = options(dir.path(), 10 * (1000 + HEAD as u64));
        let mut cache = opened(&options);
        for n in 0..4 {
            cache.keep(1, &key(n), state(0), Reason::Asked);
            cache = reopened(cache, &options);
            set_used(&cache, 1, &key(n), 1 + n as u64);
        }
        for n in 4..20 {
            cache.keep(2, &key(n), state(0), Reason::InAdvance);
            cache = reopened(cache, &options);
        }
        let there =
            |cache: &KvCache| -> Vec<i32> { (0..40).filter(|n| cache.holds(1, &key(*n)) || cache.holds(2, &key(*n))).collect() };
        assert_eq!(there(&cache), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        // A question uses one of them; the others give way to new states.
        cache = reopened(cache, &options);
        assert!(cache.load(2, &key(5)).is_some());
        for n in 20..24 {
            cache.keep(1, &key(n), state(0), Reason::Asked);
            cache = reopened(cache, &options);
        }
        assert_eq!(there(&cache), [0, 1, 2, 3, 5, 20, 21, 22, 23]);
        cache.keep(2, &key(30), state(0), Reason::InAdvance);
        assert!(!there(&reopened(cache, &options)).contains(&30), "an eviction makes room for what is asked about");
    }

    #[test]
    fn only_states_of_other_databases_are_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = options(dir.path(), 100_000);
        let cache = opened(&options);
        cache.keep(7, &key(1), state(5), Reason::Asked);
        drop(cache);
        let old = dir.path().join("12");
        fs::create_dir(&old).expect("a folder of the old layout");
        fs::write(old.join("0a.kv"), b"old").expect("written");
        let others: Vec<PathBuf> =
            ["notes.txt", "keep/a.kv", "00ff/notes.txt"].iter().map(|name| dir.path().join(name)).collect();
        for path in &others {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, b"somebody's").expect("written");
        }
        // Nothing is kept before the database is bound.
        let cache = KvCache::open(&options).expect("opens");
        assert!(cache.load(7, &key(1)).is_none());
        cache.keep(7, &key(2), state(6), Reason::Asked);
        cache.bind(DATABASE + 1);
        drop(cache);
        let mut left: Vec<_> = fs::read_dir(dir.path()).expect("a folder").map(|entry| entry.expect("one").file_name()).collect();
        left.sort();
        assert_eq!(left, ["00ff", "keep", "notes.txt"]);
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn keys_tell_models_and_tokens_apart() {
        let tokens = [LlamaToken(1), LlamaToken(2)];
        assert_eq!(StateKeys::new("a", "b").of(&tokens), StateKeys::new("a", "b").of(&tokens));
        for (model, placement, tokens) in [("b", "b", &tokens[..]), ("a", "a", &tokens[..]), ("a", "b", &tokens[..1])] {
            assert_ne!(StateKeys::new("a", "b").of(&[LlamaToken(1), LlamaToken(2)]), StateKeys::new(model, placement).of(tokens));
        }
    }
}
