//! What a request lacks: the derivations of its closure that have no outputs yet, each with its inputs among them.
//! Builds nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::StorePath;

use crate::nix::{BuildTarget, Daemon, DaemonError};

use super::verdict::Verdict;

/// Why there is no plan.
pub(super) enum Error {
    /// The daemon failed.
    Daemon(DaemonError),
    /// It cannot be built as things stand.
    Impossible(Verdict),
}

impl From<DaemonError> for Error {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

/// The derivations to build so that every output of `drv` is there; none when they are.
pub(super) async fn plan(
    daemon: &mut Daemon,
    drv: &StorePath,
) -> Result<BTreeMap<StorePath, BTreeSet<StorePath>>, Error> {
    if !daemon.is_valid_path(drv).await? {
        let reason = format!("the derivation {drv} is not in the Nix store any more (garbage-collected?)");
        return Err(Error::Impossible(Verdict::passing(reason)));
    }
    let missing = daemon.query_missing(&[BuildTarget::All { drv: drv.clone() }]).await?;
    if let Some(unknown) = missing.unknown.first() {
        let reason =
            format!("{unknown} is needed, is not in the Nix store, and no known derivation makes it");
        return Err(Error::Impossible(Verdict::passing(reason)));
    }
    let mut needs = BTreeMap::new();
    for drv in &missing.will_build {
        let info = daemon.query_path_info(drv).await?;
        let inputs = info.map(|info| info.references).unwrap_or_default();
        needs.insert(drv.clone(), inputs.intersection(&missing.will_build).cloned().collect());
    }
    Ok(needs)
}
