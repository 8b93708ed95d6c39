//! One request for a hash on its way to an answer: looked for, looked for again while only trouble that may pass is in the way,
//! and waited for while it is built. What the client hears meanwhile is for others to say.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use narinfo::StorePathHash;
use tokio::time::{Sleep, sleep};

use super::Service;
use crate::build::Ticket;
use crate::index::Ready;
use crate::substitute::{Answer, Missing, OnMiss};

/// The pause before a second look; each further one is twice as long, up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a look goes on after the server has begun to stop.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// How long it is remembered that a hash was looked for in vain as long as trouble may last, and of how many at most: clients
/// that were cut off ask again within seconds, and are to hear it then.
const GIVEN_UP_FOR: Duration = Duration::from_secs(30);
const GIVEN_UP_MAX: u64 = 10_000;

/// The hashes that were looked for in vain a moment ago, for as long as trouble may last.
#[derive(Clone, Debug)]
pub struct GivenUp(moka::sync::Cache<StorePathHash, ()>);

impl Default for GivenUp {
    fn default() -> Self {
        let given_up = moka::sync::Cache::builder().max_capacity(GIVEN_UP_MAX).time_to_live(GIVEN_UP_FOR);
        Self(given_up.build())
    }
}

/// How a pursuit ends.
#[derive(Debug)]
pub(super) enum End {
    /// It is served.
    Ready(Arc<Ready>),
    /// It is not to be had.
    Missing(Missing),
    /// The server stops.
    Stopped,
}

/// A request on its way.
pub(super) struct Pursuit {
    service: Service,
    hash: StorePathHash,
    on_miss: OnMiss,
    stage: Stage,
    /// Trouble that was met and has not passed.
    trouble: Option<Trouble>,
}

/// Small, since very many may be built for.
enum Stage {
    Looking(Pin<Box<dyn Future<Output = Answer> + Send>>),
    Building(Ticket),
    /// Until it is looked for again; what is to be said where that is too late.
    Resting(Pin<Box<Sleep>>),
}

/// What may pass.
struct Trouble {
    reasons: Arc<[String]>,
    since: Instant,
    pause: Duration,
}

impl Pursuit {
    pub(super) fn new(service: &Service, hash: StorePathHash, on_miss: OnMiss) -> Self {
        let stage = Stage::Looking(look(service, hash, &on_miss));
        Self { service: service.clone(), hash, on_miss, stage, trouble: None }
    }

    /// The end. May be dropped and called again at any time before it.
    pub(super) async fn ended(&mut self) -> End {
        loop {
            if let Some(end) = self.go_on().await {
                return end;
            }
        }
    }

    /// Resolves when it is known whether it is built, or what trouble there is; with the end, if there is one by then.
    pub(super) async fn decided(&mut self) -> Option<End> {
        while let (Stage::Looking(_), None) = (&self.stage, &self.trouble) {
            let end = self.go_on().await;
            if end.is_some() {
                return end;
            }
        }
        None
    }

    /// Brings one stage to its end, which may be that of all.
    async fn go_on(&mut self) -> Option<End> {
        let service = &self.service;
        match &mut self.stage {
            Stage::Looking(look) => {
                let answer = tokio::select! {
                    answer = look => answer,
                    () = stopped(service) => return Some(End::Stopped),
                };
                match answer {
                    Answer::Ready(ready) => return Some(End::Ready(ready)),
                    Answer::Missing(missing) => return Some(End::Missing(missing)),
                    Answer::Wait(ticket) => {
                        self.trouble = None;
                        self.stage = Stage::Building(ticket);
                    }
                    Answer::Troubled { missing, trouble } => match self.rest(trouble) {
                        Some(pause) => self.stage = Stage::Resting(Box::pin(sleep(pause))),
                        None => return Some(End::Missing(missing)),
                    },
                }
            }
            Stage::Building(ticket) => {
                let ended = tokio::select! {
                    ended = ticket.ended() => ended,
                    () = service.stopping() => None,
                };
                return Some(match ended {
                    Some(Ok(())) => match after_build(service.clone(), self.hash).await {
                        Ok(ready) => End::Ready(ready),
                        Err(missing) => End::Missing(missing),
                    },
                    Some(Err(failure)) => End::Missing(Missing::Failed(failure)),
                    None => End::Stopped,
                });
            }
            Stage::Resting(pause) => {
                tokio::select! {
                    () = pause => {}
                    () = service.stopping() => return Some(End::Stopped),
                }
                self.stage = Stage::Looking(look(&self.service, self.hash, &self.on_miss));
            }
        }
        None
    }

