//! The command line: output, refusals and exit codes.

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use vademecum_tests::{
    Broker, ControlGroup, Daemon, MANUAL, Mqtt, PATIENCE_S, QUESTION, Run, Setup, bare_vademecum, fetched, free_port, generator,
    run, run_with_input, temp_dir, vademecum,
};

/// `vademecum` on the library in `data`.
fn on(data: &Path, args: &[&str]) -> Command {
    let mut command = vademecum(args);
    command.arg("--data-dir").arg(data);
    command
}

fn ingest(data: &Path, paths: &[&Path]) -> Run {
    run(on(data, &["ingest", "--json"]).args(paths))
}

fn counts(summary: &Value) -> [u64; 4] {
    let number = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("{summary}"));
    [number("added"), number("unchanged"), number("replaced"), summary["failed"].as_array().map_or(99, Vec::len) as u64]
}

/// The library as `documents list` shows it, without the times.
fn listed(data: &Path) -> Vec<Value> {
    let Value::Array(mut documents) = run(&mut on(data, &["documents", "list", "--json"])).exits(0).json() else {
        panic!("a list")
    };
    for document in &mut documents {
        document.as_object_mut().expect("a document").remove("added_unix");
    }
    documents
}

fn folder(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).expect("made");
    fs::write(dir.join("pump.md"), MANUAL).expect("written");
    fs::write(dir.join("sub/boiler.txt"), "The boiler of the house holds 300 litres of water.").expect("written");
    fs::write(dir.join("sub/page.html"), "<title>Pool</title><p>The pool is 25 metres long.</p>").expect("written");
    fs::write(dir.join("sub/skip.bin"), [0, 1, 2]).expect("written");
}

#[test]
fn ingest_is_the_same_with_and_without_a_daemon() {
    let dir = temp_dir();
    let (source, direct) = (dir.path().join("source"), dir.path().join("direct"));
    folder(&source);
    assert_eq!(counts(&ingest(&direct, &[&source]).exits(0).json()), [3, 0, 0, 0]);
    assert_eq!(counts(&ingest(&direct, &[&source]).exits(0).json()), [0, 3, 0, 0]);

    let broker = Broker::start();
    let daemon = Setup::with(&broker).start();
    let through = daemon.data().to_owned();
    assert_eq!(counts(&ingest(&through, &[&source]).exits(0).json()), [3, 0, 0, 0]);
    assert!(daemon.data().join("control.sock").exists());
    let documents = listed(&through);
    assert_eq!(documents, listed(&direct), "both ways give the same library");
    let ids: Vec<&str> = documents.iter().filter_map(|d| d["id"].as_str()).collect();
    assert_eq!(ids, ["pump.md", "sub/boiler.txt", "sub/page.html"]);

    fs::write(source.join("sub/boiler.txt"), "The boiler holds 120 litres.").expect("written");
    for data in [&direct, &through] {
        assert_eq!(counts(&ingest(data, &[&source]).exits(0).json()), [0, 2, 1, 0]);
    }
    assert_eq!(listed(&through), listed(&direct));
    let text = run(on(&direct, &["ingest"]).arg(&source)).exits(0).stdout;
    assert!(text.contains("3 unchanged"), "the summary for people: {text}");
}

#[test]
fn one_bad_file_does_not_stop_the_rest() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    folder(&source);
    let (pdf, binary, good) = (source.join("manual.pdf"), source.join("sub/skip.bin"), source.join("pump.md"));
    fs::write(&pdf, b"%PDF-1.7\n1 0 obj").expect("written");
    let broker = Broker::start();
    let daemon = Setup::with(&broker).start();
    for data in [dir.path().join("direct"), daemon.data().to_owned()] {
        let missing = source.join("nowhere.md");
        let summary = ingest(&data, &[&pdf, &binary, &missing, &good]).exits(1).json();
        assert_eq!(counts(&summary), [1, 0, 0, 3], "{summary}");
        let failed = summary["failed"].to_string();
        assert!(
            failed.contains("the PDF is cut off") && failed.contains("skip.bin") && failed.contains("nowhere.md"),
            "{failed}"
        );
        let reasons = summary["failed"].as_array().expect("a list").iter().map(|entry| entry[1].as_str().expect("words"));
        assert!(reasons.into_iter().all(|reason| !reason.contains("skip.bin") && !reason.contains("manual.pdf")), "{failed}");
        let states: Vec<(Value, Value)> =
            listed(&data).into_iter().map(|row| (row["id"].clone(), row["state"].clone())).collect();
        let expected = [("manual.pdf", "failed"), ("pump.md", "ok"), ("skip.bin", "failed")];
        assert_eq!(states, expected.map(|(id, state)| (json!(id), json!(state))));
    }
    let nothing = run(on(&dir.path().join("direct"), &["ingest"]).arg(source.join("nowhere"))).exits(1);
    assert!((nothing.stdout + &nothing.stderr).contains("nowhere"));
}

