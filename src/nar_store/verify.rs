//! Verification of a NAR while it streams: made on one thread, hashed and parsed on a second, used on a
//! third, since each of these takes a core; a NAR that is one chunk takes less than threads do. Bounded in
//! memory, and stopped as soon as a NAR is longer than promised or malformed. Must be passed by everything
//! that is kept.

use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use narinfo::{Addressed, NarHash, nar};
use sha2::{Digest, Sha256};

use crate::tail_file::CHUNK_BYTES;

/// Chunks that wait for each of the two threads that use them.
const CHUNKS_WAITING_MAX: usize = 2;

/// Time after which bytes that have come go out while a NAR is received, so that readers follow a slow
/// sender.
pub(super) const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// Reasons why a NAR was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store path is not there any more.
    #[error("the store path is gone")]
    Vanished,
    /// The tree could not be read, or changed while it was.
    #[error("cannot read the store path")]
    Dump(#[source] narinfo::nar::Error),
    /// The input cannot be read or decompressed, or ends early.
    #[error("cannot read the NAR that was sent")]
    Sent(#[source] io::Error),
    /// The file in the NAR store cannot be read or decompressed.
    #[error("its file cannot be read or decompressed")]
    Stored(#[source] io::Error),
    /// The contents are no NAR that a client could unpack, or not those that the path is named by.
    #[error("the contents are refused")]
    Malformed(#[source] nar::Error),
    /// Nobody followed the draft any more.
    #[error("nobody waits for it any more")]
    Abandoned,
    /// The contents are not those that were promised.
    #[error("the contents have hash {found} and {found_bytes} bytes, {} and {} were promised", promised.hash, promised.bytes)]
    Mismatch {
        /// Promised hash and size.
        promised: NarDigest,
        /// Hash of the contents, as far as they were read.
        found: NarHash,
        /// Bytes of the contents, or one more than promised.
        found_bytes: u64,
    },
    /// The NAR has more bytes than are allowed.
    #[error("the NAR has more than {bytes_max} bytes, which is the limit")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The file could not be written: most often a full disk.
    #[error("cannot write to the NAR store")]
    Write(#[from] io::Error),
}

/// Hash and size of a plain NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarDigest {
    /// SHA-256 of the plain NAR.
    pub hash: NarHash,
    /// Bytes of the plain NAR.
    pub bytes: u64,
}

/// A NAR that was verified.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) digest: NarDigest,
    /// Names of its programs; none of a NAR that was made of a file tree, which tells them itself.
    pub(super) programs: Vec<String>,
}

/// Condition under which a NAR is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Promised hash and size.
    Exactly(NarDigest),
    /// Bytes of the plain NAR, at most; nothing else is known.
    AtMost(u64),
}

impl Promise {
    /// Bytes of the plain NAR, at most.
    #[must_use]
    pub fn bytes_max(self) -> u64 {
        match self {
            Self::Exactly(NarDigest { bytes, .. }) | Self::AtMost(bytes) => bytes,
        }
    }
}

/// Origin of a NAR, which decides whether its structure is checked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// Made here of a file tree, hence well-formed.
    Tree,
    /// Received from a peer, or read from a file that a peer sent; with the contents that its path is named
    /// by, if they are to be proven.
    Sent(Option<&'a Addressed>),
}

/// Runs `make`, which writes a plain NAR, and passes its bytes to `take`, chunk by chunk; measures the NAR.
/// All but the last have [`CHUNK_BYTES`], and those that `make` flushes: a NAR whose sender is slow.
/// Blocking.
///
/// # Errors
/// Either fails, or what was made breaks the promise. One that is too long was stopped for that,
/// whatever else is said of it; one that broke off says why.
pub(super) fn verify(
    promise: Promise,
    origin: Origin<'_>,
    make: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Error>,
    take: impl FnMut(&[u8]) -> io::Result<()> + Send,
) -> Result<Verified, Error> {
    let bytes_max = promise.bytes_max();
    std::thread::scope(|scope| {
        let (mut take, mut started) = (Some(take), None);
        let mut start = || {
            let (threads, senders) = start_threads(scope, origin, take.take()?)
                .map_or_else(|error| (Err(error), None), |(threads, senders)| (Ok(threads), Some(senders)));
            started = Some(threads);
            senders
        };
        let mut chunks =
            ChunkWriter { chunk: Vec::new(), bytes: 0, bytes_max, senders: None, start: &mut start };
        let made = make(&mut chunks).and_then(|()| Ok(chunks.flush_last()?));
        let ChunkWriter { chunk, bytes: found_bytes, senders, .. } = chunks;
        // That was all of it.
        drop(senders);
        let (taken, (found, parsed)) = match started {
            Some(Ok(ChunkThreads { hasher, taker })) => (ended(taker), ended(hasher)),
            Some(Err(error)) => return Err(Error::Write(error)),
            None => {
                let whole = Some(chunk).filter(|chunk| made.is_ok() && !chunk.is_empty()).map(Arc::new);
                let taken = match (&whole, &mut take) {
                    (Some(chunk), Some(take)) => take(chunk),
                    _ => Ok(()),
                };
                (taken, Hashing::new(whole.into_iter(), None).run(origin))
            }
        };
        let mut programs = Vec::new();
        if found_bytes <= bytes_max {
            taken?;
            match (made, parsed) {
                // The maker was stopped for what it made.
                (Ok(()) | Err(Error::Write(_)), Err(refused)) => return Err(Error::Malformed(refused)),
                (made, parsed) => {
                    made?;
                    programs = parsed.unwrap_or_default();
                }
            }
        }
        let digest = NarDigest { hash: found, bytes: found_bytes };
        match promise {
            Promise::Exactly(promised) if digest == promised => Ok(Verified { digest, programs }),
            Promise::Exactly(promised) => Err(Error::Mismatch { promised, found, found_bytes }),
            Promise::AtMost(_) if found_bytes <= bytes_max => Ok(Verified { digest, programs }),
            Promise::AtMost(_) => Err(Error::TooLarge { bytes_max }),
        }
    })
}

/// The two threads that use chunks.
struct ChunkThreads<'scope> {
    hasher: ScopedJoinHandle<'scope, (NarHash, Result<Vec<String>, nar::Error>)>,
    taker: ScopedJoinHandle<'scope, io::Result<()>>,
}

