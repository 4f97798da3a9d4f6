//! One connection to a broker, MQTT 5 or 3.1.1, behind one small door.
//!
//! What rumqttc leaves to its user and is done here: reconnecting with jittered back-off, subscribing again, falling back
//! to 3.1.1, and carrying unacknowledged publishes over to a session that the broker does not remember (rumqttc drops
//! them when `session_present` is 0).

use crate::config::BrokerUrl;
use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::{QoS, TlsConfiguration, Transport, v5};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Requests that may wait between us and the event loop.
const REQUESTS: usize = 256;

/// Messages that the broker may not have acknowledged yet; it may set a smaller limit.
const IN_FLIGHT: u16 = 1024;

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
    pub credentials: Option<(String, String)>,
    /// PEM file of trusted authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// Keep-alive.
    pub keep_alive: Duration,
    /// Largest packet, in bytes.
    pub max_packet: usize,
    /// Topic and payload of the retained last will.
    pub will: Option<(String, &'static str)>,
    /// Whether the broker is to keep the session while we are away.
    pub persistent: bool,
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
    },
    /// The broker has acknowledged our subscriptions.
    Subscribed,
    /// The broker refused a subscription.
    SubscriptionRefused,
    /// A message.
    Message(Message),
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

/// Sends messages; cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<RwLock<Client>>);

