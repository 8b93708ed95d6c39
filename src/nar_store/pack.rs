//! Packing: the NAR of a store path, or one that another cache sends, hashed, compressed and written in one pass, and kept
//! only when its hash and size are right. Must never leave a file under its final name that was not verified and fsynced.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{Draft, NarStore, Stored};
use crate::decode;
use crate::growing::{CHUNK_BYTES, Growth};

/// What has been compressed goes out at least so often while a NAR is received, so that readers follow a slow sender.
const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// The level at most of what is compressed anew while it is received: it was decompressed a moment before, by a slower method as
/// a rule, and a client waits for it.
const RECEIVED_ZSTD_LEVEL: i32 = 1;

/// Why a NAR was not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store path is not there any more.
    #[error("the store path is gone")]
    Vanished,
    /// The tree could not be read, or changed while it was.
    #[error("cannot read the store path")]
    Dump(#[source] narinfo::nar::Error),
    /// What was sent cannot be decompressed, or ends early.
    #[error("cannot read the NAR that was sent")]
    Sent(#[source] io::Error),
    /// The file in the NAR store cannot be read or decompressed.
    #[error("its file cannot be read or decompressed")]
    Stored(#[source] io::Error),
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

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// SHA-256 of the zstd file.
    pub file_hash: NarHash,
    /// Bytes of the zstd file.
    pub file_size: u64,
}

impl NarStore {
    /// Writes the NAR of the tree at `source` into `draft`. Blocking.
    ///
    /// # Errors
    /// When the tree cannot be read or is not the one expected, or the file cannot be written.
    pub fn pack(&self, draft: &Draft, source: &Path, expected: Expected) -> Result<Packed, Error> {
        if source.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(Error::Vanished);
        }
        // A dump comes in pieces of a few bytes; hashing and compressing want more at a time.
        let compressing = compressing(draft, self.settings.zstd_level, expected)?;
        let mut out = BufWriter::with_capacity(CHUNK_BYTES, compressing);
        let dumped =
            narinfo::nar::dump(source, &mut out).and_then(|_| out.flush().map_err(narinfo::nar::Error::Io));
        let (out, _) = out.into_parts();
        finish(out.judge(expected, dumped.map_err(Error::Dump))?)
    }

    /// Writes the NAR that comes as `input` into `draft`: as it comes where that is zstd, else compressed anew. Blocking.
    ///
    /// # Errors
    /// When the input fails, is damaged or is not the NAR expected, or the file cannot be written.
    pub fn receive(
        &self,
        draft: &Draft,
        input: impl Read + Send,
        compression: Compression,
        expected: Expected,
    ) -> Result<Packed, Error> {
        if compression == Compression::Zstd {
            return receive_zstd(draft, input, expected);
        }
        let mut plain = decode::plain(compression, input).map_err(Error::Sent)?;
        let level = self.settings.zstd_level.min(RECEIVED_ZSTD_LEVEL);
        let mut out = compressing(draft, level, expected)?;
        let mut flushed = Instant::now();
        let copied = copy(&mut plain, &mut out, |out| {
            if flushed.elapsed() < FLUSH_AFTER {
                return Ok(());
            }
            flushed = Instant::now();
            out.inner.flush()
        });
        finish(out.judge(expected, copied)?)
    }

    /// Makes a draft that was written and verified durable and gives it its final name. Its readers, who follow it, have all
    /// that they asked for before that. Blocking.
    ///
    /// # Errors
    /// When the file system fails; nothing is kept then.
    pub fn keep(&self, draft: Draft, nar: NarHash) -> io::Result<()> {
        let Draft { file, growth, kept } = draft;
        growth.send_modify(|g| g.end = Some(Ok(())));
        file.as_file().sync_all()?;
        self.persist(file, nar)?;
        kept.send_replace(true);
        Ok(())
    }

    fn persist(&self, file: tempfile::NamedTempFile, nar: NarHash) -> io::Result<()> {
        let target = self.file_of(nar);
        let folder = target.parent().unwrap_or(&self.dir);
        if !folder.is_dir() {
            fs::create_dir_all(folder)?;
            File::open(&self.dir)?.sync_all()?;
        }
        file.persist(&target).map_err(|e| e.error)?;
        File::open(folder)?.sync_all()
    }
}

/// Hashes, counts and compresses what is written to it, into `draft`.
fn compressing<'d>(draft: &'d Draft, level: i32, expected: Expected) -> io::Result<Checked<Compressor<'d>>> {
    let sink = BufWriter::with_capacity(CHUNK_BYTES, FileSink::new(draft));
    let mut encoder = zstd::Encoder::new(sink, level)?;
    encoder.set_pledged_src_size(Some(expected.bytes))?;
    encoder.include_contentsize(true)?;
    // What does not compress is stored as it is: without this, damage in it would be decompressed without an error.
    encoder.include_checksum(true)?;
    Ok(Checked::new(encoder, expected.bytes))
}

