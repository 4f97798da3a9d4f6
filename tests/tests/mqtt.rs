//! The wire contract, against mosquitto, from stock clients and the tests' own.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use vademecum_tests::{
    Broker, Daemon, Killed, MANUAL, Message, Mqtt, PATIENCE_S, Properties, QUESTION, Setup, python, run, wait_for,
};

/// A broker, a daemon that has read the manual, and a client.
fn house(setup: impl FnOnce(Setup) -> Setup) -> (Broker, Daemon, Mqtt) {
    let broker = Broker::start();
    let daemon = setup(Setup::with(&broker)).start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    (broker, daemon, mqtt)
}

/// A question whose answer takes long: almost every token is as likely as the next, so the model hardly ever ends it.
fn endless(id: &str) -> String {
    json!({ "id": id, "question": QUESTION, "max_tokens": 1000, "temperature": 5, "top_p": 1, "min_p": 0, "stream": true })
        .to_string()
}

fn code(reply: &Value) -> &str {
    assert!(reply["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply}");
    reply["error"]["code"].as_str().unwrap_or_default()
}

fn assert_cited(answer: &Value) {
    assert_eq!(answer["found"], true, "{answer}");
    assert!(answer["answer"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    let citation = &answer["citations"][0];
    assert_eq!(
        (&citation["n"], &citation["document"], &citation["chunk"]),
        (&json!(1), &json!("pump.md"), &json!("pump.md#0")),
        "{answer}"
    );
    let quote = citation["quote"].as_str().unwrap_or_default();
    assert!(!quote.is_empty() && quote.split_whitespace().all(|word| MANUAL.contains(word)), "{answer}");
    assert!(answer["timings"]["ttft_ms"].as_f64() > Some(0.0) && answer["usage"]["answer_tokens"].as_u64() > Some(0), "{answer}");
}

#[test]
fn mosquitto_rr_gets_a_cited_answer() {
    // The threshold as it is by default.
    let (broker, daemon, _mqtt) = house(|setup| setup.set("answer.threshold", "0.5"));
    let question = json!({ "question": QUESTION, "max_tokens": 24 }).to_string();
    let mut ask = broker.client("mosquitto_rr");
    ask.args(["-V", "5", "-t", &daemon.topic("ask"), "-e", "reply/1", "-W", PATIENCE_S, "-m", &question]);
    let answer = run(&mut ask).exits(0).json();
    assert_cited(&answer);
    assert_eq!(answer["id"].as_str().map(str::len), Some(16), "an id is made: {answer}");
}

#[test]
fn plain_text_over_3_1_1() {
    let (broker, daemon, _mqtt) = house(|setup| setup);
    let answers = daemon.topic("answer/+");
    let mut listen = broker.client("mosquitto_sub");
    listen.args(["-V", "mqttv311", "-C", "1", "-W", PATIENCE_S, "-t", &answers]);
    let mut listener = Killed(listen.stdout(Stdio::piped()).spawn().expect("mosquitto_sub"));
    wait_for("mosquitto_sub to subscribe", || broker.log().contains(&format!("{answers} (QoS")).then_some(()));
    let mut ask = broker.client("mosquitto_pub");
    let _ = run(ask.args(["-V", "mqttv311", "-q", "1", "-t", &daemon.topic("ask"), "-m", QUESTION])).exits(0);
    assert!(listener.ends("mosquitto_sub").success());
    let mut answer = String::new();
    listener.0.stdout.take().expect("its output").read_to_string(&mut answer).expect("UTF-8");
    assert_cited(&serde_json::from_str(&answer).expect("JSON"));
}

#[test]
fn paho_asks_in_cbor() {
    let (broker, _daemon, _mqtt) = house(|setup| setup);
    let reply = run(python("ask_cbor.py").args([&broker.port.to_string(), "n1", QUESTION, PATIENCE_S])).exits(0).json();
    assert_eq!((&reply["content_type"], &reply["correlated"]), (&json!("application/cbor"), &json!(true)), "{reply}");
    assert_eq!(reply["payload"]["id"], "p1");
    assert_cited(&reply["payload"]);
}

#[test]
fn a_stream_is_evidence_deltas_answer() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    for (id, question) in [("s1", QUESTION), ("s2", "How long must a hot motor cool down?")] {
        mqtt.publish(
            &daemon.topic("ask"),
            json!({ "id": id, "question": question, "max_tokens": 32, "stream": true }).to_string(),
        );
        let answer = mqtt.reply(&daemon, id);
        assert_cited(&answer);
        let messages: Vec<Value> = mqtt.on(&daemon.topic(&format!("answer/{id}"))).iter().map(Message::json).collect();
        let (last, pieces) = messages.split_last().expect("messages");
        assert_eq!(last, &answer, "the answer comes last");
        assert!(messages.iter().all(|message| message["id"] == id));
        assert_eq!(pieces[0]["evidence"], answer["citations"], "evidence first, the same as in the answer");
        let sequence: Vec<u64> = pieces.iter().filter_map(|piece| piece["seq"].as_u64()).collect();
        assert_eq!(sequence, (0..pieces.len() as u64).collect::<Vec<_>>(), "without gaps");
        let joined: String = pieces[1..].iter().map(|piece| piece["delta"].as_str().expect("a delta")).collect();
        assert!(pieces.len() > 4, "more than one piece: {pieces:?}");
        assert_eq!(joined.trim(), answer["answer"], "the deltas are the answer");
    }
}

#[test]
fn replies_go_to_their_topic_with_correlation() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    let ask = daemon.topic("ask");
    let question = |id: &str, reply_to: Option<&str>| {
        let mut question = json!({ "id": id, "question": QUESTION, "mode": "evidence" });
        if let Some(topic) = reply_to {
            question["reply_to"] = json!(topic);
        }
        question.to_string()
    };
    let with = |topic: &str| Properties {
        response_topic: Some(topic.into()),
        correlation: Some(vec![0, 159, 146, 150]),
        content_type: Some("application/json".into()),
        ..Properties::default()
    };
    mqtt.publish_with(&ask, question("w1", Some("reply/payload")), with("response/property"));
    let reply = mqtt.first_on("response/property");
    assert_eq!(reply.json()["id"], "w1");
    assert_eq!(reply.correlation.as_deref(), Some(&[0, 159, 146, 150][..]));
    assert_eq!(reply.content_type.as_deref(), Some("application/json"));
    assert!(!reply.retained);
    mqtt.publish(&ask, question("w2", Some("lamp/reply/2")));
    assert_eq!(mqtt.first_on("lamp/reply/2").json()["id"], "w2");
    mqtt.publish(&ask, question("w3", None));
    assert_eq!(mqtt.reply(&daemon, "w3")["id"], "w3");
    let own = daemon.topic("answer/elsewhere");
    mqtt.publish(&ask, question("w4", Some(&own)));
    assert_eq!(mqtt.first_on(&own).json()["id"], "w4");
    // Printable correlation data names a request without an id.
    let named = Properties { correlation: Some(b"c-5".to_vec()), ..Properties::default() };
    mqtt.publish_with(&daemon.topic("search"), QUESTION, named);
    assert_eq!(mqtt.reply(&daemon, "c-5")["found"], true);
    // Each was answered once, in one place.
    mqtt.fence(&daemon);
    for topic in ["response/property", "lamp/reply/2", &own] {
        assert_eq!(mqtt.on(topic).len(), 1, "{topic}");
    }
    assert!(mqtt.on("reply/payload").is_empty());
}

#[test]
fn forbidden_reply_topics_are_refused() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    let own: Vec<String> =
        ["ask", "search", "documents/put", "documents/delete", "cancel", "state", "info"].map(|name| daemon.topic(name)).into();
    let foreign = ["reply/+", "reply/#", "$SYS/broker/uptime", "$share/g/reply/1", "home/lamp/set", ""].map(String::from);
    let count = |topic: &str| mqtt.on(topic).len();
    mqtt.wait("info after the put", |messages| {
        messages.iter().find(|m| m.topic.ends_with("/info") && m.text().contains("\"documents\":1,")).map(drop)
    });
    let before: Vec<usize> = own.iter().map(|topic| count(topic)).collect();
    for (i, topic) in own.iter().chain(&foreign).enumerate() {
        let id = format!("f{i}");
        mqtt.publish(&daemon.topic("search"), json!({ "id": id, "question": QUESTION, "reply_to": topic }).to_string());
        assert_eq!(code(&mqtt.reply(&daemon, &id)), "bad_request", "{topic}");
        if !topic.is_empty() && !topic.contains(['+', '#']) {
            // The v5 property takes precedence over the payload.
            let id = format!("p{i}");
            let properties = Properties { response_topic: Some(topic.clone()), ..Properties::default() };
            mqtt.publish_with(
                &daemon.topic("search"),
                json!({ "id": id, "question": QUESTION, "reply_to": "reply/x" }).to_string(),
                properties,
            );
            assert_eq!(code(&mqtt.reply(&daemon, &id)), "bad_request", "{topic}");
        }
    }
    mqtt.fence(&daemon);
    // The daemon's own topics carry this test's messages only, and those are all on `search`.
    for (topic, before) in own.iter().zip(before).filter(|(topic, _)| !topic.ends_with("/search")) {
        assert_eq!(count(topic), before, "{topic}");
    }
    assert_eq!(count("home/lamp/set") + count("reply/x"), 0);
}

