//! One connection to a broker, MQTT 5 or 3.1.1, behind one small door.
//!
//! What rumqttc leaves to its user and is done here: reconnecting with jittered back-off, subscribing again, falling back
//! to 3.1.1, telling which publish the broker has acknowledged, and carrying unacknowledged publishes over to the next
//! connection. rumqttc 0.25 tells events of one connection after the next one stands, drops publishes when `session_present`
//! is 0, keeps one that waits for a packet identifier (`state.collision`) over the loss of a connection, and sends
//! acknowledgements of one connection over the next.
//!
//! Everything is published and subscribed to at QoS 1. QoS 2 was tried for final answers and given up: rumqttc gives a packet
//! identifier to another message while its release is under way, forgets a message that waited for one, and ends the connection,
//! over and over, at a release that the broker repeats.

use super::tls::{self, TlsOptions};
use crate::config::BrokerUrl;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::{QoS, TlsConfiguration, Transport, v5};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Requests that may wait between us and the event loop.
const REQUESTS: usize = 256;

/// Messages that the broker may not have acknowledged yet; it may set a smaller limit.
const IN_FLIGHT: u16 = 1024;

/// The same on MQTT 3.1.1, where the broker does not tell.
const IN_FLIGHT_V4: u16 = 20;

/// How long a message waits for room that is of no use later.
const OFFER_PATIENCE: Duration = Duration::from_secs(5);

/// Longest pause between two attempts to connect.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A connection that lasted this long was a good one: the next attempt is made at once.
const STABLE: Duration = Duration::from_secs(10);

/// Seconds that a broker keeps our session while we are away.
const SESSION_EXPIRY_S: u32 = 3600;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// Where it is.
    pub broker: BrokerUrl,
    /// Our client id.
    pub client_id: String,
    /// `auto`, `5` or `3.1.1`.
    pub version: String,
    /// User name and password.
    pub credentials: Option<Credentials>,
    /// Certificates, where the broker's address asks for TLS.
    pub tls: TlsOptions,
    /// Keep-alive.
    pub keep_alive: Duration,
    /// Largest packet, in bytes.
    pub max_packet: usize,
    /// Topic and payload of the retained last will.
    pub will: Option<(String, &'static str)>,
    /// Whether the broker is to keep the session while we are away, and what it sends counts as received only when it is
    /// acknowledged with [`Sender::acknowledge`].
    pub persistent: bool,
    /// Messages that the broker may send ahead of their acknowledgements (MQTT 5).
    pub receive_maximum: u16,
}

/// User name and password; the password is not shown by `{:?}`.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Properties that travel with a message; empty on MQTT 3.1.1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where the sender wants the reply.
    pub response_topic: Option<String>,
    /// Echoed in the reply.
    pub correlation_data: Option<Bytes>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
}

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Whether it is an old one that the broker kept.
    pub retained: bool,
    /// Its properties.
    pub properties: Properties,
    /// To acknowledge it with; `None` where the sender wants no acknowledgement.
    pub receipt: Option<Receipt>,
    /// Whether the broker says that it may have sent it before.
    pub redelivered: bool,
    /// How long it is of use, as its sender says.
    pub expiry: Option<Duration>,
}

/// What a received message is acknowledged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pkid: u16,
    /// On which connection it came: the next one gives the same numbers to other messages.
    connection: u64,
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// Its properties; left out on MQTT 3.1.1.
    pub properties: Properties,
}

/// What the connection tells.
#[derive(Debug)]
pub enum Notice {
    /// The broker has accepted us.
    Connected {
        /// `5` or `3.1.1`.
        version: &'static str,
        /// Whether the broker has kept our session.
        remembered: bool,
        /// Tracked messages that were sent over the last connection and not acknowledged: nobody knows whether they arrived.
        uncertain: Vec<u64>,
    },
    /// The broker has acknowledged our subscriptions.
    Subscribed,
    /// The broker refused a subscription.
    SubscriptionRefused,
    /// A message.
    Message(Message),
    /// The broker has acknowledged a message sent with [`Sender::send_tracked`].
    Delivered(u64),
    /// The connection is lost; another attempt follows by itself.
    Disconnected(String),
}

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConnectionError(String);

#[derive(Clone)]
enum Client {
    V5(v5::AsyncClient),
    V4(rumqttc::AsyncClient),
}

enum EventLoop {
    V5(Box<v5::EventLoop>),
    V4(Box<rumqttc::EventLoop>),
}

