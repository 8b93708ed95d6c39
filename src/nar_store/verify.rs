//! A NAR on its way into a file: made on one thread, hashed and parsed on a second and used on a third, since each of these
//! takes a core. Nothing that comes of it may be kept unless this says that it is the NAR which was promised. Bounded in
//! memory, and stopped where a NAR is longer than promised or none.

use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, ScopedJoinHandle};

use narinfo::{Addressed, NarHash, nar};
use sha2::{Digest, Sha256};

use crate::tail_file::CHUNK_BYTES;

/// Chunks that wait for each of the two threads that use them.
const CHUNKS_WAITING_MAX: usize = 2;

/// Why a NAR was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store path is not there any more.
    #[error("the store path is gone")]
    Vanished,
    /// The tree could not be read, or changed while it was.
    #[error("cannot read the store path")]
    Dump(#[source] narinfo::nar::Error),
    /// What was sent or stored cannot be decompressed, or ends early.
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
    #[error("the contents have hash {found} and {found_bytes} bytes, {} and {} were promised", expected.hash, expected.bytes)]
    Mismatch {
        /// What was promised.
        expected: Expected,
        /// What there is.
        found: NarHash,
        /// Bytes there are, or the first that are too many.
        found_bytes: u64,
    },
    /// The file could not be written: most often a full disk.
    #[error("cannot write to the NAR store")]
    Write(#[from] io::Error),
}

/// What a NAR must be to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 of the plain NAR.
    pub hash: NarHash,
    /// Its bytes.
    pub bytes: u64,
}

/// Origin of a NAR, which decides whether its structure is checked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// Made here of a file tree, hence well-formed.
    Tree,
    /// Sent by somebody, or read from a file that somebody sent; with the contents that its path is named by, if they are to
    /// be proven.
    Sent(Option<&'a Addressed>),
}

