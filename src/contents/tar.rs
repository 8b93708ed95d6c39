//! Tar files of store paths, the same each time: no owners, no times, entries in the order of the NAR. The
//! headers are those of GNU tar, which every tar reads, with its entries for long names.

use std::io::{self, Read, Write};

use narinfo::nar::{self, PartKind, read_parts};
use tar::{EntryType, Header};

/// Bytes of a block.
const BLOCK_BYTES: usize = 512;
/// Bytes of a name within a header at most.
const NAME_BYTES_MAX: usize = 100;
/// The name of an entry that holds a long one.
const LONG_NAME: &[u8] = b"././@LongLink";
/// Unix seconds of every entry, as in the Nix store.
const MODIFIED_AT: u64 = 1;
/// Modes. Directories may be written to by their owner, unlike those of Nix, so that every tar can unpack
/// them without privileges, and rm remove them.
const DIRECTORY_MODE: u32 = 0o755;
const EXECUTABLE_MODE: u32 = 0o555;
const FILE_MODE: u32 = 0o444;
const SYMLINK_MODE: u32 = 0o777;

/// Writes the files of a NAR as those of `root`, an absolute path.
pub(super) fn write_path(root: &str, nar: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    let root = root.trim_start_matches('/');
    let written = read_parts(nar, &mut |part| {
        let mut name = root.as_bytes().to_vec();
        if !part.path.is_empty() {
            name.push(b'/');
            name.extend_from_slice(part.path);
        }
        match part.kind {
            PartKind::DirectoryEnd => Ok(()),
            PartKind::Directory => {
                name.push(b'/');
                entry(out, &name, EntryType::Directory, DIRECTORY_MODE, 0, &[])
            }
            PartKind::Symlink { target } => entry(out, &name, EntryType::Symlink, SYMLINK_MODE, 0, target),
            PartKind::Regular { executable, bytes, contents, .. } => {
                let mode = if executable { EXECUTABLE_MODE } else { FILE_MODE };
                entry(out, &name, EntryType::Regular, mode, bytes, &[])?;
                if io::copy(contents, out)? != bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                pad(out, bytes)
            }
        }
    });
    written.map_err(|error| match error {
        nar::Error::Io(error) => error,
        refused @ nar::Error::Refused(_) => io::Error::other(refused),
    })
}

/// Writes a file with these contents.
pub(super) fn write_file(name: &str, contents: &[u8], out: &mut dyn Write) -> io::Result<()> {
    begin_file(name, contents.len() as u64, out)?;
    out.write_all(contents)?;
    pad(out, contents.len() as u64)
}

/// Begins a file of so many bytes, which are to follow, with [`pad`] behind them.
pub(super) fn begin_file(name: &str, bytes: u64, out: &mut dyn Write) -> io::Result<()> {
    entry(out, name.as_bytes(), EntryType::Regular, FILE_MODE, bytes, &[])
}

/// Fills the last block of a file.
pub(super) fn pad(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let rest = (bytes % BLOCK_BYTES as u64) as usize;
    if rest == 0 { Ok(()) } else { out.write_all(&[0; BLOCK_BYTES][rest..]) }
}

/// Writes the end of the file.
pub(super) fn finish(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES])
}

fn entry(
    out: &mut dyn Write,
    name: &[u8],
    kind: EntryType,
    mode: u32,
    bytes: u64,
    target: &[u8],
) -> io::Result<()> {
    long(out, EntryType::GNULongLink, target)?;
    long(out, EntryType::GNULongName, name)?;
    header(out, name, kind, mode, bytes, target)
}

/// An entry that holds the name or target of the next one, where that is too long for its header.
fn long(out: &mut dyn Write, kind: EntryType, text: &[u8]) -> io::Result<()> {
    if text.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let bytes = text.len() as u64 + 1;
    header(out, LONG_NAME, kind, 0o644, bytes, &[])?;
    out.write_all(text)?;
    out.write_all(&[0])?;
    pad(out, bytes)
}

fn header(
    out: &mut dyn Write,
    name: &[u8],
    kind: EntryType,
    mode: u32,
    bytes: u64,
    target: &[u8],
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MODIFIED_AT);
    header.set_size(bytes);
    let fields = header.as_old_mut();
    let fill = |field: &mut [u8], text: &[u8]| {
        let bytes = text.len().min(field.len());
        field[..bytes].copy_from_slice(&text[..bytes]);
    };
    fill(&mut fields.name, name);
    fill(&mut fields.linkname, target);
    header.set_cksum();
    out.write_all(header.as_bytes())
}
