//! The NAR store within its limit: what was used longest ago goes, and is had again when it is asked for;
//! nothing that was promised a moment ago goes, nothing that is pinned, and nothing that either needs. Real
//! Nix collects at every step.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{base_name, field, narinfo_address};
use crate::support::cache::assert_narinfo;
use crate::support::derivations::{chain, noise, text_file};
use crate::support::upstream::stored_nars;
use crate::support::{
    Cache, Client, Compression, Derivation, Http, Instantiated, NixStore, Ondine, PackageSet, Release,
    Sample, Upstream, package_set, text, wait_until,
};
use narinfo::NarHash;
use sha2::{Digest, Sha256};

const SOON: Duration = Duration::from_secs(60);

/// The output of `ondine gc` with these arguments.
#[track_caller]
fn gc(ondine: &Ondine, arguments: &[&str]) -> String {
    ondine.run("gc", arguments).must_succeed().text()
}

/// The value of a metric.
#[track_caller]
fn metric(ondine: &Ondine, name: &str) -> u64 {
    let metrics = Http::new(&ondine.url()).get("/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// No GC root of ours is left: everything is packed.
#[track_caller]
fn wait_until_packed(ondine: &Ondine) {
    let roots = ondine.state_dir().join("gcroots");
    wait_until("everything is packed", SOON, || {
        std::fs::read_dir(&roots).expect("the folder of roots").next().is_none()
    });
}

/// Has Nix collect all that nothing holds: none of these is left then, and what is packed is served all the
/// same.
#[track_caller]
fn collect(cache: &Cache, paths: &[&Path]) {
    wait_until_packed(&cache.ondine);
    wait_until("Nix collects them", SOON, || {
        cache.store.gc();
        !paths.iter().any(|path| cache.store.is_valid(path))
    });
}

/// Asks for a path; all that is used later is used after it.
#[track_caller]
fn use_path(cache: &Cache, path: &Path) {
    assert_narinfo(&cache.ask(path), path);
    wait_until_packed(&cache.ondine);
    cache.ondine.end_all_uses();
}

/// A derivation that Nix keeps, so that it can be built whenever it is asked for.
#[track_caller]
fn kept(store: &NixStore, derivation: &Derivation) -> Instantiated {
    let instantiated = store.instantiate(derivation);
    store.root(&instantiated.drv);
    instantiated
}

/// The NAR that a narinfo promises, or what was answered instead.
fn fetch(http: &Http, narinfo: &str) -> Result<(), String> {
    let nar = http.get(&format!("/{}", field(narinfo, "URL")));
    if nar.status != 200 {
        return Err(nar.text());
    }
    let plain = zstd::decode_all(&nar.body[..]).map_err(|error| error.to_string())?;
    let hash = NarHash::from_bytes(Sha256::digest(&plain).into()).to_string();
    if hash == field(narinfo, "NarHash") { Ok(()) } else { Err(format!("other contents, {hash}")) }
}

#[test]
fn what_was_used_longest_ago_goes_with_its_file_and_is_built_again_when_it_is_asked_for() {
    let cache = Cache::new(&["--eviction-grace", "0s"]);
    let gate = cache.store.gate();
    let noted = |name: &str| Derivation::new(name, &format!("{}echo {name} > \"$out\"", gate.note(name)));
    let base = noted("base");
    let top_script = format!("{}echo \"$base\" > \"$out\"", gate.note("top"));
    let top = Derivation::new("top", &top_script).input("base", &base);
    let [base, top, old, new] =
        [base, top, noted("old"), noted("new")].map(|derivation| kept(&cache.store, &derivation));
    for path in [&base, &old, &top, &new] {
        use_path(&cache, path.out());
    }
    collect(&cache, &[base.out(), top.out(), old.out(), new.out()]);
    let bytes = metric(&cache.ondine, "ondine_nar_store_bytes");
    assert_eq!(stored_nars(&cache.ondine).len(), 4);

    // A byte too much. What is used least is `base`, and stays, since `top` needs it.
    let limit = (bytes - 1).to_string();
    let shown = gc(&cache.ondine, &["--dry-run", "--max-bytes", &limit]);
    assert!(shown.contains(&format!("would go: {}", base_name(old.out()))), "{shown}");
    assert!(shown.contains("would go: 1 NAR,"), "{shown}");
    assert_eq!(stored_nars(&cache.ondine).len(), 4, "a dry run has removed something");
    let evicted = gc(&cache.ondine, &["--max-bytes", &limit]);
    assert_eq!(evicted, shown.replace("would go", "evicted"));
    assert_eq!(stored_nars(&cache.ondine).len(), 3);
    assert_eq!(metric(&cache.ondine, "ondine_evicted_nars_total"), 1);
    for path in [&base, &top, &new] {
        cache.assert_served(path.out());
    }
    collect(&cache, &[]);

    // Nobody has it any more, and nobody who asks is told otherwise.
    let missing = cache.http.get(&format!("/cached{}", narinfo_address(old.out())));
    assert_eq!(missing.status, 404);
    assert_narinfo(&cache.ask(old.out()), old.out());
    collect(&cache, &[old.out()]);
    cache.assert_served(old.out());
    let mut builds = gate.starts();
    builds.sort();
    assert_eq!(builds, ["base", "new", "old", "old", "top"]);

    // All goes that can: what refers to something before what it refers to.
    cache.ondine.end_all_uses();
    let all = gc(&cache.ondine, &["--max-bytes", "0"]);
    let at = |path: &Instantiated| all.find(&format!("evicted: {}", base_name(path.out()))).expect(&all);
    assert!(at(&top) < at(&base), "{all}");
    assert_eq!(stored_nars(&cache.ondine), [""; 0]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[top.out(), new.out()]).must_succeed();
    assert!(client.has(base.out()));
}

#[test]
fn what_an_upstream_has_is_served_without_a_file_and_fetched_again() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &chain("row", 3, |_| String::new()));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &["--eviction-grace", "0s"]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &sample.paths()).must_succeed();
    wait_until("all is stored", SOON, || {
        metric(&cache.ondine, "ondine_nar_store_bytes") > 0 && stored_nars(&cache.ondine).len() == 3
    });
    cache.ondine.end_all_uses();
    let evicted = gc(&cache.ondine, &["--max-bytes", "0"]);
    assert!(evicted.contains("evicted: 3 NARs"), "{evicted}");
    assert_eq!(stored_nars(&cache.ondine), [""; 0]);
    cache.assert_served(&sample.path);
    let again = cache.client(&[]);
    again.fetch(&cache.ondine.substituter(), &sample.paths()).must_succeed();
    sample.assert_held_by(&again);
}

