//! Copies of a signing key in the Nix store, which everybody could fetch: a path that holds one is not
//! adopted. Searches paths that were added as they are; built paths come from inputs that are in the store
//! already, and may be large.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use narinfo::StorePathHash;

use super::{Adopter, Error};
use crate::nar_store::Secrets;
use crate::nix::ValidPath;
use crate::tasks::blocking;

impl Adopter {
    /// Fails if one of the paths holds a signing key.
    pub(super) async fn must_hold_no_key(
        &self,
        new: &BTreeMap<StorePathHash, ValidPath>,
    ) -> Result<(), Error> {
        let added = new.values().filter(|valid| valid.info.deriver.is_none() && !valid.ultimate);
        for ValidPath { info, .. } in added {
            let secrets = Secrets::of_keys(self.keys.texts());
            let path = self.store_dir.to_string();
            let path = Path::new(&path).join(info.path.to_string());
            let searched = secrets.clone();
            match blocking(move || holds(&path, &searched)).await {
                Ok(false) => {}
                Ok(true) => return Err(Error::Secret(info.path.clone())),
                // The daemon can send it: see packer/bring.rs.
                Err(error) => {
                    tracing::debug!(path = %info.path, %error, "cannot read a path: searching what the daemon sends for signing keys");
                    let (nar, _) = self.pool.nar(&info.path, info.nar_size).await?;
                    if blocking(move || secrets.are_in(nar)).await.unwrap_or(false) {
                        return Err(Error::Secret(info.path.clone()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// True if a file, or one below a folder, holds one of the keys, under whatever name. Blocking.
fn holds(path: &Path, secrets: &Secrets) -> io::Result<bool> {
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if kind.is_file() && secrets.are_in(File::open(&path)?)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_any_file_of_a_tree() {
        let secrets = Secrets::of_keys([Box::new("key:c2VjcmV0".to_owned())]);
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("below")).expect("a folder");
        fs::write(folder.path().join("other"), "c2Vjc").expect("written");
        assert!(!holds(folder.path(), &secrets).expect("read"));
        fs::write(folder.path().join("below/file"), "a c2VjcmV0 b").expect("written");
        assert!(holds(folder.path(), &secrets).expect("read"));
    }
}
