//! Content addresses: how the contents alone fix a store path (the CA field of a narinfo).
//! Kept as checked text, since it is passed on and not computed with.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::hash::NarHash;
use crate::store_path::{StoreDir, StorePath};

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

impl ContentAddress {
    /// Whether this address fixes both the name and the contents: then no signature is needed. So it is where the address
    /// is that of the NAR itself, and the path does not refer to itself; of other kinds the NAR's hash tells nothing.
    #[must_use]
    pub fn proves(
        &self,
        store_dir: &StoreDir,
        path: &StorePath,
        nar_hash: &NarHash,
        references: &BTreeSet<StorePath>,
    ) -> bool {
        let Ok(address) = nix_derivation::CAHash::parse(&self.0) else { return false };
        let nix_derivation::CAHash::Nar(hash) = &address else { return false };
        let inner = |path: &StorePath| nix_derivation::StorePath::from_basename(path.to_string().as_bytes());
        let Ok(references) = references.iter().map(inner).collect::<Result<Vec<_>, _>>() else {
            return false;
        };
        let named = store_dir.inner().build_ca_path(path.name(), &address, &references, false);
        hash.digest_as_bytes() == nar_hash.as_bytes()
            && named.is_ok_and(|named| named.to_basename() == path.to_string())
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
