//! Files become chunks in the store.
//!
//! One way through the room, left to right:
//!
//! ```text
//! walk -> Source -> read::read -> chunk -> embed -> store
//! ```
//!
//! Every step up to `chunk` needs neither a model nor a database; [`Pipeline`] joins them to both. Documents were written by
//! strangers: sizes, counts and times are bounded here. A document that cannot be read costs that document only.

mod chunk;
mod pipeline;
mod rebuild;
mod walk;
pub mod watch;

use std::{collections::BTreeMap, path::PathBuf};

use read::{Original, ReadError, shortened};
use wire::ErrorCode;

use crate::{EncodeError, store::SourceFile};

pub use chunk::{Chunks, DEFAULT_MAX_TOKENS, MIN_MAX_TOKENS, TextChunk, chunk, embedded_text};
pub use pipeline::{IngestOptions, Outcome, Pipeline, Summary, parse_tag};
pub use rebuild::start as start_rebuilding;
pub use walk::{FoundFile, PassedOver, Walk, check_glob, default_globs, load, walk};

/// Largest document taken, in bytes, unless the configuration says otherwise.
pub const DEFAULT_MAX_DOCUMENT_BYTES: u64 = 32 * 1024 * 1024;

/// One document as it arrives: its bytes and its description.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The name under which the document is stored and replaced, unique in its collection.
    pub id: String,
    /// File name or other hint for media type and title; may be empty.
    pub name: String,
    /// Media type as the sender gave it (`text/html; charset=utf-8`), if any.
    pub media_type: Option<String>,
    /// The bytes as they arrived.
    pub bytes: Vec<u8>,
    /// Title to use in place of the document's own.
    pub title: Option<String>,
    /// Metadata that questions can filter by.
    pub tags: BTreeMap<String, String>,
    /// The file that the document follows, if it comes from a watched folder.
    pub origin: Option<SourceFile>,
}

impl Source {
    /// The part that the readers take.
    pub fn original(&self) -> Original<'_> {
        Original {
            id: &self.id,
            name: &self.name,
            media_type: self.media_type.as_deref(),
            title: self.title.as_deref(),
            bytes: &self.bytes,
        }
    }
}

/// Why a document was not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// The document gives no text.
    #[error("{id}: {source}")]
    Read {
        /// The document.
        id: String,
        /// Why.
        source: ReadError,
    },
    /// More bytes than a document may have.
    #[error("{id}: larger than {limit} bytes; split it, or raise ingest.max_document_bytes")]
    TooLarge {
        /// The document.
        id: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// More chunks than a document may have.
    #[error("{id}: {chunks} chunks, more than the {limit} that one document may have; split it")]
    TooManyChunks {
        /// The document.
        id: String,
        /// Their number.
        chunks: usize,
        /// The limit.
        limit: usize,
    },
    /// An id that cannot name a document.
    #[error("document id {id:?}: {reason}")]
    BadId {
        /// The id, shortened.
        id: String,
        /// The fault and the rule.
        reason: String,
    },
    /// Tags beyond the bounds.
    #[error("{id}: {reason}")]
    BadTags {
        /// The document.
        id: String,
        /// The fault and the rule.
        reason: String,
    },
    /// The running daemon did not take the document.
    #[error("{message}")]
    Refused {
        /// The document.
        id: String,
        /// The daemon's words.
        message: String,
    },
    /// A glob that does not parse.
    #[error("glob {glob:?}: {reason}")]
    BadGlob {
        /// The glob as given.
        glob: String,
        /// The fault.
        reason: String,
    },
    /// The file could not be read.
    #[error("{}: {source}; check that it exists and may be read", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The sender has gone away.
    #[error("{id}: given up; the library is unchanged")]
    Cancelled {
        /// The document.
        id: String,
    },
    /// The encoder failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl IngestError {
    /// The error's code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Store(error) => error.code(),
            Self::Encode(_) => ErrorCode::Internal,
            _ => ErrorCode::BadRequest,
        }
    }

    /// The fault, without the document's name where the message begins with it.
    pub fn reason(&self, id: &str) -> String {
        let message = self.to_string();
        let name = match self {
            Self::Io { path, .. } => path.display().to_string(),
            _ => id.to_owned(),
        };
        message.strip_prefix(&name).and_then(|rest| rest.strip_prefix(": ")).map_or_else(|| message.clone(), str::to_owned)
    }

    /// Whether the document is to blame: unchanged, it fails again whenever it is put.
    fn is_of_document(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.is_of_document(),
            Self::TooLarge { .. } | Self::TooManyChunks { .. } | Self::Io { .. } => true,
            Self::Store(_)
            | Self::Encode(_)
            | Self::Cancelled { .. }
            | Self::BadId { .. }
            | Self::BadTags { .. }
            | Self::BadGlob { .. }
            | Self::Refused { .. } => false,
        }
    }
}

