//! Hashes and their spellings, against the real Nix.

mod support;

use std::fs;

use narinfo::NarHash;
use proptest::prelude::*;
use support::{Nix, expression, sha256};

#[test]
fn the_spellings_are_those_of_nix() {
    let nix = Nix::new();
    let mut hashes =
        vec![[0; 32], [0xff; 32], core::array::from_fn(|i| u8::try_from(i * 7 % 256).expect("a byte"))];
    hashes.push(*sha256(b"").as_bytes());
    hashes.extend((0..32).map(|at| core::array::from_fn(|i| u8::from(i == at) << (at % 8))));
    let hashes: Vec<NarHash> = hashes.into_iter().map(NarHash::from_bytes).collect();
    let all = |form: &str| {
        let mut arguments: Vec<String> = ["hash", form, "--type", "sha256"].map(str::to_owned).into();
        arguments.extend(hashes.iter().map(NarHash::to_hex));
        nix.text("nix", &arguments).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (base32, base16, sri) = (all("to-base32"), all("to-base16"), all("to-sri"));
    for (at, hash) in hashes.iter().enumerate() {
        assert_eq!(hash.to_nixbase32(), base32[at]);
        assert_eq!(hash.to_hex(), base16[at]);
        assert_eq!(hash.to_string(), format!("sha256:{}", base32[at]));
        assert_eq!(NarHash::from_nixbase32(&base32[at]), Ok(*hash));
        assert_eq!(NarHash::from_hex(&base16[at]), Ok(*hash));
        assert_eq!(sri[at].parse(), Ok(*hash));
        assert_eq!(format!("sha256:{}", base16[at]).parse(), Ok(*hash));
        assert_eq!(format!("sha256:{}", base32[at]).parse(), Ok(*hash));
    }
}

#[test]
fn the_hash_of_a_file_has_nixs_spellings_and_nix_reads_ours() {
    let nix = Nix::new();
    let file = nix.path("file");
    for contents in [&b""[..], b"hello", &[0xff; 10_000]] {
        fs::write(&file, contents).expect("a file");
        let hash = sha256(contents);
        let flat = |more: &[&str]| {
            let arguments =
                [&["--type", "sha256", "--flat"], more, &[file.to_str().expect("UTF-8")]].concat();
            nix.text("nix-hash", &arguments)
        };
        assert_eq!(flat(&["--base32"]), hash.to_nixbase32());
        // Base 16 is what it writes unless told otherwise.
        assert_eq!(flat(&[]), hash.to_hex());
        let sri = nix.text("nix", &["hash", "file", "--sri", file.to_str().expect("UTF-8")]);
        assert_eq!(sri.parse(), Ok(hash));
        // The other way: each of our spellings becomes each of Nix's.
        for ours in
            [hash.to_string(), hash.to_nixbase32(), hash.to_hex(), format!("sha256:{}", hash.to_hex())]
        {
            let nixs = |form: &str| nix.text("nix", &["hash", form, "--type", "sha256", &ours]);
            assert_eq!(nixs("to-base16"), hash.to_hex(), "{ours}");
            assert_eq!(nixs("to-base32"), hash.to_nixbase32(), "{ours}");
            assert_eq!(nixs("to-sri"), sri, "{ours}");
        }
    }
}

#[test]
fn a_refusal_shows_the_text_that_was_given() {
    for text in ["sha256:abc", "sha256-abc", "abc", "sha512:abc"] {
        let shown = text.parse::<NarHash>().expect_err("no hash").to_string();
        assert!(shown.starts_with(&format!("{text:?} is not")), "{shown}");
    }
}

#[test]
fn the_hash_of_our_nar_is_nixs_hash_of_the_path() {
    let nix = Nix::new();
    let script =
        "mkdir -p $out/bin $out/empty; echo hello > $out/bin/x; chmod +x $out/bin/x; ln -s x $out/bin/y";
    let path = nix.full(&nix.build(&expression("name = \"tree\";", script)));
    let mut nar = Vec::new();
    let bytes = narinfo::nar::dump(path.as_ref(), &mut nar).expect("a dump");
    let hash = sha256(&nar);
    assert_eq!(hash.to_nixbase32(), nix.text("nix", &["hash", "path", "--base32", &path]));
    assert_eq!(nix.text("nix", &["hash", "path", &path]).parse(), Ok(hash));
    assert_eq!(hash.to_hex(), nix.text("nix-hash", &["--type", "sha256", &path]));
    assert_eq!(hash.to_nixbase32(), nix.text("nix-hash", &["--type", "sha256", "--base32", &path]));
    assert_eq!(hash.to_string(), nix.text("nix-store", &["-q", "--hash", &path]));
    assert_eq!(bytes.to_string(), nix.text("nix-store", &["-q", "--size", &path]));
}

#[test]
fn what_is_no_sha_256_is_refused() {
    let hash = sha256(b"x");
    let (base32, hex) = (hash.to_nixbase32(), hash.to_hex());
    let refused = [
        String::new(),
        "sha256:".to_owned(),
        "sha256-".to_owned(),
        base32.clone(),
        hex.clone(),
        format!("sha256:{}", &base32[1..]),
        format!("sha256:{base32}0"),
        format!("sha256:{}", base32.to_uppercase()),
        // The first character has only its lowest bit.
        format!("sha256:2{}", &base32[1..]),
        format!("sha256:z{}", &base32[1..]),
        format!("sha256:e{}", &base32[1..]),
        format!("sha256:{}", &hex[2..]),
        format!("sha256:{hex}00"),
        format!("sha256:g{}", &hex[1..]),
        format!("sha256:+{}", &hex[1..]),
        format!("sha256:{base32}\n"),
        format!(" sha256:{base32}"),
        format!("SHA256:{base32}"),
        format!("sha1:{base32}"),
        format!("sha512:{base32}"),
        format!("md5:{hex}"),
        format!("sha256-{base32}"),
        "sha256-AAAA".to_owned(),
        format!("sha256:{}", "0".repeat(64 * 1024)),
        format!("sha256:é{}", &base32[2..]),
    ];
    for text in refused {
        assert!(text.parse::<NarHash>().is_err(), "{text:?} was accepted");
    }
}

proptest! {
    #[test]
    fn every_spelling_parses_to_the_same_hash(bytes in any::<[u8; 32]>()) {
        let hash = NarHash::from_bytes(bytes);
        prop_assert_eq!(hash.to_string().parse(), Ok(hash));
        prop_assert_eq!(NarHash::from_hex(&hash.to_hex()), Ok(hash));
        prop_assert_eq!(NarHash::from_nixbase32(&hash.to_nixbase32()), Ok(hash));
    }
}
