//! Wait of one request for a hash: attempts, pauses while transient trouble is in the way, and the build that
//! is joined. The lines that a client reads meanwhile are for `http` to write.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narinfo::StorePathHash;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::unknown::UnknownSlot;
use super::{Missing, OnMiss, Resolution, Substitute};
use crate::backoff::Backoff;
use crate::build::Ticket;
use crate::index::CachedNarInfo;

/// Shortest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause: the end of an outage is noticed within it.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time that an attempt is given after the server has begun to stop: most are over by then.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// Memory of hashes that were looked for in vain for all of `transient-retry`, and its bound: clients that
/// were cut off ask again within seconds, and are to hear the reason then.
const EXHAUSTED_FOR: Duration = Duration::from_secs(30);
const EXHAUSTED_MAX: u64 = 10_000;

/// Hashes whose trouble has outlasted everyone's patience a moment ago.
#[derive(Clone, Debug)]
pub struct Exhausted(moka::sync::Cache<StorePathHash, ()>);

impl Default for Exhausted {
    fn default() -> Self {
        let hashes = moka::sync::Cache::builder().max_capacity(EXHAUSTED_MAX).time_to_live(EXHAUSTED_FOR);
        Self(hashes.build())
    }
}

/// Transient trouble: a later attempt may find what this one did not.
#[derive(Clone, Debug)]
pub(super) enum Obstacle {
    /// The Nix daemon is lost, and only it could tell.
    Daemon,
    /// Upstreams could not tell, for these reasons.
    Upstreams(Arc<[String]>),
    /// The index cannot be read or written, for this reason.
    Index(Arc<[String]>),
    /// Nobody knows the hash, and someone may push it soon.
    Unknown,
}

/// Reason why an attempt has no answer, and the trouble that was in its way.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) missing: Missing,
    pub(super) trouble: Option<Obstacle>,
}

impl From<Missing> for Unanswered {
    fn from(missing: Missing) -> Self {
        let trouble = match &missing {
            Missing::NoDaemon(_) => Some(Obstacle::Daemon),
            Missing::Unrealised { reasons, troubled: true, .. } => {
                Some(Obstacle::Upstreams(reasons.clone().into()))
            }
            Missing::IndexUnavailable { reason, .. } => Some(Obstacle::Index([(*reason).to_owned()].into())),
            _ => None,
        };
        Self { missing, trouble }
    }
}

/// One attempt. In a box, so that no room is kept for it between two attempts and while a build is waited
/// for.
pub(super) type Attempt<'a, T> = Pin<Box<dyn Future<Output = Result<T, Unanswered>> + Send + 'a>>;

/// Attempts at one question until it is answered or its trouble has lasted too long.
pub(super) struct Attempts<'a, T> {
    stage: AttemptStage<'a, T>,
    /// Trouble of the last attempt, and since when there was any.
    trouble: Option<(Obstacle, Instant)>,
    backoff: Backoff,
}

enum AttemptStage<'a, T> {
    Trying(Attempt<'a, T>),
    Resting(Pin<Box<Sleep>>),
}

impl<'a, T> Attempts<'a, T> {
    pub(super) fn new(first: Attempt<'a, T>) -> Self {
        let backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        Self { stage: AttemptStage::Trying(first), trouble: None, backoff }
    }

    /// Brings one attempt, or the pause after it, to its end; gives the result of the last attempt. May be
    /// dropped and called again. `left` says how much longer trouble may last that has lasted since then.
    async fn step(
        &mut self,
        again: impl FnOnce() -> Attempt<'a, T>,
        left: impl FnOnce(&Obstacle, Option<Instant>) -> Duration,
    ) -> Option<Result<T, Missing>> {
        match &mut self.stage {
            AttemptStage::Resting(pause) => {
                pause.await;
                self.stage = AttemptStage::Trying(again());
                None
            }
            AttemptStage::Trying(attempt) => match attempt.await {
                Ok(answer) => Some(Ok(answer)),
                Err(Unanswered { missing, trouble: None }) => Some(Err(missing)),
                Err(Unanswered { missing, trouble: Some(trouble) }) => {
                    let left = left(&trouble, self.trouble.as_ref().map(|(_, since)| *since));
                    log_index_trouble(&missing, self.trouble.is_none(), left.is_zero());
                    if left.is_zero() {
                        return Some(Err(missing));
                    }
                    let since = self.trouble.take().map_or_else(Instant::now, |(_, since)| since);
                    self.trouble = Some((trouble, since));
                    let pause = self.backoff.pause().min(left);
                    self.stage = AttemptStage::Resting(Box::pin(sleep(pause)));
                    None
                }
            },
        }
    }