    /// How long to rest before the next look; `None` when trouble has lasted too long.
    fn rest(&mut self, reasons: Arc<[String]>) -> Option<Duration> {
        let given_up = &self.service.parts.given_up.0;
        if self.trouble.is_none() && given_up.contains_key(&self.hash) {
            return None;
        }
        let fresh = || Trouble { reasons: [].into(), since: Instant::now(), pause: PAUSE_MIN };
        let patience = self.patience();
        let waits_for_build = matches!(self.on_miss, OnMiss::Build(_));
        let trouble = self.trouble.get_or_insert_with(fresh);
        trouble.reasons = reasons;
        let left = patience.saturating_sub(trouble.since.elapsed());
        let pause = trouble.pause.min(left);
        trouble.pause = (trouble.pause * 2).min(PAUSE_MAX);
        if left.is_zero() && waits_for_build {
            given_up.insert(self.hash, ());
        }
        (!left.is_zero()).then_some(pause)
    }

    /// How long trouble may last. Who only reports what is there is not kept waiting for long.
    fn patience(&self) -> Duration {
        let settings = &self.service.parts.settings;
        match self.on_miss {
            OnMiss::Build(_) => settings.transient_retry,
            OnMiss::Report(_) | OnMiss::Relayed(_) => settings.transient_retry.min(settings.hold),
        }
    }

    /// The time between two lines about the wait.
    pub(super) fn keep_alive(&self) -> Duration {
        self.service.parts.settings.keep_alive
    }

    /// Whether it is only waited out that trouble passes, and not for long.
    pub(super) fn is_mere_trouble(&self) -> bool {
        !matches!(self.on_miss, OnMiss::Build(_)) && self.trouble.is_some()
    }

    /// The build that is waited for.
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        match &self.stage {
            Stage::Building(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// Where it stands, for the person who waits. Some of it is text of others.
    pub(super) fn describe(&self) -> String {
        let stage = match &self.stage {
            Stage::Building(ticket) => return ticket.describe(),
            Stage::Looking(_) => self.service.parts.substitute.describe(self.hash),
            Stage::Resting(_) => "waiting until that may have passed".into(),
        };
        let Some(trouble) = &self.trouble else { return stage };
        let left = self.patience().saturating_sub(trouble.since.elapsed()).as_secs();
        let reasons = trouble.reasons.join("; ");
        format!("trouble: {reasons}; tried again for {left} s more (transient-retry); {stage}")
    }
}

/// Resolves a moment after the server has begun to stop: most looks are over by then.
async fn stopped(service: &Service) {
    service.stopping().await;
    sleep(STOPPED_AFTER).await;
}

/// In a box, so that no room is kept for it while the client waits.
fn after_build(
    service: Service,
    hash: StorePathHash,
) -> Pin<Box<dyn Future<Output = Result<Arc<Ready>, Missing>> + Send>> {
    Box::pin(async move { service.parts.substitute.after_build(hash).await })
}

/// In a box, so that nothing of it is kept while the client waits for a build.
fn look(
    service: &Service,
    hash: StorePathHash,
    on_miss: &OnMiss,
) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
    let (service, on_miss) = (service.clone(), on_miss.clone());
    Box::pin(async move { service.parts.substitute.ask(hash, on_miss).await })
}
