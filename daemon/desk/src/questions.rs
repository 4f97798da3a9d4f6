//! The tokio shell around [`Lifecycle`](crate::state::Lifecycle): it owns the doors of the questions and carries out the effects.

use crate::state::{Asked as StateAsked, Effect, Input, Slot, Ticket, Worked};
use crate::{Desk, Pending};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use wire::{Answer, Ask, Cancel, ErrorCode, Fault, Priority, Progress, Question};

/// The final reply of a question.
#[derive(Debug)]
pub enum End {
    /// Its answer.
    Answer(Box<Answer>),
    /// Its error.
    Fault(Fault),
}

/// Called once the final reply is stored, or sent if nothing is stored. Until then the desk ignores repetitions.
pub type Safe<'a> = Box<dyn FnOnce() + Send + 'a>;

/// The client of one question, as seen by its door.
pub trait Asker: Send + Sync + 'static {
    /// Whether evidence and deltas are sent before the end.
    fn streams(&self) -> bool;

    /// The work begins.
    fn begun(&self) {}

    /// Evidence, or a delta of the answer; in order, one at a time.
    fn progress(&self, progress: Progress) -> Pending<'_, ()>;

    /// Sends the final reply. Calls `safe` once, and returns when the reply is sent.
    fn end<'a>(&'a self, end: End, safe: Safe<'a>) -> Pending<'a, ()>;

    /// The desk leaves a durable question to the next start.
    fn laid_aside(&self) {}
}

/// A question within its bounds, on its way into the desk.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The client and the id.
    pub ticket: Ticket,
    /// The question.
    pub question: Question,
    /// Its priority in the queue.
    pub priority: Priority,
    /// Digest of the request as sent.
    pub content: Vec<u8>,
    /// The transport may have delivered the request before.
    pub redelivered: bool,
    /// The daemon died while it worked on this question.
    pub suspect: bool,
}

impl Asked {
    /// A new question.
    pub fn new(ticket: Ticket, question: Question, priority: Priority) -> Self {
        Self { ticket, question, priority, content: Vec::new(), redelivered: false, suspect: false }
    }

    fn for_state(&self) -> StateAsked {
        StateAsked {
            ticket: self.ticket.clone(),
            text: self.question.text.clone(),
            content: self.content.clone(),
            redelivered: self.redelivered,
            priority: self.priority,
            allowed: self.question.allowed,
            deadline: self.question.asked + self.question.allowed,
            suspect: self.suspect,
        }
    }
}

/// The desk's decision on a question.
#[derive(Debug)]
pub enum Admission {
    /// The question has a place.
    Admitted(Place),
    /// The desk already has this question, and answers it once.
    Repeated,
    /// The question is refused.
    Refused(Fault),
}

/// A place at the desk, for [`Desk::enter`]. Dropping the place frees it.
#[derive(Debug)]
pub struct Place {
    desk: Desk,
    slot: Slot,
    asked: Option<Box<Asked>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.asked.is_some() {
            self.desk.handle(Input::Withdrawn(self.slot));
        }
    }
}

/// Dropping the presence ends the question: its client has gone away.
#[derive(Debug)]
pub struct Presence {
    desk: Desk,
    slot: Slot,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.desk.handle(Input::Gone(self.slot));
    }
}

struct Job {
    id: String,
    question: Question,
    asker: Arc<dyn Asker>,
    cancel: Cancel,
}

/// The questions at the desk, with their doors.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<HashMap<Slot, Arc<Job>>>);

impl Jobs {
    fn all(&self) -> MutexGuard<'_, HashMap<Slot, Arc<Job>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, slot: Slot) -> Option<Arc<Job>> {
        self.all().get(&slot).cloned()
    }
}

/// The time of the next tick.
pub(crate) struct Wake(watch::Sender<Option<Instant>>);

