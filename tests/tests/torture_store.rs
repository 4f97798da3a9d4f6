//! Damaged stores: a writer is stopped at a random moment, and a copy of its store is damaged like cards and power cuts damage
//! it, and opened again. Every acknowledged document must be there, or be rebuilt from its source.
//!
//! `TORTURE=N` damages N copies (default 40). `SEED=S` chooses the random choices; the exact moment at which the writer stops
//! depends on the scheduler. The counters are printed:
//! `cargo nextest run --release -p vademecum-tests torture_store --no-capture`.

use library::store::{Chunk, Document, EmbedderId, Incoming, Store, StoreError, StoreOptions, sha256_hex};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use vademecum_tests::{Killed, PATIENCE, Seed, binary, temp_dir, wait_for};

const DIMENSIONS: usize = 16;
const DOCUMENTS: u64 = 24;
/// Copies made of one writer before it is killed and started anew on its own store.
const COPIES: usize = 12;
/// How long sled may take for a small store before the table counts it as hung. No claim depends on it.
const HUNG: Duration = Duration::from_secs(10);
/// How long one store may take before the run ends itself and leaves the store where it is.
const STUCK: Duration = Duration::from_secs(2 * PATIENCE.as_secs());
const PAGE: u64 = 4096;

fn text(id: u64, version: u64) -> String {
    // Sizes from one chunk to some hundred. Long documents go into the database in pieces.
    let lines = 1 + (id * 7 + version * 13) % if version.is_multiple_of(9) { 400 } else { 12 };
    (0..lines)
        .map(|line| format!("document{id} version{version} line{line} {}\n", "filler ".repeat((line % 40) as usize)))
        .collect()
}

fn put(store: &Store, id: u64, version: u64) {
    let text = text(id, version);
    let document = Document {
        id: format!("d{id}"),
        collection: "c".into(),
        title: format!("Document {id}"),
        media_type: "text/plain".into(),
        hash: sha256_hex(text.as_bytes()),
        added_unix: version,
        ..Document::default()
    };
    put_text(store.begin_put(&document, text.as_bytes()).expect("begun"), &document.id, &text).expect("put");
}

fn put_text(mut incoming: Incoming, id: &str, text: &str) -> Result<(), StoreError> {
    let chunk = |(line, ordinal): (&str, u32)| Chunk {
        document: id.into(),
        ordinal,
        heading: vec![],
        page: None,
        text: line.into(),
        breaks: vec![],
        sections: vec![],
        offset: 0,
        tokens: 1,
    };
    let chunks: Vec<Chunk> = text.lines().zip(0..).map(chunk).collect();
    incoming.append(&chunks, &vec![vec![0.25; DIMENSIONS]; chunks.len()])?;
    incoming.commit().map(|_| ())
}

fn open(dir: &Path) -> Store {
    let options = StoreOptions { probe: Some(binary()), ..StoreOptions::default() };
    let store = Store::open(dir, &options).expect("whatever was done to it, it opens");
    let embedder = EmbedderId { name: "test".into(), fingerprint: "f".into(), dimensions: DIMENSIONS };
    store.bind_embedder(&embedder).expect("bound");
    store
}

/// The writer, in a process of its own until it is killed. It puts, replaces and deletes, and prints each beginning and each
/// acknowledgement.
#[test]
#[ignore = "the body of another test"]
fn write_until_killed() {
    // Only `every_acknowledged_document_survives_damage` runs this; alone it claims nothing.
    let Some(dir) = std::env::var_os("TORTURE_STORE") else { return };
    let store = open(Path::new(&dir));
    let mut random = fastrand::Rng::with_seed(std::env::var("SEED").expect("a seed").parse().expect("a number"));
    let first: u64 = std::env::var("TORTURE_VERSION").expect("a version").parse().expect("a number");
    for version in first.. {
        let id = random.u64(0..DOCUMENTS);
        let deletes = random.u8(0..6) == 0;
        println!("begin {id} {}", if deletes { 0 } else { version });
        if deletes {
            store.delete("c", &format!("d{id}")).expect("deleted");
        } else {
            put(&store, id, version);
        }
        if version.is_multiple_of(40) {
            store.flush().expect("flushed");
        }
        println!("done");
    }
}

