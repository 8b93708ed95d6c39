//! Served paths, their NARs here and upstream, and the narinfo that follows from both.

use narinfo::{Compression, NarHash, NarInfo, PathInfo};

/// A store path that is served: everything a narinfo says except where its file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRow {
    /// The path and its contents, with every signature that is served, our own included.
    pub info: PathInfo,
    /// True where it was built on this machine.
    pub built: bool,
}

/// A packed NAR: a complete, verified file in the NAR store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarRow {
    /// SHA-256 of the plain NAR; names the file.
    pub nar_hash: NarHash,
    /// SHA-256 of the zstd file.
    pub file_hash: NarHash,
    /// Bytes of the zstd file.
    pub file_size: u64,
}

/// A NAR that was stored just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNar {
    /// Its file.
    pub row: NarRow,
    /// Names of its programs, in its folder `bin`.
    pub programs: Vec<String>,
}

impl From<NarRow> for NewNar {
    fn from(row: NarRow) -> Self {
        Self { row, programs: Vec::new() }
    }
}

/// A NAR that an upstream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamNar {
    /// SHA-256 of the plain NAR.
    pub nar_hash: NarHash,
    /// The upstream's name: its URL.
    pub upstream: String,
    /// Address of its file, as the upstream's narinfo has it.
    pub url: String,
    /// Compression of the file.
    pub compression: Compression,
    /// SHA-256 of the file, as the upstream says.
    pub file_hash: Option<NarHash>,
    /// Bytes of the file, as the upstream says.
    pub file_size: Option<u64>,
    /// True where clients are redirected there.
    pub redirect: bool,
}

/// A path that was built here beside the same path of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The upstream's name: its URL.
    pub upstream: String,
    /// SHA-256 of its NAR.
    pub nar_hash: NarHash,
    /// True where that is what was built here.
    pub same: bool,
}

/// An index hit: the path, and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The path.
    pub row: PathRow,
    /// Its file; `None` while only the Nix store, or an upstream, has the contents.
    pub packed: Option<NarRow>,
    /// The upstream that clients are redirected to for what is not packed.
    pub redirect: Option<UpstreamNar>,
}

impl Hit {
    /// The narinfo that clients get.
    #[must_use]
    pub fn narinfo(&self) -> NarInfo {
        let Hit { row, packed, redirect } = self;
        // The file that a client gets: ours, or the upstream's where it is sent there.
        let (compression, file_hash, file_size) = match redirect {
            Some(nar) => (nar.compression, nar.file_hash, nar.file_size),
            None => (Compression::Zstd, packed.map(|nar| nar.file_hash), packed.map(|nar| nar.file_size)),
        };
        NarInfo {
            path_info: row.info.clone(),
            url: format!("nar/{}.nar{}", row.info.nar_hash.to_nixbase32(), compression.file_ending()),
            compression,
            file_hash,
            file_size,
        }
    }
}

/// Totals of what the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Store paths that are served.
    pub paths: u64,
    /// NARs on disk.
    pub nars: u64,
    /// Bytes of those files.
    pub nar_bytes: u64,
    /// Failures that are remembered.
    pub failures: u64,
    /// Own builds that an upstream has with the same contents.
    pub reproduced: u64,
    /// Own builds that an upstream has with other contents.
    pub not_reproduced: u64,
}
