//! The wait for a path as any client of the cache waits: a request for its narinfo, which has the path built
//! where need be and ends when it is served.

use std::time::Instant;

use narinfo::StorePathHash;

use super::connection::Remote;
use super::error::Error;
use super::outage::{OUTAGE_MAX, PAUSE};

/// Begin of a line that tells of the wait.
const WAIT_LINE: &str = "X-Ondine-Wait: ";
/// Bytes of an answer at most: lines come every ten seconds, for days.
const BYTES_MAX: usize = 64 * 1024 * 1024;

impl Remote {
    /// Waits until the path with this hash is served; `progress` is told of the wait.
    ///
    /// # Errors
    /// The path will not be served, with the reason, or the server stays away.
    pub async fn wait_served(
        &self,
        hash: StorePathHash,
        mut progress: impl FnMut(&str),
    ) -> Result<(), Error> {
        let mut away_since: Option<Instant> = None;
        loop {
            match self.read_narinfo(hash, &mut progress, &mut away_since).await {
                Err(error) if error.is_transient() => {
                    if away_since.get_or_insert_with(Instant::now).elapsed() > OUTAGE_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn read_narinfo(
        &self,
        hash: StorePathHash,
        progress: &mut impl FnMut(&str),
        away_since: &mut Option<Instant>,
    ) -> Result<(), Error> {
        let mut reply = self.get(&format!("{hash}.narinfo")).await?;
        let (mut text, mut read) = (Vec::new(), 0);
        while let Some(chunk) = reply.next_chunk().await? {
            *away_since = None;
            read += chunk.len();
            if read > BYTES_MAX {
                return Err(Error::OtherVersion("its narinfo has no end".to_owned()));
            }
            text.extend_from_slice(&chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                if let Some(state) = line.strip_prefix(WAIT_LINE) {
                    progress(state.trim());
                }
            }
        }
        Ok(())
    }
}