impl Default for Wake {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

/// tokio's clock; tests can pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    /// Starts the clock that expires waiting questions. Call it once.
    pub fn start(&self) {
        let desk = self.clone();
        let mut wake = desk.0.wake.0.subscribe();
        tokio::spawn(async move {
            loop {
                let next = *wake.borrow_and_update();
                let tick = async {
                    match next {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = tick => desk.handle(Input::Tick),
                    changed = wake.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// Asks for a place.
    pub fn admit(&self, asked: Asked) -> Admission {
        let effects = self.step(Input::Asked(asked.for_state()));
        self.admission(asked, effects)
    }

    /// Gives a question of an earlier run its place back, even in a full queue.
    pub fn resume(&self, asked: Asked) -> Option<Place> {
        let effects = self.step(Input::Resumed(asked.for_state()));
        match self.admission(asked, effects) {
            Admission::Admitted(place) => Some(place),
            _ => None,
        }
    }

    fn admission(&self, asked: Asked, effects: Vec<Effect>) -> Admission {
        let mut admitted = None;
        for effect in effects {
            match effect {
                Effect::Admitted(slot) => admitted = Some(slot),
                Effect::Refused(fault) => {
                    self.refuse(&asked.ticket.id, &fault);
                    return Admission::Refused(fault);
                }
                other => self.perform(other),
            }
        }
        if let Some(slot) = admitted {
            return Admission::Admitted(Place { desk: self.clone(), slot, asked: Some(Box::new(asked)) });
        }
        log::info!("question {:?} is already at the desk; the repetition is ignored", asked.ticket.id);
        Admission::Repeated
    }

    /// Takes a place. `durable`: the question is on disk, and the next start answers it if this run cannot.
    pub fn enter(&self, mut place: Place, asker: Arc<dyn Asker>, durable: bool) {
        let slot = place.slot;
        if let Some(asked) = place.asked.take() {
            let Asked { ticket, question, .. } = *asked;
            let job = Job { id: ticket.id, question, asker, cancel: Cancel::default() };
            self.0.jobs.all().insert(slot, Arc::new(job));
            self.handle(Input::Entered(slot, durable));
        }
    }

    /// Checks a question and enters it, for doors that keep nothing on disk. Dropping the presence ends the question.
    ///
    /// # Errors
    /// A broken bound, a full queue, or a question with this ticket is at work.
    pub fn ask(&self, ticket: Ticket, ask: &Ask, asker: Arc<dyn Asker>) -> Result<Presence, Fault> {
        let question = self.limits().question(ask, &ticket.client, now()).inspect_err(|fault| self.refuse(&ticket.id, fault))?;
        let id = ticket.id.clone();
        match self.admit(Asked::new(ticket, question, ask.priority.unwrap_or_default())) {
            Admission::Admitted(place) => {
                let slot = place.slot;
                self.enter(place, asker, false);
                Ok(Presence { desk: self.clone(), slot })
            }
            Admission::Refused(fault) => Err(fault),
            Admission::Repeated => {
                let fault = Fault::bad_request("this question is already at work; wait for its answer, or choose another id");
                self.refuse(&id, &fault);
                Err(fault)
            }
        }
    }

    /// Cancels the questions with this id, in the queue or at work.
    pub fn cancel(&self, id: &str) {
        let effects = self.step(Input::Cancel(id.to_owned()));
        if !effects.iter().any(|effect| matches!(effect, Effect::Stop(_) | Effect::End(..))) {
            log::info!("nothing to cancel: no question with id {id:?} is at work");
        }
        for effect in effects {
            self.perform(effect);
        }
    }

    /// Whether the daemon is stopping and takes no more questions.
    pub fn is_draining(&self) -> bool {
        self.state().draining()
    }

    /// Stops taking questions and waits up to `grace` for those at work, then ends them.
    pub async fn drain(&self, grace: Duration) {
        self.handle(Input::Drain);
        if !self.is_empty_within(grace).await {
            self.handle(Input::GraceOver);
            self.is_empty_within(Duration::from_secs(2)).await;
        }
    }

    async fn is_empty_within(&self, patience: Duration) -> bool {
        let empty = async {
            loop {
                let gone = self.0.gone.notified();
                if self.state().depth() == 0 {
                    return;
                }
                gone.await;
            }
        };
        tokio::time::timeout(patience, empty).await.is_ok()
    }

    pub(crate) fn handle(&self, input: Input) {
        let gone = matches!(input, Input::Done(_) | Input::Withdrawn(_));
        for effect in self.step(input) {
            self.perform(effect);
        }
        if gone {
            self.0.gone.notify_waiters();
        }
    }

    fn step(&self, input: Input) -> Vec<Effect> {
        self.state().handle(input, now())
    }

    fn perform(&self, effect: Effect) {
        match effect {
            Effect::Start(slot) => self.with_job(slot, |desk, job| drop(tokio::spawn(desk.work(slot, job)))),
            Effect::Stop(slot) => self.with_job(slot, |_, job| job.cancel.cancel()),
            Effect::End(slot, fault) => self.with_job(slot, |desk, job| {
                tokio::spawn(async move { desk.end(slot, &job, End::Fault(fault), None).await });
            }),
            Effect::LayAside(slot) => self.with_job(slot, |desk, job| {
                job.asker.laid_aside();
                desk.0.jobs.all().remove(&slot);
                desk.0.gone.notify_waiters();
            }),
            Effect::WakeAt(at) => drop(self.0.wake.0.send_replace(at)),
            // `work` and `admission` handle these.
            Effect::Reply(_) | Effect::Admitted(_) | Effect::Repeated | Effect::Refused(_) => {}
        }
    }

    fn with_job(&self, slot: Slot, then: impl FnOnce(Self, Arc<Job>)) {
        if let Some(job) = self.0.jobs.get(slot) {
            then(self.clone(), job);
        }
    }

    /// The work on one question.
    async fn work(self, slot: Slot, job: Arc<Job>) {
        let busy = Busy { desk: self.clone(), slot, begun: now() };
        job.asker.begun();
        let result = self.answer(slot, &job).await;
        let (end, worked) = match result {
            Ok(answer) => (End::Answer(Box::new(answer)), Worked::Answered),
            Err(fault) if fault.code == ErrorCode::Cancelled => (End::Fault(fault), Worked::Cancelled),
            Err(fault) => (End::Fault(fault), Worked::Failed),
        };
        for effect in self.step(Input::Worked(slot, worked)) {
            match effect {
                Effect::Reply(_) => return self.end(slot, &job, end, Some(busy)).await,
                Effect::End(_, fault) => return self.end(slot, &job, End::Fault(fault), Some(busy)).await,
                other => self.perform(other),
            }
        }
    }

    /// Answers in the shape that the client wants, and passes evidence and deltas to the asker on the way.
    async fn answer(&self, slot: Slot, job: &Job) -> Result<Answer, Fault> {
        let (pieces, mut handed_on) = tokio::sync::mpsc::unbounded_channel();
        let streams = job.asker.streams();
        // A separate future, so that a slow asker never holds up the answer.
        let handing_on = async {
            while let Some(progress) = handed_on.recv().await {
                job.asker.progress(progress).await;
            }
        };
        let shape = job.question.shape;
        let answering = async move {
            let mut progress = |progress: Progress| match progress {
                Progress::Waiting => self.handle(Input::Waits(slot)),
                mut progress if streams => {
                    if let Progress::Evidence(evidence) = &mut progress {
                        shape.apply_to_evidence(evidence);
                    }
                    let _ = pieces.send(progress);
                }
                _ => {}
            };
            // `pieces` is dropped at the end of this block, which ends the other future.
            self.0.answers.answer(&job.question, &job.cancel, &mut progress).await
        };
        let mut answer = tokio::join!(answering, handing_on).0?;
        // The words of this client, also when another client's answer came from a cache.
        answer.question.clone_from(&job.question.text);
        shape.apply(&mut answer);
        Ok(answer)
    }

    fn tell(&self, job: &Job, end: &End) {
        match end {
            End::Answer(answer) => {
                self.count(answer);
                log::info!(
                    VADEMECUM_QUESTION_ID = job.id.as_str(), VADEMECUM_FOUND = answer.found, VADEMECUM_TTFT_MS = answer.timings.ttft_ms,
                    VADEMECUM_TOTAL_MS = answer.timings.total_ms, VADEMECUM_PROMPT_TOKENS = answer.usage.prompt_tokens, VADEMECUM_ANSWER_TOKENS = answer.usage.answer_tokens;
                    "answered {:?} in {:.0} ms", job.id, answer.timings.total_ms
                );
            }
            End::Fault(fault) => {
                self.0.counters.errors.fetch_add(1, Ordering::Relaxed);
                log::warn!(
                    VADEMECUM_QUESTION_ID = job.id.as_str(), VADEMECUM_ERROR = fault.code.word();
                    "question {:?} failed: {fault}", job.id
                );
            }
        }
    }

    /// Ends a question. Its worker is free once the reply is safe: sending it may wait for a broker that is away, and the
    /// questions of other doors must not wait with it.
    async fn end(&self, slot: Slot, job: &Job, end: End, busy: Option<Busy>) {
        self.tell(job, &end);
        let safe = move || {
            self.0.jobs.all().remove(&slot);
            self.handle(Input::Done(slot));
            drop(busy);
        };
        job.asker.end(end, Box::new(safe)).await;
    }
}

/// A busy worker. Dropping it frees the worker, even after a panic.
struct Busy {
    desk: Desk,
    slot: Slot,
    begun: Instant,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The question ends all the same, and its asker hears of it.
            let fault = Fault::new(ErrorCode::Internal, "the work on this question failed; please report it");
            self.desk.perform(Effect::End(self.slot, fault));
        }
        self.desk.handle(Input::Freed(self.slot, now() - self.begun));
    }
}

#[cfg(test)]
mod tests;
