//! `vademecum config`

use super::{Common, Outcome, print_json, print_line};
use crate::config::{self, Loaded};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a configuration file instead, with every key commented out at its default
    #[arg(long, conflicts_with = "json")]
    template: bool,
    /// Print docs/configuration.md instead
    #[arg(long, hide = true, conflicts_with_all = ["json", "template"])]
    reference: bool,
}

pub(super) fn run(loaded: &Loaded, common: &Common, args: &Args) -> Outcome {
    let text = match args {
        Args { template: true, .. } => config::template(),
        Args { reference: true, .. } => config::reference(),
        _ if common.json => {
            print_json(&loaded.config)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => config::effective(loaded),
    };
    print_line(text.trim_end());
    Ok(ExitCode::SUCCESS)
}