/// A PDF of these objects, the first of which is the catalog.
fn pdf(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"%PDF-1.4\n".to_vec();
    for (number, object) in objects.iter().enumerate() {
        file.extend([format!("{} 0 obj\n", number + 1).as_bytes(), object, b"\nendobj\n"].concat());
    }
    file.extend_from_slice(b"trailer\n<< /Root 1 0 R >>\n%%EOF\n");
    file
}

/// A PDF with these lines on its pages.
fn paged(pages: &[Vec<String>]) -> Vec<u8> {
    let kids: String = (0..pages.len()).map(|page| format!("{} 0 R ", 4 + 2 * page)).collect();
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        format!("<< /Type /Pages /Count {} /Kids [{kids}] >>", pages.len()).into_bytes(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_vec(),
    ];
    for (page, lines) in pages.iter().enumerate() {
        let content = 5 + 2 * page;
        let shown: String = lines.iter().map(|line| format!("({line}) Tj T* ")).collect();
        let program = format!("BT /F 11 Tf 14 TL 50 700 Td {shown}ET");
        let resources = "/Resources << /Font << /F 3 0 R >> >>";
        objects
            .push(format!("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {content} 0 R {resources} >>").into());
        objects.push(format!("<< /Length {} >>\nstream\n{program}\nendstream", program.len()).into());
    }
    pdf(&objects)
}

#[test]
fn lost_pages_of_a_pdf_are_noted() {
    let dir = temp_dir();
    let file = dir.path().join("stairs.pdf");
    let page = |words: &str| vec![words.to_owned(), "The house has stairs that lead down to the cellar.".to_owned()];
    let mut bytes =
        paged(&[page("The boiler is green."), page("The lamp is red."), page("The filter is cleaned every three months.")]);
    // The record of the second page is destroyed.
    let at = bytes.windows(8).position(|window| window == b"6 0 obj\n").expect("an object") + 8;
    bytes[at..at + 20].fill(b'~');
    fs::write(&file, bytes).expect("written");
    let data = dir.path().join("data");
    let words = "1 of 3 pages could not be read";
    // The note comes at every ingest.
    for _ in 0..2 {
        let summary = ingest(&data, &[&file]).exits(0).json();
        assert!(summary["notes"][0][1].as_str().is_some_and(|note| note.starts_with(words)), "{summary}");
    }
    assert!(listed(&data)[0]["note"].as_str().is_some_and(|note| note.starts_with(words)));
    let list = run(&mut on(&data, &["documents", "list"])).exits(0).stdout;
    assert!(list.contains(&format!("\tok; note: {words}")), "{list}");
    let question = ["search", "How often is the filter cleaned?", "--json", "--set", "answer.threshold=0"];
    let found = run(&mut on(&data, &question)).exits(0).json();
    assert_eq!(found["passages"][0]["page"], json!(3), "{found}");
}

/// A PDF of less than a megabyte whose page unfolds into a gigabyte.
fn bomb() -> Vec<u8> {
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let blanks = vec![b' '; 1 << 20];
    (0..1024).for_each(|_| packer.write_all(&blanks).expect("packed"));
    let packed = packer.finish().expect("packed");
    let head = format!("<< /Filter /FlateDecode /Length {} >>\nstream\n", packed.len());
    pdf(&[
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>".to_vec(),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R >>".to_vec(),
        [head.as_bytes(), &packed, b"\nendstream"].concat(),
    ])
}

#[test]
fn hostile_pdfs_spare_a_good_one_cited_by_page() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).expect("made");
    fs::write(source.join("bomb.pdf"), bomb()).expect("written");
    fs::write(source.join("blank.pdf"), paged(&[vec![]])).expect("written");
    let first = (1..=40)
        .map(|n| format!("Step {n} of the stairs leads down to the cellar, where the pump of the house stands."))
        .collect();
    let second = vec!["The filter of the pump is cleaned every three months.".into()];
    fs::write(source.join("good.pdf"), paged(&[first, second])).expect("written");
    let broker = Broker::start();
    let daemon = Setup::with(&broker).start();
    for data in [dir.path().join("direct"), daemon.data().to_owned()] {
        let summary = ingest(&data, &[&source]).exits(1).json();
        assert_eq!(counts(&summary), [1, 0, 0, 2], "{summary}");
        let failed = summary["failed"].to_string();
        assert!(failed.contains("MiB of memory") && failed.contains("needs OCR"), "{failed}");
        let question = ["search", "How often is the filter cleaned?", "--json", "--set", "answer.threshold=0"];
        let found = run(&mut on(&data, &question)).exits(0).json();
        assert_eq!(found["passages"][0]["page"], json!(2), "{found}");
    }
}

