//! Pins: what is named is found out once, when it is pinned, and stands until it is unpinned.

use narinfo::{StorePath, StorePathHash};

use super::Keeper;
use crate::index::{self, PinRow};
use crate::nix::read_derivation;

/// What is to be pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// The path with this hash; and as it was written.
    Path(StorePathHash, String),
    /// The outputs of the derivation that an attribute of package sets has now.
    Attribute(String),
}

/// What was pinned.
#[derive(Clone, Debug)]
pub struct Pinning {
    /// The package set and the system; `None` for a path that was named itself.
    pub of: Option<(String, String)>,
    /// The hash of the path.
    pub hash: StorePathHash,
    /// The path, if it is known.
    pub path: Option<StorePath>,
    /// Whether it is served; one that is not is held once it is.
    pub served: bool,
}

/// Why something was not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No package set has it.
    #[error(
        "there is no attribute {0} with a derivation in any package set; /api/v1/catalogue lists the sets"
    )]
    NoAttribute(String),
    /// Its outputs are not known.
    #[error("the outputs of {drv} cannot be told: {reason}")]
    NoOutputs {
        /// The derivation.
        drv: StorePath,
        /// Why.
        reason: String,
    },
    /// The index failed.
    #[error("the index cannot be read or written")]
    Index(#[from] index::Error),
}

impl Pinned {
    /// A store path, its base name, its hash, or else the name of an attribute; `None` for nothing at all.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let base = text.rsplit('/').next().filter(|base| !base.is_empty())?;
        let hash = StorePath::parse(base).map(|path| path.hash()).or_else(|_| base.parse());
        Some(match hash {
            Ok(hash) => Self::Path(hash, base.to_owned()),
            Err(_) => Self::Attribute(text.to_owned()),
        })
    }
}

impl Keeper {
    /// Holds what is named, and all that it refers to, from now on or from when it is served.
    ///
    /// # Errors
    /// When there is no such thing, or the index fails.
    pub async fn pin(&self, what: Pinned) -> Result<Vec<Pinning>, PinError> {
        let index = &self.0.index;
        let (name, mut pinnings) = match what {
            Pinned::Path(hash, name) => {
                let path = StorePath::parse(&name).ok();
                (name, vec![Pinning { of: None, hash, path, served: false }])
            }
            Pinned::Attribute(name) => (name.clone(), self.outputs_of(name).await?),
        };
        index.pin(name, pinnings.iter().map(|pinning| pinning.hash).collect()).await?;
        for pinning in &mut pinnings {
            if let Some(hit) = index.find(pinning.hash).await? {
                (pinning.path, pinning.served) = (Some(hit.row.path), true);
            }
        }
        self.0.metrics.pins(index.pin_count().await?);
        Ok(pinnings)
    }

    async fn outputs_of(&self, attribute: String) -> Result<Vec<Pinning>, PinError> {
        let mut pinnings = Vec::new();
        for (set, row) in self.0.index.attributes(attribute.clone()).await? {
            let Ok(drv) = row.outcome else { continue };
            let (store_dir, of) = (self.0.store_dir.clone(), drv.clone());
            let read = tokio::task::spawn_blocking(move || read_derivation(&store_dir, &of)).await;
            let derivation = read
                .unwrap_or_else(|error| Err(error.to_string()))
                .map_err(|reason| PinError::NoOutputs { drv, reason })?;
            pinnings.extend(derivation.outputs.into_values().flatten().map(|path| Pinning {
                of: Some((set.clone(), row.system.clone())),
                hash: path.hash(),
                path: Some(path),
                served: false,
            }));
        }
        if pinnings.is_empty() { Err(PinError::NoAttribute(attribute)) } else { Ok(pinnings) }
    }

    /// Takes back the pins of a path, or those that were made under the name of an attribute, whatever that is by now. How
    /// many there were.
    ///
    /// # Errors
    /// When the index fails.
    pub async fn unpin(&self, what: Pinned) -> Result<usize, PinError> {
        let (name, hash) = match what {
            Pinned::Path(hash, name) => (name, Some(hash)),
            Pinned::Attribute(name) => (name, None),
        };
        let removed = self.0.index.unpin(name, hash).await?;
        self.0.metrics.pins(self.0.index.pin_count().await?);
        Ok(removed)
    }

    /// All pins, by name.
    ///
    /// # Errors
    /// When the index fails.
    pub async fn pins(&self) -> Result<Vec<PinRow>, index::Error> {
        self.0.index.pins().await
    }
}

impl std::fmt::Display for Pinning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path}")?,
            None => write!(f, "{}", self.hash)?,
        }
        if let Some((set, system)) = &self.of {
            write!(f, " (package set {set}, {system})")?;
        }
        f.write_str(if self.served { "" } else { ": not served yet, held once it is" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_by_its_hash_however_it_is_written_and_all_else_is_an_attribute() {
        let hash = "0123456789abcdfghijklmnpqrsvwxyz";
        let base = format!("{hash}-hello-2.12");
        let parsed = hash.parse().expect("a hash");
        for (text, name) in [(hash, hash), (&base, &base), (&format!("/nix/store/{base}"), &base)] {
            assert_eq!(Pinned::parse(text), Some(Pinned::Path(parsed, name.to_owned())));
        }
        for text in ["hello", "python3Packages.requests", "0123"] {
            assert_eq!(Pinned::parse(text), Some(Pinned::Attribute(text.to_owned())));
        }
        assert_eq!((Pinned::parse(""), Pinned::parse("/")), (None, None));
    }
}
