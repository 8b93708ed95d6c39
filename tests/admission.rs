//! Admission: what this server cannot build, or will not, is refused at once with what is missing, not after
//! hours of building its inputs; and whoever comes next is served. What can be built is what the real Nix
//! says of itself, or the settings.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::{chain, text_file};
use crate::support::process::wait_until;
use crate::support::{Cache, Derivation, NixStore, Release, text};

/// A system that no machine has.
const ELSEWHERE: &str = "vax-vms";
/// A feature that no machine offers.
const MOON_DUST: &str = "[ \"moon-dust\" ]";

/// A server whose Nix has these lines more in its nix.conf.
#[track_caller]
fn cache_with(nix_conf: &str) -> Cache {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("etc/nix.conf");
    let before = std::fs::read_to_string(&file).expect("the store has settings");
    std::fs::write(&file, format!("{before}{nix_conf}")).expect("the folder of a test can be written to");
    Cache::of(store, &[], &[])
}

fn on_the_moon(name: &str) -> Derivation {
    text_file(name, name).attribute("requiredSystemFeatures", MOON_DUST)
}

/// Whoever asks for something else is served.
#[track_caller]
fn the_next_one_is_served(cache: &Cache) {
    let next = cache.store.instantiate(&text_file("next", "next"));
    assert_narinfo(&cache.ask(next.out()), next.out());
}

#[track_caller]
fn refused(cache: &Cache, drv: &Path, out: &Path, words: &[&str]) {
    let answer = cache.ask(out);
    assert_missing(&answer, &[&format!("refused: {}", base_name(drv)), "what to do: "]);
    assert_missing(&answer, words);
    assert!(!answer.text().contains("failed ("), "{}", answer.text());
}

#[test]
fn a_wrong_system_is_refused_at_once_though_an_input_would_take_for_ever() {
    let mut cache = Cache::new(&[]);
    let gate = cache.store.gate();
    let endless = Derivation::new("endless", &gate.script("endless"));
    let wrong = Derivation::new("wrong", "echo \"$endless\" > \"$out\"").system(ELSEWHERE);
    let wrong = wrong.input("endless", &endless);
    let top = Derivation::new("top", "echo \"$wrong\" > \"$out\"").input("wrong", &wrong);
    let [wrong, top] = [wrong, top].map(|derivation| cache.store.instantiate(&derivation));
    let line = format!("  {}: system {ELSEWHERE} (here: ", base_name(&wrong.drv));
    let words = ["1 of its 3 derivations needs what this server lacks", &line];
    refused(&cache, &top.drv, top.out(), &words);
    the_next_one_is_served(&cache);

    // Not planned again: there is nobody left who could be asked what it needs.
    cache.daemon.stop();
    refused(&cache, &top.drv, top.out(), &words);
    assert_missing(&cache.http.get(&format!("/cached{}", narinfo_address(top.out()))), &["refused: "]);
    assert!(gate.starts().is_empty(), "an input was built");
}

#[test]
fn a_feature_that_nobody_offers_is_refused_and_every_derivation_that_needs_it_is_named() {
    let cache = Cache::new(&[]);
    let parts: Vec<Derivation> = (0..23).map(|number| on_the_moon(&format!("part-{number}"))).collect();
    let top = Derivation::new("top", "echo done > \"$out\"");
    let variable = |number: usize| format!("part{number}");
    let top = parts.iter().enumerate().fold(top, |top, (n, part)| top.input(&variable(n), part));
    let top = cache.store.instantiate(&top);
    refused(
        &cache,
        &top.drv,
        top.out(),
        &[
            "23 of its 24 derivations need ",
            ": feature moon-dust (here: ",
            "benchmark, big-parallel",
            "\n  and 3 more\n",
        ],
    );
    the_next_one_is_served(&cache);
}

#[test]
fn too_many_derivations_are_refused_and_what_is_built_already_does_not_count() {
    let mut cache = Cache::new(&["--max-derivations-per-request", "5"]);
    let gate = cache.store.gate();
    let long = chain("link", 6, |number| gate.note(&format!("link-{number}")));
    let short = chain("link", 5, |number| gate.note(&format!("link-{number}")));
    let [long, short] = [long, short].map(|derivation| cache.store.instantiate(&derivation));
    let words = ["6 derivations would be built, more than max-derivations-per-request = 5"];
    refused(&cache, &long.drv, long.out(), &words);
    assert!(gate.starts().is_empty());
    assert_narinfo(&cache.ask(short.out()), short.out());
    refused(&cache, &long.drv, long.out(), &words);

    // The next start may have other settings, so it has no old refusals.
    assert!(cache.ondine.sigterm().success());
    cache.ondine.start_again();
    assert_narinfo(&cache.ask(long.out()), long.out());
    assert_eq!(gate.starts().len(), 6, "{:?}", gate.starts());
}

