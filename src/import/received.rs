//! NARs that were received and that a narinfo is to name: each has a lease, which keeps its file from being
//! swept. An abandoned one goes after a while, and its file with it. Of equal NARs under one name the first
//! stays, whoever uploaded it. Nothing of this survives a restart, after which the packer sweeps the files.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash, PathInfo};

use super::UploadError;
use crate::caller::CallerKey;
use crate::nar_store::{NarDigest, Packed, Received};
use crate::packer::ReceivedFile;

/// Time within which a narinfo is to name a NAR. A stock client sends it within a moment.
const NAMED_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Time for which a NAR is known by the name of its upload after it was last named: another path with the
/// same contents names it, too.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Part of either time that is left where a client hears that it need not upload the NAR again: its narinfo
/// is yet to come.
const LEFT_FOR_NARINFO_PART: u32 = 2;
/// NARs of one uploader that wait for their narinfos.
const UNNAMED_OF_ONE_MAX: usize = 1_000;
/// NARs that are known in all.
const KNOWN_MAX: usize = 100_000;

/// A NAR that was received.
pub(super) struct ReceivedNar {
    file: ReceivedFile,
    /// The hash that its file is named by.
    name: NarHash,
    compression: Compression,
    /// The file as it was sent.
    sent: NarDigest,
    state: Mutex<NamingState>,
}

/// Progress of a NAR towards the path that is to have it.
struct NamingState {
    /// There until a path has it.
    unnamed: Option<UnnamedShare>,
    /// Time at which it was last uploaded or named.
    at: Instant,
}

/// The NARs by the names of their files.
#[derive(Default)]
pub(super) struct ReceivedNars {
    known: Mutex<HashMap<String, Arc<ReceivedNar>>>,
    unnamed: UnnamedNars,
}

/// Numbers and bytes of the NARs that wait for their narinfos, by uploader; clones share them.
#[derive(Clone, Default)]
struct UnnamedNars(Arc<Mutex<HashMap<CallerKey, (usize, u64)>>>);

/// The part of one NAR in these; it ends when this is dropped.
struct UnnamedShare {
    unnamed: UnnamedNars,
    uploader: CallerKey,
    bytes: u64,
}

