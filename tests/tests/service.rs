//! As a service: the watchdog, reloading, the journal.

use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vademecum_tests::{
    Broker, Daemon, Journal, MANUAL, Mqtt, Notified, QUESTION, Setup, bare_vademecum, repository, run, temp_dir, wait_for,
};

/// systemd's patience: signs of life come four times as often.
const WATCHDOG: Duration = Duration::from_secs(2);

fn with_watchdog(setup: Setup, socket: &Path) -> Setup {
    // The shell's process is the daemon's.
    setup.through("export WATCHDOG_PID=$$").env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
}

fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    wait_for("some time to pass", || (Instant::now() > until).then_some(()));
}

/// Where the kernel tells about the thread of that name.
fn task(pid: u32, name: &str) -> PathBuf {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let is_it = |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    tasks.map(|task| task.path()).find(|path| is_it(path)).expect("the thread")
}

/// Nanoseconds that a thread has run (proc(5), schedstat).
fn time_of(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).expect("schedstat");
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// A thread of a process that is held by ptrace(2); released when dropped.
struct Held(libc::pid_t);

impl Held {
    /// Holds the thread of that name.
    fn thread(pid: u32, name: &str) -> Self {
        let task = task(pid, name);
        let tid: libc::pid_t =
            task.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("its number");
        // SAFETY: no memory of ours is handed over but `status`, which lives.
        unsafe {
            let mut status = 0;
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0), 0, "ptrace: {}", std::io::Error::last_os_error());
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0), 0);
            assert_eq!(libc::waitpid(tid, &raw mut status, libc::__WALL), tid);
        }
        Self(tid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: numbers only.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

#[test]
fn the_watchdog_hears_of_us_through_long_work_but_not_of_a_generator_or_encoder_that_hangs() {
    let broker = Broker::start();
    let dir = temp_dir();
    let socket = dir.path().join("notify.sock");
    let mut systemd = Notified::on(&socket);
    let mut daemon =
        with_watchdog(Setup::with(&broker), &socket).set("answer.reader", "joined").set("embedder.threads", "1").start();
    let mqtt = Mqtt::to(&broker);
    systemd.wait("WATCHDOG=1");
    // At rest, with nothing to compute.
    systemd.wait_for("WATCHDOG=1", 4);
    mqtt.put(&daemon, "pump.md", MANUAL);
    // Work that lasts longer than systemd's patience.
    let begun = Instant::now();
    mqtt.publish(&daemon.topic("ask"), json!({ "id": "long", "question": QUESTION, "max_tokens": 1000, "temperature": 5, "top_p": 1, "min_p": 0, "stream": true }).to_string());
    mqtt.first_delta(&daemon, "long");
    let before = systemd.count("WATCHDOG=1");
    systemd.wait_for("WATCHDOG=1", before + 5);
    assert!(begun.elapsed() > WATCHDOG && !daemon.log().contains("has not got on"), "{}", daemon.log());

    let held = Held::thread(daemon.pid(), "engine");
    wait_for("the daemon to notice", || daemon.log().contains("the generator has not got on").then_some(()));
    let heard = systemd.count("WATCHDOG=1");
    let_pass(WATCHDOG);
    assert_eq!(systemd.count("WATCHDOG=1"), heard, "systemd would end it");
    // All else goes on, so that it is the generator that is missed.
    assert_eq!(daemon.status()["info"]["node"], "n1");
    drop(held);
    systemd.wait_for("WATCHDOG=1", heard + 1);
    assert!(daemon.log().contains("the generator gets on again"), "{}", daemon.log());
    mqtt.publish(&daemon.topic("cancel"), "long");
    assert_eq!(mqtt.reply(&daemon, "long")["error"]["code"], "cancelled");

    // The same with the encoder, in the midst of a long document.
    let text: String = (0..4000).map(|n| format!("Bearing {n} is greased every {} hours. ", n + 7)).collect();
    let encoder = task(daemon.pid(), "embed");
    let begun = time_of(&encoder);
    mqtt.publish(
        &daemon.topic("documents/put"),
        json!({ "id": "bearings", "document": "bearings.md", "text": text }).to_string(),
    );
    wait_for("the encoder to work", || (time_of(&encoder) > begun + 200_000_000).then_some(()));
    let held = Held::thread(daemon.pid(), "embed");
    wait_for("the daemon to notice", || daemon.log().contains("the encoder has not got on").then_some(()));
    let heard = systemd.count("WATCHDOG=1");
    let_pass(WATCHDOG);
    assert_eq!(systemd.count("WATCHDOG=1"), heard, "systemd would end it");
    drop(held);
    systemd.wait_for("WATCHDOG=1", heard + 1);
    assert!(daemon.log().contains("the encoder gets on again"), "{}", daemon.log());
    assert_eq!(mqtt.reply(&daemon, "bearings")["change"], "added");
    assert!(daemon.runs());
}

#[test]
fn while_the_broker_is_away_systemd_is_asked_for_more_time() {
    let dir = temp_dir();
    let socket = dir.path().join("notify.sock");
    let mut systemd = Notified::on(&socket);
    let port = vademecum_tests::free_port();
    let setup = Setup::new().flag("--broker", format!("mqtt://127.0.0.1:{port}"));
    let mut daemon = with_watchdog(setup, &socket).spawn();
    systemd.wait_for("EXTEND_TIMEOUT_USEC=2000000", 3);
    assert_eq!(systemd.count("WATCHDOG=1") + systemd.count("READY=1"), 0, "{}", systemd.heard);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ends().code(), Some(0), "SIGTERM is heard meanwhile");
}