#[test]
fn bad_requests_get_the_words_of_the_contract() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("mqtt.max_payload_bytes", "20000"));
    let refused = |name: &str, payload: Vec<u8>, word: &str| {
        let id = format!("{word}-{}", payload.len());
        let properties = Properties { correlation: Some(id.clone().into_bytes()), ..Properties::default() };
        let shown = String::from_utf8_lossy(&payload[..payload.len().min(80)]).into_owned();
        mqtt.publish_with(&daemon.topic(name), payload, properties);
        assert_eq!(code(&mqtt.reply(&daemon, &id)), word, "{name} {shown}");
    };
    for (i, payload) in [
        r#"{"question": "cut off"#.to_owned(),
        r#"{"question": ""}"#.to_owned(),
        "  \n".to_owned(),
        r#"{"question": "What?", "top_k": 0}"#.to_owned(),
        r#"{"question": "What?", "top_k": 21}"#.to_owned(),
        r#"{"question": "What?", "top_k": -1}"#.to_owned(),
        r#"{"question": "What?", "top_k": "many"}"#.to_owned(),
        r#"{"question": "What?", "max_tokens": 0}"#.to_owned(),
        r#"{"question": "What?", "max_tokens": 100000}"#.to_owned(),
        r#"{"question": "What?", "temperature": -0.1}"#.to_owned(),
        r#"{"question": "What?", "deadline_ms": 0}"#.to_owned(),
        r#"{"question": "What?", "mode": "poem"}"#.to_owned(),
        r#"{"question": "What?", "collection": "No such name!"}"#.to_owned(),
        r#"{"question": "What?", "filter": {"site": []}}"#.to_owned(),
        format!(r#"{{"question": {}"#, "[".repeat(5000)),
    ]
    .into_iter()
    .enumerate()
    {
        // Blanks at the end make each length unique, and with it each id.
        let payload = format!("{payload}{}", " ".repeat(100 * i));
        refused("ask", payload.into_bytes(), "bad_request");
    }
    refused("ask", vec![0xff, 0xfe], "bad_request");
    refused("documents/put", br#"{"document": "x.md"}"#.to_vec(), "bad_request");
    refused("documents/put", br#"{"document": "x.pdf", "text": "%PDF-1.7"}"#.to_vec(), "bad_request");
    refused("documents/delete", b"plain text".to_vec(), "bad_request");
    refused("ask", json!({ "question": "long ".repeat(1000) }).to_string().into_bytes(), "too_large");
    refused("ask", vec![b'x'; 20_001], "too_large");
    refused("ask", vec![b'x'; 3 << 20], "too_large");
    refused("ask", br#"{"question": "What?", "collection": "nowhere"}"#.to_vec(), "unknown_collection");
    refused("search", br#"{"question": "What?", "collection": "nowhere"}"#.to_vec(), "unknown_collection");
    // After all that it still answers.
    assert_cited(&mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 })));
}

#[test]
fn a_deadline_ends_a_question() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    // The same question without a deadline is asked first, and still at work when the deadline is over.
    mqtt.publish(&daemon.topic("ask"), endless("without"));
    let mut question: Value = serde_json::from_str(&endless("")).expect("JSON");
    question["deadline_ms"] = json!(700);
    let reply = mqtt.request(&daemon, "ask", question);
    assert_eq!(code(&reply), "deadline_exceeded");
    mqtt.publish(&daemon.topic("cancel"), "without");
    assert_eq!(code(&mqtt.reply(&daemon, "without")), "cancelled");
    assert_cited(&mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 })));
}

