//! Traits of served paths, their realisations and NARs, and of upstreams that have the same.

use std::collections::BTreeMap;

use narinfo::{DrvOutput, NarHash, Realisation, Signature, StorePath, StorePathHash};

use super::BackendFuture;
use crate::model::{Comparison, Counts, Hit, NarRow, NewNar, PathRow, RealisationOutcome, UpstreamNar};

/// Served paths and their signatures.
pub trait Paths {
    /// The served path with this hash, and where its contents are.
    fn find(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Hit>>;

    /// Those of `hashes` that are served, each with its path.
    fn served(&self, hashes: Vec<StorePathHash>) -> BackendFuture<'_, BTreeMap<StorePathHash, StorePath>>;

    /// Publishes a closure: all rows or none. A hash that is served already keeps its first row, since
    /// clients may hold a narinfo for it. False, and nothing is published, where a row refers to a path that
    /// is neither served nor among them.
    fn publish(&self, rows: Vec<PathRow>) -> BackendFuture<'_, bool>;

    /// Publishes a closure as [`Paths::publish`] does, with the upstreams that have it.
    fn publish_from_upstream(&self, rows: Vec<(PathRow, UpstreamNar)>) -> BackendFuture<'_, bool>;

    /// Stops serving every path with this NAR: neither the NAR store nor the Nix store has it any more.
    fn forget_paths(&self, nar: NarHash) -> BackendFuture<'_, ()>;

    /// Served paths behind `after`, in the order of their hashes: a batch, empty at the end.
    fn paths_after(&self, after: Option<StorePathHash>) -> BackendFuture<'_, Vec<PathRow>>;

    /// Replaces the signatures of served paths. A path that is not served any more is passed over.
    fn set_signatures(&self, paths: Vec<(StorePathHash, Vec<Signature>)>) -> BackendFuture<'_, ()>;

    /// Adds signatures, over NARs with these hashes, to those that served paths have; a path with another NAR
    /// is passed over. Gives the number of paths that gained some.
    fn add_signatures(&self, new: Vec<(StorePathHash, NarHash, Vec<Signature>)>) -> BackendFuture<'_, usize>;

    /// Totals of the index.
    fn counts(&self) -> BackendFuture<'_, Counts>;
}

/// NARs: packed ones, and those that are yet to be packed.
pub trait Nars {
    /// A served path with this NAR. Several paths may have the same one, any of them will do.
    fn path_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Option<PathRow>>;

    /// A served path with this NAR and its packed file, if there is one.
    fn nar(&self, nar: NarHash) -> BackendFuture<'_, Option<(PathRow, Option<NarRow>)>>;

    /// Every served path with this NAR.
    fn paths_with_nar(&self, nar: NarHash) -> BackendFuture<'_, Vec<StorePath>>;

    /// The packed file of this NAR, if there is one.
    fn packed(&self, nar: NarHash) -> BackendFuture<'_, Option<NarRow>>;

    /// Those of `nars` that are not packed.
    fn not_packed(&self, nars: Vec<NarHash>) -> BackendFuture<'_, Vec<NarHash>>;

    /// Every served path whose NAR only the Nix store has yet, oldest first.
    fn unpacked(&self) -> BackendFuture<'_, Vec<PathRow>>;

    /// Packed NARs behind `after`, in the order of their hashes: a batch, empty at the end.
    fn nars(&self, after: Option<NarHash>) -> BackendFuture<'_, Vec<NarRow>>;

    /// Records a packed NAR with its programs. The file must be durable before this is called.
    fn record_packed(&self, nar: NewNar) -> BackendFuture<'_, ()>;

    /// Takes back that a NAR is packed: its file is gone. Its paths stay served from the Nix store.
    fn forget_packed(&self, nar: NarHash) -> BackendFuture<'_, ()>;
}

/// NARs that upstreams have.
pub trait UpstreamNars {
    /// Every upstream that has this NAR, with the address there.
    fn upstreams_with(&self, nar: NarHash) -> BackendFuture<'_, Vec<UpstreamNar>>;

    /// Takes back that an upstream has this NAR.
    fn forget_upstream_nar(&self, nar: NarHash, upstream: String) -> BackendFuture<'_, ()>;

    /// Brings the rows of upstreams in line with the configured ones: their names, and whether clients are
    /// redirected there. What only others have is not served any more. Reads rows only when that has changed.
    fn sync_upstreams(&self, upstreams: BTreeMap<String, bool>) -> BackendFuture<'_, ()>;
}

/// Realisations of content-addressed derivations.
pub trait RealisationStore {
    /// The realisation of this output, if it is published and everything that it needs is, too.
    fn realisation(&self, id: DrvOutput) -> BackendFuture<'_, Option<Realisation>>;

    /// Publishes realisations: all or none. One that is served, with everything that it needs, stays: clients
    /// may have it.
    fn publish_realisations(&self, realisations: Vec<Realisation>) -> BackendFuture<'_, RealisationOutcome>;
}

/// Own builds beside the same paths of upstreams.
pub trait Comparisons {
    /// Paths that were built here and that no upstream was found to have yet, at most `rows_max`: those that
    /// were looked for longest ago.
    fn uncompared(&self, rows_max: usize) -> BackendFuture<'_, Vec<PathRow>>;

    /// Records the contents that an upstream has of a path that was built here, or that none has it.
    fn record_comparison(&self, hash: StorePathHash, comparison: Option<Comparison>)
    -> BackendFuture<'_, ()>;

    /// The contents that an upstream has of a path that was built here, where they are known.
    fn comparison(&self, hash: StorePathHash) -> BackendFuture<'_, Option<Comparison>>;
}
