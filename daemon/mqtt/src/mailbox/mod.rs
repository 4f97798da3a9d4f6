//! Inbox and outbox: acknowledged questions without an answer, and answers that the broker has not acknowledged.
//!
//! Both are in one append-only file beside the database, and in memory (a few hundred entries at most). They are not in sled.
//! sled holds writes back until a flush: a kill would lose them, or every question would cost more syncs. And a database that
//! does not open must not take the questions with it.
//!
//! A question costs one synced write if it is answered at once, and two if it takes longer. [`Mailbox::receive`] and
//! [`Mailbox::finish`] append; [`Mailbox::on_disk`] waits for one fdatasync that covers all earlier appends. Nobody waits for the
//! other lines of the file.

// Public for the fuzzer.
#[doc(hidden)]
pub mod journal;

use journal::Journal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// File name in the data directory.
const FILE: &str = "mail";
/// The file is compacted if it is longer than this and live entries fill less than half of it.
const COMPACT_ABOVE: u64 = 1 << 20;
/// After this many crashes at work on a question, the daemon gives the question up.
pub const MOST_CRASHES: u32 = 2;
/// How long an answered question is remembered, so that its repetition is not answered again.
const ANSWERED_FOR: Duration = Duration::from_secs(600);
/// After the clock was set back: how far in the future an answer's time may lie before the answer is forgotten.
const MOST_AHEAD: Duration = Duration::from_secs(86_400);
/// Most answered questions remembered.
const MOST_ANSWERED: usize = 1024;

/// Number of an entry; never reused while the file lives.
pub type Seq = u64;

/// A digest of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark([u8; 16]);

impl Mark {
    /// Digest of some fields, in their order.
    pub fn of(fields: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for field in fields {
            digest.update((field.len() as u64).to_le_bytes());
            digest.update(field);
        }
        let mut mark = [0; 16];
        mark.copy_from_slice(&digest.finalize()[..16]);
        Self(mark)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A question as it came, to be parsed again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Digest of reply topic and id.
    pub name: Mark,
    /// Digest of the whole message.
    pub content: Mark,
    /// The id it was given.
    pub id: String,
    /// The topic it came on.
    pub topic: String,
    /// Its payload.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Its response topic.
    pub response_topic: Option<String>,
    /// Its correlation data.
    pub correlation_data: Option<serde_bytes::ByteBuf>,
    /// Its content type.
    pub content_type: Option<String>,
    /// Time of arrival, in milliseconds since 1970.
    pub received_ms: u64,
    /// Time after which the answer is useless, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// A final reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Final {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// The question's correlation data.
    pub correlation_data: Option<serde_bytes::ByteBuf>,
    /// Its content type.
    pub content_type: String,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Received(Seq, Received),
    /// Work on the question has begun.
    Began(Seq),
    /// The question was laid aside in good order, to be begun again.
    Paused(Seq),
    Finished(Seq, Final),
    /// The broker has the answer, since this time (milliseconds since 1970).
    Delivered(Seq, u64),
    /// An answered question: name, content, and the time of its answer.
    #[serde(rename = "Known")]
    Answered(Mark, Mark, u64),
    /// The next free number.
    Next(Seq),
    /// The secret in our echoes.
    Secret([u8; 16]),
}

/// A question without an answer.
#[derive(Debug, Clone)]
pub struct Unanswered {
    /// Its number.
    pub seq: Seq,
    /// How often the daemon ended during work on this question.
    pub crashes: u32,
    /// The question.
    pub received: Received,
}

/// Open questions and undelivered answers of earlier runs.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Questions without an answer, in their order.
    pub unanswered: Vec<Unanswered>,
    /// Undelivered answers, in their order.
    pub undelivered: Vec<Seq>,
    /// Unreadable places in the file.
    pub damaged: usize,
}

/// A question's relation to earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The question is new.
    New,
    /// The question is open, its answer is on the way, or it was answered a moment ago.
    Repeated,
}

#[derive(Debug)]
struct Entry {
    name: Mark,
    content: Mark,
    received: Option<Received>,
    crashes: u32,
    answer: Option<Final>,
}