/// What the senders and the connection both know.
struct Shared {
    client: RwLock<Client>,
    /// Held while a message is queued, so that `queued` has the order of rumqttc's queue.
    order: tokio::sync::Mutex<()>,
    /// For each publish that rumqttc has not sent yet.
    queued: Mutex<VecDeque<Tracking>>,
    /// Number of the connection that stands.
    connection: AtomicU64,
    connected: AtomicBool,
}

/// What is known of a publish besides itself.
#[derive(Debug)]
enum Tracking {
    /// Nothing.
    None,
    /// Its number, and the receipt that is to follow it.
    Number(u64, Outgoing),
    /// It says that the one before it has arrived, which holds for the same connection only.
    Receipt,
}

impl Shared {
    fn queued(&self) -> MutexGuard<'_, VecDeque<Tracking>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sends messages; cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

impl Sender {
    /// Acknowledges a received message. One of an earlier connection is left alone: the broker sends it again.
    pub async fn acknowledge(&self, receipt: Receipt) {
        if receipt.connection != self.0.connection.load(Ordering::Acquire) {
            return;
        }
        // Only the packet identifier and the QoS count.
        let done = match self.0.client() {
            Client::V5(client) => {
                let mut publish = p5::Publish::new("", v5::mqttbytes::QoS::AtLeastOnce, Bytes::new(), None);
                publish.pkid = receipt.pkid;
                client.ack(&publish).await.is_ok()
            }
            Client::V4(client) => {
                let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, Bytes::new());
                publish.pkid = receipt.pkid;
                client.ack(&publish).await.is_ok()
            }
        };
        if !done {
            log::debug!("an acknowledgement is not sent: the connection has ended");
        }
    }

    /// Like [`Self::send`]; [`Notice::Delivered`] tells `number` when the broker has acknowledged the message. `receipt` is sent
    /// right behind it, over the same connection or not at all: where it arrives, the message has arrived.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn send_tracked(&self, message: Outgoing, number: u64, receipt: Outgoing) -> Result<(), ConnectionError> {
        let _order = self.0.order.lock().await;
        self.queue(message, Tracking::Number(number, receipt)).await
    }

    /// Queues a message at QoS 1, waiting for room. [`Connection::next`] must be polled meanwhile, by another task.
    ///
    /// # Errors
    /// The topic cannot be published to, or the connection has ended.
    pub async fn send(&self, message: Outgoing) -> Result<(), ConnectionError> {
        let _order = self.0.order.lock().await;
        self.queue(message, Tracking::None).await
    }

    /// Sends a message that is of no use later: `false` where the broker is away, or takes none within [`OFFER_PATIENCE`].
    pub async fn offer(&self, message: Outgoing) -> bool {
        self.0.connected.load(Ordering::Relaxed)
            && tokio::time::timeout(OFFER_PATIENCE, self.send(message)).await.is_ok_and(|sent| sent.is_ok())
    }

    async fn queue(&self, message: Outgoing, tracking: Tracking) -> Result<(), ConnectionError> {
        // First, for the connection may take the message as soon as it is queued. Should this future be dropped meanwhile,
        // nothing is queued.
        self.0.queued().push_back(tracking);
        let undo = Undo(&self.0);
        self.publish(message).await?;
        std::mem::forget(undo);
        Ok(())
    }

    async fn publish(&self, message: Outgoing) -> Result<(), ConnectionError> {
        let client = self.0.client();
        let Outgoing { topic, payload, retain, properties } = message;
        let failed = |topic: &str| ConnectionError(format!("cannot publish to `{topic}`"));
        match client {
            Client::V5(client) => {
                let properties = (properties != Properties::default()).then(|| p5::PublishProperties {
                    response_topic: properties.response_topic,
                    correlation_data: properties.correlation_data,
                    content_type: properties.content_type,
                    ..Default::default()
                });
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                let result = match properties {
                    Some(properties) => client.publish_with_properties(topic.clone(), qos, retain, payload, properties).await,
                    None => client.publish(topic.clone(), qos, retain, payload).await,
                };
                result.map_err(|_| failed(&topic))
            }
            Client::V4(client) => {
                client.publish(topic.clone(), QoS::AtLeastOnce, retain, payload.to_vec()).await.map_err(|_| failed(&topic))
            }
        }
    }
}

