//! Blobs in memory, for tests: files without a name (memfd_create(2)), so that what serves files serves
//! these. Fails, panics and counts on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use narinfo::NarHash;
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Blob, BlobFile, Blobs, Commit, LIST_PAGE_MAX, PlacedBlob, Upload};
use crate::room::Room;

/// The storage; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryBlobs(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Held to have uploads wait before they begin.
    gate: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// By the nixbase32 text of the key.
    blobs: BTreeMap<String, (NarHash, BlobFile)>,
    uploads: usize,
    is_full: bool,
    panics: usize,
    /// True while nothing becomes durable.
    is_unsyncable: bool,
    /// Bytes of another upload that takes the place of the next one.
    overtaking: Option<Vec<u8>>,
}

impl MemoryBlobs {
    /// Makes the storage full, or gives it room again.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    /// Has the next `commits` panic.
    pub(crate) fn panic_on_commits(&self, commits: usize) {
        self.state().panics = commits;
    }

    /// Has syncs of what is committed from now on fail, or succeed again.
    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.state().is_unsyncable = fail;
    }

    /// Has the next upload win, and another one of these bytes take its place at once.
    pub(crate) fn overtake_next(&self, bytes: Vec<u8>) {
        self.state().overtaking = Some(bytes);
    }

    /// Has uploads wait before they begin, until the guard is dropped.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uploads that are neither committed nor dropped.
    pub(crate) fn uploads(&self) -> usize {
        self.state().uploads
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_room(&self) -> io::Result<()> {
        if self.state().is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Blobs for MemoryBlobs {
    fn open(&self, key: NarHash) -> io::Result<Option<Blob>> {
        let state = self.state();
        let Some((_, BlobFile { file, bytes })) = state.blobs.get(&key.to_nixbase32()) else {
            return Ok(None);
        };
        // A file description of its own, as a directory gives one to each who opens.
        let file = Arc::new(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
        Ok(Some(Blob::File(BlobFile { file, bytes: *bytes })))
    }

    fn begin(&self) -> io::Result<Box<dyn Upload>> {
        drop(self.hold());
        self.check_room()?;
        let file = Arc::new(File::from(memfd_create("upload", MemfdFlags::CLOEXEC)?));
        self.state().uploads += 1;
        Ok(Box::new(MemoryUpload { file, blobs: self.clone() }))
    }

    fn delete(&self, key: NarHash) -> io::Result<bool> {
        Ok(self.state().blobs.remove(&key.to_nixbase32()).is_some())
    }

    fn list(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        let after = after.map(|key| key.to_nixbase32()).unwrap_or_default();
        let state = self.state();
        let behind = state.blobs.iter().filter(|(name, _)| **name > after);
        Ok(behind.map(|(_, (key, _))| *key).take(LIST_PAGE_MAX).collect())
    }

    fn room(&self) -> io::Result<Room> {
        let free_bytes = if self.state().is_full { 0 } else { 1 << 40 };
        Ok(Room::new(1 << 40, free_bytes, None))
    }
}

#[derive(Debug)]
struct MemoryUpload {
    file: Arc<File>,
    blobs: MemoryBlobs,
}

impl Upload for MemoryUpload {
    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn check_room(&self) -> io::Result<()> {
        self.blobs.check_room()
    }

    fn place(self: Box<Self>, key: NarHash) -> io::Result<PlacedBlob> {
        let bytes = self.file.metadata()?.len();
        let mut state = self.blobs.state();
        if state.panics > 0 {
            state.panics -= 1;
            drop(state);
            panic!("a commit that was to panic");
        }
        let name = key.to_nixbase32();
        if state.blobs.contains_key(&name) {
            return Ok(PlacedBlob::durable(Commit::Lost));
        }
        if let Some(other) = state.overtaking.take() {
            let file: File = memfd_create("overtaking", MemfdFlags::CLOEXEC)?.into();
            file.write_all_at(&other, 0)?;
            let bytes = other.len() as u64;
            state.blobs.insert(name, (key, BlobFile { file: Arc::new(file), bytes }));
            return Ok(PlacedBlob::contested("of this upload".into()));
        }
        state.blobs.insert(name.clone(), (key, BlobFile { file: Arc::clone(&self.file), bytes }));
        if !state.is_unsyncable {
            return Ok(PlacedBlob::durable(Commit::Won));
        }
        let blobs = self.blobs.clone();
        Ok(PlacedBlob::unsynced(Commit::Won, move || {
            blobs.state().blobs.remove(&name);
            Err(io::ErrorKind::StorageFull.into())
        }))
    }
}

impl Drop for MemoryUpload {
    fn drop(&mut self) {
        self.blobs.state().uploads -= 1;
    }
}
