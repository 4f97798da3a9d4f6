//! A damaged database and a full disk: the daemon and the commands recover without help.

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use vademecum_tests::{Broker, Daemon, MANUAL, Mqtt, NO_DEADLINE_MS, QUESTION, Setup, run, temp_dir, vademecum, wait_for};

fn damage(data: &Path) {
    let path = data.join("db/db");
    let length = fs::metadata(&path).expect("the database").len();
    fs::write(&path, vec![0x5a; length as usize]).expect("overwritten");
}

#[test]
fn a_daemon_rebuilds_a_damaged_database() {
    let broker = Broker::start();
    let mut daemon = Setup::with(&broker).start();
    let mqtt = Mqtt::to(&broker);
    for number in 0..8 {
        mqtt.put(
            &daemon,
            &format!("d{number}.md"),
            &format!("# Note {number}\n\nThe code of locker {number} is {}.\n", 4711 + number),
        );
    }
    mqtt.put(&daemon, "pump.md", MANUAL);
    daemon.signal(Signal::KILL);
    daemon.ends();
    damage(daemon.data());
    let daemon = Setup::with(&broker).data_dir(daemon.data()).start();
    assert!(daemon.log().contains("it is set aside as"), "{}", daemon.log());
    let listed = || mqtt.request(&daemon, "documents/list", json!({}))["total"].as_u64();
    wait_for("every document to be back", || (listed() == Some(9)).then_some(()));
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    let doctor = run(vademecum(["doctor", "--json", "--broker", &broker.url(), "--data-dir"]).arg(daemon.data())).json();
    let store = doctor.as_array().expect("checks").iter().find(|check| check["check"] == "store").expect("the store's").clone();
    assert_eq!(store["status"], "warn", "{store}");
    assert!(store["detail"].as_str().expect("words").contains("store.damaged-"), "{store}");
    wait_for("info to tell", || {
        let recovery = mqtt.on(&daemon.topic("info")).last()?.json()["recovery"].clone();
        (recovery["rebuilt"] == 9 && recovery["missing"] == 0 && recovery["set_aside"].as_array()?.len() == 1).then_some(())
    });
    daemon.stop();
}

#[test]
fn commands_rebuild_a_damaged_database() {
    let dir = temp_dir();
    let (folder, data) = (dir.path().join("folder"), dir.path().join("data"));
    fs::create_dir(&folder).expect("made");
    fs::write(folder.join("pump.md"), MANUAL).expect("written");
    let on = |args: &[&str]| run(vademecum(args).arg("--data-dir").arg(&data));
    let _ = on(&["ingest", folder.to_str().expect("a path"), "--tag", "place=harbour"]).exits(0);
    // The database was closed in order. Damage at rest is found when it is opened all the same.
    damage(&data);
    let found = on(&["search", QUESTION, "--json", "--filter", "place=harbour", "--set", "answer.threshold=0"]).exits(0);
    assert_eq!(found.json()["passages"][0]["document"], "pump.md");
    assert!(found.stderr.contains("set aside") && found.stderr.contains("1 documents are rebuilt"), "{}", found.stderr);
    assert!(on(&["search", QUESTION]).stderr.is_empty());
}

/// Lets no file grow beyond `bytes`. To the daemon that looks like a full disk.
fn limit_files(daemon: &Daemon, bytes: Option<u64>) {
    let pid = Pid::from_raw(daemon.pid().cast_signed()).expect("a process id");
    let _ = prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("a limit");
}

#[test]
fn limited_files_refuse_documents_only() {
    let broker = Broker::start();
    // With the signal ignored, a write beyond the limit is an error.
    let daemon = Setup::with(&broker).ignoring("XFSZ").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    // The source would fit, but the database cannot grow: sled itself meets the error.
    limit_files(&daemon, Some(64 << 10));
    let text = |number: usize| {
        format!("# Note {number}\n\nThe code of locker {number} is {}.\n{}", 4711 + number, "More words. ".repeat(300))
    };
    let put = |number: usize| {
        mqtt.request(&daemon, "documents/put", json!({ "document": format!("d{number}.md"), "text": text(number) }))
    };
    let ask = || {
        let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
        assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    };
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 0..12 {
        let reply = put(number);
        if reply["change"] == "added" {
            acknowledged.push(number);
        } else {
            assert_eq!(reply["error"]["code"], "storage", "{reply}");
            refused += 1;
            ask();
        }
    }
    assert!(refused > 0, "the limit was met: {acknowledged:?}");
    // With space again, documents are taken without any help.
    limit_files(&daemon, None);
    wait_for("documents to be taken again", || (put(100)["change"] == "added").then_some(()));
    acknowledged.push(100);
    ask();
    let listed = mqtt.request(&daemon, "documents/list", json!({}));
    for number in acknowledged {
        let id = format!("d{number}.md");
        assert!(
            listed["documents"].as_array().expect("a list").iter().any(|document| document["id"] == id.as_str()),
            "{id}: {listed}"
        );
    }
    daemon.stop();
}

