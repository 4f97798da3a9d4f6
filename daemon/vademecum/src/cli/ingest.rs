//! `vademecum ingest`: files and folders into the library, through the running daemon or straight into the store.

use super::{Common, Failure, Outcome, document_id, print_json, print_line, progress_bar, runtime, visible};
use crate::assemble::{Rooms, ServiceError};
use crate::config::Config;
use http::{Client, ClientError, PutOutcome};
use library::ingest::{
    FoundFile, IngestError, Outcome as Ingested, Pipeline, Source, Summary, check_glob, load, parse_tag, walk,
};
use library::store::Document;
use read::check_media_type;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files, folders (read with everything below them), or - for standard input
    #[arg(required_unless_present = "re_embed")]
    paths: Vec<PathBuf>,
    /// Read only files that match (repeatable) [default: every readable kind]
    #[arg(long, value_name = "GLOB", value_parser = check_glob)]
    include: Vec<String>,
    /// Leave out files that match (repeatable)
    #[arg(long, value_name = "GLOB", value_parser = check_glob)]
    exclude: Vec<String>,
    /// The document's id, for a single document [default: its path or file name; standard input is stdin]
    #[arg(long, value_name = "ID", value_parser = document_id)]
    id: Option<String>,
    /// The document's title, for a single document
    #[arg(long)]
    title: Option<String>,
    /// The media type, for example text/html [default: told by name and content]
    #[arg(long, value_name = "TYPE", value_parser = check_media_type)]
    media_type: Option<String>,
    /// A tag that questions can filter by (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<(String, String)>,
    /// Compute every vector anew with the configured embedder, from the stored sources
    #[arg(long, conflicts_with_all = ["paths", "include", "exclude", "id", "title", "media_type", "tag"])]
    re_embed: bool,
}

const REMEDY: &str = "name files, or folders that hold .pdf, .docx, .odt, .xlsx, .pptx, .epub, .html, .md, .txt or similar files \
    (others: --include; links are followed inside the folder only); convert manual pages (`mandoc -T html FILE`) and \
    DocBook (`xmlto html-nochunks FILE`) to HTML first";

/// The destination of documents.
enum Library {
    Daemon(Client, tokio::runtime::Runtime),
    Store(Box<Pipeline>),
}

pub(super) fn run(config: &Config, common: &Common, args: &Args) -> Outcome {
    let begun = Instant::now();
    let mut summary = if args.re_embed { re_embed(config)? } else { ingest(config, args)? };
    summary.finish(begun);
    if common.json {
        print_json(&summary)?;
    } else {
        print_line(&visible(&summary.to_string()));
    }
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ingest(config: &Config, args: &Args) -> Result<Summary, Failure> {
    let is_single = args.paths.len() == 1 && !args.paths[0].is_dir();
    if (args.id.is_some() || args.title.is_some()) && !is_single {
        return Err(Failure::Usage("--id and --title are for one document: name a single file, or - for standard input".into()));
    }
    let tags = tags(&args.tag)?;
    let given = |flag: &[String], configured: &[String]| if flag.is_empty() { configured.to_vec() } else { flag.to_vec() };
    let include = given(&args.include, &config.ingest.include);
    let walked =
        walk(&args.paths, &include, &given(&args.exclude, &config.ingest.exclude)).map_err(|e| Failure::Other(e.to_string()))?;
    let mut summary = Summary { failed: walked.failed, passed_over: walked.passed_over, ..Summary::default() };
    if walked.entries.is_empty() {
        if summary.failed.is_empty() {
            let passed_over = &summary.passed_over;
            let seen = if passed_over.count > 0 { format!(" ({passed_over})") } else { String::new() };
            return Err(Failure::Other(format!("no readable files found{seen}; {REMEDY}")));
        }
        return Ok(summary);
    }
    let mut library = open(config)?;
    let total: u64 = walked.entries.iter().map(|entry| entry.bytes).sum();
    let bar = progress_bar(total, "{bar:30} {bytes}/{total_bytes} {msg} ({elapsed} gone, {eta} left)");
    for (entry, more) in walked.entries.iter().zip((0..walked.entries.len() as u32).rev()) {
        let id = args.id.as_ref().unwrap_or(&entry.id);
        bar.set_message(id.clone());
        let result = source(entry, args, &tags, config.ingest.max_document_bytes);
        let result = match result {
            Ok(source) => library.put(&config.collection, source, more)?,
            Err(error) => {
                library.note_failed(&config.collection, id, entry.bytes, &error)?;
                Err(error)
            }
        };
        summary.add(id, &result);
        bar.inc(entry.bytes);
    }
    bar.finish_and_clear();
    Ok(summary)
}

fn tags(given: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut tags = BTreeMap::new();
    for (key, value) in given {
        if tags.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::Usage(format!("--tag {key}=… is given twice; a document has one value for each key")));
        }
    }
    Ok(tags)
}

