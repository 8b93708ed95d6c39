//! Ondine: a Nix binary cache that builds what it is missing.
//!
//! The modules in reading order, which is the order of a request: each may use those further down, never the
//! other way. The formats (store paths, narinfos, NARs, signatures) are in the crate `narinfo`.

#[cfg(test)]
mod serving_tests;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

pub mod cli;
pub mod remote_builder;

pub mod remote;

pub mod config;
pub mod serve;

pub mod isolation;
pub mod state_dir;

pub mod http;
pub mod retry;

pub mod requests;
pub mod substitute;

pub mod build;
pub mod catalogue;

pub mod debug_info;
pub mod import;

pub mod adopt;
pub mod auth;
pub mod caller;
pub mod compare;
pub mod retention;

pub mod contents;
pub mod packer;
pub mod publish;
pub mod recover;
pub mod roots;

pub mod index;
pub mod key;
pub mod nar_store;
pub mod nix;
pub mod upstream;

pub mod model;
pub mod telemetry;
pub mod trouble;

pub mod backoff;
pub mod bloom;
pub mod causes;
pub mod client;
pub mod decode;
pub mod encode;
pub mod escape;
pub mod name_pattern;
pub mod nearest;
pub mod plural;
pub mod reference_order;
pub mod room;
pub mod shares;
pub mod single_flight;
pub mod tail_file;
pub mod tasks;
