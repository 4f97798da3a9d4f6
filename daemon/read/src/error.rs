//! Why a document yields no text.

use crate::formats::{self, Fault};

/// Why a document yields no text. The messages do not name the document; the caller does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A document that breaks the rules of its format.
    #[error("it cannot be read: {reason}; save it again with the program that made it, or convert it to text")]
    Damaged {
        /// The fault.
        reason: String,
    },
    /// A PDF that is damaged or cut off.
    #[error("it cannot be read: {reason}; {}", formats::MEND_PDF)]
    DamagedPdf {
        /// The fault.
        reason: String,
    },
    /// A document that asks for a password.
    #[error(
        "it is encrypted and asks for a password; save it without one \
         (a PDF, for example, with `qpdf --decrypt --password=… IN OUT`)"
    )]
    Locked,
    /// A document that only the seller's own programs can open.
    #[error("it is protected against copying (DRM), so only the seller's programs can read it; get a copy without protection")]
    Protected,
    /// A text whose encoding cannot be told.
    #[error(
        "its character encoding cannot be told: it is not UTF-8, and no other encoding fits; save it as UTF-8 \
         (for example `iconv -f CP850 -t UTF-8 IN > OUT`), or name the encoding: `--media-type 'text/plain; charset=NAME'`"
    )]
    UnknownEncoding,
    /// Scanned pages, or letters without meaning.
    #[error("no text layer (pages: {pages}), needs OCR (for example `ocrmypdf IN.pdf OUT.pdf`)")]
    NoText {
        /// Its number of pages.
        pages: usize,
    },
    /// A format that this program was built without.
    #[error("this program is built without a reader for {format}; install the full package, or give the text in another form")]
    NotBuilt {
        /// The format.
        format: String,
    },
    /// Bytes that no reader understands.
    #[error("{kind} cannot be read; give {}", formats::readable())]
    Binary {
        /// The likely type of the bytes.
        kind: String,
    },
    /// A document that another program turns into a format that is read.
    #[error("{kind} cannot be read; convert it first (`{command}`)")]
    Convert {
        /// Its format.
        kind: &'static str,
        /// The command that converts it.
        command: &'static str,
    },
    /// The document has no text outside blank space, scripts and navigation.
    #[error("no text in it")]
    Empty,
    /// A document that keeps its reader busy beyond reason.
    #[error("it takes longer than {seconds} s to read; simplify it, split it or convert it to text")]
    TooSlow {
        /// The limit in seconds.
        seconds: u64,
    },
    /// A document whose reader wants more memory than it may have.
    #[error("reading it takes more than {} MiB of memory; split it or convert it to text", limit >> 20)]
    TooMuchMemory {
        /// The limit in bytes.
        limit: u64,
    },
    /// A document whose reader was killed from outside, as the system does when it has no memory left.
    #[error("the system had no memory left to read it; split it, convert it to text, or close other programs")]
    NoMemory,
    /// A document that unfolds into too much text.
    #[error("more than {} MiB of text; split it", limit >> 20)]
    TooMuchText {
        /// The limit in bytes.
        limit: u64,
    },
    /// The process that reads documents of this kind could not be started.
    #[error("cannot start the process that reads it: {reason}; check /proc and the limits on processes and memory")]
    NoReader {
        /// The system's error.
        reason: String,
    },
    /// A reader panicked: a bug of ours that costs only this document.
    #[error("the reader failed on this document ({message}); please report it")]
    ReaderFailed {
        /// The panic's message.
        message: String,
    },
}

/// The error of a fault, for the owner of the document.
pub(crate) fn refused(fault: Fault) -> ReadError {
    match fault {
        Fault::Damaged(reason) => ReadError::Damaged { reason },
        Fault::DamagedPdf(reason) => ReadError::DamagedPdf { reason },
        Fault::NotBuilt(format) => ReadError::NotBuilt { format },
        Fault::Protected => ReadError::Protected,
        Fault::UnknownEncoding => ReadError::UnknownEncoding,
        Fault::Locked => ReadError::Locked,
        Fault::NoText { pages } => ReadError::NoText { pages },
        Fault::TooSlow(limit) => ReadError::TooSlow { seconds: limit.as_secs() },
    }
}

impl ReadError {
    /// Whether the document is at fault: it fails again wherever and whenever it is read.
    pub fn is_of_document(&self) -> bool {
        !matches!(self, Self::NoReader { .. })
    }
}
