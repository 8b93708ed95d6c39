//! Content addresses: the text that Nix writes, in one spelling, and nothing else; and the paths and contents
//! that Nix has for them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};

use narinfo::{Addressed, ContentAddress, NarHash, StorePath, nar};
use support::wire::Nar;
use support::{Nix, expression, sha256};

#[test]
fn every_spelling_of_the_hash_becomes_that_of_nix() {
    let hash = sha256(b"x");
    for method in ["fixed", "fixed:r", "text"] {
        let expected = format!("{method}:{hash}");
        for text in [expected.clone(), format!("{method}:sha256:{}", hash.to_hex())] {
            assert_eq!(text.parse::<ContentAddress>().expect("a content address").to_string(), expected);
        }
    }
}

#[test]
fn those_of_nix_are_read_and_shown_the_same() {
    let nix = Nix::new();
    let file = nix.path("file");
    fs::write(&file, "a file").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let mut paths = ["add-file", "add-path"].map(|how| nix.text("nix", &["store", how, file])).to_vec();
    for algorithm in ["md5", "sha1", "sha256", "sha512"] {
        paths.push(nix.text("nix-store", &["--add-fixed", algorithm, file]));
        paths.push(nix.text("nix-store", &["--add-fixed", "--recursive", algorithm, file]));
    }
    paths.push(
        nix.text("nix-instantiate", &["-E", "derivation { name = \"x\"; system = \"x\"; builder = \"x\"; }"]),
    );
    let mut kinds = Vec::new();
    for path in paths {
        // Without this, the path of a .drv stands for its outputs.
        let which = if path.ends_with(".drv") { "--derivation" } else { "--json" };
        let json = nix.text("nix", &["path-info", "--json", which, &path]);
        let (_, rest) =
            json.split_once("\"ca\":\"").unwrap_or_else(|| panic!("{path} has no address: {json}"));
        let text = rest.split('"').next().expect("an end");
        assert_eq!(text.parse::<ContentAddress>().expect("a content address").to_string(), text);
        kinds.push(text.rsplit_once(':').expect("a hash").0.to_owned());
    }
    for kind in ["text:sha256", "fixed:md5", "fixed:r:sha1", "fixed:sha512", "fixed:r:sha256"] {
        assert!(kinds.iter().any(|found| found == kind), "{kind} is not among {kinds:?}");
    }
}

#[test]
fn what_is_none_is_refused() {
    let hash = sha256(b"x");
    for text in [
        String::new(),
        "fixed".to_owned(),
        "fixed:".to_owned(),
        "text:".to_owned(),
        hash.to_string(),
        format!("magic:{hash}"),
        format!("fixed:x:{hash}"),
        format!("fixed:r:r:{hash}"),
        format!("Fixed:{hash}"),
        format!(" fixed:{hash}"),
        format!("fixed:{hash} "),
        format!("fixed:{hash}\n"),
        format!("fixed:{}", hash.to_nixbase32()),
        format!("fixed:crc32:{}", hash.to_nixbase32()),
        format!("text:sha1:{}", "0".repeat(32)),
        format!("fixed:r:sha256:{}", "0".repeat(64 * 1024)),
    ] {
        assert!(text.parse::<ContentAddress>().is_err(), "{text:?} was accepted");
    }
}

/// Details of a path in the database of Nix.
fn path_info(nix: &Nix, path: &str) -> (ContentAddress, NarHash, BTreeSet<StorePath>) {
    let which = if path.ends_with(".drv") { "--derivation" } else { "--json" };
    let json = nix.text("nix", &["path-info", "--json", which, path]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let info = &json[0];
    let references = info["references"].as_array().expect("references");
    let references = references.iter().map(|path| nix.parse(path.as_str().expect("a path"))).collect();
    let text = |name: &str| info[name].as_str().unwrap_or_else(|| panic!("no {name}: {json}")).to_owned();
    (text("ca").parse().expect("an address"), text("narHash").parse().expect("a hash"), references)
}

#[test]
fn an_address_of_every_kind_is_recomputed_from_the_contents_and_names_nothing_else() {
    let nix = Nix::new();
    let file = nix.path("file");
    fs::write(&file, "a file").expect("a file");
    let file = file.to_str().expect("UTF-8");
    let mut paths = vec![nix.text("nix", &["store", "add-path", file])];
    for algorithm in ["md5", "sha1", "sha256", "sha512"] {
        paths.push(nix.text("nix-store", &["--add-fixed", algorithm, file]));
        paths.push(nix.text("nix-store", &["--add-fixed", "--recursive", algorithm, file]));
    }
    let text = "builtins.toFile \"b\" \"${builtins.toFile \"a\" \"a\"}\"";
    paths.push(nix.text("nix", &["eval", "--impure", "--raw", "--expr", text]));
    // Twice its own name, at places that no piece of input begins with.
    let script = "mkdir $out; printf 'x%s-%s' $out $out > $out/a; echo $out > $out/b";
    let own = expression("name = \"own\"; __contentAddressed = true;", script);
    paths.push(nix.full(&nix.build(&own)));
    for full in paths {
        let path = nix.parse(&full);
        let (address, nar_hash, references) = path_info(&nix, &full);
        let names = |path: &StorePath, references: &BTreeSet<StorePath>| {
            address.names(&nix.store_dir(), path, &nar_hash, references)
        };
        assert!(names(&path, &references), "{full}: {address}");
        let renamed = StorePath::parse(&format!("{}-other", path.hash())).expect("a path");
        assert!(!names(&renamed, &references), "{full}: {address}");
        let other = BTreeSet::from([renamed.clone()]);
        assert!(!names(&path, &other), "{full}: {address}");

        let addressed = Addressed::new(address.clone(), &path, &references);
        let nar = nix.bytes("nix-store", &["--dump", &full]);
        for pieces in [1, 7, 64, nar.len()] {
            let mut input = Pieces { bytes: &nar, most: pieces };
            let summary = nar::check_addressed(&mut input, &addressed);
            assert_eq!(summary.expect("the contents").bytes, nar.len() as u64, "{full}: {address}");
        }
        let at = nar.iter().rposition(|byte| byte.is_ascii_lowercase()).expect("text");
        let at = nar[..at].windows(4).rposition(|part| part == b"file").unwrap_or(at);
        let mut changed = nar.clone();
        changed[at] ^= 1;
        assert!(nar::check_addressed(&mut &changed[..], &addressed).is_err(), "{full}: {address}");
    }
}

#[test]
fn a_file_is_not_addressed_by_what_is_executable_or_a_folder() {
    let empty = sha256(b"");
    let address: ContentAddress = format!("fixed:{empty}").parse().expect("an address");
    let path = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-x").expect("a path");
    let addressed = Addressed::new(address, &path, &BTreeSet::new());
    let executable = Nar::new().tokens(&["(", "type", "regular", "executable", "", "contents", "x", ")"]);
    for (nar, right) in [
        (Nar::new().file(b""), true),
        (Nar::new().file(b"x"), false),
        (executable, false),
        (Nar::new().symlink(b"x"), false),
        (Nar::new().folder(|nar| nar), false),
        (Nar::new().folder(|nar| nar.entry(b"x", |nar| nar.file(b""))), false),
    ] {
        assert_eq!(nar::check_addressed(&mut &nar.0[..], &addressed).is_ok(), right, "{:?}", nar.0);
    }
}

/// Gives no more than so many bytes at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    most: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.most);
        self.bytes.read(&mut buffer[..most])
    }
}
