//! What is served is what was built: names, trees, sizes, references and signatures arrive as they are in the store, whole
//! or in parts, at once or after a broken download. Real clients that require signatures and trust our key alone.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use narinfo::{KeyName, NarInfo, PublicKey, SecretKey, StoreDir};
use sha2::{Digest, Sha256};
use support::addresses::{base_name, field, fields, log_address, narinfo_address};
use support::cutting_proxy::CuttingProxy;
use support::derivations::{LARGE_FILE_BYTES, ODD_NAME, chain, curious_tree, large_file, multiple_outputs};
use support::http::Response;
use support::{Client, Daemon, Derivation, Http, Instantiated, NixStore, Ondine, Release, Substituter};
use support::{nar_digest, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// The most memory that the server may hold, in bytes, however large what it serves.
const SERVER_RSS_BYTES_MAX: u64 = 200 * 1024 * 1024;

/// A cache with its store and daemon.
struct Cache {
    http: Http,
    ondine: Ondine,
    _daemon: Daemon,
    store: NixStore,
}

impl Cache {
    fn new() -> Cache {
        let store = NixStore::new(Release::Host);
        let daemon = store.daemon();
        let ondine = Ondine::start(&store, &[]);
        Cache { http: Http::new(&ondine.url()), ondine, _daemon: daemon, store }
    }

    fn client(&self) -> Client {
        Client::new(Release::Host, &self.store.store_dir())
    }

    /// The narinfo of a path, built where need be.
    #[track_caller]
    fn narinfo(&self, path: &Path) -> String {
        let answer = self.http.get(&narinfo_address(path));
        assert_eq!(answer.status, 200, "{}: {}", path.display(), answer.text());
        answer.text()
    }

    #[track_caller]
    fn parsed(&self, path: &Path) -> NarInfo {
        let store_dir = StoreDir::new(text(&self.store.store_dir())).expect("the store directory of a test");
        NarInfo::parse(&store_dir, self.narinfo(path).as_bytes()).expect("a narinfo")
    }

    /// A client with an empty store gets `paths` and their closure, alike byte for byte.
    #[track_caller]
    fn arrives(&self, paths: &[&Path]) -> Client {
        let client = self.client();
        client.fetch(&self.ondine.substituter(), paths).must_succeed();
        for path in self.closure(paths) {
            assert!(client.has(&path), "the client does not have {}", path.display());
            assert_eq!(client.nar_digest(&path), nar_digest(&path), "{} differs", path.display());
        }
        client
    }

    fn closure(&self, paths: &[&Path]) -> BTreeSet<PathBuf> {
        let mut arguments = vec!["--query", "--requisites"];
        arguments.extend(paths.iter().map(|path| text(path)));
        self.store.nix_store(&arguments).lines().map(Into::into).collect()
    }

    /// The NAR that Nix makes of a path.
    #[track_caller]
    fn dump(&self, path: &Path) -> Vec<u8> {
        let dumped = support::process::run(self.store.command("nix-store", &["--dump", text(path)]));
        dumped.must_succeed().stdout
    }

    /// A path that is built and packed, and the addresses of its NAR: plain, and as zstd.
    #[track_caller]
    fn packed(&self, path: &Path) -> (String, String) {
        let address = format!("/{}", field(&self.narinfo(path), "URL"));
        wait_until("it is packed", SOON, || self.narinfo(path).contains("FileSize: "));
        (address.trim_end_matches(".zst").to_owned(), address)
    }
}

/// A file of so many bytes that do not compress.
fn noise(name: &str, bytes: u32) -> Derivation {
    let script = format!(
        r#"perl -e '
    my $state = 20260102;
    for (1 .. {words}) {{ $state = ($state * 1664525 + 1013904223) & 0xffffffff; print pack "N", $state ^ ($state >> 15); }}
' > "$out""#,
        words = bytes / 4
    );
    Derivation::new(name, &script)
}

/// Another key than the server's, perhaps of the same name.
fn another_key(name: &str) -> SecretKey {
    SecretKey::generate(name.parse::<KeyName>().expect("a good name"))
}

// Names, trees, sizes.

#[test]
fn outputs_that_refer_to_each_other_arrive_with_their_references() {
    let cache = Cache::new();
    let several = cache.store.instantiate(&multiple_outputs("several"));
    let client = cache.arrives(&[several.output("dev")]);
    let references = |output: &str| -> BTreeSet<String> {
        let narinfo = cache.narinfo(several.output(output));
        field(&narinfo, "References").split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let names = |outputs: &[&str]| -> BTreeSet<String> {
        outputs.iter().map(|output| base_name(several.output(output)).to_owned()).collect()
    };
    assert_eq!(references("doc"), names(&[]));
    assert_eq!(references("lib"), names(&["doc", "lib"]));
    assert_eq!(references("out"), names(&["lib"]));
    assert_eq!(references("dev"), names(&["out", "lib"]));
    for output in ["out", "lib", "dev", "doc"] {
        let known = client.run("nix-store", &["--query", "--references", text(several.output(output))]);
        let known: BTreeSet<String> =
            known.must_succeed().text().lines().map(|line| base_name(Path::new(line)).to_owned()).collect();
        assert_eq!(known, references(output), "{output}");
        assert_eq!(field(&cache.narinfo(several.output(output)), "Deriver"), base_name(&several.drv));
    }
}

#[test]
fn a_name_with_every_kind_of_character_arrives() {
    let cache = Cache::new();
    let script = "echo 'a line of the log'\necho odd > \"$out\"\necho odd > \"$lib\"";
    let odd = cache.store.instantiate(&Derivation::new(ODD_NAME, script).outputs(&["out", "lib"]));
    for character in ['+', '?', '=', '.', '_', '-'] {
        assert!(base_name(odd.out()).contains(character), "{} has no {character}", odd.out().display());
    }
    cache.arrives(&[odd.out(), odd.output("lib")]);
    assert!(cache.http.get(&log_address(&odd.drv)).text().contains("a line of the log"));
}

#[test]
fn nix_log_finds_a_name_with_a_question_mark() {
    // Nix 2.8 sends the name as it is, so that what comes after the question mark looks like a query.
    let cache = Cache::new();
    let odd =
        cache.store.instantiate(&Derivation::new(ODD_NAME, "echo 'a line of the log'\necho odd > \"$out\""));
    cache.narinfo(odd.out());
    let client = cache.client();
    let log = client.run("nix", &["log", "--store", &cache.ondine.url(), text(&odd.drv)]).must_succeed();
    assert!(log.text().contains("a line of the log"), "{log}");
}

#[test]
fn a_curious_tree_arrives_as_it_is() {
    let cache = Cache::new();
    let tree = cache.store.instantiate(&curious_tree("tree"));
    let client = cache.arrives(&[tree.out()]);
    // That the trees are alike was seen; that this one is curious, and its copy a tree on this machine, is seen here.
    let copy = client.physical(tree.out());
    let file = |name: &str| copy.join(name);
    assert_eq!(std::fs::read_link(file("dangling")).expect("a symlink"), Path::new("/nowhere/at/all"));
    assert_eq!(std::fs::read_dir(file("empty folder")).expect("a folder").count(), 0);
    assert_eq!(std::fs::read_to_string(file("größe-水-🌊")).expect("a file"), "1\n");
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"not-utf8-\xff\xfe\x80");
    assert_eq!(std::fs::read_to_string(copy.join(odd)).expect("a file"), "2\n");
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(file(name)).expect("a file").permissions())
    };
    assert_eq!((mode("bin/hello") & 0o111 != 0, mode("empty file") & 0o111), (true, 0));
}

