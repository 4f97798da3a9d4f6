//! The life of a question: taken in once, kept until it is answered, answered once.
//!
//! ```text
//! message -> open, bounds -> known already? room? -> inbox (mail) -> queue -> a worker answers -> outbox (mail) -> published
//!              |                |       |              |                                           |                |
//!            error           left     queue_full     acknowledged once on disk          on disk, then published   forgotten when
//!                            alone                   or with the final reply                                      acknowledged
//! ```
//!
//! Who asks at QoS 0, or with `mqtt.durable = false`, gets the same but for the two mails.

use super::connection::{Message, Outgoing, Properties, Receipt, Sender, Why};
use super::queue::Queue;
use super::reply::Reply;
use super::topics::Topics;
use crate::answer::{AnswerError, Progress, Question};
use crate::api::wire::{self, ErrorCode, ErrorReply, Priority};
use crate::api::{Api, Problem, code_of};
use crate::engine::Cancel;
use crate::mail::{Final, MOST_CRASHES, Mail, Mark, Received, Seq, Standing, Unanswered, now_ms};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// How long a question's entry waits for the sync of its own answer, or of others, before it asks for one.
const SYNC_PATIENCE: Duration = Duration::from_millis(20);

/// How long the receipts of earlier connections are waited for while a connection stands.
const RECEIPTS_PATIENCE: Duration = Duration::from_secs(30);

/// What the questions share.
pub(super) struct Questions {
    topics: Topics,
    api: Api,
    sender: Sender,
    mail: Option<Mail>,
    state: Mutex<State>,
    /// A question has come, or it is being stopped.
    changed: Notify,
    /// A question has gone, or an answer was acknowledged.
    gone: Notify,
    stopping: AtomicBool,
    /// Held while a question is worked on that the daemon has ended over: of several at work then, one was to blame.
    suspects: tokio::sync::Mutex<()>,
    /// Mean time of a question at work, in microseconds.
    service_us: AtomicU64,
    workers: usize,
    /// Receipts that are waited for.
    awaited: Awaited,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    repeated: AtomicU64,
    refused: AtomicU64,
    resumed: AtomicU64,
    expired: AtomicU64,
    given_up: AtomicU64,
}

struct State {
    waiting: Queue<Job>,
    /// Waiting or at work, by name.
    active: HashMap<Mark, Active>,
}

struct Active {
    id: String,
    question: String,
    content: Mark,
    seq: Option<Seq>,
    cancel: Cancel,
    /// To be acknowledged with the final reply, because nothing else stands for them.
    receipts: Vec<Receipt>,
}

struct Job {
    name: Mark,
    reply: Reply,
    question: Question,
    stream: bool,
    cancel: Cancel,
    seq: Option<Seq>,
    /// The daemon has ended while it was worked on.
    suspect: bool,
}

/// A question that is not worked on, and why.
pub(super) struct Over {
    reply: Reply,
    seq: Seq,
    problem: Problem,
}

impl Job {
    fn deadline(&self) -> Instant {
        self.question.asked + self.question.allowed
    }
}

impl Questions {
    pub(super) fn new(topics: Topics, api: Api, sender: Sender, mail: Option<Mail>) -> Arc<Self> {
        let limits = api.limits();
        let (workers, most) = (limits.workers.max(1), limits.queue);
        let questions = Self {
            topics,
            sender,
            mail,
            state: Mutex::new(State { waiting: Queue::new(most), active: HashMap::new() }),
            changed: Notify::new(),
            gone: Notify::new(),
            stopping: AtomicBool::new(false),
            suspects: tokio::sync::Mutex::default(),
            service_us: AtomicU64::new(1_000_000),
            workers,
            awaited: Awaited::default(),
            counts: Counts::default(),
            api,
        };
        Arc::new(questions)
    }

    /// Starts the workers, and the clock that ends what has waited too long.
    pub(super) fn start(self: &Arc<Self>) {
        for _ in 0..self.workers {
            tokio::spawn(Arc::clone(self).work());
        }
        tokio::spawn(Arc::clone(self).watch_deadlines());
    }

