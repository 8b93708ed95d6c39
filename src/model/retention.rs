//! Pins, and the order in which served paths are evicted: a path stands before everything that it refers to,
//! so that whoever takes paths away from the front breaks no closure.

use std::time::SystemTime;

use narinfo::{NarHash, StorePath, StorePathHash};

/// A pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinRow {
    /// Hash of the path that is pinned.
    pub hash: StorePathHash,
    /// The attribute, or the path itself, that was named when it was pinned.
    pub name: String,
    /// The time it was pinned.
    pub pinned_at: SystemTime,
    /// The path, once it is served.
    pub path: Option<StorePath>,
}

/// A served path in eviction order.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of its plain NAR; several paths may have the same one.
    pub nar: NarHash,
    /// Bytes of the file that goes with it; `None` where there is none, or a later candidate has the same
    /// contents.
    pub file_bytes: Option<u64>,
    /// Last use of it, or of a path that refers to it; `None` while what it refers to may stand before it.
    pub needed_at: Option<SystemTime>,
    /// True where it is pinned itself, is a pushed derivation that was used lately, or has contents that only
    /// the Nix store has yet.
    pub held: bool,
    /// Its position.
    pub cursor: Cursor,
}

/// A position in eviction order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Unix microseconds of the last need; negative, from the time the path came, until its place is known.
    pub needed_at_us: i64,
    /// The path that stands there.
    pub hash: StorePathHash,
}

/// The limits of an eviction.
#[derive(Clone, Copy, Debug)]
pub struct EvictionBounds {
    /// Bytes of all stored files that it brings the NAR store down to.
    pub target_bytes: u64,
    /// Paths that were used since then are retained, whatever the target.
    pub used_since: SystemTime,
    /// Pushed derivations that were used since then are retained, too.
    pub pushed_since: SystemTime,
}

/// The fate of the candidates that stand first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The first so many are evicted; none is the end of the eviction.
    Evict(usize),
    /// The first so many are retained with everything they refer to: they move back as if they were used now,
    /// or when they came where their place was not known.
    Retain(usize),
}

/// Outcome of one step of an eviction.
#[derive(Clone, Debug)]
pub enum Evicted {
    /// These were evicted, or would be; none when nothing more is.
    Paths(Vec<Candidate>),
    /// Some moved back, or uses were recorded: the order is to be read again before anything is evicted.
    Reordered,
}

impl EvictionBounds {
    /// Decides over the candidates that stand first, while all stored files have `stored_bytes`.
    #[must_use]
    pub fn decide(&self, first: &[Candidate], stored_bytes: u64) -> Decision {
        let excess = stored_bytes.saturating_sub(self.target_bytes);
        let may_go =
            |candidate: &Candidate| candidate.needed_at.is_some_and(|needed_at| needed_at < self.used_since);
        let to_retain =
            |candidate: &&Candidate| candidate.needed_at.is_none() || (candidate.held && may_go(candidate));
        let retained = first.iter().take_while(to_retain).count();
        if retained > 0 {
            return Decision::Retain(retained);
        }
        let mut freed = 0;
        let evicted = first.iter().take_while(|candidate| {
            let goes = freed < excess && may_go(candidate) && !candidate.held;
            freed += candidate.file_bytes.unwrap_or(0);
            goes
        });
        Decision::Evict(evicted.count())
    }
}
