//! Resolution of a path below a store path: symlinks are followed as far as they stay in the closure of the
//! path that was asked for, and nowhere else. Reads listings and the index alone.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use narinfo::nar::{EntryKind, Listing, ListingEntry};
use narinfo::{NarHash, StorePath, StorePathHash};

use super::closure::CLOSURE_PATHS_MAX;
use super::{Contents, Error};
use crate::escape::Line;
use crate::nearest::similar;

/// Symlinks on the way to a file at most, as on Linux.
const SYMLINKS_MAX: usize = 40;
/// Names of a directory that are looked through for one that is meant, at most.
const SIBLINGS_MAX: usize = 10_000;

/// A file or directory of a served path.
#[derive(Clone, Debug)]
pub struct ResolvedFile {
    /// The path that it is in, perhaps another one than was asked for.
    pub path: StorePath,
    /// The NAR of that.
    pub nar: NarHash,
    /// The listing of that.
    pub listing: Arc<Listing>,
    /// Number of its entry.
    pub entry: usize,
}

/// Why a path leads to no file.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such file.
    #[error("no such file: {within} has no {}{}", Line(.missing), suggestion(.similar.as_deref()))]
    NotFound {
        /// The directory.
        within: String,
        /// The name that is not in it.
        missing: String,
        /// A name in it that is meant perhaps.
        similar: Option<String>,
    },
    /// Something else than a directory has no files in it.
    #[error("{0} is a file, and no directory")]
    NotDirectory(String),
    /// A symlink leads to something else than a path of the closure.
    #[error(
        "refused: the symlink {link} leads to {target}, which is not in the closure of the path that was asked for"
    )]
    Leaves {
        /// The symlink.
        link: String,
        /// Its target.
        target: String,
    },
    /// Symlinks lead to each other.
    #[error("refused: more than {SYMLINKS_MAX} symlinks, or such that lead to each other")]
    TooManySymlinks,
    /// Something on the way cannot be read.
    #[error(transparent)]
    Contents(#[from] Error),
}

/// The way to a file.
struct PathWalk<'c> {
    contents: &'c Contents,
    /// The path that was asked for.
    start: StorePathHash,
    /// The path that the walk is in; `None` in the store directory, between two of them.
    within: Option<Within>,
    /// Names that are still to be gone to.
    names: VecDeque<Vec<u8>>,
    symlinks: usize,
    /// The latest symlink and its target.
    latest: Option<(String, String)>,
}

struct Within {
    path: StorePath,
    nar: NarHash,
    listing: Arc<Listing>,
    /// Numbers of the entries from the root to where the walk is.
    trail: Vec<usize>,
}

impl Contents {
    /// The file at `path` below a served store path. Neither `.` nor `..` may be in it.
    ///
    /// # Errors
    /// There is none, a symlink leaves the closure, or the contents cannot be read.
    pub async fn resolve(
        &self,
        start: &StorePath,
        nar: NarHash,
        path: &[u8],
    ) -> Result<ResolvedFile, ResolveError> {
        let mut walk = PathWalk {
            contents: self,
            start: start.hash(),
            within: None,
            names: names(path).collect(),
            symlinks: 0,
            latest: None,
        };
        walk.enter(start.clone(), nar).await?;
        while let Some(name) = walk.names.pop_front() {
            walk.step(&name).await?;
        }
        let Some(Within { path, nar, listing, trail }) = walk.within else { return Err(walk.leaves()) };
        Ok(ResolvedFile { path, nar, listing, entry: trail.last().copied().unwrap_or_default() })
    }

    /// True if a path is in the closure of another one, which is served.
    async fn is_in_closure(&self, of: StorePathHash, wanted: &StorePath) -> Result<bool, Error> {
        let (mut seen, mut next) = (BTreeSet::from([of]), VecDeque::from([of]));
        while let Some(hash) = next.pop_front() {
            let Some(hit) = self.0.index.find(hash).await? else { continue };
            if hit.row.info.path == *wanted || hit.row.info.references.contains(wanted) {
                return Ok(true);
            }
            let references = hit.row.info.references.iter().map(StorePath::hash);
            next.extend(references.filter(|reference| seen.insert(*reference)));
            if seen.len() > CLOSURE_PATHS_MAX {
                break;
            }
        }
        Ok(false)
    }
}