    /// From now on at most `most` questions may wait.
    pub(super) fn set_queue(&self, most: usize) {
        self.state().waiting.set_most(most);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Questions waiting and at work.
    pub(super) fn depth(&self) -> usize {
        self.state().active.len()
    }

    /// What `metrics` tells about delivery.
    pub(super) fn report(&self) -> serde_json::Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (inbox, outbox) = self.mail.as_ref().map_or((0, 0), Mail::depth);
        serde_json::json!({
            "durable": self.mail.is_some(),
            "problem": self.mail.as_ref().and_then(Mail::problem),
            "waiting": self.state().waiting.len(),
            "inbox": inbox,
            "outbox": outbox,
            "repeated": count(&self.counts.repeated),
            "refused": count(&self.counts.refused),
            "resumed": count(&self.counts.resumed),
            "expired": count(&self.counts.expired),
            "given_up": count(&self.counts.given_up),
            "service_ms": count(&self.service_us) as f64 / 1e3,
        })
    }

    /// Takes up what the last run has not answered, in its order, before anything that the broker sends: that came later. Gives back
    /// those that are over, for [`Self::resume`].
    pub(super) fn take_up(&self, unanswered: Vec<Unanswered>) -> Vec<Over> {
        unanswered.into_iter().filter_map(|unanswered| self.take_up_one(unanswered)).collect()
    }

    /// Goes on where the last connection, or the last run, has ended: gives the questions that are `over` their error, and sends the
    /// answers that have not arrived. Of those that are `unsure`, which were sent over an earlier connection, some may have.
    pub(super) async fn resume(self: &Arc<Self>, unsure: Vec<Seq>, over: Vec<Over>, remembered: bool) {
        let Some(mail) = &self.mail else { return };
        for Over { reply, seq, problem: (code, problem) } in over {
            self.end(&reply, Some(seq), vec![], &reply.failure(code, problem)).await;
        }
        // Where the session was kept, it holds the receipts of what has arrived.
        if remembered && !unsure.is_empty() && !self.hear_receipts(mail).await {
            let topic = self.topics.of("receipt");
            log::warn!("receipts do not come back; answers may be sent twice: let this client publish to and read {topic}");
        }
        for seq in unsure {
            if let Some(answer) = mail.answer(seq) {
                log::info!("an answer on {} has not reached the broker and is sent again", answer.topic);
                self.publish(message_of(answer), Some(seq)).await;
            }
        }
    }

    /// Waits until the receipts that the broker holds for us have come: one that is sent now comes after them.
    async fn hear_receipts(&self, mail: &Mail) -> bool {
        let number = Mail::free_number();
        let mut heard = self.awaited.expect(number);
        let mut back = false;
        if self.sender.send(self.receipt_of(mail, number)).await.is_ok() {
            loop {
                let connection = self.sender.connection();
                back = tokio::time::timeout(RECEIPTS_PATIENCE, &mut heard).await.is_ok();
                // Over the next connection it is sent again.
                if back || self.sender.connection() == connection {
                    break;
                }
            }
        }
        self.awaited.came(number);
        back
    }

    fn receipt_of(&self, mail: &Mail, seq: Seq) -> Outgoing {
        let (topic, payload) = (self.topics.of("receipt"), mail.receipt(seq).into_bytes().into());
        Outgoing { topic, payload, retain: false, properties: Properties::default() }
    }

    /// A receipt has come back: what was sent before it has reached the broker.
    pub(super) fn receipt(&self, payload: &[u8]) {
        match self.mail.as_ref().and_then(|mail| mail.receipt_number(payload)) {
            Some(seq) => {
                self.delivered(seq);
                self.awaited.came(seq);
            }
            None => log::warn!("a receipt that is not ours came on {}", self.topics.of("receipt")),
        }
    }

