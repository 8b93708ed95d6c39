//! The promise about other caches: what one of them has is fetched once, verified, kept and served like what
//! was built here, to stock clients and with that cache gone. Nothing is built for it; what no cache has is
//! built as ever.

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{base_name, field, fields, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::cutting_proxy::client_that_resumed;
use crate::support::derivations::{closure_of_20, noise, row_of_outputs, text_file};
use crate::support::upstream::{counted, table};
use crate::support::{
    BinaryCache, Cache, Client, Compression, Derivation, Fault, FileServer, Http, NixStore, Ondine, Release,
    Sample, Substituter, Upstream, Valve, text, wait_until,
};

/// Time limit of what takes no time, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);

/// A server whose store lost a path that the cache behind it has.
struct Behind {
    cache: Cache,
    upstream: Upstream,
    sample: Sample,
}

impl Behind {
    fn new(derivation: &Derivation, more: &str, arguments: &[&str]) -> Behind {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, derivation);
        let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
        sample.collect(&store);
        let cache = Cache::behind(store, &[upstream.table(more)], arguments);
        Behind { cache, upstream, sample }
    }
}

// What another cache has.

#[test]
fn a_closure_in_every_compression_comes_through_a_cold_proxy_and_again_with_the_upstream_gone() {
    for over_http in [true, false] {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, &closure_of_20("sample"));
        assert_eq!(sample.closure.len(), 20, "{:?}", sample.closure);
        let mut upstream = Upstream::of(BinaryCache::in_every_compression(&store, &sample.paths()));
        sample.collect(&store);
        let url = if over_http { upstream.server.url() } else { upstream.cache.file_url() };
        let table = table(&url, &[&upstream.cache.public_key()], "");
        let mut cache = Cache::behind(store, &[table], &[]);

        let client = cache.client(&[]);
        client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
        sample.assert_held_by(&client);
        assert!(!cache.store.is_valid(&sample.path), "it went through the server's Nix store");
        let narinfo = cache.narinfo(&sample.path);
        let names: Vec<_> =
            fields(&narinfo, "Sig").iter().map(|sig| sig.split(':').next().unwrap_or_default()).collect();
        let own = cache.ondine.public_key().split(':').next().unwrap_or_default();
        assert!(names.len() == 2 && names.contains(&"upstream-1") && names.contains(&own), "{names:?}");
        assert_eq!(field(&narinfo, "Deriver"), base_name(&sample.drv));

        upstream.server.stop();
        std::fs::rename(upstream.cache.folder(), upstream.cache.folder().with_extension("gone"))
            .expect("moved");
        cache.ondine.crash_and_restart();
        // Whoever trusts the upstream's key alone may fetch from here, too.
        let key = upstream.cache.public_key();
        for from in [
            cache.ondine.substituter(),
            cache.ondine.cached(),
            Substituter { url: cache.ondine.url(), public_key: key },
        ] {
            let client = cache.client(&[]);
            client.fetch(&from, &[&sample.path]).must_succeed();
            sample.assert_held_by(&client);
        }
    }
}

#[test]
fn a_client_of_every_release_gets_a_closure_of_200_paths_through_a_cold_proxy_and_again_with_the_upstream_down()
 {
    let store = NixStore::new(Release::Host);
    let drv = store.nix_instantiate(&row_of_outputs("row", 200).to_nix()).swap_remove(0);
    let last = store.nix_store(&["--query", "--binding", "o200", text(&drv)]);
    let sample = Sample::of(&store, drv, last.into());
    assert_eq!(sample.closure.len(), 200);
    let cache = sample.copied(&store, Compression::Zstd);
    sample.collect(&store);
    let _daemon = store.daemon();
    for release in Release::all() {
        let mut server = FileServer::new(cache.folder());
        let flag = format!("{} {}", server.url(), cache.public_key());
        let ondine = Ondine::start(&store, &["--upstream", &flag]);
        for _ in 0..2 {
            let client = Client::new(release.clone(), &store.store_dir());
            client.fetch(&ondine.substituter(), &[&sample.path]).must_succeed();
            sample.assert_held_by(&client);
            server.stop();
        }
    }
}

