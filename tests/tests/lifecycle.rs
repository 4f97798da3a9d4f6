//! Start and readiness, brokers that come and go, and the end.

use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use vademecum_tests::{
    Broker, Daemon, MANUAL, Mqtt, Notified, PATIENCE, PATIENCE_S, QUESTION, Setup, free_port, let_pass, program, run, wait_for,
};

fn state(mqtt: &Mqtt, daemon: &Daemon, wanted: &str) {
    let topic = daemon.topic("state");
    mqtt.wait(wanted, |messages| messages.iter().rfind(|m| m.topic == topic).filter(|m| m.text() == wanted).map(drop));
}

fn answered(mqtt: &Mqtt, daemon: &Daemon) -> Value {
    let answer = mqtt.request(daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    answer
}

fn endless(id: &str, max_tokens: usize) -> String {
    json!({ "id": id, "question": QUESTION, "max_tokens": max_tokens, "temperature": 5, "top_p": 1, "min_p": 0, "stream": true })
        .to_string()
}

#[test]
fn state_and_info_are_retained_and_a_will_kept() {
    let broker = Broker::start();
    let mut daemon = Setup::with(&broker).set("answer.max_tokens", "77").start();
    // A client that comes later hears the retained messages.
    let mqtt = Mqtt::to(&broker);
    let (online, info) = (mqtt.first_on(&daemon.topic("state")), mqtt.first_on(&daemon.topic("info")));
    assert!(online.retained && info.retained);
    assert_eq!(online.text(), "online");
    let info = info.json();
    assert_eq!(info["node"], "n1");
    assert_eq!(info["model"]["architecture"], "llama");
    assert_eq!(info["model"]["context"], 2048);
    assert_eq!(info["limits"]["questions"], 20, "four at work, sixteen waiting");
    assert_eq!(info["collections"], json!([{ "name": "default", "documents": 0, "chunks": 0 }]));
    assert!(
        info["version"].is_string() && info["embedder"].is_string() && info["threads"]["decode"].as_u64() > Some(0),
        "{info}"
    );
    daemon.signal(Signal::KILL);
    daemon.ends();
    state(&mqtt, &daemon, "offline");
    assert!(Mqtt::to(&broker).first_on(&daemon.topic("state")).retained, "offline stays for those who come later");
}

#[test]
fn ready_waits_for_a_late_broker() {
    let dir = vademecum_tests::temp_dir();
    let socket = dir.path().join("notify.sock");
    let mut systemd = Notified::on(&socket);
    let port = free_port();
    let daemon = Setup::new().flag("--broker", format!("mqtt://127.0.0.1:{port}")).env("NOTIFY_SOCKET", &socket).spawn();
    systemd.wait("STATUS=connecting to the broker");
    wait_for("an attempt to connect", || daemon.log().contains("no connection to the broker").then_some(()));
    assert!(!systemd.so_far().contains("READY=1"), "{}", systemd.heard);
    let broker = Broker::on(port);
    systemd.wait("READY=1");
    let mqtt = Mqtt::to(&broker);
    // No question is lost from here on.
    mqtt.put(&daemon, "pump.md", MANUAL);
    answered(&mqtt, &daemon);
    assert_eq!(systemd.so_far().matches("READY=1").count(), 1);
    daemon.signal(Signal::TERM);
    systemd.wait("STOPPING=1");
}

/// Reads one packet of a client: its first byte and its body.
fn packet(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("a packet");
    let (mut length, mut shift, mut byte) = (usize::from(head[1] & 0x7f), 7, head[1]);
    while byte & 0x80 != 0 {
        let mut next = [0];
        stream.read_exact(&mut next).expect("its length");
        byte = next[0];
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("its body");
    (head[0], body)
}

#[test]
fn ready_waits_for_the_acknowledged_subscription() {
    let dir = vademecum_tests::temp_dir();
    let socket = dir.path().join("notify.sock");
    let mut systemd = Notified::on(&socket);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let setup = Setup::new().flag("--broker", format!("mqtt://127.0.0.1:{port}")).set("mqtt.version", "3.1.1");
    let daemon = setup.env("NOTIFY_SOCKET", &socket).spawn();
    let (mut stream, _) = listener.accept().expect("the daemon connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    assert_eq!(packet(&mut stream).0, 0x10, "CONNECT");
    stream.write_all(&[0x20, 2, 0, 0]).expect("CONNACK");
    let (kind, body) = packet(&mut stream);
    assert_eq!(kind, 0x82, "SUBSCRIBE");
    // Connected, with its models loaded, but not subscribed: a daemon that is ready too soon says so now.
    wait_for("the connection", || daemon.log().contains("connected to the broker").then_some(()));
    let_pass(Duration::from_millis(300));
    assert!(!systemd.so_far().contains("READY=1") && !daemon.log().contains("ready after"));
    // Six topics, each granted QoS 1.
    stream.write_all(&[0x90, 8, body[0], body[1], 1, 1, 1, 1, 1, 1]).expect("SUBACK");
    systemd.wait("READY=1");
    assert_eq!(packet(&mut stream).0 & 0xf0, 0x30, "and then it says that it is online");
}

#[test]
fn a_restarted_broker_is_found_again() {
    let broker = Broker::start();
    let port = broker.port;
    let mut daemon = Setup::with(&broker).start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    answered(&mqtt, &daemon);
    drop(mqtt);
    drop(broker);
    wait_for("the loss to be noticed", || daemon.log().contains("no connection to the broker").then_some(()));
    let broker = Broker::on(port);
    let mqtt = Mqtt::to(&broker);
    state(&mqtt, &daemon, "online");
    answered(&mqtt, &daemon);
    assert!(daemon.runs());
}

#[test]
fn sigterm_lets_the_running_question_finish() {
    let broker = Broker::start();
    let mut daemon = Setup::with(&broker).set("service.shutdown_grace_s", "600").set("mqtt.durable", "false").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    mqtt.publish(&daemon.topic("ask"), endless("last", 300));
    mqtt.first_delta(&daemon, "last");
    daemon.signal(Signal::TERM);
    wait_for("the signal to arrive", || daemon.log().contains("SIGTERM: stopping").then_some(()));
    let refused = mqtt.request(&daemon, "ask", json!({ "question": QUESTION }));
    assert_eq!(refused["error"]["code"], "not_ready", "{refused}");
    let answer = mqtt.reply(&daemon, "last");
    assert!(answer["usage"]["answer_tokens"].as_u64() > Some(0), "{answer}");
    assert_eq!(daemon.ends().code(), Some(0));
    state(&mqtt, &daemon, "offline");
    assert!(!daemon.data().join("control.sock").exists(), "the socket is cleared away");
    let topic = daemon.topic("answer/last");
    assert!(mqtt.on(&topic).iter().all(|m| m.json().get("error").is_none()));
}

#[test]
fn sigterm_without_grace_returns_questions() {
    let broker = Broker::start();
    let mut daemon = Setup::with(&broker).set("service.shutdown_grace_s", "0").set("mqtt.durable", "false").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    mqtt.publish(&daemon.topic("ask"), endless("cut", 1000));
    mqtt.first_delta(&daemon, "cut");
    mqtt.publish(&daemon.topic("ask"), endless("waiting", 1000));
    mqtt.fence(&daemon);
    daemon.signal(Signal::TERM);
    // Every last word arrives before the goodbye. A daemon with grace would answer "cut".
    state(&mqtt, &daemon, "offline");
    for id in ["cut", "waiting"] {
        let reply = mqtt.reply(&daemon, id);
        assert_eq!(reply["error"]["code"], "not_ready", "{reply}");
    }
    assert_eq!(daemon.ends().code(), Some(0));
    state(&mqtt, &daemon, "offline");
}

#[test]
fn embedded_broker_by_default_names_a_taken_port() {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let daemon = Setup::new().set("broker.listen", &listen).start();
    let mqtt = Mqtt::connect(port);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let mut ask = std::process::Command::new(program("mosquitto_rr"));
    ask.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", "5", "-t", &daemon.topic("ask"), "-e", "reply/1"]);
    let answer =
        run(ask.args(["-W", PATIENCE_S, "-m"]).arg(json!({ "question": QUESTION, "max_tokens": 8 }).to_string())).exits(0).json();
    assert_eq!(answer["citations"][0]["document"], "pump.md");
    let mut second = Setup::new().set("broker.listen", &listen).spawn();
    assert_eq!(second.ends().code(), Some(1));
    let log = second.log();
    assert!(log.contains(&listen) && log.contains("[mqtt] broker") && log.contains("in use"), "{log}");
    answered(&mqtt, &daemon);
    daemon.stop();
}

#[test]
fn a_data_directory_has_one_daemon() {
    let broker = Broker::start();
    let mut first = Setup::with(&broker).start();
    let mut second = Setup::with(&broker).data_dir(first.data()).spawn();
    assert_eq!(second.ends().code(), Some(1));
    let log = second.log();
    assert!(
        log.contains("is in use") && log.contains(&first.data().display().to_string()) && log.contains(&first.pid().to_string()),
        "{log}"
    );
    assert!(first.runs() && first.data().join("control.sock").exists());
}
