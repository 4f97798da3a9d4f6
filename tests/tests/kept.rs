//! Work that is done once: KV states of passages, answers, and the pages of the weights.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use vademecum_tests::{
    Daemon, MANUAL, Mqtt, QUESTION, Setup, anonymous, generator, house, run, smaps, temp_dir, vademecum, wait_for,
};

#[test]
fn two_processes_share_the_pages_of_the_weights() {
    let (_broker, first, mqtt) = house(|setup| setup);
    let (_other_broker, second, other_mqtt) = house(|setup| setup);
    for (daemon, mqtt) in [(&first, &mqtt), (&second, &other_mqtt)] {
        mqtt.put(daemon, "pump.md", MANUAL);
        assert!(mqtt.request(daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }))["answer"].is_string());
    }
    let of = |field: &str| [&first, &second].map(|daemon| smaps(daemon.pid(), &generator(), field));
    let (shares, whole) = (of("Pss"), of("Rss"));
    println!("Pss {shares:?}, Rss {whole:?}");
    let size = generator().metadata().expect("its size").len();
    assert!(whole.iter().all(|rss| *rss * 10 >= size * 8), "both have read it: {whole:?}");
    // Tests beside this one may share them too, so it can be less.
    assert!(shares[0] + shares[1] < size * 6 / 5, "{shares:?} of {size}");
}

#[test]
fn a_daemon_that_quotes_holds_no_keys_and_values() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("answer.strategy", "auto"));
    let ready = anonymous(daemon.pid());
    mqtt.put(&daemon, "pump.md", MANUAL);
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION }));
    assert!(answer["answer"].as_str().is_some_and(|text| text.contains("inlet filter")), "{answer}");
    let asked = anonymous(daemon.pid());
    println!("anonymous: {} MB when ready, {} MB after a document and a question", ready / 1_000_000, asked / 1_000_000);
    // Less than half of the lean Python peer's 138 MB.
    assert!(ready < 50_000_000, "{ready}");
}

/// The files of kept KV states of all databases and documents.
fn states(daemon: &Daemon) -> Vec<PathBuf> {
    let folders = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let documents = folders(&daemon.data().join("kv-cache")).into_iter().flat_map(|database| folders(&database));
    let files = documents.flat_map(|document| folders(&document));
    files.filter(|path| path.extension().is_some_and(|extension| extension == "kv")).collect()
}

/// Waits for metrics that `is_it` accepts.
fn metrics(mqtt: &Mqtt, daemon: &Daemon, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let topic = daemon.topic("metrics");
    mqtt.wait(what, |messages| {
        let told = messages.iter().rev().filter(|message| message.topic == topic).map(vademecum_tests::Message::json);
        told.take(1).find(&is_it)
    })
}

#[test]
fn passages_are_computed_while_nobody_asks() {
    let dir = temp_dir();
    let settings = |setup: Setup| {
        let setup = setup.data_dir(dir.path()).set("answer.strategy", "read").set("model.precompute", "true");
        setup.set("service.metrics_every_s", "1").set("model.threads", "1")
    };
    let (broker, daemon, mqtt) = house(settings);
    let texts = [
        "Error E-7 means that the inlet filter is clogged. Clean it with water.",
        "The bearings are greased every 500 hours with lithium grease.",
        "The battery of the remote control lasts for two years.",
    ];
    for (i, text) in texts.iter().enumerate() {
        mqtt.put(&daemon, &format!("{i}.txt"), text);
    }
    let done = |n: u64| move |metrics: &Value| metrics["precompute"]["done"] == n && metrics["precompute"]["to_do"] == 0;
    let told = metrics(&mqtt, &daemon, "three states", |told| done(3)(told) && told["kv_cache"]["states"] == 3);
    assert_eq!((&told["kv_cache"]["hits"], &told["kv_cache"]["misses"]), (&json!(0), &json!(0)), "{told}");
    let first = mqtt.request(&daemon, "ask", json!({ "question": "What does E-7 mean?", "max_tokens": 8 }));
    let told = metrics(&mqtt, &daemon, "the hit", |told| told["kv_cache"]["hits"] == 1);
    assert_eq!(told["kv_cache"]["misses"], 0, "{told}");
    let usage = |name: &str| first["usage"][name].as_u64().expect("a count");
    assert!(usage("prompt_tokens") - usage("reused_tokens") < 40, "the question alone was read: {first}");

    // A new process finds the states. A deleted document takes its state with it.
    daemon.stop();
    let daemon = settings(Setup::with(&broker)).start();
    let mqtt = Mqtt::to(&broker);
    let deleted = mqtt.request(&daemon, "documents/delete", json!({ "document": "1.txt" }));
    assert_eq!(deleted["deleted"], true, "{deleted}");
    metrics(&mqtt, &daemon, "two states", |told| done(2)(told) && told["kv_cache"]["states"] == 2);
    assert_eq!(states(&daemon).len(), 2);
    let info = mqtt.wait("info", |messages| {
        let told =
            messages.iter().rev().find(|message| message.topic == daemon.topic("info")).map(vademecum_tests::Message::json);
        told.filter(|info| info["precompute"].is_object())
    });
    assert!(info["precompute"].get("off").is_none(), "{info}");
}

