//! `vademecum config`

use super::{Common, Failure, Outcome, print_json, print_line};
use crate::config::Loaded;
use std::process::ExitCode;

pub(super) fn run(loaded: &Loaded, common: &Common) -> Outcome {
    if common.json {
        print_json(&loaded.config)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = toml::to_string(&loaded.config).map_err(|e| Failure::Other(e.to_string()))?;
    for (key, origin) in &loaded.origins {
        print_line(&format!("# {key}: {origin}"));
    }
    print_line(text.trim_end());
    Ok(ExitCode::SUCCESS)
}
