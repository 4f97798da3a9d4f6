//! The command line's side of the control socket.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::net::UnixStream;
use wire::{AnswerReply, Ask, DeltaReply, Encoding, ErrorCode, ErrorReply};

/// Largest response read, in bytes.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;

/// Failures of a call to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused the request.
    #[error("{message}")]
    Refused {
        /// The daemon's message.
        message: String,
        /// The daemon's error code, if it gave one.
        code: Option<ErrorCode>,
    },
    /// The connection failed.
    #[error("the daemon's control socket failed: {0}; check that the daemon is still running")]
    Connection(String),
}

/// A connection to a running daemon.
pub struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    /// Connects; `None` if no daemon listens on the socket.
    ///
    /// # Errors
    /// The socket exists but may not be used.
    pub async fn connect(socket: &Path) -> Result<Option<Self>, ClientError> {
        use std::io::ErrorKind as K;
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), K::NotFound | K::ConnectionRefused) => return Ok(None),
            Err(error) if error.kind() == K::PermissionDenied => {
                let remedy = "run this as root, as the daemon's user or as a member of its group";
                return Err(ClientError::Refused { message: format!("{}: {error}; {remedy}", socket.display()), code: None });
            }
            Err(error) => return Err(ClientError::Connection(format!("{}: {error}", socket.display()))),
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| ClientError::Connection(e.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("control connection: {error}");
            }
        });
        Ok(Some(Self(sender)))
    }

    /// `POST /v1/<name>` in CBOR.
    ///
    /// # Errors
    /// The daemon refused, or the connection failed.
    pub async fn post<T: Serialize, R: DeserializeOwned>(&mut self, name: &str, body: &T) -> Result<R, ClientError> {
        let body = Encoding::Cbor.encode(body).map_err(ClientError::Connection)?;
        self.call(Method::POST, name, body).await
    }

    /// `GET /v1/<name>`.
    ///
    /// # Errors
    /// The daemon refused, or the connection failed.
    pub async fn get<R: DeserializeOwned>(&mut self, name: &str) -> Result<R, ClientError> {
        self.call(Method::GET, name, vec![]).await
    }

    /// `GET /v1/<name>`; writes the response to `file` as it arrives.
    ///
    /// # Errors
    /// The daemon refused, the connection failed or ended early, or the file cannot be written.
    pub async fn download(&mut self, name: &str, file: &mut impl std::io::Write) -> Result<(), ClientError> {
        let broken = |e: &dyn std::fmt::Display| ClientError::Connection(e.to_string());
        self.0.ready().await.map_err(|e| broken(&e))?;
        let request = Request::builder().uri(format!("/v1/{name}")).header("host", "localhost");
        let request = request.body(Full::default()).map_err(|e| broken(&e))?;
        let mut response = self.0.send_request(request).await.map_err(|e| broken(&e))?;
        if !response.status().is_success() {
            let status = response.status();
            let bytes = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|e| broken(&e))?.to_bytes();
            return Err(error_of(status, &bytes));
        }
        while let Some(frame) = response.frame().await {
            if let Ok(bytes) = frame.map_err(|e| broken(&e))?.into_data() {
                file.write_all(&bytes).map_err(|e| refused(format!("cannot write the file: {e}")))?;
            }
        }
        Ok(())
    }

    /// Asks a question and returns the answer; `on_event` gets each event on the way.
    ///
    /// # Errors
    /// The daemon refused, the question failed, or the connection broke.
    pub async fn ask(&mut self, ask: &Ask, on_event: &mut (dyn FnMut(Event) + Send)) -> Result<AnswerReply, ClientError> {
        let broken = |e: &dyn std::fmt::Display| ClientError::Connection(e.to_string());
        self.0.ready().await.map_err(|e| broken(&e))?;
        let body = Encoding::Cbor.encode(ask).map_err(ClientError::Connection)?;
        let request = post("ask")
            .header("content-type", Encoding::Cbor.content_type())
            .header("accept", "text/event-stream")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let mut response = self.0.send_request(request).await.map_err(|e| broken(&e))?;
        if !response.status().is_success() {
            let status = response.status();
            let bytes = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|e| broken(&e))?.to_bytes();
            return Err(error_of(status, &bytes));
        }
        let mut events = Events::default();
        while let Some(frame) = response.frame().await {
            let Ok(bytes) = frame.map_err(|e| broken(&e))?.into_data() else { continue };
            events.add(&bytes)?;
            while let Some((name, data)) = events.next() {
                match name.as_str() {
                    "evidence" => on_event(Event::Evidence),
                    "delta" => on_event(Event::Delta(decoded::<DeltaReply>(&data)?.delta)),
                    "answer" => return decoded(&data),
                    "error" => return Err(error_of(StatusCode::OK, &data)),
                    _ => {}
                }
            }
        }
        Err(ClientError::Connection("the connection closed before the answer".into()))
    }

    async fn call<R: DeserializeOwned>(&mut self, method: Method, name: &str, body: Vec<u8>) -> Result<R, ClientError> {
        let broken = |e: &dyn std::fmt::Display| ClientError::Connection(e.to_string());
        self.0.ready().await.map_err(|e| broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{name}"))
            .header("host", "localhost")
            .header("content-type", Encoding::Cbor.content_type())
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let response = self.0.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status();
        let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let bytes = Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|e| broken(&e))?.to_bytes();
        let encoding = Encoding::of(&bytes, content_type.as_deref());
        match encoding {
            Some(encoding) if status.is_success() => encoding.decode(&bytes).map_err(ClientError::Connection),
            Some(encoding) => match encoding.decode::<ErrorReply>(&bytes) {
                Ok(reply) => Err(ClientError::Refused { message: reply.error.message, code: Some(reply.error.code) }),
                Err(_) => Err(ClientError::Connection(format!("status {status}"))),
            },
            None => Err(refused(format!("status {status}: {}", String::from_utf8_lossy(&bytes)))),
        }
    }
}

