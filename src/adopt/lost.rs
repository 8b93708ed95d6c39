//! Paths whose NARs are lost, as after the restore of an index alone: what no file, no upstream and not the
//! Nix store has is not served any longer, and comes again as anything that is missing does. Must never drop
//! a path whose contents can be had.

use std::collections::HashSet;

use narinfo::{NarHash, StorePath, StorePathHash};

use super::{Adopter, Error};
use crate::index::{self, FreshHit};
use crate::model::{Hit, PathRow};
use crate::packer;

impl Adopter {
    /// Stops serving what is lost. Looks at some of the files, and where one of them is missing, at all. A
    /// path that the Nix store alone has gets a GC root until it is packed.
    ///
    /// # Errors
    /// The index, the NAR store or the Nix daemon fails; the rest stays as it is.
    pub async fn drop_lost(&self) -> Result<(), Error> {
        // Several servers have their NARs in one bucket, which is not restored with an index.
        if self.index.is_shared() {
            return Ok(());
        }
        let some = self.index.nars(None).await?;
        if !self.packer.without_file(some).await?.is_empty() {
            tracing::warn!("files of NARs are missing: looking for all of them");
            self.drop_missing_files().await?;
        }
        self.drop_unheld().await
    }

    /// The path with this hash, if it is served and its file is not missing.
    ///
    /// # Errors
    /// As [`index::Index::lookup`].
    pub async fn lookup(&self, hash: StorePathHash) -> Result<Option<FreshHit>, index::Error> {
        let Some(found) = self.index.lookup(hash).await? else { return Ok(None) };
        match self.drop_if_missing(&found.hit).await {
            Ok(false) => Ok(Some(found)),
            Ok(true) => self.index.lookup(hash).await,
            Err(Error::Index(error)) => Err(error),
            // The request for its NAR reports it.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%hash, error, "cannot look for the file of a NAR");
                Ok(Some(found))
            }
        }
    }

    /// Takes back that a path is packed whose file is missing; where no upstream has it either, it is served
    /// no longer. True where that changed something.
    async fn drop_if_missing(&self, hit: &Hit) -> Result<bool, Error> {
        let Some(row) = hit.packed.filter(|_| hit.redirect.is_none()) else { return Ok(false) };
        if self.packer.without_file(vec![row]).await?.is_empty() {
            return Ok(false);
        }
        let path = &hit.row.info.path;
        tracing::warn!(%path, "the file of a NAR is missing: it is packed, fetched or built again");
        self.packer.take_back(row).await?;
        if self.index.upstreams_with(row.nar_hash).await?.is_empty() {
            // What the Nix store has is adopted again.
            self.packer.stop_serving(path, row.nar_hash).await;
        }
        Ok(true)
    }

    async fn drop_missing_files(&self) -> Result<(), Error> {
        let (mut after, mut missing): (Option<NarHash>, usize) = (None, 0);
        loop {
            let rows = self.index.nars(after).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.nar_hash);
            for row in self.packer.without_file(rows).await? {
                self.packer.take_back(row).await?;
                missing += 1;
            }
        }
        tracing::warn!(nars = missing, "NARs without a file are packed, fetched or built again");
        Ok(())
    }

    /// Stops serving unpacked paths that the Nix store does not have, and holds those that it has. Those that
    /// were adopted as usual are held already.
    async fn drop_unheld(&self) -> Result<(), Error> {
        let held = self.roots.held().map_err(|error| Error::Pack(packer::Error::Store(error)))?;
        let held: HashSet<StorePath> = held.into_iter().collect();
        let mut unheld = self.index.unpacked().await?;
        unheld.retain(|row| !held.contains(&row.info.path));
        if unheld.is_empty() {
            return Ok(());
        }
        let mut daemon = self.pool.get().await?;
        let (mut kept, mut lost) = (Vec::new(), 0);
        for PathRow { info, .. } in &unheld {
            daemon.add_temp_root(&info.path).await?;
            match daemon.query_path_info(&info.path).await? {
                Some(valid) if valid.info.nar_hash == info.nar_hash => kept.push(&info.path),
                _ => {
                    self.packer.stop_serving(&info.path, info.nar_hash).await;
                    lost += 1;
                }
            }
        }
        self.roots.hold(&mut daemon, kept).await?;
        // Its temporary roots end with the connection.
        daemon.discard();
        if lost > 0 {
            let incomplete = self.index.forget_incomplete().await?;
            tracing::warn!(
                paths = lost,
                incomplete,
                "stopped serving paths that neither a file, an upstream nor the Nix store has, and those that refer \
                 to them: push them again, or ask for them to have them fetched or built"
            );
        }
        Ok(())
    }
}
