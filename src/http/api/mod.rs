//! The API as others see it: its JSON types, and how they are made of the types within.

mod builders;
mod builds;
mod convert;
mod files;
mod paths;
mod server;
mod types;

pub use builders::*;
pub use builds::*;
pub(super) use convert::unix_seconds;
pub use files::*;
pub use paths::*;
pub use server::*;
pub use types::*;
