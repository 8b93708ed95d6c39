//! `multiple-outputs-substitute-failure.sh` and `substitute-with-invalid-ca.sh`: a cache behind this one that
//! is wrong about one of two outputs, or about what a content address stands for.

use super::support::upstream::table;
use super::support::{
    BinaryCache, Cache, Client, Compression, Derivation, NixStore, Release, Sample, Substituter, text,
};

/// Two outputs that know nothing of each other.
fn independent() -> Derivation {
    Derivation::new("independent", "echo first > $first; echo second > $second").outputs(&["first", "second"])
}

/// The outputs, built and copied to a cache that is wrong about the second.
fn half_wrong(store: &NixStore) -> (Vec<Sample>, BinaryCache) {
    let instantiated = store.instantiate(&independent());
    store.realise(&instantiated.drv).must_succeed();
    let outputs = ["first", "second"].map(|name| instantiated.output(name).to_owned());
    let wrong = BinaryCache::new(store, Compression::Xz, &[&outputs[0], &outputs[1]]);
    wrong.set(&outputs[1], "NarHash", &format!("sha256:{}", "0".repeat(52)));
    let samples = outputs.map(|path| Sample::of(store, instantiated.drv.clone(), path));
    (samples.into(), wrong)
}

#[test]
fn an_output_that_a_cache_is_wrong_about_is_built_where_its_derivation_is_known() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let (samples, wrong) = half_wrong(&store);
        samples.iter().for_each(|sample| sample.collect(&store));
        let table = table(&wrong.file_url(), &[&wrong.public_key()], "");
        let cache = Cache::behind(store, &[table], &[]);
        let client = Client::new(release.clone(), &cache.store.store_dir());
        client.fetch(&cache.ondine.substituter(), &[&samples[0].path, &samples[1].path]).must_succeed();
        samples.iter().for_each(|sample| sample.assert_held_by(&client));
    }
}

#[test]
fn an_output_that_a_cache_is_wrong_about_is_missing_where_nothing_builds_it_and_the_other_is_not() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let (samples, wrong) = half_wrong(&store);
        samples.iter().for_each(|sample| sample.collect_with_derivation(&store));
        let table = table(&wrong.file_url(), &[&wrong.public_key()], "");
        let cache = Cache::behind(store, &[table], &[]);
        let client = Client::new(release.clone(), &cache.store.store_dir());
        let from = cache.ondine.substituter();
        client.fetch(&from, &[&samples[0].path, &samples[1].path]).must_fail();
        assert!(!client.has(&samples[1].path), "{release:?}");
        client.fetch(&from, &[&samples[0].path]).must_succeed();
        samples[0].assert_held_by(&client);
    }
}

#[test]
fn contents_that_are_not_those_of_a_content_address_are_refused() {
    for release in Release::all() {
        let store = NixStore::new(Release::Host);
        let add = |name: &str| {
            let file = store.folder().join(name);
            std::fs::write(&file, format!("I am {name}\n")).expect("written");
            std::path::PathBuf::from(store.nix_store(&["--add", text(&file)]).trim())
        };
        let (good, bad) = (add("good.txt"), add("bad.txt"));
        let forged = BinaryCache::new(&store, Compression::Xz, &[&good, &bad]);
        let field = |name: &str| {
            let narinfo = forged.narinfo(&bad);
            let line =
                narinfo.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
            line.expect("a narinfo has it")
        };
        for name in ["URL", "FileHash", "FileSize", "NarHash", "NarSize"] {
            forged.set(&good, name, &field(name));
        }
        // Nobody has signed this: the content address is all that could vouch for it.
        forged.remove(&good, "Sig");
        store.delete(&good);
        let cache = Cache::behind(store, &[table(&forged.file_url(), &[&forged.public_key()], "")], &[]);
        let client = Client::new(release.clone(), &cache.store.store_dir());
        let from = Substituter { url: cache.ondine.url(), public_key: cache.ondine.public_key().to_owned() };
        client.copy(&from, &[&good]).must_fail();
        assert!(!client.has(&good), "{release:?}");
    }
}