    fn take_up_one(&self, Unanswered { seq, crashes, received }: Unanswered) -> Option<Over> {
        let (name, content) = (received.name, received.content);
        // Never more than it was given, should the clock have been set back.
        let given = received.expires_ms.saturating_sub(received.received_ms);
        let left = Duration::from_millis(received.expires_ms.saturating_sub(now_ms()).min(given));
        let since = now_ms().saturating_sub(received.received_ms);
        let id = received.id.clone();
        let message = Message {
            topic: received.topic,
            payload: received.payload.into(),
            retained: false,
            properties: Properties {
                response_topic: received.response_topic,
                correlation_data: received.correlation_data.map(|data| data.into_vec().into()),
                content_type: received.content_type,
            },
            receipt: None,
            redelivered: true,
            expiry: None,
        };
        let (reply, ask) = self.open(&message, Some(&id));
        let question = ask.and_then(|ask| Ok((self.api.question(&ask, Instant::now())?, ask)));
        let given_up = || {
            self.counts.given_up.fetch_add(1, Ordering::Relaxed);
            log::error!("question {id:?} is given up: the daemon has ended {crashes} times while it was worked on");
            (
                ErrorCode::Internal,
                format!("the daemon has ended {crashes} times while it worked on this question; it is not tried again"),
            )
        };
        let problem = match question {
            Err(problem) => problem,
            Ok(_) if crashes >= MOST_CRASHES => given_up(),
            Ok(_) if left.is_zero() => {
                self.counts.expired.fetch_add(1, Ordering::Relaxed);
                (ErrorCode::DeadlineExceeded, format!("the question came {} s ago and its time has passed", since / 1000))
            }
            Ok((mut question, ask)) => {
                log::info!("question {id:?} of {} s ago is taken up again", since / 1000);
                self.counts.resumed.fetch_add(1, Ordering::Relaxed);
                question.allowed = left;
                self.enter(name, content, reply, question, &ask, Some(seq), None, crashes > 0);
                return None;
            }
        };
        Some(Over { reply, seq, problem })
    }

    fn open(&self, message: &Message, known_as: Option<&str>) -> (Reply, Result<wire::Ask, Problem>) {
        let plain = |question| Ok(wire::Ask { question, ..wire::Ask::default() });
        Reply::open(&self.topics, message, self.api.limits().max_payload_bytes, known_as, plain)
    }

    /// Takes a question up, or says why not. Called in the order of arrival.
    pub(super) fn ask(self: &Arc<Self>, message: &Message) {
        let stopping = self.stopping.load(Ordering::Relaxed);
        if stopping && self.mail.is_some() && message.receipt.is_some() {
            // Not acknowledged, it stays with the broker until we are back.
            return;
        }
        let content = content_of(message);
        let (reply, ask) = self.open(message, None);
        let question = ask.and_then(|ask| Ok((self.question(&ask, &reply, message)?, ask)));
        let (question, ask) = match question {
            Ok(_) if stopping => {
                let problem = "the daemon is stopping; ask again when it is online".to_owned();
                return self.refuse(reply, message.receipt, (ErrorCode::NotReady, problem));
            }
            Ok(question) => question,
            Err(problem) => return self.refuse(reply, message.receipt, problem),
        };
        let name = Mark::of(&[reply.topic.as_bytes(), reply.id.as_bytes()]);
        match self.repeats(name, content, &question.text, message) {
            Repeat::No => {}
            Repeat::Yes => return,
            Repeat::OtherQuestion => {
                let problem =
                    format!("another question with the id {:?} is at work; choose another id or correlation data", reply.id);
                return self.refuse(reply, message.receipt, (ErrorCode::BadRequest, problem));
            }
        }
        if !self.state().waiting.has_room(client_of(&reply, &self.topics)) {
            return self.refuse_for_want_of_room(reply, message.receipt);
        }
        let seq = self.keep(name, content, &reply, &question, message);
        // Where it could not be written, the final reply stands for it.
        let unacknowledged = message.receipt.filter(|_| self.mail.is_some() && seq.is_none());
        self.enter(name, content, reply, question, &ask, seq, unacknowledged, false);
        if unacknowledged.is_none() {
            self.acknowledge_soon(message.receipt);
        }
    }

    /// Checks a question's bounds, and whether it may go first.
    fn question(&self, ask: &wire::Ask, reply: &Reply, message: &Message) -> Result<Question, Problem> {
        let mut question = self.api.question(ask, Instant::now())?;
        if ask.priority == Some(Priority::High) && !self.topics.may_go_first(&reply.topic) {
            let problem = format!("replies to {} have no high priority; mqtt.high_priority names those that have", reply.topic);
            return Err((ErrorCode::BadRequest, problem));
        }
        if let Some(expiry) = message.expiry {
            question.allowed = question.allowed.min(expiry);
        }
        Ok(question)
    }

