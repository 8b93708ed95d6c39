//! NARs that are refused: each one wrong in one way, and random damage judged by the real
//! `nix-store --restore`.

mod support;

use std::fs;
use std::io::{self, Read};

use narinfo::nar::{self, DEPTH_MAX, Error, NAME_BYTES_MAX, Summary, TARGET_BYTES_MAX};
use proptest::prelude::*;
use support::Nix;
use support::tree::trees;
use support::wire::Nar;

/// Gives one byte at a time.
struct Drip<'a>(&'a [u8]);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}

/// The verdict, which must not depend on the pieces that the bytes come in.
fn check(bytes: &[u8]) -> Result<Summary, Error> {
    let (whole, dripped) = (nar::check(&mut &bytes[..]), nar::check(&mut Drip(bytes)));
    assert_eq!(whole.as_ref().ok(), dripped.as_ref().ok());
    whole
}

#[track_caller]
fn refused(what: &str, nar: &Nar) {
    match check(&nar.0) {
        Ok(summary) => panic!("{what} was accepted: {summary:?}"),
        // It is the bytes that are wrong, and not the reading of them.
        Err(Error::Io(error)) => panic!("{what} was taken for a failure to read: {error}"),
        Err(Error::Refused(reason)) => assert!(!reason.is_empty() && reason.len() < 10_000, "{what}"),
    }
}

/// A folder with a file of each of these names, in this order.
fn named(names: &[&[u8]]) -> Nar {
    Nar::new().folder(|nar| names.iter().fold(nar, |nar, name| nar.entry(name, |nar| nar.file(b"x"))))
}

