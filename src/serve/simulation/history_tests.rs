//! The check of histories finds what it is to find.

use std::collections::BTreeSet;

use narinfo::{NarHash, StorePath};
use tokio::time::Instant;

use super::history::{Event, History};
use super::site::{drv, output};
use crate::index::cluster::DatabaseEvent;
use crate::model::{EndingRow, NodeId, QueueOutcome, Term};

const NAR: NarHash = NarHash::from_bytes([1; 32]);

fn leads(epoch: u64) -> Event {
    Event::Database(DatabaseEvent::TakenOver(Term { epoch, holder: NodeId("server-0".to_owned()) }))
}

fn asked(request: u64) -> Event {
    Event::Database(DatabaseEvent::Asked { request, drv: drv(request) })
}

fn started(epoch: u64, number: u64) -> Event {
    Event::Started { server: 0, epoch, drv: drv(number) }
}

fn built(number: u64) -> Event {
    Event::Ended { server: 0, drv: drv(number), well: true }
}

fn packed(epoch: u64) -> Event {
    Event::Database(DatabaseEvent::Packed { nar: NAR, epoch: Some(epoch) })
}

fn published(epoch: u64) -> Event {
    Event::Database(DatabaseEvent::Published { path: output(1), nar: NAR, epoch: Some(epoch) })
}

fn ended(epoch: u64, request: u64) -> Event {
    let ending = EndingRow { request, drv: drv(request), outcome: QueueOutcome::Served };
    Event::Database(DatabaseEvent::Ended { ending, epoch: Some(epoch) })
}

fn broken(events: Vec<Event>) -> Vec<String> {
    let needs = |number| (drv(number), BTreeSet::from([drv(number)]));
    let needs: std::collections::BTreeMap<StorePath, BTreeSet<StorePath>> =
        [1, 2].into_iter().map(needs).collect();
    let now = Instant::now();
    History { needs, events: events.into_iter().map(|event| (now, event)).collect() }.broken()
}

#[track_caller]
fn assert_broken(events: Vec<Event>, by: &str) {
    let broken = broken(events);
    assert!(broken.len() == 1 && broken[0].contains(by), "{broken:?}");
}

/// A request from its begin to its end.
fn whole() -> Vec<Event> {
    let acknowledged = Event::Acknowledged { client: 1, request: 1 };
    let gone = Event::Gone { client: 1, is_answered: true };
    let built = [started(1, 1), built(1), Event::Stored(NAR), packed(1), published(1), ended(1, 1)];
    [leads(1), asked(1), acknowledged].into_iter().chain(built).chain([gone]).collect()
}

/// The same without what happens at this place.
fn without(at: usize) -> Vec<Event> {
    let mut events = whole();
    events.remove(at);
    events
}

#[test]
fn what_keeps_all_promises_is_not_found() {
    assert_eq!(broken(whole()), [""; 0]);
}

#[test]
fn a_narinfo_before_its_nar_is_found() {
    assert_broken(without(6), "has a narinfo before its NAR");
    assert_broken(without(5), "has a row and no file");
}

#[test]
fn an_acknowledged_request_without_an_answer_is_found() {
    assert_broken(without(9), "client 1 has no answer");
    assert_broken(without(8), "request 1 for");
    assert_broken([whole(), vec![ended(1, 1)]].concat(), "has ended twice");
}

#[test]
fn starts_against_the_order_or_twice_at_a_time_are_found() {
    let queue = vec![leads(1), asked(1), asked(2)];
    let ends = |events: Vec<Event>| [queue.clone(), events, vec![ended(1, 1), ended(1, 2)]].concat();
    assert_eq!(broken(ends(vec![started(1, 1), built(1), started(1, 2), built(2)])), [""; 0]);
    assert_broken(ends(vec![started(1, 2), built(2), started(1, 1), built(1)]), "before");
    assert_broken(ends(vec![started(1, 1), started(1, 1)]), "was started while it runs");
    assert_broken(ends(vec![started(1, 1), built(1), started(1, 1)]), "again where it is built");
    assert_broken([whole(), vec![started(1, 2)]].concat(), "which no request needs");
    let given_up = EndingRow { request: 2, drv: drv(2), outcome: QueueOutcome::Dropped };
    let given_up = Event::Database(DatabaseEvent::Ended { ending: given_up, epoch: Some(1) });
    assert_eq!(broken(vec![leads(1), asked(2), given_up, started(1, 2), built(2)]), [""; 0]);
}

#[test]
fn what_a_leader_does_that_was_replaced_is_found() {
    let late = |event: Event| [vec![leads(1), asked(1), Event::Stored(NAR), leads(2)], vec![event]].concat();
    let ends = |events: Vec<Event>| [events, vec![ended(2, 1)]].concat();
    assert_broken(ends(late(started(1, 1))), "while term 2 leads");
    assert_broken(ends(late(packed(1))), "a NAR was recorded by term");
    assert_broken(late(ended(1, 1)), "an ending was recorded by term");
    assert_broken(ends(late(leads(2))), "comes after term 2");
}
