//! Files that are read while they are written: a reader gets what is there, waits for more, and learns at the end whether
//! the file is what it was to be. Takes no memory for a reader that is slow, and never reads on an async thread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// Bytes read, written or sent at a time.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Reads under way at the same time. When a file grows, all who follow it want their next bytes at once: more reads than
/// this make nobody faster, and each takes a thread and the room for a chunk.
const READS_MAX: usize = 32;
static READS: Semaphore = Semaphore::const_new(READS_MAX);

/// How far a file has grown.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// Bytes that can be read.
    pub bytes: u64,
    /// Nothing more comes, and whether the file is what it was to be.
    pub end: Option<Result<(), String>>,
}

impl Growth {
    /// How far one may read who wants no more than `end` bytes, and before the end no more than `early`.
    fn readable(&self, end: u64, early: u64) -> u64 {
        let is_right = matches!(self.end, Some(Ok(())));
        self.bytes.min(end).min(if is_right { u64::MAX } else { early })
    }
}

/// Where a reader is in a file, and how far it goes.
#[derive(Debug)]
pub struct Place {
    offset: u64,
    /// One past the last byte that is wanted; the largest number where that is the end of a file which still grows.
    end: u64,
    /// How far it goes before it is known that the file is right.
    early: u64,
    /// `None` for a file that is complete.
    growth: Option<watch::Receiver<Growth>>,
}

impl Place {
    /// The bytes of `part`, which must be there.
    #[must_use]
    pub fn part(part: Range<u64>) -> Self {
        Self { offset: part.start, end: part.end, early: part.end, growth: None }
    }

    /// All of a file that may still grow, however long it will be.
    #[must_use]
    pub fn following(growth: watch::Receiver<Growth>) -> Self {
        Self::following_part(growth, 0..u64::MAX, 0)
    }

    /// The bytes of `part` of a file that may still grow. The last one comes only when it is known that the file is what it was
    /// to be, since who has counted them all may take them for right; but for one within the first `trusted` bytes of the file.
    #[must_use]
    pub fn following_part(growth: watch::Receiver<Growth>, part: Range<u64>, trusted: u64) -> Self {
        let early = trusted.max(part.end.saturating_sub(1));
        Self { offset: part.start, end: part.end, early, growth: Some(growth) }
    }

    /// Where the next bytes are, once there are some, at most so many; `None` at the end.
    ///
    /// # Errors
    /// When the file did not become what it was to be, or was abandoned by its writer.
    pub async fn next(&mut self, bytes_max: u64) -> io::Result<Option<Range<u64>>> {
        let Some(growth) = &mut self.growth else { return Ok(self.take(self.end, bytes_max)) };
        let (offset, end, early) = (self.offset, self.end, self.early);
        if offset >= end && early >= end {
            return Ok(None);
        }
        let now = growth
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

    /// The same of bytes that are there already.
    pub fn next_now(&mut self, bytes_max: u64) -> Option<Range<u64>> {
        let readable =
            self.growth.as_ref().map_or(self.end, |growth| growth.borrow().readable(self.end, self.early));
        self.take(readable, bytes_max)
    }

    fn take(&mut self, readable: u64, bytes_max: u64) -> Option<Range<u64>> {
        let start = self.offset;
        self.offset = readable.min(start.saturating_add(bytes_max)).max(start);
        (start < self.offset).then_some(start..self.offset)
    }
}

/// Reads a file, chunk by chunk.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    place: Place,
}

impl Reader {
    /// The bytes of `file` at `place`.
    #[must_use]
    pub fn new(file: Arc<File>, place: Place) -> Self {
        Self { file, place }
    }

    /// The next bytes, once there are some; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read, did not become what it was to be, or was abandoned by its writer.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some(next) = self.place.next(CHUNK_BYTES as u64).await? else { return Ok(None) };
        let file = Arc::clone(&self.file);
        let read = reading(move || {
            let mut buffer = Vec::new();
            read_at(&file, next, &mut buffer)?;
            Ok(Bytes::from(buffer))
        });
        read.await.map(Some)
    }
}

/// Puts the bytes of `part`, which must be there, in place of what is in `buffer`.
///
/// # Errors
/// When the file cannot be read, or ends before them.
pub fn read_at(file: &File, part: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    // What is in it is written over: only what it has never had need be cleared.
    buffer.resize(bytes, 0);
    file.read_exact_at(buffer, part.start)
}

/// What a reader hears when the writer went away without a word.
#[must_use]
pub fn abandoned() -> io::Error {
    io::Error::other("it was abandoned before its end")
}

/// A read under way.
pub type Reading<T> = tokio::task::JoinHandle<io::Result<T>>;

/// The right to read now, until the read has ended.
pub struct Turn {
    _permit: SemaphorePermit<'static>,
}

impl Turn {
    /// A turn that nobody has to wait for, if there is one.
    #[must_use]
    pub fn free() -> Option<Self> {
        READS.try_acquire().ok().map(|permit| Self { _permit: permit })
    }

    /// Has a thread that may wait do `work` on files. The turn ends with it, also where nobody waits for that any more.
    pub fn read<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Reading<T> {
        tokio::task::spawn_blocking(move || {
            let _turn = self;
            work()
        })
    }
}

/// Work on files, on a thread that may wait for them, once it is its turn.
///
/// # Errors
/// That of the work.
pub async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    // The semaphore is never closed.
    let turn = Turn { _permit: READS.acquire().await.map_err(io::Error::other)? };
    turn.read(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_wanted_byte_of_a_growing_file_comes_when_it_is_known_to_be_right() {
        let (growth, following) = watch::channel(Growth { bytes: 80, end: None });
        let mut whole = Place::following_part(following.clone(), 0..100, 0);
        let mut slice = Place::following_part(following.clone(), 10..20, 0);
        let mut trusted = Place::following_part(following.clone(), 10..20, 99);
        let mut open = Place::following(following);
        assert_eq!(whole.next(50).await.expect("bytes"), Some(0..50));
        assert_eq!((whole.next_now(50), whole.next_now(50)), (Some(50..80), None));
        assert_eq!((slice.next_now(50), slice.next_now(50)), (Some(10..19), None));
        assert_eq!(trusted.next(50).await.expect("bytes"), Some(10..20));
        assert_eq!(trusted.next(50).await.expect("the end, before that of the file"), None);
        assert_eq!(open.next(u64::MAX).await.expect("bytes"), Some(0..80));
        growth.send_modify(|now| now.bytes = 100);
        assert_eq!((whole.next_now(50), slice.next_now(50)), (Some(80..99), None));
        growth.send_modify(|now| now.end = Some(Ok(())));
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
            let (growth, following) = watch::channel(Growth { bytes, end });
            drop(growth);
            let mut place = Place::following_part(following, 0..100, 0);
            assert_eq!(place.next(1000).await.expect("bytes"), Some(0..99));
            place.next(1000).await.expect_err("its last byte was held back");
        }
    }
}
