//! Retrieval and answer quality on labelled sets, by standard measures.

mod answering;
mod answers;
mod asking;
mod beir;
mod calibrate;
mod claims;
mod measures;
mod near;
mod roc;
mod steps;
mod verdict;
mod words;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

pub use answering::{AnswerReport, Figures, Scores};
pub use answers::{contains_answer, exact_match, gold_recall, normalize_answer, rouge_l, token_f1};
pub use asking::{Asked, Asking, Reply, ask, ask_foreign, chosen};
pub use beir::{Dataset, LabelledDocument, LabelledQuery, Verdict};
pub use calibrate::{
    Examples, Judged, Measured, fit, foreign_questions, from_library, from_sets, judge, kept_threshold, refused_share, roc_auc,
};
pub use measures::{ndcg, recall, reciprocal_rank};
pub use near::NearReport;
pub use roc::{roc_curve, roc_svg};

use library::retrieve::{Query, RetrieveError, Retriever};
use library::store::StoreError;
use llm::embed::EmbedError;

/// Documents ranked per query, as in the reference figures.
pub const RANKED: usize = 100;

/// The reason why a set could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file of the set cannot be read.
    #[error("cannot read {}: {source}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A line of the set breaks the format.
    #[error("{} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The line's fault.
        reason: String,
    },
    /// No query of the set has a judgement.
    #[error("no query of {dataset} has a line in qrels/test.tsv; check that both use the same query ids")]
    NoQueries {
        /// Name of the set.
        dataset: String,
    },
    /// A document could not be ingested.
    #[error("document {id:?} cannot be ingested: {reason}")]
    Ingest {
        /// The document's id.
        id: String,
        /// The reason.
        reason: String,
    },
    /// A question could not be answered.
    #[error("question {id:?} cannot be answered: {reason}")]
    Answer {
        /// The question's id.
        id: String,
        /// The reason.
        reason: String,
    },
    /// A query could not be looked up.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    /// A text could not be embedded.
    #[error("a passage cannot be embedded: {0}")]
    Embed(#[source] EmbedError),
    /// The library could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Figures of one set: means over its queries.
#[derive(Clone, Debug, Serialize)]
pub struct RetrievalReport {
    /// Name of the set: its folder.
    pub dataset: String,
    /// Documents in the corpus.
    pub documents: usize,
    /// Number of its chunks.
    pub chunks: u64,
    /// Queries with judgements.
    pub queries: usize,
    /// Normalised discounted cumulative gain of the first ten documents.
    #[serde(rename = "ndcg@10")]
    pub ndcg_at_10: f64,
    /// Share of the relevant documents among the first five.
    #[serde(rename = "recall@5")]
    pub recall_at_5: f64,
    /// Share of the relevant documents among the first hundred.
    #[serde(rename = "recall@100")]
    pub recall_at_100: f64,
    /// Mean reciprocal rank of the first relevant document.
    pub mrr: f64,
    /// Chunks ingested per second.
    pub ingest_chunks_per_s: f64,
    /// Median milliseconds per query, embedding included.
    pub query_ms_p50: f64,
    /// 95th percentile of the same.
    pub query_ms_p95: f64,
}

/// Measures retrieval on `dataset`. `ingest` puts one document into `collection` of the retriever's empty, temporary store under
/// the document's id. It returns the number of chunks, or the reason for a failure.
pub fn measure(
    dataset: &Dataset,
    retriever: &Retriever,
    collection: &str,
    ingest: &mut dyn FnMut(&LabelledDocument) -> Result<u32, String>,
) -> Result<RetrievalReport, EvalError> {
    let started = Instant::now();
    let mut chunks = 0u64;
    for document in &dataset.documents {
        let made = ingest(document).map_err(|reason| EvalError::Ingest { id: document.id.clone(), reason })?;
        chunks += u64::from(made);
    }
    let ingest_seconds = started.elapsed().as_secs_f64();

    let mut totals = [0.0f64; 4];
    let mut times = Vec::with_capacity(dataset.queries.len());
    for labelled in dataset.judged() {
        let query = Query { text: labelled.text.clone(), collection: collection.to_owned(), ..Query::default() };
        let started = Instant::now();
        let ranked = retriever.rank_documents(&query, RANKED)?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        let ranked: Vec<&str> = ranked.iter().map(|(id, _)| id.as_str()).collect();
        let relevant = &labelled.relevance;
        let measures = [
            ndcg(&ranked, relevant, 10),
            recall(&ranked, relevant, 5),
            recall(&ranked, relevant, RANKED),
            reciprocal_rank(&ranked, relevant),
        ];
        for (total, value) in totals.iter_mut().zip(measures) {
            *total += value;
        }
    }
    let [ndcg_at_10, recall_at_5, recall_at_100, mrr] = totals.map(|total| total / times.len() as f64);
    times.sort_unstable_by(f64::total_cmp);
    let percentile = |share: f64| times.get(((times.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0);
    Ok(RetrievalReport {
        dataset: dataset.name.clone(),
        documents: dataset.documents.len(),
        chunks,
        queries: times.len(),
        ndcg_at_10,
        recall_at_5,
        recall_at_100,
        mrr,
        ingest_chunks_per_s: chunks as f64 / ingest_seconds.max(f64::EPSILON),
        query_ms_p50: percentile(0.5),
        query_ms_p95: percentile(0.95),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use library::store::{Chunk, Document, EmbedderId, Store, StoreOptions, sha256_hex};
    use llm::embed::{EmbedOptions, Embedder};

    #[test]
    fn a_small_set_is_measured_from_end_to_end() {
        let embedder = Embedder::load(&llm::gguf::test_model("embedder.gguf"), &EmbedOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let id = EmbedderId {
            name: embedder.name().to_owned(),
            fingerprint: embedder.fingerprint().to_owned(),
            dimensions: embedder.dimensions(),
        };
        store.bind_embedder(&id).unwrap();
        let mut ingest = |labelled: &LabelledDocument| -> Result<u32, String> {
            let chunk = Chunk {
                document: labelled.id.clone(),
                ordinal: 0,
                heading: Vec::new(),
                page: None,
                text: labelled.text.clone(),
                breaks: Vec::new(),
                sections: Vec::new(),
                offset: 0,
                tokens: 10,
            };
            let document = Document {
                id: labelled.id.clone(),
                collection: "eval".to_owned(),
                title: labelled.title.clone(),
                media_type: "text/plain".to_owned(),
                hash: sha256_hex(labelled.text.as_bytes()),
                bytes: 0,
                chunks: 1,
                added_unix: 0,
                ..Document::default()
            };
            let vector = embedder.embed_query(&labelled.text).map_err(|error| error.to_string())?.vector;
            let put = store.put(&document, labelled.text.as_bytes(), &[chunk], &[vector]);
            put.map(|_| 1).map_err(|error| error.to_string())
        };
        let document =
            |id: &str, text: &str| LabelledDocument { id: id.to_owned(), text: text.to_owned(), ..LabelledDocument::default() };
        let query = |text: &str, relevant: &str| LabelledQuery {
            id: text.to_owned(),
            text: text.to_owned(),
            relevance: BTreeMap::from([(relevant.to_owned(), 1)]),
            ..LabelledQuery::default()
        };
        let dataset = Dataset {
            name: "small".to_owned(),
            documents: vec![
                document("flow", "The strainer is clogged when the flow is too low."),
                document("warranty", "The guarantee covers five years."),
            ],
            queries: vec![query("How long is the warranty?", "warranty"), query("clogged strainer", "nowhere")],
        };
        let retriever = Retriever::new(store.clone(), std::sync::Arc::new(crate::Encoder(embedder.clone())));
        let report = measure(&dataset, &retriever, "eval", &mut ingest).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        for (key, expected) in [("ndcg@10", 0.5), ("recall@5", 0.5), ("recall@100", 0.5), ("mrr", 0.5), ("chunks", 2.0)] {
            assert!((json[key].as_f64().unwrap() - expected).abs() < 1e-9, "{key}: {json}");
        }
        assert!(report.query_ms_p50 > 0.0 && report.ingest_chunks_per_s > 0.0);
    }
}
