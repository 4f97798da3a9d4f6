//! An answer with its citations.

use crate::LibraryState;
use serde::{Deserialize, Serialize};

/// A cited answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The question, as it was asked.
    #[serde(default)]
    pub question: String,
    /// Its text.
    pub answer: String,
    /// The answer for the ear: without marks and Markdown, with its source in words.
    #[serde(default)]
    pub speech: String,
    /// The steps of a procedure, without their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// Whether the library holds an answer.
    pub found: bool,
    /// Confidence of retrieval that it does, 0 to 1.
    pub confidence: f32,
    /// The passages found, strongest first; marks such as `[1]` in the answer name them.
    pub citations: Vec<Citation>,
    /// Support of each sentence of the answer: the share of its words that the passages behind it hold, 0 to 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub support: Vec<f32>,
    /// Who has written the answer.
    #[serde(default)]
    pub by: AnsweredBy,
    /// The generator.
    pub model: String,
    /// Why the answer ended: `stop`, `length`.
    pub finish: String,
    /// Whether the answer comes from the answer cache: same question, same library. The timings are those of this request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cached: bool,
    /// The state of the library while it is not whole; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryState>,
    /// Time spent on each step.
    pub timings: Timings,
    /// Tokens computed and reused.
    pub usage: Usage,
}

/// The writer of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    /// The documents: the answer is their best sentences, word for word.
    #[default]
    Quote,
    /// The generator.
    Model,
}

/// A passage that supports an answer, as it crosses the wire.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Citation {
    /// Its number in the prompt, from 1.
    pub n: usize,
    /// The document's id.
    pub document: String,
    /// The document's title.
    pub title: String,
    /// Headings above the best quoted sentence, joined by ` > `.
    pub heading: String,
    /// Page on which the best quoted sentence begins, if the source has pages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub page: Option<u32>,
    /// Pages on which the quoted sentences begin, ascending, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub pages: Vec<u32>,
    /// The chunk's id.
    pub chunk: String,
    /// Fused score, 0 to 1.
    pub score: f32,
    /// The sentences that answer best: one to four, two on average over the passages.
    pub quote: String,
}

/// Time spent on each step, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Question to evidence.
    pub evidence_ms: f64,
    /// Encoding the question.
    pub embed_ms: f64,
    /// Searching the library.
    pub search_ms: f64,
    /// Waiting for the generator.
    pub queue_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Question to the first delta of the answer.
    pub ttft_ms: f64,
    /// Question to the whole answer.
    pub total_ms: f64,
    /// Decoding speed.
    pub tokens_per_s: f64,
}

/// Tokens computed and reused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Passages in the prompt.
    pub passages: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose KV state was reused.
    pub reused_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Tokens drafted by prompt lookup, if it is in use.
    #[serde(default, skip_serializing_if = "is_none")]
    pub drafted_tokens: usize,
    /// Drafted tokens that the answer contains.
    #[serde(default, skip_serializing_if = "is_none")]
    pub accepted_tokens: usize,
    /// The text that the generator has read: `section and chunk`, `section`, `chunk` or `sentences`. It reads as much as
    /// `answer.patience_ms` allows at its speed; text whose state is kept costs no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<String>,
    /// Measured speed of reading, tokens per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading_tokens_per_s: Option<f64>,
    /// Sentences that were held back because the passages do not support them.
    #[serde(default, skip_serializing_if = "is_none")]
    pub withheld: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(count: &usize) -> bool {
    *count == 0
}
