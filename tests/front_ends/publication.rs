//! Servers that publish in one bucket: the leader does, a kill leaves nothing undone for its successor, and a
//! server that does not lead withdraws what it removes.

use std::time::Instant;

use crate::support::addresses::narinfo_address;
use crate::support::derivations::{noise, text_file};
use crate::support::fleet::Fleet;
use crate::support::{BucketFault, Instantiated, TestBucket, wait_until};

use super::{SOON, follower, taken_over};

fn has(fleet: &Fleet, path: &Instantiated) -> bool {
    fleet.bucket.keys().contains(&narinfo_address(path.out())[1..].to_owned())
}

#[test]
fn the_leader_publishes_its_successor_goes_on_and_each_withdraws_what_it_removes() {
    let arguments = ["--nar-store-publish", "narinfo", "--eviction-grace", "0s"];
    let Some(mut fleet) = Fleet::start(2, &arguments) else { return };
    let leader = fleet.wait_for_leader();
    let other = follower(&fleet, leader);
    let paths = [noise("first", 300_000), text_file("second", "second")];
    let [first, second] = paths.map(|derivation| fleet.store.instantiate(&derivation));
    fleet.wait_for(other, first.out()).assert_answered();
    wait_until("it is published", SOON, || has(&fleet, &first));

    // Killed between a NAR and its narinfo, for which nobody waits.
    fleet.proxy.set(BucketFault::Refuse(".narinfo HTTP"));
    fleet.wait_for(other, second.out()).assert_answered();
    wait_until("its narinfo is tried", SOON, || fleet.proxy.cuts() > 0);
    assert!(!has(&fleet, &second));
    let since = Instant::now();
    fleet.servers[leader].kill9();
    taken_over(&fleet, leader, since);
    fleet.proxy.set(BucketFault::None);
    wait_until("its successor publishes it", SOON, || has(&fleet, &second));

    fleet.servers[leader].start_again();
    fleet.servers[leader].end_all_uses();
    fleet.servers[leader].run("gc", &["--max-bytes", "1"]).must_succeed();
    assert!(!has(&fleet, &first) && !has(&fleet, &second), "{:?}", fleet.bucket.keys());
    assert_eq!(fleet.bucket.nars(), [""; 0]);
}
