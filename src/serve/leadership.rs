//! The part of this server where several share an index: while no other one leads, it takes the lease, and
//! does what only one may do (building, pre-building, evaluating package sets) for as long as it has that.
//! See [`Cluster`](crate::index::backend::Cluster) on the lease and the fence.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Error, Settings};
use crate::build::{Scheduler, Worker};
use crate::catalogue::{Refresher, Tools};
use crate::index::{self, Index};
use crate::model::{NodeId, Term};
use crate::state_dir::{NODE, using};
use crate::tasks::unfinished;

/// Interval at which the lease is looked at by those who would take it.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// Interval at which it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Rest after that failed: a database that was restarted gives the leader not much time.
const RENEW_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Life of the lease in the database, less a margin: for so long after it was asked for, nobody else leads.
const LEASE: Duration = Duration::from_millis(2_500);
/// Time for which a server that must be alone waits for the lease of another one that may have died.
const ALONE_WITHIN: Duration = Duration::from_secs(8);

/// A part that a server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers clients.
    Serve,
    /// Builds while no other server does.
    Schedule,
}

/// Parts of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// True where it answers clients.
    pub serve: bool,
    /// True where it may be the leader.
    pub schedule: bool,
}

impl Roles {
    /// Those that are listed.
    #[must_use]
    pub fn of(roles: &[Role]) -> Self {
        Self { serve: roles.contains(&Role::Serve), schedule: roles.contains(&Role::Schedule) }
    }
}

/// A server that does all.
impl Default for Roles {
    fn default() -> Self {
        Self { serve: true, schedule: true }
    }
}

/// Work that one of several servers does, for as long as it leads.
pub(super) trait LeaderWork: Send + Sync + 'static {
    /// The queue of this server.
    fn scheduler(&self) -> &Scheduler;

    /// Works for a term, once `begun` has taken the queue over. Dropping this future ends what runs.
    fn for_term(
        &self,
        term: &Term,
        begun: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static;
}

/// Building, pre-building, and evaluating package sets.
impl LeaderWork for (Worker, Refresher) {
    fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }

    fn for_term(
        &self,
        term: &Term,
        begun: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (worker, Refresher { catalogue, tools }) = self;
        let builder = worker.for_term(term);
        let tools = Tools { index: builder.index.clone(), ..tools.clone() };
        let refresher = Refresher { catalogue: catalogue.clone(), tools };
        async move {
            refresher.bring_here().await;
            begun.await;
            tokio::join!(builder.run(), refresher.run());
        }
    }
}

/// Share of this server in what one of several does; clones share it.
#[derive(Clone)]
pub(super) struct Leadership {
    index: Index,
    node: NodeId,
    roles: Roles,
    /// True where nobody else may use the index: the NARs are on this machine.
    is_alone: bool,
    term: Arc<Mutex<Option<Term>>>,
}

impl Leadership {
    /// The share in an index that others may use; `None` where nobody can.
    ///
    /// # Errors
    /// Another server leads, and this one has its NARs for itself; or the state directory cannot be used.
    pub(super) async fn open(
        settings: &Settings,
        state_dir: &Path,
        index: &Index,
    ) -> Result<Option<Self>, Error> {
        if !index.is_shared() {
            return Ok(None);
        }
        let (roles, is_alone) = (settings.roles, settings.nar_store.bucket.is_none());
        let leadership = Self::new(index.clone(), node_id(state_dir)?, roles, is_alone);
        if is_alone {
            let until = Instant::now() + ALONE_WITHIN;
            while leadership.try_take_over().await?.is_none() {
                if Instant::now() > until {
                    return Err(Error::NotAlone);
                }
                sleep(TRY_EVERY).await;
            }
        }
        Ok(Some(leadership))
    }

    /// The share of a node.
    pub(super) fn new(index: Index, node: NodeId, roles: Roles, is_alone: bool) -> Self {
        Self { index, node, roles, is_alone, term: Arc::default() }
    }

    /// Name of this server.
    pub(super) fn node(&self) -> NodeId {
        self.node.clone()
    }

