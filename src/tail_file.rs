//! Files that are read while they are written (`tail -f` with a verdict): a reader gets the bytes that are
//! there, waits for more, and learns at the end whether the file is right. Written by hand because a
//! broadcast of chunks holds memory for its slowest reader: here a reader is a position, and all readers
//! together hold 32 chunks of 256 KiB at most, be they ten or ten thousand. Replaced a loop each for NARs and
//! for logs. Does not apply to files that are overwritten or cut short. Must never read on an async thread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// Bytes read, written or sent at a time.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Concurrent reads, at most. All followers of a file want their next bytes in the same moment: more reads
/// than this make nobody faster, and each takes a thread and a buffer of one chunk.
const READS_MAX: usize = 32;
static READS: Semaphore = Semaphore::const_new(READS_MAX);

/// Extent of a file that is being written, and its verdict.
#[derive(Clone, Debug, Default)]
pub struct WriteProgress {
    /// Bytes that can be read.
    pub bytes: u64,
    /// The verdict, once the file is complete: `Err` has the reason why it is not what was promised.
    pub end: Option<Result<(), String>>,
}

impl WriteProgress {
    /// Bytes that may be read by a reader of the first `end` bytes, of which `early` come before the verdict.
    fn readable(&self, end: u64, early: u64) -> u64 {
        let is_right = matches!(self.end, Some(Ok(())));
        self.bytes.min(end).min(if is_right { u64::MAX } else { early })
    }
}

/// Position of a reader in a file, and the end of what it wants.
#[derive(Debug)]
pub struct TailCursor {
    offset: u64,
    /// One past the last byte that is wanted; `u64::MAX` is the end of a file which still grows.
    end: u64,
    /// Bytes that may be read before the verdict.
    early: u64,
    /// `None` for a file that is complete.
    progress: Option<watch::Receiver<WriteProgress>>,
}

impl TailCursor {
    /// The bytes of `part`, which must be there.
    #[must_use]
    pub fn part(part: Range<u64>) -> Self {
        Self { offset: part.start, end: part.end, early: part.end, progress: None }
    }

    /// The whole of a file that may still grow.
    #[must_use]
    pub fn following(progress: watch::Receiver<WriteProgress>) -> Self {
        Self::following_part(progress, 0..u64::MAX, 0)
    }

    /// The bytes of `part` of a file that may still grow. The last one is held back until the verdict,
    /// because a client that has counted all bytes takes them for right; not so within the first `trusted`
    /// bytes of the file.
    #[must_use]
    pub fn following_part(progress: watch::Receiver<WriteProgress>, part: Range<u64>, trusted: u64) -> Self {
        let early = trusted.max(part.end.saturating_sub(1));
        Self { offset: part.start, end: part.end, early, progress: Some(progress) }
    }

    /// Range of the next bytes, at most `bytes_max`, once there are some; `None` at the end.
    ///
    /// # Errors
    /// The file turned out wrong, or its writer went away without a verdict.
    pub async fn next(&mut self, bytes_max: u64) -> io::Result<Option<Range<u64>>> {
        let Some(progress) = &mut self.progress else { return Ok(self.take(self.end, bytes_max)) };
        let (offset, end, early) = (self.offset, self.end, self.early);
        if offset >= end && early >= end {
            return Ok(None);
        }
        let now = progress
            .wait_for(|now| now.end.is_some() || now.readable(end, early) > offset)
            .await
            .map_err(|_| abandoned())?
            .clone();
        match (self.take(now.readable(end, early), bytes_max), now.end) {
            (None, Some(Err(reason))) => Err(io::Error::other(reason)),
            (None, _) if end != u64::MAX && offset < end => Err(io::ErrorKind::UnexpectedEof.into()),
            (next, _) => Ok(next),
        }
    }

    /// Range of the next bytes, if they are there already.
    pub fn next_now(&mut self, bytes_max: u64) -> Option<Range<u64>> {
        let readable = self
            .progress
            .as_ref()
            .map_or(self.end, |progress| progress.borrow().readable(self.end, self.early));
        self.take(readable, bytes_max)
    }

    fn take(&mut self, readable: u64, bytes_max: u64) -> Option<Range<u64>> {
        let start = self.offset;
        self.offset = readable.min(start.saturating_add(bytes_max)).max(start);
        (start < self.offset).then_some(start..self.offset)
    }
}

