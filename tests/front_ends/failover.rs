//! Three servers over a PostgreSQL with a replica, which is promoted when the primary is killed or hangs: the
//! order stays, everybody is answered, and a primary that was replaced is used no more.

use std::time::{Duration, Instant};

use crate::support::derivations::text_file;
use crate::support::fleet::{Fleet, Waiting};
use crate::support::process::Signal;
use crate::support::{Instantiated, wait_until};

use super::{SOON, assert_all_answered};

/// Time from the promotion until builds go on, at most.
const GOES_ON_WITHIN: Duration = Duration::from_secs(15);

/// Builds go on at each server, under names with this word, and all servers have what was served.
#[track_caller]
fn assert_goes_on(fleet: &Fleet, served: &[Instantiated], word: &str) {
    let since = Instant::now();
    for number in 0..3 {
        let later = fleet.store.instantiate(&text_file(&format!("{word}-{number}"), "later"));
        fleet.wait_for(number, later.out()).assert_answered();
    }
    assert!(since.elapsed() < GOES_ON_WITHIN, "{:?}", since.elapsed());
    for path in served {
        (0..3).for_each(|number| fleet.assert_served(number, path.out()));
    }
}

#[test]
fn a_replica_that_is_promoted_has_every_request_in_its_order_and_nobody_is_refused() {
    let Some(mut fleet) = Fleet::replicated(3, &[]) else { return };
    fleet.wait_for_leader();
    let hit = fleet.store.instantiate(&text_file("hit", "hit"));
    fleet.wait_for(0, hit.out()).assert_answered();
    for round in 0..2 {
        // After a failover nothing is in memory before it is asked for.
        (0..3).for_each(|number| fleet.assert_served(number, hit.out()));
        let gate = fleet.store.gate();
        let names = ["first", "second", "third", "fourth"].map(|name| format!("{name}-{round}"));
        let names = names.each_ref().map(|name| &**name);
        let (wanted, mut waiting) = fleet.ask_in_order(&names, &[0, 1, 2], &gate);
        fleet.database.kill();
        // Hits go on, and those who ask meanwhile wait.
        (0..3).for_each(|number| fleet.assert_served(number, hit.out()));
        let meanwhile = fleet.gated(&format!("meanwhile-{round}"), &gate);
        waiting.push(fleet.wait_for(round, meanwhile.out()));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!waiting.iter().any(Waiting::is_answered), "somebody was answered without a database");
        fleet.promote();
        let all: Vec<&Instantiated> = wanted.iter().chain([&meanwhile]).collect();
        fleet.wait_for_queue(&all);
        gate.open();
        assert_all_answered(waiting);
        fleet.check_history().check_starts(&gate, |_| Vec::new());
        assert_goes_on(&fleet, &wanted, &format!("later-{round}"));
        fleet.replicate_again();
    }
    fleet.check_history();
}

#[test]
fn a_primary_that_hangs_and_comes_back_after_a_promotion_is_used_no_more() {
    let Some(mut fleet) = Fleet::replicated(3, &[]) else { return };
    fleet.wait_for_leader();
    let gate = fleet.store.gate();
    let (wanted, waiting) = fleet.ask_in_order(&["first", "second", "third"], &[0, 1, 2], &gate);
    fleet.database.signal(Signal::Stop);
    fleet.promote();
    wait_until("a server leads", SOON, || fleet.leader().is_some());
    gate.open();
    assert_all_answered(waiting);
    assert_goes_on(&fleet, &wanted, "promoted");
    // It takes writes again, and is the first one in the setting.
    let replaced = fleet.replica.as_ref().expect("the old one");
    let since = fleet.database.sql("SELECT clock_timestamp()");
    replaced.signal(Signal::Cont);
    let count = || replaced.sql("SELECT count(*) FROM test0.request_number, test0.path");
    let before = count();
    for round in 0..3 {
        fleet
            .database
            .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ondine'");
        assert_goes_on(&fleet, &wanted, &format!("round-{round}"));
    }
    assert_eq!(count(), before, "the old primary was written to");
    // What was being written when it hung waits for its replica for ever.
    let used = replaced.sql(&format!(
        "SELECT backend_start, xact_start, wait_event, query FROM pg_stat_activity \
         WHERE application_name = 'ondine' AND backend_xid IS NOT NULL AND xact_start > '{since}'"
    ));
    assert_eq!(used, "", "the old primary is used (since {since})");
    fleet.check_history();
}
