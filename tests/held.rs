//! The promise to those who wait: what they were told that they will get is not lost to Nix's garbage
//! collector, whenever that runs, and nothing is held once they have it. Real daemons of every release, whose
//! stores have no other roots.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::{Cache, Derivation, Gate, Instantiated, NixStore, Release, wait_until};

/// Time limit of all that is queued, each a trivial build.
const SOON: Duration = Duration::from_secs(60);

/// A derivation with an input and a source that nothing else refers to; it waits at the gate.
fn with_input(store: &NixStore, name: &str, gate: &Gate) -> (Instantiated, Instantiated) {
    let input = Derivation::new(&format!("{name}-input"), "echo input > \"$out\"")
        .attribute("source", &format!("builtins.toFile \"{name}-source\" \"a source\""));
    let script = format!("{}cat \"$input\" > \"$out\"", gate.script(name));
    let top = store.instantiate(&Derivation::new(name, &script).input("input", &input));
    let input = store.instantiate(&input);
    (top, input)
}

/// Number of roots that hold derivations of requests.
fn roots(cache: &Cache) -> usize {
    std::fs::read_dir(cache.ondine.state_dir().join("requested")).expect("the folder of roots").count()
}

#[test]
fn a_collection_while_two_wait_takes_nothing_that_they_need_and_afterwards_nothing_is_held() {
    for release in Release::all() {
        let cache = Cache::of(NixStore::new(release), &["--hold", "0s"], &[]);
        let gate = cache.store.gate();
        let (slow, _) = with_input(&cache.store, "slow", &gate);
        let (other, input) = with_input(&cache.store, "other", &gate);
        let mut running = cache.http.open(&narinfo_address(slow.out()), &[]);
        gate.wait_for_starts(1);
        let mut waiting = cache.http.open(&narinfo_address(other.out()), &[]);
        waiting.next_piece().expect("it is told that it waits");
        cache.store.gc();
        assert!(cache.store.is_valid(&other.drv) && cache.store.is_valid(&input.drv));
        gate.open();
        for answer in [&mut running, &mut waiting] {
            assert_eq!(answer.read_to_end().1, support::Ending::Complete);
        }
        cache.assert_served(slow.out());
        cache.assert_served(other.out());
        wait_until("nothing is held any more", SOON, || roots(&cache) == 0);
        // Until it is packed an output is held, and Nix keeps its derivation.
        let packed =
            || std::fs::read_dir(cache.ondine.state_dir().join("gcroots")).expect("a folder").count() == 0;
        wait_until("all is packed", SOON, packed);
        cache.store.gc();
        assert!(!cache.store.is_valid(&other.drv), "it is still held");
    }
}

#[test]
fn what_was_asked_for_is_held_while_the_server_is_down_and_after_its_restart() {
    for release in Release::all() {
        let mut cache = Cache::of(NixStore::new(release), &["--hold", "0s"], &[]);
        let gate = cache.store.gate();
        let (slow, _) = with_input(&cache.store, "slow", &gate);
        let (other, _) = with_input(&cache.store, "other", &gate);
        let running = cache.stand_in_line(slow.out());
        gate.wait_for_starts(1);
        let mut waiting = cache.http.open(&narinfo_address(other.out()), &[]);
        waiting.next_piece().expect("it is told that it waits");
        cache.ondine.kill9();
        drop((running, waiting));
        cache.store.gc();
        cache.ondine.start_again();
        cache.wait_for_queue(&["slow", "other"]);
        cache.store.gc();
        gate.open();
        wait_until("both are delivered", SOON, || cache.queued().is_empty());
        cache.assert_served(slow.out());
        cache.assert_served(other.out());
        wait_until("nothing is held any more", SOON, || roots(&cache) == 0);
    }
}

#[test]
fn a_request_that_is_dropped_holds_nothing() {
    let cache = Cache::new(&["--abandon-after", "0s", "--hold", "0s"]);
    let gate = cache.store.gate();
    let (slow, _) = with_input(&cache.store, "slow", &gate);
    let (other, _) = with_input(&cache.store, "other", &gate);
    let _running = cache.stand_in_line(slow.out());
    gate.wait_for_starts(1);
    let mut waiting = cache.http.open(&narinfo_address(other.out()), &[]);
    waiting.next_piece().expect("it is told that it waits");
    assert_eq!(roots(&cache), 2);
    drop(waiting);
    wait_until("it is let go", SOON, || roots(&cache) == 1);
    gate.open();
}

#[test]
fn collections_that_never_cease_lose_no_request() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    gate.open();
    let wanted: Vec<_> = (0..8).map(|n| with_input(&cache.store, &format!("n{n}"), &gate).0).collect();
    // From when the first one waits: until then nothing holds any of them.
    let line = cache.store.gate();
    let first = cache.gated("first", &line);
    let ask = |path: &Path| cache.ask_in_background(path);
    let first_asked = ask(first.out());
    line.wait_for_starts(1);
    let asked: Vec<_> = wanted.iter().map(|wanted| ask(wanted.out())).collect();
    wait_until("all are held", SOON, || roots(&cache) == 9);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                cache.store.gc();
            }
        });
        line.open();
        for (asked, wanted) in asked.into_iter().zip(&wanted) {
            assert_narinfo(&asked.answer(), wanted.out());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_narinfo(&first_asked.answer(), first.out());
    let client = cache.client(&[]);
    let paths: Vec<&Path> = wanted.iter().map(Instantiated::out).collect();
    client.fetch(&cache.ondine.substituter(), &paths).must_succeed();
}

#[test]
fn a_derivation_that_is_gone_all_the_same_is_no_failure_that_is_remembered() {
    let cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let line = cache.gated("line", &gate);
    let _running = cache.stand_in_line(line.out());
    gate.wait_for_starts(1);
    let derivation = Derivation::new("gone", "echo gone > \"$out\"");
    let gone = cache.store.instantiate(&derivation);
    // As if it were collected between the look-up and the root: the daemon is stopped, so that nothing can be
    // held.
    let mut cache = cache;
    cache.daemon.stop();
    let asked = cache.ask_in_background(gone.out());
    wait_until("it is asked for", SOON, || cache.queued().contains(&"gone".to_owned()));
    cache.store.delete(&gone.drv);
    cache.daemon.restart();
    let answer = asked.answer();
    assert_missing(&answer, &["not in the Nix store any more"]);
    assert!(!answer.text().contains("/log/"), "{}", answer.text());
    assert_missing(&cache.ask(gone.out()), &["unknown"]);
    cache.store.instantiate(&derivation);
    gate.open();
    assert_narinfo(&cache.ask(gone.out()), gone.out());
}