    /// Whether a question is there already. Messages are taken up one after another, so nothing comes between this look and the
    /// entry.
    fn repeats(self: &Arc<Self>, name: Mark, content: Mark, text: &str, message: &Message) -> Repeat {
        let mut state = self.state();
        let same = |entry: &(&Mark, &mut Active)| *entry.0 == name || (message.redelivered && entry.1.content == content);
        if let Some((_, active)) = state.active.iter_mut().find(same) {
            if active.content != content && active.question != text {
                return Repeat::OtherQuestion;
            }
            log::info!("question {:?} is at work already; its repetition is left alone", active.id);
            match (active.seq, message.receipt) {
                (None, Some(receipt)) if self.mail.is_some() => active.receipts.push(receipt),
                (_, receipt) => self.acknowledge_soon(receipt),
            }
            drop(state);
            self.counts.repeated.fetch_add(1, Ordering::Relaxed);
            return Repeat::Yes;
        }
        drop(state);
        match &self.mail {
            Some(mail) if mail.standing(name, content, message.redelivered) == Standing::Repeated => {
                log::info!("a question that was just answered is repeated; its repetition is left alone");
                self.counts.repeated.fetch_add(1, Ordering::Relaxed);
                self.acknowledge_soon(message.receipt);
                Repeat::Yes
            }
            _ => Repeat::No,
        }
    }

    /// Writes a question into the inbox, where its sender asked for that.
    fn keep(&self, name: Mark, content: Mark, reply: &Reply, question: &Question, message: &Message) -> Option<Seq> {
        let mail = self.mail.as_ref()?;
        message.receipt?;
        let now = now_ms();
        let received = Received {
            name,
            content,
            id: reply.id.clone(),
            topic: message.topic.clone(),
            payload: message.payload.to_vec(),
            response_topic: message.properties.response_topic.clone(),
            correlation_data: message.properties.correlation_data.as_ref().map(|data| data.to_vec().into()),
            content_type: message.properties.content_type.clone(),
            received_ms: now,
            expires_ms: now + question.allowed.as_millis() as u64,
        };
        // Why it cannot be written is told there.
        mail.receive(received).ok()
    }

    #[allow(clippy::too_many_arguments, reason = "all that is known of a question, once")]
    fn enter(
        &self,
        name: Mark,
        content: Mark,
        reply: Reply,
        question: Question,
        ask: &wire::Ask,
        seq: Option<Seq>,
        receipt: Option<Receipt>,
        suspect: bool,
    ) {
        let cancel = Cancel::default();
        let active = Active {
            id: reply.id.clone(),
            question: question.text.clone(),
            content,
            seq,
            cancel: cancel.clone(),
            receipts: receipt.into_iter().collect(),
        };
        let client = client_of(&reply, &self.topics).to_owned();
        let job = Job { name, reply, question, stream: ask.stream.unwrap_or(false), cancel, seq, suspect };
        {
            let mut state = self.state();
            state.active.insert(name, active);
            state.waiting.push(ask.priority.unwrap_or_default(), &client, job);
        }
        self.changed.notify_waiters();
    }

    async fn acknowledge(&self, receipt: Receipt) {
        if let Some(mail) = &self.mail
            && let Err(error) = mail.on_disk(SYNC_PATIENCE).await
        {
            // The broker keeps it: it comes again when we reconnect.
            return log::error!("a question is not acknowledged: {error}");
        }
        self.sender.acknowledge(receipt).await;
    }

    fn acknowledge_soon(self: &Arc<Self>, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt {
            let questions = Arc::clone(self);
            tokio::spawn(async move { questions.acknowledge(receipt).await });
        }
    }

    fn refuse(self: &Arc<Self>, reply: Reply, receipt: Option<Receipt>, (code, problem): Problem) {
        let failure = reply.failure(code, problem);
        self.send_refusal(reply, receipt, failure, Why::Wrong);
    }

