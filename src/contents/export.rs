//! Nix's export stream, as `nix-store --export` writes and `nix-store --import` reads it: each path with its
//! NAR, references and deriver. Has no signatures, so that only a user whom Nix trusts may import it.

use std::io::{self, Write};

use narinfo::{StoreDir, StorePath};

use super::blocking::NarSource;
use crate::model::PathRow;

/// Mark of a path, and that behind its NAR.
const PATH_FOLLOWS: u64 = 1;
const EXPORT_MAGIC: u64 = 0x4558_494e;
/// Mark of the end, and of a signature that is not there.
const NOTHING: u64 = 0;

/// Writes a path, which comes behind those that it refers to.
pub(super) fn write_path(
    store_dir: &StoreDir,
    row: &PathRow,
    source: &NarSource,
    out: &mut dyn Write,
) -> io::Result<()> {
    number(out, PATH_FOLLOWS)?;
    let copied = io::copy(&mut source.nar(row)?, out)?;
    if copied != row.info.nar_size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    number(out, EXPORT_MAGIC)?;
    text(out, &row.info.path.in_dir(store_dir))?;
    number(out, row.info.references.len() as u64)?;
    for reference in &row.info.references {
        text(out, &reference.in_dir(store_dir))?;
    }
    let deriver = row.info.deriver.as_ref().map(|deriver: &StorePath| deriver.in_dir(store_dir));
    text(out, &deriver.unwrap_or_default())?;
    number(out, NOTHING)
}

/// Writes the end of the stream.
pub(super) fn finish(out: &mut dyn Write) -> io::Result<()> {
    number(out, NOTHING)
}

fn number(out: &mut dyn Write, number: u64) -> io::Result<()> {
    out.write_all(&number.to_le_bytes())
}

fn text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    number(out, text.len() as u64)?;
    out.write_all(text.as_bytes())?;
    out.write_all(&[0; 7][..text.len().next_multiple_of(8) - text.len()])
}
