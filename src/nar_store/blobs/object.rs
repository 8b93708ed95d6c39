//! An object that is stored elsewhere, as it was when it was opened: read by ranges, each of which comes
//! whole or fails. Never gives bytes of an object that has taken its place.

use std::future::Future;
use std::io::{self, Read};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use crate::tail_file::Reading;

/// Bytes that a reader of all of an object asks for at a time: enough for the time of a request not to count.
const READ_BYTES: u64 = 8 * 1024 * 1024;

/// A read under way.
pub type ObjectRead = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

/// Reads of one version of an object.
pub trait ReadObject: std::fmt::Debug + Send + Sync {
    /// The bytes of `part`, all of them.
    fn read(&self, part: Range<u64>) -> ObjectRead;
}

/// An open object that never changes.
#[derive(Clone, Debug)]
pub struct BlobObject {
    pub(super) object: Arc<dyn ReadObject>,
    pub(in crate::nar_store) bytes: u64,
    /// Differs for an object that takes the place of this one.
    pub(super) version: Arc<str>,
    /// The runtime whose connections it is read over.
    pub(super) runtime: Handle,
}

impl BlobObject {
    /// Begins to read the bytes of `part`, which must be there. Drops `permit` once they are read.
    pub(in crate::nar_store) fn begin_read(
        &self,
        part: Range<u64>,
        permit: impl Send + 'static,
    ) -> Reading<Bytes> {
        let read = self.object.read(part);
        self.runtime.spawn(async move {
            let _permit = permit;
            read.await
        })
    }

    /// The bytes of `part`, which must be there. Blocking, on a thread that may wait.
    ///
    /// # Errors
    /// The storage fails, or has another object by now.
    pub(in crate::nar_store) fn read(&self, part: Range<u64>) -> io::Result<Bytes> {
        self.runtime.block_on(self.object.read(part))
    }

    /// Reads all of it in order, on a thread that may wait.
    pub(in crate::nar_store) fn reader(&self) -> ObjectReader {
        ObjectReader { object: self.clone(), at: 0, piece: Bytes::new(), ahead: None }
    }
}

/// Reader of all of an object, a piece ahead of its user.
pub(in crate::nar_store) struct ObjectReader {
    object: BlobObject,
    /// Offset of the piece after the next.
    at: u64,
    piece: Bytes,
    ahead: Option<Reading<Bytes>>,
}

impl ObjectReader {
    fn begin(&mut self) -> Option<Reading<Bytes>> {
        let part = self.at..self.object.bytes.min(self.at + READ_BYTES);
        self.at = part.end;
        (!part.is_empty()).then(|| self.object.begin_read(part, ()))
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(next) = self.ahead.take().or_else(|| self.begin()) else { return Ok(0) };
            self.ahead = self.begin();
            self.piece = self.object.runtime.block_on(next).map_err(io::Error::other)??;
        }
        let bytes = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}