    /// Leads whenever nobody else does, for as long as the server runs. One that must be alone ends when it
    /// is not any more.
    pub(super) async fn run(self, work: impl LeaderWork) {
        if !self.roles.schedule {
            return std::future::pending().await;
        }
        let scheduler = work.scheduler().clone();
        loop {
            let (term, asked_at) = self.take_over().await;
            tracing::info!(epoch = term.epoch, node = term.holder.0, "leading: this server schedules builds");
            scheduler.set_lease(Some(asked_at + LEASE));
            self.lead(&term, &work).await;
            self.set_term(None);
            if self.is_alone {
                tracing::error!(
                    "another server has taken over the index; several servers need the same bucket for their NARs \
                     (setting nar-store)"
                );
                return;
            }
            tracing::warn!(epoch = term.epoch, "following: another server schedules builds");
            scheduler.end_term().await;
        }
    }

    /// Gives the lease up when the server stops.
    pub(super) async fn release(&self) {
        let term = self.term.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(term), Some(cluster)) = (term, self.index.cluster())
            && let Err(error) = cluster.release(term).await
        {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot give up the lease");
        }
    }

    async fn try_take_over(&self) -> Result<Option<Term>, index::Error> {
        let Some(cluster) = self.index.cluster() else { return Ok(None) };
        let term = cluster.take_over(self.node.clone()).await?;
        self.set_term(term.clone());
        Ok(term)
    }

    /// A term of this server, and the moment before it was asked for.
    async fn take_over(&self) -> (Term, Instant) {
        loop {
            let asked_at = Instant::now();
            match self.try_take_over().await {
                Ok(Some(term)) => return (term, asked_at),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at the lease yet");
                }
            }
            sleep(TRY_EVERY).await;
        }
    }

    fn set_term(&self, term: Option<Term>) {
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term;
    }

    /// Works for a term until that has ended.
    async fn lead(&self, term: &Term, work: &impl LeaderWork) {
        let (mut working, scheduler, of) = (JoinSet::new(), work.scheduler().clone(), term.clone());
        let begun = async move {
            while let Err(error) = scheduler.begin_term(&of).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot read the queue yet");
                sleep(TRY_EVERY).await;
            }
        };
        working.spawn(work.for_term(term, begun));
        tokio::select! {
            biased;
            () = self.keep_lease(term, work.scheduler()) => {}
            Some(Err(error)) = working.join_next() => unfinished(error).await,
        }
        // What runs ends with its connection to the daemon; nothing of it is recorded.
        working.shutdown().await;
    }

    /// Renews the lease until the term has ended. While the database does not answer, nothing new is started.
    async fn keep_lease(&self, term: &Term, scheduler: &Scheduler) {
        let Some(cluster) = self.index.cluster() else { return std::future::pending().await };
        let mut has_failed = false;
        loop {
            tokio::select! {
                biased;
                () = sleep(if has_failed { RENEW_AGAIN_AFTER } else { RENEW_EVERY }) => {}
                () = scheduler.superseded() => {}
            }
            let asked_at = Instant::now();
            match cluster.renew(term.clone()).await {
                Ok(true) => {
                    scheduler.set_lease(Some(asked_at + LEASE));
                    has_failed = false;
                }
                Ok(false) => return,
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "cannot renew the lease; no build is started until that works");
                    }
                }
            }
        }
    }
}

/// The name in the state directory, made where there is none. It outlives the process: a server that is
/// started again takes its own lease at once.
fn node_id(state_dir: &Path) -> Result<NodeId, Error> {
    let path = state_dir.join(NODE);
    let found =
        using(&path, |path| if path.exists() { fs::read_to_string(path) } else { Ok(String::new()) })?;
    if !found.trim().is_empty() {
        return Ok(NodeId(found.trim().to_owned()));
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(Error::Randomness)?;
    let name = format!("{}-{:016x}", super::host_name(), u64::from_be_bytes(bytes));
    using(&path, |path| {
        let mut file = File::create(path)?;
        file.write_all(name.as_bytes())?;
        file.sync_all()
    })?;
    Ok(NodeId(name))
}
