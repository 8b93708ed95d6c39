//! Publication: makes the bucket of the NARs a binary cache that clients read without this server. The
//! narinfo of a path is in it only beside its NAR and after the narinfos of all its references, and goes
//! before its NAR does. Nothing waits for publication, and no request fails for it.
//!
//! The bucket itself is the record of what is published: a list of it is compared with the index at the start
//! and once a day, and what changes in between is heard of from the index. Of several servers the leader
//! publishes; each of them withdraws what it removes.

mod metrics;
mod order;
mod queue;
mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use narinfo::{CacheInfo, NarHash, StoreDir, StorePath, StorePathHash};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::index::{self, ChangedPaths, Index};
use crate::key::Keys;
use crate::model::PathRow;
use crate::nar_store::{CacheFiles, NarStore};
use crate::tasks::unfinished;
use metrics::Metrics;
use order::{MissingReference, Order};

/// Paths that are looked at, and perhaps published, at the same time.
const BATCH: usize = 16;
/// Rest after each batch: some 300 narinfos a second at most.
const REST: Duration = Duration::from_millis(50);
/// Interval at which it is looked whether this server leads, where nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time after which a path is looked at again whose NAR is not in the bucket yet.
const POSTPONED_FOR: Duration = Duration::from_secs(30);
/// Interval at which the bucket is compared with the index.
const RECONCILE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Shortest and longest pause after a failure.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pause after a NAR of an upstream could not be stored.
const PAUSE_AFTER_FETCH: Duration = Duration::from_secs(10);
/// Referrers of a path, at most.
const REFERRERS_MAX: u32 = i32::MAX as u32;

/// Reasons why nothing could be published or withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed.
    #[error("the index cannot be read")]
    Index(#[from] index::Error),
    /// The bucket failed.
    #[error("the narinfos in the bucket cannot be read or written")]
    Bucket(#[source] io::Error),
}

/// The bucket was not compared with the index yet.
#[derive(Debug, thiserror::Error)]
#[error(
    "narinfos in the bucket whose paths are gone are not withdrawn yet, so their NARs stay: try again later, and look for \
     warnings about narinfos in the log"
)]
pub struct NotCompared;

impl Error {
    /// True where a later try may succeed, for all that is known.
    fn is_transient(&self) -> bool {
        match self {
            Self::Index(error) => error.is_transient(),
            Self::Bucket(_) => true,
        }
    }
}

/// Publication of narinfos in the bucket of the NARs; clones share it. By default there is none.
#[derive(Clone, Default)]
pub struct Publication(Option<Arc<Inner>>);

struct Inner {
    index: Index,
    nars: NarStore,
    files: Arc<dyn CacheFiles>,
    keys: Arc<Keys>,
    info: CacheInfo,
    metrics: Metrics,
    /// True where the bucket is to be compared with the index before its time.
    is_doubted: AtomicBool,
    /// Locked while narinfos are put, and while one is withdrawn and its NAR goes: none comes back between.
    order: Mutex<Order>,
}

/// A permit to remove a NAR, whose narinfos are withdrawn: none is published until it is dropped.
#[must_use]
pub struct Withdrawn<'a> {
    _order: Option<MutexGuard<'a, Order>>,
}

/// Work that is due for a path.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Put its narinfo, which has this text, beside this NAR.
    Put(NarHash, String),
    /// Withdraw its narinfo.
    Withdraw,
    /// Wait for this reference of it.
    Wait(StorePathHash),
    /// Nothing: the path is neither to be published nor published.
    None,
}

impl Publication {
    /// Publication in the bucket of this store, if its settings say so; nothing runs yet.
    #[must_use]
    pub fn new(index: Index, nars: NarStore, keys: Arc<Keys>, store_dir: StoreDir, priority: u32) -> Self {
        let Some(files) = nars.cache_files() else { return Self::default() };
        // Clients that have both addresses ask the bucket first.
        let info = CacheInfo { store_dir, want_mass_query: true, priority: priority.saturating_sub(1) };
        let (metrics, is_doubted, order) = (Metrics::new(), AtomicBool::default(), Mutex::default());
        Self(Some(Arc::new(Inner { index, nars, files, keys, info, metrics, is_doubted, order })))
    }

