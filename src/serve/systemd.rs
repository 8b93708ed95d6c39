//! The service manager: sockets that it opened for the server, and messages to it by the protocol of
//! sd_notify. Without systemd nothing here does anything. Must never keep the server from serving.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;
use tokio::net::TcpListener;

use super::steps::{Error, listen};
use crate::build::Scheduler;
use crate::http;
use crate::tasks::Tasks;

/// Time between two messages about the state, at most. The watchdog may want them more often.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Messages in each period of the watchdog: one may be late.
const MESSAGES_PER_PERIOD: u32 = 3;

/// Listens on `address`, or takes the sockets that systemd listens on instead (LISTEN_FDS). The address is
/// the first one's, with its true port.
pub(super) fn listeners(address: SocketAddr) -> Result<(Vec<TcpListener>, SocketAddr), Error> {
    let mut inherited = ListenFd::from_env();
    if inherited.len() == 0 {
        let (listener, bound) = listen(address)?;
        return Ok((vec![listener], bound));
    }
    let sockets: io::Result<Vec<TcpListener>> = (0..inherited.len())
        .map(|number| {
            let socket = inherited.take_tcp_listener(number)?.ok_or(io::ErrorKind::NotFound)?;
            // That of a unit with Accept=yes is a connection.
            if !socket_acceptconn(&socket)? {
                return Err(io::ErrorKind::NotConnected.into());
            }
            http::adopt_listener(socket)
        })
        .collect();
    let sockets = sockets.map_err(Error::Inherited)?;
    let bound = sockets[0].local_addr().map_err(Error::Inherited)?;
    tracing::info!(sockets = sockets.len(), first = %bound, "listening on sockets of systemd");
    Ok((sockets, bound))
}

/// Tells the service manager that the server answers.
pub(super) fn ready(url: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&format!("serving {url}"))]);
}

/// Tells the service manager that the server drains.
pub(super) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("finishing open responses")]);
}

/// Reports the state until the server stops, and that it is alive where a watchdog is set. The runtime that
/// every request needs must be alive for that, and the queue's lock; a slow disk is no reason for a restart.
pub(super) fn start(tasks: &Tasks, builds: &Scheduler, url: &str) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |period| STATUS_EVERY.min(period / MESSAGES_PER_PERIOD));
    let (builds, url) = (builds.clone(), url.to_owned());
    tasks.vital("service manager", async move {
        loop {
            tokio::time::sleep(every).await;
            let queue = builds.snapshot();
            let status =
                format!("serving {url}; {} builds run, {} requests", queue.running.len(), queue.total);
            // The manager's socket blocks when it is full.
            let sent = tokio::task::spawn_blocking(move || {
                let status = NotifyState::Status(&status);
                match watchdog {
                    Some(_) => send(&[NotifyState::Watchdog, status]),
                    None => send(&[status]),
                }
            });
            let _ = sent.await;
        }
    });
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager; it may stop the server when a time-out ends");
    }
}
