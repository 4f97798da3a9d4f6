//! Requests and both encodings.

use super::*;
use std::collections::BTreeMap;

#[test]
fn encodings_are_told_apart() {
    let of = |payload: &[u8], t| Encoding::of(payload, t);
    assert_eq!(of(b" {\"question\":1}", None), Some(Encoding::Json));
    assert_eq!(of(&[0xa1, 0x61], None), Some(Encoding::Cbor));
    assert_eq!(of(&[0xd9, 0xd9, 0xf7, 0xa0], None), Some(Encoding::Cbor));
    assert_eq!(of(b"How do I reset it?", None), None);
    assert_eq!(of(b"anything", Some("application/json; charset=utf-8")), Some(Encoding::Json));
    assert_eq!(of(b"{braces}", Some("text/plain")), None);
    assert_eq!(of("Über".as_bytes(), None), None);
}

#[test]
fn requests_are_lenient_in_form_strict_in_bounds() {
    let ask: Ask =
        Encoding::Json.decode(br#"{"id":7,"question":"q","filter":{"a":"x","b":["y","z"]},"extra":true}"#).expect("decodes");
    assert_eq!(ask.id.as_deref(), Some("7"));
    assert_eq!(ask.filter["a"], ["x"]);
    assert_eq!(ask.filter["b"], ["y", "z"]);
    let long = format!("{{\"id\":\"{}\",\"question\":\"q\"}}", "x".repeat(MAX_REQUEST_ID_BYTES + 1));
    for bad in [r#"{"id":"","question":"q"}"#, r#"{"question":1}"#, "{}", "{", r#"{"question":"q","mode":"poem"}"#, &long] {
        assert!(Encoding::Json.decode::<Ask>(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn a_session_may_be_a_number() {
    let session = |json: &str| Encoding::Json.decode::<Ask>(json.as_bytes()).expect("decodes").session;
    assert_eq!(session(r#"{"question":"q","session":-1001234}"#).as_deref(), Some("-1001234"));
    assert_eq!(session(r#"{"question":"q","session":"kitchen\n"}"#).as_deref(), Some("kitchen\n"), "any text");
    assert_eq!(session(r#"{"question":"q","session":null}"#), None);
    assert!(Encoding::Json.decode::<Ask>(br#"{"question":"q","session":[]}"#).is_err());
}

#[test]
fn an_address_survives_wrong_fields() {
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let address = |value: serde_json::Value| -> Address {
            encoding.decode(&encoding.encode(&value).expect("encodes")).expect("decodes")
        };
        let given = address(serde_json::json!({ "id": "a", "reply": "text", "max_chars": 200, "top_k": "many" }));
        let expected = Address { id: Some("a".into()), reply_to: None, reply: Some(ReplyForm::Text), max_chars: Some(200) };
        assert_eq!(given, expected);
        for wrong in
            [serde_json::json!("poem"), serde_json::json!([{ "a": 1.5 }]), serde_json::json!(-7), serde_json::json!(null)]
        {
            let given = address(serde_json::json!({ "id": "a", "reply": wrong, "max_chars": wrong }));
            assert_eq!(given, Address { id: Some("a".into()), ..Address::default() }, "{wrong}");
        }
    }
}

/// Outboxes and caches of an older version, and older nodes.
#[test]
fn an_older_answer_is_read() {
    let json = serde_json::json!({
        "id": "q1", "answer": "1.2 Nm [1]", "found": true, "confidence": 0.9, "citations": [], "model": "m", "finish": "stop",
        "timings": Timings::default(), "usage": Usage::default(),
    });
    let read: AnswerReply = serde_json::from_value(json.clone()).expect("decodes");
    assert_eq!((read.answer.answer.as_str(), read.answer.question.as_str()), ("1.2 Nm [1]", ""));
    let written = serde_json::to_value(read).expect("JSON");
    assert!(written.get("steps").is_none() && written.get("support").is_none(), "absent when empty: {written}");
}

#[test]
fn both_encodings_carry_the_same() {
    let ask =
        Ask { id: Some("a".into()), question: "Größe?".into(), max_tokens: Some(5), stream: Some(true), ..Ask::default() };
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let bytes = encoding.encode(&ask).expect("encodes");
        assert_eq!(Encoding::of(&bytes, None), Some(encoding));
        assert_eq!(encoding.decode::<Ask>(&bytes).expect("decodes"), ask);
    }
}

/// A decoder quotes the payload, and the daemon logs that.
#[test]
fn an_error_repeats_little_of_the_payload() {
    let mode = "\nline".repeat(700);
    for encoding in [Encoding::Json, Encoding::Cbor] {
        let payload = encoding.encode(&BTreeMap::from([("question", "q"), ("mode", &mode)])).expect("encodes");
        let error = encoding.decode::<Ask>(&payload).unwrap_err();
        assert_eq!((error.chars().count(), error.chars().last()), (MAX_WORDS, Some('…')), "{error}");
        assert!(error.contains("line") && !error.contains(char::is_control), "{error:?}");
    }
    let short = Encoding::Json.decode::<Ask>(br#"{"question":"q","mode":"poem"}"#).unwrap_err();
    assert!(short.contains("`poem`") && short.ends_with("column 29"), "{short}");
}

#[test]
fn a_cancelled_id_has_bounds_in_plain_text_too() {
    assert_eq!(CancelRequest::of_text(b" a7\n").expect("an id").id, "a7");
    for bad in [&[b'x'; MAX_REQUEST_ID_BYTES + 1][..], b"", b" ", b"a\nb", b"\xff"] {
        assert!(CancelRequest::of_text(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn deeply_nested_input_is_an_error() {
    let json = format!("{{\"question\":{}", "[".repeat(100_000));
    assert!(Encoding::Json.decode::<Ask>(json.as_bytes()).is_err());
    let mut cbor = vec![0xa1, 0x61, b'q'];
    cbor.extend(std::iter::repeat_n(0x81, 100_000));
    assert!(Encoding::Cbor.decode::<Ask>(&cbor).is_err());
}

/// Every path of a JSON object, such as `model.context`; items of a list count as `[]`.
fn paths(value: &serde_json::Value, prefix: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                found.push(path.clone());
                paths(value, &path, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{prefix}[]"), found)),
        _ => {}
    }
}

fn full_info() -> Info {
    let text = || Some("why".to_owned());
    Info {
        version: "1".into(),
        node: "pi".into(),
        model: ModelInfo {
            model: "m".into(),
            architecture: "llama".into(),
            fingerprint: "f".into(),
            parameters: 1,
            context: 2,
            own_template: true,
            repack: "on".into(),
            repacked_bytes: 1,
            mlock: text(),
            gpu: text(),
            slots: 4,
            kv_cache_off: text(),
            kv_cache_up_to: Some(1),
        },
        processor: text(),
        strategy: "quote".into(),
        kv_cache: Some(KvCacheReport { problem: text(), ..KvCacheReport::default() }),
        precompute: Some(PrecomputeReport { off: text(), ..PrecomputeReport::default() }),
        embedder: "e".into(),
        collections: vec![CollectionInfo { name: "default".into(), documents: 1, chunks: 2 }],
        library: LibraryState::default(),
        limits: LimitsInfo {
            question_bytes: 1,
            payload_bytes: 1,
            max_tokens: 1,
            top_k: 1,
            questions: 1,
            deadline_ms: 1,
            documents: true,
        },
        recovery: Recovery::default(),
        threads: ThreadCounts { decode: 1, batch: 1 },
        lookup: "off".into(),
    }
}

const INFO: &str = "\
    collections collections[].chunks collections[].documents collections[].name embedder kv_cache kv_cache.bytes \
    kv_cache.damaged kv_cache.hits kv_cache.max_bytes kv_cache.misses kv_cache.problem kv_cache.states library library.have library.of library.state limits limits.deadline_ms \
    limits.documents limits.max_tokens limits.payload_bytes limits.question_bytes limits.questions limits.top_k lookup model \
    model.architecture model.context model.fingerprint model.gpu model.kv_cache_off model.kv_cache_up_to model.mlock model.model \
    model.own_template model.parameters model.repack model.repacked_bytes model.slots node precompute precompute.done precompute.full precompute.off \
    precompute.to_do processor recovery recovery.failed recovery.kept_aside recovery.missing recovery.rebuilt recovery.refusing \
    recovery.set_aside strategy threads threads.batch threads.decode version";

const METRICS: &str = "\
    answered delivery delivery.durable delivery.expired delivery.given_up delivery.inbox delivery.outbox delivery.problem \
    delivery.refused delivery.repeated delivery.resumed delivery.service_ms delivery.waiting disk_free_bytes errors kv_cache \
    kv_cache.bytes kv_cache.damaged kv_cache.hits kv_cache.max_bytes kv_cache.misses kv_cache.problem kv_cache.states not_found \
    precompute precompute.done precompute.full precompute.off precompute.to_do queue rss_anonymous_kb rss_file_kb rss_kb store \
    store.failed store.missing store.rebuilt store.refusing store.set_aside temperature_c tokens_per_s ttft_ms uptime_s";

#[test]
fn reports_have_their_fields_and_no_others() {
    let info = full_info();
    let metrics = Metrics { kv_cache: info.kv_cache.clone(), precompute: info.precompute.clone(), ..Metrics::default() };
    let (info, metrics) = (serde_json::to_value(info).expect("JSON"), serde_json::to_value(metrics).expect("JSON"));
    for (value, expected) in [(&info, INFO), (&metrics, METRICS)] {
        let mut found = Vec::new();
        paths(value, "", &mut found);
        found.sort();
        assert_eq!(found, expected.split_whitespace().collect::<Vec<_>>());
    }
    // Absent where they are off: a subscriber of `metrics` pays for each byte.
    let plain = serde_json::to_value(Metrics::default()).expect("JSON");
    assert!(plain.get("kv_cache").is_none() && plain.get("precompute").is_none());
}

#[test]
fn the_reference_names_every_report_field() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mqtt.md");
    let reference = std::fs::read_to_string(path).expect("docs/mqtt.md");
    for (section, fields) in [("\n## info\n", INFO), ("\n## metrics\n", METRICS)] {
        let text = reference.split(section).nth(1).expect(section).split("\n## ").next().unwrap_or_default();
        for field in fields.split_whitespace().filter(|field| section.contains("info") || !field.starts_with("kv_cache.")) {
            let name = field.rsplit('.').next().unwrap_or(field);
            let named = [format!("\"{name}\""), format!("`{name}`"), format!(".{name}`")].iter().any(|form| text.contains(form));
            assert!(named || field.starts_with("precompute."), "{field} is not in {}", section.trim());
        }
    }
}
