//! Package sets: their generations, attributes and outputs, and how often attributes are asked for.

use std::time::SystemTime;

use narinfo::{StorePath, StorePathHash};

/// An attribute of a package set as it was evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeRow {
    /// Its path within the set, as Nix writes it.
    pub attribute: String,
    /// The system that it was evaluated for.
    pub system: String,
    /// Its derivation, or the reason why it has none.
    pub outcome: Result<StorePath, String>,
    /// The output that it is: its name, or its path; `None` where evaluation gave neither.
    pub output: Option<String>,
    /// Name of the program that it is run by, where its description says so.
    pub program: Option<String>,
    /// True where it may not be built.
    pub denied: bool,
}

/// A derivation that an attribute had, from one generation to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRow {
    /// The derivation.
    pub drv: StorePath,
    /// The first generation with it.
    pub first: u64,
    /// The last one; `None` for the current one.
    pub last: Option<u64>,
    /// Time at which the first one was made.
    pub since: SystemTime,
    /// Time at which the last one was replaced.
    pub until: Option<SystemTime>,
}

/// A package of a set that has a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramOwner {
    /// The package.
    pub name: AttributeName,
    /// The path that has it, where that was read; `None` where only the package's description says so.
    pub path: Option<StorePathHash>,
}

/// An attribute as the current generation of its set has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributed {
    /// The number of that generation.
    pub generation: u64,
    /// The attribute; `None` where there is none of this name.
    pub row: Option<AttributeRow>,
}

/// The attributes of a set that are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Pattern for the attribute, with its quotes or without, or for the name of its derivation: for all of
    /// it where there is a `*`, which stands for anything, and else for a part of it. Upper and lower case
    /// are alike.
    pub like: Option<String>,
    /// The attribute after which the list begins; the empty one is before all others.
    pub after: String,
    /// The system that they are evaluated for.
    pub system: String,
    /// Rows at most.
    pub max: u32,
}

/// A derivation that gives an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRow {
    /// The hash of the output's path.
    pub hash: StorePathHash,
    /// The derivation.
    pub drv: StorePath,
    /// True where it may not be built, except as an input.
    pub denied: bool,
}

/// A derivation that some set has for a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// The derivation.
    pub drv: StorePath,
    /// The set that denies it, where no other one allows it.
    pub denied_by: Option<String>,
}

/// A generation of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub id: u64,
    /// The settings that it was made with.
    pub made_by: String,
    /// The path that holds its derivations in the Nix store.
    pub holder: StorePath,
    /// The time it was made.
    pub made_at: SystemTime,
    /// The time the next one took its place.
    pub replaced_at: Option<SystemTime>,
    /// Its size.
    pub size: GenerationSize,
}

/// Size of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GenerationSize {
    /// Attributes that gave a derivation.
    pub attributes: u64,
    /// Those of them that may not be built.
    pub denied: u64,
    /// Attributes that failed to evaluate.
    pub errors: u64,
    /// Derivations in the closure of what may be built.
    pub derivations: u64,
}

/// A package set: its last refresh, and its generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetRow {
    /// The time the latest refresh ended.
    pub tried_at: Option<SystemTime>,
    /// The reason why that failed.
    pub failure: Option<String>,
    /// Its generations, the current one first.
    pub generations: Vec<Generation>,
}

/// A generation that is complete.
#[derive(Clone, Debug)]
pub struct NewGeneration {
    /// The set's name.
    pub set: String,
    /// The settings that it was made with.
    pub made_by: String,
    /// The path that holds its derivations in the Nix store.
    pub holder: StorePath,
    /// Its size.
    pub size: GenerationSize,
}

/// Difference between a generation and the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swapped {
    /// The new generation's number.
    pub generation: u64,
    /// Outputs that were not there before.
    pub added: u64,
    /// Outputs that are not there any more.
    pub removed: u64,
}

/// An attribute of a package set, for a system, whatever it is at the moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeName {
    /// The set.
    pub set: String,
    /// Its path within the set, with dots.
    pub attribute: String,
    /// The system.
    pub system: String,
}

/// Number of requests for an attribute on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandRow {
    /// The attribute.
    pub name: AttributeName,
    /// The number of the day.
    pub day: u64,
    /// Number of requests.
    pub asked: u32,
}
