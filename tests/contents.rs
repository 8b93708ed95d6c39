//! Contents that are served are those that were built: names, trees, sizes, references and signatures arrive
//! as they are in the store. Real clients that require signatures and trust our key alone.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support;
use crate::support::addresses::{base_name, field, fields, log_address};
use crate::support::derivations::{
    LARGE_FILE_BYTES, ODD_NAME, chain, curious_tree, large_file, multiple_outputs,
};
use crate::support::{Cache, Client, Derivation, Substituter, nar_digest, text};
use narinfo::{KeyName, NarInfo, PublicKey, SecretKey, StoreDir};
use sha2::{Digest, Sha256};

/// The most memory that the server may hold, in bytes, however large what it serves.
const SERVER_RSS_BYTES_MAX: u64 = 200 * 1024 * 1024;

/// A client with an empty store gets `paths` and their closure, alike byte for byte.
#[track_caller]
fn arrives(cache: &Cache, paths: &[&Path]) -> Client {
    let client = cache.client(&[]);
    client.fetch(&cache.ondine.substituter(), paths).must_succeed();
    for path in cache.closure(paths) {
        assert!(client.has(&path), "the client does not have {}", path.display());
        assert_eq!(client.nar_digest(&path), nar_digest(&path), "{} differs", path.display());
    }
    client
}

#[track_caller]
fn parsed(cache: &Cache, path: &Path) -> NarInfo {
    let store_dir = StoreDir::new(text(&cache.store.store_dir())).expect("the store directory of a test");
    NarInfo::parse(&store_dir, cache.narinfo(path).as_bytes()).expect("a narinfo")
}

/// Another key than the server's, perhaps of the same name.
fn another_key(name: &str) -> SecretKey {
    SecretKey::generate(name.parse::<KeyName>().expect("a good name"))
}

// Names, trees, sizes.

#[test]
fn outputs_that_refer_to_each_other_arrive_with_their_references() {
    let cache = Cache::new(&[]);
    let several = cache.store.instantiate(&multiple_outputs("several"));
    let client = arrives(&cache, &[several.output("dev")]);
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
    let cache = Cache::new(&[]);
    let script = "echo 'a line of the log'\necho odd > \"$out\"\necho odd > \"$lib\"";
    let odd = cache.store.instantiate(&Derivation::new(ODD_NAME, script).outputs(&["out", "lib"]));
    for character in ['+', '?', '=', '.', '_', '-'] {
        assert!(base_name(odd.out()).contains(character), "{} has no {character}", odd.out().display());
    }
    arrives(&cache, &[odd.out(), odd.output("lib")]);
    assert!(cache.http.get(&log_address(&odd.drv)).text().contains("a line of the log"));
}

#[test]
fn nix_log_finds_a_name_with_a_question_mark() {
    // Nix 2.8 sends the name as it is, so that what comes after the question mark looks like a query.
    let cache = Cache::new(&[]);
    let odd =
        cache.store.instantiate(&Derivation::new(ODD_NAME, "echo 'a line of the log'\necho odd > \"$out\""));
    cache.narinfo(odd.out());
    let client = cache.client(&[]);
    let log = client.run("nix", &["log", "--store", &cache.ondine.url(), text(&odd.drv)]).must_succeed();
    assert!(log.text().contains("a line of the log"), "{log}");
}

