//! A client's TCP connection as hyper uses it, with three additions. Bytes of a mapped file are sent by
//! sendfile(2), without the copy into the socket that kept a mapped file at 0.78 of nginx's speed. A client
//! that leaves is detected whatever it has sent after its request. A client that takes nothing of its answer
//! is disconnected after a while. Must never take a client that waits in silence for one that has left.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::nar_store::{FileRange, range_of};

/// Bytes below which no file is looked up: heads of answers, and small bodies.
const FROM_FILE_MIN: usize = 32 * 1024;
/// Bytes that are read ahead of hyper.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
/// Time for which hyper may leave these unread: it reads on in the body of a request, and not during an
/// answer. A client that sends more than that during its answer is disconnected; no client of Nix does.
const AHEAD_FULL_FOR: Duration = Duration::from_secs(20);
/// Bytes that are read ahead at once.
const AHEAD_PIECE_BYTES: usize = 4 * 1024;
/// Time that a client which has closed its sending side may go without taking a byte. A closed and a
/// half-closed connection look the same until something is sent: answers that need no build still reach a
/// client that half-closes, such as `socat`. No client of Nix does, so one that waits for a build counts as
/// gone.
const HALF_CLOSED_FOR: Duration = Duration::from_secs(3);

/// The connection.
///
/// hyper does not read during an answer once it holds bytes beyond the request, and then never learns that
/// the client has left. It flushes each time that it is polled, so this reads ahead there instead.
pub(super) struct ClientStream {
    stream: TcpStream,
    pace: AnswerPace,
    /// Longest time without progress while bytes wait to be taken.
    write_timeout: Duration,
    /// hyper has asked for bytes since it last flushed, and will be woken by them.
    reading: bool,
    /// No byte was taken since the timer was set.
    stalled: bool,
    /// Boxed like what follows: few connections ever need it, and very many may be open.
    stall_timer: Option<Pin<Box<Sleep>>>,
    ahead: Option<Box<ReadAhead>>,
}

/// Pace of the answer under way on a connection, shared by its service and its stream. hyper reads on by
/// itself after an answer that is complete at once: nearly all are, and reading ahead is a fiftieth of the
/// instructions of such a request.
#[derive(Clone, Debug, Default)]
pub(super) struct AnswerPace(Arc<AtomicBool>);

impl AnswerPace {
    /// Notes whether the answer that is now under way takes time.
    pub(super) fn set(&self, takes_time: bool) {
        self.0.store(takes_time, Ordering::Relaxed);
    }

    fn takes_time(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes read before hyper asked for them, and the end after them.
#[derive(Default)]
struct ReadAhead {
    bytes: Vec<u8>,
    /// Set when as much is read ahead as may be; runs out when hyper has read nothing of it since.
    full: Option<Pin<Box<Sleep>>>,
    /// Set when the client has closed its sending side; runs out when it has taken nothing since.
    closed: Option<Pin<Box<Sleep>>>,
}

fn in_file(bytes: &[u8]) -> Option<FileRange> {
    if bytes.len() < FROM_FILE_MIN { None } else { range_of(bytes) }
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, pace: AnswerPace, write_timeout: Duration) -> Self {
        Self { stream, pace, write_timeout, reading: false, stalled: false, stall_timer: None, ahead: None }
    }

    fn poll_sendfile(&self, context: &mut Context<'_>, range: &FileRange) -> Poll<io::Result<usize>> {
        let FileRange { file, part } = range;
        let bytes = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let send = || {
                let mut from = part.start;
                Ok(rustix::fs::sendfile(&self.stream, file, Some(&mut from), bytes)?)
            };
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The file was truncated.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// The result of sending; an error once the client has taken nothing for too long.
    fn sent(&mut self, context: &mut Context<'_>, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if sent.is_ready() {
            self.stalled = false;
            if let Some(closed) = self.ahead.as_mut().and_then(|ahead| ahead.closed.as_mut()) {
                closed.as_mut().reset(Instant::now() + HALF_CLOSED_FOR);
            }
            return sent;
        }
        let (timeout, fresh) = (self.write_timeout, !self.stalled);
        self.stalled = true;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(sleep(timeout)));
        if fresh {
            timer.as_mut().reset(Instant::now() + timeout);
        }
        ready!(timer.as_mut().poll(context));
        tracing::debug!(?timeout, "client takes nothing of its answer; connection closed");
        self.discard();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Has the system drop its send buffer on close; it would keep megabytes for many minutes.
    fn discard(&self) {
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "send buffer of a closed connection stays in memory for a while");
        }
    }

    /// Reads ahead during an answer. An error means that the client has left, or sends too much.
    fn watch(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        loop {
            if let Some(closed) = self.ahead.as_mut().and_then(|ahead| ahead.closed.as_mut()) {
                if closed.as_mut().poll(context).is_pending() {
                    return Ok(());
                }
                self.discard();
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.bytes.len() >= AHEAD_BYTES_MAX) {
                let full = ahead.full.get_or_insert_with(|| Box::pin(sleep(AHEAD_FULL_FOR)));
                if full.as_mut().poll(context).is_pending() {
                    return Ok(());
                }
                return Err(io::Error::other("too much was sent before the answer was complete"));
            }
            let mut piece = [MaybeUninit::uninit(); AHEAD_PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece);
            match Pin::new(&mut self.stream).poll_read(context, &mut piece) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            let ahead = self.ahead.get_or_insert_default();
            match piece.filled() {
                [] => ahead.closed = Some(Box::pin(sleep(HALF_CLOSED_FOR))),
                read => ahead.bytes.extend_from_slice(read),
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = match in_file(bytes) {
            Some(range) => self.poll_sendfile(context, &range),
            None => Pin::new(&mut self.stream).poll_write(context, bytes),
        };
        self.sent(context, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        all: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = all.iter().enumerate().find_map(|(at, bytes)| Some((at, in_file(bytes)?)));
        let sent = match first {
            Some((0, range)) => self.poll_sendfile(context, &range),
            Some((before, _)) => Pin::new(&mut self.stream).poll_write_vectored(context, &all[..before]),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, all),
        };
        self.sent(context, sent)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::take(&mut self.reading) && self.pace.takes_time() {
            self.watch(context)?;
        }
        // A TCP stream keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(ahead) = &mut this.ahead {
            if !ahead.bytes.is_empty() {
                let count = ahead.bytes.len().min(buffer.remaining());
                buffer.put_slice(&ahead.bytes[..count]);
                ahead.bytes.drain(..count);
                ahead.full = None;
                return Poll::Ready(Ok(()));
            }
            if ahead.closed.is_some() {
                return Poll::Ready(Ok(()));
            }
            this.ahead = None;
        }
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.reading = read.is_pending();
        read
    }
}
