//! `vademecum calibrate`: fits the confidence to the owner's library, or to labelled sets.

use super::eval::{Scratch, ingest};
use super::{Common, Failure, Outcome, print_json, print_line, progress_bar, runtime};
use crate::assemble::Rooms;
use crate::config::Config;
use answer::eval::{self, Dataset, Examples, Judged, Measured};
use http::Client;
use library::retrieve::Fitted;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Fewest examples of each kind; fewer say too little.
const LEAST_EXAMPLES: usize = 30;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Fit to a labelled set in BEIR form instead of questions made from the library (repeatable: then each set's questions
    /// are foreign to the others)
    #[arg(long, value_name = "DIR")]
    labelled: Vec<PathBuf>,
    /// Questions that the library does not answer, one a line [default: a list on many subjects]
    #[arg(long, value_name = "FILE")]
    foreign: Option<PathBuf>,
    /// Measure, but keep nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep the constants even if they measure worse than those in use
    #[arg(long)]
    force: bool,
    /// Draw the ROC curve of the constants in use into an SVG file
    #[arg(long, value_name = "FILE")]
    roc: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    collection: &'a str,
    kept: bool,
    #[serde(flatten)]
    judged: &'a Judged,
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    let other = |e: eval::EvalError| Failure::Other(e.to_string());
    let foreign = match &args.foreign {
        Some(file) => questions(file)?,
        None => eval::foreign_questions(),
    };
    let (_scratch, rooms) = open(config, args)?;
    let examples = if args.labelled.is_empty() {
        let bar = progress_bar(0, "{spinner} {pos} questions ({elapsed} gone)");
        let made = eval::from_library(&rooms.store, &rooms.embedder, &rooms.retriever, &config.collection, &foreign, &mut || {
            bar.inc(1);
        });
        bar.finish_and_clear();
        made.map_err(other)?
    } else {
        labelled(config, args, &rooms, &foreign)?
    };
    for (kind, count) in [("answerable", examples.answerable.len()), ("foreign", examples.foreign.len())] {
        if count < LEAST_EXAMPLES {
            return Err(Failure::Other(format!(
                "only {count} {kind} questions, but {LEAST_EXAMPLES} are needed; the defaults stay in use \
                 (ingest more documents, or give a labelled set with --labelled)"
            )));
        }
    }
    let current = rooms.retriever.calibration(&config.collection).map_err(|e| Failure::Other(e.to_string()))?;
    if let Some(file) = &args.roc {
        std::fs::write(file, eval::roc_svg(&examples, &current))
            .map_err(|e| Failure::Other(format!("cannot write {}: {e}", file.display())))?;
    }
    let judged = eval::judge(&examples, &current, config.answer.threshold);
    let better = judged.is_better(args.labelled.is_empty());
    let keep = !args.dry_run && (better || args.force);
    if keep {
        let fitted = Fitted {
            calibration: judged.calibration,
            embedder: rooms.embedder.fingerprint().to_owned(),
            answerable: judged.answerable,
            foreign: judged.foreign,
            roc_auc: judged.fitted.roc_auc,
        };
        rooms.retriever.keep_fitted(&config.collection, &fitted).map_err(|e| Failure::Other(e.to_string()))?;
    }
    if common.json {
        print_json(&Report { collection: &config.collection, kept: keep, judged: &judged })?;
    } else {
        show(&judged, config.answer.threshold);
        print_line(match (keep, better) {
            (true, _) => "kept: these constants now judge the questions to this collection",
            (false, true) => "not kept (--dry-run)",
            (false, false) => "not kept: no better than the constants in use (--force keeps them anyway)",
        });
    }
    // A worse fit, unless asked for, is a failure: scripts must see that nothing changed.
    Ok(if keep || args.dry_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Opens the library to calibrate. A mere measurement on sets gets an empty, temporary library.
fn open(config: &Config, args: &Args) -> Result<(Option<Scratch>, Rooms), Failure> {
    if args.dry_run && !args.labelled.is_empty() {
        let scratch = Scratch::new();
        let rooms = Rooms::open(&scratch.config(config))?;
        return Ok((Some(scratch), rooms));
    }
    if runtime()?.block_on(Client::connect(&config.control_socket()))?.is_some() {
        return Err(Failure::Other(format!(
            "a daemon holds the library in {}; stop it, calibrate, and start it again",
            config.data_dir().display()
        )));
    }
    super::need_library(config)?;
    Ok((None, super::rooms(config)?))
}

fn questions(file: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(file).map_err(|e| Failure::Other(format!("cannot read {}: {e}", file.display())))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Examples from labelled sets, each ingested into its own collection of a temporary store.
fn labelled(config: &Config, args: &Args, rooms: &Rooms, foreign: &[String]) -> Result<Examples, Failure> {
    let other = |e: eval::EvalError| Failure::Other(e.to_string());
    let sets = args.labelled.iter().map(|dir| Dataset::read(dir)).collect::<Result<Vec<_>, _>>().map_err(other)?;
    let sets: Vec<(Dataset, String)> = sets.into_iter().zip(0..).map(|(set, at)| (set, format!("set-{at}"))).collect();
    let scratch = Scratch::new();
    let scratch_config = scratch.config(config);
    let store = crate::assemble::open_store(&scratch_config)?;
    store.bind_embedder(&crate::assemble::embedder_id(&rooms.embedder)).map_err(crate::assemble::ServiceError::from)?;
    let scratch_rooms = Rooms::join(&scratch_config, store, rooms.embedder.clone());
    let documents = sets.iter().map(|(set, _)| set.documents.len()).sum::<usize>();
    let bar = progress_bar(documents as u64, "{bar:30} {pos}/{len} documents ({elapsed} gone, {eta} left)");
    for (set, collection) in &sets {
        for document in &set.documents {
            ingest(&scratch_rooms, collection, document)
                .map_err(|reason| other(eval::EvalError::Ingest { id: document.id.clone(), reason }))?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let asked = sets.iter().map(|(set, _)| set.queries.len()).sum::<usize>();
    let bar = progress_bar(asked as u64, "{bar:30} {pos}/{len} questions ({elapsed} gone, {eta} left)");
    let examples = eval::from_sets(&sets, foreign, &scratch_rooms.retriever, &mut || bar.inc(1));
    bar.finish_and_clear();
    examples.map_err(other)
}

fn show(judged: &Judged, threshold: f32) {
    print_line(&format!(
        "{} answerable questions, {} foreign ones, {} whose documents were left out",
        judged.answerable, judged.foreign, judged.near
    ));
    let line = |name: &str, m: &Measured| {
        let near = m.roc_auc_near.map_or_else(String::new, |auc| format!(" ({auc:.3} with documents left out)"));
        let refused_near = m.refused_near.map_or_else(String::new, |share| format!(", {:.1} % of those left out", share * 100.0));
        print_line(&format!(
            "{name}  area under ROC {:.4}{near}   log loss {:.4}   95 % kept at {:.2}: {:.1} % of the foreign refused",
            m.roc_auc,
            m.log_loss,
            m.threshold_at_95,
            m.refused_at_95 * 100.0
        ));
        print_line(&format!(
            "         at {threshold:.2}: {:.1} % kept, {:.1} % of the foreign refused{refused_near}",
            m.kept * 100.0,
            m.refused * 100.0
        ));
    };
    print_line(
        "(area under ROC: 1 where every answerable question is more sure than every foreign one, 0.5 by chance; log loss: 0 is best; \
         kept: answerable ones that are answered; refused: the others, told `found: false`)",
    );
    line("in use ", &judged.current);
    line("fitted ", &judged.fitted);
    let c = &judged.calibration;
    print_line(&format!(
        "constants: bias {:.3}, dense {:.3}, coverage {:.3}, margin {:.3}, statement {:.3}, told {:.3}",
        c.bias, c.weights[0], c.weights[1], c.weights[2], c.weights[3], c.weights[4]
    ));
}
