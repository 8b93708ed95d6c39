//! A queue of pushes in a folder. Whoever queues returns at once; one sender at a time takes the entries in
//! the order in which they came. An entry is durable before it is acknowledged, and stays until the server
//! has all of its paths, however often either program is killed. GC roots hold the paths meanwhile.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::causes::with_causes;
use crate::nix::{Daemon, DaemonError, Environment};

/// Folders of the queue: entries, entries that were refused, and the GC roots of both.
const WAITING: &str = "waiting";
const REFUSED: &str = "refused";
const ROOTS: &str = "roots";
/// Locked by the sender for as long as it runs.
const LOCK: &str = "sender.lock";
/// Ending of the files of entries; a draft has none.
const ENDING: &str = ".json";
/// Entries of a queue at most.
const ENTRIES_MAX: usize = 100_000;
/// Paths of one entry at most.
const PATHS_MAX: usize = 10_000;
/// Bytes of the hash by which a GC root is named in the files of Nix.
const ROOT_NAME_BYTES: usize = 20;
/// Tries to lock the queue, and the pause between them.
const LOCK_TRIES_MAX: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);
/// Time after which a draft or a root without an entry is left over: its program has ended.
const LEFT_OVER_AFTER: Duration = Duration::from_secs(3600);

/// The reason that something was not queued, or the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A file of the queue cannot be read or written.
    #[error("{}: {source}: the queue needs a folder that this user may write to", file.display())]
    Files {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The queue has no room.
    #[error(
        "{} has {ENTRIES_MAX} entries, which is the limit: is its sender running (`ondine push --send-queue {}`)?",
        .0.display(), .0.display()
    )]
    Full(PathBuf),
    /// An entry would be too large.
    #[error("{0} paths in one entry, at most {PATHS_MAX} are taken: queue them in parts")]
    TooMany(usize),
    /// Nothing was ever queued there.
    #[error("there is no queue in {}: is it the folder that the hook names? The first push makes it", .0.display())]
    Absent(PathBuf),
    /// Somebody else sends.
    #[error("another sender has the queue {}: one is enough", .0.display())]
    HasSender(PathBuf),
}

/// Paths that are to be pushed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedPush {
    /// Store paths.
    pub paths: Vec<String>,
    /// True for the derivations that make them, instead of the paths.
    #[serde(default)]
    pub derivation: bool,
    /// Words of the last refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// An entry, by the name of its file, which tells the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    name: String,
    /// Its contents; none where they cannot be read.
    pub push: Option<QueuedPush>,
}

/// A queue in a folder.
#[derive(Clone, Debug)]
pub struct PushQueue(PathBuf);

