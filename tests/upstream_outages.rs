//! Other caches that come and go: dead ones cost a moment a few times and then nothing, builds go on without
//! them, and what was fetched before stays.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::text_file;
use crate::support::upstream::{counted, table};
use crate::support::{
    Cache, Compression, Derivation, Fault, NixStore, Release, Sample, Upstream, wait_until,
};

/// Time limit of all upstreams together for one path.
const WITHIN: Duration = Duration::from_secs(3);
/// So often an upstream may be asked in vain before it is left alone.
const ASKED_IN_VAIN: usize = 3;

/// A port whose connections are never made: its queue of connections is full, and further ones are dropped
/// without a word.
struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    #[track_caller]
    fn new() -> BlackHole {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let queue: Vec<TcpStream> = std::iter::from_fn(|| connect().ok()).take(10_000).collect();
        assert!(connect().is_err(), "the queue does not fill");
        BlackHole { address, _listener: listener, _queue: queue }
    }
}

/// A path that nobody has, a different one for each number.
fn nowhere(number: usize) -> PathBuf {
    PathBuf::from(format!("/nix/store/{number:0>32}-nowhere"))
}

#[test]
fn dead_upstreams_cost_a_moment_a_few_times_then_nothing_and_builds_go_on() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("sample", "text"));
    let [mut refusing, silent, failing] =
        [(); 3].map(|()| Upstream::of(sample.copied(&store, Compression::Xz)));
    sample.collect_with_derivation(&store);
    let dropping = BlackHole::new();
    let build = |name: &str| store.instantiate(&Derivation::new(name, &format!("echo {name} > \"$out\"")));
    let built = [build("first"), build("second"), build("third")];
    let dead = table(&format!("http://{}", dropping.address), &[&silent.cache.public_key()], "");
    let tables = [refusing.table(""), silent.table(""), failing.table(""), dead];
    // What is waited out else is told at once.
    let cache = Cache::behind(store, &tables, &["--transient-retry", "0s"]);
    refusing.server.stop();
    silent.server.fault("", Fault::Silence);
    failing.server.fault("", Fault::Status(503));

    let timed = |number: usize| {
        let begun = Instant::now();
        assert_missing(&cache.ask(&nowhere(number)), &[]);
        begun.elapsed()
    };
    let took: Vec<Duration> = (0..ASKED_IN_VAIN).map(timed).collect();
    assert!(took.iter().all(|took| *took < 2 * WITHIN), "{took:?}");
    let failed = || counted(&cache.ondine, "narinfos", &["failed"]);
    let failed_at_first = failed();
    assert!(failed_at_first >= 4);
    let took: Vec<Duration> = (ASKED_IN_VAIN..10).map(timed).collect();
    assert_eq!(failed(), failed_at_first, "one was asked again; it took {took:?}");
    assert!(counted(&cache.ondine, "narinfos", &["rested"]) >= 20);
    for built in &built {
        assert_narinfo(&cache.ask(built.out()), built.out());
    }
    cache.http.wait_until_ready();
}

#[test]
fn a_dead_upstream_does_not_hide_what_another_has() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("sample", "text"));
    let good = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let dropping = BlackHole::new();
    let dead = table(&format!("http://{}", dropping.address), &[&good.cache.public_key()], "priority = 1");
    let cache = Cache::behind(store, &[dead, good.table("priority = 2")], &[]);
    let begun = Instant::now();
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
    assert!(begun.elapsed() < 2 * WITHIN, "{:?}", begun.elapsed());
    sample.assert_held_by(&client);
}

#[test]
fn an_upstream_that_flips_does_not_take_back_what_was_fetched() {
    let store = NixStore::new(Release::Host);
    let [kept, passed, late] =
        ["kept", "passed", "late"].map(|name| Sample::new(&store, &text_file(name, name)));
    let upstream = Upstream::new(&store, &[&kept.path, &passed.path, &late.path]);
    kept.collect_with_derivation(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &["--negative-ttl", "1s"]);
    kept.assert_served_by(&cache.ondine);
    let narinfo = cache.narinfo(&passed.path);
    let nar = format!("/{}", field(&narinfo, "URL"));

    upstream.server.fault("", Fault::Status(404));
    kept.assert_served_by(&cache.ondine);
    // Its narinfo was given, its NAR is nowhere any more.
    assert_missing(&cache.http.get(&nar), &[]);
    wait_until("it is forgotten", Duration::from_secs(5), || cache.ask(&passed.path).status == 404);
    assert_eq!(cache.http.head(&narinfo_address(&passed.path)).status, 404);
    assert_missing(&cache.ask(&late.path), &[]);

    upstream.server.mend();
    wait_until("it is found", Duration::from_secs(5), || cache.ask(&late.path).status == 200);
    late.assert_served_by(&cache.ondine);
    kept.assert_served_by(&cache.ondine);
}