#[test]
fn equal_requests_at_once_make_one_fetch() {
    let Behind { cache, upstream, sample } = Behind::new(&noise("noise", 300_000), "", &[]);
    let valve = Valve::new();
    upstream.server.fault("/nar/", Fault::Held(valve.clone()));
    let narinfo = narinfo_address(&sample.path);
    let together = Barrier::new(20);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let http = Http::new(&cache.ondine.url());
                together.wait();
                let narinfo = http.get(&narinfo);
                assert_narinfo(&narinfo, &sample.path);
                let mut nar = http.open(&format!("/{}", field(&narinfo.text(), "URL")), &[]);
                together.wait();
                let (nar, _) = nar.read_to_end();
                sample.assert_is_nar(&zstd::decode_all(&nar[..]).expect("a zstd file"));
            });
        }
        scope.spawn(|| {
            wait_until("the upstream is asked for the NAR", SOON, || {
                !upstream.server.seen_of("/nar/").is_empty()
            });
            // Time enough for the others; too short a time hides an error, and fails no test.
            std::thread::sleep(Duration::from_secs(1));
            valve.open();
        });
    });
    for pattern in [&*narinfo, "/nar/"] {
        let seen = upstream.server.seen_of(pattern);
        assert_eq!(seen.len(), 1, "{pattern}: {seen:?}");
    }
    assert_eq!(counted(&cache.ondine, "narinfos", &["found"]), 1);
    // Answers end before the file is on the disk.
    wait_until("the NAR is kept", SOON, || counted(&cache.ondine, "nars", &["kept"]) == 1);
}

#[test]
fn a_transfer_that_breaks_is_resumed_where_it_broke() {
    const BYTES: u64 = 1 << 18;
    for fault in [Fault::Cut(1 << 18), Fault::ChunksCut(1 << 18)] {
        let Behind { cache, upstream, sample } = Behind::new(&noise("noise", 1 << 20), "", &[]);
        upstream.server.fault_times("/nar/", 2, fault.clone());
        sample.assert_served_by(&cache.ondine);
        let starts: Vec<u64> = upstream.server.seen_of("/nar/").iter().map(|seen| seen.starts_at()).collect();
        assert_eq!(starts, [0, BYTES, 2 * BYTES], "{fault:?}");
        // An upstream that gives all, though asked for the rest.
        let Behind { cache, upstream, sample } = Behind::new(&noise("noise", 1 << 20), "", &[]);
        upstream.server.fault("/nar/", Fault::NoRange);
        upstream.server.fault_times("/nar/", 1, fault);
        sample.assert_served_by(&cache.ondine);
    }
}

#[test]
fn a_client_resumes_a_download_that_broke_while_the_nar_came_from_an_upstream() {
    let Behind { cache, upstream, sample } = Behind::new(&noise("noise", 1 << 20), "", &[]);
    upstream.server.fault("/nar/", Fault::Rate(2 << 20));
    let client = client_that_resumed(&cache, &sample.path, 1 << 18);
    sample.assert_held_by(&client);
    assert_eq!(upstream.server.seen_of("/nar/").len(), 1);
}

#[test]
fn a_path_that_is_content_addressed_needs_no_signature() {
    let store = NixStore::new(Release::Host);
    let file = store.folder().join("source");
    support::store::write(&file, "a source\n");
    let path = store.nix_store(&["--add-fixed", "--recursive", "sha256", text(&file)]);
    let path = Path::new(&path).to_owned();
    let upstream = Upstream::new(&store, &[&path]);
    upstream.cache.remove(&path, "Sig");
    assert!(field(&upstream.cache.narinfo(&path), "CA").starts_with("fixed:r:sha256:"));
    store.gc();
    let cache = Cache::behind(store, &[upstream.table("")], &[]);
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&path]).must_succeed();
    assert_eq!(std::fs::read(client.physical(&path)).expect("a file"), b"a source\n");
}

// What is built, and what is not.

#[test]
fn head_and_the_cache_without_building_ask_upstreams_and_build_nothing() {
    let Behind { cache, upstream: _upstream, sample } = Behind::new(&text_file("there", "there"), "", &[]);
    let here = cache.store.instantiate(&text_file("here", "here"));
    let address = narinfo_address(&sample.path);
    assert_eq!(cache.http.head(&address).status, 200);
    let cached = cache.http.get(&format!("/cached{address}"));
    assert_narinfo(&cached, &sample.path);
    let nar = format!("/cached/{}", field(&cached.text(), "URL"));
    assert_eq!(cache.http.get(&nar).status, 200);

    assert_eq!(cache.http.head(&narinfo_address(here.out())).status, 404);
    let cached = cache.http.get(&format!("/cached{}", narinfo_address(here.out())));
    assert_missing(&cached, &["not built yet"]);
    assert_eq!(cache.queued(), [""; 0]);
    assert!(!cache.store.is_valid(here.out()));
}