#[test]
fn the_queue_is_bounded_and_cancel_frees_it() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("answer.queue", "1").set("model.slots", "1"));
    let ask = daemon.topic("ask");
    mqtt.publish(&ask, endless("running"));
    mqtt.first_delta(&daemon, "running");
    mqtt.publish(&ask, endless("waiting"));
    for id in ["third", "fourth"] {
        mqtt.publish(&ask, endless(id));
        assert_eq!(code(&mqtt.reply(&daemon, id)), "queue_full");
    }
    // A repetition takes no place, so it finds none missing.
    mqtt.publish(&ask, endless("waiting"));
    mqtt.fence(&daemon);
    mqtt.publish(&daemon.topic("cancel"), r#"{"id": "waiting"}"#);
    assert_eq!(code(&mqtt.reply(&daemon, "waiting")), "cancelled");
    let deltas =
        |id: &str| mqtt.on(&daemon.topic(&format!("answer/{id}"))).iter().filter(|m| m.json().get("delta").is_some()).count();
    assert_eq!(deltas("waiting"), 0, "it never ran");
    assert!(mqtt.on(&daemon.topic("answer/running")).iter().all(|m| m.json().get("error").is_none()), "the other one goes on");
    // The id alone, as plain text.
    mqtt.publish(&daemon.topic("cancel"), "running");
    assert_eq!(code(&mqtt.reply(&daemon, "running")), "cancelled");
    // Cancelling an unknown question does no harm, and the places are free again.
    mqtt.publish(&daemon.topic("cancel"), r#"{"id": "nobody"}"#);
    mqtt.publish(&daemon.topic("cancel"), "{");
    assert_cited(&mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 })));
}

