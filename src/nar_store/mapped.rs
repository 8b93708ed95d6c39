//! A part of a file as memory, without a copy: the one place with `unsafe`. Only for files whose bytes never change once they
//! can be read, and only for bytes that nobody but the kernel reads (it sends them): should someone else cut the file short
//! meanwhile, the kernel fails the sending, where this program would be killed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use memmap2::{Advice, MmapOptions};

use crate::growing::read_at;

/// The bytes of `part`, which must be there; they are in memory when this returns. Blocking. The pages are the file's own, and
/// go with the last handle; where a file cannot be mapped, it is read.
///
/// # Errors
/// When the file cannot be read, or ends before them.
pub(super) fn window(file: &File, part: Range<u64>) -> io::Result<Bytes> {
    mapped(file, &part).or_else(|_| {
        let mut bytes = Vec::new();
        read_at(file, part, &mut bytes)?;
        Ok(bytes.into())
    })
}

fn mapped(file: &File, part: &Range<u64>) -> io::Result<Bytes> {
    let bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    // The rest of a file's last page can be read, and is no part of the file.
    if file.metadata()?.len() < part.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the files of the NAR store only ever grow until they have their final name, and are only unlinked from then on:
    // what has been written is not written again, so the bytes behind this slice never change.
    let window = unsafe { MmapOptions::new().offset(part.start).len(bytes).map(file) }?;
    // Waits for the disk here, on a thread that may, and tells of pages that cannot be had.
    window.advise(Advice::PopulateRead)?;
    Ok(Bytes::from_owner(window))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("written");
        file
    }

    #[test]
    fn a_window_is_the_bytes_it_names_wherever_it_begins() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let file = file(&bytes);
        for part in [0..1, 0..100_000, 4095..4097, 4096..8192, 77_777..100_000] {
            let window = window(&file, part.start as u64..part.end as u64).expect("a window");
            assert!(window == bytes[part.clone()], "{part:?}");
        }
    }

    #[test]
    fn what_a_file_does_not_have_is_an_error_and_no_signal() {
        let file = file(&[7; 10_000]);
        for part in [0..10_001, 9_999..20_000, 10_000..10_001, 1 << 40..(1 << 40) + 1] {
            let error = window(&file, part.clone()).map(|bytes| bytes.len()).expect_err("more than there is");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{part:?}");
        }
    }
}