#[test]
#[cfg_attr(without_memory_limit, ignore = "no control group with a memory limit can be made here")]
fn without_memory_the_reader_ends_not_the_daemon() {
    // More than the daemon needs, less than the reader takes.
    let limit = (256 << 20).to_string();
    let group = ControlGroup::limited("memory", ("memory.max", &limit), ("memory.limit_in_bytes", &limit));
    let group = group.expect("a control group; `touch tests/build.rs` if the rights have changed since the build");
    let dir = temp_dir();
    fs::write(dir.path().join("bomb.pdf"), bomb()).expect("written");
    fs::write(dir.path().join("pump.md"), MANUAL).expect("written");
    let broker = Broker::start();
    let mut daemon = Setup::with(&broker).through(&group.script()).start();
    let mqtt = Mqtt::to(&broker);
    let summary = ingest(daemon.data(), &[dir.path()]).exits(1).json();
    assert_eq!(counts(&summary), [1, 0, 0, 1], "{summary}");
    assert!(summary["failed"].to_string().contains("the system had no memory left"), "{summary}");
    let answer = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "max_tokens": 8 }));
    assert_eq!(answer["citations"][0]["document"], "pump.md", "{answer}");
    assert!(daemon.runs());
    daemon.stop();
}

#[test]
fn standard_input_is_named_and_deleted() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let mut command = on(&data, &["ingest", "-", "--id", "note", "--title", "A note", "--tag", "site=north", "--json"]);
    let summary = run_with_input(&mut command, b"The gate code is kept in the red box.").exits(0).json();
    assert_eq!(counts(&summary), [1, 0, 0, 0]);
    let documents = listed(&data);
    assert_eq!(
        (&documents[0]["id"], &documents[0]["title"], &documents[0]["tags"]["site"]),
        (&json!("note"), &json!("A note"), &json!("north"))
    );
    let found = run(&mut on(
        &data,
        &["search", "Where is the gate code?", "--json", "--filter", "site=north", "--set", "answer.threshold=0"],
    ));
    let found = found.exits(0).json();
    assert_eq!((&found["passages"][0]["document"], &found["found"]), (&json!("note"), &json!(true)));
    let elsewhere =
        run(&mut on(&data, &["search", "Where is the gate code?", "--json", "--filter", "site=south"])).exits(3).json();
    assert_eq!((&elsewhere["passages"], &elsewhere["found"]), (&json!([]), &json!(false)));

    let deleted = run(&mut on(&data, &["documents", "delete", "note", "--json"])).exits(0).json();
    assert_eq!(deleted, json!([{ "document": "note", "deleted": true }]));
    let again = run(&mut on(&data, &["documents", "delete", "note"])).exits(1);
    assert!(again.stderr.contains("note") && again.stderr.contains("documents list"), "{again:?}");
    assert!(listed(&data).is_empty());

    let said = run_with_input(&mut on(&data, &["ingest", "-"]), b"One line of text.").exits(0);
    assert!(said.stdout.contains("; 1 chunk in "), "{said:?}");
    assert_eq!(listed(&data)[0]["id"], json!("stdin"));
}

#[test]
fn wrong_usage_of_ingest_names_the_remedy() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let bogus = run(&mut on(&data, &["ingest", "-", "--media-type", "foo"])).exits(2);
    assert!(bogus.stderr.contains("application/epub+zip"), "{bogus:?}");
    let missing = run(&mut on(&data, &["ingest", "no-such-file.md"])).exits(1);
    assert!(missing.stdout.contains("check that it exists"), "{missing:?}");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("made");
    let nothing = run(on(&data, &["ingest"]).arg(&empty)).exits(1);
    assert!(
        ["mandoc -T html", "xmlto html-nochunks", "--include"].iter().all(|word| nothing.stderr.contains(word)),
        "{nothing:?}"
    );
    let page = dir.path().join("pump.1");
    std::fs::write(&page, ".TH PUMP 1\n.SH NAME\npump \\- moves water\n").expect("written");
    let refused = ingest(&data, &[&page]).exits(1);
    assert!(refused.stdout.contains("a manual page cannot be read; convert it first (`mandoc -T html FILE`)"), "{refused:?}");
}

