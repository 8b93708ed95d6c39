//! A file on its way from an upstream: read by a task of its own, resumed where the connection breaks, and
//! given to a blocking reader. Bounded in bytes, and in how slowly they may come; what they are worth is for
//! the reader to find out.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Buf, Bytes};
use narinfo::Compression;
use reqwest::header::HeaderValue;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, Span};

use super::cache::Cache;
use super::spans::note_failure;
use super::transport::{Error, Opened, ResumePoint};
use crate::backoff::Backoff;

/// Pieces that may wait for a reader who is slower than the network.
const PIECES_WAITING_MAX: usize = 4;
/// An answer that brings less than this within the stall time-out has stalled.
const STALL_BYTES_MIN: u64 = 1024;
/// Breaks in a row, with little in between, after which a transfer is given up.
const BREAKS_MAX: u32 = 4;
/// Bytes between two breaks that reset their count.
const PROGRESS_BYTES: u64 = 4 * 1024 * 1024;
/// Shortest and longest pause after a break.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_millis(6400);
/// Reason where the task that reads a file has panicked.
const LOST: &str = "reading it stopped because of a bug of this server";

/// The bytes of a file, for a thread that may wait for them. Dropping it ends the transfer.
#[derive(Debug)]
pub struct Transfer {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    /// Content encoding, beside the file's own compression.
    pub encoding: Compression,
    broken: Broken,
}

/// Why a transfer broke off, if it did: then what was read is not to blame.
#[derive(Clone, Debug, Default)]
pub struct Broken(Arc<Breaks>);

#[derive(Debug, Default)]
struct Breaks {
    reason: OnceLock<String>,
    /// The file came to its end.
    complete: AtomicBool,
    resumed: AtomicBool,
}

impl Broken {
    /// The reason.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.get().map(String::as_str)
    }

    /// True if parts of it came over different connections: where they do not fit, nobody knows whose fault
    /// it is.
    #[must_use]
    pub fn was_resumed(&self) -> bool {
        self.0.resumed.load(Ordering::Relaxed)
    }
}

impl Transfer {
    /// Starts reading `opened`, a file of this source. The turn ends with it.
    pub(super) fn start(
        source: TransferRequest,
        opened: Opened,
        turn: Option<OwnedSemaphorePermit>,
        span: Span,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
        let (encoding, broken) = (opened.encoding, Broken::default());
        let (etag, length) = (opened.etag.clone(), opened.length);
        let why = broken.clone();
        let pump = Pump { source, opened: Some(opened), etag, length, at: 0, why: why.clone() };
        // It ends with its reader, and a panic in it is an error of the reader.
        let passing_on = async move {
            let _turn = turn;
            // The sender goes last: the reader asks for the end then.
            match pump.run(&sender).await {
                Ok(()) => why.0.complete.store(true, Ordering::Release),
                Err(error) => {
                    note_failure(&Span::current(), &error);
                    drop(why.0.reason.set(error.to_string()));
                }
            }
        };
        tokio::spawn(passing_on.instrument(span));
        Self { pieces, piece: Bytes::new(), encoding, broken }
    }

    /// To be asked when reading has failed.
    #[must_use]
    pub fn broken(&self) -> Broken {
        self.broken.clone()
    }
}

impl Read for Transfer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None if self.broken.0.complete.load(Ordering::Acquire) => return Ok(0),
                None => {
                    let reason = self.broken.0.reason.get_or_init(|| LOST.to_owned());
                    return Err(io::Error::other(reason.clone()));
                }
            }
        }
        let read = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

/// A transfer and its limits.
pub(super) struct TransferRequest {
    pub(super) cache: Arc<Cache>,
    pub(super) url: String,
    pub(super) bytes_max: u64,
    /// Time limit of resumptions in vain, once something has come.
    pub(super) patience: Duration,
    /// Restarts from the beginning after each break.
    pub(super) whole: bool,
}