/// A daemon gets a small disk in a mount namespace of its own.
#[test]
#[cfg_attr(without_namespaces, ignore = "`unshare -rm` gives no namespaces here")]
fn a_full_disk_refuses_documents_only() {
    let broker = Broker::start();
    let dir = temp_dir();
    let script = format!("mount -t tmpfs -o size=24m none {}", dir.path().display());
    let daemon = Setup::with(&broker).data_dir(dir.path()).through(&script).within(&["unshare", "-rm"]).start();
    let disk = format!("/proc/{}/root{}", daemon.pid(), dir.path().display());
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let put = |name: &str| {
        mqtt.request(&daemon, "documents/put", json!({ "document": name, "text": "The valve is open. ".repeat(500) }))
    };
    let ask = || {
        let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
        assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    };
    let filler = Path::new(&disk).join("filler");
    let mut file = fs::File::create(&filler).expect("made");
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    drop(file);
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    for number in 0..4 {
        let refused = put(&format!("refused{number}.md"));
        assert_eq!(refused["error"]["code"], "storage", "{refused}");
        ask();
    }
    fs::remove_file(&filler).expect("removed");
    assert_eq!(put("taken.md")["change"], "added");
    ask();
    for told in
        ["the inbox cannot be written: No space left on device (os error 28); free some space", "the inbox can be written again"]
    {
        assert_eq!(daemon.log().matches(told).count(), 1, "{told}: once: {}", daemon.log());
    }
    daemon.stop();
}

/// A card with errors: the kernel allows no writes until the file system was checked.
#[test]
#[cfg_attr(without_loop_device, ignore = "a file system in a file cannot be mounted here")]
fn a_read_only_disk_refuses_documents_only() {
    let dir = temp_dir();
    let (card, data) = (dir.path().join("card"), dir.path().join("data"));
    fs::create_dir(&data).expect("made");
    let mount = format!("mount -o loop,errors=remount-ro {} {}", card.display(), data.display());
    let made = format!("truncate -s 64M {0} && PATH=$PATH:/usr/sbin mkfs.ext4 -q {0} && {mount}", card.display());
    let _ = run(std::process::Command::new("unshare").args(["-m", "sh", "-c", &made])).exits(0);
    let broker = Broker::start();
    let mqtt = Mqtt::to(&broker);
    let start = |script: &str| Setup::with(&broker).data_dir(&data).through(script).within(&["unshare", "-m"]).start();
    let put =
        |daemon: &Daemon, name: &str| mqtt.request(daemon, "documents/put", json!({ "document": name, "text": "It is open." }));
    let ask = |daemon: &Daemon| {
        let answer = mqtt.request(daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
        assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    };
    let mut daemon = start(&mount);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", daemon.pid())).expect("its mounts");
    let ours = mounts.lines().find(|line| line.contains(&*data.to_string_lossy())).expect("mounted");
    let device = ours.split(' ').next().expect("a device").trim_start_matches("/dev/");
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").expect("triggered");
    let refused = put(&daemon, "refused.md");
    assert_eq!(refused["error"]["code"], "storage", "{refused}");
    assert!(refused.to_string().contains("read-only"), "{refused}");
    let refused = mqtt.request(&daemon, "documents/delete", json!({ "document": "pump.md" }));
    assert_eq!(refused["error"]["code"], "storage", "{refused}");
    ask(&daemon);
    assert!(daemon.log().contains("the inbox cannot be written: Read-only file system"), "{}", daemon.log());
    daemon.signal(Signal::KILL);
    daemon.ends();
    // Checked, as at the next start of a machine. The check may cost the database some pages. Then it is rebuilt, and the
    // question in the first moment waits for its document.
    let daemon = start(&format!("{{ PATH=$PATH:/usr/sbin e2fsck -fy {} || true; }} && {mount}", card.display()));
    ask(&daemon);
    assert_eq!(put(&daemon, "taken.md")["change"], "added");
    daemon.stop();
}

#[test]
#[cfg_attr(without_namespaces, ignore = "`unshare -rm` gives no namespaces here")]
fn a_daemon_starts_and_answers_on_a_full_disk() {
    let broker = Broker::start();
    let mut before = Setup::with(&broker).start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&before, "pump.md", MANUAL);
    before.signal(Signal::KILL);
    before.ends();
    // The killed daemon's library on a small disk that is full otherwise.
    let dir = temp_dir();
    let (from, to) = (before.data().display().to_string(), dir.path().display());
    let script = format!(
        "mount -t tmpfs -o size=48m none {to} && cp -a --sparse=never {from}/. {to}/ && ! cat /dev/zero 2>/dev/null >{to}/filler && df {to} | grep -q 100%"
    );
    let daemon = Setup::with(&broker).data_dir(dir.path()).through(&script).within(&["unshare", "-rm"]).start();
    let disk = format!("/proc/{}/root{to}", daemon.pid());
    assert!(fs::metadata(Path::new(&disk).join("filler")).expect("it stands in the way").len() > 10 << 20);
    let ask = || {
        let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
        assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    };
    ask();
    let put = |name: &str| {
        mqtt.request(&daemon, "documents/put", json!({ "document": name, "text": "The valve is open. ".repeat(500) }))
    };
    let refused = put("refused.md");
    assert_eq!(refused["error"]["code"], "storage", "{refused}");
    ask();
    fs::remove_file(Path::new(&disk).join("filler")).expect("removed");
    assert_eq!(put("taken.md")["change"], "added");
    assert!(daemon.log().contains("4 MB set aside for this are given back"), "{}", daemon.log());
    daemon.stop();
}

