//! Words and the whole way: BM25 beside other full-text indexes, then a question through encoder, index and store.

use crate::Options;
use crate::corpus::{Corpus, Piece};
use crate::dense::{Update, floats, quantile};
use crate::engine::{LEXICAL, Worker};
use crate::vectors::Set;
use llm::embed::Embedder;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use vademecum_benches::Result;

/// Known-item queries of each kind.
const QUERIES: usize = 150;
/// Rank up to which an item counts as found.
const DEPTH: usize = 10;

/// One full-text index with one kind of queries.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Words {
    pub(crate) label: String,
    pub(crate) version: String,
    pub(crate) queries: &'static str,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    /// Mean of 1 / rank of the first chunk looked for, 0 below rank ten.
    pub(crate) mrr: f64,
    /// Mean share of its ten that are among ours.
    pub(crate) overlap: f64,
    pub(crate) build_s: f64,
}

/// A question through the library.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Whole {
    pub(crate) chunks: usize,
    pub(crate) documents: usize,
    pub(crate) build_s: f64,
    pub(crate) disk_mb: f64,
    pub(crate) open_ms: f64,
    pub(crate) first_search_ms: f64,
    pub(crate) total_p50: f64,
    pub(crate) total_p90: f64,
    pub(crate) embed_p50: f64,
    pub(crate) search_p50: f64,
    pub(crate) search_p90: f64,
    /// Store and index without the encoder.
    pub(crate) store_anonymous_mb: f64,
    pub(crate) store_file_mb: f64,
    /// With the encoder, after all questions.
    pub(crate) anonymous_mb: f64,
    pub(crate) file_mb: f64,
}

/// Everything about words and the whole way.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Library {
    pub(crate) words: Vec<Words>,
    pub(crate) whole: Vec<Whole>,
    pub(crate) updates: Vec<Update>,
    pub(crate) chunks: usize,
    pub(crate) skipped: Vec<String>,
}

/// A query with the chunks it was made of.
struct Known {
    text: String,
    items: HashSet<usize>,
}

/// A full-text index that is open.
struct Open {
    label: String,
    worker: Worker,
    build_s: f64,
    ours: bool,
}

impl Library {
    /// Measures the sizes asked for, the largest also beside the peers.
    pub(crate) fn measure(options: &Options, corpus: &Corpus, set: &Set, embedder: &Embedder) -> Result<Self> {
        let mut library = Library::default();
        let sizes = &options.chunks;
        let Some(&most) = sizes.iter().max() else { return Ok(library) };
        library.chunks = most;
        let texts = corpus.read(most)?;
        let (headings, sentences) = known_items(&texts);
        let questions: Vec<String> = sentences.iter().map(|known| known.text.clone()).collect();
        for &chunks in sizes {
            eprintln!("bench: a library of {chunks} chunks");
            let dir = options.scratch.join(format!("library-{chunks}"));
            let built = Worker::start(options, "library", "vademecum")?.call(&json!({
                "do": "build", "texts": corpus.file, "vectors": set.file, "rows": chunks, "dir": dir,
                "fingerprint": embedder.fingerprint(),
            }))?;
            let mut worker = Worker::start(options, "library", "vademecum")?;
            let opened = worker.call(&json!({ "do": "open", "dir": dir }))?;
            let mut ours = Open { label: "vademecum".into(), worker, build_s: number(&built, "build_s"), ours: true };
            if chunks == most {
                let peers = library.peers(options, corpus, most);
                let mut all: Vec<Open> = std::iter::once(ours).chain(peers).collect();
                library.words(options, &texts, "headings", &headings, &mut all)?;
                library.words(options, &texts, "sentences", &sentences, &mut all)?;
                ours = all.swap_remove(0);
            }
            let whole = whole(options, &mut ours.worker, &built, &opened, &dir, &questions)?;
            library.whole.push(whole);
            if chunks == most {
                let answer = ours.worker.call(&json!({ "do": "update", "vectors": set.extra }))?;
                let per_row = |key: &str| quantile(&floats(&answer[key]), 0.5) / answer["chunks"].as_f64().unwrap_or(1.0);
                library.updates.push(Update {
                    label: "vademecum (documents of ten chunks, each synced to disk)".into(),
                    add_ms: per_row("add_ms"),
                    delete_ms: per_row("delete_ms"),
                    found_after_add: None,
                    found_after_delete: None,
                });
            }
        }
        Ok(library)
    }

