//! A client of an Ondine server: finds the server and the token, sends requests to its HTTP API, asks the Nix
//! of this machine, and turns what goes wrong into words for the person at the command line. Must never show
//! a token.

mod attic;
mod builds;
mod closure;
mod connection;
mod error;
mod events;
mod explain;
mod file_cache;
mod identity;
mod import;
pub mod nix_conf;
mod outage;
mod packed_nar;
mod places;
pub mod programs;
mod queue;
mod send_queue;
mod settings;
mod upload;
mod wait;

pub use attic::{AtticDatabaseError, AtticError, AtticPlaces, AtticStore};
pub use builds::{BuildsQuestion, RemoteItem, RemoteRequest};
pub use closure::LocalClosure;
pub use connection::{Remote, ServerAddress, ServerReply, path_part, reason};
pub use error::{Error, ErrorClass};
pub use events::RequestEvent;
pub use explain::{RemoteOutput, RemoteState};
pub use file_cache::{FileCache, RejectedPath};
pub use identity::ServerIdentity;
pub use import::{ImportOutcome, ImportSource, import};
pub use outage::through_outage;
pub use packed_nar::{CompressedNar, NarPacker, pack};
pub use places::{nix_conf_dir_of_user, system_file, user_file};
pub use programs::{ProgramError, UserTrust};
pub use queue::{PushQueue, QueueEntry, QueueError, QueuedPush};
pub use send_queue::{QueueSender, SendEvent};
pub use settings::{ServerChoice, parse_server, server_of_file};
pub use upload::{PushError, Unsigned, UploadCounts, UploadedPath, Uploads, server_error, upload};
