//! Fixtures of the tests of other caches do what they say: a stock client takes the stand-in for a cache, and
//! each fault looks to a client as it is meant to.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::narinfo_address;
use crate::support::derivations::{closure_of_20, noise};
use crate::support::{
    BinaryCache, Client, Ending, Fault, Http, NixStore, Release, Substituter, Upstream, nar_digest, text,
};

#[test]
fn a_stock_client_takes_the_upstream_for_a_cache_in_every_compression() {
    let store = NixStore::new(Release::Host);
    let wanted = store.instantiate(&closure_of_20("sample"));
    store.realise(&wanted.drv);
    let closure: Vec<std::path::PathBuf> =
        store.nix_store(&["--query", "--requisites", text(wanted.out())]).lines().map(Into::into).collect();
    assert_eq!(closure.len(), 20, "{closure:?}");
    let paths: Vec<&std::path::Path> = closure.iter().map(|path| &**path).collect();
    let upstream = Upstream::of(BinaryCache::in_every_compression(&store, &paths));
    let substituter = Substituter { url: upstream.server.url(), public_key: upstream.cache.public_key() };
    let client = Client::new(Release::Host, &store.store_dir());
    client.fetch(&substituter, &[wanted.out()]).must_succeed();
    for path in &closure {
        assert_eq!(client.nar_digest(path), nar_digest(path), "{}", path.display());
    }
    // Signed again by the same key it is still good; with another size it is not.
    for (size, good) in [(None, true), (Some("7"), false)] {
        upstream.cache.sign(wanted.out());
        if let Some(size) = size {
            upstream.cache.set(wanted.out(), "NarSize", size);
        }
        let client = Client::new(Release::Host, &store.store_dir());
        assert_eq!(client.fetch(&substituter, &[wanted.out()]).succeeded(), good);
    }
}

#[test]
fn each_fault_looks_as_it_is_meant_to() {
    let store = NixStore::new(Release::Host);
    let wanted = store.instantiate(&noise("noise", 300_000));
    store.realise(&wanted.drv);
    let mut upstream = Upstream::new(&store, &[wanted.out()]);
    let address = format!("/{}", support::addresses::field(&upstream.cache.narinfo(wanted.out()), "URL"));
    let bytes = upstream.cache.nar_bytes(wanted.out());
    let http = Http::new(&upstream.server.url());
    assert_eq!(http.get(&narinfo_address(wanted.out())).text(), upstream.cache.narinfo(wanted.out()));

    let whole = http.get(&address);
    assert_eq!((whole.status, whole.body == bytes), (200, true));
    let part = http.get_with(&address, &[("Range", "bytes=1000-1999")]);
    assert_eq!((part.status, &part.body[..]), (206, &bytes[1000..2000]));
    let tag = whole.header("etag").expect("an ETag").to_owned();
    let rest = http.get_with(&address, &[("Range", "bytes=1000-"), ("If-Range", &tag)]);
    assert_eq!((rest.status, &rest.body[..]), (206, &bytes[1000..]));
    let rest = http.get_with(&address, &[("Range", "bytes=1000-"), ("If-Range", "\"another\"")]);
    assert_eq!((rest.status, rest.body.len()), (200, bytes.len()));
    assert_eq!(http.head(&address).header("content-length"), Some(&*bytes.len().to_string()));
    assert_eq!(http.get("/nar/nothing").status, 404);

    let body = |fault: Fault| {
        upstream.server.mend();
        upstream.server.fault_times("/nar/", 1, fault);
        http.open(&address, &[]).read_to_end()
    };
    for (fault, length, complete) in [
        (Fault::Cut(1000), 1000, false),
        (Fault::ChunksCut(1000), 1000, false),
        (Fault::ChunksEnd(1000), 1000, true),
        (Fault::CloseEnds(1000), 1000, true),
        (Fault::ShortLength(1000), 1000, true),
        (Fault::Rate(3_000_000), bytes.len(), true),
        (Fault::Late(Duration::from_millis(50)), bytes.len(), true),
    ] {
        let said = format!("{fault:?}");
        let (got, ending) = body(fault);
        assert_eq!((got.len(), ending == Ending::Complete), (length, complete), "{said}");
        assert_eq!(got, bytes[..length], "{said}");
    }
    upstream.server.mend();
    upstream.server.fault("/nar/", Fault::Redirect("file:///etc/passwd".into()));
    let redirect = http.get(&address);
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("file:///etc/passwd")));
    upstream.server.fault_times("/nar/", 1, Fault::CloseEarly);
    assert!(http.try_open(&address, &[]).is_err());
    upstream.server.fault_times("/nar/", 1, Fault::Drip);
    let begun = Instant::now();
    let mut drip = http.open(&address, &[]);
    let _ = (drip.next_piece(), drip.next_piece());
    assert!(begun.elapsed() > Duration::from_millis(900));

    let last = upstream.server.seen_of("/nar/").pop().expect("a request");
    assert_eq!((last.method(), last.target(), last.starts_at()), ("GET", &*address, 0));
    assert!(last.first_byte.is_some() && (1..10).contains(&last.sent), "{last:?}");
    upstream.server.stop();
    assert!(http.try_open("/nix-cache-info", &[]).is_err());
    upstream.server.start_again();
    assert_eq!(http.get("/nix-cache-info").status, 200);
}