#[test]
fn wrong_usage_exits_with_2_and_touches_nothing() {
    let dir = temp_dir();
    let (data, file) = (dir.path().join("data"), dir.path().join("pump.md"));
    fs::write(&file, MANUAL).expect("written");
    let (folder, file) = (dir.path().display().to_string(), file.display().to_string());
    let long = "x".repeat(513);
    let wrong: [&[&str]; 31] = [
        &["search", ""],
        &["search", " \t"],
        &["search", "pump", "-k", "0"],
        &["search", "pump", "-k", "21"],
        &["search", "pump", "-k", "many"],
        &["search", "pump", "--filter", "site"],
        &["search", "pump", "--filter", "=north"],
        &["search", "pump", "--collection", "No Such"],
        &["ask", ""],
        &["ask", "pump", "--top-k", "99"],
        &["ask", "pump", "--max-tokens", "0"],
        &["ask", "pump", "--timeout", "0"],
        &["ask", "pump", "--filter", "site"],
        &["ask", "pump", "--broker", "localhost"],
        &["ask", "pump", "--node", "a/b"],
        &["ingest"],
        &["ingest", &file, "--tag", "site"],
        &["ingest", &file, "--tag", "a=1", "--tag", "a=2"],
        &["ingest", &file, "--include", "[a"],
        &["ingest", &file, "--exclude", "[a"],
        &["ingest", &file, "--id", ""],
        &["ingest", &file, "--id", &long],
        &["ingest", &file, "--collection", "a/b"],
        &["ingest", &folder, "--id", "pump"],
        &["ingest", &file, &file, "--title", "Pump"],
        &["ingest", "--re-embed", "--tag", "site=north"],
        &["documents", "delete", ""],
        &["documents", "--set", "answer.top_k"],
        &["documents", "--set", "answer.topk=2"],
        &["documents", "--set", "answer.top_k=99"],
        &["eval", &folder, "--max-tokens", "0"],
    ];
    for args in wrong {
        let refused = run(&mut on(&data, args)).exits(2);
        assert!(!refused.stderr.is_empty() && refused.stdout.is_empty(), "{args:?}: {refused:?}");
    }
    assert!(!data.exists());
    // Limits that only the daemon knows.
    let broker = Broker::start();
    let daemon = Setup::with(&broker).start();
    let mut long = bare_vademecum(["ask", &"pump ".repeat(2000), "--node", "n1", "--broker", &broker.url()]);
    assert!(run(&mut long).exits(2).stderr.contains("too_large"));
    let mut tokens = bare_vademecum(["ask", "pump", "--max-tokens", "9999999", "--node", "n1", "--broker", &broker.url()]);
    assert!(run(&mut tokens).exits(2).stderr.contains("bad_request"));
    assert!(run(&mut on(daemon.data(), &["search", &"pump ".repeat(2000)])).exits(2).stderr.contains("bytes"));
}

#[test]
fn failed_documents_are_listed_and_in_doctor() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).expect("made");
    fs::write(source.join("pump.md"), MANUAL).expect("written");
    fs::write(source.join("blank.txt"), " \n").expect("written");
    fs::write(source.join("large.txt"), "word ".repeat(1000)).expect("written");
    let broker = Broker::start();
    let limit = ["--set", "ingest.max_document_bytes=2000"];
    let (direct, data) = (dir.path().join("direct"), dir.path().join("data"));
    let daemon = Setup::with(&broker).data_dir(&data).set("ingest.max_document_bytes", "2000").start();
    for data in [&direct, &data] {
        let summary = run(on(data, &["ingest", "--json"]).args(limit).arg(&source)).exits(1).json();
        assert_eq!(counts(&summary), [1, 0, 0, 2], "{summary}");
    }
    let doctor = |data: &Path| -> Value {
        let report = run(&mut on(data, &["doctor", "--json", "--node", "n1", "--broker", &broker.url()])).json();
        let checks = report.as_array().expect("a list");
        checks.iter().find(|check| check["check"] == "documents").unwrap_or_else(|| panic!("{report}")).clone()
    };
    let check = |data: &Path| {
        let rows = listed(data);
        let told: Vec<String> = rows.iter().map(|row| format!("{} {} {}", row["id"], row["state"], row["reason"])).collect();
        assert_eq!(told[0], "\"blank.txt\" \"failed\" \"no text in it\"");
        assert!(told[1].starts_with("\"large.txt\" \"failed\" \"larger than 2000 bytes"), "{told:?}");
        assert!(told[1].contains("ingest.max_document_bytes") && told.len() == 3, "{told:?}");
        let told = doctor(data);
        assert_eq!(told["status"], "warn", "{told}");
        let detail = told["detail"].as_str().expect("words");
        assert!(detail.starts_with("2 of 3 documents could not be taken in") && detail.contains("blank.txt"), "{told}");
        assert!(told["remedy"].as_str().expect("words").contains("documents delete"), "{told}");
    };
    check(&direct);
    check(&data);
    daemon.stop();
    check(&data);
    // One file is corrected, the other one given up.
    fs::write(source.join("blank.txt"), "The lid is blue.").expect("written");
    assert_eq!(counts(&ingest(&data, &[&source.join("blank.txt")]).exits(0).json()), [1, 0, 0, 0]);
    let _ = run(&mut on(&data, &["documents", "delete", "large.txt"])).exits(0);
    let states: Vec<Value> = listed(&data).into_iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["ok", "ok"]);
    assert_eq!(doctor(&data)["status"], "ok");
}

