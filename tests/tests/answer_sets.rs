//! The question sets of our own (`tests/answers`): their corpus is the sample manual, and their labels are true to it.

use answer::eval::{Dataset, LabelledQuery, Verdict, contains_answer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

const MANUALS: [&str; 4] = ["error-codes", "installation", "maintenance", "operation"];
const SETS: [&str; 4] = ["manual", "yes-no", "follow-ups", "manual-de"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn set(name: &str) -> Dataset {
    Dataset::read(&repository().join("tests/answers").join(name)).expect("the set is read")
}

/// Lower-case letters and digits, joined by hyphens.
fn slug(heading: &str) -> String {
    let words = heading.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

/// A document for each section of a manual that has text of its own.
fn sections(manual: &str, text: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    let (mut title, mut path, mut body) = (String::new(), vec!["Introduction".to_owned()], String::new());
    let mut end = |title: &str, path: &[String], body: &mut String| {
        let text = std::mem::take(body).trim().to_owned();
        if !text.is_empty() {
            let id = format!("{manual}/{}", slug(path.last().expect("a heading")));
            let title = format!("{title} > {}", path.join(" > "));
            documents.push(json!({ "_id": id, "title": title, "text": text, "metadata": { "media_type": "text/markdown" } }));
        }
    };
    for line in text.lines() {
        match (line.strip_prefix("# "), line.strip_prefix("## "), line.strip_prefix("### ")) {
            (Some(heading), _, _) => heading.clone_into(&mut title),
            (_, Some(heading), _) => {
                end(&title, &path, &mut body);
                path = vec![heading.to_owned()];
            }
            (_, _, Some(heading)) => {
                end(&title, &path, &mut body);
                path.truncate(1);
                path.push(heading.to_owned());
            }
            _ => {
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    end(&title, &path, &mut body);
    documents
}

#[test]
fn the_corpus_is_the_sample_manual_by_section() {
    let manual = |name: &str| fs::read_to_string(repository().join(format!("config/demo/{name}.md"))).expect("the manual");
    let made: Vec<Value> = MANUALS.into_iter().flat_map(|name| sections(name, &manual(name))).collect();
    let file = repository().join("tests/answers/corpus.jsonl");
    if env::var_os("VADEMECUM_WRITE").is_some() {
        fs::write(&file, made.iter().map(|document| format!("{document}\n")).collect::<String>()).expect("written");
    }
    let kept = fs::read_to_string(&file).expect("the corpus");
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(kept == made, "tests/answers/corpus.jsonl is not config/demo: run this test once with VADEMECUM_WRITE=1");
}

/// The numbers of a text, with the decimal comma as a point, and without those of list items.
fn numbers(text: &str) -> BTreeSet<String> {
    let text = text.lines().map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(". ").unwrap_or(line));
    let text = text.collect::<Vec<_>>().join(" ").replace(',', ".");
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').map(|number| number.trim_matches('.'));
    numbers.filter(|number| !number.is_empty()).map(str::to_owned).collect()
}

/// The text of the documents that answer a question.
fn gold(set: &Dataset, query: &LabelledQuery) -> String {
    let text = |id: &String| {
        let document = set.documents.iter().find(|document| document.id == *id);
        document.unwrap_or_else(|| panic!("{}: there is no document {id}", query.id)).text.clone()
    };
    query.relevant().iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn labels_are_true_to_the_manual() {
    for name in SETS {
        let set = set(name);
        let mut ids = BTreeSet::new();
        for query in &set.queries {
            let id = format!("{name}/{}", query.id);
            assert!(ids.insert(&query.id), "{id} stands there twice");
            assert!(query.kind.is_some() && query.text.len() > 3, "{id} has no kind or no text");
            assert_eq!(query.is_answerable(), !query.answers.is_empty(), "{id}: an answer, or the verdict no-answer");
            assert_eq!(query.is_answerable(), !query.relevant().is_empty(), "{id}: a document, or the verdict no-answer");
            let text = gold(&set, query);
            for answer in &query.answers {
                let missing: Vec<_> = numbers(answer).difference(&numbers(&text)).cloned().collect();
                assert!(missing.is_empty(), "{id}: the documents that answer lack {missing:?} of {answer:?}");
            }
            for words in &query.words {
                let any: Vec<String> = words.split('|').map(str::to_owned).collect();
                assert!(query.answers.iter().any(|answer| contains_answer(answer, &any)), "{id}: no gold answer has {words:?}");
            }
        }
    }
}

#[test]
fn a_lying_label_is_noticed() {
    assert_eq!(numbers("1. Fill to 1,5 bar.\n2. Wait 10 minutes."), BTreeSet::from(["1.5".to_owned(), "10".to_owned()]));
    assert!(!numbers("Fill to 2.5 bar.").is_subset(&numbers("Fill to 1.5 bar.")));
    let documents = sections("m", "# M\n\nIntro.\n\n## A\n\n### First one!\n\ntext\n\n## B\n\nmore\n");
    let ids: Vec<&str> = documents.iter().filter_map(|document| document["_id"].as_str()).collect();
    assert_eq!(ids, ["m/introduction", "m/first-one", "m/b"]);
    assert_eq!(documents[1]["title"], "M > A > First one!");
}

#[test]
fn the_sets_hold_every_kind() {
    let count = |set: &Dataset, is: &dyn Fn(&LabelledQuery) -> bool| set.queries.iter().filter(|query| is(query)).count();
    let manual = set("manual");
    for kind in ["steps", "value", "yes-no", "list", "code", "explanation", "no-answer"] {
        assert!(count(&manual, &|query| query.kind.as_deref() == Some(kind)) >= 8, "{kind}");
    }
    assert!(count(&manual, &LabelledQuery::is_answerable) >= 60);
    let yes_no = set("yes-no");
    for verdict in [Verdict::Yes, Verdict::No, Verdict::OnlyIf] {
        assert!(count(&yes_no, &|query| query.verdict == Some(verdict) && !query.words.is_empty()) >= 13, "{verdict:?}");
    }
    let follow_ups = set("follow-ups");
    assert!(follow_ups.queries.len() >= 40 && count(&follow_ups, &|query| query.previous.is_empty()) == 0);
    assert!(count(&follow_ups, &|query| query.kind.as_deref() == Some("new-topic")) >= 10);
    assert!(set("manual-de").queries.len() >= 20);
}
