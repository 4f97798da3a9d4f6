use super::*;
use crate::connection::tests::{ack, recorded};
use desk::{Answers, Backup, Library, Limits, Outcome, Put, made_up};
use rumqttc::v5::Request;
use std::sync::atomic::AtomicUsize;
use tokio::sync::Semaphore;
use wire::{Answer, Cancel, Failed, Listed, SearchReply};

/// Larger than the longest body that the mailbox keeps.
const TOO_LONG_TO_KEEP: usize = 17 << 20;

/// Answers with the question's own text, one answer for each permit.
struct Echo {
    permits: Semaphore,
    at_work: AtomicUsize,
}

impl Answers for Echo {
    fn answer<'a>(
        &'a self,
        question: &'a Question,
        _: &'a Cancel,
        _: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Pending<'a, Result<Answer, Fault>> {
        Box::pin(async move {
            self.at_work.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.expect("open").forget();
            Ok(made_up::answer(&question.text))
        })
    }
}

/// No test here touches documents.
struct NoLibrary;

impl Library for NoLibrary {
    fn search(&self, _: String, _: &Question) -> Result<SearchReply, Fault> {
        unreachable!("no searches")
    }

    fn put(&self, _: Put, _: &dyn Fn() -> bool) -> Result<Outcome, Fault> {
        unreachable!("no documents")
    }

    fn delete(&self, _: &str, _: &str) -> Result<bool, Fault> {
        unreachable!("no documents")
    }

    fn note_failed(&self, _: &str, _: &Failed) -> Result<(), Fault> {
        unreachable!("no documents")
    }

    fn list(&self, _: Option<&str>) -> Result<Vec<Listed>, Fault> {
        unreachable!("no documents")
    }

    fn backup(&self) -> Result<Backup, Fault> {
        unreachable!("no documents")
    }
}

/// A door with a mailbox in a directory, in front of an [`Echo`].
struct Door {
    delivery: Arc<Delivery>,
    desk: Desk,
    echo: Arc<Echo>,
    requests: flume::Receiver<Request>,
    backlog: Vec<Unanswered>,
    undelivered: Vec<Seq>,
}

impl Door {
    fn open(dir: Option<&std::path::Path>) -> Self {
        let limits = Limits { max_payload_bytes: 2 * TOO_LONG_TO_KEEP, queue: 2, ..made_up::limits() };
        let echo = Arc::new(Echo { permits: Semaphore::new(0), at_work: AtomicUsize::new(0) });
        let desk = Desk::new(limits, Arc::clone(&echo) as _, Arc::new(NoLibrary), Arc::default());
        desk.start();
        let (mailbox, backlog) = dir.map(|dir| Mailbox::open(dir).expect("opens")).unzip();
        let topics = Topics::new("v/pi".into(), "v", "", vec![], vec![]);
        let (sender, requests) = recorded();
        let delivery = Delivery::new(topics, desk.clone(), sender, mailbox);
        let backlog = backlog.unwrap_or_default();
        Self { delivery, desk, echo, requests, backlog: backlog.unanswered, undelivered: backlog.undelivered }
    }

