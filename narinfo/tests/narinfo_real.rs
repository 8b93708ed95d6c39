//! Narinfos and cache infos: what we write we read, and what the real Nix writes we read, check and write the
//! same.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;

use narinfo::{
    CacheInfo, Compression, ContentAddress, KeyName, NarHash, NarInfo, PathInfo, PublicKey, SecretKey,
    Signature, StoreDir, StorePath,
};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use support::{Nix, expression, sha256};

/// A cache of three paths that Nix copied with these parameters, and what is in it.
fn cache(nix: &Nix, parameters: &str) -> Vec<(String, NarInfo)> {
    let dependency = |name: &str| expression(&format!("name = \"{name}\";"), "echo x > $out");
    let attributes = format!("name = \"top-1.0\"; a = {}; b = {};", dependency("a+b"), dependency("c=d"));
    let top = nix.full(&nix.build(&expression(&attributes, "mkdir $out; echo $a $b $out > $out/f")));
    fs::write(nix.path("source"), "a source").expect("a file");
    let source = nix.text("nix", &["store", "add-file", nix.path("source").to_str().unwrap()]);
    nix.bytes(
        "nix",
        &["copy", "--to", &format!("file://{}/c?{parameters}", nix.path("").display()), &top, &source],
    );
    let mut found = Vec::new();
    for entry in fs::read_dir(nix.path("c")).expect("a cache") {
        let file = entry.expect("an entry").path();
        if file.extension().is_some_and(|extension| extension == "narinfo") {
            let text = fs::read_to_string(&file).expect("a narinfo");
            let info =
                NarInfo::parse(&nix.store_dir(), text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(file.file_stem().expect("a name").to_str(), Some(info.path_info.path.hash().as_str()));
            found.push((text, info));
        }
    }
    assert_eq!(found.len(), 4);
    found
}

fn signing_key(nix: &Nix) -> (String, PublicKey) {
    let key = SecretKey::generate("cache-1".parse().expect("a name"));
    fs::write(nix.path("key"), key.to_secret_string().as_bytes()).expect("a key file");
    (nix.path("key").display().to_string(), key.public_key())
}

#[test]
fn a_narinfo_of_nix_is_read_verified_and_written_the_same() {
    for (compression, expected) in
        [("none", Compression::None), ("xz", Compression::Xz), ("zstd", Compression::Zstd)]
    {
        let nix = Nix::new();
        let (key, public) = signing_key(&nix);
        for (text, info) in cache(&nix, &format!("compression={compression}&secret-key={key}")) {
            assert_eq!(info.render(&nix.store_dir()), text);
            assert_eq!(info.compression, expected);
            let full = nix.full(&info.path_info.path);
            let references: BTreeSet<StorePath> =
                nix.paths("nix-store", &["-q", "--references", &full]).into_iter().collect();
            assert_eq!(info.path_info.references, references);
            assert_eq!(info.path_info.nar_hash.to_string(), nix.text("nix-store", &["-q", "--hash", &full]));
            let [signature] = info.path_info.signatures.as_slice() else { panic!("one signature: {text}") };
            assert!(public.verify(signature, &info.path_info.fingerprint(&nix.store_dir())));
            let file = fs::read(nix.path("c").join(&info.url)).expect("the file that the URL names");
            assert_eq!(info.file_hash, Some(sha256(&file)));
            assert_eq!(info.file_size, Some(file.len() as u64));
        }
    }
}

#[test]
fn the_nar_behind_a_narinfo_of_nix_is_what_it_says() {
    let nix = Nix::new();
    for (_, info) in cache(&nix, "compression=none") {
        let nar = fs::read(nix.path("c").join(&info.url)).expect("a NAR");
        assert_eq!((sha256(&nar), nar.len() as u64), (info.path_info.nar_hash, info.path_info.nar_size));
        assert_eq!(narinfo::nar::check(&mut nar.as_slice()).expect("a NAR").bytes, info.path_info.nar_size);
    }
}

#[test]
fn a_signature_does_not_fit_a_changed_narinfo() {
    let nix = Nix::new();
    let (key, public) = signing_key(&nix);
    let dir = nix.store_dir();
    let infos = cache(&nix, &format!("secret-key={key}"));
    let (_, info) = infos.iter().find(|(_, info)| info.path_info.references.len() == 3).expect("the top one");
    let verifies =
        |info: &NarInfo| public.verify(&info.path_info.signatures[0], &info.path_info.fingerprint(&dir));
    assert!(verifies(info));
    let mut changed = vec![info.clone(); 5];
    changed[0].path_info.nar_size += 1;
    changed[1].path_info.nar_hash = sha256(b"other");
    changed[2].path_info.references.pop_last();
    changed[3].path_info.references.insert("0mdqa9w1p6cmli6976v4wi0sw9r4p5pr-x".parse().expect("a path"));
    changed[4].path_info.path = format!("{}-other", info.path_info.path.hash()).parse().expect("a path");
    for info in &changed {
        assert!(!verifies(info), "{info:?}");
    }
    assert!(
        !public.verify(&info.path_info.signatures[0], &info.path_info.fingerprint(&StoreDir::default())),
        "another store"
    );
    // What clients do not trust anyway is not signed.
    let mut moved = info.clone();
    (moved.url, moved.compression, moved.file_size) = ("nar/x".to_owned(), Compression::Zstd, None);
    assert!(verifies(&moved));
}

#[test]
fn a_cache_info_of_nix_is_read() {
    let nix = Nix::new();
    cache(&nix, "want-mass-query=true&priority=41");
    let mut bytes = Vec::new();
    fs::File::open(nix.path("c/nix-cache-info")).expect("a file").read_to_end(&mut bytes).expect("its text");
    let info = CacheInfo::parse(&bytes).expect("a cache info");
    assert_eq!(info.store_dir, nix.store_dir());
}

fn store_paths() -> impl Strategy<Value = StorePath> {
    let hash = vec(select(narinfo::NIXBASE32_ALPHABET.as_slice()), 32);
    let name = vec(select(b"abcXYZ019+-._?=".as_slice()), 1..40);
    (hash, name).prop_filter_map("a name", |(hash, name)| {
        let text = [hash, vec![b'-'], name].concat();
        StorePath::parse(std::str::from_utf8(&text).ok()?).ok()
    })
}

fn hashes() -> impl Strategy<Value = NarHash> {
    any::<[u8; 32]>().prop_map(NarHash::from_bytes)
}

fn signatures() -> impl Strategy<Value = Signature> {
    let names = vec(select(b"abc.-019+=/".as_slice()), 1..20);
    (names, any::<u64>()).prop_map(|(name, text)| {
        let name: KeyName = String::from_utf8(name).expect("ASCII").parse().expect("a name");
        SecretKey::generate(name).sign(&text.to_string())
    })
}

fn content_addresses() -> impl Strategy<Value = ContentAddress> {
    (select(vec!["fixed:r", "fixed", "text"]), hashes())
        .prop_map(|(method, hash)| format!("{method}:{hash}").parse().expect("a content address"))
}

fn urls() -> impl Strategy<Value = String> {
    let part = vec(select(b"abcz09._-+=~%".as_slice()), 1..12).prop_map(|part| {
        // No encodings and no dots alone: those are refused, and have their vectors.
        format!("x{}", String::from_utf8(part).expect("ASCII").replace('%', "%41"))
    });
    (
        select(vec!["", "http://example.org/", "https://example.org:8443/"]),
        vec(part, 1..4),
        select(vec!["", "?hash=x"]),
    )
        .prop_map(|(start, parts, query)| format!("{start}{}{query}", parts.join("/")))
}

fn narinfos() -> impl Strategy<Value = NarInfo> {
    use Compression::{Br, Bzip2, Gzip, None, Xz, Zstd};
    let file = (
        urls(),
        select(vec![None, Xz, Zstd, Bzip2, Gzip, Br]),
        option::of(hashes()),
        option::of(1..=u64::MAX),
    );
    let nar = (hashes(), 1..=u64::MAX, btree_set(store_paths(), 0..5));
    let rest =
        (store_paths(), option::of(store_paths()), option::of(content_addresses()), vec(signatures(), 0..3));
    (file, nar, rest).prop_map(|(file, nar, rest)| NarInfo {
        path_info: PathInfo {
            path: rest.0,
            nar_hash: nar.0,
            nar_size: nar.1,
            references: nar.2,
            deriver: rest.1,
            ca: rest.2,
            signatures: rest.3,
        },
        url: file.0,
        compression: file.1,
        file_hash: file.2,
        file_size: file.3,
    })
}

#[test]
fn a_narinfo_may_have_thousands_of_references_and_many_signatures() {
    let dir = StoreDir::default();
    let path = |number: u32| {
        let text = format!("{}-reference-{number}", &sha256(&number.to_le_bytes()).to_nixbase32()[..32]);
        text.parse::<StorePath>().expect("a path")
    };
    let signature = |number: u32| {
        let name: KeyName = format!("key-{number}").parse().expect("a name");
        SecretKey::generate(name).sign("1;text")
    };
    let path_info = PathInfo {
        path: path(0),
        nar_hash: sha256(b"nar"),
        nar_size: 1,
        references: (0..5_000).map(path).collect(),
        deriver: None,
        ca: None,
        signatures: (0..50).map(signature).collect(),
    };
    let info = NarInfo {
        path_info,
        url: "nar/x.nar.zst".to_owned(),
        compression: Compression::Zstd,
        file_hash: None,
        file_size: None,
    };
    assert_eq!(info.path_info.references.len(), 5_000);
    assert_eq!(NarInfo::parse(&dir, info.render(&dir).as_bytes()), Ok(info));
}

proptest! {
    #[test]
    fn what_is_rendered_parses_to_the_same(info in narinfos(), dir in select(vec!["/nix/store", "/tmp/x y/store"])) {
        let dir = StoreDir::new(dir).expect("a store directory");
        let text = info.render(&dir);
        prop_assert!(text.ends_with('\n') && text.lines().all(|line| line.contains(": ")), "{}", text);
        prop_assert!(text.contains("\nReferences: ") && text.contains("\nCompression: "), "{}", text);
        prop_assert_eq!(NarInfo::parse(&dir, text.as_bytes()), Ok(info));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..400), info in narinfos(), at in any::<usize>()) {
        let _ = NarInfo::parse(&StoreDir::default(), &bytes);
        let mut text = info.render(&StoreDir::default()).into_bytes();
        let at = at % text.len();
        text.splice(at..at, bytes.into_iter().take(4));
        if let Ok(info) = NarInfo::parse(&StoreDir::default(), &text) {
            prop_assert!(info.path_info.nar_size > 0);
        }
        let _ = CacheInfo::parse(&text);
    }
}
