//! Several servers over one PostgreSQL and one bucket: what is asked for at one is built once, by the leader,
//! and served by all; the leader is killed, frozen or restarted, and the next one goes on in the same order;
//! a leader that was taken over from records nothing. Needs the feature `postgres` and an object store.

mod bucket_faults;
mod failover;
mod publication;
mod random_faults;

use std::time::{Duration, Instant};

use crate::support::cache::assert_missing;
use crate::support::derivations::{Derivation, text_file};
use crate::support::fleet::{Fleet, Waiting};
use crate::support::process::Signal;
use crate::support::wait_until;

const SOON: Duration = Duration::from_secs(60);
/// Time within which another server leads.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(5);

/// Waits for the end of each.
#[track_caller]
fn assert_all_answered(waiting: Vec<Waiting>) {
    waiting.into_iter().for_each(Waiting::assert_answered);
}

/// Number of a server that does not lead.
#[track_caller]
fn follower(fleet: &Fleet, leader: usize) -> usize {
    (0..fleet.servers.len()).find(|number| *number != leader).expect("there are others")
}

/// Waits until another server than this one leads; the time that took.
#[track_caller]
fn taken_over(fleet: &Fleet, from: usize, since: Instant) -> usize {
    wait_until("another server leads", SOON, || fleet.leader().is_some_and(|leader| leader != from));
    let took = since.elapsed();
    assert!(took < TAKEN_OVER_WITHIN, "it took {took:?}");
    fleet.leader().expect("one leads")
}

#[test]
fn a_miss_at_any_server_is_built_once_and_served_by_all() {
    let Some(fleet) = Fleet::start(3, &[]) else { return };
    let leader = fleet.wait_for_leader();
    let follower = follower(&fleet, leader);
    let gate = fleet.store.gate();
    let wanted = fleet.gated("wanted", &gate);
    let waiting: Vec<Waiting> =
        [follower, leader, follower].map(|number| fleet.wait_for(number, wanted.out())).into();
    gate.wait_for_starts(1);
    fleet.wait_for_queue(&[&wanted]);
    gate.open();
    assert_all_answered(waiting);
    assert_eq!(gate.starts(), ["wanted"]);
    for number in 0..3 {
        fleet.assert_served(number, wanted.out());
    }
    let failing = fleet.store.instantiate(&Derivation::new("failing", "echo no; exit 1"));
    for number in [follower, leader] {
        assert_missing(&fleet.wait_for(number, failing.out()).answer(), &["failed"]);
    }
    wait_until("the queue is empty", SOON, || fleet.sql("SELECT count(*) FROM request") == "0");
    fleet.check_history();
}

#[test]
fn a_leader_that_is_killed_is_replaced_and_the_order_stays() {
    let Some(mut fleet) = Fleet::start(3, &[]) else { return };
    let leader = fleet.wait_for_leader();
    let others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    let gate = fleet.store.gate();
    let names = ["first", "second", "third", "fourth"];
    let (wanted, waiting) = fleet.ask_in_order(&names, &others, &gate);
    let since = Instant::now();
    fleet.servers[leader].kill9();
    taken_over(&fleet, leader, since);
    gate.wait_for_starts(2);
    assert!(!waiting.iter().any(Waiting::is_answered), "clients of live servers are answered before a build");
    gate.open();
    assert_all_answered(waiting);
    // What the dead one was at is begun anew, unless its daemon had not noticed yet.
    assert_eq!(gate.starts(), ["first", "first", "second", "third", "fourth"]);
    assert_eq!(fleet.check_history().ended, names);
    // It comes back as one that follows.
    fleet.servers[leader].start_again();
    fleet.assert_served(leader, wanted[0].out());
}

#[test]
fn a_leader_that_was_frozen_finds_itself_replaced_and_records_nothing() {
    let Some(fleet) = Fleet::start(2, &[]) else { return };
    let frozen = fleet.wait_for_leader();
    let other = follower(&fleet, frozen);
    let gate = fleet.store.gate();
    let (wanted, waiting) = fleet.ask_in_order(&["first", "second"], &[other], &gate);
    let epoch = fleet.sql("SELECT epoch FROM leadership");
    let since = Instant::now();
    fleet.signal(frozen, Signal::Stop);
    taken_over(&fleet, frozen, since);
    gate.open();
    assert_all_answered(waiting);
    fleet.signal(frozen, Signal::Cont);
    wait_until("it follows", SOON, || fleet.servers[frozen].log().contains("following: another server"));
    assert_eq!(fleet.sql(&format!("SELECT count(*) FROM ending WHERE epoch = {epoch}")), "0");
    fleet.check_history();
    // It serves what the other one has built, and has it build what it is asked for.
    for path in &wanted {
        fleet.assert_served(frozen, path.out());
    }
    let later = fleet.store.instantiate(&text_file("later", "later"));
    fleet.wait_for(frozen, later.out()).assert_answered();
    fleet.assert_served(other, later.out());
    fleet.check_history();
}

#[test]
fn a_database_that_restarts_stops_no_hit_and_loses_no_request() {
    let Some(mut fleet) = Fleet::start(2, &[]) else { return };
    let leader = fleet.wait_for_leader();
    let other = follower(&fleet, leader);
    let hit = fleet.store.instantiate(&text_file("hit", "hit"));
    fleet.wait_for(other, hit.out()).assert_answered();
    (0..2).for_each(|number| fleet.assert_served(number, hit.out()));
    let gate = fleet.store.gate();
    let wanted = ["before", "meanwhile"].map(|name| fleet.gated(name, &gate));
    let before = fleet.wait_for(other, wanted[0].out());
    gate.wait_for_starts(1);
    fleet.database.kill();
    (0..2).for_each(|number| fleet.assert_served(number, hit.out()));
    let meanwhile = fleet.wait_for(other, wanted[1].out());
    fleet.database.restart();
    fleet.wait_for_queue(&[&wanted[0], &wanted[1]]);
    gate.open();
    assert_all_answered(vec![before, meanwhile]);
    assert_eq!(fleet.leader(), Some(leader), "the leader was there all the time");
    assert_eq!(gate.starts(), ["before", "meanwhile"]);
    fleet.check_history();
}

#[test]
fn roles_are_kept_and_a_server_that_stops_hands_over_at_once() {
    let Some(mut fleet) = Fleet::start(1, &["--roles", "serve"]) else { return };
    let path = fleet.store.instantiate(&text_file("asked-for", "asked-for"));
    let waiting = fleet.wait_for(0, path.out());
    fleet.wait_for_queue(&[&path]);
    assert_eq!(fleet.leader(), None, "nobody schedules");
    let first = fleet.add(&["--roles", "serve,schedule"]);
    waiting.assert_answered();
    assert_eq!(fleet.leader(), Some(first));
    let second = fleet.add(&["--roles", "schedule"]);
    let since = Instant::now();
    assert!(fleet.servers[first].sigterm().success());
    assert_eq!(taken_over(&fleet, first, since), second);
    let later = fleet.store.instantiate(&text_file("later", "later"));
    fleet.wait_for(0, later.out()).assert_answered();
    fleet.check_history();
}
