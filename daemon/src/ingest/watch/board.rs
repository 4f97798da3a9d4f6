//! What `documents list` tells of the watched folders.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::store::Document;

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
    /// A watched file that cannot be taken in as it is; it is tried again when it changes and when the daemon starts.
    Failed,
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

    /// The library's documents together with the files that it does not have as they are, those of `collection` or of all,
    /// ordered by collection and id.
    pub fn list(&self, documents: Vec<Document>, collection: Option<&str>) -> Vec<Listed> {
        let notes = self.notes();
        let wanted = notes.files.iter().filter(|(_, noted)| collection.is_none_or(|name| name == noted.document.collection));
        let mut rows: BTreeMap<Key, Listed> = wanted.map(|(key, noted)| (key.clone(), noted.clone())).collect();
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
