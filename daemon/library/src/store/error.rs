//! The errors of the store and their remedies.

use std::io;
use std::path::{Path, PathBuf};
use wire::names::{COLLECTION_RULE, MAX_DOCUMENT_ID_BYTES};

use wire::ErrorCode;

/// Errors of the store; each names the thing and, if there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock on the directory.
    #[error("{} is in use{}; stop that process, or talk to it instead of opening its store", dir.display(), holder(*pid))]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// The holder's process id, as it wrote it into the lock file.
        pid: Option<u32>,
    },
    /// The database does not open, or a record in it cannot be read. It is set aside at the next write or opening.
    #[error(
        "the database under {} is damaged ({detail}); it is made again from the sources beside it, which are untouched",
        dir.display()
    )]
    Damaged {
        /// The store's directory.
        dir: PathBuf,
        /// The damage.
        detail: String,
    },
    /// The operating system refused to read or write.
    #[error("cannot {action}: {source}{}", wire::storage_remedy(source))]
    Io {
        /// The refused action, with the path.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The store was written by a newer version of the program.
    #[error(
        "{} was written by a newer vademecum (schema {found}, this one knows {known}); upgrade vademecum, or use another data \
         directory",
        dir.display()
    )]
    SchemaTooNew {
        /// The store's directory.
        dir: PathBuf,
        /// The schema version found.
        found: u32,
        /// The newest schema version this program knows.
        known: u32,
    },
    /// Vectors of two embedders cannot be compared with each other.
    #[error(
        "the store holds vectors of the embedder {stored}, not of {offered}; use that embedder, or run \
         `vademecum ingest --re-embed`"
    )]
    EmbedderMismatch {
        /// Name and fingerprint the store is bound to.
        stored: String,
        /// Name and fingerprint of the one offered.
        offered: String,
    },
    /// Vectors were offered before an embedder was bound.
    #[error("the store is not bound to an embedder yet; bind one before the first document")]
    NoEmbedder,
    /// A name against [`COLLECTION_RULE`].
    #[error("{0:?} is not a collection name: {rule}", rule = COLLECTION_RULE)]
    CollectionName(String),
    /// The collection has never held a document.
    #[error("there is no collection {name:?}; {}", others(known))]
    UnknownCollection {
        /// The name asked for.
        name: String,
        /// The names of all collections.
        known: Vec<String>,
    },
    /// A document id that is empty, too long or holds control characters.
    #[error("{0:?} is not a document id: use 1 to {most} bytes without control characters", most = MAX_DOCUMENT_ID_BYTES)]
    DocumentId(String),
    /// A document whose parts do not fit together or exceed a bound.
    #[error("document {id:?} is refused: {reason}")]
    Refused {
        /// The document's id.
        id: String,
        /// The misfit.
        reason: String,
    },
    /// No source with that hash is kept.
    #[error("no source {hash} under {}; ingest the document again", dir.display())]
    NoSource {
        /// The hash asked for.
        hash: String,
        /// The store's directory.
        dir: PathBuf,
    },
}

impl StoreError {
    /// The error's code. A name or a document that the store refuses is the client's fault, everything else the storage's.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownCollection { .. } => ErrorCode::UnknownCollection,
            Self::CollectionName(_) | Self::DocumentId(_) | Self::Refused { .. } => ErrorCode::BadRequest,
            _ => ErrorCode::Storage,
        }
    }

    /// Turns an [`io::Error`] into [`StoreError::Io`] with the action and the path.
    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let action = format!("{verb} {}", path.display());
        move |source| StoreError::Io { action, source }
    }

    /// Translates sled's errors: I/O stays I/O, everything else means the database is not sound.
    pub(super) fn database(dir: &Path, error: sled::Error) -> StoreError {
        match error {
            sled::Error::Io(source) => {
                StoreError::Io { action: format!("use the database {}", dir.join("db").display()), source }
            }
            other => StoreError::Damaged { dir: dir.to_owned(), detail: other.to_string() },
        }
    }

    /// [`StoreError::database`] for an error at opening: there, a file that is short or missing is damage too.
    pub(super) fn opening(dir: &Path, error: sled::Error) -> StoreError {
        use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
        match error {
            sled::Error::Io(source) if matches!(source.kind(), UnexpectedEof | InvalidData | InvalidInput | NotFound) => {
                StoreError::Damaged { dir: dir.to_owned(), detail: source.to_string() }
            }
            other => StoreError::database(dir, other),
        }
    }
}

fn others(known: &[String]) -> String {
    if known.is_empty() { "the library is empty".to_owned() } else { format!("there are: {}", known.join(", ")) }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}
