//! Package sets: what is in one can be had by hash from the moment its generation is there, through bumps and
//! collections. Real evaluations, a real daemon, stock clients. Nothing but package sets is built from,
//! unless a test says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::http::Response;
use crate::support::package_set::{api, must_be_had, refresh, start_refresh, wait_for_generation};
use crate::support::{
    Client, Derivation, Http, NixStore, Ondine, PackageSet, Release, derivations, wait_until,
};

const SOON: Duration = Duration::from_secs(30);
const CATALOGUE_ONLY: &str = "build-from = ['catalogue']";

/// Small text files `p000`, `p001` and so on, each of this version.
fn packages(numbers: std::ops::Range<usize>, version: &str) -> Vec<(String, String)> {
    let package = |number| {
        let name = format!("p{number:03}");
        let nix = derivations::text_file(&name, &format!("{name} {version}")).to_nix();
        (name, nix)
    };
    numbers.map(package).collect()
}

fn ask(ondine: &Ondine, out: &Path) -> Response {
    Http::new(&ondine.url()).get(&narinfo_address(out))
}

/// A store with its daemon, a server of `set`, and its first generation.
fn served(set: &PackageSet, before: &str, within: &str) -> (NixStore, support::Daemon, Ondine) {
    let store = NixStore::new(Release::Host);
    let daemon = store.daemon();
    let ondine = set.serve(&store, before, within);
    wait_for_generation(&ondine);
    (store, daemon, ondine)
}

#[test]
fn what_a_set_has_is_built_by_hash_and_nobody_put_it_into_the_store() {
    let set = PackageSet::new(packages(0..3, "1"));
    let (store, _daemon, ondine) = served(&set, CATALOGUE_ONLY, "");
    store.gc();
    let (drv, out) = set.paths(&store, "p001");
    assert!(store.is_valid(&drv), "the derivation is not held");
    let client = Client::new(Release::Host, &store.store_dir());
    client.fetch(&ondine.substituter(), &[&out]).must_succeed();
    assert!(client.has(&out));
}

#[test]
fn three_bumps_of_three_hundred_with_changes_additions_removals_and_broken_ones() {
    let mut set = PackageSet::new(packages(0..300, "1"));
    set.attributes.insert("throws".into(), "throw \"words of throws\"".into());
    set.attributes.insert("aborts".into(), "abort \"words of aborts\"".into());
    set.attributes.insert("mistyped".into(), "1 + \"a\"".into());
    set.attributes.insert("no-package".into(), "{ a = 1; }".into());
    set.write();
    let (store, _daemon, ondine) = served(&set, CATALOGUE_ONLY, "");
    let told = api(&ondine);
    assert_eq!(told["generations"][0]["attributes"], 300, "{told:#}");
    assert_eq!(told["generations"][0]["errors"], 3, "{told:#}");
    for (attribute, words) in
        [("throws", "words of throws"), ("aborts", "words of aborts"), ("mistyped", "cannot add")]
    {
        let errors = told["errors"].as_array().expect("a list");
        let error = errors.iter().find(|error| error["attribute"] == attribute).expect("listed");
        assert!(error["error"].as_str().expect("a text").contains(words), "{error}");
    }
    let mut known: Vec<PathBuf> = Vec::new();
    for version in ["2", "3", "4"] {
        store.gc();
        let gone = format!("p15{version}");
        let before = set.all_paths(&store, &["p000", "p001", &gone, "p299"]);
        must_be_had(&ondine, &before[0].1);
        // A third changes, one goes, some break, some are new.
        set.attributes.extend(packages(0..100, version));
        set.attributes
            .extend(packages(200..220, "broken").into_iter().map(|(name, _)| (name, "abort \"\"".into())));
        let last: usize = 300 + version.parse::<usize>().expect("a number");
        set.attributes.extend(packages(300..last, version));
        set.attributes.remove(&gone);
        set.write();
        let mut bump = start_refresh(&ondine);
        // While it runs: what was known is known.
        must_be_had(&ondine, &before[1].1);
        while bump.is_running() {
            store.gc();
        }
        bump.finish().must_succeed();
        store.gc();
        let after = set.all_paths(&store, &["p000", "p001", "p299", "p301"]);
        assert_ne!(after[0], before[0]);
        assert_eq!(after[2], before[3]);
        for (_, out) in &after[..2] {
            must_be_had(&ondine, out);
        }
        store.gc();
        known.extend(before.into_iter().map(|(_, out)| out));
        known.extend(after.into_iter().map(|(_, out)| out));
    }
    // All that ever was is still to be had, asked for or not.
    known.sort();
    known.dedup();
    for out in &known {
        must_be_had(&ondine, out);
    }
    let told = api(&ondine);
    assert_eq!(told["generations"].as_array().expect("a list").len(), 4, "{told:#}");
    assert_eq!(told["generations"][0]["errors"], 23, "{told:#}");
}

