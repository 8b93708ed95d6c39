//! Outputs of builders: each NAR comes from the daemon that built it straight into the NAR store, is
//! verified, signed and published. The Nix store of this machine is not passed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narinfo::{Addressed, Compression, PathInfo, StorePath};

use super::Importer;
use super::store::references_first;
use crate::adopt;
use crate::index;
use crate::model::{NarRow, NewNar, PathRow, UploadOutcome};
use crate::nar_store::{PackError, Packed, Received};
use crate::nix::{DaemonError, PooledDaemon};
use crate::packer::{self, Lease, Limits, ReceiveError, ReceivedFile};

/// Reasons why outputs were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The builder's daemon failed, or lacks what it said it has built.
    #[error("the builder's daemon does not give {path}")]
    Builder {
        /// The path.
        path: StorePath,
        /// The daemon's error.
        source: DaemonError,
    },
    /// The NAR was not received.
    #[error("the NAR of {path} was not received")]
    Receive {
        /// The path.
        path: StorePath,
        /// The reason.
        source: ReceiveError,
    },
    /// The NAR is not the one that the builder has on record.
    #[error("the builder sent another NAR of {0} than it has on record")]
    Damaged(StorePath),
    /// The path is not named by its contents, as the builder says.
    #[error("{0} is not named by the contents that the builder sent")]
    Forged(StorePath),
    /// A reference is not served, and is not in the Nix store of this machine.
    #[error("it refers to {0}, which is not served here")]
    Lacks(StorePath),
    /// A reference was not adopted.
    #[error("what it refers to cannot be served")]
    Adopt(#[from] adopt::Error),
    /// The NAR store cannot be read.
    #[error("the NAR store cannot be read")]
    Packer(#[from] packer::Error),
    /// The index failed.
    #[error("the index cannot be written")]
    Index(#[from] index::Error),
}

impl TakeError {
    /// True where another builder, or the same one a moment later, may do better.
    #[must_use]
    pub fn is_of_builder(&self) -> bool {
        matches!(self, Self::Builder { .. } | Self::Damaged(_) | Self::Forged(_))
            || matches!(self, Self::Receive { source: ReceiveError::Pack(error), .. }
                if matches!(error, PackError::Sent(_) | PackError::Malformed(_) | PackError::TooLarge { .. }))
    }
}

impl Importer {
    /// Publishes the outputs of one derivation that `daemon` has built and has on record like this, with all
    /// that they refer to. Gives the connection back.
    ///
    /// # Errors
    /// The daemon is lost or sends something else than it has on record, or the NAR store or the index fails;
    /// outputs that were published by then stay.
    pub async fn take_outputs(
        &self,
        mut daemon: PooledDaemon,
        outputs: Vec<PathInfo>,
    ) -> Result<PooledDaemon, TakeError> {
        let infos = outputs.into_iter().map(|info| (info.path.clone(), info)).collect::<BTreeMap<_, _>>();
        self.serve_references(&infos).await?;
        for info in references_first(infos, |info| info) {
            daemon = self.take(daemon, info).await?;
        }
        Ok(daemon)
    }

    /// Has all served that the outputs refer to: what was not built or fetched here lies in the Nix store.
    async fn serve_references(&self, infos: &BTreeMap<StorePath, PathInfo>) -> Result<(), TakeError> {
        let references: BTreeSet<StorePath> =
            infos.values().flat_map(|info| &info.references).cloned().collect();
        let others = references.into_iter().filter(|path| !infos.contains_key(path)).collect::<Vec<_>>();
        let served = self.0.index.served(others.iter().map(StorePath::hash).collect()).await?;
        let new: Vec<StorePath> =
            others.into_iter().filter(|path| served.get(&path.hash()) != Some(path)).collect();
        if !new.is_empty() {
            self.0.adopter.adopt(&new).await?;
        }
        Ok(())
    }

    async fn take(&self, daemon: PooledDaemon, mut info: PathInfo) -> Result<PooledDaemon, TakeError> {
        let path = info.path.clone();
        let (nar, _, connection) = daemon.into_nar(&path, info.nar_size);
        let limits = Limits { nar_bytes_max: info.nar_size, is_by_room: false };
        let received = self.0.packer.receive(nar, Compression::None, limits).await;
        let failed = |source| TakeError::Receive { path: path.clone(), source };
        let ReceivedFile { received, durable, lease, version } = received.map_err(failed)?;
        let lost = |_| TakeError::Builder { path: path.clone(), source: DaemonError::Closed };
        let daemon = connection.await.map_err(lost)?;
        if (received.nar.hash, received.nar.bytes) != (info.nar_hash, info.nar_size) {
            return Err(TakeError::Damaged(path));
        }
        if let Some(ca) = info.ca.clone() {
            let addressed = Addressed::new(ca, &info.path, &info.references);
            let check =
                move |nar: &mut dyn std::io::Read| Ok(narinfo::nar::check_addressed(nar, &addressed).is_ok());
            let is_named = info.names_contents(&self.0.store_dir)
                && self.0.packer.read_plain(info.nar_hash, check).await?.unwrap_or(false);
            if !is_named {
                return Err(TakeError::Forged(path));
            }
        }
        durable.wait().await.map_err(ReceiveError::Store).map_err(failed)?;
        // Ours says that it was built for this server.
        info.signatures.clear();
        self.publish_output(info, received, lease, version).await?;
        Ok(daemon)
    }

    async fn publish_output(
        &self,
        info: PathInfo,
        received: Received,
        lease: Lease,
        version: Option<Arc<str>>,
    ) -> Result<(), TakeError> {
        let Received { packed: Packed { file_hash, file_size }, programs, .. } = received;
        let row = NarRow { nar_hash: info.nar_hash, file_hash, file_size };
        let nar = NewNar { row, programs };
        let (path, nar_hash) = (info.path.clone(), info.nar_hash);
        let mut row = PathRow { info, built: true };
        self.0.adopter.sign(&mut row);
        match self.0.index.publish_upload(row, nar, None).await? {
            UploadOutcome::Published => lease.recorded(),
            UploadOutcome::Served(served) if served.info.nar_hash == nar_hash => lease.recorded(),
            // Clients may hold the narinfo of the first one.
            UploadOutcome::Served(_) => {
                tracing::warn!(%path, "built again with other contents; those that were served first stay");
            }
            UploadOutcome::Lacks(reference) => return Err(TakeError::Lacks(reference)),
        }
        self.0.packer.note_uploaded(path, nar_hash, version);
        Ok(())
    }
}
