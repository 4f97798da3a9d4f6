//! The MQTT door: connection, topics, delivery, and the embedded broker.
//!
//! | module | one job |
//! |---|---|
//! | [`connection`] | reconnecting, resubscribing, MQTT 5 and 3.1.1, TLS |
//! | [`topics`] | names below `<base>/<node>`, and the topics that replies may use |
//! | `reply` | the address and the encoding of a reply |
//! | `delivery` | questions: acknowledged once, answered once |
//! | [`mailbox`] | inbox and outbox on disk |
//! | [`broker`] | the embedded broker |
//!
//! One task polls the connection. Questions go to the desk. Changes of the library run one after another. Every other request has
//! its own task. The door acknowledges each request when it is done, and a question once it is on disk.
#![forbid(unsafe_code)]

mod address;
#[cfg(feature = "broker")]
pub mod broker;
pub mod connection;
mod delivery;
pub mod mailbox;
mod reply;
pub mod tls;
pub mod topics;

pub use address::BrokerUrl;

use connection::{Connection, Message, Notice, Outgoing, Properties, Sender};
use delivery::Delivery;
use desk::Desk;
use mailbox::{Backlog, Mailbox};
use reply::Reply;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use topics::{RequestKind, Topics};
use wire::{Addressed, Encoding, Fault, Info, Metrics};

/// Builds the current `info`.
pub type InfoFn = Arc<dyn Fn() -> Info + Send + Sync>;

/// Changes that are recognised when redelivered: more than a broker sends ahead.
const MOST_MADE: usize = 4096;

/// The MQTT side of the daemon.
pub struct Server {
    topics: Topics,
    desk: Desk,
    sender: Sender,
    delivery: Arc<Delivery>,
    /// Puts and deletes, in their order.
    changes: UnboundedSender<(RequestKind, Message)>,
    waiting_changes: Mutex<Option<UnboundedReceiver<(RequestKind, Message)>>>,
    info: InfoFn,
    /// The `info` published last.
    published: Mutex<Option<Info>>,
}

impl Server {
    /// A door to the desk. `mailbox` stores questions and answers; `None` stores nothing.
    pub fn new(topics: Topics, desk: Desk, sender: Sender, mailbox: Option<Mailbox>, info: InfoFn) -> Arc<Self> {
        let delivery = Delivery::new(topics.clone(), desk.clone(), sender.clone(), mailbox);
        let (changes, waiting) = unbounded_channel();
        Arc::new(Self {
            topics,
            desk,
            sender,
            delivery,
            changes,
            waiting_changes: Mutex::new(Some(waiting)),
            info,
            published: Mutex::default(),
        })
    }

