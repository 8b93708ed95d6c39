//! Plain copies of NARs that are asked for without compression: made once for all who ask, who read along meanwhile, then sent
//! as they are. Bounded in bytes, least recently used ones go first; a copy that cannot be made is done without. They last no
//! longer than the server, and never say more than the index does.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use narinfo::{Compression, NarHash};

use super::draft::{Draft, Growing};
use super::pack::{copy, dump};
use super::verify::{Chunks, Error, Expected, Origin, checked};
use super::{Nar, Stored, opened};
use crate::decode;

/// PlainCache that are made at the same time; each takes two cores.
const UNDER_WAY_MAX: usize = 8;
/// How long none is begun after one could not be written: most often the disk is full.
const REST: Duration = Duration::from_secs(60);

/// What a copy is made from.
#[derive(Debug)]
pub enum Source {
    /// The zstd file.
    Packed(Stored),
    /// The store path, while there is no such file.
    Tree(PathBuf),
}

/// The folder of copies; clones share it.
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
    /// Bytes of all of them, once they are complete.
    bytes: u64,
    /// Rises with each use, and each copy that is begun.
    clock: u64,
    /// No copy is begun before.
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    /// What can be read of one that is being made, and when it was begun.
    under_way: Option<(u64, Growing)>,
}

impl Entry {
    fn is_under_way_since(&self, begun: u64) -> bool {
        self.under_way.as_ref().is_some_and(|(number, _)| *number == begun)
    }
}

impl PlainCache {
    /// Uses `dir`, and removes what an earlier run left there: soon, since large files take their time.
    pub(super) fn open(dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let gone = dir.with_extension("gone");
        for path in [dir, &gone] {
            // What is no folder is nothing of ours.
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
                    tracing::warn!(%error, "{} is left, and goes with the next start", gone.display());
                }
            };
            std::thread::Builder::new().name("copies-gone".into()).spawn(remove)?;
        }
        Ok(Self(Arc::new(Shared { dir: dir.to_owned(), bytes_max, state: Mutex::default() })))
    }

    /// The copy of a NAR, complete or on its way; begun where there is none. `None` when none can be had. Blocking.
    pub(super) fn get(&self, nar: Expected, source: Source) -> Option<Nar> {
        let mut state = self.0.state();
        state.clock += 1;
        let now = state.clock;
        if let Some(entry) = state.copies.get_mut(&nar.hash) {
            entry.used = now;
            if let Some((_, growing)) = &entry.under_way {
                return Some(Nar::Growing(growing.clone()));
            }
            match opened(&self.0.file_of(nar.hash)) {
                Ok(Some(stored)) if stored.bytes == nar.bytes => return Some(Nar::Stored(stored)),
                // Somebody has deleted it, or worse.
                _ => state.drop_entry(nar.hash),
            };
        }
        let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
        if rests || !state.has_room(nar.bytes, &self.0) {
            return None;
        }
        // What is made of a verified file was right before; only its end tells whether it still is.
        let trusted = if matches!(source, Source::Packed(_)) { nar.bytes.saturating_sub(1) } else { 0 };
        let begun = Draft::begin(&self.0.dir, trusted);
        let begun = begun.map_err(|error| self.0.failed(&mut state, nar.hash, &Error::Write(error)));
        let (draft, growing) = begun.ok()?;
        state.bytes += nar.bytes;
        let entry = Entry { bytes: nar.bytes, used: now, under_way: Some((now, growing.clone())) };
        state.copies.insert(nar.hash, entry);
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || shared.make(draft, nar, source, now));
        Some(Nar::Growing(growing))
    }

    /// Whether any is just being made.
    pub(super) fn are_made(&self) -> bool {
        self.0.state().copies.values().any(|entry| entry.under_way.is_some())
    }

    /// Removes all that are complete.
    pub(super) fn drop_all(&self) {
        let mut state = self.0.state();
        let complete = state.copies.iter().filter(|(_, entry)| entry.under_way.is_none());
        for nar in complete.map(|(nar, _)| *nar).collect::<Vec<_>>() {
            self.0.remove(&mut state, nar);
        }
    }

    /// Removes the copy of a NAR. Who reads it has it to its end.
    pub(super) fn forget(&self, nar: NarHash) {
        self.0.remove(&mut self.0.state(), nar);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file_of(&self, nar: NarHash) -> PathBuf {
        self.dir.join(format!("{}.nar", nar.to_nixbase32()))
    }

    fn make(&self, draft: Draft, nar: Expected, source: Source, begun: u64) {
        let written = write(&draft, nar, source);
        let mut state = self.state();
        // It may have been forgotten meanwhile, and even begun anew.
        let is_ours = state.copies.get(&nar.hash).is_some_and(|entry| entry.is_under_way_since(begun));
        let kept = match written {
            Ok(()) => {
                draft.is_right();
                if !is_ours {
                    return;
                }
                draft.persist(&self.file_of(nar.hash)).map_err(Error::Write)
            }
            Err(error) => {
                draft.abandon(&error.to_string());
                Err(error)
            }
        };
        match kept {
            Ok(kept) => {
                if let Some(entry) = state.copies.get_mut(&nar.hash) {
                    entry.under_way = None;
                }
                kept.tell();
            }
            Err(error) => {
                if is_ours {
                    state.drop_entry(nar.hash);
                }
                self.failed(&mut state, nar.hash, &error);
            }
        }
    }

    /// Says so, and begins none for a while where it is the folder that cannot be written to.
    fn failed(&self, state: &mut State, nar: NarHash, error: &Error) {
        if matches!(error, Error::Write(_)) {
            state.rests_until = Some(Instant::now() + REST);
        }
        let error = error as &dyn std::error::Error;
        tracing::warn!(%nar, error, "no plain copy of a NAR was made");
    }

    fn remove(&self, state: &mut State, nar: NarHash) {
        if state.drop_entry(nar).is_some_and(|entry| entry.under_way.is_none())
            && let Err(error) = fs::remove_file(self.file_of(nar))
        {
            tracing::warn!(%nar, %error, "a plain copy cannot be removed");
        }
    }
}

impl State {
    /// Makes room for one more copy, if it can be made: by removing those that were not used for the longest time.
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

/// Writes the plain NAR into the draft. Its readers hear only from the caller that it is right.
fn write(draft: &Draft, nar: Expected, source: Source) -> Result<(), Error> {
    let make = |chunks: &mut Chunks| match source {
        Source::Packed(stored) => {
            let mut plain = decode::plain(Compression::Zstd, &*stored.file).map_err(Error::Sent)?;
            copy(&mut plain, chunks, |_| Ok(()))
        }
        Source::Tree(path) => dump(&path, chunks),
    };
    // A stored file was checked when it came.
    checked(nar, Origin::Tree, make, |chunk| (&*draft).write_all(chunk))
}
