//! Assembles the rooms from the configuration.

mod credentials;
mod doors;

pub(crate) use credentials::credentials;
pub(crate) use doors::found;
pub use doors::{Answering, Documents};

use crate::config::Config;
use crate::models::room;
use answer::{AnswerOptions, Answerer, Encoder, ModelFacts, Prompts};
use desk::Limits;
use library::Encoder as _;
use library::ingest::{IngestOptions, Pipeline};
use library::retrieve::Retriever;
use library::store::{EmbedderId, Store, StoreOptions};
use llm::embed::{EmbedOptions, Embedder};
use llm::engine::{Engine, EngineOptions, GpuLayers, KvCacheOptions, Tuning, Weights};
use llm::gguf::Gguf;
use llm::llama::available_memory;
use llm::tune::{Saved, Topology};
use mqtt::connection::ConnectionOptions;
use mqtt::tls::TlsOptions;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use wire::Sampling;

/// Extra packet size beyond the largest payload on MQTT 5, so that a larger payload gets an error instead of silence.
const PACKET_HEADROOM: usize = 16 * 1024 * 1024;

/// The largest packet that MQTT can carry. A 3.1.1 session that receives a packet above its limit would lose the connection and
/// get the same packet again at once, for ever.
const MQTT_MAX_PACKET: usize = 268_435_455;

/// The reason why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The generator.
    #[error(transparent)]
    Engine(#[from] llm::engine::EngineError),
    /// The embedder.
    #[error(transparent)]
    Embed(#[from] llm::embed::EmbedError),
    /// The store.
    #[error(transparent)]
    Store(#[from] library::store::StoreError),
    /// The connection to the broker.
    #[error(transparent)]
    Connection(#[from] mqtt::connection::ConnectionError),
    /// The embedded broker.
    #[cfg(feature = "broker")]
    #[error(transparent)]
    Broker(#[from] mqtt::broker::BrokerError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] http::SocketError),
    /// No model is configured, and the usual places hold none.
    #[error(
        "no {name} found in {places}; `vademecum model pull NAME` fetches one (`vademecum model list`), or name a file with {flag}"
    )]
    NoModel {
        /// The missing file.
        name: &'static str,
        /// The places searched.
        places: String,
        /// The flag that names one.
        flag: &'static str,
    },
    /// A prompt file.
    #[error(transparent)]
    Prompt(#[from] answer::PromptError),
    /// A fault of the system.
    #[error("{0}")]
    System(String),
}

/// The rooms that work without a network, for `run` and for the command line.
pub struct Rooms {
    /// The store.
    pub store: Store,
    /// The encoder.
    pub embedder: Embedder,
    /// Finds passages.
    pub retriever: Retriever,
    /// Ingests documents.
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
    let path = model_file(config, config.embedder_path(), &config.embedder.path, "embedder.gguf", "--embedder")?;
    Ok(Embedder::load(&path, &options)?)
}

/// A model's path; an error if no key names the file and the usual places lack it.
fn model_file(
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
/// The store is locked or damaged, or may not be written.
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
        probe: read::child::own_program(),
        ..StoreOptions::default()
    };
    Ok(Store::open(&dir, &options)?)
}

/// Refuses to let root work in another user's directory: that user could not write root's files afterwards.
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

/// The identity of an embedder, as a store is bound to it.
pub fn embedder_id(embedder: &Embedder) -> EmbedderId {
    Encoder(embedder.clone()).id()
}

/// The bounds of reading documents, from the configuration.
pub fn ingest_options(config: &Config) -> IngestOptions {
    IngestOptions { max_tokens: config.ingest.chunk_tokens, max_document_bytes: config.ingest.max_document_bytes }
}

impl Rooms {
    /// Opens store and embedder at the same time and joins the rooms around them.
    ///
    /// # Errors
    /// Either cannot be opened, or the store belongs to another embedder.
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

    /// Joins the rooms around a store and its embedder.
    pub fn join(config: &Config, store: Store, embedder: Embedder) -> Self {
        let encoder = Arc::new(Encoder(embedder.clone()));
        let retriever = Retriever::new(store.clone(), Arc::clone(&encoder) as _);
        let pipeline = Pipeline::new(store.clone(), encoder, ingest_options(config));
        Self { store, embedder, retriever, pipeline }
    }
}

/// Sampling parameters of questions that leave them open.
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
        // Some questions are at work, the others wait.
        queue: config.answer.queue + config.model.slots,
        slots: config.model.slots,
        kv_cache: (config.model.kv_cache_mb > 0).then(|| KvCacheOptions {
            dir: config.kv_cache_dir(),
            max_bytes: config.model.kv_cache_mb * 1_000_000,
            min_free: config.model.kv_cache_min_free_mb * 1_000_000,
        }),
    };
    // The folder's name until version 0.1; its KV states are still good.
    let old = config.kv_cache_dir().with_file_name("passages");
    if old.is_dir() && !config.kv_cache_dir().exists() {
        let _ = std::fs::rename(old, config.kv_cache_dir());
    }
    let path = model_file(config, config.generator_path(), &config.model.generator, "generator.gguf", "--generator")?;
    // A clear word before the machine gets slow. A file that does not open is the engine's to report.
    if let Some(word) = Gguf::open(&path).ok().and_then(|gguf| room::too_large(&gguf, config.model.context, &available_memory()))
    {
        log::warn!("{word}; `vademecum model list` shows models that fit");
    }
    Ok(Engine::load(&path, &options)?)
}

/// The memory placement of the generator's weights.
pub(crate) fn weights(config: &Config) -> Weights {
    Weights {
        repack: config.model.repack,
        mlock: config.model.mlock,
        gpu_layers: config.model.gpu_layers().map_or(GpuLayers::Auto, GpuLayers::Exactly),
    }
}

/// Joins retrieval and generation, tells the KV cache which library its states belong to, and has the system prompt read if the
/// generator is going to answer.
///
/// # Errors
/// A prompt file cannot be used, or the generator makes no context.
pub fn answerer(config: &Config, rooms: &Rooms, engine: Engine) -> Result<Answerer, ServiceError> {
    let model = engine.info();
    let facts = ModelFacts { architecture: &model.architecture, parameters: model.parameters, chat_template: model.own_template };
    let prompts = Prompts::load(config.prompts(), facts)?;
    let options = AnswerOptions {
        prompts,
        system: config.answer.system.clone(),
        threshold: config.answer.threshold,
        not_found: config.answer.not_found.clone(),
        // As many as wait for a worker. So the generator's queue has room for all that are at work.
        waiting: config.answer.queue,
        stop: config.answer.stop.clone(),
        strategy: config.answer.strategy,
        patience: Duration::from_millis(config.answer.patience_ms),
        check: config.answer.check,
        sentences: config.answer.sentences,
        cache: config.answer.cache,
    };
    if let Some(cache) = engine.kv_cache() {
        cache.bind(rooms.store.identity());
    }
    let system = options.system().to_owned();
    let answerer = Answerer::new(rooms.retriever.clone(), rooms.embedder.clone(), engine, options);
    if answerer.reads() {
        answerer.engine().warm_up(&system)?;
    }
    Ok(answerer)
}

pub(crate) fn limits(config: &Config, context: u32) -> Limits {
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

/// Options of a connection to the broker, without client id and last will.
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
        credentials: credentials(mqtt)?,
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
