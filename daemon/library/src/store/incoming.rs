//! Putting a document in pieces, so that memory does not grow with it.
//!
//! The first chunks are held back, and most documents go into the database as one batch. The chunks of a longer one are written
//! ahead under the version's number, which no record names yet. Nobody sees them before the last, small batch. The number
//! stands in the database as unfinished meanwhile. The next start removes the leftovers of a crash.

use std::sync::atomic::Ordering;

use super::{
    Batch, Chunk, Document, DocumentRecord, MAX_CHUNK_BYTES, Put, StatementVectors, Store, StoreError, check_collection,
    check_fields, check_id, database, head_of, keys, remove_rows, row, sha256_hex,
    sources::Staged,
    statements,
    terms::{self, Language},
};

/// Chunks held back, and written together.
const HELD_CHUNKS: usize = 256;
/// Keys removed in one batch.
const SWEPT_KEYS: usize = 1024;

/// A document on its way into the store. Dropped before [`Incoming::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming<'a> {
    store: &'a Store,
    document: Document,
    dimensions: usize,
    /// The source, until a document refers to it.
    staged: Option<Staged>,
    /// The language of the first chunks.
    language: Option<Language>,
    /// Chunks that are not written yet.
    held: Vec<Held>,
    /// The version's number, once chunks are written under it.
    number: Option<u64>,
    /// Whether the document is put again, and only while it is missing.
    rebuilt: bool,
    /// The opening of the database that it belongs to. The next opening removes everything unfinished.
    epoch: u64,
    /// Number of chunks so far.
    chunks: u32,
}

/// A chunk's values, encoded.
#[derive(Debug)]
struct Held {
    chunk: Vec<u8>,
    row: Vec<u8>,
    statements: Option<Vec<u8>>,
}

impl Store {
    /// Begins to put a document in place of an older version with the same id, which stays until [`Incoming::commit`]. `source`
    /// is the document's bytes; they are on disk when this returns. `document.chunks` and `document.bytes` are computed here.
    pub fn begin_put(&self, document: &Document, source: &[u8]) -> Result<Incoming<'_>, StoreError> {
        // Opens the database again if that is due.
        drop(self.writer());
        let epoch = self.inner.epoch.load(Ordering::Relaxed);
        let dimensions = self.embedder()?.ok_or(StoreError::NoEmbedder)?.dimensions;
        check_collection(&document.collection)?;
        check_id(&document.id)?;
        check_fields(document)?;
        if document.hash != sha256_hex(source) {
            let reason = "its hash is not the SHA-256 of its source".to_owned();
            return Err(StoreError::Refused { id: document.id.clone(), reason });
        }
        // A full disk is refused before sled meets an error: see the room `recovery`.
        database::check_room(&self.inner.dir)?;
        let staged = self.inner.sources.stage(&document.hash, source)?;
        let document = Document { bytes: source.len() as u64, ..document.clone() };
        Ok(Incoming {
            store: self,
            document,
            staged: Some(staged),
            dimensions,
            language: None,
            held: Vec::new(),
            number: None,
            rebuilt: false,
            epoch,
            chunks: 0,
        })
    }

    /// Removes the leftovers of interrupted puts.
    pub(super) fn sweep_unfinished(&self) -> Result<(), StoreError> {
        let mut keys = Vec::new();
        self.scan(keys::UNFINISHED, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(())
        })?;
        for key in keys {
            let number = key.get(keys::UNFINISHED.len()..).and_then(|number| number.try_into().ok());
            self.sweep(u64::from_be_bytes(number.ok_or_else(|| self.damaged(&key))?))?;
        }
        Ok(())
    }

    /// Removes the chunks and rows of an unfinished number.
    pub(super) fn sweep(&self, number: u64) -> Result<(), StoreError> {
        for prefix in [keys::chunks_of(number), keys::rows_of(number), keys::statements_of(number)] {
            loop {
                let some: Vec<_> = self.guarded(|tree| {
                    let some = tree.scan_prefix(&prefix).keys().take(SWEPT_KEYS);
                    some.collect::<Result<_, _>>().map_err(|error| self.database(error))
                })?;
                if some.is_empty() {
                    break;
                }
                let mut batch = Batch::default();
                for key in some {
                    batch.remove(key);
                }
                self.apply(batch)?;
            }
        }
        let mut batch = Batch::default();
        batch.remove(keys::unfinished(number));
        self.commit(batch)
    }
}

