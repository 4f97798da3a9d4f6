//! What crosses the wire, and its two encodings: JSON (RFC 8259) and CBOR (RFC 8949).

use crate::answer::{Answer, Citation, Mode};
use crate::ingest::watch::Listed;
use crate::names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;

/// How a request was encoded; its reply is encoded alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/cbor`
    Cbor,
}

impl Encoding {
    /// Its MIME type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
        }
    }

    /// Told by the content type, else by the first byte; `None` when it is neither.
    pub fn of(payload: &[u8], content_type: Option<&str>) -> Option<Self> {
        match content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase()).as_deref() {
            Some("application/json") => return Some(Self::Json),
            Some("application/cbor") => return Some(Self::Cbor),
            Some("text/plain") => return None,
            _ => {}
        }
        match payload {
            // A CBOR map (major type 5), or the tag that says "this is CBOR" (RFC 8949, section 3.4.6).
            [0xa0..=0xbf, ..] | [0xd9, 0xd9, 0xf7, ..] => Some(Self::Cbor),
            _ => (payload.trim_ascii_start().first() == Some(&b'{')).then_some(Self::Json),
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with the payload, in at most [`MAX_WORDS`] characters, none of them a control character.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, String> {
        match self {
            Self::Json => {
                serde_json::from_slice(payload).map_err(|e| words("the payload is not the JSON object this topic takes", &e))
            }
            Self::Cbor => ciborium::de::from_reader_with_recursion_limit(payload, MAX_DEPTH)
                .map_err(|e| words("the payload is not the CBOR map this topic takes", &in_words(&e))),
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The value cannot be encoded (a map with other keys than text).
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Vec<u8>, String> {
        match self {
            Self::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
            Self::Cbor => {
                let mut out = Vec::new();
                ciborium::into_writer(value, &mut out).map_err(|e| e.to_string())?;
                Ok(out)
            }
        }
    }
}

/// An error of CBOR; ciborium's own text is that of its types.
fn in_words<E>(error: &ciborium::de::Error<E>) -> String {
    use ciborium::de::Error;
    match error {
        Error::Io(_) => "it ends too early".into(),
        Error::Syntax(at) => format!("no CBOR at byte {at}"),
        Error::Semantic(Some(at), what) => format!("{what} at byte {at}"),
        Error::Semantic(None, what) => what.clone(),
        Error::RecursionLimitExceeded => format!("it is nested deeper than {MAX_DEPTH}"),
    }
}

/// Deepest CBOR that is read: the map, and 63 within each other. JSON: 127, by `serde_json`.
pub const MAX_DEPTH: usize = 64;

/// Longest error about a payload, in characters.
pub const MAX_WORDS: usize = 300;

/// What is wrong with a payload. Decoders repeat what they have found, which may be any text of any length: it goes into logs.
fn words(what: &str, error: &dyn Display) -> String {
    let all = format!("{what}: {error}");
    let mut chars = all.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut words: String = chars.by_ref().take(MAX_WORDS - 1).collect();
    if chars.next().is_some() {
        words.push('…');
    }
    words
}

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The client's id for it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// Its text.
    #[serde(alias = "query")]
    pub question: String,
    /// The collection that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Tags that passages must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "filter")]
    pub filter: BTreeMap<String, Vec<String>>,
    /// Passages to retrieve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Longest answer in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// Whether evidence and deltas are sent before the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// How much is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Time allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Whether it goes before others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Where the reply goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Tokens less likely than this share of the likeliest are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Random seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

/// Which questions go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After all others.
    Low,
    /// As they come, clients in turn.
    #[default]
    Normal,
    /// Before all others, where the configuration allows it.
    High,
}

/// A document to put: its text, or its bytes (CBOR only).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Put {
    /// The client's id for the request.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// The document's id.
    pub document: String,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_bytes::ByteBuf>,
    /// Its MIME type; else told by the ending of the id and the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its title; else the first heading or the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The collection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Tags to filter by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Where the reply goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A document that could not be sent (control socket only).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The document's id.
    pub document: String,
    /// The collection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Why.
    pub reason: String,
}

