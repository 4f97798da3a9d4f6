//! Replies for clients with little memory, and the fields for clients that speak or show.

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use vademecum_tests::{Daemon, Message, Mqtt, PATIENCE, house, run, vademecum};

/// Long enough that its answer does not fit into 200 characters.
const MANUAL: &str = "# Drain pump\n\nError E-7 means that the inlet filter of the drain pump is clogged with lint, hair or small \
parts of toys. To clear error E-7, switch the machine off, let the water cool down and open the small flap at the bottom. Error \
E-7 comes back when the hose behind the machine is bent, so pull the machine forward and straighten it.\n";

const QUESTION: &str = "What does error E-7 mean?";

/// The buffer of a PubSubClient: a packet that does not fit is dropped, and nobody hears of it.
const BUFFER: usize = 256;

/// A client that speaks MQTT 3.1.1 at QoS 0 and holds one packet.
struct Small {
    stream: TcpStream,
    dropped: usize,
}

impl Small {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the broker listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut small = Self { stream, dropped: 0 };
        // Protocol level 4, a clean session, no keep-alive.
        small.send(0x10, &[&text("MQTT"), &[4, 2, 0, 0][..], &text("esp32")].concat());
        assert_eq!(small.packet(), (0x20, vec![0, 0]), "the broker accepts it");
        small
    }

    fn subscribe(&mut self, topic: &str) {
        self.send(0x82, &[&[0, 1][..], &text(topic), &[0]].concat());
        assert_eq!(self.packet(), (0x90, vec![0, 1, 0]), "the broker subscribes it");
    }

    fn publish(&mut self, topic: &str, payload: &Value) {
        self.send(0x30, &[text(topic), payload.to_string().into_bytes()].concat());
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut left = body.len();
        loop {
            let more = if left > 127 { 0x80 } else { 0 };
            packet.push((left % 128) as u8 | more);
            left /= 128;
            if left == 0 {
                break;
            }
        }
        packet.extend(body);
        assert!(packet.len() <= BUFFER, "its own packets fit, too");
        self.stream.write_all(&packet).expect("sent");
    }

    /// The next packet that fits: its first byte, and its body.
    fn packet(&mut self) -> (u8, Vec<u8>) {
        loop {
            let kind = self.byte();
            let (mut length, mut head) = (0, 1);
            loop {
                let byte = self.byte();
                length |= usize::from(byte & 0x7f) << (7 * (head - 1));
                head += 1;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).expect("a whole packet");
            if head + length <= BUFFER {
                return (kind, body);
            }
            self.dropped += 1;
        }
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("a packet");
        byte[0]
    }

    /// The payload of the next message that fits.
    fn message(&mut self) -> String {
        let (kind, body) = self.packet();
        assert_eq!(kind, 0x30, "a message at QoS 0");
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        String::from_utf8(body[2 + topic..].to_vec()).expect("UTF-8")
    }
}

/// A text with its length, as MQTT writes it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The whole answer of the node, without marks.
fn whole_answer(mqtt: &Mqtt, daemon: &Daemon) -> String {
    let reply = mqtt.request(daemon, "ask", json!({ "question": QUESTION }));
    wire::marks::without(reply["answer"].as_str().expect("an answer"), |_| true)
}

#[test]
fn a_buffer_of_256_bytes_holds_a_text() {
    let (broker, daemon, mqtt) = house(|setup| setup.set("answer.strategy", "quote"));
    mqtt.put(&daemon, "pump.md", MANUAL);
    let whole = whole_answer(&mqtt, &daemon);
    assert!(whole.chars().count() > 200, "it has to be cut: {whole}");

    let (ask, mut small) = (daemon.topic("ask"), Small::connect(broker.port));
    small.subscribe("reply/esp32");
    small.publish(&ask, &json!({ "question": QUESTION, "reply_to": "reply/esp32" }));
    let full = mqtt.first_on("reply/esp32");
    assert!(full.payload.len() > BUFFER && full.json()["answer"].is_string(), "{}", full.text());

    let request = json!({ "question": QUESTION, "reply_to": "reply/esp32", "reply": "text", "max_chars": 200, "stream": true });
    small.publish(&ask, &request);
    let mut expected = whole.clone();
    wire::cut(&mut expected, 200);
    assert_eq!(small.message(), expected, "nothing comes before it");
    assert!(expected.ends_with('…') && expected.len() > 100, "{expected}");
    assert_eq!(small.dropped, 1, "the reply with all fields");
    // The other client may hear it later.
    let is_reply = |message: &&Message| message.topic == "reply/esp32";
    let sent = mqtt.wait("the text", |messages| messages.iter().filter(is_reply).nth(1).cloned());
    assert_eq!((sent.content_type.as_deref(), sent.text()), (Some("text/plain"), expected));

    small.publish(&ask, &json!({ "question": QUESTION, "reply_to": "reply/esp32", "reply": "text", "collection": "nowhere" }));
    let refused = small.message();
    assert!(refused.starts_with("error: unknown_collection: ") && !refused.contains('\n'), "{refused}");
    mqtt.fence(&daemon);
    assert_eq!(mqtt.on("reply/esp32").len(), 3, "one reply for each question");
}

#[test]
fn an_answer_without_citations_is_small() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("answer.strategy", "quote"));
    mqtt.put(&daemon, "pump.md", MANUAL);
    let whole = whole_answer(&mqtt, &daemon);
    let full = mqtt.request(&daemon, "ask", json!({ "question": QUESTION }));
    let small = mqtt.request(&daemon, "ask", json!({ "question": QUESTION, "citations": 0, "max_chars": 120 }));
    assert_eq!((&small["question"], &small["citations"]), (&json!(QUESTION), &json!([])), "{small}");
    let answer = small["answer"].as_str().expect("a text");
    assert!(!answer.contains("[1]") && answer.chars().count() <= 120, "{small}");
    assert!(whole.starts_with(answer.trim_end_matches(['…', ' '])), "{small}");
    let (small, all) = (small.to_string().len(), full.to_string().len());
    assert!(small < 900 && small + 400 < all, "{small} bytes of {all}");
    // For the ear: the same words, and the source.
    let speech = full["speech"].as_str().expect("a text");
    assert!(full["answer"].as_str().expect("a text").contains("[1]"), "{full}");
    assert!(!speech.contains('[') && !speech.contains('\n') && speech.ends_with(" Source: Drain pump."), "{speech}");
}

#[test]
fn the_command_line_names_a_session() {
    let (_broker, daemon, mqtt) = house(|setup| setup.set("answer.strategy", "quote"));
    mqtt.put(&daemon, "pump.md", MANUAL);
    let ask = |session: &str| {
        let args = ["ask", QUESTION, "--session", session, "--data-dir"].map(String::from);
        run(vademecum(args).arg(daemon.data()))
    };
    let _ = ask("kitchen").exits(0);
    let refused = ask(&"x".repeat(129)).exits(2);
    assert!(refused.stderr.contains("session has 129 bytes; at most 128"), "{refused:?}");
}
