//! Faults at random moments under load, counted: the daemon killed; the broker restarted, stopped for a while, cut off, slow;
//! more questions than can be answered.
//!
//! Every question asked at QoS 1 must be answered once, and every acknowledged document must be there. A run prints its seed and
//! its account. A short run with a fixed seed is part of the tests; `make torture N=1000 SEED=7` runs a longer one.

use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vademecum_tests::{Daemon, Killed, MANUAL, NO_DEADLINE_MS, Seed, Setup, cpu_time, free_port, program, temp_dir, wait_for};

/// A number from the environment, else a small one.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A mosquitto that keeps its sessions over a restart.
struct KeepingBroker {
    port: u16,
    dir: tempfile::TempDir,
    child: Killed,
}

impl KeepingBroker {
    fn start() -> Self {
        let (port, dir) = (free_port(), temp_dir());
        let settings = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nmax_queued_messages 100000\nset_tcp_nodelay true\nuser root\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), settings).expect("its configuration");
        let child = Self::spawn(dir.path(), port);
        Self { port, dir, child }
    }

    fn spawn(dir: &Path, port: u16) -> Killed {
        let mut command = Command::new(program("mosquitto"));
        let child =
            command.arg("-c").arg(dir.join("mosquitto.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Killed(child.spawn().expect("mosquitto starts"));
        wait_for("mosquitto", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        child
    }

    /// Ends it in order, so that it writes down its sessions, and starts it again after `pause`.
    fn restart(&mut self, pause: Duration) {
        self.child.signal(Signal::TERM);
        self.child.ends("mosquitto");
        std::thread::sleep(pause);
        self.child = Self::spawn(self.dir.path(), self.port);
    }
}

const PASS: u8 = 0;
const SILENT: u8 = 1;
const SLOW: u8 = 2;

/// A way to the broker that can be cut, become slow, or swallow everything.
struct Way {
    port: u16,
    mode: Arc<AtomicU8>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (mode, open) = (Arc::new(AtomicU8::new(PASS)), Arc::new(Mutex::new(Vec::new())));
        let (its_mode, its_open) = (Arc::clone(&mode), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { continue };
                let both = |stream: &TcpStream| stream.try_clone().expect("a second handle");
                lock(&its_open).extend([both(&client), both(&server)]);
                for (from, to) in [(both(&client), both(&server)), (server, client)] {
                    let mode = Arc::clone(&its_mode);
                    std::thread::spawn(move || carry(from, to, &mode));
                }
            }
        });
        Self { port, mode, open }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::Relaxed);
    }

    fn cut(&self) {
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8) {
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        match mode.load(Ordering::Relaxed) {
            // The swallowed bytes never arrive, so the connection must be given up.
            SILENT => {
                while mode.load(Ordering::Relaxed) == SILENT {
                    std::thread::sleep(Duration::from_millis(5));
                }
                break;
            }
            SLOW => std::thread::sleep(Duration::from_millis(20)),
            _ => {}
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The final replies to a request.
#[derive(Debug, Clone, Default)]
struct Finals {
    count: u32,
    /// One word for each: `answered`, or the code of the error.
    words: Vec<String>,
    last: Value,
    /// The time of the first one.
    at: Option<Instant>,
}

fn word_of(reply: &Value) -> &str {
    if reply.get("answer").is_some() { "answered" } else { reply["error"]["code"].as_str().unwrap_or("?") }
}

/// The asking side. Its session outlives its connections, so it misses no message.
struct Asker {
    client: Client,
    finals: Arc<Mutex<BTreeMap<String, Finals>>>,
    online: Arc<AtomicU64>,
}

impl Asker {
    fn on(port: u16) -> Self {
        let mut options = MqttOptions::new("asker", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(5)).set_clean_start(false).set_session_expiry_interval(Some(3600));
        options.set_max_packet_size(Some(1 << 20));
        // Small messages go out at once instead of waiting for an earlier acknowledgement.
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, mut connection) = Client::new(options, 4096);
        let (finals, online) = (Arc::new(Mutex::new(BTreeMap::<String, Finals>::new())), Arc::new(AtomicU64::new(0)));
        let subscribed = Arc::new(AtomicBool::new(false));
        let (its_finals, its_online, its_subscribed) = (Arc::clone(&finals), Arc::clone(&online), Arc::clone(&subscribed));
        client.subscribe("vademecum/n1/answer/+", QoS::AtLeastOnce).expect("queued");
        client.subscribe("reply/+", QoS::AtLeastOnce).expect("queued");
        client.subscribe("vademecum/n1/state", QoS::AtLeastOnce).expect("queued");
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) if publish.topic.ends_with(b"/state") => {
                        its_online.fetch_add(u64::from(&publish.payload[..] == b"online"), Ordering::Relaxed);
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let reply: Value = serde_json::from_slice(&publish.payload).unwrap_or_default();
                        if reply.get("seq").is_none() {
                            let id = reply["id"].as_str().unwrap_or_default().to_owned();
                            let mut finals = lock(&its_finals);
                            let entry = finals.entry(id).or_default();
                            // The broker repeats a message that this side had not acknowledged. That is no second answer.
                            if publish.dup && entry.count > 0 {
                                continue;
                            }
                            entry.words.push(word_of(&reply).to_owned());
                            (entry.count, entry.last) = (entry.count + 1, reply);
                            entry.at.get_or_insert_with(Instant::now);
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => its_subscribed.store(true, Ordering::Relaxed),
                    Ok(_) => {}
                    // The broker is away.
                    Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
        wait_for("the subscription", || subscribed.load(Ordering::Relaxed).then_some(()));
        Self { client, finals, online }
    }

    fn send(&self, name: &str, payload: &Value) {
        let sent = self.client.publish(format!("vademecum/n1/{name}"), QoS::AtLeastOnce, false, payload.to_string());
        sent.expect("queued");
    }

    fn of(&self, id: &str) -> Finals {
        lock(&self.finals).get(id).cloned().unwrap_or_default()
    }

    fn wait(&self, id: &str) -> Value {
        wait_for(&format!("the reply to {id}"), || Some(self.of(id)).filter(|finals| finals.count > 0)).last
    }
}

/// The requests of a run, and their account.
struct Load {
    random: fastrand::Rng,
    asked: Vec<String>,
    /// Per document, in order: the id of each request, and whether it puts or deletes.
    documents: BTreeMap<String, Vec<(String, bool)>>,
    requests: u64,
}

impl Load {
    fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), asked: Vec::new(), documents: BTreeMap::new(), requests: 0 }
    }

    /// One random request: mostly a question, sometimes a document put or deleted.
    fn request(&mut self, asker: &Asker) {
        self.requests += 1;
        let id = format!("t{}", self.requests);
        match self.random.u8(0..20) {
            0 | 1 => {
                let document = format!("d{}.md", self.random.u8(0..8));
                let text = format!("# Note\n\nThe marker of {id} is here, and release {} is out.\n", self.requests);
                asker.send("documents/put", &json!({ "id": id, "document": document, "text": text }));
                self.documents.entry(document).or_default().push((id, true));
            }
            2 => {
                let document = format!("d{}.md", self.random.u8(0..8));
                asker.send("documents/delete", &json!({ "id": id, "document": document }));
                self.documents.entry(document).or_default().push((id, false));
            }
            n => {
                let stream = n % 2 == 0;
                asker.send(
                    "ask",
                    &json!({ "id": id, "question": format!("What does error E-{} mean?", n % 4 + 6), "stream": stream }),
                );
                self.asked.push(id);
            }
        }
    }

    /// Asks at random moments for `time`.
    fn run(&mut self, asker: &Asker, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.request(asker);
            let pause = Duration::from_millis(self.random.u64(1..40));
            std::thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Waits for all replies, judges them and prints the account.
    fn judge(&self, asker: &Asker, daemon: &Daemon, what: &Value) {
        let mut words: BTreeMap<String, u32> = BTreeMap::new();
        let mut repeated: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for id in &self.asked {
            let reply = asker.wait(id);
            *words.entry(word_of(&reply).to_owned()).or_default() += 1;
        }
        for (last, _) in self.documents.values().filter_map(|requests| requests.last()) {
            asker.wait(last);
        }
        asker.send("documents/list", &json!({ "id": "list" }));
        let listed = asker.wait("list");
        for id in &self.asked {
            let finals = asker.of(id);
            if finals.count > 1 {
                repeated.entry(finals.words.join(", ")).or_default().push(id.clone());
            }
        }
        let listed: Vec<&str> = listed["documents"].as_array().expect("a list").iter().filter_map(|d| d["id"].as_str()).collect();
        let mut kept = 0;
        for (document, requests) in &self.documents {
            // The daemon works on them in their order.
            let Some((id, put)) = requests.last() else { continue };
            if asker.of(id).last.get("error").is_none() {
                kept += 1;
                assert_eq!(listed.contains(&document.as_str()), *put, "{document} after {id}: {listed:?}");
            }
        }
        let empty = |delivery: &Value| delivery["outbox"] == 0 && delivery["inbox"] == 0;
        wait_for("inbox and outbox to be empty", || Some(daemon.status()["metrics"]["delivery"].clone()).filter(empty));
        let account = json!({
            "faults": what, "asked": self.asked.len(), "ended": words, "ended_twice": repeated, "lost": 0,
            "documents": self.documents.values().map(Vec::len).sum::<usize>(), "documents_checked": kept,
            "delivery": daemon.status()["metrics"]["delivery"],
        });
        println!("{account}");
        log_account(&account);
        assert!(words.keys().all(|word| word == "answered" || word == "queue_full" || word == "internal"), "{words:?}");
        // At QoS 1 an answer is repeated if the kill falls between the broker's acknowledgement and the daemon's note of it.
        let twice: usize = repeated.values().map(Vec::len).sum();
        assert!(twice * 100 <= self.asked.len().max(100), "{repeated:?}");
        assert!(daemon.log().lines().all(|line| !line.contains("panicked")), "{}", daemon.log());
    }
}

