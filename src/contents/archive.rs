//! Archives of whole closures, written by a blocking thread while they are sent. Never complete unless every
//! NAR in it was read and verified to its end. An archive has a part for each path, and the same bytes each
//! time: once its parts were measured, any range of it is made anew from the part on in which it begins.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use narinfo::StoreDir;
use tokio::sync::mpsc;

use super::blocking::NarSource;
use super::{Contents, Error, closure_digest, export, tar};
use crate::model::PathRow;

/// Bytes that are sent at a time, and pieces that wait for a slow client.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_WAITING_MAX: usize = 4;
/// Level of zstd for a closure: it is compressed while it is sent.
const ZSTD_LEVEL: i32 = 3;
/// Bytes of the NARs of an archive that is written only to be measured, at most.
const MEASURED_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// Form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArchiveForm {
    /// A tar file to unpack at the root of the file system, compressed with zstd: a frame for each path.
    TarZstd,
    /// The same without compression.
    Tar,
    /// Nix's export stream.
    Export,
}

/// An archive that is being written.
pub struct Archive(mpsc::Receiver<ArchivePiece>);

enum ArchivePiece {
    Bytes(Bytes),
    /// The end, with the error if there was one.
    End(io::Result<()>),
}

/// A closure in one form.
#[derive(Clone)]
pub struct ArchivePlan {
    rows: Arc<Vec<PathRow>>,
    form: ArchiveForm,
    digest: String,
}

/// Places of the parts of an archive: the first byte of each, and the end of the last one.
#[derive(Debug)]
pub struct ArchiveParts(Vec<u64>);

impl ArchivePlan {
    /// An archive of these paths, dependencies first.
    #[must_use]
    pub fn new(rows: Vec<PathRow>, form: ArchiveForm) -> Self {
        // Another release of zstd may make other bytes of the same contents.
        let made_by = if form == ArchiveForm::TarZstd { zstd::zstd_safe::version_number() } else { 0 };
        Self { digest: format!("{}-{made_by:x}", closure_digest(&rows)), rows: Arc::new(rows), form }
    }

    /// Identity of its bytes, in one form.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn nar_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.info.nar_size).sum()
    }

    /// Writes a part: that of a path, or the end behind them.
    fn write_part(
        &self,
        store_dir: &StoreDir,
        part: usize,
        source: &NarSource,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let row = self.rows.get(part);
        match (self.form, row) {
            (ArchiveForm::Export, Some(row)) => export::write_path(store_dir, row, source, out),
            (ArchiveForm::Export, None) => export::finish(out),
            (ArchiveForm::Tar, row) => write_tar_part(store_dir, row, source, out),
            (ArchiveForm::TarZstd, row) => {
                let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                write_tar_part(store_dir, row, source, &mut encoder)?;
                encoder.finish().map(drop)
            }
        }
    }
}

fn write_tar_part(
    store_dir: &StoreDir,
    row: Option<&PathRow>,
    source: &NarSource,
    out: &mut dyn Write,
) -> io::Result<()> {
    match row {
        Some(row) => tar::write_path(&row.info.path.in_dir(store_dir), &mut source.nar(row)?, out),
        None => tar::finish(out),
    }
}

impl ArchiveParts {
    /// Bytes of the archive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.last().copied().unwrap_or_default()
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.0.len() * size_of::<u64>()
    }

    /// The part that has a byte, and the place of the byte in it.
    fn find(&self, byte: u64) -> (usize, u64) {
        let part = self.0.partition_point(|start| *start <= byte).saturating_sub(1);
        (part, byte - self.0.get(part).copied().unwrap_or_default())
    }
}

impl Contents {
    /// Begins an archive; with `range`, of these bytes of it alone, whose parts are known.
    ///
    /// # Errors
    /// Too many archives are being sent.
    pub fn archive(
        &self,
        plan: &ArchivePlan,
        range: Option<(&ArchiveParts, Range<u64>)>,
    ) -> Result<Archive, Error> {
        let (contents, plan, store_dir) = (self.clone(), plan.clone(), self.0.store_dir.clone());
        let Some((parts, range)) = range else {
            return self.write_archive(move |source, out| {
                let parts = write_all(&plan, &store_dir, source, out)?;
                contents.remember_parts(&plan, parts);
                Ok(())
            });
        };
        let (first, skipped) = parts.find(range.start);
        let wanted = range.end.saturating_sub(range.start);
        self.write_archive(move |source, out| {
            let mut out = RangeWriter { inner: out, skipped, left: wanted };
            for part in first..=plan.rows.len() {
                match plan.write_part(&store_dir, part, source, &mut out) {
                    // What comes behind the range is not made.
                    _ if out.left == 0 => return Ok(()),
                    written => written?,
                }
            }
            Err(io::Error::other("the archive is shorter than it was"))
        })
    }

    /// The parts of an archive that was sent or measured before.
    #[must_use]
    pub fn known_parts(&self, plan: &ArchivePlan) -> Option<Arc<ArchiveParts>> {
        self.0.archive_parts.get(&(plan.digest.clone(), plan.form))
    }

