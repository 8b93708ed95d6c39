//! A narinfo: a binary cache's description of one store path, and the fingerprint that its signatures sign.
//! Parsing is ours, not a wrapped crate's: what is refused here (URLs, compressions, signatures) is most of
//! the work.

mod parse;

use std::collections::BTreeSet;
use std::fmt::{self, Write};

pub use parse::{NARINFO_BYTES_MAX, ParseError, SIGNATURES_MAX};

use crate::content_address::ContentAddress;
use crate::hash::NarHash;
use crate::signature::{PublicKey, Signature};
use crate::store_path::{StoreDir, StorePath};

/// Compression of a NAR file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// xz, Nix's default.
    Xz,
    /// Zstandard.
    Zstd,
    /// bzip2; also what an absent field means.
    Bzip2,
    /// gzip.
    Gzip,
    /// Brotli.
    Br,
    /// lz4 frames.
    Lz4,
    /// lzma, the format before xz.
    Lzma,
    /// lzip.
    Lzip,
}

impl Compression {
    const ALL: [(&'static str, Self); 9] = [
        ("none", Self::None),
        ("xz", Self::Xz),
        ("zstd", Self::Zstd),
        ("bzip2", Self::Bzip2),
        ("gzip", Self::Gzip),
        ("br", Self::Br),
        ("lz4", Self::Lz4),
        ("lzma", Self::Lzma),
        ("lzip", Self::Lzip),
    ];
}

impl Compression {
    /// The compression with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, compression)| *compression)
    }

    /// The ending of such a file's name after `.nar`, as Nix writes it.
    #[must_use]
    pub fn file_ending(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
            Self::Bzip2 => ".bz2",
            Self::Gzip => ".gz",
            Self::Br => ".br",
            Self::Lz4 => ".lz4",
            Self::Lzma => ".lzma",
            Self::Lzip => ".lzip",
        }
    }

    /// The compression whose files end so.
    #[must_use]
    pub fn from_file_ending(ending: &str) -> Option<Self> {
        Self::ALL.into_iter().map(|(_, compression)| compression).find(|known| known.file_ending() == ending)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            Self::ALL.iter().find(|(_, compression)| compression == self).map_or("none", |(name, _)| name);
        f.write_str(name)
    }
}

/// A store path, its contents and its signatures, as daemons, caches and indexes know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub path: StorePath,
    /// SHA-256 of the plain NAR.
    pub nar_hash: NarHash,
    /// Bytes of the plain NAR; 0 only from a daemon that never measured it.
    pub nar_size: u64,
    /// The paths it refers to, itself included where it does.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it, where known.
    pub deriver: Option<StorePath>,
    /// Its content address, where it has one.
    pub ca: Option<ContentAddress>,
    /// Signatures, not verified by parsing them.
    pub signatures: Vec<Signature>,
}

impl PathInfo {
    /// True when one of `keys` has signed it: then all that it says of the path is to be believed.
    #[must_use]
    pub fn is_signed(&self, store_dir: &StoreDir, keys: &[PublicKey]) -> bool {
        let fingerprint = self.fingerprint(store_dir);
        let signed = |signature| keys.iter().any(|key| key.verify(signature, &fingerprint));
        self.signatures.iter().any(signed)
    }

    /// True when the path has its name from its contents: then they may be proven without a signature, once
    /// they are here. Until then nothing is to be believed but the path and its references.
    #[must_use]
    pub fn names_contents(&self, store_dir: &StoreDir) -> bool {
        let names = |ca: &ContentAddress| ca.names(store_dir, &self.path, &self.nar_hash, &self.references);
        self.ca.as_ref().is_some_and(names)
    }

    /// The text that its signatures sign: its name, its contents and the names of its references
    /// (<https://nix.dev/manual/nix/latest/protocols/nix-archive> and upstream's
    /// `ValidPathInfo::fingerprint`).
    #[must_use]
    pub fn fingerprint(&self, store_dir: &StoreDir) -> String {
        let Self { path, nar_hash, nar_size, references, .. } = self;
        let references: Vec<String> =
            references.iter().map(|reference| reference.in_dir(store_dir)).collect();
        format!("1;{};{nar_hash};{nar_size};{}", path.in_dir(store_dir), references.join(","))
    }
}

/// A cache's description of one store path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo {
    /// The path, its contents and its signatures. The size is never 0.
    pub path_info: PathInfo,
    /// Where its file is: relative to the cache, or absolute with http or https.
    pub url: String,
    /// Compression of the file.
    pub compression: Compression,
    /// SHA-256 of the file; for information, since clients never verify it.
    pub file_hash: Option<NarHash>,
    /// Bytes of the file; for information.
    pub file_size: Option<u64>,
}

impl NarInfo {
    /// Parses a narinfo of a cache whose store is `store_dir`.
    ///
    /// # Errors
    /// The narinfo is malformed, too large, or names something outside the store or the cache.
    pub fn parse(store_dir: &StoreDir, bytes: &[u8]) -> Result<Self, ParseError> {
        parse::parse(store_dir, bytes)
    }

    /// The text that clients of every version take. `Compression` and `References` are always there: absent,
    /// the first means bzip2; and a value begins two characters after its colon, so an empty list still has
    /// its space.
    #[must_use]
    pub fn render(&self, store_dir: &StoreDir) -> String {
        let PathInfo { path, nar_hash, nar_size, references, deriver, ca, signatures } = &self.path_info;
        let mut text = String::with_capacity(1024);
        let mut line = |name: &str, value: &dyn fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        };
        line("StorePath", &path.in_dir(store_dir));
        line("URL", &self.url);
        line("Compression", &self.compression);
        if let Some(hash) = &self.file_hash {
            line("FileHash", hash);
        }
        if let Some(size) = &self.file_size {
            line("FileSize", size);
        }
        line("NarHash", nar_hash);
        line("NarSize", nar_size);
        let references: Vec<String> = references.iter().map(ToString::to_string).collect();
        line("References", &references.join(" "));
        if let Some(deriver) = deriver {
            line("Deriver", deriver);
        }
        for signature in signatures {
            line("Sig", signature);
        }
        if let Some(ca) = ca {
            line("CA", ca);
        }
        text
    }
}
