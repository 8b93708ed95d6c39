//! The store of an attic server on this machine: chunks in a directory, and a SQLite database about them.
//! Each chunk is verified, and so is the NAR that they make. Believes nothing that no trusted key has signed;
//! attic signs with a cache's own key what it serves, so trust in that key is trust in the whole cache.

mod database;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use narinfo::{Compression, NarHash, PathInfo, PublicKey, SIGNATURES_MAX, SecretKey, StoreDir, StorePath};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::file_cache::{RejectedPath, file_within, unsigned};
use super::packed_nar::{NarPacker, PackedNar};
use crate::decode;
pub use database::AtticDatabaseError;
use database::{AtticCache, AtticChunk, AtticDatabase, AtticNar, AtticObject};

/// File and folder of an attic server in its state directory, unless its settings say otherwise.
const DATABASE: &str = "server.db";
const CHUNKS: &str = "storage";
/// File with the version of the layout of chunks.
const VERSION: &str = "VERSION";
/// The newest layout: chunks in folders named by their first one and two characters. Before it, all were in
/// one folder, and there was no file with the version.
const LAYOUT: u32 = 1;
/// The reason for a chunk that is not in the directory.
const IN_A_BUCKET: &str =
    "it is in a bucket, which is not read here: have the attic server as an upstream instead";
/// Bytes of a chunk that are hashed and written together.
const PIECE_BYTES: usize = 64 * 1024;

/// The reason that nothing of an attic store can be imported.
#[derive(Debug, thiserror::Error)]
pub enum AtticError {
    /// The database cannot be read.
    #[error(transparent)]
    Database(#[from] AtticDatabaseError),
    /// The directory of chunks cannot be read, or has another layout.
    #[error("cannot read the chunks in {}: {reason}", dir.display())]
    Chunks {
        /// The directory.
        dir: PathBuf,
        /// The defect.
        reason: String,
    },
    /// There is no such cache, or several to choose from.
    #[error("{reason}: name one of its caches with --cache ({known})")]
    Cache {
        /// The defect.
        reason: String,
        /// Names of all caches.
        known: String,
    },
    /// The cache is of another store.
    #[error("the cache {cache} is one of the store {other}, and this one is {own}")]
    StoreDir {
        /// Name of the cache.
        cache: String,
        /// Its store directory.
        other: String,
        /// The own.
        own: String,
    },
}

/// Places of an attic store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtticPlaces {
    /// The database.
    pub database: PathBuf,
    /// The directory with chunks.
    pub chunks: PathBuf,
}

impl AtticPlaces {
    /// The places in a state directory of attic, if it is one.
    #[must_use]
    pub fn within(dir: &Path) -> Option<Self> {
        let places = Self { database: dir.join(DATABASE), chunks: dir.join(CHUNKS) };
        (places.database.is_file() && places.chunks.is_dir()).then_some(places)
    }
}

/// The paths of a cache of an attic server.
#[derive(Debug)]
pub struct AtticStore {
    database: AtticDatabase,
    chunks: PathBuf,
    layout: u32,
    paths: BTreeMap<StorePath, (PathInfo, AtticNar)>,
    rejected: Vec<RejectedPath>,
}

impl AtticStore {
    /// Reads all paths of a cache, or of the only one. Those that are not right are rejected.
    ///
    /// # Errors
    /// The database or the directory of chunks cannot be read, or there is no such cache of this store.
    pub fn open(
        places: &AtticPlaces,
        cache: Option<&str>,
        store_dir: &StoreDir,
        keys: &[PublicKey],
    ) -> Result<Self, AtticError> {
        let failed = |reason: String| AtticError::Chunks { dir: places.chunks.clone(), reason };
        let chunks = places.chunks.canonicalize().map_err(|error| failed(error.to_string()))?;
        let layout = layout(&chunks).map_err(failed)?;
        let database = AtticDatabase::open(&places.database)?;
        let cache = chosen(database.caches()?, cache)?;
        if cache.store_dir != store_dir.as_str() {
            let AtticCache { name, store_dir: other, .. } = cache;
            return Err(AtticError::StoreDir { cache: name, other, own: store_dir.to_string() });
        }
        let (mut paths, mut rejected) = (BTreeMap::new(), Vec::new());
        for object in database.objects(cache.id)? {
            match path_info(store_dir, &object, cache.key.as_ref(), keys) {
                Ok(info) => drop(paths.insert(info.path.clone(), (info, object.nar))),
                Err(reason) => rejected.push(RejectedPath { path: object.path, reason }),
            }
        }
        Ok(Self { database, chunks, layout, paths, rejected })
    }

    /// The paths that are right.
    pub(super) fn infos(&self) -> impl ExactSizeIterator<Item = &PathInfo> {
        self.paths.values().map(|(info, _)| info)
    }

    /// The paths that are not.
    pub(super) fn rejected(&self) -> &[RejectedPath] {
        &self.rejected
    }

    /// Puts the NAR of a path together from its chunks, and packs it. Blocking.
    pub(super) fn nar(&self, path: &StorePath) -> io::Result<PackedNar> {
        let (info, nar) = self.paths.get(path).ok_or(io::ErrorKind::NotFound)?;
        let chunks = self.database.chunks(nar.id).map_err(io::Error::other)?;
        if i64::try_from(chunks.len()) != Ok(nar.chunks) {
            let reason = format!("the database has {} of its {} chunks", chunks.len(), nar.chunks);
            return Err(io::Error::other(reason));
        }
        let mut packer = NarPacker::new()?;
        for (at, chunk) in chunks.iter().enumerate() {
            let written = match chunk {
                Some(chunk) => self.copy_chunk(chunk, &mut packer),
                None => Err(io::Error::other("the database has lost it")),
            };
            written.map_err(|error| {
                io::Error::other(format!("chunk {} of {}: {error}", at + 1, chunks.len()))
            })?;
        }
        let packed = packer.finish()?;
        match packed.is_of(info) {
            true => Ok(packed.file),
            false => Err(io::Error::other("its chunks make another NAR than the database says")),
        }
    }