fn setup(port: u16, data: &Path) -> Setup {
    Setup::new()
        .flag("--broker", format!("mqtt://127.0.0.1:{port}"))
        .data_dir(data)
        .set("answer.strategy", "quote")
        .set("answer.queue", "200")
        .set("mqtt.keep_alive_s", "5")
}

/// A broker, an asker, and the manual in a library.
fn house(through: impl Fn(u16) -> u16) -> (KeepingBroker, Asker, Daemon, tempfile::TempDir, PathBuf, u16) {
    let broker = KeepingBroker::start();
    let asker = Asker::on(broker.port);
    let dir = temp_dir();
    let data = dir.path().join("data");
    let port = through(broker.port);
    let daemon = setup(port, &data).start();
    asker.send("documents/put", &json!({ "id": "manual", "document": "pump.md", "text": MANUAL }));
    assert_eq!(asker.wait("manual")["change"], "added");
    (broker, asker, daemon, dir, data, port)
}

#[test]
fn the_daemon_is_killed() {
    let seed = Seed::from_environment();
    let (kills, mut load) = (number("N", 8), Load::new(seed.0));
    let (_broker, asker, mut daemon, _dir, data, port) = house(|port| port);
    // The work of a start is compared in processor time, which does not depend on the machine's other work.
    let clean = cpu_time(daemon.pid());
    let (mut slowest, mut most_work) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..kills {
        let time = Duration::from_millis(load.random.u64(0..400));
        load.run(&asker, time);
        daemon.signal(Signal::KILL);
        daemon.ends();
        let online = asker.online.load(Ordering::Relaxed);
        let begun = Instant::now();
        daemon = setup(port, &data).start();
        wait_for("online", || (asker.online.load(Ordering::Relaxed) > online).then_some(()));
        slowest = slowest.max(begun.elapsed());
        most_work = most_work.max(cpu_time(daemon.pid()));
    }
    println!("processor time of the first start {clean:?}, of the longest one after a kill {most_work:?}");
    assert!(most_work < 20 * clean, "{most_work:?}, {clean:?}");
    load.judge(&asker, &daemon, &json!({ "kills": kills, "slowest_start_ms": slowest.as_millis() as u64 }));
}

