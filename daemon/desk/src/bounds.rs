//! The bounds of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use wire::names::{COLLECTION_RULE, is_collection};
use wire::{Ask, ErrorCode, Fault, MAX_SESSION_BYTES, MAX_TOP_K, MIN_MAX_CHARS, Mode, Question, ReplyForm, Sampling, Shape};

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
    /// Checks the bounds of a client's question and fills in the open fields.
    ///
    /// # Errors
    /// The broken bound.
    pub fn question(&self, ask: &Ask, client: &str, asked: Instant) -> Result<Question, Fault> {
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
        let session = ask.session.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = session.filter(|name| name.len() > MAX_SESSION_BYTES) {
            return bad(format!("session has {} bytes; at most {MAX_SESSION_BYTES} are allowed", name.len()));
        }
        if let Some(most) = ask.max_chars.filter(|most| *most < MIN_MAX_CHARS) {
            return bad(format!("max_chars is {most}; it must be at least {MIN_MAX_CHARS}"));
        }
        // A text has no citations, so its marks would name nothing.
        let citations = if ask.reply == Some(ReplyForm::Text) { Some(0) } else { ask.citations };
        Ok(Question {
            text: text.to_owned(),
            client: client.to_owned(),
            session: session.map(str::to_owned),
            collection: self.collection(ask.collection.as_deref())?,
            filter: ask.filter.clone(),
            without: BTreeSet::new(),
            top_k,
            max_tokens,
            mode: ask.mode.unwrap_or(Mode::Answer),
            sampling,
            shape: Shape { max_chars: ask.max_chars, citations },
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
        limits().question(ask, "c", Instant::now()).expect_err("refused")
    }

    #[test]
    fn open_fields_get_the_defaults() {
        let now = Instant::now();
        let question = limits().question(&ask("  Why? "), "c", now).expect("taken");
        assert_eq!((question.text.as_str(), question.collection.as_str()), ("Why?", "default"));
        assert_eq!((question.top_k, question.max_tokens, question.mode), (3, 100, Mode::Answer));
        assert_eq!((question.asked, question.allowed), (now, Duration::from_secs(60)));
        assert_eq!(question.sampling.seed, 7);
        assert_eq!((question.client.as_str(), question.session, question.shape), ("c", None, Shape::default()));
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
        let question = limits().question(&given, "c", Instant::now()).expect("taken");
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
        assert!(limits().question(&ask(&"x".repeat(50)), "c", Instant::now()).is_ok());
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
            (Ask { session: Some("x".repeat(MAX_SESSION_BYTES + 1)), ..ask("q") }, "session"),
            (Ask { max_chars: Some(MIN_MAX_CHARS - 1), ..ask("q") }, "max_chars"),
        ] {
            let fault = refused(&bad);
            assert!(fault.code == ErrorCode::BadRequest && fault.message.contains(word), "{word}: {fault}");
        }
    }

    #[test]
    fn a_reply_gets_its_shape() {
        let shape = |ask: Ask| limits().question(&ask, "c", Instant::now()).expect("taken").shape;
        let small = Ask { max_chars: Some(MIN_MAX_CHARS), citations: Some(2), ..ask("q") };
        assert_eq!(shape(small.clone()), Shape { max_chars: Some(MIN_MAX_CHARS), citations: Some(2) });
        let text = Ask { reply: Some(ReplyForm::Text), ..small };
        assert_eq!(shape(text).citations, Some(0), "a text has no citations");
    }

    #[test]
    fn a_session_without_a_name_is_none() {
        let session = |name: &str| {
            let ask = Ask { session: Some(name.into()), ..ask("q") };
            limits().question(&ask, "c", Instant::now()).expect("taken").session
        };
        assert_eq!(session(""), None);
        let longest = "x".repeat(MAX_SESSION_BYTES);
        assert_eq!(session(&longest), Some(longest));
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
        assert!(limits().question(&filter(16, 16), "c", Instant::now()).is_ok());
    }
}
