//! Moves NARs of the directory into the bucket, for a server that had none before. Until one is moved, it is
//! served from the directory.

use std::io;
use std::time::Duration;

use narinfo::NarHash;

use super::super::{Blob, BlobFile, Blobs, is_away};
use super::Bucket;

/// Pause after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(60);

impl Bucket {
    /// Moves all NARs of the directory, in the background.
    pub(super) fn move_directory(&self) -> io::Result<()> {
        if self.0.directory.list(None)?.is_empty() {
            return Ok(());
        }
        let bucket = self.clone();
        let moving = move || {
            tracing::info!("moving the NARs of the state directory to {}", bucket.0.url);
            match bucket.move_all() {
                Ok(moved) => {
                    tracing::info!(moved, "moved the NARs of the state directory to {}", bucket.0.url)
                }
                Err(error) => tracing::error!(
                    %error,
                    "cannot move the NARs of the state directory: they are served from there; the next start tries again"
                ),
            }
        };
        std::thread::Builder::new().name("nars-moved".into()).spawn(moving).map(drop)
    }

    fn move_all(&self) -> io::Result<u64> {
        let (mut moved, mut after) = (0, None);
        loop {
            let page = self.0.directory.list(after)?;
            let Some(last) = page.last() else { return Ok(moved) };
            after = Some(*last);
            for key in page {
                while let Err(error) = self.move_one(key) {
                    if !is_away(&error) {
                        return Err(error);
                    }
                    std::thread::sleep(RETRY_AFTER);
                }
                moved += 1;
            }
        }
    }

    fn move_one(&self, key: NarHash) -> io::Result<()> {
        let Some(stored @ Blob::File(BlobFile { .. })) = self.0.directory.open(key)? else { return Ok(()) };
        let upload = self.begin()?;
        io::copy(&mut stored.reader(), &mut &**upload.file())?;
        // Where there is one already, that stays: of two files of a NAR the index knows the first one.
        let _ = upload.commit(key)?;
        self.0.directory.delete(key).map(drop)
    }
}
