//! Copies of NARs that are sent from this machine: decompressed ones, and packed ones of what is stored
//! elsewhere. Made where there is room, once for all who ask.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Error, Packer, Served};
use crate::model::NarRow;
use crate::nar_store::{CopySource, Nar, Packed};

impl Packer {
    /// The plain copy of a NAR that only the Nix store has, read from there, so that the client does not wait
    /// for compression. `None` if it is packed, if upstreams have it, or if no copy can be made; packing
    /// reports why.
    pub(super) async fn copy_of_tree(&self, served: &Served) -> Result<Option<Nar>, Error> {
        let hash = served.row.info.nar_hash;
        // Storage elsewhere is not asked for what is here.
        if served.packed.is_some()
            || (!self.0.nars.is_remote() && self.0.blob(hash).await?.is_some())
            || !self.0.upstreams_with(hash).await?.is_empty()
        {
            return Ok(None);
        }
        let tree = PathBuf::from(served.row.info.path.in_dir(&self.0.store_dir));
        let mut copy = self.copy(served, CopySource::Tree(tree)).await?;
        if let Some(Nar::Growing(growing)) = &mut copy
            && growing.begun().await.is_err()
        {
            copy = None;
        }
        Ok(copy)
    }

    /// A copy of an object, complete or on its way; the object where none is to be made.
    pub(super) async fn copy_of_object(&self, packed: NarRow, object: Nar) -> Result<Nar, Error> {
        let nars = self.0.nars.clone();
        let copy = tokio::task::spawn_blocking(move || {
            let NarRow { nar_hash, file_hash, file_size } = packed;
            let Nar::Stored(stored) = &object else { return object };
            nars.copy(nar_hash, Packed { file_hash, file_size }, stored.clone()).unwrap_or(object)
        });
        copy.await.map_err(|error| Error::Store(std::io::Error::other(error)))
    }

    /// A plain copy, complete or on its way, if one can be made of `source`.
    pub(super) async fn copy(&self, served: &Served, source: CopySource) -> Result<Option<Nar>, Error> {
        let (inner, digest) = (Arc::clone(&self.0), served.digest());
        let copy = tokio::task::spawn_blocking(move || match &source {
            CopySource::Tree(tree) if tree.symlink_metadata().is_err() => None,
            _ => inner.nars.plain(digest, source),
        });
        copy.await.map_err(|error| Error::Store(std::io::Error::other(error)))
    }
}
