//! Store paths, their hashes and store directories: nothing that is not exactly one gets past the parser.

use narinfo::{StoreDir, StorePath, StorePathError, StorePathHash};
use proptest::collection::vec;
use proptest::prelude::*;

const HASH: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5pr";

#[test]
fn a_hash_is_exactly_32_characters_of_nixs_alphabet() {
    let hash: StorePathHash = HASH.parse().expect("a hash");
    assert_eq!((hash.as_str(), hash.to_string().as_str()), (HASH, HASH));
    for letter in narinfo::NIXBASE32_ALPHABET {
        let text = char::from(*letter).to_string().repeat(32);
        assert!(text.parse::<StorePathHash>().is_ok(), "{text}");
    }
}

#[test]
fn every_other_form_of_a_hash_is_refused() {
    let with = |at: usize, text: &str| format!("{}{text}{}", &HASH[..at], &HASH[at + 1..]);
    let mut refused = vec![
        String::new(),
        HASH[1..].to_owned(),
        format!("{HASH}0"),
        HASH.to_uppercase(),
        format!("{HASH}\n"),
        format!("{HASH}\0"),
        format!(" {HASH}"),
        format!("{HASH}.narinfo"),
        format!("{HASH}-x"),
        format!("%30{}", &HASH[1..]),
        format!("%30{}", &HASH[3..]),
        "%2e%2e%2f".to_owned(),
        format!("%2e%2e%2f{}", &HASH[9..]),
        format!("%252e%252e%252f{}", &HASH[15..]),
        format!("../{}", &HASH[3..]),
        "0".repeat(64 * 1024),
        // 32 characters, but more bytes; 32 bytes, but fewer characters.
        with(5, "é"),
        format!("é{}", &HASH[2..]),
        format!("０{}", &HASH[3..]),
        format!("{}é", &HASH[..30]),
        format!("{}é", &HASH[..31]),
        format!("{HASH}%00"),
        format!("%00{}", &HASH[3..]),
    ];
    for at in [0, 15, 31] {
        for letter in ["e", "o", "t", "u", "E", "A", "/", ".", "-", "%", "\0", "\n", " ", "_", "+"] {
            refused.push(with(at, letter));
        }
    }
    for text in refused {
        let shown: String = text.chars().take(80).collect();
        let refusal = text.parse::<StorePathHash>();
        assert!(matches!(refusal, Err(StorePathError::Hash(_))), "{shown:?} was accepted");
        // What is shown of it stays short, whatever was sent.
        assert!(refusal.expect_err("refused").to_string().len() < 2_000, "{shown:?}");
    }
}

#[test]
fn a_path_shows_its_parts_again() {
    let text = format!("{HASH}-gcc-13.2+x?=_.drv");
    let path: StorePath = text.parse().expect("a path");
    assert_eq!(path.to_string(), text);
    assert_eq!((path.hash().as_str(), path.name()), (HASH, "gcc-13.2+x?=_.drv"));
    assert!(path.is_derivation());
    assert!(!StorePath::parse(&format!("{HASH}-drv")).expect("a path").is_derivation());
    let dir = StoreDir::new("/some/where").expect("a store directory");
    assert_eq!(path.in_dir(&dir), format!("/some/where/{text}"));
    assert_eq!(StorePath::parse_in(&dir, &path.in_dir(&dir)), Ok(path));
}

#[test]
fn every_other_form_of_a_path_is_refused() {
    let names = [
        "", ".", "..", ".-x", "..-x", "a/b", "../x", "a b", "a\0", "a\n", "é", "a%2f", "a~", "a\\", "a:b",
        "a!",
    ];
    let mut refused: Vec<String> = names.iter().map(|name| format!("{HASH}-{name}")).collect();
    refused.extend([
        HASH.to_owned(),
        format!("{HASH}_x"),
        format!("{HASH}x-x"),
        format!("{}-x", &HASH[1..]),
        format!("{}-x", HASH.to_uppercase()),
        format!("e{}-x", &HASH[1..]),
        format!("{HASH}-{}", "x".repeat(212)),
        format!("{HASH}-{}", "x".repeat(64 * 1024)),
        format!("/nix/store/{HASH}-x"),
        format!("é{}-x", &HASH[2..]),
        // A character of more bytes across the place where hash and name are parted, and right behind it.
        format!("{}é-x", &HASH[..31]),
        format!("{}é-x", &HASH[..30]),
        format!("{}\u{1f980}x", &HASH[..31]),
        format!("{}\u{1f980}-x", &HASH[..29]),
        format!("{HASH}é"),
        format!("{HASH}éx"),
        format!("{HASH}%2dx"),
        format!("{HASH}-%2e%2e%2f"),
        format!("{HASH}-%252e%252e%252f"),
        format!("{HASH}-x%00"),
        format!("{HASH}-x\0"),
        "\0".to_owned(),
        "é".repeat(32),
        "é".repeat(32 * 1024),
    ]);
    for text in refused {
        assert!(text.parse::<StorePath>().is_err(), "{text:?} was accepted");
    }
    assert!(StorePath::parse(&format!("{HASH}-{}", "x".repeat(211))).is_ok(), "the longest name");
}

