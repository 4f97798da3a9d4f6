//! Questions and documents over MQTT: topics, codec, replies, and the embedded broker.
//!
//! One task polls the connection. Questions wait in a queue and are kept on disk until they are answered (see `questions`);
//! changes of the library are made in their order; every other request has a task of its own. All are acknowledged when they
//! are done.

#[cfg(feature = "broker")]
pub mod broker;
pub mod connection;
mod questions;
mod queue;
mod reply;
pub mod tls;
pub mod topics;

use crate::api::wire::{self, ErrorCode};
use crate::api::{Api, Problem, ReportFn, change_word};
use crate::mail::{Left, Mail};
use connection::{Connection, Message, Notice, Outgoing, Properties, Sender};
use questions::Questions;
use reply::{Addressed, Reply};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use topics::{Kind, Topics};

/// Changes of the library that are known again: more than a broker sends ahead.
const MOST_MADE: usize = 4096;

/// The MQTT side of the daemon.
pub struct Server {
    topics: Topics,
    api: Api,
    sender: Sender,
    questions: Arc<Questions>,
    /// Puts and deletes, to be done in their order.
    changes: UnboundedSender<(Kind, Message)>,
    waiting_changes: Mutex<Option<UnboundedReceiver<(Kind, Message)>>>,
    info: ReportFn,
    /// Told after a change of the library.
    changed: Arc<Notify>,
    /// What was published as `info`.
    told: Mutex<String>,
}

impl Server {
    /// Joins the rooms that requests need. `mail`: where questions and answers are kept; `None` keeps nothing.
    pub fn new(topics: Topics, api: Api, sender: Sender, mail: Option<Mail>, info: ReportFn, changed: Arc<Notify>) -> Arc<Self> {
        let questions = Questions::new(topics.clone(), api.clone(), sender.clone(), mail);
        let (changes, waiting) = unbounded_channel();
        Arc::new(Self {
            topics,
            api,
            sender,
            questions,
            changes,
            waiting_changes: Mutex::new(Some(waiting)),
            info,
            changed,
            told: Mutex::default(),
        })
    }

    /// Polls the connection until `stop` is told; gives the connection back for the goodbye. `ready` hears of the first
    /// acknowledged subscription. `left` is what earlier runs have not answered or delivered.
    pub async fn run(
        self: Arc<Self>,
        mut connection: Connection,
        left: Left,
        ready: oneshot::Sender<&'static str>,
        mut stop: oneshot::Receiver<()>,
    ) -> Connection {
        self.questions.start();
        if let Some(changes) = self.waiting_changes.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(Arc::clone(&self).change(changes));
        }
        let mut left = Some(left);
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
                Notice::Connected { version: v, remembered, uncertain } => {
                    version = v;
                    let Left { unanswered, undelivered, .. } = left.take().unwrap_or_default();
                    let over = self.questions.take_up(unanswered);
                    let unsure = undelivered.into_iter().chain(uncertain).collect();
                    // Publishing waits for this loop.
                    let questions = Arc::clone(&self.questions);
                    tokio::spawn(async move { questions.resume(unsure, over, remembered).await });
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
                Notice::Delivered(number) => self.questions.delivered(number),
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
        let (info, _) = self.told_anew();
        self.publish(self.topics.of("info"), info.into_bytes(), true).await;
    }

    /// Publishes `info` where it says something else than last time: threads were measured, states were kept.
    pub async fn renew_info(&self) {
        let (info, before) = self.told_anew();
        if info != before {
            self.publish(self.topics.of("info"), info.into_bytes(), true).await;
        }
    }