/// A clock without a battery starts in the past, and jumps when the network tells the time.
#[test]
fn setting_the_clock_ends_no_question() {
    let library =
        fs::read_dir("/usr/lib").expect("a folder").flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    let library = library.into_iter().find(|path| path.exists()).expect("libfaketime: `make setup` installs it");
    let dir = temp_dir();
    let clock = dir.path().join("clock");
    let set = |to: &str| {
        let aside = dir.path().join("aside");
        fs::write(&aside, to).and_then(|()| fs::rename(&aside, &clock)).expect("written");
    };
    set("-10000d");
    let broker = Broker::start();
    let faked = |setup: Setup| {
        let setup = setup.env("LD_PRELOAD", &library).env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
        setup.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").set("answer.strategy", "read")
    };
    let mut daemon = faked(Setup::with(&broker)).start();
    assert!(daemon.log().starts_with("1999-"), "{}", daemon.log());
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let ask = |id: &str, tokens: u32| {
        let question = format!("{QUESTION} ({id})");
        let ask = json!({ "id": id, "question": question, "max_tokens": tokens, "deadline_ms": NO_DEADLINE_MS, "stream": true });
        mqtt.publish(&daemon.topic("ask"), ask.to_string());
    };
    let jumps = ["+0", "+10000d", "-10000d"];
    for (round, to) in jumps.iter().enumerate() {
        let ids: Vec<String> = (0..6).map(|n| format!("q{round}{n}")).collect();
        for id in &ids {
            ask(id, 48);
        }
        // One question is being answered, others wait.
        mqtt.first_delta(&daemon, &ids[0]);
        set(to);
        for id in &ids {
            let answer = mqtt.reply(&daemon, id);
            assert_eq!(answer["citations"][0]["document"], "pump.md", "{to}: {answer}");
            assert!(
                answer["timings"]["total_ms"].as_f64().is_some_and(|ms| (0.0..NO_DEADLINE_MS as f64).contains(&ms)),
                "{to}: {answer}"
            );
        }
        mqtt.put(&daemon, &format!("note{round}.md"), "The valve is open.");
    }
    // The clock goes forward by 27 years while questions wait in the inbox of a daemon without power.
    for id in ["k0", "k1", "k2"] {
        ask(id, 48);
    }
    mqtt.first_delta(&daemon, "k0");
    daemon.signal(Signal::KILL);
    daemon.ends();
    set("+0");
    let daemon = faked(Setup::with(&broker)).data_dir(daemon.data()).start();
    for id in ["k0", "k1", "k2"] {
        let reply = mqtt.reply(&daemon, id);
        assert!(reply["answer"].is_string() || reply["error"]["code"] == "deadline_exceeded", "{reply}");
    }
    assert_eq!(mqtt.request(&daemon, "documents/list", json!({}))["total"], 1 + jumps.len());
    daemon.stop();
}

