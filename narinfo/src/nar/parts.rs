//! The parts of a NAR, each shown once in the order of the archive while it is read, with its path and the
//! place of its contents. Nothing is kept and nothing is unpacked.

use std::cell::Cell;
use std::io::{self, BufReader, Read};

use nix_archive::nar::{Error as ArchiveError, Event, decode_events_reader};

use super::{Error, within_limits};

/// A part of a NAR.
pub struct Part<'a> {
    /// Its path below the root, with slashes between the names; the root's is empty.
    pub path: &'a [u8],
    /// Its kind, and the contents.
    pub kind: PartKind<'a>,
}

/// Kind of a part.
pub enum PartKind<'a> {
    /// A directory begins; its entries follow.
    Directory,
    /// The innermost directory has no more entries.
    DirectoryEnd,
    /// A regular file.
    Regular {
        /// True if it may be executed.
        executable: bool,
        /// Its bytes.
        bytes: u64,
        /// Offset of its contents in the NAR.
        offset: u64,
        /// The contents; what is not read of them is passed over.
        contents: &'a mut dyn Read,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: &'a [u8],
    },
}

/// Reads a whole NAR and shows every part of it to `see`. Refuses what is not exactly one NAR, though parts
/// of it were shown by then.
///
/// # Errors
/// `input` fails, is no NAR, or `see` fails.
pub fn read_parts(
    input: &mut dyn Read,
    see: &mut dyn FnMut(Part<'_>) -> io::Result<()>,
) -> Result<(), Error> {
    let position = Cell::new(0);
    let mut input = Positioned { inner: BufReader::new(input), position: &position };
    let mut path: Vec<u8> = Vec::new();
    let mut refusal = None;
    let decoded = decode_events_reader(&mut input, |event| {
        if let Err(reason) = within_limits(&event) {
            refusal = Some(reason);
            return Err(ArchiveError::UnexpectedEof);
        }
        let shown = match event {
            Event::DirectoryStart { name } => {
                push(&mut path, name);
                return Ok(see(Part { path: &path, kind: PartKind::Directory })?);
            }
            Event::DirectoryEnd { .. } => see(Part { path: &path, kind: PartKind::DirectoryEnd }),
            Event::Regular { name, executable, mut contents } => {
                push(&mut path, name);
                let (bytes, offset) = (contents.size(), position.get());
                let kind = PartKind::Regular { executable, bytes, offset, contents: &mut contents };
                see(Part { path: &path, kind })
            }
            Event::Symlink { name, target } => {
                push(&mut path, name);
                see(Part { path: &path, kind: PartKind::Symlink { target } })
            }
        };
        pop(&mut path);
        Ok(shown?)
    });
    match refusal {
        Some(reason) => Err(Error::Refused(reason)),
        None => Ok(decoded?),
    }
}

fn push(path: &mut Vec<u8>, name: Option<&[u8]>) {
    let Some(name) = name else { return };
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn pop(path: &mut Vec<u8>) {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
    path.truncate(end);
}

/// Counts the bytes that were read of a buffered input.
struct Positioned<'a, 'p> {
    inner: BufReader<&'a mut dyn Read>,
    position: &'p Cell<u64>,
}

impl Read for Positioned<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.position.set(self.position.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn every_part_is_shown_in_order_with_its_path_and_the_place_of_its_contents() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("bin/empty")).expect("made");
        std::fs::write(root.join("bin/tool"), b"#!/bin/sh\n").expect("written");
        std::fs::set_permissions(root.join("bin/tool"), std::fs::Permissions::from_mode(0o755)).expect("set");
        std::fs::write(root.join("readme"), vec![b'x'; 100_000]).expect("written");
        symlink("bin/tool", root.join("tool")).expect("made");
        let mut nar = Vec::new();
        super::super::dump(&root, &mut nar).expect("a NAR");
        let mut shown = Vec::new();
        read_parts(&mut &nar[..], &mut |part| {
            let path = String::from_utf8_lossy(part.path).into_owned();
            shown.push(match part.kind {
                PartKind::Directory => format!("{path}/"),
                PartKind::DirectoryEnd => format!("{path} ends"),
                PartKind::Regular { executable, bytes, offset, contents } => {
                    // Of the larger one, only the beginning is read.
                    let mut first = vec![0; 10];
                    contents.read_exact(&mut first)?;
                    let offset = usize::try_from(offset).expect("small");
                    assert_eq!(first, nar[offset..offset + 10], "{path}");
                    format!("{path} {executable} {bytes}")
                }
                PartKind::Symlink { target } => format!("{path} -> {}", String::from_utf8_lossy(target)),
            });
            Ok(())
        })
        .expect("a NAR");
        let expected = [
            "/",
            "bin/",
            "bin/empty/",
            "bin/empty ends",
            "bin/tool true 10",
            "bin ends",
            "readme false 100000",
            "tool -> bin/tool",
            " ends",
        ];
        assert_eq!(shown, expected);
        assert!(read_parts(&mut &nar[..nar.len() - 1], &mut |_| Ok(())).is_err());
        let stopped = read_parts(&mut &nar[..], &mut |_| Err(io::Error::other("enough")));
        assert!(matches!(stopped, Err(Error::Io(error)) if error.to_string() == "enough"));
    }
}