fn documents(daemon: &Daemon) -> Vec<String> {
    let listed = run(bare_vademecum(["documents", "list", "--json", "--data-dir"]).arg(daemon.data())).exits(0).json();
    let documents = listed.as_array().expect("a list").clone();
    documents
        .iter()
        .filter(|document| document["state"] == "ok")
        .map(|document| document["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[test]
fn sighup_takes_over_what_can_change_and_keeps_what_is_refused() {
    let broker = Broker::start();
    let dir = temp_dir();
    let (socket, config) = (dir.path().join("notify.sock"), dir.path().join("vademecum.toml"));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    for (folder, name) in [(&first, "pump.md"), (&second, "motor.md")] {
        std::fs::create_dir(folder).expect("a folder");
        std::fs::write(folder.join(name), MANUAL).expect("a manual");
    }
    let write = |text: &str| std::fs::write(&config, text).expect("the configuration is written");
    write(&format!("[ingest]\nwatch = [\"{}\"]\n[model]\nslots = 2\n", first.display()));
    let mut systemd = Notified::on(&socket);
    let daemon = Setup::with(&broker).config(&config).env("NOTIFY_SOCKET", &socket).start();
    let mqtt = Mqtt::to(&broker);
    wait_for("the first folder", || (documents(&daemon) == ["pump.md"]).then_some(()));

    write(&format!(
        "[ingest]\nwatch = [\"{}\"]\n[model]\nslots = 3\n[answer]\nmax_question_bytes = 16\n[log]\nlevel = \"debug\"\n",
        second.display()
    ));
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 2);
    let heard = systemd.so_far().to_owned();
    let (_, after) = heard.split_once("RELOADING=1\nMONOTONIC_USEC=").expect("the reload is told, with its time");
    let (micros, after) = after.split_once('\n').expect("a line");
    let since_boot = std::fs::read_to_string("/proc/uptime").expect("the clock");
    let since_boot: f64 = since_boot.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
    assert!((0.0..60.0).contains(&(since_boot - micros.parse::<f64>().expect("a number") / 1e6)), "{micros} of {since_boot}");
    assert!(after.contains("READY=1"), "{heard}");
    let said = "in effect now: answer.max_question_bytes, ingest.watch, log.level; after a restart: model.slots";
    assert!(daemon.log().contains(said), "{}", daemon.log());
    let refused = mqtt.request(&daemon, "ask", json!({ "question": QUESTION }));
    assert_eq!(refused["error"]["code"], "too_large", "{refused}");
    // What the old folder has brought stays; what comes into it now is left alone.
    std::fs::write(first.join("late.md"), MANUAL).expect("a manual");
    wait_for("the second folder", || (documents(&daemon) == ["motor.md", "pump.md"]).then_some(()));
    std::fs::write(second.join("later.md"), MANUAL).expect("a manual");
    wait_for("a later document", || (documents(&daemon) == ["later.md", "motor.md", "pump.md"]).then_some(()));

    // Half of it would be good.
    write("[answer]\nmax_question_bytes = 4096\nqueue = 0\n");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 3);
    let log = daemon.log();
    assert!(log.contains("all stays as it was") && log.contains("`answer.queue` is 0"), "{log}");
    assert_eq!(mqtt.request(&daemon, "ask", json!({ "question": QUESTION }))["error"]["code"], "too_large");

    write("[answer]\nmax_tokens = 1900\n[model]\ncontext = 8192\n");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 4);
    assert!(daemon.log().contains("until a restart"), "{}", daemon.log());

    write("");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 5);
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert!(answer["answer"].is_string(), "{answer}");
    daemon.stop();
}

