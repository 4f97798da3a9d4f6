//! Watched folders: the library follows their files and leaves documents alone that were put by hand.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use vademecum_tests::{Daemon, MANUAL, Run, Setup, cpu_time_of_thread, free_port, run, temp_dir, vademecum, wait_for};

/// A folder and a data directory that outlive the daemons of a test.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: temp_dir() };
        fs::create_dir(place.root()).expect("made");
        place
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("manuals")
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// A daemon that watches `watch`.
    fn watching(&self, watch: &str) -> Daemon {
        let listen = format!("127.0.0.1:{}", free_port());
        Setup::new().data_dir(&self.data()).set("broker.listen", &listen).set("ingest.watch", watch).start()
    }

    fn start(&self) -> Daemon {
        self.watching(&self.root().to_string_lossy())
    }

    fn command(&self, args: &[&str]) -> Run {
        run(vademecum(args).arg("--data-dir").arg(self.data()))
    }

    fn list(&self) -> Vec<Value> {
        let Value::Array(rows) = self.command(&["documents", "list", "--json"]).exits(0).json() else { panic!("a list") };
        rows
    }

    /// Waits until the list is this: ids with states.
    fn wait_list(&self, wanted: &[(&str, &str)]) -> Vec<Value> {
        wait_for(&format!("the list {wanted:?}"), || {
            let rows = self.list();
            let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
            let found: Vec<(String, String)> = rows.iter().map(|row| (text(row, "id"), text(row, "state"))).collect();
            let same = found.iter().map(|(id, state)| (id.as_str(), state.as_str())).eq(wanted.iter().copied());
            same.then_some(rows)
        })
    }
}

fn manual(of: &str) -> String {
    MANUAL.replace("Harbour pump P-200", of)
}

fn title(rows: &[Value], id: &str) -> String {
    let row = rows.iter().find(|row| row["id"] == id).expect("a row");
    row["title"].as_str().expect("a title").to_owned()
}

#[test]
fn files_are_followed_as_they_come_and_go() {
    let place = Place::new();
    place.write("pump.md", MANUAL);
    let daemon = place.start();
    let rows = place.wait_list(&[("pump.md", "ok")]);
    let path = place.root().join("pump.md");
    assert_eq!(rows[0]["origin"]["path"], json!(path.to_string_lossy()));
    assert!(place.command(&["search", "What does error E-7 mean?", "--json"]).json()["passages"][0]["document"] == "pump.md");

    // New files in a new folder, beside files that the watch ignores.
    place.write("deep/er/boiler.md", &manual("Boiler"));
    place.write(".hidden.md", "hidden");
    place.write("deep/er/.boiler.md.swp", "an editor's");
    place.write("deep/photo.png", "no document");
    place.wait_list(&[("deep/er/boiler.md", "ok"), ("pump.md", "ok")]);
    place.write("deep/er/fan.md", &manual("Fan"));
    place.wait_list(&[("deep/er/boiler.md", "ok"), ("deep/er/fan.md", "ok"), ("pump.md", "ok")]);

    // A change in place, and one by renaming a new file over the old one, as editors do.
    place.write("pump.md", &manual("Mended pump"));
    wait_for("the change", || (title(&place.list(), "pump.md") == "Mended pump").then_some(()));
    place.write(".new", &manual("Mended fan"));
    fs::rename(place.root().join(".new"), place.root().join("deep/er/fan.md")).expect("moved");
    wait_for("the exchange", || (title(&place.list(), "deep/er/fan.md") == "Mended fan").then_some(()));

    // A folder moves, and a file changes at the new place.
    fs::rename(place.root().join("deep/er"), place.root().join("flat")).expect("moved");
    place.wait_list(&[("flat/boiler.md", "ok"), ("flat/fan.md", "ok"), ("pump.md", "ok")]);
    place.write("flat/fan.md", &manual("Fan again"));
    wait_for("the change", || (title(&place.list(), "flat/fan.md") == "Fan again").then_some(()));

    fs::remove_dir_all(place.root().join("flat")).expect("removed");
    place.wait_list(&[("pump.md", "ok")]);
    fs::remove_file(place.root().join("pump.md")).expect("removed");
    place.wait_list(&[]);
    daemon.stop();
}

