//! As a service: the watchdog, reloading, the journal.

use rustix::process::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vademecum_tests::{
    Broker, Daemon, Journal, MANUAL, Mqtt, Notified, QUESTION, Setup, bare_vademecum, cpu_time_of_thread, let_pass, repository,
    run, temp_dir, thread, wait_for,
};

/// systemd's shortest patience in these tests: signs of life come four times as often.
const WATCHDOG: Duration = Duration::from_secs(2);

fn with_watchdog(setup: Setup, socket: &Path, patience: Duration) -> Setup {
    // The shell's process is the daemon's.
    setup.through("export WATCHDOG_PID=$$").env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", patience.as_micros().to_string())
}

/// A patience that this machine deserves with its present load: a whole question takes one of the four looks.
fn patience(broker: &Broker) -> Duration {
    let daemon = Setup::with(broker).set("answer.strategy", "read").start();
    let mqtt = Mqtt::to(broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let begun = Instant::now();
    mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    let question = begun.elapsed();
    daemon.stop();
    println!("a question takes {question:?}");
    WATCHDOG.max(4 * question)
}

/// CLOCK_MONOTONIC in microseconds.
fn monotonic_us() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes into `time` only.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
}

/// A thread of a process that is held by ptrace(2); released when dropped.
struct Held(libc::pid_t);

impl Held {
    /// Holds the thread of that name.
    fn thread(pid: u32, name: &str) -> Self {
        let task = thread(pid, name);
        let tid: libc::pid_t =
            task.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("its number");
        // SAFETY: the only memory that is handed over is `status`, which lives.
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
fn the_watchdog_tells_long_work_from_a_hang() {
    let broker = Broker::start();
    let dir = temp_dir();
    let socket = dir.path().join("notify.sock");
    let patience = patience(&broker);
    let mut systemd = Notified::on(&socket);
    let setup = with_watchdog(Setup::with(&broker), &socket, patience);
    let mut daemon = setup.set("answer.strategy", "read").set("embedder.threads", "1").start();
    let mqtt = Mqtt::to(&broker);
    systemd.wait("WATCHDOG=1");
    // The daemon is at rest.
    systemd.wait_for("WATCHDOG=1", 3);
    mqtt.put(&daemon, "pump.md", MANUAL);
    // Work that lasts longer than systemd's patience.
    let begun = Instant::now();
    mqtt.publish(&daemon.topic("ask"), json!({ "id": "long", "question": QUESTION, "max_tokens": 1000, "temperature": 5, "top_p": 1, "min_p": 0, "stream": true }).to_string());
    mqtt.first_delta(&daemon, "long");
    let before = systemd.count("WATCHDOG=1");
    systemd.wait_for("WATCHDOG=1", before + 5);
    assert!(begun.elapsed() > patience && !daemon.log().contains("makes no progress"), "{}", daemon.log());

    let held = Held::thread(daemon.pid(), "engine");
    wait_for("the daemon to notice", || daemon.log().contains("the generator makes no progress").then_some(()));
    let heard = systemd.count("WATCHDOG=1");
    let_pass(patience);
    assert_eq!(systemd.count("WATCHDOG=1"), heard, "systemd would end it");
    // Everything but the generator goes on.
    assert_eq!(daemon.status()["info"]["node"], "n1");
    drop(held);
    systemd.wait_for("WATCHDOG=1", heard + 1);
    assert!(daemon.log().contains("the generator gets on again"), "{}", daemon.log());
    mqtt.publish(&daemon.topic("cancel"), "long");
    assert_eq!(mqtt.reply(&daemon, "long")["error"]["code"], "cancelled");

    // The same with the encoder, in the middle of a long document.
    let text: String = (0..2000).map(|n| format!("Bearing {n} is greased every {} hours. ", n + 7)).collect();
    let worked = || cpu_time_of_thread(daemon.pid(), "embed");
    let before = worked();
    mqtt.publish(
        &daemon.topic("documents/put"),
        json!({ "id": "bearings", "document": "bearings.md", "text": text }).to_string(),
    );
    wait_for("the encoder to work", || (worked() > before + Duration::from_millis(200)).then_some(()));
    let held = Held::thread(daemon.pid(), "embed");
    wait_for("the daemon to notice", || daemon.log().contains("the encoder makes no progress").then_some(()));
    let heard = systemd.count("WATCHDOG=1");
    let_pass(patience);
    assert_eq!(systemd.count("WATCHDOG=1"), heard, "systemd would end it");
    drop(held);
    systemd.wait_for("WATCHDOG=1", heard + 1);
    assert!(daemon.log().contains("the encoder gets on again"), "{}", daemon.log());
    assert_eq!(mqtt.reply(&daemon, "bearings")["change"], "added");
    assert!(daemon.runs());
}

#[test]
fn without_a_broker_systemd_gives_more_time() {
    let dir = temp_dir();
    let socket = dir.path().join("notify.sock");
    let mut systemd = Notified::on(&socket);
    let port = vademecum_tests::free_port();
    let setup = Setup::new().flag("--broker", format!("mqtt://127.0.0.1:{port}"));
    let mut daemon = with_watchdog(setup, &socket, WATCHDOG).spawn();
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
fn sighup_takes_over_or_keeps_settings() {
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
    let before = monotonic_us();
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 2);
    let after_reload = monotonic_us();
    let heard = systemd.so_far().to_owned();
    let (_, after) = heard.split_once("RELOADING=1\nMONOTONIC_USEC=").expect("the reload is told, with its time");
    let (micros, after) = after.split_once('\n').expect("a line");
    let told: i64 = micros.parse().expect("a number");
    assert!((before..=after_reload).contains(&told), "{before} {told} {after_reload}");
    assert!(after.contains("READY=1"), "{heard}");
    let said = "in effect now: answer.max_question_bytes, ingest.watch, log.level; after a restart: model.slots";
    assert!(daemon.log().contains(said), "{}", daemon.log());
    let refused = mqtt.request(&daemon, "ask", json!({ "question": QUESTION }));
    assert_eq!(refused["error"]["code"], "too_large", "{refused}");
    // Documents of the old folder stay, and its new files are ignored.
    std::fs::write(first.join("late.md"), MANUAL).expect("a manual");
    wait_for("the second folder", || (documents(&daemon) == ["motor.md", "pump.md"]).then_some(()));
    std::fs::write(second.join("later.md"), MANUAL).expect("a manual");
    wait_for("a later document", || (documents(&daemon) == ["later.md", "motor.md", "pump.md"]).then_some(()));

    // A configuration with one bad value is refused as a whole.
    write("[answer]\nmax_question_bytes = 4096\nqueue = 0\n");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 3);
    let log = daemon.log();
    assert!(log.contains("all stays as it was") && log.contains("`answer.queue` is 0"), "{log}");
    assert_eq!(mqtt.request(&daemon, "ask", json!({ "question": QUESTION }))["error"]["code"], "too_large");

    write("[answer]\nmax_tokens = 1900\n[model]\ncontext = 8192\n");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 4);
    assert!(daemon.log().contains("only at a restart"), "{}", daemon.log());