#[derive(Debug, Clone, Copy)]
struct Answered {
    content: Mark,
    at_ms: u64,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    entries: BTreeMap<Seq, Entry>,
    answered: HashMap<Mark, Answered>,
    secret: [u8; 16],
    next: Seq,
    /// Lines appended in this run.
    appended: u64,
    /// Lines that somebody waits for, counted in this run.
    wanted: u64,
    /// Handle for syncing; replaced after a rewrite.
    handle: File,
    /// While the file cannot be written: the number of lines appended by then, and the reason.
    problem: Option<(u64, String)>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Somebody waits for more lines, or the mailbox is closed.
    asked: Condvar,
    synced: watch::Sender<Synced>,
}

/// How far the file is synced, in lines of this run.
#[derive(Debug, Clone, Copy, Default)]
struct Synced {
    upto: u64,
    /// Lines that the disk refused.
    refused: u64,
}

/// Inbox and outbox; cheap to clone.
#[derive(Debug, Clone)]
pub struct Mailbox {
    shared: Arc<Shared>,
    _closer: Arc<Closer>,
}

/// Stops the syncing thread together with the last handle.
#[derive(Debug)]
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.asked.notify_all();
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Mailbox {
    /// Opens or creates the file in `dir`, and returns the open work of earlier runs. The caller holds the directory's lock.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(dir: &Path) -> io::Result<(Self, Backlog)> {
        let path = dir.join(FILE);
        let (journal, loaded) = Journal::open(&path)?;
        let handle = journal.handle()?;
        let (synced, _) = watch::channel(Synced::default());
        let state = State {
            journal,
            entries: BTreeMap::new(),
            answered: HashMap::new(),
            secret: std::array::from_fn(|_| fastrand::u8(..)),
            next: 1,
            appended: 0,
            wanted: 0,
            handle,
            problem: None,
            closed: false,
        };
        let shared = Arc::new(Shared { path, state: Mutex::new(state), asked: Condvar::new(), synced });
        let backlog = {
            let mut state = shared.state();
            let mut unreadable = 0;
            for body in &loaded.bodies {
                match ciborium::from_reader(body.as_slice()) {
                    Ok(line) => state.take(line),
                    Err(_) => unreadable += 1,
                }
            }
            let now = now_ms();
            state.forget(now);
            state.compact()?;
            state.backlog(loaded.damaged + unreadable)
        };
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("mail".into()).spawn(move || of_thread.sync_when_asked())?;
        Ok((Self { _closer: Arc::new(Closer(Arc::clone(&shared))), shared }, backlog))
    }

    /// Compares a question with earlier ones. `redelivered`: the broker says that it may have sent the message before. Only then
    /// is a question without an id recognised by its content.
    pub fn standing(&self, name: Mark, content: Mark, redelivered: bool) -> Standing {
        let state = self.shared.state();
        let here = state.entries.values().any(|entry| entry.content == content && (entry.name == name || redelivered));
        // A client that asks again later wants a new answer. A redelivery never does.
        let window = if redelivered { ANSWERED_FOR } else { ANSWERED_FOR / 20 };
        let now = now_ms();
        // The clock may jump back (boards without an RTC before NTP). Redelivered messages are still recognised. A client that
        // asks again is answered, not ignored until the clock catches up.
        let age = |known: &Answered| if redelivered { now.saturating_sub(known.at_ms) } else { now.abs_diff(known.at_ms) };
        let recent = |known: &Answered| known.content == content && age(known) < window.as_millis() as u64;
        let known = state.answered.get(&name).is_some_and(recent) || (redelivered && state.answered.values().any(recent));
        if here || known { Standing::Repeated } else { Standing::New }
    }

    /// Stores a question.
    ///
    /// # Errors
    /// The file cannot be written; nothing has changed.
    pub fn receive(&self, received: Received) -> io::Result<Seq> {
        let mut state = self.shared.state();
        let seq = state.next;
        let line = Line::Received(seq, received);
        state.append(&line)?;
        state.take(line);
        Ok(seq)
    }

    /// Records that work on a question begins.
    pub fn begin(&self, seq: Seq) {
        self.note(Line::Began(seq));
    }

    /// Records that a begun question is laid aside until the next start.
    pub fn pause(&self, seq: Seq) {
        self.note(Line::Paused(seq));
    }

    /// Replaces a question by its final reply.
    ///
    /// # Errors
    /// The file cannot be written; the question is still stored.
    pub fn finish(&self, seq: Seq, answer: Final) -> io::Result<()> {
        let mut state = self.shared.state();
        let line = Line::Finished(seq, answer);
        state.append(&line)?;
        state.take(line);
        Ok(())
    }

    /// A final reply that is not delivered yet.
    pub fn answer(&self, seq: Seq) -> Option<Final> {
        self.shared.state().entries.get(&seq)?.answer.clone()
    }

    /// A number outside the range of entries, for an echo that belongs to no reply.
    pub fn free_number() -> Seq {
        fastrand::u64(1 << 63..)
    }

    /// The payload of an echo. It contains a digest with our secret, so nobody else can write it.
    pub fn echo(&self, seq: Seq) -> String {
        let secret = self.shared.state().secret;
        let Mark(digest) = Mark::of(&[&secret, &seq.to_le_bytes()]);
        digest.iter().fold(format!("{seq}-"), |text, byte| text + &format!("{byte:02x}"))
    }

    /// The number in an echo; `None` if the echo is not ours.
    pub fn echo_number(&self, echo: &[u8]) -> Option<Seq> {
        let text = std::str::from_utf8(echo).ok()?;
        let seq = text.split_once('-')?.0.parse().ok()?;
        (self.echo(seq) == text).then_some(seq)
    }

    /// Removes a final reply that the broker has acknowledged.
    pub fn delivered(&self, seq: Seq) {
        let mut state = self.shared.state();
        if state.entries.get(&seq).is_none_or(|entry| entry.answer.is_none()) {
            return;
        }
        let now = now_ms();
        let written = state.append(&Line::Delivered(seq, now));
        state.deliver(seq, now);
        if written.is_ok()
            && let Err(error) = state.compact_if_worth_it()
        {
            state.has_failed(&error);
        }
    }

    /// The reason why questions are not stored at present, if they are not.
    pub fn problem(&self) -> Option<String> {
        self.shared.state().problem.as_ref().map(|(_, problem)| problem.clone())
    }

    /// Waits until all earlier appends are on disk. For `patience`, it hopes for a sync by another caller.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn on_disk(&self, patience: Duration) -> io::Result<()> {
        let (upto, mut synced) = {
            let state = self.shared.state();
            (state.appended, self.shared.synced.subscribe())
        };
        let mut there = async || match synced.wait_for(|synced| synced.upto.max(synced.refused) >= upto).await.as_deref() {
            Ok(synced) if synced.upto >= upto => Ok(()),
            Ok(_) => Err(io::Error::other(format!("{} cannot be synced; see the log", self.shared.path.display()))),
            Err(_) => Err(io::Error::other("the syncing thread has ended")),
        };
        if let Ok(done) = tokio::time::timeout(patience, there()).await {
            return done;
        }
        {
            let mut state = self.shared.state();
            state.wanted = state.wanted.max(upto);
            self.shared.asked.notify_all();
        }
        there().await
    }

    /// Number of questions without an answer, and of answers without an acknowledgement.
    pub fn depth(&self) -> (usize, usize) {
        let state = self.shared.state();
        let unanswered = state.entries.values().filter(|entry| entry.answer.is_none()).count();
        (unanswered, state.entries.len() - unanswered)
    }

    fn note(&self, line: Line) {
        let mut state = self.shared.state();
        if let Err(error) = state.append(&line) {
            log::debug!("{}: {error}", self.shared.path.display());
        }
        state.take(line);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can fail, so a poisoned lock is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_when_asked(&self) {
        let mut state = self.state();
        loop {
            let synced = *self.synced.borrow();
            if state.closed {
                return;
            }
            if state.wanted <= synced.upto.max(synced.refused) {
                state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let upto = state.appended;
            let handle = state.handle.try_clone();
            drop(state);
            let done = handle.and_then(|file| file.sync_data());
            state = self.state();
            // After a failed sync the kernel may mark dirty pages clean. Only a new file is known to be complete.
            match done.or_else(|_| state.compact()) {
                Ok(()) => {
                    state.has_succeeded(upto);
                    self.synced.send_modify(|synced| synced.upto = upto);
                }
                Err(error) => {
                    state.has_failed(&error);
                    self.synced.send_modify(|synced| synced.refused = upto);
                }
            }
        }
    }
}

impl State {
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut body = Vec::new();
        ciborium::into_writer(line, &mut body).map_err(io::Error::other)?;
        let written = self.journal.append(&body);
        match &written {
            Ok(()) => self.appended += 1,
            Err(error) => self.has_failed(error),
        }
        written
    }

    /// Logs once that the file cannot be written.
    fn has_failed(&mut self, error: &io::Error) {
        let problem = format!("the inbox cannot be written: {error}{}", wire::storage_remedy(error));
        if self.problem.is_none() {
            log::error!("{problem}; questions are answered, but a crash would lose them, and answers may be sent twice after it");
        }
        self.problem = Some((self.appended, problem));
    }

    /// Logs the recovery once a line appended later is on disk. A successful append proves nothing: the page cache takes what a
    /// failing card does not.
    fn has_succeeded(&mut self, upto: u64) {
        if self.problem.as_ref().is_some_and(|(appended, _)| upto > *appended) {
            log::info!("the inbox can be written again");
            self.problem = None;
        }
    }

    /// Applies a line to memory.
    fn take(&mut self, line: Line) {
        match line {
            Line::Received(seq, received) => {
                let (name, content) = (received.name, received.content);
                self.next = self.next.max(seq.saturating_add(1));
                self.entries.insert(seq, Entry { name, content, received: Some(received), crashes: 0, answer: None });
            }
            Line::Began(seq) => {
                if let Some(entry) = self.entries.get_mut(&seq) {
                    entry.crashes += 1;
                }
            }
            Line::Paused(seq) => {
                if let Some(entry) = self.entries.get_mut(&seq) {
                    entry.crashes = entry.crashes.saturating_sub(1);
                }
            }
            Line::Finished(seq, answer) => {
                if let Some(entry) = self.entries.get_mut(&seq) {
                    (entry.received, entry.answer) = (None, Some(answer));
                }
            }
            Line::Delivered(seq, at_ms) => self.deliver(seq, at_ms),
            Line::Answered(name, content, at_ms) => drop(self.answered.insert(name, Answered { content, at_ms })),
            Line::Next(seq) => self.next = self.next.max(seq),
            Line::Secret(secret) => self.secret = secret,
        }
    }

    fn deliver(&mut self, seq: Seq, at_ms: u64) {
        if let Some(entry) = self.entries.remove(&seq) {
            self.forget(at_ms);
            self.answered.insert(entry.name, Answered { content: entry.content, at_ms });
        }
    }

    /// Forgets answered questions that nobody will repeat.
    fn forget(&mut self, now: u64) {
        let recent = |known: &Answered| {
            let ahead = Duration::from_millis(known.at_ms.saturating_sub(now));
            now.saturating_sub(known.at_ms) < ANSWERED_FOR.as_millis() as u64 && ahead < MOST_AHEAD
        };
        self.answered.retain(|_, known| recent(known));
        if self.answered.len() >= MOST_ANSWERED {
            let mut times: Vec<u64> = self.answered.values().map(|known| known.at_ms).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.answered.retain(|_, known| known.at_ms > middle);
        }
    }

    fn backlog(&self, damaged: usize) -> Backlog {
        let mut backlog = Backlog { damaged, ..Backlog::default() };
        for (seq, entry) in &self.entries {
            if entry.answer.is_some() {
                backlog.undelivered.push(*seq);
            } else if let Some(received) = &entry.received {
                backlog.unanswered.push(Unanswered { seq: *seq, crashes: entry.crashes, received: received.clone() });
            }
        }
        backlog
    }

    fn compact_if_worth_it(&mut self) -> io::Result<()> {
        let live: usize = self.entries.values().map(Entry::bytes).sum::<usize>() + self.answered.len() * 100;
        if self.journal.length() > COMPACT_ABOVE && (live as u64) < self.journal.length() / 2 { self.compact() } else { Ok(()) }
    }

    /// Rewrites the file with the live entries only.
    fn compact(&mut self) -> io::Result<()> {
        let mut lines = vec![Line::Next(self.next), Line::Secret(self.secret)];
        lines.extend(self.answered.iter().map(|(name, known)| Line::Answered(*name, known.content, known.at_ms)));
        for (seq, entry) in &self.entries {
            let received = entry.received.clone().unwrap_or_else(|| Received::without_text(entry.name, entry.content));
            lines.push(Line::Received(*seq, received));
            lines.extend((0..entry.crashes).map(|_| Line::Began(*seq)));
            lines.extend(entry.answer.clone().map(|answer| Line::Finished(*seq, answer)));
        }
        let encode = |line: &Line| {
            let mut body = Vec::new();
            ciborium::into_writer(line, &mut body).map_err(io::Error::other)?;
            Ok(body)
        };
        let bodies: Vec<Vec<u8>> = lines.iter().map(encode).collect::<io::Result<_>>()?;
        self.journal.rewrite(&bodies)?;
        self.handle = self.journal.handle()?;
        Ok(())
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let received = self.received.as_ref().map_or(0, |received| received.payload.len());
        400 + received + self.answer.as_ref().map_or(0, |answer| answer.payload.len())
    }
}

