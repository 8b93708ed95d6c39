//! Bytes of a NAR for an answer, piece by piece: of a file as it is, or of the plain NAR in a zstd file,
//! stored or still growing. Must never give the last bytes of a NAR before it was verified, and never read on
//! an async thread.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::Semaphore;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::blobs::{Blob, BlobFile, BlobObject};
use super::{Nar, mapped};
use crate::tail_file::{CHUNK_BYTES, ReadPermit, Reading, TailCursor, abandoned, read_at, reading};

/// Bytes of an object that are asked for and sent at a time: a client holds one of these in memory, and at
/// most 32 clients one more, which is read ahead.
const OBJECT_WINDOW_BYTES: u64 = 1024 * 1024;
/// Permits to read such a window ahead: not those of files, for which nobody is to wait for a slow storage.
static OBJECTS_AHEAD: Semaphore = Semaphore::const_new(32);

/// Bytes of a file that are sent at a time. A client holds two of these, however slow it is: pages of the
/// file, which the kernel may take back, and which count as memory of this program only if they had to be
/// read from the disk.
const WINDOW_BYTES: u64 = 2 * 1024 * 1024;

/// Stream of the bytes of a NAR.
#[derive(Debug)]
pub enum NarStream {
    /// Bytes of the file.
    AsItIs(Windows),
    /// Bytes that are decompressed on the way.
    Decoded(Box<Decoded>),
}

impl NarStream {
    /// Streams a part of the file of `nar`; `u64::MAX` is the end of one that grows.
    #[must_use]
    pub fn as_it_is(nar: Nar, part: Range<u64>) -> Self {
        let (source, cursor) = match nar {
            Nar::Stored(Blob::File(BlobFile { file, .. })) => {
                (StreamSource::File(file), TailCursor::part(part))
            }
            Nar::Stored(Blob::Object(object)) => (StreamSource::object(object), TailCursor::part(part)),
            Nar::Growing(growing) => (
                StreamSource::File(growing.file),
                TailCursor::following_part(growing.progress, part, growing.trusted),
            ),
        };
        Self::AsItIs(Windows { source, cursor, ahead: None })
    }

    /// Streams a part of the plain NAR in the zstd file of `nar`.
    ///
    /// # Errors
    /// No decoder can be made.
    pub fn decoded(nar: Nar, part: Range<u64>) -> io::Result<Self> {
        let (source, cursor, follows) = match nar {
            Nar::Stored(stored) => {
                let cursor = TailCursor::part(0..stored.bytes());
                let source = match stored {
                    Blob::File(BlobFile { file, .. }) => StreamSource::File(file),
                    Blob::Object(object) => StreamSource::object(object),
                };
                (source, cursor, false)
            }
            Nar::Growing(growing) => {
                (StreamSource::File(growing.file), TailCursor::following(growing.progress), true)
            }
        };
        let decoding =
            Decoding { source, decoder: Decoder::new()?, input: Vec::new(), used: 0, is_full: false };
        Ok(Self::Decoded(Box::new(Decoded {
            cursor,
            follows,
            decoding: Some(Box::new(decoding)),
            skip: part.start,
            left: part.end.saturating_sub(part.start),
            held: None,
        })))
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or turned out wrong.
    pub async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::AsItIs(windows) => windows.next_piece().await,
            Self::Decoded(decoded) => decoded.next_piece().await,
        }
    }
}

/// Bytes that are sent.
#[derive(Debug)]
enum StreamSource {
    File(Arc<File>),
    Object {
        object: BlobObject,
        /// The window that was read last, and its offset.
        last: (u64, Bytes),
    },
}

impl StreamSource {
    fn object(object: BlobObject) -> Self {
        Self::Object { object, last: (0, Bytes::new()) }
    }

    /// Reads the bytes of `part`, which must be there. Blocking.
    fn read_at(&mut self, part: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
        let (object, last) = match self {
            Self::File(file) => return read_at(file, part, buffer),
            Self::Object { object, last } => (object, last),
        };
        buffer.clear();
        let mut at = part.start;
        while at < part.end {
            if !(last.0..last.0 + last.1.len() as u64).contains(&at) {
                let end = object.bytes.min(at + OBJECT_WINDOW_BYTES.max(part.end - at));
                *last = (at, object.read(at..end)?);
            }
            // Within the window, whose length fits a usize.
            let from = (at - last.0) as usize;
            let to = last.1.len().min(from + (part.end - at) as usize);
            buffer.extend_from_slice(&last.1[from..to]);
            at += (to - from) as u64;
        }
        Ok(())
    }
}

/// A part of a file, window by window.
#[derive(Debug)]
pub struct Windows {
    source: StreamSource,
    cursor: TailCursor,
    /// The next window, read while the one before it is sent.
    ahead: Option<Reading<Bytes>>,
}