    fn is_resting(&self) -> bool {
        matches!(self.stage, AttemptStage::Resting(_))
    }
}

/// End of a wait.
#[derive(Debug)]
pub enum WaitEnd {
    /// The path is served.
    Ready(Arc<CachedNarInfo>),
    /// The path is not to be had.
    Missing(Missing),
    /// The server stops.
    Stopped,
}

/// A request for one hash on its way to an answer.
pub struct Wait {
    substitute: Arc<Substitute>,
    hash: StorePathHash,
    on_miss: OnMiss,
    stopping: watch::Receiver<bool>,
    /// Held while nobody knows the hash.
    slot: Option<UnknownSlot>,
    phase: Phase,
}

/// Small, since very many may be built for.
enum Phase {
    Looking(Attempts<'static, Resolution>),
    /// The build, and once it has ended the attempts to read its output, which few have to make.
    Building(Ticket, Option<Box<Attempts<'static, Resolution>>>),
}

impl Substitute {
    /// Begins to wait for `hash`: it is looked for until it is found or given up, and waited for while it is
    /// built.
    #[must_use]
    pub fn wait(
        self: &Arc<Self>,
        hash: StorePathHash,
        on_miss: OnMiss,
        stopping: watch::Receiver<bool>,
    ) -> Wait {
        let phase = Phase::Looking(Attempts::new(self.look_for(hash, &on_miss)));
        Wait { substitute: Arc::clone(self), hash, on_miss, stopping, slot: None, phase }
    }

    fn look_for(self: &Arc<Self>, hash: StorePathHash, on_miss: &OnMiss) -> Attempt<'static, Resolution> {
        let (substitute, on_miss) = (Arc::clone(self), on_miss.clone());
        Box::pin(async move {
            match substitute.decide(hash, &on_miss).await {
                Ok(Resolution::Missing(missing)) | Err(Unanswered { missing, trouble: None })
                    if substitute.waits_for(&missing, &on_miss) =>
                {
                    Err(Unanswered { missing, trouble: Some(Obstacle::Unknown) })
                }
                decision => decision,
            }
        })
    }

    fn look_after_build(self: &Arc<Self>, hash: StorePathHash) -> Attempt<'static, Resolution> {
        let substitute = Arc::clone(self);
        Box::pin(async move { substitute.after_build(hash).await })
    }