fn start_threads<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    origin: Origin<'env>,
    mut take: impl FnMut(&[u8]) -> io::Result<()> + Send + 'scope,
) -> io::Result<(ChunkThreads<'scope>, ChunkSenders)> {
    let (to_hash, hashing) = sync_channel(CHUNKS_WAITING_MAX);
    let (to_take, taking) = sync_channel(CHUNKS_WAITING_MAX);
    let (used, reusable) = channel();
    let hashed = used.clone();
    let hasher = Builder::new()
        .name("nar-hasher".into())
        .spawn_scoped(scope, move || Hashing::new(hashing.into_iter(), Some(hashed)).run(origin))?;
    let taker = Builder::new()
        .name("nar-taker".into())
        .spawn_scoped(scope, move || take_all(taking, &used, &mut take))?;
    Ok((ChunkThreads { hasher, taker }, ChunkSenders { to_hash, to_take, reusable }))
}

/// Reader of all chunks in a row, each hashed before it is read.
struct Hashing<C> {
    chunks: C,
    /// Way back for chunks that are to be filled again.
    used: Option<Sender<Vec<u8>>>,
    hasher: Sha256,
    chunk: Option<Arc<Vec<u8>>>,
    /// Bytes of the chunk that were read.
    at: usize,
}

impl<C: Iterator<Item = Arc<Vec<u8>>>> Hashing<C> {
    fn new(chunks: C, used: Option<Sender<Vec<u8>>>) -> Self {
        Self { chunks, used, hasher: Sha256::new(), chunk: None, at: 0 }
    }

    /// Hashes all chunks, and stops early, and with it their maker, if they are no NAR. Gives the names of
    /// its programs.
    fn run(mut self, origin: Origin<'_>) -> (NarHash, Result<Vec<String>, nar::Error>) {
        let parsed = match origin {
            Origin::Tree => Ok(Vec::new()),
            Origin::Sent(None) => nar::check(&mut self).map(|summary| summary.programs),
            Origin::Sent(Some(addressed)) => {
                nar::check_addressed(&mut self, addressed).map(|summary| summary.programs)
            }
        };
        if parsed.is_ok() {
            while self.next() {}
        }
        (NarHash::from_bytes(self.hasher.finalize().into()), parsed)
    }

