//! `vademecum doctor`: checks the installation; each line ok, warn or fail with a remedy.

use super::documents::fetch;
use super::model::catalogue;
use super::{Common, Outcome, print_json, print_line, runtime, visible};
use crate::assemble::{ServiceError, connection_options, open_store};
use crate::config::{Config, Loaded};
use crate::models::{Catalogue, room};
use answer::{ModelFacts, Prompts};
use http::Client;
use library::ingest::counted;
use library::ingest::watch::Watched;
use library::store::{Store, StoreError};
use llm::gguf::{Gguf, ModelKind, Pooling};
use llm::llama::{available_memory, check_fits};
use llm::tune::Topology;
use mqtt::connection::{Connection, Notice};
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use wire::new_id;
use wire::{FileState, Listed};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    #[serde(rename = "check")]
    name: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), remedy: String::new() }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), remedy: remedy.into() }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), remedy: remedy.into() }
    }
}

pub(super) fn run(loaded: &Loaded, common: &Common) -> Outcome {
    let config = &loaded.config;
    let runtime = runtime()?;
    let daemon = runtime.block_on(status_of_daemon(config));
    let known = catalogue(loaded);
    let mut checks =
        vec![configuration(loaded), cores(), memory(known.as_ref().ok()), disk(config), clock(), permissions(config)];
    checks.extend(known.as_ref().err().map(|error| Check::fail("models", error.to_string(), "correct or remove that file")));
    checks.push(generator(config, known.as_ref().ok()));
    checks.extend(prompts(config));
    checks.extend(repacked(config, daemon.as_ref()));
    checks.push(embedder(config));
    checks.extend(kv_cache(config, daemon.as_ref()));
    let opened = (daemon.is_none() && config.data_dir().exists()).then(|| open_store(config));
    checks.push(store(config, daemon.as_ref(), opened.as_ref()));
    checks.extend(documents(&listed(config, &runtime, opened.as_ref())));
    checks.push(runtime.block_on(broker(config, daemon.is_some())));
    runtime.shutdown_background();
    checks.extend(temperature());
    if common.json {
        print_json(&checks)?;
    } else {
        for check in &checks {
            let word = match check.status {
                Status::Ok => "ok  ",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            print_line(&format!("{word}  {:<13} {}", check.name, check.detail));
            if !check.remedy.is_empty() {
                print_line(&format!("                     -> {}", check.remedy));
            }
        }
    }
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn status_of_daemon(config: &Config) -> Option<wire::Status> {
    let mut client = Client::connect(&config.control_socket()).await.ok()??;
    client.get("status").await.ok()
}

fn configuration(loaded: &Loaded) -> Check {
    let place = loaded.file.as_ref().map_or("no file: defaults".to_owned(), |file| file.display().to_string());
    Check::ok("config", format!("{place}, {} keys changed, node {:?}", loaded.origins.len(), loaded.config.node_name()))
}

fn cores() -> Check {
    let topology = Topology::detect();
    let detail = format!("{} usable of {} allowed", topology.usable(), topology.allowed.len());
    match topology.quota {
        Some(quota) if quota < 1.0 => Check::warn(
            "cores",
            format!("{detail}, CPU quota {quota:.2}"),
            "less than one core makes answers slow: raise CPUQuota= or the container's limit",
        ),
        _ => Check::ok("cores", detail),
    }
}

fn memory(known: Option<&Catalogue>) -> Check {
    let memory = available_memory();
    let mib = |bytes: u64| bytes >> 20;
    let recommended = known.and_then(|known| known.recommended(&memory));
    let recommended = recommended.map(|model| format!("; recommended for it: {} ({} MB)", model.name, model.memory_mb));
    let detail = format!("{} MiB free of {} MiB{}", mib(memory.available), mib(memory.total), recommended.unwrap_or_default());
    if memory.available < 200 << 20 {
        return Check::warn("memory", detail, "close other programs, or use a smaller model or model.context");
    }
    Check::ok("memory", detail)
}

fn disk(config: &Config) -> Check {
    let dir = config.data_dir();
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let Some(free) = wire::free_bytes(existing) else {
        return Check::fail("disk", format!("cannot examine {}", existing.display()), "check that the path exists");
    };
    let mib = free >> 20;
    let detail = format!("{mib} MiB free at {}", existing.display());
    match mib {
        0..64 => Check::fail("disk", detail, "free some space: documents cannot be stored safely"),
        64..512 => Check::warn("disk", detail, "free some space soon"),
        _ => Check::ok("disk", detail),
    }
}

fn clock() -> Check {
    let installed = std::env::current_exe().and_then(|path| path.metadata()).and_then(|meta| meta.modified());
    if installed.is_ok_and(|installed| SystemTime::now() < installed) {
        return Check::warn(
            "clock",
            "the clock is earlier than the installation of this program",
            "set it (timedatectl set-ntp true): TLS and deadlines depend on it",
        );
    }
    Check::ok("clock", "plausible")
}

fn permissions(config: &Config) -> Check {
    let dir = config.data_dir();
    if !dir.exists() {
        return Check::ok("permissions", format!("{} will be made at the first start", dir.display()));
    }
    let access = rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    // A read-only file system is reported below.
    if access.is_err_and(|error| error != rustix::io::Errno::ROFS) {
        let user = rustix::process::geteuid().as_raw();
        return Check::fail(
            "permissions",
            format!("user {user} may not write to {}", dir.display()),
            "run as the service's user, or change the owner of the directory",
        );
    }
    // Permissions are not enough: after an error the kernel mounts the file system read-only.
    let trial = dir.join(format!(".doctor-{}", std::process::id()));
    if let Err(error) = std::fs::File::create_new(&trial).and_then(|_| std::fs::remove_file(&trial)) {
        let remedy = wire::storage_remedy(&error).trim_start_matches("; ");
        return Check::fail("permissions", format!("nothing can be written to {}: {error}", dir.display()), remedy);
    }
    let open = |path: &&PathBuf| path.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0);
    if let Some(secret) = [&config.mqtt.password_file, &config.mqtt.key_file].into_iter().find(open) {
        return Check::warn(
            "permissions",
            format!("everybody may read {}", secret.display()),
            format!("chmod 640 {}", secret.display()),
        );
    }
    Check::ok("permissions", format!("{} is writable", dir.display()))
}

/// The commands that bring the model for this machine.
fn bring(known: Option<&Catalogue>) -> String {
    let name = known.and_then(|known| known.recommended(&available_memory())).map_or("NAME", |model| model.name.as_str());
    format!("`vademecum model pull {name}`, then `vademecum model use {name}`")
}

fn generator(config: &Config, known: Option<&Catalogue>) -> Check {
    let path = config.generator_path();
    let remedy = format!("{}; or name a text-generation GGUF with --generator or model.generator", bring(known));
    let gguf = match Gguf::open(&path) {
        Ok(gguf) => gguf,
        Err(error) => return Check::fail("generator", error.to_string(), remedy),
    };
    if gguf.kind() != ModelKind::Generator {
        return Check::fail(
            "generator",
            format!("{} is a {} model, not a generator", path.display(), gguf.architecture()),
            remedy,
        );
    }
    let context = config.model.context.min(gguf.context_length().map_or(u32::MAX, |n| n as u32));
    let memory = available_memory();
    let fits = check_fits(&gguf, context, llm::engine::BATCH as u32, &memory);
    if let (Ok(_), Some(word)) = (&fits, room::too_large(&gguf, context, &memory)) {
        return Check::warn("generator", word, format!("take a model that fits: {}", bring(known)));
    }
    match fits {
        Ok(bytes) => Check::ok(
            "generator",
            format!(
                "{} ({} MiB mapped, {} MiB of own memory at context {context})",
                path.display(),
                gguf.file_bytes() >> 20,
                bytes >> 20
            ),
        ),
        Err(error) => {
            let remedy = format!("use a smaller model.context or a smaller model: {}", bring(known));
            Check::fail("generator", error.to_string(), remedy)
        }
    }
}

/// The prompts for the generator. `None` without a generator, which has a check of its own.
fn prompts(config: &Config) -> Option<Check> {
    let gguf = Gguf::open(&config.generator_path()).ok()?;
    let facts = ModelFacts {
        architecture: gguf.architecture(),
        parameters: gguf.parameters(),
        chat_template: gguf.chat_template().is_some(),
    };
    Some(match Prompts::load(config.prompts(), facts) {
        Ok(prompts) => Check::ok("prompts", format!("{}.toml ({})", prompts.name, config.answer.strategy.word())),
        Err(error) => Check::fail("prompts", error.to_string(), "the daemon does not start with it"),
    })
}

/// The memory of repacked weights: that of the running daemon, else of the decision that a start would take now. `None`: there is
/// nothing to say, because no weights can be repacked.
fn repacked(config: &Config, daemon: Option<&wire::Status>) -> Option<Check> {
    let (bytes, why) = if let Some(status) = daemon {
        (status.info.model.repacked_bytes, status.info.model.repack.clone())
    } else {
        let gguf = Gguf::open(&config.generator_path()).ok().filter(|gguf| gguf.kind() == ModelKind::Generator)?;
        let needed = llm::llama::context_bytes(&gguf, config.model.context, llm::engine::BATCH as u32);
        let decision = config.model.repack.decide(&gguf, needed, &available_memory());
        if decision.bytes == 0 {
            return None;
        }
        (if decision.on { decision.bytes } else { 0 }, decision.why)
    };
    let detail = match bytes {
        0 => format!("weights are not repacked: {why}"),
        bytes => format!(
            "repacked weights take {} MB of own memory, and prompts are read faster; model.repack = \"off\" saves that memory",
            bytes / 1_000_000
        ),
    };
    Some(Check::ok("weights", detail))
}

/// Whether KV states can be stored, if the configuration asks for them.
fn kv_cache(config: &Config, daemon: Option<&wire::Status>) -> Option<Check> {
    let mib = config.model.kv_cache_mb;
    if mib == 0 {
        return None;
    }
    let dir = config.kv_cache_dir();
    let warn = |detail: String| {
        Some(Check::warn("kv-cache", detail, format!("without KV states answers take longer: check {}", dir.display())))
    };
    if let Some(status) = daemon {
        let told = status.info.kv_cache.as_ref();
        let problem = told.and_then(|cache| cache.problem.as_ref()).or(status.info.model.kv_cache_off.as_ref());
        return match (problem, told) {
            (Some(reason), _) => warn(reason.clone()),
            (None, None) => {
                warn("the daemon stores no KV states: its model.kv_cache_mb is 0, or its log gives the reason".to_owned())
            }
            (None, Some(cache)) => {
                let (bytes, most) = (cache.bytes / 1_000_000, cache.max_bytes / 1_000_000);
                Some(Check::ok("kv-cache", format!("{} states, {bytes} of {most} MB", cache.states)))
            }
        };
    }
    let existing = dir.ancestors().find(|path| path.exists())?;
    let usable = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok();
    if !(usable && existing.is_dir()) {
        return warn(format!("no KV states: {} is not a writable folder", existing.display()));
    }
    let (floor, free) = (config.model.kv_cache_min_free_mb, wire::free_bytes(existing)? / 1_000_000);
    if free < floor {
        return warn(format!("no more KV states: {free} MB of disk are free, and model.kv_cache_min_free_mb is {floor}"));
    }
    Some(Check::ok("kv-cache", format!("up to {mib} MB in {}", dir.display())))
}

fn embedder(config: &Config) -> Check {
    let path = config.embedder_path();
    let remedy = "`vademecum model pull all-minilm-l6-v2`, then `vademecum model use all-minilm-l6-v2`; or name a sentence encoder \
                  with embedder.path";
    match Gguf::open(&path).map(|gguf| gguf.kind()) {
        Ok(ModelKind::Encoder(Pooling::Mean | Pooling::Cls | Pooling::Last)) => Check::ok("embedder", path.display().to_string()),
        Ok(_) => Check::fail("embedder", format!("{} is not a sentence encoder", path.display()), remedy),
        Err(error) => Check::fail("embedder", error.to_string(), remedy),
    }
}

/// The library's documents, from the daemon or from the store. Empty if neither is available, which another check reports.
fn listed(config: &Config, runtime: &tokio::runtime::Runtime, opened: Option<&Result<Store, ServiceError>>) -> Vec<Listed> {
    match opened {
        Some(Ok(store)) => Watched::default().list(store, None).unwrap_or_default(),
        Some(Err(_)) => Vec::new(),
        None => runtime.block_on(fetch(config, None)).ok().flatten().unwrap_or_default(),
    }
}

/// Documents that could not be ingested; `None` for an empty library.
fn documents(listed: &[Listed]) -> Option<Check> {
    if listed.is_empty() {
        return None;
    }
    let mut failed = listed.iter().filter(|listed| listed.state == FileState::Failed);
    let all = counted(listed.len() as u64, "document");
    let Some(example) = failed.next() else { return Some(Check::ok("documents", all)) };
    let Listed { id, reason, .. } = example;
    let reason = reason.as_deref().unwrap_or("no reason is known");
    Some(Check::warn(
        "documents",
        visible(&format!("{} of {all} could not be taken in, such as {}: {reason}", 1 + failed.count(), id)),
        "`vademecum documents` shows each reason: mend the document and ingest it again (a watched file: save it), or `vademecum documents delete ID`",
    ))
}

fn store(config: &Config, daemon: Option<&wire::Status>, opened: Option<&Result<Store, ServiceError>>) -> Check {
    if let Some(status) = daemon {
        let collections = status.info.collections.len();
        let state = format!("in use by the running daemon, {collections} collections");
        if let Some(problem) = &status.metrics.delivery.problem {
            let remedy = "questions are answered, but a crash would lose them; this ends by itself once the disk accepts writes";
            return Check::fail("store", format!("{state}; {problem}"), remedy);
        }
        return recovered(&status.info.recovery, state, true);
    }
    let store = match opened {
        Some(Ok(store)) => store,
        Some(Err(error)) => return Check::fail("store", error.to_string(), "see above"),
        None => return Check::ok("store", "empty: nothing has been ingested yet"),
    };
    let mismatch = || -> Result<Option<String>, StoreError> {
        let bound = store.embedder()?;
        let offered = Gguf::open(&config.embedder_path()).ok().map(|gguf| gguf.fingerprint());
        Ok(match (bound, offered) {
            (Some(bound), Some(offered)) if bound.fingerprint != offered => Some(bound.name),
            _ => None,
        })
    };
    match (mismatch(), store.collections()) {
        (Ok(Some(name)), _) => Check::fail(
            "store",
            format!("the library was made with another embedder, {name}"),
            "use that embedder, or run `vademecum ingest --re-embed`",
        ),
        (Ok(None), Ok(collections)) => {
            let documents: u64 = collections.iter().map(|c| c.documents).sum();
            recovered(&store.recovery(), format!("{} collections, {documents} documents", collections.len()), false)
        }
        (Err(error), _) | (_, Err(error)) => Check::fail("store", error.to_string(), "see above"),
    }
}

/// The state of the store, recovered or not.
fn recovered(recovery: &wire::Recovery, state: String, running: bool) -> Check {
    if let Some(reason) = &recovery.refusing {
        let remedy =
            "reads continue, and writes resume by themselves once the disk accepts them: free some space, check the card";
        return Check::fail("store", format!("{state}; nothing can be written: {reason}"), remedy);
    }
    if let Some((id, reason)) = recovery.failed.first() {
        let count = recovery.failed.len();
        return Check::warn(
            "store",
            format!("{state}; {count} documents could not be rebuilt, such as {id}: {reason}"),
            "ingest them again, or delete them",
        );
    }
    if recovery.missing > 0 {
        let how = if running { "wait: the daemon rebuilds them" } else { "start the daemon, or run any `vademecum ingest`" };
        return Check::warn("store", format!("{state}; {} documents are not rebuilt yet", recovery.missing), how);
    }
    match recovery.kept_aside.last() {
        Some(path) => Check::warn(
            "store",
            format!("{state}; complete, but a damaged database lies in {}", path.display()),
            "check the card and the power supply; the folder can be removed",
        ),
        None => Check::ok("store", state),
    }
}

async fn broker(config: &Config, daemon_runs: bool) -> Check {
    let url = match config.broker_url() {
        Ok(url) => url,
        Err(problem) => return Check::fail("broker", problem, "correct mqtt.broker"),
    };
    let place = format!("{}:{}", url.host, url.port);
    if config.mqtt.broker.is_empty() && !daemon_runs {
        return match std::net::TcpListener::bind(&place) {
            Ok(_) => Check::ok("broker", format!("embedded, {place} is free")),
            Err(error) => Check::fail(
                "broker",
                format!("{place}: {error}"),
                format!(
                    "to use a broker that already runs there, set mqtt.broker = \"mqtt://{place}\"; or choose another broker.listen"
                ),
            ),
        };
    }
    let connected = async {
        let mut options = connection_options(config).map_err(|e| e.to_string())?;
        options.client_id = format!("vademecum-doctor-{}", new_id());
        let (mut connection, _sender) =
            Connection::new(options, vec![format!("{}/state", config.topic_base())]).map_err(|e| e.to_string())?;
        let mut version = "";
        let mut failures = 0;
        loop {
            match connection.next().await {
                Notice::Connected { version: v, .. } => version = v,
                Notice::Subscribed => {
                    connection.close(Duration::from_secs(1)).await;
                    return Ok(version);
                }
                Notice::SubscriptionRefused => return Err("the broker refuses the subscription to our own topics".to_owned()),
                Notice::Disconnected(reason) => {
                    failures += 1;
                    if failures > 1 {
                        return Err(reason);
                    }
                }
                Notice::Message(_) | Notice::Delivered(_) => {}
            }
        }
    };
    let remedy = "start the broker, or correct mqtt.broker, user name, password_file, ca_file, cert_file or key_file";
    match tokio::time::timeout(Duration::from_secs(5), connected).await {
        Ok(Ok(version)) => Check::ok("broker", format!("{place} speaks MQTT {version}")),
        Ok(Err(reason)) => Check::fail("broker", format!("{place}: {reason}"), remedy),
        Err(_) => Check::fail("broker", format!("{place} does not answer within 5 s"), remedy),
    }
}

fn temperature() -> Option<Check> {
    let celsius = crate::daemon::temperature_c(Path::new("/sys/class/thermal"))?;
    let detail = format!("{celsius:.0} °C");
    Some(if celsius > 80.0 {
        Check::warn("temperature", detail, "the board slows itself down above 80 °C: add a heat sink or a fan")
    } else {
        Check::ok("temperature", detail)
    })
}
