//! Paths whose bytes are not where their names say, and trees that not every Nix unpacks: a narinfo is given
//! for what can be fetched, and for nothing else.

use std::time::Duration;

use crate::support;
use crate::support::addresses::field;
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::{Cache, Client, Derivation, NixStore, Release, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_store_that_is_elsewhere_on_the_disk_is_served_through_its_daemon() {
    for release in Release::all() {
        let root = tempfile::tempdir().expect("a folder");
        let store = NixStore::with_settings(
            release.clone(),
            &[("store", &format!("local?root={}", text(root.path())))],
        );
        let tree = store.folder().join("tree");
        std::fs::create_dir_all(tree.join("below")).expect("made");
        std::fs::write(tree.join("small"), "small").expect("written");
        let large: Vec<u8> = (0..3_000_000_u32).flat_map(|n| (n ^ (n >> 7)).to_le_bytes()).collect();
        std::fs::write(tree.join("below/large"), &large).expect("written");
        std::os::unix::fs::symlink("small", tree.join("link")).expect("made");
        let path = std::path::PathBuf::from(store.nix_store(&["--add", text(&tree)]));
        assert!(!path.exists(), "{} is where its name says: this test shows nothing", path.display());
        let digest = support::nar_digest(&tree);

        let cache = Cache::of(store, &[], &[]);
        let narinfo = cache.narinfo(&path);
        for address in [field(&narinfo, "URL"), field(&narinfo, "URL").trim_end_matches(".zst")] {
            let nar = cache.http.get(&format!("/{address}"));
            assert_eq!(nar.status, 200, "{}: {}", release.name(), nar.text());
            let plain = match address.ends_with(".zst") {
                true => zstd::decode_all(&nar.body[..]).expect("a zstd file"),
                false => nar.body,
            };
            assert_eq!(plain.len().to_string(), field(&narinfo, "NarSize"));
        }
        wait_until("it is packed", SOON, || cache.narinfo(&path).contains("FileHash: "));
        let client = Client::new(Release::Host, path.parent().expect("a store"));
        client.copy(&cache.ondine.substituter(), &[&path]).must_succeed();
        assert_eq!(client.nar_digest(&path), digest, "{}", release.name());
    }
}

/// A tree of so many folders within each other.
fn folders(count: usize) -> Derivation {
    let script = format!(
        "mkdir $out; cd $out; for number in $(seq 2 {count}); do mkdir d; cd d; done; echo deep > file; echo {} > {}; :",
        "x".repeat(64),
        "more"
    );
    Derivation::new(&format!("folders-{count}"), &script)
}

#[test]
fn folders_within_folders_are_served_as_far_as_every_client_takes_them_and_else_refused_with_the_reason() {
    for release in Release::all() {
        let cache = Cache::of(NixStore::new(release.clone()), &[], &[]);
        let [deep, too_deep, far_too_deep] =
            [63, 64, 300].map(|count| cache.store.instantiate(&folders(count)));
        assert_narinfo(&cache.ask(deep.out()), deep.out());
        for client in Release::all() {
            let client = Client::new(client, &cache.store.store_dir());
            client.fetch(&cache.ondine.substituter(), &[deep.out()]).must_succeed();
        }
        for refused in [&too_deep, &far_too_deep] {
            let answer = cache.ask(refused.out());
            assert_eq!(answer.status, 404, "{}", release.name());
            // The newest Nix does not even build it.
            let builds = cache.store.is_valid(refused.out());
            let reason = if builds { "nested folders" } else { "maximum NAR directory depth" };
            assert_missing(&answer, &[reason]);
            if builds {
                assert_missing(&cache.ask(refused.out()), &["not served", "nested folders"]);
            }
        }
        assert!(!cache.ondine.log().contains("cannot pack a path"), "{}", cache.ondine.log());
    }
}
