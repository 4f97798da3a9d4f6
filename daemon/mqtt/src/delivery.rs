//! Delivery of questions and answers. A question at QoS 1 is acknowledged once it is on disk; its answer is sent until the broker
//! has it.
//!
//! ```text
//! message -> open -> Desk::admit -> just answered? -> inbox -> Desk::enter ~~> Client::end -> outbox -> published
//!              |          |              |              |                                       |          |
//!            error    queue_full      ignored      acknowledged                            on disk, then  forgotten once
//!                                                  once on disk                            published      acknowledged
//! ```
//!
//! A question at QoS 0, or with `mqtt.durable = false`, takes the same way without inbox and outbox.

use crate::connection::{Ack, Message, Outgoing, Properties, Sender, Why};
use crate::mailbox::{Final, MOST_CRASHES, Mailbox, Mark, Received, Seq, Standing, Unanswered, now_ms};
use crate::reply::{Pieces, Reply};
use crate::topics::Topics;
use desk::{Admission, Asked, Asker, Desk, End, Pending, Safe, Ticket};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use wire::{Ask, ErrorCode, Fault, Priority, Progress, Question, ReplyForm};

/// How long an acknowledgement waits for another write to sync the inbox, before it asks for a sync itself.
const SYNC_PATIENCE: Duration = Duration::from_millis(20);

/// How long to wait for the echoes of earlier connections while a connection stands.
const ECHO_PATIENCE: Duration = Duration::from_secs(30);

/// The questions of this door.
pub(crate) struct Delivery {
    topics: Topics,
    desk: Desk,
    sender: Sender,
    mailbox: Option<Mailbox>,
    /// Questions missing from the inbox, because they came at QoS 0 or it cannot be written. The final reply acknowledges them.
    unkept: Mutex<Vec<Unkept>>,
    /// Signals that the broker has acknowledged an answer.
    delivered: Notify,
    /// Echoes that are expected.
    awaited: Awaited,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    repeated: AtomicU64,
    resumed: AtomicU64,
    expired: AtomicU64,
    given_up: AtomicU64,
}

struct Unkept {
    name: Mark,
    content: Mark,
    /// Acknowledged together with the final reply.
    acks: Vec<Ack>,
}

/// A question of an earlier run that ends with an error, without any work.
pub(crate) struct Rejected {
    reply: Reply,
    seq: Seq,
    fault: Fault,
}

/// The client of one question: its reply, and the question's entry in the inbox.
struct Client {
    delivery: Arc<Delivery>,
    name: Mark,
    reply: Reply,
    pieces: tokio::sync::Mutex<Pieces>,
    streams: bool,
    seq: Option<Seq>,
    begun: AtomicBool,
}

impl Asker for Client {
    fn streams(&self) -> bool {
        self.streams
    }

    fn begun(&self) {
        if let (Some(mailbox), Some(seq)) = (&self.delivery.mailbox, self.seq) {
            self.begun.store(true, Ordering::Relaxed);
            mailbox.begin(seq);
        }
    }

    fn progress(&self, progress: Progress) -> Pending<'_, ()> {
        Box::pin(async {
            let mut pieces = self.pieces.lock().await;
            match progress {
                Progress::Waiting => {}
                Progress::Evidence(evidence) => pieces.evidence(&self.reply, &self.delivery.sender, evidence).await,
                Progress::Delta(delta) => pieces.delta(&self.reply, &self.delivery.sender, delta).await,
            }
        })
    }

    fn end<'a>(&'a self, end: End, safe: Safe<'a>) -> Pending<'a, ()> {
        Box::pin(async {
            let message = match end {
                End::Answer(answer) => self.reply.answer(*answer),
                End::Fault(fault) => self.reply.fault(fault),
            };
            // The desk keeps the question until its answer is in the outbox, so that a repetition finds it in one of the two.
            let message = self.delivery.keep_answer(&self.reply, self.seq, message).await;
            safe();
            self.delivery.publish(message, self.seq).await;
            for ack in self.delivery.take_unkept(self.name) {
                self.delivery.sender.acknowledge(ack).await;
            }
        })
    }

    fn laid_aside(&self) {
        if let (Some(mailbox), Some(seq), true) = (&self.delivery.mailbox, self.seq, self.begun.load(Ordering::Relaxed)) {
            mailbox.pause(seq);
        }
    }
}

