//! NARs that are packed to be uploaded: compressed and hashed on the way, in memory or in a temporary file.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use narinfo::{NarHash, PathInfo};
use sha2::{Digest, Sha256};
use tempfile::{SpooledData, SpooledTempFile};

/// Bytes of a packed NAR that are held in memory; a larger one is in a temporary file.
const MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a NAR that are hashed and compressed together.
const PIECE_BYTES: usize = 128 * 1024;
/// Level of zstd: the server's own default is about the same.
const ZSTD_LEVEL: i32 = 3;

/// A file of a NAR that is uploaded.
pub(super) struct PackedNar {
    pub(super) hash: NarHash,
    pub(super) bytes: u64,
    pub(super) data: SpooledData,
}

impl PackedNar {
    /// A file as it is, with its hash and its size, which name it to the server. Blocking.
    pub(super) fn of_file(mut file: File) -> io::Result<Self> {
        let (mut digest, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            match file.read(&mut piece)? {
                0 => break,
                read => {
                    digest.update(&piece[..read]);
                    bytes += read as u64;
                }
            }
        }
        Ok(Self {
            hash: NarHash::from_bytes(digest.finalize().into()),
            bytes,
            data: SpooledData::OnDisk(file),
        })
    }
}

/// A NAR that was compressed here.
pub struct CompressedNar {
    /// SHA-256 of the plain NAR.
    pub nar_hash: NarHash,
    /// Bytes of the plain NAR.
    pub nar_size: u64,
    pub(super) file: PackedNar,
}

impl CompressedNar {
    /// True if this is the NAR that the record of a path promises.
    #[must_use]
    pub fn is_of(&self, info: &PathInfo) -> bool {
        self.nar_hash == info.nar_hash && self.nar_size == info.nar_size
    }
}

/// Packs the plain NAR that is written to it.
pub struct NarPacker(BufWriter<HashedWriter<zstd::Encoder<'static, HashedWriter<SpooledTempFile>>>>);

impl NarPacker {
    /// A packer that nothing was written to.
    ///
    /// # Errors
    /// Zstd cannot be set up.
    pub fn new() -> io::Result<Self> {
        let mut encoder =
            zstd::Encoder::new(HashedWriter::new(SpooledTempFile::new(MEMORY_BYTES_MAX)), ZSTD_LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Self(BufWriter::with_capacity(PIECE_BYTES, HashedWriter::new(encoder))))
    }

    /// The NAR once all of it was written.
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub fn finish(self) -> io::Result<CompressedNar> {
        let plain = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        let (nar_hash, nar_size) = plain.measured();
        let file = plain.to.finish()?;
        let (hash, bytes) = file.measured();
        let file = PackedNar { hash, bytes, data: file.to.into_inner() };
        Ok(CompressedNar { nar_hash, nar_size, file })
    }
}

impl Write for NarPacker {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Packs a file or folder. Blocking.
///
/// # Errors
/// The source cannot be read, or the temporary file cannot be written.
pub fn pack(source: &str) -> io::Result<CompressedNar> {
    let mut packer = NarPacker::new()?;
    narinfo::nar::dump(source.as_ref(), &mut packer).map_err(io::Error::other)?;
    packer.finish()
}

/// A writer that hashes and counts what goes through it.
struct HashedWriter<W> {
    to: W,
    digest: Sha256,
    bytes: u64,
}

impl<W> HashedWriter<W> {
    fn new(to: W) -> Self {
        Self { to, digest: Sha256::new(), bytes: 0 }
    }

    fn measured(&self) -> (NarHash, u64) {
        (NarHash::from_bytes(self.digest.clone().finalize().into()), self.bytes)
    }
}

impl<W: Write> Write for HashedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
