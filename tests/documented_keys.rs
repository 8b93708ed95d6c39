//! The public key of cache.nixos.org stands in the documentation to be copied: wherever it does, it verifies
//! real narinfos of that cache.

use std::path::{Path, PathBuf};

use narinfo::{NarInfo, PublicKey, StoreDir};

const KEY_NAME: &str = "cache.nixos.org-1:";
/// Files in which the key must stand, and how often at least.
const DOCUMENTS: [(&str, usize); 3] =
    [("README.md", 1), ("docs/upstreams.md", 1), ("nixos-module/default.nix", 1)];
/// Narinfos as cache.nixos.org answered.
const NARINFOS: &str = "narinfo/tests/vectors/cache.nixos.org";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each key of the cache in a text, up to the character that ends it.
fn keys(text: &str) -> Vec<&str> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let starts = text.match_indices(KEY_NAME).map(|(at, name)| (at, at + name.len()));
    starts
        .map(|(start, encoded)| {
            let end = text[encoded..].find(|c| !is_key(c)).map_or(text.len(), |length| encoded + length);
            &text[start..end]
        })
        .collect()
}

#[test]
fn the_key_of_cache_nixos_org_in_the_documentation_verifies_what_it_signed() {
    let store_dir = StoreDir::default();
    let narinfos: Vec<NarInfo> = std::fs::read_dir(file(NARINFOS))
        .expect("the folder of narinfos")
        .map(|entry| read(&entry.expect("an entry").path()))
        .map(|text| NarInfo::parse(&store_dir, text.as_bytes()).expect("a narinfo"))
        .collect();
    assert!(!narinfos.is_empty());
    for (name, at_least) in DOCUMENTS {
        let text = read(&file(name));
        let found = keys(&text);
        assert!(found.len() >= at_least, "{name} has the key {} times", found.len());
        for key in found {
            let key: PublicKey = key.parse().unwrap_or_else(|error| panic!("{name}: {key}: {error}"));
            for info in &narinfos {
                assert!(
                    info.path_info.is_signed(&store_dir, std::slice::from_ref(&key)),
                    "{name}: {key}: {}",
                    info.path_info.path
                );
            }
        }
    }
}
