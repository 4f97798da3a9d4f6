use std::cell::{Cell, RefCell};

use super::*;
use crate::{
    ingest::{FoundFile, walk::Walk, watch::disk::Mount},
    store::SourceFile,
};

const ROOT: &str = "/srv/manuals";
/// The wall clock of every test at its start.
const WALL_MS: u64 = 1_700_000_000_000;

/// Files with their stamps, and the folder's place.
struct FakeDisk {
    files: RefCell<BTreeMap<PathBuf, Stamp>>,
    /// `None`: the folder is missing.
    mount: Cell<Option<Mount>>,
}

impl Disk for FakeDisk {
    fn mount(&self, _: &Path) -> io::Result<Mount> {
        self.mount.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn below(&self, root: &Path, from: &Path) -> Walk {
        let files = self.files.borrow();
        let file = |(path, stamp): (&PathBuf, &Stamp)| FoundFile {
            path: path.clone(),
            id: path.strip_prefix(root).unwrap().to_string_lossy().into_owned(),
            bytes: stamp.bytes,
            modified_ms: stamp.modified_ms,
        };
        let entries = files.iter().filter(|(path, _)| path.starts_with(from) && path.starts_with(root)).map(file).collect();
        Walk { entries, folders: vec![root.to_owned()], ..Walk::default() }
    }

    fn stamp(&self, path: &Path) -> io::Result<Stamp> {
        self.files.borrow().get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_file(&self, path: &Path) -> bool {
        self.files.borrow().contains_key(path)
    }
}

/// One followed folder, a fake disk and a fake clock.
struct Scene {
    disk: FakeDisk,
    follower: Follower,
    begun: Instant,
    now: Instant,
}

fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    let name = |path: &PathBuf| path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned();
    paths.iter().map(name).collect()
}

fn place(inode: u64, is_mount_point: bool) -> Mount {
    Mount { identity: (1, inode), is_mount_point }
}

fn stamp(bytes: u64, modified_ms: u64) -> Stamp {
    Stamp { bytes, modified_ms }
}

fn folder(root: &str, collection: &str) -> Folder {
    Folder { root: root.into(), collection: collection.into(), prefix: String::new() }
}

/// The library's document of a file.
fn document(name: &str, of: Stamp, mounted: bool) -> Document {
    let origin = SourceFile { path: path(name).to_string_lossy().into_owned(), modified_ms: of.modified_ms, mounted };
    Document { id: name.into(), collection: "c".into(), bytes: of.bytes, origin: Some(origin), ..Document::default() }
}

impl Scene {
    fn of(documents: &[Document], failed: &[FailedDocument], polled: bool) -> Self {
        let now = Instant::now();
        let disk = FakeDisk { files: RefCell::default(), mount: Cell::new(Some(place(7, false))) };
        let follower = Follower::new(folder(ROOT, "c"), documents, failed, polled, now);
        Self { disk, follower, begun: now, now }
    }

    /// An empty library, and these files on disk.
    fn new(files: &[&str]) -> Self {
        let scene = Self::of(&[], &[], false);
        for name in files {
            scene.write(name, 1);
        }
        scene
    }

    /// The scene after the library has taken all files in.
    fn settled(files: &[&str]) -> Self {
        let mut scene = Self::new(files);
        scene.pass();
        assert_eq!(scene.read_all(), files);
        scene
    }

    /// Writes a file long ago.
    fn write(&self, name: &str, bytes: u64) {
        self.disk.files.borrow_mut().insert(path(name), stamp(bytes, WALL_MS - 60_000 + bytes));
    }

