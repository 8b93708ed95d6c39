//! Evaluations that do what they must not, and servers that die in a refresh: whatever happens, it is told
//! of, and what was known goes on being served.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::package_set::{
    EATS, LOOPS, PRINTS, api, links, must_be_had, refresh, small, start_refresh, wait_for_generation,
};
use crate::support::process::Background;
use crate::support::{NixStore, PackageSet, Release, derivations, process, text, wait_until};
use rustix::fs::OFlags;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn an_attribute_that_loops_or_eats_memory_or_prints_garbage_is_listed_and_spoils_nothing_else() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new([
        small("a"),
        ("eats".to_owned(), EATS.to_owned()),
        small("f"),
        ("loops".to_owned(), LOOPS.to_owned()),
        small("m"),
        ("prints".to_owned(), PRINTS.to_owned()),
        small("z"),
    ]);
    let limits = "attribute-timeout = '15s'\nmax-memory-bytes = 536870912";
    let ondine = set.serve(&store, "build-from = ['catalogue']", limits);
    wait_for_generation(&ondine);
    let told = api(&ondine);
    assert_eq!(told["generations"][0]["attributes"], 4, "{told:#}");
    let errors = told["errors"].as_array().expect("a list");
    for (attribute, word) in [("eats", "memory"), ("loops", "attribute-timeout"), ("prints", "32 MiB")] {
        let error = errors.iter().find(|error| error["attribute"] == attribute);
        let error = error.unwrap_or_else(|| panic!("{attribute} is not listed: {told:#}"));
        assert!(error["error"].as_str().expect("a text").contains(word), "{error}");
    }
    for (_, out) in set.all_paths(&store, &["a", "f", "m", "z"]) {
        must_be_had(&ondine, &out);
    }
    set.wait_until_nothing_evaluates();
}

#[test]
fn a_set_that_cannot_be_evaluated_as_a_whole_leaves_the_generation_as_it_is() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new([small("a"), small("b")]);
    let limits = "attribute-timeout = '10s'\nmax-memory-bytes = 536870912";
    let ondine = set.serve(&store, "build-from = ['catalogue']", limits);
    wait_for_generation(&ondine);
    let (_, out) = set.paths(&store, "a");
    for (nix, word) in [
        (LOOPS, "attribute-timeout"),
        (EATS, "evaluation failed"),
        (PRINTS, "32 MiB"),
        ("{ a = ", "unexpected end of file"),
        ("{ a = abort \"words of a\"; b = abort \"\"; }", "words of a"),
        ("{ }", "no attribute"),
        ("{ a = { type = \"derivation\"; drvPath = \"/etc/passwd\"; name = \"x\"; }; }", "no derivation"),
    ] {
        set.write_text(nix);
        let failed = refresh(&ondine).must_fail();
        assert!(failed.text().contains("failed: pkgs") && failed.text().contains(word), "{word}: {failed}");
        let told = api(&ondine);
        assert!(told["failure"].as_str().expect("a text").contains(word), "{told:#}");
        assert_eq!(told["generations"].as_array().expect("a list").len(), 1);
    }
    store.gc();
    must_be_had(&ondine, &out);
    set.wait_until_nothing_evaluates();
    set.write();
    refresh(&ondine).must_succeed();
    assert!(api(&ondine)["failure"].is_null());
}

