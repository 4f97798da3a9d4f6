//! An MQTT 5 client that asks and looks at the clock.

use crate::Result;
use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A connected client of one node.
pub struct Asker {
    client: Client,
    connection: Connection,
    base: String,
    /// The node's last word about its state.
    state: String,
    replies: String,
}

/// A question, and how it is asked beyond what the node does of itself.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Its text.
    pub text: &'a str,
    /// Passages to retrieve.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
}

/// What one question took, as the client saw it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Milliseconds to the evidence message.
    pub evidence_ms: f64,
    /// The passages of that message.
    pub evidence: Value,
    /// Milliseconds to the first piece of the answer, and of the node's processor time until then; `None` when nothing was said.
    pub first: Option<First>,
    /// Milliseconds to the whole answer.
    pub total_ms: f64,
    /// The answer message.
    pub answer: Value,
}

/// When the first piece of an answer came.
#[derive(Debug, Clone, Copy)]
pub struct First {
    /// Milliseconds after the question.
    pub wall_ms: f64,
    /// Milliseconds of processor time that the node has used since the question.
    pub cpu_ms: f64,
}

impl Asker {
    /// Connects to the broker on `port` as `name` and subscribes to the node's state and to a reply topic of its own.
    ///
    /// # Errors
    /// The broker does not take us.
    pub fn connect(port: u16, name: &str, node: &str) -> Result<Self> {
        let base = format!("vademecum/{node}");
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        // Nobody looks at the connection while another node is asked.
        options.set_keep_alive(Duration::from_hours(1)).set_max_packet_size(Some(16 << 20));
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        let (client, connection) = Client::new(options, 64);
        let replies = format!("reply/{name}");
        let mut asker = Self { client, connection, base, state: String::new(), replies };
        for topic in [format!("{}/state", asker.base), asker.replies.clone()] {
            asker.client.subscribe(topic, QoS::AtLeastOnce)?;
            let deadline = Instant::now() + Duration::from_secs(5);
            while !matches!(asker.packet(deadline)?.ok_or("the subscription is not acknowledged")?, Packet::SubAck(_)) {}
        }
        Ok(asker)
    }

    /// Waits for the node's `state` to be `wanted`.
    ///
    /// # Errors
    /// It does not within 60 s.
    pub fn wait_for_state(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.state != wanted {
            self.packet(deadline)?.ok_or_else(|| format!("the node is not {wanted}"))?;
        }
        Ok(())
    }

    /// Asks and waits for the whole answer. `cpu` tells the seconds of processor time that the node has used.
    ///
    /// # Errors
    /// The node answers with an error, or not within two minutes.
    pub fn ask(&mut self, question: Question<'_>, cpu: &dyn Fn() -> Result<f64>) -> Result<Asked> {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        // No other question's, also not one's that a node was asked before it was started anew: it would be taken for that one.
        let id = format!("{}/{}", self.replies, ASKED.fetch_add(1, Ordering::Relaxed));
        let Question { text, top_k, max_tokens } = question;
        let payload = json!({
            "id": id, "question": text, "top_k": top_k, "max_tokens": max_tokens, "stream": true, "reply_to": self.replies,
        });
        let used = cpu()?;
        let begun = Instant::now();
        self.client.publish(format!("{}/ask", self.base), QoS::AtLeastOnce, false, payload.to_string())?;
        let elapsed = || begun.elapsed().as_secs_f64() * 1e3;
        let (mut evidence, mut first) = (None, None);
        loop {
            let Some(publish) = self.publish(begun + Duration::from_mins(2))? else {
                return Err(format!("no answer to {text:?} within two minutes").into());
            };
            if publish.topic != self.replies.as_str() {
                continue;
            }
            let wall_ms = elapsed();
            let reply: Value = serde_json::from_slice(&publish.payload)?;
            if reply["id"] != id.as_str() {
                continue;
            }
            if let Some(error) = reply.get("error") {
                return Err(format!("{text:?} ended in an error: {error}").into());
            }
            if let Some(passages) = reply.get("evidence") {
                evidence.get_or_insert_with(|| (wall_ms, passages.clone()));
            } else if reply.get("delta").is_some() && first.is_none() {
                first = Some(First { wall_ms, cpu_ms: (cpu()? - used) * 1e3 });
            } else if reply.get("answer").is_some() {
                let (evidence_ms, evidence) = evidence.ok_or("the answer came without an evidence message before it")?;
                return Ok(Asked { evidence_ms, evidence, first, total_ms: wall_ms, answer: reply });
            }
        }
    }

    /// The next message that arrives before `deadline`.
    fn publish(&mut self, deadline: Instant) -> Result<Option<Publish>> {
        loop {
            match self.packet(deadline)? {
                Some(Packet::Publish(publish)) => return Ok(Some(publish)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next packet that arrives before `deadline`; a state among them is noted.
    fn packet(&mut self, deadline: Instant) -> Result<Option<Packet>> {
        loop {
            match self.connection.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(Event::Incoming(packet))) => {
                    if let Packet::Publish(publish) = &packet
                        && publish.topic == format!("{}/state", self.base)
                    {
                        self.state = String::from_utf8_lossy(&publish.payload).into_owned();
                    }
                    return Ok(Some(packet));
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("the connection to the broker failed: {error}").into()),
                Err(_) => return Ok(None),
            }
        }
    }
}
