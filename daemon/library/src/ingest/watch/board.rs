//! The watched folders' part in `documents list`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wire::{FileState, Listed, Origin};

use crate::store::{Document, FailedDocument, SourceFile, Store, StoreError};

/// A row of the list: a document or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    document: Document,
    state: FileState,
    reason: Option<String>,
}

impl From<FailedDocument> for Row {
    fn from(failed: FailedDocument) -> Self {
        Self { document: failed.document, state: FileState::Failed, reason: Some(failed.reason) }
    }
}

impl From<Row> for Listed {
    fn from(Row { document, state, reason }: Row) -> Self {
        let origin = document.origin.map(|SourceFile { path, modified_ms, .. }| Origin { path, modified_ms });
        Self {
            id: document.id,
            collection: document.collection,
            title: document.title,
            media_type: document.media_type,
            bytes: document.bytes,
            chunks: document.chunks,
            added_unix: document.added_unix,
            tags: document.tags,
            origin,
            note: document.note,
            state,
            reason,
        }
    }
}

/// The files of watched folders that the library lacks or has in another version; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Watched(Arc<Mutex<Notes>>);

/// Collection, id and path.
type Key = (String, String, String);

#[derive(Debug, Default)]
struct Notes {
    files: BTreeMap<Key, Row>,
    /// Folders that are left alone, and why.
    away: BTreeMap<String, String>,
}

impl Watched {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all files and folders: others are watched from now on.
    pub(super) fn clear(&self) {
        *self.notes() = Notes::default();
    }