#[test]
fn a_large_file_is_complete_while_it_is_packed_and_takes_little_memory() {
    let cache = Cache::new();
    let large = cache.store.instantiate(&large_file("large"));
    let narinfo = cache.narinfo(large.out());
    let address = format!("/{}", field(&narinfo, "URL"));
    let plain_address = address.trim_end_matches(".zst").to_owned();
    let size: u64 = field(&narinfo, "NarSize").parse().expect("a number");
    assert!(size > LARGE_FILE_BYTES);

    let digests = std::thread::scope(|scope| {
        let zstd = scope.spawn(|| {
            let mut answer = cache.http.open(&address, &[]);
            assert_eq!((answer.status, answer.header("content-length")), (200, None), "packed already");
            let (body, ending) = answer.read_to_end();
            assert_eq!(ending, support::Ending::Complete);
            let mut digest = Digesting::default();
            zstd::stream::copy_decode(&body[..], &mut digest).expect("a complete zstd file");
            digest.finish()
        });
        let plain = scope.spawn(|| {
            let mut answer = cache.http.open(&plain_address, &[]);
            assert_eq!(answer.header("content-length"), Some(&*size.to_string()));
            let mut digest = Digesting::default();
            loop {
                match answer.next_piece() {
                    Ok(piece) => digest.write_all(&piece).expect("it takes everything"),
                    Err(ending) => {
                        assert_eq!(ending, support::Ending::Complete);
                        return digest.finish();
                    }
                }
            }
        });
        [zstd, plain].map(|thread| thread.join().expect("a digest"))
    });
    let truth = nar_digest(large.out());
    assert_eq!(digests, [(size, truth.clone()), (size, truth)], "zstd and plain, while it is packed");

    cache.arrives(&[large.out()]);
    let peak = cache.ondine.peak_rss_bytes();
    assert!(peak < SERVER_RSS_BYTES_MAX, "the server has held {} MiB", peak >> 20);
}

