//! Plain types that several parts of the server share: served paths and their NARs, failures, package sets,
//! the queue, retention, tokens. No behaviour beyond what follows from the data itself; nothing here reads,
//! writes or waits.

mod catalogue;
mod derivation;
mod failure;
mod history;
mod path;
mod pushed;
mod queue;
mod retention;
mod token;

pub use catalogue::{
    AttributeName, AttributeRow, Attributed, DemandRow, Generation, GenerationSize, Maker, NewGeneration,
    OutputRow, ProgramOwner, Search, SetRow, Swapped, VersionRow,
};
pub use derivation::DerivationText;
pub use failure::{Failure, FailureClass};
pub use history::{BuildingUse, HourRow};
pub use path::{Comparison, Counts, Hit, NarRow, NewNar, PathRow, UpstreamNar};
pub use pushed::{PushedDerivation, RealisationOutcome, UploadOutcome};
pub use queue::{DurationRow, EndingRow, NodeId, QueueNews, QueueOutcome, RequestRow, Term};
pub use retention::{Candidate, Cursor, Decision, Evicted, EvictionBounds, PinRow};
pub use token::{NewToken, TokenRow};
