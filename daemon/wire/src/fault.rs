//! Refusals and failures of requests.

use crate::{ErrorBody, ErrorReply, cut};
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

    /// The fault as one line of text, `error: code: message`, for clients that want no JSON. At most `max_chars` characters; the
    /// message is shortened, the code never.
    #[must_use]
    pub fn line(&self, max_chars: Option<usize>) -> String {
        let mut line = format!("error: {}:", self.code.word());
        let least = line.len() + 1;
        for word in self.message.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
            line.push(' ');
            line.push_str(word);
        }
        cut(&mut line, max_chars.unwrap_or(usize::MAX).max(least));
        line
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
    fn a_line_keeps_its_code() {
        let fault = Fault::new(ErrorCode::UnknownCollection, "there is no\n collection \"x\"; there are: default");
        let whole = "error: unknown_collection: there is no collection \"x\"; there are: default";
        assert_eq!(fault.line(None), whole);
        assert_eq!(fault.line(Some(200)), whole);
        assert_eq!(fault.line(Some(50)), "error: unknown_collection: there is no collection…");
        for least in [0, 16, 28] {
            assert_eq!(fault.line(Some(least)), "error: unknown_collection…", "{least}");
        }
    }

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