#[test]
fn the_broker_comes_and_goes() {
    let seed = Seed::from_environment();
    let (faults, mut load) = (number("FAULTS", 6), Load::new(seed.0));
    let way = Mutex::new(None);
    let (mut broker, asker, daemon, _dir, _data, _port) = house(|broker| {
        let to = Way::to(broker);
        let port = to.port;
        *lock(&way) = Some(to);
        port
    });
    let way = lock(&way).take().expect("made");
    let mut done: BTreeMap<&str, u64> = BTreeMap::new();
    for fault in 0..faults {
        let time = Duration::from_millis(load.random.u64(0..400));
        load.run(&asker, time);
        let pause = Duration::from_millis(load.random.u64(0..2000));
        let kind = ["restarted", "stopped for a while", "cut off", "half-open", "slow"][(fault % 5) as usize];
        *done.entry(kind).or_default() += 1;
        match kind {
            "restarted" => broker.restart(pause),
            "stopped for a while" => {
                broker.child.signal(Signal::STOP);
                load.run(&asker, pause);
                broker.child.signal(Signal::CONT);
            }
            "cut off" => {
                way.cut();
                load.run(&asker, pause);
                way.cut();
            }
            "half-open" => {
                way.set(SILENT);
                load.run(&asker, pause);
                way.set(PASS);
                way.cut();
            }
            _ => {
                way.set(SLOW);
                load.run(&asker, pause);
                way.set(PASS);
            }
        }
    }
    load.judge(&asker, &daemon, &json!(done));
}

