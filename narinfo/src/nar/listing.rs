//! The listing of a NAR: names, kinds, sizes and places of all its files, without their contents. Compact,
//! since that of a large package has a hundred thousand entries: one node each, in the order of the archive,
//! and one text with all names.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use super::Error;
use super::parts::{PartKind, read_parts};
use super::programs::{FOLDER, PROGRAMS_MAX};

/// Entries of a listing at most; each takes about 60 bytes of memory.
pub const LISTING_ENTRIES_MAX: usize = 2_000_000;

/// The listing of a NAR.
#[derive(Debug)]
pub struct Listing {
    /// The root first; a directory before all that is in it.
    nodes: Vec<Node>,
    /// Names and targets.
    text: Vec<u8>,
}

#[derive(Debug)]
struct Node {
    name: Span,
    /// Number of the first node behind it and all that is in it.
    end: u32,
    kind: NodeKind,
}

#[derive(Debug)]
enum NodeKind {
    Directory,
    Regular { executable: bool, bytes: u64, offset: u64 },
    Symlink(Span),
}

/// A part of the text.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    bytes: u32,
}

/// An entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListingEntry<'l> {
    listing: &'l Listing,
    at: usize,
}

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'l> {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// True if it may be executed.
        executable: bool,
        /// Its bytes.
        bytes: u64,
        /// Offset of its contents in the NAR.
        offset: u64,
    },
    /// A symbolic link with this target.
    Symlink(&'l [u8]),
}

impl Listing {
    /// Reads a whole NAR.
    ///
    /// # Errors
    /// `input` fails, is no NAR, or has more than [`LISTING_ENTRIES_MAX`] entries.
    pub fn read(input: &mut dyn Read) -> Result<Self, Error> {
        let mut listing = Self { nodes: Vec::new(), text: Vec::new() };
        let mut open = Vec::new();
        read_parts(input, &mut |part| {
            let kind = match part.kind {
                PartKind::DirectoryEnd => {
                    listing.close(open.pop());
                    return Ok(());
                }
                PartKind::Directory => {
                    open.push(listing.nodes.len());
                    NodeKind::Directory
                }
                PartKind::Regular { executable, bytes, offset, .. } => {
                    NodeKind::Regular { executable, bytes, offset }
                }
                PartKind::Symlink { target } => NodeKind::Symlink(listing.keep(target)?),
            };
            let name = part.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            listing.add(name, kind)
        })?;
        listing.nodes.shrink_to_fit();
        listing.text.shrink_to_fit();
        Ok(listing)
    }

    fn add(&mut self, name: &[u8], kind: NodeKind) -> io::Result<()> {
        if self.nodes.len() == LISTING_ENTRIES_MAX {
            return Err(io::Error::other(format!("it has more than {LISTING_ENTRIES_MAX} files")));
        }
        let name = self.keep(name)?;
        let end = self.nodes.len() as u32 + 1;
        self.nodes.push(Node { name, end, kind });
        Ok(())
    }

    fn close(&mut self, directory: Option<usize>) {
        let end = self.nodes.len() as u32;
        if let Some(node) = directory.and_then(|at| self.nodes.get_mut(at)) {
            node.end = end;
        }
    }

    fn keep(&mut self, text: &[u8]) -> io::Result<Span> {
        let start = u32::try_from(self.text.len()).map_err(|_| io::Error::other("its names are too long"))?;
        self.text.extend_from_slice(text);
        Ok(Span { start, bytes: text.len() as u32 })
    }

    fn text(&self, span: Span) -> &[u8] {
        &self.text[span.start as usize..][..span.bytes as usize]
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> ListingEntry<'_> {
        ListingEntry { listing: self, at: 0 }
    }

