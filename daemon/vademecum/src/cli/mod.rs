//! The commands, one file each.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 (`ask` and `search`) the library holds no answer. `model pull` also has 4, the
//! transfer was cut and the same command goes on, and 5, the file was not the one announced.

mod ask;
mod backup;
mod calibrate;
mod config;
mod demo;
mod doctor;
mod documents;
mod eval;
mod ingest;
mod model;
mod run;
mod search;
mod tune;

use crate::config::{Config, ConfigError, Flags, Loaded, load};
use clap::builder::RangedU64ValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use http::ClientError;
use library::ingest::check_id;
use library::store::Document;
use read::child;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use wire::ErrorCode;

/// The command failed.
const FAILED: u8 = 1;
/// The request itself is wrong; clap's own code.
const WRONG_USAGE: u8 = 2;
/// The library holds no answer.
pub const NOT_FOUND: u8 = 3;
/// A transfer was cut; the same command goes on with it.
const CUT: u8 = 4;
/// A fetched file is not the one announced, or no model.
const WRONG_FILE: u8 = 5;

/// Answers questions about your own documents, offline, over MQTT.
#[derive(Debug, Parser)]
#[command(name = "vademecum", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command; they win over environment and file.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Configuration file [default: /etc/vademecum/vademecum.toml when it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of documents, vectors and copies of the sources
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// The broker, mqtt://host:port or mqtts://host:port (or ws://, wss://)
    #[arg(long, global = true, value_name = "URL")]
    broker: Option<String>,
    /// The node's name, second part of every topic
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
    /// The generator's GGUF file
    #[arg(long, global = true, value_name = "GGUF")]
    generator: Option<String>,
    /// The embedder's GGUF file
    #[arg(long, global = true, value_name = "GGUF")]
    embedder: Option<String>,
    /// The collection of documents
    #[arg(long, global = true, value_name = "NAME")]
    collection: Option<String>,
    /// Set any key of the configuration, for example --set answer.top_k=2
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Print JSON for scripts
    #[arg(long, global = true)]
    json: bool,
    /// Log more (debug; twice: trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Run,
    /// Ask the running daemon a question
    Ask(ask::Args),
    /// Find passages, without generating an answer
    Search(search::Args),
    /// Read documents into the library
    Ingest(ingest::Args),
    /// List or delete documents
    Documents(documents::Args),
    /// Write the library into one file
    Backup(backup::Args),
    /// Put a backup in the place of the library
    Restore(backup::RestoreArgs),
    /// List, fetch and choose models, look into model files, convert encoders
    Model(model::Args),
    /// Show the cores this process may use, and measure the threads that the generator runs best with
    Tune(tune::Args),
    /// Check the installation; says what to do about each problem
    Doctor,
    /// Start a daemon of its own, read the sample manual and ask it three questions
    Demo(demo::Args),
    /// Fit the confidence that decides `found` to the library
    Calibrate(calibrate::Args),
    /// Measure retrieval and answers on a labelled set in BEIR format
    Eval(eval::Args),
    /// Print the effective configuration
    Config(config::Args),
}

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Service(#[from] crate::assemble::ServiceError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Pull(#[from] crate::models::PullError),
    /// Wrong usage that clap cannot detect.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Usage errors also come from the configuration and from the daemon.
    fn exit_code(&self) -> u8 {
        use crate::models::PullError;
        match self {
            Self::Pull(PullError::Cut { .. }) => return CUT,
            Self::Pull(PullError::Wrong(_)) => return WRONG_FILE,
            _ => {}
        }
        let is_usage = match self {
            Self::Usage(_) => true,
            Self::Config(error) => error.is_usage(),
            Self::Client(ClientError::Refused { code: Some(code), .. }) => is_usage(*code),
            _ => false,
        };
        if is_usage { WRONG_USAGE } else { FAILED }
    }
}

/// Whether this code of the daemon means that the request itself was wrong.
fn is_usage(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::BadRequest | ErrorCode::TooLarge)
}

type Outcome = Result<ExitCode, Failure>;

/// The definition of the command line, for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command in the arguments.
pub fn main() -> ExitCode {
    if let Some(format) = child::asked_for() {
        return read(&format);
    }
    if let Some(dir) = library::store::database::asked_for() {
        return library::store::database::run(&dir);
    }
    let cli = Cli::parse();
    child::use_own_process();
    limit_arenas();
    let outcome = cli.common.load().map_err(Failure::from).and_then(|loaded| {
        // Commands print their own results; only the daemon logs its work.
        let quiet = cli.common.verbose == 0 && !matches!(cli.command, Command::Run);
        let level = loaded.config.log.level.parse().unwrap_or(log::LevelFilter::Info);
        crate::daemon::logging::start(if quiet { log::LevelFilter::Warn } else { level });
        loaded.log_hints();
        dispatch(&cli, loaded)
    });
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, &cli.common);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs the process that reads one document: no configuration, no log, no models.
fn read(format: &str) -> ExitCode {
    match child::run(format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the failure of a command on stderr.
fn report(failure: &Failure, common: &Common) {
    if common.json {
        eprintln!("{}", serde_json::json!({ "error": failure.to_string() }));
    } else {
        eprintln!("vademecum: {failure}");
    }
}

fn dispatch(cli: &Cli, loaded: Loaded) -> Outcome {
    let common = &cli.common;
    match &cli.command {
        Command::Run => run::run(loaded, common),
        Command::Ask(args) => ask::run(&loaded, common, args),
        Command::Search(args) => search::run(&loaded.config, common, args),
        Command::Ingest(args) => ingest::run(&loaded.config, common, args),
        Command::Documents(args) => documents::run(&loaded.config, common, args),
        Command::Backup(args) => backup::run(&loaded.config, common, args),
        Command::Restore(args) => backup::restore(&loaded.config, common, args),
        Command::Model(args) => model::run(&loaded, common, args),
        Command::Tune(args) => tune::run(&loaded.config, common, args),
        Command::Doctor => doctor::run(&loaded, common),
        Command::Demo(args) => demo::run(common, args),
        Command::Calibrate(args) => calibrate::run(&loaded.config, common, args),
        Command::Eval(args) => eval::run(&loaded.config, common, args),
        Command::Config(args) => config::run(&loaded, common, args),
    }
}

impl Common {
    /// The settings from flags.
    fn flags(&self) -> Flags {
        let named = [
            ("data_dir", &self.data_dir),
            ("mqtt.broker", &self.broker),
            ("node", &self.node),
            ("model.generator", &self.generator),
            ("embedder.path", &self.embedder),
            ("collection", &self.collection),
        ];
        let mut flags: Flags = named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))).collect();
        flags.extend(self.set.iter().cloned());
        if self.verbose > 0 {
            flags.push(("log.level".into(), if self.verbose == 1 { "debug" } else { "trace" }.into()));
        }
        flags
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        let env = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
        load(self.config.as_deref(), env, &self.flags())
    }
}

