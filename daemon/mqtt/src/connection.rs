//! One connection to a broker, MQTT 5 or 3.1.1, behind a small interface.
//!
//! This module adds what rumqttc leaves out: reconnecting with jittered back-off, subscribing again, and falling back to 3.1.1.
//! It tells which publishes the broker has acknowledged, and carries the others over to the next connection. rumqttc 0.25 has
//! four faults that matter here:
//!
//! - It reports events of one connection after the next one stands.
//! - It drops publishes if `session_present` is 0.
//! - It keeps a publish that waits for a packet identifier (`state.collision`) after the connection is lost.
//! - It sends acknowledgements of one connection over the next.
//!
//! All traffic has QoS 1. QoS 2 was tried for final answers and given up. rumqttc gives a packet identifier to another message
//! while its release is under way, and forgets a message that waited for one. A release that the broker repeats ends the
//! connection, over and over.

use super::tls::{self, TlsOptions};
use crate::address::BrokerUrl;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::{QoS, TlsConfiguration, Transport, v5};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Length of the queue between senders and event loop.
const REQUESTS: usize = 256;

/// Most messages without an acknowledgement; the broker may set a smaller limit.
const IN_FLIGHT: u16 = 1024;

/// The same on MQTT 3.1.1, whose brokers announce no limit.
const IN_FLIGHT_V4: u16 = 20;

/// How long a message waits for room if it is useless later.
const OFFER_PATIENCE: Duration = Duration::from_secs(5);

/// Longest pause between two connection attempts. It lets us find a returned broker within ten seconds, however long it was away.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// After a connection of at least this length, the next attempt follows at once.
const STABLE: Duration = Duration::from_secs(10);

/// Advice for a port that answers, but never in a language that we understand.
const WRONG_PORT: &str =
    "if this continues, check the port: mqtt:// is plain, mqtts:// over TLS, ws:// and wss:// over a WebSocket";

/// How long the broker keeps our session while we are away, in seconds.
const SESSION_EXPIRY_S: u32 = 3600;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct ConnectionOptions {
    /// The broker's address.
    pub broker: BrokerUrl,
    /// Our client id.
    pub client_id: String,
    /// `auto`, `5` or `3.1.1`.
    pub version: String,
    /// User name and password.
    pub credentials: Option<Credentials>,
    /// Certificates, if the broker's address asks for TLS.
    pub tls: TlsOptions,
    /// Keep-alive.
    pub keep_alive: Duration,
    /// Largest packet, in bytes.
    pub max_packet: usize,
    /// Topic and payload of the retained last will.
    pub will: Option<(String, &'static str)>,
    /// Whether the broker keeps the session while we are away. A received message then counts as received only after
    /// [`Sender::acknowledge`].
    pub persistent: bool,
    /// Most messages that the broker may send without an acknowledgement (MQTT 5).
    pub receive_maximum: u16,
}

/// User name and password; `{:?}` hides the password.
#[derive(Clone, PartialEq, Eq)]
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
    /// The topic that the sender wants the reply on.
    pub response_topic: Option<String>,
    /// Copied into the reply.
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
    /// Whether the broker kept the message for later subscribers.
    pub retained: bool,
    /// Its properties.
    pub properties: Properties,
    /// Acknowledges the message; `None` if the sender wants no acknowledgement.
    pub ack: Option<Ack>,
    /// Whether the broker says that it may have sent the message before.
    pub redelivered: bool,
    /// How long the message is of use, according to its sender.
    pub expiry: Option<Duration>,
}

/// Acknowledges one received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pkid: u16,
    /// The connection of the message: the next connection reuses its packet identifiers.
    connection: u64,
}

impl Ack {
    /// Whether both belong to one message: a message redelivered over a later connection keeps its packet identifier.
    pub fn repeats(self, earlier: Self) -> bool {
        self.pkid == earlier.pkid && self.connection > earlier.connection
    }
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
    /// Its properties; omitted on MQTT 3.1.1.
    pub properties: Properties,
}

impl Outgoing {
    /// Upper bound of the packet's size, in bytes.
    fn size(&self) -> usize {
        size_of_packet(self.topic.len(), self.payload.len()) + self.properties.size()
    }
}

impl Properties {
    fn size(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.response_topic) + length(&self.content_type) + self.correlation_data.as_ref().map_or(0, Bytes::len)
    }
}

/// Upper bound of a publish's size without the values of its properties: lengths, packet identifier, names of four properties.
const fn size_of_packet(topic: usize, payload: usize) -> usize {
    topic + payload + 32
}

/// An event of the connection.
#[derive(Debug)]
pub enum Notice {
    /// The broker has accepted us.
    Connected {
        /// `5` or `3.1.1`.
        version: &'static str,
        /// Whether the broker has kept our session.
        remembered: bool,
        /// Tracked messages that were sent over the last connection and not acknowledged. They may or may not have arrived.
        uncertain: Vec<u64>,
    },
    /// The broker has acknowledged our subscriptions.
    Subscribed,
    /// The broker refused a subscription.
    SubscriptionRefused,
    /// A received message.
    Message(Message),
    /// The broker has acknowledged a message sent with [`Sender::send_tracked`].
    Delivered(u64),
    /// The connection is lost; another attempt follows by itself.
    Disconnected(String),
}

