//! Conversations: the last turn of each session, in memory, so that a follow-up question can be understood.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Question, cut};

/// Most sessions kept.
const MOST_SESSIONS: usize = 256;

/// A session without a turn for this long is over.
const IDLE: Duration = Duration::from_secs(600);

/// Most characters kept of a question and of an answer. With [`MOST_SESSIONS`] it bounds the memory, at 4 MB for four-byte characters.
const MAX_TURN_CHARS: usize = 2000;

/// The key of a session: client, collection and name.
///
/// The client is part of it, so that two clients with the same name for their sessions never read each other's words. Over MQTT it is
/// the reply topic, the only thing that tells clients apart. Clients that read their replies from `answer/<id>` count as one: they
/// share these topics, and so their sessions. The collection is part of it, so that an answer quotes no document into another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    client: String,
    collection: String,
    name: String,
}

impl SessionKey {
    /// The session of a question, if it names one.
    pub fn of(question: &Question) -> Option<Self> {
        let name = question.session.clone()?;
        Some(Self { client: question.client.clone(), collection: question.collection.clone(), name })
    }
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The question, complete in itself.
    pub question: String,
    /// The answer's text.
    pub answer: String,
}

/// The last turn of each session. A restart forgets all.
#[derive(Debug)]
pub struct Sessions {
    most: usize,
    idle: Duration,
    kept: Mutex<HashMap<SessionKey, Kept>>,
}

#[derive(Debug)]
struct Kept {
    at: Instant,
    turn: Turn,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::new(MOST_SESSIONS, IDLE)
    }
}

impl Sessions {
    /// Keeps at most `most` sessions, each until it has been `idle` for so long.
    pub fn new(most: usize, idle: Duration) -> Self {
        Self { most, idle, kept: Mutex::default() }
    }

    /// The last turn of a session that is not over at `now`.
    pub fn last(&self, key: &SessionKey, now: Instant) -> Option<Turn> {
        self.kept().get(key).filter(|kept| !self.is_over(kept, now)).map(|kept| kept.turn.clone())
    }

    /// Keeps a session's last turn, which ended at `now`. A full memory forgets the session with the oldest turn.
    pub fn keep(&self, key: SessionKey, mut turn: Turn, now: Instant) {
        cut(&mut turn.question, MAX_TURN_CHARS);
        cut(&mut turn.answer, MAX_TURN_CHARS);
        let mut kept = self.kept();
        kept.retain(|other, kept| *other != key && !self.is_over(kept, now));
        while kept.len() >= self.most.max(1) {
            let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.at).map(|(key, _)| key.clone()) else { break };
            kept.remove(&oldest);
        }
        kept.insert(key, Kept { at: now, turn });
    }

    fn is_over(&self, kept: &Kept, now: Instant) -> bool {
        now.saturating_duration_since(kept.at) >= self.idle
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<SessionKey, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use wire::{Mode, Sampling, Shape};

    fn key(client: &str, collection: &str, name: &str) -> SessionKey {
        SessionKey { client: client.into(), collection: collection.into(), name: name.into() }
    }

    fn turn(text: &str) -> Turn {
        Turn { question: format!("{text}?"), answer: format!("{text}.") }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_question_has_the_session_that_it_names() {
        let question = |session: Option<&str>| Question {
            text: "why".into(),
            client: "reply/a".into(),
            session: session.map(str::to_owned),
            collection: "default".into(),
            filter: BTreeMap::default(),
            without: std::collections::BTreeSet::default(),
            top_k: 3,
            max_tokens: 64,
            mode: Mode::Answer,
            sampling: Sampling { temperature: 0.0, top_p: 1.0, min_p: 0.0, seed: 0 },
            shape: Shape::default(),
            asked: Instant::now(),
            allowed: MINUTE,
        };
        assert_eq!(SessionKey::of(&question(None)), None);
        assert_eq!(SessionKey::of(&question(Some("s"))), Some(key("reply/a", "default", "s")));
    }

    #[test]
    fn a_session_is_its_clients_own() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        sessions.keep(key("reply/a", "default", "s"), turn("a"), now);
        assert_eq!(sessions.last(&key("reply/a", "default", "s"), now), Some(turn("a")));
        for other in [
            key("reply/b", "default", "s"),
            key("", "default", "s"),
            key("reply/a", "kitchen", "s"),
            key("reply/a", "default", "t"),
        ] {
            assert_eq!(sessions.last(&other, now), None, "{other:?}");
        }
    }

    #[test]
    fn the_last_turn_counts_until_the_session_is_idle() {
        let (sessions, begin) = (Sessions::new(2, 10 * MINUTE), Instant::now());
        let session = key("a", "default", "s");
        sessions.keep(session.clone(), turn("first"), begin);
        sessions.keep(session.clone(), turn("second"), begin + 9 * MINUTE);
        assert_eq!(sessions.last(&session, begin + 18 * MINUTE), Some(turn("second")), "each turn begins the time anew");
        assert_eq!(sessions.last(&session, begin + 19 * MINUTE), None);
        assert_eq!(sessions.last(&session, begin), Some(turn("second")), "a question may be older than the turn");
    }

    #[test]
    fn the_oldest_session_makes_room() {
        let (sessions, begin) = (Sessions::new(2, 10 * MINUTE), Instant::now());
        let name = |name: &str| key("a", "default", name);
        sessions.keep(name("1"), turn("1"), begin);
        sessions.keep(name("2"), turn("2"), begin + MINUTE);
        sessions.keep(name("1"), turn("1 again"), begin + 2 * MINUTE);
        sessions.keep(name("3"), turn("3"), begin + 3 * MINUTE);
        let now = begin + 4 * MINUTE;
        let there: Vec<_> = ["1", "2", "3"].into_iter().filter(|text| sessions.last(&name(text), now).is_some()).collect();
        assert_eq!(there, ["1", "3"]);
        sessions.keep(name("4"), turn("4"), begin + 20 * MINUTE);
        assert_eq!(sessions.kept().len(), 1, "sessions that are over go first");
    }

    #[test]
    fn a_turn_is_bounded() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let session = key("a", "default", "s");
        sessions.keep(session.clone(), turn(&"漢".repeat(3 * MAX_TURN_CHARS)), now);
        let kept = sessions.last(&session, now).expect("kept");
        assert_eq!((kept.question.chars().count(), kept.answer.chars().count()), (MAX_TURN_CHARS, MAX_TURN_CHARS));
    }
}