/// A runtime for commands: one thread polls, others block.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(1)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("cannot start: {e}")))
}

/// Prints a value as JSON on one line.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::Other(e.to_string()))?;
    print_line(&text);
    Ok(())
}

/// Fails if there is no library: opening one would create it.
fn need_library(config: &Config) -> Result<(), Failure> {
    let dir = config.data_dir();
    if dir.join("db").exists() || dir.join("sources").exists() {
        return Ok(());
    }
    Err(Failure::Other(format!(
        "there is no library in {}; make one with `vademecum ingest FILE…`, or name another directory with --data-dir",
        dir.display()
    )))
}

/// Opens the rooms for a command. First rebuilds documents that a damaged database has lost.
fn rooms(config: &Config) -> Result<crate::assemble::Rooms, Failure> {
    let rooms = crate::assemble::Rooms::open(config)?;
    let before = rooms.store.recovery();
    if before.missing == 0 {
        return Ok(rooms);
    }
    for aside in &before.set_aside {
        eprintln!("the database was damaged ({}); it is set aside as {}", visible(&aside.reason), aside.path.display());
    }
    eprintln!("{} documents are rebuilt from their sources: each one is read and embedded again", before.missing);
    let bar = progress_bar(before.missing as u64, "{bar:30} {pos}/{len} documents, {msg} ({elapsed} gone)");
    let mut damaged = false;
    // A long document takes minutes, so the bar shows its progress.
    let mut told = |document: &Document, done: usize, of: usize| {
        let state = if of == 0 { "reading".to_owned() } else { format!("chunk {done} of {of}") };
        bar.set_message(format!("{}: {state}", visible(&document.id)));
    };
    while let Some(done) = rooms.pipeline.rebuild_next(&mut told) {
        match done {
            Ok(_) => bar.inc(1),
            // Some damage appears only now; the next put sets the database aside.
            Err(library::store::StoreError::Damaged { .. }) if !damaged => damaged = true,
            Err(error) => return Err(crate::assemble::ServiceError::from(error).into()),
        }
    }
    bar.finish_and_clear();
    for (id, reason) in rooms.store.recovery().failed {
        eprintln!("{}: the document could not be rebuilt: {}", visible(&id), visible(&reason));
    }
    Ok(rooms)
}

/// Foreign text without the control characters that a terminal would obey.
fn visible(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Prints a line; a closed pipe (`| head`) ends the command quietly.
fn print_line(text: &str) {
    use std::io::Write;
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A progress bar on a terminal, hidden elsewhere.
fn progress_bar(length: u64, template: &str) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template(template).unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = indicatif::ProgressBar::new(length).with_style(style);
    // Drawn at once; its clock keeps running during a long piece of work.
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A `key=value` pair of a flag.
fn pair(given: &str) -> Result<(String, String), &'static str> {
    let (key, value) = given.split_once('=').ok_or("write it as key=value")?;
    if key.trim().is_empty() {
        return Err("the key before the = is missing");
    }
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// The text of a question or search.
fn question(given: &str) -> Result<String, &'static str> {
    if given.trim().is_empty() { Err("the text is empty; write a question") } else { Ok(given.to_owned()) }
}

/// The id of a document.
fn document_id(given: &str) -> Result<String, String> {
    check_id(given).map_err(|error| error.to_string())?;
    Ok(given.to_owned())
}

/// A number of passages.
fn top_k() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=wire::names::MAX_TOP_K as u64)
}

/// A number that is not 0.
fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// A filter from pairs; values of one key are alternatives.
fn filter(pairs: &[(String, String)]) -> BTreeMap<String, Vec<String>> {
    let mut filter: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in pairs {
        filter.entry(key.clone()).or_default().push(value.clone());
    }
    filter
}

/// Stops glibc from creating an arena for every thread.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_set_the_keys_in_the_table() {
        for key in KEYS.iter().filter(|key| !key.flag.is_empty()) {
            let cli = Cli::try_parse_from(["vademecum", "config", key.flag, "given"]).expect(key.flag);
            assert_eq!(cli.common.flags(), [(key.name.to_owned(), "given".to_owned())], "{}", key.flag);
        }
    }
}
