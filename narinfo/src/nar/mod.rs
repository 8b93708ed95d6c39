//! NARs: the archive format that store paths are shipped and hashed in
//! (<https://nix.dev/manual/nix/latest/protocols/nix-archive>). Written from a file tree, or read to be checked;
//! never unpacked. Memory is bounded in both directions.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use nix_archive::nar::{CaseHack, Error as ArchiveError, Event};

/// Directories within directories at most.
pub const DEPTH_MAX: usize = 64;
/// Bytes of a file name at most.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symlink's target at most.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Why a NAR could not be written, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system, or the other end, failed.
    #[error("reading or writing failed")]
    Io(#[source] io::Error),
    /// A file that is no file, directory or symlink, or that changed under our hands; or bytes that are no NAR.
    #[error("{0}")]
    Refused(String),
}

impl From<ArchiveError> for Error {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io(source) => Self::Io(source),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Writes the NAR of the file tree at `path`: the bytes of `nix-store --dump`.
///
/// # Errors
/// When the tree cannot be read, has a file that no NAR can hold, or a file changes its size while it is read;
/// and when `out` fails. What was written by then is no NAR.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    nix_archive::nar::encode_path(out, path, CaseHack::Disabled)?;
    Ok(())
}

/// What a NAR holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub contents_bytes: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
}

/// Reads a whole NAR and refuses it unless it is exactly one, within the limits of this module.
///
/// # Errors
/// When `input` fails, or is anything else.
pub fn check(input: &mut dyn Read) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let mut input = BufReader::new(input);
    nix_archive::nar::decode_events_reader(&mut input, |event| {
        match event {
            Event::DirectoryStart { name } => {
                summary.directories += 1;
                name_fits(name)?;
            }
            Event::DirectoryEnd { .. } => {}
            Event::Regular { name, contents, .. } => {
                summary.files += 1;
                summary.contents_bytes = summary.contents_bytes.saturating_add(contents.size());
                name_fits(name)?;
            }
            Event::Symlink { name, target } => {
                summary.symlinks += 1;
                name_fits(name)?;
                target_fits(target)?;
            }
        }
        Ok(())
    })?;
    Ok(summary)
}

fn name_fits(name: Option<&[u8]>) -> Result<(), ArchiveError> {
    match name {
        Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) => {
            Err(refused(format!("a file name must have 1 to {NAME_BYTES_MAX} bytes and no NUL")))
        }
        _ => Ok(()),
    }
}

fn target_fits(target: &[u8]) -> Result<(), ArchiveError> {
    if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) {
        return Err(refused(format!(
            "a symlink's target must have 1 to {TARGET_BYTES_MAX} bytes and no NUL"
        )));
    }
    Ok(())
}

/// The visitor can only fail with the archive crate's error.
fn refused(reason: String) -> ArchiveError {
    ArchiveError::Io(io::Error::new(io::ErrorKind::InvalidData, reason))
}
