//! Depth of trees: a path that newer clients could not unpack is rejected before it is published.

use std::collections::BTreeMap;
use std::path::PathBuf;

use narinfo::nar::{DIRECTORIES_MAX, TOO_DEEP_BYTES_MIN, is_too_deep};
use narinfo::{PathInfo, StorePathHash};

use super::{Adopter, Error};
use crate::nix::ValidPath;
use crate::tasks::blocking;

impl Adopter {
    /// Fails if one of the paths has too many nested folders.
    pub(super) async fn must_fit_into_nars(
        &self,
        new: &BTreeMap<StorePathHash, ValidPath>,
    ) -> Result<(), Error> {
        // 0 bytes: Nix has not measured it.
        let may_be_deep = |info: &&PathInfo| info.nar_size == 0 || info.nar_size >= TOO_DEEP_BYTES_MIN;
        let infos = new.values().map(|valid| &valid.info);
        let paths = infos.filter(may_be_deep).map(|info| info.path.clone()).collect::<Vec<_>>();
        let store_dir = self.store_dir.clone();
        let looking = blocking(move || {
            paths.into_iter().find(|path| {
                let tree = PathBuf::from(path.in_dir(&store_dir));
                // A tree that cannot be read from here is packed through the daemon, or not at all.
                is_too_deep(&tree).unwrap_or_else(|error| {
                    tracing::debug!(%path, %error, "cannot measure the depth of a path");
                    false
                })
            })
        });
        let reason = || {
            format!(
                "it has more than {DIRECTORIES_MAX} nested folders, which newer releases of Nix (2.34) refuse to unpack"
            )
        };
        match looking.await {
            Some(path) => Err(Error::Unservable { path, reason: reason() }),
            None => Ok(()),
        }
    }
}