/// An event on the way to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The evidence has arrived.
    Evidence,
    /// A delta of the text.
    Delta(String),
}

/// Parses server-sent events from arbitrary fragments.
#[derive(Default)]
struct Events(Vec<u8>);

impl Events {
    fn add(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.0.extend(bytes);
        if self.0.len() > MAX_RESPONSE {
            return Err(ClientError::Connection("an event is too long".into()));
        }
        Ok(())
    }

    /// The next complete event: name and data.
    fn next(&mut self) -> Option<(String, Vec<u8>)> {
        let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
        let event: Vec<u8> = self.0.drain(..end + 2).collect();
        let (mut name, mut data) = (String::new(), Vec::new());
        for line in event.split(|byte| *byte == b'\n') {
            if let Some(value) = line.strip_prefix(b"event: ") {
                name = String::from_utf8_lossy(value).into_owned();
            } else if let Some(value) = line.strip_prefix(b"data: ") {
                data.extend(value);
            }
        }
        Some((name, data))
    }
}

fn post(name: &str) -> hyper::http::request::Builder {
    Request::builder().method(Method::POST).uri(format!("/v1/{name}")).header("host", "localhost")
}

fn decoded<T: DeserializeOwned>(data: &[u8]) -> Result<T, ClientError> {
    Encoding::Json.decode(data).map_err(ClientError::Connection)
}

/// The error in a reply, in either encoding.
fn error_of(status: StatusCode, bytes: &[u8]) -> ClientError {
    match Encoding::of(bytes, None).and_then(|encoding| encoding.decode::<ErrorReply>(bytes).ok()) {
        Some(reply) => ClientError::Refused { message: reply.error.message, code: Some(reply.error.code) },
        None => {
            refused(format!("status {status}: {}", String::from_utf8_lossy(bytes).trim()).trim_end_matches([':', ' ']).to_owned())
        }
    }
}

fn refused(message: String) -> ClientError {
    ClientError::Refused { message, code: None }
}
