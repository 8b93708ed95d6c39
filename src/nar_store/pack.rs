//! Packing: the NAR of a store path, or a plain one that is sent, hashed, compressed and written in one pass,
//! and kept only when its hash and size are right. Must never commit a draft that was not verified.

use std::io::{self, Read, Write};
use std::path::Path;

use zstd::zstd_safe::CParameter;

use super::blobs::Commit;
use super::draft::{Draft, PlacedDraft};
use super::measured::{Measured, Packed};
use super::verify::{ChunkWriter, Error, NarDigest, Origin, Promise, Verified, copy, verify};
use super::{NarStore, Settings};
use crate::tail_file::CHUNK_BYTES;

/// Bytes of a NAR that one of several threads compresses at a time; zstd itself compresses smaller ones on
/// one.
const JOB_BYTES: u32 = 1024 * 1024;
/// The highest level that is compressed by several threads: higher ones are for those who can wait, and take
/// much memory for each thread.
const PARALLEL_ZSTD_LEVEL_MAX: i32 = 9;

/// A NAR that was verified, and the file that it was written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The plain NAR.
    pub nar: NarDigest,
    /// The zstd file.
    pub packed: Packed,
    /// Names of its programs.
    pub programs: Vec<String>,
}

impl NarStore {
    /// Writes the NAR of the tree at `source` into `draft`. Blocking.
    ///
    /// # Errors
    /// The tree cannot be read or is not the one promised, or the file cannot be written.
    pub fn pack(&self, draft: &Draft, source: &Path, promised: NarDigest) -> Result<Received, Error> {
        let make = |chunks: &mut ChunkWriter<'_>| dump(source, chunks);
        let received = compress(draft, &self.settings, Promise::Exactly(promised), Origin::Tree, make)?;
        // The names only help to find it: a tree that is gone by now has none.
        let programs = narinfo::nar::programs_of(source).unwrap_or_default();
        Ok(Received { programs, ..received })
    }

    /// Writes the plain NAR that comes as `input` into `draft`, as [`NarStore::pack`] does. Blocking.
    ///
    /// # Errors
    /// The input fails or is not the NAR promised, or the file cannot be written.
    pub fn pack_sent(
        &self,
        draft: &Draft,
        mut input: impl Read + Send,
        promised: NarDigest,
    ) -> Result<Received, Error> {
        let make = |chunks: &mut ChunkWriter<'_>| copy(&mut input, chunks, |_| Ok(()));
        compress(draft, &self.settings, Promise::Exactly(promised), Origin::Sent(None), make)
    }

    /// Puts a draft in its place that was written and verified. Its readers have all that they asked for
    /// before it is durable. Blocking.
    ///
    /// # Errors
    /// The storage fails; nothing is kept then.
    pub fn place(&self, draft: Draft, received: &Received) -> io::Result<PlacedDraft> {
        let Received { nar, packed, .. } = received;
        draft.is_right();
        let copies = self.copies.as_ref().zip(draft.spool());
        let copy = copies.and_then(|(copies, file)| {
            copies.prepare(nar.hash, packed.contents(), file).map(|copy| (copies, copy))
        });
        if copy.is_some() {
            draft.sync()?;
        }
        let placed = draft.place(nar.hash)?;
        if let (Some((copies, copy)), Commit::Won) = (copy, placed.outcome()) {
            copies.take(copy);
        }
        Ok(placed)
    }
}

/// Writes the NAR of a file tree to `chunks`.
pub(super) fn dump(source: &Path, chunks: &mut ChunkWriter<'_>) -> Result<(), Error> {
    if source.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Err(Error::Vanished);
    }
    narinfo::nar::dump(source, chunks).map(drop).map_err(Error::Dump)
}

/// Writes the plain NAR that `make` makes into `draft`, as zstd.
pub(super) fn compress(
    draft: &Draft,
    settings: &Settings,
    promise: Promise,
    origin: Origin<'_>,
    make: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Error> + Send,
) -> Result<Received, Error> {
    let mut encoder = None;
    let Verified { digest: nar, programs } = verify(promise, origin, make, |chunk| {
        let encoder = match &mut encoder {
            Some(encoder) => encoder,
            // A first chunk that is not full is all there is, or its sender is slow.
            none => none.insert(encoder_of(draft, settings, promise, chunk.len() == CHUNK_BYTES)?),
        };
        encoder.write_all(chunk)?;
        // Its maker waits for more, and so do the readers.
        if chunk.len() < CHUNK_BYTES { encoder.flush() } else { Ok(()) }
    })?;
    let encoder = match encoder {
        Some(encoder) => encoder,
        None => encoder_of(draft, settings, promise, false)?,
    };
    Ok(Received { nar, packed: encoder.finish()?.packed()?, programs })
}

/// Encoder into `draft`; on several threads if it is to get more than one chunk.
fn encoder_of<'d>(
    draft: &'d Draft,
    settings: &Settings,
    promise: Promise,
    more: bool,
) -> io::Result<zstd::Encoder<'static, Measured<'d>>> {
    let Settings { zstd_level, zstd_threads, .. } = *settings;
    let mut encoder = zstd::Encoder::new(Measured::new(draft), zstd_level)?;
    let more = match promise {
        Promise::Exactly(NarDigest { bytes, .. }) => bytes > CHUNK_BYTES as u64,
        Promise::AtMost(_) => more,
    };
    if more && zstd_threads > 1 && zstd_level <= PARALLEL_ZSTD_LEVEL_MAX {
        encoder.multithread(zstd_threads)?;
        encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
    }
    if let Promise::Exactly(NarDigest { bytes, .. }) = promise {
        encoder.set_pledged_src_size(Some(bytes))?;
    }
    encoder.include_contentsize(true)?;
    // What does not compress is stored as it is: without this, damage in it would be decompressed without an
    // error.
    encoder.include_checksum(true)?;
    Ok(encoder)
}
