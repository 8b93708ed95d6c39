//! Misses are settled in memory, and the server answers before it knows what it can build: neither may hide
//! anything.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::addresses::narinfo_address;
use crate::support::cache::{Cache, assert_missing, assert_narinfo};
use crate::support::store::{Folder, write};
use crate::support::{Client, Derivation, NixStore, Release, text};

#[test]
fn what_comes_into_the_store_is_found_by_the_very_next_request() {
    for release in Release::all() {
        let cache = Cache::of(NixStore::new(release), &["--build-from"], &[]);
        for round in 0..10 {
            for unknown in 0..20 {
                let unknown = cache.http.get(&format!("/{:032}.narinfo", 20 * round + unknown));
                assert_missing(&unknown, &["unknown: "]);
            }
            let made = cache.store.instantiate(&Derivation::new(&format!("made-{round}"), "echo > $out"));
            assert_missing(&cache.ask(made.out()), &["not built: ", "only serves"]);
            assert_narinfo(&cache.ask(&made.drv), &made.drv);
            assert!(cache.store.realise(&made.drv).succeeded());
            assert_narinfo(&cache.ask(made.out()), made.out());
        }
    }
}

#[test]
fn what_many_ask_for_at_once_is_found_for_each_of_them() {
    // Far more than wait in line at the daemon's socket.
    let cache = Cache::new(&[]);
    let folder = Folder::new();
    let files: Vec<_> = (0..100).map(|number| folder.path().join(format!("file-{number}"))).collect();
    files.iter().for_each(|file| write(file, text(file)));
    let mut arguments = vec!["--add"];
    arguments.extend(files.iter().map(|file| text(file)));
    let added = cache.store.nix_store(&arguments);
    let asked: Vec<_> =
        added.lines().map(|path| (Path::new(path), cache.ask_in_background(Path::new(path)))).collect();
    assert_eq!(asked.len(), files.len());
    for (path, asked) in asked {
        assert_narinfo(&asked.answer(), path);
    }
}

#[test]
fn what_is_there_is_served_while_nix_does_not_tell_what_it_can_build() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let programs = store.folder().join("programs");
    std::fs::create_dir(&programs).expect("a folder");
    let nix = programs.join("nix");
    std::fs::write(&nix, format!("#!/bin/sh\n{}exec /usr/bin/nix \"$@\"\n", gate.script("nix")))
        .expect("written");
    std::fs::set_permissions(&nix, PermissionsExt::from_mode(0o755)).expect("set");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH"));
    let there = store.instantiate(&Derivation::new("there", "echo > $out"));
    let wanted = store.instantiate(&Derivation::new("wanted", "echo > $out"));
    assert!(store.realise(&there.drv).succeeded());

    let cache = Cache::of(store, &[], &[("PATH", &path)]);
    gate.wait_for_starts(1);
    assert_narinfo(&cache.ask(there.out()), there.out());
    assert_missing(&cache.http.get(&format!("/{:032}.narinfo", 0)), &["unknown: "]);
    let unready = cache.http.get("/readyz");
    assert_eq!((unready.status, unready.text().contains("nothing is built until")), (503, true));
    let waiting = cache.ask_in_background(wanted.out());
    cache.wait_for_queue(&["wanted"]);
    gate.open();
    assert_narinfo(&waiting.answer(), wanted.out());
    assert_eq!(cache.http.get(&narinfo_address(wanted.out())).status, 200);
    cache.http.wait_until_ready();
}

#[test]
fn a_client_of_every_release_goes_by_a_404_for_an_hour_unless_it_does_what_the_404_says() {
    let cache = Cache::new(&[]);
    let from = cache.ondine.cached();
    for (number, release) in Release::all().into_iter().enumerate() {
        let script = Derivation::new(&format!("made-{number}"), "echo > $out");
        let made = cache.store.instantiate(&script);
        let client = Client::new(release, &cache.store.store_dir());
        client.fetch(&from, &[made.out()]).must_fail();
        let no = cache.http.get(&format!("/cached{}", narinfo_address(made.out())));
        assert!(cache.store.realise(&made.drv).succeeded());
        client.fetch(&from, &[made.out()]).must_fail();

        assert_missing(&no, &["not built yet", "for an hour"]);
        let said = no.text();
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "--option").expect("a way out");
        let substituter = ["--substituters", &from.url, "--trusted-public-keys", &from.public_key];
        let build = [&["build", "--no-link"], &substituter[..], &words[at..at + 3], &[text(made.out())]];
        client.run("nix", &build.concat()).must_succeed();
        assert!(client.has(made.out()));
    }
    // Each 404 that a client may remember says so, from memory, too.
    for _ in 0..2 {
        assert_missing(&cache.http.get(&format!("/{:032}.narinfo", 0)), &["unknown: ", "for an hour"]);
    }
    let realisation = format!("/realisations/sha256:{}!out.doi", "0f".repeat(32));
    assert_missing(&cache.http.get(&realisation), &["unknown: ", "for an hour"]);
    assert!(cache.http.get("/").text().contains("for an hour"));
}
