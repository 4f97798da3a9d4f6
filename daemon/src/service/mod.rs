//! The daemon: start order, readiness, signals, reloading, shutdown.

mod credentials;
pub mod logging;
mod metrics;
mod reload;
mod systemd;

pub use metrics::temperature_c;
pub use reload::Reread;

use crate::answer::{AnswerOptions, Answerer, Precompute, Strategy};
use crate::api::{Api, Limits, ReportFn};
use crate::config::{Config, Loaded};
use crate::embed::{EmbedOptions, Embedder};
use crate::engine::{Engine, EngineOptions, GpuLayers, PassageCache, PassageCacheOptions, Sampling, Tuning, Weights};
use crate::ingest::watch::{Folder, WatchOptions, Watched, Watcher};
use crate::ingest::{IngestOptions, Pipeline};
use crate::mail::{Left, Mail};
use crate::mqtt::Server;
use crate::mqtt::connection::{Connection, ConnectionOptions};
use crate::mqtt::tls::TlsOptions;
use crate::mqtt::topics::Topics;
use crate::retrieve::Retriever;
use crate::store::{EmbedderId, Store, StoreOptions};
use crate::tune::{Saved, Topology};
use reload::Reload;
use sd_notify::NotifyState;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify, oneshot, watch};

/// Room that v5 packets get beyond the largest payload, so that a larger one gets an error instead of silence.
const PACKET_HEADROOM: usize = 16 * 1024 * 1024;

