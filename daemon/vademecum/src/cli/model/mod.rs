//! `vademecum model`: lists, fetches and chooses models, shows model files, converts encoders.

mod list;
mod pull;
mod use_model;

use super::{Common, Failure, Outcome, print_json, print_line, progress_bar};
use crate::config::{Loaded, SYSTEM_CONFIG};
use crate::models::{Catalogue, Kind};
use llm::gguf::{Gguf, ModelKind, Precision, convert, report};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Template of the bar for bytes.
const BYTES: &str = "{msg} {bar:30} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the known models: size, licence, memory, and which of them fit this machine
    List,
    /// Fetch a model and the encoder that belongs to it
    Pull(pull::Args),
    /// Write a model into the configuration
    Use(use_model::Args),
    /// Show the contents of a GGUF file
    Show {
        /// The file
        file: PathBuf,
    },
    /// Convert a Hugging Face directory of a BERT-family sentence encoder to GGUF
    Convert {
        /// The directory: config.json, model.safetensors, tokenizer.json
        dir: PathBuf,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The format of the weights
        #[arg(long = "type", value_enum, default_value_t = Type::Q8_0, value_name = "TYPE")]
        kind: Type,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Type {
    /// 16-bit floating point: practically exact
    F16,
    /// 8-bit blocks: half the size, a little less exact
    #[value(name = "q8_0")]
    Q8_0,
}

pub(super) fn run(loaded: &Loaded, common: &Common, args: &Args) -> Outcome {
    match &args.action {
        Action::List => return list::run(loaded, common),
        Action::Pull(args) => return pull::run(loaded, common, args),
        Action::Use(args) => return use_model::run(loaded, common, args),
        Action::Show { file } => {
            let report = report(&Gguf::open(file).map_err(|e| Failure::Other(e.to_string()))?);
            if common.json { print_json(&report)? } else { print_line(&report.to_string()) }
        }
        Action::Convert { dir, out, kind } => {
            let precision = match kind {
                Type::F16 => Precision::F16,
                Type::Q8_0 => Precision::Q8_0,
            };
            let bar = progress_bar(0, BYTES);
            let mut progress = |done: u64, total: u64| {
                bar.set_length(total);
                bar.set_position(done);
            };
            let converted = convert(dir, out, precision, &mut progress).map_err(|e| Failure::Other(e.to_string()))?;
            bar.finish_and_clear();
            if common.json {
                print_json(&converted)?;
            } else {
                for note in &converted.notes {
                    eprintln!("note: {note}");
                }
                print_line(&converted.report.to_string());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The known models: the shipped ones, and those of `models.d` beside the configuration.
pub(super) fn catalogue(loaded: &Loaded) -> Result<Catalogue, Failure> {
    let config = loaded.file.as_deref().unwrap_or(Path::new(SYSTEM_CONFIG));
    let dir = config.parent().unwrap_or(Path::new("/")).join("models.d");
    Catalogue::load(&dir).map_err(|error| Failure::Other(error.to_string()))
}

/// The file of a generator: a path, a name of the catalogue, or a file name in one of the folders of models.
pub(super) fn generator_file(loaded: &Loaded, name: &str) -> Result<PathBuf, Failure> {
    use_model::resolved(name, &catalogue(loaded)?, loaded).map(|(path, _)| path)
}

/// The folders of models, the one that `pull` fills first.
fn places(loaded: &Loaded) -> Vec<PathBuf> {
    let mut places = vec![loaded.config.pull_dir()];
    places.extend(loaded.config.model_places());
    places.dedup();
    places
}

/// A file of this name in the folders of models.
fn found(loaded: &Loaded, file: &str) -> Option<PathBuf> {
    places(loaded).into_iter().map(|dir| dir.join(file)).find(|path| path.is_file())
}

fn unknown(catalogue: &Catalogue, name: &str) -> Failure {
    let hint = match catalogue.similar(name).as_slice() {
        [] => "`vademecum model list` lists the names; an address of a .gguf file will do too".to_owned(),
        similar => format!("did you mean {}?", similar.join(", ")),
    };
    Failure::Usage(format!("no known model `{}`; {hint}", super::visible(name)))
}

/// The purpose of a model file; refuses other files.
fn kind_of(gguf: &Gguf) -> Result<Kind, Failure> {
    match gguf.kind() {
        ModelKind::Generator => Ok(Kind::Generator),
        ModelKind::Encoder(_) => Ok(Kind::Encoder),
        ModelKind::Other => {
            let path = gguf.path().display();
            Err(Failure::Other(format!(
                "{path} is neither a generator nor an encoder; `vademecum model show` shows its contents"
            )))
        }
    }
}
