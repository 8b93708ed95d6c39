//! Derivations, as their .drv files say (ATerm,
//! <https://nix.dev/manual/nix/latest/protocols/derivation-aterm>). Read only for what a cache needs:
//! outputs, inputs, and where it can be built.

mod resolved;
mod verify;

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::Output;

pub use resolved::{ResolvedDerivation, ResolvedOutput};
pub use verify::InputHash;

use crate::store_path::{StoreDir, StorePath, StorePathError};

/// Bytes of a .drv file at most; the largest known have a few megabytes.
pub const DERIVATION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a .drv file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than [`DERIVATION_BYTES_MAX`].
    #[error("the derivation has {0} bytes, at most {DERIVATION_BYTES_MAX} are read")]
    TooLarge(usize),
    /// The file's own name does not end in .drv.
    #[error("{0} is not the name of a derivation")]
    Name(StorePath),
    /// Malformed text.
    #[error("not a derivation: {0}")]
    Malformed(String),
    /// The contents are not those that its path is named by, or an output is not the one that it makes.
    #[error("the derivation is not what it claims to be: {0}")]
    Forged(String),
    /// A name that is no store path.
    #[error("the derivation names something that is no store path")]
    StorePath(#[from] StorePathError),
}

impl From<nix_derivation::Error> for Error {
    fn from(error: nix_derivation::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The parts of a derivation that a cache needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// Its outputs by name; the path is `None` where it is known only after the build.
    pub outputs: BTreeMap<String, Option<StorePath>>,
    /// The derivations whose outputs it needs.
    pub input_derivations: BTreeSet<StorePath>,
    /// Outputs, by name, that it needs of each of them.
    pub input_outputs: BTreeMap<StorePath, BTreeSet<String>>,
    /// The plain files and folders it needs.
    pub input_sources: BTreeSet<StorePath>,
    /// The system that builds it, such as `x86_64-linux`.
    pub system: String,
    /// Built by Nix itself (a builder such as `builtin:fetchurl`), for every system.
    pub is_builtin: bool,
    /// Its name, which is that of the .drv file without the ending.
    pub name: String,
    /// Features that its builder must offer, such as `kvm` (requiredSystemFeatures).
    pub required_features: BTreeSet<String>,
    /// True where building it is no more work than copying it (preferLocalBuild).
    pub prefers_local: bool,
}

impl Derivation {
    /// Parses the file of the derivation `drv`.
    ///
    /// # Errors
    /// The file is too large or malformed.
    pub fn parse(store_dir: &StoreDir, drv: &StorePath, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > DERIVATION_BYTES_MAX {
            return Err(Error::TooLarge(bytes.len()));
        }
        let name = drv.name().strip_suffix(".drv").ok_or_else(|| Error::Name(drv.clone()))?;
        // Nix puts any bytes into arguments, nix-derivation takes text alone. Nothing that is kept here can
        // have other bytes than ASCII and be of use, and a replacement never touches an ASCII byte, so the
        // structure stays.
        let text = String::from_utf8_lossy(bytes);
        let parsed = nix_derivation::Derivation::from_aterm_bytes_in(
            text.as_bytes(),
            name,
            store_dir.inner().clone(),
        )?;
        let outputs = parsed
            .outputs()
            .iter()
            .map(|(output, kind)| Ok((output.clone(), output_path(store_dir, kind, name, output)?)))
            .collect::<Result<_, Error>>()?;
        let paths = |path| StorePath::from_inner(path);
        let input_outputs = parsed
            .input_derivations()
            .iter()
            .map(|(drv, input)| Ok((StorePath::from_inner(drv)?, input.outputs().clone())))
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            outputs,
            input_derivations: parsed.input_derivations().keys().map(paths).collect::<Result<_, _>>()?,
            input_outputs,
            input_sources: parsed.input_sources().iter().map(paths).collect::<Result<_, _>>()?,
            system: parsed.system().to_owned(),
            is_builtin: parsed.builder().starts_with("builtin:"),
            name: name.to_owned(),
            required_features: required_features(&parsed),
            prefers_local: prefers_local(&parsed),
        })
    }
}

fn output_path(
    store_dir: &StoreDir,
    output: &Output,
    drv_name: &str,
    output_name: &str,
) -> Result<Option<StorePath>, Error> {
    let path = output.path_in(store_dir.inner(), drv_name, output_name)?;
    Ok(path.as_ref().map(StorePath::from_inner).transpose()?)
}

/// From the environment, or where there are structured attributes, from those alone, as Nix has it.
fn required_features(derivation: &nix_derivation::Derivation) -> BTreeSet<String> {
    const ATTRIBUTE: &str = "requiredSystemFeatures";
    if let Some(attributes) = derivation.structured_attrs() {
        let features = attributes.get(ATTRIBUTE).and_then(|value| value.as_array());
        return features
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect();
    }
    let features = derivation.environment().get(ATTRIBUTE).map(|value| String::from_utf8_lossy(value));
    features.iter().flat_map(|value| value.split_ascii_whitespace()).map(str::to_owned).collect()
}

/// As Nix reads it: "1" in the environment, or true among structured attributes.
fn prefers_local(derivation: &nix_derivation::Derivation) -> bool {
    const ATTRIBUTE: &str = "preferLocalBuild";
    if let Some(attributes) = derivation.structured_attrs() {
        return attributes.get(ATTRIBUTE).and_then(|value| value.as_bool()).unwrap_or(false);
    }
    derivation.environment().get(ATTRIBUTE).is_some_and(|value| value.as_slice() == b"1")
}
