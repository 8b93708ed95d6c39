//! Traits of other caches that Nix takes: what the newest Nix substitutes from a cache, it gets through this
//! server, too. What it does not take is refused with the reason, or harmless. One row of a table for each
//! trait.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::process::run;
use crate::support::store::{Folder, NixStore};
use crate::support::upstream::settings_file;
use crate::support::{
    BinaryCache, Client, Compression, Derivation, Http, Ondine, Release, Substituter, Upstream, text,
};

/// The newest Nix says "signature is corrupt", and older ones take it.
const fn taken_before(said: &'static str, change: fn(&BinaryCache, &Path)) -> Row {
    Row { said, change, by_nix: false, by_us: Ok(()) }
}

/// A trait: what it is, how a narinfo gets it, and who takes it.
struct Row {
    said: &'static str,
    change: fn(&BinaryCache, &Path),
    /// True if Nix 2.34 substitutes it.
    by_nix: bool,
    /// Ok if this server passes it on; else a part of the reason that it gives.
    by_us: Result<(), &'static str>,
}

const fn taken(said: &'static str, change: fn(&BinaryCache, &Path)) -> Row {
    Row { said, change, by_nix: true, by_us: Ok(()) }
}

const fn refused(said: &'static str, change: fn(&BinaryCache, &Path), why: &'static str) -> Row {
    Row { said, change, by_nix: false, by_us: Err(why) }
}

fn set_url(cache: &BinaryCache, path: &Path, change: impl Fn(&str) -> String) {
    let url = field(&cache.narinfo(path), "URL").to_owned();
    cache.set(path, "URL", &change(&url));
}

fn add(cache: &BinaryCache, path: &Path, line: &str) {
    cache.edit(path, |narinfo| format!("{narinfo}{line}\n"));
}

fn prepend(cache: &BinaryCache, path: &Path, name: &str, line: &str) {
    cache.edit(path, |narinfo| narinfo.replacen(&format!("{name}: "), &format!("{line}\n{name}: "), 1));
}

