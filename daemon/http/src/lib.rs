//! The local control socket: HTTP/1.1 over a Unix socket, for the command line.
//!
//! | request | reply |
//! |---|---|
//! | `POST /v1/ask` | the answer; with `Accept: text/event-stream` evidence, deltas and the answer as they come |
//! | `POST /v1/search`, `/v1/documents/put`, `/v1/documents/delete`, `/v1/documents/list` | as on the MQTT topics of these names |
//! | `POST /v1/documents/failed` | records a document that could not be sent |
//! | `GET /v1/status` | `info` and `metrics` |
//! | `GET /v1/backup` | the library as one file |
//!
//! Bodies are JSON or CBOR. Only the daemon's own user, root and members of the socket's group are served (`peer`).
#![deny(unsafe_code)]

mod ask;
mod client;
mod download;
mod peer;

pub use client::{Client, ClientError, Event};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use desk::Desk;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use wire::{Address, Addressed, Encoding, ErrorCode, Fault, Status, new_id};

/// Room for a request's fields besides the document.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// Builds the current status.
pub type StatusFn = Arc<dyn Fn() -> Status + Send + Sync>;

#[derive(Clone)]
struct Control {
    desk: Desk,
    status: StatusFn,
}

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the control socket {path}: {source}; check that the data directory is writable and its path shorter than 100 characters"
)]
pub struct SocketError {
    path: PathBuf,
    source: std::io::Error,
}

/// Binds the control socket, readable by owner and group, and replaces a socket left by a dead process. The caller holds the
/// store's lock, so no living daemon uses the socket.
///
/// # Errors
/// The directory is not writable, or the path too long for a Unix socket.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Serves the control socket at `path` until the task is dropped.
pub async fn serve(listener: UnixListener, path: &Path, desk: Desk, status: StatusFn, max_document: usize) {
    let router = Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/backup", get(backup))
        .route("/v1/ask", post(ask::ask))
        .route("/v1/search", post(search))
        .route("/v1/documents/put", post(put))
        .route("/v1/documents/failed", post(failed))
        .route("/v1/documents/delete", post(delete))
        .route("/v1/documents/list", post(list))
        .layer(DefaultBodyLimit::max(max_document + ENVELOPE_BYTES))
        .layer(axum::middleware::from_fn(peer::check))
        .layer(Extension(Arc::<Path>::from(path)))
        .with_state(Control { desk, status });
    if let Err(error) = axum::serve(listener, router.into_make_service_with_connect_info::<peer::Peer>()).await {
        log::error!("the control socket has failed: {error}");
    }
}

async fn get_status(State(control): State<Control>) -> Response {
    encoded(StatusCode::OK, Encoding::Json, &(control.status)())
}

async fn backup(State(control): State<Control>) -> Response {
    match control.desk.backup().await {
        Ok(write) => ([(header::CONTENT_TYPE, "application/gzip")], download::body(write)).into_response(),
        Err(fault) => reply::<()>(Encoding::Json, "", Err(fault)),
    }
}

async fn search(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&control, &headers, body, async |ask: wire::Ask, id| control.desk.search(id, &ask).await).await
}

async fn put(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&control, &headers, body, async |put: wire::Put, id| {
        let (reply, outcome) = control.desk.put(id, put).await?;
        Ok(PutOutcome { reply, title: outcome.title, truncated: outcome.truncated })
    })
    .await
}

async fn failed(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&control, &headers, body, async |failed: wire::Failed, _| control.desk.note_failed(failed).await).await
}

async fn delete(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&control, &headers, body, async |delete: wire::Delete, id| control.desk.delete(id, delete).await).await
}

async fn list(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&control, &headers, body, async |list: wire::List, id| control.desk.list(id, &list).await).await
}

/// A put's reply, extended for the command line's summary.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct PutOutcome {
    /// The reply.
    #[serde(flatten)]
    pub reply: wire::PutReply,
    /// The document's title.
    pub title: String,
    /// Chunks that were cut at the encoder's limit.
    pub truncated: u32,
}

/// The encoding of a request.
fn encoding_of(headers: &HeaderMap, body: &[u8]) -> Encoding {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Encoding::of(body, content_type).unwrap_or(Encoding::Json)
}

async fn respond<T: DeserializeOwned + Addressed, R: Serialize>(
    control: &Control,
    headers: &HeaderMap,
    body: Bytes,
    work: impl AsyncFnOnce(T, String) -> Result<R, Fault>,
) -> Response {
    let encoding = encoding_of(headers, &body);
    let request = encoding.decode::<T>(&body);
    let address = match &request {
        Ok(request) => request.address(),
        Err(_) => encoding.decode::<Address>(&body).unwrap_or_default(),
    };
    // The decoded request holds the document; do not hold it twice during the work.
    drop(body);
    let id = address.id.unwrap_or_else(new_id);
    let result = match request {
        Ok(request) => work(request, id.clone()).await,
        Err(problem) => Err(unreadable(control, problem)),
    };
    reply(encoding, &id, result)
}

/// A request that does not reach the desk.
fn unreadable(control: &Control, problem: String) -> Fault {
    let fault = Fault::bad_request(problem);
    control.desk.refuse("", &fault);
    fault
}

fn reply<R: Serialize>(encoding: Encoding, id: &str, result: Result<R, Fault>) -> Response {
    match result {
        Ok(value) => encoded(StatusCode::OK, encoding, &value),
        Err(fault) => encoded(status_of(fault.code), encoding, &fault.reply(id)),
    }
}

fn encoded<R: Serialize>(status: StatusCode, encoding: Encoding, value: &R) -> Response {
    match encoding.encode(value) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, encoding.content_type())], bytes).into_response(),
        Err(problem) => (StatusCode::INTERNAL_SERVER_ERROR, problem).into_response(),
    }
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnknownCollection => StatusCode::NOT_FOUND,
        ErrorCode::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::Cancelled | ErrorCode::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Storage => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests;