/// Takes back the last entry of the queue's mirror.
struct Undo<'a>(&'a Shared);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.0.queued().pop_back();
    }
}

/// A connection; poll it without pause, publish through its [`Sender`].
pub struct Connection {
    options: ConnectionOptions,
    tls: Option<TlsConfiguration>,
    topics: Vec<String>,
    shared: Arc<Shared>,
    event_loop: EventLoop,
    /// Publishes that wait for their acknowledgement, by packet identifier: what a lost connection means for them.
    inflight: HashMap<u16, Sent>,
    v5: bool,
    /// Whether any attempt was ever accepted: then the version is settled.
    settled: bool,
    failures: u32,
    /// When the broker has last accepted us.
    accepted: Option<Instant>,
    /// Publishes that were not acknowledged when the connection was lost, in their order.
    carried: Carried,
    /// Receipts to be sent over the connection that stands.
    receipts: VecDeque<Outgoing>,
    /// Messages that the broker takes without having acknowledged one.
    window: u16,
    /// Numbers of those that may have arrived.
    uncertain: Vec<u64>,
}

enum Carried {
    V5(VecDeque<(p5::Publish, Tracking)>),
    V4(VecDeque<(rumqttc::Publish, Tracking)>),
}

impl Carried {
    /// The same messages for the other protocol version.
    fn recast(self) -> Self {
        let from_v5 = |(publish, its): (p5::Publish, Tracking)| {
            let topic = String::from_utf8_lossy(&publish.topic).into_owned();
            let mut recast = rumqttc::Publish::from_bytes(topic, QoS::AtLeastOnce, publish.payload);
            recast.retain = publish.retain;
            (recast, its)
        };
        let from_v4 = |(publish, number): (rumqttc::Publish, _)| {
            let mut recast = p5::Publish::new(publish.topic, v5::mqttbytes::QoS::AtLeastOnce, publish.payload, None);
            recast.retain = publish.retain;
            (recast, number)
        };
        match self {
            Self::V5(carried) => Self::V4(carried.into_iter().map(from_v5).collect()),
            Self::V4(carried) => Self::V5(carried.into_iter().map(from_v4).collect()),
        }
    }
}

/// A publish that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// It is sent again over the next connection.
    Plain,
    /// Its sender decides.
    Number(u64),
    /// It is over.
    Receipt,
}

/// What polling the event loop gives.
enum Polled {
    /// Whether the broker has kept our session, and how many messages it takes ahead.
    Accepted {
        remembered: bool,
        window: u16,
    },
    Subscribed(bool),
    Message(Message),
    /// A publish was written to the network, under this packet identifier.
    Sent(u16),
    /// The broker has acknowledged it, or (the reason) refused it for good.
    Acknowledged(u16, Option<String>),
    Closed,
}

/// Why a poll failed.
struct Failure {
    reason: String,
    /// The peer was reached but did not answer our version's handshake.
    handshake: bool,
}

impl Connection {
    /// Prepares a connection that subscribes to `topics` at QoS 1 whenever it is made.
    ///
    /// # Errors
    /// A certificate or key file cannot be used.
    pub fn new(options: ConnectionOptions, topics: Vec<String>) -> Result<(Self, Sender), ConnectionError> {
        let tls = options.broker.tls.then(|| tls::client_config(&options.tls)).transpose().map_err(ConnectionError)?;
        let tls = tls.map(TlsConfiguration::Rustls);
        let v5 = options.version != "3.1.1";
        let (client, event_loop, carried) = make(&options, tls.clone(), v5);
        let shared = Arc::new(Shared {
            client: RwLock::new(client),
            order: tokio::sync::Mutex::default(),
            queued: Mutex::default(),
            connection: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        });
        let sender = Sender(Arc::clone(&shared));
        let connection = Self {
            options,
            tls,
            topics,
            shared,
            event_loop,
            inflight: HashMap::new(),
            v5,
            settled: false,
            failures: 0,
            accepted: None,
            carried,
            receipts: VecDeque::new(),
            window: 1,
            uncertain: Vec::new(),
        };
        Ok((connection, sender))
    }