#[test]
fn whole_ones_are_counted() {
    let nar = Nar::new().folder(|nar| {
        nar.entry(b"a", |nar| nar.file(b"12345"))
            .entry(b"b", |nar| nar.folder(|nar| nar.entry(b"c", |nar| nar.symlink(b"../a"))))
            .entry(b"d", |nar| {
                nar.tokens(&["(", "type", "regular", "executable", "", "contents", "678", ")"])
            })
    });
    let expected = Summary {
        bytes: nar.0.len() as u64,
        files: 2,
        contents_bytes: 8,
        directories: 2,
        symlinks: 1,
        programs: Vec::new(),
    };
    assert_eq!(check(&nar.0).expect("a NAR"), expected);
    for (nar, what) in [
        (Nar::new().file(b""), "an empty file"),
        (Nar::new().symlink(b"/x"), "a symlink"),
        (Nar::new().folder(|nar| nar), "an empty folder"),
    ] {
        assert_eq!(check(&nar.0).expect(what).bytes, nar.0.len() as u64);
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let names: [&[u8]; 12] =
        [b".", b"..", b"/", b"a/b", b"../a", b"/etc", b"a/", b"\0", b"a\0", b"a\0b", b"", b"./a"];
    for name in names {
        refused(&format!("the name {name:?}"), &named(&[name]));
        for child in [Nar::folder as fn(Nar, fn(Nar) -> Nar) -> Nar, |nar, _| nar.symlink(b"x")] {
            let nar = Nar::new().folder(|nar| nar.entry(name, |nar| child(nar, |nar| nar)));
            refused(&format!("the name {name:?}"), &nar);
        }
    }
    for name in [&b"..."[..], b".a", b"..a", b"a..", b"\\", b"\xff", b" ", b"~", b"con", b"a:b"] {
        assert!(check(&named(&[name]).0).is_ok(), "the name {name:?}");
    }
}

#[test]
fn duplicates_and_disorder_are_refused() {
    refused("a duplicate", &named(&[b"a", b"a"]));
    refused("a duplicate further on", &named(&[b"a", b"b", b"b"]));
    refused("descending names", &named(&[b"b", b"a"]));
    refused("a name after its extension", &named(&[b"a.b", b"a"]));
    refused("an order of signed bytes", &named(&[b"\xff", b"a"]));
    refused("an order without case", &named(&[b"a", b"B"]));
    let two = |first: fn(Nar) -> Nar, second: fn(Nar) -> Nar| {
        Nar::new().folder(|nar| nar.entry(b"a", first).entry(b"a", second))
    };
    refused(
        "a symlink, then a folder of its name",
        &two(|nar| nar.symlink(b"/etc"), |nar| nar.folder(|nar| nar)),
    );
    refused(
        "a folder, then a symlink of its name",
        &two(|nar| nar.folder(|nar| nar), |nar| nar.symlink(b"/etc")),
    );
    assert!(check(&named(&[b"B", b"a", b"a.b", b"ab", b"\xff"]).0).is_ok());
}

#[test]
fn names_and_targets_have_limits() {
    assert_eq!((NAME_BYTES_MAX, TARGET_BYTES_MAX), (255, 4095));
    assert!(check(&named(&[&[b'x'; 255]]).0).is_ok());
    refused("a name of 256 bytes", &named(&[&[b'x'; 256]]));
    refused("a name of 1 MiB", &named(&[&vec![b'x'; 1 << 20]]));
    refused("a name of 2 MiB", &named(&[&vec![b'x'; 2 << 20]]));
    let deep_name = Nar::new().folder(|nar| nar.entry(&[b'x'; 256], |nar| nar.folder(|nar| nar)));
    refused("a folder's name of 256 bytes", &deep_name);
    assert!(check(&Nar::new().symlink(&[b'x'; 4095]).0).is_ok());
    for target in [&b""[..], b"\0", b"a\0b", &[b'x'; 4096], &vec![b'x'; 2 << 20]] {
        refused(&format!("a target of {} bytes", target.len()), &Nar::new().symlink(target));
        refused(
            "such a target in a folder",
            &Nar::new().folder(|nar| nar.entry(b"a", |nar| nar.symlink(target))),
        );
    }
}

#[test]
fn a_refusal_says_which_limit_it_was() {
    let reason = |nar: &Nar| check(&nar.0).expect_err("refused").to_string();
    assert!(reason(&named(&[&[b'x'; 256]])).contains("file name must have 1 to 255 bytes"));
    assert!(reason(&Nar::new().symlink(b"")).contains("target must have 1 to 4095 bytes"));
    assert!(reason(&Nar::nested(64)).contains("64"));
}

#[test]
fn depth_has_a_limit_and_a_deeper_one_does_not_break_us() {
    assert_eq!(DEPTH_MAX, 64);
    assert!(check(&Nar::nested(63).0).is_ok());
    for depth in [64, 65, 5_000, 200_000] {
        refused(&format!("a file in {depth} folders"), &Nar::nested(depth));
    }
    // All the way in, and never out again.
    let mut endless = Nar::nested(100_000);
    endless.0.truncate(endless.0.len() / 2);
    refused("a descent without end", &endless);
}

#[test]
fn padding_is_zeros() {
    for name in [&b"a"[..], b"abcdefg", b"abcdefghi"] {
        let entry = |padding| {
            let nar = Nar::new().tokens(&["(", "type", "directory", "entry", "(", "name"]);
            nar.padded_token(name, padding).tokens(&["node"]).file(b"x").tokens(&[")", ")"])
        };
        assert!(check(&entry(0).0).is_ok());
        refused("padding of a name", &entry(1));
    }
    let tokens = ["(", "type", "regular", "contents"];
    refused("padding of contents", &Nar::new().tokens(&tokens).padded_token(b"x", 1).tokens(&[")"]));
    refused(
        "padding of a target",
        &Nar::new().tokens(&["(", "type", "symlink", "target"]).padded_token(b"x", 255).tokens(&[")"]),
    );
    refused("padding of the magic", &Nar::default().padded_token(b"nix-archive-1", 1).file(b"x"));
    refused("padding of the last token", &Nar::new().tokens(&tokens).token(b"x").padded_token(b")", 1));
}

#[test]
fn nothing_may_follow_or_be_missing() {
    let whole = Nar::new()
        .folder(|nar| nar.entry(b"a", |nar| nar.file(b"12345")).entry(b"b", |nar| nar.symlink(b"x")));
    assert!(check(&whole.0).is_ok());
    for end in 0..whole.0.len() {
        refused(&format!("the first {end} bytes"), &Nar(whole.0[..end].to_vec()));
    }
    for tail in [&b"\0"[..], &[0; 8], b"x", &whole.0] {
        refused("trailing bytes", &Nar([&whole.0, tail].concat()));
    }
}

#[test]
fn what_is_no_nar_is_refused() {
    let file = ["(", "type", "regular", "contents", "x", ")"];
    for (what, nar) in [
        ("another magic", Nar::default().token(b"nix-archive-2").tokens(&file)),
        ("no magic", Nar::default().tokens(&file)),
        ("an unknown type", Nar::new().tokens(&["(", "type", "fifo", ")"])),
        ("no type", Nar::new().tokens(&["(", ")"])),
        ("two types", Nar::new().tokens(&["(", "type", "regular", "type", "symlink", "target", "x", ")"])),
        ("no contents", Nar::new().tokens(&["(", "type", "regular", ")"])),
        (
            "contents twice",
            Nar::new().tokens(&["(", "type", "regular", "contents", "x", "contents", "y", ")"]),
        ),
        (
            "a mark that is not empty",
            Nar::new().tokens(&["(", "type", "regular", "executable", "x", "contents", "x", ")"]),
        ),
        (
            "the mark twice",
            Nar::new().tokens(&[
                "(",
                "type",
                "regular",
                "executable",
                "",
                "executable",
                "",
                "contents",
                "",
                ")",
            ]),
        ),
        ("no target", Nar::new().tokens(&["(", "type", "symlink", ")"])),
        (
            "an entry without name",
            Nar::new()
                .tokens(&["(", "type", "directory", "entry", "(", "node"])
                .file(b"")
                .tokens(&[")", ")"]),
        ),
        (
            "an entry without node",
            Nar::new().tokens(&["(", "type", "directory", "entry", "(", "name", "a", ")", ")"]),
        ),
        (
            "an entry with two nodes",
            Nar::new().folder(|nar| nar.entry(b"a", |nar| nar.file(b"").tokens(&["node"]).file(b""))),
        ),
        ("an empty folder's contents", Nar::new().tokens(&["(", "type", "directory", "contents", "x", ")"])),
        ("two roots", Nar::new().file(b"").file(b"")),
        ("compressed data", Nar(b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec())),
        ("a page", Nar(b"<!DOCTYPE html><html><body>404</body></html>".to_vec())),
    ] {
        refused(what, &nar);
    }
}

#[test]
fn a_length_beyond_the_end_is_no_reason_to_reserve_memory() {
    for length in [1 << 20, 1 << 40, u64::MAX - 7, u64::MAX] {
        for opening in [
            Nar::default(),
            Nar::new(),
            Nar::new().tokens(&["(", "type", "regular", "contents"]),
            Nar::new().tokens(&["(", "type", "symlink", "target"]),
            Nar::new().tokens(&["(", "type", "directory", "entry", "(", "name"]),
        ] {
            let Nar(mut bytes) = opening;
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 64]);
            refused(&format!("a token of {length} bytes"), &Nar(bytes));
        }
    }
}

