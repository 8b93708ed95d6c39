//! Builds for clients. For each target a request for the narinfo of an output is held open, as by any client
//! of the cache: when it is dropped, because this client hangs up, the server does what it does for all who
//! leave.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use narinfo::{StoreDir, StorePath, StorePathHash};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::news::{BuildNews, Terminal};
use super::query::{ask_item, outputs_of, reason_of};
use super::session::{BuilderSession, NotDone};
use crate::escape::Line;
use crate::nix::{BuildResult, BuildStatus, ClientTarget, DaemonError};
use crate::remote::{self, Remote, RemoteItem, RemoteRequest, RequestEvent, through_outage};

/// Targets of one request that are waited for at a time; the others follow in their order.
const AT_ONCE_MAX: usize = 64;
/// News that wait to be told.
const NEWS_MAX: usize = 64;
/// First pause before the number of a request is asked for again; each is longer.
const FIRST_PAUSE: Duration = Duration::from_millis(30);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Time for the rest of a log once the outputs are served.
const REST_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a log in the message about a failure.
const TAIL_LINES_MAX: usize = 20;

impl BuilderSession {
    /// Has targets built, and tells of the builds. Ends early where the client hangs up.
    pub(super) async fn build(
        &mut self,
        targets: Vec<ClientTarget>,
    ) -> Result<Vec<(ClientTarget, BuildResult)>, NotDone> {
        let (sender, mut news) = mpsc::channel(NEWS_MAX);
        let (mut waits, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE_MAX)));
        for (at, target) in targets.iter().cloned().enumerate() {
            let (remote, store_dir) = (self.remote.clone(), self.client.store_dir().clone());
            let (news, at_once) = (sender.clone(), Arc::clone(&at_once));
            waits.spawn_local(async move {
                // Never closed.
                let _permit = at_once.acquire().await;
                let wait = TargetWait {
                    remote,
                    store_dir,
                    target,
                    at,
                    news,
                    following: Cell::default(),
                    told: RefCell::default(),
                };
                (at, wait.result().await)
            });
        }
        let (mut results, mut terminal) = (BTreeMap::new(), Terminal::new(&mut self.activities));
        while !waits.is_empty() {
            tokio::select! {
                biased;
                Some((at, news)) = news.recv() => terminal.tell(&mut self.client, at, news).await?,
                Some(ended) = waits.join_next() => {
                    let (at, result) = ended.map_err(|error| NotDone::Refused(format!("a build was lost: {error}")))?;
                    terminal.end(&mut self.client, at).await?;
                    results.insert(at, result);
                }
                () = self.client.hung_up() => return Err(NotDone::Lost(DaemonError::Closed)),
            }
        }
        Ok(targets.into_iter().zip(results.into_values()).collect())
    }
}

/// The wait for one target.
struct TargetWait {
    remote: Remote,
    store_dir: StoreDir,
    target: ClientTarget,
    /// Its place among the targets.
    at: usize,
    news: mpsc::Sender<(usize, BuildNews)>,
    /// True while the events of its request arrive.
    following: Cell<bool>,
    /// Derivations of which lines were told.
    told: RefCell<BTreeSet<String>>,
}

impl TargetWait {
    async fn result(&self) -> BuildResult {
        match self.attempt().await {
            Ok(result) => result,
            Err(error) if error.is_transient() => failure(BuildStatus::TransientFailure, error.to_string()),
            Err(error) => failure(BuildStatus::MiscFailure, error.to_string()),
        }
    }

