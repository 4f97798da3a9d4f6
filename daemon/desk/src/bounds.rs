//! The bounds of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use wire::names::{COLLECTION_RULE, is_collection};
use wire::{Ask, ErrorCode, Fault, MAX_TOP_K, Mode, Question, Sampling};

/// The bounds of requests, and the values they leave open.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Collection used when none is named.
    pub collection: String,
    /// Passages retrieved.
    pub top_k: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Longest answer that a request may ask for.
    pub max_tokens_cap: usize,
    /// Time allowed when the request names none.
    pub deadline: Duration,
    /// Longest question in bytes.
    pub max_question_bytes: usize,
    /// Largest payload in bytes.
    pub max_payload_bytes: usize,
    /// Questions that may wait.
    pub queue: usize,
    /// Questions at work at once.
    pub workers: usize,
    /// Whether documents may be put and deleted.
    pub documents: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl Limits {
    /// Checks a question's bounds and fills in the open fields.
    ///
    /// # Errors
    /// The broken bound.
    pub fn question(&self, ask: &Ask, asked: Instant) -> Result<Question, Fault> {
        let text = ask.question.trim();
        if text.is_empty() {
            return Err(Fault::bad_request("the question is empty"));
        }
        if text.len() > self.max_question_bytes {
            let problem = format!("the question has {} bytes; at most {} are allowed", text.len(), self.max_question_bytes);
            return Err(Fault::new(ErrorCode::TooLarge, problem));
        }
        let bad = |problem: String| Err(Fault::bad_request(problem));
        let top_k = ask.top_k.unwrap_or(self.top_k);
        if !(1..=MAX_TOP_K).contains(&top_k) {
            return bad(format!("top_k is {top_k}; it must be from 1 to {MAX_TOP_K}"));
        }
        let max_tokens = ask.max_tokens.unwrap_or(self.max_tokens);
        if !(1..=self.max_tokens_cap).contains(&max_tokens) {
            return bad(format!("max_tokens is {max_tokens}; it must be from 1 to {}", self.max_tokens_cap));
        }
        let allowed = ask.deadline_ms.map_or(self.deadline, Duration::from_millis);
        if allowed.is_zero() || allowed > Duration::from_secs(86_400) {
            return bad("deadline_ms must be from 1 to 86400000".into());
        }
        let sampling = Sampling {
            temperature: ask.temperature.unwrap_or(self.sampling.temperature),
            top_p: ask.top_p.unwrap_or(self.sampling.top_p),
            min_p: ask.min_p.unwrap_or(self.sampling.min_p),
            seed: ask.seed.unwrap_or(self.sampling.seed),
        };
        let share = 0.0..=1.0;
        if !(0.0..=5.0).contains(&sampling.temperature) || !share.contains(&sampling.top_p) || !share.contains(&sampling.min_p) {
            return bad("temperature must be from 0 to 5, top_p and min_p from 0 to 1".into());
        }
        check_filter(&ask.filter)?;
        Ok(Question {
            text: text.to_owned(),
            collection: self.collection(ask.collection.as_deref())?,
            filter: ask.filter.clone(),
            without: BTreeSet::new(),
            top_k,
            max_tokens,
            mode: ask.mode.unwrap_or(Mode::Answer),
            sampling,
            asked,
            allowed,
        })
    }

    pub(crate) fn collection(&self, named: Option<&str>) -> Result<String, Fault> {
        let name = named.unwrap_or(&self.collection);
        if is_collection(name) {
            Ok(name.to_owned())
        } else {
            Err(Fault::bad_request(format!("the collection is called {name:?}; {COLLECTION_RULE}")))
        }
    }
}