    write("");
    daemon.signal(Signal::HUP);
    systemd.wait_for("READY=1", 5);
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert!(answer["answer"].is_string(), "{answer}");
    daemon.stop();
}

#[test]
fn sighup_renews_credentials_and_loses_nothing() {
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
    // A mistyped password can be corrected without a restart.
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

/// In a mount namespace of its own the daemon finds the test's socket in the journal's place, and takes stderr for the journal.
#[test]
#[cfg_attr(without_namespaces, ignore = "`unshare -rm` gives no namespaces here")]
fn the_journal_gets_fields() {
    let dir = temp_dir();
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

/// The system calls in one of systemd's sets, such as `@system-service`.
fn system_calls(set: &str) -> BTreeSet<String> {
    let said = run(Command::new("systemd-analyze").args(["syscall-filter", set])).exits(0).stdout;
    let names = said.lines().map(str::trim).filter(|name| !name.is_empty() && !name.starts_with('#') && *name != set);
    names.flat_map(|name| if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() }).collect()
}

#[test]
#[cfg_attr(without_systemd_250, ignore = "`systemd-analyze security --threshold` needs systemd 250")]
fn the_unit_is_hardened() {
    let unit = repository().join("config/systemd/vademecum.service");
    let security = ["security", "--no-pager", "--offline=true", "--threshold=15"];
    let _ = run(Command::new("systemd-analyze").args(security).arg(&unit)).exits(0);

    // The calls that the unit names for older versions are all in the sets of this one.
    let text = std::fs::read_to_string(&unit).expect("the unit");
    let allowed = text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).filter(|names| !names.starts_with('~'));
    let service = &system_calls("@system-service") | &system_calls("@default");
    for name in allowed.flat_map(str::split_whitespace) {
        let calls = if name.starts_with('@') { system_calls(name) } else { [name.to_owned()].into() };
        assert!(calls.is_subset(&service), "{name} allows more than @system-service");
    }
}
