//! The start of the daemon: opens the rooms, then starts the doors and the tasks around them.

use super::publish::{KvStates, publish};
use super::reload::{Reload, Reread};
use super::report::Reporter;
use super::{Running, systemd};
use crate::assemble::{Answering, Documents, Rooms, ServiceError, answerer, connection_options, limits, open_engine};
use crate::config::Config;
use answer::{Answerer, Precompute};
use desk::Desk;
use http::StatusFn;
use library::ingest::Pipeline;
use library::ingest::watch::{Folder, WatchOptions, Watched, Watcher};
use library::store::Store;
use mqtt::connection::{Connection, ConnectionOptions};
use mqtt::mailbox::{Backlog, Mailbox};
use mqtt::topics::Topics;
use mqtt::{InfoFn, Server};
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Mutex, Notify, oneshot, watch};

/// The rooms, before anything serves.
pub(super) struct Opened {
    #[cfg(feature = "broker")]
    broker: Option<mqtt::broker::Broker>,
    rooms: Rooms,
    answerer: Answerer,
}

impl Opened {
    pub(super) async fn open(config: &Arc<Config>) -> Result<Self, ServiceError> {
        // Checked first, because another daemon on the same directory is the usual cause of a port in use.
        Store::check_free(&config.data_dir())?;
        // The broker is cheap to start, and reports a port in use before a model is loaded.
        #[cfg(feature = "broker")]
        let broker = start_broker(config).await?;
        #[cfg(not(feature = "broker"))]
        if config.mqtt.broker.is_empty() {
            return Err(ServiceError::System("this build has no embedded broker; set mqtt.broker".into()));
        }

        let (for_rooms, for_engine) = (Arc::clone(config), Arc::clone(config));
        let rooms = tokio::task::spawn_blocking(move || Rooms::open(&for_rooms));
        let engine = tokio::task::spawn_blocking(move || open_engine(&for_engine));
        let ended = |e: tokio::task::JoinError| ServiceError::System(format!("starting failed: {e}"));
        let (rooms, engine) = (rooms.await.map_err(ended)??, engine.await.map_err(ended)??);
        // The default collection exists before its first document, so that a question finds nothing instead of an error.
        rooms.store.create_collection(&config.collection)?;
        let (store, collection) = (rooms.store.clone(), config.collection.clone());
        // Update the index now, not at the first question.
        tokio::task::spawn_blocking(move || store.search(&collection, |_| ())).await.map_err(ended)??;
        let for_answerer = Arc::clone(config);
        let joined =
            tokio::task::spawn_blocking(move || answerer(&for_answerer, &rooms, engine).map(|answerer| (rooms, answerer)));
        let (rooms, answerer) = joined.await.map_err(ended)??;
        let engine = answerer.engine();
        let (info, threads) = (engine.info(), engine.tuned().threads);
        log::info!(
            "generator {} ({}), context {}, {} decode and {} batch threads",
            info.model,
            info.architecture,
            info.context,
            threads.decode,
            threads.batch
        );
        log::info!("embedder {}, {} dimensions", rooms.embedder.name(), rooms.embedder.dimensions());
        Ok(Self {
            #[cfg(feature = "broker")]
            broker,
            rooms,
            answerer,
        })
    }

    pub(super) fn start(self, config: &Arc<Config>, reread: Reread, started: Instant) -> Result<Running, ServiceError> {
        let rooms = self.rooms;
        let engine = self.answerer.engine().clone();
        let changed = Arc::new(Notify::new());
        let watched = Watched::default();
        let answering = Answering(self.answerer);
        let desk = start_desk(config, &rooms, &answering, &watched, &changed);

        let topics = topics(config);
        let options = session_options(config, &topics)?;
        let credentials = options.credentials.clone();
        let (connection, sender) = Connection::new(options, topics.subscriptions())?;
        let precompute = start_precomputing(config, &answering)?;
        let reporter = Reporter {
            desk: desk.clone(),
            answering,
            store: rooms.store.clone(),
            config: Arc::clone(config),
            embedder: rooms.embedder.name().to_owned(),
            started,
            precompute: precompute.clone(),
        };
        let states = KvStates { store: rooms.store.clone(), cache: engine.kv_cache().cloned(), precompute };
        let (mailbox, backlog) = open_mailbox(config)?;
        let for_info = reporter.clone();
        let info: InfoFn = Arc::new(move || for_info.info());
        let server = Server::new(topics, desk.clone(), sender.clone(), mailbox, info);

        let socket = config.control_socket();
        let listener = http::bind(&socket)?;
        let for_status = (reporter.clone(), Arc::clone(&server));
        let status: StatusFn = Arc::new(move || for_status.0.status(&for_status.1));
        let (path, for_control, max_document) = (socket.clone(), desk.clone(), config.ingest.max_document_bytes as usize);
        let control = tokio::spawn(async move { http::serve(listener, &path, for_control, status, max_document).await });

        let (lock, for_rebuild) = (desk.ingest_lock(), Arc::clone(&changed));
        library::ingest::start_rebuilding(rooms.pipeline.clone(), Arc::clone(&lock), move || for_rebuild.notify_one())
            .map_err(|error| ServiceError::System(format!("cannot start a thread: {error}")))?;
        let watcher = start_watch(config, rooms.pipeline.clone(), watched, lock, Arc::clone(&changed))?;

        let (ready_sender, ready) = oneshot::channel();
        let (stop_polling, stop) = oneshot::channel();
        let polling = tokio::spawn(Arc::clone(&server).run(connection, backlog, ready_sender, stop));
        systemd::notify(&[NotifyState::Status("connecting to the broker")]);
        let (metrics_every, every) = watch::channel(config.service.metrics_every_s);
        let publishing = tokio::spawn(publish(Arc::clone(&server), reporter, states, Arc::clone(&changed), every));
        let context = engine.info().context;
        Ok(Running {
            started,
            topic_base: config.topic_base(),
            #[cfg(feature = "broker")]
            broker: self.broker,
            watchdog: systemd::Watchdog::from_environment(engine.pulse(), rooms.embedder.pulses()),
            reload: Reload { reread, config: (**config).clone(), credentials, context, desk: desk.clone(), sender, watcher },
            rooms,
            engine,
            desk,
            server,
            socket,
            control,
            polling,
            stop_polling,
            ready,
            publishing,
            metrics_every,
            changed,
        })
    }
}

