//! The whole way of one document into the store, and the account of many.

use std::{
    fmt,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use read::{ReadError, Reading, given_title, media_type_of};
use wire::Change;

use super::{
    Chunks, DEFAULT_MAX_DOCUMENT_BYTES, DEFAULT_MAX_TOKENS, IngestError, PassedOver, Source, TextChunk, check_bounds, chunk,
    counted, embedded_text,
};
use crate::{
    Encoded, Encoder, Parted,
    retrieve::{STATEMENTS_VERSION, statements_of_chunk},
    store::{Chunk, Document, Incoming, Put, StatementVectors, Store, StoreError, sha256_hex},
};

/// Most chunks of one document: 32 MiB of text, the most that a document may have, make about as many.
const MAX_CHUNKS: usize = 65_536;

/// Version of the readers and the chunker. Raise it with every change that documents already in a library should get: they are
/// read again at their next put.
const READER_VERSION: u32 = 4;

/// Cutting a document of more chunks leaves much free memory. It is given back before embedding, which takes minutes.
const LONG_CHUNKS: usize = 1024;

/// Chunks embedded in one call, so that questions and progress get their turn.
const BATCH_CHUNKS: usize = 32;

/// How documents are taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestOptions {
    /// Most embedder tokens in a chunk; the embedder's own limit comes first.
    pub max_tokens: usize,
    /// Largest document in bytes.
    pub max_document_bytes: u64,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self { max_tokens: DEFAULT_MAX_TOKENS, max_document_bytes: DEFAULT_MAX_DOCUMENT_BYTES }
    }
}

/// The result of [`Pipeline::put`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The change that the put made.
    pub change: Change,
    /// The document's id.
    pub document: String,
    /// Its title, as given or found.
    pub title: String,
    /// Its number of chunks.
    pub chunks: u32,
    /// Chunks that the embedder cut short.
    pub truncated: u32,
    /// Something the owner should know, such as a guessed encoding.
    pub note: Option<String>,
}

/// Takes documents into a store; clones share both ends.
#[derive(Clone)]
pub struct Pipeline {
    store: Store,
    encoder: Arc<dyn Encoder>,
    options: IngestOptions,
}

impl Pipeline {
    /// A pipeline from sources to `store` through `encoder`.
    pub fn new(store: Store, encoder: Arc<dyn Encoder>, options: IngestOptions) -> Self {
        Self { store, encoder, options }
    }

