//! Narinfos in files. Those in `vectors/good` parse and are written again as the `.rendered` beside them
//! says; those in `vectors/bad` are refused, with the kind of error that the first word of their name gives
//! and the text of their `.error`.

mod support;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use narinfo::{Compression, NarInfo, ParseError, StoreDir};
use support::{Nix, finish};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// A file of a vector.
fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each narinfo with its name, and what the file beside it with this ending expects.
fn vectors(name: &str, ending: &str) -> Vec<(String, Vec<u8>, String)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(name))
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let (narinfos, expected): (Vec<PathBuf>, Vec<PathBuf>) =
        files.into_iter().partition(|file| file.extension().is_some_and(|ending| ending == "narinfo"));
    assert_eq!(
        narinfos.len(),
        expected.len(),
        "every narinfo has its .{ending} and no other file is in {name}"
    );
    let stem = |file: &Path| file.file_stem().expect("a name").to_string_lossy().into_owned();
    let text = |file: &Path| String::from_utf8(read(&file.with_extension(ending))).expect("text");
    narinfos.iter().map(|file| (stem(file), read(file), text(file))).collect()
}

fn vector(name: &str) -> Vec<u8> {
    read(&folder("good").join(format!("{name}.narinfo")))
}

fn parse(bytes: &[u8]) -> Result<NarInfo, ParseError> {
    NarInfo::parse(&StoreDir::default(), bytes)
}

/// An error and what caused it, as it is logged.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn good_ones_parse_and_are_written_as_expected() {
    let vectors = vectors("good", "rendered");
    assert!(vectors.len() >= 15, "the vectors are missing");
    for (name, bytes, expected) in vectors {
        let info = parse(&bytes).unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        assert_eq!(info.render(&StoreDir::default()), expected, "{name}");
        assert_eq!(parse(expected.as_bytes()), Ok(info), "{name}");
    }
}

#[test]
fn bad_ones_are_refused_for_their_reason() {
    let vectors = vectors("bad", "error");
    assert!(vectors.len() >= 100, "the vectors are missing");
    for (name, bytes, expected) in vectors {
        let Err(error) = parse(&bytes) else { panic!("{name} was accepted") };
        let shown = chain(&error);
        assert_eq!(name.split('-').next(), Some(kind(&error)), "{name}: {shown}");
        let expected = expected.trim_end_matches('\n');
        assert!(!expected.is_empty() && shown.contains(expected), "{name}: {shown:?} lacks {expected:?}");
        assert!(shown.len() < 2_000 && !shown.chars().any(char::is_control), "{name} shows as {shown:?}");
    }
}

fn kind(error: &ParseError) -> &'static str {
    match error {
        ParseError::TooLarge(_) => "large",
        ParseError::NotText => "text",
        ParseError::Cut => "cut",
        ParseError::Line(_) => "line",
        ParseError::Duplicate(_) => "duplicate",
        ParseError::Missing(_) => "missing",
        ParseError::Size { .. } => "size",
        ParseError::Compression(_) => "compression",
        ParseError::Url(_) => "url",
        ParseError::StorePath { .. } => "path",
        ParseError::Hash { .. } => "hash",
        ParseError::Signature(_) => "signature",
        ParseError::TooManySignatures => "signatures",
        ParseError::ContentAddress(_) => "ca",
    }
}

#[test]
fn nix_reads_every_good_one_too() {
    let nix = Nix::new();
    for (name, bytes, expected) in vectors("good", "rendered") {
        let info = parse(&bytes).expect("a good one");
        let cache = nix.path(&name);
        fs::create_dir(&cache).expect("a cache");
        fs::write(cache.join("nix-cache-info"), "StoreDir: /nix/store\n").expect("nix-cache-info");
        for text in [bytes, expected.into_bytes()] {
            fs::write(cache.join(format!("{}.narinfo", info.path_info.path.hash())), text)
                .expect("a narinfo");
            let path = info.path_info.path.in_dir(&StoreDir::default());
            let store = format!("file://{}", cache.display());
            let mut command = nix.command("nix");
            command.args(["path-info", "--json", "--store", store.as_str(), path.as_str()]);
            let output = finish("nix", command.env("NIX_STORE_DIR", "/nix/store"));
            let json = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(json.contains(&format!("\"narSize\":{}", info.path_info.nar_size)), "{name}: {json}");
        }
    }
}

#[test]
fn one_of_three_megabytes_is_refused() {
    let mut bytes = vector("as-nix-writes-it");
    bytes.resize(3 << 20, b'x');
    bytes.push(b'\n');
    assert_eq!(parse(&bytes), Err(ParseError::TooLarge((3 << 20) + 1)));
}

#[test]
fn one_mebibyte_is_the_limit() {
    let mut bytes = vector("as-nix-writes-it");
    bytes.extend(b"X: ");
    bytes.resize(narinfo::info::NARINFO_BYTES_MAX - 1, b'x');
    bytes.push(b'\n');
    assert_eq!(bytes.len(), 1 << 20);
    assert!(parse(&bytes).is_ok());
    bytes.insert(0, b'X');
    assert_eq!(parse(&bytes), Err(ParseError::TooLarge((1 << 20) + 1)));
}

#[test]
fn more_signatures_than_anybody_makes_are_refused() {
    let signed = vector("several-signatures");
    let line = String::from_utf8_lossy(&signed);
    let line = line.lines().find(|line| line.starts_with("Sig: ")).expect("a signature").to_owned();
    let mut bytes = vector("least");
    for _ in 0..narinfo::SIGNATURES_MAX {
        bytes.extend(line.bytes().chain([b'\n']));
    }
    assert_eq!(parse(&bytes).expect("not too many").path_info.signatures.len(), narinfo::SIGNATURES_MAX);
    for _ in 0..9_000 - narinfo::SIGNATURES_MAX {
        bytes.extend(line.bytes().chain([b'\n']));
    }
    assert_eq!(parse(&bytes), Err(ParseError::TooManySignatures));
}

#[test]
fn every_truncation_is_refused_or_lacks_whole_lines_alone() {
    let bytes = vector("as-nix-writes-it");
    for end in 0..bytes.len() {
        if parse(&bytes[..end]).is_ok() {
            assert_eq!(bytes[end - 1], b'\n', "cut after {end} bytes");
        }
    }
}

#[test]
fn a_missing_compression_means_bzip2() {
    for name in ["least", "no-compression-field", "empty-compression-is-bzip2"] {
        assert_eq!(parse(&vector(name)).expect("a narinfo").compression, Compression::Bzip2, "{name}");
    }
}

#[test]
fn another_stores_narinfo_is_refused() {
    let bytes = vector("as-nix-writes-it");
    let other = StoreDir::new("/other/store").expect("a store directory");
    assert!(matches!(NarInfo::parse(&other, &bytes), Err(ParseError::StorePath { field: "StorePath", .. })));
}
