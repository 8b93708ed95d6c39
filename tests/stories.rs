//! Stories of users that must be true, from end to end, with stock clients.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::addresses::narinfo_address;
use crate::support::cache::assert_missing;
use crate::support::{Cache, Client, Derivation, NixStore, Ondine, Release, derivations};

const SOON: Duration = Duration::from_secs(60);

/// The output of a derivation, as a client computes it who has it in its own store alone.
#[track_caller]
fn output_of(client: &Client, derivation: &Derivation) -> PathBuf {
    let drv = client.instantiate(derivation);
    client.run("nix-store", &["--query", "--binding", "out", &drv]).must_succeed().text().into()
}

#[test]
fn a_deploy_that_is_started_before_the_push_waits_for_it_and_gets_what_was_pushed() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let _daemon = store.daemon();
        let settings = ["--unknown-wait", "5m", "--hold", "1s", "--keep-alive-interval", "1s"];
        let ondine = Ondine::start(&store, &settings);
        let client = Client::new(release.clone(), &store.store_dir());
        let pushed_later = derivations::text_file("pushed-later", "1");
        let out = output_of(&client, &pushed_later);
        let mut deploy = client.start_fetch(&ondine.substituter(), &[&out]);
        std::thread::sleep(Duration::from_secs(4));
        assert!(deploy.is_running(), "Nix {} did not wait", release.version());
        // The derivation arrives, and is built since someone waits for it.
        store.instantiate(&pushed_later);
        deploy.finish_within(SOON).must_succeed();
        assert!(client.has(&out), "Nix {}", release.version());
    }
}

#[test]
fn what_nobody_pushes_in_time_is_a_true_404_and_so_is_the_next_answer_at_once() {
    let cache = Cache::new(&["--unknown-wait", "3s"]);
    let client = cache.client(&[]);
    let never = output_of(&client, &derivations::text_file("never-pushed", "1"));
    // Whoever only looks is not kept waiting.
    let begun = Instant::now();
    assert_missing(&cache.http.get(&format!("/cached{}", narinfo_address(&never))), &["unknown"]);
    assert_eq!(cache.http.head(&narinfo_address(&never)).status, 404);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_missing(&cache.ask(&never), &["unknown"]);
    assert!(begun.elapsed() >= Duration::from_secs(3), "it did not wait: {:?}", begun.elapsed());
    // A client that was cut off asks again within a second.
    let begun = Instant::now();
    assert_missing(&cache.ask(&never), &["unknown"]);
    assert!(begun.elapsed() < Duration::from_secs(3), "it waits again: {:?}", begun.elapsed());
}

/// True for releases that have `always-allow-substitutes`.
fn can_always_substitute(release: &Release) -> bool {
    let version = release.version();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    (numbers.next(), numbers.next()) >= (Some(2), Some(19))
}

#[test]
fn a_client_that_builds_nothing_gets_what_forbids_substitution() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let _daemon = store.daemon();
        let ondine = Ondine::start(&store, &[]);
        let local = |name: &str| derivations::text_file(name, name).attribute("preferLocalBuild", "true");
        let forbidding = |name: &str| local(name).attribute("allowSubstitutes", "false");
        let new =
            |settings: &[(&str, &str)]| Client::with_settings(release.clone(), &store.store_dir(), settings);
        let wanted = forbidding("wanted");
        let instantiated = store.instantiate(&wanted);
        let preferring = local("preferring");
        store.instantiate(&preferring);
        let realise = |client: &Client, derivation: &Derivation| {
            let drv = client.instantiate(derivation);
            let key = ondine.substituter().public_key;
            let options =
                ["--option", "substituters", &ondine.url(), "--option", "trusted-public-keys", &key]
                    .map(str::to_owned);
            let mut arguments = vec!["--realise", &*drv];
            arguments.extend(options.iter().map(String::as_str));
            client.run("nix-store", &arguments)
        };
        let version = release.version();

        // Preferring to build is nothing that stands in the way.
        let client = new(&[]);
        realise(&client, &preferring).must_succeed();
        // By the derivation it is refused, whatever the cache has.
        realise(&client, &wanted).must_fail();
        // By its path it comes, and then the derivation needs no build.
        client.fetch(&ondine.substituter(), &[instantiated.out()]).must_succeed();
        realise(&client, &wanted).must_succeed();

        if can_always_substitute(&release) {
            let client = new(&[("always-allow-substitutes", "true")]);
            realise(&client, &wanted).must_succeed();
            assert!(client.has(instantiated.out()), "Nix {version}");
        }
        println!("Nix {version}: always-allow-substitutes {}", can_always_substitute(&release));
    }
}
