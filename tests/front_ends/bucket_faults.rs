//! Three servers whose bucket answers 503, hangs, is slow or cuts uploads: what was built is published once
//! it is stored whole, at no server earlier, and everybody is answered then.

use std::time::{Duration, Instant};

use crate::support::derivations::noise;
use crate::support::fleet::{Fleet, Waiting};
use crate::support::{BucketFault, Instantiated, TestBucket, wait_until};

use super::{SOON, assert_all_answered, follower, taken_over};

/// Bytes of a NAR that is put at once, and of one that is put in parts.
const SIZES: [(&str, u32); 2] = [("middle", 900_000), ("large", 9 << 20)];
/// Time for which a failure is looked at.
const LOOKED_AT_FOR: Duration = Duration::from_secs(3);

/// Derivations whose names have this word, one of each size, with so many bytes more: no two have one NAR.
fn derivations(fleet: &Fleet, word: &str, more: u32) -> [Instantiated; 2] {
    SIZES.map(|(name, bytes)| fleet.store.instantiate(&noise(&format!("{name}-{word}"), bytes + more)))
}

/// Begins to wait for each at every server.
fn wait_everywhere(fleet: &Fleet, paths: &[Instantiated]) -> Vec<Waiting> {
    let waits = paths.iter().flat_map(|path| (0..3).map(move |number| (number, path)));
    waits.map(|(number, path)| fleet.wait_for(number, path.out())).collect()
}

/// Nothing is on record but so many NARs and their paths.
#[track_caller]
fn assert_recorded(fleet: &Fleet, stored: usize) {
    assert_eq!(fleet.sql("SELECT count(*) FROM path"), stored.to_string());
    assert_eq!(fleet.sql("SELECT count(*) FROM nar"), stored.to_string());
    assert_eq!(fleet.bucket.nars().len(), stored);
}

#[test]
fn what_a_failing_bucket_has_not_stored_is_published_by_no_server_until_it_has() {
    let Some(fleet) = Fleet::start(3, &[]) else { return };
    fleet.wait_for_leader();
    let faults = [
        ("unavailable", BucketFault::Unavailable),
        ("hanging", BucketFault::Hanging),
        ("cut", BucketFault::CutUploads(100_000)),
    ];
    let mut stored = 0;
    for (word, fault) in faults {
        let paths = derivations(&fleet, word, 64 * stored as u32);
        let connections = fleet.proxy.connections();
        fleet.proxy.set(fault);
        let waiting = wait_everywhere(&fleet, &paths);
        wait_until("an upload is tried", SOON, || fleet.proxy.connections() > connections);
        let since = Instant::now();
        while since.elapsed() < LOOKED_AT_FOR {
            assert_recorded(&fleet, stored);
            let answered = waiting.iter().any(Waiting::is_answered);
            assert!(!answered, "a client of a server was answered while the bucket was {word}");
            std::thread::sleep(Duration::from_millis(200));
        }
        fleet.proxy.set(BucketFault::None);
        assert_all_answered(waiting);
        stored += paths.len();
        for path in &paths {
            (0..3).for_each(|number| fleet.assert_served(number, path.out()));
        }
    }
    assert!(fleet.proxy.cuts() > 0, "nothing was cut");
    wait_until("no upload is left", SOON, || fleet.bucket.uploads() == 0);
    fleet.check_history();
}

#[test]
fn a_leader_that_is_killed_while_it_stores_leaves_nothing_half_and_its_successor_stores_it() {
    let Some(mut fleet) = Fleet::start(3, &[]) else { return };
    let leader = fleet.wait_for_leader();
    let path = fleet.store.instantiate(&noise("large", 20 << 20));
    fleet.proxy.set(BucketFault::Slow(Duration::from_millis(10)));
    let waiting = fleet.wait_for(follower(&fleet, leader), path.out());
    // An upload that the server has not learnt the number of stays for a lifecycle rule of the bucket.
    let journal = fleet.servers[leader].state_dir().join("nar/uploads");
    let is_noted = || std::fs::read_dir(&journal).is_ok_and(|entries| entries.count() > 0);
    wait_until("it is being stored", SOON, || is_noted() && fleet.bucket.uploads() > 0);
    let since = Instant::now();
    fleet.servers[leader].kill9();
    taken_over(&fleet, leader, since);
    assert_eq!(fleet.sql("SELECT count(*) FROM nar"), "0");
    fleet.proxy.set(BucketFault::None);
    waiting.assert_answered();
    // The next start of the one that was killed aborts what it left.
    fleet.servers[leader].start_again();
    wait_until("no upload is left", SOON, || fleet.bucket.uploads() == 0);
    (0..3).for_each(|number| fleet.assert_served(number, path.out()));
    fleet.check_history();
}