#[test]
fn a_client_that_waits_through_a_bump_gets_what_it_asked_for() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let slow = |text: &str| {
        let below = Derivation::new("below", &format!("{}echo {text} > $out", gate.script(text)));
        Derivation::new("slow", "echo $below > $out").input("below", &below).to_nix()
    };
    let mut set = PackageSet::new([("slow".to_owned(), slow("old"))]);
    let ondine = set.serve(&store, CATALOGUE_ONLY, "");
    wait_for_generation(&ondine);
    let (_, old) = set.paths(&store, "slow");
    let client = Client::new(Release::Host, &store.store_dir());
    let waiting = client.start_fetch(&ondine.substituter(), &[&old]);
    gate.wait_for_starts(1);
    set.attributes = [("slow".to_owned(), slow("new"))].into();
    set.write();
    refresh(&ondine).must_succeed();
    store.gc();
    let (_, new) = set.paths(&store, "slow");
    let second = client.start_fetch(&ondine.substituter(), &[&new]);
    gate.open();
    waiting.finish_within(SOON).must_succeed();
    second.finish_within(SOON).must_succeed();
    assert!(client.has(&old) && client.has(&new));
}

#[test]
fn two_attributes_of_one_derivation_are_one_thing() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let gate = store.gate();
    let same = Derivation::new("same", &format!("{}echo same > $out", gate.script("same"))).to_nix();
    let nested = format!("{{ recurseForDerivations = true; c = {same}; }}");
    let set =
        PackageSet::new([("a".to_owned(), same.clone()), ("b".to_owned(), same), ("set".to_owned(), nested)]);
    let ondine = set.serve(&store, CATALOGUE_ONLY, "");
    wait_for_generation(&ondine);
    let told = api(&ondine);
    assert_eq!(told["generations"][0]["attributes"], 3, "{told:#}");
    assert_eq!(told["generations"][0]["derivations"], 1, "{told:#}");
    let outs = set.all_paths(&store, &["a", "b", "set.c"]);
    std::thread::scope(|scope| {
        let asked: Vec<_> = outs.iter().map(|(_, out)| scope.spawn(|| must_be_had(&ondine, out))).collect();
        gate.wait_for_starts(1);
        gate.open();
        asked.into_iter().for_each(|asked| asked.join().expect("answered"));
    });
    assert_eq!(gate.starts(), ["same"]);
}

#[test]
fn what_a_set_denies_is_built_as_an_input_only_also_where_the_store_is_built_from() {
    for before in [CATALOGUE_ONLY, ""] {
        let input = derivations::text_file("secret-input", "an input");
        let user = Derivation::new("user", "echo $input > $out").input("input", &input);
        let set = PackageSet::new([
            ("denied".to_owned(), derivations::text_file("secret-thing", "denied").to_nix()),
            ("input".to_owned(), input.to_nix()),
            ("user".to_owned(), user.to_nix()),
            ("other".to_owned(), derivations::text_file("other", "not allowed").to_nix()),
        ]);
        let (store, _daemon, ondine) =
            served(&set, before, "allow = ['user', '*e*d*', 'in*']\ndeny = ['secret-*']");
        let paths = set.all_paths(&store, &["denied", "user", "input", "other"]);
        for refused in [&paths[0].1, &paths[3].1] {
            let answer = ask(&ondine, refused);
            assert_eq!(answer.status, 404);
            assert!(answer.text().contains("the package set pkgs denies"), "{}", answer.text());
        }
        must_be_had(&ondine, &paths[2].1);
        must_be_had(&ondine, &paths[1].1);
        let told = api(&ondine);
        assert_eq!(told["generations"][0]["denied"], 3, "{told:#}");
    }
}