impl Received {
    /// A stub for a question that has its answer.
    fn without_text(name: Mark, content: Mark) -> Self {
        Self {
            name,
            content,
            id: String::new(),
            topic: String::new(),
            payload: Vec::new(),
            response_topic: None,
            correlation_data: None,
            content_type: None,
            received_ms: 0,
            expires_ms: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(n: u8) -> Received {
        let mark = Mark::of(&[&[n]]);
        Received {
            id: format!("q{n}"),
            payload: vec![n; 10],
            received_ms: 5,
            expires_ms: 9,
            ..Received::without_text(mark, mark)
        }
    }

    fn answer(n: u8) -> Final {
        Final { topic: "answer/x".into(), payload: vec![n; 20], correlation_data: None, content_type: "application/json".into() }
    }

    /// A card that refuses to sync still accepts writes.
    #[tokio::test]
    async fn a_synced_line_ends_the_problem() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
        mailbox.receive(received(1)).expect("written");
        mailbox.shared.state().has_failed(&io::Error::from_raw_os_error(5));
        mailbox.on_disk(Duration::ZERO).await.expect("what was written before");
        assert!(mailbox.problem().expect("it stays").contains("Input/output error"));
        mailbox.receive(received(2)).expect("written");
        assert!(mailbox.problem().is_some());
        mailbox.on_disk(Duration::ZERO).await.expect("synced");
        assert_eq!(mailbox.problem(), None);
    }

    #[tokio::test]
    async fn acknowledged_questions_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mailbox, left) = Mailbox::open(dir.path()).expect("opens");
        assert!(left.unanswered.is_empty() && left.undelivered.is_empty());
        let numbers: Vec<Seq> = (0..4).map(|n| mailbox.receive(received(n)).expect("written")).collect();
        mailbox.begin(numbers[1]);
        mailbox.finish(numbers[2], answer(2)).expect("written");
        mailbox.finish(numbers[3], answer(3)).expect("written");
        let echo = mailbox.echo(numbers[2]);
        assert_eq!(mailbox.echo_number(echo.as_bytes()), Some(numbers[2]));
        for forged in [echo.replacen('-', "0-", 1), format!("{echo}0"), "7".into(), "-".into(), String::new()] {
            assert_eq!(mailbox.echo_number(forged.as_bytes()), None, "{forged}");
        }
        mailbox.on_disk(Duration::ZERO).await.expect("synced");
        mailbox.delivered(numbers[3]);
        assert_eq!(mailbox.depth(), (2, 1));
        drop(mailbox);