    fn remove(&self, name: &str) {
        self.disk.files.borrow_mut().remove(&path(name));
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn touch(&mut self, name: &str) {
        self.follower.touch(&Touched::Path(path(name)), self.now);
    }

    /// Compares all that is due, as the thread does.
    fn pass(&mut self) -> Sight {
        let mut all = Sight::default();
        for path in self.follower.quiet(self.now) {
            let sight = self.compare(&path, &mut |_| Watching::Already);
            all.changed.extend(sight.changed);
            all.gone.extend(sight.gone);
            all.away = all.away.or(sight.away);
        }
        for path in &all.gone {
            self.follower.forget(path);
        }
        all
    }

    fn compare(&mut self, path: &Path, watch: &mut dyn FnMut(&[PathBuf]) -> Watching) -> Sight {
        self.follower.compare(&self.disk, path, self.now, watch)
    }

    /// Reads every file that is due, with success.
    fn read_all(&mut self) -> Vec<String> {
        let mut read = Vec::new();
        let next = |scene: &Self| scene.follower.due_files(scene.now).next().map(Path::to_owned);
        while let Some(path) = next(self) {
            self.settle(&path, Ok(()));
            read.push(path);
        }
        names(&read)
    }

    /// Settles a file and enters its state, as the thread does.
    fn settle(&mut self, path: &Path, result: Result<(), Trouble>) -> Option<(FileState, Option<String>)> {
        let news = self.follower.settle(path, result, self.now);
        if let Some((state, _)) = &news {
            self.follower.tracked.set_state(path, *state);
        }
        news
    }

    /// Time until there is something to do.
    fn due(&self) -> Option<Duration> {
        Some(self.follower.due()?.duration_since(self.now))
    }

    fn quiet_stamp(&self, name: &str) -> Result<Stamp, Trouble> {
        let wall_ms = WALL_MS + (self.now - self.begun).as_millis() as u64;
        super::quiet_stamp(&self.disk, &path(name), wall_ms)
    }
}

#[test]
fn first_look_reads_everything_once() {
    let mut scene = Scene::new(&["a.md", "deep/b.md"]);
    assert_eq!(names(&scene.pass().changed), ["a.md", "deep/b.md"]);
    assert_eq!(scene.read_all(), ["a.md", "deep/b.md"]);
    assert_eq!(scene.due(), None, "the thread sleeps until inotify reports");
    scene.touch("a.md");
    scene.wait(QUIET);
    assert_eq!(scene.pass(), Sight::default(), "the same stamp is the same file");
}

#[test]
fn every_touch_starts_the_quiet_time_again() {
    let mut scene = Scene::settled(&["a.md"]);
    scene.write("a.md", 2);
    scene.touch("a.md");
    assert_eq!(scene.due(), Some(QUIET));
    scene.wait(QUIET / 2);
    scene.touch("a.md");
    scene.wait(QUIET / 2);
    assert_eq!(scene.pass(), Sight::default());
    scene.wait(QUIET / 2);
    assert_eq!(names(&scene.pass().changed), ["a.md"]);
}

#[test]
fn touches_outside_the_folder_are_ignored() {
    let mut scene = Scene::settled(&["a.md"]);
    for elsewhere in ["/srv/manuals-old/a.md", "/srv", "/home/a.md"] {
        scene.follower.touch(&Touched::Path(elsewhere.into()), scene.now);
    }
    assert_eq!(scene.due(), None);
}

#[test]
fn an_overflow_searches_the_folder() {
    let mut scene = Scene::settled(&["a.md", "b.md"]);
    scene.write("b.md", 2);
    scene.remove("a.md");
    scene.follower.touch(&Touched::Anything, scene.now);
    scene.wait(QUIET);
    let sight = scene.pass();
    assert_eq!((names(&sight.changed), names(&sight.gone)), (vec!["b.md".to_owned()], vec!["a.md".to_owned()]));
}

#[test]
fn many_touches_are_one_search() {
    let mut scene = Scene::settled(&["a.md"]);
    for count in [MANY, MANY + 1] {
        let paths: Vec<String> = (0..count).map(|n| format!("n{n}.md")).collect();
        for name in &paths {
            scene.touch(name);
        }
        scene.wait(QUIET);
        let quiet = scene.follower.quiet(scene.now);
        assert_eq!(quiet.len(), if count > MANY { 1 } else { count });
    }
}

#[test]
fn a_file_being_written_waits() {
    let mut scene = Scene::new(&[]);
    let written = |ago: u64| stamp(1, WALL_MS - ago);
    scene.disk.files.borrow_mut().insert(path("a.md"), written(1000));
    assert_eq!(scene.quiet_stamp("a.md"), Err(Trouble::Busy));
    scene.wait(Duration::from_millis(499));
    assert_eq!(scene.quiet_stamp("a.md"), Err(Trouble::Busy));
    scene.wait(Duration::from_millis(1));
    assert_eq!(scene.quiet_stamp("a.md"), Ok(written(1000)));
    assert_eq!(scene.quiet_stamp("b.md"), Err(Trouble::Gone));
}

#[test]
fn an_mtime_in_the_future_does_not_wait() {
    let scene = Scene::new(&[]);
    for ahead in [1, 3_600_000, u64::MAX - WALL_MS] {
        scene.disk.files.borrow_mut().insert(path("a.md"), stamp(1, WALL_MS + ahead));
        assert_eq!(scene.quiet_stamp("a.md"), Ok(stamp(1, WALL_MS + ahead)));
    }
    scene.disk.files.borrow_mut().insert(path("a.md"), stamp(1, WALL_MS));
    assert_eq!(scene.quiet_stamp("a.md"), Err(Trouble::Busy), "written this moment");
}

#[test]
fn a_renamed_file_moves_its_document() {
    let mut scene = Scene::settled(&["a.md"]);
    scene.remove("a.md");
    scene.write("b.md", 1);
    scene.touch("a.md");
    scene.touch("b.md");
    scene.wait(QUIET);
    let sight = scene.pass();
    assert_eq!((names(&sight.changed), names(&sight.gone)), (vec!["b.md".to_owned()], vec!["a.md".to_owned()]));
}

#[test]
fn a_renamed_folder_moves_its_documents() {
    let mut scene = Scene::settled(&["old/a.md", "old/b.md", "older.md"]);
    for name in ["a.md", "b.md"] {
        scene.remove(&format!("old/{name}"));
        scene.write(&format!("new/{name}"), 1);
    }
    scene.touch("old");
    scene.touch("new");
    scene.wait(QUIET);
    let sight = scene.pass();
    assert_eq!(names(&sight.changed), ["new/a.md", "new/b.md"]);
    assert_eq!(names(&sight.gone), ["old/a.md", "old/b.md"], "the other name only begins alike");
}

#[test]
fn a_missing_folder_keeps_its_documents() {
    let mut scene = Scene::settled(&["a.md"]);
    let there = scene.disk.mount.replace(None);
    scene.disk.files.borrow_mut().clear();
    scene.touch("a.md");
    scene.wait(QUIET);
    let sight = scene.pass();
    assert!(sight.away.is_some() && sight.gone.is_empty(), "{sight:?}");
    assert_eq!(scene.due(), Some(RETURN));
    // It comes back with a change.
    scene.disk.mount.set(there);
    scene.write("a.md", 2);
    scene.wait(RETURN);
    let sight = scene.pass();
    assert_eq!((names(&sight.changed), sight.away), (vec!["a.md".to_owned()], None));
}

#[test]
fn an_empty_folder_in_its_place_is_away() {
    let mut scene = Scene::settled(&["a.md"]);
    scene.disk.files.borrow_mut().clear();
    scene.disk.mount.set(Some(place(8, false)));
    scene.touch("");
    scene.wait(QUIET);
    let sight = scene.pass();
    assert!(sight.gone.is_empty() && sight.away.as_ref().is_some_and(|away| away.contains("empty")), "{sight:?}");
}

#[test]
fn the_same_folder_may_become_empty() {
    let mut scene = Scene::settled(&["a.md"]);
    scene.remove("a.md");
    scene.touch("a.md");
    scene.wait(QUIET);
    assert_eq!(names(&scene.pass().gone), ["a.md"]);
}

#[test]
fn an_empty_folder_at_the_start_is_away() {
    let mut scene = Scene::of(&[document("a.md", stamp(1, 1), false)], &[], false);
    let sight = scene.pass();
    assert!(sight.gone.is_empty() && sight.away.is_some(), "{sight:?}");
    let mut scene = Scene::of(&[], &[], false);
    assert_eq!(scene.pass(), Sight::default(), "nothing can be lost");
}

#[test]
fn a_card_not_mounted_has_lost_nothing() {
    let on_card = document("a.md", stamp(1, 1), true);
    let mut scene = Scene::of(&[on_card], &[], false);
    // The mount point has a file of its own.
    scene.write("readme.md", 1);
    let sight = scene.pass();
    assert_eq!(sight.away.as_deref(), Some("nothing is mounted there now"));
    assert!(sight.changed.is_empty() && sight.gone.is_empty());
    scene.disk.mount.set(Some(place(2, true)));
    scene.remove("readme.md");
    scene.write("a.md", 1);
    scene.wait(RETURN);
    assert_eq!(names(&scene.pass().changed), ["a.md"], "another version");
}

#[test]
fn a_folder_gone_during_the_search_keeps_all() {
    let mut scene = Scene::settled(&["a.md", "b.md"]);
    scene.remove("b.md");
    let (disk, now) = (&scene.disk, scene.now);
    let mut unmount = |_: &[PathBuf]| {
        disk.mount.set(None);
        Watching::Already
    };
    let sight = scene.follower.compare(disk, Path::new(ROOT), now, &mut unmount);
    assert!(sight.gone.is_empty() && sight.away.is_some(), "{sight:?}");
    assert_eq!(scene.due(), Some(RETURN));
}

#[test]
fn files_that_come_before_the_watch_are_found() {
    let mut scene = Scene::new(&["a.md"]);
    let (disk, now, mut calls) = (&scene.disk, scene.now, 0);
    let mut watch = |_: &[PathBuf]| {
        calls += 1;
        disk.files.borrow_mut().insert(path("b.md"), stamp(1, 1));
        if calls == 1 { Watching::New } else { Watching::Already }
    };
    let sight = scene.follower.compare(disk, Path::new(ROOT), now, &mut watch);
    assert!(sight.changed.contains(&path("b.md")), "{sight:?}");
    assert_eq!((calls, scene.read_all()), (2, vec!["a.md".to_owned(), "b.md".to_owned()]));
}

#[test]
fn without_inotify_the_folder_is_polled() {
    let mut scene = Scene::new(&["a.md"]);
    let sight = scene.compare(Path::new(ROOT), &mut |_| Watching::Refused);
    assert_eq!((names(&sight.changed), scene.read_all()), (vec!["a.md".to_owned()], vec!["a.md".to_owned()]));
    scene.follower.quiet(scene.now);
    assert_eq!(scene.due(), Some(RESCAN));
    scene.write("a.md", 2);
    scene.wait(RESCAN);
    let root = scene.follower.quiet(scene.now).remove(0);
    let sight = scene.compare(&root, &mut |_| panic!("the system has refused"));
    assert_eq!(names(&sight.changed), ["a.md"]);
    scene.read_all();
    assert_eq!(scene.due(), Some(RESCAN));
}

#[test]
fn a_restart_reads_only_changes() {
    let known: Vec<Document> =
        ["a.md", "b.md", "c.md"].iter().map(|name| document(name, stamp(1, WALL_MS - 59_999), false)).collect();
    let mut scene = Scene::of(&known, &[], false);
    scene.write("b.md", 2);
    scene.write("c.md", 1);
    scene.write("d.md", 1);
    let sight = scene.pass();
    assert_eq!((names(&sight.changed), names(&sight.gone)), (vec!["b.md".into(), "d.md".into()], vec!["a.md".to_owned()]));
}

#[test]
fn failed_files_wait_for_a_hand() {
    let mut scene = Scene::new(&["a.md"]);
    scene.pass();
    let news = scene.settle(&path("a.md"), Err(Trouble::Document("no text in it".into())));
    assert_eq!(news, Some((FileState::Failed, Some("no text in it".into()))));
    scene.follower.touch(&Touched::Anything, scene.now);
    scene.wait(QUIET);
    assert_eq!(scene.pass(), Sight::default(), "a search of the folder is no reason");
    scene.touch("a.md");
    scene.wait(QUIET);
    assert_eq!(names(&scene.pass().changed), ["a.md"]);
}

#[test]
fn failed_files_are_tried_at_the_start() {
    let on_disk = stamp(1, WALL_MS - 59_999);
    let failed = FailedDocument { document: document("a.md", on_disk, false), reason: "no text in it".into() };
    let mut scene = Scene::of(&[], std::slice::from_ref(&failed), false);
    scene.write("a.md", 1);
    assert_eq!(names(&scene.pass().changed), ["a.md"]);
    // The library has the file as it is.
    let mut scene = Scene::of(&[document("a.md", on_disk, false)], &[failed], false);
    scene.write("a.md", 1);
    assert_eq!(scene.pass(), Sight::default());
}

#[test]
fn troubles_are_tried_again_in_time() {
    let mut scene = Scene::new(&["a.md"]);
    scene.pass();
    let path = path("a.md");
    assert_eq!(scene.settle(&path, Err(Trouble::Busy)), None);
    assert_eq!(scene.due(), Some(QUIET));
    let news = scene.settle(&path, Err(Trouble::Disk("the disk is full".into())));
    assert_eq!(news, Some((FileState::Pending, Some("the disk is full".into()))));
    assert_eq!((scene.due(), scene.follower.due_files(scene.now).next()), (Some(RETRY), None));
    scene.remove("a.md");
    assert_eq!(scene.settle(&path, Err(Trouble::Gone)), None);
    assert_eq!(names(&scene.pass().gone), ["a.md"], "it is compared at once");
    scene.follower.remove_later(&path, scene.now);
    assert_eq!(scene.due(), Some(RETRY));
}

#[test]
fn arrivals_during_a_reading_are_listed() {
    let mut scene = Scene::settled(&["large.txt"]);
    scene.write("late.md", 1);
    scene.write("large.txt", 2);
    let (disk, now) = (&scene.disk, scene.now);
    let mut hear = |name: &str| {
        let heard = scene.follower.hear(disk, &Touched::Path(path(name)), &path("large.txt"), now);
        names(&heard)
    };
    assert_eq!(hear("late.md"), ["late.md"]);
    assert!(hear("large.txt").is_empty() && hear("folder").is_empty() && hear("/home/late.md").is_empty());
    scene.wait(QUIET);
    assert_eq!(names(&scene.pass().changed), ["large.txt", "late.md"], "all are compared afterwards");
}

#[test]
fn a_file_replaces_only_its_own_document() {
    let scene = Scene::settled(&["a.md", "b.md"]);
    let a = document("a.md", stamp(1, 1), false);
    let followers = [scene.follower];
    let may = |present: &Document, name: &str| may_replace(&followers, present, &path(name));
    assert!(may(&a, "a.md") && follows(&a, &path("a.md")));
    assert!(!may(&a, "b.md") && !follows(&a, &path("b.md")), "another watched file has this id");
    assert!(may(&document("gone.md", stamp(1, 1), false), "b.md"), "no watched folder has that file any longer");
    let elsewhere = Document { collection: "d".into(), ..a.clone() };
    assert!(may(&elsewhere, "b.md"), "another collection's folder");
    let by_hand = Document { origin: None, ..a.clone() };
    assert!(!may(&by_hand, "a.md") && !follows(&by_hand, &path("a.md")));
    for (present, part) in [(&a, "another collection"), (&by_hand, "by hand")] {
        assert!(matches!(taken(present), Trouble::Document(reason) if reason.contains(part)));
    }
}

#[test]
fn a_full_disk_is_not_the_documents_fault() {
    let full = StoreError::Io { action: "write".into(), source: io::ErrorKind::StorageFull.into() };
    assert!(matches!(trouble(&full.into(), "a.md"), Trouble::Disk(_)));
    let large = IngestError::TooLarge { id: "a.md".into(), limit: 1 };
    assert!(matches!(trouble(&large, "a.md"), Trouble::Document(reason) if reason.starts_with("larger than 1 bytes")));
}