    fn refuse_for_want_of_room(self: &Arc<Self>, reply: Reply, receipt: Option<Receipt>) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        let ahead = self.state().active.len() as u64 + 1;
        let after = (self.service_us.load(Ordering::Relaxed) * ahead / self.workers as u64 / 1000).clamp(100, 600_000);
        let problem =
            "as many questions as this client's share, or as there is room for, are waiting; ask again later".to_owned();
        let mut failure = reply.failure(ErrorCode::QueueFull, problem);
        failure.error.retry_after_ms = Some(after);
        self.send_refusal(reply, receipt, failure, Why::NoRoom);
    }

    fn send_refusal(self: &Arc<Self>, reply: Reply, receipt: Option<Receipt>, failure: ErrorReply, why: Why) {
        self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
        let questions = Arc::clone(self);
        tokio::spawn(async move {
            let message = reply.message(&failure);
            let sent = match receipt {
                Some(receipt) => questions.sender.send_refusal(message, receipt, why).await,
                None => questions.sender.send(message).await,
            };
            if let Err(error) = sent {
                log::error!("reply {:?} is lost: {error}", reply.id);
                if let Some(receipt) = receipt {
                    questions.sender.acknowledge(receipt).await;
                }
            }
        });
    }

    /// Cancels the questions with an id, waiting or at work.
    pub(super) fn cancel(self: &Arc<Self>, id: &str) {
        let mut state = self.state();
        let mut found = false;
        for active in state.active.values().filter(|active| active.id == id) {
            active.cancel.cancel();
            found = true;
        }
        let waiting = state.waiting.take(|job| job.reply.id == id);
        drop(state);
        if !found {
            log::info!("nothing to cancel: no question with id {id:?} is at work");
        }
        for job in waiting {
            self.end_waiting(job, ErrorCode::Cancelled, "the question was cancelled before work on it began".into());
        }
    }

    fn end_waiting(self: &Arc<Self>, job: Job, code: ErrorCode, problem: String) {
        self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
        let questions = Arc::clone(self);
        tokio::spawn(async move {
            let failure = job.reply.failure(code, problem);
            questions.finish(&job, &failure).await;
        });
    }

    /// Ends the questions whose time passes while they wait.
    async fn watch_deadlines(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let next = self.state().waiting.min_of(Job::deadline);
            match next {
                None => changed.await,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = changed => continue,
                    }
                }
            }
            let now = Instant::now();
            let late = self.state().waiting.take(|job| job.deadline() <= now);
            for job in late {
                self.counts.expired.fetch_add(1, Ordering::Relaxed);
                let problem = format!("no answer within {} ms: others were before it", job.question.allowed.as_millis());
                self.end_waiting(job, ErrorCode::DeadlineExceeded, problem);
            }
        }
    }

    /// One worker: takes the question whose turn it is, again and again.
    async fn work(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let Some(job) = self.next() else {
                changed.await;
                continue;
            };
            let begun = Instant::now();
            self.answer(job).await;
            // A moving mean over some ten questions.
            let (mean, last) = (self.service_us.load(Ordering::Relaxed), begun.elapsed().as_micros() as u64);
            self.service_us.store(mean - mean / 10 + last / 10, Ordering::Relaxed);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        if self.stopping.load(Ordering::Relaxed) {
            return None;
        }
        state.waiting.pop()
    }

    async fn answer(self: &Arc<Self>, mut job: Job) {
        let _alone = if job.suspect { Some(self.suspects.lock().await) } else { None };
        if let (Some(mail), Some(seq)) = (&self.mail, job.seq) {
            mail.begin(seq);
        }
        let answer = self.make_answer(&mut job).await;
        match answer {
            Ok(answer) => {
                self.api.count(&answer);
                log::info!(
                    VADEMECUM_QUESTION_ID = job.reply.id.as_str(), VADEMECUM_FOUND = answer.found, VADEMECUM_TTFT_MS = answer.timings.ttft_ms,
                    VADEMECUM_TOTAL_MS = answer.timings.total_ms, VADEMECUM_PROMPT_TOKENS = answer.usage.prompt_tokens, VADEMECUM_ANSWER_TOKENS = answer.usage.answer_tokens;
                    "answered {:?} in {:.0} ms", job.reply.id, answer.timings.total_ms
                );
                let id = job.reply.id.clone();
                self.finish(&job, &wire::AnswerReply { id, answer }).await;
            }
            Err(AnswerError::Cancelled) if self.stopping.load(Ordering::Relaxed) => self.lay_aside(&job).await,
            Err(error) => {
                self.api.counters().errors.fetch_add(1, Ordering::Relaxed);
                let code = code_of(&error);
                log::warn!(
                    VADEMECUM_QUESTION_ID = job.reply.id.as_str(), VADEMECUM_ERROR = code.word().as_str();
                    "question {:?} failed: {error}", job.reply.id
                );
                self.finish(&job, &job.reply.failure(code, error.to_string())).await;
            }
        }
    }

    /// Answers, and publishes evidence and pieces on the way where they are wanted.
    async fn make_answer(&self, job: &mut Job) -> Result<crate::answer::Answer, AnswerError> {
        let Job { reply, question, stream, cancel, .. } = job;
        // Pieces are published by a future of their own, in order, while the answer is made.
        let (pieces, mut published) = tokio::sync::mpsc::unbounded_channel();
        let publisher = async {
            while let Some(progress) = published.recv().await {
                match progress {
                    Progress::Evidence(evidence) => reply.evidence(&self.sender, evidence).await,
                    Progress::Delta(delta) => reply.delta(&self.sender, delta).await,
                }
            }
        };
        let stream = *stream;
        let answering = async move {
            let mut progress = |progress: Progress| {
                if stream {
                    let _ = pieces.send(progress);
                }
            };
            // The sender goes with this block, which ends the publisher.
            self.api.answerer().answer(question, cancel, &mut progress).await
        };
        tokio::join!(answering, publisher).0
    }

    /// Ends a question that is stopped: one in the inbox is taken up at the next start, the others are told.
    async fn lay_aside(&self, job: &Job) {
        match (&self.mail, job.seq) {
            (Some(mail), Some(seq)) => {
                mail.pause(seq);
                self.forget(job.name);
            }
            _ => {
                let problem = "the daemon is stopping; ask again when it is online".to_owned();
                self.finish(job, &job.reply.failure(ErrorCode::NotReady, problem)).await;
            }
        }
    }

    fn forget(&self, name: Mark) -> Vec<Receipt> {
        let gone = self.state().active.remove(&name);
        self.gone.notify_waiters();
        gone.map(|active| active.receipts).unwrap_or_default()
    }

    /// Sends the final reply of a question that was entered.
    async fn finish<T: serde::Serialize>(&self, job: &Job, value: &T) {
        // It is among the active until its answer stands in the outbox: a repetition finds it in one of them.
        let message = self.keep_answer(&job.reply, job.seq, value).await;
        let receipts = self.forget(job.name);
        self.send_final(message, job.seq, receipts).await;
    }

    /// Sends the final reply of a question that was not entered.
    async fn end<T: serde::Serialize>(&self, reply: &Reply, seq: Option<Seq>, receipts: Vec<Receipt>, value: &T) {
        let message = self.keep_answer(reply, seq, value).await;
        self.send_final(message, seq, receipts).await;
    }

    async fn keep_answer<T: serde::Serialize>(&self, reply: &Reply, seq: Option<Seq>, value: &T) -> Outgoing {
        let mut message = reply.message(value);
        if let Some(largest) = self.sender.is_too_large(&message) {
            let problem = format!(
                "the answer is larger than the {largest} bytes that the broker takes; ask with a smaller top_k, or raise the broker's max_packet_size"
            );
            message = reply.message(&reply.failure(ErrorCode::TooLarge, problem));
        }
        if let (Some(mail), Some(seq)) = (&self.mail, seq) {
            let kept = match mail.finish(seq, final_of(&message)) {
                Ok(()) => mail.on_disk(Duration::ZERO).await,
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                log::error!("the outbox cannot be written: {error}; a crash now would answer {:?} twice", reply.id);
            }
        }
        message
    }

    async fn send_final(&self, message: Outgoing, seq: Option<Seq>, receipts: Vec<Receipt>) {
        self.publish(message, seq).await;
        for receipt in receipts {
            self.sender.acknowledge(receipt).await;
        }
    }

    async fn publish(&self, message: Outgoing, seq: Option<Seq>) {
        let sent = match (&self.mail, seq) {
            (Some(mail), Some(seq)) => self.sender.send_tracked(message, seq, self.receipt_of(mail, seq)).await,
            _ => self.sender.send(message).await,
        };
        if let Err(error) = sent {
            log::error!("a reply is lost: {error}");
            // It cannot be sent later either.
            if let Some(seq) = seq {
                self.delivered(seq);
            }
        }
    }

    /// The broker has acknowledged a final reply.
    pub(super) fn delivered(&self, seq: Seq) {
        if let Some(mail) = &self.mail {
            mail.delivered(seq);
        }
        self.gone.notify_waiters();
    }

    /// Takes no more questions and waits for those at work, at most `grace`; then lays them aside. Waits a moment for the
    /// broker to acknowledge what was answered.
    pub(super) async fn drain(self: &Arc<Self>, grace: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        let waiting = self.state().waiting.take(|_| true);
        for job in waiting {
            if job.seq.is_some() && self.mail.is_some() {
                self.forget(job.name);
            } else {
                let problem = "the daemon is stopping; ask again when it is online".to_owned();
                self.end_waiting(job, ErrorCode::NotReady, problem);
            }
        }
        if !self.wait_until(grace, |this| this.depth() == 0).await {
            for active in self.state().active.values() {
                active.cancel.cancel();
            }
            self.wait_until(Duration::from_secs(2), |this| this.depth() == 0).await;
        }
        self.wait_until(Duration::from_secs(2), |this| this.mail.as_ref().is_none_or(|mail| mail.depth().1 == 0)).await;
        if let Some((inbox, outbox)) = self.mail.as_ref().map(Mail::depth).filter(|left| *left != (0, 0)) {
            log::info!("left for the next start: {inbox} unanswered, {outbox} undelivered");
        }
    }

    async fn wait_until(&self, patience: Duration, reached: impl Fn(&Self) -> bool) -> bool {
        let waiting = async {
            loop {
                let gone = self.gone.notified();
                if reached(self) {
                    return;
                }
                gone.await;
            }
        };
        tokio::time::timeout(patience, waiting).await.is_ok()
    }
}

