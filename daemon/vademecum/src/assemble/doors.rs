//! Adapters that let the desk use the rooms behind it.

use answer::{AnswerError, Answerer};
use desk::{Answers, Backup, Library, Outcome, Pending, Put};
use library::ingest::watch::Watched;
use library::ingest::{IngestError, Pipeline, Source};
use library::retrieve::{Passage, Query, Retrieval, RetrieveError, Retriever};
use library::store::{Document, StoreError};
use std::ops::ControlFlow;
use wire::{Answer, Cancel, Failed, Fault, LibraryWork, Listed, PassageReply, Progress, Question, SearchReply};

/// The answering room behind the desk.
#[derive(Clone)]
pub struct Answering(pub Answerer);

impl Answers for Answering {
    fn answer<'a>(
        &'a self,
        question: &'a Question,
        cancel: &'a Cancel,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Pending<'a, Result<Answer, Fault>> {
        let failed = |error: AnswerError| Fault::new(error.code(), error.to_string());
        Box::pin(async move { self.0.answer(question, cancel, progress).await.map_err(failed) })
    }
}

/// The library behind the desk.
#[derive(Clone)]
pub struct Documents {
    /// Finds passages.
    pub retriever: Retriever,
    /// Ingests documents.
    pub pipeline: Pipeline,
    /// The files of watched folders.
    pub watched: Watched,
    /// Below this confidence the library holds no answer.
    pub threshold: f32,
}

impl Library for Documents {
    fn search(&self, id: String, question: &Question) -> Result<SearchReply, Fault> {
        let query = Query {
            text: question.text.clone(),
            collection: question.collection.clone(),
            filter: question.filter.clone(),
            without: question.without.clone(),
            top_k: question.top_k,
        };
        // Read before the search: see `answer::waiting`.
        let state = self.pipeline.store().library_state(Some(&question.collection));
        let retrieval = self.retriever.search(&query).map_err(|e: RetrieveError| Fault::new(e.code(), e.to_string()))?;
        let state = state.map_err(storage)?;
        Ok(SearchReply { library: (state.state != LibraryWork::Whole).then_some(state), ..found(id, retrieval, self.threshold) })
    }

    fn put(&self, put: Put, goes_on: &dyn Fn() -> bool) -> Result<Outcome, Fault> {
        let store = self.pipeline.store();
        let present = store.document(&put.collection, &put.document).is_ok_and(|present| present.is_some());
        let more = put.more.map(|more| more as usize);
        let _on_its_way = store.wholeness().puts(&put.collection, &put.document, present, more);
        let source = Source {
            id: put.document.clone(),
            name: put.document,
            media_type: put.media_type,
            bytes: put.bytes,
            title: put.title,
            tags: put.tags,
            origin: None,
        };
        let mut progress = |_, _| if goes_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        let outcome = self.pipeline.put_with_progress(&put.collection, source, &mut progress);
        let outcome = outcome.map_err(|e: IngestError| Fault::new(e.code(), e.to_string()))?;
        let library::ingest::Outcome { change, title, chunks, truncated, note, .. } = outcome;
        Ok(Outcome { change, title, chunks, truncated, note })
    }

    fn delete(&self, collection: &str, document: &str) -> Result<bool, Fault> {
        let deleted = self.pipeline.store().delete(collection, document).map_err(storage)?;
        self.watched.forget_failed(collection, document);
        Ok(deleted)
    }

    fn note_failed(&self, collection: &str, failed: &Failed) -> Result<(), Fault> {
        let document = Document {
            id: failed.document.clone(),
            collection: collection.to_owned(),
            bytes: failed.bytes,
            ..Document::default()
        };
        self.pipeline.store().note_failed(&document, &failed.reason).map_err(storage)
    }

    fn list(&self, collection: Option<&str>) -> Result<Vec<Listed>, Fault> {
        self.watched.list(self.pipeline.store(), collection).map_err(storage)
    }

    fn backup(&self) -> Result<Backup, Fault> {
        let snapshot = self.pipeline.store().snapshot().map_err(storage)?;
        Ok(Box::new(move |out| snapshot.write(out).map(drop)))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn storage(error: StoreError) -> Fault {
    Fault::new(error.code(), error.to_string())
}

/// Converts a retrieval for the desk. Below `threshold` the library holds no answer.
pub(crate) fn found(id: String, retrieval: Retrieval, threshold: f32) -> SearchReply {
    let passage = |(i, p): (usize, Passage)| PassageReply {
        n: i + 1,
        document: p.document,
        title: p.title,
        heading: p.heading,
        page: p.page,
        chunk: p.chunk,
        score: p.score,
        text: p.text,
    };
    SearchReply {
        id,
        found: !retrieval.passages.is_empty() && retrieval.confidence >= threshold,
        confidence: retrieval.confidence,
        library: None,
        embed_ms: answer::rounded(retrieval.embed_ms),
        search_ms: answer::rounded(retrieval.search_ms),
        passages: retrieval.passages.into_iter().enumerate().map(passage).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retrieval_is_found_above_the_threshold() {
        let retrieval = |confidence, ids: &[&str]| Retrieval {
            passages: ids.iter().map(|id| Passage { document: (*id).into(), ..Passage::default() }).collect(),
            confidence,
            embed_ms: 1.23456,
            ..Retrieval::default()
        };
        let both = found(String::new(), retrieval(0.5, &["a", "b"]), 0.5);
        assert!(both.found);
        let ranks: Vec<_> = both.passages.iter().map(|passage| (passage.n, passage.document.as_str())).collect();
        assert_eq!(ranks, [(1, "a"), (2, "b")]);
        assert!((both.embed_ms - 1.235).abs() < 1e-9);
        let unsure = found(String::new(), retrieval(0.4, &["a"]), 0.5);
        assert!(!unsure.found && unsure.passages.len() == 1, "passages are shown all the same");
        assert!(!found(String::new(), retrieval(1.0, &[]), 0.0).found);
    }
}