    fn ask(&self, id: &str, pkid: u16, redelivered: bool) {
        self.delivery.ask(&message(format!(r#"{{"id":"{id}","question":"why {id}"}}"#), pkid, redelivered));
    }

    /// The next request: `ack 7`, or the topic and the word for its payload.
    async fn next(&self) -> String {
        match self.requests.recv_async().await.expect("the sender lives") {
            Request::PubAck(ack) => format!("ack {}", ack.pkid),
            Request::Publish(publish) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                if topic == "v/pi/receipt" {
                    // The broker sends it back at once.
                    self.delivery.echo(&publish.payload);
                    return "receipt".into();
                }
                let text = String::from_utf8(publish.payload.to_vec()).expect("UTF-8");
                let Ok(payload) = serde_json::from_str::<serde_json::Value>(&text) else {
                    return format!("{topic} text: {text}");
                };
                let word = payload["answer"].as_str().or(payload["error"]["code"].as_str()).expect("a final reply");
                format!("{topic} {word}")
            }
            other => format!("{other:?}"),
        }
    }

    async fn expect(&self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    async fn is_at_work(&self, questions: usize) {
        while self.echo.at_work.load(Ordering::SeqCst) < questions {
            tokio::task::yield_now().await;
        }
    }

    fn kept(&self) -> (usize, usize) {
        let report = self.delivery.report();
        (report.inbox, report.outbox)
    }
}

fn message(payload: String, pkid: u16, redelivered: bool) -> Message {
    Message {
        topic: "v/pi/ask".into(),
        payload: payload.into(),
        retained: false,
        properties: Properties::default(),
        ack: (pkid > 0).then(|| ack(pkid)),
        redelivered,
        expiry: None,
    }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[tokio::test]
async fn a_question_is_kept_until_its_answer_is_out() {
    let dir = dir();
    let door = Door::open(Some(dir.path()));
    door.ask("1", 7, false);
    door.expect(&["ack 7"]).await;
    assert_eq!(door.kept(), (1, 0));
    door.echo.permits.add_permits(1);
    door.expect(&["v/pi/answer/1 why 1"]).await;
    assert_eq!(door.kept(), (0, 1), "until the broker has it");
    door.expect(&["receipt"]).await;
    assert_eq!(door.kept(), (0, 0));
}

/// The broker loses the connection, or the daemon dies, before the answer is acknowledged.
#[tokio::test]
async fn a_text_is_sent_again_as_the_same_text() {
    let dir = dir();
    let text = "v/pi/answer/1 text: Open the valve. …";
    let door = Door::open(Some(dir.path()));
    let question = r#"{"id":"1","question":"Open the valve. Wait for it.","reply":"text","max_chars":20,"stream":true}"#;
    door.delivery.ask(&message(question.into(), 7, false));
    door.expect(&["ack 7"]).await;
    door.echo.permits.add_permits(1);
    door.expect(&[text]).await;
    assert_eq!(door.kept(), (0, 1));
    drop(door);
    let door = Door::open(Some(dir.path()));
    door.delivery.resume(door.undelivered.clone(), vec![], false).await;
    door.expect(&[text, "receipt"]).await;
    assert_eq!(door.kept(), (0, 0));
}

#[tokio::test]
async fn a_refusal_is_text_too() {
    let door = Door::open(None);
    door.delivery.ask(&message(r#"{"id":"1","question":"why","reply":"text","max_chars":7}"#.into(), 0, false));
    door.expect(&["v/pi/answer/1 text: error: bad_request…"]).await;
    door.delivery.ask(&message(r#"{"id":"2","question":"why","reply":"text","top_k":0}"#.into(), 0, false));
    door.expect(&["v/pi/answer/2 text: error: bad_request: top_k is 0; it must be from 1 to 20"]).await;
}

#[tokio::test]
async fn a_repeated_question_is_answered_once() {
    let dir = dir();
    let door = Door::open(Some(dir.path()));
    door.ask("1", 7, false);
    door.expect(&["ack 7"]).await;
    door.ask("1", 8, true);
    door.expect(&["ack 8"]).await;
    door.echo.permits.add_permits(2);
    door.expect(&["v/pi/answer/1 why 1", "receipt"]).await;
    // The mailbox remembers the answer.
    door.ask("1", 9, true);
    door.expect(&["ack 9"]).await;
    assert_eq!((door.kept(), door.delivery.report().repeated), ((0, 0), 2));
    assert_eq!(door.echo.at_work.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn qos_0_and_no_mailbox_keep_nothing() {
    let dir = dir();
    for (door, pkid) in [(Door::open(Some(dir.path())), 0), (Door::open(None), 0), (Door::open(None), 7)] {
        door.echo.permits.add_permits(1);
        door.ask("1", pkid, false);
        let mut requests = vec![door.next().await];
        if pkid > 0 {
            requests.push(door.next().await);
            requests.sort();
            assert_eq!(requests.remove(0), "ack 7");
        }
        assert_eq!((requests, door.kept()), (vec!["v/pi/answer/1 why 1".to_owned()], (0, 0)));
    }
}

#[tokio::test]
async fn an_unkept_question_is_acknowledged_at_its_end() {
    let dir = dir();
    let door = Door::open(Some(dir.path()));
    let payload = format!(r#"{{"id":"1","question":"why 1"{}}}"#, " ".repeat(TOO_LONG_TO_KEEP));
    door.delivery.ask(&message(payload.clone(), 7, false));
    door.is_at_work(1).await;
    door.delivery.ask(&message(payload, 8, true));
    assert!(door.requests.is_empty(), "the broker must keep it");
    assert_eq!(door.kept(), (0, 0));
    door.echo.permits.add_permits(1);
    door.expect(&["v/pi/answer/1 why 1", "ack 7", "ack 8"]).await;
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let dir = dir();
    let door = Door::open(Some(dir.path()));
    for (id, pkid) in [("1", 1), ("2", 2), ("3", 3)] {
        door.ask(id, pkid, false);
        door.expect(&[&format!("ack {pkid}")]).await;
    }
    door.ask("4", 4, false);
    // The connection acknowledges a refusal once its reply is sent.
    door.expect(&["v/pi/answer/4 queue_full"]).await;
    assert_eq!((door.kept(), door.delivery.report().refused), ((3, 0), 1), "one at work, two in the queue");
}

#[tokio::test]
async fn a_drain_leaves_new_questions_to_the_broker() {
    let dir = dir();
    let durable = Door::open(Some(dir.path()));
    durable.desk.drain(Duration::ZERO).await;
    durable.ask("1", 7, false);
    durable.ask("2", 0, false);
    durable.expect(&["v/pi/answer/2 not_ready"]).await;
    assert!(durable.requests.is_empty() && durable.kept() == (0, 0));
    let plain = Door::open(None);
    plain.desk.drain(Duration::ZERO).await;
    plain.ask("1", 7, false);
    plain.expect(&["v/pi/answer/1 not_ready"]).await;
}

#[tokio::test]
async fn the_next_run_answers_or_gives_up() {
    let dir = dir();
    {
        let door = Door::open(Some(dir.path()));
        for (id, pkid) in [("1", 1), ("2", 2)] {
            door.ask(id, pkid, false);
            door.expect(&[&format!("ack {pkid}")]).await;
        }
    }
    let door = Door::open(Some(dir.path()));
    let mut backlog = door.backlog.clone();
    assert_eq!((backlog.len(), backlog[0].crashes), (2, 1), "a worker had the first one");
    backlog[1].crashes = MOST_CRASHES;
    let mut late = backlog[1].clone();
    (late.crashes, late.received.expires_ms) = (0, late.received.received_ms);
    late.received.id = "late".into();
    let rejected = door.delivery.take_up([backlog, vec![late]].concat());
    assert_eq!(rejected.iter().map(|one| one.fault.code).collect::<Vec<_>>(), [ErrorCode::Internal, ErrorCode::DeadlineExceeded]);
    let report = door.delivery.report();
    assert_eq!((report.resumed, report.given_up, report.expired), (1, 1, 1));
    door.delivery.resume(vec![], rejected, false).await;
    door.expect(&["v/pi/answer/2 internal", "receipt", "v/pi/answer/late deadline_exceeded", "receipt"]).await;
    door.echo.permits.add_permits(1);
    door.expect(&["v/pi/answer/1 why 1", "receipt"]).await;
    assert_eq!(door.kept(), (0, 0));
}

#[test]
fn echoes_in_one_breath_are_all_heard() {
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
