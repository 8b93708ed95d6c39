//! Copies of a signing key in the Nix store, which everybody could fetch: a path that holds one is not
//! adopted. Searches paths that were added as they are; built paths come from inputs that are in the store
//! already, and may be large.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::Path;

use memchr::memmem::Finder;
use narinfo::StorePathHash;

use super::{Adopter, Error};
use crate::nix::ValidPath;

/// Bytes that are searched at a time.
const CHUNK_BYTES: usize = 256 * 1024;

impl Adopter {
    /// Fails if one of the paths holds a signing key.
    pub(super) async fn must_hold_no_key(
        &self,
        new: &BTreeMap<StorePathHash, ValidPath>,
    ) -> Result<(), Error> {
        let added = new.values().filter(|valid| valid.info.deriver.is_none() && !valid.ultimate);
        for ValidPath { info, .. } in added {
            let keys = self.keys.clone();
            let path = self.store_dir.to_string();
            let path = Path::new(&path).join(info.path.to_string());
            let found = tokio::task::spawn_blocking(move || holds(&path, &keys.texts())).await;
            match found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(false) => {}
                Ok(true) => return Err(Error::Secret(info.path.clone())),
                // The daemon can send it: see packer/bring.rs.
                Err(error) => {
                    tracing::debug!(path = %info.path, %error, "cannot read a path: searching what the daemon sends for signing keys");
                    let (nar, _) = self.pool.nar(&info.path, info.nar_size).await?;
                    let keys = self.keys.clone();
                    let found = tokio::task::spawn_blocking(move || {
                        let texts = keys.texts();
                        file_holds(nar, &finders(&texts), &mut vec![0; CHUNK_BYTES])
                    });
                    if found
                        .await
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
                        .unwrap_or(false)
                    {
                        return Err(Error::Secret(info.path.clone()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// True if a file, or one below a folder, holds one of the keys, under whatever name. Blocking.
fn holds(path: &Path, keys: &[impl Deref<Target = String>]) -> io::Result<bool> {
    let finders = finders(keys);
    let mut open = vec![path.to_owned()];
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Some(path) = open.pop() {
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        } else if kind.is_file() && file_holds(File::open(&path)?, &finders, &mut buffer)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks for each key by what is secret of it.
fn finders(keys: &[impl Deref<Target = String>]) -> Vec<Finder<'_>> {
    let secrets = keys.iter().map(|text| text.rsplit(':').next().unwrap_or(text).trim_end_matches('='));
    secrets.map(Finder::new).collect()
}

/// The end of what was read goes to the start of the buffer, so that nothing is missed where two reads meet.
fn file_holds(mut file: impl Read, finders: &[Finder<'_>], buffer: &mut [u8]) -> io::Result<bool> {
    let overlap = finders.iter().map(|finder| finder.needle().len().saturating_sub(1)).max().unwrap_or(0);
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(false);
        }
        let end = kept + read;
        if finders.iter().any(|finder| finder.find(&buffer[..end]).is_some()) {
            return Ok(true);
        }
        kept = overlap.min(end);
        buffer.copy_within(end - kept..end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_wherever_reads_meet() {
        let text = format!("c2VjcmV0{}==", "c2Vj".repeat(20));
        let keys = [Box::new(format!("a:{}", "other".repeat(20))), Box::new(format!("b:{text}"))];
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("below")).expect("a folder");
        let file = folder.path().join("below/file");
        for before in [0, 1, CHUNK_BYTES - 100, CHUNK_BYTES - 40, CHUNK_BYTES - 1, 2 * CHUNK_BYTES - 50] {
            let mut bytes = vec![b'x'; before];
            bytes.extend(text.as_bytes());
            fs::write(&file, &bytes).expect("written");
            assert!(holds(folder.path(), &keys).expect("read"), "{before}");
            bytes.truncate(before + text.len() - 3);
            fs::write(&file, &bytes).expect("written");
            assert!(!holds(folder.path(), &keys).expect("read"), "{before}");
        }
    }
}
