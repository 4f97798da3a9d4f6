//! The embedded broker, for daemons without an external one.
//!
//! It serves MQTT 3.1.1 and MQTT 5 clients on one port; their CONNECT tells the version. It passes message properties on
//! unchanged: response topic, correlation data, user properties, content type, payload format. Message expiry counts down.
//! It supports `QoS` 0 to 2, retained messages, wills, lasting sessions, shared subscriptions, `+` and `#`. Everything is in
//! bounded memory; a restart forgets it. It has neither accounts nor TLS, and is meant for the loopback address. For anything
//! more, run a separate broker and name it in `[mqtt] broker`.

// Public for the fuzzer.
#[doc(hidden)]
pub mod packet;
mod router;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use packet::{Packet, Reason, Version, write_codes, write_disconnect, write_pong, write_refused};
use router::{Connection, MAX_PACKET, Router};

/// Most simultaneous connections.
const MAX_CONNECTIONS: usize = 128;
/// Largest CONNECT in bytes; it carries little more than a will.
const MAX_CONNECT: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that accepts no bytes for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a message whose receivers fall behind: their queues must not fill faster than they empty.
const SLOW_DOWN: Duration = Duration::from_millis(10);
/// Time to send the last packet to a client.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Read buffer that a connection keeps between packets, in bytes.
const READ_BUFFER: usize = 16 << 10;

/// Why the embedded broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Another program listens on the address.
    #[error(
        "the embedded MQTT broker cannot listen on {listen}: the address is in use. If a broker already runs there, set \
         `[mqtt] broker = \"mqtt://{listen}\"` to use it"
    )]
    InUse {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The address cannot be listened on for another reason.
    #[error("the embedded MQTT broker cannot listen on {listen}: {source}. Set `[mqtt] broker` to use another broker")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// A running broker. Dropping it closes the port and every connection at once.
#[derive(Debug)]
pub struct Broker {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Broker {
    /// Binds `listen` (port 0 takes a free one) and serves until it is shut down or dropped. Clients may connect as soon as
    /// this returns. Needs a tokio runtime with time and network.
    ///
    /// # Errors
    /// [`BrokerError::InUse`] if the port is taken, [`BrokerError::Bind`] if it cannot be bound for another reason.
    pub async fn start(listen: SocketAddr) -> Result<Broker, BrokerError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BrokerError::InUse { listen },
            _ => BrokerError::Bind { listen, source },
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            log::warn!("mqtt broker: {address} is open to other machines, without accounts and without TLS");
        }
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, stopped));
        log::info!("mqtt broker: listening on {address}");
        Ok(Broker { address, stop, accepting })
    }

    /// The address for clients.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Tells every client that the server shuts down, and returns after all connections are closed.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        let _ = timeout(2 * CLOSE_TIMEOUT, &mut self.accepting).await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The task owns the listener and the tasks of all connections, so they end with it.
        self.accepting.abort();
    }
}

type SharedRouter = Arc<Mutex<Router>>;