/// Counts and digests what is written to it.
#[derive(Default)]
struct Digesting(Sha256, u64);

impl Digesting {
    fn finish(self) -> (u64, String) {
        (self.1, self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// Closures and signatures.

#[test]
fn a_runtime_closure_arrives_whole_and_what_only_the_build_needed_stays() {
    let cache = Cache::new();
    let tool = Derivation::new("tool", "echo tool > \"$out\"");
    let row = chain("row", 4, |number| format!("echo building number {number}\n"));
    let script =
        "mkdir \"$out\"\nln -s \"$row\" \"$out/row\"\n[ -e \"$tool\" ]\necho \"$out\" > \"$out/self\"";
    let top = Derivation::new("top", script).input("row", &row).input("tool", &tool);
    let (tool, top) = (cache.store.instantiate(&tool), cache.store.instantiate(&top));
    let client = cache.arrives(&[top.out()]);
    let closure = cache.closure(&[top.out()]);
    assert_eq!(closure.len(), 5, "{closure:?}");
    assert!(!client.has(tool.out()), "the client got what only the build needed");

    for path in &closure {
        let info = cache.parsed(path);
        assert_eq!(info.store_path.to_string(), base_name(path));
        let query = |what: &str| cache.store.nix_store(&["--query", what, text(path)]);
        let references: BTreeSet<String> = info.references.iter().map(ToString::to_string).collect();
        let known: BTreeSet<String> =
            query("--references").lines().map(|line| base_name(Path::new(line)).to_owned()).collect();
        assert_eq!(references, known);
        let deriver = query("--deriver");
        assert_eq!(info.deriver.map(|drv| drv.to_string()).as_deref(), Some(base_name(Path::new(&deriver))));
        assert_eq!(info.nar_size.to_string(), query("--size"));
        assert_eq!(info.nar_hash.to_string(), query("--hash"));
        for reference in &info.references {
            let answer = cache.http.get(&format!("/cached/{}.narinfo", reference.hash()));
            assert_eq!(answer.status, 200, "{reference}: {}", answer.text());
        }
    }
}

#[test]
fn a_path_that_was_there_is_adopted_with_its_own_signature_and_ours() {
    let cache = Cache::new();
    let below = Derivation::new("below", "echo below > \"$out\"");
    let signed = Derivation::new("signed", "echo \"$below\" > \"$out\"").input("below", &below);
    let (below, signed) = (cache.store.instantiate(&below), cache.store.instantiate(&signed));
    cache.store.realise(&signed.drv);
    let theirs = another_key("elsewhere-1");
    let key_file = cache.store.folder().join("their-key");
    std::fs::write(&key_file, theirs.to_secret_string().as_bytes()).expect("the folder can be written to");
    cache.store.nix(&["store", "sign", "--key-file", text(&key_file), text(signed.out())]);

    let ours: PublicKey = cache.ondine.public_key().parse().expect("a public key");
    let store_dir = StoreDir::new(text(&cache.store.store_dir())).expect("the store directory of a test");
    let verified_by = |path: &Path, key: &PublicKey| {
        let info = cache.parsed(path);
        let fingerprint = info.fingerprint(&store_dir);
        info.signatures.iter().filter(|signature| key.verify(signature, &fingerprint)).count()
    };
    assert_eq!(verified_by(signed.out(), &ours), 1);
    assert_eq!(verified_by(signed.out(), &theirs.public_key()), 1);
    assert_eq!(cache.parsed(signed.out()).signatures.len(), 2);
    assert_eq!(verified_by(below.out(), &ours), 1);
    assert_eq!(cache.parsed(below.out()).signatures.len(), 1, "their key has signed one path");
    assert_eq!(fields(&cache.narinfo(signed.out()), "Sig").len(), 2);

    let client = cache.arrives(&[signed.out()]);
    // Who trusts their key alone gets what they signed, too, and not what only we have.
    let other = cache.client();
    let trusting = Substituter { url: cache.ondine.url(), public_key: theirs.public_key().to_string() };
    other.fetch(&trusting, &[signed.out()]).must_fail();
    assert!(!other.has(below.out()));
    let kept =
        client.run("nix-store", &["--query", "--references", text(signed.out())]).must_succeed().text();
    assert_eq!(kept, text(below.out()));
}

#[test]
fn a_file_that_was_added_to_the_store_is_served_with_its_content_address() {
    let cache = Cache::new();
    let file = cache.store.folder().join("a-plain-file");
    std::fs::write(&file, "added by hand\n").expect("the folder can be written to");
    let added = PathBuf::from(cache.store.nix_store(&["--add", text(&file)]));
    let narinfo = cache.narinfo(&added);
    assert!(field(&narinfo, "CA").starts_with("fixed:r:sha256:"), "{narinfo}");
    assert!(fields(&narinfo, "Deriver").is_empty(), "{narinfo}");
    cache.arrives(&[&added]);
    // It proves itself: a client that trusts nobody takes it.
    let trusting_nobody = Substituter { url: cache.ondine.url(), public_key: String::new() };
    let client = cache.client();
    client.fetch(&trusting_nobody, &[&added]).must_succeed();
    assert_eq!(client.nar_digest(&added), nar_digest(&added));
}

#[test]
fn a_client_that_trusts_another_key_refuses_what_we_serve() {
    let cache = Cache::new();
    let built = cache.store.instantiate(&Derivation::new("built", "echo built > \"$out\""));
    let own_name = cache.ondine.public_key().split(':').next().expect("a name").to_owned();
    for key in [another_key("elsewhere-1"), another_key(&own_name)] {
        let client = cache.client();
        let distrusting = Substituter { url: cache.ondine.url(), public_key: key.public_key().to_string() };
        client.fetch(&distrusting, &[built.out()]).must_fail();
        assert!(!client.has(built.out()));
        let refused = client.copy(&distrusting, &[built.out()]).must_fail();
        assert!(refused.stderr.contains("signature"), "{refused}");
    }
    cache.arrives(&[built.out()]);
}

// NARs over HTTP.

/// A NAR of some 256 KiB, packed, and its true bytes in both forms.
struct Served {
    cache: Cache,
    built: Instantiated,
    plain: (String, Vec<u8>),
    zstd: (String, Vec<u8>),
}

impl Served {
    fn new() -> Served {
        let cache = Cache::new();
        let built = cache.store.instantiate(&noise("noise", 256 * 1024));
        let (plain, zstd) = cache.packed(built.out());
        let dump = cache.dump(built.out());
        let file = cache.http.get(&zstd).body;
        assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), dump);
        Served { cache, built, plain: (plain, dump), zstd: (zstd, file) }
    }

    fn forms(&self) -> [&(String, Vec<u8>); 2] {
        [&self.plain, &self.zstd]
    }

    fn get(&self, address: &str, headers: &[(&str, &str)]) -> Response {
        self.cache.http.get_with(address, headers)
    }
}

#[test]
fn a_nar_is_served_whole_in_both_forms_and_may_be_kept_for_ever() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let answer = served.get(address, &[]);
        assert_eq!((answer.status, answer.body == *bytes), (200, true), "{address}");
        let head = served.cache.http.head(address);
        assert_eq!(head.status, 200);
        for answer in [&answer, &head] {
            assert_eq!(answer.header("content-length"), Some(&*bytes.len().to_string()), "{address}");
            assert_eq!(answer.header("cache-control"), Some("public, max-age=31536000, immutable"));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            assert_eq!(answer.header("content-encoding"), None, "a client could not resume it");
            let etag = answer.header("etag").expect("an ETag");
            assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 40, "{etag}");
        }
        assert_eq!(answer.header("etag"), head.header("etag"));
    }
    let etags = served.forms().map(|(address, _)| served.get(address, &[]).header("etag").map(str::to_owned));
    assert_ne!(etags[0], etags[1], "different bytes with one ETag");
    let narinfo = served.cache.narinfo(served.built.out());
    assert_eq!(field(&narinfo, "FileSize"), served.zstd.1.len().to_string());
    let mut digest = Digesting::default();
    digest.write_all(&served.zstd.1).expect("it takes everything");
    let hash: narinfo::NarHash = field(&narinfo, "FileHash").parse().expect("a hash");
    assert_eq!(hash.to_hex(), digest.finish().1);
}

