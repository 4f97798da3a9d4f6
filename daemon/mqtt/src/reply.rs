//! The address and the encoding of a reply.

use crate::connection::{Message, Outgoing, Properties, Sender};
use crate::topics::Topics;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use wire::{
    Address, Addressed, Answer, AnswerReply, Citation, DeltaReply, Encoding, ErrorCode, EvidenceReply, Fault, ReplyForm, TEXT,
    names, new_id,
};

/// The reply side of a request: id, topic, form and encoding.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) id: String,
    pub(crate) topic: String,
    /// The form of the final reply to a question.
    pub(crate) form: ReplyForm,
    /// Most characters of an error in text.
    max_chars: Option<usize>,
    encoding: Encoding,
    correlation_data: Option<Bytes>,
}

/// The deltas of an answer, numbered without gaps.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    seq: u64,
    /// A delta could not be sent, so no later one is sent.
    broken: bool,
}

impl Reply {
    /// Reads a request and finds its reply topic: v5 response topic, then `reply_to`, then `answer/<id>`.
    ///
    /// An unreadable request still gets a reply topic for its error. `plain` turns plain text into a request. `first_id` is the
    /// id that the request got on its first arrival.
    pub(crate) fn open<T: DeserializeOwned + Addressed>(
        topics: &Topics,
        message: &Message,
        max_payload: usize,
        first_id: Option<&str>,
        plain: impl FnOnce(String) -> Result<T, Fault>,
    ) -> (Self, Result<T, Fault>) {
        let encoding = Encoding::of(&message.payload, message.properties.content_type.as_deref());
        let request = if message.payload.len() > max_payload {
            let problem = format!("the payload has {} bytes; at most {max_payload} are allowed", message.payload.len());
            Err(Fault::new(ErrorCode::TooLarge, problem))
        } else {
            match encoding {
                Some(encoding) => encoding.decode::<T>(&message.payload).map_err(Fault::bad_request),
                None => match std::str::from_utf8(&message.payload) {
                    Ok(text) => plain(text.to_owned()),
                    Err(_) => Err(Fault::bad_request("the payload is neither JSON, CBOR nor UTF-8 text")),
                },
            }
        };
        let correlation_data = message.properties.correlation_data.clone();
        // The fields of an address often decode even when another field does not: the client that waits for the id gets the error.
        let address = match (&request, encoding) {
            (Ok(request), _) => request.address(),
            (Err(fault), Some(encoding)) if fault.code == ErrorCode::BadRequest => {
                encoding.decode(&message.payload).unwrap_or_default()
            }
            _ => Address::default(),
        };
        let own = first_id.map(str::to_owned).or(address.id);
        let id = own.or_else(|| correlation_data.as_deref().and_then(id_of_correlation)).unwrap_or_else(new_id);
        let asked = message.properties.response_topic.as_deref().or(address.reply_to.as_deref());
        let (topic, request) = match asked.map(|topic| topics.check_reply(topic).map(|()| topic.to_owned())) {
            None => (topics.answer(&id), request),
            Some(Ok(topic)) => (topic, request),
            Some(Err(problem)) => {
                let topic: String = asked.unwrap_or_default().chars().take(200).collect();
                log::warn!("request {id:?} asks for its reply on {topic:?}, which mqtt.reply_topics does not allow");
                (topics.answer(&id), Err(Fault::bad_request(problem)))
            }
        };
        let (form, max_chars) = (address.reply.unwrap_or_default(), address.max_chars);
        (Self { id, topic, form, max_chars, encoding: encoding.unwrap_or(Encoding::Json), correlation_data }, request)
    }

    /// The answer that ends a question.
    pub(crate) fn answer(&self, answer: Answer) -> Outgoing {
        match self.form {
            ReplyForm::Json => self.message(&AnswerReply { id: self.id.clone(), answer }),
            ReplyForm::Text => self.outgoing(answer.answer.into_bytes(), TEXT),
        }
    }

