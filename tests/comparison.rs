//! Own builds beside what another cache has of the same paths: the same bytes or others, noted once it has
//! them, told and counted, and served as they were built here.

use std::path::Path;
use std::time::Duration;

use crate::support::addresses::{base_name, field};
use crate::support::{
    BinaryCache, Cache, Compression, Derivation, FileServer, NixStore, Release, wait_until,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Details of a served path.
fn known(cache: &Cache, path: &Path) -> Value {
    let answer = cache.http.get(&format!("/api/v1/paths/{}", &base_name(path)[..32]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[test]
fn what_was_built_here_is_compared_with_what_another_cache_turns_out_to_have() {
    // Another machine has built both, and a cache got them that cannot be reached for now.
    let store = NixStore::new(Release::Host);
    let steady = store.instantiate(&Derivation::new("steady", "echo always > $out"));
    let whim = store.instantiate(&Derivation::new("whim", "echo $RANDOM $$ > $out"));
    for built in [&steady, &whim] {
        store.root(&built.drv);
        store.realise(&built.drv);
    }
    let upstream = BinaryCache::new(&store, Compression::Zstd, &[steady.out(), whim.out()]);
    store.gc();
    let mut server = FileServer::new(upstream.folder());
    server.stop();
    let flag = format!("{} {}", server.url(), upstream.public_key());
    let mut cache = Cache::of(store, &["--upstream", &flag], &[]);
    let ours = [&steady, &whim].map(|built| cache.narinfo(built.out()));
    for built in [&steady, &whim] {
        let path = known(&cache, built.out());
        assert_eq!((&path["built_here"], &path["comparison"]), (&Value::Bool(true), &Value::Null), "{path}");
    }

    server.start_again();
    cache.ondine.crash_and_restart();
    wait_until("both are compared", SOON, || {
        [&steady, &whim].iter().all(|built| !known(&cache, built.out())["comparison"].is_null())
    });
    for (built, same) in [(&steady, true), (&whim, false)] {
        let path = known(&cache, built.out());
        assert_eq!(path["comparison"]["same"], Value::Bool(same), "{path}");
        assert_eq!(path["comparison"]["upstream"], server.url());
        let theirs = upstream.narinfo(built.out());
        assert_eq!(path["comparison"]["nar_hash"], field(&theirs, "NarHash"));
    }
    let metrics = cache.http.get("/metrics").text();
    for outcome in ["same", "different"] {
        let counted = format!(
            "ondine_upstream_compared_total{{upstream=\"{}\",outcome=\"{outcome}\"}} 1",
            server.url()
        );
        assert!(metrics.lines().any(|line| line == counted), "no {counted} in:\n{metrics}");
    }
    let status: Value = serde_json::from_slice(&cache.http.get("/api/v1/status").body).expect("JSON");
    assert_eq!((&status["cache"]["reproduced"], &status["cache"]["not_reproduced"]), (&1.into(), &1.into()));
    // Clients may hold a narinfo of what was built here: that stands.
    for (built, before) in [&steady, &whim].into_iter().zip(&ours) {
        assert_eq!(field(&cache.narinfo(built.out()), "NarHash"), field(before, "NarHash"));
    }
}
