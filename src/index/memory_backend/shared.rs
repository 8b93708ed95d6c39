//! Way of one server to the [`Database`] in memory that it shares with others: every call goes over a link,
//! on which it may come late, be lost before or after it had its effect, or be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use narinfo::derivation::InputHash;
use narinfo::{DrvOutput, NarHash, Realisation, Signature, StorePath, StorePathHash};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::cluster::Database;
use crate::index::backend::{
    ASK_EVERY, Backend, BackendFuture, Closures, Cluster, Comparisons, DemandStore, FailureStore, Follower,
    Generations, History, Nars, PackageSets, Paths, Pins, Programs, Pushes, QueueLog, RealisationStore,
    Recovered, RecoveryStore, RetentionStore, Tokens, Unfit, Upkeep, UpstreamNars, WRITE_AGAIN_FOR,
};
use crate::index::{AccessLog, Error};
use crate::model::{
    AttributeName, AttributeRow, Attributed, Comparison, Counts, Cursor, DemandRow, DurationRow, EndingRow,
    Evicted, EvictionBounds, Failure, FailureClass, GenerationSize, Hit, HourRow, Maker, NarRow,
    NewGeneration, NewNar, NewToken, NodeId, OutputRow, PathRow, PinRow, ProgramOwner, PushedDerivation,
    QueueNews, QueueOutcome, RealisationOutcome, RequestRow, Search, SetRow, Swapped, Term, TokenRow,
    UploadOutcome, UpstreamNar, VersionRow,
};

/// Pause between two tries of a write.
const PAUSE: Duration = Duration::from_millis(500);

/// A message that was lost, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Cut(pub(crate) &'static str);

/// A message under way.
pub(crate) type Carried = Pin<Box<dyn Future<Output = Result<(), Cut>> + Send>>;

/// Link of one server to the database.
pub(crate) trait Link: Send + Sync {
    /// Carries one message there or back. One that is lost ends with an error once that is noticed.
    fn carry(&self) -> Carried;

    /// True where messages come without any delay now.
    fn is_instant(&self) -> bool;
}

/// A link of no length.
pub(crate) struct Direct;

impl Link for Direct {
    fn carry(&self) -> Carried {
        Box::pin(std::future::ready(Ok(())))
    }

    fn is_instant(&self) -> bool {
        true
    }
}

/// The index of one server over the database that it shares; clones share the link.
#[derive(Clone)]
pub(crate) struct SharedMemory {
    database: Arc<Database>,
    link: Arc<dyn Link>,
    /// Notified when others have changed the queue.
    queue: Arc<Notify>,
    fence: Option<Term>,
}

impl SharedMemory {
    pub(crate) fn new(database: Arc<Database>, link: Arc<dyn Link>) -> Self {
        let queue = Arc::new(Notify::new());
        database.listen(Arc::downgrade(&queue));
        Self { database, link, queue, fence: None }
    }

    fn read<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        self.call(effect, Duration::ZERO)
    }

    /// Has the database do something once. A message that is lost is sent again within this time; what is
    /// under way goes on when whoever asked does not wait any more.
    fn call<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
        again_for: Duration,
    ) -> BackendFuture<'_, T> {
        let (database, link) = (Arc::clone(&self.database), Arc::clone(&self.link));
        Box::pin(async move {
            if link.is_instant() {
                return effect(&database);
            }
            let (sender, answer) = oneshot::channel();
            tokio::spawn(async move {
                let until = Instant::now() + again_for;
                let asked = async {
                    carry(&*link, until).await?;
                    let answer = effect(&database);
                    carry(&*link, until).await?;
                    answer
                };
                // Whoever asked may be gone.
                let _ = sender.send(asked.await);
            });
            answer.await.unwrap_or(Err(unavailable(Cut("the call was given up"))))
        })
    }

    fn write<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        self.own(move |database, _| effect(database))
    }

    /// A write that the fence is a part of.
    fn own<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&Database, Option<&Term>) -> Result<T, Error> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        let fence = self.fence.clone();
        let effect = move |database: &Database| {
            database.check(fence.as_ref())?;
            effect(database, fence.as_ref())
        };
        self.call(effect, WRITE_AGAIN_FOR)
    }
}

