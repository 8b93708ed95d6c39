//! Memory of one body that is read whole: pages that the system gives as bytes arrive, and takes back with
//! the last handle. Not the heap: its arenas keep large blocks that were freed, one set for each thread, and
//! the pieces as the connection gives them hold more memory than they have bytes.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use memmap2::MmapMut;

/// A body that grows up to a number of bytes.
pub(super) struct BodyMemory {
    pages: MmapMut,
    length: usize,
}

impl BodyMemory {
    /// An empty one with room for `bytes_max` bytes.
    ///
    /// # Errors
    /// The system has no memory for it.
    pub(super) fn new(bytes_max: usize) -> io::Result<Self> {
        Ok(Self { pages: MmapMut::map_anon(bytes_max)?, length: 0 })
    }

    /// Adds bytes; false if there is no room for them.
    pub(super) fn push(&mut self, mut bytes: impl Buf) -> bool {
        let end = self.length + bytes.remaining();
        let Some(room) = self.pages.get_mut(self.length..end) else { return false };
        bytes.copy_to_slice(room);
        self.length = end;
        true
    }

    /// Adds what a reader gives; false if there is no room for all of it.
    ///
    /// # Errors
    /// The reader fails.
    pub(super) fn push_all_of(&mut self, mut reader: impl Read) -> io::Result<bool> {
        loop {
            match reader.read(&mut self.pages[self.length..]) {
                Ok(0) => break,
                Ok(count) => self.length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A reader gives nothing into no room.
        Ok(self.length < self.pages.len() || io::copy(&mut reader.take(1), &mut io::sink())? == 0)
    }

    pub(super) fn into_bytes(self) -> Bytes {
        let length = self.length;
        Bytes::from_owner(self.pages).slice(..length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_taken_up_to_the_room_and_no_further() {
        let mut memory = BodyMemory::new(8).expect("memory");
        assert!(memory.push(&b"5 are"[..]));
        assert!(!memory.push(&b"four"[..]));
        assert!(memory.push(&b"in!"[..]) && memory.push(&b""[..]));
        assert!(!memory.push(&b"."[..]));
        assert_eq!(&memory.into_bytes()[..], b"5 arein!");
    }

    #[test]
    fn a_reader_is_read_to_its_end_or_to_the_end_of_the_room() {
        for (text, fits) in [("7 bytes", true), ("8 bytes!", true), ("9 bytes!!", false)] {
            let mut memory = BodyMemory::new(8).expect("memory");
            assert_eq!(memory.push_all_of(text.as_bytes()).expect("read"), fits, "{text}");
            assert_eq!(memory.into_bytes(), &text.as_bytes()[..text.len().min(8)]);
        }
    }
}
