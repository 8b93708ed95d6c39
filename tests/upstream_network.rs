//! The way to other caches as an operator has set it up: proxies, certificates, and a machine without any.

use crate::support;
use crate::support::derivations::text_file;
use crate::support::process::run;
use crate::support::store::{Folder, write};
use crate::support::upstream::{FileServer, table};
use crate::support::{
    BinaryCache, Cache, Compression, NixStore, Ondine, Release, Sample, TlsServer, Upstream, text,
};

/// A path that only a cache in a folder has.
fn elsewhere() -> (NixStore, Sample, BinaryCache) {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("sample", "text"));
    let cache = sample.copied(&store, Compression::Xz);
    sample.collect_with_derivation(&store);
    (store, sample, cache)
}

fn assert_fetched(store: NixStore, sample: &Sample, flag: &str, variables: &[(&str, &str)]) -> Cache {
    let cache = Cache::of(store, &["--upstream", flag], variables);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
    sample.assert_held_by(&client);
    cache
}

#[test]
fn an_upstream_is_reached_by_a_proxy_on_this_machine() {
    for variable in ["http_proxy", "ALL_PROXY"] {
        for host in ["localhost", "127.0.0.1"] {
            let (store, sample, upstream) = elsewhere();
            let proxy = FileServer::new(upstream.folder());
            let flag = format!("http://cache.example.org {}", upstream.public_key());
            let proxied = proxy.url().replace("127.0.0.1", host);
            assert_fetched(store, &sample, &flag, &[(variable, &proxied)]);
            assert!(proxy.seen().iter().all(|seen| seen.target().starts_with("http://cache.example.org/")));
        }
    }
}

#[test]
fn what_a_proxy_is_not_for_is_asked_straight_and_targets_are_judged_with_a_proxy_too() {
    let (store, sample, cache) = elsewhere();
    let (upstream, _daemon) = (Upstream::of(cache), store.daemon());
    let proxy = FileServer::new(Folder::new().path().to_owned());
    let proxied = proxy.url().replace("127.0.0.1", "localhost");
    let nar = support::addresses::field(&upstream.cache.narinfo(&sample.path), "URL").to_owned();
    for target in ["http://169.254.169.254", "http://localhost:1", "http://127.0.0.1:1"] {
        upstream.cache.set(&sample.path, "URL", &format!("{target}/{nar}"));
        let variables = [("http_proxy", &*proxied), ("no_proxy", "127.0.0.1")];
        let flag = upstream.flag();
        let ondine = Ondine::start_with(&store, &["--upstream", &flag], &variables);
        let http = support::Http::new(&ondine.url());
        let narinfo = http.get(&support::addresses::narinfo_address(&sample.path)).text();
        let answer = http.get(&format!("/{}", support::addresses::field(&narinfo, "URL")));
        assert_eq!(answer.status, 404, "{target}: {}", answer.text());
        assert!(ondine.log().contains("leads to this machine"), "{target}: {}", ondine.log());
    }
    assert_eq!(proxy.seen().len(), 0, "{:?}", proxy.seen());
}

#[test]
fn https_is_verified_by_the_file_that_nix_names_before_the_one_that_openssl_names() {
    let folder = Folder::new();
    let (good, empty) = (folder.path().join("good.pem"), folder.path().join("empty.pem"));
    write(&empty, "");
    for variables in [["NIX_SSL_CERT_FILE", "SSL_CERT_FILE"], ["SSL_CERT_FILE", "UNUSED"]] {
        let (store, sample, upstream) = elsewhere();
        let server = TlsServer::new(upstream.folder());
        write(&good, server.authority());
        let flag = format!("{} {}", server.url(), upstream.public_key());
        let variables = [(variables[0], text(&good)), (variables[1], text(&empty))];
        assert_fetched(store, &sample, &flag, &variables);
    }
    // Of another authority.
    let (store, sample, upstream) = elsewhere();
    let (server, other) = (TlsServer::new(upstream.folder()), TlsServer::new(upstream.folder()));
    write(&good, other.authority());
    let flag = format!("{} {}", server.url(), upstream.public_key());
    let cache = Cache::of(store, &["--upstream", &flag], &[("NIX_SSL_CERT_FILE", text(&good))]);
    let answer = cache.ask(&sample.path);
    assert!(answer.status == 404 && answer.text().contains("certificate"), "{}", answer.text());
}

#[test]
fn without_certificates_http_upstreams_work_and_https_ones_are_refused_with_the_reason() {
    let nothing = [("NIX_SSL_CERT_FILE", "/nonexistent/certificates")];
    let (store, sample, cache) = elsewhere();
    let upstream = Upstream::of(cache);
    let cache = assert_fetched(store, &sample, &upstream.flag(), &nothing);
    let file = cache.store.folder().join("https.toml");
    write(&file, &table("https://cache.example.org", &[&upstream.cache.public_key()], ""));
    let mut serve = cache.ondine.command("serve");
    let state = cache.store.folder().join("another-state");
    serve.args(["--listen", "127.0.0.1:0", "--config", text(&file), "--state-dir", text(&state)]);
    let refused = run(serve).must_fail().stderr;
    for said in
        ["https://cache.example.org", "/nonexistent/certificates", "NIX_SSL_CERT_FILE", "ca-certificates"]
    {
        assert!(refused.contains(said), "{refused}");
    }
}