    fn peers(&mut self, options: &Options, corpus: &Corpus, chunks: usize) -> Vec<Open> {
        let mut open = Vec::new();
        if options.python.is_none() {
            return open;
        }
        for (name, label) in LEXICAL {
            let built = Worker::start(options, "lexical", name).and_then(|mut worker| {
                eprintln!("bench: building {label}");
                let dir = options.scratch.join(name);
                let built = worker.call(&json!({ "do": "build", "texts": corpus.file, "rows": chunks, "dir": dir }))?;
                Ok(Open { label: label.to_owned(), worker, build_s: number(&built, "build_s"), ours: false })
            });
            match built {
                Ok(one) => open.push(one),
                Err(error) => {
                    eprintln!("bench: {label} is skipped: {error}");
                    self.skipped.push(format!("{label}: {}", error.to_string().lines().last().unwrap_or_default()));
                }
            }
        }
        open
    }

    fn words(&mut self, options: &Options, texts: &[Piece], kind: &'static str, known: &[Known], all: &mut [Open]) -> Result<()> {
        let places = places(texts);
        let queries: Vec<&str> = known.iter().map(|known| known.text.as_str()).collect();
        let mut series: Vec<(Vec<f64>, Vec<Vec<usize>>)> = vec![Default::default(); all.len()];
        for _ in 0..options.rounds {
            for (open, (ms, found)) in all.iter_mut().zip(&mut series) {
                let verb = if open.ours { "lexical" } else { "search" };
                let answer = open.worker.call(&json!({ "do": verb, "texts": queries, "seconds": options.seconds }))?;
                ms.extend(floats(&answer["ms"]));
                *found = rows(&answer["ids"], &places);
            }
        }
        let ours = series.first().map(|(_, found)| found.clone()).unwrap_or_default();
        for (open, (ms, found)) in all.iter().zip(&series) {
            let rank = |(rows, known): (&Vec<usize>, &Known)| rows.iter().take(DEPTH).position(|row| known.items.contains(row));
            let ranks = found.iter().zip(known).map(|pair| rank(pair).map_or(0.0, |rank| 1.0 / (rank + 1) as f64));
            let shared = found
                .iter()
                .zip(&ours)
                .map(|(a, b)| a.iter().filter(|row| b.contains(row)).count() as f64 / a.len().max(b.len()).max(1) as f64);
            let mean = |sum: f64| sum / found.len().max(1) as f64;
            self.words.push(Words {
                label: open.label.clone(),
                version: open.worker.version.clone(),
                queries: kind,
                p50: quantile(ms, 0.5),
                p90: quantile(ms, 0.9),
                mrr: mean(ranks.sum()),
                overlap: mean(shared.sum()),
                build_s: open.build_s,
            });
        }
        Ok(())
    }
}

