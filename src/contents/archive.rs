//! Archives of whole closures, written by a blocking thread while they are sent. Never complete unless every
//! NAR in it was read and verified to its end.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use narinfo::StoreDir;
use tokio::sync::mpsc;

use super::blocking::NarSource;
use super::{Contents, Error, export, tar};
use crate::model::PathRow;

/// Bytes that are sent at a time, and pieces that wait for a slow client.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_WAITING_MAX: usize = 4;
/// Level of zstd for a closure: it is compressed while it is sent.
const ZSTD_LEVEL: i32 = 3;

/// Form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveForm {
    /// A tar file to unpack at the root of the file system, compressed with zstd.
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

impl Contents {
    /// Begins an archive of a closure.
    ///
    /// # Errors
    /// Too many archives are being sent.
    pub fn archive(&self, rows: Vec<PathRow>, form: ArchiveForm) -> Result<Archive, Error> {
        let store_dir = self.0.store_dir.clone();
        self.write_archive(move |source, out| match form {
            ArchiveForm::TarZstd => {
                let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                write_tar(&store_dir, &rows, source, &mut encoder)?;
                encoder.finish().map(drop)
            }
            ArchiveForm::Tar => write_tar(&store_dir, &rows, source, out),
            ArchiveForm::Export => export::write(&store_dir, &rows, source, out),
        })
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

/// Writes a whole tar file with these paths.
fn write_tar(
    store_dir: &StoreDir,
    rows: &[PathRow],
    source: &NarSource,
    out: &mut dyn Write,
) -> io::Result<()> {
    for row in rows {
        tar::write_path(&row.info.path.in_dir(store_dir), &mut source.nar(row)?, out)?;
    }
    tar::finish(out)
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
