//! The socket itself, in front of made-up rooms.

use super::*;
use desk::{Answers, Backup, Library, Limits, Outcome, Pending, Put, made_up};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Notify;
use wire::{Answer, Ask, Cancel, Change, Delete, DeleteReply, Failed, List, ListReply, Listed, Progress, Question, SearchReply};

/// Answers with the question, in two deltas; "wait" waits until it is cancelled.
struct Echo {
    cancelled: Arc<Notify>,
}

impl Answers for Echo {
    fn answer<'a>(
        &'a self,
        question: &'a Question,
        cancel: &'a Cancel,
        progress: &'a mut (dyn FnMut(Progress) + Send),
    ) -> Pending<'a, Result<Answer, Fault>> {
        Box::pin(async move {
            progress(Progress::Evidence(vec![]));
            if question.text == "wait" {
                cancel.cancelled().await;
                self.cancelled.notify_one();
                return Err(Fault::new(ErrorCode::Cancelled, "the question was cancelled"));
            }
            if question.text == "many" {
                (0..20_000).for_each(|_| progress(Progress::Delta("a delta of some length, so that buffers fill".into())));
            }
            let (first, second) = question.text.split_at(question.text.len() / 2);
            progress(Progress::Delta(first.into()));
            progress(Progress::Delta(second.into()));
            Ok(made_up::answer(&question.text))
        })
    }
}

#[derive(Default)]
struct Shelf(Mutex<Vec<String>>);

impl Library for Shelf {
    fn search(&self, _: String, _: &Question) -> Result<SearchReply, Fault> {
        Err(Fault::new(ErrorCode::UnknownCollection, "there is no such collection"))
    }

    fn put(&self, put: Put, _: &dyn Fn() -> bool) -> Result<Outcome, Fault> {
        self.0.lock().expect("lock").push(put.document);
        Ok(Outcome { change: Change::Added, title: "Pump".into(), chunks: 2, truncated: 1, note: None })
    }

    fn delete(&self, _: &str, document: &str) -> Result<bool, Fault> {
        let mut documents = self.0.lock().expect("lock");
        let before = documents.len();
        documents.retain(|known| known != document);
        Ok(documents.len() < before)
    }

    fn note_failed(&self, _: &str, _: &Failed) -> Result<(), Fault> {
        Ok(())
    }

    fn list(&self, _: Option<&str>) -> Result<Vec<Listed>, Fault> {
        let documents = self.0.lock().expect("lock");
        Ok(documents.iter().map(|id| Listed { id: id.clone(), ..Listed::default() }).collect())
    }

    fn backup(&self) -> Result<Backup, Fault> {
        Ok(Box::new(|out| out.write_all(&vec![7; 300_000])))
    }
}

struct Socket {
    dir: tempfile::TempDir,
    cancelled: Arc<Notify>,
    desk: Desk,
}

impl Socket {
    fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cancelled = Arc::new(Notify::new());
        let limits = Limits { queue: 1, ..made_up::limits() };
        let answers = Arc::new(Echo { cancelled: Arc::clone(&cancelled) });
        let desk = Desk::new(limits, answers, Arc::new(Shelf::default()), Arc::default());
        desk.start();
        let path = dir.path().join("control.sock");
        let listener = bind(&path).expect("the socket");
        let status: StatusFn = Arc::new(|| unreachable!("nobody asks for the status here"));
        let served = desk.clone();
        tokio::spawn(async move { serve(listener, &path, served, status, 1000).await });
        Self { dir, cancelled, desk }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.dir.path().join("control.sock")).await.expect("connects").expect("listens")
    }
}

fn ask(question: &str) -> Ask {
    Ask { question: question.into(), ..Ask::default() }
}

#[tokio::test]
async fn an_answer_is_streamed() {
    let socket = Socket::open();
    let mut events = Vec::new();
    let reply = socket.client().await.ask(&ask("größer"), &mut |event| events.push(event)).await;
    assert_eq!(reply.expect("an answer").answer.answer, "größer");
    assert_eq!(events[0], Event::Evidence);
    let text: String = events[1..].iter().map(|event| if let Event::Delta(text) = event { text.as_str() } else { "?" }).collect();
    assert_eq!(text, "größer");
}

#[tokio::test]
async fn without_a_stream_there_is_one_reply() {
    let socket = Socket::open();
    let reply: wire::AnswerReply = socket.client().await.post("ask", &ask("why")).await.expect("an answer");
    assert_eq!(reply.answer.answer, "why");
    assert_eq!(reply.id.len(), 16);
}