/// The largest packet that MQTT can carry. A 3.1.1 session that meets a larger one than it takes would lose the connection
/// and be sent it again at once, for ever.
const MQTT_MAX_PACKET: usize = 268_435_455;

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The generator.
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    /// The embedder.
    #[error(transparent)]
    Embed(#[from] crate::embed::EmbedError),
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The connection to the broker.
    #[error(transparent)]
    Connection(#[from] crate::mqtt::connection::ConnectionError),
    /// The embedded broker.
    #[cfg(feature = "broker")]
    #[error(transparent)]
    Broker(#[from] crate::mqtt::broker::BrokerError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] crate::http::SocketError),
    /// No model is configured, and none lies in the usual places.
    #[error("no {name} found in {places}; `make setup` fetches one, or name a file with {flag}")]
    NoModel {
        /// The file looked for.
        name: &'static str,
        /// Where.
        places: String,
        /// The flag that names one.
        flag: &'static str,
    },
    /// Something of the system.
    #[error("{0}")]
    System(String),
}

/// The rooms that work without a network: what `run` serves and what the command line uses directly.
pub struct Rooms {
    /// The store.
    pub store: Store,
    /// The encoder.
    pub embedder: Embedder,
    /// Finds passages.
    pub retriever: Retriever,
    /// Takes documents in.
    pub pipeline: Pipeline,
}

/// Opens the embedder alone.
///
/// # Errors
/// The model file cannot be used.
pub fn open_embedder(config: &Config) -> Result<Embedder, ServiceError> {
    let tokenizer = &config.embedder.tokenizer;
    let options = EmbedOptions {
        threads: Topology::detect().threads(config.embedder.threads, config.embedder.threads).batch,
        batch_tokens: config.embedder.batch_tokens,
        tokenizer: (!tokenizer.as_os_str().is_empty()).then(|| tokenizer.clone()),
    };
    let path = found(config, config.embedder_path(), &config.embedder.path, "embedder.gguf", "--embedder")?;
    Ok(Embedder::load(&path, &options)?)
}

/// A model's path, unless it was left to us to find and is nowhere.
fn found(
    config: &Config,
    path: PathBuf,
    configured: &Path,
    name: &'static str,
    flag: &'static str,
) -> Result<PathBuf, ServiceError> {
    if path.exists() || !configured.as_os_str().is_empty() {
        return Ok(path);
    }
    let places: Vec<String> = config.model_places().iter().map(|dir| dir.display().to_string()).collect();
    Err(ServiceError::NoModel { name, places: places.join(", "), flag })
}

/// Opens the store alone.
///
/// # Errors
/// It is locked, damaged, or not to be written.
pub fn open_store(config: &Config) -> Result<Store, ServiceError> {
    let dir = config.data_dir();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir);
    made.map_err(|e| {
        ServiceError::System(format!(
            "cannot make the data directory {}: {e}; set data_dir or run as a user who may",
            dir.display()
        ))
    })?;
    check_owner(&dir)?;
    let threads = Topology::detect().usable();
    let options = StoreOptions {
        cache_bytes: config.store.cache_bytes,
        threads,
        probe: crate::ingest::child::own_program(),
        ..StoreOptions::default()
    };
    Ok(Store::open(&dir, &options)?)
}

/// Refuses to let root work in the directory of another user, who could not write afterwards what root has written.
fn check_owner(dir: &Path) -> Result<(), ServiceError> {
    use std::os::unix::fs::MetadataExt;
    let Ok(about) = std::fs::metadata(dir) else { return Ok(()) };
    if !rustix::process::geteuid().is_root() || about.uid() == 0 {
        return Ok(());
    }
    let (dir, user) = (dir.display(), about.uid());
    Err(ServiceError::System(format!(
        "the data directory {dir} belongs to user {user} and no daemon runs on it: start the daemon (`systemctl start vademecum`), or run \
         this as that user: setpriv --reuid {user} --regid {} --clear-groups vademecum ...",
        about.gid()
    )))
}

/// What identifies an embedder in the store.
pub fn embedder_id(embedder: &Embedder) -> EmbedderId {
    EmbedderId {
        name: embedder.name().to_owned(),
        fingerprint: embedder.fingerprint().to_owned(),
        dimensions: embedder.dimensions(),
    }
}

/// How documents are read, from the configuration.
pub fn ingest_options(config: &Config) -> IngestOptions {
    IngestOptions { max_tokens: config.ingest.chunk_tokens, max_document_bytes: config.ingest.max_document_bytes }
}

impl Rooms {
    /// Opens store and embedder at the same time and joins the rooms that need them.
    ///
    /// # Errors
    /// Either cannot be opened, or the store was made with another embedder.
    pub fn open(config: &Config) -> Result<Self, ServiceError> {
        let (store, embedder) = std::thread::scope(|scope| {
            let embedder = scope.spawn(|| open_embedder(config));
            let store = open_store(config);
            (store, embedder.join())
        });
        let (store, embedder) = (store?, embedder.map_err(|_| ServiceError::System("loading the embedder failed".into()))??);
        store.bind_embedder(&embedder_id(&embedder))?;
        Ok(Self::join(config, store, embedder))
    }

    /// Joins the rooms around a store and an embedder that belong together.
    pub fn join(config: &Config, store: Store, embedder: Embedder) -> Self {
        let retriever = Retriever::new(store.clone(), embedder.clone());
        let pipeline = Pipeline::new(store.clone(), embedder.clone(), ingest_options(config));
        Self { store, embedder, retriever, pipeline }
    }
}

/// How tokens are chosen when a question leaves it open.
pub fn sampling(config: &Config) -> Sampling {
    let answer = &config.answer;
    Sampling { temperature: answer.temperature, top_p: answer.top_p, min_p: answer.min_p, seed: answer.seed }
}

/// Loads the generator.
///
/// # Errors
/// The model file cannot be used.
pub fn open_engine(config: &Config) -> Result<Engine, ServiceError> {
    let options = EngineOptions {
        context: config.model.context,
        tuning: Tuning {
            topology: Topology::detect(),
            saved: Some(Saved::in_dir(&config.data_dir())),
            decode: config.model.threads,
            batch: config.model.batch_threads,
            lookup: config.model.lookup,
        },
        weights: weights(config),
        // Some work, the others wait.
        queue: config.answer.queue + config.model.slots,
        system: config.answer.system.clone(),
        slots: config.model.slots,
        passages: (config.model.kv_cache_mb > 0).then(|| PassageCacheOptions {
            dir: config.passages_dir(),
            max_bytes: config.model.kv_cache_mb * 1_000_000,
            min_free: config.model.kv_cache_min_free_mb * 1_000_000,
        }),
    };
    let path = found(config, config.generator_path(), &config.model.generator, "generator.gguf", "--generator")?;
    let engine = Engine::load(&path, &options)?;
    if config.answer.strategy.for_weights(engine.info().parameters) != Strategy::Quote {
        engine.warm_up()?;
    }
    Ok(engine)
}

/// Where the generator's weights are to lie.
pub(crate) fn weights(config: &Config) -> Weights {
    Weights {
        repack: config.model.repack,
        mlock: config.model.mlock,
        gpu_layers: config.model.gpu_layers().map_or(GpuLayers::Auto, GpuLayers::Exactly),
    }
}

/// Joins retrieval and generation, and tells the kept states whose documents they are of.
pub fn answerer(config: &Config, rooms: &Rooms, engine: Engine) -> Answerer {
    let options = AnswerOptions {
        system: config.answer.system.clone(),
        threshold: config.answer.threshold,
        not_found: config.answer.not_found.clone(),
        stop: config.answer.stop.clone(),
        strategy: config.answer.strategy,
        sentences: config.answer.sentences,
        cache: config.answer.cache,
    };
    if let Some(passages) = engine.passages() {
        passages.bind(rooms.store.identity());
    }
    Answerer::new(rooms.retriever.clone(), rooms.embedder.clone(), engine, options)
}

fn limits(config: &Config, context: u32) -> Limits {
    Limits {
        collection: config.collection.clone(),
        top_k: config.answer.top_k,
        max_tokens: config.answer.max_tokens,
        max_tokens_cap: (context as usize / 2).max(config.answer.max_tokens),
        deadline: Duration::from_millis(config.answer.deadline_ms),
        max_question_bytes: config.answer.max_question_bytes,
        max_payload_bytes: config.mqtt.max_payload_bytes,
        queue: config.answer.queue,
        workers: config.model.slots,
        documents: config.mqtt.documents,
        sampling: sampling(config),
    }
}

/// How to reach the broker, without client id and last will.
///
/// # Errors
/// The address, the password file or a credential cannot be used.
pub fn connection_options(config: &Config) -> Result<ConnectionOptions, ServiceError> {
    let broker = config.broker_url().map_err(|problem| ServiceError::System(format!("mqtt.broker {problem}")))?;
    let mqtt = &config.mqtt;
    let given = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
    Ok(ConnectionOptions {
        broker,
        client_id: String::new(),
        version: mqtt.version.clone(),
        credentials: credentials::credentials(mqtt)?,
        tls: TlsOptions {
            ca_file: given(&mqtt.ca_file),
            cert_file: given(&mqtt.cert_file),
            key_file: given(&mqtt.key_file),
            alpn: mqtt.alpn.clone(),
        },
        keep_alive: Duration::from_secs(mqtt.keep_alive_s),
        max_packet: if mqtt.version == "3.1.1" { MQTT_MAX_PACKET } else { mqtt.max_payload_bytes + PACKET_HEADROOM },
        will: None,
        persistent: false,
        receive_maximum: (config.answer.queue + config.model.slots).clamp(16, 1024) as u16,
    })
}

/// Runs the daemon until SIGTERM or SIGINT; `reread` reads the configuration again at SIGHUP.
///
/// # Errors
/// It cannot start; the message names the thing and the remedy.
pub async fn run(loaded: Loaded, reread: Reread) -> Result<(), ServiceError> {
    let started = Instant::now();
    let config = Arc::new(loaded.config);
    log::info!("vademecum {} starting as node {:?}", env!("CARGO_PKG_VERSION"), config.node_name());
    if let Some(file) = &loaded.file {
        log::info!("configuration: {}", file.display());
    }
    let mut terminate = on_signal(SignalKind::terminate())?;
    let mut interrupt = on_signal(SignalKind::interrupt())?;
    let mut hangup = on_signal(SignalKind::hangup())?;
    // Of a terminal it means that the terminal is gone.
    let reloads = !std::io::stderr().is_terminal();

    // Another daemon on the same directory is what a port in use mostly comes from.
    Store::check_free(&config.data_dir())?;
    // The broker first: what it needs is cheap, and a port in use is told before a model is loaded.
    #[cfg(feature = "broker")]
    let broker = start_broker(&config).await?;
    #[cfg(not(feature = "broker"))]
    if config.mqtt.broker.is_empty() {
        return Err(ServiceError::System("this build has no embedded broker; set mqtt.broker".into()));
    }

    let (for_rooms, for_engine) = (Arc::clone(&config), Arc::clone(&config));
    let rooms = tokio::task::spawn_blocking(move || Rooms::open(&for_rooms));
    let engine = tokio::task::spawn_blocking(move || open_engine(&for_engine));
    let ended = |e: tokio::task::JoinError| ServiceError::System(format!("starting failed: {e}"));
    let (rooms, engine) = (rooms.await.map_err(ended)??, engine.await.map_err(ended)??);
    // The default collection exists before its first document: a question to it finds nothing, which is no error.
    rooms.store.create_collection(&config.collection)?;
    let (store, collection) = (rooms.store.clone(), config.collection.clone());
    // The index is brought up to date now rather than at the first question.
    tokio::task::spawn_blocking(move || store.search(&collection, |_| ())).await.map_err(ended)??;
    let info = engine.info().clone();
    let tuned = engine.tuned();
    log::info!(
        "generator {} ({}), context {}, {} decode and {} batch threads",
        info.model,
        info.architecture,
        info.context,
        tuned.threads.decode,
        tuned.threads.batch
    );
    log::info!("embedder {}, {} dimensions", rooms.embedder.name(), rooms.embedder.dimensions());

    let embedder_name = rooms.embedder.name().to_owned();
    let (socket, data_dir) = (config.control_socket(), config.data_dir());
    let answerer = answerer(&config, &rooms, engine.clone());
    let watched = Watched::default();
    let api = Api::new(limits(&config, info.context), answerer, rooms.pipeline.clone(), watched.clone());

    let topics = Topics::new(
        config.topic_base(),
        &config.mqtt.base,
        &config.mqtt.fleet,
        config.mqtt.reply_topics.clone(),
        config.mqtt.high_priority.clone(),
    );
    let mut options = connection_options(&config)?;
    let credentials = options.credentials.clone();
    options.client_id = if config.mqtt.client_id.is_empty() {
        format!("vademecum-{}", config.node_name())
    } else {
        config.mqtt.client_id.clone()
    };
    options.will = Some((topics.of("state"), "offline"));
    options.persistent = true;
    let (connection, sender) = Connection::new(options, topics.subscriptions())?;

    let precompute = if config.model.precompute { Some(start_precomputing(api.answerer().clone())?) } else { None };
    let report = Report {
        api: api.clone(),
        config: Arc::clone(&config),
        info,
        embedder_name,
        started,
        data_dir,
        precompute: precompute.clone(),
    };
    let encoder = rooms.embedder.pulses().to_vec();
    let for_info = report.clone();
    let info_fn: ReportFn = Arc::new(move || for_info.info());
    let follow = Follow { store: rooms.store.clone(), passages: engine.passages().cloned(), precompute };
    let (mail, left) = open_mail(&config)?;
    let changed = Arc::new(Notify::new());
    let server = Server::new(topics, api.clone(), sender.clone(), mail, info_fn, Arc::clone(&changed));
    let turn = api.turn();
    let listener = crate::http::bind(&socket)?;
    let for_status = (report.clone(), Arc::clone(&server));
    let status: ReportFn = Arc::new(move || for_status.0.status(&for_status.1));
    let (for_control, for_changes, max_document) =
        (socket.clone(), Arc::clone(&changed), config.ingest.max_document_bytes as usize);
    let for_socket = api.clone();
    let control = tokio::spawn(async move {
        crate::http::serve(listener, &for_control, for_socket, status, max_document, for_changes).await;
    });

    let for_rebuild = Arc::clone(&changed);
    crate::ingest::start_rebuilding(rooms.pipeline.clone(), Arc::clone(&turn), move || for_rebuild.notify_one())
        .map_err(|error| ServiceError::System(format!("cannot start a thread: {error}")))?;
    let watcher = start_watch(&config, rooms.pipeline, watched, turn, changed.clone())?;

    let (ready_tx, mut ready_rx) = oneshot::channel();
    let (stop_tx, stop_rx) = oneshot::channel();
    let polling = tokio::spawn(Arc::clone(&server).run(connection, left, ready_tx, stop_rx));
    systemd::notify(&[NotifyState::Status("connecting to the broker")]);

    let metrics_every = watch::channel(config.service.metrics_every_s);
    let telling = tokio::spawn(tell(Arc::clone(&server), report, follow, Arc::clone(&changed), metrics_every.1));
    let context = engine.info().context;
    let mut reload =
        Reload { reread, config: (*config).clone(), credentials, context, api, server: Arc::clone(&server), sender, watcher };
    let mut watchdog = systemd::Watchdog::from_environment(engine.pulse(), &encoder);
    let mut looks = watchdog.ticks();
    let mut ready = false;
    let reason = loop {
        tokio::select! {
            version = &mut ready_rx, if !ready => {
                ready = true;
                if let Ok(version) = version {
                    log::info!("ready after {:.2} s, on {} over MQTT {version}", started.elapsed().as_secs_f64(), config.topic_base());
                    systemd::notify(&[NotifyState::Ready, NotifyState::Status("ready")]);
                }
            }
            () = tick(&mut looks) => watchdog.look(ready).await,
            _ = hangup.recv() => {
                if !reloads {
                    break "SIGHUP";
                }
                systemd::reloading();
                reload.reload();
                let _ = metrics_every.0.send(reload.config.service.metrics_every_s);
                changed.notify_one();
                let status = if ready { "ready" } else { "connecting to the broker" };
                systemd::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
            }
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        }
    };

    let grace = reload.config.service.shutdown_grace_s;
    log::info!("{reason}: stopping, {grace} s for the questions at work");
    systemd::notify(&[NotifyState::Stopping, NotifyState::Status("ending the questions at work")]);
    telling.abort();
    server.drain(Duration::from_secs(grace)).await;
    let _ = stop_tx.send(());
    if let Ok(connection) = polling.await {
        connection.close(Duration::from_secs(2)).await;
    }
    control.abort();
    let _ = std::fs::remove_file(&socket);
    #[cfg(feature = "broker")]
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
    engine.shutdown();
    rooms.store.close()?;
    log::info!("stopped");
    Ok(())
}

/// Waits for the next tick, for ever where there are none.
async fn tick(ticks: &mut Option<tokio::time::Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}

/// What follows from the library: states of its passages.
struct Follow {
    store: Store,
    passages: Option<PassageCache>,
    precompute: Option<Precompute>,
}

impl Follow {
    /// To be called at the start and after every change of the library: what was computed over a document goes with it.
    fn library(&self) {
        if let Some(passages) = &self.passages {
            match self.store.numbers() {
                Ok(numbers) => passages.retain(numbers),
                Err(error) => log::warn!("states of removed documents stay: {error}"),
            }
        }
        if let Some(precompute) = &self.precompute {
            precompute.library_changed();
        }
    }
}

/// Publishes `metrics` every so many seconds (0: never) and `info` after every change of what it tells. Publishing waits for the
/// broker; nobody waits for this.
async fn tell(server: Arc<Server>, report: Report, follow: Follow, changed: Arc<Notify>, mut every: watch::Receiver<u64>) {
    follow.library();
    let interval = |seconds: u64| {
        let every = Duration::from_secs(seconds);
        (seconds > 0).then(|| tokio::time::interval_at(tokio::time::Instant::now() + every, every))
    };
    let mut ticks = interval(*every.borrow_and_update());
    loop {
        tokio::select! {
            () = tick(&mut ticks) => {
                server.publish_metrics(&report.metrics(&server)).await;
                server.renew_info().await;
            }
            () = changed.notified() => {
                follow.library();
                server.publish_info().await;
            }
            Ok(()) = every.changed() => ticks = interval(*every.borrow_and_update()),
        }
    }
}

/// Opens the inbox and outbox, and tells what earlier runs have left in them.
fn open_mail(config: &Config) -> Result<(Option<Mail>, Left), ServiceError> {
    if !config.mqtt.durable {
        log::info!("mqtt.durable is off: questions are not kept over a crash");
        return Ok((None, Left::default()));
    }
    let dir = config.data_dir();
    let (mail, left) = Mail::open(&dir).map_err(|e| {
        ServiceError::System(format!(
            "the inbox {}/mail cannot be used: {e}; check its permissions and the free space",
            dir.display()
        ))
    })?;
    if left.damaged > 0 {
        log::error!("{}/mail was damaged in {} places; what could be read of it is taken up", dir.display(), left.damaged);
    }
    Ok((Some(mail), left))
}

/// Follows the configured folders.
fn start_watch(
    config: &Config,
    pipeline: Pipeline,
    watched: Watched,
    turn: Arc<Mutex<()>>,
    changed: Arc<Notify>,
) -> Result<Watcher, ServiceError> {
    let started = Watcher::start(pipeline, &watch_options(config)?, watched, turn, move || changed.notify_one());
    started.map_err(|error| ServiceError::System(format!("ingest.watch: {error}")))
}

/// What is watched.
fn watch_options(config: &Config) -> Result<WatchOptions, ServiceError> {
    let configured = config.watched_folders().map_err(|problem| ServiceError::System(format!("ingest.watch {problem}")))?;
    let mut folders: Vec<Folder> = Vec::new();
    for folder in configured {
        // The first folder of a collection names its documents as `vademecum ingest` does, further ones put their name in front.
        let first = !folders.iter().any(|other| other.collection == folder.collection);
        let name = folder.path.file_name().unwrap_or_default().to_string_lossy();
        let prefix = if first { String::new() } else { format!("{name}/") };
        folders.push(Folder { root: folder.path, collection: folder.collection, prefix });
    }
    let ingest = &config.ingest;
    Ok(WatchOptions {
        folders,
        include: ingest.include.clone(),
        exclude: ingest.exclude.clone(),
        max_document_bytes: ingest.max_document_bytes,
    })
}

fn start_precomputing(answerer: Answerer) -> Result<Precompute, ServiceError> {
    Precompute::start(answerer).map_err(|error| ServiceError::System(format!("model.precompute: {error}")))
}

fn on_signal(kind: SignalKind) -> Result<tokio::signal::unix::Signal, ServiceError> {
    signal(kind).map_err(|e| ServiceError::System(format!("cannot listen for signals: {e}")))
}

#[cfg(feature = "broker")]
async fn start_broker(config: &Config) -> Result<Option<crate::mqtt::broker::Broker>, ServiceError> {
    if !config.mqtt.broker.is_empty() {
        return Ok(None);
    }
    let listen = config
        .broker
        .listen
        .parse()
        .map_err(|_| ServiceError::System(format!("broker.listen is `{}`; write address:port", config.broker.listen)))?;
    Ok(Some(crate::mqtt::broker::Broker::start(listen).await?))
}

/// Makes the reports.
#[derive(Clone)]
struct Report {
    api: Api,
    config: Arc<Config>,
    info: crate::engine::EngineInfo,
    embedder_name: String,
    started: Instant,
    data_dir: PathBuf,
    precompute: Option<Precompute>,
}

impl Report {
    /// What is published as `info`, retained.
    fn info(&self) -> serde_json::Value {
        let limits = self.api.limits();
        let collections = self.api.collections().unwrap_or_default();
        let collections: Vec<_> = collections
            .iter()
            .map(|c| serde_json::json!({ "name": c.name, "documents": c.documents, "chunks": c.chunks }))
            .collect();
        let tuned = self.api.answerer().engine().tuned();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.config.node_name(),
            "model": self.info,
            "processor": crate::llama::variant(),
            "reader": self.api.answerer().strategy(),
            "passages": self.api.answerer().engine().passages().map(crate::engine::PassageCache::stats),
            "precompute": self.precompute.as_ref().map(Precompute::progress),
            "embedder": self.embedder_name,
            "collections": collections,
            "limits": {
                "question_bytes": limits.max_question_bytes,
                "payload_bytes": limits.max_payload_bytes,
                "max_tokens": limits.max_tokens_cap,
                "top_k": crate::names::MAX_TOP_K,
                "questions": limits.queue + limits.workers,
                "deadline_ms": limits.deadline.as_millis() as u64,
                "documents": limits.documents,
            },
            "recovery": self.api.recovery(),
            "threads": tuned.threads,
            "lookup": tuned.lookup,
        })
    }

    /// What is published as `metrics`.
    fn metrics(&self, server: &Server) -> serde_json::Value {
        let mut metrics = metrics::collect(self.api.counters(), server.depth(), self.started.elapsed(), &self.data_dir);
        metrics["delivery"] = server.delivery();
        if let Some(passages) = self.api.answerer().engine().passages() {
            metrics["passages"] = serde_json::json!(passages.stats());
        }
        if let Some(precompute) = &self.precompute {
            metrics["precompute"] = serde_json::json!(precompute.progress());
        }
        let recovery = self.api.recovery();
        metrics["store"] = serde_json::json!({
            "set_aside": recovery.kept_aside.len(),
            "missing": recovery.missing,
            "rebuilt": recovery.rebuilt,
            "failed": recovery.failed.len(),
            "refusing": recovery.refusing,
        });
        metrics
    }

    /// Both, for the control socket.
    fn status(&self, server: &Server) -> serde_json::Value {
        serde_json::json!({ "info": self.info(), "metrics": self.metrics(server) })
    }
}