/// Carries a message, also in several tries.
async fn carry(link: &dyn Link, until: Instant) -> Result<(), Error> {
    loop {
        match link.carry().await {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() + PAUSE < until => sleep(PAUSE).await,
            Err(cut) => return Err(unavailable(cut)),
        }
    }
}

fn unavailable(cut: Cut) -> Error {
    Error::Unavailable(Box::new(cut))
}

/// The answer of a backend that has it at once.
pub(super) fn at_once<T>(mut answer: BackendFuture<'_, T>) -> Result<T, Error> {
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => Err(unavailable(Cut("memory has an answer at once"))),
    }
}

macro_rules! over_the_link {
    (@ own $name:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        fn $name(&self, $($argument: $type),*) -> BackendFuture<'_, $answer> {
            self.own(move |database, fence| database.$name(fence, $($argument),*))
        }
    };
    (@ $kind:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        fn $name(&self, $($argument: $type),*) -> BackendFuture<'_, $answer> {
            self.$kind(move |database| at_once(database.rows.$name($($argument),*)))
        }
    };
    ($($room:ident {
        $($kind:ident $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*
    })*) => {$(
        impl $room for SharedMemory {
            $(over_the_link!(@ $kind $name($($argument: $type),*) -> $answer);)*
        }
    )*};
}

