//! The history of a run, from the log of the database and of the machines, and the promises that it must
//! keep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use narinfo::{NarHash, StorePath};
use tokio::time::Instant;

use crate::index::cluster::DatabaseEvent;
use crate::model::QueueOutcome;

/// Time within which a leader hears that a request was given up: as long as a write is tried.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// In the database.
    Database(DatabaseEvent),
    /// A client was told that it waits for a request.
    Acknowledged { client: u64, request: u64 },
    /// A client has its answer, or has left.
    Gone { client: u64, is_answered: bool },
    /// A NAR is in the bucket.
    Stored(NarHash),
    /// A build was started.
    Started { server: usize, epoch: u64, drv: StorePath },
    /// A build has ended, well or not.
    Ended { server: usize, drv: StorePath, well: bool },
    /// A server was killed, and what it ran with it.
    Killed(usize),
}

/// Events in their order.
#[derive(Default)]
pub(super) struct History {
    /// Derivations that each derivation needs, itself among them.
    pub(super) needs: BTreeMap<StorePath, BTreeSet<StorePath>>,
    pub(super) events: Vec<(Instant, Event)>,
}

/// State of the world while a history is gone through.
#[derive(Default)]
struct Checker<'a> {
    needs: BTreeMap<&'a StorePath, &'a BTreeSet<StorePath>>,
    epoch: u64,
    stored: BTreeSet<NarHash>,
    packed: BTreeSet<NarHash>,
    /// Requests that have not ended.
    open: BTreeMap<u64, &'a StorePath>,
    ended: BTreeSet<u64>,
    /// Derivations of requests that were given up, and when.
    given_up: Vec<(Instant, &'a StorePath)>,
    /// Builds under way, each with its server and term.
    running: BTreeSet<(usize, u64, &'a StorePath)>,
    /// Derivations that each server has built.
    built: BTreeSet<(usize, &'a StorePath)>,
    /// Derivations whose builds have failed in a term.
    failed: BTreeSet<(u64, &'a StorePath)>,
    acknowledged: BTreeMap<u64, BTreeSet<u64>>,
    found: Vec<String>,
}

impl History {
    /// The promises that were broken.
    pub(super) fn broken(&self) -> Vec<String> {
        let needs = self.needs.iter().collect();
        let mut checker = Checker { needs, ..Checker::default() };
        let Some((begin, _)) = self.events.first() else { return vec!["nothing has happened".to_owned()] };
        for (at, event) in &self.events {
            let before = checker.found.len();
            checker.check(*at, event);
            let after = at.duration_since(*begin);
            checker.found[before..].iter_mut().for_each(|found| *found = format!("after {after:?}: {found}"));
        }
        checker.check_end();
        checker.found
    }

    /// The history as text.
    pub(super) fn lines(&self) -> Vec<String> {
        let begin = self.events.first().map(|(at, _)| *at);
        let after = |at: &Instant| begin.map_or(Duration::ZERO, |begin| at.duration_since(begin));
        self.events.iter().map(|(at, event)| format!("{:>14.3?} {event:?}", after(at))).collect()
    }
}

impl<'a> Checker<'a> {
    fn is_broken(&mut self, promise: String) {
        self.found.push(promise);
    }

    fn check(&mut self, at: Instant, event: &'a Event) {
        match event {
            Event::Database(event) => self.check_write(at, event),
            Event::Acknowledged { client, request } => {
                self.acknowledged.entry(*client).or_default().insert(*request);
                if !self.open.contains_key(request) && !self.ended.contains(request) {
                    self.is_broken(format!(
                        "client {client} waits for request {request}, which was never made"
                    ));
                }
            }
            Event::Gone { client, .. } => drop(self.acknowledged.remove(client)),
            Event::Stored(nar) => drop(self.stored.insert(*nar)),
            Event::Started { server, epoch, drv } => self.check_start(at, *server, *epoch, drv),
            Event::Ended { server, drv, well } => {
                let run = self.running.iter().find(|(on, _, run)| on == server && *run == drv).copied();
                let Some(run) = run else {
                    return self.is_broken(format!("{drv} ends that was not started"));
                };
                self.running.remove(&run);
                match well {
                    true => drop(self.built.insert((*server, drv))),
                    false => drop(self.failed.insert((run.1, drv))),
                }
            }
            Event::Killed(server) => self.running.retain(|(on, _, _)| on != server),
        }
    }

    fn check_write(&mut self, at: Instant, event: &'a DatabaseEvent) {
        match event {
            DatabaseEvent::TakenOver(term) => {
                if term.epoch <= self.epoch {
                    self.is_broken(format!("term {term:?} comes after term {}", self.epoch));
                }
                self.epoch = term.epoch;
            }
            DatabaseEvent::Asked { request, drv } => {
                if self.open.last_key_value().is_some_and(|(latest, _)| latest >= request) {
                    self.is_broken(format!("request {request} comes after a later one"));
                }
                self.open.insert(*request, drv);
            }
            DatabaseEvent::Packed { nar, epoch } => {
                self.check_fence(*epoch, "a NAR");
                if !self.stored.contains(nar) {
                    self.is_broken(format!("{nar:?} has a row and no file"));
                }
                self.packed.insert(*nar);
            }
            DatabaseEvent::Published { path, nar, epoch } => {
                self.check_fence(*epoch, "a path");
                if !self.packed.contains(nar) {
                    self.is_broken(format!("{path} has a narinfo before its NAR"));
                }
            }
            DatabaseEvent::Ended { ending, epoch } => {
                let id = ending.request;
                // Any server may note that its own clients have cancelled.
                if ending.outcome != QueueOutcome::Cancelled || epoch.is_some() {
                    self.check_fence(*epoch, "an ending");
                }
                if !self.ended.insert(id) {
                    self.is_broken(format!("request {id} has ended twice"));
                }
                self.open.remove(&id);
                if matches!(ending.outcome, QueueOutcome::Dropped | QueueOutcome::Cancelled) {
                    self.given_up.push((at, &ending.drv));
                }
            }
        }
    }

    /// A leader that was replaced records nothing.
    fn check_fence(&mut self, epoch: Option<u64>, what: &str) {
        if epoch != Some(self.epoch) {
            let latest = self.epoch;
            self.is_broken(format!("{what} was recorded by term {epoch:?} while term {latest} leads"));
        }
    }

    fn check_start(&mut self, at: Instant, server: usize, epoch: u64, drv: &'a StorePath) {
        if epoch != self.epoch {
            let latest = self.epoch;
            self.is_broken(format!("term {epoch} has started {drv} while term {latest} leads"));
        }
        // A leader that was cut off learns late that it was replaced: what it runs then comes to nothing.
        if self.running.iter().any(|(_, of, run)| *of == epoch && *run == drv) {
            self.is_broken(format!("{drv} was started while it runs"));
        }
        if self.built.contains(&(server, drv)) {
            self.is_broken(format!("{drv} was started again where it is built"));
        }
        let needs = |wanted: &StorePath, drv: &StorePath| {
            self.needs.get(wanted).is_some_and(|needs| needs.contains(drv))
        };
        let owner = self.open.iter().find(|(_, wanted)| needs(wanted, drv)).map(|(owner, _)| *owner);
        let Some(owner) = owner else {
            // A leader may start what was given up until it has heard of that.
            let unheard = |(since, wanted): &(Instant, &StorePath)| {
                at.duration_since(*since) <= HEARD_WITHIN && needs(wanted, drv)
            };
            if self.given_up.iter().any(unheard) {
                self.running.insert((server, epoch, drv));
                return;
            }
            return self.is_broken(format!("{drv} was started, which no request needs"));
        };
        // Every older one has all that it needs, or has failed, or is at work.
        let is_past = |needed: &StorePath| {
            self.built.contains(&(server, needed))
                || self.running.iter().any(|(_, of, run)| *of == epoch && *run == needed)
        };
        let is_over = |wanted: &StorePath| {
            let Some(needs) = self.needs.get(wanted) else { return false };
            needs.iter().all(is_past) || needs.iter().any(|drv| self.failed.contains(&(epoch, drv)))
        };
        let overtaken = self.open.range(..owner).find(|(_, wanted)| !is_over(wanted));
        if let Some((older, wanted)) = overtaken {
            self.found
                .push(format!("{drv} was started for request {owner} before {wanted} of request {older}"));
        }
        self.running.insert((server, epoch, drv));
    }

    fn check_end(&mut self) {
        for (request, drv) in std::mem::take(&mut self.open) {
            self.is_broken(format!("request {request} for {drv} has not ended"));
        }
        for (client, requests) in std::mem::take(&mut self.acknowledged) {
            self.is_broken(format!("client {client} has no answer to {requests:?}"));
        }
    }
}

/// True where a request was made.
pub(super) fn is_request(event: &Event) -> bool {
    matches!(event, Event::Database(DatabaseEvent::Asked { .. }))
}
