//! The promise about what another cache has and is not taken from it: it is built like anything else,
//! whatever the reason, and served. Real daemons of every release, which would fetch it themselves as far as
//! they know.

use std::path::{Path, PathBuf};

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::cache::assert_narinfo;
use crate::support::derivations::multiple_outputs;
use crate::support::upstream::table;
use crate::support::{Cache, Compression, Derivation, Fault, Gate, NixStore, Release, Sample, Upstream};

/// A key of nobody.
const STRANGER: &str = "upstream-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// Why nothing is taken from an upstream: the table of its settings.
fn reasons(upstream: &Upstream) -> [String; 3] {
    let url = upstream.server.url();
    [
        upstream.table("mode = \"build-only\""),
        table(&url, &[STRANGER], ""),
        table(&url, &[STRANGER], "mode = \"build-only\""),
    ]
}

fn noted(gate: &Gate, name: &str) -> Derivation {
    Derivation::new(name, &format!("{}echo {name} > \"$out\"", gate.note(name)))
}

#[test]
fn a_path_that_is_not_taken_from_the_upstream_that_has_it_is_built_and_served_with_every_daemon() {
    for release in Release::all() {
        for reason in 0..3 {
            let store = NixStore::new(release.clone());
            let gate = store.gate();
            let sample = Sample::new(&store, &noted(&gate, "wanted"));
            let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
            sample.collect(&store);
            let table = &reasons(&upstream)[reason];
            let cache = Cache::behind(store, std::slice::from_ref(table), &[]);
            assert_narinfo(&cache.ask(&sample.path), &sample.path);
            sample.assert_served_by(&cache.ondine);
            assert!(cache.store.is_valid(&sample.path));
            if reason > 0 {
                assert_eq!(gate.starts(), ["wanted", "wanted"], "{}: {table}", release.name());
            }
        }
    }
}

#[test]
fn it_is_built_by_a_daemon_that_does_not_trust_this_server_too() {
    for release in Release::all() {
        for knows_key in [true, false] {
            let store = NixStore::new(release.clone());
            let gate = store.gate();
            let sample = Sample::new(&store, &noted(&gate, "wanted"));
            let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
            sample.collect(&store);
            let key = if knows_key { upstream.cache.public_key() } else { STRANGER.to_owned() };
            let url = upstream.server.url();
            store.configure(&format!(
                "trusted-users = nobody\ntrusted-substituters = {url}\ntrusted-public-keys = {key}\n"
            ));
            let cache = Cache::behind(store, &[upstream.table("mode = \"build-only\"")], &[]);
            assert_narinfo(&cache.ask(&sample.path), &sample.path);
            sample.assert_served_by(&cache.ondine);
        }
    }
}

#[test]
fn it_is_built_where_the_upstream_says_that_it_has_it_and_does_not_give_it() {
    for release in Release::all() {
        let store = NixStore::new(release.clone());
        let gate = store.gate();
        let sample = Sample::new(&store, &noted(&gate, "wanted"));
        let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
        sample.collect(&store);
        upstream.server.fault("/nar/", Fault::Status(404));
        let cache = Cache::behind(store, &[upstream.table("mode = \"build-only\"")], &[]);
        assert_narinfo(&cache.ask(&sample.path), &sample.path);
        assert_eq!(gate.starts(), ["wanted", "wanted"], "{}", release.name());
        sample.assert_served_by(&cache.ondine);
    }
}

#[test]
fn an_upstream_that_goes_away_between_the_plan_and_the_build_is_no_failure() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let sample = Sample::new(&store, &noted(&gate, "wanted"));
    let mut upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect(&store);
    let before = gate_before(&store, &gate);
    let cache = Cache::behind(store, &[upstream.table("mode = \"build-only\"")], &[]);
    let first = cache.ask_in_background(&before.0);
    gate.wait_for_starts(2);
    let waiting = cache.ask_in_background(&sample.path);
    cache.wait_for_queue(&["before", "wanted"]);
    support::wait_until("it is planned", std::time::Duration::from_secs(60), || {
        cache.ondine.log().contains("-wanted.drv derivations=1")
    });
    upstream.server.stop();
    gate.open();
    assert_narinfo(&first.answer(), &before.0);
    assert_narinfo(&waiting.answer(), &sample.path);
    assert_eq!(gate.starts(), ["wanted", "before", "wanted"]);
}

/// A derivation that holds the queue until the gate is opened.
fn gate_before(store: &NixStore, gate: &Gate) -> (PathBuf, PathBuf) {
    let script = format!("{}echo before > \"$out\"", gate.script("before"));
    let before = store.instantiate(&Derivation::new("before", &script));
    (before.out().to_owned(), before.drv)
}

#[test]
fn what_is_not_taken_deep_in_a_closure_is_built_for_what_needs_it() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let leaf = noted(&gate, "leaf");
    let uses = |name: &str, input: &Derivation| {
        Derivation::new(name, &format!("{}echo $input > \"$out\"", gate.note(name))).input("input", input)
    };
    let middle = uses("middle", &leaf);
    let sample = Sample::new(&store, &middle);
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    let top = store.instantiate(&uses("top", &middle));
    store.root(&top.drv);
    sample.collect(&store);
    let cache = Cache::behind(store, &[table(&upstream.server.url(), &[STRANGER], "")], &[]);
    assert_narinfo(&cache.ask(top.out()), top.out());
    sample.assert_served_by(&cache.ondine);
    assert_eq!(gate.starts(), ["leaf", "middle", "leaf", "middle", "top"]);
}

#[test]
fn of_several_outputs_those_that_the_upstream_lacks_are_built_beside_those_that_it_has() {
    for key in [None, Some(STRANGER)] {
        let store = NixStore::new(Release::Host);
        let several = store.instantiate(&multiple_outputs("several"));
        store.root(&several.drv);
        store.realise(&several.drv);
        let lib = several.output("lib");
        let upstream = Upstream::new(&store, &[lib]);
        store.gc();
        assert!(!store.is_valid(lib) && !upstream.cache.narinfo_file(several.out()).exists());
        let key = key.map_or_else(|| upstream.cache.public_key(), str::to_owned);
        let table = table(&upstream.server.url(), &[&key], "mode = \"build-only\"");
        let cache = Cache::behind(store, &[table], &[]);
        let outputs: Vec<&Path> = several.outputs.iter().map(|(_, path)| &**path).collect();
        for output in [lib, several.out(), several.output("dev"), several.output("doc")] {
            assert_narinfo(&cache.ask(output), output);
        }
        let client = cache.client(&[]);
        client.fetch(&cache.ondine.substituter(), &outputs).must_succeed();
    }
}

#[test]
fn nothing_is_built_for_it_where_nothing_may_be() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let sample = Sample::new(&store, &noted(&gate, "wanted"));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect(&store);
    let cache = Cache::behind(store, &[upstream.table("mode = \"build-only\"")], &[]);
    let cached = cache.http.get(&format!("/cached{}", narinfo_address(&sample.path)));
    support::cache::assert_missing(&cached, &["not built yet"]);
    assert!(!cache.store.is_valid(&sample.path));
}