/// Resident memory that is the process's own, in KiB, and its open files.
fn footprint(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("its memory");
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    (line.split_whitespace().nth(1).expect("a number").parse().expect("a number"), files)
}

/// Kilobytes per minute, by least squares.
fn slope(samples: &[(f64, u64)]) -> f64 {
    let n = samples.len() as f64;
    let (mean_x, mean_y) = (samples.iter().map(|s| s.0).sum::<f64>() / n, samples.iter().map(|s| s.1 as f64).sum::<f64>() / n);
    let over: f64 = samples.iter().map(|s| (s.0 - mean_x) * (s.1 as f64 - mean_y)).sum();
    let under: f64 = samples.iter().map(|s| (s.0 - mean_x).powi(2)).sum();
    60.0 * over / under.max(1e-9)
}

#[test]
fn fifty_clients_ask_more_than_it_can() {
    let (seconds, seed) = (number("SOAK", 6), Seed::from_environment());
    let broker = KeepingBroker::start();
    let asker = Asker::on(broker.port);
    let dir = temp_dir();
    // The generator keeps all cores busy, so that a refusal has to compete with it.
    let setup = setup(broker.port, &dir.path().join("data")).set("answer.strategy", "read").set("answer.max_tokens", "16");
    let daemon = setup.set("answer.queue", "16").set("answer.cache", "0").start();
    asker.send("documents/put", &json!({ "id": "manual", "document": "pump.md", "text": MANUAL }));
    asker.wait("manual");
    let ask = |id: &str, client: usize, deadline: u64| {
        asker.send(
            "ask",
            &json!({ "id": id, "question": format!("What does error E-{} mean, client {client}?", client % 4 + 6),
            "deadline_ms": deadline, "reply_to": format!("reply/c{client}"), "stream": client.is_multiple_of(3) }),
        );
    };
    // Measures the answers a second while some questions always wait. The first answers do not count: they compute KV states.
    let waiting = 12;
    let (mut answered, mut begun) = (0, Instant::now());
    (0..waiting).for_each(|n| ask(&format!("c{n}"), n, NO_DEADLINE_MS));
    while answered < 2 * waiting || begun.elapsed() < Duration::from_secs(2) {
        asker.wait(&format!("c{answered}"));
        ask(&format!("c{}", answered + waiting), answered, NO_DEADLINE_MS);
        answered += 1;
        if answered == waiting {
            begun = Instant::now();
        }
    }
    let capacity = (answered - waiting) as f64 / begun.elapsed().as_secs_f64();
    let pause = Duration::from_secs_f64(1.0 / (1.5 * capacity));

    let mut random = fastrand::Rng::with_seed(seed.0);
    let mut asked: Vec<(Instant, Duration)> = Vec::new();
    let mut samples = Vec::new();
    let begun = Instant::now();
    let files = footprint(daemon.pid()).1;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let deadline = Duration::from_millis(random.u64(500..5000));
        asked.push((Instant::now(), deadline));
        ask(&format!("q{}", asked.len() - 1), random.usize(0..50), deadline.as_millis() as u64);
        if asked.len().is_multiple_of(200) {
            asker.send(
                "documents/put",
                &json!({ "id": format!("p{}", asked.len()), "document": "note.md", "text": format!("Note {}.", asked.len()) }),
            );
        }
        let due = begun + pause * asked.len() as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if samples.last().is_none_or(|(at, _)| begun.elapsed().as_secs_f64() - at >= 1.0) {
            samples.push((begun.elapsed().as_secs_f64(), footprint(daemon.pid()).0));
        }
    }
    let mut words: BTreeMap<String, u32> = BTreeMap::new();
    let (mut rejections, mut answers) = (Vec::new(), Vec::new());
    for (n, (at, deadline)) in asked.iter().enumerate() {
        let id = format!("q{n}");
        let reply = asker.wait(&id);
        let took = asker.of(&id).at.expect("it came").duration_since(*at);
        let word = word_of(&reply);
        if word == "queue_full" {
            rejections.push(took);
        }
        if word == "answered" {
            answers.push((took, *deadline));
        }
        *words.entry(word.to_owned()).or_default() += 1;
    }
    rejections.sort_unstable();
    let p99 = rejections.get(rejections.len() * 99 / 100).copied().unwrap_or_default();
    // A rejection comes at once, so the slowest one shows how long the way there and back takes on this machine.
    let way = rejections.last().copied().unwrap_or_default() + Duration::from_millis(500);
    let late = answers.iter().filter(|(took, deadline)| *took > *deadline + way).count();
    // In the first samples memory is still being taken for the first time.
    let steady = &samples[samples.len() / 5..];
    let account = json!({
        "seconds": seconds, "capacity_per_s": capacity.round(), "asked": asked.len(), "ended": words, "late_without_error": late,
        "rejected_p99_ms": p99.as_secs_f64() * 1e3, "anonymous_kib": [samples.first().map(|s| s.1), samples.last().map(|s| s.1)],
        "anonymous_kib_per_minute": slope(steady).round(), "files": [files, footprint(daemon.pid()).1],
        "delivery": daemon.status()["metrics"]["delivery"],
    });
    println!("{account}");
    log_account(&account);
    assert_eq!(late, 0, "{account}");
    assert!(seconds < 30 || words.contains_key("answered"), "a machine that answers nothing shows nothing: {account}");
    assert!(words.keys().all(|word| ["answered", "queue_full", "deadline_exceeded"].contains(&word.as_str())), "{account}");
    assert!(footprint(daemon.pid()).1 <= files + 4, "{account}");
}

fn log_account(account: &Value) {
    if let Ok(file) = std::env::var("TORTURE_LOG") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
        writeln!(file.expect("the log opens"), "{account}").expect("the log is written");
    }
}
