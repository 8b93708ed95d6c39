//! Dumping file trees: byte for byte what the real `nix-store --dump` writes, or an error, and never
//! something between.

mod support;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use narinfo::nar::{self, Error};
use proptest::prelude::*;
use support::Nix;
use support::tree::trees;
use support::wire::Nar;

fn dump(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let count = nar::dump(path, &mut bytes)?;
    assert_eq!(count, bytes.len() as u64);
    Ok(bytes)
}

proptest! {
    // Each case starts three processes.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_is_dumped_as_nix_dumps_it(tree in trees()) {
        let nix = Nix::new();
        let (original, restored) = (nix.path("tree"), nix.path("restored"));
        tree.make(&original);
        let ours = dump(&original).expect("a dump");
        let theirs = nix.bytes("nix-store", &[OsStr::new("--dump"), original.as_os_str()]);
        prop_assert!(ours == theirs, "the dumps differ");
        prop_assert_eq!(nar::check(&mut ours.as_slice()).expect("a NAR").bytes, ours.len() as u64);
        fs::write(nix.path("nar"), &ours).expect("a file");
        prop_assert!(nix.restores(&nix.path("nar"), &restored), "Nix refuses our dump");
        let again = nix.bytes("nix-store", &[OsStr::new("--dump"), restored.as_os_str()]);
        prop_assert!(again == ours, "what was restored differs");
    }
}

#[test]
fn a_tree_of_very_many_files_is_dumped_as_nix_dumps_it_and_not_at_all_with_one_that_no_nar_holds() {
    let nix = Nix::new();
    let tree = nix.path("tree");
    // Around every size that is treated otherwise.
    let sizes = [0, 1, 7, 8, 3_000, 32_767, 32_768, 32_769, 262_143, 262_144, 300_000];
    for folder in ["", "a", "a/b", "a/b/c", "d"] {
        fs::create_dir_all(tree.join(folder)).expect("a folder");
        for number in 0..400_usize {
            let name = tree.join(folder).join(format!("f{number}"));
            let bytes = if number < 2 * sizes.len() { sizes[number % sizes.len()] } else { number };
            fs::write(name, vec![(number % 251) as u8; bytes]).expect("a file");
        }
        symlink("f0", tree.join(folder).join("f")).expect("a symlink");
    }
    let theirs = nix.bytes("nix-store", &[OsStr::new("--dump"), tree.as_os_str()]);
    assert!(dump(&tree).expect("a dump") == theirs, "the dumps differ");

    let _listener = UnixListener::bind(tree.join("a/b/f333-socket")).expect("a socket");
    match dump(&tree) {
        Err(Error::Refused(why)) => assert!(why.contains("tree/a/b/f333-socket"), "{why}"),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
}

#[test]
fn only_the_owners_execute_bit_counts() {
    let nix = Nix::new();
    for mode in [0o100, 0o744, 0o644, 0o011, 0o655, 0o444, 0o555] {
        let file = nix.path("file");
        fs::write(&file, "x").expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
        let theirs = nix.bytes("nix-store", &[OsStr::new("--dump"), file.as_os_str()]);
        assert!(dump(&file).expect("a dump") == theirs, "mode {mode:o}");
        fs::remove_file(&file).expect("removed");
    }
}

#[test]
fn symlinks_are_not_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("link");
    for target in ["/etc/passwd", "..", "nowhere", "link"] {
        symlink(target, &link).expect("a symlink");
        assert_eq!(dump(&link).expect("a dump"), Nar::new().symlink(target.as_bytes()).0);
        fs::remove_file(&link).expect("removed");
    }
}

#[test]
fn what_no_nar_can_hold_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = |name: &str| folder.path().join(name);
    let (fifo, socket) = (made("fifo/x"), made("socket/x"));
    fs::create_dir(made("fifo")).expect("a folder");
    fs::create_dir(made("socket")).expect("a folder");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let _listener = UnixListener::bind(&socket).expect("a socket");
    for path in
        [fifo, socket, made("fifo"), made("socket"), PathBuf::from("/dev/null"), PathBuf::from("/dev/zero")]
    {
        let error = dump(&path).expect_err("refused");
        assert!(matches!(error, Error::Refused(_)), "{}: {error:?}", path.display());
    }
    assert!(matches!(dump(&made("nothing")), Err(Error::Io(_))));
}

#[test]
fn a_tree_too_deep_for_check_is_not_dumped() {
    let folder = tempfile::tempdir().expect("a folder");
    let nested = |depth: usize| {
        let root = folder.path().join(depth.to_string());
        let deepest = (1..depth).fold(root.clone(), |path, _| path.join("d"));
        fs::create_dir_all(&deepest).expect("folders");
        fs::write(deepest.join("d"), "").expect("a file");
        root
    };
    assert_eq!(dump(&nested(63)).expect("a dump"), Nar::nested(63).0);
    assert!(matches!(dump(&nested(64)), Err(Error::Refused(_))));
}

/// A writer that changes the file as soon as a part of its contents has come.
struct Meddler<F: FnMut()> {
    change: F,
    seen: usize,
}

impl<F: FnMut()> Write for Meddler<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let before = self.seen;
        self.seen += data.len();
        if before < 4_096 && self.seen >= 4_096 {
            (self.change)();
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_its_size_meanwhile_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    let change = |length: u64| {
        OpenOptions::new()
            .write(true)
            .open(&file)
            .expect("the file")
            .set_len(length)
            .expect("another length");
    };
    for (length, fails) in
        [(0, true), (300_000, true), (499_999, true), (500_001, true), (900_000, true), (500_000, false)]
    {
        fs::write(&file, vec![7; 500_000]).expect("a file");
        let mut meddler = Meddler { change: || change(length), seen: 0 };
        let result = nar::dump(folder.path(), &mut meddler);
        assert_eq!(result.is_err(), fails, "{length} bytes: {result:?}");
        assert!(!matches!(result, Err(Error::Io(_))), "{length} bytes: {result:?}");
    }
}

#[test]
fn a_writer_that_fails_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    match nar::dump(file.path(), &mut Full) {
        Err(Error::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_need_not_be_text() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in [&b"\xff\xfe"[..], b"a\nb", b"caf\xe9"] {
        fs::write(folder.path().join(OsStr::from_bytes(name)), "").expect("a file");
    }
    let expected = Nar::new().folder(|nar| {
        nar.entry(b"a\nb", |nar| nar.file(b""))
            .entry(b"caf\xe9", |nar| nar.file(b""))
            .entry(b"\xff\xfe", |nar| nar.file(b""))
    });
    assert_eq!(dump(folder.path()).expect("a dump"), expected.0);
}

#[test]
fn a_name_that_looks_like_a_case_hack_stays_as_it_is() {
    let nix = Nix::new();
    let folder = nix.path("tree");
    fs::create_dir(&folder).expect("a folder");
    for name in ["readme", "README", "README~nix~case~hack~1"] {
        fs::write(folder.join(name), name).expect("a file");
    }
    let theirs = nix.bytes("nix-store", &[OsStr::new("--dump"), folder.as_os_str()]);
    assert!(dump(&folder).expect("a dump") == theirs, "the dumps differ");
}