/// The whole response to a question, as text.
async fn raw(socket: &Socket, body: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket.dir.path().join("control.sock")).await.expect("connects");
    let head = "POST /v1/ask HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: text/event-stream\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("UTF-8");
    response
}

#[tokio::test]
async fn a_text_reply_is_one_text_also_for_errors() {
    let socket = Socket::open();
    let answer = raw(&socket, r#"{"question":"größer","reply":"text"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: text/plain; charset=utf-8"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ngrößer"), "{answer}");
    for (body, end) in [
        (r#"{"question":" ","reply":"text"}"#, "\r\n\r\nerror: bad_request: the question is empty"),
        (r#"{"question":7,"reply":"text","max_chars":20}"#, "\r\n\r\nerror: bad_request…"),
    ] {
        let refused = raw(&socket, body).await;
        assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("content-type: text/plain"), "{refused}");
        assert!(refused.ends_with(end), "{refused}");
    }
    assert!(raw(&socket, r#"{"question":"why","reply":"json"}"#).await.contains("event: answer"));
}

#[tokio::test]
async fn refusals_have_their_code() {
    let socket = Socket::open();
    let mut client = socket.client().await;
    let code = |error: ClientError| if let ClientError::Refused { code, .. } = error { code } else { None };
    let refused = client.ask(&ask(" "), &mut |_| ()).await.expect_err("empty");
    assert_eq!(code(refused), Some(ErrorCode::BadRequest));
    let refused = client.post::<_, wire::SearchReply>("search", &ask("q")).await.expect_err("unknown");
    assert_eq!(code(refused), Some(ErrorCode::UnknownCollection));
    let refused = client.post::<_, wire::SearchReply>("search", &List::default()).await.expect_err("no question");
    assert_eq!(code(refused), Some(ErrorCode::BadRequest));
    assert_eq!(socket.desk.figures().errors, 3);
}

#[tokio::test]
async fn a_hang_up_cancels_the_question() {
    let socket = Socket::open();
    for streams in [true, false] {
        let mut client = socket.client().await;
        let asking = tokio::spawn(async move {
            if streams {
                client.ask(&ask("wait"), &mut |_| ()).await.map(drop)
            } else {
                client.post::<_, wire::AnswerReply>("ask", &ask("wait")).await.map(drop)
            }
        });
        while socket.desk.figures().depth == 0 {
            tokio::task::yield_now().await;
        }
        asking.abort();
        socket.cancelled.notified().await;
    }
}

#[tokio::test]
async fn documents_go_in_and_out() {
    let socket = Socket::open();
    let mut client = socket.client().await;
    let put = wire::Put { document: "a.md".into(), text: Some("text".into()), ..wire::Put::default() };
    let outcome: PutOutcome = client.post("documents/put", &put).await.expect("put");
    assert_eq!((outcome.title.as_str(), outcome.truncated, outcome.reply.chunks), ("Pump", 1, 2));
    let list: ListReply = client.post("documents/list", &List::default()).await.expect("list");
    assert_eq!((list.total, list.documents[0].id.as_str()), (1, "a.md"));
    let delete = Delete { document: "a.md".into(), ..Delete::default() };
    assert!(client.post::<_, DeleteReply>("documents/delete", &delete).await.expect("deleted").deleted);
    assert!(!client.post::<_, DeleteReply>("documents/delete", &delete).await.expect("no such document").deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_comes_whole() {
    let socket = Socket::open();
    let mut file = Vec::new();
    socket.client().await.download("backup", &mut file).await.expect("a backup");
    assert_eq!(file, vec![7; 300_000]);
}

#[tokio::test]
async fn nobody_listens_where_no_daemon_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(Client::connect(&dir.path().join("control.sock")).await.expect("no error").is_none());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_no_worker() {
    use tokio::io::AsyncWriteExt;
    let socket = Socket::open();
    let mut silent = tokio::net::UnixStream::connect(socket.dir.path().join("control.sock")).await.expect("connects");
    let body = r#"{"question":"many"}"#;
    let request =
        format!("POST /v1/ask HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    silent.write_all(request.as_bytes()).await.expect("sent");
    while socket.desk.figures().depth == 0 && socket.desk.figures().answered == 0 {
        tokio::task::yield_now().await;
    }
    let mut client = socket.client().await;
    let (asked, mut ignored) = (ask("why"), |_| ());
    let reply = tokio::time::timeout(Duration::from_secs(5), client.ask(&asked, &mut ignored)).await;
    assert_eq!(reply.expect("a free worker").expect("an answer").answer.answer, "why");
    drop(silent);
}
