//! Made-up rooms for the tests of the shell: answers and a library under the test's control.

pub(crate) use crate::made_up::{answer, limits};
use crate::{Answers, Asker, Backup, Desk, End, Library, Outcome, Pending, Put, Safe};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, Semaphore, mpsc};
use wire::{Answer, Cancel, Change, ErrorCode, Failed, Fault, Listed, Progress, Question, SearchReply};

/// Answers with the question's own text, one answer for each permit.
pub(crate) struct Echo {
    pub(crate) permits: Semaphore,
    pub(crate) at_work: AtomicUsize,
}

impl Default for Echo {
    fn default() -> Self {
        Self { permits: Semaphore::new(0), at_work: AtomicUsize::new(0) }
    }
}

impl Answers for Echo {
    fn answer<'a>(
        &'a self,
        question: &'a Question,
        cancel: &'a Cancel,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Pending<'a, Result<Answer, Fault>> {
        Box::pin(async move {
            self.at_work.fetch_add(1, Ordering::SeqCst);
            progress(Progress::Evidence(vec![]));
            assert_ne!(question.text, "panic", "as asked");
            if question.text == "patient" {
                progress(Progress::Waiting);
            }
            let go = async { self.permits.acquire().await.expect("open").forget() };
            let done = tokio::select! {
                () = go => Ok(answer(&question.text)),
                () = cancel.cancelled() => Err(Fault::new(ErrorCode::Cancelled, "the question was cancelled")),
            };
            progress(Progress::Delta(question.text.clone()));
            self.at_work.fetch_sub(1, Ordering::SeqCst);
            done
        })
    }
}

/// A library in memory.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<BTreeMap<(String, String), Vec<u8>>>);

impl Library for Shelf {
    fn search(&self, id: String, question: &Question) -> Result<SearchReply, Fault> {
        if question.collection == "default" {
            Ok(SearchReply { id, passages: vec![], found: true, confidence: 1.0, library: None, embed_ms: 0.0, search_ms: 0.0 })
        } else {
            Err(Fault::new(ErrorCode::UnknownCollection, "there is no such collection"))
        }
    }

    fn put(&self, put: Put, goes_on: &dyn Fn() -> bool) -> Result<Outcome, Fault> {
        if put.bytes.is_empty() {
            return Err(Fault::bad_request("no text in it"));
        }
        if put.document == "endless" {
            while goes_on() {
                std::thread::yield_now();
            }
            return Err(Fault::bad_request("given up"));
        }
        let mut documents = self.0.lock().expect("lock");
        let change = match documents.insert((put.collection, put.document), put.bytes.clone()) {
            None => Change::Added,
            Some(before) if before == put.bytes => Change::Unchanged,
            Some(_) => Change::Replaced,
        };
        Ok(Outcome { change, title: "title".into(), chunks: 1, truncated: 0, note: None })
    }

    fn delete(&self, collection: &str, document: &str) -> Result<bool, Fault> {
        Ok(self.0.lock().expect("lock").remove(&(collection.into(), document.into())).is_some())
    }

    fn note_failed(&self, _: &str, _: &Failed) -> Result<(), Fault> {
        Ok(())
    }

    fn list(&self, collection: Option<&str>) -> Result<Vec<Listed>, Fault> {
        let documents = self.0.lock().expect("lock");
        let wanted = documents.keys().filter(|(of, _)| collection.is_none_or(|name| name == of));
        Ok(wanted
            .map(|(collection, id)| Listed { id: id.clone(), collection: collection.clone(), ..Listed::default() })
            .collect())
    }

    fn backup(&self) -> Result<Backup, Fault> {
        Ok(Box::new(|out| out.write_all(b"all of it")))
    }
}

/// Calls that an asker has received.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Begun,
    Evidence,
    Delta(String),
    Answer(String),
    Fault(ErrorCode),
    LaidAside,
}

/// An asker that reports each call.
pub(crate) struct Ear(pub(crate) mpsc::UnboundedSender<Heard>);

impl Ear {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Heard>) {
        let (heard, listen) = mpsc::unbounded_channel();
        (Arc::new(Self(heard)), listen)
    }
}

impl Asker for Ear {
    fn streams(&self) -> bool {
        true
    }

    fn begun(&self) {
        let _ = self.0.send(Heard::Begun);
    }

    fn progress(&self, progress: Progress) -> Pending<'_, ()> {
        let _ = self.0.send(match progress {
            Progress::Waiting => panic!("for the desk alone"),
            Progress::Evidence(_) => Heard::Evidence,
            Progress::Delta(delta) => Heard::Delta(delta),
        });
        Box::pin(async {})
    }

    fn end<'a>(&'a self, end: End, safe: Safe<'a>) -> Pending<'a, ()> {
        safe();
        let _ = self.0.send(match end {
            End::Answer(answer) => Heard::Answer(answer.answer),
            End::Fault(fault) => Heard::Fault(fault.code),
        });
        Box::pin(async {})
    }

    fn laid_aside(&self) {
        let _ = self.0.send(Heard::LaidAside);
    }
}

/// A desk in front of an [`Echo`] and a [`Shelf`], and the signal of changes.
pub(crate) fn desk() -> (Desk, Arc<Echo>, Arc<Notify>) {
    let (echo, changed) = (Arc::new(Echo::default()), Arc::new(Notify::new()));
    let answers: Arc<dyn Answers> = Arc::clone(&echo) as _;
    let desk = Desk::new(limits(), answers, Arc::new(Shelf::default()), Arc::clone(&changed));
    desk.start();
    (desk, echo, changed)
}