/// Checks a document's id and tags, before any work is done for it.
pub(crate) fn check_bounds(source: &Source) -> Result<(), IngestError> {
    check_id(&source.id)?;
    wire::names::check_tags(source.tags.iter()).map_err(|reason| IngestError::BadTags { id: source.id.clone(), reason })
}

/// Checks an id's bounds.
///
/// # Errors
/// [`IngestError::BadId`].
pub fn check_id(id: &str) -> Result<(), IngestError> {
    wire::names::check_document_id(id).map_err(|reason| IngestError::BadId { id: shortened(id, 80).into_owned(), reason })
}

/// `1 chunk`, `2 chunks`
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(id: &str) -> Source {
        Source { id: id.into(), ..Source::default() }
    }

    #[test]
    fn errors_say_their_codes() {
        use crate::{EncodeError, retrieve::RetrieveError, store::StoreError};
        let unknown = || StoreError::UnknownCollection { name: "c".into(), known: Vec::new() };
        let full = || StoreError::Io { action: "write".into(), source: std::io::ErrorKind::StorageFull.into() };
        let encoder = || EncodeError::new(std::io::Error::other("stopped"));
        assert_eq!(IngestError::from(unknown()).code(), ErrorCode::UnknownCollection);
        assert_eq!(IngestError::from(full()).code(), ErrorCode::Storage);
        assert_eq!(IngestError::from(StoreError::DocumentId(String::new())).code(), ErrorCode::BadRequest);
        assert_eq!(IngestError::from(encoder()).code(), ErrorCode::Internal);
        assert_eq!(IngestError::Read { id: "a".into(), source: ReadError::Empty }.code(), ErrorCode::BadRequest);
        let nowhere = RetrieveError::UnknownCollection { name: "c".into(), known: Vec::new() };
        assert_eq!(nowhere.code(), ErrorCode::UnknownCollection);
        assert_eq!(RetrieveError::from(full()).code(), ErrorCode::Storage);
        assert_eq!(RetrieveError::Encode(encoder()).code(), ErrorCode::Internal);
    }

    #[test]
    fn reasons_leave_the_name_out() {
        let empty = IngestError::Read { id: "a.md".into(), source: ReadError::Empty };
        assert_eq!((empty.to_string().as_str(), empty.reason("a.md").as_str()), ("a.md: no text in it", "no text in it"));
        assert_eq!(empty.reason("b.md"), "a.md: no text in it");
        let gone = IngestError::Io { path: "/srv/a.md".into(), source: std::io::ErrorKind::NotFound.into() };
        assert!(gone.reason("a.md").ends_with("check that it exists and may be read"));
        assert!(!gone.reason("a.md").contains("/srv"));
    }

    #[test]
    fn ids_are_bounded() {
        assert!(check_bounds(&source("manuals/heat pump.md")).is_ok());
        for id in ["", "a\nb", &"x".repeat(513)] {
            assert!(matches!(check_bounds(&source(id)), Err(IngestError::BadId { .. })), "{id:?}");
        }
    }

    #[test]
    fn tags_are_bounded() {
        let with = |tags: Vec<(String, String)>| Source { tags: tags.into_iter().collect(), ..source("a") };
        assert!(check_bounds(&with(vec![("site".into(), "north".into())])).is_ok());
        let many = (0..=wire::names::MAX_TAGS).map(|n| (format!("k{n}"), String::new())).collect();
        for tags in
            [many, vec![(String::new(), "v".into())], vec![("k".into(), "v".repeat(257))], vec![("a\0".into(), String::new())]]
        {
            assert!(matches!(check_bounds(&with(tags)), Err(IngestError::BadTags { .. })));
        }
    }
}