#[test]
fn the_same_id_twice_at_once_is_one_question() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    let ask = daemon.topic("ask");
    mqtt.publish(&ask, endless("twin"));
    mqtt.first_delta(&daemon, "twin");
    mqtt.publish(&ask, endless("twin"));
    // Another client's question of the same name is another question.
    let other = json!({ "id": "twin", "question": QUESTION, "mode": "evidence", "reply_to": "reply/other" });
    mqtt.publish(&ask, other.to_string());
    assert_eq!(mqtt.first_on("reply/other").json()["found"], true);
    mqtt.fence(&daemon);
    mqtt.publish(&daemon.topic("cancel"), r#"{"id": "twin"}"#);
    assert_eq!(code(&mqtt.reply(&daemon, "twin")), "cancelled");
    mqtt.fence(&daemon);
    let messages: Vec<Value> = mqtt.on(&daemon.topic("answer/twin")).iter().map(Message::json).collect();
    let sequence: Vec<u64> = messages.iter().filter_map(|message| message["seq"].as_u64()).collect();
    assert_eq!(sequence, (0..sequence.len() as u64).collect::<Vec<_>>(), "one stream");
    assert_eq!(messages.len(), sequence.len() + 1, "one end");
}

#[test]
fn retained_questions_are_left_alone() {
    let broker = Broker::start();
    let mqtt = Mqtt::to(&broker);
    let retained = Properties { retain: true, ..Properties::default() };
    mqtt.publish_with("vademecum/n1/ask", json!({ "id": "old", "question": QUESTION }).to_string(), retained.clone());
    mqtt.publish_with(
        "vademecum/n1/documents/put",
        json!({ "id": "oldput", "document": "a", "text": "old text" }).to_string(),
        retained,
    );
    mqtt.wait("the broker to keep it", |messages| messages.iter().find(|m| m.topic.ends_with("documents/put")).map(drop));
    let daemon = Setup::with(&broker).start();
    mqtt.put(&daemon, "pump.md", MANUAL);
    assert!(mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 4 }))["answer"].is_string());
    for id in ["old", "oldput"] {
        assert!(mqtt.on(&daemon.topic(&format!("answer/{id}"))).is_empty(), "{id}");
    }
    assert_eq!(mqtt.request(&daemon, "documents/list", json!({}))["total"], 1);
}

