//! Claims that no signature proves: content-addressed paths that nobody signed, and NARs that no client could
//! unpack however well they are signed. Nothing of them is believed before the bytes are here; whoever lied
//! is left for the next upstream.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{field, fields, narinfo_address};
use crate::support::cache::{assert_missing, assert_narinfo};
use crate::support::derivations::{LARGE_FILE_BYTES, large_file};
use crate::support::malformed::{Nar, malformed};
use crate::support::upstream::{counted, stored_nars};
use crate::support::{
    BinaryCache, Cache, Compression, Daemon, Derivation, Fault, NixStore, Release, Sample, Upstream, Valve,
    text, wait_until,
};
use narinfo::NarHash;
use sha2::{Digest, Sha256};

/// Time limit of what takes no time, on a machine that does much else.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of files that are told apart from what was promised of them by their size.
const BYTES: usize = 200_000;
/// Bytes that a body without end may cost.
const TAKEN_MAX: u64 = 32 << 20;

/// Content-addressed paths of every kind, which only other caches have, without a signature.
struct World {
    store: NixStore,
    paths: Vec<PathBuf>,
    liar: Upstream,
    honest: Upstream,
}

impl World {
    fn new() -> World {
        let store = NixStore::new(Release::Host);
        let file = store.folder().join("file");
        std::fs::write(&file, noise(BYTES)).expect("written");
        let add = |words: &[&str]| PathBuf::from(store.nix_store(&[words, &[text(&file)]].concat()).trim());
        let mut paths = Vec::new();
        for algorithm in ["sha256", "sha1", "md5", "sha512"] {
            paths.push(add(&["--add-fixed", algorithm]));
            paths.push(add(&["--add-fixed", "--recursive", algorithm]));
        }
        let below = "builtins.toFile \"below\" \"below\"";
        let above = format!("builtins.toFile \"above\" \"${{{below}}}\"");
        let above = store.nix(&["eval", "--impure", "--raw", "--expr", &above]);
        paths.push(above.trim().into());
        let all: Vec<&Path> = paths.iter().map(|path| &**path).collect();
        let honest = BinaryCache::new(&store, Compression::None, &all);
        for file in std::fs::read_dir(honest.folder()).expect("a folder").flatten() {
            let file = file.path();
            if file.extension().is_some_and(|ending| ending == "narinfo") {
                let signed = std::fs::read_to_string(&file).expect("a narinfo");
                let unsigned = signed.split_inclusive('\n').filter(|line| !line.starts_with("Sig: "));
                std::fs::write(&file, unsigned.collect::<String>()).expect("written");
            }
        }
        store.gc();
        assert!(paths.iter().all(|path| !store.is_valid(path)));
        let (liar, honest) = (Upstream::of(honest.twin()), Upstream::of(honest));
        World { store, paths, liar, honest }
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn nar_hash(nar: &[u8]) -> NarHash {
    NarHash::from_bytes(Sha256::digest(nar).into())
}

/// The server says of a path what the honest upstream says, signed by itself alone, and has its bytes.
#[track_caller]
fn assert_served_as(cache: &Cache, honest: &Upstream, path: &Path, said: &str) {
    let answer = cache.ask(path);
    assert_eq!(answer.status, 200, "{said}: {}", answer.text());
    let (narinfo, right) = (answer.text(), honest.cache.narinfo(path));
    for same in ["StorePath", "NarHash", "NarSize", "References", "CA"] {
        assert_eq!(fields(&narinfo, same), fields(&right, same), "{said}");
    }
    let own = cache.ondine.public_key().split(':').next().unwrap_or_default();
    assert!(field(&narinfo, "Sig").starts_with(own), "{said}: {narinfo}");
    let nar = cache.http.get(&format!("/{}", field(&narinfo, "URL")));
    assert_eq!(nar.status, 200, "{said}: {}", nar.text());
    let nar = zstd::decode_all(&nar.body[..]).expect("a zstd file");
    assert_eq!(nar_hash(&nar).to_string(), field(&right, "NarHash"), "{said}");
}

#[test]
fn unsigned_paths_of_every_content_address_are_verified_and_served_to_stock_clients() {
    let World { store, paths, honest, .. } = World::new();
    let cache = Cache::behind(store, &[honest.table("")], &[]);
    for path in &paths {
        assert_served_as(&cache, &honest, path, text(path));
    }
    let client = cache.client(&[]);
    let all: Vec<&Path> = paths.iter().map(|path| &**path).collect();
    client.fetch(&cache.ondine.substituter(), &all).must_succeed();
    assert_eq!(counted(&cache.ondine, "nars", &["refused", "failed", "missing"]), 0);
}

#[test]
fn a_size_that_nobody_signed_is_the_liars_and_never_signed_here() {
    let World { store, paths, liar, honest } = World::new();
    let path = &paths[1];
    let right: u64 = field(&honest.cache.narinfo(path), "NarSize").parse().expect("a size");
    let daemon = store.daemon();
    for (size, endless) in [
        ("7".to_owned(), false),
        ((right - 8).to_string(), false),
        ((right + 8).to_string(), false),
        ((1_u64 << 60).to_string(), true),
        (u64::MAX.to_string(), true),
    ] {
        liar.cache.set(path, "NarSize", &size);
        liar.server.mend();
        if endless {
            liar.server.fault("/nar/", Fault::Endless);
        }
        let before = liar.server.seen().len();
        let alone = with(&store, &[liar.table("")]);
        let answer = alone.0.get(&narinfo_address(path));
        assert_eq!(answer.status, 404, "{size}: {}", answer.text());
        assert!(!answer.text().contains("Sig: "), "{size}");
        wait_until("the liar is left", SOON, || liar.server.seen().iter().all(|seen| seen.over));
        let taken: u64 = liar.server.seen()[before..].iter().map(|seen| seen.sent).sum();
        assert!(taken < TAKEN_MAX, "{size}: {taken} bytes were taken");
        wait_until("nothing is kept", SOON, || stored_nars(&alone.1).is_empty());

        // With an honest one behind it, that one is believed, for this path and for others.
        let both = with(&store, &[liar.table("priority = 1"), honest.table("priority = 2")]);
        for path in [path, &paths[0]] {
            let narinfo = both.0.get(&narinfo_address(path));
            assert_narinfo(&narinfo, path);
            let said = narinfo.text();
            assert_eq!(field(&said, "NarSize"), field(&honest.cache.narinfo(path), "NarSize"), "{size}");
            let nar = both.0.get(&format!("/{}", field(&said, "URL")));
            let nar = zstd::decode_all(&nar.body[..]).expect("a zstd file");
            assert_eq!(nar_hash(&nar).to_string(), field(&said, "NarHash"), "{size}");
        }
        let metrics = both.0.get("/metrics").text();
        let blamed = |upstream: &Upstream| {
            let label = format!(
                "ondine_upstream_nars_total{{upstream=\"{}\",outcome=\"refused\"}}",
                upstream.server.url()
            );
            metrics.lines().any(|line| line.starts_with(&label))
        };
        assert!(!blamed(&honest), "{size}: {metrics}");
        // One that is larger than anything is not even asked for its bytes.
        assert!(blamed(&liar) || endless, "{size}: {metrics}");
    }
    drop(daemon);
}

/// A server of this store, and how to ask it.
fn with(store: &NixStore, tables: &[String]) -> (support::Http, support::Ondine) {
    let settings = support::upstream::settings_file(store, tables);
    let ondine = support::Ondine::start(store, &["--config", &settings]);
    (support::Http::new(&ondine.url()), ondine)
}

#[test]
fn a_nar_hash_or_references_that_no_address_proves_are_not_believed() {
    let World { store, paths, liar, honest } = World::new();
    let (flat, recursive, above) = (&paths[0], &paths[3], paths.last().expect("a path"));
    let other = Nar::new().file(b"other contents");
    // Consistent in itself, but other contents than the path is named by.
    for path in [flat, recursive, above] {
        liar.cache.replace_nar(path, &other.0);
        liar.cache.set(path, "NarHash", &nar_hash(&other.0).to_string());
        liar.cache.set(path, "NarSize", &other.0.len().to_string());
        for hint in ["FileHash", "FileSize"] {
            liar.cache.remove(path, hint);
        }
    }
    // The address of the NAR itself: another hash is refused without a look at the bytes.
    liar.cache.set(&paths[1], "NarHash", &nar_hash(&other.0).to_string());
    let honest_twin = honest.cache.twin();
    honest_twin.set(above, "References", "");
    let forgetful = Upstream::of(honest_twin);
    let _daemon = store.daemon();

    let (alone, ondine) = with(&store, &[liar.table("")]);
    for path in [flat, recursive, above, &paths[1]] {
        assert_missing(&alone.get(&narinfo_address(path)), &[]);
    }
    wait_until("nothing is kept", SOON, || {
        // What the last one refers to was right.
        stored_nars(&ondine).len() <= 1
    });
    let (alone, _ondine) = with(&store, &[forgetful.table("")]);
    assert_missing(&alone.get(&narinfo_address(above)), &["it has no signature"]);
    let tables = [liar.table("priority = 1"), forgetful.table("priority = 2"), honest.table("priority = 3")];
    let (both, _ondine) = with(&store, &tables);
    for path in [flat, recursive, above, &paths[1]] {
        let narinfo = both.get(&narinfo_address(path));
        assert_narinfo(&narinfo, path);
        let right = honest.cache.narinfo(path);
        for same in ["NarHash", "NarSize", "References"] {
            assert_eq!(field(&narinfo.text(), same), field(&right, same), "{}", path.display());
        }
    }
}

#[test]
fn whoever_asks_for_what_is_being_verified_is_told_so_and_shares_one_fetch() {
    let World { store, paths, honest, .. } = World::new();
    let path = &paths[1];
    let valve = Valve::new();
    honest.server.fault("/nar/", Fault::Held(valve.clone()));
    let cache = Cache::behind(store, &[honest.table("")], &["--hold", "0s", "--keep-alive-interval", "1s"]);
    let mut first = cache.http.open(&narinfo_address(path), &[]);
    let mut lines = String::new();
    while !lines.contains("not signed") {
        lines += &String::from_utf8_lossy(&first.next_piece().expect("a line about the wait"));
    }
    assert!(lines.lines().all(|line| line.starts_with("X-Ondine-Wait: ") && line.len() >= 63), "{lines}");
    // A HEAD has no body that could say so.
    let begun = Instant::now();
    assert_eq!(cache.http.head(&narinfo_address(path)).status, 404);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let second = cache.ask_in_background(path);
    valve.open();
    let (rest, _) = first.read_to_end();
    assert!(String::from_utf8_lossy(&rest).contains("StorePath: "), "{}", String::from_utf8_lossy(&rest));
    assert_narinfo(&second.answer(), path);
    assert_eq!(honest.server.seen_of("/nar/").len(), 1);
}

// How much is fetched.

#[test]
fn a_nar_larger_than_the_setting_is_not_fetched_but_built_where_that_can_be() {
    let store = NixStore::new(Release::Host);
    let script = format!("head -c {BYTES} /dev/zero > \"$out\"; :");
    let sample = Sample::new(&store, &Derivation::new("sample", &script));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect_with_derivation(&store);
    let limit = BYTES.to_string();
    let cache = Cache::behind(store, &[upstream.table("")], &["--max-upstream-nar-bytes", &limit]);
    assert_missing(&cache.ask(&sample.path), &["max-upstream-nar-bytes", &limit]);
    assert!(upstream.server.seen_of("/nar/").is_empty());

    // What can be built is built.
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &Derivation::new("sample", &script));
    let upstream = Upstream::of(sample.copied(&store, Compression::Xz));
    sample.collect(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &["--max-upstream-nar-bytes", &limit]);
    assert_missing(&cache.http.get(&format!("/cached{}", narinfo_address(&sample.path))), &["not built yet"]);
    sample.assert_served_by(&cache.ondine);
}

#[test]
fn a_fetch_ends_with_its_last_reader() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &large_file("large"));
    let upstream = Upstream::of(sample.copied(&store, Compression::None));
    sample.collect_with_derivation(&store);
    let cache = Cache::behind(store, &[upstream.table("")], &[]);
    upstream.server.fault("/nar/", Fault::Rate(4 << 20));
    let narinfo = cache.narinfo(&sample.path);
    let mut reading = cache.http.open(&format!("/{}", field(&narinfo, "URL")), &[]);
    reading.next_piece().expect("its first bytes");
    drop(reading);
    wait_until("the upstream is left", SOON, || {
        upstream.server.seen_of("/nar/").iter().all(|seen| seen.over)
    });
    let sent = upstream.server.seen_of("/nar/")[0].sent;
    assert!(sent < LARGE_FILE_BYTES * 3 / 4, "{sent} bytes were fetched for nobody");
    wait_until("nothing is left of it", SOON, || stored_nars(&cache.ondine).is_empty());
    // It is still promised, and fetched for the next one.
    upstream.server.mend();
    sample.assert_served_by(&cache.ondine);
}