/// Has `make` write a plain NAR, whose bytes go to `take`, chunk by chunk. All but the last have [`CHUNK_BYTES`], and those
/// that `make` flushes: a NAR whose sender is slow. Blocking.
///
/// # Errors
/// When either fails, or what was made is not what was promised. One that is too long was stopped for that, whatever else is
/// said of it; one that broke off says why.
pub(super) fn checked(
    expected: Expected,
    origin: Origin<'_>,
    make: impl FnOnce(&mut Chunks) -> Result<(), Error> + Send,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Error> {
    let (to_hash, hashing) = sync_channel(CHUNKS_WAITING_MAX);
    let (to_take, taking) = sync_channel(CHUNKS_WAITING_MAX);
    let (used, reusable) = channel();
    let mut chunks =
        Chunks { chunk: Vec::new(), bytes: 0, bytes_max: expected.bytes, to_hash, to_take, reusable };
    std::thread::scope(|scope| {
        let maker = Builder::new().name("nar-maker".into()).spawn_scoped(scope, move || {
            let made = make(&mut chunks).and_then(|()| Ok(chunks.flush()?));
            (chunks.bytes, made)
        })?;
        let hashed = used.clone();
        let hasher = Builder::new().name("nar-hasher".into()).spawn_scoped(scope, move || {
            Hashing { chunks: hashing, used: hashed, hasher: Sha256::new(), chunk: None, at: 0 }.run(origin)
        })?;
        let taken = take_all(taking, &used, &mut take);
        let ((found_bytes, made), (found, parsed)) = (ended(maker), ended(hasher));
        if found_bytes <= expected.bytes {
            taken?;
            match (made, parsed) {
                // The maker was stopped for what it made.
                (Ok(()) | Err(Error::Write(_)), Err(refused)) => return Err(Error::Malformed(refused)),
                (made, _) => made?,
            }
        }
        if (found, found_bytes) == (expected.hash, expected.bytes) {
            return Ok(());
        }
        Err(Error::Mismatch { expected, found, found_bytes })
    })
}

/// The chunks in a row, each hashed before it is read.
struct Hashing {
    chunks: Receiver<Arc<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    hasher: Sha256,
    chunk: Option<Arc<Vec<u8>>>,
    /// Bytes of the chunk that were read.
    at: usize,
}

impl Hashing {
    /// Hashes all of them, unless they turn out not to be a NAR before their end: then whoever makes them is stopped.
    fn run(mut self, origin: Origin<'_>) -> (NarHash, Result<(), nar::Error>) {
        let parsed = match origin {
            Origin::Tree => Ok(()),
            Origin::Sent(None) => nar::check(&mut self).map(drop),
            Origin::Sent(Some(addressed)) => nar::check_addressed(&mut self, addressed).map(drop),
        };
        if parsed.is_ok() {
            while self.next() {}
        }
        (NarHash::from_bytes(self.hasher.finalize().into()), parsed)
    }

    /// Goes on to the next chunk, if there is one.
    fn next(&mut self) -> bool {
        if let Some(chunk) = self.chunk.take() {
            reuse(chunk, &self.used);
        }
        self.chunk = self.chunks.recv().ok();
        self.at = 0;
        self.chunk.as_ref().inspect(|chunk| self.hasher.update(chunk.as_slice())).is_some()
    }
}

impl Read for Hashing {
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

/// Stops at the first error, and with it whoever makes the chunks.
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

/// The last to have used a chunk gives it back, to be filled again.
fn reuse(chunk: Arc<Vec<u8>>, used: &Sender<Vec<u8>>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        // At the end nobody needs it.
        let _ = used.send(chunk);
    }
}

fn ended<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Gathers what is written to it, counts it, and passes it on in chunks.
pub(super) struct Chunks {
    chunk: Vec<u8>,
    /// With the first that are too many.
    bytes: u64,
    bytes_max: u64,
    to_hash: SyncSender<Arc<Vec<u8>>>,
    to_take: SyncSender<Arc<Vec<u8>>>,
    reusable: Receiver<Vec<u8>>,
}

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let fit = data.len().min(CHUNK_BYTES - self.chunk.len());
        self.bytes += fit as u64;
        if self.bytes > self.bytes_max {
            return Err(io::Error::other("larger than promised"));
        }
        if self.chunk.capacity() == 0 {
            self.chunk = self.reusable.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK_BYTES));
            self.chunk.clear();
        }
        self.chunk.extend_from_slice(&data[..fit]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(fit)
    }

    /// Passes on what there is.
    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = Arc::new(std::mem::take(&mut self.chunk));
        let sent = self.to_hash.send(Arc::clone(&chunk)).and_then(|()| self.to_take.send(chunk));
        sent.map_err(|_| io::Error::other("nobody takes it any more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(bytes: &[u8]) -> Expected {
        Expected { hash: NarHash::from_bytes(Sha256::digest(bytes).into()), bytes: bytes.len() as u64 }
    }

    /// Writes `bytes` in pieces of such a size.
    fn pieces(bytes: &[u8], size: usize) -> impl FnOnce(&mut Chunks) -> Result<(), Error> {
        move |chunks| Ok(bytes.chunks(size).try_for_each(|piece| chunks.write_all(piece))?)
    }

    #[test]
    fn what_is_promised_comes_whole_in_full_chunks_however_it_was_written() {
        let bytes: Vec<u8> = (0..3 * CHUNK_BYTES + 5).map(|n| (n % 249) as u8).collect();
        for size in [7, CHUNK_BYTES, bytes.len()] {
            let (mut taken, mut sizes) = (Vec::new(), Vec::new());
            let take = |chunk: &[u8]| {
                taken.extend_from_slice(chunk);
                sizes.push(chunk.len());
                Ok(())
            };
            checked(expected(&bytes), Origin::Tree, pieces(&bytes, size), take).expect("as promised");
            assert!(taken == bytes, "pieces of {size}");
            assert_eq!(sizes, [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, 5], "pieces of {size}");
        }
    }

    #[test]
    fn what_is_other_longer_or_shorter_is_a_mismatch() {
        let bytes = vec![1; 2 * CHUNK_BYTES];
        let mut other = bytes.clone();
        other[CHUNK_BYTES] = 2;
        for wrong in [&other[..], &[&bytes[..], &[1]].concat(), &bytes[1..], &[]] {
            let error = checked(expected(&bytes), Origin::Tree, pieces(wrong, 1000), |_| Ok(()))
                .expect_err("not promised");
            assert!(matches!(error, Error::Mismatch { .. }), "{} bytes: {error:?}", wrong.len());
        }
    }

    #[test]
    fn who_makes_it_and_who_takes_it_each_end_it_with_their_own_error() {
        let bytes = vec![1; 20 * CHUNK_BYTES];
        let full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let error = checked(expected(&bytes), Origin::Tree, pieces(&bytes, 1000), full)
            .expect_err("nowhere to put it");
        assert!(matches!(&error, Error::Write(why) if why.kind() == io::ErrorKind::StorageFull), "{error:?}");
        let broken = |chunks: &mut Chunks| {
            chunks.write_all(&bytes[..1000])?;
            Err(Error::Sent(io::ErrorKind::BrokenPipe.into()))
        };
        let error = checked(expected(&bytes), Origin::Tree, broken, |_| Ok(())).expect_err("it broke off");
        assert!(matches!(error, Error::Sent(_)), "{error:?}");
    }

    /// The NAR of a file with these contents.
    fn nar_of(contents: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("file"), contents).expect("written");
        let mut nar = Vec::new();
        nar::dump(&folder.path().join("file"), &mut nar).expect("a NAR");
        nar
    }

    #[test]
    fn what_was_sent_is_refused_where_it_is_no_nar_however_well_it_is_promised() {
        let good = nar_of(&vec![7; 2 * CHUNK_BYTES]);
        let sent = Origin::Sent(None);
        checked(expected(&good), sent, pieces(&good, 1000), |_| Ok(())).expect("a NAR");
        let trailing = [&good[..], &[0; 8]].concat();
        let page = b"<html>Please log in</html>".repeat(100_000);
        for wrong in [&trailing[..], &good[8..], &good[..good.len() - 8], &page, &[]] {
            let error = checked(expected(wrong), sent, pieces(wrong, 1000), |_| Ok(())).expect_err("no NAR");
            assert!(matches!(error, Error::Malformed(_)), "{} bytes: {error:?}", wrong.len());
        }
    }

    #[test]
    fn what_is_no_nar_is_left_at_once() {
        let mut made = 0;
        let endless = |chunks: &mut Chunks| loop {
            chunks.write_all(&[0; 1000])?;
            made += 1000;
        };
        let promised = Expected { hash: NarHash::from_bytes([0; 32]), bytes: 1 << 60 };
        let error = checked(promised, Origin::Sent(None), endless, |_| Ok(())).expect_err("no NAR");
        assert!(matches!(error, Error::Malformed(_)) && made < 20 * CHUNK_BYTES, "{made} bytes: {error:?}");
    }

    #[test]
    fn contents_that_a_path_is_not_named_by_are_refused() {
        let nar = nar_of(b"contents");
        let addressed = |hash: NarHash| {
            let path = "0123456789abcdfghijklmnpqrsvwxyz-p".parse().expect("a path");
            Addressed::new(format!("fixed:{hash}").parse().expect("an address"), &path, &Default::default())
        };
        for (contents, right) in [(&b"contents"[..], true), (b"others", false)] {
            let addressed = addressed(expected(contents).hash);
            let origin = Origin::Sent(Some(&addressed));
            assert_eq!(checked(expected(&nar), origin, pieces(&nar, 7), |_| Ok(())).is_ok(), right);
        }
    }
}
