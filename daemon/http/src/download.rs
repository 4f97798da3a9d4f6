//! A response body that a thread writes while it is sent.

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Chunks in flight: enough that neither side waits for each one.
const PIECES: usize = 8;

/// A chunk of a body; an error breaks the response off.
pub(super) type Piece = io::Result<Bytes>;

struct Pieces(mpsc::Receiver<Piece>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

struct Sender(mpsc::Sender<Piece>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body of the chunks that are sent.
pub(super) fn pieces() -> (mpsc::Sender<Piece>, Body) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (sender, Body::new(Pieces(receiver)))
}

/// A body that `write` fills from a separate thread. If `write` fails, the response breaks off, so that nobody takes a part for
/// the whole.
pub(super) fn body(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Body {
    let (sender, body) = pieces();
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(1 << 16, Sender(sender.clone()));
        if let Err(error) = write(&mut out).and_then(|()| out.flush()) {
            log::warn!("a download failed: {error}");
            let _ = sender.blocking_send(Err(error));
        }
    });
    body
}