#[test]
fn a_client_of_every_release_that_remembers_a_narinfo_gets_what_was_evicted_since() {
    let cache = Cache::new(&["--eviction-grace", "0s"]);
    let clients: Vec<(Client, Instantiated)> = Release::all()
        .into_iter()
        .map(|release| {
            let path = kept(&cache.store, &text_file("remembered", release.name()));
            (Client::new(release, &cache.store.store_dir()), path)
        })
        .collect();
    let another = kept(&cache.store, &text_file("another", "another"));
    let url = format!("/{}", field(&cache.narinfo(another.out()), "URL"));
    for (client, path) in &clients {
        client.fetch(&cache.ondine.substituter(), &[path.out()]).must_succeed();
    }
    let mut paths: Vec<&Path> = clients.iter().map(|(_, path)| path.out()).collect();
    paths.push(another.out());
    collect(&cache, &paths);
    cache.ondine.end_all_uses();
    let evicted = gc(&cache.ondine, &["--max-bytes", "0"]);
    assert!(evicted.contains(&format!("evicted: {} NARs", paths.len())), "{evicted}");

    // Each asks for the NAR alone, and waits for the build.
    for (client, path) in &clients {
        client.empty();
        client.fetch(&cache.ondine.substituter(), &[path.out()]).must_succeed();
        assert_eq!(client.nar_digest(path.out()), support::nar_digest(path.out()));
    }
    // Who only wants what is there has nothing built.
    let only_there = cache.http.get(&format!("/cached{url}"));
    assert!(only_there.status == 404 && only_there.text().contains("not built yet"), "{}", only_there.text());
    assert_eq!(cache.http.head(&url).status, 404);
    assert_eq!(cache.http.get(&url).status, 200);
}

