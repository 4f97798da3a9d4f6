//! An acknowledged question is answered once: over kills, restarts, repetitions, a full queue and a cancelled wait.

use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use vademecum_tests::{Broker, Daemon, MANUAL, Mqtt, NO_DEADLINE_MS, Properties, QUESTION, Setup, let_pass, temp_dir, wait_for};

/// A question whose answer takes long unless its deadline ends it.
fn endless(id: &str, deadline_ms: u64) -> String {
    let long = json!({ "max_tokens": 1000, "temperature": 5, "top_p": 1, "min_p": 0, "stream": true });
    let mut question = json!({ "id": id, "question": QUESTION, "deadline_ms": deadline_ms });
    question.as_object_mut().expect("an object").extend(long.as_object().expect("an object").clone());
    question.to_string()
}

fn ask(mqtt: &Mqtt, daemon: &Daemon, payload: impl Into<Vec<u8>>) {
    mqtt.publish(&daemon.topic("ask"), payload);
}

/// The final replies to the question `id` so far.
fn finals(mqtt: &Mqtt, daemon: &Daemon, id: &str) -> Vec<Value> {
    let all = mqtt.on(&daemon.topic(&format!("answer/{id}")));
    all.iter().map(vademecum_tests::Message::json).filter(|reply| reply.get("seq").is_none()).collect()
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or_default()
}

fn delivery(daemon: &Daemon) -> Value {
    daemon.status()["metrics"]["delivery"].clone()
}

fn house() -> (Broker, tempfile::TempDir) {
    (Broker::start(), temp_dir())
}

fn start(broker: &Broker, data: &tempfile::TempDir) -> Daemon {
    Setup::with(broker).data_dir(&data.path().join("data")).start()
}

#[test]
fn a_killed_daemon_answers_once() {
    let (broker, data) = house();
    let daemon = start(&broker, &data);
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    // After an end in order the kill cannot cost the database this document.
    daemon.stop();
    let mut daemon = start(&broker, &data);
    ask(&mqtt, &daemon, endless("first", NO_DEADLINE_MS));
    mqtt.first_delta(&daemon, "first");
    ask(&mqtt, &daemon, json!({ "id": "second", "question": "When are the bearings greased?", "max_tokens": 8 }).to_string());
    let deadline = Duration::from_secs(1);
    let asked = Instant::now();
    ask(&mqtt, &daemon, endless("late", deadline.as_millis() as u64));
    wait_for("both to be in the inbox", || (delivery(&daemon)["inbox"].as_u64() >= Some(2)).then_some(()));
    daemon.signal(Signal::KILL);
    daemon.ends();
    // Asked while the daemon is away; the deadline of the late question passes meanwhile.
    ask(&mqtt, &daemon, json!({ "id": "away", "question": QUESTION, "mode": "evidence" }).to_string());
    let_pass(deadline.saturating_sub(asked.elapsed()));

    let daemon = start(&broker, &data);
    assert!(daemon.log().contains("is taken up again"), "{}", daemon.log());
    // The question that was at work is worked on again; it may have ended by now.
    mqtt.publish(&daemon.topic("cancel"), r#"{"id":"first"}"#);
    for id in ["second", "away"] {
        let reply = mqtt.reply(&daemon, id);
        assert_eq!(reply["found"], true, "{reply}");
    }
    let late = mqtt.reply(&daemon, "late");
    assert_eq!(code(&late), "deadline_exceeded", "{late}");
    let first = mqtt.reply(&daemon, "first");
    assert!(code(&first) == "cancelled" || first["finish"] == "length" || first["finish"] == "stop", "{first}");
    wait_for("the outbox to be empty", || (delivery(&daemon)["outbox"] == 0 && delivery(&daemon)["inbox"] == 0).then_some(()));
    drop(daemon);

    let daemon = start(&broker, &data);
    mqtt.fence(&daemon);
    for id in ["first", "second", "late", "away"] {
        assert_eq!(finals(&mqtt, &daemon, id).len(), 1, "{id}");
    }
}

#[test]
fn open_questions_go_before_newer_ones() {
    let (broker, data) = house();
    let start = || Setup::with(&broker).data_dir(&data.path().join("data")).set("model.slots", "1").start();
    let mut daemon = start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let evidence = |id: &str| json!({ "id": id, "question": QUESTION, "mode": "evidence" }).to_string();
    ask(&mqtt, &daemon, endless("long", NO_DEADLINE_MS));
    mqtt.first_delta(&daemon, "long");
    ask(&mqtt, &daemon, evidence("one"));
    ask(&mqtt, &daemon, evidence("two"));
    wait_for("them to be in the inbox", || (delivery(&daemon)["inbox"] == 3).then_some(()));
    daemon.signal(Signal::KILL);
    daemon.ends();
    for id in ["three", "four"] {
        ask(&mqtt, &daemon, evidence(id));
    }
    let asked = |log: &str| log.lines().filter(|line| line.contains("Received PUBLISH") && line.contains("/ask'")).count();
    wait_for("the broker to have them", || (asked(&broker.log()) == 5).then_some(()));
    let daemon = start();
    mqtt.first_delta(&daemon, "long");
    mqtt.publish(&daemon.topic("cancel"), "long");
    let ids = ["one", "two", "three", "four"];
    let order = mqtt.wait("all", |messages| {
        let all = messages.iter().filter_map(|message| message.topic.rsplit_once("/answer/").map(|(_, id)| id.to_owned()));
        let all: Vec<String> = all.filter(|id| ids.contains(&id.as_str())).collect();
        (all.len() == ids.len()).then_some(all)
    });
    assert_eq!(order, ids);
}

#[test]
fn a_question_is_given_up_after_two_crashes() {
    let (broker, data) = house();
    let mut daemon = start(&broker, &data);
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    ask(&mqtt, &daemon, endless("poison", NO_DEADLINE_MS));
    let deltas = |daemon: &Daemon| mqtt.on(&daemon.topic("answer/poison")).len();
    for _ in 0..2 {
        let before = deltas(&daemon);
        wait_for("it to be worked on", || (deltas(&daemon) > before + 1).then_some(()));
        daemon.signal(Signal::KILL);
        daemon.ends();
        daemon = start(&broker, &data);
    }
    let reply = mqtt.reply(&daemon, "poison");
    assert_eq!(code(&reply), "internal", "{reply}");
    assert!(mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 })).get("answer").is_some());
}

