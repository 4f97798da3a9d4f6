//! `vademecum model list`

use super::{catalogue, found};
use crate::cli::{Common, Outcome, print_json, print_line};
use crate::config::Loaded;
use crate::models::room::room;
use crate::models::{Kind, Model};
use llm::llama::available_memory;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A known model on this machine.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    model: &'a Model,
    /// Whether it fits the memory.
    fits: bool,
    /// Whether it is the one to take here.
    recommended: bool,
    /// Its file, if it is here.
    path: Option<PathBuf>,
    /// Whether the configuration uses it.
    in_use: bool,
}

pub(super) fn run(loaded: &Loaded, common: &Common) -> Outcome {
    let catalogue = catalogue(loaded)?;
    let memory = available_memory();
    let recommended = catalogue.recommended(&memory).map(|model| model.name.as_str());
    let real = |path: &Path| path.canonicalize().ok();
    let used = [loaded.config.generator_path(), loaded.config.embedder_path()].map(|path| real(&path));
    let rows: Vec<Row> = catalogue
        .models()
        .map(|model| {
            let path = found(loaded, &model.file);
            let in_use = path.as_deref().and_then(real).is_some_and(|path| used.contains(&Some(path)));
            Row { fits: model.fits(&memory), recommended: recommended == Some(&model.name), path, in_use, model }
        })
        .collect();
    if common.json {
        print_json(&serde_json::json!({ "memory_bytes": memory.total, "room_bytes": room(&memory), "models": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_line(&format!("This machine has {} MB of memory, and room for a model of {} MB.", mb(memory.total), mb(room(&memory))));
    for (kind, title) in [(Kind::Generator, "generator"), (Kind::Encoder, "encoder")] {
        print_line("");
        print_line(&format!("{title:<24}{:>8}{:>10}  {:<21}{:<31}languages", "MB", "memory", "", "licence"));
        for row in rows.iter().filter(|row| row.model.kind == kind) {
            let marks = [
                (row.in_use, "in use"),
                (row.path.is_some() && !row.in_use, "here"),
                (row.recommended, "recommended"),
                (!row.fits, "too large"),
            ];
            let state = marks.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect::<Vec<_>>().join(", ");
            let Model { name, bytes, memory_mb, licence, languages, .. } = row.model;
            print_line(&format!("{name:<24}{:>8}{memory_mb:>10}  {state:<21}{licence:<31}{languages}", mb(*bytes)));
        }
    }
    print_line("");
    print_line("`vademecum model pull NAME` fetches a model, `vademecum model use NAME` configures it.");
    Ok(ExitCode::SUCCESS)
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}