    /// The entry of this number: see [`ListingEntry::number`].
    #[must_use]
    pub fn entry(&self, number: usize) -> Option<ListingEntry<'_>> {
        (number < self.nodes.len()).then_some(ListingEntry { listing: self, at: number })
    }

    /// Names of its programs, as of [`super::Summary`].
    #[must_use]
    pub fn programs(&self) -> Vec<String> {
        let folder = self.root().child(FOLDER.as_bytes());
        let entries = folder.into_iter().flat_map(ListingEntry::children);
        let programs = entries.filter(|entry| {
            matches!(entry.kind(), EntryKind::Symlink(_) | EntryKind::Regular { executable: true, .. })
        });
        let names = programs.filter_map(|entry| std::str::from_utf8(entry.name()).ok());
        names.take(PROGRAMS_MAX).map(str::to_owned).collect()
    }

    /// Number of entries, the root included.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.nodes.capacity() * size_of::<Node>() + self.text.capacity()
    }

    /// Writes it in the format of Nix's `.ls` files, version 1, with names as of [`name_in_json`].
    ///
    /// # Errors
    /// `out` fails.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"{\"root\":")?;
        self.root().write_json(out)?;
        out.write_all(b",\"version\":1}")
    }
}

impl<'l> ListingEntry<'l> {
    /// Number of the entry, in the order of the archive.
    #[must_use]
    pub fn number(self) -> usize {
        self.at
    }

    /// Its name; that of the root is empty.
    #[must_use]
    pub fn name(self) -> &'l [u8] {
        self.listing.text(self.node().name)
    }

    /// Its kind.
    #[must_use]
    pub fn kind(self) -> EntryKind<'l> {
        match self.node().kind {
            NodeKind::Directory => EntryKind::Directory,
            NodeKind::Regular { executable, bytes, offset } => {
                EntryKind::Regular { executable, bytes, offset }
            }
            NodeKind::Symlink(target) => EntryKind::Symlink(self.listing.text(target)),
        }
    }

    /// The entries of a directory, in the order of their names; none of anything else.
    pub fn children(self) -> impl Iterator<Item = ListingEntry<'l>> + use<'l> {
        let (listing, end) = (self.listing, self.node().end as usize);
        let mut next = self.at + 1;
        std::iter::from_fn(move || {
            let child = (next < end).then_some(ListingEntry { listing, at: next })?;
            next = child.node().end as usize;
            Some(child)
        })
    }

    /// The entry of this name in a directory.
    #[must_use]
    pub fn child(self, name: &[u8]) -> Option<ListingEntry<'l>> {
        self.children().find(|child| child.name() == name)
    }

    /// The entry at a path below this one; symlinks on the way are not followed.
    #[must_use]
    pub fn descend(self, path: &[u8]) -> Option<ListingEntry<'l>> {
        let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.try_fold(self, |entry, name| entry.child(name))
    }

    fn node(self) -> &'l Node {
        &self.listing.nodes[self.at]
    }

    fn write_json(self, out: &mut dyn Write) -> io::Result<()> {
        match self.kind() {
            EntryKind::Directory => {
                out.write_all(b"{\"entries\":{")?;
                for (at, child) in self.children().enumerate() {
                    if at > 0 {
                        out.write_all(b",")?;
                    }
                    write_text(out, child.name())?;
                    out.write_all(b":")?;
                    child.write_json(out)?;
                }
                out.write_all(b"},\"type\":\"directory\"}")
            }
            EntryKind::Regular { executable, bytes, offset } => {
                let executable = if executable { "\"executable\":true," } else { "" };
                write!(out, "{{{executable}\"narOffset\":{offset},\"size\":{bytes},\"type\":\"regular\"}}")
            }
            EntryKind::Symlink(target) => {
                out.write_all(b"{\"target\":")?;
                write_text(out, target)?;
                out.write_all(b",\"type\":\"symlink\"}")
            }
        }
    }
}

fn write_text(out: &mut dyn Write, text: &[u8]) -> io::Result<()> {
    serde_json::to_writer(out, &name_in_json(text)).map_err(io::Error::from)
}

