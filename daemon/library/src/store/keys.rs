//! Keys of the one sled tree. The first byte tells the kind, so no id from outside can reach another kind:
//!
//! | key | value |
//! |---|---|
//! | `m` name | meta: `schema` (u32), `embedder` (CBOR), `sequence` (u64), `identity` (CBOR u64), `rebound` (nothing) |
//! | `c` collection | [`super::CollectionRecord`] (CBOR) |
//! | `d` collection NUL id | [`super::DocumentRecord`] (CBOR) |
//! | `k` number ordinal | [`super::Chunk`] (CBOR) |
//! | `n` name NUL collection | the note of another room on a collection (CBOR) |
//! | `f` collection NUL id | [`super::FailedDocument`] (CBOR) |
//! | `u` number | nothing: chunks and rows under this number are being written, no document names it yet |
//! | `r` number ordinal | search row, see [`super::row`] |
//! | `s` number ordinal | vectors of the chunk's statements, see [`super::statements`]; not of older versions' documents |
//!
//! `number` (u64, big-endian) is given to each version of a document once and never again. `ordinal` (u32, big-endian) is the
//! chunk's place in it. Collection names cannot hold NUL, so the two parts of a `d` or `f` key cannot run into each other.

pub(super) const SCHEMA: &[u8] = b"mschema";
pub(super) const EMBEDDER: &[u8] = b"membedder";
/// A random number given to the database when it is made; an index file names the one it was derived from.
pub(super) const IDENTITY: &[u8] = b"midentity";
pub(super) const SEQUENCE: &[u8] = b"msequence";
/// Present from the change of the encoder to the first opening that finds every document.
pub(super) const REBOUND: &[u8] = b"mrebound";
pub(super) const COLLECTIONS: &[u8] = b"c";
pub(super) const DOCUMENTS: &[u8] = b"d";
pub(super) const FAILED: &[u8] = b"f";
pub(super) const UNFINISHED: &[u8] = b"u";
pub(super) const CHUNKS: &[u8] = b"k";
pub(super) const ROWS: &[u8] = b"r";

pub(super) fn collection(name: &str) -> Vec<u8> {
    [b"c", name.as_bytes()].concat()
}

pub(super) fn documents_of(collection: &str) -> Vec<u8> {
    [b"d", collection.as_bytes(), b"\0"].concat()
}

pub(super) fn document(collection: &str, id: &str) -> Vec<u8> {
    [b"d", collection.as_bytes(), b"\0", id.as_bytes()].concat()
}

pub(super) fn failed(collection: &str, id: &str) -> Vec<u8> {
    [FAILED, collection.as_bytes(), b"\0", id.as_bytes()].concat()
}

pub(super) fn note(collection: &str, name: &str) -> Vec<u8> {
    [b"n", name.as_bytes(), b"\0", collection.as_bytes()].concat()
}

pub(super) fn chunk(number: u64, ordinal: u32) -> Vec<u8> {
    [&b"k"[..], &number.to_be_bytes(), &ordinal.to_be_bytes()].concat()
}

pub(super) fn chunks_of(number: u64) -> Vec<u8> {
    [&b"k"[..], &number.to_be_bytes()].concat()
}

pub(super) fn unfinished(number: u64) -> Vec<u8> {
    [UNFINISHED, &number.to_be_bytes()].concat()
}

pub(super) fn row(number: u64, ordinal: u32) -> Vec<u8> {
    [&b"r"[..], &number.to_be_bytes(), &ordinal.to_be_bytes()].concat()
}

pub(super) fn rows_of(number: u64) -> Vec<u8> {
    [&b"r"[..], &number.to_be_bytes()].concat()
}

pub(super) fn statements(number: u64, ordinal: u32) -> Vec<u8> {
    [&b"s"[..], &number.to_be_bytes(), &ordinal.to_be_bytes()].concat()
}

pub(super) fn statements_of(number: u64) -> Vec<u8> {
    [&b"s"[..], &number.to_be_bytes()].concat()
}