    /// The error that ends a question.
    pub(crate) fn fault(&self, fault: Fault) -> Outgoing {
        match self.form {
            ReplyForm::Json => self.message(&fault.reply(&self.id)),
            ReplyForm::Text => self.outgoing(fault.line(self.max_chars).into_bytes(), TEXT),
        }
    }

    /// A reply as a message to publish.
    pub(crate) fn message<T: Serialize>(&self, value: &T) -> Outgoing {
        let payload = self.encoding.encode(value).unwrap_or_else(|problem| {
            log::error!("reply {:?} cannot be encoded: {problem}", self.id);
            self.encoding.encode(&Fault::new(ErrorCode::Internal, problem).reply(&self.id)).unwrap_or_default()
        });
        self.outgoing(payload, self.encoding.content_type())
    }

    fn outgoing(&self, payload: Vec<u8>, content_type: &str) -> Outgoing {
        let properties = Properties {
            response_topic: None,
            correlation_data: self.correlation_data.clone(),
            content_type: Some(content_type.into()),
        };
        Outgoing { topic: self.topic.clone(), payload: payload.into(), retain: false, properties }
    }

    /// Sends a reply, or the error that ends the request.
    pub(crate) async fn send<T: Serialize>(&self, sender: &Sender, result: Result<T, Fault>) {
        let message = match result {
            Ok(value) => self.message(&value),
            Err(fault) => self.message(&fault.reply(&self.id)),
        };
        if let Err(error) = sender.send(message).await {
            log::error!("reply {:?} is lost: {error}", self.id);
        }
    }
}

impl Pieces {
    pub(crate) async fn evidence(&mut self, reply: &Reply, sender: &Sender, evidence: Vec<Citation>) {
        let message = EvidenceReply { id: reply.id.clone(), seq: self.seq, evidence };
        self.send(reply, sender, &message).await;
    }

    pub(crate) async fn delta(&mut self, reply: &Reply, sender: &Sender, delta: String) {
        let message = DeltaReply { id: reply.id.clone(), seq: self.seq, delta };
        self.send(reply, sender, &message).await;
    }

    /// Sends a delta, unless an earlier one failed: the answer does not wait for an absent broker.
    async fn send<T: Serialize>(&mut self, reply: &Reply, sender: &Sender, value: &T) {
        self.seq += 1;
        self.broken = self.broken || !sender.offer(reply.message(value)).await;
    }
}