#[test]
fn a_range_is_the_slice_it_names() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let length = bytes.len();
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=1000-199999".to_owned(), 1000, 200_000),
            ("bytes=77777-".to_owned(), 77_777, length),
            (format!("bytes={}-{}", length - 1, length - 1), length - 1, length),
            ("bytes=-5".to_owned(), length - 5, length),
            // RFC 9110, 14.1.2: a range that goes past the end, and a suffix longer than the file, are cut to the file.
            (format!("bytes=5-{length}"), 5, length),
            (format!("bytes=5-{}", u64::MAX), 5, length),
            (format!("bytes=-{}", length + 1), 0, length),
            (format!("bytes=0-{}", length - 1), 0, length),
        ] {
            let answer = served.get(address, &[("Range", &range)]);
            assert_eq!(answer.status, 206, "{range} of {address}");
            assert!(
                answer.body == bytes[start..end],
                "{range} of {address} gave {} bytes",
                answer.body.len()
            );
            let of = format!("bytes {start}-{}/{length}", end - 1);
            assert_eq!(answer.header("content-range"), Some(&*of), "{range}");
            assert_eq!(answer.header("content-length"), Some(&*(end - start).to_string()), "{range}");
            assert_eq!(answer.header("etag"), served.get(address, &[]).header("etag"));
        }
    }
}

