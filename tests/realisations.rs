//! Realisations of content-addressed derivations: clients ask for their realisations before they know any
//! path. Those of what was built here, and those of other caches that a trusted key has signed, are served
//! with all that they lead to.

use std::path::{Path, PathBuf};

use crate::support;
use crate::support::addresses::{base_name, narinfo_address};
use crate::support::uploads::{Uploads, nar};
use crate::support::{
    BinaryCache, Cache, Client, Compression, Derivation, Door, Fault, Http, NixStore, Ondine, Release,
    Upstream, nar_digest, text,
};
use narinfo::{DrvOutput, PublicKey, Realisation, SecretKey, StoreDir, StorePath};
use ondine::nix::{HANDSHAKE_TIMEOUT, Handshake};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The setting without which Nix knows no such derivations.
const FEATURES: (&str, &str) = ("experimental-features", "nix-command ca-derivations");

/// A derivation whose output's path is known only after the build.
fn floating(name: &str, script: &str) -> Derivation {
    Derivation::new(name, script)
        .attribute("__contentAddressed", "true")
        .attribute("outputHashMode", "\"recursive\"")
        .attribute("outputHashAlgo", "\"sha256\"")
}

/// The second of two, with two outputs, of which the first one refers to the first derivation's: all
/// content-addressed.
fn pair() -> Derivation {
    let first = floating("first", "echo first > $out");
    floating("second", "echo $first > $out; echo dev > $dev").outputs(&["out", "dev"]).input("first", &first)
}

/// Refers to both outputs of the pair, and is itself not content-addressed.
fn chain() -> Derivation {
    Derivation::new("third", "mkdir $out; ln -s $second $out/second; echo $dev > $out/dev")
        .input("second", &pair())
        .input_output("dev", &pair(), "dev")
}

/// Builds a derivation in `store`. Gives its .drv and the paths of its outputs.
fn build(store: &NixStore, derivation: &Derivation) -> (PathBuf, Vec<PathBuf>) {
    let drv = store.nix_instantiate(&derivation.to_nix()).swap_remove(0);
    let paths = store.realise(&drv).text().lines().map(PathBuf::from).collect();
    (drv, paths)
}

/// A client that knows of content-addressed derivations.
fn client(release: &Release, store: &NixStore) -> Client {
    Client::with_settings(release.clone(), &store.store_dir(), &[FEATURES])
}

/// A client of that release, which may not build, gets what a daemon of this release has built.
fn round_trip(client_release: &Release, daemon_release: &Release) {
    let store = NixStore::with_settings(daemon_release.clone(), &[FEATURES]);
    let _daemon = store.daemon();
    let (_, built) = build(&store, &chain());
    let ondine = Ondine::start(&store, &[]);
    let got = client(client_release, &store).realise(&ondine.substituter(), &chain());
    assert_eq!(got, built, "client {}, daemon {}", client_release.version(), daemon_release.version());
    println!("client {}, daemon {}: ok", client_release.version(), daemon_release.version());
}

#[test]
fn a_client_of_every_release_gets_outputs_that_it_knows_no_path_of() {
    for release in Release::all() {
        round_trip(&release, &Release::Host);
    }
}

#[test]
fn outputs_are_known_that_a_daemon_of_every_release_has_built() {
    for release in Release::all().iter().filter(|release| **release != Release::Host) {
        round_trip(&Release::Host, release);
        round_trip(release, release);
    }
}

fn new_key(name: &str) -> SecretKey {
    SecretKey::generate(name.parse().expect("the name of a key"))
}

/// The names of the realisations in a cache's folder.
#[track_caller]
fn realisations(cache: &BinaryCache) -> Vec<String> {
    let files = std::fs::read_dir(cache.folder().join("realisations")).expect("the cache has realisations");
    let names = files.map(|file| file.expect("a readable folder").file_name().into_string().expect("UTF-8"));
    names.map(|name| format!("realisations/{name}")).collect()
}

