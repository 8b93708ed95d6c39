//! Files that are hashed and counted: a draft while it is written, a stored file while it is read to be
//! verified.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash};
use sha2::{Digest, Sha256};

use super::blobs::Blob;
use super::draft::Draft;
use super::verify::{ChunkWriter, Error, FLUSH_AFTER, NarDigest, Origin, Promise, copy, verify};
use crate::decode;
use crate::tail_file::CHUNK_BYTES;

/// A zstd file that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// SHA-256 of the zstd file.
    pub file_hash: NarHash,
    /// Bytes of the zstd file.
    pub file_size: u64,
}

impl Packed {
    /// Hash and size of the file as it is.
    pub(super) fn contents(self) -> NarDigest {
        NarDigest { hash: self.file_hash, bytes: self.file_size }
    }
}

impl Blob {
    /// Reads all of it, and measures the file if the NAR in it is the one promised. Blocking.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn verify(&self, promised: NarDigest) -> Result<Packed, Error> {
        self.verify_within(promised, u64::MAX)
    }

    /// Reads the plain NAR in the file. Blocking.
    ///
    /// # Errors
    /// No decoder can be made.
    pub fn plain(&self) -> io::Result<Box<dyn Read + Send>> {
        decode::plain(Compression::Zstd, self.reader())
    }

    /// Verifies the file as [`Blob::verify`] does, within a rate.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub fn verify_within(&self, promised: NarDigest, bytes_per_second: u64) -> Result<Packed, Error> {
        let (input, begun) = (self.reader(), Instant::now());
        let mut input = MeasuredRead { input, hasher: Sha256::new(), bytes: 0, begun, bytes_per_second };
        let plain = &mut input;
        let make = |chunks: &mut ChunkWriter| {
            copy(&mut decode::plain(Compression::Zstd, plain).map_err(Error::Sent)?, chunks, |_| Ok(()))
        };
        let verified = verify(Promise::Exactly(promised), Origin::Sent(None), make, |_| Ok(()));
        verified.map_err(|error| match error {
            Error::Sent(error) | Error::Write(error) => Error::Stored(error),
            other => other,
        })?;
        Ok(Packed { file_hash: NarHash::from_bytes(input.hasher.finalize().into()), file_size: input.bytes })
    }
}

/// A stored file from its start on, hashed and counted as it is read.
struct MeasuredRead {
    input: Box<dyn Read + Send>,
    hasher: Sha256,
    bytes: u64,
    begun: Instant,
    bytes_per_second: u64,
}

impl Read for MeasuredRead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
        Ok(read)
    }
}

/// A draft whose bytes are hashed and counted, and written in pieces that begin and end where pages do: the
/// page cache keeps a file that came in crumbs as crumbs, and takes longer to send it. What comes slowly is
/// not held back for that.
pub(super) struct Measured<'d> {
    draft: &'d Draft,
    hasher: Sha256,
    bytes: u64,
    /// Bytes that are yet to be written.
    gathered: Vec<u8>,
    written_at: Option<Instant>,
}

impl<'d> Measured<'d> {
    pub(super) fn new(draft: &'d Draft) -> Self {
        let gathered = Vec::with_capacity(CHUNK_BYTES);
        Self { draft, hasher: Sha256::new(), bytes: 0, gathered, written_at: None }
    }

    pub(super) fn packed(mut self) -> io::Result<Packed> {
        self.flush()?;
        Ok(Packed { file_hash: NarHash::from_bytes(self.hasher.finalize().into()), file_size: self.bytes })
    }
}

impl Write for Measured<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece_left = CHUNK_BYTES - (self.bytes % CHUNK_BYTES as u64) as usize;
        let taken = data.len().min(piece_left);
        self.gathered.extend_from_slice(&data[..taken]);
        self.hasher.update(&data[..taken]);
        self.bytes += taken as u64;
        if taken == piece_left || self.written_at.is_none_or(|at| at.elapsed() >= FLUSH_AFTER) {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut draft = self.draft;
        draft.write_all(&self.gathered)?;
        self.gathered.clear();
        self.written_at = Some(Instant::now());
        Ok(())
    }
}