/// The writer's output: the version of each document that was acknowledged last (0: deleted), and the change that was begun.
#[derive(Clone, Default)]
struct Said {
    acknowledged: BTreeMap<u64, u64>,
    begun: Option<(u64, u64)>,
    highest: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        if line.starts_with("begin ") && numbers.len() == 2 {
            self.begun = Some((numbers[0], numbers[1]));
            self.highest = self.highest.max(numbers[1]);
        } else if line == "done"
            && let Some((id, version)) = self.begun.take()
        {
            self.acknowledged.insert(id, version);
        }
    }
}

struct Writer {
    child: Killed,
    output: File,
    heard: String,
    said: Said,
}

impl Writer {
    fn start(dir: &Path, seed: u64, said: Said) -> Self {
        let path = dir.with_extension("out");
        let output = File::create(&path).expect("its output");
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "write_until_killed", "--ignored", "--nocapture"])
            .env("TORTURE_STORE", dir)
            .env("TORTURE_VERSION", (said.highest + 1).to_string())
            .env("SEED", seed.to_string())
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .expect("it starts");
        Self { child: Killed(child), output: File::open(path).expect("its output"), heard: String::new(), said }
    }

    /// Takes in its output so far.
    fn hear(&mut self) {
        self.output.read_to_string(&mut self.heard).expect("text");
        let whole = self.heard.rfind('\n').map_or(0, |end| end + 1);
        for line in self.heard.drain(..whole).as_str().lines() {
            self.said.hear(line);
        }
    }

    /// Lets it write for `time`, at least until it has begun; then stops it.
    fn run_for(&mut self, time: Duration) {
        let (begun, before) = (Instant::now(), self.said.highest);
        // The first damage meets a library of some size.
        wait_for("the writer to write", || {
            assert!(self.child.0.try_wait().expect("its state").is_none(), "the writer has ended");
            self.hear();
            (begun.elapsed() >= time && self.said.highest >= 60.max(before + 1)).then_some(())
        });
        self.child.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.0.id());
        wait_for("the writer to stop", || fs::read_to_string(&stat).ok()?.contains(") T ").then_some(()));
        self.hear();
    }
}

/// The damage to the database of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    /// No damage, as after a kill.
    None,
    /// The end of the file is missing.
    Truncated,
    /// Some of the last pages are zeros.
    Zeroed,
    /// Single bits among the last pages are other ones.
    FlippedAtEnd,
    /// Single bits anywhere are other ones.
    Flipped,
    /// Pages written since an earlier moment are as they were then.
    Unwritten,
    /// A whole file is missing, or empty.
    FileLost,
}

const DAMAGES: [Damage; 7] =
    [Damage::None, Damage::Truncated, Damage::Zeroed, Damage::FlippedAtEnd, Damage::Flipped, Damage::Unwritten, Damage::FileLost];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Bytes of sled's file up to the last that is not zero: it grows by whole segments.
fn used(file: &File) -> u64 {
    let mut end = file.metadata().expect("its size").len();
    let mut page = vec![0; PAGE as usize];
    while end >= PAGE {
        file.read_exact_at(&mut page, end - PAGE).expect("read");
        if let Some(last) = page.iter().rposition(|byte| *byte != 0) {
            return end - PAGE + last as u64 + 1;
        }
        end -= PAGE;
    }
    end
}

fn flip(file: &File, at: u64, random: &mut fastrand::Rng) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ (1 << random.u8(0..8))], at).expect("written");
}

