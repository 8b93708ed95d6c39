//! Trait of programs: which packages have one in their folder `bin`.

use narinfo::NarHash;

use super::BackendFuture;
use crate::model::ProgramOwner;

/// Programs of packages.
pub trait Programs {
    /// Records the names of a NAR's programs. They are remembered as long as a path has the NAR, and for a
    /// while after that.
    fn record_programs(&self, nar: NarHash, programs: Vec<String>) -> BackendFuture<'_, ()>;

    /// Names of the programs of a NAR that were recorded, in their order, at most `max`.
    fn programs_of(&self, nar: NarHash, max: u32) -> BackendFuture<'_, Vec<String>>;

    /// The packages of current generations that may be built and have a program of this name, by their own
    /// description or by what was read of an output: those with a description first, then by the length and
    /// the name of the attribute; at most `max`.
    fn program_owners(&self, program: String, max: u32) -> BackendFuture<'_, Vec<ProgramOwner>>;

    /// Names of programs that begin so, in their order, at most `max`.
    fn programs_like(&self, beginning: String, max: u32) -> BackendFuture<'_, Vec<String>>;
}