// NARs that are none.

#[test]
fn a_nar_that_no_client_could_unpack_reaches_nobody_though_a_trusted_key_signed_it() {
    let store = NixStore::new(Release::Host);
    let malformed = malformed();
    let outputs: Vec<String> = (0..malformed.len()).map(|number| format!("o{number}")).collect();
    let script = "for output in $outputs; do echo \"$output\" > ${!output}; done";
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let built = store.instantiate(&Derivation::new("built", script).outputs(&names));
    store.realise(&built.drv);
    let paths: Vec<&Path> = built.outputs.iter().map(|(_, path)| &**path).collect();
    let good = Upstream::of(BinaryCache::new(&store, Compression::None, &paths));
    let spoilt = Upstream::of(good.cache.twin());
    for (path, (_, nar)) in paths.iter().zip(&malformed) {
        spoilt.cache.replace_nar(path, nar);
        spoilt.cache.set(path, "NarHash", &nar_hash(nar).to_string());
        spoilt.cache.set(path, "NarSize", &nar.len().to_string());
        for hint in ["FileHash", "FileSize"] {
            spoilt.cache.remove(path, hint);
        }
        spoilt.cache.sign(path);
    }
    store.gc();
    let daemon: Daemon = store.daemon();
    let (alone, ondine) = with(&store, &[spoilt.table("")]);
    for (path, (said, nar)) in paths.iter().zip(&malformed) {
        let narinfo = alone.get(&narinfo_address(path)).text();
        assert_eq!(field(&narinfo, "NarHash"), nar_hash(nar).to_string(), "{said}");
        let address = format!("/{}", field(&narinfo, "URL"));
        for address in [&*address, address.trim_end_matches(".zst")] {
            if let Ok(mut answer) = alone.try_open(address, &[]) {
                let (body, ending) = answer.read_to_end();
                let whole = answer.status == 200 && ending == support::Ending::Complete;
                assert!(!whole, "{said}: {} bytes reached a client", body.len());
            }
        }
        // The promise is taken back.
        assert_missing(&alone.get(&format!("/cached{}", narinfo_address(path))), &[]);
    }
    assert!(counted(&ondine, "nars", &["refused"]) >= malformed.len() as u64);
    wait_until("nothing is kept", SOON, || stored_nars(&ondine).is_empty());

    let (both, ondine) = with(&store, &[spoilt.table("priority = 1"), good.table("priority = 2")]);
    for path in &paths {
        let narinfo = both.get(&narinfo_address(path)).text();
        // Whoever asks for the bytes finds that they are none; the next answer is the good upstream's.
        let _ = both.try_open(&format!("/{}", field(&narinfo, "URL")), &[]).map(|mut nar| nar.read_to_end());
        let narinfo = both.get(&narinfo_address(path)).text();
        assert_eq!(field(&narinfo, "NarHash"), field(&good.cache.narinfo(path), "NarHash"));
    }
    let client = support::Client::new(Release::Host, &store.store_dir());
    client.fetch(&ondine.substituter(), &paths).must_succeed();
    drop(daemon);
}

