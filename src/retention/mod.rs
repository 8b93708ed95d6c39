//! Retention: keeps the NAR store within its limit, records pins, and scrubs stored files. Evicts the least
//! recently used paths once the limit is exceeded, never a path that was used lately or is pinned, nor its
//! references. Must never remove a file that still has a row.

mod check;
mod collect;
mod eviction;
#[cfg(test)]
mod eviction_tests;
mod metrics;
mod pins;
mod policy;
mod reserve;
mod scrub;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use narinfo::{NarHash, StorePathHash};
use tokio::time::{Instant, MissedTickBehavior};

use crate::backoff::Backoff;
use crate::index::{self, Index};
use crate::packer::{self, Packer};
use crate::publish::{NotCompared, Publication};
use crate::tasks::{Tasks, blocking};
pub use check::Check;
pub use eviction::{Eviction, Gone};
use metrics::Metrics;
pub use pins::{Pinned, Pinning};
pub use policy::{Bounds, MinFree};
pub use reserve::Reserve;
pub use usage::{ClosureUsage, SetUsage, Usage};

/// Time within which packed NARs are looked at together.
const GATHERED_FOR: Duration = Duration::from_secs(1);
/// Interval, at least and at most, at which an eviction that could not reach the limit is tried again; in
/// between, once in the time for which what is used stays.
const ROUND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Uses are written down once in that time, too, and at least this often: each with all that the path refers
/// to, which may be much. Who evicts writes them first.
const WRITTEN_EVERY: Duration = Duration::from_secs(600);
/// Time by which a use may be recorded earlier than it was.
const RECORDED_WITHIN: Duration = Duration::from_millis(500);
/// Shortest and longest pause after a failure.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Time within which the narinfos in a bucket are compared with the index, before files without a path go.
const COMPARED_WITHIN: Duration = Duration::from_secs(600);
/// Lines that wait to be read.
const LINES_MAX: usize = 16;

/// Settings of retention.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Bytes of all files in the NAR store; `None` is no limit.
    pub max_bytes: Option<u64>,
    /// Room that stays free on the file system of the NAR store.
    pub min_free: MinFree,
    /// Time after its last use for which a path is not evicted: a client that has its narinfo gets it, and
    /// all that it refers to.
    pub keep_used: Duration,
    /// The same for pushed derivations.
    pub keep_pushed: Duration,
    /// Time in which all stored NARs are read and verified once; `None` is never.
    pub scrub_every: Option<Duration>,
}