/// `nix copy` verifies realisations, which clients do not when they substitute. It is given a folder with
/// what we answer, since it writes realisations back to where it found them.
#[test]
fn a_client_of_every_release_takes_our_signature_and_no_other() {
    let store = NixStore::with_settings(Release::Host, &[FEATURES]);
    let _daemon = store.daemon();
    build(&store, &chain());
    let ondine = Ondine::start(&store, &[]);
    let what = ["--impure", "--expr", &pair().to_nix()];
    let cache = BinaryCache::empty("unused-1");
    cache.copy(&store, Compression::None, &["--impure", "--expr", &chain().to_nix()]);
    let http = Http::new(&ondine.url());
    for release in Release::all() {
        for file in realisations(&cache) {
            let answer = http.get(&format!("/{file}"));
            assert_eq!(answer.status, 200, "{}", answer.text());
            std::fs::write(cache.folder().join(file), answer.body).expect("a folder of ours");
        }
        let client = client(&release, &store);
        let copy = |key: &str| {
            let from = ["copy", "--from", &cache.file_url(), "--option", "trusted-public-keys", key];
            // Newer clients would put the derivation into the folder; the host's must.
            let newer = if release == Release::Host { &[][..] } else { &["--eval-store", "auto"] };
            client.run("nix", &[&from, newer, &what].concat())
        };
        let refused = copy(&new_key("other-1").public_key().to_string()).must_fail();
        assert!(refused.stderr.contains("cannot register realisation"), "{refused}");
        copy(ondine.public_key()).must_succeed();
    }
}

