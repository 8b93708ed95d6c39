//! The index in SQLite: one file, one thread that writes, readers beside it.
//! The only place with SQL of our own; no type of rusqlite leaves it.

pub(super) mod catalogue;
#[cfg(test)]
mod catalogue_tests;
mod comparison;
pub(super) mod condition;
pub(super) mod connection;
pub(super) mod demand;
mod failure;
pub(super) mod generation;
pub(super) mod holdings;
pub(super) mod ledger;
mod nar;
mod paths;
pub(super) mod pin;
pub(super) mod queue;
mod realisation;
pub(super) mod recovery;
pub(super) mod rows;
mod signatures;
mod stored;
mod upstream;
pub(super) mod uses;

use paths::{insert_paths, paths_of, serves_references};
use rows::{Comparison, Counts, Failure, FailureClass, Hit, NarRow, PathRow, UpstreamNar};

use super::{Error, Index, Ready, record};
use crate::filter::Filter;