impl Delivery {
    pub(crate) fn new(topics: Topics, desk: Desk, sender: Sender, mailbox: Option<Mailbox>) -> Arc<Self> {
        Arc::new(Self {
            topics,
            desk,
            sender,
            mailbox,
            unkept: Mutex::default(),
            delivered: Notify::new(),
            awaited: Awaited::default(),
            counts: Counts::default(),
        })
    }

    fn unkept(&self) -> MutexGuard<'_, Vec<Unkept>> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_unkept(&self, name: Mark) -> Vec<Ack> {
        let mut unkept = self.unkept();
        let at = unkept.iter().position(|question| question.name == name);
        at.map(|at| unkept.remove(at).acks).unwrap_or_default()
    }

    /// The delivery figures, for `metrics`.
    pub(crate) fn report(&self) -> wire::Delivery {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (inbox, outbox) = self.mailbox.as_ref().map_or((0, 0), Mailbox::depth);
        let figures = self.desk.figures();
        wire::Delivery {
            durable: self.mailbox.is_some(),
            problem: self.mailbox.as_ref().and_then(Mailbox::problem),
            waiting: figures.waiting,
            inbox,
            outbox,
            repeated: count(&self.counts.repeated) + figures.counts.repeated,
            refused: figures.counts.refused,
            resumed: count(&self.counts.resumed),
            expired: count(&self.counts.expired) + figures.counts.expired,
            given_up: count(&self.counts.given_up),
            service_ms: figures.service_ms,
        }
    }

    /// Resumes the questions that the last run has not answered, in their order, ahead of any new message. Returns the rejected
    /// ones, for [`Self::resume`].
    pub(crate) fn take_up(self: &Arc<Self>, unanswered: Vec<Unanswered>) -> Vec<Rejected> {
        unanswered.into_iter().filter_map(|unanswered| self.take_up_one(unanswered)).collect()
    }

    /// Continues after the last connection or the last run: sends the `rejected` questions their error, and undelivered answers
    /// again. The `unsure` answers were sent over an earlier connection; some of them may have arrived.
    pub(crate) async fn resume(self: &Arc<Self>, unsure: Vec<Seq>, rejected: Vec<Rejected>, remembered: bool) {
        let Some(mailbox) = &self.mailbox else { return };
        for Rejected { reply, seq, fault } in rejected {
            self.desk.refuse(&reply.id, &fault);
            let message = self.keep_answer(&reply, Some(seq), reply.fault(fault)).await;
            self.publish(message, Some(seq)).await;
        }
        // A session that the broker kept holds the echoes of delivered messages.
        if remembered && !unsure.is_empty() && !self.hear_echoes(mailbox).await {
            let topic = self.topics.of("receipt");
            log::warn!("receipts do not come back; answers may be sent twice: let this client publish to and read {topic}");
        }
        for seq in unsure {
            if let Some(answer) = mailbox.answer(seq) {
                log::info!("an answer on {} has not reached the broker and is sent again", answer.topic);
                self.publish(message_of(answer), Some(seq)).await;
            }
        }
    }

    /// Waits until the broker has sent all echoes that it holds for us: a new echo arrives behind them.
    async fn hear_echoes(&self, mailbox: &Mailbox) -> bool {
        let number = Mailbox::free_number();
        let mut heard = self.awaited.expect(number);
        let mut back = false;
        if self.sender.send(self.echo_of(mailbox, number)).await.is_ok() {
            loop {
                let connection = self.sender.connection();
                back = tokio::time::timeout(ECHO_PATIENCE, &mut heard).await.is_ok();
                // The next connection sends the echo again.
                if back || self.sender.connection() == connection {
                    break;
                }
            }
        }
        self.awaited.came(number);
        back
    }

    fn echo_of(&self, mailbox: &Mailbox, seq: Seq) -> Outgoing {
        let (topic, payload) = (self.topics.of("receipt"), mailbox.echo(seq).into_bytes().into());
        Outgoing { topic, payload, retain: false, properties: Properties::default() }
    }

    /// An echo has come back: all messages sent before it have reached the broker.
    pub(crate) fn echo(&self, payload: &[u8]) {
        match self.mailbox.as_ref().and_then(|mailbox| mailbox.echo_number(payload)) {
            Some(seq) => {
                self.delivered(seq);
                self.awaited.came(seq);
            }
            None => log::warn!("a receipt that is not ours came on {}", self.topics.of("receipt")),
        }
    }

    fn take_up_one(self: &Arc<Self>, Unanswered { seq, crashes, received }: Unanswered) -> Option<Rejected> {
        let (name, content) = (received.name, received.content);
        // If the clock was set back, the question still gets no more than its original time.
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
            ack: None,
            redelivered: true,
            expiry: None,
        };
        let (reply, ask) = self.open(&message, Some(&id));
        let client = client_of(&reply, &self.topics);
        let question = ask.and_then(|ask| Ok((self.desk.limits().question(&ask, client, Instant::now())?, ask)));
        let fault = match question {
            Err(fault) => fault,
            Ok(_) if crashes >= MOST_CRASHES => {
                self.counts.given_up.fetch_add(1, Ordering::Relaxed);
                log::error!("question {id:?} is given up: the daemon has ended {crashes} times at work on it");
                let message =
                    format!("the daemon has ended {crashes} times at work on this question; there is no further attempt");
                Fault::new(ErrorCode::Internal, message)
            }
            Ok(_) if left.is_zero() => {
                self.counts.expired.fetch_add(1, Ordering::Relaxed);
                let message = format!("the question came {} s ago, and its time has passed", since / 1000);
                Fault::new(ErrorCode::DeadlineExceeded, message)
            }
            Ok((mut question, ask)) => {
                log::info!("question {id:?} of {} s ago is taken up again", since / 1000);
                self.counts.resumed.fetch_add(1, Ordering::Relaxed);
                question.allowed = left;
                let mut asked = Self::asked(&reply, question, &ask, content);
                asked.suspect = crashes > 0;
                if let Some(place) = self.desk.resume(asked) {
                    self.desk.enter(place, self.client(name, reply, &ask, Some(seq)), true);
                }
                return None;
            }
        };
        Some(Rejected { reply, seq, fault })
    }

    fn open(&self, message: &Message, first_id: Option<&str>) -> (Reply, Result<Ask, Fault>) {
        let plain = |question| Ok(Ask { question, ..Ask::default() });
        Reply::open(&self.topics, message, self.desk.limits().max_payload_bytes, first_id, plain)
    }

    fn asked(reply: &Reply, question: Question, ask: &Ask, content: Mark) -> Asked {
        let ticket = Ticket { client: question.client.clone(), id: reply.id.clone() };
        Asked { content: content.as_bytes().to_vec(), ..Asked::new(ticket, question, ask.priority.unwrap_or_default()) }
    }

    fn client(self: &Arc<Self>, name: Mark, reply: Reply, ask: &Ask, seq: Option<Seq>) -> Arc<Client> {
        Arc::new(Client {
            delivery: Arc::clone(self),
            name,
            streams: ask.stream.unwrap_or(false) && reply.form == ReplyForm::Json,
            reply,
            pieces: tokio::sync::Mutex::default(),
            seq,
            begun: AtomicBool::new(false),
        })
    }

    /// Takes a question in, or refuses it. Call in the order of arrival.
    pub(crate) fn ask(self: &Arc<Self>, message: &Message) {
        if self.desk.is_draining() && self.mailbox.is_some() && message.ack.is_some() {
            // Without an acknowledgement the broker keeps the question until we are back.
            return;
        }
        let content = content_of(message);
        let (reply, ask) = self.open(message, None);
        let question = ask.and_then(|ask| Ok((self.question(&ask, &reply, message)?, ask)));
        let (question, ask) = match question {
            Ok(question) => question,
            Err(fault) => {
                self.desk.refuse(&reply.id, &fault);
                return self.send_refusal(reply, message.ack, fault, Why::Wrong);
            }
        };
        let name = Mark::of(&[reply.topic.as_bytes(), reply.id.as_bytes()]);
        let mut asked = Self::asked(&reply, question, &ask, content);
        asked.redelivered = message.redelivered;
        let allowed = asked.question.allowed;
        // Before the desk: a repetition needs no room. The mailbox knows a question from its entry on, also while it is at work, so none
        // can end unseen between the two looks.
        if self.was_answered(name, content, message) {
            return self.acknowledge_soon(message.ack);
        }
        // Held until the question has entered, so that its end cannot come between `admit` and the push below.
        let mut unkept = self.unkept();
        match self.desk.admit(asked) {
            Admission::Refused(fault) if fault.code == ErrorCode::QueueFull => {
                self.send_refusal(reply, message.ack, fault, Why::NoRoom);
            }
            // A drain that began after the look above: the broker keeps the question, too.
            Admission::Refused(fault) if fault.code == ErrorCode::NotReady && self.mailbox.is_some() && message.ack.is_some() => {
            }
            Admission::Refused(fault) => self.send_refusal(reply, message.ack, fault, Why::Wrong),
            Admission::Repeated => {
                let same = |question: &&mut Unkept| question.name == name || (message.redelivered && question.content == content);
                match (unkept.iter_mut().find(same), message.ack) {
                    (Some(question), Some(ack)) => question.acks.push(ack),
                    (_, ack) => self.acknowledge_soon(ack),
                }
            }
            Admission::Admitted(place) => {
                let seq = self.keep(name, content, &reply, allowed, message);
                if self.mailbox.is_some() && seq.is_none() {
                    // Also at QoS 0: a repetition at QoS 1 is not on disk either.
                    unkept.push(Unkept { name, content, acks: message.ack.into_iter().collect() });
                } else {
                    self.acknowledge_soon(message.ack);
                }
                self.desk.enter(place, self.client(name, reply, &ask, seq), seq.is_some());
            }
        }
    }

    /// Checks a question's bounds, and its right to high priority.
    fn question(&self, ask: &Ask, reply: &Reply, message: &Message) -> Result<Question, Fault> {
        let mut question = self.desk.limits().question(ask, client_of(reply, &self.topics), Instant::now())?;
        if ask.priority == Some(Priority::High) && !self.topics.may_go_first(&reply.topic) {
            let problem = format!(
                "questions with replies to {} may not have high priority; mqtt.high_priority lists the reply topics that may",
                reply.topic
            );
            return Err(Fault::bad_request(problem));
        }
        if let Some(expiry) = message.expiry {
            question.allowed = question.allowed.min(expiry);
        }
        Ok(question)
    }

    /// Whether this question repeats one that was answered a moment ago.
    fn was_answered(&self, name: Mark, content: Mark, message: &Message) -> bool {
        let Some(mailbox) = &self.mailbox else { return false };
        let answered = mailbox.standing(name, content, message.redelivered) == Standing::Repeated;
        if answered {
            log::info!("a question that was just answered is repeated; the repetition is ignored");
            self.counts.repeated.fetch_add(1, Ordering::Relaxed);
        }
        answered
    }

    /// Writes a question to the inbox if its sender wants an acknowledgement.
    fn keep(&self, name: Mark, content: Mark, reply: &Reply, allowed: Duration, message: &Message) -> Option<Seq> {
        let mailbox = self.mailbox.as_ref()?;
        message.ack?;
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
            expires_ms: now + allowed.as_millis() as u64,
        };
        // The mailbox has logged why it cannot be written.
        mailbox.receive(received).ok()
    }

    async fn acknowledge(&self, ack: Ack) {
        if let Some(mailbox) = &self.mailbox
            && let Err(error) = mailbox.on_disk(SYNC_PATIENCE).await
        {
            // The broker keeps the question, and sends it again when we reconnect.
            return log::error!("a question is not acknowledged: {error}");
        }
        self.sender.acknowledge(ack).await;
    }

    fn acknowledge_soon(self: &Arc<Self>, ack: Option<Ack>) {
        if let Some(ack) = ack {
            let delivery = Arc::clone(self);
            tokio::spawn(async move { delivery.acknowledge(ack).await });
        }
    }

    fn send_refusal(self: &Arc<Self>, reply: Reply, ack: Option<Ack>, fault: Fault, why: Why) {
        let delivery = Arc::clone(self);
        tokio::spawn(async move {
            let message = reply.fault(fault);
            let sent = match ack {
                Some(ack) => delivery.sender.send_refusal(message, ack, why).await,
                None => delivery.sender.send(message).await,
            };
            if let Err(error) = sent {
                log::error!("reply {:?} is lost: {error}", reply.id);
                if let Some(ack) = ack {
                    delivery.sender.acknowledge(ack).await;
                }
            }
        });
    }

    /// Puts a final reply into the outbox, and waits until it is on disk.
    async fn keep_answer(&self, reply: &Reply, seq: Option<Seq>, mut message: Outgoing) -> Outgoing {
        if let Some(largest) = self.sender.is_too_large(&message) {
            let problem = format!(
                "the answer is larger than the {largest} bytes that the broker takes; ask with a smaller top_k, or raise the broker's max_packet_size"
            );
            message = reply.fault(Fault::new(ErrorCode::TooLarge, problem));
        }
        if let (Some(mailbox), Some(seq)) = (&self.mailbox, seq) {
            let kept = match mailbox.finish(seq, final_of(&message)) {
                Ok(()) => mailbox.on_disk(Duration::ZERO).await,
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                log::error!("the outbox cannot be written: {error}; a crash now would answer {:?} twice", reply.id);
            }
        }
        message
    }

    async fn publish(&self, message: Outgoing, seq: Option<Seq>) {
        let too_large = self.sender.is_too_large(&message).is_some();
        let sent = match (&self.mailbox, seq) {
            (Some(mailbox), Some(seq)) => self.sender.send_tracked(message, seq, self.echo_of(mailbox, seq)).await,
            _ => self.sender.send(message).await,
        };
        if let Err(error) = sent {
            match seq {
                // The connection has ended; the next start sends the answer from the outbox.
                Some(_) if !too_large => return log::warn!("a reply is left for the next start: {error}"),
                // A later attempt would fail as well.
                Some(seq) => self.delivered(seq),
                None => {}
            }
            log::error!("a reply is lost: {error}");
        }
    }

    /// The broker has acknowledged a final reply.
    pub(crate) fn delivered(&self, seq: Seq) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.delivered(seq);
        }
        self.delivered.notify_waiters();
    }

    /// Gives the broker a moment to acknowledge the answers, and logs the rest that stays for the next start.
    pub(crate) async fn settle(&self) {
        let Some(mailbox) = &self.mailbox else { return };
        let settled = async {
            loop {
                let delivered = self.delivered.notified();
                if mailbox.depth().1 == 0 {
                    return;
                }
                delivered.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), settled).await;
        let (inbox, outbox) = mailbox.depth();
        if (inbox, outbox) != (0, 0) {
            log::info!("left for the next start: {inbox} unanswered, {outbox} undelivered");
        }
    }
}

/// Expected echoes, each with its own channel: several arrive at once, and a shared signal would lose all but the last.
#[derive(Default)]
struct Awaited(Mutex<HashMap<Seq, oneshot::Sender<()>>>);

impl Awaited {
    fn expect(&self, number: Seq) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.numbers().insert(number, sender);
        receiver
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

/// The client that a question's share is counted for. MQTT does not name the publisher, so the reply topic stands for it.
fn client_of<'a>(reply: &'a Reply, topics: &Topics) -> &'a str {
    if reply.topic == topics.answer(&reply.id) { "" } else { &reply.topic }
}

/// Digest of the message as sent.
pub(crate) fn content_of(message: &Message) -> Mark {
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
mod tests;
