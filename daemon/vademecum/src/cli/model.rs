//! `vademecum model`: shows model files, converts encoders.

use super::{Common, Failure, Outcome, print_json, print_line, progress_bar};
use llm::gguf::{Gguf, Precision, convert, report};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
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

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    match &args.action {
        Action::Show { file } => {
            let report = report(&Gguf::open(file).map_err(|e| Failure::Other(e.to_string()))?);
            if common.json { print_json(&report)? } else { print_line(&report.to_string()) }
        }
        Action::Convert { dir, out, kind } => {
            let precision = match kind {
                Type::F16 => Precision::F16,
                Type::Q8_0 => Precision::Q8_0,
            };
            let bar = progress_bar(0, "{bar:30} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left)");
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
