//! The local control socket: HTTP/1.1 over a Unix socket, for the command line.
//!
//! `POST /v1/search`, `/v1/documents/put`, `/v1/documents/delete` and `/v1/documents/list` take the bodies of the MQTT
//! topics of the same names, JSON or CBOR; `POST /v1/documents/failed` takes what could not be sent. `GET /v1/status` tells what `info` and `metrics` tell, and `GET /v1/backup` is
//! the library as one file. Only the daemon's own user, root and the socket's group are served (`peer`).

mod client;
mod download;
mod peer;

pub use client::{Client, ClientError};

use crate::api::wire::{self, Encoding, ErrorBody, ErrorCode, ErrorReply};
use crate::api::{Api, Problem, ReportFn, change_word, new_id};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;

/// Room for a request's other fields beside the document.
const ENVELOPE_BYTES: usize = 64 * 1024;

#[derive(Clone)]
struct Control {
    api: Api,
    status: ReportFn,
    /// Told when the library has changed.
    changed: Arc<tokio::sync::Notify>,
}

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the control socket {path}: {source}; check that the data directory is writable and its path shorter than 100 characters"
)]
pub struct SocketError {
    path: PathBuf,
    source: std::io::Error,
}

/// Binds the control socket, readable by owner and group; a socket left by a dead process is replaced. The caller holds
/// the store's lock, so that no living daemon can be using it.
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

/// Serves the control socket, which is at `path`, until the task is dropped.
pub async fn serve(
    listener: UnixListener,
    path: &Path,
    api: Api,
    status: ReportFn,
    max_document: usize,
    changed: Arc<tokio::sync::Notify>,
) {
    let router = Router::new()
        .route("/v1/status", get(get_status))
        .route("/v1/backup", get(backup))
        .route("/v1/search", post(search))
        .route("/v1/documents/put", post(put))
        .route("/v1/documents/failed", post(failed))
        .route("/v1/documents/delete", post(delete))
        .route("/v1/documents/list", post(list))
        .layer(DefaultBodyLimit::max(max_document + ENVELOPE_BYTES))
        .layer(axum::middleware::from_fn(peer::check))
        .layer(Extension(Arc::<Path>::from(path)))
        .with_state(Control { api, status, changed });
    if let Err(error) = axum::serve(listener, router.into_make_service_with_connect_info::<peer::Peer>()).await {
        log::error!("the control socket has failed: {error}");
    }
}

async fn get_status(State(control): State<Control>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], (control.status)().to_string()).into_response()
}

async fn backup(State(control): State<Control>) -> Response {
    let taken = tokio::task::spawn_blocking(move || control.api.snapshot()).await;
    match taken {
        Ok(Ok(snapshot)) => {
            let body = download::body(move |out| snapshot.write(out).map(|_| ()));
            ([(header::CONTENT_TYPE, "application/gzip")], body).into_response()
        }
        Ok(Err(error)) => {
            log::warn!("no backup: {error}");
            StatusCode::INSUFFICIENT_STORAGE.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn search(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&headers, body, async |ask: wire::Ask| control.api.search(ask.id.clone().unwrap_or_else(new_id), &ask).await).await
}

async fn put(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&headers, body, async |put: wire::Put| {
        let id = put.id.clone().unwrap_or_else(new_id);
        let (collection, outcome) = control.api.put(put).await?;
        control.changed.notify_one();
        let change = change_word(outcome.change).to_owned();
        let reply =
            wire::PutReply { id, document: outcome.document, collection, change, chunks: outcome.chunks, note: outcome.note };
        Ok(PutOutcome { reply, title: outcome.title, truncated: outcome.truncated })
    })
    .await
}

async fn failed(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&headers, body, async |failed: wire::Failed| control.api.note_failed(failed).await).await
}

async fn delete(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&headers, body, async |delete: wire::Delete| {
        let deleted = control.api.delete(&delete).await?;
        control.changed.notify_one();
        Ok(wire::DeleteReply { id: delete.id.unwrap_or_else(new_id), document: delete.document, deleted })
    })
    .await
}

async fn list(State(control): State<Control>, headers: HeaderMap, body: Bytes) -> Response {
    respond(&headers, body, async |list: wire::List| control.api.list(list.id.clone().unwrap_or_else(new_id), &list).await).await
}

/// A put's reply with what the command line's summary wants besides.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct PutOutcome {
    /// The reply.
    #[serde(flatten)]
    pub reply: wire::PutReply,
    /// The document's title.
    pub title: String,
    /// Chunks that were cut at the embedder's limit.
    pub truncated: u32,
}

async fn respond<T: DeserializeOwned, R: Serialize>(
    headers: &HeaderMap,
    body: Bytes,
    work: impl AsyncFnOnce(T) -> Result<R, Problem>,
) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let encoding = Encoding::of(&body, content_type).unwrap_or(Encoding::Json);
    let request = encoding.decode::<T>(&body);
    // A document need not be held twice while it is worked on.
    drop(body);
    let result = match request {
        Ok(request) => work(request).await,
        Err(problem) => Err((ErrorCode::BadRequest, problem)),
    };
    let (status, encoded) = match result {
        Ok(value) => (StatusCode::OK, encoding.encode(&value)),
        Err((code, message)) => (
            status_of(code),
            encoding.encode(&ErrorReply { id: String::new(), error: ErrorBody { code, message, retry_after_ms: None } }),
        ),
    };
    match encoded {
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