impl UnnamedNars {
    /// Counts a NAR of so many bytes to an uploader, whose NARs may have `bytes_max` in all.
    fn count(&self, uploader: CallerKey, bytes: u64, bytes_max: u64) -> Result<UnnamedShare, UploadError> {
        let mut counts = self.lock();
        let (count, sum) = counts.get(&uploader).copied().unwrap_or_default();
        if count >= UNNAMED_OF_ONE_MAX || sum + bytes > bytes_max {
            return Err(UploadError::TooMany("NARs without their narinfos"));
        }
        counts.insert(uploader, (count + 1, sum + bytes));
        drop(counts);
        Ok(UnnamedShare { unnamed: self.clone(), uploader, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CallerKey, (usize, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnnamedShare {
    fn drop(&mut self) {
        let mut counts = self.unnamed.lock();
        if let Some((count, sum)) = counts.get_mut(&self.uploader) {
            (*count, *sum) = (*count - 1, *sum - self.bytes);
            if *count == 0 {
                counts.remove(&self.uploader);
            }
        }
    }
}

impl ReceivedNar {
    /// A NAR whose file was sent under the name `name`, the hash of the file or of the NAR.
    pub(super) fn new(file: ReceivedFile, name: NarHash, compression: Compression, sent: NarDigest) -> Self {
        let state = Mutex::new(NamingState { unnamed: None, at: Instant::now() });
        Self { file, name, compression, sent, state }
    }

    /// The file in the NAR store.
    pub(super) fn packed(&self) -> Packed {
        self.file.received.packed
    }

    /// Names of its programs.
    pub(super) fn programs(&self) -> Vec<String> {
        self.file.received.programs.clone()
    }

    /// Version of its object in storage.
    pub(super) fn version(&self) -> Option<Arc<str>> {
        self.file.version.clone()
    }

    /// Waits until its file is durable.
    ///
    /// # Errors
    /// The file cannot be made so, and is gone.
    pub(super) async fn durable(&self) -> io::Result<()> {
        self.file.durable.wait().await
    }

    /// True once it is known that its file cannot be made durable.
    fn is_gone(&self) -> bool {
        self.file.durable.has_failed()
    }

    /// Notes that a path has it.
    pub(super) fn published(&self) {
        let mut state = self.state();
        state.at = Instant::now();
        drop(state.unnamed.take());
    }

    /// Fails unless a narinfo is about this NAR, and about this file where its hash names the file. By the
    /// name of its NAR, a client may mean a file that it has compressed in another way.
    pub(super) fn must_be(
        &self,
        info: &PathInfo,
        compression: Compression,
        file_hash: Option<NarHash>,
        file_size: Option<u64>,
    ) -> Result<(), UploadError> {
        let Self { file: ReceivedFile { received: Received { nar, .. }, .. }, sent, .. } = self;
        let other = |field, said: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            let path = &info.path;
            Err(UploadError::Invalid(format!(
                "the narinfo of {path} says {field} {said}, what was uploaded has {found}"
            )))
        };
        if info.nar_hash != nar.hash {
            return other("NarHash", &info.nar_hash, &nar.hash);
        }
        if info.nar_size != nar.bytes {
            return other("NarSize", &info.nar_size, &nar.bytes);
        }
        if self.name == nar.hash {
            return Ok(());
        }
        if compression != self.compression {
            return other("Compression", &compression, &self.compression);
        }
        if let Some(file_hash) = file_hash.filter(|hash| *hash != sent.hash) {
            return other("FileHash", &file_hash, &sent.hash);
        }
        match file_size.filter(|size| *size != sent.bytes) {
            Some(file_size) => other("FileSize", &file_size, &sent.bytes),
            None => Ok(()),
        }
    }

    fn is_published(&self) -> bool {
        self.state().unnamed.is_none()
    }

    fn state(&self) -> MutexGuard<'_, NamingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once nothing is left of its time, or, with a larger `part`, once that part of it is over.
    fn is_over(&self, part: u32) -> bool {
        let state = self.state();
        let time = if state.unnamed.is_none() { KNOWN_FOR } else { NAMED_WITHIN };
        state.at.elapsed() > time / part
    }
}

impl ReceivedNars {
    /// True where a client need not upload this file again.
    pub(super) fn has(&self, file: &str) -> bool {
        self.get(file).is_some_and(|nar| !nar.is_over(LEFT_FOR_NARINFO_PART) && !nar.is_gone())
    }

    pub(super) fn get(&self, file: &str) -> Option<Arc<ReceivedNar>> {
        self.lock().get(file).cloned()
    }

    /// Adds a NAR; where the same one is known by this name, that stays. Those of one uploader that wait for
    /// their narinfos have `bytes_max` bytes in all.
    ///
    /// # Errors
    /// The uploader has too many, or another NAR has the name.
    pub(super) fn add(
        &self,
        file: String,
        nar: ReceivedNar,
        uploader: CallerKey,
        bytes_max: u64,
    ) -> Result<(), UploadError> {
        let mut known = self.lock();
        // One that could not be made durable is uploaded again.
        if let Some(first) = known.get(&file).filter(|first| !first.is_gone()) {
            if first.file.received.nar != nar.file.received.nar {
                return Err(UploadError::Invalid(format!("another NAR was uploaded as {file} before")));
            }
            first.state().at = Instant::now();
            return Ok(());
        }
        nar.state().unnamed = Some(self.unnamed.count(uploader, nar.packed().file_size, bytes_max)?);
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| !known.is_published());
        }
        if known.len() >= KNOWN_MAX {
            return Err(UploadError::TooMany("NARs of all clients without their narinfos"));
        }
        known.insert(file, Arc::new(nar));
        Ok(())
    }

    /// Forgets those whose time is over.
    pub(super) fn sweep(&self) {
        self.lock().retain(|_, known| !known.is_over(1));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<ReceivedNar>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nars_without_narinfos_are_counted_to_their_uploader_until_they_are_named_or_gone() {
        let unnamed = UnnamedNars::default();
        let [one, other] = [1, 2].map(CallerKey::Token);
        let mut shares: Vec<UnnamedShare> = (0..UNNAMED_OF_ONE_MAX)
            .map(|_| unnamed.count(one, 1, u64::MAX).unwrap_or_else(|_| panic!("room")))
            .collect();
        assert!(unnamed.count(one, 1, u64::MAX).is_err());
        let large = unnamed.count(other, 60, 100).unwrap_or_else(|_| panic!("room"));
        assert!(unnamed.count(other, 41, 100).is_err());
        drop(large);
        drop(unnamed.count(other, 100, 100).unwrap_or_else(|_| panic!("room again")));
        shares.pop();
        drop(unnamed.count(one, 1, u64::MAX).unwrap_or_else(|_| panic!("room again")));
        shares.clear();
        assert!(unnamed.lock().is_empty());
    }
}
