//! A file tree on its way into a NAR: every entry is opened below its folder and never through a symlink, so
//! that nobody who moves things about meanwhile can lead out of the tree.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix_archive::nar::Encoder;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::ahead::{Ahead, Batch, CHANGED, Entry, Folder, Found, Leaf, failed};
use super::{DEPTH_MAX, DIRECTORIES_MAX, Error};

/// Bytes of a large file that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// Writes the tree at `path` into a NAR.
pub(super) fn encode(path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let root = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).map_err(Error::Io)?;
    let outside = Arc::new(Folder { opened: None, path: PathBuf::new() });
    std::thread::scope(|scope| {
        let writing = Writing { encoder: Encoder::new(out)?, buffer: vec![0; READ_BYTES] };
        let (ahead, batch) = (Ahead::new(scope), Batch::default());
        let mut walk = Walk { writing, ahead, batch, used: Vec::new(), depth: 0 };
        walk.entry(&outside, root, FileType::Unknown)?;
        walk.end()
    })
}

/// Goes through the tree in the order of the NAR; what it finds is read ahead of being written.
struct Walk<'out, 'scope, 'env> {
    writing: Writing<'out>,
    ahead: Ahead<'scope, 'env>,
    batch: Batch,
    /// Room of batches that were written.
    used: Vec<Vec<u8>>,
    depth: usize,
}

impl Walk<'_, '_, '_> {
    /// The entry of this name in `folder`.
    fn entry(&mut self, folder: &Arc<Folder>, name: CString, kind: FileType) -> Result<(), Error> {
        match kind {
            FileType::RegularFile | FileType::Symlink => {
                self.add(Entry::Leaf(Leaf { folder: Arc::clone(folder), name, kind, found: None }))
            }
            FileType::Directory => self.folder(folder, name),
            // Some file systems do not tell in their lists.
            FileType::Unknown => {
                let stat = statat(folder.at(), &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Unknown => Err(folder.refused(&name, "it is no file, folder or symlink")),
                    kind => self.entry(folder, name, kind),
                }
            }
            _ => Err(folder.refused(&name, "it is no file, folder or symlink")),
        }
    }

    fn folder(&mut self, within: &Arc<Folder>, name: CString) -> Result<(), Error> {
        // What is written tells the same, but is behind.
        if self.depth == DEPTH_MAX {
            return Err(within.refused(&name, "it has folders within folders without end"));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
        let opened = openat(within.at(), &name, flags, Mode::empty()).map_err(failed)?;
        let entries = list(&opened)?;
        let path = within.path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        self.add(Entry::FolderStart(within.opened.as_ref().map(|_| name)))?;
        let folder = Arc::new(Folder { opened: Some(opened), path });
        self.depth += 1;
        for (name, kind) in entries {
            self.entry(&folder, name, kind)?;
        }
        self.depth -= 1;
        self.add(Entry::FolderEnd)
    }

    fn add(&mut self, entry: Entry) -> Result<(), Error> {
        if self.batch.add(entry) { self.pass_on() } else { Ok(()) }
    }

    fn pass_on(&mut self) -> Result<(), Error> {
        let fresh = Batch::new(self.used.pop().unwrap_or_default());
        let next = self.ahead.give(std::mem::replace(&mut self.batch, fresh))?;
        next.map_or(Ok(()), |next| self.write(next))
    }

    fn write(&mut self, batch: Batch) -> Result<(), Error> {
        let Batch { entries, contents, .. } = batch;
        self.writing.write(entries, &contents)?;
        self.used.push(contents);
        Ok(())
    }

    fn end(mut self) -> Result<(), Error> {
        self.pass_on()?;
        while let Some(next) = self.ahead.next()? {
            self.write(next)?;
        }
        self.writing.encoder.finish()?;
        Ok(())
    }
}

/// True if folders are nested deeper than every Nix accepts.
pub(super) fn is_too_deep(path: &Path) -> io::Result<bool> {
    match open_folder(CWD, path) {
        Ok(folder) => is_deeper(&folder, DIRECTORIES_MAX - 1),
        // A file, or a symlink.
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// True if more than so many folders are nested below `folder`.
fn is_deeper(folder: &OwnedFd, most: usize) -> io::Result<bool> {
    for entry in Dir::read_from(folder.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        let may_be_folder = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if !may_be_folder || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        if most == 0 {
            return Ok(true);
        }
        // Its own name and its dot: where a file system counts those of folders within it, there are none.
        if stat.st_nlink != 2 && is_deeper(&open_folder(folder, name)?, most - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_folder(within: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
    openat(within, name, flags, Mode::empty())
}

/// The names in a folder and what they are, in the order of a NAR.
fn list(folder: &OwnedFd) -> Result<Vec<(CString, FileType)>, Error> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder.as_fd()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

/// Writes what was read.
struct Writing<'out> {
    encoder: Encoder<&'out mut dyn Write>,
    buffer: Vec<u8>,
}

impl Writing<'_> {
    fn write(&mut self, entries: Vec<Entry>, contents: &[u8]) -> Result<(), Error> {
        for entry in entries {
            match entry {
                Entry::FolderStart(name) => {
                    self.encoder.start_directory(name.as_ref().map(|name| name.to_bytes()))?;
                }
                Entry::FolderEnd => self.encoder.end_directory()?,
                Entry::Leaf(mut leaf) => self.leaf(leaf.found.take(), &leaf, contents)?,
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        found: Option<Result<Found, Error>>,
        leaf: &Leaf,
        contents: &[u8],
    ) -> Result<(), Error> {
        let name = leaf.nar_name();
        match found.transpose()? {
            Some(Found::Small { executable, contents: part }) => {
                Ok(self.encoder.regular(name, executable, &contents[part])?)
            }
            Some(Found::Large { executable, file, bytes }) => self.large(leaf, executable, &file, bytes),
            Some(Found::Symlink(target)) => Ok(self.encoder.symlink(name, target.to_bytes())?),
            None => Err(leaf.folder.refused(&leaf.name, "it was not read")),
        }
    }

    fn large(&mut self, leaf: &Leaf, executable: bool, file: &OwnedFd, bytes: u64) -> Result<(), Error> {
        let mut contents = self.encoder.start_regular(leaf.nar_name(), executable, bytes)?;
        let mut left = bytes;
        while left > 0 {
            let got = read(file, &mut self.buffer)?;
            // Nothing more, or more than there was to be.
            if got == 0 || got as u64 > left {
                break;
            }
            contents.write_all(&self.buffer[..got]).map_err(Error::Io)?;
            left -= got as u64;
        }
        if left == 0 && read(file, &mut self.buffer)? == 0 {
            return Ok(contents.finish()?);
        }
        drop(contents);
        Err(leaf.folder.refused(&leaf.name, CHANGED))
    }
}

/// Reads some bytes; none at the end.
fn read(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Error> {
    loop {
        match rustix::io::read(file, &mut *buffer) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(failed),
        }
    }
}