    /// What is to be told now, and what was told last.
    fn told_anew(&self) -> (String, String) {
        let info = (self.info)().to_string();
        let before = std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), info.clone());
        (info, before)
    }

    /// Publishes the metrics, not retained; of those that the broker does not take now, the next ones tell more.
    pub async fn publish_metrics(&self, metrics: &serde_json::Value) {
        let payload = metrics.to_string().into_bytes().into();
        let message = Outgoing { topic: self.topics.of("metrics"), payload, retain: false, properties: Properties::default() };
        self.sender.offer(message).await;
    }

    async fn publish(&self, topic: String, payload: Vec<u8>, retain: bool) {
        let message = Outgoing { topic, payload: payload.into(), retain, properties: Properties::default() };
        if let Err(error) = self.sender.send(message).await {
            log::error!("{error}");
        }
    }

    /// Takes no more questions and waits for those at work, at most `grace`; lays the rest aside, or returns them to their askers.
    pub async fn drain(&self, grace: Duration) {
        self.questions.drain(grace).await;
        let goodbye = self.publish(self.topics.of("state"), b"offline".to_vec(), true);
        let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
    }

    /// Questions at work or waiting.
    pub fn depth(&self) -> usize {
        self.questions.depth()
    }

    /// From now on at most `most` questions may wait.
    pub fn set_queue(&self, most: usize) {
        self.questions.set_queue(most);
    }

    /// What `metrics` tells about delivery.
    pub fn delivery(&self) -> serde_json::Value {
        self.questions.report()
    }

    fn dispatch(self: Arc<Self>, message: Message) {
        let receipt = message.receipt;
        let Some(kind) = self.topics.kind(&message.topic) else {
            return self.acknowledge(receipt);
        };
        if message.retained {
            log::warn!("a retained request on {} is left alone: it would be worked on at every reconnect", message.topic);
            return self.acknowledge(receipt);
        }
        match kind {
            Kind::Ask => self.questions.ask(&message),
            Kind::Receipt => {
                self.questions.receipt(&message.payload);
                self.acknowledge(receipt);
            }
            Kind::Cancel => {
                self.cancel(&message);
                self.acknowledge(receipt);
            }
            // Bounded by what the broker sends ahead of our acknowledgements.
            Kind::Put | Kind::Delete => drop(self.changes.send((kind, message))),
            Kind::Search | Kind::List => drop(tokio::spawn(async move { self.serve(kind, message).await })),
        }
    }

    /// Changes the library as it is asked to, one after another: a document that is put and then deleted is gone, also when the
    /// daemon is killed in between and the broker sends both again. One that comes again over another connection is not made
    /// again: for a moment it would undo those after it.
    async fn change(self: Arc<Self>, mut changes: UnboundedReceiver<(Kind, Message)>) {
        let mut made = VecDeque::new();
        while let Some((kind, message)) = changes.recv().await {
            if let Some(receipt) = message.receipt {
                let content = questions::content_of(&message);
                if message.redelivered && made.iter().any(|(its, was)| receipt.repeats(*its) && content == *was) {
                    log::info!("a change that was made already comes again on {}; it is acknowledged", message.topic);
                    self.sender.acknowledge(receipt).await;
                    continue;
                }
                made.push_back((receipt, content));
                if made.len() > MOST_MADE {
                    made.pop_front();
                }
            }
            self.serve(kind, message).await;
        }
    }

    async fn serve(&self, kind: Kind, message: Message) {
        let receipt = message.receipt;
        match kind {
            Kind::Search => self.search(message).await,
            Kind::Put => self.put(message).await,
            Kind::Delete => self.delete(message).await,
            _ => self.list(message).await,
        }
        // Done, and its reply is on the way before this: whoever has the one has the other.
        if let Some(receipt) = receipt {
            self.sender.acknowledge(receipt).await;
        }
    }

    fn acknowledge(&self, receipt: Option<connection::Receipt>) {
        if let Some(receipt) = receipt {
            let sender = self.sender.clone();
            tokio::spawn(async move { sender.acknowledge(receipt).await });
        }
    }

    fn cancel(&self, message: &Message) {
        let encoding = wire::Encoding::of(&message.payload, message.properties.content_type.as_deref());
        let request = match encoding {
            Some(encoding) => encoding.decode(&message.payload),
            None => wire::CancelRequest::of_text(&message.payload),
        };
        match request {
            Ok(request) => self.questions.cancel(&request.id),
            Err(problem) => log::warn!("a cancel request cannot be read: {problem}"),
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
            let (document, chunks, note) = (outcome.document, outcome.chunks, outcome.note);
            Ok(wire::PutReply { id: reply.id.clone(), document, collection, change, chunks, note })
        };
        let result = result.await;
        let changed = result.as_ref().is_ok_and(|r: &wire::PutReply| r.change != "unchanged");
        self.finish(reply, result).await;
        if changed {
            self.changed.notify_one();
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
            self.changed.notify_one();
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
        Reply::open(&self.topics, message, self.api.limits().max_payload_bytes, None, plain)
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
