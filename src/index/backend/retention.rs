//! Trait of retention: uses, eviction and pins.

use std::time::SystemTime;

use narinfo::{NarHash, StorePathHash};

use super::BackendFuture;
use crate::index::AccessLog;
use crate::model::{Cursor, Evicted, EvictionBounds, NarRow, PinRow};

/// Uses and eviction. Whatever reads the order of eviction records the noted uses first, in the same
/// transaction.
pub trait RetentionStore {
    /// Records the uses that were noted, as of `now`, with everything that the used paths refer to. Takes as
    /// many transactions as it needs; what cannot be recorded stays noted.
    fn record_uses(&self, now: SystemTime, log: &AccessLog) -> BackendFuture<'_, ()>;

    /// Evicts the paths that stand first, within the bounds: a few at a time. The files of their NARs are
    /// left, and nothing refers to them any more.
    fn evict(&self, now: SystemTime, bounds: EvictionBounds, log: &AccessLog) -> BackendFuture<'_, Evicted>;

    /// The paths behind `after` that [`RetentionStore::evict`] would evict.
    fn preview_eviction(
        &self,
        now: SystemTime,
        after: Option<Cursor>,
        bounds: EvictionBounds,
        log: &AccessLog,
    ) -> BackendFuture<'_, Evicted>;

    /// Packed NARs behind `after` that no served path has, in the order of their hashes: a batch, empty at
    /// the end.
    fn unused_nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>>;

    /// Takes back that these NARs are packed, save those that a served path has by now. Their files are left.
    fn forget_unused_nars(&self, nars: Vec<NarHash>) -> BackendFuture<'_, ()>;

    /// Hash of a path that had this NAR when it was last served, for 30 days after that.
    fn former_path(&self, nar: NarHash) -> BackendFuture<'_, Option<StorePathHash>>;

    /// Bytes of all files in the NAR store.
    fn nar_bytes(&self) -> BackendFuture<'_, u64>;
}

/// Pins: paths that are retained with everything they refer to, however long nobody uses them.
pub trait Pins {
    /// Pins the paths with these hashes under a name, served or not.
    fn pin(&self, name: String, hashes: Vec<StorePathHash>) -> BackendFuture<'_, ()>;

    /// Removes every pin of this path, and those under this name. Gives their number.
    fn unpin(&self, name: String, hash: Option<StorePathHash>) -> BackendFuture<'_, usize>;

    /// All pins, by name.
    fn pins(&self) -> BackendFuture<'_, Vec<PinRow>>;

    /// Number of pins.
    fn pin_count(&self) -> BackendFuture<'_, u64>;

    /// Takes over pins as they were.
    fn restore_pins(&self, pins: Vec<PinRow>) -> BackendFuture<'_, ()>;
}