#[test]
fn a_restart_reads_only_changed_files() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        place.write(&format!("{name}.md"), &manual(name));
    }
    let daemon = place.start();
    place.wait_list(&[("a.md", "ok"), ("b.md", "ok"), ("c.md", "ok")]);
    daemon.stop();
    fs::remove_file(place.root().join("a.md")).expect("removed");
    place.write("b.md", &manual("b, revised"));
    place.write("d.md", &manual("d"));
    let daemon = place.start();
    let rows = wait_for("the changes", || {
        let rows = place.list();
        (rows.len() == 3 && rows[0]["title"] == "b, revised" && rows[2]["state"] == "ok").then_some(rows)
    });
    assert_eq!([&rows[1]["id"], &rows[2]["id"]], ["c.md", "d.md"]);
    assert!(!daemon.log().contains("c.md: "), "it was left alone");
    // Ingesting the same folder by hand finds the same ids and changes nothing.
    let summary = place.command(&["ingest", "--json", &place.root().to_string_lossy()]).exits(0).json();
    assert_eq!([&summary["added"], &summary["unchanged"], &summary["replaced"]], [0, 3, 0]);
    daemon.stop();
}

#[test]
fn a_failed_file_says_why_and_is_read_again() {
    let place = Place::new();
    place.write("bad.md", "\n\n");
    let daemon = place.start();
    let rows = place.wait_list(&[("bad.md", "failed")]);
    assert!(rows[0]["reason"].as_str().expect("a reason").contains("no text"), "{rows:?}");
    let shown = place.command(&["documents", "list"]).exits(0).stdout;
    assert!(shown.contains("failed from ") && shown.contains("no text"), "{shown}");
    place.write("bad.md", MANUAL);
    place.wait_list(&[("bad.md", "ok")]);
    // The old version stays in use when the new one fails.
    place.write("bad.md", "\n\n\n");
    let rows = place.wait_list(&[("bad.md", "failed")]);
    assert_eq!(rows[0]["title"], "Harbour pump P-200");
    daemon.stop();
}

#[test]
fn a_failure_is_listed_until_its_file_is_gone() {
    let place = Place::new();
    place.write("good.md", MANUAL);
    place.write("bad.md", "\n\n");
    place.write("worse.md", "\n");
    let daemon = place.start();
    place.wait_list(&[("bad.md", "failed"), ("good.md", "ok"), ("worse.md", "failed")]);
    // A user drops a failed file from the list; touching the file brings it back.
    let _ = place.command(&["documents", "delete", "worse.md"]).exits(0);
    place.wait_list(&[("bad.md", "failed"), ("good.md", "ok")]);
    place.write("worse.md", "\n\n");
    let running = place.wait_list(&[("bad.md", "failed"), ("good.md", "ok"), ("worse.md", "failed")]);
    daemon.stop();
    assert_eq!(place.list(), running, "the same as while it ran");
    let doctor = place.command(&["doctor", "--json"]).json();
    let told = doctor.as_array().expect("checks").iter().find(|check| check["check"] == "documents").expect("theirs").clone();
    assert_eq!(told["status"], "warn", "{told}");
    // While the daemon is stopped, one file goes and one is corrected.
    fs::remove_file(place.root().join("bad.md")).expect("removed");
    place.write("worse.md", &manual("Mended"));
    let daemon = place.start();
    place.wait_list(&[("good.md", "ok"), ("worse.md", "ok")]);
    daemon.stop();
    place.wait_list(&[("good.md", "ok"), ("worse.md", "ok")]);
}

#[test]
fn a_folder_that_is_away_keeps_its_documents() {
    let place = Place::new();
    place.write("pump.md", MANUAL);
    let daemon = place.start();
    place.wait_list(&[("pump.md", "ok")]);
    let aside = place.dir.path().join("aside");
    fs::rename(place.root(), &aside).expect("moved");
    let away = |part: &str| {
        wait_for(part, || {
            let rows = place.list();
            let told = rows.first().and_then(|row| row["reason"].as_str()).is_some_and(|reason| reason.contains(part));
            (rows.len() == 1 && told).then_some(())
        });
    };
    away("No such file");
    // An empty folder in its place looks like a mount point without its card: while the daemon runs, and at its start.
    fs::create_dir(place.root()).expect("made");
    away("empty");
    daemon.stop();
    let daemon = place.start();
    away("empty");
    // The folder is back, with a change.
    fs::remove_dir(place.root()).expect("removed");
    fs::rename(&aside, place.root()).expect("moved");
    place.write("pump.md", &manual("Mended pump"));
    wait_for("the change", || (title(&place.list(), "pump.md") == "Mended pump").then_some(()));
    assert!(place.list()[0]["reason"].is_null());
    daemon.stop();
}

