//! Reads a labelled set in the BEIR form: `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`.
//!
//! Queries may have more fields than BEIR's: `answers`, `kind`, `verdict`, `words` and `previous` (`tests/answers/README.md`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::EvalError;

/// A labelled set, in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The folder's name.
    pub name: String,
    /// The corpus.
    pub documents: Vec<LabelledDocument>,
    /// The queries with at least one judgement, and those that the corpus cannot answer ([`Verdict::NoAnswer`]).
    pub queries: Vec<LabelledQuery>,
}

/// A document of the corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledDocument {
    /// Its id.
    pub id: String,
    /// Its title, possibly empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Media type of the text (`metadata.media_type`); `None`: plain text.
    pub media_type: Option<String>,
}

/// The right reply to a question that can be answered with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It depends on a condition, which a right answer names.
    OnlyIf,
    /// The corpus holds no answer, and a right reply says so.
    NoAnswer,
}

/// A query with its judgements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelledQuery {
    /// Its id.
    pub id: String,
    /// The question.
    pub text: String,
    /// The kind of question, if the set has kinds.
    pub kind: Option<String>,
    /// Accepted answers, if the set has them.
    pub answers: Vec<String>,
    /// The right verdict, for questions that have one.
    pub verdict: Option<Verdict>,
    /// Words that a right answer holds; `a|b` is one or the other.
    pub words: Vec<String>,
    /// Questions of the same conversation before this one, oldest first.
    pub previous: Vec<String>,
    /// Grade of each judged document; above 0 means relevant.
    pub relevance: BTreeMap<String, i32>,
}

/// A document id: some sets use numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

#[derive(Deserialize)]
struct CorpusLine {
    #[serde(rename = "_id")]
    id: Id,
    title: Option<String>,
    text: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    media_type: Option<String>,
}

#[derive(Deserialize)]
struct QueryLine {
    #[serde(rename = "_id")]
    id: Id,
    text: String,
    kind: Option<String>,
    answers: Option<Vec<String>>,
    verdict: Option<Verdict>,
    #[serde(default)]
    words: Vec<String>,
    #[serde(default)]
    previous: Vec<String>,
}

impl LabelledQuery {
    /// Ids of the documents that answer.
    pub fn relevant(&self) -> BTreeSet<String> {
        self.relevance.iter().filter(|(_, grade)| **grade > 0).map(|(id, _)| id.clone()).collect()
    }

    /// Whether the corpus holds an answer.
    pub fn is_answerable(&self) -> bool {
        self.verdict != Some(Verdict::NoAnswer)
    }
}

impl Id {
    fn into_string(self) -> String {
        match self {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        }
    }
}

impl Dataset {
    /// The queries with at least one judgement.
    pub fn judged(&self) -> impl Iterator<Item = &LabelledQuery> {
        self.queries.iter().filter(|query| !query.relevance.is_empty())
    }

    /// Reads the set in `folder`. Skips blank lines, a header of the judgements, and answerable queries without judgements.
    pub fn read(folder: &Path) -> Result<Dataset, EvalError> {
        let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| folder.display().to_string());
        let documents = read_json_lines(&folder.join("corpus.jsonl"), |line: CorpusLine| LabelledDocument {
            id: line.id.into_string(),
            title: line.title.unwrap_or_default(),
            text: line.text.unwrap_or_default(),
            media_type: line.metadata.media_type,
        })?;
        let mut judgements = read_judgements(&folder.join("qrels").join("test.tsv"))?;
        let mut queries = read_json_lines(&folder.join("queries.jsonl"), |line: QueryLine| {
            let id = line.id.into_string();
            let relevance = judgements.remove(&id).unwrap_or_default();
            LabelledQuery {
                id,
                text: line.text,
                kind: line.kind,
                answers: line.answers.unwrap_or_default(),
                verdict: line.verdict,
                words: line.words,
                previous: line.previous,
                relevance,
            }
        })?;
        queries.retain(|query| !query.relevance.is_empty() || !query.is_answerable());
        let dataset = Dataset { name, documents, queries };
        if dataset.judged().next().is_none() {
            return Err(EvalError::NoQueries { dataset: dataset.name });
        }
        Ok(dataset)
    }
}

/// Calls `visit` with the number and text of each line that is not blank.
fn for_each_line(path: &Path, mut visit: impl FnMut(usize, &str) -> Result<(), EvalError>) -> Result<(), EvalError> {
    let failed = |source| EvalError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(failed)?;
        let line = line.trim_start_matches('\u{feff}').trim_end_matches('\r');
        if !line.trim().is_empty() {
            visit(number + 1, line)?;
        }
    }
    Ok(())
}

fn read_json_lines<T: DeserializeOwned, R>(path: &Path, mut make: impl FnMut(T) -> R) -> Result<Vec<R>, EvalError> {
    let mut read = Vec::new();
    for_each_line(path, |number, line| {
        let value = serde_json::from_str(line).map_err(|error| bad_line(path, number, error.to_string()))?;
        read.push(make(value));
        Ok(())
    })?;
    Ok(read)
}