#[test]
fn with_package_sets_alone_nothing_else_in_the_store_is_built() {
    let set = PackageSet::new(packages(0..1, "1"));
    let (store, _daemon, ondine) = served(&set, CATALOGUE_ONLY, "");
    let stray = store.instantiate(&derivations::text_file("stray", "in no set"));
    let answer = ask(&ondine, stray.out());
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("in no package set"), "{}", answer.text());
}

#[test]
fn a_generation_answers_as_long_as_it_is_kept_and_is_then_let_go() {
    let mut set = PackageSet::new(packages(0..2, "1"));
    let (store, _daemon, ondine) = served(&set, CATALOGUE_ONLY, "retain = '0s'");
    let (old_drv, old) = set.paths(&store, "p000");
    let (same_drv, same) = set.paths(&store, "p001");
    set.attributes.extend(packages(0..1, "2"));
    set.write();
    refresh(&ondine).must_succeed();
    wait_until("the old one is collected", SOON, || {
        store.gc();
        !store.is_valid(&old_drv)
    });
    assert!(store.is_valid(&same_drv));
    let answer = ask(&ondine, &old);
    assert!(answer.status == 404 && answer.text().contains("unknown"), "{}", answer.text());
    must_be_had(&ondine, &same);
}

#[test]
fn a_bump_forgets_that_what_it_changes_failed() {
    // Two derivations of one output, since its contents are fixed.
    let fixed = |script: &str| {
        let hash = "\"b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c\"";
        let fixed = Derivation::new("fixed", script).attribute("outputHash", hash);
        fixed.attribute("outputHashMode", "\"flat\"").attribute("outputHashAlgo", "\"sha256\"").to_nix()
    };
    let mut set = PackageSet::new([("fixed".to_owned(), fixed("exit 1"))]);
    let (store, _daemon, ondine) = served(&set, CATALOGUE_ONLY, "");
    let (old, out) = set.paths(&store, "fixed");
    let answer = ask(&ondine, &out);
    assert!(answer.status == 404 && answer.text().starts_with("failed"), "{}", answer.text());
    set.attributes = [("fixed".to_owned(), fixed("echo foo > $out"))].into();
    set.write();
    refresh(&ondine).must_succeed();
    let (new, same) = set.paths(&store, "fixed");
    assert!(old != new && out == same);
    must_be_had(&ondine, &out);
}

#[test]
fn a_refresh_of_what_has_not_changed_makes_no_generation_and_the_metrics_tell_how_each_went() {
    let mut set = PackageSet::new(packages(0..2, "1"));
    set.attributes.insert("broken".into(), "abort \"\"".into());
    set.write();
    let (_store, _daemon, ondine) = served(&set, "", "");
    let again = refresh(&ondine).must_succeed();
    assert!(again.text().contains("nothing changed"), "{again}");
    assert_eq!(api(&ondine)["generations"].as_array().expect("a list").len(), 1);
    set.write_text("{ }");
    refresh(&ondine).must_fail();
    let metrics = Http::new(&ondine.url()).get("/metrics").text();
    let generation = api(&ondine)["generations"][0]["id"].to_string();
    for (name, value) in [
        ("generation{set=\"pkgs\"}", &*generation),
        ("attributes{set=\"pkgs\"}", "2"),
        ("errors{set=\"pkgs\"}", "1"),
        ("refresh_seconds_count{set=\"pkgs\",outcome=\"changed\"}", "1"),
        ("refresh_seconds_count{set=\"pkgs\",outcome=\"unchanged\"}", "1"),
        ("refresh_seconds_count{set=\"pkgs\",outcome=\"failed\"}", "1"),
    ] {
        let line = format!("ondine_catalogue_{name} {value}");
        assert!(metrics.lines().any(|told| told == line), "no {line} in:\n{metrics}");
    }
    let age =
        metrics.lines().find_map(|line| line.strip_prefix("ondine_catalogue_age_seconds{set=\"pkgs\"} "));
    let age: f64 = age.expect("told").parse().expect("a number");
    assert!(age < 300.0, "it is fresh: {age}");
}

