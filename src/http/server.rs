//! Listeners: accepts connections, serves HTTP/1.1 on each, and drains them when the server stops.
//! Must never let one connection, or a failed accept, end the server.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
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
use super::client_stream::{AnswerPace, ClientStream};
use super::history;
use super::per_core::ConnectionThreads;
use crate::tasks::Tasks;

/// Time in which a client must send the headers of a request, the first as every later one on a connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes buffered on a connection for a client that reads slowly, beside one chunk of a body; also the
/// longest head of a request. hyper's own bound is six times as large.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Listen backlog; the system has a limit of its own (net.core.somaxconn). Clients beyond it retry after a
/// second or more.
const WAITING_CLIENTS_MAX: u32 = 4096;
/// Idle time before the first TCP keepalive probe, and the time between two probes.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Unanswered probes after which a connection is closed. Six minutes in all: a machine that slept may have
/// woken by then.
const PROBES_MAX: u32 = 5;
/// Pause after a failed accept; descriptors are what is most often lacking.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener.
pub enum Listener {
    /// On the network.
    Tcp(TcpListener),
    /// The control socket, which its file permissions allow to administrators alone.
    Unix(UnixListener),
}

/// Listens on `address`. Must be called within a tokio runtime.
///
/// # Errors
/// The address cannot be listened on.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that was stopped a moment ago leaves unused connections behind.
    socket.set_reuseaddr(true)?;
    probe_clients(&socket)?;
    socket.bind(address)?;
    socket.listen(WAITING_CLIENTS_MAX)
}

/// Takes over a socket that another program listens on already. Must be called within a tokio runtime.
///
/// # Errors
/// The socket cannot be used.
pub fn adopt_listener(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    probe_clients(&socket)?;
    TcpListener::from_std(socket)
}

/// Turns on probes of clients whose machine may be gone: such a machine never says so, and many clients wait
/// in silence. Accepted sockets inherit this.
fn probe_clients(listener: impl AsFd + Copy) -> io::Result<()> {
    sockopt::set_socket_keepalive(listener, true)?;
    sockopt::set_tcp_keepidle(listener, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(listener, PROBE_AFTER)?;
    Ok(sockopt::set_tcp_keepcnt(listener, PROBES_MAX)?)
}

/// Serves every listener until the service stops, then gives connections `drain` to end.
///
/// # Errors
/// The system gives no connection threads.
pub async fn serve(listeners: Vec<Listener>, service: Service, tasks: Tasks) -> io::Result<()> {
    let threads = Arc::new(ConnectionThreads::start()?);
    let (open, mut all_ended) = mpsc::channel(1);
    // A panic in one of them goes on in this task, and ends the server.
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        let (service, open, threads) = (service.clone(), open.clone(), Arc::clone(&threads));
        accepting.spawn(async move {
            tokio::select! {
                () = accept_all(&listener, &service, &open, &threads) => {}
                () = service.stopping() => {}
            }
        });
    }
    drop(open);
    tasks.restarted("traffic-summaries", {
        let traffic = Arc::clone(&service.traffic);
        move || {
            let traffic = Arc::clone(&traffic);
            async move { traffic.log_summaries().await }
        }
    });
    tasks.restarted("history", {
        let service = service.clone();
        move || {
            let service = service.clone();
            async move { history::record(&service).await }
        }
    });
    accepting.join_all().await;
    let drain = service.state.settings.drain;
    if tokio::time::timeout(drain, all_ended.recv()).await.is_err() {
        tracing::warn!(?drain, "closing connections that were still open after the drain time");
    }
    Ok(())
}

/// Held by each connection for as long as it is open; nothing is ever sent.
type OpenConnection = mpsc::Sender<Infallible>;

async fn accept_all(
    listener: &Listener,
    service: &Service,
    open: &OpenConnection,
    threads: &ConnectionThreads,
) {
    loop {
        let accepted = match listener {
            Listener::Tcp(listener) => listener.accept().await.and_then(|(stream, client)| {
                // Small answers must not wait for the acknowledgement of earlier ones.
                let _ = stream.set_nodelay(true);
                threads.spawn(stream, |stream, guard| {
                    let settings = &service.state.settings;
                    let pace = AnswerPace::default();
                    let stream = ClientStream::new(stream, pace.clone(), settings.write_timeout);
                    let peer = Peer::new(client.ip(), &settings.trusted_proxies);
                    connection(stream, pace, Some((peer, guard.thread)), service, (open.clone(), guard))
                })
            }),
            // Administrators are few: they share the main runtime. As on a connection thread, a panic ends
            // that connection alone, and draining waits for it.
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(connection(stream, AnswerPace::default(), None, service, open.clone()));
            }),
        };
        if let Err(error) = accepted {
            accept_failed(&error).await;
        }
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "accept failed; check the limit of open files");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Serves a connection of a peer on the network, on the thread of this number. `held` is dropped when the
/// connection closes.
fn connection<S>(
    stream: S,
    pace: AnswerPace,
    peer: Option<(Peer, usize)>,
    service: &Service,
    held: impl Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (answering, stop) = (service.clone(), service.clone());
    // Requests on the control socket have counters of their own.
    let (peer, thread) = peer.map_or((None, usize::MAX), |(peer, thread)| (Some(peer), thread));
    let answer = service_fn(move |request| {
        let answer = answering.answer(request, peer, thread);
        pace.set(!answer.is_instant());
        answer
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(WAITING_BYTES_MAX)
        // `ClientStream` detects clients that leave; hyper would take a half-closed one for gone at once.
        .half_close(peer.is_some())
        .serve_connection(TokioIo::new(stream), answer);
    // In boxes: a future keeps room for what it awaits twice, and there may be very many connections.
    let connection = Box::pin(until_stopped(Box::pin(connection), stop));
    async move {
        // Clients that leave and aborted answers end here; each was logged where it happened.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended early");
        }
        drop(held);
    }
}

/// Runs a connection; when the server stops, it ends with the answer under way. Must be awaited by the task
/// itself: the stop is awaited once, by the waker of that moment, and afterwards only looked at.
async fn until_stopped<C: GracefulConnection>(
    mut connection: Pin<Box<C>>,
    service: Service,
) -> Result<(), C::Error> {
    let mut stopping = pin!(service.stopping());
    let (mut waiting, mut shutting_down) = (false, false);
    poll_fn(|context| {
        if !shutting_down
            && (service.is_stopping() || (!waiting && stopping.as_mut().poll(context).is_ready()))
        {
            connection.as_mut().graceful_shutdown();
            shutting_down = true;
        }
        waiting = true;
        connection.as_mut().poll(context)
    })
    .await
}