fn damage(store: &Path, earlier: &Path, damage: Damage, random: &mut fastrand::Rng) {
    let path = store.join("db/db");
    let mut file = File::options().read(true).write(true).open(&path).expect("the database");
    let used = used(&file).max(1);
    let tail = used.saturating_sub(16 * PAGE);
    match damage {
        Damage::None => {}
        Damage::Truncated => file.set_len(random.u64(tail..used)).expect("cut"),
        Damage::Zeroed => {
            for _ in 0..random.u64(1..4) {
                let at = random.u64(tail..used) / PAGE * PAGE;
                let length = PAGE.min(used - at) as usize;
                file.write_all_at(&vec![0; length], at).expect("written");
            }
        }
        Damage::FlippedAtEnd => (0..random.u64(1..6)).for_each(|_| flip(&file, random.u64(tail..used), random)),
        Damage::Flipped => (0..random.u64(1..6)).for_each(|_| flip(&file, random.u64(0..used), random)),
        Damage::Unwritten => {
            let old = fs::read(earlier.join("db/db")).expect("an earlier moment");
            let mut new = Vec::new();
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut new)).expect("read");
            for (page, at) in new.chunks(PAGE as usize).zip((0..).step_by(PAGE as usize)) {
                let before = old.get(at..(at + page.len()).min(old.len())).unwrap_or_default();
                if before != page && random.bool() {
                    let mut before = before.to_vec();
                    before.resize(page.len(), 0);
                    file.write_all_at(&before, at as u64).expect("written");
                }
            }
        }
        Damage::FileLost => {
            drop(file);
            let mut files: Vec<PathBuf> =
                fs::read_dir(store.join("db")).expect("a folder").map(|e| e.expect("one").path()).collect();
            files.extend(fs::read_dir(store.join("db/blobs")).into_iter().flatten().map(|e| e.expect("one").path()));
            files.retain(|path| path.is_file());
            files.sort();
            let lost = &files[random.usize(..files.len())];
            if random.bool() { fs::remove_file(lost) } else { File::create(lost).map(drop) }.expect("lost");
        }
    }
}

/// The end of sled's attempt to open a damaged database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sled {
    Opened,
    Refused,
    Panicked,
    Hung,
    Died,
}