/// The reason why a connection cannot even be tried.
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

/// State shared by the senders and the connection.
struct Shared {
    client: RwLock<Client>,
    /// Held while a message is queued, so that `queued` keeps the order of rumqttc's queue.
    order: tokio::sync::Mutex<()>,
    /// One entry for each publish that rumqttc has not sent yet.
    queued: Mutex<VecDeque<Tracking>>,
    /// Number of the current connection, or of the next one.
    connection: AtomicU64,
    /// Number of the last accepted connection, and of the last one whose broker had forgotten our session.
    accepted: watch::Sender<u64>,
    forgotten: AtomicU64,
    connected: AtomicBool,
    /// A message waited for room in vain, and no message has left since.
    stalled: AtomicBool,
    /// Largest packet that the broker accepts, in bytes.
    largest: AtomicUsize,
    /// Credentials for the next connection.
    renewed: Mutex<Option<Credentials>>,
    renewal: Notify,
}

/// Extra knowledge about a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
    /// Nothing.
    None,
    /// Its number.
    Number(u64),
    /// An echo of the numbered message before it. It is valid for the same connection only.
    Echo,
    /// The publish refuses the request of this acknowledgement.
    Refusal(Ack, Why),
}

/// Why a request is refused, in MQTT 5's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no room for it (quota exceeded).
    NoRoom,
    /// The request cannot be done; its content was noted.
    Wrong,
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
    /// Acknowledges a received message. A message of an earlier connection is skipped: the broker sends it again.
    pub async fn acknowledge(&self, ack: Ack) {
        if ack.connection != self.connection() {
            return;
        }
        // rumqttc uses only the packet identifier and the QoS.
        let done = match self.0.client() {
            Client::V5(client) => {
                let mut publish = p5::Publish::new("", v5::mqttbytes::QoS::AtLeastOnce, Bytes::new(), None);
                publish.pkid = ack.pkid;
                client.ack(&publish).await.is_ok()
            }
            Client::V4(client) => {
                let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, Bytes::new());
                publish.pkid = ack.pkid;
                client.ack(&publish).await.is_ok()
            }
        };
        if !done {
            log::debug!("an acknowledgement is not sent: the connection has ended");
        }
    }

    /// Like [`Self::send`]; [`Notice::Delivered`] reports `number` once the broker has acknowledged the message. `echo` follows
    /// over the same connection or not at all: if the echo arrives, the message has arrived. Both are queued together, so that a
    /// kill hardly ever separates them: rumqttc takes messages that it calls pending a millisecond later.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn send_tracked(&self, message: Outgoing, number: u64, echo: Outgoing) -> Result<(), ConnectionError> {
        let _order = self.0.order.lock().await;
        self.queue(message, Tracking::Number(number)).await?;
        self.queue(echo, Tracking::Echo).await
    }

    /// Like [`Self::send`], for a message that refuses a request. The request's acknowledgement, `ack`, follows at once: a broker
    /// that has the acknowledgement has the message. If the connection is lost before, there are two cases. A broker that kept
    /// our session sends the request again, so the message is dropped. A broker that forgot the session gets the message.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn send_refusal(&self, message: Outgoing, ack: Ack, why: Why) -> Result<(), ConnectionError> {
        let order = self.0.order.lock().await;
        if ack.connection == self.connection() {
            return self.queue(message, Tracking::Refusal(ack, why)).await;
        }
        drop(order);
        // The message has waited here for longer than the connection lasted.
        let mut accepted = self.0.accepted.subscribe();
        let _ = accepted.wait_for(|connection| *connection > ack.connection).await;
        if self.0.forgotten.load(Ordering::Acquire) > ack.connection { self.send(message).await } else { Ok(()) }
    }

    /// Number of the current connection, or of the next one.
    pub fn connection(&self) -> u64 {
        self.0.connection.load(Ordering::Acquire)
    }

    /// The broker's size limit in bytes, if the message exceeds it. Sending such a message would end the connection.
    pub fn is_too_large(&self, message: &Outgoing) -> Option<usize> {
        let largest = self.0.largest.load(Ordering::Relaxed);
        (message.size() > largest).then_some(largest)
    }

    /// Reconnects with these credentials. Messages under way are carried over as after a lost connection.
    pub fn renew(&self, credentials: Credentials) {
        *self.0.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
        self.0.renewal.notify_one();
    }

    /// Queues a message at QoS 1, waiting for room. Another task must poll [`Connection::next`] meanwhile.
    ///
    /// # Errors
    /// The topic cannot be published to, the message exceeds the broker's limit, or the connection has ended.
    pub async fn send(&self, message: Outgoing) -> Result<(), ConnectionError> {
        let _order = self.0.order.lock().await;
        self.queue(message, Tracking::None).await
    }

    /// Sends a message that is useless later. Returns `false` if the broker is away, or takes no message for [`OFFER_PATIENCE`].
    pub async fn offer(&self, message: Outgoing) -> bool {
        if !self.0.connected.load(Ordering::Relaxed) || self.0.stalled.load(Ordering::Relaxed) {
            return false;
        }
        // Spawned, so that the timeout cannot cancel it half-way. If rumqttc had already taken the message, `queued` would be off
        // by one, and every later message would get the wrong tracking entry.
        let sender = self.clone();
        let sending = tokio::spawn(async move { sender.send(message).await.is_ok() });
        let Ok(sent) = tokio::time::timeout(OFFER_PATIENCE, sending).await else {
            self.0.stalled.store(true, Ordering::Relaxed);
            return false;
        };
        sent.unwrap_or(false)
    }

    /// Must run to its end; see [`Self::offer`].
    async fn queue(&self, message: Outgoing, tracking: Tracking) -> Result<(), ConnectionError> {
        if let Some(largest) = self.is_too_large(&message) {
            let (topic, size) = (&message.topic, message.size());
            return Err(ConnectionError(format!("a message of {size} bytes for `{topic}`: the broker takes {largest} at most")));
        }
        // First, because the connection may take the message as soon as it is queued.
        self.0.queued().push_back(tracking);
        let queued = self.publish(message).await;
        if queued.is_err() {
            self.0.queued().pop_back();
        }
        queued
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

/// A connection; poll it without pause, and publish through its [`Sender`].
pub struct Connection {
    options: ConnectionOptions,
    tls: Option<TlsConfiguration>,
    topics: Vec<String>,
    shared: Arc<Shared>,
    event_loop: EventLoop,
    /// Publishes without an acknowledgement, in the order of sending, by packet identifier. The second field says how to treat
    /// them after a lost connection.
    inflight: VecDeque<(u16, Sent)>,
    /// Numbers of the messages acknowledged just before the connection was lost.
    delivered: VecDeque<u64>,
    v5: bool,
    /// Whether the broker has ever accepted us, which settles the protocol version.
    settled: bool,
    failures: u32,
    /// Time of the broker's last acceptance.
    accepted: Option<Instant>,
    /// Publishes without an acknowledgement when the connection was lost, in their order.
    carried: Carried,
    /// Whether [`Self::feed`] has queued the next message to leave.
    fed: bool,
    /// Most messages without an acknowledgement that the broker accepts.
    window: u16,
    /// Numbers of the messages that may have arrived.
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

/// A sent publish, by its treatment after a lost connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Sent again over the next connection.
    Plain,
    /// Sent again if the broker does not repeat the request.
    Refusal(Ack, Why),
    /// Left to the sender.
    Number(u64),
    /// Dropped.
    Echo,
}

/// An event of the event loop.
enum Polled {
    /// Whether the broker has kept our session, and its limits for messages in flight and packet sizes.
    Accepted {
        remembered: bool,
        window: u16,
        largest: usize,
    },
    Subscribed(bool),
    Message(Message),
    /// A publish was written to the network under this packet identifier.
    Sent(u16),
    /// The broker has acknowledged a publish, or refused it for good (with the reason).
    Acknowledged(u16, Option<String>),
    Closed,
}

/// Why a poll failed.
struct Failure {
    reason: String,
    /// The peer was reached, but did not answer the handshake of our version.
    handshake: bool,
}

impl Connection {
    /// Prepares a connection. Each time it is made, it subscribes to `topics` at QoS 1.
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
            accepted: watch::channel(0).0,
            forgotten: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            largest: AtomicUsize::new(usize::MAX),
            renewed: Mutex::default(),
            renewal: Notify::new(),
        });
        let sender = Sender(Arc::clone(&shared));
        let connection = Self {
            options,
            tls,
            topics,
            shared,
            event_loop,
            inflight: VecDeque::new(),
            delivered: VecDeque::new(),
            v5,
            settled: false,
            failures: 0,
            accepted: None,
            carried,
            fed: false,
            window: 1,
            uncertain: Vec::new(),
        };
        Ok((connection, sender))
    }

    /// The next notice. Connects and reconnects on the way; never ends.
    pub async fn next(&mut self) -> Notice {
        loop {
            if let Some(number) = self.delivered.pop_front() {
                return Notice::Delivered(number);
            }
            self.feed();
            let connection = self.shared.connection.load(Ordering::Acquire);
            let shared = Arc::clone(&self.shared);
            let polled = tokio::select! {
                polled = poll(&mut self.event_loop, connection) => polled,
                () = shared.renewal.notified() => Err(self.hang_up()),
            };
            match polled {
                Ok(Some(Polled::Sent(pkid))) => self.sent(pkid),
                Ok(Some(Polled::Acknowledged(pkid, refused))) => self.acknowledged(pkid, refused),
                Ok(Some(Polled::Accepted { remembered, window, largest })) => {
                    self.window = window;
                    self.shared.largest.store(largest, Ordering::Relaxed);
                    self.drop_what_is_larger(largest);
                    if remembered {
                        self.drop_refusals();
                    } else {
                        self.shared.forgotten.store(connection, Ordering::Release);
                    }
                    self.shared.accepted.send_replace(connection);
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
                    let of_tls = self.tls.as_ref().and_then(|_| tls::remedy(&reason, &self.options.tls));
                    let of_port = || (failure.handshake && !self.settled).then(|| WRONG_PORT.to_owned());
                    if let Some(remedy) = of_tls.or_else(|| remedy_of_refusal(&reason)).or_else(of_port) {
                        reason = format!("{reason}; {remedy}");
                    }
                    match self.accepted.take().map(|accepted| accepted.elapsed()) {
                        Some(lasted) if lasted >= STABLE => self.failures = 0,
                        // Accepted and dropped at once: without a pause we would reconnect a thousand times a second.
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

    /// Drops the connection, for one with the new credentials.
    fn hang_up(&mut self) -> Failure {
        if let Some(credentials) = self.shared.renewed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let Credentials { username, password } = &credentials;
            match &mut self.event_loop {
                EventLoop::V5(event_loop) => {
                    event_loop.options.set_credentials(username, password);
                    event_loop.clean();
                }
                EventLoop::V4(event_loop) => {
                    event_loop.mqtt_options.set_credentials(username, password);
                    event_loop.clean();
                }
            }
            self.options.credentials = Some(credentials);
        }
        // The connection did not fail, so the next attempt follows at once.
        (self.accepted, self.failures) = (None, 0);
        Failure { reason: "there are new credentials".into(), handshake: false }
    }

    /// Records that rumqttc has sent the next message of the queue.
    fn sent(&mut self, pkid: u16) {
        self.shared.stalled.store(false, Ordering::Relaxed);
        self.fed = false;
        let tracking = self.shared.queued().pop_front();
        let sent = match tracking {
            Some(Tracking::Number(number)) => Sent::Number(number),
            Some(Tracking::Echo) => Sent::Echo,
            Some(Tracking::Refusal(ack, why)) => {
                self.refuse(ack, why);
                Sent::Refusal(ack, why)
            }
            Some(Tracking::None) | None => Sent::Plain,
        };
        self.inflight.push_back((pkid, sent));
    }

    fn acknowledged(&mut self, pkid: u16, refused: Option<String>) {
        if let Some(reason) = refused {
            log::error!("the broker refuses a message for good: {reason}; check the topics that this client may publish to");
        }
        let at = self.inflight.iter().position(|(its, _)| *its == pkid);
        if let Some((_, Sent::Number(number))) = at.and_then(|at| self.inflight.remove(at)) {
            self.delivered.push_back(number);
        }
    }

    /// Acknowledges a refused message.
    fn refuse(&mut self, ack: Ack, why: Why) {
        if ack.connection != self.shared.connection.load(Ordering::Acquire) {
            return;
        }
        match &mut self.event_loop {
            EventLoop::V5(event_loop) => {
                let mut puback = p5::PubAck::new(ack.pkid, None);
                if why == Why::NoRoom {
                    puback.reason = p5::PubAckReason::QuotaExceeded;
                }
                event_loop.pending.push_back(v5::Request::PubAck(puback));
            }
            EventLoop::V4(event_loop) => {
                event_loop.pending.push_back(rumqttc::Request::PubAck(rumqttc::PubAck::new(ack.pkid)));
            }
        }
    }

    /// Sends the queued messages, says goodbye, and waits up to `patience` for the broker to close the connection.
    ///
    /// Closing first would lose messages. A socket closed with unread acknowledgements resets the connection, and the broker then
    /// drops its unread bytes.
    pub async fn close(mut self, patience: Duration) {
        let client = self.shared.client();
        let goodbye = async {
            // Requests leave in order, so the goodbye follows every queued message.
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

    /// Moves the next message of the last connection ahead of the queue, once the broker has room for it. One at a time: rumqttc
    /// sends pending messages even if the broker has no room. Of two messages that wait for a packet identifier, it forgets one.
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
                carried.pop_front().map(|(publish, tracking)| {
                    event_loop.pending.push_back(v5::Request::Publish(publish));
                    tracking
                })
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                let state = &event_loop.state;
                if !event_loop.pending.is_empty() || state.collision.is_some() || state.inflight() >= self.window {
                    return;
                }
                carried.pop_front().map(|(publish, tracking)| {
                    event_loop.pending.push_back(rumqttc::Request::Publish(publish));
                    tracking
                })
            }
            _ => None,
        };
        if let Some(tracking) = tracking {
            self.shared.queued().push_front(tracking);
            self.fed = true;
        }
    }

    /// Drops messages of the last connection that exceed this broker's limit: sending them would end every connection.
    fn drop_what_is_larger(&mut self, largest: usize) {
        let told = |topic: &str, size| {
            log::error!("a message of {size} bytes for `{topic}` is lost: the broker takes {largest} at most");
        };
        match &mut self.carried {
            Carried::V5(carried) => carried.retain(|(publish, _)| {
                let its = publish.properties.as_ref().map_or(0, |its| {
                    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
                    length(&its.response_topic) + length(&its.content_type) + its.correlation_data.as_ref().map_or(0, Bytes::len)
                });
                let size = size_of_packet(publish.topic.len(), publish.payload.len()) + its;
                if size > largest {
                    told(&String::from_utf8_lossy(&publish.topic), size);
                }
                size <= largest
            }),
            // An MQTT 3.1.1 broker announces no limit.
            Carried::V4(_) => {}
        }
    }

    /// Drops the refusals of the last connection: the broker repeats their requests.
    fn drop_refusals(&mut self) {
        let stays = |its: &Tracking| !matches!(its, Tracking::Refusal(..));
        match &mut self.carried {
            Carried::V5(carried) => carried.retain(|(_, its)| stays(its)),
            Carried::V4(carried) => carried.retain(|(_, its)| stays(its)),
        }
    }

    /// Takes unacknowledged publishes from rumqttc before it forgets them.
    fn carry(&mut self) {
        // Report the last events of the lost connection now: the next one reuses its packet identifiers.
        for told in left_events(&mut self.event_loop) {
            match told {
                Polled::Sent(pkid) => self.sent(pkid),
                Polled::Acknowledged(pkid, refused) => self.acknowledged(pkid, refused),
                _ => {}
            }
        }
        // Numbered messages that were sent may have arrived, so their sender decides. Echoes end with their connection.
        let sent = std::mem::take(&mut self.inflight);
        self.uncertain
            .extend(sent.iter().filter_map(|(_, its)| if let Sent::Number(number) = its { Some(number) } else { None }));
        // In the order in which the numbers were given.
        self.uncertain.sort_unstable();
        let fed = std::mem::take(&mut self.fed);
        let again = |(pkid, its)| match its {
            Sent::Plain => Some((pkid, Tracking::None)),
            Sent::Refusal(ack, why) => Some((pkid, Tracking::Refusal(ack, why))),
            Sent::Number(_) | Sent::Echo => None,
        };
        let again: Vec<(u16, Tracking)> = sent.into_iter().filter_map(again).collect();
        let mut queued = self.shared.queued();
        match (&mut self.event_loop, &mut self.carried) {
            (EventLoop::V5(event_loop), Carried::V5(carried)) => {
                let waiting = event_loop.state.collision.take();
                let pending = std::mem::take(&mut event_loop.pending).into_iter().filter_map(|request| match request {
                    v5::Request::Publish(publish) => Some(publish),
                    _ => None,
                });
                let new = |publish: p5::Publish| p5::Publish { pkid: 0, dup: false, ..publish };
                *carried = in_order(pending, waiting, fed, std::mem::take(carried), &again, &mut queued, |p| p.pkid, new);
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                let waiting = event_loop.state.collision.take();
                let pending = std::mem::take(&mut event_loop.pending).into_iter().filter_map(|request| match request {
                    rumqttc::Request::Publish(publish) => Some(publish),
                    _ => None,
                });
                let new = |publish: rumqttc::Publish| rumqttc::Publish { pkid: 0, dup: false, ..publish };
                *carried = in_order(pending, waiting, fed, std::mem::take(carried), &again, &mut queued, |p| p.pkid, new);
            }
            _ => {}
        }
    }

    /// Tries the other protocol version next, if the configuration allows both and neither has worked yet.
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

/// The messages for the next connection, in order. First come unacknowledged ones (`again`), then the one that was `fed` or
/// `waiting` for a packet identifier. Those of an earlier connection (`later`) and those still in rumqttc's queue follow.
/// `queued` tracks the unsent ones.
#[allow(clippy::too_many_arguments, reason = "the same for both versions of the protocol")]
fn in_order<P>(
    pending: impl Iterator<Item = P>,
    waiting: Option<P>,
    fed: bool,
    later: VecDeque<(P, Tracking)>,
    again: &[(u16, Tracking)],
    queued: &mut VecDeque<Tracking>,
    pkid_of: impl Fn(&P) -> u16,
    new: impl Fn(P) -> P,
) -> VecDeque<(P, Tracking)> {
    let (sent, unsent): (Vec<P>, Vec<P>) = pending.partition(|publish| pkid_of(publish) != 0);
    let mut sent: HashMap<u16, P> = sent.into_iter().map(|publish| (pkid_of(&publish), publish)).collect();
    let mut all: VecDeque<_> = again.iter().filter_map(|(pkid, its)| Some((new(sent.remove(pkid)?), *its))).collect();
    let comes_first = fed || waiting.is_some();
    // Messages of `later` carry their tracking with them.
    let tracked = |publish| (new(publish), queued.pop_front().unwrap_or(Tracking::None));
    let mut rest: VecDeque<_> = waiting.into_iter().chain(unsent).map(tracked).collect();
    if fed {
        // The fed message and `later` belong to one queue, the rest to another.
        let mut of_one: VecDeque<_> = rest.pop_front().into_iter().chain(later).collect();
        drop_orphans(&mut of_one);
        drop_orphans(&mut rest);
        all.extend(of_one);
    } else {
        let mut later = later;
        drop_orphans(&mut later);
        drop_orphans(&mut rest);
        if comes_first {
            all.extend(rest.pop_front());
        }
        all.extend(later);
    }
    all.extend(rest);
    all
}

/// Drops echoes whose message is not among those before them: that message was sent over the lost connection.
fn drop_orphans<P>(messages: &mut VecDeque<(P, Tracking)>) {
    let mut numbered = false;
    messages.retain(|(_, its)| match its {
        Tracking::Echo => std::mem::take(&mut numbered),
        Tracking::Number(_) => {
            numbered = true;
            true
        }
        Tracking::None | Tracking::Refusal(..) => true,
    });
}

/// Pause before attempt `failures + 1`. It doubles from a quarter of a second, and jitter cuts it to between half and all of
/// that: a fleet must not return all at once.
fn backoff(failures: u32) -> Duration {
    let full = Duration::from_millis(250).saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn address(scheme: &str, host: &str, port: u16, path: &str) -> String {
    if host.contains(':') { format!("{scheme}://[{host}]:{port}{path}") } else { format!("{scheme}://{host}:{port}{path}") }
}

fn make(options: &ConnectionOptions, tls: Option<TlsConfiguration>, v5: bool) -> (Client, EventLoop, Carried) {
    let BrokerUrl { host, port, web_socket, .. } = &options.broker;
    let (transport, host) = match (web_socket, tls) {
        (None, None) => (Transport::Tcp, host.clone()),
        (None, Some(tls)) => (Transport::Tls(tls), host.clone()),
        // For WebSockets, rumqttc takes host and port from an address.
        (Some(path), None) => (Transport::Ws, address("ws", host, *port, path)),
        (Some(path), Some(tls)) => (Transport::Wss(tls), address("wss", host, *port, path)),
    };
    if v5 {
        let mut o = v5::MqttOptions::new(&options.client_id, &host, *port);
        o.set_keep_alive(options.keep_alive).set_clean_start(!options.persistent).set_transport(transport);
        o.set_max_packet_size(Some(options.max_packet as u32));
        o.set_receive_maximum(Some(options.receive_maximum));
        o.set_manual_acks(options.persistent);
        // The default of 65,535 would allocate and write a table of 13 MiB at once.
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
        let mut o = rumqttc::MqttOptions::new(&options.client_id, &host, *port);
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

/// Disables Nagle's algorithm. The evidence follows the acknowledgement of its question at once; with Nagle it would wait some
/// 40 ms for the broker's TCP acknowledgement.
fn without_delay() -> rumqttc::NetworkOptions {
    let mut options = rumqttc::NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options
}

/// Events of a lost connection that rumqttc has not reported yet.
fn left_events(event_loop: &mut EventLoop) -> Vec<Polled> {
    match event_loop {
        EventLoop::V5(event_loop) => event_loop.state.events.drain(..).filter_map(|event| event_of_v5(event, 0)).collect(),
        EventLoop::V4(event_loop) => event_loop.state.events.drain(..).filter_map(|event| event_of_v4(event, 0)).collect(),
    }
}

fn event_of_v5(event: v5::Event, connection: u64) -> Option<Polled> {
    match event {
        v5::Event::Incoming(packet) => from_v5(packet, connection),
        v5::Event::Outgoing(rumqttc::Outgoing::Disconnect) => Some(Polled::Closed),
        v5::Event::Outgoing(rumqttc::Outgoing::Publish(pkid)) => Some(Polled::Sent(pkid)),
        v5::Event::Outgoing(_) => None,
    }
}

fn event_of_v4(event: rumqttc::Event, connection: u64) -> Option<Polled> {
    match event {
        rumqttc::Event::Incoming(packet) => from_v4(packet, connection),
        rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect) => Some(Polled::Closed),
        rumqttc::Event::Outgoing(rumqttc::Outgoing::Publish(pkid)) => Some(Polled::Sent(pkid)),
        rumqttc::Event::Outgoing(_) => None,
    }
}

/// The next event; `connection` goes into acknowledgements.
async fn poll(event_loop: &mut EventLoop, connection: u64) -> Result<Option<Polled>, Failure> {
    match event_loop {
        EventLoop::V5(event_loop) => match event_loop.poll().await {
            Ok(event) => Ok(event_of_v5(event, connection)),
            Err(error) => {
                use v5::ConnectionError as E;
                let refused =
                    matches!(&error, E::ConnectionRefused(code) if *code != p5::ConnectReturnCode::UnsupportedProtocolVersion);
                let handshake = !refused && !matches!(&error, E::Timeout(_) | E::Tls(_)) && !is_unreachable_v5(&error);
                Err(Failure { reason: error.to_string(), handshake })
            }
        },
        EventLoop::V4(event_loop) => match event_loop.poll().await {
            Ok(event) => Ok(event_of_v4(event, connection)),
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

/// Whether the peer was not reached at all; then nothing is known about its protocol.
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
            let properties = ack.properties.as_ref();
            let window = properties.and_then(|its| its.receive_max).unwrap_or(u16::MAX).min(IN_FLIGHT);
            let largest = properties.and_then(|its| its.max_packet_size).map_or(usize::MAX, |bytes| bytes as usize);
            Some(Polled::Accepted { remembered: ack.session_present, window, largest })
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
                ack: (publish.pkid != 0).then_some(Ack { pkid: publish.pkid, connection }),
                redelivered: publish.dup,
                expiry: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
            }))
        }
        _ => None,
    }
}

fn from_v4(packet: rumqttc::Packet, connection: u64) -> Option<Polled> {
    match packet {
        rumqttc::Packet::ConnAck(ack) => {
            Some(Polled::Accepted { remembered: ack.session_present, window: IN_FLIGHT_V4, largest: usize::MAX })
        }
        rumqttc::Packet::SubAck(ack) => {
            Some(Polled::Subscribed(ack.return_codes.iter().all(|code| matches!(code, rumqttc::SubscribeReasonCode::Success(_)))))
        }
        rumqttc::Packet::PubAck(ack) => Some(Polled::Acknowledged(ack.pkid, None)),
        rumqttc::Packet::Publish(publish) => Some(Polled::Message(Message {
            topic: publish.topic,
            payload: publish.payload,
            retained: publish.retain,
            properties: Properties::default(),
            ack: (publish.pkid != 0).then_some(Ack { pkid: publish.pkid, connection }),
            redelivered: publish.dup,
            expiry: None,
        })),
        _ => None,
    }
}

/// Advice for a connection that the broker refuses, by rumqttc's reason.
fn remedy_of_refusal(reason: &str) -> Option<String> {
    let account = ["NotAuthorized", "BadUserNamePassword"].iter().any(|word| reason.contains(word));
    account.then(|| "the broker refuses this user name and password; check mqtt.username and mqtt.password_file".into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sender without a connection, and the requests that it would send.
    pub(crate) fn recorded() -> (Sender, flume::Receiver<v5::Request>) {
        let (requests, recorded) = flume::unbounded();
        let (_, sender) = Connection::new(options(), vec![]).expect("made");
        *sender.0.client.write().expect("lock") = Client::V5(v5::AsyncClient::from_senders(requests));
        (sender, recorded)
    }

    /// An acknowledgement of the present connection.
    pub(crate) fn ack(pkid: u16) -> Ack {
        Ack { pkid, connection: 0 }
    }

    #[test]
    fn a_refused_account_names_the_keys_to_check() {
        for code in
            [v5::mqttbytes::v5::ConnectReturnCode::NotAuthorized, v5::mqttbytes::v5::ConnectReturnCode::BadUserNamePassword]
        {
            let reason = v5::ConnectionError::ConnectionRefused(code).to_string();
            assert!(remedy_of_refusal(&reason).is_some_and(|remedy| remedy.contains("mqtt.password_file")), "{reason}");
        }
        assert_eq!(remedy_of_refusal("Connection refused (os error 111)"), None);
    }

    fn plain(name: &str) -> Outgoing {
        Outgoing { topic: name.into(), payload: Bytes::new(), retain: false, properties: Properties::default() }
    }

    fn publish(pkid: u16, topic: &str) -> p5::Publish {
        let mut publish = p5::Publish::new(topic.to_owned(), v5::mqttbytes::QoS::AtLeastOnce, Bytes::new(), None);
        publish.pkid = pkid;
        publish
    }

    fn options() -> ConnectionOptions {
        ConnectionOptions {
            broker: BrokerUrl::parse("mqtt://127.0.0.1:1").expect("an address"),
            client_id: "c".into(),
            version: "5".into(),
            credentials: None,
            tls: TlsOptions::default(),
            keep_alive: Duration::from_secs(30),
            max_packet: 1 << 20,
            will: None,
            persistent: true,
            receive_maximum: 10,
        }
    }

    /// The state of rumqttc at a lost connection: three messages were sent (the second acknowledged, the third not reported yet).
    /// One waits for a packet identifier, some were never taken, the third's echo first. One remains of an earlier connection.
    #[tokio::test]
    async fn a_lost_connection_repeats_nothing() {
        let (mut connection, sender) = Connection::new(options(), vec![]).expect("made");
        let echo = || plain("receipt");
        // The test sends its message by hand, below.
        sender.queue(echo(), Tracking::Echo).await.expect("queued");
        sender.send(plain("queued 1")).await.expect("queued");
        sender.send_tracked(plain("queued 2"), 8, echo()).await.expect("queued");
        {
            let mut queued = connection.shared.queued();
            queued.push_front(Tracking::None); // waits
            queued.push_front(Tracking::Number(7)); // the third
        }
        let refusal = || Ack { connection: 0, pkid: 77 };
        connection.inflight = [(9, Sent::Plain), (8, Sent::Refusal(refusal(), Why::NoRoom)), (2, Sent::Number(5))].into();
        let EventLoop::V5(event_loop) = &mut connection.event_loop else { unreachable!("MQTT 5 was asked for") };
        event_loop.state.events.push_back(v5::Event::Incoming(p5::Packet::PubAck(p5::PubAck::new(2, None))));
        event_loop.state.events.push_back(v5::Event::Outgoing(rumqttc::Outgoing::Publish(3)));
        event_loop.state.collision = Some(publish(4, "waits"));
        for sent in [publish(3, "third"), publish(8, "refusal"), publish(9, "first")] {
            event_loop.pending.push_back(v5::Request::Publish(sent));
        }
        event_loop.clean();
        let Carried::V5(carried) = &mut connection.carried else { unreachable!("MQTT 5 was asked for") };
        carried.push_back((publish(0, "earlier"), Tracking::None));

        connection.carry();
        let Carried::V5(carried) = &connection.carried else { unreachable!("MQTT 5 was asked for") };
        let topics: Vec<_> = carried.iter().map(|(publish, _)| String::from_utf8_lossy(&publish.topic).into_owned()).collect();
        assert_eq!(topics, ["first", "refusal", "waits", "earlier", "queued 1", "queued 2", "receipt"]);
        assert!(carried.iter().all(|(publish, _)| publish.pkid == 0));
        assert_eq!(carried[1].1, Tracking::Refusal(refusal(), Why::NoRoom), "to a broker that has forgotten the request");
        assert_eq!(connection.delivered, [5], "acknowledged before the connection was lost");
        assert_eq!(connection.uncertain, [7], "sent; whether it has arrived is not known");
        assert!(connection.inflight.is_empty() && connection.shared.queued().is_empty());
        // A broker that kept the session sends the request again.
        connection.drop_refusals();
        let Carried::V5(carried) = &connection.carried else { unreachable!("MQTT 5 was asked for") };
        assert_eq!((carried.len(), carried[1].1), (6, Tracking::None));
    }

    /// No later echo may vouch for a message that was sent over a lost connection.
    #[test]
    fn echoes_go_with_their_messages() {
        let left = |fed: bool, later: &[Tracking], unsent: &[Tracking]| {
            let mut queued: VecDeque<Tracking> = unsent.iter().copied().collect();
            let later = later.iter().map(|its| (0_u16, *its)).collect();
            let pending = unsent.iter().map(|_| 0_u16);
            let all = in_order(pending, None, fed, later, &[], &mut queued, |pkid| *pkid, |pkid| pkid);
            all.into_iter().map(|(_, its)| its).collect::<Vec<_>>()
        };
        let (n, m, r, none) = (Tracking::Number(1), Tracking::Number(2), Tracking::Echo, Tracking::None);
        assert_eq!(left(false, &[], &[n, r, m, r]), [n, r, m, r]);
        assert_eq!(left(false, &[], &[r, none, n, r]), [none, n, r]);
        assert_eq!(left(false, &[r, n, r], &[r, m, r]), [n, r, m, r]);
        // The fed one is the first; the rest of its queue is in `later`.
        assert_eq!(left(true, &[r, m, r], &[n, r, none]), [n, r, m, r, none]);
        assert_eq!(left(true, &[m, r], &[r, r, none]), [m, r, none]);
    }

    #[test]
    fn a_message_that_is_sent_again_keeps_its_number() {
        let of = |pkid, connection| Ack { pkid, connection };
        assert!(of(7, 3).repeats(of(7, 1)));
        assert!(!of(7, 1).repeats(of(7, 1)) && !of(7, 1).repeats(of(7, 3)) && !of(8, 3).repeats(of(7, 1)));
    }

    #[tokio::test]
    async fn too_large_messages_are_not_sent() {
        let (mut connection, sender) = Connection::new(options(), vec![]).expect("made");
        connection.shared.largest.store(100, Ordering::Relaxed);
        let large = Outgoing { payload: vec![b'x'; 100].into(), ..plain("t") };
        let error = sender.send(large.clone()).await.expect_err("too large").to_string();
        assert!(error.contains("takes 100 at most"), "{error}");
        assert_eq!((sender.is_too_large(&large), sender.is_too_large(&plain("t"))), (Some(100), None));
        assert!(connection.shared.queued().is_empty());
        let Carried::V5(carried) = &mut connection.carried else { unreachable!("MQTT 5 was asked for") };
        carried.push_back((publish(0, &"t".repeat(100)), Tracking::None));
        carried.push_back((publish(0, "small"), Tracking::None));
        connection.drop_what_is_larger(100);
        let Carried::V5(carried) = &connection.carried else { unreachable!("MQTT 5 was asked for") };
        assert_eq!(carried.len(), 1);
    }
}