#[test]
fn an_orderly_restart_is_no_crash() {
    let (broker, data) = house();
    let mqtt = Mqtt::to(&broker);
    let start = || Setup::with(&broker).data_dir(&data.path().join("data")).set("service.shutdown_grace_s", "0").start();
    let mut daemon = start();
    mqtt.put(&daemon, "pump.md", MANUAL);
    ask(&mqtt, &daemon, endless("long", NO_DEADLINE_MS));
    for _ in 0..3 {
        let before = mqtt.on(&daemon.topic("answer/long")).len();
        wait_for("it to be worked on", || (mqtt.on(&daemon.topic("answer/long")).len() > before + 1).then_some(()));
        daemon.signal(Signal::TERM);
        daemon.ends();
        assert!(daemon.log().contains("left for the next start: 1 unanswered"), "{}", daemon.log());
        daemon = start();
    }
    mqtt.publish(&daemon.topic("cancel"), "long");
    assert_eq!(code(&mqtt.reply(&daemon, "long")), "cancelled");
    assert_eq!(finals(&mqtt, &daemon, "long").len(), 1);
}

#[test]
fn repetitions_join_the_first() {
    let (broker, data) = house();
    let daemon = start(&broker, &data);
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let question = json!({ "id": "again", "question": QUESTION, "max_tokens": 16 }).to_string();
    for _ in 0..3 {
        ask(&mqtt, &daemon, question.clone());
    }
    mqtt.reply(&daemon, "again");
    ask(&mqtt, &daemon, question);
    // Another client's question, recognised by its reply topic.
    let other = Properties { response_topic: Some("reply/other".into()), ..Properties::default() };
    mqtt.publish_with(&daemon.topic("ask"), json!({ "id": "again", "question": QUESTION, "max_tokens": 4 }).to_string(), other);
    assert!(mqtt.first_on("reply/other").json().get("answer").is_some());
    mqtt.fence(&daemon);
    assert_eq!(finals(&mqtt, &daemon, "again").len(), 1);
    assert_eq!(delivery(&daemon)["repeated"], 3);
    // Without an id the correlation data names the question, even if it is no text.
    for data in [&[0_u8, 1][..], &[0, 1], &[0, 2]] {
        let properties =
            Properties { response_topic: Some("reply/bytes".into()), correlation: Some(data.to_vec()), ..Properties::default() };
        mqtt.publish_with(&daemon.topic("ask"), QUESTION, properties);
    }
    mqtt.wait("two answers", |messages| (messages.iter().filter(|m| m.topic == "reply/bytes").count() == 2).then_some(()));
    mqtt.fence(&daemon);
    assert_eq!(delivery(&daemon)["repeated"], 4);
    // Two unnamed questions in the same words are two questions.
    let plain = || {
        mqtt.publish_with(
            &daemon.topic("ask"),
            QUESTION,
            Properties { response_topic: Some("reply/plain".into()), ..Properties::default() },
        );
    };
    plain();
    plain();
    mqtt.wait("two answers", |messages| (messages.iter().filter(|m| m.topic == "reply/plain").count() == 2).then_some(()));
}

