//! `vademecum eval`: retrieval and answers on a labelled set in BEIR format.

use super::{Common, Failure, Outcome, positive, print_json, print_line, progress_bar, runtime};
use crate::assemble::Rooms;
use crate::config::Config;
use answer::Precompute;
use answer::eval::{self, AnswerReport, Asked, Asking, Dataset, Figures, LabelledDocument, NearReport, RetrievalReport};
use library::ingest::Source;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wire::new_id;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with corpus.jsonl, queries.jsonl and qrels/test.tsv
    dir: PathBuf,
    /// Also answer the questions that have accepted answers, and score them
    #[arg(long)]
    answers: bool,
    /// Also ask every question with the documents hidden that answer it, and count the refusals; with --answers the generator
    /// is asked too
    #[arg(long)]
    near: bool,
    /// Write a line of JSON for each question that --answers or --near asks: reply, gold answers, scores, inputs of the confidence
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    near: Option<NearReport>,
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
        media_type: Some(document.media_type.clone().unwrap_or_else(|| "text/plain".into())),
        bytes: document.text.clone().into_bytes(),
        title: (!document.title.is_empty()).then(|| document.title.clone()),
        ..Source::default()
    };
    rooms.pipeline.put(collection, source).map(|outcome| outcome.chunks).map_err(|e| e.to_string())
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    if args.dump.is_some() && !args.answers && !args.near {
        return Err(Failure::Usage("--dump writes the questions that are asked; add --answers or --near".into()));
    }
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
    let (answers, near) = if args.answers || args.near { ask(&config, args, &dataset, &rooms)? } else { (None, None) };
    let whole = Whole { retrieval, answers, near };
    if common.json {
        print_json(&whole)?;
    } else {
        show(&whole);
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(
    config: &Config,
    args: &Args,
    dataset: &Dataset,
    rooms: &Rooms,
) -> Result<(Option<AnswerReport>, Option<NearReport>), Failure> {
    let other = |e: eval::EvalError| Failure::Other(e.to_string());
    let engine = crate::assemble::open_engine(config)?;
    let answerer = crate::assemble::answerer(config, rooms, engine)?;
    if args.answers && config.model.precompute {
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
        answers: args.answers,
        near: args.near,
    };
    let mut dump = args.dump.as_deref().map(Dump::open).transpose()?;
    let count = eval::chosen(dataset, &asking).len();
    let bar = progress_bar(count as u64, "{bar:30} {pos}/{len} questions ({elapsed} gone, {eta} left)");
    let mut each = |asked: &Asked| {
        bar.inc(1);
        if let Some(dump) = &mut dump {
            dump.write(asked);
        }
        if args.show {
            let answer = &asked.reply.answer;
            let (text, found, sure) = (&answer.answer, answer.found, answer.confidence);
            eprintln!("Q: {}\nA: {text} [found {found}, confidence {sure:.2}]", asked.question);
            if let Some(near) = asked.near.as_ref().map(|near| &near.answer) {
                eprintln!("Hidden: {} [found {}, confidence {:.2}]", near.answer, near.found, near.confidence);
            }
            eprintln!();
        }
    };
    let runtime = runtime()?;
    let asked = runtime.block_on(eval::ask(dataset, &answerer, &asking, &mut each)).map_err(other)?;
    bar.finish_and_clear();
    dump.map_or(Ok(()), Dump::close)?;
    let near = if args.near {
        let foreign = runtime.block_on(eval::ask_foreign(&answerer, &asking)).map_err(other)?;
        Some(NearReport::of(&asked, &foreign, answerer.threshold()))
    } else {
        None
    };
    Ok((args.answers.then(|| AnswerReport::of(&asked)), near))
}

/// A file of JSON lines. The first failure is kept, so that the questions go on and the figures are not lost.
struct Dump {
    path: PathBuf,
    written: std::io::Result<BufWriter<File>>,
}

impl Dump {
    fn open(path: &Path) -> Result<Dump, Failure> {
        let file = File::create(path).map_err(|e| Self::failed(path, &e))?;
        Ok(Dump { path: path.to_owned(), written: Ok(BufWriter::new(file)) })
    }

    fn write(&mut self, asked: &Asked) {
        if let Ok(file) = &mut self.written {
            let line = serde_json::to_string(asked).map_err(std::io::Error::from);
            if let Err(error) = line.and_then(|line| writeln!(file, "{line}")) {
                self.written = Err(error);
            }
        }
    }

    fn close(self) -> Result<(), Failure> {
        self.written.and_then(|mut file| file.flush()).map_err(|e| Self::failed(&self.path, &e))
    }

    fn failed(path: &Path, error: &std::io::Error) -> Failure {
        Failure::Other(format!("cannot write {}: {error}; name a file in a folder that you may write", path.display()))
    }
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
        print_line(&figures(&format!("{} answers", a.figures.asked), &a.figures));
        for (kind, figures_of_kind) in &a.kinds {
            print_line(&figures(&format!("  {} {kind}", figures_of_kind.asked), figures_of_kind));
        }
        if let Some(right) = a.abstained_right {
            print_line(&format!("  {} unanswerable questions: refused {right:.3}", a.unanswerable));
        }
        print_line(&format!(
            "  evidence p50 {:.0} ms   first token p50 {:.0} ms   total p50 {:.0} ms   prompt p50 {:.0} tokens",
            a.evidence_ms_p50, a.ttft_ms_p50, a.total_ms_p50, a.prompt_tokens_p50
        ));
    }
    if let Some(n) = &whole.near {
        print_line(&format!(
            "  {} questions with their documents hidden: at {:.2} kept {:.3}, refused {:.3}   95 % kept at {:.2}: refused {:.3}   \
             area under ROC {:.3}",
            n.asked, n.threshold, n.kept, n.refused, n.threshold_at_95, n.refused_at_95, n.roc_auc
        ));
        print_line(&format!(
            "  {} questions on other subjects: refused {:.3}, at the second threshold {:.3}",
            n.foreign, n.foreign_refused, n.foreign_refused_at_95
        ));
    }
}

/// The figures of answers on one line; those that a set does not have are left out.
fn figures(name: &str, f: &Figures) -> String {
    let always = [
        ("F1", f.token_f1),
        ("ROUGE-L", f.rouge_l),
        ("recall", f.gold_recall),
        ("exact", f.exact_match),
        ("contains", f.contains),
        ("or quoted", f.contains_or_quoted),
    ];
    let some = [
        ("by the model", Some(f.by_model)),
        ("supported", f.supported),
        ("own support", f.own_support),
        ("turned negations", Some(f.contradicts_negation)),
        ("exchanged numbers", Some(f.contradicts_number)),
        ("steps in order", f.steps_in_order),
        ("verdict right", f.verdict_right),
        ("verdict opposite", f.verdict_opposite),
        ("verdict outright", f.verdict_outright),
        ("wanted words", f.words_held),
        ("abstained", Some(f.abstained)),
    ];
    let all = always.into_iter().chain(some.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let all: Vec<String> = all.map(|(name, value)| format!("{name} {value:.3}")).collect();
    format!("  {name}: {}", all.join("   "))
}