#[test]
fn what_the_upstream_has_is_not_built_and_what_it_lacks_is() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let noted = |name: &str| Derivation::new(name, &format!("{}echo {name} > \"$out\"", gate.note(name)));
    let there = Sample::new(&store, &noted("there"));
    let upstream = Upstream::of(there.copied(&store, Compression::Xz));
    there.collect(&store);
    assert_eq!(gate.starts(), ["there"]);
    let here = store.instantiate(&noted("here"));
    let cache = Cache::behind(store, &[upstream.table("")], &[]);

    there.assert_served_by(&cache.ondine);
    assert_eq!(gate.starts(), ["there"], "the upstream has it");
    assert_narinfo(&cache.ask(here.out()), here.out());
    assert_eq!(gate.starts(), ["there", "here"], "the upstream lacks it");
    // What is served comes first: the upstream is not asked again. Nix itself asks it, too, before it builds.
    assert_narinfo(&cache.ask(here.out()), here.out());
    let seen = upstream.server.seen_of(&narinfo_address(here.out()));
    let ours =
        seen.iter().filter(|seen| seen.header("user-agent").is_some_and(|us| us.starts_with("ondine/")));
    assert_eq!(ours.count(), 1, "{seen:?}");
}

#[test]
fn an_upstream_for_builds_only_is_served_by_nobody_and_spares_the_building_of_inputs() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let noted = |name: &str, end: &str| Derivation::new(name, &format!("{}{end}", gate.note(name)));
    let input = noted("input", "echo input > \"$out\"");
    let sample = Sample::new(&store, &input);
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect(&store);
    let top = store.instantiate(&noted("top", "cat \"$input\" > \"$out\"").input("input", &input));
    let (url, key) = (upstream.server.url(), upstream.cache.public_key());
    // A server that is no trusted user, as it should be.
    store.configure(&format!(
        "trusted-users = nobody\ntrusted-substituters = {url}\ntrusted-public-keys = {key}\n"
    ));
    let cache = Cache::behind(store, &[upstream.table("mode = \"build-only\"")], &[]);

    let cached = cache.http.get(&format!("/cached{}", narinfo_address(&sample.path)));
    assert_missing(&cached, &["not built yet"]);
    assert_narinfo(&cache.ask(top.out()), top.out());
    assert_eq!(gate.starts(), ["input", "top"], "the first was built before it was copied to the upstream");
}

#[test]
fn another_server_of_ours_behind_this_one_builds_nothing_for_it() {
    let store = NixStore::new(Release::Host);
    let gate = store.gate();
    let wanted =
        store.instantiate(&Derivation::new("wanted", &format!("{}echo > \"$out\"", gate.script("wanted"))));
    let shared = store.instantiate(&text_file("shared", "text"));
    store.root(&shared.drv);
    let first = Cache::of(store, &[], &[]);
    let flag = format!("{} {}", first.ondine.url(), first.ondine.public_key());
    let second = Ondine::start(&first.store, &["--upstream", &flag]);
    let http = Http::new(&second.url());

    // Not built yet: each of them could, the one that was asked does.
    let asked = second.address().to_owned();
    let address = narinfo_address(wanted.out());
    let waiting = std::thread::spawn(move || Http::new(&format!("http://{asked}")).get(&address));
    gate.wait_for_starts(1);
    assert_eq!(first.queued(), [""; 0], "the first server builds for the second");
    gate.open();
    assert_narinfo(&waiting.join().expect("an answer"), wanted.out());
    assert_eq!(gate.starts(), ["wanted"]);

    // Built and packed there, then collected: the second has it from the first.
    first.narinfo(shared.out());
    wait_until("it is packed", SOON, || first.narinfo(shared.out()).contains("FileSize: "));
    let digest = support::nar_digest(shared.out());
    wait_until("nothing but the first server has it", SOON, || {
        first.store.gc();
        !first.store.is_valid(shared.out())
    });
    assert_narinfo(&http.get(&format!("/cached{}", narinfo_address(shared.out()))), shared.out());
    let client = first.client(&[]);
    client.fetch(&second.substituter(), &[shared.out()]).must_succeed();
    assert_eq!(client.nar_digest(shared.out()), digest);
}

// Which upstream, and how.