    /// Makes attempts at a question that no build answers, until trouble has lasted for as long as
    /// `patience`.
    pub(super) async fn retried<'a, T>(
        &self,
        patience: Duration,
        attempt: impl Fn() -> Attempt<'a, T>,
    ) -> Result<T, Missing> {
        let mut attempts = Attempts::new(attempt());
        let left = |trouble: &Obstacle, since| patience.saturating_sub(self.lasted(trouble, since));
        loop {
            if let Some(result) = attempts.step(&attempt, left).await {
                return result;
            }
        }
    }

    /// Time that is left for further attempts at a hash. Trouble that has just outlasted someone's patience
    /// gets none.
    fn left(
        &self,
        hash: StorePathHash,
        on_miss: &OnMiss,
        trouble: &Obstacle,
        since: Option<Instant>,
    ) -> Duration {
        // It is known since when the daemon is lost.
        let is_remembered = !matches!(trouble, Obstacle::Daemon);
        if is_remembered && since.is_none() && self.exhausted.0.contains_key(&hash) {
            return Duration::ZERO;
        }
        let left = self.patience(trouble, on_miss).saturating_sub(self.lasted(trouble, since));
        if is_remembered && left.is_zero() && on_miss.builds() {
            self.exhausted.0.insert(hash, ());
        }
        left
    }

    /// Time for which trouble has lasted that a request has met since then. A lost daemon may have been away
    /// before.
    fn lasted(&self, trouble: &Obstacle, since: Option<Instant>) -> Duration {
        let met = since.map_or(Duration::ZERO, |since| since.elapsed());
        match trouble {
            Obstacle::Daemon => self.local.outage().map_or(met, |(away, _)| away.max(met)),
            Obstacle::Upstreams(_) | Obstacle::Index(_) | Obstacle::Unknown => met,
        }
    }

    /// Time for which trouble may last, from its begin. Who only reports what is there is not kept waiting
    /// for long.
    fn patience(&self, trouble: &Obstacle, on_miss: &OnMiss) -> Duration {
        match (trouble, on_miss) {
            (
                Obstacle::Daemon | Obstacle::Upstreams(_) | Obstacle::Index(_),
                OnMiss::Build(_) | OnMiss::BuildAs(..),
            )
            | (Obstacle::Daemon, OnMiss::Report(_) | OnMiss::Unentitled(_)) => self.settings.transient_retry,
            (
                Obstacle::Upstreams(_) | Obstacle::Index(_),
                OnMiss::Report(_) | OnMiss::Unentitled(_) | OnMiss::Relayed(_),
            ) => self.settings.report_retry,
            (Obstacle::Unknown, OnMiss::Build(_) | OnMiss::BuildAs(..)) => self.settings.unknown_wait,
            (Obstacle::Unknown, _) | (Obstacle::Daemon, OnMiss::Relayed(_)) => Duration::ZERO,
        }
    }
}

impl Wait {
    /// Resolves with the end. May be dropped and called again at any time before.
    pub async fn ended(&mut self) -> WaitEnd {
        loop {
            if let Some(end) = self.step().await {
                return end;
            }
        }
    }

    /// Resolves once a build is joined, or an upstream or the index is in trouble; with the end, if there is
    /// one by then.
    pub async fn decided(&mut self) -> Option<WaitEnd> {
        while matches!(self.phase, Phase::Looking(_)) && self.trouble().is_none() {
            let end = self.step().await;
            if end.is_some() {
                return end;
            }
        }
        None
    }

    async fn step(&mut self) -> Option<WaitEnd> {
        let Self { substitute, hash, stopping, phase, .. } = self;
        let Phase::Building(ticket, delivery @ None) = phase else { return self.attempt().await };
        let ended = tokio::select! {
            ended = ticket.ended() => ended,
            () = stopped(stopping, Duration::ZERO) => None,
        };
        match ended {
            // Of very many who have waited for it, nearly all find it remembered.
            Some(Ok(())) => {
                let ready = substitute.cached_narinfo(*hash);
                if ready.is_none() {
                    *delivery = Some(Box::new(Attempts::new(substitute.look_after_build(*hash))));
                }
                ready.map(WaitEnd::Ready)
            }
            Some(Err(failure)) => Some(WaitEnd::Missing(Missing::Failed(failure))),
            None => Some(WaitEnd::Stopped),
        }
    }

