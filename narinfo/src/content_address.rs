//! Content addresses: how the contents alone fix a store path (the CA field of a narinfo).
//! Kept as checked text; recomputed where a path without a signature must prove itself.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use nix_derivation::{CAHash, NixHash, NixHasher};

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
        match CAHash::parse(text) {
            Ok(address) => Ok(Self(address.to_nix_string())),
            Err(_) => Err(ContentAddressError(text.chars().take(120).collect())),
        }
    }
}

impl ContentAddress {
    /// True when a path has its name from this address and these references. Then no signature is needed, but
    /// for nothing else: the size of the contents is not fixed, their NAR hash only where the address is that
    /// hash, and the contents are proven only by themselves (see [`Addressed`]). Always false for git trees,
    /// which cannot be recomputed here.
    #[must_use]
    pub fn names(
        &self,
        store_dir: &StoreDir,
        path: &StorePath,
        nar_hash: &NarHash,
        references: &BTreeSet<StorePath>,
    ) -> bool {
        let Some(address) = self.inner() else { return false };
        let refers_to_itself = references.contains(path);
        match &address {
            CAHash::Git(_) => return false,
            CAHash::Nar(NixHash::Sha256(hash)) if !refers_to_itself && hash != nar_hash.as_bytes() => {
                return false;
            }
            _ => {}
        }
        let others = references.iter().filter(|reference| *reference != path);
        self.path_of(store_dir, path.name(), others, refers_to_itself).as_ref() == Some(path)
    }

    /// The path of this name that has these contents and refers to these paths; `None` where there is none,
    /// as for a flat file that refers to others.
    #[must_use]
    pub fn path<'a>(
        &self,
        store_dir: &StoreDir,
        name: &str,
        references: impl IntoIterator<Item = &'a StorePath>,
    ) -> Option<StorePath> {
        self.path_of(store_dir, name, references, false)
    }

    fn path_of<'a>(
        &self,
        store_dir: &StoreDir,
        name: &str,
        others: impl IntoIterator<Item = &'a StorePath>,
        refers_to_itself: bool,
    ) -> Option<StorePath> {
        let inner = |path: &StorePath| nix_derivation::StorePath::from_basename(path.to_string().as_bytes());
        let others = others.into_iter().map(inner).collect::<Result<Vec<_>, _>>().ok()?;
        let named = store_dir.inner().build_ca_path(name, &self.inner()?, &others, refers_to_itself);
        StorePath::from_inner(&named.ok()?).ok()
    }

    fn inner(&self) -> Option<CAHash> {
        CAHash::parse(&self.0).ok()
    }
}

/// The contents that a content-addressed path must have.
#[derive(Clone, Debug)]
pub struct Addressed {
    address: ContentAddress,
    /// The path, where it refers to itself: its own hash does not count then.
    itself: Option<StorePath>,
}

impl Addressed {
    /// The contents of a path that has its name from `address` and these references.
    #[must_use]
    pub fn new(address: ContentAddress, path: &StorePath, references: &BTreeSet<StorePath>) -> Self {
        Self { address, itself: references.contains(path).then(|| path.clone()) }
    }

    /// Begins to recompute the address; `None` where that cannot be done here.
    pub(crate) fn recompute(&self) -> Option<Recomputed> {
        let address = self.address.inner()?;
        let of = match &address {
            CAHash::Nar(_) => Of::Nar,
            CAHash::Flat(_) | CAHash::Text(_) => Of::File,
            CAHash::Git(_) => return None,
        };
        let expected = address.hash();
        let hasher = NixHasher::new(expected.algorithm());
        let modulo = self.itself.as_ref().filter(|_| of == Of::Nar).map(|path| Modulo {
            own: path.hash().as_str().as_bytes().to_vec(),
            held: Vec::new(),
            passed: 0,
            found: Vec::new(),
        });
        Some(Recomputed { of, expected, hasher, modulo })
    }
}

/// Contents that an address is the hash of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The whole NAR.
    Nar,
    /// The bytes of the only file in it, which must not be executable.
    File,
}

/// A content address that is recomputed from the bytes that it addresses.
pub(crate) struct Recomputed {
    pub(crate) of: Of,
    expected: NixHash,
    hasher: NixHasher,
    modulo: Option<Modulo>,
}

impl Recomputed {
    /// The next bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.modulo {
            None => self.hasher.update(bytes),
            Some(modulo) => modulo.update(bytes, &mut self.hasher),
        }
    }

    /// True when the bytes were those of the address.
    pub(crate) fn fits(mut self) -> bool {
        if let Some(modulo) = self.modulo {
            modulo.end(&mut self.hasher);
        }
        self.hasher.finalize() == self.expected
    }
}

/// Hashes a path that refers to itself: its own hash counts as zeros wherever it stands, and where it stands
/// is hashed behind all else, as `HashModuloSink` of Nix does.
struct Modulo {
    own: Vec<u8>,
    /// The end of what came, which may be the start of the own hash.
    held: Vec<u8>,
    /// Bytes before that.
    passed: usize,
    found: Vec<usize>,
}

impl Modulo {
    fn update(&mut self, bytes: &[u8], hasher: &mut NixHasher) {
        self.held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(next) = self.held[at..].windows(self.own.len()).position(|part| part == self.own) {
            at += next;
            self.found.push(self.passed + at);
            self.held[at..at + self.own.len()].fill(0);
            at += self.own.len();
        }
        let whole = self.held.len().saturating_sub(self.own.len() - 1);
        hasher.update(&self.held[..whole]);
        self.held.drain(..whole);
        self.passed += whole;
    }

    fn end(self, hasher: &mut NixHasher) {
        hasher.update(&self.held);
        for at in self.found {
            hasher.update(format!("|{at}").as_bytes());
        }
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
