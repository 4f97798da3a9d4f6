//! What `documents list` tells of the watched folders.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::store::{Document, FailedDocument, Store, StoreError};

/// A document, or a file on its way to become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The document; of a file that was never taken in only id, collection, bytes and origin are known.
    #[serde(flatten)]
    pub document: Document,
    /// Whether the library has it as it is.
    #[serde(default)]
    pub state: FileState,
    /// Why not, or what is the matter with its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a file is on its way into the library.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// The library has it.
    #[default]
    Ok,
    /// A watched file that is new or has changed, and waits to be read.
    Pending,
    /// It cannot be taken in as it is. A watched file is tried again when it changes and when the daemon starts.
    Failed,
}

impl From<FailedDocument> for Listed {
    fn from(failed: FailedDocument) -> Self {
        Self { document: failed.document, state: FileState::Failed, reason: Some(failed.reason) }
    }
}

impl From<Document> for Listed {
    fn from(document: Document) -> Self {
        Self { document, state: FileState::Ok, reason: None }
    }
}

/// The files of watched folders that the library does not have as they are; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Watched(Arc<Mutex<Notes>>);

/// Collection, id and path.
type Key = (String, String, String);

#[derive(Debug, Default)]
struct Notes {
    files: BTreeMap<Key, Listed>,
    /// Folders that are left alone, and why.
    away: BTreeMap<String, String>,
}

impl Watched {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all of them: other folders are watched from now on.
    pub(super) fn clear(&self) {
        *self.notes() = Notes::default();
    }

    /// Notes where a file is: `document` is what is known of it. One that is in the library is forgotten.
    pub(super) fn note(&self, document: Document, state: FileState, reason: Option<String>) {
        let mut notes = self.notes();
        if state == FileState::Ok {
            notes.files.remove(&key(&document));
        } else {
            notes.files.insert(key(&document), Listed { document, state, reason });
        }
    }

    /// Notes why a folder is left alone, or that it is not. Returns whether that is news.
    pub(super) fn note_folder(&self, root: &Path, away: Option<&str>) -> bool {
        let (root, mut notes) = (root.to_string_lossy().into_owned(), self.notes());
        match away {
            Some(reason) => notes.away.insert(root, reason.to_owned()).as_deref() != Some(reason),
            None => notes.away.remove(&root).is_some(),
        }
    }

    /// Forgets that files of this id could not be taken in: the owner has deleted what there was of them.
    pub fn forget_failed(&self, collection: &str, id: &str) {
        let is_it = |listed: &Listed| listed.document.collection == collection && listed.document.id == id;
        self.notes().files.retain(|_, listed| listed.state != FileState::Failed || !is_it(listed));
    }

    /// The library's documents together with those that it does not have as they are, of `collection` or of all, ordered by
    /// collection and id.
    ///
    /// # Errors
    /// The store's trouble; [`StoreError::UnknownCollection`].
    pub fn list(&self, store: &Store, collection: Option<&str>) -> Result<Vec<Listed>, StoreError> {
        let failed = store.failed(collection)?;
        let documents = match store.known_documents(collection) {
            // Nothing was ever put into it, though something was tried.
            Err(StoreError::UnknownCollection { .. }) if !failed.is_empty() => Vec::new(),
            documents => documents?,
        };
        Ok(self.rows(failed, documents, collection))
    }

    fn rows(&self, failed: Vec<FailedDocument>, documents: Vec<Document>, collection: Option<&str>) -> Vec<Listed> {
        let notes = self.notes();
        let wanted = notes.files.iter().filter(|(_, noted)| collection.is_none_or(|name| name == noted.document.collection));
        let failed = failed.into_iter().map(|failed| (key(&failed.document), Listed::from(failed)));
        // What is known of a file now goes before what became of it last.
        let mut rows: BTreeMap<Key, Listed> = failed.chain(wanted.map(|(key, noted)| (key.clone(), noted.clone()))).collect();
        for mut document in documents {
            // A file that would be a document of the same id is told of in the row of the one that was put by hand.
            if document.origin.is_none() {
                let from = key(&document);
                let same = |(collection, id, _): &&Key| *collection == from.0 && *id == from.1;
                let noted = rows.range(from.clone()..).map(|(key, _)| key).take_while(same).next().cloned();
                if let Some(file) = noted.and_then(|key| rows.remove(&key)) {
                    document.origin.clone_from(&file.document.origin);
                    rows.insert(key(&document), Listed { document, ..file });
                    continue;
                }
            }
            let row = rows
                .entry(key(&document))
                .or_insert_with(|| Listed { reason: notes.trouble_of(&document), ..Listed::from(Document::default()) });
            row.document = document;
        }
        rows.into_values().collect()
    }
}

impl Notes {
    /// What is the matter with the folder that a document comes from.
    fn trouble_of(&self, document: &Document) -> Option<String> {
        let path = Path::new(&document.origin.as_ref()?.path);
        let (root, reason) = self.away.iter().find(|(root, _)| path.starts_with(root))?;
        Some(format!("kept; {root}: {reason}"))
    }
}

fn key(document: &Document) -> Key {
    let path = document.origin.as_ref().map(|origin| origin.path.clone());
    (document.collection.clone(), document.id.clone(), path.unwrap_or_default())
}