/// Has a process of its own open a copy of the database, as the daemon does after an end out of order.
fn sled_opens(store: &Path) -> (Sled, String) {
    let copied = store.with_extension("probed");
    copy(&store.join("db"), &copied.join("db"));
    let words = copied.join("words");
    let output = File::create(&words).expect("its output");
    let child = Command::new(binary()).arg("probe-store").arg(&copied).stdout(Stdio::null()).stderr(output).spawn();
    let mut child = Killed(child.expect("it starts"));
    let begun = Instant::now();
    let status = loop {
        match child.0.try_wait().expect("its state") {
            Some(status) => break Some(status),
            None if begun.elapsed() > HUNG => break None,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    drop(child);
    let words = fs::read_to_string(words).unwrap_or_default();
    let last = words.lines().last().unwrap_or_default().to_owned();
    fs::remove_dir_all(&copied).expect("removed");
    let did = match status {
        None => Sled::Hung,
        Some(status) => match status.code() {
            Some(0) => Sled::Opened,
            Some(_) if last.starts_with("sled panicked") => Sled::Panicked,
            Some(_) => Sled::Refused,
            None => Sled::Died,
        },
    };
    (did, last)
}

/// The account of the whole run.
#[derive(Default)]
struct Counters {
    sled: BTreeMap<(Damage, Sled), usize>,
    /// sled opened the database, and acknowledged documents were missing.
    silent: BTreeMap<Damage, usize>,
    set_aside: usize,
    /// Databases that opened, could be read, and failed in use.
    late: usize,
    rebuilt: usize,
    documents: usize,
    lost: usize,
    revived: usize,
    slowest: Duration,
}

impl fmt::Display for Counters {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| damage | stores | opened | of these, documents missing | refused | panicked | hung | died |")?;
        writeln!(out, "|---|---|---|---|---|---|---|---|")?;
        for damage in DAMAGES {
            let of = |sled| self.sled.get(&(damage, sled)).copied().unwrap_or_default();
            let [opened, refused, panicked, hung, died] =
                [Sled::Opened, Sled::Refused, Sled::Panicked, Sled::Hung, Sled::Died].map(of);
            let (all, silent) =
                (opened + refused + panicked + hung + died, self.silent.get(&damage).copied().unwrap_or_default());
            writeln!(out, "| {damage:?} | {all} | {opened} | {silent} | {refused} | {panicked} | {hung} | {died} |")?;
        }
        writeln!(
            out,
            "set aside at opening {}, later, in use, {}; documents rebuilt {}",
            self.set_aside, self.late, self.rebuilt
        )?;
        write!(
            out,
            "acknowledged documents looked for {}, lost {}, deleted ones that came back {}, slowest opening {:.2} s",
            self.documents,
            self.lost,
            self.revived,
            self.slowest.as_secs_f32()
        )
    }
}

/// Opens a damaged copy, rebuilds missing documents, and looks for every document.
fn check(dir: &Path, said: &Said, damage: Damage, opened: bool, counters: &mut Counters) {
    let begun = Instant::now();
    let store = open(dir);
    counters.slowest = counters.slowest.max(begun.elapsed());
    let found = store.recovery();
    counters.set_aside += found.set_aside.len();
    if opened && found.set_aside.is_empty() && found.missing > 0 {
        *counters.silent.entry(damage).or_default() += 1;
    }
    let mut failures = 0;
    let examined = loop {
        settle(&store, &mut failures);
        let examined: Result<Vec<_>, StoreError> = said.acknowledged.iter().map(|(&id, _)| examine(&store, said, id)).collect();
        match examined {
            Ok(examined) => break examined,
            // Damage that the rebuilding did not touch.
            Err(error) => {
                late(&error, &mut failures);
                store.wait_for_repair();
            }
        }
    };
    let rebuilt = store.recovery();
    counters.rebuilt += rebuilt.rebuilt;
    counters.late += usize::from(rebuilt.set_aside.len() > found.set_aside.len());
    for ((&id, &version), wrong) in said.acknowledged.iter().zip(examined) {
        counters.documents += usize::from(version > 0);
        if let Some((may_be, found)) = wrong {
            println!("d{id}: {may_be:?} expected, {found:?} found");
            if may_be.iter().any(|version| *version > 0) { counters.lost += 1 } else { counters.revived += 1 }
        }
    }
}

/// Rebuilds until nothing is missing.
fn settle(store: &Store, failures: &mut usize) {
    loop {
        while let Some((document, bytes)) = store.next_missing() {
            let text = std::str::from_utf8(&bytes).expect("text");
            let put = store.begin_put(&document, &bytes).and_then(|incoming| put_text(incoming.rebuilt(), &document.id, text));
            if let Err(error) = put {
                late(&error, failures);
            }
        }
        match store.search("c", |_| ()) {
            Ok(_) => return,
            Err(error) => late(&error, failures),
        }
        store.wait_for_repair();
    }
}

/// `None` for a document in its acknowledged version, or in that of the change under way. Else the versions that it may have,
/// and the one that it has.
#[allow(clippy::type_complexity, reason = "once")]
fn examine(store: &Store, said: &Said, id: u64) -> Result<Option<(Vec<u64>, Option<u64>)>, StoreError> {
    let begun = said.begun.filter(|(begun, _)| *begun == id).map(|(_, version)| version);
    let may_be: Vec<u64> = std::iter::once(said.acknowledged[&id]).chain(begun).collect();
    let document = store.document("c", &format!("d{id}"))?;
    let right = match &document {
        None => may_be.contains(&0),
        Some(document) => {
            let chunks = chunks_of(store, &document.id)?;
            may_be.iter().filter(|version| **version > 0).any(|&version| {
                let text = text(id, version);
                let lines: Vec<&str> = text.lines().collect();
                document.hash == sha256_hex(text.as_bytes())
                    && document.chunks as usize == lines.len()
                    && store.source(&document.hash).is_ok_and(|source| source == text.as_bytes())
                    && chunks == lines
            })
        }
    };
    Ok((!right).then(|| (may_be, document.map(|document| document.added_unix))))
}

/// Damage that shows only in use. The next change sets the database aside.
fn late(error: &StoreError, failures: &mut usize) {
    assert!(matches!(error, StoreError::Damaged { .. }) && *failures < 3, "{error}");
    println!("in use: {error}");
    *failures += 1;
}

fn chunks_of(store: &Store, id: &str) -> Result<Vec<String>, StoreError> {
    let number = store.search("c", |index| {
        let live = (0..u32::try_from(index.rows()).unwrap_or(0)).filter(|row| index.live().contains(*row));
        live.filter_map(|row| index.document(index.place(row).slot)).find(|document| document.id == id).map(|d| d.number)
    });
    let Some(number) = number?.flatten() else { return Ok(Vec::new()) };
    (0..).map_while(|ordinal| store.chunk(number, ordinal).map(|chunk| chunk.map(|chunk| chunk.text)).transpose()).collect()
}

/// Ends the whole process after a long silence, with the last message.
fn end_when_stuck(damaged: PathBuf) -> Sender<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut last = String::new();
        loop {
            match told.recv_timeout(STUCK) {
                Ok(what) => last = what,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("stuck for {STUCK:?} at {last}; the store is left at {}", damaged.display());
                    std::process::abort();
                }
            }
        }
    });
    tell
}

