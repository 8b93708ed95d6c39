//! Nix on this machine: a small client for its daemon, a reader of its database, and the lookups that use
//! whichever works. Knows nothing of the cache: paths and targets in, Nix's answers out. Reading order:
//! environment, handshake, ssh_process, connection, ssh, ops, build, resolved, pool, nar, add; then database,
//! version, known, derivations, realisations, local; then logs; then capabilities, machines, detect. The side
//! of the daemon, for clients that take this program for one: client_request, client_connection.

mod add;
mod build;
mod build_events;
mod build_hook;
mod capabilities;
mod client_connection;
mod client_request;
mod connection;
mod database;
#[cfg(test)]
mod database_tests;
mod derivations;
mod detect;
mod environment;
mod error;
mod handshake;
mod known;
mod local;
mod logs;
mod machines;
mod nar;
mod operation;
mod ops;
mod path_info;
mod pool;
mod protocol;
mod realisations;
mod resolved;
mod ssh;
mod ssh_process;
mod stderr;
mod version;
mod wire;

pub use add::{AddError, Additions, NarChunks};
pub use build::{BuildOrder, BuildResult, BuildStatus, BuildTarget};
pub use build_events::BuildEvent;
pub use capabilities::{Capabilities, Lack, Machine};
pub use client_connection::{ActivityId, ClientBody, ClientConnection, ClientNews, NewClient};
pub use client_request::{ClientRequest, ClientTarget};
pub use connection::{Daemon, OPERATION_TIMEOUT};
pub use database::{Database, DatabaseError, KnownOutput, Outputs};
pub use derivations::{DERIVATIONS_MAX, Derivations, read_derivation};
pub use detect::{CapabilitySettings, Detected, Detector, own_system};
pub use environment::{Environment, EnvironmentError, netrc_file};
pub use error::DaemonError;
pub use handshake::{HANDSHAKE_TIMEOUT, Handshake};
pub use local::{DatabaseVersion, LocalStore, LocalStoreError, Signed, StoreKnowledge};
pub use logs::{DaemonLog, DaemonLogs};
pub use machines::{BuilderLine, read_machines};
pub use nar::NarReader;
pub use ops::{MissingPaths, Options};
pub use path_info::ValidPath;
pub use pool::{CONNECTIONS_MAX, Connections, DaemonAddress, IDLE_MAX, Pool, PooledDaemon};
pub use protocol::{NEWEST_PROTOCOL, OLDEST_PROTOCOL, ProtocolVersion, Trust};
pub use resolved::{SentDerivation, SentDerivations, UnresolvedError, derivation_text};
pub use ssh::{SSH_TIMEOUT, SshMachine, SshTarget, SshTargetError};
pub use wire::WireStream;
