//! Derivations among the uploads: each must be named by its text, and its outputs must be those that it
//! makes, since requests for these outputs are answered with its build.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use narinfo::derivation::{DERIVATION_BYTES_MAX, InputHash};
use narinfo::{Derivation, PathInfo, StorePath, nar};

use super::{Inner, UploadError};
use crate::model::PushedDerivation;

/// Identities of derivations that are remembered.
const INPUT_HASHES_MAX: u64 = 100_000;
/// Derivations that need each other, one after the other, at most.
const DEPTH_MAX: usize = 2_000;

/// Identities, as inputs of others, of derivations that were not pushed: their files are served or in the Nix
/// store.
pub(super) struct InputHashes(moka::sync::Cache<StorePath, InputHash>);

impl Default for InputHashes {
    fn default() -> Self {
        Self(moka::sync::Cache::new(INPUT_HASHES_MAX))
    }
}

type HashFuture<'a> = Pin<Box<dyn Future<Output = Result<(), UploadError>> + Send + 'a>>;

impl Inner {
    /// The derivation in an upload, verified; `None` for a path of another name. Whoever vouches for it, a
    /// path that is named as a derivation is built as one.
    pub(super) async fn derivation(
        self: &Arc<Self>,
        info: &PathInfo,
    ) -> Result<Option<PushedDerivation>, UploadError> {
        if !info.path.is_derivation() {
            return Ok(None);
        }
        let read = self.reading(info, |nar| Ok(read_file(nar))).await?;
        let bytes = read.map_err(|error| not_read(&info.path, &error))?;
        let (parsed, input_hash) = self.verified(&info.path, bytes, 0).await?;
        if info.references != parsed.input_derivations.union(&parsed.input_sources).cloned().collect() {
            return Err(UploadError::Invalid(format!("{} refers to other paths than its inputs", info.path)));
        }
        let outputs = parsed.outputs.into_iter().filter_map(|(output, path)| Some((output, path?))).collect();
        Ok(Some(PushedDerivation { drv: info.path.clone(), outputs, input_hash }))
    }

    /// Parses and verifies a derivation, with the identities of all that it needs.
    async fn verified(
        self: &Arc<Self>,
        drv: &StorePath,
        bytes: Vec<u8>,
        depth: usize,
    ) -> Result<(Derivation, InputHash), UploadError> {
        let invalid = |error: narinfo::derivation::Error| UploadError::Invalid(format!("{drv}: {error}"));
        let parsed = Derivation::parse(&self.store_dir, drv, &bytes).map_err(invalid)?;
        let inputs: Vec<StorePath> = parsed.input_derivations.iter().cloned().collect();
        let mut known = self.index.pushed_input_hashes(inputs.clone()).await?;
        for input in inputs {
            if known.contains_key(&input) {
                continue;
            }
            self.find_input_hash(&input, depth + 1).await?;
            known.extend(self.input_hashes.0.get(&input).map(|hash| (input, hash)));
        }
        let input_hash = parsed
            .verify(&self.store_dir, drv, &bytes, |input| known.get(input).copied())
            .map_err(invalid)?;
        Ok((parsed, input_hash))
    }

    /// Computes the identity of a derivation that was not pushed.
    fn find_input_hash<'a>(self: &'a Arc<Self>, drv: &'a StorePath, depth: usize) -> HashFuture<'a> {
        Box::pin(async move {
            if self.input_hashes.0.contains_key(drv) {
                return Ok(());
            }
            if depth > DEPTH_MAX {
                return Err(UploadError::Invalid(format!("{drv} is one of too many that need each other")));
            }
            let Some(bytes) = self.file_of(drv).await? else {
                return Err(UploadError::Invalid(format!("{drv} is needed, and not here: upload it first")));
            };
            let (_, hash) = self.verified(drv, bytes, depth).await?;
            self.input_hashes.0.insert(drv.clone(), hash);
            Ok(())
        })
    }

    /// The file of a derivation that is served or in the Nix store.
    async fn file_of(&self, drv: &StorePath) -> Result<Option<Vec<u8>>, UploadError> {
        let Some(hit) = self.index.find(drv.hash()).await? else { return Ok(None) };
        let file = drv.in_dir(&self.store_dir);
        let local = tokio::task::spawn_blocking(move || std::fs::read(Path::new(&file)));
        // Whatever is there is verified.
        if let Ok(Ok(bytes)) = local.await {
            return Ok(Some(bytes));
        }
        let read = self.packer.read_plain(hit.row.info.nar_hash, |nar| Ok(read_file(nar))).await;
        let read = read.map_err(|error| UploadError::unavailable(&error))?;
        read.transpose().map_err(|error| not_read(drv, &error))
    }
}

/// The reason why the NAR of a derivation was not read.
fn not_read(drv: &StorePath, error: &std::io::Error) -> UploadError {
    match error.kind() {
        // The NAR was verified before: it is that of something else, or of too much.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            UploadError::Invalid(format!("{drv} is no derivation: {error}"))
        }
        _ => UploadError::unavailable(error),
    }
}

/// The bytes of the only file in a NAR.
fn read_file(nar: &mut dyn Read) -> std::io::Result<Vec<u8>> {
    nar::only_file(nar, DERIVATION_BYTES_MAX)
}