/// The NAR hash in another spelling of Nix's.
fn respell(cache: &BinaryCache, path: &Path, form: &[&str]) {
    let hash = field(&cache.narinfo(path), "NarHash").to_owned();
    let parsed: narinfo::NarHash = hash.parse().expect("a hash");
    let spelt = match form {
        ["hex"] => format!("sha256:{}", parsed.to_hex()),
        [prefix] => format!("{prefix}{}", base64(parsed.as_bytes())),
        _ => unreachable!("one form"),
    };
    cache.set(path, "NarHash", &spelt);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let encode = |chunk: &[u8]| {
        let number =
            (0..3).fold(0, |number, at| number << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        (0..4)
            .map(|at| match at <= chunk.len() {
                true => char::from(DIGITS[(number >> (18 - 6 * at)) as usize & 63]),
                false => '=',
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(encode).collect()
}

fn xz(what: &str, input: &[u8]) -> Vec<u8> {
    let folder = Folder::new();
    let file = folder.path().join("input.xz");
    std::fs::write(&file, input).expect("the test's folder can be written to");
    let mut command = Command::new("xz");
    command.args([what, "--stdout", "--force", text(&file)]);
    run(command).must_succeed().stdout
}

const SHA512: &str =
    "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==";

const ROWS: [Row; 30] = [
    taken("as Nix wrote it", |_, _| ()),
    // Compressions are beside the table.
    taken("FileSize 0", |cache, path| cache.set(path, "FileSize", "0")),
    taken("no FileSize", |cache, path| cache.remove(path, "FileSize")),
    taken("FileHash md5", |cache, path| cache.set(path, "FileHash", "md5:d41d8cd98f00b204e9800998ecf8427e")),
    taken("FileHash sha1", |cache, path| {
        cache.set(path, "FileHash", "sha1:143xibwh31h9bvxzalr0sjvbbvpa6ffs");
    }),
    taken("FileHash sha512", |cache, path| cache.set(path, "FileHash", SHA512)),
    taken("FileHash sha256 in base 16", |cache, path| {
        cache.set(path, "FileHash", &format!("sha256:{}", "0".repeat(64)));
    }),
    taken("FileHash sha256 in base 64", |cache, path| {
        cache.set(path, "FileHash", "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }),
    taken("no FileHash", |cache, path| cache.remove(path, "FileHash")),
    refused(
        "FileHash without an algorithm",
        |cache, path| cache.set(path, "FileHash", &"0".repeat(52)),
        "FileHash",
    ),
    taken("NarHash in base 16", |cache, path| respell(cache, path, &["hex"])),
    taken("NarHash in base 64", |cache, path| respell(cache, path, &["sha256:"])),
    taken("NarHash as SRI", |cache, path| respell(cache, path, &["sha256-"])),
    taken("a second Deriver", |cache, path| {
        add(cache, path, "Deriver: 7gaicyl8z8izap3c0m4fx8x117l9k70b-other.drv");
    }),
    taken("an unknown Deriver", |cache, path| cache.set(path, "Deriver", "unknown-deriver")),
    taken("no Deriver", |cache, path| cache.remove(path, "Deriver")),
    taken_before("an empty Sig behind a good one", |cache, path| add(cache, path, "Sig: ")),
    taken_before("an empty Sig before a good one", |cache, path| prepend(cache, path, "Sig", "Sig: ")),
    taken_before("a Sig without a colon beside a good one", |cache, path| add(cache, path, "Sig: nothing")),
    taken("a Sig of the wrong length beside a good one", |cache, path| add(cache, path, "Sig: k-1:AAAA")),
    taken("a URL with a slash before it", |cache, path| set_url(cache, path, |url| format!("/{url}"))),
    taken("a URL with ./ before it", |cache, path| set_url(cache, path, |url| format!("./{url}"))),
    taken("a URL with /./ in it", |cache, path| set_url(cache, path, |url| url.replace('/', "/./"))),
    taken("a URL with // in it", |cache, path| set_url(cache, path, |url| url.replace('/', "//"))),
    taken("a URL with a query", |cache, path| set_url(cache, path, |url| format!("{url}?a=b&c=/../d:e"))),
    refused(
        "a URL on another host",
        |cache, path| set_url(cache, path, |url| format!("//localhost:1/{url}")),
        "URL",
    ),
    taken("unknown fields", |cache, path| add(cache, path, "X-Unknown: a: b")),
    taken("an empty CA", |cache, path| add(cache, path, "CA: ")),
    taken("Compression none for a plain file", |cache, path| {
        let nar = xz("-dc", &cache.nar_bytes(path));
        cache.replace_nar(path, &nar);
        cache.set(path, "Compression", "none");
    }),
    taken("a file of several streams", |cache, path| {
        let nar = xz("-dc", &cache.nar_bytes(path));
        let (start, end) = nar.split_at(nar.len() / 2);
        cache.replace_nar(path, &[xz("-c", start), xz("-c", end)].concat());
    }),
];

/// Paths without references, one for each row.
fn paths(store: &NixStore, count: usize) -> Vec<PathBuf> {
    let outputs: Vec<String> = (0..count).map(|number| format!("o{number}")).collect();
    let script = "for output in $outputs; do echo \"$output\" > ${!output}; done";
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let made = store.instantiate(&Derivation::new("traits", script).outputs(&names));
    store.realise(&made.drv);
    made.outputs.into_iter().map(|(_, path)| path).collect()
}

/// Nix 2.34, where it is among the releases that are tested.
fn newest() -> Option<Release> {
    Release::all().into_iter().find(|release| release.version().starts_with("2.34"))
}

#[test]
fn what_the_newest_nix_substitutes_it_gets_through_here_too_and_the_rest_is_refused_with_the_reason() {
    let store = NixStore::new(Release::Host);
    let paths = paths(&store, ROWS.len());
    let upstream = Upstream::new(&store, &paths.iter().map(|path| &**path).collect::<Vec<_>>());
    store.gc();
    for (row, path) in ROWS.iter().zip(&paths) {
        (row.change)(&upstream.cache, path);
    }
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &["--upstream", &upstream.flag()]);
    let http = Http::new(&ondine.url());
    let straight = Substituter { url: upstream.server.url(), public_key: upstream.cache.public_key() };
    let mut wrong = Vec::new();
    for (row, path) in ROWS.iter().zip(&paths) {
        if let Some(newest) = newest() {
            let client = Client::new(newest, &store.store_dir());
            let finished = client.fetch(&straight, &[path]);
            if client.has(path) != row.by_nix {
                wrong.push(format!("{}: by Nix: {}", row.said, finished.stderr));
            }
        }
        let client = Client::new(Release::Host, &store.store_dir());
        client.fetch(&ondine.substituter(), &[path]);
        let answer = http.get(&narinfo_address(path)).text();
        match row.by_us {
            Ok(()) if client.has(path) => {}
            Err(reason) if !client.has(path) && answer.contains(reason) => {}
            _ => wrong.push(format!("{}: by us: {answer}", row.said)),
        }
    }
    assert!(wrong.is_empty(), "{}\n--- {}", wrong.join("\n--- "), ondine.log());
}

#[test]
fn every_compression_that_nix_writes_comes_through_a_folder_and_a_server() {
    for over_http in [true, false] {
        let store = NixStore::new(Release::Host);
        let all = Compression::ALL;
        let paths = paths(&store, all.len());
        let borrowed: Vec<&Path> = paths.iter().map(|path| &**path).collect();
        let upstream = Upstream::of(BinaryCache::in_every_compression(&store, &borrowed));
        store.gc();
        let _daemon = store.daemon();
        let url = if over_http { upstream.server.url() } else { upstream.cache.file_url() };
        let table = support::upstream::table(&url, &[&upstream.cache.public_key()], "");
        let ondine = Ondine::start(&store, &["--config", &settings_file(&store, &[table])]);
        let client = Client::new(Release::Host, &store.store_dir());
        client.fetch(&ondine.substituter(), &borrowed).must_succeed();
        for (path, compression) in paths.iter().zip(all) {
            assert!(client.has(path), "{compression:?}");
            assert_eq!(field(&upstream.cache.narinfo(path), "Compression"), compression.name());
        }
    }
}

#[test]
fn a_compression_that_is_not_known_here_is_named() {
    let store = NixStore::new(Release::Host);
    let path = paths(&store, 1).swap_remove(0);
    let upstream = Upstream::new(&store, &[&path]);
    store.gc();
    upstream.cache.set(&path, "Compression", "lrzip");
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &["--upstream", &upstream.flag()]);
    let answer = Http::new(&ondine.url()).get(&narinfo_address(&path));
    assert!(answer.status == 404 && answer.text().contains("\"lrzip\" is unknown"), "{}", answer.text());
}
