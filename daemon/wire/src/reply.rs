//! Replies, as clients get them.

use crate::{Answer, Citation, ErrorCode, LibraryState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The evidence, before any token is generated.
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
    /// Sequence number; continues from the evidence without gaps.
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
    /// The state of the library while it is not whole; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryState>,
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
    /// Page, if the source has pages.
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
    /// The change of the library.
    pub change: Change,
    /// Number of its chunks.
    pub chunks: u32,
    /// A note for the owner, such as damaged pages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// The change of the library by a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The document is new.
    Added,
    /// The document replaces an older version.
    Replaced,
    /// The library already had the document.
    Unchanged,
}

impl Change {
    /// The word that crosses the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A reply to `documents/delete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteReply {
    /// The request's id.
    pub id: String,
    /// The document's id.
    pub document: String,
    /// Whether the document existed.
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

/// A document, or a file on its way to becoming one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The document's id.
    pub id: String,
    /// Its collection.
    pub collection: String,
    /// Its title; empty for a file that was never ingested.
    #[serde(default)]
    pub title: String,
    /// Media type of the source.
    #[serde(default)]
    pub media_type: String,
    /// Length of the source in bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Number of its chunks.
    #[serde(default)]
    pub chunks: u32,
    /// When it was added, in seconds since 1970.
    #[serde(default)]
    pub added_unix: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The source file, if the document comes from a watched folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// A note for the owner, such as damaged pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whether the library has the document's current version.
    #[serde(default)]
    pub state: FileState,
    /// The reason if not, or a problem of its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The file behind a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its path.
    pub path: String,
    /// The file's modification time when it was read, in milliseconds since 1970.
    pub modified_ms: u64,
}

/// A file's progress into the library.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// The library has it.
    #[default]
    Ok,
    /// The watched file is new or has changed, and waits to be read.
    Pending,
    /// The file cannot be ingested as it is. A watched file is tried again when it changes, and when the daemon starts.
    Failed,
}

/// A request's error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The request's id.
    pub id: String,
    /// The error.
    pub error: ErrorBody,
}

/// The body of an error reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The code, for programs.
    pub code: ErrorCode,
    /// A sentence for people.
    pub message: String,
    /// Milliseconds until another attempt makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}
