//! Store directories, store paths and the hash part of a store path, as in
//! <https://nix.dev/manual/nix/latest/store/store-path>. Strict: what parses can be printed into a path or a
//! URL unseen.

use std::fmt;
use std::str::FromStr;

use crate::nixbase32;

/// Characters of the hash part.
const HASH_CHARS: usize = 32;

/// Why something is no store directory, store path or hash part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorePathError {
    /// Not 32 characters of Nix's alphabet.
    #[error("{0:?} is not the hash of a store path: 32 of the characters 0123456789abcdfghijklmnpqrsvwxyz")]
    Hash(String),
    /// Not `<hash>-<name>`.
    #[error(
        "{0:?} is not the base name of a store path: <hash>-<name>, the name 1 to 211 of A-Z a-z 0-9 + - . _ ? ="
    )]
    BaseName(String),
    /// Not directly in the store directory.
    #[error("{path:?} is not a path in the store {store_dir}")]
    Outside {
        /// The path.
        path: String,
        /// The store.
        store_dir: StoreDir,
    },
    /// Not an absolute, canonical path.
    #[error("{0:?} is not a store directory: an absolute path without \".\", \"..\" and trailing slash")]
    StoreDir(String),
}

/// Messages show the beginning of what was wrong.
fn excerpt(text: &str) -> String {
    text.chars().take(260).collect()
}

/// The directory that store paths are in: `/nix/store`, nearly everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StoreDir(nix_derivation::StoreDir);

impl StoreDir {
    /// Checks that `path` is absolute and canonical, and one line of text.
    ///
    /// # Errors
    /// The path is relative, not canonical, or more than a line.
    pub fn new(path: &str) -> Result<Self, StorePathError> {
        let error = || StorePathError::StoreDir(excerpt(path));
        if path == "/" || path.chars().any(char::is_control) {
            return Err(error());
        }
        nix_derivation::StoreDir::new(path).map(Self).map_err(|_| error())
    }

    /// The directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// For the modules that hand it to nix-derivation.
    pub(crate) fn inner(&self) -> &nix_derivation::StoreDir {
        &self.0
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The hash part of a store path: what a binary cache is asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; HASH_CHARS]);

impl StorePathHash {
    /// Its 32 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for StorePathHash {
    type Err = StorePathError;

    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let error = || StorePathError::Hash(excerpt(text));
        // Any digits will do: they have the bits of 20 bytes, and none beyond.
        let digits = text.as_bytes().try_into().map_err(|_| error())?;
        if nixbase32::are_digits(text.as_bytes()) { Ok(Self(digits)) } else { Err(error()) }
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A store path, without the directory it is in. Ordered as Nix orders them: by base name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: StorePathHash,
    name: String,
}

impl StorePath {
    /// Parses a base name, `<hash>-<name>`.
    ///
    /// # Errors
    /// The name is anything else.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        let error = || StorePathError::BaseName(excerpt(base_name));
        let (hash, name) = base_name.split_at_checked(HASH_CHARS).ok_or_else(error)?;
        let hash = hash.parse().map_err(|_| error())?;
        nix_derivation::StorePath::from_basename(base_name.as_bytes()).map_err(|_| error())?;
        Ok(Self { hash, name: name[1..].to_owned() })
    }

    /// Parses a full path in `store_dir`.
    ///
    /// # Errors
    /// The path is not directly in that directory, or no store path.
    pub fn parse_in(store_dir: &StoreDir, path: &str) -> Result<Self, StorePathError> {
        let rest = path.strip_prefix(store_dir.as_str()).and_then(|rest| rest.strip_prefix('/'));
        match rest {
            Some(base_name) => Self::parse(base_name),
            None => Err(StorePathError::Outside { path: excerpt(path), store_dir: store_dir.clone() }),
        }
    }

    /// Parses a base name, or a full path in `store_dir`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse_either(store_dir: &StoreDir, text: &str) -> Result<Self, StorePathError> {
        if text.starts_with('/') { Self::parse_in(store_dir, text) } else { Self::parse(text) }
    }

    /// The hash part.
    #[must_use]
    pub fn hash(&self) -> StorePathHash {
        self.hash
    }

    /// The name after the hash part.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if it is a derivation by its name.
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.name.ends_with(".drv")
    }

    /// The full path in `store_dir`.
    #[must_use]
    pub fn in_dir(&self, store_dir: &StoreDir) -> String {
        format!("{store_dir}/{self}")
    }

    /// From a path that nix-derivation has checked.
    pub(crate) fn from_inner(path: &nix_derivation::StorePath) -> Result<Self, StorePathError> {
        Self::parse(&path.to_basename())
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    fn from_str(base_name: &str) -> Result<Self, StorePathError> {
        Self::parse(base_name)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hash, self.name)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
