//! The library: documents go in, passages come out.
//!
//! | module | one job |
//! |---|---|
//! | [`store`] | documents, chunks, vectors and terms in sled; the sources; the index file; the documents that are still lacking |
//! | [`ingest`] | walk, chunk, embed, put; watched folders; the rebuild after damage |
//! | [`Encoder`] | the border to the model that makes vectors |
//! | [`retrieve`] | which passages answer a question, and how sure that is |
#![deny(unsafe_code)]

mod encoder;
mod heap;
pub mod ingest;
pub mod retrieve;
pub mod store;

pub use encoder::{EncodeError, Encoded, Encoder, Parted};
pub use store::wholeness::{Putting, Waiting, Wholeness};
