//! A NAR that is read as it comes, for code that reads blocking, such as a decoder of the format. Must only
//! be read on a blocking thread of a runtime.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use super::{Contents, NarSlice};
use crate::model::PathRow;
use crate::nar_store::Form;

/// The reader.
pub(super) struct BlockingReader {
    slice: NarSlice,
    piece: Bytes,
    runtime: Handle,
}

impl BlockingReader {
    /// Reads `slice` by means of the runtime that this is called in.
    pub(super) fn new(slice: NarSlice) -> Self {
        Self::on(Handle::current(), slice)
    }

    /// Reads `slice` by means of `runtime`.
    fn on(runtime: Handle, slice: NarSlice) -> Self {
        Self { slice, piece: Bytes::new(), runtime }
    }
}

/// NARs of served paths for a writer of archives, which reads one after the other.
pub(super) struct NarSource {
    contents: Contents,
    runtime: Handle,
}

impl NarSource {
    pub(super) fn of(contents: &Contents) -> Self {
        Self { contents: contents.clone(), runtime: Handle::current() }
    }

    /// The NAR of a path, from its packed file: no uncompressed copy is made of what is read once.
    pub(super) fn nar(&self, row: &PathRow) -> io::Result<BlockingReader> {
        let slice = self.contents.open(row.info.nar_hash, 0..u64::MAX, Form::Zstd);
        let slice = self.runtime.block_on(slice).map_err(io::Error::other)?;
        Ok(BlockingReader::on(self.runtime.clone(), slice))
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
