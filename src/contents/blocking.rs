//! A NAR that is read as it comes, for code that reads blocking, such as a decoder of the format. Must only
//! be read on a blocking thread of a runtime.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use super::NarSlice;

/// The reader.
pub(super) struct BlockingReader {
    slice: NarSlice,
    piece: Bytes,
    runtime: Handle,
}

impl BlockingReader {
    /// Reads `slice` by means of the runtime that this is called in.
    pub(super) fn new(slice: NarSlice) -> Self {
        Self { slice, piece: Bytes::new(), runtime: Handle::current() }
    }
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.slice.next_piece())? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let bytes = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}