    /// The next notice. Connects and reconnects on the way; never ends.
    pub async fn next(&mut self) -> Notice {
        loop {
            self.feed();
            let connection = self.shared.connection.load(Ordering::Acquire);
            match poll(&mut self.event_loop, connection).await {
                Ok(Some(Polled::Sent(pkid))) => {
                    let tracking = self.shared.queued().pop_front();
                    let sent = match tracking {
                        Some(Tracking::Number(number, receipt)) => {
                            self.receipts.push_back(receipt);
                            Sent::Number(number)
                        }
                        Some(Tracking::Receipt) => Sent::Receipt,
                        Some(Tracking::None) | None => Sent::Plain,
                    };
                    self.inflight.insert(pkid, sent);
                }
                Ok(Some(Polled::Acknowledged(pkid, refused))) => {
                    if let Some(reason) = refused {
                        log::error!("the broker refuses a message for good: {reason}; see what this client may publish to");
                    }
                    if let Some(Sent::Number(number)) = self.inflight.remove(&pkid) {
                        return Notice::Delivered(number);
                    }
                }
                Ok(Some(Polled::Accepted { remembered, window })) => {
                    self.window = window;
                    self.settled = true;
                    self.accepted = Some(Instant::now());
                    self.shared.connected.store(true, Ordering::Relaxed);
                    self.subscribe();
                    let (version, uncertain) = (if self.v5 { "5" } else { "3.1.1" }, std::mem::take(&mut self.uncertain));
                    return Notice::Connected { version, remembered, uncertain };
                }
                Ok(Some(Polled::Subscribed(true))) => return Notice::Subscribed,
                Ok(Some(Polled::Subscribed(false))) => return Notice::SubscriptionRefused,
                Ok(Some(Polled::Message(message))) => return Notice::Message(message),
                Ok(Some(Polled::Closed) | None) => {}
                Err(failure) => {
                    self.shared.connected.store(false, Ordering::Relaxed);
                    self.shared.connection.fetch_add(1, Ordering::AcqRel);
                    self.carry();
                    self.fall_back(&failure);
                    let mut reason = failure.reason;
                    if let Some(remedy) = self.tls.as_ref().and_then(|_| tls::remedy(&reason, &self.options.tls)) {
                        reason = format!("{reason}; {remedy}");
                    }
                    match self.accepted.take().map(|accepted| accepted.elapsed()) {
                        Some(lasted) if lasted >= STABLE => self.failures = 0,
                        // Accepted and dropped at once: without a pause this would go on a thousand times a second.
                        Some(_) => reason = format!("{reason} (does another client use the id {}?)", self.options.client_id),
                        None => {}
                    }
                    self.failures += 1;
                    if self.failures > 1 {
                        tokio::time::sleep(backoff(self.failures)).await;
                    }
                    return Notice::Disconnected(reason);
                }
            }
        }
    }

    /// Acknowledges a message as one that found no room (MQTT 5: quota exceeded).
    pub fn refuse(&mut self, receipt: Receipt) {
        if receipt.connection != self.shared.connection.load(Ordering::Acquire) {
            return;
        }
        match &mut self.event_loop {
            EventLoop::V5(event_loop) => {
                let mut ack = p5::PubAck::new(receipt.pkid, None);
                ack.reason = p5::PubAckReason::QuotaExceeded;
                event_loop.pending.push_back(v5::Request::PubAck(ack));
            }
            EventLoop::V4(event_loop) => {
                event_loop.pending.push_back(rumqttc::Request::PubAck(rumqttc::PubAck::new(receipt.pkid)));
            }
        }
    }

    /// Sends what is queued, says goodbye, and waits until the broker has closed the connection; at most `patience` long.
    ///
    /// To close first would be to lose: a socket closed with acknowledgements unread resets the connection, and the broker
    /// then drops what it has not read yet.
    pub async fn close(mut self, patience: Duration) {
        let client = self.shared.client();
        let goodbye = async {
            // Requests leave in order: the goodbye follows everything queued before it.
            let disconnect = async {
                match &client {
                    Client::V5(client) => client.disconnect().await.is_ok(),
                    Client::V4(client) => client.disconnect().await.is_ok(),
                }
            };
            let drain = async { while poll(&mut self.event_loop, 0).await.is_ok() {} };
            tokio::join!(disconnect, drain);
        };
        let _ = tokio::time::timeout(patience, goodbye).await;
    }

