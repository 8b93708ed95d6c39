//! The order of builds as the builders themselves tell it: each notes its start, on a real daemon.
//! Closures that share a derivation have it built once, and nobody waits for more than they need.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::Derivation;
use crate::support::cache::Cache;

#[test]
fn a_shared_derivation_is_built_once_in_the_order_of_its_owner_and_what_is_complete_is_delivered_early() {
    let cache = Cache::new(&[]);
    let store = &cache.store;
    let (begin, hold, order) = (store.gate(), store.gate(), store.gate());
    let script = |name: &str| format!("{} echo {name} > $out; :", order.note(name));
    let shared = Derivation::new("shared", &format!("{}{}", begin.script("shared"), script("shared")));
    let first = Derivation::new("first", &format!("{}\n{}", script("first"), hold.script("first")));
    let first = store.instantiate(&first.input("shared", &shared));
    let third = store.instantiate(&Derivation::new("third", &script("third")).input("shared", &shared));
    let second = store.instantiate(&Derivation::new("second", &script("second")));
    let shared = store.instantiate(&shared);

    let (sender, delivered) = mpsc::channel();
    let wanted = [("first", &first), ("second", &second), ("third", &third), ("shared", &shared)];
    let names = wanted.map(|(name, _)| name);
    for (asked, (name, wanted)) in wanted.into_iter().enumerate() {
        let (answer, sender) = (cache.ask_in_background(wanted.out()), sender.clone());
        thread::spawn(move || {
            let _ = sender.send((name, answer.answer().status));
        });
        // One after the other: the order of asking is what this is about.
        cache.wait_for_queue(&names[..=asked]);
    }
    begin.wait_for_starts(1);
    begin.open();
    let next = || delivered.recv_timeout(Duration::from_secs(60)).expect("a delivery");
    hold.wait_for_starts(1);
    assert_eq!(
        next(),
        ("shared", 200),
        "asked for last, complete first, while the build before it still runs"
    );
    hold.open();
    let mut others = [next(), next(), next()];
    others.sort_unstable();
    assert_eq!(others, [("first", 200), ("second", 200), ("third", 200)]);
    assert_eq!(order.starts(), ["shared", "first", "second", "third"], "in the words of the builders");
}