#[test]
fn a_failure_to_read_is_not_a_bad_nar() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let whole = Nar::new().file(b"12345");
    let error = nar::check(&mut whole.0[..40].chain(Broken)).expect_err("broken");
    assert!(matches!(error, Error::Io(_)), "{error:?}");
}

/// One way to damage a NAR.
#[derive(Clone, Debug)]
enum Damage {
    /// Another bit.
    Flip(prop::sample::Index, u8),
    /// A word of eight bytes more, less, or in another place.
    Repeat(prop::sample::Index),
    Remove(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    /// A byte of a length or a text made another one.
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let words = bytes.len() / 8;
        // An earlier cut can leave less than a word.
        if words == 0 {
            return;
        }
        let at = |index: &prop::sample::Index| index.index(words) * 8;
        match self {
            Self::Flip(index, bit) => bytes[index.index(words * 8)] ^= 1 << bit,
            Self::Set(index, byte) => bytes[index.index(words * 8)] = *byte,
            Self::Repeat(index) => {
                let word = bytes[at(index)..at(index) + 8].to_vec();
                bytes.splice(at(index)..at(index), word);
            }
            Self::Remove(index) => {
                bytes.drain(at(index)..at(index) + 8);
            }
            Self::Swap(first, second) => {
                for offset in 0..8 {
                    bytes.swap(at(first) + offset, at(second) + offset);
                }
            }
            Self::Cut(index) => bytes.truncate(index.index(words) * 8 + 1),
        }
    }
}

fn damages() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        3 => (index(), prop::sample::select(b"\0./()a\x01\x08\x10\xff".as_slice())).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => index().prop_map(Damage::Repeat),
        1 => index().prop_map(Damage::Remove),
        2 => (index(), index()).prop_map(|(first, second)| Damage::Swap(first, second)),
        1 => index().prop_map(Damage::Cut),
    ]
}

proptest! {
    // Each case starts a process.
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_nix_refuses_is_accepted(tree in trees(), damages in prop::collection::vec(damages(), 1..3)) {
        let nix = Nix::new();
        tree.make(&nix.path("tree"));
        let mut bytes = Vec::new();
        nar::dump(&nix.path("tree"), &mut bytes).expect("a dump");
        for damage in &damages {
            damage.apply(&mut bytes);
        }
        fs::write(nix.path("nar"), &bytes).expect("a file");
        let (ours, theirs) = (check(&bytes), nix.restores(&nix.path("nar"), &nix.path("restored")));
        prop_assert!(theirs || ours.is_err(), "Nix refuses what we accept: {:?}", ours);
    }
}