fn check_filter(filter: &BTreeMap<String, Vec<String>>) -> Result<(), Fault> {
    let values: usize = filter.values().map(Vec::len).sum();
    if filter.len() > 16 || values > 256 || filter.values().any(Vec::is_empty) {
        return Err(Fault::bad_request("a filter has at most 16 keys and 256 values, and at least one value for each key"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            collection: "default".into(),
            top_k: 3,
            max_tokens: 100,
            max_tokens_cap: 1000,
            deadline: Duration::from_secs(60),
            max_question_bytes: 50,
            max_payload_bytes: 1000,
            queue: 8,
            workers: 1,
            documents: false,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, seed: 7 },
        }
    }

    fn ask(question: &str) -> Ask {
        Ask { question: question.into(), ..Ask::default() }
    }

    fn refused(ask: &Ask) -> Fault {
        limits().question(ask, Instant::now()).expect_err("refused")
    }

    #[test]
    fn open_fields_get_the_defaults() {
        let now = Instant::now();
        let question = limits().question(&ask("  Why? "), now).expect("taken");
        assert_eq!((question.text.as_str(), question.collection.as_str()), ("Why?", "default"));
        assert_eq!((question.top_k, question.max_tokens, question.mode), (3, 100, Mode::Answer));
        assert_eq!((question.asked, question.allowed), (now, Duration::from_secs(60)));
        assert_eq!(question.sampling.seed, 7);
    }

    #[test]
    fn given_fields_go_before_them() {
        let given = Ask {
            top_k: Some(MAX_TOP_K),
            max_tokens: Some(1000),
            deadline_ms: Some(86_400_000),
            temperature: Some(0.5),
            collection: Some("kitchen".into()),
            mode: Some(Mode::Evidence),
            ..ask("q")
        };
        let question = limits().question(&given, Instant::now()).expect("taken");
        assert_eq!((question.top_k, question.max_tokens, question.mode), (MAX_TOP_K, 1000, Mode::Evidence));
        assert_eq!((question.allowed, question.collection.as_str()), (Duration::from_secs(86_400), "kitchen"));
        assert!((question.sampling.temperature - 0.5).abs() < f32::EPSILON);
    }

    #[test]
    fn questions_have_a_length() {
        assert_eq!(refused(&ask(" \n")).code, ErrorCode::BadRequest);
        let long = refused(&ask(&"x".repeat(51)));
        assert_eq!(long.code, ErrorCode::TooLarge);
        assert!(long.message.contains("51") && long.message.contains("50"), "{long}");
        assert!(limits().question(&ask(&"x".repeat(50)), Instant::now()).is_ok());
    }

    #[test]
    fn each_number_has_bounds() {
        for (bad, word) in [
            (Ask { top_k: Some(0), ..ask("q") }, "top_k"),
            (Ask { top_k: Some(MAX_TOP_K + 1), ..ask("q") }, "top_k"),
            (Ask { max_tokens: Some(0), ..ask("q") }, "max_tokens"),
            (Ask { max_tokens: Some(1001), ..ask("q") }, "max_tokens"),
            (Ask { deadline_ms: Some(0), ..ask("q") }, "deadline_ms"),
            (Ask { deadline_ms: Some(86_400_001), ..ask("q") }, "deadline_ms"),
            (Ask { temperature: Some(5.1), ..ask("q") }, "temperature"),
            (Ask { temperature: Some(f32::NAN), ..ask("q") }, "temperature"),
            (Ask { top_p: Some(-0.1), ..ask("q") }, "top_p"),
            (Ask { min_p: Some(1.1), ..ask("q") }, "min_p"),
            (Ask { collection: Some("Kitchen".into()), ..ask("q") }, "collection"),
        ] {
            let fault = refused(&bad);
            assert!(fault.code == ErrorCode::BadRequest && fault.message.contains(word), "{word}: {fault}");
        }
    }

    #[test]
    fn filters_have_bounds() {
        let filter = |keys: usize, values: usize| Ask {
            filter: (0..keys).map(|key| (key.to_string(), vec![String::new(); values])).collect(),
            ..ask("q")
        };
        for bad in [filter(17, 1), filter(2, 129), filter(1, 0)] {
            assert!(refused(&bad).message.contains("filter"));
        }
        assert!(limits().question(&filter(16, 16), Instant::now()).is_ok());
    }
}
