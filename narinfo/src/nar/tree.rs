//! A file tree on its way into a NAR: every entry is opened below its folder and never through a symlink, so that nobody who
//! moves things about meanwhile can lead out of the tree. Few calls for each small file, since a tree may have very many.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix_archive::nar::Encoder;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};

use super::Error;

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1024;
/// Owner-execute alone makes a file executable, as in Nix.
const EXECUTABLE: u32 = 0o100;

/// Writes the tree at `path` into a NAR.
pub(super) fn encode(path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let root = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).map_err(Error::Io)?;
    let mut walk = Walk { encoder: Encoder::new(out)?, path: path.to_owned(), buffer: vec![0; READ_BYTES] };
    walk.entry(CWD, &root, None, FileType::Unknown)?;
    walk.encoder.finish()?;
    Ok(())
}

struct Walk<'o> {
    encoder: Encoder<&'o mut dyn Write>,
    /// Where it is, for people.
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// What is called `entry` in `folder`; the root of a NAR has no name in it.
    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        entry: &CStr,
        name: Option<&[u8]>,
        kind: FileType,
    ) -> Result<(), Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match kind {
            // Not for ever, should it have become a pipe meanwhile.
            FileType::RegularFile => self
                .file(openat(folder, entry, flags | OFlags::NONBLOCK, Mode::empty()).map_err(failed)?, name),
            FileType::Directory => self.folder(
                openat(folder, entry, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?,
                name,
            ),
            FileType::Symlink => {
                let target = readlinkat(folder, entry, Vec::new()).map_err(failed)?;
                Ok(self.encoder.symlink(name, target.as_bytes())?)
            }
            // Some file systems do not tell in their lists.
            FileType::Unknown => {
                let stat = statat(folder, entry, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Unknown => Err(self.refused("it is no file, folder or symlink")),
                    kind => self.entry(folder, entry, name, kind),
                }
            }
            _ => Err(self.refused("it is no file, folder or symlink")),
        }
    }

    fn folder(&mut self, folder: OwnedFd, name: Option<&[u8]>) -> Result<(), Error> {
        self.encoder.start_directory(name)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (entry, kind) in entries {
            self.path.push(OsStr::from_bytes(entry.to_bytes()));
            self.entry(folder.as_fd(), &entry, Some(entry.to_bytes()), kind)?;
            self.path.pop();
        }
        Ok(self.encoder.end_directory()?)
    }

    fn file(&mut self, file: OwnedFd, name: Option<&[u8]>) -> Result<(), Error> {
        let stat = fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.refused("it became something else while it was read"));
        }
        let executable = stat.st_mode & EXECUTABLE != 0;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let changed = "it changed its size while it was read";
        // One byte more than there should be: a file that is as long as it says comes in one call, and its end with it.
        if let Some(small) = usize::try_from(bytes).ok().filter(|bytes| *bytes < READ_BYTES) {
            if read(&file, &mut self.buffer[..=small], small)? != small {
                return Err(self.refused(changed));
            }
            return Ok(self.encoder.regular(name, executable, &self.buffer[..small])?);
        }
        let mut contents = self.encoder.start_regular(name, executable, bytes)?;
        let mut left = bytes;
        while left > 0 {
            let got = read(&file, &mut self.buffer, 1)?;
            // Nothing more, or more than there was to be.
            if got == 0 || got as u64 > left {
                break;
            }
            contents.write_all(&self.buffer[..got]).map_err(Error::Io)?;
            left -= got as u64;
        }
        if left == 0 && read(&file, &mut self.buffer, 1)? == 0 {
            return Ok(contents.finish()?);
        }
        drop(contents);
        Err(self.refused(changed))
    }

    fn refused(&self, why: &str) -> Error {
        Error::Refused(format!("{}: {why}", self.path.display()))
    }
}

/// Reads until there are `enough` bytes in the buffer, or the file ends.
fn read(file: &OwnedFd, buffer: &mut [u8], enough: usize) -> Result<usize, Error> {
    let mut filled = 0;
    loop {
        match rustix::io::read(file, &mut buffer[filled..]) {
            Ok(0) => return Ok(filled),
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
        if filled >= enough {
            return Ok(filled);
        }
    }
}

fn failed(error: rustix::io::Errno) -> Error {
    Error::Io(error.into())
}