fn start_desk(config: &Config, rooms: &Rooms, answering: &Answering, watched: &Watched, changed: &Arc<Notify>) -> Desk {
    let documents = Documents {
        retriever: rooms.retriever.clone(),
        pipeline: rooms.pipeline.clone(),
        watched: watched.clone(),
        threshold: config.answer.threshold,
    };
    let limits = limits(config, answering.0.engine().info().context);
    let desk = Desk::new(limits, Arc::new(answering.clone()), Arc::new(documents), Arc::clone(changed));
    desk.start();
    desk
}

fn topics(config: &Config) -> Topics {
    Topics::new(
        config.topic_base(),
        &config.mqtt.base,
        &config.mqtt.fleet,
        config.mqtt.reply_topics.clone(),
        config.mqtt.high_priority.clone(),
    )
}

/// Options of the daemon's own session with the broker.
fn session_options(config: &Config, topics: &Topics) -> Result<ConnectionOptions, ServiceError> {
    let mut options = connection_options(config)?;
    options.client_id = if config.mqtt.client_id.is_empty() {
        format!("vademecum-{}", config.node_name())
    } else {
        config.mqtt.client_id.clone()
    };
    options.will = Some((topics.of("state"), "offline"));
    options.persistent = true;
    Ok(options)
}

/// Opens the inbox and outbox, with the open work of earlier runs.
fn open_mailbox(config: &Config) -> Result<(Option<Mailbox>, Backlog), ServiceError> {
    if !config.mqtt.durable {
        log::info!("mqtt.durable is off: questions do not survive a crash");
        return Ok((None, Backlog::default()));
    }
    let dir = config.data_dir();
    let (mailbox, backlog) = Mailbox::open(&dir).map_err(|e| {
        ServiceError::System(format!(
            "the inbox {}/mail cannot be used: {e}; check its permissions and the free space",
            dir.display()
        ))
    })?;
    if backlog.damaged > 0 {
        log::error!("{}/mail was damaged in {} places; the readable part is resumed", dir.display(), backlog.damaged);
    }
    Ok((Some(mailbox), backlog))
}

/// Follows the configured folders.
fn start_watch(
    config: &Config,
    pipeline: Pipeline,
    watched: Watched,
    lock: Arc<Mutex<()>>,
    changed: Arc<Notify>,
) -> Result<Watcher, ServiceError> {
    let started = Watcher::start(pipeline, &watch_options(config)?, watched, lock, move || changed.notify_one());
    started.map_err(|error| ServiceError::System(format!("ingest.watch: {error}")))
}

/// The folders to watch, and the files to read there.
pub(super) fn watch_options(config: &Config) -> Result<WatchOptions, ServiceError> {
    let configured = config.watched_folders().map_err(|problem| ServiceError::System(format!("ingest.watch {problem}")))?;
    let mut folders: Vec<Folder> = Vec::new();
    for folder in configured {
        // The first folder of a collection names its documents as `vademecum ingest` does; later ones add their own name.
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

fn start_precomputing(config: &Config, answering: &Answering) -> Result<Precompute, ServiceError> {
    let started = Precompute::start(&answering.0, config.model.precompute);
    started.map_err(|error| ServiceError::System(format!("model.precompute: {error}")))
}

#[cfg(feature = "broker")]
async fn start_broker(config: &Config) -> Result<Option<mqtt::broker::Broker>, ServiceError> {
    if !config.mqtt.broker.is_empty() {
        return Ok(None);
    }
    let listen = config
        .broker
        .listen
        .parse()
        .map_err(|_| ServiceError::System(format!("broker.listen is `{}`; write address:port", config.broker.listen)))?;
    Ok(Some(mqtt::broker::Broker::start(listen).await?))
}
