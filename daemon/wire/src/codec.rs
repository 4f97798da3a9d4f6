//! The two encodings: JSON (RFC 8259) and CBOR (RFC 8949).

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;

/// The encoding of a request, and of its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/cbor`
    Cbor,
}

/// The MIME type of text without an encoding.
pub const TEXT: &str = "text/plain";

impl Encoding {
    /// Its MIME type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
        }
    }

    /// The encoding by content type, else by the first byte; `None` if neither fits.
    pub fn of(payload: &[u8], content_type: Option<&str>) -> Option<Self> {
        match content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase()).as_deref() {
            Some("application/json") => return Some(Self::Json),
            Some("application/cbor") => return Some(Self::Cbor),
            Some(TEXT) => return None,
            _ => {}
        }
        match payload {
            // A CBOR map (major type 5), or the self-described CBOR tag (RFC 8949, section 3.4.6).
            [0xa0..=0xbf, ..] | [0xd9, 0xd9, 0xf7, ..] => Some(Self::Cbor),
            _ => (payload.trim_ascii_start().first() == Some(&b'{')).then_some(Self::Json),
        }
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// The payload's fault, in at most [`MAX_WORDS`] characters without control characters.
    pub fn decode<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, String> {
        match self {
            Self::Json => {
                serde_json::from_slice(payload).map_err(|e| words("the payload is not the JSON object this topic takes", &e))
            }
            Self::Cbor => ciborium::de::from_reader_with_recursion_limit(payload, MAX_DEPTH)
                .map_err(|e| words("the payload is not the CBOR map this topic takes", &in_words(&e))),
        }
    }

    /// Encodes a value.
    ///
    /// # Errors
    /// The value cannot be encoded (a map with keys other than text).
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

/// A CBOR error in plain words; ciborium's own text names its types.
fn in_words<E>(error: &ciborium::de::Error<E>) -> String {
    use ciborium::de::Error;
    match error {
        Error::Io(_) => "the payload ends too early".into(),
        Error::Syntax(at) => format!("no CBOR at byte {at}"),
        Error::Semantic(Some(at), what) => format!("{what} at byte {at}"),
        Error::Semantic(None, what) => what.clone(),
        Error::RecursionLimitExceeded => format!("the nesting is deeper than {MAX_DEPTH}"),
    }
}

/// Deepest CBOR nesting accepted: the map, and 63 levels inside. JSON: 127, by `serde_json`.
pub const MAX_DEPTH: usize = 64;

/// Longest message about a payload's fault, in characters.
pub const MAX_WORDS: usize = 300;

/// A bounded message about a payload's fault. Decoders quote the payload, which may be any text of any length, and logs repeat
/// the message.
fn words(what: &str, error: &dyn Display) -> String {
    let all = format!("{what}: {error}");
    let mut chars = all.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut words: String = chars.by_ref().take(MAX_WORDS - 1).collect();
    if chars.next().is_some() {
        words.push('…');
    }
    words
}