#[test]
fn what_was_used_lately_stays_above_the_limit_and_that_is_said_once() {
    let cache = Cache::new(&["--max-nar-store-bytes", "1000"]);
    let [one, two] = [4096, 8192].map(|bytes| kept(&cache.store, &noise("some", bytes)));
    for path in [&one, &two] {
        assert_narinfo(&cache.ask(path.out()), path.out());
    }
    wait_until("it is noticed", SOON, || metric(&cache.ondine, "ondine_nar_store_above_limit_bytes") > 0);
    collect(&cache, &[one.out(), two.out()]);
    let shown = gc(&cache.ondine, &[]);
    assert!(shown.contains("above the limit of 1000 bytes") && shown.contains("used lately"), "{shown}");
    assert_eq!(metric(&cache.ondine, "ondine_nar_store_limit_bytes"), 1000);
    assert_eq!(metric(&cache.ondine, "ondine_evicted_nars_total"), 0);
    for path in [&one, &two] {
        cache.assert_served(path.out());
    }
    assert_eq!(cache.ondine.log().matches("is above its limit").count(), 1);
}

#[test]
fn a_pin_holds_a_closure_by_path_or_by_attribute_even_before_it_is_there() {
    let store = NixStore::new(Release::Host);
    let base = text_file("base", "base");
    let listed = Derivation::new("listed", "mkdir $out; echo \"$base\" > $out/file").input("base", &base);
    let set = PackageSet::new([(
        "tools".to_owned(),
        format!("{{ recurseForDerivations = true; listed = {}; }}", listed.to_nix()),
    )]);
    let daemon = store.daemon();
    let ondine = set.serve(&store, "eviction-grace = '0s'", "");
    let mut cache = Cache { http: Http::new(&ondine.url()), ondine, daemon, store };
    package_set::wait_for_generation(&cache.ondine);
    let [base, listed] = [&base, &listed].map(|derivation| cache.store.instantiate(derivation));
    let [by_path, other] = ["by-path", "other"].map(|name| kept(&cache.store, &text_file(name, name)));

    let pinned = cache.ondine.run("pin", &["tools.listed"]).must_succeed().text();
    assert!(pinned.contains(base_name(listed.out())) && pinned.contains("package set pkgs"), "{pinned}");
    assert!(pinned.contains("not served yet"), "{pinned}");
    use_path(&cache, by_path.out());
    let pinned = cache.ondine.run("pin", &[text(by_path.out())]).must_succeed().text();
    assert_eq!(pinned, format!("pinned: {}", base_name(by_path.out())));
    let refused = cache.ondine.run("pin", &["tools.unheard-of"]).must_fail();
    assert!(refused.stderr.contains("no attribute tools.unheard-of"), "{refused}");
    let over_the_network = cache.http.get(&format!("/api/v1/pins/{}", &base_name(other.out())[..32]));
    assert_eq!(over_the_network.status, 405);
    assert_eq!(metric(&cache.ondine, "ondine_pins"), 2);

    for path in [&listed, &other] {
        use_path(&cache, path.out());
    }
    collect(&cache, &[base.out(), listed.out(), by_path.out(), other.out()]);
    let evicted = gc(&cache.ondine, &["--max-bytes", "0"]);
    assert!(evicted.contains(&format!("evicted: {}", base_name(other.out()))), "{evicted}");
    assert!(evicted.contains("evicted: 1 NAR,") && evicted.contains("held by pins"), "{evicted}");
    for path in [&base, &listed, &by_path] {
        cache.assert_served(path.out());
    }

    // A pin outlives the server.
    assert!(cache.ondine.sigterm().success());
    cache.ondine.start_again();
    let list = cache.ondine.run("pins", &[]).must_succeed().text();
    let rows: Vec<Vec<&str>> =
        list.lines().skip(1).map(|line| line.split_whitespace().skip(1).collect()).collect();
    let [by_path_name, listed_name] = [&by_path, &listed].map(|path| base_name(path.out()));
    for row in [[by_path_name, by_path_name], ["tools.listed", listed_name]] {
        assert!(rows.contains(&row.to_vec()), "{list}");
    }
    assert_eq!(rows.len(), 2, "{list}");
    cache.ondine.run("unpin", &["tools.listed"]).must_succeed();
    cache.ondine.run("unpin", &[&base_name(by_path.out())[..32]]).must_succeed();
    let refused = cache.ondine.run("unpin", &["tools.listed"]).must_fail();
    assert!(refused.stderr.contains("no such pin"), "{refused}");
    cache.ondine.end_all_uses();
    assert!(gc(&cache.ondine, &["--max-bytes", "0"]).contains("evicted: 3 NARs"));
    assert_eq!(stored_nars(&cache.ondine), [""; 0]);
}