#[test]
fn a_full_queue_leaves_room_for_other_clients() {
    let broker = Broker::start();
    let daemon =
        Setup::with(&broker).set("answer.queue", "4").set("model.slots", "1").set("mqtt.high_priority", "reply/alarm").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    ask(&mqtt, &daemon, endless("at-work", NO_DEADLINE_MS));
    mqtt.first_delta(&daemon, "at-work");
    for n in 0..5 {
        ask(&mqtt, &daemon, endless(&format!("w{n}"), NO_DEADLINE_MS));
    }
    for refused in ["w3", "w4"] {
        let reply = mqtt.reply(&daemon, refused);
        assert_eq!(code(&reply), "queue_full", "{reply}");
        assert!(reply["error"]["retry_after_ms"].as_u64() >= Some(100), "{reply}");
    }
    let works = || finals(&mqtt, &daemon, "at-work").is_empty();
    assert!(works(), "a refusal does not wait for the question at work");
    // Another client still finds room, and goes first if its topic allows that.
    let from = |topic: &str, id: &str, priority: &str| {
        let question = json!({ "id": id, "question": QUESTION, "max_tokens": 4, "priority": priority }).to_string();
        mqtt.publish_with(
            &daemon.topic("ask"),
            question,
            Properties { response_topic: Some(topic.into()), ..Properties::default() },
        );
    };
    from("reply/lamp", "lamp", "high");
    assert_eq!(code(&mqtt.first_on("reply/lamp").json()), "bad_request", "not allowed there");
    from("reply/alarm", "alarm", "high");
    mqtt.fence(&daemon);
    assert_eq!(delivery(&daemon)["waiting"], 4, "{:?} {}", mqtt.on("reply/alarm"), delivery(&daemon));
    // Cancelled while it waits.
    mqtt.publish(&daemon.topic("cancel"), r#"{"id":"w1"}"#);
    assert_eq!(code(&mqtt.reply(&daemon, "w1")), "cancelled");
    assert!(works(), "a cancelled question does not wait for the question at work");
    mqtt.publish(&daemon.topic("cancel"), r#"{"id":"at-work"}"#);
    assert!(mqtt.first_on("reply/alarm").json().get("answer").is_some());
    assert!(mqtt.on(&daemon.topic("answer/w2")).is_empty(), "the alarm went before those that waited longer");
}

#[test]
fn a_waiting_question_meets_its_deadline() {
    let broker = Broker::start();
    let daemon = Setup::with(&broker).set("model.slots", "1").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    ask(&mqtt, &daemon, endless("at-work", NO_DEADLINE_MS));
    mqtt.first_delta(&daemon, "at-work");
    let begun = Instant::now();
    ask(&mqtt, &daemon, json!({ "id": "hasty", "question": QUESTION, "deadline_ms": 300 }).to_string());
    let reply = mqtt.reply(&daemon, "hasty");
    assert_eq!(code(&reply), "deadline_exceeded", "{reply}");
    assert!(begun.elapsed() >= Duration::from_millis(290), "too early: {:?}", begun.elapsed());
    assert!(finals(&mqtt, &daemon, "at-work").is_empty(), "it does not wait for the question at work");
}

#[test]
fn without_durability_nothing_is_written() {
    let (broker, data) = house();
    let daemon = Setup::with(&broker).data_dir(&data.path().join("data")).set("mqtt.durable", "false").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    assert!(mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 })).get("answer").is_some());
    assert!(!data.path().join("data/mail").exists());
    assert_eq!(delivery(&daemon)["durable"], false);
}

