//! `POST /v1/ask`: one reply, or a stream of server-sent events (WHATWG HTML, section 9.2); with `"reply": "text"` one plain text.

use crate::{Control, download, encoding_of, reply, status_of, unreadable};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use desk::{Asker, End, Pending, Presence, Safe, Ticket};
use serde::Serialize;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;
use wire::{
    Address, Addressed, AnswerReply, Ask, DeltaReply, Encoding, ErrorCode, EvidenceReply, Fault, Progress, ReplyForm, new_id,
};

/// The client name of this socket: all its clients take one share of the queue.
const CLIENT: &str = "control socket";

/// A client of this door; its question's events go to a channel.
struct Client {
    streams: bool,
    /// Unbounded: a client that does not read must not hold the worker. An answer has a bound.
    events: mpsc::UnboundedSender<ClientEvent>,
}

enum ClientEvent {
    Progress(Progress),
    End(End),
}

impl Asker for Client {
    fn streams(&self) -> bool {
        self.streams
    }

    fn progress(&self, progress: Progress) -> Pending<'_, ()> {
        // If the client has gone away, its presence tells the desk.
        let _ = self.events.send(ClientEvent::Progress(progress));
        Box::pin(async {})
    }

    fn end<'a>(&'a self, end: End, safe: Safe<'a>) -> Pending<'a, ()> {
        let _ = self.events.send(ClientEvent::End(end));
        safe();
        Box::pin(async {})
    }
}

/// The final reply in the form that the client wants.
struct Reply {
    id: String,
    encoding: Encoding,
    form: ReplyForm,
    /// Most characters of an error in text.
    max_chars: Option<usize>,
}

impl Reply {
    fn end(&self, end: End) -> Response {
        match (self.form, end) {
            (ReplyForm::Json, End::Answer(answer)) => {
                reply(self.encoding, &self.id, Ok(AnswerReply { id: self.id.clone(), answer: *answer }))
            }
            (ReplyForm::Json, End::Fault(fault)) => reply::<()>(self.encoding, &self.id, Err(fault)),
            // axum sends a string as text/plain in UTF-8.
            (ReplyForm::Text, End::Answer(answer)) => answer.answer.into_response(),
            (ReplyForm::Text, End::Fault(fault)) => (status_of(fault.code), fault.line(self.max_chars)).into_response(),
        }
    }
}

pub(super) async fn ask(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    let encoding = encoding_of(&headers, &body);
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let streams = accept.to_ascii_lowercase().contains("text/event-stream");
    let ask = encoding.decode::<Ask>(&body);
    let address = match &ask {
        Ok(ask) => ask.address(),
        Err(_) => encoding.decode::<Address>(&body).unwrap_or_default(),
    };
    let id = address.id.unwrap_or_else(new_id);
    let reply = Reply { id: id.clone(), encoding, form: address.reply.unwrap_or_default(), max_chars: address.max_chars };
    let ask = match ask {
        Ok(ask) => ask,
        Err(problem) => return reply.end(End::Fault(unreadable(&control, problem))),
    };
    let streams = streams && reply.form == ReplyForm::Json;
    let (sender, mut events) = mpsc::unbounded_channel();
    let ticket = Ticket { client: CLIENT.into(), id: id.clone() };
    let presence = match control.desk.ask(ticket, &ask, Arc::new(Client { streams, events: sender })) {
        Ok(presence) => presence,
        Err(fault) => return reply.end(End::Fault(fault)),
    };
    if streams {
        return stream(id, presence, events);
    }
    let end = loop {
        match events.recv().await {
            Some(ClientEvent::End(end)) => break end,
            Some(ClientEvent::Progress(_)) => {}
            None => break End::Fault(Fault::new(ErrorCode::Internal, "the work on this question ended without an answer")),
        }
    };
    drop(presence);
    reply.end(end)
}

/// Sends events as they come. The body holds the presence, so a hang-up cancels the question.
fn stream(id: String, presence: Presence, mut events: mpsc::UnboundedReceiver<ClientEvent>) -> Response {
    let (pieces, body) = download::pieces();
    tokio::spawn(async move {
        let _presence = presence;
        let mut seq = 0;
        loop {
            let next = tokio::select! {
                next = events.recv() => next,
                () = pieces.closed() => return,
            };
            let (event, last) = match next {
                Some(ClientEvent::Progress(Progress::Waiting)) => continue,
                Some(ClientEvent::Progress(Progress::Evidence(evidence))) => {
                    (event("evidence", &EvidenceReply { id: id.clone(), seq, evidence }), false)
                }
                Some(ClientEvent::Progress(Progress::Delta(delta))) => {
                    (event("delta", &DeltaReply { id: id.clone(), seq, delta }), false)
                }
                Some(ClientEvent::End(End::Answer(answer))) => {
                    (event("answer", &AnswerReply { id: id.clone(), answer: *answer }), true)
                }
                Some(ClientEvent::End(End::Fault(fault))) => (event("error", &fault.reply(&id)), true),
                None => return,
            };
            seq += 1;
            if pieces.send(event).await.is_err() || last {
                return;
            }
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// One event; JSON has no line break, so one `data` line holds it.
fn event(name: &str, value: &impl Serialize) -> io::Result<Bytes> {
    let data = Encoding::Json.encode(value).map_err(io::Error::other)?;
    let mut event = format!("event: {name}\ndata: ").into_bytes();
    event.extend(data);
    event.extend(b"\n\n");
    Ok(event.into())
}