/// A library of two documents, made by version 0.1.0 with schema 1 (`tests/data/README.md`).
#[test]
fn a_library_of_schema_1_opens_as_it_is() {
    let dir = temp_dir();
    let archive = vademecum_tests::repository().join("tests/data/schema-1.tar.gz");
    let _ = run(std::process::Command::new(vademecum_tests::program("tar")).arg("xzf").arg(archive).arg("-C").arg(dir.path()))
        .exits(0);
    let data = dir.path().join("schema-1");
    let on = |args: &[&str]| run(vademecum(args).arg("--data-dir").arg(&data)).exits(0);
    let listed = on(&["documents", "--json"]);
    let ids: Vec<String> = listed.json().as_array().expect("a list").iter().map(|d| d["id"].to_string()).collect();
    assert_eq!(ids, ["\"cellar.md\"", "\"pump.md\""], "{listed:?}");
    let found = on(&["search", QUESTION, "--json", "--set", "answer.threshold=0"]);
    assert_eq!(found.json()["passages"][0]["document"], "pump.md");
    assert!(found.stderr.is_empty(), "nothing was lost or made anew: {}", found.stderr);
    let set_aside = fs::read_dir(&data).expect("a folder").map(|entry| entry.expect("one").file_name());
    assert!(set_aside.into_iter().all(|name| !name.to_string_lossy().starts_with("store.damaged")));
}

#[test]
#[cfg_attr(without_namespaces, ignore = "`unshare -rm` gives no namespaces here")]
fn doctor_names_a_read_only_file_system() {
    let dir = temp_dir();
    let (data, program) = (dir.path().display(), vademecum_tests::binary());
    let script = format!("mount -t tmpfs -o ro none {data} && exec {} doctor --data-dir {data}", program.display());
    let told = run(std::process::Command::new("unshare").args(["-rm", "sh", "-c", &script])).exits(1).stdout;
    assert!(told.contains("nothing can be written") && told.contains("is mounted read-only"), "{told}");
}

#[test]
fn a_backup_while_running_restores_elsewhere() {
    let broker = Broker::start();
    let daemon = Setup::with(&broker).start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    mqtt.put(&daemon, "cellar.md", "# Cellar\n\nThe spare fuses are in the cellar, on the left shelf.\n");
    let dir = temp_dir();
    let file = dir.path().join("library.tar.gz");
    let backed = run(vademecum(["backup", "--json", "--data-dir"]).arg(daemon.data()).arg(&file)).exits(0).json();
    assert_eq!(backed["documents"], 2, "{backed}");
    // A backup does not replace anything but a file.
    let pipe = dir.path().join("pipe");
    let _ = run(std::process::Command::new("mkfifo").arg(&pipe)).exits(0);
    let refused = run(vademecum(["backup", "--data-dir"]).arg(daemon.data()).arg(&pipe)).exits(1);
    assert!(refused.stderr.contains("is not a regular file") && !pipe.is_file() && pipe.exists(), "{}", refused.stderr);
    let left = fs::read_dir(daemon.data()).expect("a folder").map(|entry| entry.expect("one").file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("unfinished")), "the snapshot is gone");
    let restore = |data: &Path, flags: &[&str]| run(vademecum(["restore"]).args(flags).arg("--data-dir").arg(data).arg(&file));
    // A restore refuses a running daemon's library, and one with documents.
    assert!(restore(daemon.data(), &["--force"]).exits(1).stderr.contains("is in use"));
    let data = daemon.data().to_owned();
    mqtt.put(&daemon, "later.md", "# Later\n\nThis came after the backup.\n");
    daemon.signal(Signal::TERM);
    wait_for("the daemon to end", || (!data.join("control.sock").exists()).then_some(()));
    wait_for("the lock to be free", || restore(&data, &[]).stderr.contains("--force").then_some(()));
    let elsewhere = dir.path().join("elsewhere");
    for (data, flags) in [(&elsewhere, [].as_slice()), (&data, ["--force"].as_slice())] {
        let _ = restore(data, flags).exits(0);
        let on = |args: &[&str]| run(vademecum(args).arg("--data-dir").arg(data)).exits(0);
        let found = on(&["search", "Where are the spare fuses?", "--json", "--set", "answer.threshold=0"]).json();
        assert_eq!(found["passages"][0]["document"], "cellar.md", "{found}");
        let listed = on(&["documents", "--json"]).json();
        assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    }
    // Stock tools can check it.
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).expect("made");
    let script = format!("tar xzf {} && sha256sum --quiet -c SHA256SUMS", file.display());
    let _ = run(std::process::Command::new("sh").args(["-c", &script]).current_dir(&unpacked)).exits(0);
    // A damaged backup is refused before anything is touched.
    let whole = fs::read(&file).expect("the file");
    for (cut, flip) in [(whole.len() / 2, None), (whole.len() - 1, None), (whole.len(), Some(whole.len() / 2))] {
        let mut bytes = whole[..cut].to_vec();
        if let Some(at) = flip {
            bytes[at] ^= 1;
        }
        fs::write(&file, bytes).expect("damaged");
        let refused = restore(&data, &["--force"]).exits(1).stderr;
        assert!(refused.contains("library.tar.gz") && !refused.contains("check the disk"), "{refused}");
    }
    let listed = run(vademecum(["documents", "--json", "--data-dir"]).arg(&data)).exits(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}