#[test]
fn documents_and_passages_in_json() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    let put = |document: &str, text: &str, site: &str| {
        let request =
            json!({ "document": document, "text": text, "tags": { "site": site }, "title": format!("About {document}") });
        mqtt.request(&daemon, "documents/put", request)
    };
    let north = "The boiler of the house holds 300 litres of water.";
    let reply = put("north.txt", north, "north");
    assert_eq!((&reply["change"], &reply["collection"], &reply["chunks"]), (&json!("added"), &json!("default"), &json!(1)));
    assert_eq!(put("north.txt", north, "north")["change"], "unchanged");
    assert_eq!(put("south.txt", "The boiler of the house holds 80 litres of water.", "south")["change"], "added");
    assert_eq!(put("south.txt", "The boiler of the house holds 120 litres of water.", "south")["change"], "replaced");

    let list = mqtt.request(&daemon, "documents/list", json!({ "skip": 1, "limit": 1 }));
    assert_eq!((&list["total"], list["documents"].as_array().map(Vec::len)), (&json!(3), Some(1)), "{list}");
    let all = mqtt.request(&daemon, "documents/list", json!({}));
    let listed =
        all["documents"].as_array().and_then(|d| d.iter().find(|d| d["id"] == "north.txt")).expect("it is listed").clone();
    assert_eq!(
        (&listed["title"], &listed["tags"]["site"], &listed["bytes"]),
        (&json!("About north.txt"), &json!("north"), &json!(north.len()))
    );

    let search = |filter: Value| {
        mqtt.request(
            &daemon,
            "search",
            json!({ "question": "How much water does the boiler hold?", "filter": filter, "top_k": 5 }),
        )
    };
    let documents = |reply: &Value| -> Vec<String> {
        let passages = reply["passages"].as_array().expect("passages").iter();
        let mut found: Vec<String> = passages.map(|p| p["document"].as_str().expect("a document").to_owned()).collect();
        found.sort();
        found
    };
    assert_eq!(documents(&search(json!({ "site": "north" }))), ["north.txt"]);
    assert_eq!(documents(&search(json!({ "site": ["north", "south"] }))), ["north.txt", "south.txt"]);
    let nothing = search(json!({ "site": "west" }));
    assert_eq!((documents(&nothing), &nothing["found"]), (vec![], &json!(false)));
    let south = search(json!({ "site": "south" }));
    assert!(south["passages"][0]["text"].as_str().is_some_and(|text| text.contains("120 litres")), "the new version: {south}");

    let evidence = mqtt.request(
        &daemon,
        "ask",
        json!({ "question": "How much water does the boiler hold?", "filter": { "site": "north" }, "mode": "evidence" }),
    );
    assert_eq!((&evidence["found"], &evidence["answer"]), (&json!(true), &json!(north)), "{evidence}");
    assert_eq!((&evidence["citations"][0]["document"], &evidence["usage"]["answer_tokens"]), (&json!("north.txt"), &json!(0)));

    let delete = || mqtt.request(&daemon, "documents/delete", json!({ "document": "north.txt" }));
    assert_eq!(delete()["deleted"], true);
    assert_eq!(delete()["deleted"], false);
    assert_eq!(documents(&search(json!({ "site": "north" }))), Vec::<String>::new());
    let other = mqtt.request(
        &daemon,
        "documents/put",
        json!({ "document": "a.txt", "text": "Elsewhere it is dry.", "collection": "other" }),
    );
    assert_eq!(other["collection"], "other");
    assert_eq!(mqtt.request(&daemon, "documents/list", json!({ "collection": "other" }))["total"], 1);
    // The retained info tells of the changed library.
    let info = daemon.topic("info");
    mqtt.wait("info to tell the new collection", |messages| {
        let last = messages.iter().rfind(|m| m.topic == info)?.json();
        last["collections"].as_array()?.iter().any(|c| c["name"] == "other" && c["documents"] == 1).then_some(())
    });
}

