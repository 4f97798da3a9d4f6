//! Rebuilding: documents that the database has lost are taken in again from their sources, one at a time. Questions are
//! answered meanwhile from the documents at hand.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use tokio::sync::Mutex;

use super::{IngestError, Outcome, Pipeline, Source};
use crate::store::{Document, StoreError};

/// Time until another try when the disk refuses.
const RETRY: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Takes in again the next document that the database has lost; `None` when there is none. A document that cannot be read
    /// counts as failed. `progress` is told the document, its chunks embedded so far and in all; 0 of 0 while the document is
    /// read.
    ///
    /// # Errors
    /// The store's trouble: the document is still missing.
    pub fn rebuild_next(&self, progress: &mut dyn FnMut(&Document, usize, usize)) -> Option<Result<Document, StoreError>> {
        let (document, bytes) = self.store().next_missing()?;
        progress(&document, 0, 0);
        Some(match self.put_again(&document, bytes, progress) {
            Ok(_) => Ok(document),
            Err(IngestError::Store(error @ (StoreError::Io { .. } | StoreError::Damaged { .. }))) => Err(error),
            Err(error) => {
                self.store().give_up(&document, &error.to_string());
                Ok(document)
            }
        })
    }

    /// Takes in a document again under its old record.
    fn put_again(
        &self,
        document: &Document,
        bytes: Vec<u8>,
        progress: &mut dyn FnMut(&Document, usize, usize),
    ) -> Result<Outcome, IngestError> {
        let source = Source::again(document, bytes);
        let mut told = |done, of| {
            progress(document, done, of);
            ControlFlow::Continue(())
        };
        self.take_in(&document.collection, source, Some(document), &mut told)
    }
}

impl Source {
    /// The source of a document that is put again.
    pub fn again(document: &Document, bytes: Vec<u8>) -> Self {
        Self {
            id: document.id.clone(),
            name: document.id.clone(),
            media_type: Some(document.media_type.clone()),
            bytes,
            title: document.titled.then(|| document.title.clone()),
            tags: document.tags.clone(),
            origin: document.origin.clone(),
        }
    }
}

/// Starts a thread that rebuilds lost documents for as long as the process lives. `turn` is held while a document is taken in;
/// `changed` is called after each.
///
/// # Errors
/// No thread could be started.
pub fn start(pipeline: Pipeline, turn: Arc<Mutex<()>>, changed: impl Fn() + Send + 'static) -> std::io::Result<()> {
    let work = move || {
        let mut refused = 0;
        loop {
            pipeline.store().wait_for_repair();
            let done = {
                let _turn = turn.blocking_lock();
                pipeline.rebuild_next(&mut |_, _, _| ())
            };
            match done {
                Some(Ok(_)) => {
                    refused = 0;
                    let left = pipeline.store().recovery();
                    if left.missing == 0 {
                        log::info!("rebuilt: {} documents are back, {} failed", left.rebuilt, left.failed.len());
                    }
                    changed();
                }
                Some(Err(error)) => {
                    refused += 1;
                    // The first error may only mean that the database was opened anew. After more, no question waits.
                    pipeline.store().wholeness().stalls(refused > 1);
                    log::warn!("rebuilding waits: {error}");
                    std::thread::sleep(RETRY);
                }
                None => {}
            }
        }
    };
    std::thread::Builder::new().name("rebuild".into()).spawn(work).map(|_| ())
}