/// A document to delete.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Delete {
    /// The client's id for the request.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// The document's id.
    pub document: String,
    /// The collection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Where the reply goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A request for the list of documents, in pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// The client's id for the request.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// The collection; every one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Documents to leave out at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<usize>,
    /// Most documents in the reply (1,000 when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where the reply goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A question to cancel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// The question's id.
    #[serde(deserialize_with = "required_id")]
    pub id: String,
}

impl CancelRequest {
    /// Of plain text: the id alone.
    ///
    /// # Errors
    /// It is none.
    pub fn of_text(payload: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(payload).map_err(|e| e.to_string())?;
        let id = TextOrNumber::Text(text.trim().to_owned()).into_id();
        id.map(|id| Self { id }).map_err(|e: serde::de::value::Error| e.to_string())
    }
}

/// Evidence, before a token is generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvidenceReply {
    /// The question's id.
    pub id: String,
    /// Always 0.
    pub seq: u64,
    /// Passages with their best sentences.
    pub evidence: Vec<Citation>,
}

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeltaReply {
    /// The question's id.
    pub id: String,
    /// Counts on from the evidence without gaps.
    pub seq: u64,
    /// The piece.
    pub delta: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerReply {
    /// The question's id.
    pub id: String,
    /// The answer itself.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Passages without an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchReply {
    /// The request's id.
    pub id: String,
    /// Passages, strongest first.
    pub passages: Vec<PassageReply>,
    /// Whether the library seems to hold an answer.
    pub found: bool,
    /// How sure retrieval is, 0 to 1.
    pub confidence: f32,
    /// Encoding the query, in milliseconds.
    pub embed_ms: f64,
    /// Searching, in milliseconds.
    pub search_ms: f64,
}

/// One passage of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassageReply {
    /// Rank from 1.
    pub n: usize,
    /// The document's id.
    pub document: String,
    /// The document's title.
    pub title: String,
    /// Headings down to the passage.
    pub heading: String,
    /// Page, where the source has pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// The chunk's id.
    pub chunk: String,
    /// Fused score, 0 to 1.
    pub score: f32,
    /// The whole passage.
    pub text: String,
}

/// A reply to `documents/put`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PutReply {
    /// The request's id.
    pub id: String,
    /// The document's id.
    pub document: String,
    /// Its collection.
    pub collection: String,
    /// `added`, `replaced` or `unchanged`.
    pub change: String,
    /// Chunks it was cut into.
    pub chunks: u32,
    /// What its owner should know, such as pages that are damaged.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// A reply to `documents/delete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The request's id.
    pub id: String,
    /// The document's id.
    pub document: String,
    /// Whether there was one.
    pub deleted: bool,
}

/// A reply to `documents/list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListReply {
    /// The request's id.
    pub id: String,
    /// Documents on this page.
    pub documents: Vec<Listed>,
    /// Documents in all.
    pub total: usize,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The request's id.
    pub id: String,
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One word for programs.
    pub code: ErrorCode,
    /// A sentence for people.
    pub message: String,
    /// When it is worth while to ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The error codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ErrorCode {
    BadRequest,
    TooLarge,
    UnknownCollection,
    QueueFull,
    DeadlineExceeded,
    Cancelled,
    NotReady,
    Storage,
    Internal,
}

impl ErrorCode {
    /// The word that crosses the wire.
    pub fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

impl TextOrNumber {
    fn into_id<E: serde::de::Error>(self) -> Result<String, E> {
        let text = match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        };
        if !names::is_request_id(&text) {
            return Err(E::custom(format!("an id has 1 to {} bytes and no control characters", names::MAX_REQUEST_ID_BYTES)));
        }
        Ok(text)
    }
}

pub(crate) fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<TextOrNumber>::deserialize(deserializer)?.map(TextOrNumber::into_id).transpose()
}

