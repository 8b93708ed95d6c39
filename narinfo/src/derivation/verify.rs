//! Verification of a derivation that somebody sent: its path is named by its contents, and its outputs are
//! those that it makes (<https://nix.dev/manual/nix/latest/store/derivation/outputs/input-address>).

use nix_derivation::InputDerivationHash;

use super::{Derivation, Error};
use crate::store_path::{StoreDir, StorePath};

/// Identity of a derivation as an input of another one: outputs of that one are named by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputHash {
    /// Of its own inputs and instructions.
    Regular([u8; 32]),
    /// Of its fixed output.
    Fixed([u8; 32]),
    /// Known only once something was built.
    Deferred,
}

impl From<InputHash> for InputDerivationHash {
    fn from(hash: InputHash) -> Self {
        match hash {
            InputHash::Regular(hash) => Self::regular(hash),
            InputHash::Fixed(hash) => Self::fixed_output(hash),
            InputHash::Deferred => Self::Deferred,
        }
    }
}

impl From<InputDerivationHash> for InputHash {
    fn from(hash: InputDerivationHash) -> Self {
        match hash {
            InputDerivationHash::Regular(hash) => Self::Regular(hash.into_bytes()),
            InputDerivationHash::FixedOutput(hash) => Self::Fixed(hash.into_bytes()),
            InputDerivationHash::Deferred => Self::Deferred,
        }
    }
}

impl Derivation {
    /// Verifies the file of the derivation `drv`, of which this was parsed: its path is named by its text,
    /// and its outputs are those that it makes. `input` gives the identity of each derivation that it needs.
    /// Gives its own.
    ///
    /// # Errors
    /// The derivation is forged, or the identity of an input is not known.
    pub fn verify(
        &self,
        store_dir: &StoreDir,
        drv: &StorePath,
        bytes: &[u8],
        input: impl Fn(&StorePath) -> Option<InputHash>,
    ) -> Result<InputHash, Error> {
        let forged = |reason: String| Error::Forged(reason);
        let exact =
            nix_derivation::Derivation::from_aterm_bytes_in(bytes, &self.name, store_dir.inner().clone())?;
        let all = exact.input_derivations().keys().chain(exact.input_sources());
        let named = store_dir.inner().build_text_path(drv.name(), bytes, all);
        let named = StorePath::from_inner(&named.map_err(|error| forged(error.to_string()))?)?;
        if named != *drv {
            return Err(forged(format!("its contents are those of {named}")));
        }
        let resolve = |path: &nix_derivation::StorePath| {
            let path = StorePath::from_inner(path).map_err(|error| error.to_string())?;
            input(&path).ok_or_else(|| format!("{path} is not known"))
        };
        exact.try_validate_with_input_hashes(resolve).map_err(|error| forged(error.to_string()))?;
        let hash = exact.try_hash_input_derivation_modulo(resolve);
        Ok(hash.map_err(|error| forged(error.to_string()))?.into())
    }
}
