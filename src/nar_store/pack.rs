//! Packing: the NAR of a store path, or one that another cache sends, hashed, compressed and written in one pass, and kept
//! only when its hash and size are right. Must never leave a file under its final name that was not verified and fsynced.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use narinfo::{Addressed, Compression, NarHash};
use sha2::{Digest, Sha256};
use zstd::zstd_safe::CParameter;

use super::draft::Draft;
use super::verify::{Chunks, Error, Expected, Origin, checked};
use super::{NarStore, Settings, Stored};
use crate::decode;
use crate::tail_file::CHUNK_BYTES;

/// What has come goes out at least so often while a NAR is received, so that readers follow a slow sender.
const FLUSH_AFTER: Duration = Duration::from_millis(250);

/// Bytes of a NAR that one of several threads compresses at a time; zstd itself compresses smaller ones on one.
const JOB_BYTES: u32 = 1024 * 1024;
/// The level at most that is compressed so: who asks for a higher one is in no hurry, and it takes much memory for each thread.
const PARALLEL_ZSTD_LEVEL_MAX: i32 = 9;

/// The level at most of what is compressed anew while it is received: it was decompressed a moment before, by a slower method as
/// a rule, and a client waits for it.
const RECEIVED_ZSTD_LEVEL: i32 = 1;

/// How long a NAR goes on being received that nobody follows: a client whose connection broke comes back in a moment.
const UNFOLLOWED_MAX: Duration = Duration::from_secs(10);
/// Bytes left, and part of the whole, at which a NAR is received to its end all the same.
const NEARLY_DONE_BYTES: u64 = 8 * 1024 * 1024;
const NEARLY_DONE_PART: u64 = 8;

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        compress(draft, self.settings, expected, Origin::Tree, |chunks| dump(source, chunks))
    }

    /// Writes the plain NAR that comes as `input` into `draft`, as [`NarStore::pack`] does. Blocking.
    ///
    /// # Errors
    /// When the input fails or is not the NAR expected, or the file cannot be written.
    pub fn pack_sent(
        &self,
        draft: &Draft,
        mut input: impl Read + Send,
        expected: Expected,
    ) -> Result<Packed, Error> {
        compress(draft, self.settings, expected, Origin::Sent(None), |chunks| {
            copy(&mut input, chunks, |_| Ok(()))
        })
    }

    /// Writes the NAR that comes as `input` into `draft`: as it comes where that is zstd, else compressed anew. Blocking.
    ///
    /// # Errors
    /// When the input fails, is damaged or is not the NAR expected, when nobody follows the draft any more and much is left,
    /// or when the file cannot be written.
    pub fn receive(
        &self,
        draft: &Draft,
        input: impl Read + Send,
        compression: Compression,
        expected: Expected,
        addressed: Option<&Addressed>,
    ) -> Result<Packed, Error> {
        let origin = Origin::Sent(addressed);
        let (window, input) = decode::window_of(input).map_err(Error::Sent)?;
        // With a larger window it is compressed anew, or each of its readers would need as much memory.
        let is_kept = window.is_some_and(|bytes| bytes <= decode::STORED_WINDOW_BYTES_MAX);
        if compression == Compression::Zstd && is_kept {
            return receive_zstd(draft, input, expected, origin);
        }
        let mut plain = decode::plain(compression, input).map_err(Error::Sent)?;
        let zstd_level = self.settings.zstd_level.min(RECEIVED_ZSTD_LEVEL);
        let settings = Settings { zstd_level, ..self.settings };
        let mut attended = Attended::new(draft, expected);
        compress(draft, settings, expected, origin, |chunks| {
            copy(&mut plain, chunks, |bytes| attended.came(bytes))
        })
    }

    /// Makes a draft that was written and verified durable and gives it its final name. Its readers, who follow it, have all
    /// that they asked for before that. Blocking.
    ///
    /// # Errors
    /// When the file system fails; nothing is kept then.
    pub fn keep(&self, draft: Draft, nar: NarHash) -> io::Result<()> {
        draft.is_right();
        draft.sync()?;
        let target = self.file_of(nar);
        let folder = target.parent().unwrap_or(&self.dir);
        if !folder.is_dir() {
            fs::create_dir_all(folder)?;
            File::open(&self.dir)?.sync_all()?;
        }
        let kept = draft.persist(&target)?;
        File::open(folder)?.sync_all()?;
        kept.tell();
        Ok(())
    }
}

/// Writes the NAR of a file tree to `chunks`.
pub(super) fn dump(source: &Path, chunks: &mut Chunks) -> Result<(), Error> {
    if source.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Err(Error::Vanished);
    }
    narinfo::nar::dump(source, chunks).map(drop).map_err(Error::Dump)
}

