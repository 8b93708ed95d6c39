//! `binary-cache.sh`: closures, logs, prebuilt queries, signatures, damage, holes in caches behind this one.

use std::path::PathBuf;
use std::time::Duration;

use super::scene::{Scene, dependencies, names};
use super::support::upstream::{stored_nars, table};
use super::support::{
    Background, BinaryCache, Cache, Compression, Derivation, NixStore, Release, Sample, Substituter, text,
};

/// The packed NARs of the server.
fn stored(cache: &Cache) -> Vec<PathBuf> {
    let packed = stored_nars(&cache.ondine).into_iter().filter(|file| file.ends_with(".nar.zst"));
    packed.map(|file| cache.ondine.state_dir().join("nar").join(file)).collect()
}

/// Whatever a client does comes to an end.
const AN_END: Duration = Duration::from_secs(60);

#[test]
fn the_closure_is_what_was_built_and_nothing_that_was_only_needed_to_build_it() {
    for release in Release::all() {
        let scene = Scene::new(&release, &[]);
        let url = scene.cache.ondine.url();
        let listed = ["path-info", "--recursive", "--store", &url, text(scene.top.out())];
        let listed = scene.client.run("nix", &listed).must_succeed().text();
        let expected = ["dependencies-input-0", "dependencies-input-2", "dependencies-top"];
        assert_eq!(names(&listed), expected, "{release:?}");

        scene.realise().must_succeed();
        let program = scene.client.physical(scene.top.out()).join("program");
        let said = std::process::Command::new("/bin/sh").arg(program).output().expect("it runs");
        assert_eq!(said.stdout, b"program\n", "{release:?}");
        let closure = scene.client.run("nix-store", &["--query", "--requisites", text(scene.top.out())]);
        assert_eq!(names(&closure.must_succeed().text()), expected, "{release:?}");
    }
}

#[test]
fn the_log_of_a_build_is_had_from_the_cache() {
    for release in Release::all() {
        let scene = Scene::new(&release, &[]);
        let log = scene.run("nix", &["log", text(scene.top.out())]).must_succeed().text();
        assert!(log.contains("FOO"), "{release:?}: {log}");
        let file = scene.store().folder().join("source");
        std::fs::write(&file, "a source").expect("written");
        let never_built = scene.store().nix_store(&["--add", text(&file)]);
        scene.cache.narinfo(std::path::Path::new(never_built.trim()));
        let none = scene.run("nix", &["log", never_built.trim()]).must_fail();
        assert!(none.stderr.contains("is not available"), "{release:?}: {}", none.stderr);
    }
}

#[test]
fn whether_something_is_prebuilt_is_told_to_those_who_may_ask_in_bulk() {
    for release in Release::all() {
        for (arguments, expected) in [(&[][..], "---"), (&["--want-mass-query"][..], "--S")] {
            let scene = Scene::new(&release, arguments);
            let file = scene.store().folder().join("dependencies.nix");
            std::fs::write(&file, dependencies().to_nix()).expect("written");
            let query = ["--file", text(&file), "--query", "--available", "--status", "*"];
            // The second time from what the client remembers.
            for _ in 0..2 {
                let said = scene.run("nix-env", &query).must_succeed().text();
                assert!(said.starts_with(expected), "{release:?} {arguments:?}: {said}");
            }
        }
    }
}

#[test]
fn two_that_substitute_into_one_store_at_once_both_succeed() {
    for release in Release::all() {
        let scene = Scene::new(&release, &[]);
        // Two that are the first in a store, or the first to remember an answer, stand in each other's way.
        scene.client.run("nix-store", &["--init"]).must_succeed();
        let url = scene.cache.ondine.url();
        scene.client.run("nix", &["path-info", "--store", &url, text(scene.top.out())]).must_succeed();
        let from = scene.cache.ondine.substituter();
        let start = || scene.client.start_fetch(&from, &[scene.top.out()]);
        let both: [Background; 2] = [start(), start()];
        for one in both {
            one.finish_within(AN_END).must_succeed();
        }
        assert!(scene.client.has(scene.top.out()), "{release:?}");
    }
}

#[test]
fn contents_that_are_not_those_of_the_narinfo_never_arrive() {
    for release in Release::all() {
        let mut scene = Scene::new(&release, &[]);
        scene.realise().must_succeed();
        scene.client.empty();
        // Every stored NAR is another one now, of the same size.
        assert!(scene.cache.ondine.sigterm().success());
        let mut spoilt = 0;
        for file in stored(&scene.cache) {
            let mut bytes = std::fs::read(&file).expect("read");
            let last = bytes.len() - 5;
            bytes[last] ^= 1;
            std::fs::write(&file, bytes).expect("written");
            spoilt += 1;
        }
        assert!(spoilt >= 3, "{release:?}: {spoilt} NARs");
        scene.cache.ondine.start_again();
        for _ in 0..3 {
            if scene.realise().succeeded() {
                break;
            }
        }
        // Whatever was refused or mended on the way: what the client has is what was built.
        if scene.client.has(scene.top.out()) {
            let built = super::support::nar_digest(scene.top.out());
            assert_eq!(scene.client.nar_digest(scene.top.out()), built, "{release:?}");
        }
        let mut mend = scene.cache.ondine.command("fsck");
        mend.args(["--verify", "--repair", "--state-dir", text(&scene.cache.ondine.state_dir())]);
        super::support::process::run(mend).must_succeed();
        scene.client.forget_answers();
        scene.realise().must_succeed();
        assert!(scene.client.has(scene.top.out()), "{release:?}");
    }
}

