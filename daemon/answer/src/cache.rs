//! A cache of answers to the same question over the same library. Off unless configured.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use wire::{Answer, Question};

/// Answers in memory, for one model and one configuration: a restart empties the cache.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: HashMap<String, Kept>,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    /// The collection's version when the question was answered.
    version: u64,
    used: u64,
    answer: Answer,
}

impl Cache {
    /// Keeps at most `limit` answers.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    /// The cache key of a question; `None` if its answer may not be cached: it is random, or depends on the question before.
    pub(super) fn key(&self, question: &Question) -> Option<String> {
        if self.limit == 0 || question.sampling.temperature > 0.0 || question.session.is_some() {
            return None;
        }
        let Question { collection, filter, without, top_k, max_tokens, mode, .. } = question;
        let parts = (collection, filter, without, top_k, max_tokens, mode);
        // Questions are equal if they differ only in spacing, final punctuation, and initial capitals of words. `-a` and `-A`
        // are different, as are `IT` and `it`.
        let words = question.text.split_whitespace().map(plain).collect::<Vec<_>>().join(" ");
        let words = words.trim_end_matches(['?', '.', '!', ' ']);
        Some(format!("{parts:?} {words}"))
    }

    /// The cached answer to a question over this version of its collection.
    pub(super) fn find(&self, key: &str, version: u64) -> Option<Answer> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.uses += 1;
        let now = inner.uses;
        if inner.kept.get(key).is_some_and(|kept| kept.version != version) {
            inner.kept.remove(key);
        }
        let kept = inner.kept.get_mut(key)?;
        kept.used = now;
        Some(kept.answer.clone())
    }

    /// Caches an answer. A full cache drops the answer that was unused for longest.
    pub(super) fn keep(&self, key: String, version: u64, answer: &Answer) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.uses += 1;
        let used = inner.uses;
        if inner.kept.len() >= self.limit
            && !inner.kept.contains_key(&key)
            && let Some(oldest) = inner.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone())
        {
            inner.kept.remove(&oldest);
        }
        inner.kept.insert(key, Kept { version, used, answer: answer.clone() });
    }
}

/// A word of two or more letters without its initial capital; any other word unchanged.
fn plain(word: &str) -> Cow<'_, str> {
    let mut letters = word.trim_end_matches(['?', '.', '!', ',']).chars();
    let capital = letters.next().is_some_and(char::is_uppercase);
    let rest = letters.as_str();
    if capital && !rest.is_empty() && rest.chars().all(char::is_lowercase) { word.to_lowercase().into() } else { word.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};
    use wire::Mode;
    use wire::Sampling;

    fn question(text: &str, temperature: f32) -> Question {
        Question {
            text: text.into(),
            client: String::new(),
            session: None,
            collection: "default".into(),
            filter: std::collections::BTreeMap::default(),
            without: std::collections::BTreeSet::default(),
            top_k: 3,
            max_tokens: 64,
            mode: Mode::Answer,
            sampling: Sampling { temperature, top_p: 1.0, min_p: 0.0, seed: 0 },
            shape: wire::Shape::default(),
            asked: Instant::now(),
            allowed: Duration::from_secs(1),
        }
    }

    fn answer(text: &str) -> Answer {
        Answer { answer: text.into(), found: true, confidence: 1.0, finish: "stop".into(), ..Answer::default() }
    }

    #[test]
    fn a_question_is_found_until_the_library_changes() {
        let cache = Cache::new(2);
        let key = |text: &str| cache.key(&question(text, 0.0)).expect("one");
        assert_eq!(key("What is  F3? "), key("what is F3"));
        assert_eq!(key("How Is The Pump cleaned?"), key("how is the pump cleaned"));
        for (a, b) in [("What does -a do?", "What does -A do?"), ("What is IT?", "What is it?"), ("What is X?", "What is x?")] {
            assert_ne!(key(a), key(b));
        }
        assert_ne!(key("What is F3?"), key("What is F4?"));
        let other = Question { top_k: 1, ..question("What is F3?", 0.0) };
        assert_ne!(key("What is F3?"), cache.key(&other).expect("one"));
        assert!(cache.key(&question("What is F3?", 0.7)).is_none() && Cache::new(0).key(&question("a", 0.0)).is_none());

        cache.keep(key("a"), 5, &answer("A"));
        assert_eq!(cache.find(&key("a?"), 5).expect("kept").answer, "A");
        assert!(cache.find(&key("a"), 6).is_none() && cache.find(&key("a"), 5).is_none(), "of another library");
        // The answer unused for longest is dropped.
        for text in ["a", "b", "a", "c"] {
            if cache.find(&key(text), 7).is_none() {
                cache.keep(key(text), 7, &answer(text));
            }
        }
        let there: Vec<&str> = ["a", "b", "c"].into_iter().filter(|text| cache.find(&key(text), 7).is_some()).collect();
        assert_eq!(there, ["a", "c"]);
    }
}
