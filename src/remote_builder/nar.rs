//! A NAR on its way from the server to a client: fetched as a zstd file, and sent plain.

use narinfo::{Compression, StorePath};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::session::{BuilderSession, NotDone};
use crate::remote::{self, through_outage};

/// Bytes that are decompressed at a time.
const PIECE_BYTES: usize = 256 * 1024;

impl BuilderSession {
    pub(super) async fn send_nar(&mut self, path: &StorePath) -> Result<(), NotDone> {
        let Some(found) = self.find(path).await? else {
            return Err(NotDone::Refused(format!(
                "the path {path} is not served by {}",
                self.remote.shown()
            )));
        };
        let mut decoder = match found.compression {
            Compression::Zstd => Some(Decoder::new().map_err(|error| NotDone::Refused(error.to_string()))?),
            Compression::None => None,
            other => {
                return Err(NotDone::Refused(format!("the server's NARs are in the compression {other}")));
            }
        };
        let mut reply = through_outage(|| self.remote.get(&found.url)).await?;
        // From here on an error can only be told by cutting the connection.
        self.client.done().await?;
        let (mut left, mut plain) = (found.path_info.nar_size, vec![0; PIECE_BYTES]);
        let cut = |reason: &dyn std::fmt::Display| NotDone::Cut(format!("the NAR of {path}: {reason}"));
        while let Some(chunk) = reply.next_chunk().await.map_err(|error| cut(&error))? {
            let Some(decoder) = &mut decoder else {
                left = left.checked_sub(chunk.len() as u64).ok_or_else(|| cut(&TOO_LONG))?;
                self.client.send_nar(&chunk).await?;
                continue;
            };
            let mut input = InBuffer::around(&chunk);
            loop {
                let mut output = OutBuffer::around(&mut plain[..]);
                decoder.run(&mut input, &mut output).map_err(|error| cut(&error))?;
                let bytes = output.pos();
                left = left.checked_sub(bytes as u64).ok_or_else(|| cut(&TOO_LONG))?;
                self.client.send_nar(&plain[..bytes]).await?;
                // A full buffer may have left something behind.
                if input.pos() == chunk.len() && bytes < PIECE_BYTES {
                    break;
                }
            }
        }
        if left > 0 { Err(cut(&remote::Error::NotFound("it is too short".to_owned()))) } else { Ok(()) }
    }
}

const TOO_LONG: &str = "it is longer than its narinfo says";