#[test]
fn documents_and_passages_in_cbor() {
    let (_broker, daemon, mqtt) = house(|setup| setup);
    let request =
        |name: &str, id: &str, fields: &[(&str, serde_cbor::Value)], typed: bool| -> BTreeMap<String, serde_cbor::Value> {
            let mut map: BTreeMap<&str, serde_cbor::Value> = fields.iter().cloned().collect();
            map.insert("id", serde_cbor::Value::Text(id.into()));
            let content_type = typed.then(|| "application/cbor".to_owned());
            mqtt.publish_with(
                &daemon.topic(name),
                serde_cbor::to_vec(&map).expect("CBOR"),
                Properties { content_type, ..Properties::default() },
            );
            let reply = mqtt.first_on(&daemon.topic(&format!("answer/{id}")));
            assert_eq!(reply.content_type.as_deref(), Some("application/cbor"));
            serde_cbor::from_slice(&reply.payload).expect("a CBOR map")
        };
    let text = |text: &str| serde_cbor::Value::Text(text.into());
    let document = ("document", text("page.html"));
    let html =
        serde_cbor::Value::Bytes(b"<html><title>Pool</title><p>The pool of the hotel is 25 metres long.</p></html>".to_vec());
    let reply = request("documents/put", "c1", &[document.clone(), ("data", html)], true);
    assert_eq!(reply["change"], text("added"));
    // CBOR is recognised by its first byte alone.
    let reply = request("search", "c2", &[("question", text("How long is the pool?"))], false);
    let serde_cbor::Value::Array(passages) = &reply["passages"] else { panic!("{reply:?}") };
    assert!(format!("{:?}", passages[0]).contains("25 metres"), "{passages:?}");
    let reply = request("documents/list", "c3", &[], true);
    assert_eq!(reply["total"], serde_cbor::Value::Integer(2));
    let reply = request("documents/delete", "c4", &[document], false);
    assert_eq!(reply["deleted"], serde_cbor::Value::Bool(true));
    let reply = request("ask", "c5", &[("question", text("")), ("stream", serde_cbor::Value::Bool(true))], false);
    assert!(reply.contains_key("error"), "errors are CBOR too: {reply:?}");
    // A truncated map gets an error in CBOR, with the correlation data as its id.
    let named = Properties { correlation: Some(b"c6".to_vec()), ..Properties::default() };
    mqtt.publish_with(&daemon.topic("ask"), [0xa1, 0x68, b'q'], named);
    let reply: BTreeMap<String, serde_cbor::Value> =
        serde_cbor::from_slice(&mqtt.first_on(&daemon.topic("answer/c6")).payload).expect("a CBOR map");
    assert!(format!("{:?}", reply["error"]).contains("bad_request"), "{reply:?}");
}

