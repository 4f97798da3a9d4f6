//! Made-up bounds and answers, for the tests of this crate and of the doors.

use crate::Limits;
use std::time::Duration;
use wire::{Answer, Sampling};

/// Bounds that get in no test's way.
pub fn limits() -> Limits {
    Limits {
        collection: "default".into(),
        top_k: 3,
        max_tokens: 100,
        max_tokens_cap: 1000,
        deadline: Duration::from_secs(3600),
        max_question_bytes: 1000,
        max_payload_bytes: 1000,
        queue: 8,
        workers: 1,
        documents: true,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, seed: 0 },
    }
}

/// An answer with this text.
pub fn answer(text: &str) -> Answer {
    Answer {
        answer: text.into(),
        found: true,
        confidence: 1.0,
        model: "made up".into(),
        finish: "stop".into(),
        ..Answer::default()
    }
}
