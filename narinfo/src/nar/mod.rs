//! NARs: the archive format that store paths are shipped and hashed in
//! (<https://nix.dev/manual/nix/latest/protocols/nix-archive>). Written from a file tree, or read to be
//! checked; never unpacked. Memory is bounded in both directions.

mod ahead;
mod count;
mod listing;
mod only_file;
mod parts;
mod programs;
mod tree;

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use nix_archive::nar::{Error as ArchiveError, Event};

use crate::content_address::{Addressed, Of, Recomputed};
use count::Counted;
pub use listing::{EntryKind, LISTING_ENTRIES_MAX, Listing, ListingEntry, name_in_json};
pub use only_file::only_file;
pub use parts::{Part, PartKind, read_parts};
use programs::ProgramCollector;
pub use programs::{PROGRAMS_MAX, programs_of};

/// Directories within directories at most.
pub const DEPTH_MAX: usize = 64;
/// Directories within directories, the outermost one counted, that every Nix unpacks: 2.34 refuses one more.
pub const DIRECTORIES_MAX: usize = 63;
/// Bytes of the least NAR that has more.
pub const TOO_DEEP_BYTES_MIN: u64 = 10_680;
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
    /// A file that is no file, directory or symlink, or that changed under our hands; or bytes that are no
    /// NAR.
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

/// Writes the NAR of the file tree at `path`, the bytes of `nix-store --dump`, and returns how many they are.
/// They come in small pieces: give it a writer that gathers them.
///
/// # Errors
/// If the tree cannot be read, has a file that no NAR can hold, or a file changes its size while it is read;
/// or if `out` fails. The bytes written by then are no NAR.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<u64, Error> {
    let mut out = Counted::new(out);
    tree::encode(path, &mut out)?;
    Ok(out.bytes())
}

/// True when the file tree at `path` has more than [`DIRECTORIES_MAX`] directories within each other. Reads
/// directories alone.
///
/// # Errors
/// If the tree cannot be read.
pub fn is_too_deep(path: &Path) -> io::Result<bool> {
    tree::is_too_deep(path)
}

/// Contents of a NAR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the whole NAR.
    pub bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes in them.
    pub contents_bytes: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names of executables and symlinks in its folder `bin`, at most [`PROGRAMS_MAX`].
    pub programs: Vec<String>,
}

/// Reads a whole NAR and refuses it unless it is exactly one, within the limits of this module.
///
/// # Errors
/// `input` fails, or is anything else.
pub fn check(input: &mut dyn Read) -> Result<Summary, Error> {
    read(input, |_| Ok(()))
}

/// The same of a NAR that must have these contents, too.
///
/// # Errors
/// `input` fails, is no NAR, or has other contents.
pub fn check_addressed(input: &mut dyn Read, addressed: &Addressed) -> Result<Summary, Error> {
    let other = || Error::Refused("its contents are not those that its path is named by".into());
    let mut recomputed = addressed.recompute().ok_or_else(other)?;
    // A file alone, which is not executable, or the NAR whatever is in it.
    let mut fits = recomputed.of == Of::Nar;
    let summary = match recomputed.of {
        Of::Nar => read(&mut Tee { input, recomputed: &mut recomputed }, |_| Ok(()))?,
        Of::File => read(input, |event| match event {
            Event::Regular { name: None, executable: false, contents } => {
                fits = true;
                std::io::copy(contents, &mut Hashed(&mut recomputed)).map(drop).map_err(ArchiveError::Io)
            }
            _ => Ok(()),
        })?,
    };
    if fits && recomputed.fits() { Ok(summary) } else { Err(other()) }
}

/// Reads a whole NAR, shows every part of it to `see`, and refuses it unless it is exactly one.
fn read(
    input: &mut dyn Read,
    mut see: impl FnMut(&mut NarEvent<'_, BufReader<Counted<&mut dyn Read>>>) -> Result<(), ArchiveError>,
) -> Result<Summary, Error> {
    let (mut summary, mut programs) = (Summary::default(), ProgramCollector::default());
    let mut refusal = None;
    let mut input = BufReader::new(Counted::new(input));
    let decoded = nix_archive::nar::decode_events_reader(&mut input, |mut event| {
        count(&mut summary, &event);
        within_limits(&event).map_err(|reason| {
            refusal = Some(reason);
            // The visitor can only stop with an error of the archive crate; which one does not matter.
            ArchiveError::UnexpectedEof
        })?;
        programs.take(&event);
        see(&mut event)
    });
    if let Some(reason) = refusal {
        return Err(Error::Refused(reason));
    }
    decoded?;
    // The decoder has seen the end of the input, so nothing that was counted is left over.
    summary.bytes = input.get_ref().bytes();
    summary.programs = programs.names;
    Ok(summary)
}

/// Hashes what is read through it.
struct Tee<'a> {
    input: &'a mut dyn Read,
    recomputed: &'a mut Recomputed,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.recomputed.update(&buffer[..read]);
        Ok(read)
    }
}

/// Hashes what is written to it.
struct Hashed<'a>(&'a mut Recomputed);

impl Write for Hashed<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type NarEvent<'a, R> = nix_archive::nar::ReadEvent<'a, R>;

fn count<R>(summary: &mut Summary, event: &NarEvent<'_, R>) {
    match event {
        Event::DirectoryStart { .. } => summary.directories += 1,
        Event::DirectoryEnd { .. } => {}
        Event::Regular { contents, .. } => {
            summary.files += 1;
            summary.contents_bytes = summary.contents_bytes.saturating_add(contents.size());
        }
        Event::Symlink { .. } => summary.symlinks += 1,
    }
}

/// Limits of file systems that the archive crate does not check. Order, duplicates, depth, padding and
/// trailing bytes are its own checks.
fn within_limits<R>(event: &NarEvent<'_, R>) -> Result<(), String> {
    let (name, target) = match event {
        Event::DirectoryStart { name } | Event::DirectoryEnd { name } | Event::Regular { name, .. } => {
            (name, None)
        }
        Event::Symlink { name, target } => (name, Some(target)),
    };
    let fits = |bytes: &[u8], most| !bytes.is_empty() && bytes.len() <= most && !bytes.contains(&0);
    if name.is_some_and(|name| !fits(name, NAME_BYTES_MAX)) {
        return Err(format!("a file name must have 1 to {NAME_BYTES_MAX} bytes and no NUL"));
    }
    if target.is_some_and(|target| !fits(target, TARGET_BYTES_MAX)) {
        return Err(format!("a symlink's target must have 1 to {TARGET_BYTES_MAX} bytes and no NUL"));
    }
    Ok(())
}
