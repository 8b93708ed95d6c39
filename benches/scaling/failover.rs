//! Time from the end of a leader, or from the moment at which it hangs, until another server leads, and until
//! what is asked for then is built.

use std::time::{Duration, Instant};

use crate::comparison::{Comparison, Goal};
use crate::support::derivations::text_file;
use crate::support::fleet::Fleet;
use crate::support::process::Signal;
use crate::support::wait_until;

const SERVERS: usize = 3;
/// Seconds until another server leads.
const TAKEN_OVER_MAX: f64 = 5.0;
/// Time limit of what is measured.
const LIMIT: Duration = Duration::from_secs(60);

/// Kills so many leaders, and freezes so many, in turns.
pub fn measure(count: u32, table: &mut Comparison) {
    let Some(mut fleet) = Fleet::start(SERVERS, &[]) else { return };
    for round in 0..count {
        for (kind, is_killed) in [("killed", true), ("frozen", false)] {
            let leader = fleet.wait_for_leader();
            let path = fleet.store.instantiate(&text_file(&format!("{kind}-{round}"), kind));
            let begun = Instant::now();
            if is_killed {
                fleet.servers[leader].kill9();
            } else {
                fleet.signal(leader, Signal::Stop);
            }
            let waiting = fleet.wait_for((leader + 1) % SERVERS, path.out());
            wait_until("another server leads", LIMIT, || fleet.leader().is_some_and(|now| now != leader));
            let taken_over = begun.elapsed().as_secs_f64();
            waiting.assert_answered();
            let answered = begun.elapsed().as_secs_f64();
            table.add("another server leads", "s", Goal::AtMost(TAKEN_OVER_MAX), kind, taken_over);
            table.add("a request is built and answered", "s", Goal::Nothing, kind, answered);
            if is_killed {
                fleet.servers[leader].start_again();
            } else {
                fleet.signal(leader, Signal::Cont);
            }
            eprintln!("{kind}, {} of {count}: {taken_over:.1} s", round + 1);
        }
    }
}
