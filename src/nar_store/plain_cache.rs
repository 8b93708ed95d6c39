//! The plain cache: decompressed copies of NARs that are asked for as `.nar`, made once for all who ask, who
//! read along meanwhile; then sent by the kernel. Replaced decompression for each request, at the 0.6 GB/s of
//! one core: a copy of 539 MB leaves at 5.4 GB/s for 0.18 s of CPU a GB. Bounded in bytes, evicted least
//! recently used first, emptied at each start. Not for NARs of up to 64 KiB, and without a copy (full disk,
//! too many under way) a NAR is decompressed on the way. Must never serve more than the index does.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash};
use tempfile::TempPath;

use super::Nar;
use super::blobs::{Blob, BlobFile, Commit, Upload, open_file, spool_in};
use super::draft::{Draft, Growing};
use super::pack::dump;
use super::verify::{ChunkWriter, Error, NarDigest, Origin, Promise, copy, verify};
use crate::decode;

/// Copies that are made at the same time; each takes two cores.
const UNDER_WAY_MAX: usize = 8;
/// Pause after a copy could not be written: most often the disk is full.
const REST: Duration = Duration::from_secs(60);

/// Source of a copy.
#[derive(Debug)]
pub enum CopySource {
    /// The zstd file.
    Packed(Blob),
    /// The store path, while the NAR is not packed.
    Tree(PathBuf),
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub(super) struct PlainCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    copies: HashMap<NarHash, Entry>,
    /// Bytes of all copies, once they are complete.
    bytes: u64,
    /// Logical clock: ticks with each use, and each copy that is begun.
    clock: u64,
    /// Earliest time of the next copy, after a failure.
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    /// Start, and reading side, of a copy that is being made.
    under_way: Option<(u64, Growing)>,
}

impl Entry {
    fn is_under_way_since(&self, begun: u64) -> bool {
        self.under_way.as_ref().is_some_and(|(number, _)| *number == begun)
    }
}

impl PlainCache {
    /// Uses `dir`, and removes the copies of an earlier run in the background, since large files take their
    /// time.
    pub(super) fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let gone = dir.with_extension("gone");
        for path in [dir, &gone] {
            // A file of that name is none of ours.
            if path.metadata().is_ok_and(|found| !found.is_dir()) {
                fs::remove_file(path)?;
            }
        }
        if gone.exists() {
            fs::remove_dir_all(&gone)?;
        }
        fs::create_dir_all(dir)?;
        if fs::read_dir(dir)?.next().is_some() {
            fs::rename(dir, &gone)?;
            fs::create_dir(dir)?;
            let remove = move || {
                if let Err(error) = fs::remove_dir_all(&gone) {
                    tracing::warn!(%error, "cannot remove {}: the next start tries again", gone.display());
                }
            };
            std::thread::Builder::new().name("copies-gone".into()).spawn(remove)?;
        }
        Ok(Self(Arc::new(Shared { dir: dir.to_owned(), bytes_max, state: Mutex::default() })))
    }

    /// The copy of a NAR, complete or on its way; begun if there is none. `None` if none can be made.
    /// Blocking.
    pub(super) fn get(&self, nar: NarDigest, source: CopySource) -> Option<Nar> {
        let mut state = self.0.state();
        state.clock += 1;
        let now = state.clock;
        if let Some(entry) = state.copies.get_mut(&nar.hash) {
            entry.used = now;
            if let Some((_, growing)) = &entry.under_way {
                return Some(Nar::Growing(growing.clone()));
            }
            match open_file(&self.0.file_of(nar.hash)) {
                Ok(Some(stored)) if stored.bytes() == nar.bytes => return Some(Nar::Stored(stored)),
                // Deleted or truncated by another program.
                _ => state.drop_entry(nar.hash),
            };
        }
        let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
        if rests || !state.has_room(nar.bytes, &self.0) {
            return None;
        }
        // A verified file was right before; only its end tells whether it still is.
        let trusted = if matches!(source, CopySource::Packed(_)) { nar.bytes.saturating_sub(1) } else { 0 };
        let begun = PlainUpload::begin(&self.0.dir).map(|upload| Draft::new(Box::new(upload), trusted));
        let begun = begun.map_err(|error| self.0.failed(&mut state, nar.hash, &Error::Write(error)));
        let (draft, growing) = begun.ok()?;
        state.bytes += nar.bytes;
        let entry = Entry { bytes: nar.bytes, used: now, under_way: Some((now, growing.clone())) };
        state.copies.insert(nar.hash, entry);
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.make(draft, nar, source, now));
        Some(Nar::Growing(growing))
    }

    /// True while a copy is being made.
    pub(super) fn are_made(&self) -> bool {
        self.0.state().copies.values().any(|entry| entry.under_way.is_some())
    }

    /// Removes all complete copies.
    pub(super) fn drop_all(&self) {
        let mut state = self.0.state();
        let complete = state.copies.iter().filter(|(_, entry)| entry.under_way.is_none());
        for nar in complete.map(|(nar, _)| *nar).collect::<Vec<_>>() {
            self.0.remove(&mut state, nar);
        }
    }

    /// Removes the copy of a NAR. Open readers still get all of it.
    pub(super) fn forget(&self, nar: NarHash) {
        self.0.remove(&mut self.0.state(), nar);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_of(&self, nar: NarHash) -> PathBuf {
        file_in(&self.dir, nar)
    }

    fn make(&self, draft: Draft, nar: NarDigest, source: CopySource, begun: u64) {
        let written = write(&draft, nar, source);
        let mut state = self.state();
        // It may have been forgotten and begun anew by now.
        let is_ours = state.copies.get(&nar.hash).is_some_and(|entry| entry.is_under_way_since(begun));
        let kept = match written {
            Ok(()) => {
                draft.is_right();
                if !is_ours {
                    return;
                }
                draft.commit(nar.hash).map_err(Error::Write)
            }
            Err(error) => {
                draft.abandon(&error.to_string());
                Err(error)
            }
        };
        match kept {
            Ok(_) => {
                if let Some(entry) = state.copies.get_mut(&nar.hash) {
                    entry.under_way = None;
                }
            }
            Err(error) => {
                if is_ours {
                    state.drop_entry(nar.hash);
                }
                self.failed(&mut state, nar.hash, &error);
            }
        }
    }

    /// Logs a failure, and pauses if the folder cannot be written to.
    fn failed(&self, state: &mut State, nar: NarHash, error: &Error) {
        if matches!(error, Error::Write(_)) {
            state.rests_until = Some(Instant::now() + REST);
        }
        let error = error as &dyn std::error::Error;
        tracing::warn!(%nar, error, "cannot make a plain copy: the NAR is decompressed on the way");
    }

    fn remove(&self, state: &mut State, nar: NarHash) {
        if state.drop_entry(nar).is_some_and(|entry| entry.under_way.is_none())
            && let Err(error) = fs::remove_file(self.file_of(nar))
        {
            tracing::warn!(%nar, %error, "cannot remove a plain copy: the next start removes it");
        }
    }
}

