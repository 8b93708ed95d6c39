//! The state directory: made, kept from others, and locked for one server at a time. Whoever else could open
//! the lock could hold it, and whoever could write here could put a key of their own in the place of ours.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The index.
pub const INDEX: &str = "index.sqlite";
/// The folder of the NARs.
pub const NARS: &str = "nar";
/// Folder of the keys that hosts of builders may have.
pub const KNOWN_HOSTS: &str = "known-hosts";
/// Folder of the names of drained builders.
pub const DRAINED: &str = "drained";
/// Folder of derivations that clients have sent and no Nix store has.
pub const SENT: &str = "sent";
/// The folder of what is recorded beside them.
pub const LEDGER: &str = "ledger";
/// Name of this server among those that share an index.
pub const NODE: &str = "node";
/// Stamp of an index that was closed.
pub const CLOSED: &str = "index.closed";
/// The lock of the server that runs.
pub const LOCK: &str = "lock";
/// Modes of a private directory and of a private file.
const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
/// Bits of a mode that others have.
const OTHERS_MASK: u32 = 0o077;
/// The bit with which everyone may write.
const EVERYONE_WRITES: u32 = 0o002;

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part of it cannot be opened.
    #[error("cannot use {}", path.display())]
    Use {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another server uses it.
    #[error("another server runs with the state directory {}: stop it, or give this one another --state-dir", .0.display())]
    Locked(PathBuf),
    /// A server uses it, and a command needs it for itself.
    #[error("a server runs with the state directory {}: stop it first, and start it again afterwards", .0.display())]
    Serving(PathBuf),
    /// There is none for a command.
    #[error("there is no state directory {}: name that of the server with --state-dir", .0.display())]
    Absent(PathBuf),
    /// Everyone may write to it.
    #[error(
        "everyone may write to the state directory {} (mode {mode:o}), where the signing key is: see that nobody has put anything there, and run chmod 700 on it",
        dir.display()
    )]
    Exposed {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Runs `open` on a part of the state.
///
/// # Errors
/// `open` fails; the error names the path, too.
pub fn using<T>(path: &Path, open: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, Error> {
    open(path).map_err(|source| Error::Use { path: path.to_owned(), source })
}

/// Makes the directory where it is not there, and keeps it from others. The path is absolute, since the Nix
/// daemon follows symlinks into it.
///
/// # Errors
/// If it cannot be made, or everyone may write to it.
pub fn open(dir: &Path) -> Result<PathBuf, Error> {
    let (dir, found) = using(dir, |dir| {
        DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir)?;
        Ok((dir.canonicalize()?, dir.metadata()?))
    })?;
    let (mode, owner, user) = (found.mode() & 0o7777, found.uid(), rustix::process::geteuid().as_raw());
    check(&dir)?;
    if owner != user {
        tracing::warn!(
            owner,
            user,
            "the state directory belongs to another user: run the server as that one, or chown the directory"
        );
    } else if mode & OTHERS_MASK != 0 {
        match fs::set_permissions(&dir, Permissions::from_mode(PRIVATE_DIR)) {
            Ok(()) => {
                tracing::info!("the state directory was open to others (mode {mode:o}), and is not any more")
            }
            Err(error) => {
                tracing::warn!(%error, "the state directory is open to others: run chmod 700 on it")
            }
        }
    }
    Ok(dir)
}

/// Looks whether the directory, if there is one, could be opened; changes nothing.
///
/// # Errors
/// Everyone may write to it.
pub fn check(dir: &Path) -> Result<(), Error> {
    match dir.metadata().map(|found| found.mode() & 0o7777) {
        Ok(mode) if mode & EVERYONE_WRITES != 0 => Err(Error::Exposed { dir: dir.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// Locks the directory for as long as the file is open.
///
/// # Errors
/// Another server has it locked, or the file cannot be opened.
pub fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let file = using(&path, |path| {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(PRIVATE_FILE).open(path)?;
        if file.metadata()?.mode() & OTHERS_MASK != 0 {
            file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
        }
        Ok(file)
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(Error::Use { path, source }),
    }
}

/// Opens and locks the state directory of a server that is stopped, for a command. Makes none.
///
/// # Errors
/// There is none, or a server uses it, or it cannot be opened.
pub fn take(dir: &Path) -> Result<(PathBuf, File), Error> {
    if !using(dir, |dir| dir.try_exists())? {
        return Err(Error::Absent(dir.to_owned()));
    }
    let dir = open(dir)?;
    match lock(&dir) {
        Err(Error::Locked(dir)) => Err(Error::Serving(dir)),
        other => other.map(|lock| (dir, lock)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        path.metadata().expect("it is there").mode() & 0o7777
    }

    #[test]
    fn what_others_may_enter_is_closed_to_them_and_what_everyone_may_write_to_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("below/state");
        assert_eq!(mode_of(&open(&dir).expect("made")), 0o700);
        for mode in [0o755, 0o750, 0o770] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).expect("set");
            assert_eq!(mode_of(&open(&dir).expect("opened")), 0o700, "{mode:o}");
        }
        for mode in [0o777, 0o1777, 0o702] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).expect("set");
            let refused = open(&dir).expect_err("refused").to_string();
            assert!(
                refused.contains(&format!("mode {mode:o}")) && refused.contains("chmod 700"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_lock_is_for_one_and_nobody_else_can_open_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LOCK);
        File::create(&path).expect("made");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("set");
        let locked = lock(folder.path()).expect("locked");
        assert_eq!(mode_of(&path), 0o600);
        assert!(matches!(lock(folder.path()), Err(Error::Locked(_))));
        assert!(matches!(take(folder.path()), Err(Error::Serving(_))));
        drop(locked);
        lock(folder.path()).expect("free again");
        take(folder.path()).expect("free again");
        let absent = folder.path().join("absent");
        assert!(matches!(take(&absent), Err(Error::Absent(_))) && !absent.exists());
    }
}