#[test]
fn ask_exits_by_what_came_back() {
    let broker = Broker::start();
    let daemon = Setup::with(&broker).set("answer.threshold", "0.5").start();
    let mqtt = Mqtt::to(&broker);
    mqtt.put(&daemon, "pump.md", MANUAL);
    let ask = |question: &str, more: &[&str]| {
        let mut command = bare_vademecum(["ask", question, "--node", "n1", "--max-tokens", "16", "--timeout", PATIENCE_S]);
        run(command.arg("--broker").arg(broker.url()).args(more))
    };
    let answer = ask(QUESTION, &["--json"]).exits(0).json();
    assert_eq!((&answer["found"], &answer["citations"][0]["document"]), (&json!(true), &json!("pump.md")));
    let shown = ask(QUESTION, &[]).exits(0);
    let text = answer["answer"].as_str().expect("text").split_whitespace().next().expect("a word").to_owned();
    assert!(shown.stdout.contains(&text) && shown.stdout.contains("pump.md") && shown.stdout.contains("[1]"), "{shown:?}");
    let unknown = ask("Who painted the ceiling of the Sistine Chapel?", &["--json"]).exits(3).json();
    assert_eq!((&unknown["found"], &unknown["citations"]), (&json!(false), &json!([])));
    assert!(ask(QUESTION, &["--evidence"]).exits(0).stdout.contains("filter"));

    let refused = ask(QUESTION, &["--collection", "nowhere"]).exits(1);
    assert!(refused.stderr.contains("unknown_collection"), "{refused:?}");
    let mut elsewhere = bare_vademecum(["ask", QUESTION, "--node", "n9", "--broker", &broker.url()]);
    let elsewhere = run(&mut elsewhere).exits(1);
    assert!(elsewhere.stderr.contains("vademecum/n9") && elsewhere.stderr.contains("--node"), "{elsewhere:?}");
    let port = free_port();
    let nobody = run(bare_vademecum(["ask", QUESTION, "--broker"]).arg(format!("mqtt://127.0.0.1:{port}"))).exits(1);
    assert!(nobody.stderr.contains(&port.to_string()) && nobody.stderr.contains("--broker"), "{nobody:?}");
    daemon.stop();
    let offline = ask(QUESTION, &[]).exits(1);
    assert!(offline.stderr.contains("offline"), "{offline:?}");
}