over_the_link! {
    Paths {
        read find(hash: StorePathHash) -> Option<Hit>;
        read served(hashes: Vec<StorePathHash>) -> BTreeMap<StorePathHash, StorePath>;
        own publish(rows: Vec<PathRow>) -> bool;
        write publish_from_upstream(rows: Vec<(PathRow, UpstreamNar)>) -> bool;
        write forget_paths(nar: NarHash) -> ();
        read paths_after(after: Option<StorePathHash>) -> Vec<PathRow>;
        write set_signatures(paths: Vec<(StorePathHash, Vec<Signature>)>) -> ();
        write add_signatures(new: Vec<(StorePathHash, NarHash, Vec<Signature>)>) -> usize;
        read counts() -> Counts;
    }
    Nars {
        read path_with_nar(nar: NarHash) -> Option<PathRow>;
        read nar(nar: NarHash) -> Option<(PathRow, Option<NarRow>)>;
        read paths_with_nar(nar: NarHash) -> Vec<StorePath>;
        read packed(nar: NarHash) -> Option<NarRow>;
        read not_packed(nars: Vec<NarHash>) -> Vec<NarHash>;
        read unpacked() -> Vec<PathRow>;
        read nars(after: Option<NarHash>) -> Vec<NarRow>;
        own record_packed(nar: NewNar) -> ();
        write forget_packed(nar: NarHash) -> ();
    }
    UpstreamNars {
        read upstreams_with(nar: NarHash) -> Vec<UpstreamNar>;
        write forget_upstream_nar(nar: NarHash, upstream: String) -> ();
        write sync_upstreams(upstreams: BTreeMap<String, bool>) -> ();
    }
    RealisationStore {
        read realisation(id: DrvOutput) -> Option<Realisation>;
        write publish_realisations(realisations: Vec<Realisation>) -> RealisationOutcome;
    }
    Comparisons {
        read uncompared(rows_max: usize) -> Vec<PathRow>;
        write record_comparison(hash: StorePathHash, comparison: Option<Comparison>) -> ();
        read comparison(hash: StorePathHash) -> Option<Comparison>;
    }
    Closures {
        read closure(hash: StorePathHash, max: u32) -> Vec<PathRow>;
        read referrers(hash: StorePathHash, max: u32) -> Vec<StorePath>;
    }
    History {
        write record_hour(row: HourRow, first: u64) -> ();
        read hours(first: u64) -> Vec<HourRow>;
    }
    Programs {
        write record_programs(nar: NarHash, programs: Vec<String>) -> ();
        read programs_of(nar: NarHash, max: u32) -> Vec<String>;
        read program_owners(program: String, max: u32) -> Vec<ProgramOwner>;
        read programs_like(beginning: String, max: u32) -> Vec<String>;
    }
    Pins {
        write pin(name: String, hashes: Vec<StorePathHash>) -> ();
        write unpin(name: String, hash: Option<StorePathHash>) -> usize;
        read pins() -> Vec<PinRow>;
        read pin_count() -> u64;
        write restore_pins(pins: Vec<PinRow>) -> ();
    }
    FailureStore {
        read failure(drv: StorePath, now: SystemTime) -> Option<Failure>;
        write remember_failure(failure: Failure) -> ();
        read failures(now: SystemTime) -> Vec<Failure>;
        write forget_failure(drv: StorePath) -> Vec<StorePath>;
        write end_failure_by(drv: StorePath, end: SystemTime) -> ();
        write shorten_failures(class: FailureClass, lifetime: Duration, now: SystemTime) -> ();
        write forget_refusals() -> ();
    }
    QueueLog {
        read requests() -> (Vec<RequestRow>, u64);
        own record_queue(requests: Vec<RequestRow>, gone: Vec<u64>, durations: Vec<DurationRow>) -> ();
        read durations() -> Vec<DurationRow>;
    }
    DemandStore {
        read demand() -> Vec<DemandRow>;
        write record_demand(rows: Vec<DemandRow>, first_day: u64) -> ();
        read prebuilt() -> (u64, Duration);
        write record_prebuilt(day: u64, spent: Duration) -> ();
    }
    Pushes {
        write publish_upload(path: PathRow, nar: NewNar, derivation: Option<PushedDerivation>) -> UploadOutcome;
        read pushed_outputs(drvs: Vec<StorePath>) -> BTreeMap<StorePath, BTreeMap<String, StorePath>>;
        read pushed_named(name: String) -> Vec<StorePath>;
        read pushed_input_hashes(drvs: Vec<StorePath>) -> BTreeMap<StorePath, InputHash>;
        write note_pushed_uses(drvs: Vec<StorePath>, now: SystemTime) -> ();
    }
    PackageSets {
        read makers(hash: StorePathHash) -> Vec<Maker>;
        read makers_of_all(hashes: Vec<StorePathHash>) -> BTreeMap<StorePathHash, Vec<Maker>>;
        read attribute(set: String, attribute: String, system: String) -> Option<Attributed>;
        read listed(set: String, search: Search) -> Option<(u64, Vec<AttributeRow>)>;
        read attributes(attribute: String) -> Vec<(String, AttributeRow)>;
        read allowed_derivations(set: String) -> BTreeSet<StorePath>;
        read has_derivation(set: String, drv: StorePath) -> bool;
        read failed_attributes(set: String, max: u32) -> Vec<AttributeRow>;
        read set(name: String) -> SetRow;
        read holders() -> Vec<StorePath>;
        read names_of(drvs: Vec<StorePath>) -> BTreeMap<StorePath, AttributeName>;
        read versions(name: AttributeName, max: u32) -> Vec<VersionRow>;
        read derivations_named(names: Vec<AttributeName>) -> Vec<Option<StorePath>>;
    }
    Generations {
        write sync_sets(names: Vec<String>) -> ();
        write start_generation() -> ();
        write add_attributes(rows: Vec<AttributeRow>) -> ();
        write settle_attributes(denied: Vec<StorePath>, allowed: Vec<StorePath>) -> GenerationSize;
        write fail_attributes(failures: Vec<(StorePath, String)>) -> u64;
        write explain_attribute(generation: u64, name: AttributeName, error: String) -> ();
        write add_outputs(rows: Vec<OutputRow>) -> ();
        write swap_generation(new: NewGeneration) -> Swapped;
        write add_evaluated(generation: u64, row: AttributeRow, outputs: Vec<OutputRow>, holder: StorePath) -> bool;
        write record_refresh(set: String, failure: Option<String>) -> ();
        write expire_generations(set: String, keep: Duration) -> ();
    }
    Tokens {
        write add_token(token: NewToken) -> Option<u64>;
        read tokens() -> Vec<TokenRow>;
        write remove_token(id: u64) -> bool;
        write record_token_uses(uses: Vec<(u64, SystemTime)>) -> ();
    }
    RecoveryStore {
        write restore_pushed(pushed: Vec<PushedDerivation>) -> u64;
        write recover(batch: Vec<Recovered>) -> ();
        write forget_incomplete() -> u64;
    }
}