#[test]
fn every_acknowledged_document_survives_damage() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let trials = number("TORTURE").unwrap_or(40) as usize;
    let seed = Seed::from_environment();
    println!("TORTURE={trials}");
    let mut random = fastrand::Rng::with_seed(seed.0);
    let dir = temp_dir();
    let (store, damaged, earlier) = (dir.path().join("store"), dir.path().join("damaged"), dir.path().join("earlier"));
    let (mut counters, mut said) = (Counters::default(), Said::default());
    let alive = end_when_stuck(damaged.clone());
    let now = |what: String| alive.send(what).expect("somebody listens");
    for trial in 0.. {
        if trial * COPIES >= trials {
            break;
        }
        let mut writer = Writer::start(&store, random.u64(..), said.clone());
        for number in trial * COPIES..trials.min((trial + 1) * COPIES) {
            now(format!("{number}, writing"));
            writer.run_for(Duration::from_millis(random.u64(0..300)));
            copy(&store, &damaged);
            if !earlier.exists() {
                copy(&store, &earlier);
            }
            let kind = DAMAGES[number % DAMAGES.len()];
            damage(&damaged, &earlier, kind, &mut random);
            now(format!("{number}, {kind:?}, trying to open it"));
            let (did, words) = sled_opens(&damaged);
            now(format!("{number}, {kind:?}, {did:?}, looking for what was acknowledged"));
            *counters.sled.entry((kind, did)).or_default() += 1;
            if did != Sled::Opened {
                println!("{number}: {kind:?}: {did:?}: {words}");
            }
            let lost = (counters.lost, counters.revived);
            check(&damaged, &writer.said, kind, did == Sled::Opened, &mut counters);
            if lost != (counters.lost, counters.revived) {
                println!("{number}: {kind:?}: {did:?}: above");
            }
            fs::remove_dir_all(&damaged).expect("removed");
            if number % 3 == 0 {
                fs::remove_dir_all(&earlier).expect("removed");
                copy(&store, &earlier);
            }
            writer.child.signal(Signal::CONT);
        }
        // The writer is killed at a random moment, and the next one goes on with its store.
        writer.run_for(Duration::from_millis(random.u64(0..100)));
        writer.child.signal(Signal::KILL);
        writer.child.ends("the writer");
        writer.hear();
        said = writer.said.clone();
        // The change under way may have been done or not.
        if let Some((id, _)) = said.begun.take() {
            said.acknowledged.remove(&id);
        }
    }
    println!("{counters}");
    let of_damages: usize = counters.sled.values().sum();
    assert_eq!(of_damages, trials);
    assert_eq!((counters.lost, counters.revived), (0, 0));
}