#[test]
fn a_curious_tree_arrives_as_it_is() {
    let cache = Cache::new(&[]);
    let tree = cache.store.instantiate(&curious_tree("tree"));
    let client = arrives(&cache, &[tree.out()]);
    // That the trees are alike was seen; that this one is curious, and its copy a tree on this machine, is
    // seen here.
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
    let cache = Cache::new(&[]);
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

    arrives(&cache, &[large.out()]);
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
    let cache = Cache::new(&[]);
    let tool = Derivation::new("tool", "echo tool > \"$out\"");
    let row = chain("row", 4, |number| format!("echo building number {number}\n"));
    let script =
        "mkdir \"$out\"\nln -s \"$row\" \"$out/row\"\n[ -e \"$tool\" ]\necho \"$out\" > \"$out/self\"";
    let top = Derivation::new("top", script).input("row", &row).input("tool", &tool);
    let (tool, top) = (cache.store.instantiate(&tool), cache.store.instantiate(&top));
    let client = arrives(&cache, &[top.out()]);
    let closure = cache.closure(&[top.out()]);
    assert_eq!(closure.len(), 5, "{closure:?}");
    assert!(!client.has(tool.out()), "the client got what only the build needed");

    for path in &closure {
        let info = parsed(&cache, path);
        assert_eq!(info.path_info.path.to_string(), base_name(path));
        let query = |what: &str| cache.store.nix_store(&["--query", what, text(path)]);
        let references: BTreeSet<String> =
            info.path_info.references.iter().map(ToString::to_string).collect();
        let known: BTreeSet<String> =
            query("--references").lines().map(|line| base_name(Path::new(line)).to_owned()).collect();
        assert_eq!(references, known);
        let deriver = query("--deriver");
        assert_eq!(
            info.path_info.deriver.map(|drv| drv.to_string()).as_deref(),
            Some(base_name(Path::new(&deriver)))
        );
        assert_eq!(info.path_info.nar_size.to_string(), query("--size"));
        assert_eq!(info.path_info.nar_hash.to_string(), query("--hash"));
        for reference in &info.path_info.references {
            let answer = cache.http.get(&format!("/cached/{}.narinfo", reference.hash()));
            assert_eq!(answer.status, 200, "{reference}: {}", answer.text());
        }
    }
}

#[test]
fn a_path_that_was_there_is_adopted_with_its_own_signature_and_ours() {
    let cache = Cache::new(&[]);
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
        let info = parsed(&cache, path);
        let fingerprint = info.path_info.fingerprint(&store_dir);
        info.path_info.signatures.iter().filter(|signature| key.verify(signature, &fingerprint)).count()
    };
    assert_eq!(verified_by(signed.out(), &ours), 1);
    assert_eq!(verified_by(signed.out(), &theirs.public_key()), 1);
    assert_eq!(parsed(&cache, signed.out()).path_info.signatures.len(), 2);
    assert_eq!(verified_by(below.out(), &ours), 1);
    assert_eq!(parsed(&cache, below.out()).path_info.signatures.len(), 1, "their key has signed one path");
    assert_eq!(fields(&cache.narinfo(signed.out()), "Sig").len(), 2);

    let client = arrives(&cache, &[signed.out()]);
    // Who trusts their key alone gets what they signed, too, and not what only we have.
    let other = cache.client(&[]);
    let trusting = Substituter { url: cache.ondine.url(), public_key: theirs.public_key().to_string() };
    other.fetch(&trusting, &[signed.out()]).must_fail();
    assert!(!other.has(below.out()));
    let kept =
        client.run("nix-store", &["--query", "--references", text(signed.out())]).must_succeed().text();
    assert_eq!(kept, text(below.out()));
}

#[test]
fn a_file_that_was_added_to_the_store_is_served_with_its_content_address() {
    let cache = Cache::new(&[]);
    let file = cache.store.folder().join("a-plain-file");
    std::fs::write(&file, "added by hand\n").expect("the folder can be written to");
    let added = PathBuf::from(cache.store.nix_store(&["--add", text(&file)]));
    let narinfo = cache.narinfo(&added);
    assert!(field(&narinfo, "CA").starts_with("fixed:r:sha256:"), "{narinfo}");
    assert!(fields(&narinfo, "Deriver").is_empty(), "{narinfo}");
    arrives(&cache, &[&added]);
    // It proves itself: a client that trusts nobody takes it.
    let trusting_nobody = Substituter { url: cache.ondine.url(), public_key: String::new() };
    let client = cache.client(&[]);
    client.fetch(&trusting_nobody, &[&added]).must_succeed();
    assert_eq!(client.nar_digest(&added), nar_digest(&added));
}

#[test]
fn a_client_that_trusts_another_key_refuses_what_we_serve() {
    let cache = Cache::new(&[]);
    let built = cache.store.instantiate(&Derivation::new("built", "echo built > \"$out\""));
    let own_name = cache.ondine.public_key().split(':').next().expect("a name").to_owned();
    for key in [another_key("elsewhere-1"), another_key(&own_name)] {
        let client = cache.client(&[]);
        let distrusting = Substituter { url: cache.ondine.url(), public_key: key.public_key().to_string() };
        client.fetch(&distrusting, &[built.out()]).must_fail();
        assert!(!client.has(built.out()));
        let refused = client.copy(&distrusting, &[built.out()]).must_fail();
        assert!(refused.stderr.contains("signature"), "{refused}");
    }
    arrives(&cache, &[built.out()]);
}