    /// Writes a plain chunk, which is verified on the way.
    fn copy_chunk(&self, chunk: &AtticChunk, to: &mut impl Write) -> io::Result<()> {
        if !chunk.is_complete {
            return Err(io::Error::other("it was not uploaded to its end"));
        }
        let compression = Compression::from_name(&chunk.compression)
            .ok_or_else(|| io::Error::other(format!("its compression {:?} is unknown", chunk.compression)))?;
        let hash: NarHash = chunk.hash.parse().map_err(io::Error::other)?;
        let bytes = u64::try_from(chunk.bytes).map_err(io::Error::other)?;
        let file = File::open(self.file(&chunk.file)?)?;
        let mut plain = decode::plain(compression, file)?.take(bytes.saturating_add(1));
        let (mut digest, mut count, mut piece) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            let read = match plain.read(&mut piece) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            digest.update(&piece[..read]);
            count += read as u64;
            to.write_all(&piece[..read])?;
        }
        if count == bytes && NarHash::from_bytes(digest.finalize().into()) == hash {
            return Ok(());
        }
        Err(io::Error::other("its file is damaged: it has another hash or size than the database says"))
    }

    /// The file at a place that the database names.
    fn file(&self, place: &str) -> io::Result<PathBuf> {
        let name = match narinfo::json::from_str(place) {
            Ok(ChunkPlace::Local { name }) => name,
            Ok(ChunkPlace::S3 {} | ChunkPlace::Http {}) => {
                return Err(io::Error::other(IN_A_BUCKET));
            }
            Err(error) => return Err(io::Error::other(format!("its place is not understood: {error}"))),
        };
        let folders = match self.layout {
            0 => PathBuf::new(),
            _ => [name.get(..1), name.get(..2)].into_iter().flatten().collect(),
        };
        file_within(&self.chunks, &folders.join(&name))
    }
}

/// Place of a chunk's file.
#[derive(Deserialize)]
enum ChunkPlace {
    Local { name: String },
    S3 {},
    Http {},
}

/// Version of the layout of a directory of chunks.
fn layout(dir: &Path) -> Result<u32, String> {
    let text = match fs::read_to_string(dir.join(VERSION)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other.map_err(|error| format!("{VERSION}: {error}"))?,
    };
    match text.trim().parse() {
        Ok(version) if version <= LAYOUT => Ok(version),
        _ => Err(format!("its layout has the version {:?}, and only up to {LAYOUT} is known", text.trim())),
    }
}

/// The cache of this name, or the only one.
fn chosen(caches: Vec<AtticCache>, name: Option<&str>) -> Result<AtticCache, AtticError> {
    let known: Vec<String> = caches.iter().map(|cache| cache.name.clone()).collect();
    let several = caches.len() > 1;
    let mut wanted = caches.into_iter().filter(|cache| name.is_none_or(|name| name == cache.name));
    match wanted.next() {
        Some(cache) if name.is_some() || !several => Ok(cache),
        found => {
            let reason = match (name, found) {
                (Some(name), _) => format!("there is no cache {name}"),
                (None, Some(_)) => "the server has several caches".to_owned(),
                (None, None) => "the server has no cache".to_owned(),
            };
            Err(AtticError::Cache { reason, known: known.join(", ") })
        }
    }
}

/// The description of a path, signed as attic would sign it where the cache's own key is trusted.
fn path_info(
    store_dir: &StoreDir,
    object: &AtticObject,
    own: Option<&SecretKey>,
    keys: &[PublicKey],
) -> Result<PathInfo, String> {
    let AtticObject { path, references, deriver, signatures, ca, nar } = object;
    if !nar.is_complete {
        return Err("it was not uploaded to its end".to_owned());
    }
    let list = |field: &str, text: &str| {
        narinfo::json::from_str::<Vec<String>>(text).map_err(|error| format!("its {field}: {error}"))
    };
    let named = |path: &str| {
        StorePath::parse_either(store_dir, path).map_err(|error| format!("it names {path}: {error}"))
    };
    let references = list("references", references)?;
    let signatures = list("signatures", signatures)?;
    let signatures = signatures.iter().filter_map(|signature| signature.parse().ok());
    let mut info = PathInfo {
        path: StorePath::parse_in(store_dir, path).map_err(|error| error.to_string())?,
        nar_hash: nar.hash.parse().map_err(|error| format!("its hash: {error}"))?,
        nar_size: u64::try_from(nar.bytes).map_err(|error| format!("its size: {error}"))?,
        references: references.iter().map(|reference| named(reference)).collect::<Result<_, _>>()?,
        // Clients give any text for it; none is better than a wrong one.
        deriver: deriver.as_deref().and_then(|deriver| named(deriver).ok()),
        ca: ca.as_deref().and_then(|ca| ca.parse().ok()),
        signatures: signatures.take(SIGNATURES_MAX - 1).collect(),
    };
    let own_public = own.map(SecretKey::public_key);
    if let (Some(own), Some(public)) = (own, &own_public)
        && keys.contains(public)
    {
        info.signatures.insert(0, own.sign(&info.fingerprint(store_dir)));
    }
    if info.is_signed(store_dir, keys) || info.names_contents(store_dir) {
        return Ok(info);
    }
    let reason = unsigned(&info, keys);
    Err(match own_public {
        Some(public) => {
            format!("{reason}; to believe all that this cache has, name its key: --trusted-key {public}")
        }
        None => reason,
    })
}