    /// Brings an attempt at the hash, or the pause after it, to its end.
    async fn attempt(&mut self) -> Option<WaitEnd> {
        let Self { substitute, hash, on_miss, stopping, slot, phase } = self;
        let is_built = matches!(phase, Phase::Building(..));
        let attempts = match phase {
            Phase::Looking(attempts) => attempts,
            Phase::Building(_, attempts) => attempts.as_deref_mut()?,
        };
        let grace = if attempts.is_resting() { Duration::ZERO } else { STOPPED_AFTER };
        let again = || match is_built {
            true => substitute.look_after_build(*hash),
            false => substitute.look_for(*hash, on_miss),
        };
        let left = |trouble: &Obstacle, since| {
            if let (Obstacle::Unknown, OnMiss::Build(Some(client)), None) = (trouble, &*on_miss, &*slot) {
                *slot = substitute.unknown_waits.enter(*client);
                if slot.is_none() {
                    return Duration::ZERO;
                }
            }
            substitute.left(*hash, on_miss, trouble, since)
        };
        let result = tokio::select! {
            result = attempts.step(again, left) => result?,
            () = stopped(stopping, grace) => return Some(WaitEnd::Stopped),
        };
        match result {
            Ok(Resolution::Ready(ready)) => {
                if !is_built {
                    substitute.note_demand(&ready, on_miss);
                }
                Some(WaitEnd::Ready(ready))
            }
            Ok(Resolution::Missing(missing)) | Err(missing) => Some(WaitEnd::Missing(missing)),
            Ok(Resolution::Wait(ticket)) => {
                self.slot = None;
                self.phase = Phase::Building(ticket, None);
                None
            }
        }
    }

    /// True where nothing but trouble of an upstream or the index is waited out, and not for long.
    #[must_use]
    pub fn is_mere_trouble(&self) -> bool {
        !self.on_miss.builds() && self.trouble().is_some()
    }

    /// The build that is waited for.
    #[must_use]
    pub fn ticket(&self) -> Option<&Ticket> {
        match &self.phase {
            Phase::Building(ticket, _) => Some(ticket),
            Phase::Looking(_) => None,
        }
    }

    /// State of the wait in one line, for the person who waits. Some of it is text of others.
    #[must_use]
    pub fn describe(&self) -> String {
        let attempts = match &self.phase {
            Phase::Building(ticket, None) => return ticket.describe(),
            Phase::Building(_, Some(attempts)) => attempts,
            Phase::Looking(attempts) => attempts,
        };
        if let Some((Obstacle::Unknown, since)) = &attempts.trouble {
            let left = self.substitute.settings.unknown_wait.saturating_sub(since.elapsed()).as_secs();
            return format!("unknown so far; waits for {left} s more until someone pushes it (unknown-wait)");
        }
        let Some((trouble, reasons, since)) = self.trouble() else {
            return self.substitute.describe(self.hash);
        };
        let stage = if attempts.is_resting() {
            "waiting until that may have passed".to_owned()
        } else {
            self.substitute.describe(self.hash)
        };
        let patience = self.substitute.patience(trouble, &self.on_miss);
        let left = patience.saturating_sub(since.elapsed()).as_secs();
        let reasons = reasons.join("; ");
        format!("trouble: {reasons}; tried again for {left} s more (transient-retry); {stage}")
    }

    /// Trouble of upstreams or of the index, its reasons, and its begin.
    fn trouble(&self) -> Option<(&Obstacle, &[String], Instant)> {
        let attempts = match &self.phase {
            Phase::Looking(attempts) => attempts,
            Phase::Building(_, attempts) => attempts.as_deref()?,
        };
        let (trouble, since) = attempts.trouble.as_ref()?;
        match trouble {
            Obstacle::Upstreams(reasons) | Obstacle::Index(reasons) => Some((trouble, reasons, *since)),
            Obstacle::Daemon | Obstacle::Unknown => None,
        }
    }
}

/// Resolves so long after the server has begun to stop.
async fn stopped(stopping: &watch::Receiver<bool>, grace: Duration) {
    // An error means that the server is gone, which is the same.
    let _ = stopping.clone().wait_for(|stopping| *stopping).await;
    sleep(grace).await;
}

/// Logs the first and the last of a request's failures at the index; those between are the same.
fn log_index_trouble(missing: &Missing, is_first: bool, is_last: bool) {
    let Missing::IndexUnavailable { reason, cause } = missing else { return };
    if is_last {
        tracing::error!(%cause, "{reason}; the request is given up (setting transient-retry)");
    } else if is_first {
        tracing::warn!(%cause, "{reason}; the request waits for that to pass (setting transient-retry)");
    }
}
