//! Reading NARs for an answer, chunk by chunk: the zstd file or the plain NAR in it, stored or still growing.
//! Must never give the last bytes of a NAR before it was verified, and never read on an async thread.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::{Growing, Stored};
use crate::growing::{CHUNK_BYTES, Reader, abandoned, blocking};

/// A half-open range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// A NAR's bytes, in order.
#[derive(Debug)]
pub enum NarStream {
    /// As stored: zstd.
    Zstd(Reader),
    /// Decompressed on the way.
    Plain(Box<Plain>),
}

impl NarStream {
    /// A part of a stored zstd file.
    #[must_use]
    pub fn stored(nar: &Stored, range: Range) -> Self {
        Self::Zstd(Reader::part(Arc::clone(&nar.file), range.start, range.end))
    }

    /// All of a zstd file that is still growing.
    #[must_use]
    pub fn growing(nar: Growing) -> Self {
        Self::Zstd(Reader::following(nar.file, nar.growth))
    }

    /// A part of the plain NAR inside `self`, which must give a whole zstd file.
    ///
    /// # Errors
    /// When no decoder can be made.
    pub fn plain(self, range: Range) -> io::Result<Self> {
        let Self::Zstd(source) = self else { return Ok(self) };
        Ok(Self::Plain(Box::new(Plain {
            source,
            input: Bytes::new(),
            source_ended: false,
            decoder: Some(Decoder::new()?.into()),
            more: false,
            skip: range.start,
            left: range.end.saturating_sub(range.start),
            held: None,
        })))
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or turned out not to be what was promised.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Zstd(source) => source.next_chunk().await,
            Self::Plain(plain) => plain.next_chunk().await,
        }
    }
}

/// A plain NAR, decompressed as it is read.
pub struct Plain {
    source: Reader,
    input: Bytes,
    source_ended: bool,
    /// Away only while a blocking thread decodes with it.
    decoder: Option<SendDecoder>,
    /// The last step filled its output: the decoder may hold more without new input.
    more: bool,
    skip: u64,
    left: u64,
    /// The chunk that goes out once the one behind it, or the verified end, is known.
    held: Option<Bytes>,
}

type SendDecoder = Box<Decoder<'static>>;

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").field("skip", &self.skip).field("left", &self.left).finish_non_exhaustive()
    }
}

impl Plain {
    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let Some(chunk) = self.decode_chunk().await? else {
                return Ok(self.held.take());
            };
            if let Some(before) = self.held.replace(chunk) {
                return Ok(Some(before));
            }
        }
    }

    /// The next wanted bytes, or `None` once all were given and the source has ended well.
    async fn decode_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.left == 0 && !self.source.follows() {
                return Ok(None);
            }
            if self.input.is_empty() && !self.more && !self.source_ended {
                match self.source.next_chunk().await? {
                    Some(chunk) => self.input = chunk,
                    None => self.source_ended = true,
                }
            }
            if self.source_ended && self.input.is_empty() && !self.more {
                return if self.left == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            let mut output = self.step().await?;
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(output.len());
            self.skip -= skipped as u64;
            output.advance(skipped);
            output.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= output.len() as u64;
            if !output.is_empty() {
                return Ok(Some(output));
            }
        }
    }

    /// Decodes until a chunk of output is full or the input is used up.
    async fn step(&mut self) -> io::Result<Bytes> {
        let mut decoder = self.decoder.take().ok_or_else(abandoned)?;
        let input = std::mem::take(&mut self.input);
        let (decoder, input, output) = blocking(move || {
            let mut output = vec![0; CHUNK_BYTES];
            let mut out = OutBuffer::around(&mut output[..]);
            let mut source = InBuffer::around(&input);
            loop {
                decoder.run(&mut source, &mut out)?;
                if out.pos() == CHUNK_BYTES || source.pos() == input.len() {
                    break;
                }
            }
            let (used, made) = (source.pos(), out.pos());
            output.truncate(made);
            Ok((decoder, input.slice(used..), Bytes::from(output)))
        })
        .await?;
        self.more = output.len() == CHUNK_BYTES;
        self.decoder = Some(decoder);
        self.input = input;
        Ok(output)
    }
}
