//! The life of a question as a state machine: no IO, no clock, no transport.
//!
//! ```text
//! Asked -> Admitted -> Entered -> waiting -> Start -> at work -> Worked -> Reply -> Done
//!    |                               |                  |
//!  Refused, Repeated             End (cancelled,     LayAside (the daemon stops; a durable question
//!                                 late, stopping)     is answered after the next start)
//! ```
//!
//! The shell (`crate::Desk`) feeds the inputs and carries out the effects. Each input brings its time.

use crate::queue::Queue;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use wire::{ErrorCode, Fault, Priority};

/// A question's number at this desk; never reused.
pub type Slot = u64;

/// The name of a question: two questions with the same ticket are one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The client whose share of the queue the question takes: a reply topic, a session, an address.
    pub client: String,
    /// The id of the request.
    pub id: String,
}

/// A question that asks for a place.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The client and the id.
    pub ticket: Ticket,
    /// Its text.
    pub text: String,
    /// Digest of the request as sent. It detects a redelivered request that has no id.
    pub content: Vec<u8>,
    /// The transport says that it may have delivered the request before.
    pub redelivered: bool,
    /// Its priority in the queue.
    pub priority: Priority,
    /// Time allowed from the question's arrival.
    pub allowed: Duration,
    /// The end of that time.
    pub deadline: Instant,
    /// The daemon died while it worked on this question. Suspects run one at a time, because only one of them was to blame.
    pub suspect: bool,
}

/// The end of the work on a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worked {
    /// The question has an answer.
    Answered,
    /// The question was cancelled.
    Cancelled,
    /// The question failed for another reason.
    Failed,
}

/// Inputs.
#[derive(Debug)]
pub enum Input {
    /// A client asks for a place for its question.
    Asked(Asked),
    /// A question of an earlier run. It was acknowledged then, so it gets a place even in a full queue.
    Resumed(Asked),
    /// The door of an admitted question is ready. `durable`: the question survives the process.
    Entered(Slot, bool),
    /// The door of an admitted question gave up.
    Withdrawn(Slot),
    /// A client cancels its questions with this id.
    Cancel(String),
    /// A client has gone away; nobody waits for this answer.
    Gone(Slot),
    /// A question at work waits for the library. It goes on without a worker, which costs nothing until it has found something.
    Waits(Slot),
    /// The work on a question has ended.
    Worked(Slot, Worked),
    /// The door has stored the final reply of a question.
    Done(Slot),
    /// The worker of a question is free again, after this time.
    Freed(Slot, Duration),
    /// Time has passed.
    Tick,
    /// The daemon stops: it takes no more questions.
    Drain,
    /// The grace period for questions at work is over.
    GraceOver,
}

/// Effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The question has a place, and waits for [`Input::Entered`].
    Admitted(Slot),
    /// The desk already has this question.
    Repeated,
    /// The question is refused.
    Refused(Fault),
    /// Begin the work.
    Start(Slot),
    /// End the work soon.
    Stop(Slot),
    /// Send the answer, or the error of the work.
    Reply(Slot),
    /// End a question with an error.
    End(Slot, Fault),
    /// Leave a durable question to the next start.
    LayAside(Slot),
    /// Send [`Input::Tick`] at this time; `None`: no question waits.
    WakeAt(Option<Instant>),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Repetitions of questions.
    pub repeated: u64,
    /// Questions refused because the queue was full.
    pub refused: u64,
    /// Questions that expired while they waited.
    pub expired: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The door is not ready yet.
    Admitted,
    Waiting,
    AtWork,
    /// The final reply is on the way.
    Ending,
}

#[derive(Debug)]
struct Entry {
    asked: Asked,
    stage: Stage,
    durable: bool,
    /// Cancelled before the door was ready.
    cancelled: bool,
}

/// The questions at the desk.
#[derive(Debug)]
pub struct Lifecycle {
    entries: BTreeMap<Slot, Entry>,
    names: HashMap<Ticket, Slot>,
    waiting: Queue<Slot>,
    next: Slot,
    workers: usize,
    /// Busy workers, by slot; `true` marks a suspect.
    busy: BTreeMap<Slot, bool>,
    draining: bool,
    /// Moving mean over some ten questions.
    mean: Duration,
    wake: Option<Instant>,
    counts: Counts,
}