fn source(entry: &FoundFile, args: &Args, tags: &BTreeMap<String, String>, limit: u64) -> Result<Source, IngestError> {
    let mut source = load(entry, limit)?;
    source.tags.clone_from(tags);
    source.title.clone_from(&args.title);
    source.media_type.clone_from(&args.media_type);
    if let Some(id) = &args.id {
        source.id.clone_from(id);
    }
    Ok(source)
}

fn open(config: &Config) -> Result<Library, Failure> {
    let runtime = runtime()?;
    if let Some(client) = runtime.block_on(Client::connect(&config.control_socket()))? {
        return Ok(Library::Daemon(client, runtime));
    }
    eprintln!("no daemon runs on {}: writing directly to its library", config.data_dir().display());
    Ok(Library::Store(Box::new(super::rooms(config)?.pipeline)))
}

impl Library {
    /// Puts one document, which `more` will follow. The inner error concerns this document only; the outer one ends the run.
    fn put(&mut self, collection: &str, source: Source, more: u32) -> Result<Result<Ingested, IngestError>, Failure> {
        match self {
            Self::Store(pipeline) => match pipeline.put(collection, source) {
                // Without a writable store, every further document would fail alike.
                Err(IngestError::Store(error)) => Err(ServiceError::Store(error).into()),
                result => Ok(result),
            },
            Self::Daemon(client, runtime) => {
                let id = source.id.clone();
                let put = wire::Put {
                    document: source.id,
                    data: Some(serde_bytes::ByteBuf::from(source.bytes)),
                    media_type: source.media_type,
                    title: source.title,
                    collection: Some(collection.to_owned()),
                    tags: source.tags,
                    more: Some(more),
                    ..wire::Put::default()
                };
                match runtime.block_on(client.post::<_, PutOutcome>("documents/put", &put)) {
                    Ok(outcome) => Ok(Ok(ingested(outcome))),
                    Err(ClientError::Refused { message, .. }) => Ok(Err(IngestError::Refused { id, message })),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Records a document that could not even be loaded.
    fn note_failed(&mut self, collection: &str, id: &str, bytes: u64, error: &IngestError) -> Result<(), Failure> {
        let (document, collection) = (id.to_owned(), collection.to_owned());
        match self {
            Self::Store(pipeline) => {
                pipeline.note_failed(&Document { id: document, collection, bytes, ..Document::default() }, error);
                Ok(())
            }
            Self::Daemon(client, runtime) => {
                let failed = wire::Failed { document, collection: Some(collection), bytes, reason: error.reason(id) };
                Ok(runtime.block_on(client.post("documents/failed", &failed))?)
            }
        }
    }
}

fn ingested(outcome: PutOutcome) -> Ingested {
    Ingested {
        change: outcome.reply.change,
        document: outcome.reply.document,
        title: outcome.title,
        chunks: outcome.reply.chunks,
        truncated: outcome.truncated,
        note: outcome.reply.note,
    }
}

/// Ingests every document again from its stored source. After an interruption, just start it again.
fn re_embed(config: &Config) -> Result<Summary, Failure> {
    let store = crate::assemble::open_store(config).map_err(|e| match e {
        ServiceError::Store(library::store::StoreError::Locked { .. }) => Failure::Other(format!("{e}: stop the daemon first")),
        e => e.into(),
    })?;
    let embedder = crate::assemble::open_embedder(config)?;
    let failed = |e: library::store::StoreError| Failure::from(ServiceError::from(e));
    let documents = store.kept().map_err(failed)?;
    store.rebind_embedder(&crate::assemble::embedder_id(&embedder)).map_err(failed)?;
    let rooms = Rooms::join(config, store, embedder);
    let bar = progress_bar(documents.len() as u64, "{bar:30} {pos}/{len} documents {msg} ({elapsed} gone, {eta} left)");
    let mut summary = Summary::default();
    for document in documents {
        bar.set_message(document.id.clone());
        let source = Source::again(&document, rooms.store.source(&document.hash).map_err(failed)?);
        summary.add(&document.id, &rooms.pipeline.put(&document.collection, source));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(summary)
}
