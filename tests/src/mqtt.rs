//! The tests' MQTT 5 client: it hears everything and remembers it.

use crate::{Broker, Daemon, PATIENCE};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The broker had kept it.
    pub retained: bool,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its correlation data.
    pub correlation: Option<Vec<u8>>,
}

impl Message {
    /// The payload as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// MQTT 5 properties of a request.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    /// The reply is wanted there.
    pub response_topic: Option<String>,
    /// To be echoed.
    pub correlation: Option<Vec<u8>>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// The broker keeps the message.
    pub retain: bool,
}

#[derive(Default)]
struct Heard {
    messages: Vec<Message>,
    subscribed: bool,
    failure: Option<String>,
}

/// A client subscribed to `#`.
pub struct Mqtt {
    client: Client,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mqtt {
    /// Connects to a broker of the test.
    pub fn to(broker: &Broker) -> Self {
        Self::connect(broker.port)
    }

    /// Connects to a loopback port and waits until the subscription stands.
    pub fn connect(port: u16) -> Self {
        Self::open(port, None)
    }

    /// The same, with user name and password.
    pub fn with_account(port: u16, username: &str, password: &str) -> Self {
        Self::open(port, Some((username, password)))
    }

    fn open(port: u16, account: Option<(&str, &str)>) -> Self {
        static CLIENTS: AtomicUsize = AtomicUsize::new(0);
        // rumqttc does not wait for a broker that is about to listen.
        crate::wait_for("the broker", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        let id = format!("test-{}-{}", std::process::id(), CLIENTS.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(Some(8 << 20));
        if let Some((username, password)) = account {
            options.set_credentials(username, password);
        }
        let (client, mut connection) = Client::new(options, 64);
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let for_thread = Arc::clone(&heard);
        std::thread::spawn(move || {
            for event in connection.iter() {
                let ended = event.is_err();
                let mut heard = lock(&for_thread.0);
                match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let properties = publish.properties.unwrap_or_default();
                        heard.messages.push(Message {
                            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                            payload: publish.payload.to_vec(),
                            retained: publish.retain,
                            content_type: properties.content_type,
                            correlation: properties.correlation_data.map(|data| data.to_vec()),
                        });
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => heard.subscribed = true,
                    Ok(_) => continue,
                    Err(error) => heard.failure = Some(error.to_string()),
                }
                drop(heard);
                for_thread.1.notify_all();
                if ended {
                    return;
                }
            }
        });
        client.subscribe("#", QoS::AtLeastOnce).expect("the subscription is sent");
        let mqtt = Self { client, heard };
        mqtt.wait_heard("the subscription", |heard| heard.subscribed.then_some(()));
        mqtt
    }

    /// Publishes at QoS 1.
    pub fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.publish_with(topic, payload, Properties::default());
    }

    /// Publishes at QoS 1, with properties.
    pub fn publish_with(&self, topic: &str, payload: impl Into<Vec<u8>>, properties: Properties) {
        let retain = properties.retain;
        let properties = PublishProperties {
            response_topic: properties.response_topic,
            correlation_data: properties.correlation.map(Into::into),
            content_type: properties.content_type,
            ..PublishProperties::default()
        };
        let sent = self.client.publish_with_properties(topic, QoS::AtLeastOnce, retain, payload.into(), properties);
        sent.expect("the message is sent");
    }

    /// Waits until `look` finds something among the messages so far.
    ///
    /// # Panics
    /// It does not within [`PATIENCE`].
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&[Message]) -> Option<T>) -> T {
        self.wait_heard(what, |heard| look(&heard.messages))
    }

    fn wait_heard<T>(&self, what: &str, mut look: impl FnMut(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = lock(&self.heard.0);
        loop {
            if let Some(found) = look(&heard) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || heard.failure.is_some() {
                let lines: Vec<_> = heard.messages.iter().map(|m| format!("{} {}", m.topic, m.text())).collect();
                panic!("waited in vain for {what} (connection: {:?}); heard:\n{}", heard.failure, lines.join("\n"));
            }
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything heard on `topic` so far.
    pub fn on(&self, topic: &str) -> Vec<Message> {
        lock(&self.heard.0).messages.iter().filter(|m| m.topic == topic).cloned().collect()
    }

    /// The next message on `topic` (or the first one already heard there).
    pub fn first_on(&self, topic: &str) -> Message {
        self.wait(topic, |messages| messages.iter().find(|m| m.topic == topic).cloned())
    }

    /// The reply that ends the request `id`: an answer, an error, the reply of a documents topic.
    pub fn reply(&self, daemon: &Daemon, id: &str) -> Value {
        let topic = daemon.topic(&format!("answer/{id}"));
        self.wait(&topic, |messages| {
            messages.iter().filter(|m| m.topic == topic).map(Message::json).find(|m| m.get("seq").is_none())
        })
    }

    /// Waits until the question `id` is being answered: its first delta has come.
    pub fn first_delta(&self, daemon: &Daemon, id: &str) {
        let topic = daemon.topic(&format!("answer/{id}"));
        self.wait("a delta", |messages| messages.iter().find(|m| m.topic == topic && m.json().get("delta").is_some()).map(drop));
    }

    /// Sends a request under a fresh id and waits for its reply.
    pub fn request(&self, daemon: &Daemon, name: &str, mut request: Value) -> Value {
        static REQUESTS: AtomicUsize = AtomicUsize::new(0);
        let id = format!("r{}", REQUESTS.fetch_add(1, Ordering::Relaxed));
        request["id"] = json!(id);
        self.publish(&daemon.topic(name), request.to_string());
        self.reply(daemon, &id)
    }

    /// Puts a document of plain text.
    pub fn put(&self, daemon: &Daemon, document: &str, text: &str) {
        let reply = self.request(daemon, "documents/put", json!({ "document": document, "text": text }));
        assert_eq!(reply["change"], "added", "{reply}");
    }

    /// Waits until every request sent before has been taken up: requests are read in order.
    pub fn fence(&self, daemon: &Daemon) {
        let reply = self.request(daemon, "documents/list", json!({ "limit": 0 }));
        assert!(reply.get("total").is_some(), "{reply}");
    }
}
