//! Caches of copies in a directory: decompressed copies of NARs that are asked for as `.nar`, and copies of
//! packed NARs whose storage is elsewhere. Each copy is made once for all who ask, who read along meanwhile;
//! then it is sent by the kernel. The plain one replaced decompression for each request, at the 0.6 GB/s of
//! one core: a copy of 539 MB leaves at 5.4 GB/s for 0.18 s of CPU a GB. Bounded in bytes, evicted least
//! recently used first. Not for NARs of up to 64 KiB in plain form, and without a copy (full disk, too many
//! under way) a NAR is decompressed, or read from its storage, on the way. Must never serve more than the
//! index does.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use narinfo::{Compression, NarHash};
use quick_cache::sync::Cache;
use tempfile::TempPath;

use super::Nar;
use super::blobs::{Blob, BlobFile, Commit, PlacedBlob, Upload, open_file, spool_in};
use super::draft::{Draft, Growing, PlacedDraft};
use super::pack::dump;
use super::verify::{ChunkWriter, Error, NarDigest, Origin, Promise, copy, verify};
use crate::decode;

/// Copies that are made at the same time; a plain one takes two cores, a packed one waits for its storage.
const PLAIN_UNDER_WAY_MAX: usize = 8;
const PACKED_UNDER_WAY_MAX: usize = 32;
/// Pause after a copy could not be written: most often the disk is full.
const REST: Duration = Duration::from_secs(60);
/// Part of the cache that one packed copy may take: a larger one would push out too much.
const PACKED_PART_MAX: u64 = 4;
/// Packed NARs without a copy whose last request is remembered. In a full cache the second request has a copy
/// made: what is asked for once pushes out nothing.
const REMEMBERED_MAX: usize = 100_000;
/// Time within which a further use is not written down.
const TOUCHED_WITHIN: Duration = Duration::from_secs(60);
/// Prefix of a copy on its way, and the ends of names of copies.
const DRAFT: &str = "nar-";
const PLAIN_ENDING: &str = ".nar";
const PACKED_ENDING: &str = ".nar.zst";

/// Source of a copy.
#[derive(Debug)]
pub enum CopySource {
    /// The zstd file, for a plain copy.
    Packed(Blob),
    /// The store path, while the NAR is not packed, for a plain copy.
    Tree(PathBuf),
    /// The zstd file elsewhere, for a packed copy.
    Elsewhere(Blob),
}

/// Form of all copies in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyKind {
    /// Plain NARs, which go at each start.
    Plain,
    /// zstd files, which outlive the server.
    Packed,
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub(super) struct CopyCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    kind: CopyKind,
    bytes_max: u64,
    state: Mutex<State>,
    /// Packed NARs that were asked for and have no copy.
    wanted: Cache<NarHash, ()>,
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
    /// Hash and size of the copy.
    contents: NarDigest,
    used: u64,
    /// Time of the use that was written down.
    touched: Instant,
    /// Start, and reading side, of a copy that is being made.
    under_way: Option<(u64, Growing)>,
}

impl Entry {
    fn is_under_way_since(&self, begun: u64) -> bool {
        self.under_way.as_ref().is_some_and(|(number, _)| *number == begun)
    }
}

/// A copy that becomes one of the cache once its NAR is stored.
#[derive(Debug)]
pub(super) struct PendingCopy {
    path: TempPath,
    nar: NarHash,
    contents: NarDigest,
}

impl CopyCache {
    /// Uses `dir` for plain copies, and removes those of an earlier run in the background, since large files
    /// take their time.
    pub(super) fn plain(dir: &Path, bytes_max: u64) -> io::Result<Self> {
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
        Ok(Self::new(dir, CopyKind::Plain, bytes_max))
    }