/// Writes what `make` makes into `draft`, as zstd.
fn compress(
    draft: &Draft,
    settings: Settings,
    expected: Expected,
    origin: Origin<'_>,
    make: impl FnOnce(&mut Chunks) -> Result<(), Error> + Send,
) -> Result<Packed, Error> {
    let Settings { zstd_level, zstd_threads, .. } = settings;
    let mut encoder = zstd::Encoder::new(Measured::new(draft), zstd_level)?;
    if zstd_threads > 1 && zstd_level <= PARALLEL_ZSTD_LEVEL_MAX {
        encoder.multithread(zstd_threads)?;
        encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
    }
    encoder.set_pledged_src_size(Some(expected.bytes))?;
    encoder.include_contentsize(true)?;
    // What does not compress is stored as it is: without this, damage in it would be decompressed without an error.
    encoder.include_checksum(true)?;
    checked(expected, origin, make, |chunk| {
        encoder.write_all(chunk)?;
        // Its maker waits for more, and so do the readers.
        if chunk.len() < CHUNK_BYTES { encoder.flush() } else { Ok(()) }
    })?;
    Ok(encoder.finish()?.packed()?)
}

/// The file is the bytes as they come; what they decompress to is checked beside.
fn receive_zstd(
    draft: &Draft,
    input: impl Read + Send,
    expected: Expected,
    origin: Origin<'_>,
) -> Result<Packed, Error> {
    let mut attended = Attended::new(draft, expected);
    let (mut file, mut not_written) = (Measured::new(draft), None);
    let through = Through { input, file: &mut file, not_written: &mut not_written };
    let make = |chunks: &mut Chunks| {
        let mut plain = decode::plain(Compression::Zstd, through).map_err(Error::Sent)?;
        copy(&mut plain, chunks, |bytes| attended.came(bytes))
    };
    let received = checked(expected, origin, make, |_| Ok(()));
    match not_written {
        Some(error) => Err(Error::Write(error)),
        None => received.and_then(|()| Ok(file.packed()?)),
    }
}

/// Copies until the input ends, either side fails, or `came`, which is told of the bytes of each piece, has enough.
pub(super) fn copy(
    input: &mut dyn Read,
    chunks: &mut Chunks,
    mut came: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut buffer, mut flushed) = (vec![0; CHUNK_BYTES], Instant::now());
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                chunks.write_all(&buffer[..read])?;
                came(read as u64)?;
                if flushed.elapsed() >= FLUSH_AFTER {
                    flushed = Instant::now();
                    chunks.flush()?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Sent(error)),
        }
    }
}

/// Watches whether anybody follows a draft that is being received.
struct Attended<'d> {
    draft: &'d Draft,
    bytes_left: u64,
    /// Bytes left from which on it does not matter.
    nearly_done: u64,
    left_at: Option<Instant>,
}

impl<'d> Attended<'d> {
    fn new(draft: &'d Draft, expected: Expected) -> Self {
        let nearly_done = NEARLY_DONE_BYTES.max(expected.bytes / NEARLY_DONE_PART);
        Self { draft, bytes_left: expected.bytes, nearly_done, left_at: None }
    }

    /// So many bytes have come.
    fn came(&mut self, bytes: u64) -> Result<(), Error> {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        if self.bytes_left <= self.nearly_done || self.draft.is_followed() {
            self.left_at = None;
            return Ok(());
        }
        let left_at = *self.left_at.get_or_insert_with(Instant::now);
        if left_at.elapsed() < UNFOLLOWED_MAX { Ok(()) } else { Err(Error::Abandoned) }
    }
}

impl Stored {
    /// Reads all of it, and tells what the file is if the NAR in it is the one expected. Blocking.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn verify(&self, expected: Expected) -> Result<Packed, Error> {
        self.verify_within(expected, u64::MAX)
    }

    /// The same, so many bytes of the file a second at most.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub fn verify_within(&self, expected: Expected, bytes_per_second: u64) -> Result<Packed, Error> {
        let mut input = Measuring {
            file: &self.file,
            hasher: Sha256::new(),
            bytes: 0,
            begun: Instant::now(),
            bytes_per_second,
        };
        let plain = &mut input;
        let make = |chunks: &mut Chunks| {
            copy(&mut decode::plain(Compression::Zstd, plain).map_err(Error::Sent)?, chunks, |_| Ok(()))
        };
        checked(expected, Origin::Sent(None), make, |_| Ok(())).map_err(|error| match error {
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
    begun: Instant,
    bytes_per_second: u64,
}

impl Read for Measuring<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.bytes)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
        Ok(read)
    }
}

/// What is read goes into a file, too.
struct Through<'a, 'd, R> {
    input: R,
    file: &'a mut Measured<'d>,
    /// Told apart from an input that failed.
    not_written: &'a mut Option<io::Error>,
}

impl<R: Read> Read for Through<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.file.write_all(&buffer[..read]).map_err(|error| {
            *self.not_written = Some(error);
            io::Error::other("the file cannot be written")
        })?;
        Ok(read)
    }
}

/// A draft whose bytes are hashed and counted, and written in pieces that begin and end where pages do: a file that came in
/// crumbs is in memory as crumbs, and takes longer to be sent. What comes slowly is not held back for that.
struct Measured<'d> {
    draft: &'d Draft,
    hasher: Sha256,
    bytes: u64,
    /// What is yet to be written, and when something was.
    gathered: Vec<u8>,
    written_at: Option<Instant>,
}

impl<'d> Measured<'d> {
    fn new(draft: &'d Draft) -> Self {
        let gathered = Vec::with_capacity(CHUNK_BYTES);
        Self { draft, hasher: Sha256::new(), bytes: 0, gathered, written_at: None }
    }

    fn packed(mut self) -> io::Result<Packed> {
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