fn required_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    TextOrNumber::deserialize(deserializer)?.into_id()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    let map = Option::<BTreeMap<String, OneOrMany>>::deserialize(deserializer)?.unwrap_or_default();
    let many = |value| match value {
        OneOrMany::One(value) => vec![value],
        OneOrMany::Many(values) => values,
    };
    Ok(map.into_iter().map(|(key, value)| (key, many(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_told_apart() {
        let of = |payload: &[u8], t| Encoding::of(payload, t);
        assert_eq!(of(b" {\"question\":1}", None), Some(Encoding::Json));
        assert_eq!(of(&[0xa1, 0x61], None), Some(Encoding::Cbor));
        assert_eq!(of(&[0xd9, 0xd9, 0xf7, 0xa0], None), Some(Encoding::Cbor));
        assert_eq!(of(b"How do I reset it?", None), None);
        assert_eq!(of(b"anything", Some("application/json; charset=utf-8")), Some(Encoding::Json));
        assert_eq!(of(b"{braces}", Some("text/plain")), None);
        assert_eq!(of("Über".as_bytes(), None), None);
    }

    #[test]
    fn requests_are_forgiving_in_form_and_strict_in_bounds() {
        let ask: Ask =
            Encoding::Json.decode(br#"{"id":7,"question":"q","filter":{"a":"x","b":["y","z"]},"extra":true}"#).expect("decodes");
        assert_eq!(ask.id.as_deref(), Some("7"));
        assert_eq!(ask.filter["a"], ["x"]);
        assert_eq!(ask.filter["b"], ["y", "z"]);
        let long = format!("{{\"id\":\"{}\",\"question\":\"q\"}}", "x".repeat(names::MAX_REQUEST_ID_BYTES + 1));
        for bad in [r#"{"id":"","question":"q"}"#, r#"{"question":1}"#, "{}", "{", r#"{"question":"q","mode":"poem"}"#, &long] {
            assert!(Encoding::Json.decode::<Ask>(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_encodings_carry_the_same() {
        let ask =
            Ask { id: Some("a".into()), question: "Größe?".into(), max_tokens: Some(5), stream: Some(true), ..Ask::default() };
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let bytes = encoding.encode(&ask).expect("encodes");
            assert_eq!(Encoding::of(&bytes, None), Some(encoding));
            assert_eq!(encoding.decode::<Ask>(&bytes).expect("decodes"), ask);
        }
    }

    /// A decoder says what it has found, and the daemon writes that down.
    #[test]
    fn an_error_repeats_little_of_the_payload() {
        let mode = "\nline".repeat(700);
        for encoding in [Encoding::Json, Encoding::Cbor] {
            let payload = encoding.encode(&BTreeMap::from([("question", "q"), ("mode", &mode)])).expect("encodes");
            let error = encoding.decode::<Ask>(&payload).unwrap_err();
            assert_eq!((error.chars().count(), error.chars().last()), (MAX_WORDS, Some('…')), "{error}");
            assert!(error.contains("line") && !error.contains(char::is_control), "{error:?}");
        }
        let short = Encoding::Json.decode::<Ask>(br#"{"question":"q","mode":"poem"}"#).unwrap_err();
        assert!(short.contains("`poem`") && short.ends_with("column 29"), "{short}");
    }

    #[test]
    fn the_id_of_what_is_cancelled_has_bounds_in_plain_text_too() {
        assert_eq!(CancelRequest::of_text(b" a7\n").expect("an id").id, "a7");
        for bad in [&[b'x'; names::MAX_REQUEST_ID_BYTES + 1][..], b"", b" ", b"a\nb", b"\xff"] {
            assert!(CancelRequest::of_text(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn deeply_nested_input_is_an_error() {
        let json = format!("{{\"question\":{}", "[".repeat(100_000));
        assert!(Encoding::Json.decode::<Ask>(json.as_bytes()).is_err());
        let mut cbor = vec![0xa1, 0x61, b'q'];
        cbor.extend(std::iter::repeat_n(0x81, 100_000));
        assert!(Encoding::Cbor.decode::<Ask>(&cbor).is_err());
    }
}
