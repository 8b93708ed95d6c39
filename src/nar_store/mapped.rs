//! Mapped reads: a part of a file as memory, without a copy; the sender asks for its file range and sends
//! that by sendfile(2). Replaced reads into buffers, which cost a copy into the heap and one out of it: a
//! plain NAR of 539 MB leaves at 5.4 GB/s for 0.18 s of CPU a GB, where a cache that copies (harmonia)
//! reaches 1.6 GB/s for 0.57 s. Pages of the file are no memory of this program. The only file with `unsafe`.
//! Applies only to files that never change once their bytes can be read, and to bytes that the kernel alone
//! reads: if the file is truncated, sending fails, where a read by this program would kill it. Not for
//! small NARs (`small_cache.rs`).
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};

use crate::tail_file::read_at;

/// File range of each window that exists, by the address of its first byte.
static WINDOWS: RwLock<BTreeMap<usize, FileRange>> = RwLock::new(BTreeMap::new());

/// Range of bytes in a file.
#[derive(Clone, Debug)]
pub struct FileRange {
    /// The file.
    pub file: Arc<File>,
    /// Offsets of the bytes in the file.
    pub part: Range<u64>,
}

/// The bytes of `part`, which must be there; they are in memory when this returns. Blocking. The pages are
/// the file's own, and go with the last handle; where a file cannot be mapped, it is read.
///
/// # Errors
/// The file cannot be read, or ends before them.
pub(super) fn window(file: &Arc<File>, part: Range<u64>) -> io::Result<Bytes> {
    mapped(file, &part).or_else(|_| {
        let mut bytes = Vec::new();
        read_at(file, part, &mut bytes)?;
        Ok(bytes.into())
    })
}

/// The bytes of `part`, if they are in memory already; `None` if the disk would have to be read. Waits for no
/// disk.
pub(super) fn window_in_memory(file: &Arc<File>, part: &Range<u64>) -> Option<Bytes> {
    let mapping = mapping(file, part).ok().filter(|mapping| is_in_memory(mapping, file, part.start))?;
    Some(registered(mapping, file, part))
}

/// File range of these bytes, if they are in a window.
#[must_use]
pub fn range_of(bytes: &[u8]) -> Option<FileRange> {
    let at = bytes.as_ptr().addr();
    let windows = WINDOWS.read().unwrap_or_else(PoisonError::into_inner);
    let (first, FileRange { file, part }) = windows.range(..=at).next_back()?;
    let start = part.start + (at - first) as u64;
    let end = start + bytes.len() as u64;
    // The window lives for as long as these bytes.
    (end <= part.end).then(|| FileRange { file: Arc::clone(file), part: start..end })
}

/// Mapping that is registered under its address.
struct Window(Mmap);

impl Window {
    fn new(mapping: Mmap, range: FileRange) -> Self {
        let mut windows = WINDOWS.write().unwrap_or_else(PoisonError::into_inner);
        windows.insert(mapping.as_ptr().addr(), range);
        Self(mapping)
    }
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Unregistered before the mapping goes and its address is used again.
        WINDOWS.write().unwrap_or_else(PoisonError::into_inner).remove(&self.0.as_ptr().addr());
    }
}

fn mapped(file: &Arc<File>, part: &Range<u64>) -> io::Result<Bytes> {
    let mapping = mapping(file, part)?;
    if !is_in_memory(&mapping, file, part.start) {
        // Waits for the disk here, on a blocking thread, and reports pages that cannot be read.
        mapping.advise(Advice::PopulateRead)?;
    }
    Ok(registered(mapping, file, part))
}

fn mapping(file: &File, part: &Range<u64>) -> io::Result<Mmap> {
    let bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
    // The rest of a file's last page can be read, but is no part of the file.
    if file.metadata()?.len() < part.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: the files of the NAR store only ever grow until they have their final name, and are only
    // unlinked from then on: what has been written is not written again, so the bytes behind this slice never
    // change.
    unsafe { MmapOptions::new().offset(part.start).len(bytes).map(file) }
}

fn registered(mapping: Mmap, file: &Arc<File>, part: &Range<u64>) -> Bytes {
    Bytes::from_owner(Window::new(mapping, FileRange { file: Arc::clone(file), part: part.clone() }))
}