/// Eviction has a log of the server at hand: it goes by no link.
impl RetentionStore for SharedMemory {
    fn record_uses(&self, now: SystemTime, log: &AccessLog) -> BackendFuture<'_, ()> {
        self.database.rows.record_uses(now, log)
    }

    fn evict(&self, now: SystemTime, bounds: EvictionBounds, log: &AccessLog) -> BackendFuture<'_, Evicted> {
        match self.database.check(self.fence.as_ref()) {
            Ok(()) => self.database.rows.evict(now, bounds, log),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }

    fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
        log: &AccessLog,
    ) -> BackendFuture<'_, Evicted> {
        self.database.rows.preview_eviction(now, after, bounds, log)
    }

    fn unused_nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>> {
        self.read(move |database| at_once(database.rows.unused_nars(after)))
    }

    fn forget_unused_nars(&self, nars: Vec<NarHash>) -> BackendFuture<'_, ()> {
        self.write(move |database| at_once(database.rows.forget_unused_nars(nars)))
    }

    fn former_path(&self, nar: NarHash) -> BackendFuture<'_, Option<StorePathHash>> {
        self.read(move |database| at_once(database.rows.former_path(nar)))
    }

    fn nar_bytes(&self) -> BackendFuture<'_, u64> {
        self.read(|database| at_once(database.rows.nar_bytes()))
    }
}

impl Upkeep for SharedMemory {
    fn maintain(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.database.rows.maintain()
    }

    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), Unfit>> + Send + '_>> {
        self.database.rows.check()
    }

    fn verify(&self) -> BackendFuture<'_, ()> {
        self.database.rows.verify()
    }

    fn verify_totals(&self) -> BackendFuture<'_, bool> {
        self.database.rows.verify_totals()
    }

    fn recompute_totals(&self) -> BackendFuture<'_, ()> {
        self.database.rows.recompute_totals()
    }

    fn write_refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.database.rows.write_refused()
    }

    fn close(&self) -> BackendFuture<'_, ()> {
        self.database.rows.close()
    }
}

impl Backend for SharedMemory {
    /// Nobody follows: what several servers share is read where it is.
    fn follow(&self, _: Arc<dyn Follower>) {}

    fn hash_count(&self) -> BackendFuture<'_, u64> {
        self.read(|database| at_once(database.rows.hash_count()))
    }

    fn hashes(&self, batches: mpsc::Sender<Vec<StorePathHash>>) -> BackendFuture<'_, ()> {
        self.database.rows.hashes(batches)
    }

    fn cluster(&self) -> Option<&dyn Cluster> {
        Some(self)
    }
}

impl Cluster for SharedMemory {
    fn take_over(&self, node: NodeId) -> BackendFuture<'_, Option<Term>> {
        self.read(move |database| Ok(database.take_over(node)))
    }

    fn renew(&self, term: Term) -> BackendFuture<'_, bool> {
        self.read(move |database| Ok(database.set_lease(&term, true)))
    }

    fn release(&self, term: Term) -> BackendFuture<'_, ()> {
        self.read(move |database| {
            database.set_lease(&term, false);
            Ok(())
        })
    }

    fn fenced(&self, term: Term) -> Arc<dyn Backend> {
        Arc::new(Self { fence: Some(term), ..self.clone() })
    }

    fn ask(
        &self,
        node: NodeId,
        asked: Vec<(StorePath, Option<IpAddr>)>,
        builder: Option<String>,
    ) -> BackendFuture<'_, Vec<u64>> {
        self.write(move |database| Ok(database.ask(&node, asked, builder.as_ref())))
    }

    fn hold(&self, node: NodeId, requests: Vec<u64>) -> BackendFuture<'_, Vec<u64>> {
        self.write(move |database| Ok(database.hold(&node, &requests)))
    }

    fn queue_news(&self, after_request: u64, after_ending: u64) -> BackendFuture<'_, QueueNews> {
        self.read(move |database| Ok(database.queue_news(after_request, after_ending)))
    }

    fn end_requests(&self, endings: Vec<EndingRow>) -> BackendFuture<'_, ()> {
        self.own(move |database, fence| {
            database.end_requests(endings, fence);
            Ok(())
        })
    }

    fn end_unheld(&self, requests: Vec<u64>, outcome: QueueOutcome) -> BackendFuture<'_, Vec<u64>> {
        self.own(move |database, fence| Ok(database.end_unheld(requests, &outcome, fence)))
    }

    fn queue_changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let _ = timeout(ASK_EVERY, self.queue.notified()).await;
        })
    }
}