    async fn attempt(&self) -> Result<BuildResult, remote::Error> {
        let item = through_outage(|| ask_item(&self.remote, &self.target)).await?;
        let outputs = match &self.target {
            ClientTarget::Path(path) => BTreeMap::from([(String::new(), path.clone())]),
            ClientTarget::Outputs(_) => {
                let outputs = outputs_of(&self.store_dir, &item)?;
                if outputs.is_empty() {
                    return Ok(failed(&item));
                }
                let mut known = BTreeMap::new();
                for (name, path) in outputs {
                    let Some(path) = path else { return Ok(floating(self.target.path(), &name)) };
                    known.insert(name, path);
                }
                known
            }
        };
        let served = |status| {
            let is_path = matches!(self.target, ClientTarget::Path(_));
            let outputs = if is_path { BTreeMap::new() } else { outputs.clone() };
            BuildResult { status, outputs, ..BuildResult::default() }
        };
        if item.state == "served" {
            return Ok(served(BuildStatus::AlreadyValid));
        }
        match self.wait(outputs.values().map(StorePath::hash).collect()).await {
            (Ok(()), _) => Ok(BuildResult { times_built: 1, ..served(BuildStatus::Built) }),
            (Err(_), Some(end)) if end.state != "served" => Ok(ended(&end)),
            (Err(remote::Error::NotFound(_)), _) => {
                let item = through_outage(|| ask_item(&self.remote, &self.target)).await?;
                Ok(self.with_tail(failed(&item)).await)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Waits for paths, and tells of the builds. Gives the request once it has ended, where there was one.
    async fn wait(&self, hashes: Vec<StorePathHash>) -> (Result<(), remote::Error>, Option<RemoteRequest>) {
        let serving = async {
            for hash in hashes {
                self.remote
                    .wait_served(hash, |state| self.try_tell(BuildNews::Waiting(state.to_owned())))
                    .await?;
            }
            Ok(())
        };
        let (mut serving, mut following) = (std::pin::pin!(serving), std::pin::pin!(self.follow()));
        let mut end = None;
        let waited = loop {
            tokio::select! {
                waited = &mut serving => break waited,
                request = &mut following, if end.is_none() => end = Some(request),
            }
        };
        if end.is_none() && self.following.get() {
            end = timeout(REST_WITHIN, following).await.ok();
        }
        (waited, end)
    }

    /// Follows the request for the target, whoever has asked first, to its end.
    async fn follow(&self) -> RemoteRequest {
        let (mut pause, mut is_away) = (FIRST_PAUSE, false);
        loop {
            match ask_item(&self.remote, &self.target).await {
                Ok(RemoteItem { request: Some(request), .. }) => {
                    is_away = false;
                    if let Some(end) = self.events(request).await {
                        return end;
                    }
                }
                Err(error) if error.is_transient() && !is_away => {
                    is_away = true;
                    self.tell(BuildNews::Message(format!("{error}; waiting for its return"))).await;
                }
                _ => {}
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }

    /// Tells of the events of a request. `None` where they break off before its end.
    async fn events(&self, request: u64) -> Option<RemoteRequest> {
        let mut events = self.remote.events(request).await.ok()?;
        self.following.set(true);
        let end = loop {
            match events.next().await {
                Ok(Some(RequestEvent::State(state))) => {
                    if let Some(drv) = state.building.and_then(|drv| StorePath::parse(&drv).ok()) {
                        self.tell(BuildNews::Building(drv)).await;
                    }
                }
                Ok(Some(RequestEvent::Log { derivation, lines })) => {
                    self.tell_lines(&derivation, lines).await
                }
                Ok(Some(RequestEvent::Phase { derivation, phase })) => {
                    if let Ok(drv) = StorePath::parse(&derivation) {
                        self.tell(BuildNews::Phase(drv, phase)).await;
                    }
                }
                Ok(Some(RequestEvent::End(end))) => break Some(end),
                Ok(None) | Err(_) => break None,
            }
        };
        self.following.set(false);
        if let Some(end) = &end {
            let cause = end.cause.as_ref().unwrap_or(&end.derivation);
            // A build may be over before anybody has heard that it runs.
            if !self.told.borrow().contains(cause) {
                self.tell_lines(cause, end.log.clone()).await;
            }
        }
        end
    }

    async fn tell_lines(&self, derivation: &str, lines: Vec<String>) {
        if let (Ok(drv), false) = (StorePath::parse(derivation), lines.is_empty()) {
            self.told.borrow_mut().insert(derivation.to_owned());
            self.tell(BuildNews::Lines(drv, lines)).await;
        }
    }

    async fn tell(&self, news: BuildNews) {
        // Without a client nobody waits for the result either.
        let _ = self.news.send((self.at, news)).await;
    }

    /// The same for news that are soon followed by newer ones.
    fn try_tell(&self, news: BuildNews) {
        let _ = self.news.try_send((self.at, news));
    }

    /// Adds the end of the log to a failure, where there is one.
    async fn with_tail(&self, mut result: BuildResult) -> BuildResult {
        if result.status != BuildStatus::PermanentFailure {
            return result;
        }
        let drv = self.target.path();
        let address = format!("log/{}", remote::path_part(&drv.to_string()));
        if let Ok(reply) = self.remote.get(&address).await
            && let Ok(log) = reply.text().await
        {
            let log = anstream::adapter::strip_str(&log).to_string();
            let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
            lines.drain(..lines.len().saturating_sub(TAIL_LINES_MAX));
            result.message += &tail(&drv.to_string(), &lines);
            // Nix 2.26 shows no message of a failed build, but its log, which may not have been followed: the
            // build was over too soon.
            if !self.told.borrow().contains(&drv.to_string()) {
                self.tell_lines(&drv.to_string(), lines).await;
            }
        }
        result
    }
}

pub(super) fn failure(status: BuildStatus, message: String) -> BuildResult {
    BuildResult { status, message, ..BuildResult::default() }
}

/// The result of a derivation whose outputs are known only once they are built: they would have to be told by
/// realisations, which this connection does not carry.
pub(super) fn floating(drv: &StorePath, output: &str) -> BuildResult {
    failure(
        BuildStatus::InputRejected,
        format!(
            "the path of the output {} of {} is known only after its build; floating content-addressed derivations are \
             not built for clients of a remote builder",
            Line(output),
            drv
        ),
    )
}

/// The result of an item that is not and will not be served.
fn failed(item: &RemoteItem) -> BuildResult {
    let status = match &*item.state {
        "failed" => BuildStatus::PermanentFailure,
        "refused" => BuildStatus::InputRejected,
        _ => BuildStatus::MiscFailure,
    };
    failure(status, reason_of(item))
}

/// The result of a request that has ended without its outputs.
fn ended(request: &RemoteRequest) -> BuildResult {
    let status = match &*request.state {
        "failed" => BuildStatus::PermanentFailure,
        "refused" => BuildStatus::InputRejected,
        _ => BuildStatus::MiscFailure,
    };
    let reason = request.reason.clone().unwrap_or_else(|| format!("the request was {}", request.state));
    let cause = request.cause.as_ref().unwrap_or(&request.derivation);
    let reason = if *cause == request.derivation { reason } else { format!("{cause}: {reason}") };
    failure(status, reason + &tail(cause, &request.log))
}

/// The end of a log, as a part of a message.
fn tail(of: &str, lines: &[String]) -> String {
    let lines = &lines[lines.len().saturating_sub(TAIL_LINES_MAX)..];
    if lines.is_empty() {
        return String::new();
    }
    let shown: String = lines.iter().map(|line| format!("\n> {line}")).collect();
    format!("\nLast lines of the log of {of}:{shown}")
}
