//! Changes that a backend reports to the cache above it.

use narinfo::StorePathHash;

/// The hashes whose answers a committed write has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Hashes that are served, or that a package set can build, and were perhaps not before.
    pub added: Vec<StorePathHash>,
    /// Served paths with another narinfo than before.
    pub changed: Vec<StorePathHash>,
    /// Paths that are not served any more.
    pub removed: Vec<StorePathHash>,
    /// True where there were too many to list: any narinfo may have changed.
    pub everything: bool,
}

impl Changes {
    /// Changes of narinfos alone.
    #[must_use]
    pub fn changed(changed: Vec<StorePathHash>) -> Self {
        Self { changed, ..Self::default() }
    }

    /// Removed paths alone.
    #[must_use]
    pub fn removed(removed: Vec<StorePathHash>) -> Self {
        Self { removed, ..Self::default() }
    }

    /// Added hashes alone.
    #[must_use]
    pub fn added(added: Vec<StorePathHash>) -> Self {
        Self { added, ..Self::default() }
    }

    /// True where no answer has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { added, changed, removed, everything } = self;
        added.is_empty() && changed.is_empty() && removed.is_empty() && !everything
    }
}

/// Receiver of a backend's changes. While it lags it must answer "maybe" and never "no": hits that it has are
/// served meanwhile, and nothing is added to them.
pub trait Follower: Send + Sync {
    /// Applies a committed write before it is acknowledged. Each write that changes something raises
    /// `sequence` by one; after a gap, anything may have changed.
    fn apply(&self, sequence: u64, changes: &Changes);

    /// Notes that changes come late from now on, as when the connection to a database is lost.
    fn interrupted(&self);

    /// Ends an interruption: every change until now was applied.
    fn resumed(&self);

    /// Goes on after the change with this number. What came before may have been missed: anything may have
    /// changed.
    fn restarted(&self, sequence: u64);
}
