//! `vademecum model pull`

use super::{BYTES, catalogue, unknown};
use crate::cli::{Common, Failure, Outcome, print_json, print_line, progress_bar};
use crate::config::Loaded;
use crate::models::source::file_of;
use crate::models::{Catalogue, Checked, Kind, Model, Pulled, Puller, Source, room};
use llm::gguf::Gguf;
use llm::llama::available_memory;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name of `vademecum model list`, or the address of a GGUF file
    #[arg(value_name = "NAME|URL")]
    model: String,
    /// A mirror of Hugging Face, or a folder with the files [default: $HF_ENDPOINT, else https://huggingface.co]
    #[arg(long, value_name = "URL|DIR")]
    from: Option<String>,
    /// The folder to fill [default: for root the service's, else the user's cache]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The SHA-256 that the file of an address must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Leave out the encoder that belongs to the model
    #[arg(long)]
    alone: bool,
    /// Longest silence of the server
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    silence: u64,
}

/// One model in the output.
#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    pulled: Pulled,
}

pub(super) fn run(loaded: &Loaded, common: &Common, args: &Args) -> Outcome {
    let dir = args.to.clone().unwrap_or_else(|| loaded.config.pull_dir());
    let bar = progress_bar(0, BYTES);
    let mut progress = |name: &str, done: u64, total: Option<u64>| {
        if bar.message() != name {
            bar.set_message(name.to_owned());
        }
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
    };
    let source = |from: Option<&str>| Source::new(from, Duration::from_secs(args.silence)).map_err(Failure::Usage);
    let mut rows = Vec::new();
    if args.model.contains("://") {
        if args.from.is_some() {
            return Err(Failure::Usage("--from goes with a name; an address says itself where the file is".into()));
        }
        let sum = args.sha256.as_ref().map(|sum| sum.to_ascii_lowercase());
        if sum.as_ref().is_some_and(|sum| !crate::models::catalogue::is_sha256(sum)) {
            return Err(Failure::Usage("--sha256: write 64 hexadecimal digits".into()));
        }
        let (file, url) = file_of(&args.model).map_err(Failure::Usage)?;
        let source = source(None)?;
        let mut puller = Puller { source: &source, dir: &dir, progress: &mut progress };
        let pulled = puller.address(&url, &file, sum.as_deref())?;
        rows.push(Row { name: file, pulled });
    } else {
        if args.sha256.is_some() {
            return Err(Failure::Usage("--sha256 goes with an address; the catalogue knows the sums of its models".into()));
        }
        let catalogue = catalogue(loaded)?;
        let model = catalogue.get(&args.model).ok_or_else(|| unknown(&catalogue, &args.model))?;
        warn_of_memory(model);
        let source = source(args.from.as_deref())?;
        let mut puller = Puller { source: &source, dir: &dir, progress: &mut progress };
        let encoder = encoder_of(model, &catalogue, loaded).filter(|_| !args.alone);
        for model in [Some(model), encoder].into_iter().flatten() {
            let pulled = puller.model(model)?;
            rows.push(Row { name: model.name.clone(), pulled });
        }
    }
    bar.finish_and_clear();
    if common.json {
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    for row in &rows {
        print_line(&line(row));
    }
    if let Some(row) = rows.first() {
        let name = if args.to.is_some() { row.pulled.path.display().to_string() } else { row.name.clone() };
        print_line(&format!("`vademecum model use {name}` configures it."));
    }
    Ok(ExitCode::SUCCESS)
}

/// The encoder to fetch along with a generator: the one that belongs to it, unless the configuration finds one.
fn encoder_of<'a>(model: &Model, catalogue: &'a Catalogue, loaded: &Loaded) -> Option<&'a Model> {
    let encoder = catalogue.get(model.encoder.as_deref()?)?;
    let here = Gguf::open(&loaded.config.embedder_path()).is_ok();
    (!here).then_some(encoder)
}

/// A clear word before the download. It goes on: the model may be meant for another machine.
fn warn_of_memory(model: &Model) {
    let memory = available_memory();
    if model.kind == Kind::Generator && !model.fits(&memory) {
        let word = room::too_large_for(&model.name, model.memory_mb.saturating_mul(1_000_000), &memory);
        eprintln!("note: {word}; `vademecum model list` shows those that fit");
    }
}

/// The outcome for people.
fn line(row: &Row) -> String {
    use crate::models::Outcome::{Present, Pulled};
    let (path, mb) = (row.pulled.path.display(), row.pulled.bytes / 1_000_000);
    let how = match (row.pulled.outcome, row.pulled.checked) {
        (Present, _) => return format!("{}: is here already: {path} ({mb} MB)", row.name),
        (Pulled, Checked::Known) => "its SHA-256 is right".to_owned(),
        (Pulled, Checked::Hub) => "its SHA-256 is the one that the hub names".to_owned(),
        (Pulled, Checked::No) => {
            let sum = row.pulled.sha256.as_ref().map(|sum| format!("; its own is {sum}")).unwrap_or_default();
            format!("not checked: no sum is known{sum}")
        }
    };
    let resumed = match row.pulled.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} MB of them from an earlier try", bytes / 1_000_000),
    };
    format!("{}: {path} ({mb} MB{resumed}); {how}", row.name)
}
