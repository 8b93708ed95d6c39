//! `signing.sh`: how many signatures there are and whose, of input-addressed and of content-addressed paths.

use super::scene::Scene;
use super::support::{Cache, Client, Derivation, NixStore, Release, text};

/// A server with two keys, and these.
fn scene_of_two_keys(release: &Release, derivation: &Derivation) -> (Scene, [String; 2]) {
    let store = NixStore::new(Release::Host);
    let mut files = Vec::new();
    let keys = ["cache1.example.org", "cache2.example.org"].map(|name| {
        let (file, key) =
            (store.folder().join(name), narinfo::SecretKey::generate(name.parse().expect("a name")));
        std::fs::write(&file, key.to_secret_string().as_bytes()).expect("written");
        files.push(text(&file).to_owned());
        key.public_key().to_string()
    });
    let cache = Cache::of(store, &["--signing-key", &files.join(",")], &[]);
    (Scene::of(release, cache, derivation), keys)
}

/// `nix store verify` of what the server serves, with so many signatures needed.
fn verifies(scene: &Scene, needed: &str, trusted: &str) -> bool {
    let (url, top) = (scene.cache.ondine.url(), text(scene.top.out()));
    let verify = ["store", "verify", "--recursive", "--store", &url, "--sigs-needed", needed, top];
    let trust = ["--option", "trusted-public-keys", trusted];
    scene.client.run("nix", &[&verify[..], &trust].concat()).succeeded()
}

#[test]
fn a_path_has_as_many_signatures_as_there_are_keys() {
    for release in Release::all() {
        let (scene, [one, two]) = scene_of_two_keys(&release, &super::scene::dependencies());
        let both = format!("{one} {two}");
        for (needed, trusted, expected) in
            [("1", "", false), ("1", &one, true), ("1", &two, true), ("2", &one, false), ("2", &both, true)]
        {
            assert_eq!(verifies(&scene, needed, trusted), expected, "{release:?}: {needed} of {trusted:?}");
        }
    }
}

#[test]
fn a_content_addressed_path_needs_no_signature_however_many_are_asked_for() {
    for release in Release::all() {
        let fixed = Derivation::new("fixed", "printf 'Hello World!' > $out")
            .attribute("outputHashMode", "\"flat\"")
            .attribute("outputHashAlgo", "\"md5\"")
            .attribute("outputHash", "\"ed076287532e86365e841e92bfc50d8c\"");
        let (scene, [one, _]) = scene_of_two_keys(&release, &fixed);
        assert!(verifies(&scene, "1000", &one), "{release:?}");
        let narinfo = scene.cache.narinfo(scene.top.out());
        assert!(narinfo.contains("\nCA: fixed:md5:"), "{release:?}: {narinfo}");
        // Nobody need be trusted to fetch it.
        let nobody = super::support::Substituter { url: scene.cache.ondine.url(), public_key: String::new() };
        scene.client.copy(&nobody, &[scene.top.out()]).must_succeed();
    }
}

#[test]
fn signatures_come_along_with_what_is_copied_from_the_cache() {
    for release in Release::all() {
        let (scene, [one, two]) = scene_of_two_keys(&release, &super::scene::dependencies());
        let top = scene.top.out();
        let client = Client::new(release.clone(), &scene.store().store_dir());
        let from =
            |key: &str| super::support::Substituter { url: scene.cache.ondine.url(), public_key: key.into() };
        client.copy(&from(""), &[top]).must_fail();
        client.copy(&from(&one), &[top]).must_succeed();
        for (needed, trusted, expected) in
            [("1", "", false), ("1", &*two, true), ("2", &format!("{one} {two}"), true)]
        {
            let verify = ["store", "verify", "--recursive", "--sigs-needed", needed, text(top)];
            let trust = ["--option", "trusted-public-keys", trusted];
            let verified = client.run("nix", &[&verify[..], &trust].concat()).succeeded();
            assert_eq!(verified, expected, "{release:?}: {needed} of {trusted:?}");
        }
    }
}