/// Questions through encoder, index and store; memory before the encoder is loaded and at the end.
fn whole(
    options: &Options,
    worker: &mut Worker,
    built: &Value,
    opened: &Value,
    dir: &std::path::Path,
    questions: &[String],
) -> Result<Whole> {
    let store = worker.memory()?;
    worker.call(&json!({ "do": "embedder", "model": options.embedder, "threads": options.threads.iter().max() }))?;
    let (mut total, mut embed, mut search) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let answer = worker.call(&json!({ "do": "search", "texts": questions, "seconds": options.seconds }))?;
        total.extend(floats(&answer["ms"]));
        embed.extend(floats(&answer["embed_ms"]));
        search.extend(floats(&answer["search_ms"]));
    }
    let all = worker.memory()?;
    let mb = |kb: u64| kb as f64 * 1024.0 / 1e6;
    Ok(Whole {
        chunks: number(built, "chunks") as usize,
        documents: number(built, "documents") as usize,
        build_s: number(built, "build_s"),
        disk_mb: disk_mb(dir)?,
        open_ms: number(opened, "open_ms"),
        first_search_ms: number(opened, "first_search_ms"),
        total_p50: quantile(&total, 0.5),
        total_p90: quantile(&total, 0.9),
        embed_p50: quantile(&embed, 0.5),
        search_p50: quantile(&search, 0.5),
        search_p90: quantile(&search, 0.9),
        store_anonymous_mb: mb(store.anonymous_kb),
        store_file_mb: mb(store.file_kb),
        anonymous_mb: mb(all.anonymous_kb),
        file_mb: mb(all.file_kb),
    })
}

/// Queries that are known to have an answer: headings that stand over one section only, and sentences of single chunks.
fn known_items(texts: &[Piece]) -> (Vec<Known>, Vec<Known>) {
    let mut sections: HashMap<&str, (HashSet<&str>, HashSet<usize>)> = HashMap::new();
    for (row, text) in texts.iter().enumerate() {
        if let Some(heading) = text.heading.last() {
            let section = sections.entry(heading).or_default();
            section.0.insert(&text.document);
            section.1.insert(row);
        }
    }
    let words = |text: &str| text.split_whitespace().filter(|word| word.chars().all(char::is_alphabetic)).count();
    let mut headings: Vec<Known> = sections
        .into_iter()
        .filter(|(heading, (documents, rows))| documents.len() == 1 && rows.len() <= 3 && (3..=12).contains(&words(heading)))
        .map(|(heading, (_, rows))| Known { text: heading.to_owned(), items: rows })
        .collect();
    headings.sort_by(|a, b| a.text.cmp(&b.text));
    let step = (headings.len() / QUERIES).max(1);
    let headings = headings.into_iter().step_by(step).take(QUERIES).collect();

    let of = |(row, text): (usize, &Piece)| {
        let fits = |sentence: &&str| sentence.len() <= 160 && (8..=25).contains(&words(sentence));
        let mut all = library::retrieve::sentences(&text.text).into_iter().map(|at| &text.text[at]);
        all.find(fits).map(|sentence| Known { text: sentence.to_owned(), items: HashSet::from([row]) })
    };
    let every = (texts.len() / (QUERIES * 4)).max(1);
    let sentences = texts.iter().enumerate().step_by(every).filter_map(of).take(QUERIES).collect();
    (headings, sentences)
}

/// Number of the first chunk of each document.
fn places(texts: &[Piece]) -> HashMap<&str, usize> {
    let mut places = HashMap::new();
    for (row, text) in texts.iter().enumerate() {
        places.entry(text.document.as_str()).or_insert(row);
    }
    places
}

/// Rows out of ids: the peers give the row, ours gives `document#ordinal`.
fn rows(ids: &Value, places: &HashMap<&str, usize>) -> Vec<Vec<usize>> {
    let row = |id: &Value| match id.as_str() {
        Some(id) => {
            let (document, ordinal) = id.rsplit_once('#')?;
            Some(places.get(document)? + ordinal.parse::<usize>().ok()?)
        }
        None => id.as_u64().map(|row| row as usize),
    };
    ids.as_array().into_iter().flatten().map(|ids| ids.as_array().into_iter().flatten().filter_map(row).collect()).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_default()
}

/// Blocks that the files below take on the disk.
fn disk_mb(dir: &std::path::Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                blocks += metadata.blocks();
            }
        }
    }
    Ok(blocks as f64 * 512.0 / 1e6)
}
