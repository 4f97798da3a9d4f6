//! `vademecum model use`

use super::{catalogue, found, kind_of, unknown};
use crate::cli::{Common, Failure, Outcome, print_json, print_line};
use crate::config::{Loaded, SYSTEM_CONFIG, write_keys};
use crate::models::catalogue::is_gguf;
use crate::models::{Catalogue, Kind, room};
use llm::gguf::Gguf;
use llm::llama::available_memory;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A name of `vademecum model list`, or a GGUF file
    #[arg(value_name = "NAME|FILE")]
    model: String,
    /// The encoder to use with it, by name or file [default: the one in use, else the one that belongs to the model]
    #[arg(long, value_name = "NAME|FILE")]
    encoder: Option<String>,
    /// Print the lines of the configuration, and write nothing
    #[arg(long)]
    print: bool,
}

pub(super) fn run(loaded: &Loaded, common: &Common, args: &Args) -> Outcome {
    let catalogue = catalogue(loaded)?;
    let (path, gguf) = resolved(&args.model, &catalogue, loaded)?;
    let (generator, encoder) = match kind_of(&gguf)? {
        Kind::Encoder if args.encoder.is_some() => {
            return Err(Failure::Usage(format!("{} is an encoder itself; leave out --encoder", path.display())));
        }
        Kind::Encoder => (None, Some(path)),
        Kind::Generator => {
            if let Some(word) = room::too_large(&gguf, loaded.config.model.context, &available_memory()) {
                eprintln!("note: {word}; `vademecum model list` shows models that fit");
            }
            (Some(path), encoder_for(args, &catalogue, loaded)?)
        }
    };
    let mut lines: Vec<(&str, Option<String>)> = Vec::new();
    let text = |path: &Path| path.display().to_string();
    lines.extend(generator.as_deref().map(|path| ("model.generator", Some(text(path)))));
    if let Some(encoder) = &encoder {
        lines.push(("embedder.path", Some(text(encoder))));
        // A tokenizer belongs to its encoder. The new one is inside the file or beside it.
        lines.push(("embedder.tokenizer", None));
    }
    let file = if args.print { None } else { Some(target(loaded, &lines)?) };
    if let Some(file) = &file {
        write_keys(file, &lines)?;
    }
    let re_embed = encoder.as_deref().is_some_and(|encoder| is_new(encoder, loaded)) && has_library(loaded);
    if common.json {
        print_json(&serde_json::json!({
            "generator": generator, "encoder": encoder, "file": file, "restart": file.is_some(), "re_embed": re_embed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in &lines {
        if let Some(value) = value {
            print_line(&format!("{key} = {}", toml::Value::String(value.clone())));
        }
    }
    let Some(file) = file else { return Ok(ExitCode::SUCCESS) };
    print_line(&format!("is now in {}.", file.display()));
    for (key, _) in lines.iter().filter(|(key, _)| loaded.is_named(key)) {
        let origin = loaded.origins.get(*key).map_or("", String::as_str);
        print_line(&format!("But {origin} sets {key} too, and wins over the file."));
    }
    if generator.is_some() && encoder.is_none() && !loaded.config.embedder_path().exists() {
        print_line(
            "There is no encoder yet: `vademecum model pull all-minilm-l6-v2`, then `vademecum model use all-minilm-l6-v2`.",
        );
    }
    if re_embed {
        print_line("The library was made with another encoder: stop the daemon and run `vademecum ingest --re-embed`.");
    }
    print_line("Restart the daemon for it: sudo systemctl restart vademecum");
    Ok(ExitCode::SUCCESS)
}

/// The encoder to write beside a generator; `None`: the one in use stays.
fn encoder_for(args: &Args, catalogue: &Catalogue, loaded: &Loaded) -> Result<Option<PathBuf>, Failure> {
    if let Some(name) = &args.encoder {
        let (path, gguf) = resolved(name, catalogue, loaded)?;
        return match kind_of(&gguf)? {
            Kind::Encoder => Ok(Some(path)),
            Kind::Generator => Err(Failure::Usage(format!("{} is a generator, not an encoder", path.display()))),
        };
    }
    // A library belongs to its encoder, so a working one is not exchanged unasked.
    if Gguf::open(&loaded.config.embedder_path()).is_ok() {
        return Ok(None);
    }
    let own = catalogue.get(&args.model).and_then(|model| catalogue.get(model.encoder.as_deref()?));
    Ok(own.and_then(|encoder| found(loaded, &encoder.file)).map(absolute))
}

/// The file of a name or path, opened.
pub(super) fn resolved(name: &str, catalogue: &Catalogue, loaded: &Loaded) -> Result<(PathBuf, Gguf), Failure> {
    let path = match catalogue.get(name) {
        Some(model) => found(loaded, &model.file)
            .ok_or_else(|| Failure::Other(format!("{name} is not here; `vademecum model pull {name}` fetches it")))?,
        None if Path::new(name).is_file() => PathBuf::from(name),
        None if is_gguf(name) && !name.contains('/') => {
            found(loaded, name).ok_or_else(|| Failure::Other(format!("{name} is in no folder of models; give its path")))?
        }
        None => return Err(unknown(catalogue, name)),
    };
    let path = absolute(path);
    let gguf = Gguf::open(&path).map_err(|error| Failure::Other(error.to_string()))?;
    Ok((path, gguf))
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The configuration file to write: the one in use, else for root the system's.
fn target(loaded: &Loaded, lines: &[(&str, Option<String>)]) -> Result<PathBuf, Failure> {
    if let Some(file) = &loaded.file {
        return Ok(file.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(SYSTEM_CONFIG));
    }
    let flags = lines.iter().filter_map(|(key, value)| Some(format!("--set {key}={}", value.as_ref()?)));
    Err(Failure::Other(format!(
        "there is no configuration file; run it with sudo to write {SYSTEM_CONFIG}, name one with --config, or give the flags {}",
        flags.collect::<Vec<_>>().join(" ")
    )))
}

fn is_new(encoder: &Path, loaded: &Loaded) -> bool {
    let fingerprint = |path: &Path| Gguf::open(path).ok().map(|gguf| gguf.fingerprint());
    fingerprint(encoder) != fingerprint(&loaded.config.embedder_path())
}

fn has_library(loaded: &Loaded) -> bool {
    loaded.config.data_dir().join("db").exists()
}
