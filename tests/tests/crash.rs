//! A process killed in the middle of writing leaves whole documents behind.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use vademecum_tests::{Killed, Seed, run, temp_dir, vademecum};

const DOCUMENTS: usize = 6;
const SECTIONS: usize = 3;
const ROUNDS: usize = 12;
/// Rounds after which the test gives up if no kill has come in time.
const MOST_ROUNDS: usize = 10 * ROUNDS;

/// A document of several chunks, each of which names document, section and version in words that search finds.
fn text(document: usize, version: usize) -> String {
    let section = |section: usize| {
        let words = format!("The marker is doc{document}sec{section} in release{version}v of this text. ");
        format!("## Section {section}\n\n{}\n\n", words.repeat(6))
    };
    (0..SECTIONS).fold(format!("# Document {document}\n\n"), |text, n| text + &section(n))
}

fn write_all(folder: &Path, version: usize) {
    for document in 0..DOCUMENTS {
        fs::write(folder.join(format!("d{document}.md")), text(document, version)).expect("written");
    }
}

/// Every listed document is whole: each of its sections is found, all of one version. Returns those versions.
fn versions(data: &Path) -> Vec<usize> {
    let on = |args: &[&str]| run(vademecum(args).arg("--data-dir").arg(data));
    let listed = on(&["documents", "list", "--json"]).exits(0).json();
    let listed = listed.as_array().expect("a list").clone();
    assert_eq!(listed.len(), DOCUMENTS, "none is lost: {listed:?}");
    let chunks: u64 = listed.iter().map(|document| document["chunks"].as_u64().expect("a count")).sum();
    assert!(chunks as usize > DOCUMENTS, "documents of several chunks: {listed:?}");
    let one = |document: &Value| -> usize {
        let id = document["id"].as_str().expect("an id");
        let number: usize = id.trim_start_matches('d').trim_end_matches(".md").parse().expect("a number");
        let found = on(&[
            "search",
            &format!("marker doc{number}sec0 doc{number}sec1 doc{number}sec2"),
            "--json",
            "--top-k",
            "20",
            "--set",
            "answer.threshold=0",
        ])
        .json();
        let passages = found["passages"].as_array().expect("passages").iter().filter(|passage| passage["document"] == id);
        let read = passages.fold(String::new(), |text, passage| text + passage["text"].as_str().expect("text"));
        let version = |word: &str| word.strip_prefix("release")?.strip_suffix('v')?.parse::<usize>().ok();
        let mut seen: Vec<usize> = read.split_whitespace().filter_map(version).collect();
        for section in 0..SECTIONS {
            let times = read.matches(&format!("doc{number}sec{section} ")).count();
            assert_eq!(times, 6, "section {section} of {id} is whole: {read}");
        }
        assert_eq!(seen.len(), 6 * SECTIONS, "{id}: {read}");
        seen.dedup();
        assert_eq!(seen.len(), 1, "{id} mixes versions: {seen:?}");
        seen[0]
    };
    listed.iter().map(one).collect()
}

#[test]
fn killed_while_replacing_documents() {
    let seed = Seed::from_environment();
    let mut random = fastrand::Rng::with_seed(seed.0);
    let dir = temp_dir();
    let (folder, data) = (dir.path().join("folder"), dir.path().join("data"));
    fs::create_dir(&folder).expect("made");
    let ingest = || {
        let mut command = vademecum(["ingest", "--json"]);
        command.arg(&folder).arg("--data-dir").arg(&data);
        command
    };
    write_all(&folder, 0);
    let begun = Instant::now();
    let _ = run(&mut ingest()).exits(0);
    // A whole run of this machine; the kill comes at a random moment of it.
    let mut whole = begun.elapsed();
    let mut cut = 0;
    let mut last = vec![0; DOCUMENTS];
    let mut rounds = 0;
    while rounds < ROUNDS || cut == 0 {
        assert!(rounds < MOST_ROUNDS, "every run ended before its kill");
        rounds += 1;
        let round = rounds;
        write_all(&folder, round);
        let moment = whole.mul_f64(random.f64());
        let started = Instant::now();
        let child = ingest().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = Killed(child.expect("it starts"));
        let mut ended = false;
        while started.elapsed() < moment && !ended {
            std::thread::sleep(Duration::from_millis(1));
            ended = child.0.try_wait().expect("its state").is_some();
        }
        // Dropping the child kills it with SIGKILL.
        drop(child);
        // The machine has become faster since the last measurement.
        if ended {
            whole = started.elapsed();
        }
        // Looking at every document takes a while, so only every third round does.
        if round % 3 == 0 {
            let now = versions(&data);
            println!("round {round}, killed after {moment:?}: {now:?}");
            assert!(now.iter().zip(&last).all(|(now, before)| now >= before && *now <= round), "{last:?} {now:?}");
            cut += usize::from(now.iter().any(|version| *version < round));
            last = now;
        }
    }
    let summary = run(&mut ingest()).exits(0).json();
    assert_eq!(summary["failed"].as_array().map(Vec::len), Some(0), "{summary}");
    assert_eq!(versions(&data), [rounds; DOCUMENTS], "a run to the end completes it");
}