    /// Uses `dir` for packed copies, with those of earlier runs, and removes what is none.
    pub(super) fn packed(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let cache = Self::new(dir, CopyKind::Packed, bytes_max);
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            match names_of(&entry.file_name().to_string_lossy()) {
                Some(names) => found.push((metadata.modified()?, names, metadata.len())),
                None => fs::remove_file(entry.path())?,
            }
        }
        // The least recently used one first.
        found.sort_unstable_by_key(|(used, ..)| *used);
        let mut state = cache.0.state();
        for (_, (nar, hash), bytes) in found {
            cache.0.add(&mut state, nar, NarDigest { hash, bytes });
        }
        cache.0.make_room(&mut state, 0);
        drop(state);
        Ok(cache)
    }

    fn new(dir: &Path, kind: CopyKind, bytes_max: u64) -> Self {
        let (state, wanted) = (Mutex::default(), Cache::new(REMEMBERED_MAX));
        Self(Arc::new(Shared { dir: dir.to_owned(), kind, bytes_max, state, wanted }))
    }

    /// The copy of a NAR that is there, or on its way. Blocking.
    pub(super) fn find(&self, nar: NarHash, contents: NarDigest) -> Option<Nar> {
        self.0.find(&mut self.0.state(), nar, contents)
    }

    /// The copy of a NAR, complete or on its way; begun if there is none. `None` if none can be made.
    /// Blocking, within a tokio runtime.
    pub(super) fn get(&self, nar: NarHash, contents: NarDigest, source: CopySource) -> Option<Nar> {
        let mut state = self.0.state();
        if let Some(copy) = self.0.find(&mut state, nar, contents) {
            return Some(copy);
        }
        let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
        if rests || !self.0.admits(&mut state, nar, contents.bytes) {
            return None;
        }
        // A verified file was right before; only its end tells whether it still is.
        let trusted =
            if matches!(source, CopySource::Tree(_)) { 0 } else { contents.bytes.saturating_sub(1) };
        let begun = CopyUpload::begin(&self.0, contents).map(|upload| Draft::new(Box::new(upload), trusted));
        let begun = begun.map_err(|error| self.0.failed(&mut state, nar, &Error::Write(error)));
        let (draft, growing) = begun.ok()?;
        self.0.add(&mut state, nar, contents);
        let number = state.clock;
        if let Some(entry) = state.copies.get_mut(&nar) {
            entry.under_way = Some((number, growing.clone()));
        }
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.make(draft, nar, contents, source, number));
        Some(Nar::Growing(growing))
    }

    /// Prepares a copy of a file that is about to be stored; `None` without room, or where none can be made.
    pub(super) fn prepare(&self, nar: NarHash, contents: NarDigest, file: &Path) -> Option<PendingCopy> {
        let mut state = self.0.state();
        let is_admitted = contents.bytes <= self.0.bytes_max.saturating_sub(state.bytes)
            && self.0.admits(&mut state, nar, contents.bytes);
        if !is_admitted {
            return None;
        }
        let path = self.0.dir.join(format!("{DRAFT}{}", nar.to_nixbase32()));
        // Another one of the same NAR is as good.
        fs::hard_link(file, &path).ok()?;
        TempPath::try_from_path(path).ok().map(|path| PendingCopy { path, nar, contents })
    }

    /// Adds a copy of these bytes where there is room. Its use is noted either way.
    pub(super) fn put(&self, nar: NarHash, contents: NarDigest, bytes: &[u8]) {
        let is_admitted = self.0.admits(&mut self.0.state(), nar, contents.bytes);
        if !is_admitted {
            return;
        }
        let written = spool_in(&self.0.dir).and_then(|(file, path)| {
            (&*file).write_all(bytes)?;
            file.sync_data()?;
            Ok(path)
        });
        match written {
            Ok(path) => self.take(PendingCopy { path, nar, contents }),
            Err(error) => self.0.failed(&mut self.0.state(), nar, &Error::Write(error)),
        }
    }

    /// Takes a prepared copy over: its NAR is stored, and its bytes are durable.
    pub(super) fn take(&self, pending: PendingCopy) {
        let PendingCopy { path, nar, contents } = pending;
        let mut state = self.0.state();
        if state.copies.contains_key(&nar) {
            return;
        }
        match path.persist(self.0.file_of(nar, contents)) {
            Ok(()) => {
                self.0.make_room(&mut state, contents.bytes);
                self.0.add(&mut state, nar, contents);
            }
            Err(failed) => self.0.failed(&mut state, nar, &Error::Write(failed.error)),
        }
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

    /// Bytes of all copies.
    pub(super) fn bytes(&self) -> u64 {
        self.0.state().bytes
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_of(&self, nar: NarHash, contents: NarDigest) -> PathBuf {
        file_in(&self.dir, self.kind, nar, contents.hash)
    }

    fn find(&self, state: &mut State, nar: NarHash, contents: NarDigest) -> Option<Nar> {
        state.clock += 1;
        let now = state.clock;
        let entry = state.copies.get_mut(&nar)?;
        if entry.contents != contents {
            // Of a file that another one has replaced since.
            self.remove(state, nar);
            return None;
        }
        entry.used = now;
        if let Some((_, growing)) = &entry.under_way {
            return Some(Nar::Growing(growing.clone()));
        }
        match open_file(&self.file_of(nar, contents)) {
            Ok(Some(stored)) if stored.bytes() == contents.bytes => {
                if self.kind == CopyKind::Packed && entry.touched.elapsed() >= TOUCHED_WITHIN {
                    entry.touched = Instant::now();
                    touch(&stored);
                }
                Some(Nar::Stored(stored))
            }
            // Deleted or truncated by another program.
            _ => {
                state.drop_entry(nar);
                None
            }
        }
    }

    /// True if a copy of so many bytes is to be made; evicts what stands in its way.
    fn admits(&self, state: &mut State, nar: NarHash, bytes: u64) -> bool {
        let under_way = state.copies.values().filter(|entry| entry.under_way.is_some());
        let (count, fixed) = under_way.fold((0, 0), |(n, sum), entry| (n + 1, sum + entry.contents.bytes));
        let (count_max, copy_max) = match self.kind {
            CopyKind::Plain => (PLAIN_UNDER_WAY_MAX, self.bytes_max),
            CopyKind::Packed => (PACKED_UNDER_WAY_MAX, self.bytes_max / PACKED_PART_MAX),
        };
        if count >= count_max || bytes > copy_max.min(self.bytes_max.saturating_sub(fixed)) {
            return false;
        }
        let is_full = state.bytes + bytes > self.bytes_max;
        if is_full && self.kind == CopyKind::Packed && self.wanted.remove(&nar).is_none() {
            self.wanted.insert(nar, ());
            return false;
        }
        self.make_room(state, bytes);
        true
    }

    /// Makes room for a copy by evicting the least recently used ones.
    fn make_room(&self, state: &mut State, bytes: u64) {
        while state.bytes + bytes > self.bytes_max {
            let complete = state.copies.iter().filter(|(_, entry)| entry.under_way.is_none());
            let Some(oldest) = complete.min_by_key(|(_, entry)| entry.used).map(|(nar, _)| *nar) else {
                break;
            };
            self.remove(state, oldest);
        }
    }

    fn add(&self, state: &mut State, nar: NarHash, contents: NarDigest) {
        state.drop_entry(nar);
        state.clock += 1;
        state.bytes += contents.bytes;
        let entry = Entry { contents, used: state.clock, touched: Instant::now(), under_way: None };
        state.copies.insert(nar, entry);
    }

    fn make(&self, draft: Draft, nar: NarHash, contents: NarDigest, source: CopySource, begun: u64) {
        let written = write(&draft, contents, source).and_then(|()| {
            draft.is_right();
            // Plain copies go at the next start.
            if self.kind == CopyKind::Packed { Ok(draft.sync()?) } else { Ok(()) }
        });
        let mut state = self.state();
        // It may have been forgotten and begun anew by now.
        let is_ours = state.copies.get(&nar).is_some_and(|entry| entry.is_under_way_since(begun));
        let kept = match written {
            Ok(()) if !is_ours => return,
            Ok(()) => draft.place(nar).and_then(PlacedDraft::sync).map_err(Error::Write),
            Err(error) => {
                draft.abandon(&error.to_string());
                Err(error)
            }
        };
        match kept {
            Ok(()) => {
                if let Some(entry) = state.copies.get_mut(&nar) {
                    entry.under_way = None;
                }
            }
            Err(error) => {
                if is_ours {
                    state.drop_entry(nar);
                }
                self.failed(&mut state, nar, &error);
            }
        }
    }

    /// Logs a failure, and pauses if the folder cannot be written to.
    fn failed(&self, state: &mut State, nar: NarHash, error: &Error) {
        if matches!(error, Error::Write(_)) {
            state.rests_until = Some(Instant::now() + REST);
        }
        let error = error as &dyn std::error::Error;
        match self.kind {
            CopyKind::Plain => {
                tracing::warn!(%nar, error, "cannot make a plain copy: the NAR is decompressed on the way");
            }
            CopyKind::Packed => {
                tracing::warn!(%nar, error, "cannot copy a stored NAR: the next request for it tries again");
            }
        }
    }

    fn remove(&self, state: &mut State, nar: NarHash) {
        if let Some(entry) = state.drop_entry(nar)
            && entry.under_way.is_none()
            && let Err(error) = fs::remove_file(self.file_of(nar, entry.contents))
        {
            tracing::warn!(%nar, %error, "cannot remove a copy of a NAR: the next start removes it");
        }
    }
}

fn file_in(dir: &Path, kind: CopyKind, nar: NarHash, contents: NarHash) -> PathBuf {
    let nar = nar.to_nixbase32();
    dir.join(match kind {
        CopyKind::Plain => format!("{nar}{PLAIN_ENDING}"),
        CopyKind::Packed => format!("{nar}-{}{PACKED_ENDING}", contents.to_nixbase32()),
    })
}

/// The NAR, and the hash of the file, in the name of a packed copy.
fn names_of(file: &str) -> Option<(NarHash, NarHash)> {
    let (nar, contents) = file.strip_suffix(PACKED_ENDING)?.split_once('-')?;
    Some((NarHash::from_nixbase32(nar).ok()?, NarHash::from_nixbase32(contents).ok()?))
}

/// Writes a use down, for the order after a restart.
fn touch(stored: &Blob) {
    if let Blob::File(BlobFile { file, .. }) = stored
        && let Err(error) = file.set_modified(SystemTime::now())
    {
        tracing::debug!(%error, "cannot note the use of a copy of a NAR");
    }
}

/// Upload of a copy.
#[derive(Debug)]
struct CopyUpload {
    file: Arc<File>,
    path: TempPath,
    dir: PathBuf,
    kind: CopyKind,
    contents: NarHash,
}

impl CopyUpload {
    fn begin(shared: &Shared, contents: NarDigest) -> io::Result<Self> {
        let (file, path) = spool_in(&shared.dir)?;
        Ok(Self { file, path, dir: shared.dir.clone(), kind: shared.kind, contents: contents.hash })
    }
}

impl Upload for CopyUpload {
    fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Replaces a file of that name, which is none of ours: the cache makes one copy of a NAR at a time.
    fn place(self: Box<Self>, key: NarHash) -> io::Result<PlacedBlob> {
        let Self { path, dir, kind, contents, .. } = *self;
        path.persist(file_in(&dir, kind, key, contents)).map_err(|failed| failed.error)?;
        Ok(PlacedBlob::durable(Commit::Won))
    }
}

impl State {
    fn drop_entry(&mut self, nar: NarHash) -> Option<Entry> {
        let entry = self.copies.remove(&nar)?;
        self.bytes -= entry.contents.bytes;
        Some(entry)
    }
}

/// Writes a copy into the draft. The caller tells the readers that it is right.
fn write(draft: &Draft, contents: NarDigest, source: CopySource) -> Result<(), Error> {
    let make = |chunks: &mut ChunkWriter| match source {
        CopySource::Packed(stored) => {
            let mut plain = decode::plain(Compression::Zstd, stored.reader()).map_err(Error::Sent)?;
            copy(&mut plain, chunks, |_| Ok(()))
        }
        CopySource::Tree(path) => dump(&path, chunks),
        CopySource::Elsewhere(stored) => copy(&mut stored.reader(), chunks, |_| Ok(())),
    };
    // The structure of a stored file was checked when it came.
    verify(Promise::Exactly(contents), Origin::Tree, make, |chunk| (&*draft).write_all(chunk)).map(drop)
}