/// Reader of a file, chunk by chunk.
#[derive(Debug)]
pub struct TailReader {
    file: Arc<File>,
    cursor: TailCursor,
}

impl TailReader {
    /// Reads the bytes of `file` at `cursor`.
    #[must_use]
    pub fn new(file: Arc<File>, cursor: TailCursor) -> Self {
        Self { file, cursor }
    }

    /// The next bytes, once there are some; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, turned out wrong, or its writer went away without a verdict.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(next) = self.cursor.next(CHUNK_BYTES as u64).await? else { return Ok(None) };
        let file = Arc::clone(&self.file);
        let read = reading(move || {
            let mut buffer = Vec::new();
            read_at(&file, next, &mut buffer)?;
            Ok(Bytes::from(buffer))
        });
        read.await.map(Some)
    }
}

/// Puts the bytes of `part`, which must be there, in cursor of what is in `buffer`.
///
/// # Errors
/// The file cannot be read, or ends before them.
pub fn read_at(file: &File, part: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    // Old contents are overwritten: only bytes beyond the old length need be cleared.
    buffer.resize(bytes, 0);
    file.read_exact_at(buffer, part.start)
}

/// Error of a reader whose writer went away without a verdict.
#[must_use]
pub fn abandoned() -> io::Error {
    io::Error::other("it was abandoned before its end")
}

/// A read under way.
pub type Reading<T> = tokio::task::JoinHandle<io::Result<T>>;

/// One of 32 permits to read, held until the read has ended.
pub struct ReadPermit {
    _permit: SemaphorePermit<'static>,
}

impl ReadPermit {
    /// A free permit, if there is one.
    #[must_use]
    pub fn free() -> Option<Self> {
        READS.try_acquire().ok().map(|permit| Self { _permit: permit })
    }

    /// Runs `work` on files on a blocking thread. The permit ends with it, even if nobody waits for the
    /// result.
    pub fn read<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Reading<T> {
        tokio::task::spawn_blocking(move || {
            let _permit = self;
            work()
        })
    }
}

/// Runs `work` on files on a blocking thread, once a permit is free.
///
/// # Errors
/// That of the work.
pub async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // The semaphore is never closed.
    let permit = ReadPermit { _permit: READS.acquire().await.map_err(io::Error::other)? };
    permit.read(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_wanted_byte_of_a_growing_file_comes_when_it_is_known_to_be_right() {
        let (progress, following) = watch::channel(WriteProgress { bytes: 80, end: None });
        let mut whole = TailCursor::following_part(following.clone(), 0..100, 0);
        let mut slice = TailCursor::following_part(following.clone(), 10..20, 0);
        let mut trusted = TailCursor::following_part(following.clone(), 10..20, 99);
        let mut open = TailCursor::following(following);
        assert_eq!(whole.next(50).await.expect("bytes"), Some(0..50));
        assert_eq!((whole.next_now(50), whole.next_now(50)), (Some(50..80), None));
        assert_eq!((slice.next_now(50), slice.next_now(50)), (Some(10..19), None));
        assert_eq!(trusted.next(50).await.expect("bytes"), Some(10..20));
        assert_eq!(trusted.next(50).await.expect("the end, before that of the file"), None);
        assert_eq!(open.next(u64::MAX).await.expect("bytes"), Some(0..80));
        progress.send_modify(|now| now.bytes = 100);
        assert_eq!((whole.next_now(50), slice.next_now(50)), (Some(80..99), None));
        progress.send_modify(|now| now.end = Some(Ok(())));
        assert_eq!(whole.next(50).await.expect("bytes"), Some(99..100));
        assert_eq!(slice.next(50).await.expect("bytes"), Some(19..20));
        assert_eq!(open.next(50).await.expect("bytes"), Some(80..100));
        for mut ended in [whole, slice, open] {
            assert_eq!(ended.next(50).await.expect("the end"), None);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_wrong_too_short_or_abandoned_never_looks_whole() {
        for (end, bytes) in [(Some(Err("wrong".to_owned())), 100), (Some(Ok(())), 99), (None, 100)] {
            let (progress, following) = watch::channel(WriteProgress { bytes, end });
            drop(progress);
            let mut cursor = TailCursor::following_part(following, 0..100, 0);
            assert_eq!(cursor.next(1000).await.expect("bytes"), Some(0..99));
            cursor.next(1000).await.expect_err("its last byte was held back");
        }
    }
}
