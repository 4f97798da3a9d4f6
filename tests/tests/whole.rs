//! A library that is not whole: questions wait for their documents, and hear of it if they cannot wait long enough.

use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use vademecum_tests::{
    Broker, Daemon, Killed, MANUAL, Mqtt, QUESTION, Setup, free_port, program, run, temp_dir, vademecum, wait_for,
};

/// No document answers this.
const UNANSWERED: &str = "What does error E-99 mean?";
const NOT_FOUND: &str = "The library does not hold an answer to this question.";
/// Documents besides the manual; together they take some seconds to read.
const OTHERS: usize = 24;

/// A document of some ten chunks that has no error codes in it.
fn other(number: usize) -> String {
    let paragraph =
        |n: usize| format!("Valve {n} of house {number} opens at {} bar. It closes again after {n} seconds.\n\n", n % 7);
    format!("# House {number}\n\n{}", (0..120).map(paragraph).collect::<String>())
}

/// Other work for each core of the machine.
fn load() -> Vec<Killed> {
    let cores = std::thread::available_parallelism().expect("a number").get();
    let busy = || Command::new(program("sh")).args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().expect("started");
    (0..cores).map(|_| Killed(busy())).collect()
}

/// A daemon with one worker, whose answers have to be likely.
fn setup(setup: Setup) -> Setup {
    setup.set("answer.threshold", "0.5").set("answer.strategy", "quote").set("model.slots", "1")
}

fn is_not_whole(reply: &Value, state: &str) {
    let library = &reply["library"];
    assert_eq!(library["state"], state, "{reply}");
    assert!(library["have"].as_u64().expect("a number") < library["of"].as_u64().expect("a number"), "{reply}");
}

#[test]
fn a_question_waits_for_its_document_and_no_longer() {
    let broker = Broker::start();
    let mut daemon = setup(Setup::with(&broker)).start();
    let mqtt = Mqtt::to(&broker);
    for number in 0..OTHERS {
        mqtt.put(&daemon, &format!("house{number}.md"), &other(number));
    }
    // The youngest one: the oldest are rebuilt first, unless a question asks for another.
    mqtt.put(&daemon, "pump.md", MANUAL);
    daemon.signal(Signal::KILL);
    daemon.ends();
    let database = daemon.data().join("db/db");
    let length = fs::metadata(&database).expect("the database").len();
    fs::write(&database, vec![0x5a; length as usize]).expect("overwritten");
    // The broker hands these over in the first moment.
    let ask = |question: Value| mqtt.publish(&daemon.topic("ask"), question.to_string());
    ask(json!({ "id": "patient", "question": UNANSWERED }));
    ask(json!({ "id": "hurried", "question": UNANSWERED, "deadline_ms": 2000 }));
    ask(json!({ "id": "wanted", "question": QUESTION }));
    let others = load();
    let daemon = setup(Setup::with(&broker)).data_dir(daemon.data()).start();
    // The only worker is free, although two other questions wait.
    let wanted = mqtt.reply(&daemon, "wanted");
    assert_eq!((&wanted["found"], &wanted["citations"][0]["document"]), (&json!(true), &json!("pump.md")), "{wanted}");
    is_not_whole(&wanted, "rebuilding");
    let hurried = mqtt.reply(&daemon, "hurried");
    assert_eq!(hurried["found"], false, "{hurried}");
    is_not_whole(&hurried, "rebuilding");
    let said = hurried["answer"].as_str().expect("a text");
    let numbers = format!("{} of {}", hurried["library"]["have"], hurried["library"]["of"]);
    assert!(said.contains("still being read") && said.contains(&numbers), "{hurried}");
    let searched = mqtt.request(&daemon, "search", json!({ "question": UNANSWERED }));
    assert!(searched["found"] == false && searched["library"]["state"] == "rebuilding", "a search tells of it, too: {searched}");
    is_not_whole(&daemon.status()["info"], "rebuilding");
    drop(others);
    let patient = mqtt.reply(&daemon, "patient");
    assert_eq!((&patient["found"], &patient["answer"]), (&json!(false), &json!(NOT_FOUND)), "now it is final: {patient}");
    assert!(patient["library"].is_null(), "{patient}");
    let whole = json!({ "state": "whole", "have": OTHERS + 1, "of": OTHERS + 1 });
    wait_for("info to tell", || {
        let info = mqtt.on(&daemon.topic("info")).last()?.json();
        (info["library"] == whole).then_some(())
    });
    daemon.stop();
}

fn old_file(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    // A new file would first have to be quiet for a while.
    let file = fs::File::options().write(true).open(path).expect("opened");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("its time is set");
}

/// A folder whose last file is the manual.
fn folder(dir: &Path) -> std::path::PathBuf {
    let root = dir.join("manuals");
    fs::create_dir(&root).expect("made");
    for number in 0..OTHERS {
        old_file(&root.join(format!("house{number}.md")), &other(number));
    }
    old_file(&root.join("pump.md"), MANUAL);
    root
}

fn ask(daemon: &Daemon, question: &str) -> Value {
    run(vademecum(["ask", question, "--json", "--data-dir"]).arg(daemon.data())).json()
}

#[test]
fn a_question_waits_for_a_watched_folder() {
    let dir = temp_dir();
    let root = folder(dir.path());
    let listen = format!("127.0.0.1:{}", free_port());
    let watch = root.to_string_lossy();
    let daemon = setup(Setup::new()).set("broker.listen", &listen).set("ingest.watch", &watch).start();
    let answer = ask(&daemon, QUESTION);
    assert_eq!((&answer["found"], &answer["citations"][0]["document"]), (&json!(true), &json!("pump.md")), "{answer}");
    is_not_whole(&answer, "ingesting");
    let answer = ask(&daemon, UNANSWERED);
    assert_eq!((&answer["found"], &answer["answer"]), (&json!(false), &json!(NOT_FOUND)), "{answer}");
    assert!(answer["library"].is_null(), "{answer}");
    daemon.stop();
}

#[test]
fn a_question_waits_for_an_ingest_on_its_way() {
    let dir = temp_dir();
    let root = folder(dir.path());
    let listen = format!("127.0.0.1:{}", free_port());
    let daemon = setup(Setup::new()).set("broker.listen", &listen).start();
    let mut command = vademecum(["ingest", "--data-dir"]);
    let _ingest =
        Killed(command.arg(daemon.data()).arg(&root).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started"));
    wait_for("the ingest to begin", || (daemon.status()["info"]["library"]["state"] == "ingesting").then_some(()));
    // The manual is the last of its files.
    let answer = ask(&daemon, QUESTION);
    assert_eq!((&answer["found"], &answer["citations"][0]["document"]), (&json!(true), &json!("pump.md")), "{answer}");
    daemon.stop();
}

#[test]
fn nobody_waits_for_a_sender_that_has_gone() {
    let (_broker, daemon, mqtt) = vademecum_tests::house(setup);
    let put = json!({ "document": "pump.md", "text": MANUAL, "more": 5 });
    assert_eq!(mqtt.request(&daemon, "documents/put", put)["change"], "added");
    // Five more documents are announced and never come.
    let reply = mqtt.request(&daemon, "ask", json!({ "question": UNANSWERED }));
    assert_eq!((&reply["found"], &reply["library"]), (&json!(false), &Value::Null), "{reply}");
    daemon.stop();
}