/// True if sending the window waits for no disk. Much cheaper than populating its page table, which
/// sendfile(2) does not need.
fn is_in_memory(mapping: &Mmap, file: &File, start: u64) -> bool {
    // SAFETY: sysconf takes and returns numbers.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let before = mapping.as_ptr().addr() % page;
    let bytes = before + mapping.len();
    let pages = bytes.div_ceil(page);
    counted(file, start - before as u64, bytes as u64)
        .map_or_else(|| all_there(mapping, before, bytes, pages), |there| there == pages as u64)
}

/// Number of pages of a part of a file that are in memory, counted by the pieces of the page cache, of which
/// large ones are many pages (cachestat(2), Linux 6.5); `None` on older kernels.
fn counted(file: &File, offset: u64, bytes: u64) -> Option<u64> {
    // The same on every architecture that Rust knows.
    const CACHESTAT: libc::c_long = 451;
    let range = [offset, bytes];
    // In memory; then dirty, being written, evicted, evicted lately.
    let mut told = [0_u64; 5];
    // SAFETY: two numbers are read, and five are written, which is what both structures are.
    let done = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut told, 0) };
    (done == 0).then_some(told[0])
}

/// True if all pages are in memory, looked up page by page (mincore(2)).
fn all_there(mapping: &Mmap, before: usize, bytes: usize, pages: usize) -> bool {
    let mut states = vec![0_u8; pages];
    let first = mapping.as_ptr().wrapping_sub(before).cast_mut().cast();
    // SAFETY: these are the pages of the mapping, none of which is written to; each has a byte in `states`.
    let told = unsafe { libc::mincore(first, bytes, states.as_mut_ptr()) };
    told == 0 && states.iter().all(|state| state & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("written");
        Arc::new(file)
    }

    #[test]
    fn a_window_is_the_bytes_it_names_wherever_it_begins() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        let file = file(&bytes);
        for part in [0..1, 0..100_000, 4095..4097, 4096..8192, 77_777..100_000] {
            let range = part.start as u64..part.end as u64;
            let window = window(&file, range.clone()).expect("a window");
            assert!(window == bytes[part.clone()], "{part:?}");
            assert!(
                window_in_memory(&file, &range).expect("it was written a moment ago") == window,
                "{part:?}"
            );
        }
    }

    #[test]
    fn both_ways_to_ask_which_pages_are_in_memory_say_the_same() {
        let file = file(&[7; 100_000]);
        for part in [0..1, 0..100_000, 4095..4097, 77_777..100_000] {
            let mapping = mapping(&file, &part).expect("a mapping");
            let before = (part.start % 4096) as usize;
            let bytes = before + mapping.len();
            let pages = bytes.div_ceil(4096);
            assert!(all_there(&mapping, before, bytes, pages), "{part:?}");
            let told = counted(&file, part.start - before as u64, bytes as u64);
            // A system that does not tell is asked in the other way.
            assert!(told.is_none_or(|there| there == pages as u64), "{part:?}: {told:?} of {pages}");
        }
    }

    #[test]
    fn what_a_file_does_not_have_is_an_error_and_no_signal() {
        let file = file(&[7; 10_000]);
        for part in [0..10_001, 9_999..20_000, 10_000..10_001, 1 << 40..(1 << 40) + 1] {
            let error = window(&file, part.clone()).map(|bytes| bytes.len()).expect_err("more than there is");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{part:?}");
            assert!(window_in_memory(&file, &part).is_none(), "{part:?}");
        }
    }

    #[test]
    fn bytes_of_a_window_are_found_in_the_file_for_as_long_as_they_are_there_and_others_are_not() {
        let file = file(&[7; 100_000]);
        let window = window(&file, 10..90_000).expect("a window");
        for part in [0..89_990, 0..1, 50..51, 89_989..89_990] {
            let range = range_of(&window[part.clone()]).expect("it is of a window");
            assert!(Arc::ptr_eq(&range.file, &file));
            assert_eq!(range.part, part.start as u64 + 10..part.end as u64 + 10);
        }
        let kept = window.slice(100..200);
        drop(window);
        assert!(range_of(&kept).is_some() && range_of(&[7; 100]).is_none());
        let address = kept.as_ptr().addr() - 100;
        drop(kept);
        assert!(!WINDOWS.read().expect("locked").contains_key(&address));
    }
}