    /// The store that documents go into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes in one document. One with the same bytes, title, type and tags as the one in the store costs a hash only.
    ///
    /// Blocks while it embeds: call it from a thread of its own. Binds the store to the embedder if it has none.
    ///
    /// # Errors
    /// Any [`IngestError`]; the store is then unchanged.
    pub fn put(&self, collection: &str, source: Source) -> Result<Outcome, IngestError> {
        self.put_with_progress(collection, source, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Pipeline::put`] with `progress` called after each batch: chunks embedded, and chunks in all. A break gives the
    /// document up. A document that fails is remembered as failed until it succeeds.
    pub fn put_with_progress(
        &self,
        collection: &str,
        source: Source,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Outcome, IngestError> {
        let document = Document {
            id: source.id.clone(),
            collection: collection.into(),
            bytes: source.bytes.len() as u64,
            origin: source.origin.clone(),
            ..Document::default()
        };
        let result = self.take_in(collection, source, None, progress);
        match &result {
            Ok(_) => tell_of(self.store.forget_failed(collection, &document.id).map(drop)),
            Err(error) => self.note_failed(&document, error),
        }
        result
    }

    /// Remembers that a document could not be taken in, if the fault is its own.
    pub fn note_failed(&self, document: &Document, error: &IngestError) {
        if error.is_of_document() {
            tell_of(self.store.note_failed(document, &error.reason(&document.id)));
        }
    }

    /// Takes in a document; `lost` is its record if the database has lost it.
    pub(super) fn take_in(
        &self,
        collection: &str,
        mut source: Source,
        lost: Option<&Document>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Outcome, IngestError> {
        check_bounds(&source)?;
        if source.bytes.len() as u64 > self.options.max_document_bytes {
            return Err(IngestError::TooLarge { id: source.id, limit: self.options.max_document_bytes });
        }
        self.store.bind_embedder(&self.encoder.id())?;
        let mut document = self.record(collection, &source);
        if let Some(lost) = lost {
            document.added_unix = lost.added_unix;
        } else if let Some(present) = self.store.document(collection, &source.id)?
            && is_same(&present, &document, &source)?
        {
            if present.origin != source.origin {
                self.store.set_origin(collection, &source.id, source.origin)?;
            }
            return Ok(outcome(Change::Unchanged, &present, 0));
        }
        let reading = guarded(&source.id, || read::read(source.original()))?.map_err(unreadable(&source.id))?;
        if let Some(note) = &reading.note {
            log::warn!("{}: {note}", source.id);
        }
        document.title.clone_from(&reading.title);
        document.media_type = media_type_of(source.original()).map_err(unreadable(&source.id))?;
        document.note.clone_from(&reading.note);
        let mut incoming = self.store.begin_put(&document, &source.bytes)?;
        if lost.is_some() {
            incoming = incoming.rebuilt();
        }
        // The text is enough from here on; free the bytes of a long document.
        source.bytes = Vec::new();
        let count = |text: &str| self.encoder.count_tokens(text);
        let parts = self.parts(&document, &reading, &count)?;
        document.chunks = parts.len() as u32;
        let truncated = self.embed(&document, parts, &mut incoming, progress)?;
        let change = match incoming.commit()? {
            Put::Added => Change::Added,
            Put::Replaced => Change::Replaced,
        };
        Ok(outcome(change, &document, truncated))
    }

    /// Most tokens of a chunk.
    fn limit(&self) -> usize {
        self.options.max_tokens.min(self.encoder.max_tokens())
    }

    /// The record of a document before it is read.
    fn record(&self, collection: &str, source: &Source) -> Document {
        Document {
            id: source.id.clone(),
            collection: collection.into(),
            hash: sha256_hex(&source.bytes),
            bytes: source.bytes.len() as u64,
            added_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            tags: source.tags.clone(),
            titled: given_title(source.original()).is_some(),
            recipe: format!("{READER_VERSION}/{}", self.limit()),
            origin: source.origin.clone(),
            ..Document::default()
        }
    }

    fn parts<'a>(
        &self,
        document: &Document,
        reading: &'a Reading,
        count: &'a dyn Fn(&str) -> usize,
    ) -> Result<Chunks<'a>, IngestError> {
        let parts = guarded(&document.id, || chunk(reading, self.limit(), count))?;
        match parts.len() {
            0 => Err(unreadable(&document.id)(ReadError::Empty)),
            1..=MAX_CHUNKS => {
                if parts.len() > LONG_CHUNKS {
                    crate::heap::give_back();
                }
                Ok(parts)
            }
            chunks => Err(IngestError::TooManyChunks { id: document.id.clone(), chunks, limit: MAX_CHUNKS }),
        }
    }

    /// Embeds the parts and hands them over, a batch at a time; returns how many were truncated.
    fn embed(
        &self,
        document: &Document,
        mut parts: Chunks<'_>,
        incoming: &mut Incoming<'_>,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<u32, IngestError> {
        let (mut truncated, mut ordinals) = (0, 0..);
        loop {
            let batch: Vec<TextChunk> = guarded(&document.id, || parts.by_ref().take(BATCH_CHUNKS).collect())?;
            if batch.is_empty() {
                break;
            }
            let texts = batch.iter().map(|part| parted(&document.title, part)).collect();
            let encoded = self.encoder.embed_parted(texts)?;
            truncated += encoded.iter().filter(|encoded| encoded.truncated).count() as u32;
            let of_statements = |vectors| StatementVectors { version: STATEMENTS_VERSION, vectors };
            let (vectors, statements): (Vec<Vec<f32>>, Vec<StatementVectors>) =
                encoded.into_iter().map(|Encoded { vector, parts, .. }| (vector, of_statements(parts))).unzip();
            let chunks: Vec<Chunk> =
                batch.into_iter().zip(ordinals.by_ref()).map(|(part, ordinal)| numbered(document, part, ordinal)).collect();
            incoming.append_with_statements(&chunks, &vectors, &statements)?;
            if progress(document.chunks as usize - parts.len(), document.chunks as usize).is_break() {
                return Err(IngestError::Cancelled { id: document.id.clone() });
            }
        }
        if truncated > 0 {
            log::warn!("{}: longer than the embedder reads: {}", document.id, counted(u64::from(truncated), "chunk"));
        }
        Ok(truncated)
    }
}

/// Logs that the list of failed documents cannot be kept: no reason to fail.
fn tell_of(noted: Result<(), StoreError>) {
    if let Err(error) = noted {
        log::warn!("the list of failed documents cannot be written: {error}");
    }
}

/// The text that is embedded for a chunk, and the places of its statements in it.
fn parted(title: &str, part: &TextChunk) -> Parted {
    let text = embedded_text(title, &part.heading, &part.text);
    let before = text.len() - part.text.len();
    let places = statements_of_chunk(&part.text).into_iter().map(|said| before + said.place.start..before + said.place.end);
    Parted { parts: places.collect(), text }
}

fn numbered(document: &Document, part: TextChunk, ordinal: u32) -> Chunk {
    Chunk {
        document: document.id.clone(),
        ordinal,
        heading: part.heading,
        page: part.page,
        text: part.text,
        breaks: part.breaks,
        sections: part.sections,
        offset: part.offset,
        tokens: part.tokens,
    }
}

/// Runs a reader or the chunker; a panic becomes an error of this document.
fn guarded<T>(id: &str, work: impl FnOnce() -> T) -> Result<T, IngestError> {
    let failed = |panic: Box<dyn std::any::Any + Send>| ReadError::ReaderFailed { message: read::panic_message(panic.as_ref()) };
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| unreadable(id)(failed(panic)))
}

/// Names the document in an error of its reader.
fn unreadable(id: &str) -> impl FnOnce(ReadError) -> IngestError + '_ {
    move |source| IngestError::Read { id: id.to_owned(), source }
}

/// Whether putting `new`, which is not read yet, would change nothing of `present` but the time.
fn is_same(present: &Document, new: &Document, source: &Source) -> Result<bool, IngestError> {
    let like = |document: &Document| (document.hash.clone(), document.tags.clone(), document.titled, document.recipe.clone());
    let same_title = given_title(source.original()).is_none_or(|title| title == present.title);
    Ok(like(present) == like(new)
        && same_title
        && media_type_of(source.original()).map_err(unreadable(&source.id))? == present.media_type)
}

fn outcome(change: Change, document: &Document, truncated: u32) -> Outcome {
    let (title, chunks, note) = (document.title.clone(), document.chunks, document.note.clone());
    Outcome { change, document: document.id.clone(), title, chunks, truncated, note }
}

/// The account of a run over many documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Documents that are new.
    pub added: u64,
    /// Documents that the library had already.
    pub unchanged: u64,
    /// Documents that took the place of another version.
    pub replaced: u64,
    /// Documents that failed: id or path, and reason.
    pub failed: Vec<(String, String)>,
    /// Files of folders that no glob took.
    pub passed_over: PassedOver,
    /// Chunks that were embedded.
    pub chunks: u64,
    /// Chunks that the embedder cut short.
    pub truncated: u64,
    /// Notes for the owners of documents: id and note.
    pub notes: Vec<(String, String)>,
    /// Wall time.
    pub seconds: f64,
}

impl Summary {
    /// Enters one document's result under its id.
    pub fn add(&mut self, id: &str, result: &Result<Outcome, IngestError>) {
        match result {
            Ok(outcome) => {
                match outcome.change {
                    Change::Added => self.added += 1,
                    Change::Unchanged => self.unchanged += 1,
                    Change::Replaced => self.replaced += 1,
                }
                if outcome.change != Change::Unchanged {
                    self.chunks += u64::from(outcome.chunks);
                }
                self.truncated += u64::from(outcome.truncated);
                self.notes.extend(outcome.note.iter().map(|note| (id.to_owned(), note.clone())));
            }
            Err(error) => self.failed.push((id.to_owned(), error.reason(id))),
        }
    }

    /// Sets the wall time, at the end.
    pub fn finish(&mut self, begun: Instant) {
        self.seconds = begun.elapsed().as_secs_f64();
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, unchanged, replaced, failed, passed_over, chunks, truncated, notes, seconds } = self;
        write!(out, "{added} added, {unchanged} unchanged, {replaced} replaced, {} failed; ", failed.len())?;
        write!(out, "{} in {seconds:.1} s", counted(*chunks, "chunk"))?;
        if *seconds > 0.0 && *chunks > 0 {
            write!(out, " ({:.1} chunks/s)", *chunks as f64 / seconds)?;
        }
        if *truncated > 0 {
            let (chunks, are) = (counted(*truncated, "chunk"), if *truncated == 1 { "is" } else { "are" });
            write!(out, "\n  {chunks} {are} longer than the embedder reads, which left out the rest")?;
        }
        if passed_over.count > 0 {
            write!(out, "\n  {passed_over}; `--include '*.ENDING'` takes such files")?;
        }
        for (id, note) in notes {
            write!(out, "\n  note: {id}: {note}")?;
        }
        for (id, message) in failed {
            write!(out, "\n  failed: {id}: {message}")?;
        }
        Ok(())
    }
}

/// A tag given as `key=value`, as on a command line.
///
/// # Errors
/// The fault.
pub fn parse_tag(tag: &str) -> Result<(String, String), String> {
    let (key, value) = tag.split_once('=').ok_or("write it as key=value")?;
    let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
    wire::names::check_tag(&key, &value)?;
    Ok((key, value))
}

#[cfg(test)]
#[allow(clippy::format_collect, clippy::format_push_string)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        EncodeError,
        encoder::real,
        store::{EmbedderId, SourceFile, StoreOptions},
    };

    /// Counts its calls; the tests are about the pipeline's own work.
    struct Counting {
        dimensions: usize,
        embedded: AtomicUsize,
        largest_batch: AtomicUsize,
    }

    impl Default for Counting {
        fn default() -> Self {
            Self { dimensions: 2, embedded: AtomicUsize::new(0), largest_batch: AtomicUsize::new(0) }
        }
    }

    impl Encoder for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        fn fingerprint(&self) -> &'static str {
            "f"
        }

        fn dimensions(&self) -> usize {
            self.dimensions
        }

        fn max_tokens(&self) -> usize {
            100
        }

        fn count_tokens(&self, text: &str) -> usize {
            assert!(!text.contains("PANIC"), "asked to");
            text.split_whitespace().count()
        }

        fn letters_per_token(&self, _: &str) -> f32 {
            unreachable!("the pipeline asks nothing")
        }

        fn embed_query(&self, _: &str) -> Result<Vec<f32>, EncodeError> {
            unreachable!("the pipeline asks nothing")
        }

        fn embed_parted(&self, texts: Vec<Parted>) -> Result<Vec<Encoded>, EncodeError> {
            self.embedded.fetch_add(texts.len(), Ordering::Relaxed);
            self.largest_batch.fetch_max(texts.len(), Ordering::Relaxed);
            let vector = vec![1.0 / (self.dimensions as f32).sqrt(); self.dimensions];
            let encoded = |Parted { text, parts }: &Parted| Encoded {
                vector: vector.clone(),
                truncated: text.contains("LONG"),
                parts: vec![vector.clone(); parts.len()],
            };
            Ok(texts.iter().map(encoded).collect())
        }
    }

    struct Bench {
        _dir: tempfile::TempDir,
        store: Store,
        encoder: Arc<Counting>,
        pipeline: Pipeline,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let encoder = Arc::new(Counting::default());
        let options = IngestOptions { max_document_bytes: 1 << 20, ..IngestOptions::default() };
        let pipeline = Pipeline { store: store.clone(), encoder: encoder.clone(), options };
        Bench { _dir: dir, store, encoder, pipeline }
    }

    fn source(id: &str, text: &str) -> Source {
        Source { id: id.into(), name: id.into(), bytes: text.into(), ..Source::default() }
    }

    #[test]
    fn the_same_again_costs_nothing() {
        let Bench { store, encoder, pipeline, _dir } = bench();
        let first = pipeline.put("default", source("a.md", "# Pump\n\nIt pumps.")).unwrap();
        assert_eq!((first.change, first.chunks, first.title.as_str()), (Change::Added, 1, "Pump"));
        let again = pipeline.put("default", source("a.md", "# Pump\n\nIt pumps.")).unwrap();
        assert_eq!((again.change, again.chunks), (Change::Unchanged, 1));
        assert_eq!(encoder.embedded.load(Ordering::Relaxed), 1);

        let tagged = Source { tags: [("site".to_owned(), "north".to_owned())].into(), ..source("a.md", "# Pump\n\nIt pumps.") };
        assert_eq!(pipeline.put("default", tagged.clone()).unwrap().change, Change::Replaced);
        let titled = Source { title: Some("Mine".into()), ..tagged };
        assert_eq!(pipeline.put("default", titled).unwrap().change, Change::Replaced);
        assert_eq!(pipeline.put("default", source("a.md", "# Pump\n\nIt leaks.")).unwrap().change, Change::Replaced);
        assert_eq!(pipeline.put("other", source("a.md", "# Pump\n\nIt leaks.")).unwrap().change, Change::Added);
        assert_eq!(store.documents(Some("default")).unwrap().len(), 1);
        assert_eq!(store.document("default", "a.md").unwrap().unwrap().title, "Pump");
    }

    #[test]
    fn batches_are_bounded_and_progress_is_told() {
        let Bench { encoder, pipeline, _dir, .. } = bench();
        let text: String = (0..100).map(|n| format!("{}\n\n", format!("w{n} ").repeat(60))).collect();
        let mut told = Vec::new();
        let outcome = pipeline
            .put_with_progress("default", source("a.txt", &text), &mut |done, of| {
                told.push((done, of));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(outcome.chunks, 100);
        assert!(encoder.largest_batch.load(Ordering::Relaxed) <= BATCH_CHUNKS);
        assert_eq!(told.last(), Some(&(100, 100)));
        assert!(told.len() >= 3);
    }

    #[test]
    fn giving_up_changes_nothing() {
        let Bench { store, encoder, pipeline, _dir } = bench();
        let text = format!("{}\n\n", "word ".repeat(60)).repeat(100);
        let result = pipeline.put_with_progress("default", source("a.txt", &text), &mut |_, _| ControlFlow::Break(()));
        assert!(matches!(result, Err(IngestError::Cancelled { .. })));
        assert_eq!(encoder.embedded.load(Ordering::Relaxed), BATCH_CHUNKS);
        assert!(store.documents(None).unwrap().is_empty());
    }

    #[test]
    fn the_origin_follows_without_reading() {
        let Bench { store, encoder, pipeline, _dir } = bench();
        let origin = |ms| Some(SourceFile { path: "/srv/a.md".into(), modified_ms: ms, mounted: false });
        for origin in [origin(1), origin(2), None] {
            let put = Source { origin: origin.clone(), ..source("a.md", "# Pump\n\nIt pumps.") };
            pipeline.put("default", put).unwrap();
            assert_eq!(store.document("default", "a.md").unwrap().unwrap().origin, origin);
        }
        assert_eq!(encoder.embedded.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn another_way_of_cutting_is_another_document() {
        let Bench { pipeline, encoder, store, _dir } = bench();
        pipeline.put("default", source("a.md", "# Pump\n\nIt pumps.")).unwrap();
        let options = IngestOptions { max_tokens: 50, ..IngestOptions::default() };
        let other = Pipeline { store, encoder: encoder.clone(), options };
        assert_eq!(other.put("default", source("a.md", "# Pump\n\nIt pumps.")).unwrap().change, Change::Replaced);
        assert_eq!(other.put("default", source("a.md", "# Pump\n\nIt pumps.")).unwrap().change, Change::Unchanged);
    }

    #[test]
    fn one_bad_document_does_not_stop_the_rest() {
        let Bench { store, pipeline, _dir, .. } = bench();
        let begun = Instant::now();
        let mut summary = Summary::default();
        let documents = [
            source("good.md", "# Good\n\nLONG text"),
            source("panic.md", "PANIC"),
            Source { bytes: b"\x89PNG\r\n\x1a\n\0\0".to_vec(), ..source("photo.png", "") },
            source("empty.txt", "  "),
            source("big.txt", &"x ".repeat(1 << 20)),
            Source { bytes: b"caf\xE9".to_vec(), ..source("latin.txt", "") },
            source("good.md", "# Good\n\nLONG text"),
        ];
        for document in documents {
            let id = document.id.clone();
            summary.add(&id, &pipeline.put("default", document));
        }
        summary.finish(begun);
        assert_eq!((summary.added, summary.unchanged, summary.replaced), (2, 1, 0));
        assert_eq!((summary.chunks, summary.truncated), (2, 1));
        let failed: Vec<&str> = summary.failed.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(failed, ["panic.md", "photo.png", "empty.txt", "big.txt"]);
        assert_eq!(store.documents(None).unwrap().len(), 2);
        let note = store.document("default", "latin.txt").unwrap().unwrap().note.unwrap();
        assert!(note.starts_with("not UTF-8"), "{note}");
        let again = Source { bytes: b"caf\xE9".to_vec(), ..source("latin.txt", "") };
        assert_eq!(pipeline.put("default", again).unwrap().note, Some(note), "it is told of as long as it holds");
        let shown = summary.to_string();
        for part in [
            "2 added, 1 unchanged, 0 replaced, 4 failed; 2 chunks",
            "failed: photo.png: a PNG image cannot be read",
            "note: latin.txt: not UTF-8",
            "1 chunk is longer",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
        assert!(serde_json::to_value(&summary).unwrap()["failed"].is_array());
    }

    #[test]
    fn rebuilding_tells_how_far_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let pipeline = || {
            let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
            Pipeline { store, encoder: Arc::new(Counting::default()), options: IngestOptions::default() }
        };
        let text = format!("{}\n\n", "word ".repeat(60)).repeat(40);
        pipeline().put("default", source("a.txt", &text)).unwrap();
        std::fs::remove_dir_all(dir.path().join("db")).unwrap();
        let pipeline = pipeline();
        pipeline.store.bind_embedder(&pipeline.encoder.id()).unwrap();
        let mut told = Vec::new();
        let done = pipeline.rebuild_next(&mut |document, done, of| told.push((document.id.clone(), done, of)));
        assert_eq!(done.unwrap().unwrap().id, "a.txt");
        let expected = [(0, 0), (BATCH_CHUNKS, 40), (40, 40)].map(|(done, of)| ("a.txt".to_owned(), done, of));
        assert_eq!(told, expected);
        assert!(pipeline.rebuild_next(&mut |_, _, _| ()).is_none());
    }

    #[test]
    fn another_encoder_is_refused_at_once() {
        let Bench { store, encoder, pipeline, _dir } = bench();
        store.bind_embedder(&EmbedderId { name: "other".into(), fingerprint: "g".into(), dimensions: 2 }).unwrap();
        let error = pipeline.put("default", source("a.md", "text")).unwrap_err();
        assert!(error.to_string().contains("--re-embed"), "{error}");
        assert_eq!(encoder.embedded.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn tags_are_parsed() {
        assert_eq!(parse_tag("site = north").unwrap(), ("site".to_owned(), "north".to_owned()));
        assert_eq!(parse_tag("kind=a=b").unwrap().1, "a=b");
        assert!(["site", "=north", &format!("site={}", "x".repeat(257))].iter().all(|tag| parse_tag(tag).is_err()));
    }

    #[test]
    fn failures_are_remembered_until_mended() {
        let Bench { store, pipeline, _dir, .. } = bench();
        let failed = || store.failed(None).unwrap().into_iter().map(|f| (f.document.id, f.reason)).collect::<Vec<_>>();
        let origin = Some(SourceFile { path: "/srv/a.md".into(), modified_ms: 1, mounted: false });
        pipeline.put("default", Source { origin: origin.clone(), ..source("a.md", "  ") }).unwrap_err();
        pipeline.put("default", source("b.md", &"x ".repeat(1 << 20))).unwrap_err();
        // An empty id names no document, and the document is not to blame.
        pipeline.put("default", source("", "text")).unwrap_err();
        let text = format!("{}\n\n", "word ".repeat(60)).repeat(100);
        pipeline.put_with_progress("default", source("c.md", &text), &mut |_, _| ControlFlow::Break(())).unwrap_err();
        let [a, b] = &failed()[..] else { panic!("{:?}", failed()) };
        assert_eq!(*a, ("a.md".to_owned(), "no text in it".to_owned()));
        assert!(b.0 == "b.md" && b.1.contains("ingest.max_document_bytes"), "{b:?}");
        assert_eq!(store.failed(None).unwrap()[0].document.origin, origin);
        // A good version, a bad one, and the good one again.
        for text in ["It pumps.", " ", "It pumps."] {
            let _ = pipeline.put("default", source("a.md", text));
        }
        assert_eq!(failed().len(), 1);
    }

    /// Anonymous memory of this process in MiB.
    fn anonymous_mib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    }

    /// The largest document that the configuration allows by default, without the encoder's own memory.
    #[test]
    #[ignore = "takes half a minute; run it with --run-ignored all"]
    fn memory_does_not_grow_with_the_document() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let encoder = Arc::new(Counting { dimensions: 384, ..Counting::default() });
        let pipeline = Pipeline { store, encoder, options: IngestOptions::default() };
        let mut text = String::new();
        for n in 0.. {
            if text.len() > 30 << 20 {
                break;
            }
            text += &format!("Paragraph {n} says that valve V-{n} opens at {} bar and closes again after a while.\n\n", n % 7);
        }
        let before = anonymous_mib();
        let mut peak = 0;
        let mut watch = |done: usize, of: usize| {
            peak = peak.max(anonymous_mib());
            if done == of {
                println!("{of} chunks");
            }
            ControlFlow::Continue(())
        };
        pipeline.put_with_progress("default", source("a.txt", &text), &mut watch).unwrap();
        println!("{before} MiB before, {peak} MiB while it was embedded, {} MiB after", anonymous_mib());
        // Memory holds the text once, the places of its chunks, and sled's own share (40 MiB, however long the document is).
        assert!(peak - before < 100);
    }

    /// A part of the demo's manual through the real encoder.
    #[test]
    fn the_demo_manual_goes_in_whole() {
        let embedder = real::embedder();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let pipeline = Pipeline::new(store.clone(), real::encoder(&embedder), IngestOptions::default());
        let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/demo");
        let found = crate::ingest::walk(&[demo], &["maintenance.md".into()], &[]).unwrap();
        let begun = Instant::now();
        let mut summary = Summary::default();
        for entry in &found.entries {
            let source = crate::ingest::load(entry, DEFAULT_MAX_DOCUMENT_BYTES).unwrap();
            summary.add(&entry.id, &pipeline.put("default", source));
        }
        summary.finish(begun);
        println!("{summary}");
        assert_eq!((summary.added, summary.failed.len(), summary.truncated), (1, 0, 0));
        let document = store.document("default", "maintenance.md").unwrap().unwrap();
        assert_eq!(document.title, "Kelvessa HPC-7 Maintenance Manual");
        assert!((10..30).contains(&document.chunks), "{}", document.chunks);
        every_statement_ranks_as_alone(&store, &embedder);
    }

    /// The kept vectors of a chunk's statements choose the same ones as vectors encoded apart.
    fn every_statement_ranks_as_alone(store: &Store, embedder: &llm::embed::Embedder) {
        let retriever = crate::retrieve::Retriever::new(store.clone(), real::encoder(embedder));
        let mut chunks = Vec::new();
        store.for_each_chunk("default", &mut |chunk| chunks.push(chunk)).unwrap();
        let questions = [
            "How often is the filter in the return cleaned?",
            "What torque do the mains terminals need?",
            "Which pressure is too low for the heating water?",
            "What is the charge of R290?",
            "How do I clean the fins of the outdoor unit?",
            "Who replaces the buffer battery of the clock?",
            "May I clean the controller with solvents?",
        ];
        let (mut statements, mut agree) = (0, 0);
        for question in questions {
            let query = crate::retrieve::Query {
                text: question.into(),
                collection: "default".into(),
                top_k: chunks.len(),
                ..crate::retrieve::Query::default()
            };
            let retrieval = retriever.search(&query).unwrap();
            let cosine = |vector: &[f32]| vector.iter().zip(&retrieval.vector).map(|(a, b)| a * b).sum::<f32>();
            for passage in &retrieval.passages {
                assert!(passage.statements.iter().all(|statement| statement.vector.is_some()), "{}", passage.chunk);
                statements += passage.statements.len();
            }
            let said = &retrieval.passages[0].statements;
            let texts: Vec<String> = said.iter().map(|statement| statement.text.clone()).collect();
            let apart: Vec<f32> = embedder.embed(&texts).unwrap().iter().map(|embedding| cosine(&embedding.vector)).collect();
            let late: Vec<f32> = said.iter().map(|statement| cosine(statement.vector.as_deref().unwrap())).collect();
            let best = (0..late.len()).max_by(|a, b| late[*a].total_cmp(&late[*b])).unwrap();
            let better = apart.iter().filter(|cosine| **cosine > apart[best]).count();
            println!("{question} -> {} (place {better} of {} apart)", texts[best], texts.len());
            agree += usize::from(better < 2);
        }
        let is_heading =
            |chunk: &Chunk, at: usize| chunk.sections.iter().any(|inner| (inner.at..inner.body).contains(&(at as u32)));
        let said =
            |chunk: &Chunk| statements_of_chunk(&chunk.text).iter().filter(|said| !is_heading(chunk, said.place.start)).count();
        let expected: usize = chunks.iter().map(said).sum();
        assert!(chunks.iter().any(|chunk| !chunk.sections.is_empty()));
        assert_eq!(statements, expected * questions.len());
        assert!(agree >= questions.len() - 1, "{agree} of {}", questions.len());
    }
}
