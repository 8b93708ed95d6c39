//! The queue survives the end of the server, however sudden: the same order, nothing twice, nothing lost.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::cache::assert_narinfo;
use crate::support::process::runs;
use crate::support::{Cache, Derivation, Gate, Instantiated, wait_until};

/// Time limit of all that is queued, each a trivial build.
const SOON: Duration = Duration::from_secs(60);

/// Two derivations with a client each: the first is being built and waits at the gate, the second waits
/// behind it.
fn two_in_line(cache: &Cache) -> (Gate, [Instantiated; 2], [TcpStream; 2]) {
    let gate = cache.store.gate();
    let [first, second] = ["first", "second"].map(|name| cache.gated(name, &gate));
    let running = cache.stand_in_line(first.out());
    gate.wait_for_starts(1);
    let waiting = cache.stand_in_line(second.out());
    cache.wait_for_queue(&["first", "second"]);
    (gate, [first, second], [running, waiting])
}

#[test]
fn a_hundred_requests_are_in_their_old_order_after_a_kill_and_each_is_built_once() {
    let mut cache = Cache::new(&["--hold", "1s"]);
    let (gate, order) = (cache.store.gate(), cache.store.gate());
    let names: Vec<String> = (0..100).map(|n| format!("n{n}")).collect();
    let wanted: Vec<_> = names
        .iter()
        .map(|name| {
            let script = format!("{}{}echo {name} > $out", gate.script(name), order.note(name));
            cache.store.instantiate(&Derivation::new(name, &script))
        })
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut clients = Vec::new();
    for (number, wanted) in wanted.iter().enumerate() {
        clients.push(cache.stand_in_line(wanted.out()));
        cache.wait_for_queue(&names[..=number]);
    }
    gate.wait_for_starts(1);
    // Who hears that it waits is on record.
    let last = clients.last_mut().expect("there are a hundred");
    last.read_exact(&mut [0]).expect("it hears it");
    cache.ondine.crash_and_restart();
    assert_eq!(cache.queued(), names);
    // The last one comes back, and finds its place.
    let back = cache.ask_in_background(wanted[99].out());
    gate.wait_for_starts(2);
    assert_eq!(cache.queued(), names);
    gate.open();
    assert_narinfo(&back.answer(), wanted[99].out());
    wait_until("all are delivered", SOON, || cache.queued().is_empty());
    assert_eq!(order.starts(), names, "in the words of the builders that came to their end");
    for wanted in &wanted {
        cache.assert_served(wanted.out());
    }
    cache.ondine.crash_and_restart();
    assert!(cache.queued().is_empty(), "what is delivered does not come back");
}

#[test]
fn what_the_daemon_finished_while_the_server_was_down_is_delivered_without_another_build() {
    let mut cache = Cache::new(&[]);
    let (gate, [first, second], _clients) = two_in_line(&cache);
    cache.ondine.kill9();
    gate.open();
    cache.store.realise(&first.drv);
    let before = gate.starts().iter().filter(|name| *name == "first").count();
    cache.ondine.start_again();
    wait_until("both are delivered", SOON, || cache.queued().is_empty());
    cache.assert_served(first.out());
    cache.assert_served(second.out());
    assert_eq!(gate.starts().iter().filter(|name| *name == "first").count(), before);
}

#[test]
fn what_was_built_for_a_request_is_not_collected_while_the_server_is_down() {
    let mut cache = Cache::new(&[]);
    let (gate, order) = (cache.store.gate(), cache.store.gate());
    let input = Derivation::new("input", &format!("{}echo input > $out", order.note("input")));
    let marker = format!("marker-{}", cache.ondine.id());
    let script = format!("{}{}cat $input > $out # {marker}", gate.script("last"), order.note("last"));
    let last = cache.store.instantiate(&Derivation::new("last", &script).input("input", &input));
    let input = cache.store.instantiate(&input);
    cache.store.root(&last.drv);
    let _client = cache.stand_in_line(last.out());
    gate.wait_for_starts(1);
    cache.ondine.kill9();
    // While a build runs, the collector leaves its inputs anyway.
    wait_until("the daemon has ended the build", SOON, || !runs(&marker));
    cache.store.gc();
    assert!(cache.store.is_valid(input.out()));
    cache.ondine.start_again();
    gate.open();
    wait_until("it is delivered", SOON, || cache.queued().is_empty());
    cache.assert_served(last.out());
    assert_eq!(order.starts(), ["input", "last"], "nothing was built again");
}

#[test]
fn a_server_that_is_told_to_stop_keeps_its_queue_too() {
    let mut cache = Cache::new(&["--drain-timeout", "1s"]);
    let (gate, [_, second], _clients) = two_in_line(&cache);
    assert!(cache.ondine.sigterm().success());
    cache.ondine.start_again();
    assert_eq!(cache.queued(), ["first", "second"]);
    gate.open();
    wait_until("both are delivered", SOON, || cache.queued().is_empty());
    cache.assert_served(second.out());
}
