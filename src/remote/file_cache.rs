//! A binary cache in a directory, as `nix copy --to file://` makes it: read and checked, and never changed.
//! Believes nothing that no trusted key has signed, save paths that are named by their contents.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use narinfo::{CacheInfo, Compression, NarInfo, PathInfo, PublicKey, StoreDir, StorePath};

use super::packed_nar::PackedNar;

/// Bytes of a narinfo at most.
const NARINFO_BYTES_MAX: u64 = 1024 * 1024;
/// File that describes a cache.
const CACHE_INFO: &str = "nix-cache-info";
/// The reason for a directory that is something else.
const NO_CACHE: &str = "it is neither a binary cache (no nix-cache-info and no narinfo) nor the directory of an attic \
                        server (no server.db beside a folder storage); if attic's settings name other places, give the \
                        path of its [storage] here, and the file of its database with --database";

/// A path of a cache that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedPath {
    /// The path, or the file that was to describe it.
    pub path: String,
    /// The defect.
    pub reason: String,
}

/// The paths of a cache in a directory.
#[derive(Debug)]
pub struct FileCache {
    dir: PathBuf,
    narinfos: BTreeMap<StorePath, NarInfo>,
    rejected: Vec<RejectedPath>,
}

impl FileCache {
    /// Reads all narinfos of the directory. Those that are not right are rejected.
    ///
    /// # Errors
    /// The directory cannot be read, is no cache, or is one of another store directory.
    pub fn open(dir: &Path, store_dir: &StoreDir, keys: &[PublicKey]) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        let is_described = check_store_dir(&dir, store_dir)?;
        let (mut narinfos, mut rejected) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(hash) = name.strip_suffix(".narinfo") else { continue };
            match read(&dir, &name, hash, store_dir, keys) {
                Ok(narinfo) => drop(narinfos.insert(narinfo.path_info.path.clone(), narinfo)),
                Err(reason) => rejected.push(RejectedPath { path: name, reason }),
            }
        }
        // One without a description is taken for a cache of this store if there is anything to take.
        if !is_described && narinfos.is_empty() && rejected.is_empty() {
            return Err(io::Error::other(NO_CACHE));
        }
        Ok(Self { dir, narinfos, rejected })
    }

    /// The paths that are right.
    pub(super) fn infos(&self) -> impl ExactSizeIterator<Item = &PathInfo> {
        self.narinfos.values().map(|narinfo| &narinfo.path_info)
    }

    /// The paths that are not.
    pub(super) fn rejected(&self) -> &[RejectedPath] {
        &self.rejected
    }

    /// The file with the NAR of a path as it is, and its compression. Blocking.
    pub(super) fn nar(&self, path: &StorePath) -> io::Result<(Compression, PackedNar)> {
        let narinfo = self.narinfos.get(path).ok_or(io::ErrorKind::NotFound)?;
        let file = File::open(file_within(&self.dir, Path::new(&narinfo.url))?)?;
        Ok((narinfo.compression, PackedNar::of_file(file)?))
    }
}

/// Compares the store directories. Gives false for a directory without a description.
fn check_store_dir(dir: &Path, store_dir: &StoreDir) -> io::Result<bool> {
    let mut text = Vec::new();
    match open(&dir.join(CACHE_INFO)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?.take(NARINFO_BYTES_MAX).read_to_end(&mut text)?,
    };
    let info = CacheInfo::parse(&text).map_err(|error| io::Error::other(format!("{CACHE_INFO}: {error}")))?;
    if info.store_dir == *store_dir {
        return Ok(true);
    }
    let reason = format!("it is a cache of the store {}, and this one is {store_dir}", info.store_dir);
    Err(io::Error::other(reason))
}

/// Opens a file, and nothing that would never end, such as a named pipe.
fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    File::open(path)
}

fn read(
    dir: &Path,
    name: &str,
    hash: &str,
    store_dir: &StoreDir,
    keys: &[PublicKey],
) -> Result<NarInfo, String> {
    let mut text = Vec::new();
    let file = open(&dir.join(name)).map_err(|error| error.to_string())?;
    file.take(NARINFO_BYTES_MAX + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > NARINFO_BYTES_MAX {
        return Err(format!("it has more than {NARINFO_BYTES_MAX} bytes"));
    }
    let narinfo = NarInfo::parse(store_dir, &text).map_err(|error| error.to_string())?;
    let info = &narinfo.path_info;
    if info.path.hash().to_string() != hash {
        return Err(format!("it describes {}, which has another hash", info.path));
    }
    if !info.is_signed(store_dir, keys) && !info.names_contents(store_dir) {
        let advice = if info.signatures.is_empty() { ": sign it first (nix store sign)" } else { "" };
        return Err(unsigned(info, keys) + advice);
    }
    file_within(dir, Path::new(&narinfo.url)).map_err(|error| format!("its NAR {}: {error}", narinfo.url))?;
    Ok(narinfo)
}

/// Reason for a path that no trusted key has signed and that is not named by its contents.
pub(super) fn unsigned(info: &PathInfo, keys: &[PublicKey]) -> String {
    let mut signers: Vec<String> =
        info.signatures.iter().map(|signature| signature.name().to_string()).collect();
    signers.sort_unstable();
    signers.dedup();
    let trusted: Vec<String> = keys.iter().map(|key| key.name().to_string()).collect();
    if signers.is_empty() {
        return "it has no signature, and is not named by its contents".to_owned();
    }
    if let Some(signer) = signers.iter().find(|signer| trusted.contains(signer)) {
        return format!(
            "its signature by {signer} does not fit the key of that name, or the path has changed since"
        );
    }
    let signers = signers.join(", ");
    match trusted.is_empty() {
        true => format!("it has signatures by: {signers}; name the public key of one with --trusted-key"),
        false => format!(
            "it has signatures by: {signers}; none of them is a key that --trusted-key names ({})",
            trusted.join(", ")
        ),
    }
}

/// The file at a relative place, which must be in the directory.
pub(super) fn file_within(dir: &Path, relative: &Path) -> io::Result<PathBuf> {
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || relative.as_os_str().is_empty() {
        return Err(io::Error::other("it is outside of the cache"));
    }
    let file = dir.join(relative).canonicalize()?;
    match file.starts_with(dir) && file.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file of the cache")),
    }
}
