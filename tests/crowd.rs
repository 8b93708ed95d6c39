//! The promise to a crowd: ten thousand clients wait for one build, each hears that it waits, and each has
//! the whole narinfo moments after the build's end, from a server that stays small. How fast it is exactly,
//! `cargo bench --bench crowd` tells.

use std::time::Duration;

use crate::support::crowd;

const CLIENTS: usize = 10_000;
/// Memory that they may cost the server, in bytes.
const MEMORY_MAX: u64 = 150 << 20;
/// A machine that does much else meanwhile, and a server that is not optimised.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn ten_thousand_clients_wait_for_one_build_and_each_gets_all_of_the_narinfo() {
    let seen = crowd::waits_for_one_build(CLIENTS);
    println!("{CLIENTS} clients: {seen}");
    assert!(seen.peak_bytes - seen.idle_bytes < MEMORY_MAX, "{seen}");
    assert!(seen.since_open < ANSWERED_WITHIN, "{seen}");
}