/// The answer at this address, which must be a realisation that this key has signed.
#[track_caller]
fn believed(ondine: &Ondine, file: &str) -> Realisation {
    let answer = Http::new(&ondine.url()).get(&format!("/{file}"));
    assert_eq!(answer.status, 200, "{file}: {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let id = DrvOutput::from_file(file).expect("the address of a realisation");
    let realisation = Realisation::parse(&id, &answer.body).expect("a realisation");
    let key: PublicKey = ondine.public_key().parse().expect("a key");
    assert!(realisation.is_trusted(&[key]), "{}", answer.text());
    realisation
}

/// Why there is no realisation at this address.
#[track_caller]
fn refused(ondine: &Ondine, file: &str) -> String {
    let answer = Http::new(&ondine.url()).get(&format!("/{file}"));
    assert_eq!(answer.status, 404, "{file}: {}", answer.text());
    answer.text()
}

/// A cache that has what was built in a store from which everything is gone, and a server before it.
struct Elsewhere {
    store: NixStore,
    _daemon: support::Daemon,
    upstream: Upstream,
    ondine: Ondine,
    /// The chain's output, and its digest.
    chain: (PathBuf, String),
}

impl Elsewhere {
    fn start() -> Elsewhere {
        let cache = BinaryCache::empty("upstream-1");
        // Nix signs realisations when it builds, not when it copies.
        let key = cache.key_file();
        let settings = [FEATURES, ("secret-key-files", text(&key))];
        let store = NixStore::with_settings(Release::Host, &settings);
        let daemon = store.daemon();
        let built = build(&store, &chain()).1.swap_remove(0);
        let digest = nar_digest(&built);
        cache.copy(&store, Compression::Xz, &["--impure", "--expr", &chain().to_nix()]);
        store.gc();
        assert!(!store.is_valid(&built), "it is still here");
        let upstream = Upstream::of(cache);
        let ondine = Ondine::start(&store, &["--upstream", &upstream.flag()]);
        Elsewhere { store, _daemon: daemon, upstream, ondine, chain: (built, digest) }
    }

    /// Where the cache has the realisation of the output with this name.
    #[track_caller]
    fn file(&self, name: &str) -> String {
        let ending = format!("-{name}\",");
        let found =
            realisations(&self.upstream.cache).into_iter().find(|file| self.read(file).contains(&ending));
        found.unwrap_or_else(|| panic!("no realisation is of {name}"))
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.upstream.cache.folder().join(file)).expect("a file of the cache")
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.upstream.cache.folder().join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of ours");
        std::fs::write(path, text).expect("a folder of ours");
    }

    /// Number of answers of the cache that were counted to be so.
    fn counted(&self, outcome: &str) -> u64 {
        let metrics = Http::new(&self.ondine.url()).get("/metrics").text();
        let outcome = format!("outcome=\"{outcome}\"");
        let of_realisations =
            |line: &&str| line.starts_with("ondine_upstream_realisations_total") && line.contains(&outcome);
        let line = metrics.lines().find(of_realisations);
        line.map_or(0, |line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
    }
}

#[test]
fn what_another_cache_has_signed_is_passed_through_with_all_that_it_needs() {
    let elsewhere = Elsewhere::start();
    let (path, digest) = &elsewhere.chain;
    for release in Release::all() {
        let client = client(&release, &elsewhere.store);
        assert_eq!(client.realise(&elsewhere.ondine.substituter(), &chain()), std::slice::from_ref(path));
        assert_eq!(&client.nar_digest(path), digest, "client {}", release.version());
    }
    let asked = elsewhere.upstream.server.seen_of("/realisations/");
    for file in realisations(&elsewhere.upstream.cache) {
        let passed_on = believed(&elsewhere.ondine, &file);
        assert!(passed_on.is_trusted(&[elsewhere.upstream.cache.public_key().parse().expect("a key")]));
        let times = asked.iter().filter(|seen| seen.target() == format!("/{file}")).count();
        assert_eq!(times, 1, "{file} is kept once it was fetched");
    }
    assert_eq!(elsewhere.upstream.server.seen_of("/realisations/").len(), asked.len());
    assert_eq!(elsewhere.counted("refused"), 0);
}

#[test]
fn another_cache_that_fails_for_a_moment_is_asked_again() {
    let elsewhere = Elsewhere::start();
    // More often than one question is repeated at once.
    elsewhere.upstream.server.fault_times("/realisations/", 6, Fault::Status(503));
    believed(&elsewhere.ondine, &elsewhere.file("second"));
    assert!(elsewhere.counted("failed") >= 1);
}

#[test]
fn what_no_key_of_that_cache_has_signed_is_refused_and_counted() {
    let elsewhere = Elsewhere::start();
    let (file, other) = (elsewhere.file("second"), elsewhere.file("first"));
    let good = elsewhere.read(&file);
    let id = DrvOutput::from_file(&file).expect("an address");
    let realisation = Realisation::parse(&id, good.as_bytes()).expect("a realisation");
    let signature = realisation.signatures()[0].to_string();
    let bare = good.replace(&format!("\"{signature}\""), "");
    // A stranger's key of the same name.
    let signed_by_a_stranger = {
        let mut realisation = Realisation::parse(&id, bare.as_bytes()).expect("a realisation");
        realisation.sign(&new_key("upstream-1"));
        realisation.render()
    };
    let another_path = good.replacen(&realisation.path().to_string(), base_name(&elsewhere.chain.0), 1);
    let without_dependencies =
        good.replacen(&good[..good.find(",\"id\"").expect("an id")], "{\"dependentRealisations\":{}", 1);
    let cases = [
        ("it has no signature", bare.clone()),
        ("under the name upstream-1", signed_by_a_stranger),
        ("under the name upstream-1", another_path),
        ("under the name upstream-1", without_dependencies),
        ("the realisation is of sha256:", elsewhere.read(&other)),
        ("malformed", good.replace("outPath", "outpath")),
    ];
    for (number, (why, text)) in cases.iter().enumerate() {
        assert_ne!(*text, good);
        elsewhere.write(&file, text);
        let reason = refused(&elsewhere.ondine, &file);
        assert!(reason.contains("its realisation is refused") && reason.contains(why), "{why}: {reason}");
        assert_eq!(elsewhere.counted("refused"), number as u64 + 1, "{why}");
    }
    let client = client(&Release::Host, &elsewhere.store);
    let drv = client.instantiate(&pair());
    client
        .run("nix-store", &["--realise", &drv, "--option", "substituters", &elsewhere.ondine.url()])
        .must_fail();

    elsewhere.write(&file, &good);
    believed(&elsewhere.ondine, &file);
}

#[test]
fn what_cannot_be_served_whole_is_not_answered() {
    let elsewhere = Elsewhere::start();
    let (file, needed) = (elsewhere.file("second"), elsewhere.file("first"));
    let folder = elsewhere.upstream.cache.folder();
    let first = Realisation::parse(
        &DrvOutput::from_file(&needed).expect("an address"),
        elsewhere.read(&needed).as_bytes(),
    );
    let first = elsewhere.store.store_dir().join(first.expect("a realisation").path().to_string());

    let narinfo = elsewhere.upstream.cache.narinfo_file(&first);
    let aside = folder.join("aside");
    std::fs::rename(&narinfo, &aside).expect("renamed");
    let reason = refused(&elsewhere.ondine, &file);
    assert!(reason.contains("-second, but"), "{reason}");
    std::fs::rename(&aside, &narinfo).expect("renamed");
    std::fs::rename(folder.join(&needed), &aside).expect("renamed");
    let mut ondine = elsewhere.ondine;
    ondine.crash_and_restart();
    let reason = refused(&ondine, &file);
    assert!(
        reason.contains("has a realisation of") && reason.contains(&needed[13..needed.len() - 4]),
        "{reason}"
    );
    std::fs::rename(&aside, folder.join(&needed)).expect("renamed");
    ondine.crash_and_restart();
    believed(&ondine, &file);
}

#[test]
fn what_names_no_output_is_404_and_reaches_nobody() {
    let elsewhere = Elsewhere::start();
    let http = Http::new(&elsewhere.ondine.url());
    let (hex, hash) = ("0f".repeat(32), "0123456789abcdfghijklmnpqrsvwxyz");
    for address in [
        format!("/realisations/sha256:{hex}.doi"),
        format!("/realisations/sha256:{hex}!.doi"),
        format!("/realisations/sha256:{hex}!a/b.doi"),
        format!("/realisations/sha256:{hex}!..%2F..%2Fa.doi"),
        format!("/realisations/sha256:{hex}!a%20b.doi"),
        format!("/realisations/sha256:{}!out.doi", hex.to_uppercase()),
        format!("/realisations/sha256:{}!out.doi", &hex[2..]),
        format!("/realisations/md5:{}!out.doi", &hex[..32]),
        "/realisations/.doi".into(),
        "/realisations/".into(),
        format!("/build-trace-v2/{hash}-x/out.doi"),
        format!("/build-trace-v2/{hash}-x.drv.doi"),
        format!("/build-trace-v2/{hash}-x.drv/a/b.doi"),
        format!("/cached/realisations/sha256:{hex}!.doi"),
    ] {
        assert_eq!(http.get(&address).status, 404, "{address}");
    }
    assert_eq!(elsewhere.upstream.server.seen_of(".doi").len(), 0);
    // One that is well-formed, in both spellings, does reach it.
    for (number, separator) in ["!", "%21"].into_iter().enumerate() {
        let address = format!("/realisations/sha256:{hex}{separator}out{number}.doi");
        let answer = http.get(&address);
        assert!(answer.status == 404 && answer.text().starts_with("unknown"), "{}", answer.text());
        assert_eq!(elsewhere.upstream.server.seen_of(".doi").len(), number + 1);
    }
}

#[test]
fn a_daemon_without_the_feature_has_no_realisations_and_costs_nothing_else() {
    for release in Release::all() {
        let store = NixStore::new(release.clone());
        let _daemon = store.daemon();
        let (_, built) = build(&store, &Derivation::new("plain", "echo plain > $out"));
        let ondine = Ondine::start(&store, &[]);
        for number in 0..3 {
            let reason = refused(&ondine, &format!("realisations/sha256:{}!out.doi", "0f".repeat(32)));
            assert!(reason.starts_with("unknown: "), "{number}, {}: {reason}", release.version());
        }
        // Older ones hang up, which is found out once and is not taken for a daemon that is lost.
        let hung_up = ondine.log().matches("hangs up").count();
        assert!(hung_up <= 1, "{}", ondine.log());
        println!("daemon {} without the feature: hung up {hung_up} times", release.version());
        assert_eq!(Http::new(&ondine.url()).get(&narinfo_address(&built[0])).status, 200);
        Http::new(&ondine.url()).wait_until_ready();
    }
}

/// As Nix 2.35 does: it would read the rest of such a request as the next one.
#[tokio::test]
async fn a_daemon_that_has_none_by_hash_is_not_asked() {
    let words = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let padded = |text: &str| {
        let mut bytes = words(&[text.len() as u64]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let greeting = [
        words(&[0x6478_696f, 0x126, 1]),
        padded("realisation-with-path-not-hash"),
        padded("2.35.0"),
        words(&[1, 0x616c_7473]),
    ];
    theirs.write_all(&greeting.concat()).await.expect("sent");
    let mut daemon =
        Handshake::over(ours, StoreDir::default(), HANDSHAKE_TIMEOUT).perform().await.expect("a daemon");
    let id: DrvOutput = format!("sha256:{}!out", "0f".repeat(32)).parse().expect("a name");
    assert_eq!(daemon.query_realisation(&id).await.expect("no answer is needed"), None);
    assert!(daemon.usable());
    drop(daemon);
    let mut said = Vec::new();
    theirs.read_to_end(&mut said).await.expect("read");
    assert_eq!(said, words(&[0x6e69_7863, 0x126, 0, 0, 0]), "the greeting alone");
}

/// The derivation into which Nix has turned one that needs others, once it had those.
fn resolved(store: &NixStore, drv: &Path) -> Option<PathBuf> {
    let name = &base_name(drv)[32..];
    let files =
        std::fs::read_dir(store.store_dir()).expect("a store").map(|file| file.expect("a file").path());
    let mut others = files.filter(|file| base_name(file).ends_with(name) && file != drv);
    others.next()
}

/// Requests of clients from 2.35 on. None of these runs here: the answers are held against the formats.
#[test]
fn by_the_path_of_a_derivation_is_known_what_was_built_of_it_as_it_stands() {
    for release in Release::all() {
        let store = NixStore::with_settings(release.clone(), &[FEATURES]);
        let _daemon = store.daemon();
        let (_, first) = build(&store, &floating("first", "echo first > $out"));
        let first_drv =
            store.nix_instantiate(&floating("first", "echo first > $out").to_nix()).swap_remove(0);
        let (second_drv, second) = build(&store, &pair());
        let (plain_drv, _) = build(&store, &Derivation::new("plain", "echo plain > $out"));
        let ondine = Ondine::start(&store, &[]);
        let address = |drv: &Path, output: &str| format!("build-trace-v2/{}/{output}.doi", base_name(drv));

        let resolved = resolved(&store, &second_drv).expect("Nix has kept the resolved derivation");
        let dev = second.iter().find(|path| text(path).ends_with("-dev")).expect("an output");
        for (drv, output, path) in [(&first_drv, "out", &first[0]), (&resolved, "dev", dev)] {
            let realisation = believed(&ondine, &address(drv, output));
            assert_eq!(realisation.path().to_string(), base_name(path), "daemon {}", release.version());
        }
        for (drv, output) in [(&second_drv, "out"), (&plain_drv, "out"), (&first_drv, "none")] {
            let reason = refused(&ondine, &address(drv, output));
            assert!(reason.contains("that need no other derivation (resolved ones)"), "{reason}");
        }
        store.gc();
        let kept = believed(&ondine, &address(&first_drv, "out"));
        assert_eq!(kept.path().to_string(), base_name(&first[0]), "what was served stays so");
    }
}

#[test]
fn of_two_realisations_of_an_output_the_first_stays_whether_it_was_pushed_or_built_here() {
    let store = NixStore::with_settings(Release::Host, &[FEATURES]);
    let cache = Cache::of(store, &[], &[]);
    let uploads = Uploads { door: Door::to(&cache.ondine), cache };
    let (drv, built) = build(&uploads.cache.store, &floating("built", "echo built > $out"));
    let paths = [1, 2].map(|number| {
        let (path, contents) = (format!("{number:032}-built"), nar(number.to_string().as_bytes()));
        let name = uploads.upload(&contents);
        let narinfo = uploads.narinfo(&path, &name, &name, &contents, "");
        assert_eq!(uploads.put(&format!("/{}.narinfo", &path[..32]), narinfo.as_bytes()).0, 200);
        StorePath::parse(&path).expect("a path")
    });
    let push = |file: &str, path: &StorePath| {
        let id = DrvOutput::from_file(file).expect("an address");
        uploads.put(&format!("/{file}"), Realisation::new(id, path.clone()).render().as_bytes())
    };
    let pushed = format!("realisations/sha256:{}!out.doi", "0f".repeat(32));
    for (path, status) in [(&paths[0], 200), (&paths[0], 200), (&paths[1], 409)] {
        let (answer, text) = push(&pushed, path);
        assert!(answer == status && (status == 200 || text.contains("came first")), "{path}: {text}");
    }
    assert_eq!(believed(&uploads.cache.ondine, &pushed).path(), &paths[0]);
    // Nobody has asked for it yet.
    let ours = format!("build-trace-v2/{}/out.doi", base_name(&drv));
    let (status, text) = push(&ours, &paths[0]);
    assert!(status == 409 && text.contains(base_name(&built[0])), "{text}");
    assert_eq!(believed(&uploads.cache.ondine, &ours).path().to_string(), base_name(&built[0]));
}

#[test]
fn by_the_path_of_a_derivation_another_cache_is_believed_when_it_has_signed() {
    let elsewhere = Elsewhere::start();
    let drv = "0123456789abcdfghijklmnpqrsvwxyz-some.drv";
    let file = format!("build-trace-v2/{drv}/out.doi");
    let id = DrvOutput::from_file(&file).expect("an address");
    let path = StorePath::parse(base_name(&elsewhere.chain.0)).expect("a store path");
    let mut realisation = Realisation::new(id, path);
    elsewhere.write(&file, &realisation.render());
    assert!(refused(&elsewhere.ondine, &file).contains("it has no signature"));
    realisation.sign(&new_key("upstream-1"));
    elsewhere.write(&file, &realisation.render());
    assert!(refused(&elsewhere.ondine, &file).contains("under the name upstream-1"));
    assert_eq!(elsewhere.counted("refused"), 2);

    let key = std::fs::read_to_string(elsewhere.upstream.cache.key_file()).expect("the key");
    realisation.sign(&key.parse().expect("a key"));
    elsewhere.write(&file, &realisation.render());
    let passed_on = believed(&elsewhere.ondine, &file);
    assert_eq!(passed_on.path(), realisation.path());
    // The same words of another derivation.
    let moved = file.replace("-some", "-other");
    elsewhere.write(&moved, &realisation.render());
    assert!(refused(&elsewhere.ondine, &moved).contains("under the name upstream-1"));
}