#[test]
fn answers_reach_a_broker_that_was_away() {
    let (mut broker, data) = house();
    let port = broker.port;
    let daemon = start(&broker, &data);
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    // Long enough to be at work when the broker goes.
    let question = endless("during", NO_DEADLINE_MS).replace("\"max_tokens\":1000", "\"max_tokens\":300");
    ask(&mqtt, &daemon, question);
    mqtt.first_delta(&daemon, "during");
    drop(broker);
    wait_for("the loss to be noticed", || daemon.log().contains("no connection to the broker").then_some(()));
    wait_for("the answer to be kept", || (delivery(&daemon)["outbox"] == 1).then_some(()));
    broker = Broker::on(port);
    let mqtt = Mqtt::to(&broker);
    let reply = mqtt.reply(&daemon, "during");
    assert!(reply["answer"].is_string(), "{reply}");
    wait_for("the outbox to be empty", || (delivery(&daemon)["outbox"] == 0).then_some(()));
    assert_eq!(finals(&mqtt, &daemon, "during").len(), 1);
}

#[test]
fn an_answer_too_large_for_a_broker_is_an_error() {
    let port = vademecum_tests::free_port();
    let broker = Broker::configured(port, "allow_anonymous true\npersistence false\nmax_packet_size 600\n");
    let daemon = Setup::with(&broker).set("mqtt.documents", "true").start();
    let mqtt = Mqtt::to(&broker);
    let filler = "The pump house stands by the river, and its door is green. ".repeat(6);
    mqtt.put(&daemon, "house.md", &filler);
    let reply = mqtt.request(
        &daemon,
        "ask",
        json!({ "id": "large", "question": "What colour is the door of the pump house?", "top_k": 3, "mode": "evidence" }),
    );
    assert_eq!(code(&reply), "too_large", "{reply}");
    assert!(reply["error"]["message"].as_str().expect("words").contains("600"), "{reply}");
    mqtt.fence(&daemon);
    assert_eq!(delivery(&daemon)["outbox"], 0);
    assert!(!daemon.log().contains("no connection"), "{}", daemon.log());
}

/// A question at QoS 0 is on no disk, so its repetition at QoS 1 is acknowledged with the answer, not before.
#[test]
fn a_repetition_at_qos_1_is_not_acknowledged_before_it_is_safe() {
    let (broker, data) = house();
    let start = || Setup::with(&broker).data_dir(&data.path().join("data")).set("model.slots", "1").start();
    let mut daemon = start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    ask(&mqtt, &daemon, endless("long", NO_DEADLINE_MS));
    mqtt.first_delta(&daemon, "long");
    let question = json!({ "id": "twice", "question": QUESTION, "mode": "evidence" }).to_string();
    for qos in ["0", "1"] {
        let mut publish = broker.client("mosquitto_pub");
        publish.args(["-q", qos, "-t", &daemon.topic("ask"), "-m", &question]);
        assert!(publish.status().expect("mosquitto_pub").success());
    }
    wait_for("the repetition", || (delivery(&daemon)["repeated"] == 1).then_some(()));
    // An acknowledgement would be sent by now.
    let_pass(Duration::from_millis(500));
    daemon.signal(Signal::KILL);
    daemon.ends();
    let daemon = start();
    mqtt.publish(&daemon.topic("cancel"), "long");
    assert_eq!(mqtt.reply(&daemon, "twice")["found"], true);
}