#[test]
fn of_several_upstreams_that_have_it_the_one_with_the_lowest_number_is_used() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &text_file("wanted", "text"));
    let [near, far] = [(); 2].map(|()| Upstream::of(sample.copied(&store, Compression::Xz)));
    sample.collect(&store);
    let _daemon = store.daemon();
    let tables = [far.table("priority = 20"), near.table("priority = 10")];
    let settings = support::upstream::settings_file(&store, &tables);
    // What goes wrong with the near one, how long the answer may take, and whether the far one is used then.
    let late = Some(Fault::Late(Duration::from_millis(500)));
    for (fault, far_used) in [
        (None, false),
        (late, false),
        (Some(Fault::Status(404)), true),
        (Some(Fault::Status(500)), true),
        (Some(Fault::Silence), true),
    ] {
        let said = format!("{fault:?}");
        near.server.mend();
        if let Some(fault) = fault {
            near.server.fault(".narinfo", fault);
        }
        let before = [&near, &far].map(|upstream| upstream.server.seen_of("/nar/").len());
        let ondine = Ondine::start(&store, &["--config", &settings]);
        let begun = Instant::now();
        let client = Client::new(Release::Host, &store.store_dir());
        client.fetch(&ondine.substituter(), &[&sample.path]).must_succeed();
        assert!(begun.elapsed() < Duration::from_secs(8), "{said}: {:?}", begun.elapsed());
        sample.assert_held_by(&client);
        let after = [&near, &far].map(|upstream| upstream.server.seen_of("/nar/").len());
        let used = [after[0] > before[0], after[1] > before[1]];
        assert_eq!(used, [!far_used, far_used], "{said}");
    }
}

#[test]
fn a_redirecting_upstream_is_named_to_the_client_and_its_files_pass_by() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &closure_of_20("sample"));
    let upstream = Upstream::of(BinaryCache::in_every_compression(&store, &sample.paths()));
    sample.collect(&store);
    let cache = Cache::behind(store, &[upstream.table("mode = \"redirect\"")], &[]);

    for (path, ending) in sample
        .closure
        .iter()
        .zip(["nar.xz", "nar.zst", "nar", "nar.bz2", "nar.gz", "nar.br", "nar.lz4", "nar.lzma", "nar.lzip"])
    {
        let (narinfo, theirs) = (cache.narinfo(path), upstream.cache.narinfo(path));
        for same in ["StorePath", "Compression", "NarHash", "NarSize", "References"] {
            assert_eq!(field(&narinfo, same), field(&theirs, same), "{}", path.display());
        }
        let hash = field(&narinfo, "NarHash").trim_start_matches("sha256:");
        assert_eq!(field(&narinfo, "URL"), format!("nar/{hash}.{ending}"));
        let answer = cache.http.get(&format!("/nar/{hash}.{ending}"));
        let file = format!("{}/{}", upstream.server.url(), field(&theirs, "URL"));
        assert_eq!((answer.status, answer.header("location")), (302, Some(&*file)), "{}", path.display());
    }
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), &[&sample.path]).must_succeed();
    sample.assert_held_by(&client);
    assert_eq!(support::upstream::stored_nars(&cache.ondine), [""; 0]);
}

// What is remembered.

#[test]
fn that_an_upstream_lacks_a_path_is_remembered_for_so_long_and_no_longer() {
    let Behind { cache, upstream, sample } =
        Behind::new(&text_file("late", "text"), "", &["--negative-ttl", "3s", "--build-from"]);
    let address = narinfo_address(&sample.path);
    let narinfo = upstream.cache.narinfo_file(&sample.path);
    let hidden = narinfo.with_extension("hidden");
    std::fs::rename(&narinfo, &hidden).expect("moved");
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(cache.http.get(&address).status, 404);
    }
    std::fs::rename(&hidden, &narinfo).expect("moved");
    assert_eq!(cache.http.get(&address).status, 404);
    // On a slow machine its time may be over by now, and it is asked once more for each.
    let asked = upstream.server.seen_of(&address).len() as u64;
    assert!(asked <= 1 + begun.elapsed().as_secs() / 3, "it was asked {asked} times");
    wait_until("the upstream is asked again", Duration::from_secs(6), || {
        cache.http.get(&address).status == 200
    });
    assert!(begun.elapsed() >= Duration::from_secs(3), "asked again after {:?}", begun.elapsed());
    sample.assert_served_by(&cache.ondine);
}

#[test]
fn what_an_upstream_that_was_down_has_is_found_once_it_is_back() {
    let Behind { cache, mut upstream, sample } =
        Behind::new(&text_file("there", "text"), "", &["--build-from", "--transient-retry", "0s"]);
    let address = narinfo_address(&sample.path);
    upstream.server.stop();
    for _ in 0..5 {
        assert_eq!(cache.http.get(&address).status, 404);
    }
    upstream.server.start_again();
    wait_until("the upstream is used again", SOON, || cache.http.get(&address).status == 200);
    sample.assert_served_by(&cache.ondine);
}
