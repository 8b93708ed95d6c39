//! Accepts connections on the doors and drives HTTP/1.1 on each; drains them when the server stops.
//! Must never let one connection, or a failed accept, end the server.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::mpsc;

use super::Service;
use super::address::Peer;
use super::client_stream::ClientStream;
use super::drivers::Drivers;

/// A client has this long to send the headers of a request, the first as of every later one on a connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may wait on a connection for a client who reads slowly, beside one piece of a body; the longest head of a
/// request, too. hyper's own bound is six times as large.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Clients that may wait to be accepted; the system has a limit of its own (net.core.somaxconn). Those beyond are asked to try
/// again, which takes them a second and more.
const WAITING_CLIENTS_MAX: u32 = 4096;
/// Silence after which the system asks a client's machine whether it is still there, and the time between two such questions.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Unanswered questions after which a connection is closed: after six minutes, a machine that slept may have woken.
const PROBES_MAX: u32 = 5;
/// The rest after an accept that failed, most often for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where clients come in.
pub enum Door {
    /// The network.
    Tcp(TcpListener),
    /// The control socket: who can open it may administer.
    Unix(UnixListener),
}

/// Listens on `address`. Must be called within a tokio runtime.
///
/// # Errors
/// When it cannot be listened on.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that was stopped a moment ago has connections left, which nobody uses any more.
    socket.set_reuseaddr(true)?;
    // A client whose machine is gone never says so, and much is waited for here in silence. Accepted sockets inherit this.
    socket.set_keepalive(true)?;
    sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(&socket, PROBE_AFTER)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES_MAX)?;
    socket.bind(address)?;
    socket.listen(WAITING_CLIENTS_MAX)
}

/// Serves every door until the service stops, then gives connections `drain` to end.
///
/// # Errors
/// When there are no threads for the connections.
pub async fn serve(doors: Vec<Door>, service: Service) -> io::Result<()> {
    let drivers = Arc::new(Drivers::start()?);
    let (open, mut all_ended) = mpsc::channel(1);
    let mut accepting = tokio::task::JoinSet::new();
    for door in doors {
        let (service, open, drivers) = (service.clone(), open.clone(), Arc::clone(&drivers));
        accepting.spawn(async move {
            tokio::select! {
                () = accept_all(&door, &service, &open, &drivers) => {}
                () = service.stopping() => {}
            }
        });
    }
    drop(open);
    let summaries = tokio::spawn({
        let traffic = Arc::clone(&service.traffic);
        async move { traffic.log_summaries().await }
    });
    accepting.join_all().await;
    summaries.abort();
    let drain = service.parts.settings.drain;
    if tokio::time::timeout(drain, all_ended.recv()).await.is_err() {
        tracing::warn!(?drain, "connections were still open and are cut");
    }
    Ok(())
}

/// Held by each connection for as long as it is open. Nothing is ever sent.
type Open = mpsc::Sender<Infallible>;

async fn accept_all(door: &Door, service: &Service, open: &Open, drivers: &Drivers) {
    loop {
        let accepted = match door {
            Door::Tcp(listener) => listener.accept().await.and_then(|(stream, client)| {
                // Small answers must not wait for the acknowledgement of earlier ones.
                let _ = stream.set_nodelay(true);
                drivers.drive(stream, |stream, driven| {
                    let settings = &service.parts.settings;
                    let stream = ClientStream::new(stream, settings.write_timeout);
                    let peer = Peer::new(client.ip(), &settings.trusted_proxies);
                    connection(stream, Some((peer, driven.thread)), service, (open.clone(), driven))
                })
            }),
            // Admins are few.
            Door::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(connection(stream, None, service, open.clone()));
            }),
        };
        if let Err(error) = accepted {
            refused(&error).await;
        }
    }
}

async fn refused(error: &io::Error) {
    tracing::warn!(%error, "a connection was not accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// A connection, to be driven by a task, of a peer on the network and a thread of this number; `held` is, for as long as it is open.
fn connection<S>(
    stream: S,
    peer: Option<(Peer, usize)>,
    service: &Service,
    held: impl Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (answering, stop) = (service.clone(), service.clone());
    // Those of the control socket are counted with nobody's.
    let (peer, thread) = peer.map_or((None, usize::MAX), |(peer, thread)| (Some(peer), thread));
    let answer = service_fn(move |request| answering.answer(request, peer, thread));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(WAITING_BYTES_MAX)
        // Clients that leave are noticed by their stream; hyper would take a half-closed one for gone at once.
        .half_close(peer.is_some())
        .serve_connection(TokioIo::new(stream), answer);
    // In boxes: what awaits something keeps room for it twice, and there may be very many of these.
    let connection = Box::pin(until_stopped(Box::pin(connection), stop));
    async move {
        // Clients that leave, and answers that are cut, end here; each was logged where it happened.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(held);
    }
}

/// Drives a connection; when the server stops, it ends with the answer that is under way. To be awaited by a task and nothing
/// between: whether the server stops is waited for once, by whatever is woken then, and else only looked at.
async fn until_stopped<C: GracefulConnection>(
    mut connection: Pin<Box<C>>,
    service: Service,
) -> Result<(), C::Error> {
    let mut stopping = pin!(service.stopping());
    let (mut waiting, mut told) = (false, false);
    poll_fn(|context| {
        if !told && (service.is_stopping() || (!waiting && stopping.as_mut().poll(context).is_ready())) {
            connection.as_mut().graceful_shutdown();
            told = true;
        }
        waiting = true;
        connection.as_mut().poll(context)
    })
    .await
}