#[test]
fn a_refusal_is_looked_at_again_after_its_time() {
    let cache = Cache::new(&["--max-derivations-per-request", "1", "--transient-failure-ttl", "1s"]);
    let pair = cache.store.instantiate(&chain("link", 2, |_| String::new()));
    let first = cache.store.instantiate(&chain("link", 1, |_| String::new()));
    refused(&cache, &pair.drv, pair.out(), &["2 derivations would be built"]);
    cache.narinfo(first.out());
    wait_until("the refusal is forgotten", Duration::from_secs(30), || cache.ask(pair.out()).status == 200);
}

#[test]
fn what_nix_is_set_to_build_is_found_and_built() {
    let cache = cache_with(&format!("extra-platforms = {ELSEWHERE}\nsystem-features = moon-dust\n"));
    let special = on_the_moon("special").system(ELSEWHERE);
    let special = cache.store.instantiate(&special);
    assert_narinfo(&cache.ask(special.out()), special.out());
    let benchmark = text_file("common", "x").attribute("requiredSystemFeatures", "[ \"benchmark\" ]");
    let benchmark = cache.store.instantiate(&benchmark);
    refused(&cache, &benchmark.drv, benchmark.out(), &["feature benchmark (here: moon-dust)"]);
    assert!(cache.ondine.log().contains("can be built here"), "{}", cache.ondine.log());
}

#[test]
fn what_nix_builds_itself_is_not_refused_whatever_system_it_is_for() {
    let cache = Cache::new(&[]);
    let file = cache.store.folder().join("to-download");
    std::fs::write(&file, "downloaded").expect("the folder of a test can be written to");
    let drv = cache.store.nix_instantiate(&format!(
        "derivation {{ name = \"download\"; system = \"{ELSEWHERE}\"; builder = \"builtin:fetchurl\"; \
         url = \"file://{0}\"; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = builtins.hashFile \"sha256\" {0}; }}",
        file.display()
    ));
    let out = cache.store.nix_store(&["--query", "--binding", "out", text(&drv[0])]);
    assert_narinfo(&cache.ask(Path::new(&out)), Path::new(&out));
}

#[test]
fn what_a_remote_builder_may_build_is_not_refused() {
    // Nobody answers there: the daemon says so, and that is a failure, no refusal.
    let builders = format!("builders = ssh://nobody@127.0.0.1 {ELSEWHERE} - 1 1 kvm moon-dust\n");
    let cache = cache_with(&builders);
    let remote = cache.store.instantiate(&on_the_moon("remote").system(ELSEWHERE));
    assert_missing(&cache.ask(remote.out()), &["failed (transient)", base_name(&remote.drv)]);
    let plain = cache.store.instantiate(&text_file("plain", "x").system(ELSEWHERE));
    refused(&cache, &plain.drv, plain.out(), &["vax-vms (here only for what requires moon-dust)"]);
}

#[test]
fn the_settings_say_what_can_be_built_whatever_is_found() {
    let cache = Cache::new(&["--build-systems", ELSEWHERE, "--build-features", "moon-dust"]);
    let here = cache.store.instantiate(&text_file("here", "x"));
    refused(&cache, &here.drv, here.out(), &["(here: vax-vms)"]);
    // Believed, and so it is the daemon that cannot build it.
    let there = cache.store.instantiate(&on_the_moon("there").system(ELSEWHERE));
    assert_missing(&cache.ask(there.out()), &["failed (", base_name(&there.drv)]);
}

#[test]
fn without_nix_at_hand_its_defaults_are_taken() {
    let cache = Cache::of(NixStore::new(Release::Host), &[], &[("PATH", "/nonexistent")]);
    the_next_one_is_served(&cache);
    let features = "[ \"benchmark\" \"big-parallel\" \"nixos-test\" ]";
    let common = text_file("common", "x").attribute("requiredSystemFeatures", features);
    let common = cache.store.instantiate(&common);
    assert_narinfo(&cache.ask(common.out()), common.out());
    let special = cache.store.instantiate(&on_the_moon("special"));
    refused(&cache, &special.drv, special.out(), &["feature moon-dust (here: benchmark, big-parallel"]);
}

#[test]
fn a_start_says_in_one_line_what_may_let_builds_starve_the_server_and_warns_of_nothing() {
    for (arguments, all_cores) in [(&[][..], true), (&["--build-cores", "1"], false)] {
        let cache = Cache::new(arguments);
        cache.http.wait_until_ready();
        let lines = |words: &str| cache.ondine.log().lines().filter(|line| line.contains(words)).count();
        // The daemon of a test runs beside the server.
        wait_until("it is said", Duration::from_secs(30), || lines("own control group") > 0);
        let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        assert_eq!((lines("slow answers down"), lines("own control group")), (1, 1));
        assert_eq!(lines("build-cores"), usize::from(all_cores && several));
        assert!(!cache.ondine.log().contains("WARN"), "{}", cache.ondine.log());
    }
    let serving = Cache::new(&["--build-from"]);
    serving.http.wait_until_ready();
    assert!(!serving.ondine.log().contains("slow answers down"), "{}", serving.ondine.log());
    assert!(!serving.ondine.log().contains("WARN"), "{}", serving.ondine.log());
}
