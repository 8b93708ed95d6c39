//! The small files in which a cache describes its content: their addresses, size limits and conditions of
//! trust.

use std::fmt::{self, Debug, Display};

use narinfo::{
    DrvOutput, NARINFO_BYTES_MAX, NarHash, NarInfo, PublicKey, REALISATION_BYTES_MAX, Realisation, Signature,
    StoreDir, StorePathHash,
};

use crate::causes::with_causes;

/// A kind of small file.
pub(super) trait Document: Sized + Debug + Send + 'static {
    /// The key of a request.
    type Key: Clone + Display + Send + Sync + 'static;
    /// The kind's name.
    const KIND: DocumentKind;
    /// Bytes at most.
    const BYTES_MAX: usize;

    /// Where a cache has it, from its address on.
    fn file(key: &Self::Key) -> String;

    /// Parses it, if it is about `key` and well-formed.
    fn parse(store_dir: &StoreDir, key: &Self::Key, bytes: &[u8]) -> Result<Self, String>;

    /// True if one of `keys` has signed it, or if it is of a path that its contents may prove once they are
    /// here.
    fn is_trusted(&self, store_dir: &StoreDir, keys: &[PublicKey]) -> bool;

    /// Its signatures, not verified.
    fn signatures(&self) -> &[Signature];

    /// The NAR that it promises.
    fn nar(&self) -> Option<NarHash>;
}

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DocumentKind {
    /// Description of a path.
    Narinfo,
    /// Description of an output of a content-addressed derivation.
    Realisation,
}

impl Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Narinfo => "narinfo",
            Self::Realisation => "realisation",
        })
    }
}

impl Document for NarInfo {
    type Key = StorePathHash;
    const KIND: DocumentKind = DocumentKind::Narinfo;
    const BYTES_MAX: usize = NARINFO_BYTES_MAX;

    fn file(hash: &StorePathHash) -> String {
        format!("{hash}.narinfo")
    }

    fn parse(store_dir: &StoreDir, hash: &StorePathHash, bytes: &[u8]) -> Result<Self, String> {
        let info = NarInfo::parse(store_dir, bytes).map_err(|error| with_causes(&error))?;
        let path = &info.path_info.path;
        if path.hash() == *hash { Ok(info) } else { Err(format!("it is of {path}")) }
    }

    fn is_trusted(&self, store_dir: &StoreDir, keys: &[PublicKey]) -> bool {
        self.path_info.is_signed(store_dir, keys) || self.path_info.names_contents(store_dir)
    }

    fn signatures(&self) -> &[Signature] {
        &self.path_info.signatures
    }

    fn nar(&self) -> Option<NarHash> {
        Some(self.path_info.nar_hash)
    }
}

impl Document for Realisation {
    type Key = DrvOutput;
    const KIND: DocumentKind = DocumentKind::Realisation;
    const BYTES_MAX: usize = REALISATION_BYTES_MAX;

    fn file(id: &DrvOutput) -> String {
        id.file()
    }

    fn parse(_: &StoreDir, id: &DrvOutput, bytes: &[u8]) -> Result<Self, String> {
        Realisation::parse(id, bytes).map_err(|error| with_causes(&error))
    }

    fn is_trusted(&self, _: &StoreDir, keys: &[PublicKey]) -> bool {
        self.is_trusted(keys)
    }

    fn signatures(&self) -> &[Signature] {
        self.signatures()
    }

    fn nar(&self) -> Option<NarHash> {
        None
    }
}