fn lock(router: &SharedRouter) -> MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns once the broker shuts down.
async fn asked_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn accept(listener: TcpListener, mut stopped: watch::Receiver<bool>) {
    let router = SharedRouter::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() >= MAX_CONNECTIONS => {
                    log::warn!("mqtt broker: {MAX_CONNECTIONS} connections are open; a connection from {peer} is refused");
                    drop(stream);
                }
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&router), stopped.clone()));
                }
                Err(error) => {
                    log::warn!("mqtt broker: accepting a connection failed: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = asked_to_stop(&mut stopped) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The end of a connection.
enum End {
    /// The client said DISCONNECT.
    Goodbye { with_will: bool, session_expiry: Option<u32> },
    /// The client is gone or accepts no more bytes.
    Lost,
    /// The broker ends it.
    Refused(Reason),
}

async fn serve(mut stream: TcpStream, router: SharedRouter, mut stopped: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let (read, mut write) = stream.split();
    let mut incoming = Incoming { read, buffer: BytesMut::new() };
    let accepted = tokio::select! {
        accepted = timeout(CONNECT_TIMEOUT, greet(&mut incoming, &mut write, &router)) => accepted,
        () = asked_to_stop(&mut stopped) => return,
    };
    let Ok(Some((connection, keep_alive))) = accepted else {
        return;
    };

    let end = {
        let mut writing = std::pin::pin!(deliver(&mut write, &router, &connection));
        let end = tokio::select! {
            end = listen(&mut incoming, &router, &connection, keep_alive) => end,
            () = &mut writing => End::Lost,
            () = asked_to_stop(&mut stopped) => End::Refused(Reason::SERVER_SHUTTING_DOWN),
        };
        if let End::Refused(reason) = end {
            log::debug!("mqtt broker: `{}` is disconnected: {reason}", connection.client);
            connection.link.close(reason);
            // The writer finishes its packet, sends DISCONNECT, and returns.
            let _ = timeout(CLOSE_TIMEOUT, writing).await;
        }
        end
    };
    let _ = write.shutdown().await;
    drop(stream);

    let (graceful, expiry) = match end {
        End::Goodbye { with_will, session_expiry } => (!with_will, session_expiry),
        End::Lost | End::Refused(_) => (false, None),
    };
    let will_after = lock(&router).disconnect(&connection, graceful, expiry);
    if let Some(delay) = will_after {
        tokio::select! {
            () = tokio::time::sleep(delay) => lock(&router).publish_will(&connection),
            () = asked_to_stop(&mut stopped) => {}
        }
    }
}

/// Reads CONNECT and accepts or refuses the client. Returns the longest allowed silence, too.
async fn greet(
    incoming: &mut Incoming<'_>,
    write: &mut WriteHalf<'_>,
    router: &SharedRouter,
) -> Option<(Connection, Option<Duration>)> {
    let connect = incoming.next(MAX_CONNECT, packet::read_connect).await.ok()?;
    let version = connect.as_ref().map_or(Version::V311, |connect| connect.version);
    let accepted = connect.and_then(|connect| {
        // Section 3.1.2.10: one and a half times the keep alive.
        let silence = (connect.keep_alive > 0).then(|| Duration::from_secs(u64::from(connect.keep_alive)) * 3 / 2);
        lock(router).connect(connect).map(|connection| (connection, silence))
    });
    match accepted {
        Ok(accepted) => Some(accepted),
        Err(reason) => {
            log::debug!("mqtt broker: a connection is refused: {reason}");
            let mut out = BytesMut::new();
            write_refused(&mut out, version, reason);
            let _ = write.write_all(&out).await;
            let _ = write.shutdown().await;
            None
        }
    }
}

/// Reads packets and acts on them until the connection ends.
async fn listen(incoming: &mut Incoming<'_>, router: &SharedRouter, connection: &Connection, silence: Option<Duration>) -> End {
    loop {
        let next = incoming.next(MAX_PACKET, |first, body| packet::read(first, body, connection.version));
        let read = match silence {
            Some(silence) => match timeout(silence, next).await {
                Ok(read) => read,
                Err(_) => return End::Refused(Reason::KEEP_ALIVE),
            },
            None => next.await,
        };
        let acted = match read {
            Err(_) => return End::Lost,
            Ok(Ok(Packet::Disconnect { with_will, session_expiry })) => {
                return End::Goodbye { with_will, session_expiry };
            }
            Ok(Ok(packet)) => act(&mut lock(router), connection, packet),
            Ok(Err(reason)) => Err(reason),
        };
        match acted {
            Ok(true) => tokio::time::sleep(SLOW_DOWN).await,
            Ok(false) => {}
            Err(reason) => return End::Refused(reason),
        }
    }
}

/// Handles a packet. Returns whether the client publishes faster than another one receives.
fn act(router: &mut Router, connection: &Connection, packet: Packet) -> Result<bool, Reason> {
    match packet {
        Packet::Publish { id, message } => return router.receive(connection, id, message),
        Packet::PubAck(id) | Packet::PubComp(id) | Packet::PubRec { id, failed: true } => {
            router.acknowledged(connection, id);
        }
        Packet::PubRec { id, failed: false } => router.recorded(connection, id),
        Packet::PubRel(id) => router.released(connection, id),
        Packet::Subscribe { id, subscription_id, filters } => {
            let codes = router.subscribe(connection, &filters, subscription_id);
            router.reply(connection, |out| {
                write_codes(out, 0x90, connection.version, id, &codes);
            });
        }
        Packet::Unsubscribe { id, filters } => {
            let codes = router.unsubscribe(connection, &filters);
            router.reply(connection, |out| {
                write_codes(out, 0xb0, connection.version, id, &codes);
            });
        }
        Packet::PingReq => router.reply(connection, write_pong),
        Packet::Disconnect { .. } => {}
    }
    Ok(false)
}

/// Writes the router's packets for the client until the connection is to end. Returns between two packets, or when the
/// client is gone.
async fn deliver(write: &mut WriteHalf<'_>, router: &SharedRouter, connection: &Connection) {
    let mut out = BytesMut::new();
    loop {
        connection.link.wake.notified().await;
        loop {
            if let Some(reason) = connection.link.closed() {
                write_disconnect(&mut out, connection.version, reason);
                let _ = timeout(CLOSE_TIMEOUT, write.write_all(&out)).await;
                return;
            }
            lock(router).drain(connection, &mut out);
            if out.is_empty() {
                break;
            }
            if !matches!(timeout(WRITE_TIMEOUT, write.write_all(&out)).await, Ok(Ok(()))) {
                return;
            }
            out = BytesMut::new();
        }
    }
}

/// The reading half of a connection, cut into packets.
struct Incoming<'a> {
    read: ReadHalf<'a>,
    buffer: BytesMut,
}

impl Incoming<'_> {
    /// The next packet, parsed by `read`. The outer error means that the connection is gone. Safe to cancel.
    async fn next<T>(&mut self, limit: usize, read: impl Fn(u8, &[u8]) -> Result<T, Reason>) -> io::Result<Result<T, Reason>> {
        loop {
            match packet::frame(&self.buffer, limit) {
                Err(reason) => return Ok(Err(reason)),
                Ok(Some((header, total))) => {
                    let packet = read(self.buffer[0], &self.buffer[header..total]);
                    self.buffer.advance(total);
                    if self.buffer.is_empty() {
                        // Frees the memory of a large packet.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(packet);
                }
                Ok(None) => {
                    self.buffer.reserve(READ_BUFFER);
                    if self.read.read_buf(&mut self.buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    // A client that acknowledges an answer and asks again at once is held up by Nagle's algorithm: it waits some
                    // 40 ms for TCP's acknowledgement of the first packet. The option holds for one packet only.
                    let _ = rustix::net::sockopt::set_tcp_quickack(self.read.as_ref(), true);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