impl ResolvedFile {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> EntryKind<'_> {
        self.listing.entry(self.entry).map_or(EntryKind::Directory, |entry| entry.kind())
    }

    /// Its name; that of the store path, without its hash, for the root.
    #[must_use]
    pub fn name(&self) -> String {
        match self.listing.entry(self.entry).map(|entry| entry.name()) {
            Some(name) if !name.is_empty() => String::from_utf8_lossy(name).into_owned(),
            _ => self.path.name().to_owned(),
        }
    }
}

impl PathWalk<'_> {
    /// Goes to the root of a store path.
    async fn enter(&mut self, path: StorePath, nar: NarHash) -> Result<(), ResolveError> {
        let listing = self.contents.listing(nar).await?;
        self.within = Some(Within { path, nar, listing, trail: vec![0] });
        self.follow(0)
    }

    async fn step(&mut self, name: &[u8]) -> Result<(), ResolveError> {
        let Some(within) = &mut self.within else { return self.enter_named(name).await };
        match name {
            b"" | b"." => return Ok(()),
            b".." => {
                within.trail.pop();
                if within.trail.is_empty() {
                    self.within = None;
                }
                return Ok(());
            }
            _ => {}
        }
        let here = within.trail.last().and_then(|at| within.listing.entry(*at));
        let Some(here) = here.filter(|here| here.kind() == EntryKind::Directory) else {
            return Err(ResolveError::NotDirectory(within.shown()));
        };
        let Some(child) = here.child(name) else {
            return Err(not_found(within, here, name));
        };
        let number = child.number();
        within.trail.push(number);
        self.follow(number)
    }

    /// Enters the store path of this base name, if it is in the closure.
    async fn enter_named(&mut self, name: &[u8]) -> Result<(), ResolveError> {
        let path = std::str::from_utf8(name).ok().and_then(|name| StorePath::parse(name).ok());
        let Some(path) = path else { return Err(self.leaves()) };
        if !self.contents.is_in_closure(self.start, &path).await? {
            return Err(self.leaves());
        }
        let hit = self.contents.0.index.find(path.hash()).await.map_err(Error::from)?;
        let nar = hit.ok_or(Error::Evicted)?.row.info.nar_hash;
        Box::pin(self.enter(path, nar)).await
    }

    /// Goes on to the target of the entry of this number, the last of the trail, if it is a symlink.
    fn follow(&mut self, number: usize) -> Result<(), ResolveError> {
        let Some(within) = &mut self.within else { return Ok(()) };
        let Some(EntryKind::Symlink(target)) = within.listing.entry(number).map(|entry| entry.kind()) else {
            return Ok(());
        };
        let target = target.to_vec();
        let link = within.shown();
        self.latest = Some((link, String::from_utf8_lossy(&target).into_owned()));
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_MAX {
            return Err(ResolveError::TooManySymlinks);
        }
        within.trail.pop();
        let relative = if target.starts_with(b"/") {
            let store_dir = self.contents.0.store_dir.to_string();
            let below = target.strip_prefix(store_dir.as_bytes()).filter(|rest| rest.starts_with(b"/"));
            let Some(below) = below else { return Err(self.leaves()) };
            self.within = None;
            below
        } else {
            // The root is itself an entry of the store directory.
            if within.trail.is_empty() {
                self.within = None;
            }
            &target[..]
        };
        for name in names(relative).collect::<Vec<_>>().into_iter().rev() {
            self.names.push_front(name);
        }
        Ok(())
    }

    fn leaves(&self) -> ResolveError {
        let (link, target) = self.latest.clone().unwrap_or_default();
        ResolveError::Leaves { link, target }
    }
}

impl Within {
    /// The place within the store path, for people.
    fn shown(&self) -> String {
        let entries = self.trail.iter().skip(1).filter_map(|at| self.listing.entry(*at));
        let names = entries.map(|entry| String::from_utf8_lossy(entry.name()).into_owned());
        std::iter::once(self.path.to_string()).chain(names).collect::<Vec<_>>().join("/")
    }
}

fn not_found(within: &Within, directory: ListingEntry<'_>, name: &[u8]) -> ResolveError {
    let missing = String::from_utf8_lossy(name).into_owned();
    let names = directory.children().take(SIBLINGS_MAX).map(ListingEntry::name);
    let names: Vec<&str> = names.filter_map(|name| std::str::from_utf8(name).ok()).collect();
    let similar = similar(&missing, names.into_iter()).map(str::to_owned);
    ResolveError::NotFound { within: within.shown(), missing, similar }
}

fn suggestion(similar: Option<&str>) -> String {
    similar.map(|name| format!("; did you mean {}?", Line(name))).unwrap_or_default()
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}