#[test]
fn another_pattern_makes_another_generation_when_the_server_starts() {
    let set = PackageSet::new(packages(0..2, "1"));
    let (store, _daemon, mut ondine) = served(&set, CATALOGUE_ONLY, "");
    let (_, out) = set.paths(&store, "p001");
    must_be_had(&ondine, &set.paths(&store, "p000").1);
    ondine.kill9();
    set.settings(CATALOGUE_ONLY, "deny = ['p001']");
    ondine.start_again();
    wait_until("it is denied", SOON, || api(&ondine)["generations"][0]["denied"] == 1);
    assert_eq!(ask(&ondine, &out).status, 404);
}

#[test]
fn a_set_comes_from_a_flake_or_from_a_folder_too() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let file = |name: &str| derivations::text_file(name, name).to_nix();
    let flake = store.folder().join("flake");
    std::fs::create_dir_all(&flake).expect("a folder");
    let system = store.nix(&["eval", "--impure", "--raw", "--expr", "builtins.currentSystem"]);
    // Evaluated purely, a flake has no current system.
    let pure = file("f").replace("builtins.currentSystem", &format!("{system:?}"));
    let outputs = format!("{{ outputs = {{ self }}: {{ packages.{system}.f = {pure}; }}; }}");
    std::fs::write(flake.join("flake.nix"), outputs).expect("written");
    let folder = store.folder().join("folder");
    std::fs::create_dir_all(folder.join("d")).expect("a folder");
    std::fs::write(folder.join("a.nix"), format!("{{ system }}: {}", file("a"))).expect("written");
    std::fs::write(folder.join("b.nix"), "abort \"words of b\"").expect("written");
    std::fs::write(folder.join("d/default.nix"), file("d")).expect("written");
    let linked = store.instantiate(&derivations::text_file("linked", "linked"));
    std::os::unix::fs::symlink(&linked.drv, folder.join("l.drv")).expect("linked");
    std::os::unix::fs::symlink("/nowhere", folder.join("m.drv")).expect("linked");
    let sets = format!("f flake:path:{},d directory:{}", flake.display(), folder.display());
    let ondine = Ondine::start(&store, &["--catalogue", &sets, "--build-from", "catalogue"]);
    let http = Http::new(&ondine.url());
    let get = |name: &str| -> serde_json::Value {
        serde_json::from_str(&http.get(&format!("/api/v1/catalogue/{name}")).text()).expect("JSON")
    };
    for (set, attributes, errors) in [("f", 1, 0), ("d", 3, 2)] {
        wait_until("there is a generation", SOON, || get(set)["generations"][0]["current"] == true);
        let told = get(set);
        assert_eq!(told["generations"][0]["attributes"], attributes, "{told:#}");
        assert_eq!(told["generations"][0]["errors"], errors, "{told:#}");
    }
    store.gc();
    must_be_had(&ondine, linked.out());
    for name in ["f", "a", "d"] {
        must_be_had(&ondine, store.instantiate(&derivations::text_file(name, name)).out());
    }
    let errors = get("d")["errors"].to_string();
    assert!(errors.contains("words of b") && errors.contains("no derivation in the Nix store"), "{errors}");
}

#[test]
fn a_client_without_a_token_may_not_refresh() {
    let set = PackageSet::new(packages(0..1, "1"));
    let (_store, _daemon, ondine) = served(&set, "", "");
    let request = b"POST /api/v1/catalogue/pkgs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (answer, _) = support::http::raw(ondine.address(), request, SOON);
    assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
    let mut unknown = ondine.command("refresh");
    unknown.args(["other", "--state-dir", support::text(&ondine.state_dir())]);
    let unknown = support::process::run(unknown).must_fail();
    assert!(unknown.stderr.contains("no package set other"), "{unknown}");
}
