//! The daemon: start order, readiness, signals, reloading, shutdown.

pub mod logging;
mod publish;
mod reload;
mod report;
mod start;
mod systemd;

pub use reload::Reread;
pub use report::temperature_c;

use crate::assemble::{Rooms, ServiceError};
use crate::config::Loaded;
use desk::Desk;
use llm::engine::Engine;
use mqtt::Server;
use mqtt::connection::Connection;
use reload::Reload;
use sd_notify::NotifyState;
use start::Opened;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

/// Runs the daemon until SIGTERM or SIGINT; `reread` reads the configuration again at SIGHUP.
///
/// # Errors
/// It cannot start; the message names the thing and the remedy.
pub async fn run(loaded: Loaded, reread: Reread) -> Result<(), ServiceError> {
    let started = Instant::now();
    let config = Arc::new(loaded.config);
    log::info!("vademecum {} starting as node {:?}", env!("CARGO_PKG_VERSION"), config.node_name());
    if let Some(file) = &loaded.file {
        log::info!("configuration: {}", file.display());
    }
    let mut signals = Signals::listen()?;
    let opened = Opened::open(&config).await?;
    let mut running = opened.start(&config, reread, started)?;
    let reason = running.serve(&mut signals).await;
    running.stop(reason).await
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether SIGHUP asks for a reload. On a terminal it means that the terminal is gone.
    hangup_reloads: bool,
}

impl Signals {
    fn listen() -> Result<Self, ServiceError> {
        let on = |kind| signal(kind).map_err(|e| ServiceError::System(format!("cannot listen for signals: {e}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            hangup_reloads: !std::io::stderr().is_terminal(),
        })
    }
}

/// A running daemon.
struct Running {
    started: Instant,
    topic_base: String,
    #[cfg(feature = "broker")]
    broker: Option<mqtt::broker::Broker>,
    rooms: Rooms,
    engine: Engine,
    desk: Desk,
    server: Arc<Server>,
    socket: PathBuf,
    /// Serves the control socket.
    control: JoinHandle<()>,
    /// Polls the connection to the broker, and returns it after `stop_polling`.
    polling: JoinHandle<Connection>,
    stop_polling: oneshot::Sender<()>,
    /// The version of MQTT, at the first acknowledged subscription.
    ready: oneshot::Receiver<&'static str>,
    publishing: JoinHandle<()>,
    metrics_every: watch::Sender<u64>,
    changed: Arc<Notify>,
    reload: Reload,
    watchdog: systemd::Watchdog,
}

impl Running {
    /// Serves until a signal ends the daemon, and returns the signal's name.
    async fn serve(&mut self, signals: &mut Signals) -> &'static str {
        let mut looks = self.watchdog.ticks();
        let mut ready = false;
        loop {
            tokio::select! {
                version = &mut self.ready, if !ready => {
                    ready = true;
                    if let Ok(version) = version {
                        let seconds = self.started.elapsed().as_secs_f64();
                        log::info!("ready after {seconds:.2} s, on {} over MQTT {version}", self.topic_base);
                        systemd::notify(&[NotifyState::Ready, NotifyState::Status("ready")]);
                    }
                }
                () = tick(&mut looks) => self.watchdog.look(ready).await,
                _ = signals.hangup.recv() => {
                    if !signals.hangup_reloads {
                        return "SIGHUP";
                    }
                    self.reload(ready);
                }
                _ = signals.terminate.recv() => return "SIGTERM",
                _ = signals.interrupt.recv() => return "SIGINT",
            }
        }
    }

    fn reload(&mut self, ready: bool) {
        systemd::reloading();
        self.reload.reload();
        let _ = self.metrics_every.send(self.reload.config.service.metrics_every_s);
        self.changed.notify_one();
        let status = if ready { "ready" } else { "connecting to the broker" };
        systemd::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Finishes or lays aside the questions, says goodbye to the broker, and closes the rooms.
    async fn stop(self, reason: &str) -> Result<(), ServiceError> {
        let grace = self.reload.config.service.shutdown_grace_s;
        log::info!("{reason}: stopping, {grace} s for the questions at work");
        systemd::notify(&[NotifyState::Stopping, NotifyState::Status("ending the questions at work")]);
        self.publishing.abort();
        self.desk.drain(Duration::from_secs(grace)).await;
        self.server.leave().await;
        let _ = self.stop_polling.send(());
        if let Ok(connection) = self.polling.await {
            connection.close(Duration::from_secs(2)).await;
        }
        self.control.abort();
        let _ = std::fs::remove_file(&self.socket);
        #[cfg(feature = "broker")]
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
        self.engine.shutdown();
        self.rooms.store.close()?;
        log::info!("stopped");
        Ok(())
    }
}

/// Waits for the next tick, for ever if there are none.
async fn tick(ticks: &mut Option<tokio::time::Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
