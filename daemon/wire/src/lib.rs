//! The types that cross a border: between programs in JSON and CBOR, and between the daemon's own rooms.
//!
//! | module | holds |
//! |---|---|
//! | [`names`] | bounds of ids and collections |
//! | `request`, `reply` | messages from and to clients |
//! | `answer` | an answer and its citations |
//! | [`marks`] | marks such as `[2]` in an answer |
//! | `shape` | short replies for small clients |
//! | `question` | a checked question, its cancel handle and its progress |
//! | `library` | the state of a library that is not whole |
//! | `fault` | error codes and their messages |
//! | `report` | `info`, `metrics`, `status` |
//! | `disk` | free bytes, remedies for disk errors |
//! | `codec` | JSON and CBOR, bounded |
#![forbid(unsafe_code)]

mod answer;
mod codec;
mod disk;
mod fault;
mod library;
pub mod marks;
pub mod names;
mod question;
mod reply;
mod report;
mod request;
mod shape;

pub use answer::{Answer, AnsweredBy, Citation, Timings, Usage};
pub use codec::{Encoding, MAX_DEPTH, MAX_WORDS, TEXT};
pub use disk::{free_bytes, storage_remedy};
pub use fault::{ErrorCode, Fault};
pub use library::{LibraryState, LibraryWork};
pub use names::{MAX_REQUEST_ID_BYTES, MAX_SESSION_BYTES, MAX_TOP_K, MIN_MAX_CHARS, new_id};
pub use question::{Cancel, Mode, Progress, Question, Sampling};
pub use reply::{
    AnswerReply, Change, DeleteReply, DeltaReply, ErrorBody, ErrorReply, EvidenceReply, FileState, ListReply, Listed, Origin,
    PassageReply, PutReply, SearchReply,
};
pub use report::{
    CollectionInfo, Delivery, Info, KvCacheReport, LimitsInfo, Metrics, ModelInfo, PrecomputeReport, Recovery, SetAside, Status,
    StoreMetrics, ThreadCounts,
};
pub use request::{Address, Addressed, Ask, CancelRequest, Delete, Failed, List, Priority, Put};
pub use shape::{ReplyForm, Shape, cut};

#[cfg(test)]
mod tests;
