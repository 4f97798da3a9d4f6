//! Where a reply goes and how it is encoded.

use super::connection::{Message, Outgoing, Properties, Sender};
use super::topics::Topics;
use crate::answer::Citation;
use crate::api::wire::{self, Encoding, ErrorBody, ErrorCode, ErrorReply};
use crate::api::{Problem, new_id};
use crate::names;
use crate::store::sha256_hex;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The open end of a request.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) topic: String,
    encoding: Encoding,
    correlation_data: Option<Bytes>,
    seq: u64,
    broken: bool,
}

/// What of a request says where its reply goes, whatever else it says.
#[derive(Default, Deserialize)]
struct Address {
    #[serde(default, deserialize_with = "wire::id")]
    id: Option<String>,
    #[serde(default)]
    reply_to: Option<String>,
}

/// A request's own idea of its id and reply topic.
pub(super) trait Addressed {
    fn id(&self) -> Option<&str>;
    fn reply_to(&self) -> Option<&str>;
}

macro_rules! addressed {
    ($($request:ty),*) => {$(
        impl Addressed for $request {
            fn id(&self) -> Option<&str> {
                self.id.as_deref()
            }
            fn reply_to(&self) -> Option<&str> {
                self.reply_to.as_deref()
            }
        }
    )*};
}
addressed!(wire::Ask, wire::Put, wire::Delete, wire::List);

impl Reply {
    /// Reads a request and finds out where its reply goes: v5 response topic, `reply_to`, `answer/<id>`.
    ///
    /// A request that cannot be read still has a place for the error. `plain` makes a request of plain text. `known_as` is the
    /// id that the request was given when it came first.
    pub(super) fn open<T: DeserializeOwned + Addressed>(
        topics: &Topics,
        message: &Message,
        max_payload: usize,
        known_as: Option<&str>,
        plain: impl FnOnce(String) -> Result<T, Problem>,
    ) -> (Self, Result<T, Problem>) {
        let encoding = Encoding::of(&message.payload, message.properties.content_type.as_deref());
        let request = if message.payload.len() > max_payload {
            let problem = format!("the payload has {} bytes; at most {max_payload} are allowed", message.payload.len());
            Err((ErrorCode::TooLarge, problem))
        } else {
            match encoding {
                Some(encoding) => encoding.decode::<T>(&message.payload).map_err(|problem| (ErrorCode::BadRequest, problem)),
                None => match std::str::from_utf8(&message.payload) {
                    Ok(text) => plain(text.to_owned()),
                    Err(_) => Err((ErrorCode::BadRequest, "the payload is neither JSON, CBOR nor UTF-8 text".to_owned())),
                },
            }
        };
        let correlation_data = message.properties.correlation_data.clone();
        // Of a request with a field that cannot be read, these two often can: whoever waits for the id hears of the error.
        let address = match (&request, encoding) {
            (Ok(request), _) => Address { id: request.id().map(str::to_owned), reply_to: request.reply_to().map(str::to_owned) },
            (Err((ErrorCode::BadRequest, _)), Some(encoding)) => encoding.decode(&message.payload).unwrap_or_default(),
            _ => Address::default(),
        };
        let own = known_as.map(str::to_owned).or(address.id);
        let id = own.or_else(|| correlation_data.as_deref().and_then(id_of_correlation)).unwrap_or_else(new_id);
        let asked = message.properties.response_topic.as_deref().or(address.reply_to.as_deref());
        let (topic, request) = match asked.map(|topic| topics.check_reply(topic).map(|()| topic.to_owned())) {
            None => (topics.answer(&id), request),
            Some(Ok(topic)) => (topic, request),
            Some(Err(problem)) => {
                let topic: String = asked.unwrap_or_default().chars().take(200).collect();
                log::warn!("request {id:?} asks for its reply on {topic:?}, which mqtt.reply_topics does not allow");
                (topics.answer(&id), Err((ErrorCode::BadRequest, problem)))
            }
        };
        (Self { id, topic, encoding: encoding.unwrap_or(Encoding::Json), correlation_data, seq: 0, broken: false }, request)
    }

    /// A reply as it is published.
    pub(super) fn message<T: Serialize>(&self, value: &T) -> Outgoing {
        let payload = self.encoding.encode(value).unwrap_or_else(|problem| {
            log::error!("reply {:?} cannot be encoded: {problem}", self.id);
            let error = ErrorBody { code: ErrorCode::Internal, message: problem, retry_after_ms: None };
            self.encoding.encode(&ErrorReply { id: self.id.clone(), error }).unwrap_or_default()
        });
        let properties = Properties {
            response_topic: None,
            correlation_data: self.correlation_data.clone(),
            content_type: Some(self.encoding.content_type().into()),
        };
        Outgoing { topic: self.topic.clone(), payload: payload.into(), retain: false, properties }
    }

