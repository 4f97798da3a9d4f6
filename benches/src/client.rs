//! An MQTT 5 client that asks and looks at the clock.

use crate::Result;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A connected client of one node.
pub struct Asker {
    client: Client,
    connection: Connection,
    base: String,
}

/// What one question took, as the client saw it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Milliseconds to the evidence message.
    pub evidence_ms: f64,
    /// Milliseconds to the first piece of the answer; `None` when nothing was generated.
    pub first_token_ms: Option<f64>,
    /// Milliseconds to the whole answer.
    pub total_ms: f64,
    /// The answer message.
    pub answer: Value,
}

impl Asker {
    /// Connects to the broker on `port` and subscribes to the node's state and to the reply topic.
    ///
    /// # Errors
    /// The broker does not take us.
    pub fn connect(port: u16, node: &str) -> Result<Self> {
        let base = format!("vademecum/{node}");
        let mut options = MqttOptions::new("asker", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_mins(1)).set_max_packet_size(Some(16 << 20));
        let (client, connection) = Client::new(options, 64);
        let mut asker = Self { client, connection, base };
        for topic in [format!("{}/state", asker.base), "reply/bench".to_owned()] {
            asker.client.subscribe(topic, QoS::AtLeastOnce)?;
            asker.wait(Duration::from_secs(5), "the subscription is not acknowledged", |packet| {
                matches!(packet, Packet::SubAck(_))
            })?;
        }
        Ok(asker)
    }

    /// Waits for the node's `state` to become `wanted`.
    ///
    /// # Errors
    /// It does not within 60 s.
    pub fn wait_for_state(&mut self, wanted: &str) -> Result<()> {
        let topic = format!("{}/state", self.base);
        let is_it =
            |packet: &Packet| matches!(packet, Packet::Publish(p) if p.topic == topic && !p.retain && p.payload == wanted);
        self.wait(Duration::from_mins(1), &format!("the node is not {wanted}"), is_it)
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    /// The node answers with an error, or not within two minutes.
    pub fn ask(&mut self, id: &str, question: &str) -> Result<Asked> {
        let payload = json!({ "id": id, "question": question, "stream": true, "reply_to": "reply/bench" }).to_string();
        let begun = Instant::now();
        self.client.publish(format!("{}/ask", self.base), QoS::AtLeastOnce, false, payload)?;
        let elapsed = || begun.elapsed().as_secs_f64() * 1e3;
        let (mut evidence_ms, mut first_token_ms) = (None, None);
        loop {
            let Some(publish) = self.publish(begun + Duration::from_mins(2))? else {
                return Err(format!("no answer to {question:?} within two minutes").into());
            };
            if publish.topic != "reply/bench" {
                continue;
            }
            let reply: Value = serde_json::from_slice(&publish.payload)?;
            if reply["id"] != id {
                continue;
            }
            if let Some(error) = reply.get("error") {
                return Err(format!("{question:?} ended in an error: {error}").into());
            }
            if reply.get("evidence").is_some() {
                evidence_ms.get_or_insert_with(elapsed);
            } else if reply.get("delta").is_some() {
                first_token_ms.get_or_insert_with(elapsed);
            } else if reply.get("answer").is_some() {
                let evidence_ms = evidence_ms.ok_or("the answer came without an evidence message before it")?;
                return Ok(Asked { evidence_ms, first_token_ms, total_ms: elapsed(), answer: reply });
            }
        }
    }

    /// The next message that arrives before `deadline`.
    fn publish(&mut self, deadline: Instant) -> Result<Option<Publish>> {
        loop {
            match self.connection.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => return Ok(Some(publish)),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("the connection to the broker failed: {error}").into()),
                Err(_) => return Ok(None),
            }
        }
    }

    fn wait(&mut self, patience: Duration, problem: &str, is_it: impl Fn(&Packet) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.connection.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(Event::Incoming(packet))) if is_it(&packet) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("the connection to the broker failed: {error}").into()),
                Err(_) => return Err(problem.to_owned().into()),
            }
        }
    }
}
