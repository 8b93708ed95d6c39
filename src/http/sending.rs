//! A client's connection as hyper uses it: what is sent of a mapped file goes from there into the socket within the kernel
//! (sendfile(2)), without a copy; all else as usual. What is sent is the same either way.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::nar_store::{Place, place_of};

/// Bytes below which they are not looked for in a file: those are heads of answers, and small bodies.
const FROM_FILE_MIN: usize = 32 * 1024;

/// The connection.
pub(super) struct Sending(pub(super) TcpStream);

fn in_file(bytes: &[u8]) -> Option<Place> {
    if bytes.len() < FROM_FILE_MIN { None } else { place_of(bytes) }
}

impl Sending {
    fn poll_send(&self, context: &mut Context<'_>, place: &Place) -> Poll<io::Result<usize>> {
        let Place { file, part } = place;
        let bytes = usize::try_from(part.end - part.start).unwrap_or(usize::MAX);
        loop {
            ready!(self.0.poll_write_ready(context))?;
            let send = || {
                let mut from = part.start;
                Ok(rustix::fs::sendfile(&self.0, file, Some(&mut from), bytes)?)
            };
            match self.0.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Someone has cut it short.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncWrite for Sending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match in_file(bytes) {
            Some(place) => self.poll_send(context, &place),
            None => Pin::new(&mut self.0).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        all: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = all.iter().enumerate().find_map(|(at, bytes)| Some((at, in_file(bytes)?)));
        match first {
            Some((0, place)) => self.poll_send(context, &place),
            Some((before, _)) => Pin::new(&mut self.0).poll_write_vectored(context, &all[..before]),
            None => Pin::new(&mut self.0).poll_write_vectored(context, all),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}