#[test]
fn joined_neighbours_are_found_by_the_best_chunk() {
    let dir = temp_dir();
    let settings = |setup: Setup| {
        let setup = setup.data_dir(dir.path()).set("answer.strategy", "read").set("model.precompute", "true");
        setup.set("service.metrics_every_s", "1").set("model.threads", "1")
    };
    let (_broker, daemon, mqtt) = house(settings);
    let part = |name: &str| {
        let lines = (1..=14).map(|i| format!("The {name} of the pump is checked in step {i}, by hand and with gauge {i}. "));
        lines.collect::<String>()
    };
    let text = ["valve", "filter", "seal"].map(part).join("\n\n");
    mqtt.put(&daemon, "pump.txt", &text);
    let whole = |told: &Value| told["precompute"]["to_do"] == 0 && told["kv_cache"]["states"].as_u64() >= Some(3);
    metrics(&mqtt, &daemon, "all chunks", whole);
    let questions = ["How is the filter of the pump checked?", "How is the seal of the pump checked in step 3?"];
    for question in questions {
        let found = mqtt.request(&daemon, "search", json!({ "query": question }));
        let joined = found["passages"][0]["text"].as_str().map_or(0, str::len);
        assert!(joined > text.len() / 4, "two chunks of a sixth each are joined: {found}");
        let answer = mqtt.request(&daemon, "ask", json!({ "question": question, "max_tokens": 4 }));
        let usage = |name: &str| answer["usage"][name].as_u64().expect("a count");
        assert!(usage("prompt_tokens") - usage("reused_tokens") < 40, "the question alone was read: {answer}");
    }
    let told = metrics(&mqtt, &daemon, "the hits", |told| told["kv_cache"]["hits"].as_u64() >= Some(1));
    assert_eq!(told["kv_cache"]["misses"], 0, "{told}");
}

#[test]
fn precomputing_says_why_it_does_not() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("model.precompute", "true").set("answer.strategy", "quote"));
    let info = mqtt.first_on(&daemon.topic("info")).json();
    assert!(info["precompute"]["off"].as_str().is_some_and(|why| why.contains("reads no passages")), "{info}");
    assert!(daemon.log().contains("model.precompute"));
}

#[test]
fn states_do_not_outlive_their_database() {
    let dir = temp_dir();
    let settings = |setup: Setup| setup.data_dir(dir.path()).set("answer.strategy", "read");
    let (broker, daemon, mqtt) = house(settings);
    mqtt.put(&daemon, "pump.md", MANUAL);
    mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 4 }));
    let old = wait_for("a state", || states(&daemon).first().cloned());
    daemon.stop();
    // A new library counts its documents from the beginning.
    for name in ["db", "index", "sources"] {
        let _ = std::fs::remove_dir_all(dir.path().join(name));
    }
    let daemon = settings(Setup::with(&broker)).start();
    wait_for("the state to go", || (!old.exists()).then_some(()));
    assert!(states(&daemon).is_empty());
}

#[test]
fn an_answer_is_kept_until_something_changes() {
    let dir = temp_dir();
    let settings = |setup: Setup, reader: &str| {
        setup.data_dir(dir.path()).set("answer.cache", "8").set("answer.strategy", reader).set("model.threads", "1")
    };
    let (broker, daemon, mqtt) = house(|setup| settings(setup, "read"));
    mqtt.put(&daemon, "pump.md", MANUAL);
    let ask = |daemon: &Daemon, mqtt: &Mqtt, question: &str| {
        let answer = mqtt.request(daemon, "ask", json!({ "question": question, "max_tokens": 12 }));
        assert!(answer["answer"].is_string(), "{answer}");
        answer
    };
    let cached = |answer: &Value| answer["cached"] == true;
    let first = ask(&daemon, &mqtt, QUESTION);
    assert!(!cached(&first), "{first}");
    let again = ask(&daemon, &mqtt, &format!("  {} ", QUESTION.replacen('W', "w", 1)));
    assert!(cached(&again) && again["answer"] == first["answer"] && again["citations"] == first["citations"], "{again}");
    assert_eq!(again["usage"]["prompt_tokens"], 0, "{again}");
    // One that streams gets all its parts.
    let question = json!({ "id": "stream", "question": QUESTION, "max_tokens": 12, "stream": true });
    mqtt.publish(&daemon.topic("ask"), question.to_string());
    assert!(cached(&mqtt.reply(&daemon, "stream")));
    let parts: Vec<Value> = mqtt.on(&daemon.topic("answer/stream")).iter().map(vademecum_tests::Message::json).collect();
    assert!(parts.iter().any(|part| part["evidence"].is_array()) && parts.iter().any(|part| part["delta"] == first["answer"]));
    for different in [json!({ "max_tokens": 3 }), json!({ "top_k": 1 }), json!({ "temperature": 0.5 })] {
        let mut question = json!({ "question": QUESTION, "max_tokens": 12 });
        question.as_object_mut().expect("an object").extend(different.as_object().expect("an object").clone());
        assert!(!cached(&mqtt.request(&daemon, "ask", question)), "{different}");
    }

    // One document more, then one less.
    mqtt.put(&daemon, "lamp.md", "The lamp of the harbour pump is green when it is ready.");
    assert!(!cached(&ask(&daemon, &mqtt, QUESTION)));
    assert!(cached(&ask(&daemon, &mqtt, QUESTION)));
    mqtt.request(&daemon, "documents/delete", json!({ "document": "lamp.md" }));
    assert!(!cached(&ask(&daemon, &mqtt, QUESTION)));
    assert!(cached(&ask(&daemon, &mqtt, QUESTION)));

    // Calibration, another reader, model or prompt need a restart, which empties the cache.
    let refused = run(vademecum(["calibrate", "--data-dir"]).arg(dir.path())).exits(1);
    assert!(refused.stderr.contains("stop it, calibrate"), "{refused:?}");
    daemon.stop();
    for reader in ["evidence", "quote"] {
        let daemon = settings(Setup::with(&broker), reader).start();
        let mqtt = Mqtt::to(&broker);
        assert!(!cached(&ask(&daemon, &mqtt, QUESTION)), "{reader}");
        assert!(cached(&ask(&daemon, &mqtt, QUESTION)), "{reader}");
        daemon.stop();
    }
}
