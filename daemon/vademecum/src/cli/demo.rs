//! `vademecum demo`: the whole way once, with the embedded broker and the sample manual.

use super::ask::Asking;
use super::{Common, Failure, Outcome, print_line, runtime};
use crate::config::{Config, load};
use http::Client;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use wire::new_id;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder with generator.gguf and embedder.gguf
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// The generator: a name of `vademecum model list`, or a GGUF file
    #[arg(long, value_name = "NAME|GGUF")]
    model: Option<String>,
    /// Folder with the sample manual and questions.txt; the manual does not answer the last question
    #[arg(long, value_name = "DIR", default_value = "config/demo")]
    manual: PathBuf,
}

/// A running daemon and its data directory; dropping it ends both.
struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn run(common: &Common, args: &Args) -> Outcome {
    let questions_file = args.manual.join("questions.txt");
    let questions = std::fs::read_to_string(&questions_file).map_err(|e| {
        Failure::Other(format!(
            "cannot read {}: {e}; run it from the repository, or name the folder with --manual",
            questions_file.display()
        ))
    })?;
    let questions: Vec<&str> =
        questions.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let config = configuration(common, args)?;

    let started = Instant::now();
    let daemon = start(&config)?;
    let runtime = runtime()?;
    runtime.block_on(ready(&config, daemon))?.run(&runtime, &config, args, &questions, started)
}

/// A separate data directory, port and node, so that the demo disturbs no other daemon.
fn configuration(common: &Common, args: &Args) -> Result<Config, Failure> {
    let failed = |e: std::io::Error| Failure::Other(format!("cannot prepare the demo: {e}"));
    // Before the directory is made, which only a running demo removes.
    let loaded = load(Some(Path::new("/dev/null")), std::iter::empty(), &Vec::new())?;
    let in_folder = |name: &str| {
        let file = super::model::catalogue(&loaded).ok()?.get(name)?.file.clone();
        args.models.as_ref().map(|dir| dir.join(file)).filter(|path| path.is_file())
    };
    let found = |name: &String| in_folder(name).map_or_else(|| super::model::generator_file(&loaded, name), Ok);
    let chosen = args.model.as_ref().map(found).transpose()?;
    let chosen = chosen.map(|path| path.display().to_string()).or_else(|| common.generator.clone());
    let dir = std::env::temp_dir().join(format!("vademecum-demo-{}", new_id()));
    std::fs::create_dir(&dir).map_err(failed)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(failed)?.port();
    let model = |given: &Option<String>, name: &str| {
        given.clone().or_else(|| args.models.as_ref().map(|dir| dir.join(name).display().to_string()))
    };
    let mut flags = vec![
        ("node".to_owned(), "demo".to_owned()),
        ("data_dir".to_owned(), dir.display().to_string()),
        ("broker.listen".to_owned(), format!("127.0.0.1:{port}")),
    ];
    flags.extend(model(&chosen, "generator.gguf").map(|path| ("model.generator".to_owned(), path)));
    flags.extend(model(&common.embedder, "embedder.gguf").map(|path| ("embedder.path".to_owned(), path)));
    Ok(load(Some(Path::new("/dev/null")), std::iter::empty(), &flags)?.config)
}

fn start(config: &Config) -> Result<Daemon, Failure> {
    let failed = |e: std::io::Error| Failure::Other(format!("cannot start the daemon: {e}"));
    let dir = config.data_dir();
    let log = std::fs::File::create(dir.join("daemon.log")).map_err(failed)?;
    let settings = [
        ("node", config.node.clone()),
        ("data_dir", dir.display().to_string()),
        ("broker.listen", config.broker.listen.clone()),
        ("model.generator", config.generator_path().display().to_string()),
        ("embedder.path", config.embedder_path().display().to_string()),
    ];
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["run", "--config", "/dev/null"]);
    for (key, value) in settings {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    // Settings of another daemon must not reach this one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VADEMECUM_")) {
        command.env_remove(name);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().map_err(failed)?;
    Ok(Daemon { child, dir })
}

/// Waits until the daemon answers on its control socket.
async fn ready(config: &Config, mut daemon: Daemon) -> Result<Daemon, Failure> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if matches!(Client::connect(&config.control_socket()).await, Ok(Some(_))) {
            return Ok(daemon);
        }
        let ended = daemon.child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() > deadline {
            let log = std::fs::read_to_string(daemon.dir.join("daemon.log")).unwrap_or_default();
            return Err(Failure::Other(format!("the daemon did not start:\n{}", log.trim_end())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Daemon {
    fn run(
        self,
        runtime: &tokio::runtime::Runtime,
        config: &Config,
        args: &Args,
        questions: &[&str],
        started: Instant,
    ) -> Outcome {
        print_line(&format!(
            "daemon up after {:.2} s, embedded broker on {}",
            started.elapsed().as_secs_f64(),
            config.broker.listen
        ));
        let ingest = Command::new(std::env::current_exe().map_err(|e| Failure::Other(e.to_string()))?)
            .args(["ingest", "--config", "/dev/null"])
            .arg("--set")
            .arg(format!("data_dir={}", self.dir.display()))
            .arg(&args.manual)
            .args(["--include", "*.md"])
            .status()
            .map_err(|e| Failure::Other(e.to_string()))?;
        if !ingest.success() {
            return Err(Failure::Other(format!("{} could not be ingested", args.manual.display())));
        }
        let asking = Asking { config, json: false, patience: Duration::from_secs(120) };
        let mut as_expected = true;
        for (i, question) in questions.iter().enumerate() {
            print_line(&format!("\n{question}"));
            let ask =
                wire::Ask { id: Some(new_id()), question: (*question).to_owned(), stream: Some(true), ..wire::Ask::default() };
            let answer = runtime.block_on(asking.ask(&ask))?;
            let answerable = i + 1 < questions.len();
            if answer.found != answerable {
                as_expected = false;
                print_line(&format!(
                    "  unexpected: found is {}, but the manual {} this",
                    answer.found,
                    if answerable { "answers" } else { "does not answer" }
                ));
            }
        }
        if args.model.is_none() {
            print_line(
                "\nThe small model of the tests quotes the manual. `make demo MODEL=qwen2.5-coder-0.5b` fetches one that answers \
                 in words (491 MB).",
            );
        }
        Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