#[test]
fn documents_can_be_closed_to_mqtt() {
    let broker = Broker::start();
    let daemon = Setup::with(&broker).set("mqtt.documents", "false").start();
    let mqtt = Mqtt::to(&broker);
    let put = mqtt.request(&daemon, "documents/put", json!({ "document": "a", "text": "b" }));
    let delete = mqtt.request(&daemon, "documents/delete", json!({ "document": "a" }));
    assert_eq!((code(&put), code(&delete)), ("bad_request", "bad_request"));
    assert_eq!(mqtt.request(&daemon, "documents/list", json!({}))["total"], 0);
}

#[test]
fn a_daemon_on_3_1_1_works() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("mqtt.version", "3.1.1"));
    assert!(daemon.log().contains("over MQTT 3.1.1"), "{}", daemon.log());
    mqtt.publish(
        &daemon.topic("ask"),
        json!({ "question": QUESTION, "id": "v4", "reply_to": "reply/v4", "max_tokens": 8 }).to_string(),
    );
    assert_cited(&mqtt.first_on("reply/v4").json());
}

/// Reads one MQTT packet: its first byte and its body.
fn packet(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut byte = || {
        let mut one = [0];
        stream.read_exact(&mut one).expect("a byte");
        one[0]
    };
    let kind = byte();
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let part = byte();
        length |= usize::from(part & 0x7f) << shift;
        shift += 7;
        if part & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    (kind, body)
}

#[test]
fn a_broker_that_knows_no_version_5_gets_3_1_1() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let broker = std::thread::spawn(move || {
        let mut levels = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().expect("a connection");
            let (kind, body) = packet(&mut stream);
            assert_eq!((kind, &body[..6]), (0x10, &b"\0\x04MQTT"[..]), "CONNECT");
            levels.push(body[6]);
            if body[6] == 5 {
                // "Unacceptable protocol version", as a broker of 2014 says it.
                stream.write_all(&[0x20, 2, 0, 1]).expect("CONNACK");
                continue;
            }
            stream.write_all(&[0x20, 2, 0, 0]).expect("CONNACK");
            let (kind, body) = packet(&mut stream);
            assert_eq!(kind, 0x82, "SUBSCRIBE");
            let mut topics = 0;
            let mut rest = &body[2..];
            while let [high, low, tail @ ..] = rest {
                rest = &tail[usize::from(u16::from_be_bytes([*high, *low])) + 1..];
                topics += 1;
            }
            let mut ack = vec![0x90, 2 + topics, body[0], body[1]];
            ack.extend(std::iter::repeat_n(1, usize::from(topics)));
            stream.write_all(&ack).expect("SUBACK");
            let (kind, body) = packet(&mut stream);
            assert_eq!(kind & 0xf0, 0x30, "PUBLISH");
            return (levels, String::from_utf8_lossy(&body).into_owned());
        }
    });
    let daemon = Setup::new().flag("--broker", format!("mqtt://127.0.0.1:{port}")).start();
    wait_for("the fake broker to end", || broker.is_finished().then_some(()));
    let (levels, first) = broker.join().expect("the fake broker is content");
    assert_eq!(levels.last(), Some(&4), "{levels:?}");
    assert!(levels.contains(&5), "version 5 comes first: {levels:?}");
    assert!(first.contains("vademecum/n1/state") && first.contains("online"), "{first}");
    drop(daemon);
}