impl Lifecycle {
    /// A desk with this many workers and a queue of at most `most` questions.
    pub fn new(workers: usize, most: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            names: HashMap::new(),
            waiting: Queue::new(most),
            next: 1,
            workers: workers.max(1),
            busy: BTreeMap::new(),
            draining: false,
            mean: Duration::from_secs(1),
            wake: None,
            counts: Counts::default(),
        }
    }

    /// Limits the queue to `most` questions; questions that already wait stay.
    pub fn set_queue(&mut self, most: usize) {
        self.waiting.set_most(most);
    }

    /// Questions waiting and at work.
    pub fn depth(&self) -> usize {
        self.entries.len()
    }

    /// Questions in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the daemon is stopping.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Mean time of a question at work.
    pub fn mean(&self) -> Duration {
        self.mean
    }

    /// Counts since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes one input and returns its effects.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Asked(asked) => effects.push(self.ask(asked)),
            Input::Resumed(asked) => effects.push(Effect::Admitted(self.admit(asked))),
            Input::Entered(slot, durable) => self.enter(slot, durable, &mut effects),
            Input::Withdrawn(slot) | Input::Done(slot) => self.forget(slot),
            Input::Cancel(id) => {
                let slots: Vec<Slot> =
                    self.entries.iter().filter(|(_, e)| e.asked.ticket.id == id).map(|(slot, _)| *slot).collect();
                for slot in slots {
                    self.cancel(slot, &mut effects);
                }
            }
            Input::Gone(slot) => self.cancel(slot, &mut effects),
            // Suspects run one at a time, so a suspect keeps its worker.
            Input::Waits(slot) => drop(self.busy.extract_if(slot..=slot, |_, suspect| !*suspect).next()),
            Input::Worked(slot, worked) => self.worked(slot, worked, &mut effects),
            Input::Freed(slot, took) => {
                if self.busy.remove(&slot).is_some() {
                    self.mean = self.mean * 9 / 10 + took / 10;
                }
            }
            Input::Tick => self.expire(now, &mut effects),
            Input::Drain => self.drain(&mut effects),
            Input::GraceOver => {
                effects
                    .extend(self.entries.iter().filter(|(_, e)| e.stage == Stage::AtWork).map(|(slot, _)| Effect::Stop(*slot)));
            }
        }
        self.start(&mut effects);
        self.set_wake(&mut effects);
        effects
    }

    fn ask(&mut self, asked: Asked) -> Effect {
        if self.draining {
            return Effect::Refused(stopping());
        }
        if let Some(entry) = self.find(&asked) {
            if entry.asked.content != asked.content && entry.asked.text != asked.text {
                let id = &asked.ticket.id;
                return Effect::Refused(Fault::bad_request(format!(
                    "another question with the id {id:?} is at work; choose another id or correlation data"
                )));
            }
            self.counts.repeated += 1;
            return Effect::Repeated;
        }
        if !self.waiting.has_room(&asked.ticket.client) {
            self.counts.refused += 1;
            return Effect::Refused(self.no_room());
        }
        Effect::Admitted(self.admit(asked))
    }

    fn admit(&mut self, asked: Asked) -> Slot {
        let slot = self.next;
        self.next += 1;
        self.names.insert(asked.ticket.clone(), slot);
        self.waiting.push(asked.priority, &asked.ticket.client, slot);
        self.entries.insert(slot, Entry { asked, stage: Stage::Admitted, durable: false, cancelled: false });
        slot
    }

    fn find(&self, asked: &Asked) -> Option<&Entry> {
        let by_content = |entry: &&Entry| asked.redelivered && entry.asked.content == asked.content;
        let named = self.names.get(&asked.ticket).and_then(|slot| self.entries.get(slot));
        named.or_else(|| self.entries.values().find(by_content))
    }

    fn no_room(&self) -> Fault {
        let ahead = self.entries.len() as u64 + 1;
        let after = self.mean.as_micros() as u64 * ahead / self.workers as u64 / 1000;
        let message = "the queue, or this client's share of it, is full; ask again later";
        Fault { retry_after_ms: Some(after.clamp(100, 600_000)), ..Fault::new(ErrorCode::QueueFull, message) }
    }

    fn enter(&mut self, slot: Slot, durable: bool, effects: &mut Vec<Effect>) {
        let draining = self.draining;
        let Some(entry) = self.entries.get_mut(&slot).filter(|entry| entry.stage == Stage::Admitted) else { return };
        (entry.stage, entry.durable) = (Stage::Waiting, durable);
        if entry.cancelled {
            self.cancel(slot, effects);
        } else if draining {
            self.put_off(slot, effects);
        }
    }

    fn cancel(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&slot) else { return };
        match entry.stage {
            Stage::Admitted => entry.cancelled = true,
            Stage::Waiting => {
                let fault = Fault::new(ErrorCode::Cancelled, "the question was cancelled before work on it began");
                self.end_waiting(slot, fault, effects);
            }
            Stage::AtWork => effects.push(Effect::Stop(slot)),
            Stage::Ending => {}
        }
    }

    fn end_waiting(&mut self, slot: Slot, fault: Fault, effects: &mut Vec<Effect>) {
        self.waiting.take(|waiting| *waiting == slot);
        if let Some(entry) = self.entries.get_mut(&slot) {
            entry.stage = Stage::Ending;
            effects.push(Effect::End(slot, fault));
        }
    }

    /// Ends a waiting question when the daemon stops. A durable question stays for the next start.
    fn put_off(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        if self.entries.get(&slot).is_some_and(|entry| entry.durable) {
            self.waiting.take(|waiting| *waiting == slot);
            self.forget(slot);
            effects.push(Effect::LayAside(slot));
        } else {
            self.end_waiting(slot, stopping(), effects);
        }
    }

    fn worked(&mut self, slot: Slot, worked: Worked, effects: &mut Vec<Effect>) {
        let draining = self.draining;
        let Some(entry) = self.entries.get_mut(&slot).filter(|entry| entry.stage == Stage::AtWork) else { return };
        entry.stage = Stage::Ending;
        if worked != Worked::Cancelled || !draining {
            effects.push(Effect::Reply(slot));
        } else if entry.durable {
            self.forget(slot);
            effects.push(Effect::LayAside(slot));
        } else {
            effects.push(Effect::End(slot, stopping()));
        }
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.remove(&slot) {
            self.names.remove(&entry.asked.ticket);
            self.waiting.take(|waiting| *waiting == slot);
        }
    }

    fn expire(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let late = |entry: &Entry| entry.stage == Stage::Waiting && entry.asked.deadline <= now;
        let late: Vec<Slot> = self.entries.iter().filter(|(_, entry)| late(entry)).map(|(slot, _)| *slot).collect();
        for slot in late {
            let allowed = self.entries[&slot].asked.allowed.as_millis();
            self.counts.expired += 1;
            let message = format!("no answer within {allowed} ms: the question was still in the queue");
            self.end_waiting(slot, Fault::new(ErrorCode::DeadlineExceeded, message), effects);
        }
    }

    fn drain(&mut self, effects: &mut Vec<Effect>) {
        self.draining = true;
        let waiting: Vec<Slot> = self.entries.iter().filter(|(_, e)| e.stage == Stage::Waiting).map(|(slot, _)| *slot).collect();
        for slot in waiting {
            self.put_off(slot, effects);
        }
    }

    /// Starts the next questions on free workers.
    fn start(&mut self, effects: &mut Vec<Effect>) {
        while !self.draining && self.busy.len() < self.workers {
            let suspect_at_work = self.busy.values().any(|suspect| *suspect);
            let entries = &self.entries;
            let may_start = |slot: &Slot| {
                entries.get(slot).is_some_and(|entry| entry.stage == Stage::Waiting && !(entry.asked.suspect && suspect_at_work))
            };
            let Some(slot) = self.waiting.pop(may_start) else { return };
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.stage = Stage::AtWork;
                self.busy.insert(slot, entry.asked.suspect);
                effects.push(Effect::Start(slot));
            }
        }
    }

    fn set_wake(&mut self, effects: &mut Vec<Effect>) {
        let waiting = self.entries.values().filter(|entry| entry.stage == Stage::Waiting);
        let wake = waiting.map(|entry| entry.asked.deadline).min();
        if wake != self.wake {
            self.wake = wake;
            effects.push(Effect::WakeAt(wake));
        }
    }
}

fn stopping() -> Fault {
    Fault::new(ErrorCode::NotReady, "the daemon is stopping; ask again when it is online")
}

#[cfg(test)]
mod tests;
