//! What is asked: documents, and pairs of questions that the same passage answers.

use answer::eval::Dataset;
use library::ingest::{self, DEFAULT_MAX_DOCUMENT_BYTES, DEFAULT_MAX_TOKENS, Source};
use llm::embed::{EmbedOptions, Embedder};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use vademecum_benches::Result;

/// Pairs about the sample manual in `config/demo`, one a line.
const QUESTIONS: &str = include_str!("questions.jsonl");

/// A question with its accepted answers.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Query {
    pub(crate) text: String,
    pub(crate) answers: Vec<String>,
}

/// Two questions that the same passage answers: after the first it has been seen.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pair {
    pub(crate) first: Query,
    pub(crate) second: Query,
}

/// Documents and questions.
#[derive(Debug)]
pub(crate) struct Set {
    name: String,
    /// Folder of Markdown files.
    pub(crate) documents: PathBuf,
    /// The daemon's passages of them, one JSON object a line: what the peers search.
    pub(crate) passages: PathBuf,
    /// How many there are.
    pub(crate) count: usize,
    /// Embedder tokens of a passage, the median.
    tokens: u32,
    pub(crate) pairs: Vec<Pair>,
    /// What the answers are judged by.
    pub(crate) questions: Vec<Query>,
}

/// Questions that are judged for each pair that is timed.
const JUDGED: usize = 4;

impl Set {
    /// The sample manual, or a set in the BEIR form with answers, whose documents are written into `folder` as files.
    pub(crate) fn prepare(beir: Option<&Path>, pairs: usize, embedder: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (name, all, questions) = match beir {
            Some(path) => of_beir(path, folder)?,
            None => of_manual(folder)?,
        };
        let (judged, chosen) = (spread(&questions, JUDGED * pairs), spread(&all, pairs));
        let passages = folder.with_extension("jsonl");
        let mut tokens = cut(folder, embedder, &passages)?;
        tokens.sort_unstable();
        let count = tokens.len();
        let tokens = tokens.get(count / 2).copied().ok_or("the documents hold no text")?;
        Ok(Self { name, documents: folder.to_owned(), passages, count, tokens, pairs: chosen, questions: judged })
    }

    pub(crate) fn about(&self) -> String {
        format!(
            "{}: {} passages of {} tokens (median), {} pairs of questions, {} questions judged",
            self.name,
            self.count,
            self.tokens,
            self.pairs.len(),
            self.questions.len()
        )
    }
}

/// So many of all, or all where there are fewer, spread evenly: neighbours are about the same pages.
fn spread<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    let step = (all.len() as f64 / count as f64).max(1.0);
    (0..count.min(all.len())).map(|i| all[(i as f64 * step) as usize].clone()).collect()
}

fn of_manual(folder: &Path) -> Result<(String, Vec<Pair>, Vec<Query>)> {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/demo"))? {
        let path = entry?.path();
        if let (Some(name), Some("md")) = (path.file_name(), path.extension().and_then(|ending| ending.to_str())) {
            fs::copy(&path, folder.join(name))?;
        }
    }
    let pairs: Vec<Pair> = QUESTIONS.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    let questions = pairs.iter().flat_map(|pair| [pair.first.clone(), pair.second.clone()]).collect();
    Ok(("the sample manual".into(), pairs, questions))
}

/// The first two questions with answers of each document that has two, and all questions with answers.
fn of_beir(path: &Path, folder: &Path) -> Result<(String, Vec<Pair>, Vec<Query>)> {
    let set = Dataset::read(path)?;
    for document in &set.documents {
        let name: String = document.id.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
        fs::write(folder.join(format!("{name}.md")), format!("# {}\n\n{}\n", document.title, document.text))?;
    }
    let mut questions = Vec::new();
    let mut by_document: BTreeMap<&str, Vec<Query>> = BTreeMap::new();
    for query in set.queries.iter().filter(|query| !query.answers.is_empty()) {
        if let Some((document, _)) = query.relevance.iter().find(|(_, grade)| **grade > 0) {
            let query = Query { text: query.text.clone(), answers: query.answers.clone() };
            questions.push(query.clone());
            by_document.entry(document).or_default().push(query);
        }
    }
    let two = |queries: Vec<Query>| {
        let [first, second] = <[Query; 2]>::try_from(queries.into_iter().take(2).collect::<Vec<_>>()).ok()?;
        Some(Pair { first, second })
    };
    let pairs: Vec<Pair> = by_document.into_values().filter_map(two).collect();
    if pairs.is_empty() {
        return Err(format!("{}: no document has two questions with answers", path.display()).into());
    }
    Ok((set.name, pairs, questions))
}

/// Cuts the documents as the daemon does; tokens of each passage.
fn cut(folder: &Path, embedder: &Path, passages: &Path) -> Result<Vec<u32>> {
    let embedder = Embedder::load(embedder, &EmbedOptions::default())?;
    let mut out = BufWriter::new(File::create(passages)?);
    let mut tokens = Vec::new();
    for entry in ingest::walk(&[folder.to_owned()], &[], &[])?.entries {
        let source = ingest::load(&entry, DEFAULT_MAX_DOCUMENT_BYTES)?;
        let reading = read::read(Source { id: entry.id.clone(), ..source }.original())?;
        for chunk in ingest::chunk(&reading, DEFAULT_MAX_TOKENS, &|text| embedder.count_tokens(text)) {
            let heading = chunk.heading.join(" > ");
            writeln!(out, "{}", json!({ "document": entry.id, "title": reading.title, "heading": heading, "text": chunk.text }))?;
            tokens.push(chunk.tokens);
        }
    }
    out.flush()?;
    Ok(tokens)
}
