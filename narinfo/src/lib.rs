//! The formats of Nix binary caches: store paths, hashes, signatures, narinfos, realisations, NARs,
//! derivations.
//!
//! Standard `Read` and `Write` only: no async, no HTTP, no SQL. No type of a crate underneath shows but those
//! of serde, so that any module can be replaced. Everything parses strictly at its edge, into types that
//! cannot be wrong.

mod cache_info;
mod content_address;
pub mod derivation;
mod hash;
pub mod info;
pub mod json;
pub mod nar;
mod nixbase32;
mod realisation;
mod signature;
mod store_path;

pub use cache_info::{CacheInfo, CacheInfoError};
pub use content_address::{Addressed, ContentAddress, ContentAddressError};
pub use derivation::Derivation;
pub use hash::{HashError, NarHash};
pub use info::{Compression, NARINFO_BYTES_MAX, NarInfo, ParseError, PathInfo, SIGNATURES_MAX};
pub use nixbase32::ALPHABET as NIXBASE32_ALPHABET;
pub use realisation::{DrvOutput, OutputName, REALISATION_BYTES_MAX, Realisation, RealisationError};
pub use signature::{KeyName, PublicKey, SecretKey, Signature, SignatureError};
pub use store_path::{StoreDir, StorePath, StorePathError, StorePathHash};