fn file_in(dir: &Path, nar: NarHash) -> PathBuf {
    dir.join(format!("{}.nar", nar.to_nixbase32()))
}

/// Upload of a copy. Nothing is fsynced, because all copies go at the next start.
#[derive(Debug)]
struct PlainUpload {
    file: Arc<File>,
    path: TempPath,
    dir: PathBuf,
}

impl PlainUpload {
    fn begin(dir: &Path) -> io::Result<Self> {
        let (file, path) = spool_in(dir)?;
        Ok(Self { file, path, dir: dir.to_owned() })
    }
}

impl Upload for PlainUpload {
    fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Replaces a file of that name, which is none of ours: the cache makes one copy of a NAR at a time.
    fn commit(self: Box<Self>, key: NarHash) -> io::Result<Commit> {
        let Self { path, dir, .. } = *self;
        path.persist(file_in(&dir, key)).map_err(|failed| failed.error)?;
        Ok(Commit::Won)
    }
}

impl State {
    /// Makes room for one more copy by evicting the least recently used ones. False if that does not suffice.
    fn has_room(&mut self, bytes: u64, shared: &Shared) -> bool {
        let under_way = self.copies.values().filter(|entry| entry.under_way.is_some());
        let (count, fixed) = under_way.fold((0, 0), |(count, sum), entry| (count + 1, sum + entry.bytes));
        if count >= UNDER_WAY_MAX || bytes > shared.bytes_max.saturating_sub(fixed) {
            return false;
        }
        while self.bytes + bytes > shared.bytes_max {
            let complete = self.copies.iter().filter(|(_, entry)| entry.under_way.is_none());
            let Some(oldest) = complete.min_by_key(|(_, entry)| entry.used).map(|(nar, _)| *nar) else {
                break;
            };
            shared.remove(self, oldest);
        }
        true
    }

    fn drop_entry(&mut self, nar: NarHash) -> Option<Entry> {
        let entry = self.copies.remove(&nar)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

/// Writes the plain NAR into the draft. The caller tells the readers that it is right.
fn write(draft: &Draft, nar: NarDigest, source: CopySource) -> Result<(), Error> {
    let make = |chunks: &mut ChunkWriter| match source {
        CopySource::Packed(stored) => {
            let Blob::File(BlobFile { file, .. }) = stored;
            let mut plain = decode::plain(Compression::Zstd, &*file).map_err(Error::Sent)?;
            copy(&mut plain, chunks, |_| Ok(()))
        }
        CopySource::Tree(path) => dump(&path, chunks),
    };
    // The structure of a stored file was checked when it came.
    verify(Promise::Exactly(nar), Origin::Tree, make, |chunk| (&*draft).write_all(chunk)).map(drop)
}
