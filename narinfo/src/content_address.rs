//! Content addresses: how the contents alone fix a store path (the CA field of a narinfo).
//! Kept as checked text, since it is passed on and not computed with.

use std::fmt;
use std::str::FromStr;

/// A content address, such as `fixed:r:sha256:…` or `text:sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress(String);

/// Not a content address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a content address (fixed:r:sha256:…, fixed:sha256:…, text:sha256:…)")]
pub struct ContentAddressError(String);

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        match nix_derivation::CAHash::parse(text) {
            Ok(address) => Ok(Self(address.to_nix_string())),
            Err(_) => Err(ContentAddressError(text.chars().take(120).collect())),
        }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