#[test]
fn nothing_is_taken_without_the_right_key() {
    for release in Release::all() {
        let scene = Scene::new(&release, &["--key-name", "test-1"]);
        let right = scene.cache.ondine.public_key().to_owned();
        let key = |name: &str| {
            let key = narinfo::SecretKey::generate(name.parse().expect("a name"));
            key.public_key().to_string()
        };
        let realise = ["--realise", text(scene.top.out())];
        for (trusted, taken) in [
            (String::new(), false),
            (key("other-1"), false),
            (key("test-1"), false),
            (format!("{} {right}", key("other-1")), true),
        ] {
            let from = Substituter { url: scene.cache.ondine.url(), public_key: trusted };
            scene.client.forget_answers();
            let realised = scene.run_from(&from, "nix-store", &realise);
            assert_eq!(realised.succeeded(), taken, "{release:?}: {}", realised.stderr);
        }
    }
}

#[test]
fn a_nar_that_has_disappeared_is_there_again_before_a_client_asks_in_vain() {
    for release in Release::all() {
        let scene = Scene::new(&release, &[]);
        scene.realise().must_succeed();
        scene.client.empty();
        let files = stored(&scene.cache);
        assert!(files.len() >= 3, "{release:?}: {files:?}");
        files.iter().for_each(|file| std::fs::remove_file(file).expect("removed"));
        scene.realise().must_succeed();
        assert!(scene.client.has(scene.top.out()), "{release:?}");
    }
}

#[test]
fn a_closure_with_a_hole_in_another_cache_is_built() {
    for release in Release::all() {
        let store = NixStore::new(release.clone());
        let sample = Sample::new(&store, &dependencies());
        let holed = sample.copied(&store, Compression::Xz);
        let input = sample.closure.iter().find(|path| text(path).ends_with("dependencies-input-2"));
        holed.forget(input.expect("it is in the closure"));
        sample.collect(&store);
        let table = table(&holed.file_url(), &[&holed.public_key()], "");
        let cache = Cache::behind(store, &[table], &[]);
        let client = super::support::Client::new(release.clone(), &cache.store.store_dir());
        client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
        sample.assert_held_by(&client);
    }
}

#[test]
fn a_spoilt_narinfo_in_one_cache_does_not_hide_the_good_one_in_another() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, &dependencies());
        let good = sample.copied(&store, Compression::Xz);
        let bad: BinaryCache = good.twin();
        for path in &sample.closure {
            bad.remove(path, "References");
        }
        sample.collect_with_derivation(&store);
        let tables = [(&bad, "priority = 1"), (&good, "priority = 2")]
            .map(|(cache, more)| table(&cache.file_url(), &[&good.public_key()], more));
        let cache = Cache::behind(store, &tables, &[]);
        let client = super::support::Client::new(release.clone(), &cache.store.store_dir());
        client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
        sample.assert_held_by(&client);
    }
}

#[test]
fn what_the_cache_serves_verifies() {
    for release in Release::all() {
        let scene = Scene::new(&release, &[]);
        let (url, top) = (scene.cache.ondine.url(), text(scene.top.out()));
        let verify = ["store", "verify", "--recursive", "--no-trust", "--store", &url, top];
        scene.client.run("nix", &verify).must_succeed();
    }
}

#[test]
fn an_output_whose_sibling_is_in_no_cache_keeps_no_client_in_a_circle() {
    for release in Release::all() {
        let script = "mkdir $out; echo foo > $doc; echo $doc > $out/docref";
        let derivation = Derivation::new("multi-output", script).outputs(&["out", "doc"]);
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, &derivation);
        let holed = sample.copied(&store, Compression::Xz);
        let doc = sample.closure.iter().find(|path| text(path).ends_with("-doc")).expect("it refers to it");
        holed.forget(doc);
        sample.collect(&store);
        let table = table(&holed.file_url(), &[&holed.public_key()], "");
        let cache = Cache::behind(store, &[table], &[]);
        let client = super::support::Client::new(release.clone(), &cache.store.store_dir());
        client.realise(&cache.ondine.substituter(), &derivation);
        sample.assert_held_by(&client);
    }
}