    /// Sends a reply.
    pub(super) async fn send<T: Serialize>(&self, sender: &Sender, value: &T) {
        if let Err(error) = sender.send(self.message(value)).await {
            log::error!("reply {:?} is lost: {error}", self.id);
        }
    }

    /// The error that ends a request.
    pub(super) fn failure(&self, code: ErrorCode, message: String) -> ErrorReply {
        ErrorReply { id: self.id.clone(), error: ErrorBody { code, message, retry_after_ms: None } }
    }

    pub(super) async fn error(&self, sender: &Sender, code: ErrorCode, message: String) {
        self.send(sender, &self.failure(code, message)).await;
    }

    pub(super) async fn evidence(&mut self, sender: &Sender, evidence: Vec<Citation>) {
        let message = wire::EvidenceReply { id: self.id.clone(), seq: self.seq, evidence };
        self.piece(sender, &message).await;
    }

    pub(super) async fn delta(&mut self, sender: &Sender, delta: String) {
        let message = wire::DeltaReply { id: self.id.clone(), seq: self.seq, delta };
        self.piece(sender, &message).await;
    }

    /// Sends a piece, unless one before it could not be sent: the answer does not wait for a broker that is away, and its pieces
    /// have no gaps.
    async fn piece<T: Serialize>(&mut self, sender: &Sender, value: &T) {
        self.seq += 1;
        self.broken = self.broken || !sender.offer(self.message(value)).await;
    }
}

/// Correlation data that is short printable text serves as the id, of other a digest: a request that is repeated with it is known again.
fn id_of_correlation(data: &[u8]) -> Option<String> {
    let id = || {
        std::str::from_utf8(data).ok().filter(|text| names::is_request_id(text)).map_or_else(|| sha256_hex(data), str::to_owned)
    };
    (!data.is_empty()).then(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("v/pi".into(), "v", "", vec!["reply/#".into()], vec![])
    }

    fn open(payload: &[u8], properties: Properties) -> (Reply, Result<wire::Ask, Problem>) {
        let message = Message {
            topic: "v/pi/ask".into(),
            payload: payload.to_vec().into(),
            retained: false,
            properties,
            receipt: None,
            redelivered: false,
            expiry: None,
        };
        Reply::open(&topics(), &message, 100, None, |question| Ok(wire::Ask { question, ..wire::Ask::default() }))
    }

    #[test]
    fn the_reply_goes_to_the_response_topic_then_reply_to_then_the_answer_topic() {
        let with = |topic: &str| Properties { response_topic: Some(topic.into()), ..Properties::default() };
        let payload = br#"{"id":"a","question":"q","reply_to":"reply/2"}"#;
        assert_eq!(open(payload, with("reply/1")).0.topic, "reply/1");
        assert_eq!(open(payload, Properties::default()).0.topic, "reply/2");
        assert_eq!(open(br#"{"id":"a","question":"q"}"#, Properties::default()).0.topic, "v/pi/answer/a");
        let (reply, request) = open(payload, with("home/lamp"));
        assert_eq!(reply.topic, "v/pi/answer/a");
        assert_eq!(request.expect_err("refused").0, ErrorCode::BadRequest);
    }

    #[test]
    fn ids_come_from_the_payload_then_the_correlation_data() {
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
    fn who_asks_with_one_field_wrong_hears_of_it_where_they_listen() {
        for payload in [
            &br#"{"id":"a","question":"q","top_k":2.5,"reply_to":"reply/2"}"#[..],
            br#"{"id":"a","question":"q","deadline_ms":-5,"reply_to":"reply/2"}"#,
            br#"{"id":"a","reply_to":"reply/2"}"#,
        ] {
            let (reply, request) = open(payload, Properties::default());
            assert_eq!((reply.id.as_str(), reply.topic.as_str()), ("a", "reply/2"));
            assert_eq!(request.expect_err("refused").0, ErrorCode::BadRequest);
        }
        let (reply, request) = open(br#"{"id":"a","question":5,"reply_to":"home/lamp"}"#, Properties::default());
        assert_eq!((reply.topic.as_str(), request.is_err()), ("v/pi/answer/a", true));
    }

    #[test]
    fn unreadable_requests_get_an_error_with_the_right_code() {
        assert_eq!(open(&[b' '; 101], Properties::default()).1.expect_err("too large").0, ErrorCode::TooLarge);
        assert_eq!(open(b"{\"question\":", Properties::default()).1.expect_err("cut off").0, ErrorCode::BadRequest);
        assert_eq!(open(b"\xff\xfe", Properties::default()).1.expect_err("no text").0, ErrorCode::BadRequest);
        assert_eq!(open(b"Why?", Properties::default()).1.expect("text").question, "Why?");
    }
}