    fn subscribe(&mut self) {
        if self.topics.is_empty() {
            return;
        }
        match &mut self.event_loop {
            EventLoop::V5(event_loop) => {
                let filters = self.topics.iter().map(|t| p5::Filter::new(t.clone(), v5::mqttbytes::QoS::AtLeastOnce));
                event_loop.pending.push_back(v5::Request::Subscribe(p5::Subscribe::new_many(filters, None)));
            }
            EventLoop::V4(event_loop) => {
                let filters = self.topics.iter().map(|t| rumqttc::SubscribeFilter::new(t.clone(), QoS::AtLeastOnce));
                event_loop.pending.push_back(rumqttc::Request::Subscribe(rumqttc::Subscribe::new_many(filters)));
            }
        }
    }

    /// Puts the next receipt, or the next message of the last connection, before what is queued, when the broker takes one more.
    /// One at a time: rumqttc sends what is pending whether or not the broker takes it, and of two messages that wait for a packet
    /// identifier it forgets one.
    fn feed(&mut self) {
        if !self.shared.connected.load(Ordering::Relaxed) {
            return;
        }
        let tracking = match (&mut self.event_loop, &mut self.carried) {
            (EventLoop::V5(event_loop), Carried::V5(carried)) => {
                let state = &event_loop.state;
                if !event_loop.pending.is_empty() || state.collision.is_some() || state.inflight() >= self.window {
                    return;
                }
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                let receipt =
                    self.receipts.pop_front().map(|r| (p5::Publish::new(r.topic, qos, r.payload, None), Tracking::Receipt));
                receipt.or_else(|| carried.pop_front()).map(|(publish, tracking)| {
                    event_loop.pending.push_back(v5::Request::Publish(publish));
                    tracking
                })
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                let state = &event_loop.state;
                if !event_loop.pending.is_empty() || state.collision.is_some() || state.inflight() >= self.window {
                    return;
                }
                let publish = |r: Outgoing| rumqttc::Publish::from_bytes(r.topic, QoS::AtLeastOnce, r.payload);
                let receipt = self.receipts.pop_front().map(|r| (publish(r), Tracking::Receipt));
                receipt.or_else(|| carried.pop_front()).map(|(publish, tracking)| {
                    event_loop.pending.push_back(rumqttc::Request::Publish(publish));
                    tracking
                })
            }
            _ => None,
        };
        if let Some(tracking) = tracking {
            self.shared.queued().push_front(tracking);
        }
    }

    /// Takes unacknowledged publishes out of rumqttc's hands before it forgets them.
    fn carry(&mut self) {
        // Events of the lost connection would otherwise be told of the next one, whose packet identifiers mean something else.
        match &mut self.event_loop {
            EventLoop::V5(event_loop) => event_loop.state.events.clear(),
            EventLoop::V4(event_loop) => event_loop.state.events.clear(),
        }
        self.receipts.clear();
        let mut queued = self.shared.queued();
        let inflight = std::mem::take(&mut self.inflight);
        // What was sent and has a number may have arrived: its sender decides. What was not sent stands in the queue's mirror, in
        // its order. Receipts go with their connection.
        let mut tracking = |pkid: u16| match inflight.get(&pkid) {
            Some(Sent::Number(_) | Sent::Receipt) => None,
            Some(Sent::Plain) => Some(Tracking::None),
            None => queued.pop_front().filter(|its| !matches!(its, Tracking::Receipt)),
        };
        match (&mut self.event_loop, &mut self.carried) {
            (EventLoop::V5(event_loop), Carried::V5(carried)) => {
                let later = std::mem::take(carried);
                let waiting = event_loop.state.collision.take().map(|publish| p5::Publish { pkid: 0, ..publish });
                let pending = std::mem::take(&mut event_loop.pending).into_iter().filter_map(|request| match request {
                    v5::Request::Publish(publish) => Some(publish),
                    _ => None,
                });
                let (sent, unsent): (Vec<_>, Vec<_>) = pending.partition(|publish| publish.pkid != 0);
                let mut take = |publish: p5::Publish, carried: &mut VecDeque<_>| {
                    let its = tracking(publish.pkid);
                    carried.extend(its.map(|its| (p5::Publish { pkid: 0, ..publish }, its)));
                };
                for publish in sent.into_iter().chain(waiting) {
                    take(publish, carried);
                }
                carried.extend(later);
                for publish in unsent {
                    take(publish, carried);
                }
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                let later = std::mem::take(carried);
                let waiting = event_loop.state.collision.take().map(|publish| rumqttc::Publish { pkid: 0, ..publish });
                let pending = std::mem::take(&mut event_loop.pending).into_iter().filter_map(|request| match request {
                    rumqttc::Request::Publish(publish) => Some(publish),
                    _ => None,
                });
                let (sent, unsent): (Vec<_>, Vec<_>) = pending.partition(|publish| publish.pkid != 0);
                let mut take = |publish: rumqttc::Publish, carried: &mut VecDeque<_>| {
                    let its = tracking(publish.pkid);
                    carried.extend(its.map(|its| (rumqttc::Publish { pkid: 0, ..publish }, its)));
                };
                for publish in sent.into_iter().chain(waiting) {
                    take(publish, carried);
                }
                carried.extend(later);
                for publish in unsent {
                    take(publish, carried);
                }
            }
            _ => {}
        }
        let numbers = inflight.into_values().filter_map(|its| match its {
            Sent::Number(number) => Some(number),
            Sent::Plain | Sent::Receipt => None,
        });
        self.uncertain.extend(numbers);
        // In the order in which they were given.
        self.uncertain.sort_unstable();
    }

