//! The daemon's wire format: 64-bit little-endian numbers, strings padded with zeros to eight bytes, counted
//! lists. Every length is checked against a named bound first, and no memory is allocated for bytes that have
//! not arrived.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use narinfo::{StoreDir, StorePath};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::error::DaemonError;

/// Bytes of a message at most: an error, the text of an activity.
pub(super) const MESSAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes of a builder's line to keep; the rest is counted and dropped. A builder may write gigabytes without
/// a line end, and the daemon passes them on as one line.
pub(super) const KEPT_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a builder's words at most. The daemon holds all of them in memory.
const ANNOUNCED_BYTES_MAX: u64 = 1 << 42;
/// Bytes of everything else at most: a store path, a name, a signature.
pub(super) const TEXT_BYTES_MAX: u64 = 64 * 1024;
/// Items of a list at most. A large store has some 1 M paths.
pub(super) const LIST_ITEMS_MAX: u64 = 10_000_000;
/// Bytes read from the socket at once.
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that wait to be sent together with others, at most: each write is a packet of its own on a network.
const QUEUED_BYTES_MAX: usize = 64 * 1024;
/// Every string fills a multiple of this many bytes.
const WORD_BYTES: usize = 8;

/// Time limit for the daemon, and the operation for the error's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    doing: &'static str,
    limit: Duration,
    until: Instant,
}

impl Patience {
    pub(super) fn new(doing: &'static str, limit: Duration) -> Self {
        Self { doing, limit, until: Instant::now() + limit }
    }
}

/// Both directions of a connection: a socket, or two pipes.
pub trait WireStream: AsyncRead + AsyncWrite + Unpin + Send + Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Debug> WireStream for T {}

/// A connection in this format, read through a buffer.
#[derive(Debug)]
pub(super) struct Wire {
    stream: BufReader<Box<dyn WireStream>>,
    /// Bytes that are sent before the next ones.
    queued: Vec<u8>,
    peer: Option<i32>,
    patience: Option<Patience>,
}

impl Wire {
    /// The process at the other end: 0 or nothing when it is not in sight.
    pub(super) fn peer(&self) -> Option<i32> {
        self.peer
    }

    pub(super) fn new(stream: UnixStream) -> Self {
        let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
        Self { peer, ..Self::over(stream) }
    }

