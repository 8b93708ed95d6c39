//! One eviction: what stands first goes, a few paths at a time, until the rest fits. Between two of these
//! everything else goes on. Must never take away what something that stays refers to.

use std::time::SystemTime;

use narinfo::{NarHash, StorePath, StorePathHash};

use super::policy::Bounds;
use crate::index::{Error, Index};
use crate::model::{Cursor, Evicted, EvictionBounds};

/// A NAR that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The last path that had it; `None` where none was served.
    pub path: Option<StorePath>,
    /// The NAR.
    pub nar: NarHash,
    /// Bytes of its file.
    pub bytes: u64,
}

/// An eviction under way.
pub struct Eviction {
    index: Index,
    bounds: Bounds,
    begun: SystemTime,
    /// True for a preview, which evicts nothing.
    dry_run: bool,
    stage: Stage,
    /// Paths that were evicted and not taken yet.
    evicted: Vec<StorePathHash>,
    /// Bytes of what would have gone.
    would_be_freed: u64,
}

#[derive(Clone, Debug)]
enum Stage {
    /// NARs that no path has, of which those up to here were looked at. They go without need.
    Unused(Option<NarHash>),
    /// Paths, until no more than so many bytes are left; those up to here would have gone.
    Paths {
        room: u64,
        after: Option<Cursor>,
    },
    Over,
}

impl Eviction {
    /// Nothing goes yet.
    #[must_use]
    pub fn new(index: Index, bounds: Bounds, dry_run: bool) -> Self {
        let begun = SystemTime::now();
        let (stage, evicted) = (Stage::Unused(None), Vec::new());
        Self { index, bounds, begun, dry_run, stage, evicted, would_be_freed: 0 }
    }

    /// The NARs that were evicted next, the least used first; or would be, in a dry run. `None` at the end.
    /// The files are there still: they are no longer anybody's.
    ///
    /// # Errors
    /// The index fails. Candidates that were reported before are evicted.
    pub async fn next(&mut self) -> Result<Option<Vec<Gone>>, Error> {
        loop {
            let gone = match self.stage.clone() {
                Stage::Unused(after) => self.unused(after).await?,
                Stage::Paths { room, after } => self.paths(room, after).await?,
                Stage::Over => return Ok(None),
            };
            if !gone.is_empty() {
                return Ok(Some(gone));
            }
        }
    }

    /// Takes the paths that were evicted since this was called last, also those that share a NAR with one
    /// that stays: what refers to others stands before them.
    pub fn take_evicted(&mut self) -> Vec<StorePathHash> {
        std::mem::take(&mut self.evicted)
    }

    /// Bytes of the files that stay, as far as it is now.
    ///
    /// # Errors
    /// The index fails.
    pub async fn kept_bytes(&self) -> Result<u64, Error> {
        Ok(self.index.nar_bytes().await?.saturating_sub(self.would_be_freed))
    }

    async fn unused(&mut self, after: Option<NarHash>) -> Result<Vec<Gone>, Error> {
        let unused = self.index.unused_nars(after).await?;
        match unused.last() {
            Some(last) => self.stage = Stage::Unused(Some(last.nar_hash)),
            None => {
                let room = self.bounds.room(self.kept_bytes().await?);
                self.stage = room.map_or(Stage::Over, |room| Stage::Paths { room, after: None });
            }
        }
        if !self.dry_run && !unused.is_empty() {
            self.index.forget_unused_nars(unused.iter().map(|row| row.nar_hash).collect()).await?;
        }
        let gone = unused.into_iter().map(|row| Gone { path: None, nar: row.nar_hash, bytes: row.file_size });
        Ok(self.counted(gone.collect()))
    }

    async fn paths(&mut self, room: u64, after: Option<Cursor>) -> Result<Vec<Gone>, Error> {
        let Bounds { used_since, pushed_since, .. } = self.bounds;
        let bounds = EvictionBounds { target_bytes: room + self.would_be_freed, used_since, pushed_since };
        // A clock that is set back must not let what is held stand first for ever.
        let now = SystemTime::now().max(self.begun);
        let evicted = match self.dry_run {
            true => self.index.preview_eviction(now, after, bounds).await?,
            false => self.index.evict(now, bounds).await?,
        };
        let Evicted::Paths(evicted) = evicted else { return Ok(Vec::new()) };
        self.stage = match evicted.last() {
            Some(last) => Stage::Paths { room, after: Some(last.cursor) },
            None => Stage::Over,
        };
        if !self.dry_run {
            self.evicted.extend(evicted.iter().map(|candidate| candidate.path.hash()));
        }
        let gone = evicted.into_iter().filter_map(|candidate| {
            Some(Gone { bytes: candidate.file_bytes?, path: Some(candidate.path), nar: candidate.nar })
        });
        Ok(self.counted(gone.collect()))
    }

    fn counted(&mut self, gone: Vec<Gone>) -> Vec<Gone> {
        if self.dry_run {
            self.would_be_freed += gone.iter().map(|gone| gone.bytes).sum::<u64>();
        }
        gone
    }
}