#[test]
fn a_range_without_a_byte_is_416_and_says_how_long_the_file_is() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let length = bytes.len();
        let past = [format!("bytes={length}-"), format!("bytes={}-{}", length + 5, length + 9)];
        // The last two: a first byte that no file has, and a range that ends before it begins.
        for range in past.into_iter().chain([format!("bytes={}-", u64::MAX), "bytes=5-4".to_owned()]) {
            let answer = served.get(address, &[("Range", &range)]);
            assert_eq!(answer.status, 416, "{range}");
            assert_eq!(answer.header("content-range"), Some(&*format!("bytes */{length}")), "{range}");
            assert!(answer.body.len() < 200 && answer.header("etag").is_none(), "{range}");
        }
    }
}

#[test]
fn several_ranges_and_what_is_no_range_give_the_whole_file() {
    let served = Served::new();
    let thousand = (0..1000).map(|n| format!("{}-{}", 2 * n, 2 * n)).collect::<Vec<_>>().join(",");
    for (address, bytes) in served.forms() {
        for range in [
            "bytes=0-0,5-6",
            "bytes=0-10,5-20",
            &format!("bytes={thousand}"),
            &format!("bytes={}", "0-,".repeat(1000).trim_end_matches(',')),
            // 2^64, which no file has.
            "bytes=18446744073709551616-",
            "bytes=0-18446744073709551616",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=-0",
            "lines=1-2",
            "nonsense",
        ] {
            let answer = served.get(address, &[("Range", range)]);
            let whole = answer.status == 200 && answer.body == *bytes;
            assert!(whole, "{range:.60}: {} with {} bytes", answer.status, answer.body.len());
            assert_eq!(answer.header("content-range"), None);
        }
    }
}

#[test]
fn if_range_gives_the_range_of_these_bytes_and_else_the_whole_file() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let etag = served.get(address, &[]).header("etag").expect("an ETag").to_owned();
        let right = served.get(address, &[("Range", "bytes=5-9"), ("If-Range", &etag)]);
        assert_eq!((right.status, &right.body[..]), (206, &bytes[5..10]));
        let weak = format!("W/{etag}");
        for wrong in ["\"another\"", &weak, "Tue, 24 Nov 2026 00:00:00 GMT"] {
            let whole = served.get(address, &[("Range", "bytes=5-9"), ("If-Range", wrong)]);
            assert_eq!((whole.status, whole.body == *bytes), (200, true), "{wrong}");
        }
    }
}

