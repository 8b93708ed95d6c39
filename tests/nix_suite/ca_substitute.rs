//! `ca/substitute.sh`: outputs whose paths are known only after the build, fetched by a client that may not
//! build.

use std::path::PathBuf;

use super::support::{Client, Derivation, NixStore, Ondine, Release};

/// The setting without which Nix knows no such derivations.
const FEATURES: (&str, &str) = ("experimental-features", "nix-command ca-derivations");

fn content_addressed(name: &str, script: &str) -> Derivation {
    Derivation::new(name, script)
        .attribute("__contentAddressed", "true")
        .attribute("outputHashMode", "\"recursive\"")
        .attribute("outputHashAlgo", "\"sha256\"")
}

/// Three outputs, two of which are links to the first at their root, of an input that is not
/// content-addressed.
fn root() -> Derivation {
    let legacy = Derivation::new("simple-input-addressed", "mkdir $out; echo 'Hello World' > $out/hello");
    let script =
        "mkdir $out; echo $legacy/hello > $out/dep; ln -s $out $out/self; ln -s $out $dev; ln -s $out $foo";
    content_addressed("rootCA", script).outputs(&["out", "dev", "foo"]).input("legacy", &legacy)
}

fn dependent() -> Derivation {
    content_addressed("dependent", "mkdir $out; cat $root/self/dep; echo $root/self/dep > $out/dep")
        .input("root", &root())
}

fn transitive() -> Derivation {
    content_addressed("transitively-dependent", "cat $dependent/dep; echo $dependent > $out")
        .input("dependent", &dependent())
}

fn build(store: &NixStore, derivation: &Derivation) -> Vec<PathBuf> {
    let drv = store.nix_instantiate(&derivation.to_nix()).swap_remove(0);
    store.realise(&drv).must_succeed().text().lines().map(PathBuf::from).collect()
}

#[test]
fn a_chain_is_had_by_a_client_that_may_not_build_and_again_by_one_that_remembers() {
    for release in Release::all() {
        // Both sides of one release: a path with a reference to itself that 2.8 made is refused by newer
        // releases from any cache.
        let store = NixStore::with_settings(release.clone(), &[FEATURES]);
        let _daemon = store.daemon();
        let built = [root(), dependent(), transitive()].map(|derivation| build(&store, &derivation));
        assert_eq!(built[0].len(), 3);
        let ondine = Ondine::start(&store, &[]);
        let client = Client::with_settings(release.clone(), &store.store_dir(), &[FEATURES]);
        // The second time with an empty store and the answers that it remembers.
        for _ in 0..2 {
            for (derivation, expected) in [transitive(), dependent(), root()].iter().zip(built.iter().rev()) {
                assert_eq!(&client.realise(&ondine.substituter(), derivation), expected, "{release:?}");
            }
            client.empty();
        }
    }
}