impl Sender {
    /// Queues a message at QoS 1, waiting for room. [`Connection::next`] must be polled meanwhile, by another task.
    ///
    /// # Errors
    /// The topic cannot be published to, or the connection has ended.
    pub async fn send(&self, message: Outgoing) -> Result<(), ConnectionError> {
        let client = self.client();
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
                let result = match properties {
                    Some(properties) => {
                        client
                            .publish_with_properties(topic.clone(), v5::mqttbytes::QoS::AtLeastOnce, retain, payload, properties)
                            .await
                    }
                    None => client.publish(topic.clone(), v5::mqttbytes::QoS::AtLeastOnce, retain, payload).await,
                };
                result.map_err(|_| failed(&topic))
            }
            Client::V4(client) => {
                client.publish(topic.clone(), QoS::AtLeastOnce, retain, payload.to_vec()).await.map_err(|_| failed(&topic))
            }
        }
    }

    fn client(&self) -> Client {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A connection; poll it without pause, publish through its [`Sender`].
pub struct Connection {
    options: ConnectionOptions,
    tls: Option<TlsConfiguration>,
    topics: Vec<String>,
    client: Arc<RwLock<Client>>,
    event_loop: EventLoop,
    v5: bool,
    /// Whether any attempt was ever accepted: then the version is settled.
    settled: bool,
    failures: u32,
    /// When the broker has last accepted us.
    accepted: Option<Instant>,
    /// Publishes that were not acknowledged when the connection was lost.
    carried: Carried,
}

enum Carried {
    V5(Vec<p5::Publish>),
    V4(Vec<rumqttc::Publish>),
}

/// What polling the event loop gives.
enum Polled {
    Accepted,
    Subscribed(bool),
    Message(Message),
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
    /// The certificate file cannot be read.
    pub fn new(options: ConnectionOptions, topics: Vec<String>) -> Result<(Self, Sender), ConnectionError> {
        let tls = if options.broker.tls { Some(tls_configuration(&options)?) } else { None };
        let v5 = options.version != "3.1.1";
        let (client, event_loop, carried) = make(&options, tls.clone(), v5);
        let client = Arc::new(RwLock::new(client));
        let sender = Sender(Arc::clone(&client));
        Ok((Self { options, tls, topics, client, event_loop, v5, settled: false, failures: 0, accepted: None, carried }, sender))
    }

    /// The next notice. Connects and reconnects on the way; never ends.
    pub async fn next(&mut self) -> Notice {
        loop {
            match poll(&mut self.event_loop).await {
                Ok(Some(Polled::Accepted)) => {
                    self.settled = true;
                    self.accepted = Some(Instant::now());
                    self.resume();
                    return Notice::Connected { version: if self.v5 { "5" } else { "3.1.1" } };
                }
                Ok(Some(Polled::Subscribed(true))) => return Notice::Subscribed,
                Ok(Some(Polled::Subscribed(false))) => return Notice::SubscriptionRefused,
                Ok(Some(Polled::Message(message))) => return Notice::Message(message),
                Ok(Some(Polled::Closed) | None) => {}
                Err(failure) => {
                    self.carry();
                    self.fall_back(&failure);
                    let mut reason = failure.reason;
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

    /// Sends what is queued, says goodbye, and waits until the broker has closed the connection; at most `patience` long.
    ///
    /// To close first would be to lose: a socket closed with acknowledgements unread resets the connection, and the broker
    /// then drops what it has not read yet.
    pub async fn close(mut self, patience: Duration) {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let goodbye = async {
            // Requests leave in order: the goodbye follows everything queued before it.
            let disconnect = async {
                match &client {
                    Client::V5(client) => client.disconnect().await.is_ok(),
                    Client::V4(client) => client.disconnect().await.is_ok(),
                }
            };
            let drain = async { while poll(&mut self.event_loop).await.is_ok() {} };
            tokio::join!(disconnect, drain);
        };
        let _ = tokio::time::timeout(patience, goodbye).await;
    }

    /// Subscribes, and sends again what was not acknowledged.
    fn resume(&mut self) {
        match (&mut self.event_loop, &mut self.carried) {
            (EventLoop::V5(event_loop), Carried::V5(carried)) => {
                let filters = self.topics.iter().map(|t| p5::Filter::new(t.clone(), v5::mqttbytes::QoS::AtLeastOnce));
                if !self.topics.is_empty() {
                    event_loop.pending.push_back(v5::Request::Subscribe(p5::Subscribe::new_many(filters, None)));
                }
                event_loop.pending.extend(carried.drain(..).map(v5::Request::Publish));
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                let filters = self.topics.iter().map(|t| rumqttc::SubscribeFilter::new(t.clone(), QoS::AtLeastOnce));
                if !self.topics.is_empty() {
                    event_loop.pending.push_back(rumqttc::Request::Subscribe(rumqttc::Subscribe::new_many(filters)));
                }
                event_loop.pending.extend(carried.drain(..).map(rumqttc::Request::Publish));
            }
            _ => {}
        }
    }

    /// Takes unacknowledged publishes out of rumqttc's hands before it forgets them.
    fn carry(&mut self) {
        match (&mut self.event_loop, &mut self.carried) {
            (EventLoop::V5(event_loop), Carried::V5(carried)) => {
                for request in std::mem::take(&mut event_loop.pending) {
                    if let v5::Request::Publish(mut publish) = request {
                        publish.pkid = 0;
                        carried.push(publish);
                    }
                }
            }
            (EventLoop::V4(event_loop), Carried::V4(carried)) => {
                for request in std::mem::take(&mut event_loop.pending) {
                    if let rumqttc::Request::Publish(mut publish) = request {
                        publish.pkid = 0;
                        carried.push(publish);
                    }
                }
            }
            _ => {}
        }
    }

    /// Tries the other protocol version next time, where the configuration leaves it open and none has worked yet.
    fn fall_back(&mut self, failure: &Failure) {
        if self.options.version == "auto" && !self.settled && failure.handshake {
            self.v5 = !self.v5;
            let (client, event_loop, carried) = make(&self.options, self.tls.clone(), self.v5);
            *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
            self.event_loop = event_loop;
            self.carried = carried;
        }
    }
}

/// Pause before attempt `failures + 1`: doubling from a quarter of a second, halved to whole at random so that a fleet
/// does not come back at once.
fn backoff(failures: u32) -> Duration {
    let full = Duration::from_millis(250).saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn tls_configuration(options: &ConnectionOptions) -> Result<TlsConfiguration, ConnectionError> {
    // A second installation is refused, and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match &options.ca_file {
        Some(path) => {
            let ca = std::fs::read(path).map_err(|e| {
                ConnectionError(format!("cannot read mqtt.ca_file {}: {e}; check the path and its permissions", path.display()))
            })?;
            if !CertificateDer::pem_slice_iter(&ca).any(|certificate| certificate.is_ok()) {
                let problem = "no PEM certificate is in it; name the file of the authority that signed the broker's certificate";
                return Err(ConnectionError(format!("mqtt.ca_file {}: {problem}", path.display())));
            }
            Ok(TlsConfiguration::Simple { ca, alpn: None, client_auth: None })
        }
        None => Ok(TlsConfiguration::default()),
    }
}

fn make(options: &ConnectionOptions, tls: Option<TlsConfiguration>, v5: bool) -> (Client, EventLoop, Carried) {
    let BrokerUrl { host, port, .. } = &options.broker;
    let transport = tls.map_or(Transport::Tcp, Transport::Tls);
    if v5 {
        let mut o = v5::MqttOptions::new(&options.client_id, host, *port);
        o.set_keep_alive(options.keep_alive).set_clean_start(!options.persistent).set_transport(transport);
        o.set_max_packet_size(Some(options.max_packet as u32));
        o.set_receive_maximum(Some(64));
        // Left open it is 65,535, and a table of so many messages, 13 MiB, is made and written at once.
        o.set_outgoing_inflight_upper_limit(IN_FLIGHT);
        if options.persistent {
            o.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
        }
        if let Some((user, password)) = &options.credentials {
            o.set_credentials(user, password);
        }
        if let Some((topic, payload)) = &options.will {
            o.set_last_will(p5::LastWill::new(topic, *payload, v5::mqttbytes::QoS::AtLeastOnce, true, None));
        }
        o.set_network_options(without_delay());
        let (client, event_loop) = v5::AsyncClient::new(o, REQUESTS);
        (Client::V5(client), EventLoop::V5(Box::new(event_loop)), Carried::V5(vec![]))
    } else {
        let mut o = rumqttc::MqttOptions::new(&options.client_id, host, *port);
        o.set_keep_alive(options.keep_alive).set_clean_session(!options.persistent).set_transport(transport);
        o.set_max_packet_size(options.max_packet, options.max_packet);
        if let Some((user, password)) = &options.credentials {
            o.set_credentials(user, password);
        }
        if let Some((topic, payload)) = &options.will {
            o.set_last_will(rumqttc::LastWill::new(topic, *payload, QoS::AtLeastOnce, true));
        }
        let (client, mut event_loop) = rumqttc::AsyncClient::new(o, REQUESTS);
        event_loop.set_network_options(without_delay());
        (Client::V4(client), EventLoop::V4(Box::new(event_loop)), Carried::V4(vec![]))
    }
}

/// The evidence follows the acknowledgement of its question at once; with Nagle's algorithm it would wait some 40 ms for the
/// broker's TCP to acknowledge that.
fn without_delay() -> rumqttc::NetworkOptions {
    let mut options = rumqttc::NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options
}

async fn poll(event_loop: &mut EventLoop) -> Result<Option<Polled>, Failure> {
    match event_loop {
        EventLoop::V5(event_loop) => match event_loop.poll().await {
            Ok(v5::Event::Incoming(packet)) => Ok(from_v5(packet)),
            Ok(v5::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => Ok(Some(Polled::Closed)),
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
            Ok(rumqttc::Event::Incoming(packet)) => Ok(from_v4(packet)),
            Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => Ok(Some(Polled::Closed)),
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

fn from_v5(packet: p5::Packet) -> Option<Polled> {
    match packet {
        p5::Packet::ConnAck(_) => Some(Polled::Accepted),
        p5::Packet::SubAck(ack) => {
            Some(Polled::Subscribed(ack.return_codes.iter().all(|code| matches!(code, p5::SubscribeReasonCode::Success(_)))))
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
            }))
        }
        _ => None,
    }
}

fn from_v4(packet: rumqttc::Packet) -> Option<Polled> {
    match packet {
        rumqttc::Packet::ConnAck(_) => Some(Polled::Accepted),
        rumqttc::Packet::SubAck(ack) => {
            Some(Polled::Subscribed(ack.return_codes.iter().all(|code| matches!(code, rumqttc::SubscribeReasonCode::Success(_)))))
        }
        rumqttc::Packet::Publish(publish) => Some(Polled::Message(Message {
            topic: publish.topic,
            payload: publish.payload,
            retained: publish.retain,
            properties: Properties::default(),
        })),
        _ => None,
    }
}