#[test]
fn config_merges_file_environment_and_flags() {
    let dir = temp_dir();
    let file = dir.path().join("vademecum.toml");
    let config = |text: &str, env: &[(&str, &str)], flags: &[&str]| {
        fs::write(&file, text).expect("written");
        let mut command = Command::new(vademecum_tests::binary());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VADEMECUM_")) {
            command.env_remove(name);
        }
        run(command.args(["config", "--json", "--config"]).arg(&file).args(flags).envs(env.iter().copied()))
    };
    let text = "node = \"file\"\n[answer]\ntop_k = 5\nmax_tokens = 50\n[mqtt]\nbroker = \"mqtt://file:1\"\n";
    let env = [("VADEMECUM_NODE", "env"), ("VADEMECUM_ANSWER_TOP_K", "6")];
    let all = config(text, &env, &["--node", "flag", "--set", "answer.queue=3"]).exits(0).json();
    assert_eq!(
        (&all["node"], &all["answer"]["top_k"], &all["answer"]["max_tokens"], &all["answer"]["queue"]),
        (&json!("flag"), &json!(6), &json!(50), &json!(3))
    );
    assert_eq!((&all["mqtt"]["broker"], &all["mqtt"]["base"]), (&json!("mqtt://file:1"), &json!("vademecum")));

    let name = file.display().to_string();
    let refused = |text: &str, env: &[(&str, &str)], flags: &[&str], words: &[&str]| {
        let run = config(text, env, flags).exits(if flags.is_empty() { 1 } else { 2 });
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{words:?}: {run:?}");
    };
    refused("[answer]\ntopk = 5\n", &[], &[], &[&name, "answer.topk", "did you mean `answer.top_k`"]);
    refused("[answer]\ntop_k = 99\n", &[], &[], &[&name, "answer.top_k", "from 1 to 20"]);
    refused("[answer]\ntop_k = \"five\"\n", &[], &[], &[&name, "answer.top_k", "whole number"]);
    refused("[answer\n", &[], &[], &[&name, "not valid TOML"]);
    refused("", &[("VADEMECUM_MQTT_BROKRE", "x")], &[], &["VADEMECUM_MQTT_BROKRE"]);
    refused("", &[("VADEMECUM_MQTT_BROKER", "broker:1883")], &[], &["VADEMECUM_MQTT_BROKER", "mqtt://host:port"]);
    refused("", &[], &["--set", "broker.listen=0.0.0.0:1883"], &["broker.listen", "loopback only"]);
    refused("", &[], &["--set", "answer.top_k"], &["--set <KEY=VALUE>", "key=value"]);
    refused("", &[], &["--node", "a/b"], &["node", "a/b"]);
    let renamed = config("[answer]\nreader = \"best\"\n", &[("VADEMECUM_MODEL_PASSAGES_MB", "7")], &[]).exits(0);
    let all = renamed.json();
    assert_eq!((&all["answer"]["strategy"], &all["model"]["kv_cache_mb"]), (&json!("read"), &json!(7)));
    assert!(["answer.strategy", "model.kv_cache_mb"].iter().all(|name| renamed.stderr.contains(name)), "{renamed:?}");
    fs::remove_file(&file).expect("removed");
    let gone = run(Command::new(vademecum_tests::binary()).args(["config", "--config"]).arg(&file)).exits(1);
    assert!(gone.stderr.contains(&name) && gone.stderr.contains("--config"), "{gone:?}");
}

#[test]
fn documented_configuration_is_the_default() {
    let documented = fs::read_to_string(vademecum_tests::repository().join("config/vademecum.toml")).expect("it ships");
    // Keys stand behind `#` without a blank; prose has one.
    let uncommented: String = documented
        .lines()
        .map(|line| if line.starts_with('#') && !line.starts_with("# ") && line.len() > 1 { &line[1..] } else { line })
        .fold(String::new(), |text, line| text + line + "\n");
    let documented: toml::Table = uncommented.parse().expect("TOML");
    let mut effective: Value = run(&mut bare_vademecum(["config", "--json"])).exits(0).json();
    let mut documented: Value = serde_json::to_value(documented).expect("JSON");
    // The system prompt is filled in by hand, and single-precision numbers print their rounding.
    for tree in [&mut effective, &mut documented] {
        tree["answer"]["system"] = json!("");
        for key in ["threshold", "temperature", "top_p", "min_p"] {
            let rounded = tree["answer"][key].as_f64().map(|value| (value * 1e4).round());
            tree["answer"][key] = json!(rounded);
        }
    }
    assert_eq!(documented, effective);
}

