//! NARs that no client could unpack, each wrong in one way.

#[path = "../../narinfo/tests/support/wire.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod wire;

pub use wire::Nar;

/// The NARs, each with what is wrong with it.
pub fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let named = |names: &[&[u8]]| {
        Nar::new().folder(|nar| names.iter().fold(nar, |nar, name| nar.entry(name, |nar| nar.file(b"x")))).0
    };
    let padded =
        Nar::new().tokens(&["(", "type", "regular", "contents"]).padded_token(b"x", 1).tokens(&[")"]);
    vec![
        ("a dot", named(&[b"."])),
        ("two dots", named(&[b".."])),
        ("a slash", named(&[b"../x"])),
        ("a NUL", named(&[b"a\0b"])),
        ("no name", named(&[b""])),
        ("a long name", named(&[&[b'a'; 256]])),
        ("a name twice", named(&[b"a", b"a"])),
        ("disorder", named(&[b"b", b"a"])),
        ("65 folders", Nar::nested(65).0),
        ("5,000 folders", Nar::nested(5_000).0),
        ("wrong padding", padded.0),
        ("trailing bytes", [Nar::new().file(b"x").0, vec![0; 8]].concat()),
        ("two NARs", [Nar::new().file(b"x").0, Nar::new().file(b"x").0].concat()),
        ("a page", b"<html><body>Please log in</body></html>".to_vec()),
        ("an empty target", Nar::new().symlink(b"").0),
    ]
}