    /// Tries the other protocol version next time, where the configuration leaves it open and none has worked yet.
    fn fall_back(&mut self, failure: &Failure) {
        if self.options.version == "auto" && !self.settled && failure.handshake {
            self.v5 = !self.v5;
            let (client, event_loop, _) = make(&self.options, self.tls.clone(), self.v5);
            self.carried = std::mem::replace(&mut self.carried, Carried::V5(VecDeque::new())).recast();
            *self.shared.client.write().unwrap_or_else(PoisonError::into_inner) = client;
            self.event_loop = event_loop;
        }
    }
}

/// Pause before attempt `failures + 1`: doubling from a quarter of a second, halved to whole at random so that a fleet
/// does not come back at once.
fn backoff(failures: u32) -> Duration {
    let full = Duration::from_millis(250).saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn make(options: &ConnectionOptions, tls: Option<TlsConfiguration>, v5: bool) -> (Client, EventLoop, Carried) {
    let BrokerUrl { host, port, .. } = &options.broker;
    let transport = tls.map_or(Transport::Tcp, Transport::Tls);
    if v5 {
        let mut o = v5::MqttOptions::new(&options.client_id, host, *port);
        o.set_keep_alive(options.keep_alive).set_clean_start(!options.persistent).set_transport(transport);
        o.set_max_packet_size(Some(options.max_packet as u32));
        o.set_receive_maximum(Some(options.receive_maximum));
        o.set_manual_acks(options.persistent);
        // Left open it is 65,535, and a table of so many messages, 13 MiB, is made and written at once.
        o.set_outgoing_inflight_upper_limit(IN_FLIGHT);
        if options.persistent {
            o.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
        }
        if let Some(Credentials { username, password }) = &options.credentials {
            o.set_credentials(username, password);
        }
        if let Some((topic, payload)) = &options.will {
            o.set_last_will(p5::LastWill::new(topic, *payload, v5::mqttbytes::QoS::AtLeastOnce, true, None));
        }
        o.set_network_options(without_delay());
        let (client, event_loop) = v5::AsyncClient::new(o, REQUESTS);
        (Client::V5(client), EventLoop::V5(Box::new(event_loop)), Carried::V5(VecDeque::new()))
    } else {
        let mut o = rumqttc::MqttOptions::new(&options.client_id, host, *port);
        o.set_keep_alive(options.keep_alive).set_clean_session(!options.persistent).set_transport(transport);
        o.set_max_packet_size(options.max_packet, options.max_packet);
        o.set_manual_acks(options.persistent);
        if let Some(Credentials { username, password }) = &options.credentials {
            o.set_credentials(username, password);
        }
        if let Some((topic, payload)) = &options.will {
            o.set_last_will(rumqttc::LastWill::new(topic, *payload, QoS::AtLeastOnce, true));
        }
        let (client, mut event_loop) = rumqttc::AsyncClient::new(o, REQUESTS);
        event_loop.set_network_options(without_delay());
        (Client::V4(client), EventLoop::V4(Box::new(event_loop)), Carried::V4(VecDeque::new()))
    }
}

/// The evidence follows the acknowledgement of its question at once; with Nagle's algorithm it would wait some 40 ms for the
/// broker's TCP to acknowledge that.
fn without_delay() -> rumqttc::NetworkOptions {
    let mut options = rumqttc::NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options
}

/// The next event; `connection` is written into receipts.
async fn poll(event_loop: &mut EventLoop, connection: u64) -> Result<Option<Polled>, Failure> {
    match event_loop {
        EventLoop::V5(event_loop) => match event_loop.poll().await {
            Ok(v5::Event::Incoming(packet)) => Ok(from_v5(packet, connection)),
            Ok(v5::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => Ok(Some(Polled::Closed)),
            Ok(v5::Event::Outgoing(rumqttc::Outgoing::Publish(pkid))) => Ok(Some(Polled::Sent(pkid))),
            Ok(v5::Event::Outgoing(_)) => Ok(None),
            Err(error) => {
                use v5::ConnectionError as E;
                let refused =
                    matches!(&error, E::ConnectionRefused(code) if *code != p5::ConnectReturnCode::UnsupportedProtocolVersion);
                let handshake = !refused && !matches!(&error, E::Timeout(_) | E::Tls(_)) && !is_unreachable_v5(&error);
                Err(Failure { reason: error.to_string(), handshake })
            }
        },
        EventLoop::V4(event_loop) => match event_loop.poll().await {
            Ok(rumqttc::Event::Incoming(packet)) => Ok(from_v4(packet, connection)),
            Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => Ok(Some(Polled::Closed)),
            Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Publish(pkid))) => Ok(Some(Polled::Sent(pkid))),
            Ok(rumqttc::Event::Outgoing(_)) => Ok(None),
            Err(error) => {
                use rumqttc::ConnectionError as E;
                let handshake =
                    !matches!(&error, E::Io(e) if is_unreachable(e)) && !matches!(&error, E::NetworkTimeout | E::Tls(_));
                Err(Failure { reason: error.to_string(), handshake })
            }
        },
    }
}