/// Number of paths that the clients want, bytes of each, and the number for which there is room.
const PATHS: u32 = 10;
const PATH_BYTES: u32 = 100 * 1024;
const ROOM: u32 = 7;
/// For so long, while Nix collects all the time; each client asks for one path again and again, then for the
/// next one.
const LOAD: Duration = Duration::from_secs(8);
const ON_ONE_PATH: Duration = Duration::from_millis(500);
/// Time after its last use in which nothing is evicted: a client that asks for a NAR so soon after it was
/// told of it gets it.
const KEEP_USED: (&str, Duration) = ("1s", Duration::from_secs(1));

#[test]
fn under_load_with_little_room_every_promise_is_kept_while_nix_collects() {
    let limit = (ROOM * PATH_BYTES).to_string();
    let cache = Cache::new(&["--max-nar-store-bytes", &limit, "--eviction-grace", KEEP_USED.0]);
    let noise = |number| noise(&format!("noise-{number}"), PATH_BYTES + 4 * number);
    let paths: Vec<Instantiated> = (0..PATHS).map(|number| kept(&cache.store, &noise(number))).collect();
    let (url, done, fetches) = (cache.ondine.url(), AtomicBool::new(false), AtomicU64::new(0));
    let client = |first: usize| {
        let http = Http::new(&url);
        for path in paths.iter().cycle().skip(first).map(Instantiated::out) {
            let began = Instant::now();
            while began.elapsed() < ON_ONE_PATH {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let asked = http.get(&narinfo_address(path));
                let told = Instant::now();
                assert_narinfo(&asked, path);
                let fetched = fetch(&http, &asked.text());
                let after = told.elapsed();
                if after < KEEP_USED.1 {
                    assert_eq!(fetched, Ok(()), "{} was promised {after:?} ago", path.display());
                    fetches.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let evicted = || metric(&cache.ondine, "ondine_evicted_nars_total");
    std::thread::scope(|scope| {
        let clients = [scope.spawn(|| client(0)), scope.spawn(|| client(1))];
        let began = Instant::now();
        // Until something was evicted, and asked for again.
        while (began.elapsed() < LOAD || evicted() <= u64::from(PATHS)) && began.elapsed() < SOON {
            cache.store.gc();
            assert!(!clients.iter().any(|client| client.is_finished()), "a client has seen something wrong");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(evicted() > u64::from(PATHS), "so little was evicted that this shows nothing");
    assert!(
        fetches.load(Ordering::Relaxed) > u64::from(PATHS),
        "so little was asked that this shows nothing"
    );
    let within = || metric(&cache.ondine, "ondine_nar_store_bytes") <= u64::from(ROOM * PATH_BYTES);
    wait_until("the store is within its limit", SOON, within);
    wait_until_packed(&cache.ondine);
    let sound = cache.ondine.run("fsck", &["--verify"]).must_succeed().text();
    assert!(sound.contains("sound: "), "{sound}");
    for path in &paths {
        assert_eq!(fetch(&cache.http, &cache.narinfo(path.out())), Ok(()), "{}", path.out().display());
    }
}
