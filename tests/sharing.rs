//! The order of builds as the builders themselves tell it: each notes its start, on a real daemon.
//! Closures that share a derivation have it built once, and nobody waits for more than they need.

mod support;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use support::{Derivation, Http, Instantiated, NixStore, Ondine, Release, wait_until};

fn narinfo_path(built: &Instantiated) -> String {
    let name = built.out().file_name().and_then(|n| n.to_str()).expect("a store path");
    format!("/{}.narinfo", &name[..32])
}

#[test]
fn a_shared_derivation_is_built_once_in_the_order_of_its_owner_and_what_is_complete_is_delivered_early() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let (begin, hold, order) = (store.gate(), store.gate(), store.gate());
    let script = |name: &str| format!("{} echo {name} > $out; :", order.note(name));
    let shared = Derivation::new("shared", &format!("{}{}", begin.script("shared"), script("shared")));
    let first = Derivation::new("first", &format!("{}\n{}", script("first"), hold.script("first")));
    let first = store.instantiate(&first.input("shared", &shared));
    let third = store.instantiate(&Derivation::new("third", &script("third")).input("shared", &shared));
    let second = store.instantiate(&Derivation::new("second", &script("second")));
    let shared = store.instantiate(&shared);

    let ondine = Ondine::start(&store, &[]);
    let (sender, delivered) = mpsc::channel();
    for (asked, (name, wanted)) in
        [("first", &first), ("second", &second), ("third", &third), ("shared", &shared)]
            .into_iter()
            .enumerate()
    {
        let (http, path, sender) = (Http::new(&ondine.url()), narinfo_path(wanted), sender.clone());
        thread::spawn(move || {
            let status = http.get(&path).status;
            let _ = sender.send((name, status));
        });
        // One after the other: the order of asking is what this is about.
        let queued = || {
            let status = Http::new(&ondine.url()).get("/api/v1/status").text();
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            status["queue"]["requests"].as_array().is_some_and(|requests| requests.len() == asked + 1)
        };
        wait_until(name, Duration::from_secs(20), queued);
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
