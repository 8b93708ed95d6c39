//! Fixtures of the tests: throw-away Nix stores and daemons of several releases, stock clients with stores of
//! their own, the built server, and HTTP. All of it blocks, all of it is real, and nothing is skipped: what
//! is missing fails the test with a sentence that names the package to install.

// Every test file is a program of its own and uses a part of this.
#![allow(dead_code, unused_imports)]

pub mod addresses;
pub mod azure_store;
pub mod browser;
pub mod buckets;
pub mod builder;
pub mod burst;
pub mod cache;
pub mod client;
pub mod crowd;
pub mod cutting_proxy;
pub mod derivations;
pub mod door;
pub mod engine;
pub mod faulty_proxy;
pub mod fleet;
pub mod gate;
#[cfg(feature = "object-store")]
pub mod google_store;
pub mod held_file;
pub mod history;
pub mod http;
pub mod malformed;
pub mod object_store;
pub mod ondine;
pub mod package_set;
pub mod persistent_client;
pub mod postgres;
pub mod process;
pub mod programs;
pub mod release;
pub mod remote_builder;
pub mod small_disk;
pub mod sshd;
pub mod store;
pub mod tokens;
pub mod uploads;
pub mod upstream;

pub use azure_store::AzureContainer;
pub use browser::Browser;
pub use buckets::TestBucket;
pub use builder::Builder;
pub use cache::Cache;
pub use client::{Client, Substituter, nar_digest};
pub use derivations::Derivation;
pub use door::Door;
pub use faulty_proxy::{BucketFault, FaultyProxy};
pub use gate::Gate;
#[cfg(feature = "object-store")]
pub use google_store::GoogleBucket;
pub use held_file::HeldFile;
pub use history::History;
pub use http::{Ending, Http};
pub use object_store::Bucket;
pub use ondine::Ondine;
pub use package_set::PackageSet;
pub use postgres::PostgresServer;
pub use process::{Background, Finished, wait_until};
pub use release::Release;
pub use remote_builder::RemoteBuilder;
pub use small_disk::SmallDisk;
pub use sshd::Sshd;
pub use store::{Daemon, Instantiated, NixStore, text};
pub use upstream::{BinaryCache, Compression, Fault, FileServer, Sample, TlsServer, Upstream, Valve};