#[test]
fn an_evaluation_reads_and_fetches_and_builds_nothing_that_it_may_not() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let built = derivations::text_file("imported", "1").to_nix();
    let set = PackageSet::new([
        small("a"),
        ("builds".to_owned(), format!("import {built}")),
        ("fetches".to_owned(), "import (builtins.fetchTarball \"http://127.0.0.1:9/x.tar.gz\")".to_owned()),
        ("reads".to_owned(), "builtins.readFile \"/etc/passwd\"".to_owned()),
    ]);
    let ondine = set.serve(&store, "", "");
    wait_for_generation(&ondine);
    let told = api(&ondine)["errors"].to_string();
    for word in ["allow-import-from-derivation", "restricted mode", "/etc/passwd"] {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn a_server_killed_in_a_refresh_leaves_no_evaluator_and_serves_what_it_knew() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut set = PackageSet::new([small("a"), small("b")]);
    let mut ondine = set.serve(&store, "build-from = ['catalogue']", "");
    wait_for_generation(&ondine);
    let (_, old) = set.paths(&store, "a");
    let roots = ondine.state_dir().join("catalogue");
    let before = links(&roots);
    // It is killed as it comes: while it evaluates, and later at some moments up to the end.
    set.attributes.insert("loops".into(), LOOPS.into());
    set.attributes.insert("a".into(), derivations::text_file("a", "another").to_nix());
    set.write();
    let refreshing = start_refresh(&ondine);
    wait_until("the loop is reached", SOON, || {
        process::runs(text(&set.file()))
            && api(&ondine)["state"].as_str().is_some_and(|state| state.contains("2 attributes"))
    });
    ondine.kill9();
    refreshing.finish().must_fail();
    set.wait_until_nothing_evaluates();
    store.gc();
    ondine.start_again();
    must_be_had(&ondine, &old);
    assert_eq!(links(&roots), before);
    set.attributes.remove("loops");
    for (round, pause_millis) in [0_u64, 100, 200, 400].into_iter().enumerate() {
        let more = |number| small(&format!("r{round}-{number}"));
        set.attributes.extend((0..40).map(more));
        set.write();
        let refreshing = start_refresh(&ondine);
        std::thread::sleep(Duration::from_millis(pause_millis));
        ondine.kill9();
        drop(refreshing);
        store.gc();
        ondine.start_again();
        must_be_had(&ondine, &old);
        wait_until("roots are as the generations say", SOON, || {
            let generations = api(&ondine)["generations"].as_array().expect("a list").len();
            links(&roots).len() == generations
        });
    }
    refresh(&ondine).must_succeed();
    let told = api(&ondine);
    assert_eq!(told["generations"][0]["attributes"], 162, "{told:#}");
    store.gc();
    must_be_had(&ondine, &set.paths(&store, "r3-7").1);
}

#[test]
fn without_a_daemon_a_refresh_fails_and_nothing_is_lost() {
    let store = NixStore::new(Release::Host);
    let mut daemon = store.daemon();
    let mut set = PackageSet::new([small("a")]);
    let ondine = set.serve(&store, "", "");
    wait_for_generation(&ondine);
    set.attributes.extend([small("b")]);
    set.write();
    daemon.stop();
    refresh(&ondine).must_fail();
    assert_eq!(api(&ondine)["generations"][0]["attributes"], 1);
    daemon.restart();
    refresh(&ondine).must_succeed();
    assert_eq!(api(&ondine)["generations"][0]["attributes"], 2);
    must_be_had(&ondine, &set.paths(&store, "b").1);
}

/// The end of a FIFO to write to, once it is read from: who reads goes on when this is dropped.
fn held_up(fifo: &Path) -> File {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut writer = None;
    wait_until(&format!("{} is read from", fifo.display()), SOON, || {
        writer = options.open(fifo).ok();
        writer.is_some()
    });
    writer.expect("it is there")
}

#[test]
fn a_collection_that_was_told_of_nothing_takes_nothing_of_a_new_generation() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let mut set = PackageSet::new([small("a")]);
    let ondine = set.serve(&store, "build-from = ['catalogue']", "");
    wait_for_generation(&ondine);
    let (gate, sync) = (set.file().with_file_name("gate"), store.folder().join("sync"));
    let mut mkfifo = Command::new("mkfifo");
    mkfifo.args([&gate, &sync]);
    process::run(mkfifo).must_succeed();
    set.attributes = [small("b"), ("c".to_owned(), "builtins.readFile ./gate".to_owned())].into();
    set.write();

    // What a collection does before its socket is there: a connection of Nix 2.8 that looks for it now tells
    // no collection anything any more, and a newer one waits.
    let lock = File::open(store.state_dir().join("gc.lock")).expect("Nix has made it");
    lock.lock().expect("nobody collects");
    let bump = start_refresh(&ondine);
    let begun = Instant::now();
    let evaluated = || api(&ondine)["state"].as_str().expect("a text").contains(" 1 attributes");
    while !evaluated() && begun.elapsed() < SOON / 6 {
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(lock);
    let mut collection = store.command("nix-store", &["--gc"]);
    collection.env("_NIX_TEST_GC_SYNC", &sync);
    let collection = Background::start(collection);
    let roots_read = held_up(&sync);
    drop(held_up(&gate));
    bump.finish().must_succeed();
    drop(roots_read);
    collection.finish().must_succeed();
    store.gc();
    must_be_had(&ondine, &set.paths(&store, "b").1);
}