    pub(super) fn over(stream: impl WireStream + 'static) -> Self {
        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, Box::new(stream) as Box<dyn WireStream>);
        Self { stream, queued: Vec::new(), peer: None, patience: None }
    }

    /// Bounds everything that follows; `None` waits for as long as it takes.
    pub(super) fn set_patience(&mut self, patience: Option<Patience>) {
        self.patience = patience;
    }

    /// True if the other side has neither closed nor sent anything unasked. Cheap, and never waits.
    pub(super) fn is_quiet(&mut self) -> bool {
        let (mut byte, mut context) = ([0], Context::from_waker(Waker::noop()));
        let stream = Pin::new(self.stream.get_mut());
        let is_pending = stream.poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending();
        self.stream.buffer().is_empty() && is_pending
    }

    /// True once the other side has closed the connection and all that it sent was read. Waits for the next
    /// byte, and takes none.
    pub(super) async fn is_at_end(&mut self) -> Result<bool, DaemonError> {
        let patience = self.patience;
        Ok(bounded(patience, self.stream.fill_buf()).await?.is_empty())
    }

    /// Resolves once the other side closes the connection without having sent anything more. May be dropped.
    pub(super) async fn hung_up(&mut self) {
        let has_more = !self.stream.buffer().is_empty();
        if has_more || self.stream.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
            std::future::pending().await
        }
    }

    /// Sends these bytes, after those that are queued.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        let Self { stream, queued, patience, .. } = self;
        let sending = async {
            if queued.is_empty() {
                stream.write_all(bytes).await?;
            } else if queued.len() + bytes.len() <= QUEUED_BYTES_MAX {
                queued.extend_from_slice(bytes);
                stream.write_all(queued).await?;
            } else {
                stream.write_all(queued).await?;
                stream.write_all(bytes).await?;
            }
            queued.clear();
            stream.flush().await
        };
        bounded(*patience, sending).await
    }

    /// Sends these bytes together with the next ones, at once where they are many. Something must be
    /// [sent](Self::send) before a reply is waited for.
    pub(super) async fn queue(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        if self.queued.len() + bytes.len() > QUEUED_BYTES_MAX {
            return self.send(bytes).await;
        }
        self.queued.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) async fn number(&mut self) -> Result<u64, DaemonError> {
        let mut word = [0; WORD_BYTES];
        self.exactly(&mut word).await?;
        Ok(u64::from_le_bytes(word))
    }

    /// Any number but 0 is true, as in Nix.
    pub(super) async fn flag(&mut self) -> Result<bool, DaemonError> {
        Ok(self.number().await? != 0)
    }

    /// Number of the items that follow. `what` names the list for the error.
    pub(super) async fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, DaemonError> {
        let size = self.number().await?;
        if size > limit {
            return Err(DaemonError::TooLarge { what, size, limit });
        }
        Ok(size)
    }

    pub(super) async fn bytes(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, DaemonError> {
        let length = self.count(what, limit).await?;
        let mut bytes = Vec::new();
        let patience = self.patience;
        // Grows with what arrives, whatever was announced.
        bounded(patience, (&mut self.stream).take(length).read_to_end(&mut bytes)).await?;
        if bytes.len() as u64 != length {
            return Err(DaemonError::Closed);
        }
        self.padding(what, length).await?;
        Ok(bytes)
    }

    /// The next bytes, as they come, with no length before them: at least one, at most so many.
    pub(super) async fn some_bytes(&mut self, most: u64) -> Result<Vec<u8>, DaemonError> {
        let patience = self.patience;
        let mut bytes = Vec::new();
        let mut limited = (&mut self.stream).take(most);
        bounded(patience, limited.read_buf(&mut bytes)).await?;
        if bytes.is_empty() { Err(DaemonError::Closed) } else { Ok(bytes) }
    }

    async fn padding(&mut self, what: &'static str, length: u64) -> Result<(), DaemonError> {
        let mut padding = [0; WORD_BYTES];
        let over = (length % WORD_BYTES as u64) as usize;
        let padding = &mut padding[..(WORD_BYTES - over) % WORD_BYTES];
        self.exactly(padding).await?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(DaemonError::Protocol(format!("{what} is padded with something else than zeros")));
        }
        Ok(())
    }

    /// A short string, which must be UTF-8.
    pub(super) async fn text(&mut self, what: &'static str) -> Result<String, DaemonError> {
        let bytes = self.bytes(what, TEXT_BYTES_MAX).await?;
        String::from_utf8(bytes).map_err(|_| DaemonError::Protocol(format!("{what} is not UTF-8")))
    }

    /// A text for people. Bytes that are not UTF-8 become U+FFFD: a builder prints what it likes.
    pub(super) async fn message(&mut self, what: &'static str) -> Result<String, DaemonError> {
        let bytes = self.bytes(what, MESSAGE_BYTES_MAX).await?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Words of a builder: its first [`KEPT_BYTES_MAX`] bytes as a text for people, and how many follow that
    /// were dropped.
    pub(super) async fn builders_words(&mut self, what: &'static str) -> Result<(String, u64), DaemonError> {
        let length = self.count(what, ANNOUNCED_BYTES_MAX).await?;
        let (kept, patience) = (length.min(KEPT_BYTES_MAX), self.patience);
        let mut bytes = Vec::new();
        bounded(patience, (&mut self.stream).take(kept).read_to_end(&mut bytes)).await?;
        let mut rest = (&mut self.stream).take(length - kept);
        let dropped = bounded(patience, tokio::io::copy_buf(&mut rest, &mut tokio::io::sink())).await?;
        if bytes.len() as u64 + dropped != length {
            return Err(DaemonError::Closed);
        }
        self.padding(what, length).await?;
        let text =
            String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Ok((text, dropped))
    }

    pub(super) async fn path(&mut self, dir: &StoreDir) -> Result<StorePath, DaemonError> {
        let text = self.text("a store path").await?;
        parse_path(dir, &text)
    }

    /// A path, or the empty string for none.
    pub(super) async fn optional_path(&mut self, dir: &StoreDir) -> Result<Option<StorePath>, DaemonError> {
        let text = self.text("a store path").await?;
        if text.is_empty() { Ok(None) } else { parse_path(dir, &text).map(Some) }
    }

    pub(super) async fn paths(&mut self, dir: &StoreDir) -> Result<BTreeSet<StorePath>, DaemonError> {
        self.paths_within(dir, LIST_ITEMS_MAX).await
    }

    pub(super) async fn paths_within(
        &mut self,
        dir: &StoreDir,
        limit: u64,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let mut paths = BTreeSet::new();
        for _ in 0..self.count("a list of store paths", limit).await? {
            paths.insert(self.path(dir).await?);
        }
        Ok(paths)
    }

    async fn exactly(&mut self, bytes: &mut [u8]) -> Result<(), DaemonError> {
        let patience = self.patience;
        bounded(patience, self.stream.read_exact(bytes)).await?;
        Ok(())
    }
}

fn parse_path(dir: &StoreDir, text: &str) -> Result<StorePath, DaemonError> {
    StorePath::parse_in(dir, text).map_err(|error| {
        let start: String = text.chars().take(300).collect();
        DaemonError::Protocol(format!("{start:?} is no store path in {dir}: {error}"))
    })
}

async fn bounded<T>(
    patience: Option<Patience>,
    work: impl Future<Output = std::io::Result<T>>,
) -> Result<T, DaemonError> {
    let Some(Patience { doing, limit, until }) = patience else {
        return Ok(work.await?);
    };
    match timeout_at(until, work).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(DaemonError::TimedOut { doing, limit }),
    }
}

