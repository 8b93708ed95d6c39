//! Memory of NARs: alone in its process, so that the peak is its own.

mod support;

use std::fs::{self, File};
use std::io::{self, Read};

use narinfo::nar;
use support::wire::Nar;

const FILE_BYTES: u64 = 512 << 20;
const GROWTH_MAX_BYTES: u64 = 8 << 20;

/// The most memory that this process ever had.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_large_file_takes_no_more_memory_than_a_small_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("large");
    File::create(&file).expect("a file").set_len(FILE_BYTES).expect("a sparse file");
    let before = peak_bytes();
    let bytes = nar::dump(&file, &mut io::sink()).expect("a dump");
    assert!(bytes > FILE_BYTES);
    let mut opening = Nar::new().tokens(&["(", "type", "regular", "contents"]).0;
    opening.extend(FILE_BYTES.to_le_bytes());
    let closing = Nar::default().tokens(&[")"]).0;
    let mut input = opening.chain(io::repeat(0).take(FILE_BYTES)).chain(closing.as_slice());
    assert_eq!(nar::check(&mut input).expect("a NAR").bytes, bytes);
    let growth = peak_bytes() - before;
    assert!(growth < GROWTH_MAX_BYTES, "{growth} bytes more");
}
