//! Changes that a backend tells whoever keeps answers outside it.

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
    /// True where there were too many to name them: any narinfo may be another one.
    pub everything: bool,
}

impl Changes {
    /// Changes of narinfos alone.
    #[must_use]
    pub fn changed(changed: Vec<StorePathHash>) -> Self {
        Self { changed, ..Self::default() }
    }

    /// Paths that went.
    #[must_use]
    pub fn removed(removed: Vec<StorePathHash>) -> Self {
        Self { removed, ..Self::default() }
    }

    /// Hashes that came.
    #[must_use]
    pub fn added(added: Vec<StorePathHash>) -> Self {
        Self { added, ..Self::default() }
    }

    /// True where no answer is another one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { added, changed, removed, everything } = self;
        added.is_empty() && changed.is_empty() && removed.is_empty() && !everything
    }
}

/// Receives the changes of a backend. Whoever lags behind must answer "maybe", never "no" or what was true
/// before.
pub trait Follower: Send + Sync {
    /// Takes note of a committed write, before it is acknowledged. Each write that changes something has the
    /// `sequence` of the one before and 1; after a gap, anything may have changed.
    fn apply(&self, sequence: u64, changes: &Changes);

    /// Takes note that changes are missed, as when the connection to a database is lost. The next one that is
    /// applied ends that.
    fn interrupted(&self);
}