/// Bytes to be sent in one go.
#[derive(Debug, Default)]
pub(super) struct RequestBytes(Vec<u8>);

impl RequestBytes {
    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut request = self.number(bytes.len() as u64);
        request.0.extend_from_slice(bytes);
        request.0.resize(request.0.len().next_multiple_of(WORD_BYTES), 0);
        request
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn texts<T: AsRef<str>>(self, texts: &[T]) -> Self {
        texts.iter().fold(self.number(texts.len() as u64), |request, text| request.text(text.as_ref()))
    }

    /// Several requests of one operation, each about one path.
    pub(super) fn about(self, operation: u64, paths: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        paths.into_iter().fold(self, |request, path| request.number(operation).text(path.as_ref()))
    }

    /// A stream of bytes: one frame, and the empty one that ends it.
    pub(super) fn framed(self, bytes: &[u8]) -> Self {
        let mut request = self.number(bytes.len() as u64);
        request.0.extend_from_slice(bytes);
        if bytes.is_empty() { request } else { request.number(0) }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of `read` on `sent`, after which the other side hangs up.
    async fn reading<T>(
        sent: &[u8],
        read: impl AsyncFnOnce(&mut Wire) -> Result<T, DaemonError>,
    ) -> Result<T, DaemonError> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.write_all(sent).await.expect("written");
        drop(theirs);
        read(&mut Wire::new(ours)).await
    }

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        for text in ["", "1234567", "12345678", "123456789"] {
            let sent = RequestBytes::default().text(text).number(7);
            let read = async |wire: &mut Wire| Ok((wire.text("it").await?, wire.number().await?));
            assert_eq!(reading(sent.as_bytes(), read).await.expect("read"), (text.to_owned(), 7));
            assert_eq!(sent.as_bytes().len() % WORD_BYTES, 0);
        }
    }

    #[tokio::test]
    async fn an_absurd_length_is_refused_before_anything_is_set_aside() {
        for length in [TEXT_BYTES_MAX + 1, u64::MAX] {
            let sent = RequestBytes::default().number(length);
            let error =
                reading(sent.as_bytes(), async |wire| wire.text("it").await).await.expect_err("refused");
            assert!(matches!(error, DaemonError::TooLarge { size, .. } if size == length), "{error}");
        }
        let sent = RequestBytes::default().number(LIST_ITEMS_MAX + 1);
        let error = reading(sent.as_bytes(), async |wire| wire.paths(&StoreDir::default()).await).await;
        assert!(matches!(error, Err(DaemonError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn a_string_that_ends_early_is_a_closed_connection() {
        let sent = RequestBytes::default().text("0123456789");
        for length in 0..sent.as_bytes().len() {
            let error = reading(&sent.as_bytes()[..length], async |wire| wire.text("it").await).await;
            assert!(matches!(error, Err(DaemonError::Closed)), "{length} bytes: {error:?}");
        }
    }

    #[tokio::test]
    async fn padding_must_be_zero_and_texts_utf_8() {
        let mut sent = RequestBytes::default().text("a").as_bytes().to_vec();
        *sent.last_mut().expect("padding") = 1;
        let error = reading(&sent, async |wire| wire.text("it").await).await;
        assert!(matches!(error, Err(DaemonError::Protocol(_))));
        let sent = RequestBytes::default().bytes(b"\xff");
        let error = reading(sent.as_bytes(), async |wire| wire.text("it").await).await;
        assert!(matches!(error, Err(DaemonError::Protocol(_))));
        let message = reading(sent.as_bytes(), async |wire| wire.message("it").await).await;
        assert_eq!(message.expect("a message"), "\u{fffd}");
    }

    #[tokio::test]
    async fn of_words_without_end_the_beginning_is_kept_and_the_rest_is_counted() {
        for (length, kept) in [(3, 3), (KEPT_BYTES_MAX, KEPT_BYTES_MAX), (KEPT_BYTES_MAX + 5, KEPT_BYTES_MAX)]
        {
            let sent = RequestBytes::default().text(&"x".repeat(length as usize)).number(7);
            let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
            let sending = tokio::spawn(async move { theirs.write_all(sent.as_bytes()).await });
            let mut wire = Wire::new(ours);
            let (text, dropped) = wire.builders_words("it").await.expect("read");
            assert_eq!((text.len() as u64, dropped), (kept, length - kept));
            assert_eq!(wire.number().await.expect("what follows"), 7);
            sending.await.expect("no panic").expect("sent");
        }
        let sent = RequestBytes::default().number(1 << 20).number(0);
        let error = reading(sent.as_bytes(), async |wire| wire.builders_words("it").await).await;
        assert!(matches!(error, Err(DaemonError::Closed)));
    }

    #[tokio::test]
    async fn silence_ends_with_patience() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut wire = Wire::new(ours);
        wire.set_patience(Some(Patience::new("testing", Duration::from_millis(20))));
        assert!(matches!(wire.number().await, Err(DaemonError::TimedOut { doing: "testing", .. })));
    }
}
