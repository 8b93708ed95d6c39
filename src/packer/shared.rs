//! NARs where several servers share an index and a bucket: no server has the Nix store of another, so a path
//! is packed before it is published, and each server packs what its own Nix store has.

use std::collections::HashSet;

use narinfo::StorePath;
use tokio::task::JoinSet;

use super::{Error, Nar, Packer, Priority};
use crate::model::PathRow;

/// NARs that are packed at the same time for one closure; the packer's permits bound those of all.
const AT_ONCE_MAX: usize = 8;
/// Tries to pack a NAR. One is enough, unless it is evicted meanwhile.
const TRIES_MAX: usize = 3;

impl Packer {
    /// True where a path must be packed before it is published: other servers serve it, too.
    #[must_use]
    pub fn packs_first(&self) -> bool {
        self.0.index.is_shared() && self.0.nars.is_remote()
    }

    /// Packs the NARs of paths that are held in the Nix store and not published yet.
    ///
    /// # Errors
    /// The index or the NAR store fails, or one of them cannot be packed.
    pub async fn pack_first(&self, rows: Vec<PathRow>) -> Result<(), Error> {
        let (mut rows, mut packing) = (rows.into_iter(), JoinSet::new());
        loop {
            while packing.len() < AT_ONCE_MAX
                && let Some(row) = rows.next()
            {
                let packer = self.clone();
                packing.spawn(async move { packer.pack_one_first(row).await });
            }
            match packing.join_next().await {
                Some(Ok(packed)) => packed?,
                Some(Err(panic)) => return Err(Error::Store(std::io::Error::other(panic))),
                None => return Ok(()),
            }
        }
    }

    async fn pack_one_first(&self, row: PathRow) -> Result<(), Error> {
        let nar = row.info.nar_hash;
        let mut reason = None;
        for _ in 0..TRIES_MAX {
            if self.0.index.packed(nar).await?.is_some() {
                return Ok(());
            }
            match self.start(row.clone(), Priority::Client).await? {
                Nar::Growing(mut growing) => reason = growing.finished().await.err(),
                Nar::Stored(stored) => {
                    self.0.record_stored(nar, row.info.nar_size, &row.info.path, stored).await;
                }
            }
            // The row follows the file.
            self.0.under_way.ended(&nar).await;
        }
        match self.0.index.packed(nar).await? {
            Some(_) => Ok(()),
            None => Err(Error::NotToBeHad(reason.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))),
        }
    }

    /// Leaves those rows that are for this server to pack.
    pub(super) async fn retain_own(&self, rows: &mut Vec<PathRow>) -> Result<(), Error> {
        if self.packs_first() {
            let held: HashSet<StorePath> = self.0.roots.held().map_err(Error::Store)?.into_iter().collect();
            rows.retain(|row| held.contains(&row.info.path));
        }
        Ok(())
    }
}