/// Turns correlation data into an id: short printable text as it is, any other data as a digest. A repeated request thus gets the
/// same id.
fn id_of_correlation(data: &[u8]) -> Option<String> {
    let id = || {
        std::str::from_utf8(data)
            .ok()
            .filter(|text| names::is_request_id(text))
            .map_or_else(|| format!("{:x}", Sha256::digest(data)), str::to_owned)
    };
    (!data.is_empty()).then(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("v/pi".into(), "v", "", vec!["reply/#".into()], vec![])
    }

    fn open(payload: &[u8], properties: Properties) -> (Reply, Result<wire::Ask, Fault>) {
        let message = Message {
            topic: "v/pi/ask".into(),
            payload: payload.to_vec().into(),
            retained: false,
            properties,
            ack: None,
            redelivered: false,
            expiry: None,
        };
        Reply::open(&topics(), &message, 100, None, |question| Ok(wire::Ask { question, ..wire::Ask::default() }))
    }

    #[test]
    fn the_reply_topic_has_an_order_of_sources() {
        let with = |topic: &str| Properties { response_topic: Some(topic.into()), ..Properties::default() };
        let payload = br#"{"id":"a","question":"q","reply_to":"reply/2"}"#;
        assert_eq!(open(payload, with("reply/1")).0.topic, "reply/1");
        assert_eq!(open(payload, Properties::default()).0.topic, "reply/2");
        assert_eq!(open(br#"{"id":"a","question":"q"}"#, Properties::default()).0.topic, "v/pi/answer/a");
        let (reply, request) = open(payload, with("home/lamp"));
        assert_eq!(reply.topic, "v/pi/answer/a");
        assert_eq!(request.expect_err("refused").code, ErrorCode::BadRequest);
    }

    #[test]
    fn ids_have_an_order_of_sources() {
        let correlated =
            |data: &'static [u8]| Properties { correlation_data: Some(Bytes::from_static(data)), ..Properties::default() };
        assert_eq!(open(br#"{"id":"a","question":"q"}"#, correlated(b"c")).0.id, "a");
        assert_eq!(open(b"plain question", correlated(b"c")).0.id, "c");
        let binary = open(b"plain question", correlated(b"\xff\x00")).0.id;
        assert_eq!((binary.len(), &binary), (64, &open(b"plain question", correlated(b"\xff\x00")).0.id));
        assert_ne!(open(b"plain question", correlated(b"\xff\x01")).0.id, binary);
        assert_eq!(open(b"plain question", correlated(&[b'c'; 129])).0.id.len(), 64);
        assert_ne!(open(b"plain question", correlated(b"")).0.id, open(b"plain question", correlated(b"")).0.id);
    }

    #[test]
    fn a_wrong_field_is_answered_to_the_right_topic() {
        for payload in [
            &br#"{"id":"a","question":"q","top_k":2.5,"reply_to":"reply/2"}"#[..],
            br#"{"id":"a","question":"q","deadline_ms":-5,"reply_to":"reply/2"}"#,
            br#"{"id":"a","reply_to":"reply/2"}"#,
        ] {
            let (reply, request) = open(payload, Properties::default());
            assert_eq!((reply.id.as_str(), reply.topic.as_str()), ("a", "reply/2"));
            assert_eq!(request.expect_err("refused").code, ErrorCode::BadRequest);
        }
        let (reply, request) = open(br#"{"id":"a","question":5,"reply_to":"home/lamp"}"#, Properties::default());
        assert_eq!((reply.topic.as_str(), request.is_err()), ("v/pi/answer/a", true));
    }

    #[test]
    fn a_text_reply_is_text_also_when_the_request_is_wrong() {
        let text = |payload: &[u8]| {
            let (reply, request) = open(payload, Properties::default());
            let message = match request {
                Ok(_) => reply.answer(Answer { answer: "größer".into(), ..Answer::default() }),
                Err(fault) => reply.fault(fault),
            };
            assert_eq!((message.topic.as_str(), message.properties.content_type.as_deref()), ("v/pi/answer/a", Some(TEXT)));
            String::from_utf8(message.payload.to_vec()).expect("UTF-8")
        };
        assert_eq!(text(br#"{"id":"a","question":"q","reply":"text"}"#), "größer");
        assert!(text(br#"{"id":"a","reply":"text"}"#).starts_with("error: bad_request: "));
        let short = text(br#"{"id":"a","question":7,"reply":"text","max_chars":40}"#);
        assert!(short.starts_with("error: bad_request: ") && short.chars().count() <= 40, "{short}");
        let unknown = open(br#"{"id":"a","question":"q","reply":"poem"}"#, Properties::default());
        assert_eq!((unknown.0.id.as_str(), unknown.0.form, unknown.1.is_err()), ("a", ReplyForm::Json, true));
    }

    #[test]
    fn unreadable_requests_get_the_right_code() {
        assert_eq!(open(&[b' '; 101], Properties::default()).1.expect_err("too large").code, ErrorCode::TooLarge);
        assert_eq!(open(b"{\"question\":", Properties::default()).1.expect_err("cut off").code, ErrorCode::BadRequest);
        assert_eq!(open(b"\xff\xfe", Properties::default()).1.expect_err("no text").code, ErrorCode::BadRequest);
        assert_eq!(open(b"Why?", Properties::default()).1.expect("text").question, "Why?");
    }
}