/// Why nothing could be evicted or collected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed.
    #[error("the index cannot be read or written")]
    Index(#[from] index::Error),
    /// A file could not be looked at or removed.
    #[error("the NAR store cannot be tidied")]
    Files(#[from] packer::Error),
    /// NARs may still have published narinfos that nobody knows of.
    #[error("files without a path are not removed")]
    Published(#[from] NotCompared),
}

/// Handle of retention; clones share it.
#[derive(Clone)]
pub struct Retention(Arc<Inner>);

struct Inner {
    index: Index,
    packer: Packer,
    publication: Publication,
    settings: Settings,
    metrics: Metrics,
    reserve: Reserve,
    tasks: Tasks,
    /// True where nothing could be stored when that was last looked at.
    full: AtomicBool,
    /// True where the store is above its limit and nothing in it can be evicted now.
    held_back: AtomicBool,
}

impl Retention {
    /// Puts the parts together; nothing runs yet.
    #[must_use]
    pub fn new(
        index: Index,
        packer: Packer,
        publication: Publication,
        reserve: Reserve,
        settings: Settings,
        tasks: Tasks,
    ) -> Self {
        let metrics = Metrics::new(settings.max_bytes);
        let (full, held_back) = Default::default();
        Self(Arc::new(Inner {
            index,
            packer,
            publication,
            settings,
            metrics,
            reserve,
            tasks,
            full,
            held_back,
        }))
    }

    /// Time for which pushed derivations are retained after their last use.
    #[must_use]
    pub fn keep_pushed(&self) -> Duration {
        self.0.settings.keep_pushed
    }

    /// Writes uses down and keeps the NAR store within its limit, for as long as the server runs.
    pub async fn run(self) {
        let mut rounds = tokio::time::interval(self.0.settings.keep_used.clamp(ROUND.0, ROUND.1));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut written, mut backoff) = (Instant::now(), Backoff::new(PAUSE_MIN, PAUSE_MAX));
        loop {
            let kept = tokio::select! {
                () = self.0.packer.stored() => {
                    tokio::time::sleep(GATHERED_FOR).await;
                    // What could not go a moment ago cannot go yet.
                    if self.0.held_back.load(Ordering::Relaxed) { Ok(()) } else { self.keep_within_limit().await }
                }
                () = self.0.index.write_refused() => {
                    tokio::time::sleep(GATHERED_FOR).await;
                    self.keep_within_limit().await
                }
                _ = rounds.tick() => {
                    let writes = written.elapsed() + ROUND.0 >= self.0.settings.keep_used.min(WRITTEN_EVERY);
                    if writes {
                        written = Instant::now();
                    }
                    self.round(writes).await
                }
            };
            match kept {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    let pause = backoff.pause();
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        ?pause,
                        "the NAR store cannot be kept within its limit; it is tried again"
                    );
                    drop(error);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn round(&self, writes: bool) -> Result<(), Error> {
        let written = match writes {
            true => self.0.index.record_uses(SystemTime::now()).await,
            false => Ok(()),
        };
        // Also where nothing can be written: that may be for lack of the room that is made here.
        self.keep_within_limit().await?;
        Ok(written?)
    }

    /// Of several servers with one index, the leader alone evicts.
    async fn keep_within_limit(&self) -> Result<(), Error> {
        let mut limit = self.limit().await?;
        if limit.by_room.is_some() {
            // What is not needed to serve goes first.
            self.0.packer.drop_spare_files().await;
            limit = self.limit().await?;
        }
        let Limit { stored, max_bytes, .. } = limit;
        let above = match (max_bytes, self.0.index.for_leader()) {
            (Some(max_bytes), Some(index)) if stored > max_bytes => {
                self.evict(index, max_bytes).await?.saturating_sub(max_bytes)
            }
            _ => 0,
        };
        self.0.metrics.above_limit(above);
        if !self.0.held_back.swap(above > 0, Ordering::Relaxed) && above > 0 {
            tracing::warn!(
                max_bytes,
                above,
                by_room = limit.by_room.is_some(),
                "the NAR store is above its limit: all in it is pinned, was used lately, or belongs to the closure of such"
            );
        }
        self.tend_reserve().await;
        self.tell_whether_full().await;
        Ok(())
    }

    /// Once, and once more when it has ended.
    async fn tell_whether_full(&self) {
        match self.0.packer.check_writable().await {
            Ok(()) if self.0.full.swap(false, Ordering::Relaxed) => {
                tracing::info!("NAR store writable again");
            }
            Err(error) if !self.0.full.swap(true, Ordering::Relaxed) => {
                tracing::error!(%error, "cannot store NARs; free some room, or run `ondine gc --max-bytes BYTES`");
            }
            _ => {}
        }
    }

    /// The limit, by the settings and by the room that there is.
    async fn limit(&self) -> Result<Limit, Error> {
        let stored = self.measure().await?;
        let (room, min_free) = (self.0.packer.room()?, self.0.settings.min_free);
        self.0.metrics.room(&room, min_free.bytes(&room));
        let by_room = min_free.limit(stored, &room);
        // What is stored elsewhere takes no room here but for its copies, which go first.
        let evicts = by_room.filter(|_| !self.0.packer.stores_elsewhere());
        let max_bytes = [self.0.settings.max_bytes, evicts].into_iter().flatten().min();
        Ok(Limit { stored, by_room, max_bytes })
    }

    /// On a full disk, gives up what is not needed to serve, and the reserve last: else the index could not
    /// take out of itself what is to go.
    async fn make_room(&self) {
        if self.0.packer.room().is_ok_and(|room| room.check().is_err()) {
            self.0.packer.drop_spare_files().await;
        }
        let reserve = self.0.reserve.clone();
        match blocking(move || reserve.release_if_needed()).await {
            Ok(true) => tracing::warn!(
                "disk full; released the reserve, so that the index can be written. Free some room, or run `ondine gc --max-bytes BYTES`"
            ),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot release the reserve of disk space; free some room by hand")
            }
        }
    }

    /// Makes the reserve where there is none, once there is room.
    async fn tend_reserve(&self) {
        let reserve = self.0.reserve.clone();
        if let Err(error) = blocking(move || reserve.make()).await {
            tracing::warn!(%error, "cannot make the reserve for a full disk; it is tried again");
        }
    }

    /// Bytes in the NAR store.
    async fn measure(&self) -> Result<u64, Error> {
        let bytes = self.0.index.nar_bytes().await?;
        self.0.metrics.bytes(bytes);
        self.0.metrics.pins(self.0.index.pin_count().await?);
        Ok(bytes)
    }

    /// Evicts for the leader, whose index this is. Gives the bytes of what stays; 0 where another server has
    /// become the leader, which goes on with it.
    async fn evict(&self, index: Index, max_bytes: u64) -> Result<u64, Error> {
        self.make_room().await;
        let mut eviction = Eviction::new(index, self.bounds(Some(max_bytes)), false);
        let (mut nars, mut bytes) = (0, 0);
        loop {
            let gone = match eviction.next().await {
                Ok(Some(gone)) => gone,
                Ok(None) => break,
                Err(index::Error::Superseded) => return Ok(0),
                Err(error) => return Err(error.into()),
            };
            self.remove_files(&eviction.take_evicted(), &gone).await?;
            (nars, bytes) = (nars + gone.len(), bytes + gone.iter().map(|gone| gone.bytes).sum::<u64>());
        }
        let kept_bytes = eviction.kept_bytes().await?;
        if nars > 0 {
            tracing::info!(nars, bytes, kept_bytes, "evicted from the NAR store");
        }
        self.0.metrics.bytes(kept_bytes);
        Ok(kept_bytes)
    }

    /// Removes the narinfos of evicted paths, where they are published, and then the files of their NARs.
    async fn remove_files(&self, evicted: &[StorePathHash], gone: &[Gone]) -> Result<(), Error> {
        self.0.publication.withdraw(evicted).await.map_err(packer::Error::from)?;
        for gone in gone {
            self.0.packer.discard(gone.nar).await?;
        }
        self.0.metrics.evicted(gone);
        Ok(())
    }

    /// NARs without a path, which nothing in the bucket names either.
    async fn orphans(&self) -> Result<Vec<NarHash>, Error> {
        self.0.publication.wait_until_clear(COMPARED_WITHIN).await?;
        Ok(self.0.packer.orphans().await?)
    }

    fn bounds(&self, max_bytes: Option<u64>) -> Bounds {
        let ago = |time| SystemTime::now().checked_sub(time).unwrap_or(SystemTime::UNIX_EPOCH);
        let Settings { keep_used, keep_pushed, .. } = self.0.settings;
        Bounds {
            max_bytes,
            used_since: ago(keep_used + RECORDED_WITHIN),
            pushed_since: ago(keep_pushed.saturating_add(RECORDED_WITHIN)),
        }
    }

    /// Metrics of retention: the OpenMetrics text format, without its end.
    pub fn write_metrics(&self, out: &mut String) {
        self.0.metrics.write(out);
    }
}

/// The limit of the NAR store.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// Bytes that there are.
    stored: u64,
    /// Bytes that may stay for the sake of room; `None` where there is enough.
    by_room: Option<u64>,
    /// The lower one of that and of the setting.
    max_bytes: Option<u64>,
}

/// So many of something.
struct Counted(usize, &'static str);

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

/// Bytes as people read them.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let mut size = (self.0 as f64, "bytes");
        for unit in UNITS {
            if size.0 >= 1024.0 {
                size = (size.0 / 1024.0, unit);
            }
        }
        let decimals = usize::from(size.1 != "bytes");
        write!(f, "{:.decimals$} {}", size.0, size.1)
    }
}
