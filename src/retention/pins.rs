//! Pins: what is named is found out once, by who pins it, and stands until it is unpinned.

use narinfo::{StorePath, StorePathHash};

use super::Retention;
use crate::index;
use crate::model::PinRow;

/// Something to pin, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// The path with this hash; and as it was written.
    Path(StorePathHash, String),
    /// The outputs of the derivation that an attribute of a package set has now: `<set>/<attribute>`, or the
    /// attribute alone.
    Attribute(String),
}

/// A path that was pinned.
#[derive(Clone, Debug)]
pub struct Pinning {
    /// The package set and the system; `None` for a path that was named itself.
    pub of: Option<(String, String)>,
    /// The hash of the path.
    pub hash: StorePathHash,
    /// The path, if it is known.
    pub path: Option<StorePath>,
    /// True where it is served; one that is not is retained once it is.
    pub served: bool,
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

impl Retention {
    /// Holds these paths under a name, and all that they refer to, from now on or from when they are served.
    ///
    /// # Errors
    /// The index fails.
    pub async fn pin(&self, name: String, mut pinnings: Vec<Pinning>) -> Result<Vec<Pinning>, index::Error> {
        let index = &self.0.index;
        index.pin(name, pinnings.iter().map(|pinning| pinning.hash).collect()).await?;
        for pinning in &mut pinnings {
            if let Some(hit) = index.find(pinning.hash).await? {
                (pinning.path, pinning.served) = (Some(hit.row.info.path), true);
            }
        }
        self.0.metrics.pins(index.pin_count().await?);
        Ok(pinnings)
    }

    /// Takes back the pins of a path, or those that were made under a name, whatever that is by now. How many
    /// there were.
    ///
    /// # Errors
    /// The index fails.
    pub async fn unpin(&self, name: String, hash: Option<StorePathHash>) -> Result<usize, index::Error> {
        let removed = self.0.index.unpin(name, hash).await?;
        self.0.metrics.pins(self.0.index.pin_count().await?);
        Ok(removed)
    }

    /// All pins, by name.
    ///
    /// # Errors
    /// The index fails.
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