#[test]
fn model_show_and_convert() {
    let shown = run(bare_vademecum(["model", "show", "--json"]).arg(generator())).exits(0).json();
    assert_eq!(
        (&shown["architecture"], &shown["kind"], &shown["context_length"]),
        (&json!("llama"), &json!("generator"), &json!(8192))
    );
    assert_eq!((&shown["layers"], &shown["kv_heads"], &shown["file_bytes"]), (&json!(30), &json!(3), &json!(98_362_432)));
    assert!(shown["bytes_per_token"].as_u64().is_some_and(|bytes| (90_000_000..98_362_432).contains(&bytes)), "{shown}");
    assert_eq!(shown["fingerprint"].as_str().map(str::len), Some(64));
    assert!(shown["chat_template"].is_string() && shown["license"].is_string(), "{shown}");
    let text = run(bare_vademecum(["model", "show"]).arg(generator())).exits(0).stdout;
    assert!(text.contains("llama") && text.contains("bytes"), "{text}");

    let dir = temp_dir();
    let (out, data) = (dir.path().join("made.gguf"), dir.path().join("data"));
    let source = fetched("models/minilm");
    let _ = run(bare_vademecum(["model", "convert", "--type", "q8_0", "--out"]).arg(&out).arg(&source)).exits(0);
    let made = run(bare_vademecum(["model", "show", "--json"]).arg(&out)).exits(0).json();
    assert_eq!(
        (&made["architecture"], &made["kind"], &made["embedding_length"]),
        (&json!("bert"), &json!("encoder (mean pooling)"), &json!(384))
    );
    let manual = dir.path().join("pump.md");
    fs::write(&manual, MANUAL).expect("written");
    let with_made = |args: &[&str]| {
        let mut command = bare_vademecum(args);
        command.arg("--embedder").arg(&out).arg("--data-dir").arg(&data);
        command
    };
    let _ = run(with_made(&["ingest"]).arg(&manual)).exits(0);
    let found = run(&mut with_made(&["search", QUESTION, "--json"])).exits(0).json();
    assert_eq!(found["passages"][0]["document"], "pump.md");

    let nothing = run(bare_vademecum(["model", "convert", "--out"]).arg(dir.path().join("x.gguf")).arg(dir.path())).exits(1);
    assert!(nothing.stderr.contains("config.json") && !dir.path().join("x.gguf").exists(), "{nothing:?}");
}

#[test]
fn doctor_tells_what_is_wrong() {
    let dir = temp_dir();
    let data = dir.path().join("data");
    let broker = Broker::start();
    let doctor = |more: &[&str]| run(on(&data, &["doctor", "--json", "--broker", &broker.url()]).args(more));
    let status = |report: &Value, check: &str| -> Value {
        let checks = report.as_array().expect("a list");
        checks.iter().find(|c| c["check"] == check).unwrap_or_else(|| panic!("{check}: {report}")).clone()
    };
    let good = doctor(&[]).exits(0).json();
    for check in ["config", "permissions", "generator", "embedder", "kv-cache", "store", "broker"] {
        assert_eq!(status(&good, check)["status"], "ok", "{good}");
    }
    for check in ["cores", "memory", "disk", "clock"] {
        assert_ne!(status(&good, check)["status"], "fail", "{good}");
    }
    let bad = run(bare_vademecum([
        "doctor",
        "--json",
        "--generator",
        "/nowhere/model.gguf",
        "--broker",
        &format!("mqtt://127.0.0.1:{}", free_port()),
    ])
    .arg("--data-dir")
    .arg(&data));
    let bad = bad.exits(1).json();
    let generator = status(&bad, "generator");
    assert_eq!(generator["status"], "fail");
    assert!(
        generator["detail"].to_string().contains("/nowhere/model.gguf")
            && generator["remedy"].to_string().contains("--generator")
            && generator["remedy"].to_string().contains("`vademecum model pull "),
        "{generator}"
    );
    assert_eq!(status(&bad, "broker")["status"], "fail");
    fs::create_dir_all(&data).expect("made");
    fs::write(data.join("kv-cache"), "no folder").expect("written");
    assert_eq!(status(&doctor(&[]).exits(0).json(), "kv-cache")["status"], "warn");
    // Beside a running daemon as well.
    let beside = || {
        let daemon: Daemon = Setup::with(&broker).data_dir(&data).start();
        let told = doctor(&["--node", "n1"]).exits(0).json();
        assert!(status(&told, "store")["detail"].to_string().contains("running daemon"), "{told}");
        drop(daemon);
        status(&told, "kv-cache")
    };
    assert_eq!(beside()["status"], "warn");
    fs::remove_file(data.join("kv-cache")).expect("removed");
    assert_eq!(beside()["status"], "ok");
}