/// The right to send the entries of a queue. It ends with the process, however that ends.
#[derive(Debug)]
pub struct SenderLock(#[allow(dead_code)] File);

impl PushQueue {
    /// The queue in this folder, which is made where it is missing, for its user alone.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self, QueueError> {
        for folder in [WAITING, REFUSED, ROOTS] {
            let folder = dir.join(folder);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|source| QueueError::Files { file: folder, source })?;
        }
        let dir = dir.canonicalize().map_err(|source| QueueError::Files { file: dir.to_owned(), source })?;
        Ok(Self(dir))
    }

    /// The queue that is in this folder already.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn existing(dir: &Path) -> Result<Self, QueueError> {
        let folder = dir.join(WAITING);
        match folder.try_exists() {
            Ok(true) => Self::open(dir),
            Ok(false) => Err(QueueError::Absent(dir.to_owned())),
            Err(source) => Err(QueueError::Files { file: folder, source }),
        }
    }

    /// Adds an entry. It is durable, and its paths have GC roots, once this returns; the reason why they have
    /// none is given beside.
    ///
    /// # Errors
    /// The queue is full or cannot be written.
    pub async fn add(
        &self,
        nix: &Environment,
        paths: Vec<String>,
        derivation: bool,
    ) -> Result<Option<String>, QueueError> {
        if paths.len() > PATHS_MAX {
            return Err(QueueError::TooMany(paths.len()));
        }
        if self.names(WAITING)?.len() + self.names(REFUSED)?.len() >= ENTRIES_MAX {
            return Err(QueueError::Full(self.0.clone()));
        }
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // In the order of time; processes that queue at once tell themselves apart.
        let name = format!("{:020}-{:07}", at.as_nanos(), std::process::id());
        let unrooted = self.hold(nix, &name, &paths).await?.err();
        self.write(WAITING, &name, &QueuedPush { paths, derivation, refusal: None })?;
        Ok(unrooted)
    }

    /// The right to send.
    ///
    /// # Errors
    /// Somebody else has it.
    pub fn lock(&self) -> Result<SenderLock, QueueError> {
        let file = self.0.join(LOCK);
        let failed = |source| QueueError::Files { file: file.clone(), source };
        let lock = File::options().create(true).append(true).open(&file).map_err(failed)?;
        let mut tries = 1;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // Whoever looks for a sender has it for a moment.
                Err(TryLockError::WouldBlock) if tries < LOCK_TRIES_MAX => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => return Err(QueueError::HasSender(self.0.clone())),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            tries += 1;
        }
        self.remove_leftovers()?;
        Ok(SenderLock(lock))
    }

    /// True while somebody sends.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn has_sender(&self) -> Result<bool, QueueError> {
        let file = self.0.join(LOCK);
        match File::open(&file).map(|lock| lock.try_lock_shared()) {
            Ok(Ok(())) => Ok(false),
            Ok(Err(TryLockError::WouldBlock)) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) | Ok(Err(TryLockError::Error(source))) => Err(QueueError::Files { file, source }),
        }
    }

    /// The first entries that wait, at most so many.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn first(&self, max: usize) -> Result<Vec<QueueEntry>, QueueError> {
        self.entries(WAITING, max)
    }

    /// The entries that wait, in their order.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn waiting(&self) -> Result<Vec<QueueEntry>, QueueError> {
        self.entries(WAITING, ENTRIES_MAX)
    }

    /// The entries that were refused, each with the reason.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub fn refused(&self) -> Result<Vec<QueueEntry>, QueueError> {
        self.entries(REFUSED, ENTRIES_MAX)
    }

    /// Removes an entry whose paths the server has.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub fn remove(&self, entry: &QueueEntry) -> Result<(), QueueError> {
        self.remove_file(&self.file(WAITING, &entry.name))?;
        self.sync(WAITING)?;
        // The roots last: an entry without one could lose its paths.
        let roots = entry.push.as_ref().map_or(0, |push| push.paths.len());
        (0..roots).try_for_each(|number| self.remove_file(&self.root(&entry.name, number)))
    }

    /// Sets an entry aside that the server refuses, so that those behind it are sent.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub fn set_aside(&self, entry: &QueueEntry, reason: &str) -> Result<(), QueueError> {
        let push = entry.push.clone();
        let push = push.unwrap_or(QueuedPush { paths: Vec::new(), derivation: false, refusal: None });
        self.write(REFUSED, &entry.name, &QueuedPush { refusal: Some(reason.to_owned()), ..push })?;
        self.remove_file(&self.file(WAITING, &entry.name))
    }

    /// Has the refused entries wait again. Gives their number.
    ///
    /// # Errors
    /// The queue cannot be written.
    pub fn retry_refused(&self) -> Result<usize, QueueError> {
        let names = self.names(REFUSED)?;
        for name in &names {
            let file = self.file(REFUSED, name);
            fs::rename(&file, self.file(WAITING, name))
                .map_err(|source| QueueError::Files { file, source })?;
        }
        self.sync(WAITING)?;
        self.sync(REFUSED)?;
        Ok(names.len())
    }

    /// Sets a GC root for each path: a link in the queue that Nix knows of. The outer error is that of the
    /// queue, the inner one that of Nix.
    async fn hold(
        &self,
        nix: &Environment,
        name: &str,
        paths: &[String],
    ) -> Result<Result<(), String>, QueueError> {
        let mut links = Vec::with_capacity(paths.len());
        for (number, path) in paths.iter().enumerate() {
            let link = self.root(name, number);
            symlink(path, &link).map_err(|source| QueueError::Files { file: link.clone(), source })?;
            links.push(link);
        }
        self.sync(ROOTS)?;
        let Err(unregistered) = register(nix, &links).await else { return Ok(Ok(())) };
        // A store without a daemon belongs to whoever may write its roots.
        let written = links.iter().try_for_each(|link| register_in_files(nix, link));
        Ok(written.map_err(|_| with_causes(&unregistered)))
    }

    fn root(&self, name: &str, number: usize) -> PathBuf {
        self.0.join(ROOTS).join(format!("{name}-{number}"))
    }

    fn entries(&self, folder: &str, max: usize) -> Result<Vec<QueueEntry>, QueueError> {
        let mut entries = Vec::new();
        for name in self.names(folder)?.into_iter().take(max) {
            let file = self.file(folder, &name);
            match fs::read(&file) {
                Ok(text) => entries.push(QueueEntry { push: narinfo::json::from_slice(&text).ok(), name }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(QueueError::Files { file, source }),
            }
        }
        Ok(entries)
    }

    /// Names of the entries in a folder, in their order.
    fn names(&self, folder: &str) -> Result<Vec<String>, QueueError> {
        let mut names = self.list(folder)?;
        names.retain(|name| name.ends_with(ENDING));
        names.iter_mut().for_each(|name| name.truncate(name.len() - ENDING.len()));
        names.sort_unstable();
        Ok(names)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, QueueError> {
        let folder = self.0.join(folder);
        let failed = |source| QueueError::Files { file: folder.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    /// Writes an entry whole, and durable, or not at all.
    fn write(&self, folder: &str, name: &str, push: &QueuedPush) -> Result<(), QueueError> {
        let file = self.file(folder, name);
        let failed = |source| QueueError::Files { file: file.clone(), source };
        let text = serde_json::to_vec(push).map_err(|error| failed(error.into()))?;
        let mut draft = tempfile::NamedTempFile::new_in(self.0.join(folder)).map_err(failed)?;
        draft.write_all(&text).and_then(|()| draft.as_file().sync_all()).map_err(failed)?;
        draft.persist(&file).map_err(|error| failed(error.error))?;
        self.sync(folder)
    }

    fn sync(&self, folder: &str) -> Result<(), QueueError> {
        let folder = self.0.join(folder);
        let synced = File::open(&folder).and_then(|dir| dir.sync_all());
        synced.map_err(|source| QueueError::Files { file: folder, source })
    }

    /// Removes drafts and roots that belong to no entry, as programs leave them that are killed.
    fn remove_leftovers(&self) -> Result<(), QueueError> {
        let mut entries: HashSet<String> = self.names(WAITING)?.into_iter().collect();
        entries.extend(self.names(REFUSED)?);
        let is_old = |file: &Path| {
            let changed = fs::symlink_metadata(file).and_then(|metadata| metadata.modified());
            changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_OVER_AFTER))
        };
        let mut files: Vec<PathBuf> = Vec::new();
        for folder in [WAITING, REFUSED] {
            let drafts = self.list(folder)?.into_iter().filter(|name| !name.ends_with(ENDING));
            files.extend(drafts.map(|name| self.0.join(folder).join(name)));
        }
        let is_owned = |root: &String| root.rsplit_once('-').is_some_and(|(name, _)| entries.contains(name));
        let roots = self.list(ROOTS)?.into_iter().filter(|root| !is_owned(root));
        files.extend(roots.map(|root| self.0.join(ROOTS).join(root)));
        files.iter().filter(|file| is_old(file)).try_for_each(|file| self.remove_file(file))
    }

    fn remove_file(&self, file: &Path) -> Result<(), QueueError> {
        match fs::remove_file(file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(QueueError::Files { file: file.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    fn file(&self, folder: &str, name: &str) -> PathBuf {
        self.0.join(folder).join(format!("{name}{ENDING}"))
    }
}

/// Tells the Nix daemon of the roots.
async fn register(nix: &Environment, links: &[PathBuf]) -> Result<(), DaemonError> {
    let mut daemon = Daemon::connect(nix).await?;
    for link in links {
        daemon.add_indirect_root(link).await?;
    }
    Ok(())
}

/// The same in the files of Nix, which are read at each collection.
fn register_in_files(nix: &Environment, link: &Path) -> io::Result<()> {
    let digest = Sha256::digest(link.as_os_str().as_bytes());
    let name: String = digest.iter().take(ROOT_NAME_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let roots = nix.state_dir.join("gcroots/auto");
    fs::create_dir_all(&roots)?;
    symlink(link, roots.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(number: usize) -> QueuedPush {
        let paths = vec![format!("/nix/store/path-{number}"), format!("/nix/store/other-{number}")];
        QueuedPush { paths, derivation: number == 1, refusal: None }
    }

    async fn queue(folder: &Path) -> (PushQueue, Environment) {
        let nix = Environment {
            store_dir: narinfo::StoreDir::default(),
            state_dir: folder.join("nix"),
            log_dir: folder.join("log"),
            socket: folder.join("socket"),
        };
        let queue = PushQueue::open(&folder.join("queue")).expect("opened");
        for number in 0..3 {
            let QueuedPush { paths, derivation, .. } = push(number);
            let unrooted = queue.add(&nix, paths, derivation).await.expect("added");
            assert_eq!(unrooted, None, "the files of Nix can be written");
        }
        (queue, nix)
    }

    #[tokio::test]
    async fn entries_stay_in_their_order_with_their_roots_until_they_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (queue, nix) = queue(folder.path()).await;
        let roots = || fs::read_dir(nix.state_dir.join("gcroots/auto")).expect("made");
        let targets = || roots().filter_map(|root| root.ok()?.path().canonicalize().ok()).count();
        assert_eq!((roots().count(), targets()), (6, 0), "the paths are not there in this test");
        let first = queue.first(2).expect("read");
        assert_eq!(
            first.iter().map(|entry| entry.push.clone()).collect::<Vec<_>>(),
            [Some(push(0)), Some(push(1))]
        );
        queue.remove(&first[0]).expect("removed");
        queue.set_aside(&first[1], "no").expect("set aside");
        assert_eq!(queue.list(ROOTS).expect("read").len(), 4);
        assert_eq!(queue.waiting().expect("read")[0].push, Some(push(2)));
        let refused = queue.refused().expect("read");
        assert_eq!(refused[0].push.as_ref().and_then(|push| push.refusal.as_deref()), Some("no"));
        assert_eq!(queue.retry_refused().expect("renamed"), 1);
        let order: Vec<_> = queue.first(9).expect("read").into_iter().map(|entry| entry.name).collect();
        assert!(order.is_sorted() && order.len() == 2 && order[0] == first[1].name);
    }

    #[tokio::test]
    async fn one_sender_has_the_queue_and_what_cannot_be_read_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let (queue, _) = queue(folder.path()).await;
        assert!(!queue.has_sender().expect("read"));
        let lock = queue.lock().expect("free");
        assert!(queue.has_sender().expect("read"));
        assert!(matches!(queue.lock(), Err(QueueError::HasSender(_))));
        drop(lock);
        drop(queue.lock().expect("free again"));
        fs::write(queue.file(WAITING, "0"), "no JSON").expect("written");
        let first = queue.first(1).expect("read");
        assert_eq!(first[0].push, None);
        queue.set_aside(&first[0], "it cannot be read").expect("set aside");
        assert_eq!(queue.waiting().expect("read").len(), 3);
    }

    #[test]
    fn a_folder_without_a_queue_is_told_and_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("queue");
        assert!(matches!(PushQueue::existing(&dir), Err(QueueError::Absent(_))));
        assert!(!dir.exists());
        PushQueue::open(&dir).expect("made");
        PushQueue::existing(&dir).expect("there");
    }
}
