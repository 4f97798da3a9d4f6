//! Refusals and failures of requests.

use crate::{ErrorBody, ErrorReply};
use serde::{Deserialize, Serialize};

/// The error codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request breaks a rule; the message names it.
    BadRequest,
    /// The payload, the question or the document is too long.
    TooLarge,
    /// No document was ever put into the collection.
    UnknownCollection,
    /// Too many questions are waiting; `retry_after_ms` says when to ask again.
    QueueFull,
    /// The question's time ran out before its answer was complete.
    DeadlineExceeded,
    /// A client cancelled the question.
    Cancelled,
    /// The daemon is starting or stopping.
    NotReady,
    /// The database or the disk failed.
    Storage,
    /// A fault of the daemon.
    Internal,
}

impl ErrorCode {
    /// The word that crosses the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::UnknownCollection => "unknown_collection",
            Self::QueueFull => "queue_full",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::NotReady => "not_ready",
            Self::Storage => "storage",
            Self::Internal => "internal",
        }
    }
}

/// A refusal or a failure: a code for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The code.
    pub code: ErrorCode,
    /// The sentence; it names the remedy.
    pub message: String,
    /// Milliseconds until another attempt makes sense.
    pub retry_after_ms: Option<u64>,
}

impl Fault {
    /// A fault without a time to retry.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    /// A fault with [`ErrorCode::BadRequest`].
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// The error reply to the request `id`.
    pub fn reply(self, id: &str) -> ErrorReply {
        let Self { code, message, retry_after_ms } = self;
        ErrorReply { id: id.to_owned(), error: ErrorBody { code, message, retry_after_ms } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_encoding() {
        for code in [
            ErrorCode::BadRequest,
            ErrorCode::TooLarge,
            ErrorCode::UnknownCollection,
            ErrorCode::QueueFull,
            ErrorCode::DeadlineExceeded,
            ErrorCode::Cancelled,
            ErrorCode::NotReady,
            ErrorCode::Storage,
            ErrorCode::Internal,
        ] {
            assert_eq!(serde_json::to_value(code).expect("a word"), code.word());
        }
    }
}
