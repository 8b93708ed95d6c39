//! Standing in line: a stock client behind ten builds of other people only waits, whoever looks sees it move
//! up, and what happens when someone ahead goes away is what was promised.

use std::time::Duration;

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::cache::assert_narinfo;
use crate::support::http::hang_up;
use crate::support::{Cache, Client, Ending, Release, nar_digest, wait_until};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_client_of_every_release_waits_behind_ten_builds_and_shows_nothing_wrong() {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s"]);
    let names: Vec<String> = (1..=11).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let gates: Vec<_> = names.iter().map(|_| cache.store.gate()).collect();
    let wanted: Vec<_> = names.iter().zip(&gates).map(|(name, gate)| cache.gated(name, gate)).collect();
    let mut others = Vec::new();
    for number in 0..10 {
        others.push(cache.stand_in_line(wanted[number].out()));
        cache.wait_for_queue(&names[..=number]);
    }
    let last = wanted[10].out();
    let substituter = cache.ondine.substituter();
    let clients: Vec<Client> =
        Release::all().into_iter().map(|release| Client::new(release, &cache.store.store_dir())).collect();
    let fetches: Vec<_> = clients.iter().map(|client| client.start_fetch(&substituter, &[last])).collect();
    cache.wait_for_queue(&names);

    // Someone looks at the same address meanwhile.
    let mut looking = cache.http.open(&narinfo_address(last), &[]);
    assert_eq!(looking.header("x-ondine-position"), Some("11"));
    let mut seen = String::new();
    let mut see = |text: &str| {
        while !seen.contains(text) {
            let line = looking
                .next_piece()
                .unwrap_or_else(|end| panic!("{text:?} never came: {end:?} after {seen}"));
            seen.push_str(&String::from_utf8(line).expect("text"));
        }
    };
    for (number, gate) in gates.iter().enumerate() {
        see(&format!("X-Ondine-Wait: position {} of {}", 11 - number, 11 - number));
        gate.open();
    }
    see("StorePath: ");
    assert_eq!(looking.read_to_end().1, Ending::Complete);

    for (client, fetch) in clients.iter().zip(fetches) {
        let fetched = fetch.finish_within(SOON).must_succeed();
        let said = fetched.stderr.to_lowercase();
        for wrong in ["error", "warning", "retry", "disabl", "unable", "timeout"] {
            assert!(!said.contains(wrong), "it shows {wrong:?}: {said}");
        }
        assert_eq!(client.nar_digest(last), nar_digest(last));
    }
    let starts: Vec<Vec<String>> = gates.iter().map(support::Gate::starts).collect();
    assert!(starts.iter().all(|starts| starts.len() == 1), "not each was built once: {starts:?}");
}

#[test]
fn when_the_owners_client_is_killed_its_build_goes_on_and_those_behind_lose_nothing() {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "1s", "--abandon-after", "2s"]);
    let (running, order) = (cache.store.gate(), cache.store.gate());
    let [owned, left, joined, behind] = ["owned", "left", "joined", "behind"].map(|name| {
        let script = format!("{}{}echo {name} > $out", order.note(name), running.script(name));
        cache.store.instantiate(&support::Derivation::new(name, &script))
    });
    let client = cache.client(&[]);
    let owner = client.start_fetch(&cache.ondine.substituter(), &[owned.out()]);
    running.wait_for_starts(1);
    // One that will be left alone, one that someone else waits for too, and one behind them all.
    let mut leaving = vec![cache.stand_in_line(left.out())];
    cache.wait_for_queue(&["owned", "left"]);
    leaving.push(cache.stand_in_line(joined.out()));
    cache.wait_for_queue(&["owned", "left", "joined"]);
    let joins = cache.ask_in_background(joined.out());
    let waits = cache.ask_in_background(behind.out());
    wait_until("both wait", SOON, || cache.http.get("/metrics").text().contains("ondine_queue_clients 5\n"));
    cache.wait_for_queue(&["owned", "left", "joined", "behind"]);

    owner.kill();
    leaving.iter().for_each(hang_up);
    drop(leaving);
    // What runs stays, and so does what someone else waits for; the other place is given up after the grace.
    cache.wait_for_queue(&["owned", "joined", "behind"]);
    running.open();
    assert_narinfo(&joins.answer(), joined.out());
    assert_narinfo(&waits.answer(), behind.out());
    cache.assert_served(owned.out());
    wait_until("the queue is empty", SOON, || cache.queued().is_empty());
    assert_eq!(order.starts(), ["owned", "joined", "behind"]);
    // Whoever comes for it after all gets it.
    assert_narinfo(&cache.ask(left.out()), left.out());
}
