//! The main job, measured from outside, beside the programs people use for it: documents in, questions over MQTT 5, answers out.
//!
//! `make bench` runs it. It says what it found and never judges: there is no time that it asserts. See `README.md`.

mod asking;
mod contenders;
mod engine;
mod evidence;
mod passages;
mod plain;
mod results;
mod set;
mod starts;
mod throughput;

use contenders::Site;
use llm::gguf::Gguf;
use llm::tune::Topology;
use serde_json::{Value, json};
use set::Set;
use std::fs;
use std::path::{Path, PathBuf};
use vademecum_benches::process::{Scratch, mosquitto};
use vademecum_benches::{Result, cache, peers, report};

const USAGE: &str = "usage: make bench [ARGS=\"-- [--quick] [--no-peers] [--generator FILE] [--beir DIR] [--questions N] [--starts N] [--threads N]\"]";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // How this program starts itself as the daemon's engine under measurement.
        ["engine", model, threads] => engine::serve(Path::new(model), threads),
        _ => run(&arguments),
    };
    if let Err(error) = done {
        eprintln!("bench: {error}");
        std::process::exit(1);
    }
}

/// How much is measured, and of what.
#[derive(Debug)]
struct Options {
    /// As little as shows that everything works.
    quick: bool,
    peers: bool,
    generator: Option<PathBuf>,
    beir: Option<PathBuf>,
    /// Pairs of questions.
    pairs: usize,
    starts: usize,
    threads: usize,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let mut options = Self {
            quick,
            peers: true,
            generator: None,
            beir: None,
            pairs: if quick { 2 } else { 10 },
            starts: if quick { 1 } else { 5 },
            threads: Topology::detect().usable(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().ok_or(USAGE);
            let number = |text: &String| text.parse().ok().filter(|n| *n > 0).ok_or(USAGE);
            match argument.as_str() {
                "--quick" => {}
                "--no-peers" => options.peers = false,
                "--generator" => options.generator = Some(value()?.into()),
                "--beir" => options.beir = Some(value()?.into()),
                "--questions" => options.pairs = number(value()?)?,
                "--starts" => options.starts = number(value()?)?,
                "--threads" => options.threads = number(value()?)?,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }

    /// Of the files that are written: what is not the default stands in it.
    fn name(&self) -> String {
        let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let parts = [
            Some("speed".to_owned()),
            self.beir.as_ref().and_then(stem),
            self.generator.as_ref().and_then(stem),
            self.quick.then(|| "quick".to_owned()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("-")
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let load_before = report::load()?;
    let cache = cache()?;
    let models = cache.join("models");
    let generator = options.generator.clone().unwrap_or_else(|| models.join("generator.gguf"));
    let embedder = models.join("embedder.gguf");
    let gguf = Gguf::open(&generator).map_err(|e| format!("{e}; `make setup` fetches the test models"))?;
    let bench = cache.join("bench");
    fs::create_dir_all(&bench)?;
    let python = if options.peers { peers::python(&bench, "speed") } else { None };
    let scratch = Scratch::within(&bench)?;
    let set = Set::prepare(options.beir.as_deref(), options.pairs, &embedder, &scratch.path().join("documents"))?;
    let (_broker, port) = mosquitto(scratch.path())?;
    let mut site = Site {
        program: contenders::program()?,
        python,
        llama: bench.join("llama/build/bin"),
        scratch: scratch.path().to_owned(),
        port,
        generator: fs::canonicalize(&generator)?,
        plain_prompt: gguf.chat_template().is_none(),
        embedder,
        threads: options.threads,
        max_tokens: if options.quick { 16 } else { 64 },
        passive: false,
    };

    let plain = plain::measure(&site, &gguf, options.quick)?;
    site.passive = plain.passive_wins();
    let ready = starts::measure(&site, &set, options.starts)?;
    let contenders: Vec<_> = ready.contenders.iter().copied().filter(|contender| contender.is_asked()).collect();
    let asked = asking::measure(&site, &set, &contenders)?;
    let judged = asking::judge(&site, &set, &contenders)?;
    let evidence = evidence::measure(&site, &set)?;
    let throughput = throughput::measure(&site, &set, &contenders, options.quick)?;
    let passages = passages::measure(&site, &set, &contenders, options.quick)?;

    let mut conditions = report::machine()?;
    conditions["load_before_and_after"] = json!([load_before, report::load()?]);
    conditions["threads"] = json!(options.threads);
    conditions["generator"] = json!(format!("{} ({})", gguf.name(), generator.file_name().unwrap_or_default().display()));
    conditions["set"] = json!(set.about());
    conditions["programs"] = Value::from(ready.versions.clone());
    let found = results::Findings { plain, ready, asked, judged, evidence, throughput, passages };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let text = results::write(&folder, &options.name(), &conditions, &found)?;
    print!("{text}");
    println!("\nwritten to {}/{}.md, .json and -*.svg", folder.display(), options.name());
    if load_before > 0.5 {
        println!("The machine was busy before this began (load {load_before}): do not compare these figures with others.");
    }
    Ok(())
}
