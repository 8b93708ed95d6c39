//! Content addresses: the text that Nix writes, in one spelling, and nothing else.

mod support;

use std::fs;

use narinfo::ContentAddress;
use support::{Nix, sha256};

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
