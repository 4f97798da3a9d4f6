//! The life of a document, whatever door it comes through: put, delete, list, search, and the signal of a change.

use crate::Desk;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use wire::{
    Ask, Change, Delete, DeleteReply, ErrorCode, Failed, Fault, List, ListReply, Listed, PutReply, Question, SearchReply,
};

/// Documents in one page of a list.
const LIST_PAGE: usize = 1000;

/// A document to put.
#[derive(Debug, Clone, Default)]
pub struct Put {
    /// The collection.
    pub collection: String,
    /// The document's id.
    pub document: String,
    /// Its media type, if the sender knows it.
    pub media_type: Option<String>,
    /// Its title, if the sender gives one.
    pub title: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Documents that its sender puts right after it, if the sender tells.
    pub more: Option<u32>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The result of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The change of the library.
    pub change: Change,
    /// The document's title.
    pub title: String,
    /// Its chunks.
    pub chunks: u32,
    /// Chunks that were cut at the encoder's limit.
    pub truncated: u32,
    /// A note for its owner, such as pages that are damaged.
    pub note: Option<String>,
}

/// Writes a backup.
pub type Backup = Box<dyn FnOnce(&mut dyn Write) -> std::io::Result<()> + Send>;

/// The room that holds the documents. Calls may block on the disk and the encoder.
pub trait Library: Send + Sync + 'static {
    /// Finds passages, for the request `id`.
    ///
    /// # Errors
    /// The collection is unknown, or a room failed.
    fn search(&self, id: String, question: &Question) -> Result<SearchReply, Fault>;

    /// Puts a document. Gives up between two batches of chunks as soon as `goes_on` returns false.
    ///
    /// # Errors
    /// The document cannot be read, a bound is broken, or a room failed.
    fn put(&self, put: Put, goes_on: &dyn Fn() -> bool) -> Result<Outcome, Fault>;

    /// Deletes a document, and its record of a failed ingest; `false` if neither existed.
    ///
    /// # Errors
    /// A broken bound, or a failure of the store.
    fn delete(&self, collection: &str, document: &str) -> Result<bool, Fault>;

    /// Records that a document could not even be sent.
    ///
    /// # Errors
    /// A broken bound, or a failure of the store.
    fn note_failed(&self, collection: &str, failed: &Failed) -> Result<(), Fault>;

    /// Lists the documents of one collection or of all, with failed documents and files on their way.
    ///
    /// # Errors
    /// The collection is unknown, or the store failed.
    fn list(&self, collection: Option<&str>) -> Result<Vec<Listed>, Fault>;

    /// A backup of the current library.
    ///
    /// # Errors
    /// The store failed.
    fn backup(&self) -> Result<Backup, Fault>;
}

impl Desk {
    /// Finds passages, without an answer.
    ///
    /// # Errors
    /// A broken bound, an unknown collection, or a failure of a room.
    pub async fn search(&self, id: String, ask: &Ask) -> Result<SearchReply, Fault> {
        let named = id.clone();
        let found = async {
            let question = self.limits().question(ask, "", Instant::now())?;
            let library = Arc::clone(&self.0.library);
            blocking(move || library.search(named, &question)).await
        };
        self.counted(&id, found.await)
    }

    /// Puts a document, one at a time. Dropping the future gives up the document.
    ///
    /// # Errors
    /// The document cannot be read, a bound is broken, or a room failed.
    pub async fn put(&self, id: String, put: wire::Put) -> Result<(PutReply, Outcome), Fault> {
        let result = async {
            let collection = self.limits().collection(put.collection.as_deref())?;
            let bytes = match (put.data, put.text) {
                (Some(data), None) => data.into_vec(),
                (None, Some(text)) => text.into_bytes(),
                _ => return Err(Fault::bad_request("a document has either text or data")),
            };
            let document = Put {
                collection: collection.clone(),
                document: put.document.clone(),
                media_type: put.media_type,
                title: put.title,
                tags: put.tags,
                more: put.more,
                bytes,
            };
            let lock = self.ingest_lock().lock_owned().await;
            let given_up = Arc::new(AtomicBool::new(false));
            let _guard = SetOnDrop(Arc::clone(&given_up));
            let library = Arc::clone(&self.0.library);
            let work = move || {
                let _lock = lock;
                library.put(document, &|| !given_up.load(Ordering::Relaxed))
            };
            Ok((collection, blocking(work).await?))
        };
        let (collection, outcome) = self.counted(&id, result.await)?;
        if outcome.change != Change::Unchanged {
            self.0.changed.notify_one();
        }
        let Outcome { change, chunks, ref note, .. } = outcome;
        Ok((PutReply { id, document: put.document, collection, change, chunks, note: note.clone() }, outcome))
    }

    /// Deletes a document.
    ///
    /// # Errors
    /// A broken bound, or a failure of the store.
    pub async fn delete(&self, id: String, delete: Delete) -> Result<DeleteReply, Fault> {
        let result = async {
            let collection = self.limits().collection(delete.collection.as_deref())?;
            let (library, document) = (Arc::clone(&self.0.library), delete.document.clone());
            blocking(move || library.delete(&collection, &document)).await
        };
        let deleted = self.counted(&id, result.await)?;
        if deleted {
            self.0.changed.notify_one();
        }
        Ok(DeleteReply { id, document: delete.document, deleted })
    }

    /// Records a document that its sender could not even send.
    ///
    /// # Errors
    /// A broken bound, or a failure of the store.
    pub async fn note_failed(&self, failed: Failed) -> Result<(), Fault> {
        let result = async {
            let collection = self.limits().collection(failed.collection.as_deref())?;
            let library = Arc::clone(&self.0.library);
            blocking(move || library.note_failed(&collection, &failed)).await
        };
        self.counted("", result.await)
    }

    /// Lists documents, failed documents, and the files of watched folders on their way, a page at a time.
    ///
    /// # Errors
    /// A broken bound, an unknown collection, or a failure of the store.
    pub async fn list(&self, id: String, list: &List) -> Result<ListReply, Fault> {
        let result = async {
            let limits = self.limits();
            let collection = list.collection.as_deref().map(|name| limits.collection(Some(name))).transpose()?;
            let library = Arc::clone(&self.0.library);
            blocking(move || library.list(collection.as_deref())).await
        };
        let documents = self.counted(&id, result.await)?;
        let total = documents.len();
        let (skip, limit) = (list.skip.unwrap_or(0), list.limit.unwrap_or(LIST_PAGE).min(LIST_PAGE));
        Ok(ListReply { id, documents: documents.into_iter().skip(skip).take(limit).collect(), total })
    }

    /// The current library, to be written as one file.
    ///
    /// # Errors
    /// The store failed.
    pub async fn backup(&self) -> Result<Backup, Fault> {
        let library = Arc::clone(&self.0.library);
        let result = blocking(move || library.backup()).await;
        self.counted("backup", result)
    }

    fn counted<T>(&self, id: &str, result: Result<T, Fault>) -> Result<T, Fault> {
        result.inspect_err(|fault| self.refuse(id, fault))
    }
}

/// Dropping it signals that nobody waits any longer.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let ended = |error: tokio::task::JoinError| Fault::new(ErrorCode::Internal, format!("an internal task failed: {error}"));
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}

#[cfg(test)]
mod tests;