#[test]
fn eval_measures_a_beir_folder() {
    let dir = temp_dir();
    let set = dir.path().join("tiny");
    fs::create_dir_all(set.join("qrels")).expect("made");
    let texts = [
        ("whales", "Whales breathe air through a blowhole on top of the head."),
        ("bread", "Bread dough rises because yeast makes carbon dioxide."),
        ("tides", "The tides of the sea follow the moon."),
        ("steel", "Steel is an alloy of iron and carbon."),
        ("bees", "Honey bees tell the way to flowers with a dance."),
    ];
    let corpus = texts.map(|(id, text)| json!({ "_id": id, "title": "", "text": text }).to_string()).join("\n");
    let queries = [
        ("q1", "Why does dough rise?", "yeast"),
        ("q2", "How do bees show the way?", "dance"),
        ("q3", "What is steel made of?", "iron"),
    ];
    let lines = queries.map(|(id, text, answer)| json!({ "_id": id, "text": text, "answers": [answer] }).to_string()).join("\n");
    fs::write(set.join("corpus.jsonl"), corpus).expect("written");
    fs::write(set.join("queries.jsonl"), lines).expect("written");
    fs::write(set.join("qrels/test.tsv"), "query-id\tcorpus-id\tscore\nq1\tbread\t1\nq2\tbees\t1\nq3\tsteel\t1\n")
        .expect("written");
    let dump = dir.path().join("dump.jsonl");
    let asking = ["eval", "--json", "--answers", "--near", "--max-tokens", "8", "--set", "answer.threshold=0"];
    let report = run(vademecum(asking).arg(&set).arg("--dump").arg(&dump)).exits(0).json();
    assert_eq!((&report["dataset"], &report["documents"], &report["queries"]), (&json!("tiny"), &json!(5), &json!(3)));
    for measure in ["ndcg@10", "recall@5", "recall@100", "mrr"] {
        assert_eq!(report[measure], 1.0, "{measure}: every question names its document: {report}");
    }
    assert!(report["ingest_chunks_per_s"].as_f64() > Some(0.0) && report["query_ms_p50"].as_f64() > Some(0.0), "{report}");
    let answers = &report["answers"];
    assert_eq!((&answers["asked"], &answers["unanswerable"]), (&json!(3), &json!(3)), "{report}");
    let shares = [
        "exact_match",
        "token_f1",
        "rouge_l",
        "gold_recall",
        "contains",
        "contradicts_negation",
        "contradicts_number",
        "abstained",
    ];
    for measure in shares {
        assert!(answers[measure].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{measure}: {report}");
    }
    let near = &report["near"];
    assert_eq!(
        (&near["asked"], &near["kept"], &near["refused"]),
        (&json!(3), &json!(1.0), &json!(0.0)),
        "no threshold: {report}"
    );
    assert!(near["roc_auc"].as_f64() > Some(0.9) && near["foreign"].as_u64() > Some(100), "{report}");
    let lines = fs::read_to_string(&dump).expect("written");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    for (line, (id, _, answer)) in lines.iter().zip(queries) {
        assert_eq!((&line["id"], &line["gold"][0]), (&json!(id), &json!(answer)));
        let [reply, hidden] = ["reply", "near"].map(|asked| &line[asked]["features"]["dense"]);
        assert!(reply.as_f64() > hidden.as_f64() && line["scores"]["token_f1"].is_number(), "{line}");
        let gone = &line["documents"][0];
        let cited = line["near"]["citations"].as_array().expect("a list");
        assert!(cited.iter().all(|citation| citation["document"] != *gone), "{line}");
    }
    assert!(run(vademecum(["eval", "--dump", "x"]).arg(&set)).exits(2).stderr.contains("--near"));
    fs::remove_file(set.join("corpus.jsonl")).expect("removed");
    assert!(run(vademecum(["eval"]).arg(&set)).exits(1).stderr.contains("corpus.jsonl"));
}

#[test]
fn another_embedder_needs_a_re_embedding() {
    let dir = temp_dir();
    let (data, source) = (dir.path().join("data"), dir.path().join("source"));
    folder(&source);
    let _ = ingest(&data, &[&source]).exits(0);
    let f16 = fetched("models/embedder-f16.gguf");
    let with_f16 = |args: &[&str]| {
        let mut command = bare_vademecum(args);
        command.arg("--embedder").arg(&f16).arg("--data-dir").arg(&data);
        command
    };
    let refused = run(&mut with_f16(&["search", QUESTION])).exits(1);
    assert!(refused.stderr.contains("vademecum ingest --re-embed"), "{refused:?}");
    let summary = run(&mut with_f16(&["ingest", "--re-embed", "--json"])).exits(0).json();
    assert_eq!(summary["failed"], json!([]), "{summary}");
    let found = run(&mut with_f16(&["search", QUESTION, "--json"]));
    assert_eq!(found.json()["passages"][0]["document"], "pump.md");
    let before = run(&mut on(&data, &["search", QUESTION])).exits(1);
    assert!(before.stderr.contains("--re-embed"), "the old embedder is refused now: {before:?}");
    assert_eq!(listed(&data).len(), 3);
}
