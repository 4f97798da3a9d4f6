//! Files become chunks in the store.
//!
//! One way through the room, left to right:
//!
//! ```text
//! walk -> Source -> read (media type, decoding, Markdown-like text, title) -> chunk -> embed -> store
//! ```
//!
//! Everything up to `chunk` needs neither a model nor a database; [`Pipeline`] joins them to both.
//! What comes in was written by strangers: sizes, counts and times are bounded here, and a document that
//! cannot be read costs that document only.

pub(crate) mod child;
mod chunk;
mod formats;
mod media;
mod outline;
mod pipeline;
mod read;
mod rebuild;
mod walk;
pub mod watch;

use std::{collections::BTreeMap, path::PathBuf};

pub(crate) use formats::{floor_char_boundary, one_line};

use crate::{names, store::SourceFile};

pub use chunk::{Chunks, DEFAULT_MAX_TOKENS, MIN_MAX_TOKENS, TextChunk, chunk, embedded_text};
pub use media::{MediaType, check_media_type};
pub use pipeline::{Change, IngestOptions, Outcome, Pipeline, Summary, parse_tag};
pub use read::{Form, Reading, read};
pub use rebuild::start as start_rebuilding;
pub use walk::{DEFAULT_GLOBS, Entry, Walk, check_glob, load, walk};

/// Largest document taken, in bytes, unless the configuration says otherwise.
pub const DEFAULT_MAX_DOCUMENT_BYTES: u64 = 32 * 1024 * 1024;

/// One document as it arrives: bytes with what is known about them.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The name under which it is stored and replaced, unique in its collection.
    pub id: String,
    /// File name or other hint for media type and title; may be empty.
    pub name: String,
    /// Media type as the sender gave it (`text/html; charset=utf-8`), if any.
    pub media_type: Option<String>,
    /// The bytes as they were found.
    pub bytes: Vec<u8>,
    /// Title to use in place of the one the document gives itself.
    pub title: Option<String>,
    /// Metadata that questions can filter by.
    pub tags: BTreeMap<String, String>,
    /// The file it follows, where it comes from a watched folder.
    pub origin: Option<SourceFile>,
}

