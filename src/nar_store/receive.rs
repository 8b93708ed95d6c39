//! Receiving: a NAR that others send, in any compression, verified while it streams into a draft. Of a fetch,
//! its hash and size are promised; of a push, only a bound is known, and both are found out.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use narinfo::{Addressed, Compression};

use super::draft::Draft;
use super::measured::Measured;
use super::pack::{Received, compress};
use super::verify::{ChunkWriter, Error, NarDigest, Origin, Promise, Verified, copy, verify};
use super::{NarStore, Secrets, Settings};
use crate::decode;

/// The highest level at which a NAR is compressed again while it is received: it was decompressed a moment
/// before, mostly by a slower method, and a client waits for it.
const RECEIVED_ZSTD_LEVEL: i32 = 1;

/// Time for which a NAR without a reader is still received: a client whose connection broke comes back in
/// a moment.
const UNFOLLOWED_MAX: Duration = Duration::from_secs(10);
/// Bytes left, and part of the whole, at which a NAR is received to its end all the same.
const NEARLY_DONE_BYTES: u64 = 8 * 1024 * 1024;
const NEARLY_DONE_PART: u64 = 8;

/// Bytes that a NAR of `nar_bytes` may have in any compression: what cannot be compressed grows a little.
#[must_use]
pub fn file_bytes_max(nar_bytes: u64) -> u64 {
    nar_bytes.saturating_add(nar_bytes / 8).saturating_add(1024 * 1024)
}

impl NarStore {
    /// Writes the NAR that comes as `input` into `draft`: unchanged if it is zstd, else recompressed.
    /// With `addressed`, the contents must be those that the path is named by. Blocking.
    ///
    /// # Errors
    /// The input fails, is damaged, is no NAR, or breaks the promise; when a draft whose NAR is promised
    /// is not followed any more and much is left; or when the file cannot be written.
    pub fn receive(
        &self,
        draft: &Draft,
        input: impl Read + Send,
        compression: Compression,
        promise: Promise,
        addressed: Option<&Addressed>,
    ) -> Result<Received, Error> {
        let origin = Origin::Sent(addressed);
        let input = Bounded { input, left: file_bytes_max(promise.bytes_max()) };
        let (window, input) = decode::window_of(input).map_err(Error::Sent)?;
        // With a larger window it is recompressed, or each of its readers would need as much memory.
        let is_kept = window.is_some_and(|bytes| bytes <= decode::STORED_WINDOW_BYTES_MAX);
        if compression == Compression::Zstd && is_kept {
            return receive_zstd(draft, input, promise, origin, &self.settings.secrets);
        }
        let plain = decode::plain(compression, input).map_err(Error::Sent)?;
        let mut plain = self.settings.secrets.refused_in(plain);
        let zstd_level = self.settings.zstd_level.min(RECEIVED_ZSTD_LEVEL);
        let settings = Settings { zstd_level, ..self.settings.clone() };
        let mut attended = Attended::new(draft, promise);
        compress(draft, &settings, promise, origin, |chunks| {
            copy(&mut plain, chunks, |bytes| attended.came(bytes))
        })
    }
}

/// Writes the bytes as they come into the file; what they decompress to is verified beside.
fn receive_zstd(
    draft: &Draft,
    input: impl Read + Send,
    promise: Promise,
    origin: Origin<'_>,
    secrets: &Secrets,
) -> Result<Received, Error> {
    let mut attended = Attended::new(draft, promise);
    let (mut file, mut not_written) = (Measured::new(draft), None);
    let through = Through { input, file: &mut file, not_written: &mut not_written };
    let make = |chunks: &mut ChunkWriter<'_>| {
        let plain = decode::plain(Compression::Zstd, through).map_err(Error::Sent)?;
        let mut plain = secrets.refused_in(plain);
        copy(&mut plain, chunks, |bytes| attended.came(bytes))
    };
    let verified = verify(promise, origin, make, |_| Ok(()));
    match not_written {
        Some(error) => Err(Error::Write(error)),
        None => {
            let Verified { digest: nar, programs } = verified?;
            Ok(Received { nar, packed: file.packed()?, programs })
        }
    }
}

/// Watch over a draft that is fetched for those who follow it: it ends some time after the last one has left.
/// What is pushed has its sender, and needs no follower.
struct Attended<'d> {
    draft: &'d Draft,
    /// Bytes that are to come; `None` for a push.
    bytes_left: Option<u64>,
    /// Bytes left from which on it is received to its end.
    nearly_done: u64,
    left_at: Option<Instant>,
}

impl<'d> Attended<'d> {
    fn new(draft: &'d Draft, promise: Promise) -> Self {
        let (bytes_left, nearly_done) = match promise {
            Promise::Exactly(NarDigest { bytes, .. }) => {
                (Some(bytes), NEARLY_DONE_BYTES.max(bytes / NEARLY_DONE_PART))
            }
            Promise::AtMost(_) => (None, 0),
        };
        Self { draft, bytes_left, nearly_done, left_at: None }
    }

    fn came(&mut self, bytes: u64) -> Result<(), Error> {
        let Some(bytes_left) = &mut self.bytes_left else { return Ok(()) };
        *bytes_left = bytes_left.saturating_sub(bytes);
        if *bytes_left <= self.nearly_done || self.draft.is_followed() {
            self.left_at = None;
            return Ok(());
        }
        let left_at = *self.left_at.get_or_insert_with(Instant::now);
        if left_at.elapsed() < UNFOLLOWED_MAX { Ok(()) } else { Err(Error::Abandoned) }
    }
}

/// An input that fails once it has more bytes than any file of an allowed NAR: a file may go on for ever
/// without a byte of the NAR.
struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other("the file is larger than its NAR may be")),
        }
        Ok(read)
    }
}

/// An input whose bytes go into a file, too.
struct Through<'a, 'd, R> {
    input: R,
    file: &'a mut Measured<'d>,
    /// Tells a failure to write from an input that failed.
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