#[test]
fn documents_put_by_hand_stay() {
    let place = Place::new();
    let by_hand = place.dir.path().join("by-hand.md");
    fs::write(&by_hand, manual("By hand")).expect("written");
    let put = |id: &str| place.command(&["ingest", "--id", id, &by_hand.to_string_lossy()]).exits(0);
    put("same.md");
    put("other.md");
    place.write("same.md", &manual("By hand"));
    place.write("other.md", MANUAL);
    place.write("third.md", MANUAL);
    let daemon = place.start();
    // The id is taken by another text, so the folder's file is refused.
    let rows = place.wait_list(&[("other.md", "failed"), ("same.md", "ok"), ("third.md", "ok")]);
    assert!(rows[0]["reason"].as_str().expect("a reason").contains("by hand"), "{rows:?}");
    assert_eq!(title(&rows, "other.md"), "By hand");
    assert!(rows[0]["origin"]["path"].as_str().expect("a path").ends_with("manuals/other.md"), "{rows:?}");
    // Putting a watched document by hand makes it a document by hand.
    let _ = place.command(&["ingest", "--id", "third.md", &place.root().join("third.md").to_string_lossy()]).exits(0);
    for name in ["same.md", "other.md", "third.md"] {
        fs::remove_file(place.root().join(name)).expect("removed");
    }
    place.write("last.md", &manual("Last"));
    let rows = place.wait_list(&[("last.md", "ok"), ("other.md", "ok"), ("same.md", "ok"), ("third.md", "ok")]);
    assert_eq!(title(&rows, "other.md"), "By hand");
    daemon.stop();
}

#[test]
fn a_new_file_is_listed_during_a_long_read() {
    let place = Place::new();
    let paragraph = |n: usize| format!("Paragraph {n} says that valve V-{n} opens at {} bar and closes again.\n\n", n % 7);
    place.write("large.txt", &(0..8000).map(paragraph).collect::<String>());
    // An old file is read at once; a new one would first have to be quiet for a while.
    let file = fs::File::options().write(true).open(place.root().join("large.txt")).expect("opened");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("its time is set");
    let daemon = place.start();
    let before = cpu_time_of_thread(daemon.pid(), "embed");
    place.wait_list(&[("large.txt", "pending")]);
    let embeds = || cpu_time_of_thread(daemon.pid(), "embed") > before + Duration::from_millis(200);
    wait_for("the encoder to work on the large file", || embeds().then_some(()));
    place.write("late.md", MANUAL);
    place.wait_list(&[("large.txt", "pending"), ("late.md", "pending")]);
    daemon.stop();
}

#[test]
fn folders_have_collections_and_do_not_collide() {
    let place = Place::new();
    place.write("pump.md", MANUAL);
    let more = place.dir.path().join("more");
    fs::create_dir(&more).expect("made");
    fs::write(more.join("pump.md"), manual("Another pump")).expect("written");
    // Links that lead out of the folder are not followed.
    std::os::unix::fs::symlink(place.dir.path().join("data"), more.join("link")).expect("linked");
    std::os::unix::fs::symlink(place.root().join("pump.md"), more.join("link.md")).expect("linked");
    // Ingesting by hand does not follow them either.
    let by_hand = place.dir.path().join("by-hand");
    let summary = run(vademecum(["ingest", "--json", "--data-dir"]).arg(by_hand).arg(&more)).exits(0).json();
    assert_eq!([&summary["added"], &summary["failed"]], [&json!(1), &json!([])], "{summary}");
    let (root, more) = (place.root(), more.as_path());
    let daemon = place.watching(&format!("{},{},third={}", root.display(), more.display(), more.display()));
    let rows = wait_for("three documents", || {
        let rows = place.list();
        (rows.len() == 3 && rows.iter().all(|row| row["state"] == "ok")).then_some(rows)
    });
    let named: Vec<String> = rows.iter().map(|row| format!("{} {} {}", row["collection"], row["id"], row["title"])).collect();
    let expected = [
        "\"default\" \"more/pump.md\" \"Another pump\"",
        "\"default\" \"pump.md\" \"Harbour pump P-200\"",
        "\"third\" \"pump.md\" \"Another pump\"",
    ];
    assert_eq!(named, expected);
    let unknown = place.command(&["documents", "--collection", "zz"]).exits(1);
    assert!(unknown.stderr.contains("there is no collection \"zz\"; there are: default, third"), "{unknown:?}");
    daemon.stop();
}

#[test]
fn a_wrong_data_directory_is_named_and_not_made() {
    let dir = temp_dir();
    let nowhere = dir.path().join("nowhere");
    let listed = run(vademecum(["documents", "list"]).arg("--data-dir").arg::<&Path>(&nowhere)).exits(1);
    assert!(listed.stderr.contains("there is no library in"), "{listed:?}");
    assert!(!nowhere.exists());
}