    /// Publishes for as long as the server runs and leads. What published paths refer to and only an upstream
    /// has is brought into the bucket by `store`, which gives false where that is to be tried again.
    pub async fn run<Stored: Future<Output = bool>>(self, store: impl Fn(PathRow) -> Stored) {
        match self.0 {
            Some(inner) => {
                tokio::join!(Arc::clone(&inner).run(), inner.store_wanted(store));
            }
            None => std::future::pending().await,
        }
    }

    /// Deletes the narinfos of paths that are not served any more, in this order: what refers to others
    /// stands before them.
    ///
    /// # Errors
    /// The bucket fails; then some are still there, and no NAR may go yet.
    pub async fn withdraw(&self, hashes: &[StorePathHash]) -> Result<(), Error> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let mut order = inner.order.lock().await;
        for hash in hashes {
            inner.delete(&mut order, *hash).await?;
        }
        Ok(())
    }

    /// Deletes the narinfos of all paths with a NAR that is to be removed.
    ///
    /// # Errors
    /// The index or the bucket fails; then the NAR may not go yet.
    pub async fn withdraw_nar(&self, nar: NarHash) -> Result<Withdrawn<'_>, Error> {
        let Some(inner) = &self.0 else { return Ok(Withdrawn { _order: None }) };
        let mut order = inner.order.lock().await;
        let paths = inner.index.paths_with_nar(nar).await?;
        let mut hashes: Vec<StorePathHash> = paths.iter().map(StorePath::hash).collect();
        // An interrupted eviction may have left the narinfo of the last path that had it.
        if let Some(former) = inner.index.former_path(nar).await?
            && inner.index.find(former).await?.is_none()
        {
            hashes.push(former);
        }
        for hash in hashes {
            order.note_gone_first(hash);
            inner.delete(&mut order, hash).await?;
        }
        Ok(Withdrawn { _order: Some(order) })
    }

    /// Waits until it is known what the bucket has, where this server publishes. Before, it may have narinfos
    /// of paths that nobody remembers, and the NARs of these must not go.
    ///
    /// # Errors
    /// That takes longer than `limit`.
    pub async fn wait_until_clear(&self, limit: Duration) -> Result<(), NotCompared> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let since = Instant::now();
        while inner.index.leads() && !inner.order.lock().await.is_clear() {
            if since.elapsed() >= limit {
                return Err(NotCompared);
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Has the bucket compared with the index soon, where this server publishes.
    pub fn compare_soon(&self) {
        self.0.iter().for_each(|inner| inner.is_doubted.store(true, Ordering::Relaxed));
    }

    /// Metrics of publication: the OpenMetrics text format, without its end.
    pub fn write_metrics(&self, out: &mut String) {
        self.0.iter().for_each(|inner| inner.metrics.write(out));
    }
}

impl Inner {
    async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            while !self.index.leads() {
                // The next leader finds what there is to do by itself.
                let _ = self.index.take_changed();
                *self.order.lock().await = Order::default();
                self.metrics.waiting(0);
                sleep(LOOK_EVERY).await;
            }
            match self.reconcile().await {
                Ok(()) => self.follow(&mut backoff).await,
                Err(error) => self.failed(&error, &mut backoff).await,
            }
        }
    }

    /// Has what paths wait for stored, one NAR at a time.
    async fn store_wanted<Stored: Future<Output = bool>>(&self, store: impl Fn(PathRow) -> Stored) {
        loop {
            let wanted = self.order.lock().await.take_wanted();
            let Some(hash) = wanted else {
                sleep(LOOK_EVERY).await;
                continue;
            };
            let is_done = match self.only_upstream(hash).await {
                Ok(Some(row)) => store(row).await,
                Ok(None) => true,
                Err(_) => false,
            };
            if !is_done {
                self.order.lock().await.want_again(hash);
                sleep(PAUSE_AFTER_FETCH).await;
            }
        }
    }

    /// A served path, where only upstreams have its NAR.
    async fn only_upstream(&self, hash: StorePathHash) -> Result<Option<PathRow>, index::Error> {
        let Some(hit) = self.index.find(hash).await?.filter(|hit| hit.packed.is_none()) else {
            return Ok(None);
        };
        let upstreams = self.index.upstreams_with(hit.row.info.nar_hash).await?;
        Ok((!upstreams.is_empty()).then_some(hit.row))
    }

    /// Publishes what changes, until the bucket is to be compared with the index again.
    async fn follow(self: &Arc<Self>, backoff: &mut Backoff) {
        let (until, mut resume_at) = (Instant::now() + RECONCILE_EVERY, Instant::now() + POSTPONED_FOR);
        while self.index.leads() && Instant::now() < until && !self.is_doubted.swap(false, Ordering::Relaxed)
        {
            let ChangedPaths::Listed(changed) = self.index.take_changed() else { return };
            {
                let mut order = self.order.lock().await;
                changed.into_iter().for_each(|hash| order.push_changed(hash));
                if Instant::now() >= resume_at {
                    order.resume();
                    resume_at = Instant::now() + POSTPONED_FOR;
                }
            }
            match self.publish_some().await {
                Ok(true) => {
                    backoff.reset();
                    sleep(REST).await;
                }
                Ok(false) => tokio::select! {
                    () = self.index.changed() => {}
                    () = sleep(LOOK_EVERY) => {}
                },
                Err(error) => self.failed(&error, backoff).await,
            }
        }
    }

    /// Does what is due for the next paths. False where there were none.
    async fn publish_some(self: &Arc<Self>) -> Result<bool, Error> {
        let mut order = self.order.lock().await;
        let batch = order.take(BATCH);
        let done = self.publish_batch(&mut order, &batch).await;
        self.metrics.waiting(order.waiting());
        done.map(|()| !batch.is_empty())
    }

    /// Does what is due for these paths. What fails is looked at again.
    async fn publish_batch(
        self: &Arc<Self>,
        order: &mut Order,
        batch: &[StorePathHash],
    ) -> Result<(), Error> {
        let (mut puts, mut withdraws, mut failure) = (Vec::new(), false, None);
        for (place, &hash) in batch.iter().enumerate() {
            let done = match self.due(order, hash).await {
                Ok(Due::Withdraw) => {
                    withdraws = true;
                    self.withdraw_with_referrers(order, hash).await
                }
                Ok(Due::Put(nar, text)) => {
                    puts.push((hash, nar, text));
                    Ok(())
                }
                Ok(Due::Wait(reference)) => {
                    order.wait(hash, reference);
                    Ok(())
                }
                Ok(Due::None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                match error.is_transient() {
                    // Narinfos go in this order, also of paths whose references the index has forgotten.
                    true => order.put_back(&batch[place..]),
                    // The others first: this one may fail for ever.
                    false => batch[place + 1..].iter().chain([&hash]).for_each(|hash| order.push(*hash)),
                }
                failure = Some(error);
                break;
            }
        }
        // One of them may refer to what was withdrawn.
        if withdraws || matches!(failure, Some(Error::Bucket(_))) {
            puts.iter().for_each(|(hash, ..)| order.push(*hash));
            return failure.map_or(Ok(()), Err);
        }
        let put = self.put_all(order, puts).await;
        failure.map_or(put, Err)
    }

    /// Puts narinfos beside their NARs, all at the same time. All requests have ended afterwards.
    async fn put_all(
        self: &Arc<Self>,
        order: &mut Order,
        narinfos: Vec<(StorePathHash, NarHash, String)>,
    ) -> Result<(), Error> {
        let (mut puts, mut failure) = (JoinSet::new(), None);
        for (hash, nar, text) in narinfos {
            let (inner, was_there) = (Arc::clone(self), order.may_be_named(hash));
            order.note_attempt(hash);
            puts.spawn(async move { (hash, was_there, inner.put(hash, nar, text).await) });
        }
        let mut without_nar = Vec::new();
        while let Some(put) = puts.join_next().await {
            match put {
                Err(error) => unfinished(error).await,
                Ok((hash, _, Ok(true))) => {
                    self.metrics.published.inc();
                    order.note_published(hash);
                }
                Ok((hash, was_there, Ok(false))) => without_nar.push((hash, was_there)),
                Ok((hash, _, Err(error))) => {
                    order.push(hash);
                    failure = Some(Error::Bucket(error));
                }
            }
        }
        for (hash, was_there) in without_nar {
            match was_there {
                true => self.withdraw_with_referrers(order, hash).await?,
                false => order.note_absent(hash),
            }
            order.postpone(hash);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Work that is due for a path as the index has it now.
    async fn due(&self, order: &Order, hash: StorePathHash) -> Result<Due, Error> {
        let hit = self.index.find(hash).await?;
        let Some((hit, packed)) = hit.and_then(|hit| hit.packed.map(|packed| (hit, packed))) else {
            return Ok(if order.may_be_named(hash) { Due::Withdraw } else { Due::None });
        };
        Ok(match order.missing_reference(&hit.row.info) {
            MissingReference::Absent(_) if order.may_be_named(hash) => Due::Withdraw,
            MissingReference::Uncertain(_) if order.has_gone_first(hash) => Due::Withdraw,
            MissingReference::Absent(reference) | MissingReference::Uncertain(reference) => {
                Due::Wait(reference)
            }
            MissingReference::None => {
                Due::Put(packed.nar_hash, self.keys.narinfo(&hit, &self.info.store_dir))
            }
        })
    }

    /// Puts a narinfo beside its NAR. False where that is not in the bucket.
    async fn put(&self, hash: StorePathHash, nar: NarHash, text: String) -> io::Result<bool> {
        let files = Arc::clone(&self.files);
        let put = move |_: &NarStore| {
            let has_nar = files.has_nar(nar)?;
            if has_nar {
                files.put_file(&file_name(hash), text)?;
            }
            Ok(has_nar)
        };
        self.nars.run(put).await
    }

    /// Withdraws a narinfo after those of all paths that refer to it.
    async fn withdraw_with_referrers(&self, order: &mut Order, first: StorePathHash) -> Result<(), Error> {
        let (mut stack, mut seen) = (vec![(first, false)], HashSet::new());
        while let Some((hash, is_last)) = stack.pop() {
            if is_last {
                self.delete(order, hash).await?;
            } else if seen.insert(hash) {
                stack.push((hash, true));
                let referrers = self.index.referrers(hash, REFERRERS_MAX).await?;
                let published = referrers.iter().map(StorePath::hash).filter(|hash| order.may_have(*hash));
                stack.extend(published.map(|hash| (hash, false)));
            }
        }
        order.note_unnamed(first);
        Ok(())
    }

    async fn delete(&self, order: &mut Order, hash: StorePathHash) -> Result<(), Error> {
        if !order.may_have(hash) {
            return Ok(());
        }
        order.note_attempt(hash);
        let files = Arc::clone(&self.files);
        if let Err(error) = self.nars.run(move |_| files.delete_file(&file_name(hash))).await {
            // It may be gone, and not be meant to stay so.
            order.push(hash);
            return Err(Error::Bucket(error));
        }
        self.metrics.withdrawn.inc();
        order.note_withdrawn(hash);
        Ok(())
    }

    async fn failed(&self, error: &Error, backoff: &mut Backoff) {
        self.metrics.failures.inc();
        let pause = backoff.pause();
        tracing::warn!(
            error = error as &dyn std::error::Error,
            ?pause,
            "cannot publish narinfos in the bucket: it is tried again, and clients get what is missing there from this \
             server; look whether the bucket answers, and whether the credentials may put, delete and list"
        );
        sleep(pause).await;
    }
}

/// Name of the file of a narinfo.
fn file_name(hash: StorePathHash) -> String {
    format!("{hash}.narinfo")
}