#[test]
fn if_none_match_is_304_for_these_bytes_and_else_the_whole_file() {
    let served = Served::new();
    for (address, bytes) in served.forms() {
        let etag = served.get(address, &[]).header("etag").expect("an ETag").to_owned();
        for known in [etag.clone(), format!("W/{etag}"), format!("\"another\", {etag}"), "*".to_owned()] {
            let same = served.get(address, &[("If-None-Match", &known)]);
            assert_eq!((same.status, same.body.len()), (304, 0), "{known}");
            assert_eq!(same.header("etag"), Some(&*etag));
            assert_eq!(served.cache.http.head_with(address, &[("If-None-Match", &known)]).status, 304);
        }
        let other = served.get(address, &[("If-None-Match", "\"another\"")]);
        assert_eq!((other.status, other.body == *bytes), (200, true));
    }
}

#[test]
fn nar_addresses_that_clients_remember_from_other_servers_are_answered() {
    let served = Served::new();
    let (plain, zstd) = (&served.plain.0, &served.zstd.0);
    let nar_hash = plain.trim_start_matches("/nar/").trim_end_matches(".nar");
    let path_hash = &base_name(served.built.out())[..32];
    let forms = [
        format!("/nar/{path_hash}-{nar_hash}.nar"),
        format!("/nar/{nar_hash}.nar?hash={path_hash}"),
        format!("/cached{plain}"),
    ];
    for address in &forms {
        let answer = served.get(address, &[]);
        assert_eq!((answer.status, answer.body == served.plain.1), (200, true), "{address}");
    }
    for address in [format!("/nar/{path_hash}-{nar_hash}.nar.zst"), format!("/cached{zstd}")] {
        let answer = served.get(&address, &[]);
        assert_eq!((answer.status, answer.body == served.zstd.1), (200, true), "{address}");
    }
}

// While it is packed, and over a bad network.

#[test]
fn a_range_asked_for_while_a_nar_is_packed_is_right() {
    let cache = Cache::new();
    let built = cache.store.instantiate(&large_file("large"));
    let address = format!("/{}", field(&cache.narinfo(built.out()), "URL"));
    let plain = address.trim_end_matches(".zst");
    assert!(!cache.narinfo(built.out()).contains("FileSize"), "packed so fast that this test shows nothing");
    // All at once, so that each is asked for before it is packed.
    let http = &cache.http;
    let ranges = ["bytes=0-99", "bytes=150000000-150000999", "bytes=-100"];
    let early: Vec<Response> = std::thread::scope(|scope| {
        let asked = [&address, plain].into_iter().flat_map(|address| ranges.map(|range| (address, range)));
        let threads: Vec<_> = asked
            .map(|(address, range)| scope.spawn(move || http.get_with(address, &[("Range", range)])))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let (dump, file) = (cache.dump(built.out()), cache.http.get(&address).body);
    assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), dump);
    for (number, answer) in early.iter().enumerate() {
        let bytes = if number < ranges.len() { &file } else { &dump };
        let slice = match number % ranges.len() {
            0 => &bytes[..100],
            1 => &bytes[150_000_000..150_001_000],
            _ => &bytes[bytes.len() - 100..],
        };
        assert_eq!((answer.status, answer.body == slice), (206, true), "request {number}");
    }
}

/// Fetches through a proxy that cuts the first NAR; the client must resume, and get it all.
fn resumes(cache: &Cache, path: &Path, cut_after: usize) {
    let proxy = CuttingProxy::new(cache.ondine.address(), cut_after);
    let through = Substituter { url: proxy.url(), public_key: cache.ondine.public_key().to_owned() };
    let client = cache.client();
    client.fetch(&through, &[path]).must_succeed();
    assert_eq!(client.nar_digest(path), nar_digest(path));
    assert!(proxy.has_cut(), "nothing was cut");
    let requests = proxy.nar_requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let resumed = requests[1].to_lowercase();
    let from = resumed.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let from: usize =
        from.and_then(|from| from.parse().ok()).unwrap_or_else(|| panic!("no range: {resumed}"));
    assert!(0 < from && from <= cut_after, "resumed at {from}");
}

#[test]
fn a_client_resumes_a_broken_download() {
    let cache = Cache::new();
    let built = cache.store.instantiate(&noise("noise", 4 * 1024 * 1024));
    cache.packed(built.out());
    resumes(&cache, built.out(), 1024 * 1024);
}

#[test]
fn a_client_resumes_a_download_that_broke_while_the_nar_was_packed() {
    let cache = Cache::new();
    let built = cache.store.instantiate(&large_file("large"));
    resumes(&cache, built.out(), 10 * 1024 * 1024);
}
