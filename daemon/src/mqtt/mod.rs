//! Questions and documents over MQTT: topics, codec, replies, and the embedded broker.
//!
//! One task polls the connection and starts a task for each request; replies go through a bounded queue.

#[cfg(feature = "broker")]
pub mod broker;
pub mod connection;
mod reply;
pub mod topics;

use crate::answer::{AnswerError, Progress, Question};
use crate::api::wire::{self, ErrorCode};
use crate::api::{Api, Problem, ReportFn, change_word, code_of};
use crate::engine::Cancel;
use connection::{Connection, Message, Notice, Outgoing, Properties, Sender};
use reply::{Addressed, Reply};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, oneshot};
use topics::{Kind, Topics};

/// The MQTT side of the daemon.
pub struct Server {
    topics: Topics,
    api: Api,
    sender: Sender,
    /// Questions at work, by id.
    running: Mutex<HashMap<String, Running>>,
    permits: Arc<Semaphore>,
    stopping: AtomicBool,
    idle: Notify,
    info: ReportFn,
}

struct Running {
    cancel: Cancel,
    reply_topic: String,
    question: String,
}

impl Server {
    /// Joins the rooms that requests need.
    pub fn new(topics: Topics, api: Api, sender: Sender, info: ReportFn) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(api.limits().questions));
        let (running, stopping, idle) = (Mutex::default(), AtomicBool::new(false), Notify::new());
        Arc::new(Self { topics, api, sender, running, permits, stopping, idle, info })
    }

    /// Polls the connection until `stop` is told; gives the connection back for the goodbye. `ready` hears of the first
    /// acknowledged subscription.
    pub async fn run(
        self: Arc<Self>,
        mut connection: Connection,
        ready: oneshot::Sender<&'static str>,
        mut stop: oneshot::Receiver<()>,
    ) -> Connection {
        let mut ready = Some(ready);
        let mut version = "5";
        let mut lost_before = false;
        loop {
            // Reconnecting sleeps inside `next`; stopping must not wait for it. Dropping a poll between two packets is
            // harmless: rumqttc keeps what it has read.
            let notice = tokio::select! {
                notice = connection.next() => notice,
                _ = &mut stop => return connection,
            };
            match notice {
                Notice::Connected { version: v } => {
                    version = v;
                    lost_before = false;
                    log::info!("connected to the broker over MQTT {v}");
                }
                Notice::Subscribed => {
                    // Publishing waits for the loop to go on, so it has a task of its own.
                    let (server, ready) = (Arc::clone(&self), ready.take());
                    tokio::spawn(async move {
                        server.announce().await;
                        if let Some(ready) = ready {
                            let _ = ready.send(version);
                        }
                    });
                }
                Notice::SubscriptionRefused => {
                    log::error!(
                        "the broker refuses our subscriptions; allow this client to read {}",
                        self.topics.subscriptions().join(", ")
                    );
                }
                Notice::Message(message) => Arc::clone(&self).dispatch(message),
                Notice::Disconnected(reason) => {
                    if lost_before {
                        log::debug!("the broker is still away: {reason}");
                    } else {
                        log::warn!("no connection to the broker: {reason}; trying again");
                        lost_before = true;
                    }
                }
            }
        }
    }

    /// Publishes `state` = `online` and `info`, both retained.
    async fn announce(&self) {
        self.publish(self.topics.of("state"), b"online".to_vec(), true).await;
        self.publish_info().await;
    }

    /// Publishes `info`, retained: after every change of the library.
    pub async fn publish_info(&self) {
        self.publish(self.topics.of("info"), (self.info)().to_string().into_bytes(), true).await;
    }

    /// Publishes the metrics, not retained.
    pub async fn publish_metrics(&self, metrics: &serde_json::Value) {
        self.publish(self.topics.of("metrics"), metrics.to_string().into_bytes(), false).await;
    }

    async fn publish(&self, topic: String, payload: Vec<u8>, retain: bool) {
        let message = Outgoing { topic, payload: payload.into(), retain, properties: Properties::default() };
        if let Err(error) = self.sender.send(message).await {
            log::error!("{error}");
        }
    }

    /// Refuses new questions and waits for those at work, at most `grace`; then returns the rest to their askers.
    pub async fn drain(&self, grace: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        if tokio::time::timeout(grace, self.wait_idle()).await.is_err() {
            for running in self.running().values() {
                running.cancel.cancel();
            }
            let _ = tokio::time::timeout(Duration::from_secs(2), self.wait_idle()).await;
        }
        let goodbye = self.publish(self.topics.of("state"), b"offline".to_vec(), true);
        let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
    }

    async fn wait_idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.running().is_empty() {
                return;
            }
            idle.await;
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Questions at work or waiting.
    pub fn depth(&self) -> usize {
        self.running().len()
    }

    fn dispatch(self: Arc<Self>, message: Message) {
        let Some(kind) = self.topics.kind(&message.topic) else { return };
        if message.retained {
            log::warn!("a retained request on {} is left alone: it would be worked on at every reconnect", message.topic);
            return;
        }
        match kind {
            Kind::Ask => self.ask(&message),
            Kind::Cancel => self.cancel(&message),
            Kind::Search | Kind::Put | Kind::Delete | Kind::List => {
                tokio::spawn(async move {
                    match kind {
                        Kind::Search => self.search(message).await,
                        Kind::Put => self.put(message).await,
                        Kind::Delete => self.delete(message).await,
                        _ => self.list(message).await,
                    }
                });
            }
        }
    }

    fn cancel(&self, message: &Message) {
        let encoding = wire::Encoding::of(&message.payload, message.properties.content_type.as_deref());
        let id = match encoding {
            Some(encoding) => encoding.decode::<wire::CancelRequest>(&message.payload).map(|request| request.id),
            None => String::from_utf8(message.payload.to_vec()).map(|text| text.trim().to_owned()).map_err(|e| e.to_string()),
        };
        match id {
            Ok(id) => match self.running().get(&id) {
                Some(running) => running.cancel.cancel(),
                None => log::info!("nothing to cancel: no question with id {id:?} is at work"),
            },
            Err(problem) => log::warn!("a cancel request cannot be read: {problem}"),
        }
    }

    /// Starts a question. Everything that can be refused at once is refused here, in the order of arrival.
    fn ask(self: Arc<Self>, message: &Message) {
        let asked = Instant::now();
        let (reply, ask) = self.open(message, |question| Ok(wire::Ask { question, ..wire::Ask::default() }));
        let question = ask.and_then(|ask| Ok((self.api.question(&ask, asked)?, ask.stream.unwrap_or(false))));
        let (question, stream) = match question {
            Ok(question) => question,
            Err((code, problem)) => return self.refuse(reply, code, problem),
        };
        if self.stopping.load(Ordering::Relaxed) {
            return self.refuse(reply, ErrorCode::NotReady, "the daemon is stopping; ask again when it is online".into());
        }
        // A repetition takes no place in the queue: it must not be told that there is none. Messages are taken up one after
        // another, so nothing comes between this look and the entry below.
        let same = |running: &Running| running.reply_topic == reply.topic && running.question == question.text;
        let at_work = self.running().get(&reply.id).map(same);
        match at_work {
            Some(true) => return log::info!("question {:?} is at work already; its repetition is left alone", reply.id),
            Some(false) => {
                let problem =
                    format!("another question with the id {:?} is at work; choose another id or correlation data", reply.id);
                return self.refuse(reply, ErrorCode::BadRequest, problem);
            }
            None => {}
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let problem = format!(
                "{} questions are at work or waiting; ask again later, or raise answer.queue",
                self.api.limits().questions
            );
            return self.refuse(reply, ErrorCode::QueueFull, problem);
        };
        let cancel = Cancel::default();
        self.running().insert(
            reply.id.clone(),
            Running { cancel: cancel.clone(), reply_topic: reply.topic.clone(), question: question.text.clone() },
        );
        tokio::spawn(async move {
            let id = reply.id.clone();
            self.work(reply, question, stream, &cancel).await;
            self.running().remove(&id);
            self.idle.notify_waiters();
            drop(permit);
        });
    }

    fn refuse(self: Arc<Self>, reply: Reply, code: ErrorCode, problem: String) {
        self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move { reply.error(&self.sender, code, problem).await });
    }

    async fn work(&self, mut reply: Reply, question: Question, stream: bool, cancel: &Cancel) {
        // Pieces are published by a task of their own, in order, while the answer is made.
        let (pieces, mut published) = tokio::sync::mpsc::unbounded_channel();
        let publisher = async {
            while let Some(progress) = published.recv().await {
                match progress {
                    Progress::Evidence(evidence) => reply.evidence(&self.sender, evidence).await,
                    Progress::Delta(delta) => reply.delta(&self.sender, delta).await,
                }
            }
            reply
        };
        let answering = async move {
            let mut progress = |progress: Progress| {
                if stream {
                    let _ = pieces.send(progress);
                }
            };
            // The sender goes with this block, which ends the publisher.
            self.api.answerer().answer(&question, cancel, &mut progress).await
        };
        let (answer, reply) = tokio::join!(answering, publisher);
        match answer {
            Ok(answer) => {
                self.api.count(&answer);
                log::info!(
                    VADEMECUM_QUESTION_ID = reply.id.as_str(), VADEMECUM_FOUND = answer.found, VADEMECUM_TTFT_MS = answer.timings.ttft_ms,
                    VADEMECUM_TOTAL_MS = answer.timings.total_ms, VADEMECUM_PROMPT_TOKENS = answer.usage.prompt_tokens, VADEMECUM_ANSWER_TOKENS = answer.usage.answer_tokens;
                    "answered {:?} in {:.0} ms", reply.id, answer.timings.total_ms
                );
                let id = reply.id.clone();
                reply.send(&self.sender, &wire::AnswerReply { id, answer }).await;
            }
            Err(error) => {
                self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
                let stopping = self.stopping.load(Ordering::Relaxed);
                let (code, problem) = match error {
                    AnswerError::Cancelled if stopping => {
                        (ErrorCode::NotReady, "the daemon is stopping; ask again when it is online".to_owned())
                    }
                    error => (code_of(&error), error.to_string()),
                };
                log::warn!(VADEMECUM_QUESTION_ID = reply.id.as_str(); "question {:?} failed: {problem}", reply.id);
                reply.error(&self.sender, code, problem).await;
            }
        }
    }

    async fn search(&self, message: Message) {
        let (reply, ask) = self.open(&message, |question| Ok(wire::Ask { question, ..wire::Ask::default() }));
        let result = async { self.api.search(reply.id.clone(), &ask?).await }.await;
        self.finish(reply, result).await;
    }

    async fn put(&self, message: Message) {
        let (reply, put) = self.open::<wire::Put>(&message, |_| Err(not_plain()));
        let result = async {
            let put = put?;
            self.documents_allowed()?;
            let (collection, outcome) = self.api.put(put).await?;
            let change = change_word(outcome.change).to_owned();
            Ok(wire::PutReply { id: reply.id.clone(), document: outcome.document, collection, change, chunks: outcome.chunks })
        };
        let result = result.await;
        let changed = result.as_ref().is_ok_and(|r: &wire::PutReply| r.change != "unchanged");
        self.finish(reply, result).await;
        if changed {
            self.publish_info().await;
        }
    }

    async fn delete(&self, message: Message) {
        let (reply, delete) = self.open::<wire::Delete>(&message, |_| Err(not_plain()));
        let result = async {
            let delete = delete?;
            self.documents_allowed()?;
            let deleted = self.api.delete(&delete).await?;
            Ok(wire::DeleteReply { id: reply.id.clone(), document: delete.document, deleted })
        };
        let result = result.await;
        let changed = result.as_ref().is_ok_and(|r: &wire::DeleteReply| r.deleted);
        self.finish(reply, result).await;
        if changed {
            self.publish_info().await;
        }
    }

    async fn list(&self, message: Message) {
        let (reply, list) = self.open::<wire::List>(&message, |_| Ok(wire::List::default()));
        let result = async { self.api.list(reply.id.clone(), &list?).await }.await;
        self.finish(reply, result).await;
    }

    fn open<T: serde::de::DeserializeOwned + Addressed>(
        &self,
        message: &Message,
        plain: impl FnOnce(String) -> Result<T, Problem>,
    ) -> (Reply, Result<T, Problem>) {
        Reply::open(&self.topics, message, self.api.limits().max_payload_bytes, plain)
    }

    fn documents_allowed(&self) -> Result<(), Problem> {
        if self.api.limits().documents {
            return Ok(());
        }
        Err((ErrorCode::BadRequest, "documents may not be changed over MQTT; set mqtt.documents = true to allow it".into()))
    }

    async fn finish<T: serde::Serialize>(&self, reply: Reply, result: Result<T, Problem>) {
        match result {
            Ok(value) => reply.send(&self.sender, &value).await,
            Err((code, problem)) => {
                self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
                log::warn!("request {:?} failed: {problem}", reply.id);
                reply.error(&self.sender, code, problem).await;
            }
        }
    }
}

fn not_plain() -> Problem {
    (ErrorCode::BadRequest, "this topic takes a JSON object or a CBOR map, not plain text".into())
}
