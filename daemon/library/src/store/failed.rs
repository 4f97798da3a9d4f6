//! Documents that could not be taken in, each with the reason. A document is listed until it is taken in, deleted or gone.

use serde::{Deserialize, Serialize};

use super::{Batch, Document, MAX_FIELD_BYTES, Store, StoreError, check_collection, check_id, keys, terms};

/// Most documents that are remembered. The sender of any further one is told, and nobody else.
const MAX_FAILED: usize = 1000;

/// A document that could not be taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedDocument {
    /// Its record: id, collection, bytes and, for a watched file, origin.
    pub document: Document,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Remembers that a document could not be taken in, in place of an older reason. Durable when this returns.
    pub fn note_failed(&self, document: &Document, reason: &str) -> Result<(), StoreError> {
        check_collection(&document.collection)?;
        check_id(&document.id)?;
        let failed = FailedDocument { document: document.clone(), reason: terms::cut(reason, MAX_FIELD_BYTES).to_owned() };
        let key = keys::failed(&document.collection, &document.id);
        let _writer = self.writer();
        let known: Option<FailedDocument> = self.get(&key)?;
        let is_full = || Ok::<_, StoreError>(self.failed(None)?.len() >= MAX_FAILED);
        if known.as_ref() == Some(&failed) || (known.is_none() && is_full()?) {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.insert(key, self.encode(&failed)?);
        self.commit(batch)
    }

    /// The documents of a collection, or of all, that could not be taken in, ordered by collection and id.
    pub fn failed(&self, collection: Option<&str>) -> Result<Vec<FailedDocument>, StoreError> {
        let prefix = match collection {
            Some(name) => {
                check_collection(name)?;
                keys::failed(name, "")
            }
            None => keys::FAILED.to_vec(),
        };
        let mut failed = Vec::new();
        self.scan(&prefix, &mut |key, value| {
            failed.push(self.decode(key, value)?);
            Ok(())
        })?;
        Ok(failed)
    }

    /// Forgets that a document could not be taken in. Returns whether it was remembered.
    pub fn forget_failed(&self, collection: &str, id: &str) -> Result<bool, StoreError> {
        if self.value(&keys::failed(collection, id))?.is_none() {
            return Ok(false);
        }
        let _writer = self.writer();
        self.drop_failed(collection, id)
    }

    /// [`Store::forget_failed`] for a caller that holds the writer's lock.
    pub(super) fn drop_failed(&self, collection: &str, id: &str) -> Result<bool, StoreError> {
        let key = keys::failed(collection, id);
        if self.value(&key)?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.remove(key);
        self.commit(batch)?;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    fn document(id: &str) -> Document {
        Document { id: id.to_owned(), collection: "c".to_owned(), ..Document::default() }
    }

    #[test]
    fn failures_are_told_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let reasons = |store: &Store, collection| -> Vec<String> {
            store.failed(collection).unwrap().into_iter().map(|failed| failed.reason).collect()
        };
        {
            let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
            store.note_failed(&document("a"), "no text in it").unwrap();
            store.note_failed(&document("b"), "too large").unwrap();
            store.note_failed(&document("a"), "encrypted").unwrap();
        }
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        assert_eq!(reasons(&store, None), ["encrypted", "too large"]);
        assert_eq!(reasons(&store, Some("c")).len(), 2);
        assert!(reasons(&store, Some("other")).is_empty());
        assert!(store.forget_failed("c", "a").unwrap() && !store.forget_failed("c", "a").unwrap());
        assert!(store.delete("c", "b").unwrap() && !store.delete("c", "b").unwrap());
        assert!(reasons(&store, None).is_empty());
    }

    #[test]
    fn remembered_failures_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), &StoreOptions::default()).unwrap();
        let mut batch = Batch::default();
        for number in 0..MAX_FAILED {
            let failed = FailedDocument { document: document(&format!("{number}")), reason: String::new() };
            batch.insert(keys::failed("c", &failed.document.id), store.encode(&failed).unwrap());
        }
        store.commit(batch).unwrap();
        store.note_failed(&document("one more"), "no").unwrap();
        store.note_failed(&document("7"), &"ä".repeat(MAX_FIELD_BYTES)).unwrap();
        let failed = store.failed(None).unwrap();
        assert_eq!(failed.len(), MAX_FAILED);
        let longest = failed.iter().map(|failed| failed.reason.len()).max().unwrap();
        assert_eq!(longest, MAX_FIELD_BYTES);
        assert!(matches!(store.note_failed(&document(""), "no"), Err(StoreError::DocumentId(_))));
    }
}
