//! `vademecum eval`: retrieval and answers on a labelled set in BEIR format.

use super::{Common, Failure, Outcome, positive, print_json, print_line, progress_bar, runtime};
use crate::assemble::Rooms;
use crate::config::Config;
use answer::Precompute;
use answer::eval::{self, AnswerReport, Asking, Dataset, LabelledDocument, RetrievalReport};
use library::ingest::Source;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use wire::new_id;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with corpus.jsonl, queries.jsonl and qrels/test.tsv
    dir: PathBuf,
    /// Also answer the questions that have accepted answers, and score them
    #[arg(long)]
    answers: bool,
    /// Ask at most this many questions, evenly spread over the set (0: all)
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive())]
    max_tokens: usize,
    /// Show each question and answer on stderr
    #[arg(long)]
    show: bool,
}

#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    retrieval: RetrievalReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<AnswerReport>,
}

/// The directory of a temporary store; dropping it deletes the directory.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("vademecum-eval-{}", new_id())))
    }

    /// The configuration with its data in this directory, and the same models.
    pub(super) fn config(&self, config: &Config) -> Config {
        Config {
            data_dir: self.0.clone(),
            embedder: crate::config::Embedder { path: config.embedder_path(), ..config.embedder.clone() },
            model: crate::config::Model { generator: config.generator_path(), ..config.model.clone() },
            ..config.clone()
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Puts a set's document into a collection; returns the number of its chunks.
pub(super) fn ingest(rooms: &Rooms, collection: &str, document: &LabelledDocument) -> Result<u32, String> {
    let source = Source {
        id: document.id.clone(),
        name: document.id.clone(),
        media_type: Some("text/plain".into()),
        bytes: document.text.clone().into_bytes(),
        title: (!document.title.is_empty()).then(|| document.title.clone()),
        ..Source::default()
    };
    rooms.pipeline.put(collection, source).map(|outcome| outcome.chunks).map_err(|e| e.to_string())
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    let dataset = Dataset::read(&args.dir).map_err(|e| Failure::Other(e.to_string()))?;
    let scratch = Scratch::new();
    let config = scratch.config(config);
    let rooms = Rooms::open(&config)?;
    let bar = progress_bar(dataset.documents.len() as u64, "{bar:30} {pos}/{len} documents ({elapsed} gone, {eta} left)");
    let mut put = |document: &LabelledDocument| {
        bar.inc(1);
        ingest(&rooms, &config.collection, document)
    };
    let retrieval =
        eval::measure(&dataset, &rooms.retriever, &config.collection, &mut put).map_err(|e| Failure::Other(e.to_string()))?;
    bar.finish_and_clear();
    let answers = if args.answers { Some(answers(&config, args, &dataset, &rooms)?) } else { None };
    let whole = Whole { retrieval, answers };
    if common.json {
        print_json(&whole)?;
    } else {
        show(&whole);
    }
    Ok(ExitCode::SUCCESS)
}

fn answers(config: &Config, args: &Args, dataset: &Dataset, rooms: &Rooms) -> Result<AnswerReport, Failure> {
    let engine = crate::assemble::open_engine(config)?;
    let answerer = crate::assemble::answerer(config, rooms, engine)?;
    if config.model.precompute {
        let done = Precompute::all(answerer.clone()).map_err(|e| Failure::Other(e.to_string()))?;
        if let Some(why) = done.off {
            return Err(Failure::Other(format!("model.precompute: {why}")));
        }
    }
    let asking = Asking {
        collection: config.collection.clone(),
        top_k: config.answer.top_k,
        max_tokens: args.max_tokens,
        sampling: crate::assemble::sampling(config),
        limit: args.limit,
    };
    let with_answers = dataset.queries.iter().filter(|query| !query.answers.is_empty()).count();
    let asked = if args.limit == 0 { with_answers } else { args.limit.min(with_answers) };
    let bar = progress_bar(asked as u64, "{bar:30} {pos}/{len} questions ({elapsed} gone, {eta} left)");
    let mut each = |question: &str, answer: &wire::Answer| {
        bar.inc(1);
        if args.show {
            eprintln!("Q: {question}\nA: {} [found {}, confidence {:.2}]\n", answer.answer, answer.found, answer.confidence);
        }
    };
    let report =
        runtime()?.block_on(eval::answer(dataset, &answerer, &asking, &mut each)).map_err(|e| Failure::Other(e.to_string()))?;
    bar.finish_and_clear();
    Ok(report)
}

fn show(whole: &Whole) {
    let r = &whole.retrieval;
    print_line(&format!("{}: {} documents, {} chunks, {} queries", r.dataset, r.documents, r.chunks, r.queries));
    print_line(&format!(
        "  nDCG@10 {:.4}   recall@5 {:.4}   recall@100 {:.4}   MRR {:.4}",
        r.ndcg_at_10, r.recall_at_5, r.recall_at_100, r.mrr
    ));
    print_line(&format!(
        "  ingest {:.1} chunks/s   query p50 {:.1} ms, p95 {:.1} ms",
        r.ingest_chunks_per_s, r.query_ms_p50, r.query_ms_p95
    ));
    if let Some(a) = &whole.answers {
        print_line(&format!(
            "  {} answers: exact {:.3}   F1 {:.3}   contains {:.3}   contained or quoted {:.3}   abstained {:.3}",
            a.asked, a.exact_match, a.token_f1, a.contains, a.contains_or_quoted, a.abstained
        ));
        print_line(&format!(
            "  evidence p50 {:.0} ms   first token p50 {:.0} ms   total p50 {:.0} ms   prompt p50 {:.0} tokens",
            a.evidence_ms_p50, a.ttft_ms_p50, a.total_ms_p50, a.prompt_tokens_p50
        ));
    }
}