impl Incoming<'_> {
    /// Marks the document as put again because the database has lost it. [`Incoming::commit`] then refuses if the document was
    /// deleted or replaced meanwhile.
    #[must_use]
    pub fn rebuilt(mut self) -> Self {
        self.rebuilt = true;
        self
    }

    /// Adds chunks, in their order, with their unit vectors.
    pub fn append(&mut self, chunks: &[Chunk], vectors: &[Vec<f32>]) -> Result<(), StoreError> {
        self.append_with_statements(chunks, vectors, &vec![StatementVectors::default(); chunks.len()])
    }

    /// Adds chunks, in their order, with their unit vectors and those of their statements.
    pub fn append_with_statements(
        &mut self,
        chunks: &[Chunk],
        vectors: &[Vec<f32>],
        statements: &[StatementVectors],
    ) -> Result<(), StoreError> {
        if chunks.len() != vectors.len() || chunks.len() != statements.len() {
            return Err(self.refused(format!(
                "{} chunks came with {} vectors and {} lists of statements",
                chunks.len(),
                vectors.len(),
                statements.len()
            )));
        }
        let texts = chunks.iter().map(|chunk| chunk.text.as_str());
        let language = *self.language.get_or_insert_with(|| terms::language_of(texts));
        for ((chunk, vector), said) in chunks.iter().zip(vectors).zip(statements) {
            self.check(chunk)?;
            for vector in std::iter::once(vector).chain(&said.vectors) {
                self.check_vector(vector)?;
            }
            let row = row::encode(vector, &head_of(&self.document.title, &chunk.heading), &chunk.text, language);
            let statements = (!said.vectors.is_empty()).then(|| statements::encode(said, self.dimensions));
            self.held.push(Held { chunk: self.store.encode(chunk)?, row, statements });
            self.chunks += 1;
            if self.held.len() >= HELD_CHUNKS {
                self.write_ahead()?;
            }
        }
        Ok(())
    }

    fn check(&self, chunk: &Chunk) -> Result<(), StoreError> {
        let ordinal = self.chunks;
        if chunk.ordinal != ordinal || chunk.document != self.document.id {
            return Err(self.refused(format!("its chunk {ordinal} is named {}", chunk.id())));
        }
        if chunk.text.len() > MAX_CHUNK_BYTES || head_of("", &chunk.heading).len() > MAX_CHUNK_BYTES {
            return Err(self.refused(format!("its chunk {ordinal} is longer than {MAX_CHUNK_BYTES} bytes")));
        }
        Ok(())
    }

    fn check_vector(&self, vector: &[f32]) -> Result<(), StoreError> {
        if vector.len() != self.dimensions || vector.iter().any(|value| !value.is_finite()) {
            return Err(self.refused(format!("a vector of its chunk {} is not {} finite numbers", self.chunks, self.dimensions)));
        }
        Ok(())
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Refused { id: self.document.id.clone(), reason }
    }

    /// Writes the held chunks under a number that is reserved for them.
    fn write_ahead(&mut self) -> Result<(), StoreError> {
        let number = match self.number {
            Some(number) => number,
            None => self.reserve()?,
        };
        self.check_epoch()?;
        let mut batch = Batch::default();
        self.insert_held(&mut batch, number);
        self.store.apply(batch)
    }

    fn reserve(&mut self) -> Result<u64, StoreError> {
        let _writer = self.store.writer();
        self.check_epoch()?;
        let number = self.store.next_number()?;
        let mut batch = Batch::default();
        batch.insert(keys::unfinished(number), &[]);
        batch.insert(keys::SEQUENCE, &number.to_be_bytes());
        self.store.commit(batch)?;
        self.number = Some(number);
        Ok(number)
    }

    fn check_epoch(&mut self) -> Result<(), StoreError> {
        if self.epoch == self.store.inner.epoch.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.number = None;
        let source = std::io::Error::other("the database was opened again meanwhile; put the document once more");
        Err(StoreError::io("finish a document in", &self.store.inner.dir)(source))
    }

    fn insert_held(&mut self, batch: &mut Batch, number: u64) {
        let first = self.chunks - self.held.len() as u32;
        for (held, ordinal) in self.held.drain(..).zip(first..) {
            batch.insert(keys::chunk(number, ordinal), held.chunk);
            batch.insert(keys::row(number, ordinal), held.row);
            if let Some(statements) = held.statements {
                batch.insert(keys::statements(number, ordinal), statements);
            }
        }
    }

    /// Makes the document current.
    ///
    /// Atomic and durable: when this returns, the document survives a power cut. When it fails, the store is as before.
    pub fn commit(mut self) -> Result<Put, StoreError> {
        let store = self.store;
        let _writer = store.writer();
        self.check_epoch()?;
        if self.rebuilt && !store.is_missing(&self.document) {
            return Err(self.refused("it was deleted or replaced while it was rebuilt".to_owned()));
        }
        let document = Document { chunks: self.chunks, ..std::mem::take(&mut self.document) };
        let old: Option<DocumentRecord> = store.get(&keys::document(&document.collection, &document.id))?;
        let number = match self.number {
            Some(number) => number,
            None => store.next_number()?,
        };
        let language = self.language.unwrap_or_default();
        let record = DocumentRecord { number, document, language, terms: terms::VERSION };
        if let Some(staged) = self.staged.take() {
            store.inner.sources.keep(&record, staged)?;
        }
        let mut batch = Batch::default();
        let mut change = [1, i64::from(record.document.chunks)];
        if let Some(old) = &old {
            remove_rows(&mut batch, old);
            change = [0, change[1] - i64::from(old.document.chunks)];
        }
        self.insert_held(&mut batch, number);
        batch.insert(keys::document(&record.document.collection, &record.document.id), store.encode(&record)?);
        batch.remove(keys::unfinished(number));
        store.count(&mut batch, &record.document.collection, change)?;
        // After a failure nobody knows whether the document is there. The next start removes chunks that belong to none.
        self.number = None;
        store.commit(batch)?;
        store.index_put(old.as_ref(), &record);
        let missing = store.no_longer_missing(&record.document, true);
        for old in old.iter().chain(&missing) {
            store.forget_source(old, old.document.hash != record.document.hash);
        }
        Ok(if old.is_some() { Put::Replaced } else { Put::Added })
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && let Err(error) = self.store.sweep(number)
        {
            log::warn!("{error}; the next start tries again");
        }
    }
}