/// Why a document was not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngestError {
    /// A document that breaks the rules of its format.
    #[error("{id}: it cannot be read: {reason}; save it again with the program that made it, or convert it to text")]
    Damaged {
        /// The document.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// A PDF that is damaged or cut off.
    #[error("{id}: it cannot be read: {reason}; {}", formats::MEND_PDF)]
    DamagedPdf {
        /// The document.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// A document that asks for a password.
    #[error(
        "{id}: it is encrypted and asks for a password; save it without one (for example `qpdf --decrypt --password=… IN OUT`)"
    )]
    Locked {
        /// The document.
        id: String,
    },
    /// Scanned pages, or letters without meaning.
    #[error("{id}: no text layer (pages: {pages}), needs OCR (for example `ocrmypdf IN.pdf OUT.pdf`)")]
    NoText {
        /// The document.
        id: String,
        /// Its number of pages.
        pages: usize,
    },
    /// A format that this program was built without.
    #[cfg(not(feature = "pdf"))]
    #[error(
        "{id}: this program is built without a reader for {format}; install the full package, or give the text in another form"
    )]
    NotBuilt {
        /// The document.
        id: String,
        /// The format.
        format: &'static str,
    },
    /// Bytes that no reader understands.
    #[error("{id}: {kind} cannot be read; give text, Markdown, HTML, PDF or EPUB")]
    Binary {
        /// The document.
        id: String,
        /// What the bytes look like.
        kind: String,
    },
    /// A document that another program turns into HTML.
    #[error("{id}: {kind} cannot be read; convert it to HTML first (`{command}`)")]
    Convert {
        /// The document.
        id: String,
        /// Its format.
        kind: &'static str,
        /// The command that converts it.
        command: &'static str,
    },
    /// Nothing but blank space, or nothing outside scripts and navigation.
    #[error("{id}: no text in it")]
    Empty {
        /// The document.
        id: String,
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
        /// What it would come to.
        chunks: usize,
        /// The limit.
        limit: usize,
    },
    /// A document that keeps its reader busy beyond reason.
    #[error("{id}: it takes longer than {seconds} s to read; simplify it, split it or convert it to text")]
    TooSlow {
        /// The document.
        id: String,
        /// The limit in seconds.
        seconds: u64,
    },
    /// A document whose reader wants more memory than it may have.
    #[error("{id}: reading it takes more than {} MiB of memory; split it or convert it to text", limit >> 20)]
    TooMuchMemory {
        /// The document.
        id: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A document whose reader was killed from outside, as the system does when it has no memory left.
    #[error("{id}: the system had no memory left to read it; split it, convert it to text, or close other programs")]
    NoMemory {
        /// The document.
        id: String,
    },
    /// A document that unfolds into too much text.
    #[error("{id}: more than {} MiB of text; split it", limit >> 20)]
    TooMuchText {
        /// The document.
        id: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The process that reads documents of this kind could not be started.
    #[error("{id}: cannot start the process that reads it: {reason}; check /proc and the limits on processes and memory")]
    NoReader {
        /// The document.
        id: String,
        /// What the system said.
        reason: String,
    },
    /// A reader panicked: a fault of ours, kept to this document.
    #[error("{id}: the reader failed on this document ({message}); please report it")]
    ReaderFailed {
        /// The document.
        id: String,
        /// The panic's message.
        message: String,
    },
    /// An id that cannot name a document.
    #[error("document id {id:?}: {reason}")]
    BadId {
        /// The id, shortened.
        id: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// Tags beyond the bounds.
    #[error("{id}: {reason}")]
    BadTags {
        /// The document.
        id: String,
        /// What is wrong and what is allowed.
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
        /// What is wrong with it.
        reason: String,
    },
    /// The file could not be read.
    #[error("{}: {source}; check that it exists and may be read", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Whoever sent it has gone away.
    #[error("{id}: given up; the library is as it was")]
    Cancelled {
        /// The document.
        id: String,
    },
    /// The embedder could not embed.
    #[error(transparent)]
    Embed(#[from] crate::embed::EmbedError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl IngestError {
    /// What is wrong, without the document's name where the message begins with it.
    pub fn reason(&self, id: &str) -> String {
        let message = self.to_string();
        let name = match self {
            Self::Io { path, .. } => path.display().to_string(),
            _ => id.to_owned(),
        };
        message.strip_prefix(&name).and_then(|rest| rest.strip_prefix(": ")).map_or_else(|| message.clone(), str::to_owned)
    }

    /// Whether it is the document's own fault: as it is it fails again, wherever and whenever it is put.
    fn is_of_document(&self) -> bool {
        !matches!(
            self,
            Self::Store(_)
                | Self::Embed(_)
                | Self::Cancelled { .. }
                | Self::NoReader { .. }
                | Self::BadId { .. }
                | Self::BadTags { .. }
                | Self::BadGlob { .. }
                | Self::Refused { .. }
        )
    }
}

/// Checks what names and describes a document, before any work is done for it.
pub(crate) fn check_bounds(source: &Source) -> Result<(), IngestError> {
    check_id(&source.id)?;
    names::check_tags(source.tags.iter()).map_err(|reason| IngestError::BadTags { id: source.id.clone(), reason })
}

/// Checks an id's bounds.
///
/// # Errors
/// [`IngestError::BadId`].
pub fn check_id(id: &str) -> Result<(), IngestError> {
    names::check_document_id(id).map_err(|reason| IngestError::BadId { id: shortened(id, 80).into_owned(), reason })
}

/// `1 chunk`, `2 chunks`
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `text` cut to at most `max_chars` characters, with an ellipsis where something is missing.
pub(crate) fn shortened(text: &str, max_chars: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(max_chars) {
        None => text.into(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(id: &str) -> Source {
        Source { id: id.into(), ..Source::default() }
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
        let many = (0..=names::MAX_TAGS).map(|n| (format!("k{n}"), String::new())).collect();
        for tags in
            [many, vec![(String::new(), "v".into())], vec![("k".into(), "v".repeat(257))], vec![("a\0".into(), String::new())]]
        {
            assert!(matches!(check_bounds(&with(tags)), Err(IngestError::BadTags { .. })));
        }
    }

    #[test]
    fn shortening_keeps_characters_whole() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöü", 2), "äö…");
    }
}
