//! Packing: the NAR of a store path, hashed, compressed and written in one pass, and kept only when its hash and size are right.
//! Must never leave a file under its final name that was not verified and fsynced.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use narinfo::NarHash;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{Draft, NarStore, Stored};
use crate::growing::{CHUNK_BYTES, Growth};

/// Why a NAR was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store path is not there any more.
    #[error("the store path is gone")]
    Vanished,
    /// The tree could not be read, or changed while it was.
    #[error("cannot read the store path")]
    Dump(#[source] narinfo::nar::Error),
    /// The contents are not those that Nix has registered.
    #[error(
        "the contents have hash {found} and {found_bytes} bytes, Nix registered {expected} and {expected_bytes}: run nix-store --verify --check-contents --repair"
    )]
    Mismatch {
        /// What Nix says.
        expected: NarHash,
        /// Bytes Nix says.
        expected_bytes: u64,
        /// What is on disk.
        found: NarHash,
        /// Bytes on disk.
        found_bytes: u64,
    },
    /// The file could not be written: most often a full disk.
    #[error("cannot write to the NAR store")]
    Write(#[from] io::Error),
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// SHA-256 of the zstd file.
    pub file_hash: NarHash,
    /// Bytes of the zstd file.
    pub file_size: u64,
}

impl NarStore {
    /// Packs the tree at `source` into `draft` and gives it its final name. Blocking.
    ///
    /// `draft` is told when all is written and verified, so that its readers may end their answers.
    ///
    /// # Errors
    /// When the tree cannot be read or is not the one expected, or the file cannot be written; nothing is kept then.
    pub fn pack(&self, draft: Draft, source: &Path, expected: NarHash, bytes: u64) -> Result<Packed, Error> {
        let Draft { file, growth } = draft;
        let result = self.write(&file, &growth, source, expected, bytes).and_then(|packed| {
            self.keep(file, expected)?;
            Ok(packed)
        });
        growth.send_modify(|g| {
            g.end = Some(result.as_ref().map(|_| ()).map_err(ToString::to_string));
        });
        result
    }

    fn write(
        &self,
        file: &tempfile::NamedTempFile,
        growth: &watch::Sender<Growth>,
        source: &Path,
        expected: NarHash,
        expected_bytes: u64,
    ) -> Result<Packed, Error> {
        if source.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(Error::Vanished);
        }
        let sink = BufWriter::with_capacity(CHUNK_BYTES, FileSink::new(file.as_file(), growth));
        let mut encoder = zstd::Encoder::new(sink, self.settings.zstd_level)?;
        encoder.set_pledged_src_size(Some(expected_bytes))?;
        encoder.include_contentsize(true)?;
        let plain = Plain { encoder, hasher: Sha256::new(), bytes: 0, bytes_max: expected_bytes };
        // A dump comes in pieces of a few bytes; hashing and compressing want more at a time.
        let mut plain = BufWriter::with_capacity(CHUNK_BYTES, plain);
        let dumped = narinfo::nar::dump(source, &mut plain)
            .and_then(|_| plain.flush().map_err(narinfo::nar::Error::Io));
        let (plain, _) = plain.into_parts();
        let found = NarHash::from_bytes(plain.hasher.finalize().into());
        let found_bytes = plain.bytes;
        // A tree that grew is cut off at the registered size, and a broken one ends early: say which it was.
        if found_bytes > expected_bytes
            || (dumped.is_ok() && (found, found_bytes) != (expected, expected_bytes))
        {
            return Err(Error::Mismatch { expected, expected_bytes, found, found_bytes });
        }
        dumped.map_err(Error::Dump)?;
        let mut sink = plain.encoder.finish()?;
        sink.flush()?;
        let sink = sink.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        Ok(Packed { file_hash: NarHash::from_bytes(sink.hasher.finalize().into()), file_size: sink.bytes })
    }

    /// The final name, made durable.
    fn keep(&self, file: tempfile::NamedTempFile, nar: NarHash) -> Result<(), Error> {
        let target = self.file_of(nar);
        let folder = target.parent().unwrap_or(&self.dir);
        if !folder.is_dir() {
            fs::create_dir_all(folder)?;
            File::open(&self.dir)?.sync_all()?;
        }
        file.persist(&target).map_err(|e| e.error)?;
        File::open(folder)?.sync_all()?;
        Ok(())
    }
}

impl Stored {
    /// Hash and size of the zstd file. Blocking.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn measure(&self) -> io::Result<Packed> {
        let (mut hasher, mut offset, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
        loop {
            match self.file.read_at(&mut buffer, offset)? {
                0 => break,
                read => {
                    hasher.update(&buffer[..read]);
                    offset += read as u64;
                }
            }
        }
        Ok(Packed { file_hash: NarHash::from_bytes(hasher.finalize().into()), file_size: offset })
    }
}

/// The plain NAR on its way to the compressor.
struct Plain<W: Write> {
    encoder: zstd::Encoder<'static, W>,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.bytes += data.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(io::Error::other("larger than registered"));
        }
        self.hasher.update(data);
        self.encoder.write_all(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The zstd bytes on their way to the file; tells the readers how far it has grown.
struct FileSink<'a> {
    file: &'a File,
    growth: &'a watch::Sender<Growth>,
    hasher: Sha256,
    bytes: u64,
}

impl<'a> FileSink<'a> {
    fn new(file: &'a File, growth: &'a watch::Sender<Growth>) -> Self {
        Self { file, growth, hasher: Sha256::new(), bytes: 0 }
    }
}

impl Write for FileSink<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut file = self.file;
        let written = file.write(data)?;
        self.hasher.update(&data[..written]);
        self.bytes += written as u64;
        self.growth.send_modify(|g| g.bytes = self.bytes);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