/// The reading end of a transfer.
struct Pump {
    source: TransferRequest,
    /// `None` once the connection broke.
    opened: Option<Opened>,
    etag: Option<HeaderValue>,
    /// Bytes of all of it, as the first answer had it.
    length: Option<u64>,
    /// Bytes that have been passed on.
    at: u64,
    why: Broken,
}

impl Pump {
    /// Passes all of the file on, over several connections where need be.
    async fn run(mut self, sender: &mpsc::Sender<Bytes>) -> Result<(), Error> {
        let (mut breaks, mut since, mut since_when) = (0, 0, Instant::now());
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            let passed_on = self.pass_on(sender).await;
            Span::current().record("bytes", self.at);
            let Err(error) = passed_on else { return Ok(()) };
            if self.at - since >= PROGRESS_BYTES {
                (breaks, since, since_when) = (0, self.at, Instant::now());
                backoff.reset();
            }
            breaks += 1;
            // Before anything has come there may be another upstream.
            let patient = self.at > 0 && since_when.elapsed() < self.source.patience;
            let unresumable = matches!(error, Error::Status { code: 416, .. }) && !self.source.whole;
            if (error.is_final() && !unresumable) || (breaks >= BREAKS_MAX && !patient) {
                return Err(error);
            }
            self.source.whole |= unresumable;
            let (upstream, url) = (self.source.cache.name(), &self.source.url);
            tracing::info!(%upstream, url, at = self.at, %error, "resuming a broken transfer");
            let pause = error.retry_after().unwrap_or_else(|| backoff.pause());
            tokio::time::sleep(pause).await;
            self.opened = None;
        }
    }

    async fn pass_on(&mut self, sender: &mpsc::Sender<Bytes>) -> Result<(), Error> {
        let mut opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.reopen().await?,
        };
        let mut skip = self.at.checked_sub(opened.from).ok_or(Error::Answer("it begins at another byte"))?;
        let stall = self.source.cache.stall_timeout();
        let (mut window_end, mut came) = (Instant::now() + stall, 0);
        loop {
            let mut piece = match timeout_at(window_end, opened.next_chunk()).await {
                Ok(piece) => match piece? {
                    Some(piece) => piece,
                    None => break,
                },
                Err(_) if came >= STALL_BYTES_MIN => {
                    (window_end, came) = (Instant::now() + stall, 0);
                    continue;
                }
                Err(_) => return Err(Error::Stalled(stall)),
            };
            came += piece.len() as u64;
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            piece.advance(usize::try_from(skipped).unwrap_or(usize::MAX));
            if self.at + piece.len() as u64 > self.source.bytes_max {
                return Err(Error::Answer("it is longer than such a NAR can be"));
            }
            self.at += piece.len() as u64;
            self.source.cache.came(piece.len() as u64);
            let waited = Instant::now();
            // A reader that is gone has seen enough.
            if !piece.is_empty() && sender.send(piece).await.is_err() {
                return Ok(());
            }
            // Waiting for a slow reader is not the upstream's fault.
            window_end += waited.elapsed();
        }
        match opened.length {
            Some(length) if self.at < length => Err(Error::Broken("it ended early".into())),
            _ => Ok(()),
        }
    }

    /// The file from where it broke off; from its beginning where the upstream can do no better.
    async fn reopen(&mut self) -> Result<Opened, Error> {
        loop {
            let resumed = self.at > 0 && !self.source.whole;
            let rest = resumed.then_some(ResumePoint { from: self.at, etag: self.etag.as_ref() });
            let opened = self.source.cache.open(&self.source.url, rest).await?;
            if self.etag.is_some() && opened.etag != self.etag {
                return Err(Error::Answer("the file changed while it was read"));
            }
            let another = |length| self.length.is_some_and(|first| first != length);
            if resumed && (opened.from > self.at || opened.length.is_some_and(another)) {
                // Not the part that was asked for, or a part that is said to be the whole.
                self.source.whole = true;
                continue;
            }
            if resumed {
                self.why.0.resumed.store(true, Ordering::Relaxed);
            }
            return Ok(opened);
        }
    }
}
