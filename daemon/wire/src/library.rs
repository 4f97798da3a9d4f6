//! The state of a library whose documents are not all there yet.

use serde::{Deserialize, Serialize};

/// The documents that a collection, or the library, has of those it should have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryState {
    /// The work that makes it whole.
    pub state: LibraryWork,
    /// Documents that can be searched in their current version.
    pub have: u64,
    /// Documents that are known; more than `have` unless the state is `whole`. One is counted where nobody knows the number.
    pub of: u64,
}

/// The work that makes a library whole. Of several, the greatest is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LibraryWork {
    /// None: every document can be searched.
    #[default]
    Whole,
    /// New or changed documents are read: from a watched folder, or put through a door.
    Ingesting,
    /// Documents get their vectors from another encoder, after a `vademecum ingest --re-embed` that was interrupted.
    Embedding,
    /// Documents that the database has lost are read again.
    Rebuilding,
}