    /// Advances to the next chunk, if there is one.
    fn next(&mut self) -> bool {
        if let (Some(chunk), Some(used)) = (self.chunk.take(), &self.used) {
            reuse(chunk, used);
        }
        self.chunk = self.chunks.next();
        self.at = 0;
        self.chunk.as_ref().inspect(|chunk| self.hasher.update(chunk.as_slice())).is_some()
    }
}

impl<C: Iterator<Item = Arc<Vec<u8>>>> Read for Hashing<C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk[self.at..]);
            if !rest.is_empty() {
                let read = rest.len().min(buffer.len());
                buffer[..read].copy_from_slice(&rest[..read]);
                self.at += read;
                return Ok(read);
            }
            if !self.next() {
                return Ok(0);
            }
        }
    }
}

/// Passes all chunks to `take`; stops at the first error, and with it the producer of the chunks.
fn take_all(
    chunks: Receiver<Arc<Vec<u8>>>,
    used: &Sender<Vec<u8>>,
    take: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for chunk in chunks {
        take(&chunk)?;
        reuse(chunk, used);
    }
    Ok(())
}

/// Gives a chunk back to be filled again, once its last user has it.
fn reuse(chunk: Arc<Vec<u8>>, used: &Sender<Vec<u8>>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        // An error means that the consumer has gone.
        let _ = used.send(chunk);
    }
}

fn ended<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Writer that counts bytes, and passes them on in chunks: to threads that are started for the first one, or
/// to nobody where that is the last one, too.
pub(super) struct ChunkWriter<'s> {
    chunk: Vec<u8>,
    /// Bytes written, with the first that are too many.
    bytes: u64,
    bytes_max: u64,
    senders: Option<ChunkSenders>,
    /// Starts the threads; `None` where they could not be started.
    start: &'s mut dyn FnMut() -> Option<ChunkSenders>,
}

/// The ways to the two threads that use chunks, and from them.
struct ChunkSenders {
    to_hash: SyncSender<Arc<Vec<u8>>>,
    to_take: SyncSender<Arc<Vec<u8>>>,
    reusable: Receiver<Vec<u8>>,
}

impl ChunkWriter<'_> {
    /// Passes on the last bytes, unless they are the first, too.
    fn flush_last(&mut self) -> io::Result<()> {
        if self.senders.is_some() { self.flush() } else { Ok(()) }
    }
}

impl Write for ChunkWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // Full, and more is to come.
        if self.chunk.len() == CHUNK_BYTES && !data.is_empty() {
            self.flush()?;
        }
        let fit = data.len().min(CHUNK_BYTES - self.chunk.len());
        self.bytes += fit as u64;
        if self.bytes > self.bytes_max {
            return Err(io::Error::other("larger than promised"));
        }
        if self.chunk.capacity() == 0 {
            let used = self.senders.as_ref().and_then(|senders| senders.reusable.try_recv().ok());
            self.chunk = used.unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
            self.chunk.clear();
        }
        self.chunk.extend_from_slice(&data[..fit]);
        Ok(fit)
    }

    /// Passes on the bytes so far.
    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        if self.senders.is_none() {
            self.senders = (self.start)();
        }
        let gone = || io::Error::other("nobody takes it any more");
        let ChunkSenders { to_hash, to_take, .. } = self.senders.as_ref().ok_or_else(gone)?;
        let chunk = Arc::new(std::mem::take(&mut self.chunk));
        to_hash.send(Arc::clone(&chunk)).and_then(|()| to_take.send(chunk)).map_err(|_| gone())
    }
}

/// Copies until the input ends, either side fails, or `came`, which is told of the bytes of each piece, has
/// enough.
pub(super) fn copy(
    input: &mut dyn Read,
    chunks: &mut ChunkWriter<'_>,
    mut came: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut buffer, mut flushed) = (vec![0; CHUNK_BYTES], Instant::now());
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                chunks.write_all(&buffer[..read])?;
                came(read as u64)?;
                if flushed.elapsed() >= FLUSH_AFTER {
                    flushed = Instant::now();
                    chunks.flush()?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Sent(error)),
        }
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