#[test]
fn a_name_has_the_characters_of_nix_and_no_other() {
    for letter in (0..=u8::MAX).map(char::from) {
        let allowed = letter.is_ascii_alphanumeric() || "+-._?=".contains(letter);
        for name in [format!("a{letter}"), format!("a{letter}b")] {
            assert_eq!(StorePath::parse(&format!("{HASH}-{name}")).is_ok(), allowed, "{name:?}");
        }
    }
    for name in ["+", "?", "=", "_", "-", "+?=._-", "0", "Z", "libfoo++-1.0_rc1?x=y", "x.drv"] {
        assert_eq!(StorePath::parse(&format!("{HASH}-{name}")).expect("a path").name(), name);
    }
}

#[test]
fn a_path_is_directly_in_its_store() {
    let dir = StoreDir::default();
    let refused = [
        format!("/nix/store{HASH}-x"),
        format!("/nix/store//{HASH}-x"),
        format!("/nix/store/../store/{HASH}-x"),
        format!("/nix/store/{HASH}-x/"),
        format!("/nix/store/{HASH}-x/bin"),
        format!("/nix/store2/{HASH}-x"),
        format!("/gnu/store/{HASH}-x"),
        format!("nix/store/{HASH}-x"),
        format!("{HASH}-x"),
        "/nix/store".to_owned(),
        "/nix/store/".to_owned(),
        String::new(),
    ];
    for text in refused {
        assert!(StorePath::parse_in(&dir, &text).is_err(), "{text:?} was accepted");
    }
    assert!(StorePath::parse_in(&dir, &format!("/nix/store/{HASH}-x")).is_ok());
}

#[test]
fn a_store_directory_is_absolute_and_canonical() {
    assert_eq!(StoreDir::default().as_str(), "/nix/store");
    assert!(StoreDir::new("/tmp/a b/störe").is_ok());
    for text in
        ["", "/", "nix/store", "/nix/store/", "//nix", "/nix/./store", "/nix/../store", "/nix\0", "/nix\n"]
    {
        assert!(StoreDir::new(text).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn paths_are_ordered_as_their_text_is() {
    let mut paths: Vec<StorePath> = ["1", "0", "z", "a"]
        .iter()
        .flat_map(|first| ["b", "a-c", "a.c", "a"].map(|name| format!("{first}{}-{name}", &HASH[1..])))
        .map(|text| text.parse().expect("a path"))
        .collect();
    let mut texts: Vec<String> = paths.iter().map(ToString::to_string).collect();
    paths.sort();
    texts.sort();
    assert_eq!(paths.iter().map(ToString::to_string).collect::<Vec<_>>(), texts);
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in any::<String>(), at in 0..=34_usize, longer in "\\PC{0,40}") {
        // Beside any text, any text in the midst of a path, where slicing would go wrong.
        let path = format!("{HASH}-x");
        let within = format!("{}{text}{}", &path[..at], &path[at..]);
        let instead = format!("{}{longer}", &path[..at]);
        for text in [text, within, instead] {
            let (hash, path) = (text.parse::<StorePathHash>(), text.parse::<StorePath>());
            prop_assert!(hash.is_err() || hash.is_ok_and(|hash| hash.as_str() == text));
            prop_assert!(path.is_err() || path.is_ok_and(|path| path.to_string() == text));
            let _ = StoreDir::new(&text);
            let _ = StorePath::parse_in(&StoreDir::default(), &text);
            let _ = StorePath::parse_in(&StoreDir::default(), &format!("/nix/store/{text}"));
        }
    }

    #[test]
    fn every_path_shows_as_its_text(hash in vec(prop::sample::select(narinfo::NIXBASE32_ALPHABET.as_slice()), 32),
                                    name in "[a-zA-Z0-9+?=_][a-zA-Z0-9+?=._-]{0,210}") {
        let text = format!("{}-{name}", String::from_utf8(hash).expect("ASCII"));
        let path: StorePath = text.parse().expect("a path");
        prop_assert_eq!(path.to_string(), text.as_str());
        prop_assert_eq!(path.hash().to_string(), &text[..32]);
        prop_assert_eq!(path.name(), name.as_str());
    }
}
