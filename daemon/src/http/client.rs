//! The command line's side of the control socket.

use crate::api::wire::{Encoding, ErrorCode, ErrorReply};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::net::UnixStream;

/// Largest response read, in bytes.
const MAX_RESPONSE: usize = 256 * 1024 * 1024;

/// What can go wrong with a call to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused the request.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
        /// Its word for programs, if it gave one.
        code: Option<ErrorCode>,
    },
    /// The connection failed.
    #[error("the daemon's control socket failed: {0}; check that the daemon is still running")]
    Connection(String),
}

/// A connection to a running daemon.
pub struct Client(http1::SendRequest<Full<Bytes>>);

impl Client {
    /// Connects; `None` when no daemon listens on the socket.
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

    /// `GET /v1/<name>`, the response written to `file` as it comes.
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
            return Err(refused(format!("status {}; the daemon's log says why", response.status())));
        }
        while let Some(frame) = response.frame().await {
            if let Ok(bytes) = frame.map_err(|e| broken(&e))?.into_data() {
                file.write_all(&bytes).map_err(|e| refused(format!("cannot write the file: {e}")))?;
            }
        }
        Ok(())
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

fn refused(message: String) -> ClientError {
    ClientError::Refused { message, code: None }
}
