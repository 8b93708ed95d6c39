//! Trees that no NAR is made of: a path that newer clients could not unpack is refused before anybody is told of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use narinfo::nar::{DIRECTORIES_MAX, TOO_DEEP_BYTES_MIN, is_too_deep};
use narinfo::{PathInfo, StorePathHash};

use super::{Adopter, Error};
use crate::nix::ValidPath;

impl Adopter {
    /// Fails when one of the paths has too many folders within each other.
    pub(super) async fn must_fit_into_nars(
        &self,
        new: &BTreeMap<StorePathHash, ValidPath>,
    ) -> Result<(), Error> {
        // Nix has not measured those of 0 bytes.
        let may_be_deep = |info: &&PathInfo| info.nar_size == 0 || info.nar_size >= TOO_DEEP_BYTES_MIN;
        let infos = new.values().map(|valid| &valid.info);
        let paths = infos.filter(may_be_deep).map(|info| info.path.clone()).collect::<Vec<_>>();
        let store_dir = self.store_dir.clone();
        let looking = tokio::task::spawn_blocking(move || {
            paths.into_iter().find(|path| {
                let tree = PathBuf::from(path.in_dir(&store_dir));
                // What cannot be read from here is packed in another way, or not at all.
                is_too_deep(&tree).unwrap_or_else(|error| {
                    tracing::debug!(%path, %error, "cannot be looked through");
                    false
                })
            })
        });
        let reason = || {
            format!(
                "it has more than {DIRECTORIES_MAX} folders within each other, which newer releases of Nix (2.34) refuse to unpack"
            )
        };
        match looking.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Some(path) => Err(Error::Unservable { path, reason: reason() }),
            None => Ok(()),
        }
    }
}