impl Windows {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let window_bytes = match &self.source {
            StreamSource::File(_) => WINDOW_BYTES,
            StreamSource::Object { .. } => OBJECT_WINDOW_BYTES,
        };
        let window = match self.ahead.take() {
            Some(ahead) => ahead.await.map_err(io::Error::other)??,
            None => {
                let Some(next) = self.cursor.next(window_bytes).await? else { return Ok(None) };
                match &self.source {
                    StreamSource::Object { object, .. } => {
                        object.begin_read(next, ()).await.map_err(io::Error::other)??
                    }
                    StreamSource::File(file) => match mapped::window_in_memory(file, &next) {
                        Some(window) => return Ok(Some(window)),
                        None => reading(window(file, next)).await?,
                    },
                }
            }
        };
        // The next one is read while this one is sent; without a free permit, when it is asked for.
        self.ahead = match &self.source {
            StreamSource::File(file) => ReadPermit::free().and_then(|permit| {
                self.cursor.next_now(window_bytes).map(|next| permit.read(self::window(file, next)))
            }),
            StreamSource::Object { object, .. } => OBJECTS_AHEAD.try_acquire().ok().and_then(|permit| {
                self.cursor.next_now(window_bytes).map(|next| object.begin_read(next, permit))
            }),
        };
        Ok(Some(window))
    }
}

/// Maps a window of a file.
fn window(file: &Arc<File>, part: Range<u64>) -> impl FnOnce() -> io::Result<Bytes> + Send + use<> {
    let file = Arc::clone(file);
    move || mapped::window(&file, part)
}

/// A plain NAR, decompressed as it is read.
#[derive(Debug)]
pub struct Decoded {
    cursor: TailCursor,
    /// True if only the end of the file tells that it is the right one.
    follows: bool,
    /// `None` only while a blocking thread decodes.
    decoding: Option<Box<Decoding>>,
    skip: u64,
    left: u64,
    /// The last piece, held back until the next one, or the verified end, is known.
    held: Option<Bytes>,
}

impl Decoded {
    async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(piece) = self.decode_piece().await? else {
                return Ok(self.held.take());
            };
            if let Some(before) = self.held.replace(piece) {
                return Ok(Some(before));
            }
        }
    }

    /// The next wanted bytes; `None` once all were given and the file has ended well.
    async fn decode_piece(&mut self) -> io::Result<Option<Bytes>> {
        while self.left > 0 || self.follows {
            let mut decoding = self.decoding.take().ok_or_else(abandoned)?;
            let next = if decoding.needs_input() {
                match self.cursor.next(CHUNK_BYTES as u64).await? {
                    None if self.left == 0 => break,
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                    next => next,
                }
            } else {
                None
            };
            let is_file = matches!(decoding.source, StreamSource::File(_));
            let step = move || {
                let output = decoding.step(next)?;
                Ok((decoding, output))
            };
            let (decoding, mut output) = match is_file {
                true => reading(step).await?,
                // A slow storage holds no permit to read files.
                false => tokio::task::spawn_blocking(step).await.map_err(io::Error::other)??,
            };
            self.decoding = Some(decoding);
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(output.len());
            self.skip -= skipped as u64;
            output.advance(skipped);
            output.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= output.len() as u64;
            if !output.is_empty() {
                return Ok(Some(output));
            }
        }
        self.follows = false;
        Ok(None)
    }
}

/// State of decoding a zstd file.
struct Decoding {
    source: StreamSource,
    decoder: Decoder<'static>,
    input: Vec<u8>,
    /// Bytes of the input that were decoded.
    used: usize,
    /// True if the last step filled its output: the decoder may hold more without new input.
    is_full: bool,
}

impl std::fmt::Debug for Decoding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoding").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Decoding {
    fn needs_input(&self) -> bool {
        self.used == self.input.len() && !self.is_full
    }

    /// Reads `next`, if it is given, and decodes until a chunk of output is full or the input is used up.
    /// Blocking.
    fn step(&mut self, next: Option<Range<u64>>) -> io::Result<Bytes> {
        if let Some(next) = next {
            self.source.read_at(next, &mut self.input)?;
            self.used = 0;
        }
        let mut output = Vec::with_capacity(CHUNK_BYTES);
        let mut out = OutBuffer::around(&mut output);
        let mut source = InBuffer::around(&self.input[self.used..]);
        loop {
            self.decoder.run(&mut source, &mut out)?;
            if out.pos() == out.capacity() || source.pos() == source.src.len() {
                break;
            }
        }
        self.used += source.pos();
        self.is_full = out.pos() == out.capacity();
        Ok(output.into())
    }
}