/// Receipts that are waited for, each by itself: several come in one breath, so that who looks at the last one only misses its own.
#[derive(Default)]
struct Awaited(Mutex<HashMap<Seq, oneshot::Sender<()>>>);

impl Awaited {
    fn expect(&self, number: Seq) -> oneshot::Receiver<()> {
        let (told, heard) = oneshot::channel();
        self.numbers().insert(number, told);
        heard
    }

    fn came(&self, number: Seq) {
        if let Some(waiting) = self.numbers().remove(&number) {
            let _ = waiting.send(());
        }
    }

    fn numbers(&self) -> MutexGuard<'_, HashMap<Seq, oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Repeat {
    No,
    Yes,
    OtherQuestion,
}

/// Whose share of the queue a question takes: MQTT does not tell who has published, but where replies are wanted.
fn client_of<'a>(reply: &'a Reply, topics: &Topics) -> &'a str {
    if reply.topic == topics.answer(&reply.id) { "" } else { &reply.topic }
}

/// Digest of what was sent.
pub(super) fn content_of(message: &Message) -> Mark {
    let properties = &message.properties;
    Mark::of(&[
        message.topic.as_bytes(),
        &message.payload,
        properties.response_topic.as_deref().unwrap_or_default().as_bytes(),
        properties.correlation_data.as_deref().unwrap_or_default(),
    ])
}

fn final_of(message: &Outgoing) -> Final {
    Final {
        topic: message.topic.clone(),
        payload: message.payload.to_vec(),
        correlation_data: message.properties.correlation_data.as_ref().map(|data| data.to_vec().into()),
        content_type: message.properties.content_type.clone().unwrap_or_default(),
    }
}

fn message_of(answer: Final) -> Outgoing {
    Outgoing {
        topic: answer.topic,
        payload: answer.payload.into(),
        retain: false,
        properties: Properties {
            response_topic: None,
            correlation_data: answer.correlation_data.map(|data| data.into_vec().into()),
            content_type: Some(answer.content_type),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_heard_whatever_comes_right_behind_it() {
        let awaited = Awaited::default();
        let (mut first, mut second) = (awaited.expect(1), awaited.expect(2));
        for number in [1, 7, 8] {
            awaited.came(number);
        }
        assert_eq!(first.try_recv(), Ok(()));
        assert_eq!(second.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        awaited.came(2);
        assert_eq!(second.try_recv(), Ok(()));
        assert!(awaited.numbers().is_empty());
    }
}