    /// Polls the connection until `stop` fires, then returns the connection for the goodbye. `ready` fires at the first
    /// acknowledged subscription. `backlog` holds the questions and answers that earlier runs left open.
    pub async fn run(
        self: Arc<Self>,
        mut connection: Connection,
        backlog: Backlog,
        ready: oneshot::Sender<&'static str>,
        mut stop: oneshot::Receiver<()>,
    ) -> Connection {
        if let Some(changes) = self.waiting_changes.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(Arc::clone(&self).change(changes));
        }
        let mut backlog = Some(backlog);
        let mut ready = Some(ready);
        let mut version = "5";
        let mut lost_before = false;
        loop {
            // Reconnecting sleeps inside `next`, and stopping must not wait for it. Dropping a poll between two packets is
            // harmless: rumqttc keeps the bytes it has read.
            let notice = tokio::select! {
                notice = connection.next() => notice,
                _ = &mut stop => return connection,
            };
            match notice {
                Notice::Connected { version: v, remembered, uncertain } => {
                    version = v;
                    let Backlog { unanswered, undelivered, .. } = backlog.take().unwrap_or_default();
                    let rejected = self.delivery.take_up(unanswered);
                    let unsure = undelivered.into_iter().chain(uncertain).collect();
                    // Publishing needs this loop, so it runs in its own task.
                    let delivery = Arc::clone(&self.delivery);
                    tokio::spawn(async move { delivery.resume(unsure, rejected, remembered).await });
                    lost_before = false;
                    log::info!("connected to the broker over MQTT {v}");
                }
                Notice::Subscribed => {
                    // Publishing needs this loop, so it runs in its own task.
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
                Notice::Delivered(number) => self.delivery.delivered(number),
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

    /// Publishes `info`, retained, after every change of the library.
    pub async fn publish_info(&self) {
        self.publish_this(self.renewed().0).await;
    }

    /// Publishes `info` if it has changed: threads were measured, or KV states were stored.
    pub async fn renew_info(&self) {
        if let (info, true) = self.renewed() {
            self.publish_this(info).await;
        }
    }

    /// The current `info`, and whether it differs from the one before.
    fn renewed(&self) -> (Info, bool) {
        let info = (self.info)();
        let before = self.published.lock().unwrap_or_else(PoisonError::into_inner).replace(info.clone());
        let differs = before.as_ref() != Some(&info);
        (info, differs)
    }

    async fn publish_this(&self, info: Info) {
        match Encoding::Json.encode(&info) {
            Ok(payload) => self.publish(self.topics.of("info"), payload, true).await,
            Err(error) => log::error!("info cannot be encoded: {error}"),
        }
    }

    /// Publishes the metrics, not retained. Drops them if the broker does not take them now: the next ones say more.
    pub async fn publish_metrics(&self, metrics: &Metrics) {
        let payload = Encoding::Json.encode(metrics).unwrap_or_default().into();
        let message = Outgoing { topic: self.topics.of("metrics"), payload, retain: false, properties: Properties::default() };
        self.sender.offer(message).await;
    }

    async fn publish(&self, topic: String, payload: Vec<u8>, retain: bool) {
        let message = Outgoing { topic, payload: payload.into(), retain, properties: Properties::default() };
        if let Err(error) = self.sender.send(message).await {
            log::error!("{error}");
        }
    }

    /// Says goodbye once the desk is drained: gives the broker a moment to take the last answers, then publishes `offline`.
    pub async fn leave(&self) {
        self.delivery.settle().await;
        let goodbye = self.publish(self.topics.of("state"), b"offline".to_vec(), true);
        let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
    }

    /// The delivery figures, for `metrics`.
    pub fn delivery(&self) -> wire::Delivery {
        self.delivery.report()
    }

    fn dispatch(self: Arc<Self>, message: Message) {
        let ack = message.ack;
        let Some(kind) = self.topics.kind(&message.topic) else {
            return self.acknowledge(ack);
        };
        if message.retained {
            log::warn!("a retained request on {} is ignored: the broker would repeat it at every reconnect", message.topic);
            return self.acknowledge(ack);
        }
        match kind {
            RequestKind::Ask => self.delivery.ask(&message),
            RequestKind::Echo => {
                self.delivery.echo(&message.payload);
                self.acknowledge(ack);
            }
            RequestKind::Cancel => {
                self.cancel(&message);
                self.acknowledge(ack);
            }
            // Bounded by the broker's window of unacknowledged messages.
            RequestKind::Put | RequestKind::Delete => drop(self.changes.send((kind, message))),
            RequestKind::Search | RequestKind::List => drop(tokio::spawn(async move { self.serve(kind, message).await })),
        }
    }

    /// Changes the library, one request after another. A document that is put and then deleted stays deleted, even if the daemon
    /// is killed in between and the broker sends both again. A change redelivered over another connection is skipped: repeating
    /// it would briefly undo the later ones.
    async fn change(self: Arc<Self>, mut changes: UnboundedReceiver<(RequestKind, Message)>) {
        let mut made = VecDeque::new();
        while let Some((kind, message)) = changes.recv().await {
            if let Some(ack) = message.ack {
                let content = delivery::content_of(&message);
                if message.redelivered && made.iter().any(|(its, was)| ack.repeats(*its) && content == *was) {
                    log::info!("a repeated change on {} was already made; it is acknowledged", message.topic);
                    self.sender.acknowledge(ack).await;
                    continue;
                }
                made.push_back((ack, content));
                if made.len() > MOST_MADE {
                    made.pop_front();
                }
            }
            self.serve(kind, message).await;
        }
    }

    async fn serve(&self, kind: RequestKind, message: Message) {
        let ack = message.ack;
        match kind {
            RequestKind::Search => self.search(message).await,
            RequestKind::Put => self.put(message).await,
            RequestKind::Delete => self.delete(message).await,
            _ => self.list(message).await,
        }
        // The reply is queued before the acknowledgement: a client that has one has the other.
        if let Some(ack) = ack {
            self.sender.acknowledge(ack).await;
        }
    }

    fn acknowledge(&self, ack: Option<connection::Ack>) {
        if let Some(ack) = ack {
            let sender = self.sender.clone();
            tokio::spawn(async move { sender.acknowledge(ack).await });
        }
    }

    fn cancel(&self, message: &Message) {
        let encoding = Encoding::of(&message.payload, message.properties.content_type.as_deref());
        let request = match encoding {
            Some(encoding) => encoding.decode(&message.payload),
            None => wire::CancelRequest::of_text(&message.payload),
        };
        match request {
            Ok(request) => self.desk.cancel(&request.id),
            Err(problem) => self.desk.refuse("cancel", &Fault::bad_request(problem)),
        }
    }

    async fn search(&self, message: Message) {
        let (reply, ask) = self.open(&message, |question| Ok(wire::Ask { question, ..wire::Ask::default() }));
        match ask {
            Ok(ask) => reply.send(&self.sender, self.desk.search(reply.id.clone(), &ask).await).await,
            Err(fault) => self.refuse(&reply, fault).await,
        }
    }

    async fn put(&self, message: Message) {
        let (reply, put) = self.open::<wire::Put>(&message, |_| Err(not_plain()));
        match self.allowed(put) {
            Ok(put) => {
                let result = self.desk.put(reply.id.clone(), put).await.map(|(put, _)| put);
                reply.send(&self.sender, result).await;
            }
            Err(fault) => self.refuse(&reply, fault).await,
        }
    }

    async fn delete(&self, message: Message) {
        let (reply, delete) = self.open::<wire::Delete>(&message, |_| Err(not_plain()));
        match self.allowed(delete) {
            Ok(delete) => reply.send(&self.sender, self.desk.delete(reply.id.clone(), delete).await).await,
            Err(fault) => self.refuse(&reply, fault).await,
        }
    }

    async fn list(&self, message: Message) {
        let (reply, list) = self.open::<wire::List>(&message, |_| Ok(wire::List::default()));
        match list {
            Ok(list) => reply.send(&self.sender, self.desk.list(reply.id.clone(), &list).await).await,
            Err(fault) => self.refuse(&reply, fault).await,
        }
    }

    fn open<T: serde::de::DeserializeOwned + Addressed>(
        &self,
        message: &Message,
        plain: impl FnOnce(String) -> Result<T, Fault>,
    ) -> (Reply, Result<T, Fault>) {
        Reply::open(&self.topics, message, self.desk.limits().max_payload_bytes, None, plain)
    }

    /// The request, if this door may change documents.
    fn allowed<T>(&self, request: Result<T, Fault>) -> Result<T, Fault> {
        let request = request?;
        if self.desk.limits().documents {
            return Ok(request);
        }
        Err(Fault::bad_request("documents may not be changed over MQTT; set mqtt.documents = true to allow it"))
    }

    /// Refuses a request that does not reach the desk.
    async fn refuse(&self, reply: &Reply, fault: Fault) {
        self.desk.refuse(&reply.id, &fault);
        reply.send::<()>(&self.sender, Err(fault)).await;
    }
}

fn not_plain() -> Fault {
    Fault::bad_request("this topic takes a JSON object or a CBOR map, not plain text")
}