/// Name of a file for JSON, which has no other bytes than UTF-8: each of those is a replacement character
/// and its two hexadecimal digits. So are the bytes of that character itself, which makes different names
/// different texts. Nix refuses to list such names, or, before 2.9, writes what is no JSON.
#[must_use]
pub fn name_in_json(name: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(name)
        && !text.contains(char::REPLACEMENT_CHARACTER)
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(name.len() * 2);
    let add = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            text.push(char::REPLACEMENT_CHARACTER);
            text.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
    };
    for chunk in name.utf8_chunks() {
        for (at, part) in chunk.valid().split(char::REPLACEMENT_CHARACTER).enumerate() {
            if at > 0 {
                let mut bytes = [0; 4];
                add(&mut text, char::REPLACEMENT_CHARACTER.encode_utf8(&mut bytes).as_bytes());
            }
            text.push_str(part);
        }
        add(&mut text, chunk.invalid());
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn sample() -> Listing {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("bin/empty")).expect("made");
        std::fs::write(root.join("bin/tool"), b"#!/bin/sh\n").expect("written");
        std::fs::set_permissions(root.join("bin/tool"), std::fs::Permissions::from_mode(0o755)).expect("set");
        std::fs::write(root.join("a \"b\""), b"").expect("written");
        symlink("bin/tool", root.join("tool")).expect("made");
        let mut nar = Vec::new();
        super::super::dump(&root, &mut nar).expect("a NAR");
        Listing::read(&mut &nar[..]).expect("a listing")
    }

    #[test]
    fn entries_are_found_by_their_names_and_walked_in_order() {
        let listing = sample();
        let names = |entry: ListingEntry<'_>| -> Vec<String> {
            entry.children().map(|child| String::from_utf8_lossy(child.name()).into_owned()).collect()
        };
        assert_eq!(names(listing.root()), ["a \"b\"", "bin", "tool"]);
        let bin = listing.root().child(b"bin").expect("a directory");
        assert_eq!((names(bin), bin.kind()), (vec!["empty".into(), "tool".into()], EntryKind::Directory));
        let tool = listing.root().descend(b"/bin//tool").expect("a file");
        assert!(matches!(tool.kind(), EntryKind::Regular { executable: true, bytes: 10, .. }));
        assert_eq!(listing.entry(tool.number()).expect("it").name(), b"tool");
        let link = listing.root().child(b"tool").expect("a link");
        assert_eq!((link.kind(), names(link).len()), (EntryKind::Symlink(b"bin/tool"), 0));
        assert!(listing.root().descend(b"tool/x").is_none() && listing.root().child(b"none").is_none());
        assert!(listing.entry(listing.entries()).is_none());
    }

    #[test]
    fn each_file_has_an_entry_of_its_own_whatever_its_name_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir(&root).expect("made");
        let names = [
            &b"a\xfe"[..],
            b"a\xff",
            b"a\xff\xfe",
            "a\u{fffd}".as_bytes(),
            "a\u{fffd}ff".as_bytes(),
            "\u{e9}".as_bytes(),
        ];
        for name in names {
            let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name);
            std::fs::write(root.join(name), b"x").expect("written");
        }
        let (mut nar, mut json) = (Vec::new(), Vec::new());
        super::super::dump(&root, &mut nar).expect("a NAR");
        Listing::read(&mut &nar[..]).expect("a listing").write_json(&mut json).expect("written");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        let entries = json["root"]["entries"].as_object().expect("a directory");
        assert_eq!(entries.len(), names.len(), "{entries:?}");
        for name in ["a\u{fffd}fe", "a\u{fffd}ff", "a\u{fffd}ff\u{fffd}fe", "\u{e9}"] {
            assert!(entries.contains_key(name), "{name}: {entries:?}");
        }
    }

    #[test]
    fn a_listing_is_written_as_nix_writes_it() {
        let mut json = Vec::new();
        let listing = sample();
        listing.write_json(&mut json).expect("written");
        let json = String::from_utf8(json).expect("UTF-8");
        let offset = listing.root().descend(b"bin/tool").map(ListingEntry::kind);
        let Some(EntryKind::Regular { offset, .. }) = offset else { panic!("no file") };
        assert!(json.starts_with("{\"root\":{\"entries\":{\"a \\\"b\\\"\":{\"narOffset\":"), "{json}");
        assert!(json.contains("\"empty\":{\"entries\":{},\"type\":\"directory\"}"), "{json}");
        let tool = format!("{{\"executable\":true,\"narOffset\":{offset},\"size\":10,\"type\":\"regular\"}}");
        assert!(json.contains(&tool), "{json}");
        assert!(json.ends_with("\"tool\":{\"target\":\"bin/tool\",\"type\":\"symlink\"}},\"type\":\"directory\"},\"version\":1}"), "{json}");
    }
}
