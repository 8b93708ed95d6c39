//! Package sets: what is in one can be had by hash from the moment its generation is there, through bumps and collections.
//! Real evaluations, a real daemon, stock clients.

mod support;

use std::time::Duration;

use support::{Client, Http, NixStore, Ondine, PackageSet, Release, derivations, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Small text files `p000`, `p001` and so on, each of this version.
fn packages(count: usize, version: &str) -> Vec<(String, String)> {
    let package = |number| {
        let name = format!("p{number:03}");
        let nix = derivations::text_file(&name, &format!("{name} {version}")).to_nix();
        (name, nix)
    };
    (0..count).map(package).collect()
}

fn api(ondine: &Ondine) -> serde_json::Value {
    let told = Http::new(&ondine.url()).get("/api/v1/catalogue/pkgs");
    assert_eq!(told.status, 200, "{}", told.text());
    serde_json::from_str(&told.text()).expect("JSON")
}

fn wait_for_generation(ondine: &Ondine) {
    wait_until("there is a generation", SOON, || {
        api(ondine)["generations"].as_array().is_some_and(|all| !all.is_empty())
    });
}

#[test]
fn what_a_set_has_is_built_by_hash_and_nobody_put_it_into_the_store() {
    let store = NixStore::new(Release::Host);
    let _daemon = store.daemon();
    let set = PackageSet::new(packages(3, "1"));
    let ondine = set.serve(&store, "build-from = ['catalogue']", "");
    wait_for_generation(&ondine);
    store.gc();
    let (drv, out) = set.paths(&store, "p001");
    assert!(store.is_valid(&drv), "the derivation is not held");
    let client = Client::new(Release::Host, &store.store_dir());
    client.fetch(&ondine.substituter(), &[&out]).must_succeed();
    assert!(client.has(&out));
}