fn is_unreachable_v5(error: &v5::ConnectionError) -> bool {
    matches!(error, v5::ConnectionError::Io(e) if is_unreachable(e))
}

/// Whether the peer was not reached at all, which says nothing about the protocol it speaks.
fn is_unreachable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::TimedOut | K::NotFound | K::HostUnreachable | K::NetworkUnreachable | K::AddrNotAvailable
    )
}

fn from_v5(packet: p5::Packet, connection: u64) -> Option<Polled> {
    match packet {
        p5::Packet::ConnAck(ack) => {
            let most = ack.properties.and_then(|properties| properties.receive_max).unwrap_or(u16::MAX);
            Some(Polled::Accepted { remembered: ack.session_present, window: most.min(IN_FLIGHT) })
        }
        p5::Packet::SubAck(ack) => {
            Some(Polled::Subscribed(ack.return_codes.iter().all(|code| matches!(code, p5::SubscribeReasonCode::Success(_)))))
        }
        p5::Packet::PubAck(ack) => {
            let taken = matches!(ack.reason, p5::PubAckReason::Success | p5::PubAckReason::NoMatchingSubscribers);
            Some(Polled::Acknowledged(ack.pkid, (!taken).then(|| format!("{:?}", ack.reason))))
        }
        p5::Packet::Publish(publish) => {
            let properties = publish.properties.unwrap_or_default();
            Some(Polled::Message(Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
                properties: Properties {
                    response_topic: properties.response_topic,
                    correlation_data: properties.correlation_data,
                    content_type: properties.content_type,
                },
                receipt: (publish.pkid != 0).then_some(Receipt { pkid: publish.pkid, connection }),
                redelivered: publish.dup,
                expiry: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
            }))
        }
        _ => None,
    }
}

fn from_v4(packet: rumqttc::Packet, connection: u64) -> Option<Polled> {
    match packet {
        rumqttc::Packet::ConnAck(ack) => Some(Polled::Accepted { remembered: ack.session_present, window: IN_FLIGHT_V4 }),
        rumqttc::Packet::SubAck(ack) => {
            Some(Polled::Subscribed(ack.return_codes.iter().all(|code| matches!(code, rumqttc::SubscribeReasonCode::Success(_)))))
        }
        rumqttc::Packet::PubAck(ack) => Some(Polled::Acknowledged(ack.pkid, None)),
        rumqttc::Packet::Publish(publish) => Some(Polled::Message(Message {
            topic: publish.topic,
            payload: publish.payload,
            retained: publish.retain,
            properties: Properties::default(),
            receipt: (publish.pkid != 0).then_some(Receipt { pkid: publish.pkid, connection }),
            redelivered: publish.dup,
            expiry: None,
        })),
        _ => None,
    }
}
