//! Files that are read while they are written: a reader gets what is there, waits for more, and learns at the end whether
//! the file is what it was to be. Takes no memory for a reader that is slow, and never reads on an async thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

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

/// Reads a file from one place on, chunk by chunk.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    offset: u64,
    end: End,
}

#[derive(Debug)]
enum End {
    At(u64),
    Growing(watch::Receiver<Growth>),
}

impl Reader {
    /// The bytes from `start` to `end`, which must be there.
    #[must_use]
    pub fn part(file: Arc<File>, start: u64, end: u64) -> Self {
        Self { file, offset: start, end: End::At(end) }
    }

    /// All of a file that may still grow.
    #[must_use]
    pub fn following(file: Arc<File>, growth: watch::Receiver<Growth>) -> Self {
        Self { file, offset: 0, end: End::Growing(growth) }
    }

    /// Whether the file may still grow.
    #[must_use]
    pub fn follows(&self) -> bool {
        matches!(self.end, End::Growing(_))
    }

    /// The next bytes, once there are some; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read, did not become what it was to be, or was abandoned by its writer.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let end = match &mut self.end {
            End::At(end) => *end,
            End::Growing(growth) => {
                let offset = self.offset;
                let now = growth
                    .wait_for(|g| g.bytes > offset || g.end.is_some())
                    .await
                    .map_err(|_| abandoned())?
                    .clone();
                if let (true, Some(end)) = (now.bytes <= offset, now.end) {
                    return end.map(|()| None).map_err(io::Error::other);
                }
                now.bytes
            }
        };
        let wanted = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        if wanted == 0 {
            return Ok(None);
        }
        // The semaphore is never closed.
        let _turn = READS.acquire().await.map_err(io::Error::other)?;
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let chunk = blocking(move || {
            let mut buffer = vec![0; wanted];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(Bytes::from(buffer))
        })
        .await?;
        self.offset += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

/// What a reader hears when the writer went away without a word.
#[must_use]
pub fn abandoned() -> io::Error {
    io::Error::other("it was abandoned before its end")
}

/// Work on files, on a thread that may wait for them.
///
/// # Errors
/// That of the work.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
