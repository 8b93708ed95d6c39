//! Traits of package sets: what is known of them, and how a generation of one comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use narinfo::{StorePath, StorePathHash};

use super::BackendFuture;
use crate::model::{
    AttributeName, AttributeRow, Attributed, GenerationSize, Maker, NewGeneration, OutputRow, Search, SetRow,
    Swapped, VersionRow,
};

/// Package sets as they are.
pub trait PackageSets {
    /// The derivations that sets have for a hash: those of current generations first, and behind all of them
    /// those that clients have pushed.
    fn makers(&self, hash: StorePathHash) -> BackendFuture<'_, Vec<Maker>>;

    /// The same for many hashes at once; those that no set has are left out.
    fn makers_of_all(
        &self,
        hashes: Vec<StorePathHash>,
    ) -> BackendFuture<'_, BTreeMap<StorePathHash, Vec<Maker>>>;

    /// An attribute as the current generation of a set has it for a system; `None` where there is no
    /// generation.
    fn attribute(
        &self,
        set: String,
        attribute: String,
        system: String,
    ) -> BackendFuture<'_, Option<Attributed>>;

    /// Attributes of the current generation of a set, in the order of their names, with the generation's
    /// number; `None` where there is none.
    fn listed(&self, set: String, search: Search) -> BackendFuture<'_, Option<(u64, Vec<AttributeRow>)>>;

    /// The attribute of this name in every set, with the set's name, for each system.
    fn attributes(&self, attribute: String) -> BackendFuture<'_, Vec<(String, AttributeRow)>>;

    /// The derivations of all attributes of the current generation of a set that may be built.
    fn allowed_derivations(&self, set: String) -> BackendFuture<'_, BTreeSet<StorePath>>;

    /// True where the current generation of a set has this derivation under some name.
    fn has_derivation(&self, set: String, drv: StorePath) -> BackendFuture<'_, bool>;

    /// Attributes of a set that failed to evaluate, at most `max`, in the order of their names.
    fn failed_attributes(&self, set: String, max: u32) -> BackendFuture<'_, Vec<AttributeRow>>;

    /// A package set; an empty one where it was never tried.
    fn set(&self, name: String) -> BackendFuture<'_, SetRow>;

    /// The paths that hold the derivations of all generations.
    fn holders(&self) -> BackendFuture<'_, Vec<StorePath>>;

    /// Names under which sets have these derivations now: one of each, and none of a derivation that no set
    /// has.
    fn names_of(&self, drvs: Vec<StorePath>) -> BackendFuture<'_, BTreeMap<StorePath, AttributeName>>;

    /// Derivations that an attribute had in the generations that are kept, the latest first, at most `max`.
    /// One that came, went and came again is there twice.
    fn versions(&self, name: AttributeName, max: u32) -> BackendFuture<'_, Vec<VersionRow>>;

    /// The derivation of each of these names now, in the same order; `None` for an attribute that cannot be
    /// evaluated, is denied or is no more.
    fn derivations_named(&self, names: Vec<AttributeName>) -> BackendFuture<'_, Vec<Option<StorePath>>>;
}

/// Generations of package sets: brought in piece by piece where nobody sees them, made current at once,
/// expired later.
pub trait Generations {
    /// Drops a generation that was started and never made current, and the sets that are not among `names`.
    fn sync_sets(&self, names: Vec<String>) -> BackendFuture<'_, ()>;

    /// Starts a generation, of which nobody sees anything yet. One at a time.
    fn start_generation(&self) -> BackendFuture<'_, ()>;

    /// Adds attributes to the generation that was started.
    fn add_attributes(&self, rows: Vec<AttributeRow>) -> BackendFuture<'_, ()>;

    /// Denies and allows derivations under all of their names in the generation that was started. Gives its
    /// size.
    fn settle_attributes(
        &self,
        denied: Vec<StorePath>,
        allowed: Vec<StorePath>,
    ) -> BackendFuture<'_, GenerationSize>;

    /// Turns the attributes with these derivations into failed ones, each with its reason, in the generation
    /// that was started. Gives their number.
    fn fail_attributes(&self, failures: Vec<(StorePath, String)>) -> BackendFuture<'_, u64>;

    /// Replaces the reason of an attribute that failed, in a generation that is still the current one of its
    /// set.
    fn explain_attribute(&self, generation: u64, name: AttributeName, error: String)
    -> BackendFuture<'_, ()>;

    /// Adds outputs to the generation that was started. An output that is allowed once is not denied any
    /// more.
    fn add_outputs(&self, rows: Vec<OutputRow>) -> BackendFuture<'_, ()>;

    /// Makes the generation that was started the current one of its set, and forgets the failures of
    /// derivations that are not in it any more: all of it or nothing.
    fn swap_generation(&self, new: NewGeneration) -> BackendFuture<'_, Swapped>;

    /// Adds an attribute that was evaluated later to a generation, with the outputs of what it needs and the
    /// path that holds all its derivations from now on. False, and nothing is added, where the generation is
    /// not the current one any more.
    fn add_evaluated(
        &self,
        generation: u64,
        row: AttributeRow,
        outputs: Vec<OutputRow>,
        holder: StorePath,
    ) -> BackendFuture<'_, bool>;

    /// Records a refresh that ended without a new generation, and the reason where it failed.
    fn record_refresh(&self, set: String, failure: Option<String>) -> BackendFuture<'_, ()>;

    /// Drops the generations of a set that were replaced longer than `keep` ago. One that was replaced by a
    /// clock ahead of this one counts as replaced now.
    fn expire_generations(&self, set: String, keep: Duration) -> BackendFuture<'_, ()>;
}