        for _ in 0..2 {
            let (mailbox, left) = Mailbox::open(dir.path()).expect("opens");
            let unanswered: Vec<_> = left.unanswered.iter().map(|u| (u.seq, u.crashes, u.received.clone())).collect();
            assert_eq!(unanswered, [(numbers[0], 0, received(0)), (numbers[1], 1, received(1))]);
            assert_eq!(left.undelivered, [numbers[2]]);
            assert_eq!(mailbox.answer(numbers[2]), Some(answer(2)));
            assert_eq!(mailbox.echo(numbers[2]), echo, "it outlives a restart");
            assert_eq!(left.damaged, 0);
            let mark = |n: u8| Mark::of(&[&[n]]);
            for n in 0..4 {
                assert_eq!(mailbox.standing(mark(n), mark(n), false), Standing::Repeated, "{n}");
                assert_eq!(mailbox.standing(mark(90), mark(n), true), Standing::Repeated, "{n}");
                assert_eq!(mailbox.standing(mark(n), mark(91), true), Standing::New, "{n}");
            }
            assert_eq!(mailbox.standing(mark(9), mark(9), true), Standing::New);
        }
        let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
        assert!(mailbox.receive(received(7)).expect("written") > numbers[3], "a number is not given again");
    }

    #[test]
    fn a_clock_that_was_set_hides_no_question() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = |n: u8| Mark::of(&[&[n]]);
        let hour = 3_600_000;
        let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
        for (n, at) in [(1, now_ms() + hour), (2, now_ms() - hour), (3, now_ms() + 48 * hour)] {
            mailbox.shared.state().take(Line::Answered(mark(n), mark(n), at));
            assert_eq!(mailbox.standing(mark(n), mark(n), false), Standing::New, "a client asks again: {n}");
        }
        assert_eq!(
            mailbox.standing(mark(1), mark(1), true),
            Standing::Repeated,
            "the broker sends again what was answered later"
        );
        assert_eq!(mailbox.standing(mark(2), mark(2), true), Standing::New);
        mailbox.shared.state().forget(now_ms());
        assert_eq!(mailbox.standing(mark(3), mark(3), true), Standing::New, "of no clock of ours");
    }

    #[test]
    fn a_restart_makes_no_answer_younger() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = Mark::of(&[&[1]]);
        {
            let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
            let seq = mailbox.receive(received(1)).expect("written");
            mailbox.finish(seq, answer(1)).expect("written");
            mailbox.shared.state().append(&Line::Delivered(seq, now_ms() - 60_000)).expect("written");
        }
        let (mailbox, left) = Mailbox::open(dir.path()).expect("opens");
        assert!(left.undelivered.is_empty());
        assert_eq!(mailbox.standing(mark, mark, false), Standing::New, "answered a minute ago, asked again");
        assert_eq!(mailbox.standing(mark, mark, true), Standing::Repeated, "sent again by the broker");
    }

    #[test]
    fn crashes_are_counted_and_pauses_are_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let seq = {
            let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
            mailbox.receive(received(1)).expect("written")
        };
        for crashes in [0, 1, 1, 2] {
            let (mailbox, left) = Mailbox::open(dir.path()).expect("opens");
            assert_eq!(left.unanswered[0].crashes, crashes);
            mailbox.begin(seq);
            if crashes == 1 && left.unanswered[0].crashes == 1 && !dir.path().join("paused").exists() {
                mailbox.pause(seq);
                std::fs::write(dir.path().join("paused"), "").expect("written");
            }
        }
    }

    #[test]
    fn the_file_does_not_grow_with_the_questions() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
        for n in 0..20_000_u32 {
            let mark = Mark::of(&[&n.to_le_bytes()]);
            let seq = mailbox.receive(Received { payload: vec![0; 300], ..Received::without_text(mark, mark) }).expect("written");
            mailbox.begin(seq);
            mailbox.finish(seq, answer(0)).expect("written");
            mailbox.delivered(seq);
        }
        let length = std::fs::metadata(dir.path().join(FILE)).expect("a file").len();
        assert!(length < 2 << 20, "{length} bytes");
        assert!(mailbox.shared.state().answered.len() <= MOST_ANSWERED);
    }

    #[tokio::test]
    async fn one_sync_stands_for_many() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mailbox, _) = Mailbox::open(dir.path()).expect("opens");
        let waiting: Vec<_> = (0..50)
            .map(|n| {
                mailbox.receive(received(n)).expect("written");
                let mailbox = mailbox.clone();
                tokio::spawn(async move { mailbox.on_disk(Duration::from_millis(20)).await })
            })
            .collect();
        for one in waiting {
            one.await.expect("no panic").expect("synced");
        }
        assert_eq!(mailbox.shared.synced.borrow().upto, 50);
    }
}
