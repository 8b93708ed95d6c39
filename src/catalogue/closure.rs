//! The closure of a set's derivations, read on a thread of its own: as a whole, or some pieces ahead of the
//! index.

use std::collections::BTreeSet;

use narinfo::{StoreDir, StorePath};
use tokio::sync::mpsc;

use super::error::RefreshError;
use super::graph::{self, DerivationClosure};
use crate::index::Index;
use crate::model::OutputRow;
use crate::tasks::{blocking, unfinished};

/// Pieces of a closure that may wait for the index.
const PIECES_QUEUED_MAX: usize = 2;

/// Outputs of the derivations in the closure of `allowed`, and of those in `denied` themselves; or the reason
/// why one cannot be read.
///
/// # Errors
/// If the derivation itself cannot be read, or there are too many.
pub(super) async fn read(
    store_dir: &StoreDir,
    allowed: BTreeSet<StorePath>,
    denied: BTreeSet<StorePath>,
) -> Result<Result<Vec<OutputRow>, String>, RefreshError> {
    let store_dir = store_dir.clone();
    blocking(move || {
        let mut all = Vec::new();
        let wanted: BTreeSet<StorePath> = allowed.union(&denied).cloned().collect();
        let closure = graph::read(&store_dir, allowed, denied, |rows, _| {
            all.extend(rows);
            true
        })?;
        let unreadable = closure.unreadable.into_iter().find(|(drv, _)| wanted.contains(drv));
        Ok(unreadable.map_or(Ok(all), |(_, reason)| Err(reason)))
    })
    .await
}

/// Brings what the derivations in the closure of `allowed` give into the generation that was started, and
/// what those in `denied` give themselves; `progress` is told the number of derivations as it rises.
///
/// # Errors
/// If there are too many, or SQLite fails.
pub async fn bring_in(
    index: &Index,
    store_dir: &StoreDir,
    allowed: BTreeSet<StorePath>,
    denied: BTreeSet<StorePath>,
    progress: impl Fn(u64),
) -> Result<DerivationClosure, RefreshError> {
    let (sender, mut pieces) = mpsc::channel(PIECES_QUEUED_MAX);
    let store_dir = store_dir.clone();
    let reading = tokio::task::spawn_blocking(move || {
        graph::read(&store_dir, allowed, denied, |rows, count| sender.blocking_send((rows, count)).is_ok())
    });
    while let Some((rows, derivations)) = pieces.recv().await {
        index.add_outputs(rows).await?;
        progress(derivations);
    }
    match reading.await {
        Ok(read) => Ok(read?),
        Err(error) => unfinished(error).await,
    }
}