#[test]
fn sighup_shows_the_broker_new_credentials_and_loses_nothing() {
    let dir = temp_dir();
    let (config, password, accounts) = (dir.path().join("config"), dir.path().join("password"), dir.path().join("accounts"));
    std::fs::write(&accounts, "").expect("a file");
    for (name, word) in [("first", "one"), ("second", "tw0-words"), ("client", "three")] {
        let mut command = std::process::Command::new(vademecum_tests::program("mosquitto_passwd"));
        let _ = run(command.arg("-b").arg(&accounts).args([name, word])).exits(0);
    }
    let port = vademecum_tests::free_port();
    let settings = format!("allow_anonymous false\npersistence false\npassword_file {}\n", accounts.display());
    let broker = Broker::configured(port, &settings);
    let write = |user: &str, word: &str| {
        std::fs::write(&password, word).expect("a password");
        let text = format!("[mqtt]\nusername = \"{user}\"\npassword_file = \"{}\"\n", password.display());
        std::fs::write(&config, text).expect("the configuration");
    };
    // Mistyped: it can be put right without a restart.
    write("first", "won");
    let daemon = Setup::with(&broker).config(&config).spawn();
    wait_for("the refusal", || daemon.log().contains("no connection to the broker").then_some(()));
    write("first", "one");
    daemon.signal(Signal::HUP);
    wait_for("the connection", || daemon.log().contains("ready after").then_some(()));
    assert!(daemon.log().contains("in effect now: the credentials for the broker"), "{}", daemon.log());

    let mqtt = Mqtt::with_account(port, "client", "three");
    mqtt.put(&daemon, "pump.md", MANUAL);
    mqtt.publish(
        &daemon.topic("ask"),
        json!({ "id": "open", "question": QUESTION, "max_tokens": 60, "stream": true }).to_string(),
    );
    mqtt.first_delta(&daemon, "open");
    write("second", "tw0-words");
    daemon.signal(Signal::HUP);
    wait_for("the other account", || (broker.log().contains("u'second'")).then_some(()));
    assert!(mqtt.reply(&daemon, "open")["answer"].is_string());
    assert!(!daemon.log().contains("tw0-words"), "no password is logged");

    std::fs::remove_file(&password).expect("removed");
    daemon.signal(Signal::HUP);
    wait_for("the complaint", || daemon.log().contains("all stays as it was: cannot read mqtt.password_file").then_some(()));
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert!(answer["answer"].is_string(), "{answer}");
    daemon.stop();
}

#[test]
fn the_journal_gets_fields() {
    let dir = temp_dir();
    // In a mount namespace of its own the daemon finds the test's socket in the journal's place, and is told that stderr is the journal.
    if run(Command::new("unshare").args(["-rm", "true"])).code != Some(0) {
        eprintln!("not tried: this system gives no namespaces");
        return;
    }
    let mut journal = Journal::on(&dir.path().join("socket"));
    let broker = Broker::start();
    let script = format!(
        "mount -t tmpfs none /run; mkdir /run/systemd; ln -s {} /run/systemd/journal; export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)",
        dir.path().display()
    );
    let daemon = Setup::with(&broker).through(&script).within(&["unshare", "-rm"]).spawn();
    let ready = journal.wait("ready after");
    assert_eq!((ready["PRIORITY"].as_str(), ready["SYSLOG_IDENTIFIER"].as_str()), ("5", "vademecum"));
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    let entry = journal.wait(&format!("answered {}", answer["id"]));
    assert_eq!(json!(entry["VADEMECUM_QUESTION_ID"]), answer["id"]);
    assert_eq!(entry["VADEMECUM_FOUND"], "true");
    let number = |field: &str| entry[field].parse::<f64>().unwrap_or_else(|e| panic!("{field} ({e}): {entry:?}"));
    assert!(
        (number("VADEMECUM_TTFT_MS") - answer["timings"]["ttft_ms"].as_f64().expect("a time")).abs() < 0.01,
        "{entry:?} {answer}"
    );
    assert!(number("VADEMECUM_TOTAL_MS") >= number("VADEMECUM_TTFT_MS"));
    assert_eq!(number("VADEMECUM_ANSWER_TOKENS") as u64, answer["usage"]["answer_tokens"].as_u64().expect("a count"));
    let refused = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "collection": "none" }));
    assert_eq!(refused["error"]["code"], "unknown_collection");
    let entry = journal.wait(&format!("question {} failed", refused["id"]));
    assert_eq!(entry["PRIORITY"], "4");
    assert_eq!(entry["VADEMECUM_ERROR"], "unknown_collection");
    assert_eq!(daemon.log(), "", "nothing is said twice");
}

/// The system calls that a set of systemd's names, such as `@system-service`.
fn system_calls(set: &str) -> BTreeSet<String> {
    let said = run(Command::new("systemd-analyze").args(["syscall-filter", set])).exits(0).stdout;
    let names = said.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#') && *name != set);
    names.flat_map(|name| if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() }).collect()
}

#[test]
fn the_unit_is_hardened() {
    // `--threshold` is systemd 250's.
    let version = Command::new("systemd-analyze").arg("--version").output().map(|said| said.stdout).unwrap_or_default();
    let version = String::from_utf8_lossy(&version).split(' ').nth(1).and_then(|version| version.parse().ok()).unwrap_or(0);
    if version < 250 {
        eprintln!("not tried: no systemd-analyze, or an old one");
        return;
    }
    let unit = repository().join("config/systemd/vademecum.service");
    let security = ["security", "--no-pager", "--offline=true", "--threshold=15"];
    let _ = run(Command::new("systemd-analyze").args(security).arg(&unit)).exits(0);

    // What is written out for older ones adds nothing here.
    let text = std::fs::read_to_string(&unit).expect("the unit");
    let allowed = text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).filter(|names| !names.starts_with('~'));
    let service = &system_calls("@system-service") | &system_calls("@default");
    for name in allowed.flat_map(str::split_whitespace) {
        let calls = if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() };
        assert!(calls.is_subset(&service), "{name} allows more than @system-service");
    }
}
