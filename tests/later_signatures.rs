//! The promise about signatures that come later: what is signed in the Nix store after it was served is
//! served with that signature, beside those that it had. Real `nix store sign` of every release.

use std::time::Duration;

use crate::support::addresses::fields;
use crate::support::derivations::text_file;
use crate::support::{BinaryCache, Cache, NixStore, Release, Substituter, text, wait_until};

/// Time until it is seen, on a machine that does much else.
const SOON: Duration = Duration::from_secs(120);

#[test]
fn a_path_that_is_signed_in_the_store_later_is_served_with_that_signature_beside_the_others() {
    for release in Release::all() {
        let cache = Cache::of(NixStore::new(release.clone()), &[], &[]);
        let [signed, other] = ["signed", "other"].map(|name| cache.store.instantiate(&text_file(name, name)));
        let before = cache.narinfo(signed.out());
        let untouched = cache.narinfo(other.out());
        let theirs = BinaryCache::empty("theirs-1");
        let key = theirs.key_file();
        cache.store.nix(&["store", "sign", "--key-file", text(&key), text(signed.out())]);
        let has_it =
            || fields(&cache.narinfo(signed.out()), "Sig").iter().any(|sig| sig.starts_with("theirs-1:"));
        wait_until("it is served with it", SOON, has_it);
        let after = cache.narinfo(signed.out());
        for signature in fields(&before, "Sig") {
            assert!(fields(&after, "Sig").contains(&signature), "{after}");
        }
        assert_eq!(fields(&after, "Sig").len(), fields(&before, "Sig").len() + 1, "{after}");
        assert_eq!(fields(&cache.narinfo(other.out()), "Sig"), fields(&untouched, "Sig"));
        let client = cache.client(&[]);
        let from = Substituter { url: cache.ondine.url(), public_key: theirs.public_key() };
        client.fetch(&from, &[signed.out()]).must_succeed();
    }
}

#[test]
fn what_was_signed_while_the_server_was_down_is_served_with_it_after_the_start() {
    let mut cache = Cache::new(&[]);
    let signed = cache.store.instantiate(&text_file("signed", "signed"));
    cache.narinfo(signed.out());
    cache.ondine.kill9();
    let theirs = BinaryCache::empty("theirs-1");
    cache.store.nix(&["store", "sign", "--key-file", text(&theirs.key_file()), text(signed.out())]);
    cache.ondine.start_again();
    let has_it =
        || fields(&cache.narinfo(signed.out()), "Sig").iter().any(|sig| sig.starts_with("theirs-1:"));
    wait_until("it is served with it", SOON, has_it);
}
