use super::*;
use crate::rooms::{Ear, Heard, desk};
use wire::Mode;

fn ask(text: &str) -> Ask {
    Ask { question: text.into(), mode: Some(Mode::Answer), ..Ask::default() }
}

fn ticket(id: &str) -> Ticket {
    Ticket { client: "a".into(), id: id.into() }
}

#[tokio::test]
async fn an_asker_hears_all_in_order() {
    let (desk, echo, _) = desk();
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("1"), &ask("why"), ear).expect("taken");
    echo.permits.add_permits(1);
    for expected in [Heard::Begun, Heard::Evidence, Heard::Delta("why".into()), Heard::Answer("why".into())] {
        assert_eq!(heard.recv().await, Some(expected));
    }
    assert_eq!(heard.recv().await, None, "its door is dropped");
    let figures = desk.figures();
    assert_eq!((figures.depth, figures.answered, figures.errors), (0, 1, 0));
}

#[tokio::test]
async fn an_answer_echoes_its_question_in_the_shape_asked_for() {
    let (desk, echo, _) = desk();
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let small = Ask { max_chars: Some(20), ..ask(" Open the valve. Then wait. ") };
    let _presence = desk.ask(ticket("1"), &small, Arc::new(Last(ended))).expect("taken");
    echo.permits.add_permits(1);
    let Some(End::Answer(answer)) = end.recv().await else { panic!("no answer") };
    assert_eq!((answer.question.as_str(), answer.answer.as_str()), ("Open the valve. Then wait.", "Open the valve. …"));
}

#[tokio::test]
async fn a_refusal_is_counted_whatever_door_it_is_for() {
    let (desk, ..) = desk();
    let (ear, _heard) = Ear::new();
    assert_eq!(desk.ask(ticket("1"), &ask(" "), ear).expect_err("empty").code, ErrorCode::BadRequest);
    let elsewhere = Ask { collection: Some("nowhere".into()), ..ask("q") };
    assert_eq!(desk.search("2".into(), &elsewhere).await.expect_err("unknown").code, ErrorCode::UnknownCollection);
    assert_eq!(desk.figures().errors, 2);
}

#[tokio::test]
async fn a_question_that_waits_too_long_hears_of_it() {
    let (desk, _echo, _) = desk();
    let (first, _heard) = Ear::new();
    let _first = desk.ask(ticket("1"), &ask("q"), first).expect("taken");
    let (ear, mut heard) = Ear::new();
    let soon = Ask { deadline_ms: Some(20), ..ask("r") };
    let _presence = desk.ask(ticket("2"), &soon, ear).expect("taken");
    assert_eq!(heard.recv().await, Some(Heard::Fault(ErrorCode::DeadlineExceeded)));
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_worker() {
    let (desk, echo, _) = desk();
    let (ear, mut heard) = Ear::new();
    let presence = desk.ask(ticket("1"), &ask("q"), ear).expect("taken");
    assert_eq!(heard.recv().await, Some(Heard::Begun));
    drop(presence);
    while heard.recv().await != Some(Heard::Fault(ErrorCode::Cancelled)) {}
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("2"), &ask("r"), ear).expect("taken");
    echo.permits.add_permits(1);
    while heard.recv().await != Some(Heard::Answer("r".into())) {}
}

#[tokio::test]
async fn a_question_that_waits_for_the_library_holds_no_worker() {
    let (desk, echo, _) = desk();
    let (ear, mut patient) = Ear::new();
    let _patient = desk.ask(ticket("1"), &ask("patient"), ear).expect("taken");
    assert_eq!(patient.recv().await, Some(Heard::Begun));
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("2"), &ask("r"), ear).expect("taken");
    // The only worker has turned to the second question, while the first one is not answered.
    assert_eq!(heard.recv().await, Some(Heard::Begun));
    assert_eq!((echo.at_work.load(Ordering::SeqCst), desk.figures().depth), (2, 2));
    echo.permits.add_permits(2);
    while heard.recv().await != Some(Heard::Answer("r".into())) {}
    while patient.recv().await != Some(Heard::Answer("patient".into())) {}
    assert_eq!(desk.figures().depth, 0);
}

#[tokio::test]
async fn a_panic_costs_one_question() {
    let (desk, echo, _) = desk();
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("1"), &ask("panic"), ear).expect("taken");
    while heard.recv().await != Some(Heard::Fault(ErrorCode::Internal)) {}
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("2"), &ask("r"), ear).expect("taken");
    echo.permits.add_permits(1);
    while heard.recv().await != Some(Heard::Answer("r".into())) {}
    assert_eq!(desk.figures().depth, 0);
}

#[tokio::test]
async fn a_drain_ends_the_stubborn_questions() {
    let (desk, _echo, _) = desk();
    let heard: Vec<_> = [("1", true), ("2", false), ("3", true)]
        .map(|(id, durable)| {
            let question = desk.limits().question(&ask(id), "a", now()).expect("in bounds");
            let Admission::Admitted(place) = desk.admit(Asked::new(ticket(id), question, Priority::Normal)) else {
                panic!("not admitted")
            };
            let (ear, heard) = Ear::new();
            desk.enter(place, ear, durable);
            heard
        })
        .into();
    tokio::task::yield_now().await;
    desk.drain(Duration::from_millis(20)).await;
    assert!(desk.is_draining());
    assert_eq!(desk.figures().depth, 0);
    let ends = [Heard::LaidAside, Heard::Fault(ErrorCode::NotReady), Heard::LaidAside];
    for (mut heard, end) in heard.into_iter().zip(ends) {
        let mut last = None;
        while let Some(next) = heard.recv().await {
            last = Some(next);
        }
        assert_eq!(last, Some(end));
    }
}

#[tokio::test]
async fn a_place_that_is_not_taken_is_free_again() {
    let (desk, ..) = desk();
    let question = desk.limits().question(&ask("q"), "a", now()).expect("in bounds");
    let place = desk.admit(Asked::new(ticket("1"), question, Priority::Normal));
    assert!(matches!(place, Admission::Admitted(_)));
    assert_eq!(desk.figures().depth, 1);
    drop(place);
    assert_eq!(desk.figures().depth, 0);
}

/// Hands on its final reply.
struct Last(tokio::sync::mpsc::UnboundedSender<End>);

impl Asker for Last {
    fn streams(&self) -> bool {
        false
    }

    fn progress(&self, _: Progress) -> Pending<'_, ()> {
        unreachable!("not streamed")
    }

    fn end<'a>(&'a self, end: End, safe: Safe<'a>) -> Pending<'a, ()> {
        safe();
        let _ = self.0.send(end);
        Box::pin(async {})
    }
}

/// Its reply is stored, but never sent: the broker is away.
struct Stuck;

impl Asker for Stuck {
    fn streams(&self) -> bool {
        false
    }

    fn progress(&self, _: Progress) -> crate::Pending<'_, ()> {
        Box::pin(async {})
    }

    fn end<'a>(&'a self, _: End, safe: Safe<'a>) -> crate::Pending<'a, ()> {
        Box::pin(async {
            safe();
            std::future::pending::<()>().await;
        })
    }
}

#[tokio::test]
async fn a_reply_that_cannot_be_sent_holds_no_worker() {
    let (desk, echo, _) = desk();
    let _presence = desk.ask(ticket("1"), &ask("q"), Arc::new(Stuck)).expect("taken");
    echo.permits.add_permits(2);
    let (ear, mut heard) = Ear::new();
    let _presence = desk.ask(ticket("2"), &ask("r"), ear).expect("taken");
    while heard.recv().await != Some(Heard::Answer("r".into())) {}
}