    /// The parts of an archive, which is made to be measured unless it was before.
    ///
    /// # Errors
    /// A NAR cannot be read, the archive is very large, or too many are being sent.
    pub async fn parts(&self, plan: &ArchivePlan) -> Result<Arc<ArchiveParts>, Error> {
        if let Some(parts) = self.known_parts(plan) {
            return Ok(parts);
        }
        if plan.nar_bytes() > MEASURED_BYTES_MAX {
            return Err(Error::Unmeasured);
        }
        let (contents, measured, store_dir) = (self.clone(), plan.clone(), self.0.store_dir.clone());
        let mut archive = self.write_archive(move |source, _| {
            let parts = write_all(&measured, &store_dir, source, &mut io::sink())?;
            contents.remember_parts(&measured, parts);
            Ok(())
        })?;
        while archive.next_piece().await.map_err(super::unreadable)?.is_some() {}
        self.known_parts(plan).ok_or(Error::Unmeasured)
    }

    fn remember_parts(&self, plan: &ArchivePlan, parts: ArchiveParts) {
        self.0.archive_parts.insert((plan.digest.clone(), plan.form), Arc::new(parts));
    }

    /// Begins an archive that `write` writes on a thread of its own.
    pub(super) fn write_archive(
        &self,
        write: impl FnOnce(&NarSource, &mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Result<Archive, Error> {
        let permit = Arc::clone(&self.0.archives).try_acquire_owned().map_err(|_| Error::Busy)?;
        let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let source = NarSource::of(self);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut out = PieceWriter { sender: &sender, buffer: Vec::with_capacity(PIECE_BYTES) };
            let written = write(&source, &mut out).and_then(|()| out.flush());
            if let Err(error) = &written
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                tracing::warn!(%error, "archive of a closure aborted");
            }
            // An error means that the client has left.
            let _ = sender.blocking_send(ArchivePiece::End(written));
        });
        Ok(Archive(receiver))
    }
}

/// Writes all parts, and measures them.
fn write_all(
    plan: &ArchivePlan,
    store_dir: &StoreDir,
    source: &NarSource,
    out: &mut dyn Write,
) -> io::Result<ArchiveParts> {
    let mut starts = Vec::with_capacity(plan.rows.len() + 2);
    let mut out = CountingWriter { inner: out, bytes: 0 };
    for part in 0..=plan.rows.len() {
        starts.push(out.bytes);
        plan.write_part(store_dir, part, source, &mut out)?;
    }
    starts.push(out.bytes);
    Ok(ArchiveParts(starts))
}

impl Archive {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The archive cannot be completed.
    pub async fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        match self.0.recv().await {
            Some(ArchivePiece::Bytes(bytes)) => Ok(Some(bytes)),
            Some(ArchivePiece::End(ended)) => ended.map(|()| None),
            None => Err(io::Error::other("its writer has ended early")),
        }
    }
}

/// Sends what is written in pieces, as fast as they are taken.
struct PieceWriter<'s> {
    sender: &'s mpsc::Sender<ArchivePiece>,
    buffer: Vec<u8>,
}

impl Write for PieceWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + data.len() > PIECE_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        let sent = self.sender.blocking_send(ArchivePiece::Bytes(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Counts what is written.
struct CountingWriter<'w> {
    inner: &'w mut dyn Write,
    bytes: u64,
}

impl Write for CountingWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Passes on a range of what is written, and fails behind it.
struct RangeWriter<'w> {
    inner: &'w mut dyn Write,
    /// Bytes before the range that are yet to come.
    skipped: u64,
    /// Bytes of the range that are yet to come.
    left: u64,
}

impl Write for RangeWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.left == 0 && !data.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let length = data.len() as u64;
        let from = self.skipped.min(length);
        self.skipped -= from;
        let to = length.min(from + self.left);
        self.left -= to - from;
        // Both are within the data.
        self.inner.write_all(&data[from as usize..to as usize])?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_in_its_part() {
        let parts = ArchiveParts(vec![0, 10, 10, 25]);
        assert_eq!(parts.bytes(), 25);
        for (byte, place) in [(0, (0, 0)), (9, (0, 9)), (10, (2, 0)), (24, (2, 14))] {
            assert_eq!(parts.find(byte), place, "{byte}");
        }
    }

    #[test]
    fn a_range_of_what_is_written_is_passed_on_whatever_the_pieces_are() {
        let all: Vec<u8> = (0..100).collect();
        for (skipped, wanted) in [(0, 100), (0, 1), (99, 1), (30, 40), (30, 0)] {
            for size in [1, 7, 100] {
                let mut passed = Vec::new();
                let mut out = RangeWriter { inner: &mut passed, skipped, left: wanted };
                let written = all.chunks(size).try_for_each(|piece| out.write_all(piece));
                assert!(out.left == 0 && (written.is_ok() || skipped + wanted < 100));
                assert_eq!(
                    passed,
                    all[skipped as usize..(skipped + wanted) as usize],
                    "{skipped} {wanted} {size}"
                );
            }
        }
    }
}
