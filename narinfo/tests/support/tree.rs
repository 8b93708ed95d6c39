//! Random file trees, made on disk: odd names, symlinks, executables, empty folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// A file, symlink or folder.
#[derive(Clone, Debug)]
pub enum Tree {
    File { contents: Vec<u8>, executable: bool },
    Symlink(Vec<u8>),
    Folder(BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    /// Makes it at `path`, where nothing is yet.
    pub fn make(&self, path: &Path) {
        match self {
            Self::File { contents, executable } => {
                fs::write(path, contents).expect("a file");
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
            }
            Self::Symlink(target) => symlink(OsStr::from_bytes(target), path).expect("a symlink"),
            Self::Folder(children) => {
                fs::create_dir(path).expect("a folder");
                for (name, child) in children {
                    child.make(&path.join(OsStr::from_bytes(name)));
                }
            }
        }
    }
}

/// Any name that a file can have, often of the characters that store paths have.
fn names() -> impl Strategy<Value = Vec<u8>> {
    let odd = vec(prop::sample::select(b"+?=._-aA1 ~\n\\\"'\x7f\x80\xc3\xff".as_slice()), 1..12);
    let any = vec(any::<u8>().prop_filter("no separator", |b| *b != 0 && *b != b'/'), 1..24);
    let long = Just(vec![b'x'; 255]);
    prop_oneof![5 => odd, 3 => any, 1 => long].prop_filter("a name", |name| name != b"." && name != b"..")
}

/// Contents of every length around the padding, and some beyond a buffer.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => vec(any::<u8>(), 0..40), 1 => (8_000_usize..70_000).prop_map(|n| vec![7; n])]
}

/// Any tree that a NAR can hold.
pub fn trees() -> impl Strategy<Value = Tree> {
    let target = vec(any::<u8>().prop_filter("no NUL", |b| *b != 0), 1..60);
    let leaf = prop_oneof![
        3 => (contents(), any::<bool>()).prop_map(|(contents, executable)| Tree::File { contents, executable }),
        1 => target.prop_map(Tree::Symlink),
        1 => Just(Tree::Folder(BTreeMap::new())),
    ];
    leaf.prop_recursive(4, 24, 6, |child| btree_map(names(), child, 0..6).prop_map(Tree::Folder))
}
