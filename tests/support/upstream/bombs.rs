//! Small files that become very large, or ask for very much memory, when they are decompressed.

use std::io::Write;
use std::process::Command;

use super::super::process::run;

/// Bytes of the zeros that a bomb becomes.
pub const BOMB_BYTES: u64 = 1 << 30;
/// Bytes that one of the streams of a bomb becomes: a file of many is as good as a file of one, and sooner
/// made.
const STREAM_BYTES: u64 = 32 << 20;

/// [`BOMB_BYTES`] zeros, compressed by a program such as `xz`.
#[track_caller]
pub fn bomb(program: &str) -> Vec<u8> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("head -c {STREAM_BYTES} /dev/zero | {program} -c")]);
    let stream = run(command).must_succeed().stdout;
    assert!(!stream.is_empty(), "{program} made nothing: is it installed?");
    stream.repeat(usize::try_from(BOMB_BYTES / STREAM_BYTES).expect("a small number"))
}

/// The same as one zstd frame.
pub fn zstd_bomb() -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("level 1");
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_BYTES / zeros.len() as u64 {
        encoder.write_all(&zeros).expect("memory takes everything");
    }
    encoder.finish().expect("memory takes everything")
}

/// These bytes as a zstd frame that wants a window of 2^31 bytes (RFC 8878, 3.1.1), in blocks that are not
/// compressed.
pub fn zstd_with_a_window_of_2_gib(bytes: &[u8]) -> Vec<u8> {
    // The magic number; no checksum, size or dictionary; a window of 2^(10 + 21).
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3];
    let mut blocks = bytes.chunks(100_000).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = u32::try_from(block.len()).expect("a small block") << 3 | last;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
    }
    frame
}

/// An xz file with the largest dictionary that its format can ask for, 4 GiB, where it asked for less.
#[track_caller]
pub fn xz_with_a_dictionary_of_4_gib(file: &[u8]) -> Vec<u8> {
    const STREAM_HEADER_BYTES: usize = 12;
    // The filter LZMA2 with one byte of properties, the size of the dictionary.
    const LZMA2: [u8; 2] = [0x21, 1];
    const DICTIONARY_4_GIB: u8 = 40;
    let mut file = file.to_vec();
    let header_bytes = (usize::from(file[STREAM_HEADER_BYTES]) + 1) * 4;
    let header = &mut file[STREAM_HEADER_BYTES..STREAM_HEADER_BYTES + header_bytes];
    let at = header.windows(2).position(|bytes| bytes == LZMA2).expect("the filter LZMA2");
    header[at + LZMA2.len()] = DICTIONARY_4_GIB;
    let (header, sum) = header.split_at_mut(header_bytes - 4);
    sum.copy_from_slice(&crc32(header).to_le_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
    })
}