    /// Notes a file's state; `document` is its record. A file that is in the library is forgotten.
    pub(super) fn note(&self, document: Document, state: FileState, reason: Option<String>) {
        let mut notes = self.notes();
        if state == FileState::Ok {
            notes.files.remove(&key(&document));
        } else {
            notes.files.insert(key(&document), Row { document, state, reason });
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

    /// Forgets failed files of this id: the owner has deleted the document.
    pub fn forget_failed(&self, collection: &str, id: &str) {
        let is_it = |listed: &Row| listed.document.collection == collection && listed.document.id == id;
        self.notes().files.retain(|_, listed| listed.state != FileState::Failed || !is_it(listed));
    }

    /// Documents, failed documents and pending files of `collection`, or of all, ordered by collection and id.
    ///
    /// # Errors
    /// The store's trouble; [`StoreError::UnknownCollection`].
    pub fn list(&self, store: &Store, collection: Option<&str>) -> Result<Vec<Listed>, StoreError> {
        let failed = store.failed(collection)?;
        let documents = match store.known_documents(collection) {
            // A collection may have failed documents only.
            Err(StoreError::UnknownCollection { .. }) if !failed.is_empty() => Vec::new(),
            documents => documents?,
        };
        Ok(self.rows(failed, documents, collection).into_iter().map(Listed::from).collect())
    }

    fn rows(&self, failed: Vec<FailedDocument>, documents: Vec<Document>, collection: Option<&str>) -> Vec<Row> {
        let notes = self.notes();
        let wanted = notes.files.iter().filter(|(_, noted)| collection.is_none_or(|name| name == noted.document.collection));
        let failed = failed.into_iter().map(|failed| (key(&failed.document), Row::from(failed)));
        // A file's present state overrides its last failure.
        let mut rows: BTreeMap<Key, Row> = failed.chain(wanted.map(|(key, noted)| (key.clone(), noted.clone()))).collect();
        for mut document in documents {
            // A file whose id belongs to a document put by hand is told in that document's row.
            if document.origin.is_none() {
                let from = key(&document);
                let same = |(collection, id, _): &&Key| *collection == from.0 && *id == from.1;
                let noted = rows.range(from.clone()..).map(|(key, _)| key).take_while(same).next().cloned();
                if let Some(file) = noted.and_then(|key| rows.remove(&key)) {
                    document.origin.clone_from(&file.document.origin);
                    rows.insert(key(&document), Row { document, ..file });
                    continue;
                }
            }
            let row = rows.entry(key(&document)).or_insert_with(|| Row {
                document: Document::default(),
                state: FileState::Ok,
                reason: notes.trouble_of(&document),
            });
            row.document = document;
        }
        rows.into_values().collect()
    }
}

impl Notes {
    /// The trouble of the folder that a document comes from.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A document or file; without a path it was put by hand.
    fn document(id: &str, path: &str) -> Document {
        let origin = SourceFile { path: path.into(), modified_ms: 1, mounted: false };
        let origin = (!path.is_empty()).then_some(origin);
        Document { id: id.into(), collection: "c".into(), title: format!("About {id}"), origin, ..Document::default() }
    }

    /// A file as the thread notes it, which has no title yet.
    fn file(id: &str) -> Document {
        Document { title: String::new(), ..document(id, &format!("/srv/{id}")) }
    }

    fn failed(id: &str, reason: &str) -> FailedDocument {
        FailedDocument { document: file(id), reason: reason.into() }
    }

    /// Id, title, state and reason of each row.
    fn shown(rows: &[Row]) -> Vec<(&str, &str, FileState, Option<&str>)> {
        rows.iter().map(|row| (row.document.id.as_str(), row.document.title.as_str(), row.state, row.reason.as_deref())).collect()
    }

    #[test]
    fn a_new_version_is_shown_with_the_old_title() {
        let watched = Watched::default();
        watched.note(file("a.md"), FileState::Pending, None);
        watched.note(file("b.md"), FileState::Failed, Some("no text in it".into()));
        let rows = watched.rows(Vec::new(), vec![document("a.md", "/srv/a.md"), document("c.md", "/srv/c.md")], None);
        let expected = [
            ("a.md", "About a.md", FileState::Pending, None),
            ("b.md", "", FileState::Failed, Some("no text in it")),
            ("c.md", "About c.md", FileState::Ok, None),
        ];
        assert_eq!(shown(&rows), expected);
        assert!(watched.rows(Vec::new(), Vec::new(), Some("d")).is_empty(), "another collection");
    }

    #[test]
    fn the_present_state_overrides_an_old_failure() {
        let watched = Watched::default();
        let old = || vec![failed("a.md", "no text in it")];
        assert_eq!(shown(&watched.rows(old(), Vec::new(), None)), [("a.md", "", FileState::Failed, Some("no text in it"))]);
        watched.note(file("a.md"), FileState::Pending, None);
        assert_eq!(shown(&watched.rows(old(), Vec::new(), None)), [("a.md", "", FileState::Pending, None)]);
        watched.note(file("a.md"), FileState::Ok, None);
        assert!(watched.rows(Vec::new(), Vec::new(), None).is_empty());
    }

    #[test]
    fn a_document_put_by_hand_tells_of_the_file() {
        let watched = Watched::default();
        watched.note(file("a.md"), FileState::Failed, Some("another document was put by hand".into()));
        let rows = watched.rows(Vec::new(), vec![document("a.md", "")], None);
        assert_eq!(shown(&rows), [("a.md", "About a.md", FileState::Failed, Some("another document was put by hand"))]);
        assert_eq!(rows[0].document.origin.as_ref().unwrap().path, "/srv/a.md");
    }

    #[test]
    fn deleting_a_document_forgets_its_failures() {
        let watched = Watched::default();
        watched.note(file("a.md"), FileState::Failed, Some("no text in it".into()));
        watched.note(file("b.md"), FileState::Pending, None);
        watched.forget_failed("d", "a.md");
        assert_eq!(watched.rows(Vec::new(), Vec::new(), None).len(), 2);
        watched.forget_failed("c", "a.md");
        watched.forget_failed("c", "b.md");
        assert_eq!(shown(&watched.rows(Vec::new(), Vec::new(), None)), [("b.md", "", FileState::Pending, None)]);
    }

    #[test]
    fn documents_of_a_folder_away_say_so() {
        let watched = Watched::default();
        let root = Path::new("/srv");
        assert!(watched.note_folder(root, Some("it is empty")), "news");
        assert!(!watched.note_folder(root, Some("it is empty")), "no news");
        let documents = || vec![document("a.md", "/srv/a.md"), document("b.md", "/srv2/b.md"), document("c.md", "")];
        let reasons = |rows: Vec<Row>| rows.into_iter().map(|row| row.reason).collect::<Vec<_>>();
        let rows = watched.rows(Vec::new(), documents(), None);
        assert!(rows.iter().all(|row| row.state == FileState::Ok));
        assert_eq!(reasons(rows), [Some("kept; /srv: it is empty".into()), None, None]);
        assert!(watched.note_folder(root, None));
        assert_eq!(reasons(watched.rows(Vec::new(), documents(), None)), [None, None, None]);
    }
}
