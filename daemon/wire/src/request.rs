//! Requests, as clients send them.

use crate::names::{TextOrNumber, id, required_id, text};
use crate::{Mode, ReplyForm};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// A question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// The client's id for the question.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// Its text.
    #[serde(alias = "query")]
    pub question: String,
    /// The collection to search.
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
    /// The work to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Time allowed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Its priority in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The topic for the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The client's name for the conversation that the question belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    pub session: Option<String>,
    /// The form of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<ReplyForm>,
    /// Most characters of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
    /// Most citations in the reply; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub citations: Option<usize>,
    /// Sampling temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Drops tokens less likely than this share of the likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Random seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

/// A question's priority in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After all others.
    Low,
    /// In order of arrival, clients in turn.
    #[default]
    Normal,
    /// Before all others, if the configuration allows it.
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
    /// Its MIME type; by default, the id's extension and the content tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its title; by default, the first heading or the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The collection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Tags to filter by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Documents that the sender puts into this collection right after this one; 0 with the last of a series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<u32>,
    /// The topic for the reply.
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
    /// The reason.
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
    /// The topic for the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// A request for the list of documents, in pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// The client's id for the request.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "id")]
    pub id: Option<String>,
    /// The collection; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Documents to skip at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<usize>,
    /// Most documents in the reply (1,000 when absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The topic for the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
}

/// The fields of a request that address its reply. They often decode although another field does not, so its client hears of the error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// The client's id for the request.
    #[serde(default, deserialize_with = "id")]
    pub id: Option<String>,
    /// The topic of the reply.
    #[serde(default)]
    pub reply_to: Option<String>,
    /// The form of the reply, if it is a valid one.
    #[serde(default, deserialize_with = "if_valid")]
    pub reply: Option<ReplyForm>,
    /// Most characters of a reply in text, if it is a number.
    #[serde(default, deserialize_with = "if_valid")]
    pub max_chars: Option<usize>,
}

/// A request that addresses its reply.
pub trait Addressed {
    /// Its id and its reply topic.
    fn address(&self) -> Address;
}

macro_rules! addressed {
    ($($request:ty),*) => {$(
        impl Addressed for $request {
            fn address(&self) -> Address {
                Address { id: self.id.clone(), reply_to: self.reply_to.clone(), ..Address::default() }
            }
        }
    )*};
}
addressed!(Put, Delete, List);

impl Addressed for Ask {
    fn address(&self) -> Address {
        Address { id: self.id.clone(), reply_to: self.reply_to.clone(), reply: self.reply, max_chars: self.max_chars }
    }
}

impl Addressed for Failed {
    fn address(&self) -> Address {
        Address::default()
    }
}

/// A question to cancel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// The question's id.
    #[serde(deserialize_with = "required_id")]
    pub id: String,
}

impl CancelRequest {
    /// Parses plain text: the id alone.
    ///
    /// # Errors
    /// The text is not a valid id.
    pub fn of_text(payload: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(payload).map_err(|e| e.to_string())?;
        let id = TextOrNumber::Text(text.trim().to_owned()).into_id();
        id.map(|id| Self { id }).map_err(|e: serde::de::value::Error| e.to_string())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum IfValid<T> {
    Valid(T),
    Other(IgnoredAny),
}

/// A value of the right kind; any other value counts as absent, and the request's own error tells of it.
fn if_valid<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(match IfValid::deserialize(deserializer)? {
        IfValid::Valid(value) => Some(value),
        IfValid::Other(_) => None,
    })
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
