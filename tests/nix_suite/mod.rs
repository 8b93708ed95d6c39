//! Expectations that Nix's own functional tests have of a binary cache and of a remote builder, in our words,
//! held against this server for a client of every release:
//! <https://github.com/NixOS/nix/tree/master/tests/functional>, the scripts that each part names.
//!
//! Left out: caches in a folder or behind a name with a plus sign, and build directories that a builder
//! keeps, which concern the client alone.

mod binary_cache;
mod ca_substitute;
mod multiple_outputs;
mod nar_access;
mod remote_building;
mod scene;
mod signing;
mod uploads;

use crate::support;
