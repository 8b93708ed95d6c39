//! OCI images of closures, as one tar file in the layout of the Image Format Specification, with the manifest
//! of `docker save` beside it. The same each time. The paths that most others of the closure need have layers
//! of their own, which images of other packages share; the rest is one layer.

use std::io::{self, Write};

use narinfo::{StoreDir, StorePath};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::archive::Archive;
use super::blocking::NarSource;
use super::{Contents, Error, tar};
use crate::model::PathRow;

/// Layers of an image at most; some stores of images take no more than 127.
const LAYERS_MAX: usize = 100;
/// Paths of an image at most: the popularity of each is counted in memory.
pub(super) const IMAGE_PATHS_MAX: usize = 10_000;
/// Creation time of every image: that of files in the Nix store.
const CREATED_AT: &str = "1970-01-01T00:00:01Z";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Name and tag.
    pub name: String,
    /// Processor, as OCI calls it.
    pub architecture: String,
    /// Folder of the programs.
    pub folder: String,
    /// Program that is run.
    pub entrypoint: Option<String>,
}

/// A blob of an image.
#[derive(Clone, Debug)]
pub(super) struct BlobDigest {
    hex: String,
    bytes: u64,
}

impl Contents {
    /// Begins an image of a closure, whose layers are read once before, unless they are known.
    ///
    /// # Errors
    /// The closure is too large, or too many archives are being sent.
    pub fn image(&self, rows: Vec<PathRow>, config: ImageConfig) -> Result<Archive, Error> {
        if rows.len() > IMAGE_PATHS_MAX {
            return Err(Error::TooLarge(IMAGE_PATHS_MAX));
        }
        let (store_dir, known) = (self.0.store_dir.clone(), self.0.layers.clone());
        self.write_archive(move |source, out| {
            let layers = layers(rows);
            let mut digests = Vec::new();
            for layer in &layers {
                let key = key_of(layer);
                let digest = match known.get(&key) {
                    Some(digest) => digest,
                    None => {
                        let mut sink = LayerHasher::of(io::sink());
                        write_layer(&store_dir, layer, source, &mut sink)?;
                        let digest = sink.digest();
                        known.insert(key, digest.clone());
                        digest
                    }
                };
                digests.push(digest);
            }
            write_image(&config, &digests, out, |at, out| write_layer(&store_dir, &layers[at], source, out))
        })
    }
}

/// The layers of an image, the most popular paths first.
fn layers(rows: Vec<PathRow>) -> Vec<Vec<PathRow>> {
    let popularity = popularity(&rows);
    let mut rows: Vec<(usize, PathRow)> = popularity.into_iter().zip(rows).collect();
    rows.sort_by(|(one, a), (other, b)| other.cmp(one).then_with(|| a.info.path.cmp(&b.info.path)));
    let mut layers: Vec<Vec<PathRow>> = Vec::new();
    for (_, row) in rows {
        let is_full = layers.len() == LAYERS_MAX;
        match layers.last_mut().filter(|_| is_full) {
            Some(last) => last.push(row),
            None => layers.push(vec![row]),
        }
    }
    layers
}

/// Number of paths that need each one, directly or not. Each comes behind all that it refers to.
fn popularity(rows: &[PathRow]) -> Vec<usize> {
    let places: std::collections::HashMap<&StorePath, usize> =
        rows.iter().enumerate().map(|(at, row)| (&row.info.path, at)).collect();
    let words = rows.len().div_ceil(64);
    let mut needs: Vec<Vec<u64>> = Vec::with_capacity(rows.len());
    let mut counts = vec![0; rows.len()];
    for (at, row) in rows.iter().enumerate() {
        let mut needed = vec![0_u64; words];
        let references = row.info.references.iter().filter_map(|reference| places.get(reference));
        for reference in references.filter(|reference| **reference < at) {
            needed[reference / 64] |= 1 << (reference % 64);
            needed.iter_mut().zip(&needs[*reference]).for_each(|(word, other)| *word |= other);
        }
        for (other, count) in counts.iter_mut().enumerate() {
            *count += usize::from(needed[other / 64] >> (other % 64) & 1 == 1);
        }
        needs.push(needed);
    }
    counts
}

/// Identity of a layer's contents.
fn key_of(layer: &[PathRow]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for row in layer {
        digest.update(format!("{} {}\n", row.info.path, row.info.nar_hash.to_nixbase32()));
    }
    digest.finalize().into()
}

fn write_layer(
    store_dir: &StoreDir,
    layer: &[PathRow],
    source: &NarSource,
    out: &mut dyn Write,
) -> io::Result<()> {
    for row in layer {
        tar::write_path(&row.info.path.in_dir(store_dir), &mut source.nar(row)?, out)?;
    }
    tar::finish(out)
}

fn write_image(
    config: &ImageConfig,
    layers: &[BlobDigest],
    out: &mut dyn Write,
    write_layer: impl Fn(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let ImageConfig { name, architecture, folder, entrypoint } = config;
    let diff_ids: Vec<String> = layers.iter().map(BlobDigest::name).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": CREATED_AT,
        "config": { "Env": [format!("PATH={folder}")], "Entrypoint": entrypoint.as_ref().map(|program| [program]) },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let config_digest = BlobDigest::of(config.as_bytes());
    let descriptors: Vec<Value> = layers.iter().map(|layer| layer.descriptor(LAYER)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_digest.descriptor(CONFIG),
        "layers": descriptors,
    })
    .to_string();
    let mut descriptor = BlobDigest::of(manifest.as_bytes()).descriptor(MANIFEST);
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
    let files: Vec<String> = layers.iter().map(BlobDigest::file).collect();
    let saved = json!([{ "Config": config_digest.file(), "RepoTags": [name], "Layers": files }]).to_string();

    tar::write_file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, out)?;
    tar::write_file("index.json", index.as_bytes(), out)?;
    tar::write_file("manifest.json", saved.as_bytes(), out)?;
    tar::write_file(&config_digest.file(), config.as_bytes(), out)?;
    tar::write_file(&BlobDigest::of(manifest.as_bytes()).file(), manifest.as_bytes(), out)?;
    for (at, layer) in layers.iter().enumerate() {
        tar::begin_file(&layer.file(), layer.bytes, out)?;
        let mut hashing = LayerHasher::of(&mut *out);
        write_layer(at, &mut hashing)?;
        if hashing.digest().hex != layer.hex {
            return Err(io::Error::other("a layer has changed while the image was written"));
        }
        tar::pad(out, layer.bytes)?;
    }
    tar::finish(out)
}

impl BlobDigest {
    fn of(bytes: &[u8]) -> Self {
        Self { hex: hex(&Sha256::digest(bytes)), bytes: bytes.len() as u64 }
    }

    fn name(&self) -> String {
        format!("sha256:{}", self.hex)
    }

    fn file(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.name(), "size": self.bytes })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes and counts what is written through it.
struct LayerHasher<W> {
    out: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> LayerHasher<W> {
    fn of(out: W) -> Self {
        Self { out, digest: Sha256::new(), bytes: 0 }
    }

    fn digest(self) -> BlobDigest {
        BlobDigest { hex: hex(&self.digest.finalize()), bytes: self.bytes }
    }
}

impl<W: Write> Write for LayerHasher<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data)?;
        self.digest.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