type Compressor<'d> = zstd::Encoder<'static, BufWriter<FileSink<'d>>>;

fn finish(encoder: Compressor<'_>) -> Result<Packed, Error> {
    let sink = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(sink.packed())
}

/// The file is the bytes as they come; what they decompress to is checked beside.
fn receive_zstd(draft: &Draft, input: impl Read + Send, expected: Expected) -> Result<Packed, Error> {
    let (mut sink, mut not_written) = (FileSink::new(draft), None);
    let mut out = Checked::new(io::sink(), expected.bytes);
    let through = Through { input, sink: &mut sink, not_written: &mut not_written };
    let copied = decode::plain(Compression::Zstd, through)
        .map_err(Error::Sent)
        .and_then(|mut plain| copy(&mut plain, &mut out, |_| Ok(())));
    if let Some(error) = not_written {
        return Err(Error::Write(error));
    }
    out.judge(expected, copied)?;
    Ok(sink.packed())
}

/// Copies until the input ends or either side fails; `after` each piece.
fn copy<W: Write>(
    input: &mut dyn Read,
    out: &mut W,
    mut after: impl FnMut(&mut W) -> io::Result<()>,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                out.write_all(&buffer[..read])?;
                after(out)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Sent(error)),
        }
    }
}

impl Stored {
    /// Reads all of it, and tells what the file is if the NAR in it is the one expected. Blocking.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn verify(&self, expected: Expected) -> Result<Packed, Error> {
        let mut input = Measuring { file: &self.file, hasher: Sha256::new(), bytes: 0 };
        let mut out = Checked::new(io::sink(), expected.bytes);
        let copied = decode::plain(Compression::Zstd, &mut input)
            .map_err(Error::Sent)
            .and_then(|mut plain| copy(&mut plain, &mut out, |_| Ok(())));
        out.judge(expected, copied).map_err(|error| match error {
            Error::Sent(error) | Error::Write(error) => Error::Stored(error),
            other => other,
        })?;
        Ok(Packed { file_hash: NarHash::from_bytes(input.hasher.finalize().into()), file_size: input.bytes })
    }
}

/// A stored file from its start on, hashed and counted as it is read.
struct Measuring<'f> {
    file: &'f File,
    hasher: Sha256,
    bytes: u64,
}

impl Read for Measuring<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.bytes)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// A plain NAR on its way: hashed, counted, and stopped where it is longer than promised.
struct Checked<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl<W> Checked<W> {
    fn new(inner: W, bytes_max: u64) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0, bytes_max }
    }

    /// What it was written to, if all that came is as promised. One that is too long was stopped for that, whatever else
    /// is said of it; one that broke off says why.
    fn judge(self, expected: Expected, written: Result<(), Error>) -> Result<W, Error> {
        let found = NarHash::from_bytes(self.hasher.finalize().into());
        let right = (found, self.bytes) == (expected.hash, expected.bytes);
        if self.bytes > expected.bytes || (written.is_ok() && !right) {
            return Err(Error::Mismatch { expected, found, found_bytes: self.bytes });
        }
        written.map(|()| self.inner)
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.bytes += data.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(io::Error::other("larger than promised"));
        }
        self.hasher.update(data);
        self.inner.write_all(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is read goes into a file, too.
struct Through<'a, 'd, R> {
    input: R,
    sink: &'a mut FileSink<'d>,
    /// Told apart from an input that failed.
    not_written: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Through<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.sink.write_all(&buffer[..read]).map_err(|error| {
            *self.not_written = Some(error);
            io::Error::other("the file cannot be written")
        })?;
        Ok(read)
    }
}

/// The zstd bytes on their way to the file; tells the readers how far it has grown.
struct FileSink<'d> {
    file: &'d File,
    growth: &'d watch::Sender<Growth>,
    hasher: Sha256,
    bytes: u64,
}

impl<'d> FileSink<'d> {
    fn new(draft: &'d Draft) -> Self {
        Self { file: draft.file.as_file(), growth: &draft.growth, hasher: Sha256::new(), bytes: 0 }
    }

    fn packed(self) -> Packed {
        Packed { file_hash: NarHash::from_bytes(self.hasher.finalize().into()), file_size: self.bytes }
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
