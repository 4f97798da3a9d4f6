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
    let config = &loaded.config;
    print_line(&format!("# node in use: {}", config.node_name()));
    for (what, path) in
        [("data directory", config.data_dir()), ("generator", config.generator_path()), ("embedder", config.embedder_path())]
    {
        print_line(&format!("# {what} in use: {}", path.display()));
    }
    print_line(text.trim_end());
    Ok(ExitCode::SUCCESS)
}