/// Query id -> document id -> grade.
fn read_judgements(path: &Path) -> Result<HashMap<String, BTreeMap<String, i32>>, EvalError> {
    let mut judgements: HashMap<String, BTreeMap<String, i32>> = HashMap::new();
    let mut first = true;
    for_each_line(path, |number, line| {
        let header = std::mem::take(&mut first);
        // BEIR has three columns; TREC's own form has an unused second one.
        let columns: Vec<&str> = line.split('\t').map(str::trim).collect();
        let ([query, document, grade] | [query, _, document, grade]) = columns[..] else {
            return Err(bad_line(path, number, format!("{} columns instead of 3, separated by tabs", columns.len())));
        };
        match grade.parse::<f64>() {
            Ok(grade) => {
                judgements.entry(query.to_owned()).or_default().insert(document.to_owned(), grade.round() as i32);
                Ok(())
            }
            Err(_) if header => Ok(()),
            Err(_) => Err(bad_line(path, number, format!("{grade:?} is not a grade"))),
        }
    })?;
    Ok(judgements)
}

fn bad_line(path: &Path, line: usize, reason: String) -> EvalError {
    EvalError::Line { path: path.to_owned(), line, reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(corpus: &str, queries: &str, qrels: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("qrels")).unwrap();
        std::fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        std::fs::write(dir.path().join("queries.jsonl"), queries).unwrap();
        std::fs::write(dir.path().join("qrels/test.tsv"), qrels).unwrap();
        dir
    }

    #[test]
    fn unusual_but_legal_sets_are_read() {
        let corpus =
            "{\"_id\": 7, \"text\": \"seven\", \"metadata\": {}}\n\n{\"_id\": \"b\", \"title\": null, \"text\": \"b\"}\r\n";
        let queries = "{\"_id\": 1, \"text\": \"q\"}\n{\"_id\": \"2\", \"text\": \"no judgement\", \"answers\": [\"x\"]}\n";
        for qrels in ["query-id\tcorpus-id\tscore\n1\t7\t2\n1\tb\t0\n\n", "1\t7\t2\r\n1\tb\t0", "1\t0\t7\t2.0\n1\t0\tb\t0\n"] {
            let dir = folder(corpus, queries, qrels);
            let set = Dataset::read(dir.path()).unwrap();
            assert_eq!((set.documents.len(), set.queries.len()), (2, 1));
            assert_eq!((set.documents[0].id.as_str(), set.documents[1].title.as_str()), ("7", ""));
            assert_eq!(set.queries[0].relevance, BTreeMap::from([("7".to_owned(), 2), ("b".to_owned(), 0)]));
        }
    }

    #[test]
    fn questions_have_more_labels_than_in_beir() {
        let corpus = "{\"_id\": \"a\", \"text\": \"# A\", \"metadata\": {\"media_type\": \"text/markdown\"}}\n";
        let queries = "{\"_id\": \"1\", \"text\": \"May I?\", \"kind\": \"yes-no\", \"verdict\": \"only-if\", \"words\": [\"dry|cold\"], \
                       \"previous\": [\"What is it?\"]}\n{\"_id\": \"2\", \"text\": \"Where is it made?\", \"verdict\": \"no-answer\"}\n";
        let dir = folder(corpus, queries, "1\ta\t1\n");
        let set = Dataset::read(dir.path()).unwrap();
        assert_eq!(set.documents[0].media_type.as_deref(), Some("text/markdown"));
        let first = &set.queries[0];
        assert_eq!((first.kind.as_deref(), first.verdict), (Some("yes-no"), Some(Verdict::OnlyIf)));
        assert_eq!(
            (first.words.as_slice(), first.previous.as_slice()),
            (&["dry|cold".to_owned()][..], &["What is it?".to_owned()][..])
        );
        assert_eq!(first.relevant(), BTreeSet::from(["a".to_owned()]));
        assert!(!set.queries[1].is_answerable() && set.judged().count() == 1);
        let dir = folder(corpus, "{\"_id\": \"1\", \"text\": \"\", \"verdict\": \"maybe\"}", "1\ta\t1\n");
        assert!(Dataset::read(dir.path()).unwrap_err().to_string().contains("queries.jsonl line 1"));
    }

    #[test]
    fn a_fault_is_named_with_file_and_line() {
        let dir = folder("{\"_id\": \"a\"}\n{broken\n", "", "");
        let error = Dataset::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("corpus.jsonl line 2"), "{error}");
        let dir = folder("", "{\"_id\": \"q\", \"text\": \"\"}", "h\th\th\nq\ta\thigh\n");
        assert!(Dataset::read(dir.path()).unwrap_err().to_string().contains("test.tsv line 2"));
        let dir = folder("", "{\"_id\": \"q\", \"text\": \"\"}", "other\ta\t1\n");
        assert!(matches!(Dataset::read(dir.path()), Err(EvalError::NoQueries { .. })));
        assert!(matches!(Dataset::read(Path::new("/nonexistent")), Err(EvalError::Read { .. })));
    }
}