#[test]
fn a_malformed_nar_that_names_its_own_path_is_not_adopted() {
    let store = NixStore::new(Release::Host);
    let upstream = Upstream::of(BinaryCache::empty("upstream-1"));
    let mut paths = Vec::new();
    for (said, nar) in malformed() {
        let hash = nar_hash(&nar);
        let arguments = ["--print-fixed-path", "--recursive", "sha256", &hash.to_hex(), "malformed"];
        let path = PathBuf::from(store.nix_store(&arguments).trim());
        let file = format!("{}.nar", hash.to_nixbase32());
        std::fs::write(upstream.cache.folder().join(&file), &nar).expect("written");
        let narinfo = format!(
            "StorePath: {}\nURL: {file}\nCompression: none\nNarHash: {hash}\nNarSize: {}\nReferences: \nCA: fixed:r:{hash}\n",
            path.display(),
            nar.len()
        );
        std::fs::write(upstream.cache.narinfo_file(&path), narinfo).expect("written");
        paths.push((said, path));
    }
    let cache = Cache::behind(store, &[upstream.table("")], &[]);
    for (said, path) in paths {
        let answer = cache.ask(&path);
        assert_eq!(answer.status, 404, "{said}: {}", answer.text());
        assert!(answer.text().contains("refused"), "{said}: {}", answer.text());
    }
    assert_eq!(stored_nars(&cache.ondine), [""; 0]);
}
