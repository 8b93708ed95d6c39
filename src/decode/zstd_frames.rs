//! Decoder of zstd files, frame by frame: the header of each has the memory that it needs, which is reserved
//! from the budget first.

use std::io::{self, Read};

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use super::budget::Reservation;

/// Bytes of the largest window that is decoded, which is the default limit of zstd and Nix (zstd --long=27,
/// --ultra -22).
pub(super) const WINDOW_BYTES_MAX: u64 = 1 << 27;
/// Bytes of the longest frame header (RFC 8878, 3.1.1.1) with its magic number.
pub(super) const HEADER_BYTES_MAX: usize = 18;
/// Bytes that a decoder needs beside its window.
const DECODER_BYTES: u64 = 512 * 1024;
/// Bytes read at a time.
const INPUT_BYTES: usize = 128 * 1024;

/// The decoder.
pub(super) struct Frames<R> {
    input: R,
    /// Bytes that were read; those from `used` on are not decoded yet.
    buffer: Vec<u8>,
    used: usize,
    is_at_end: bool,
    window_bytes_max: u64,
    reservation: Reservation,
    /// Decoder of the frame that has begun.
    frame: Option<Decoder<'static>>,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(input: R, window_bytes_max: u64) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            used: 0,
            is_at_end: false,
            window_bytes_max,
            reservation: Reservation::none(),
            frame: None,
        }
    }

    /// Reads until there are `bytes` to decode, or the input ends.
    fn fill(&mut self, bytes: usize) -> io::Result<()> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        while self.buffer.len() < bytes && !self.is_at_end {
            let before = self.buffer.len();
            self.buffer.resize(before + INPUT_BYTES, 0);
            let read = self.input.read(&mut self.buffer[before..]);
            self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(read) => self.is_at_end = read == 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Decoder of the next frame; `None` at the end.
    fn begin(&mut self) -> io::Result<Option<Decoder<'static>>> {
        self.fill(HEADER_BYTES_MAX)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let window = window_bytes(&self.buffer).ok_or_else(|| io::Error::other("it is no zstd file"))?;
        if window > self.window_bytes_max {
            let max = self.window_bytes_max;
            return Err(io::Error::other(format!(
                "it asks for a window of {window} bytes, at most {max} are decoded"
            )));
        }
        self.reservation.grow_to(window + DECODER_BYTES);
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_BYTES_MAX.ilog2()))?;
        Ok(Some(decoder))
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if output.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(decoder) = &mut self.frame else {
                self.frame = self.begin()?;
                if self.frame.is_none() {
                    return Ok(0);
                }
                continue;
            };
            let mut source = InBuffer::around(&self.buffer[self.used..]);
            let mut out = OutBuffer::around(&mut *output);
            let hint = decoder.run(&mut source, &mut out)?;
            let (consumed, written) = (source.pos(), out.pos());
            self.used += consumed;
            if hint == 0 {
                self.frame = None;
            }
            if written > 0 {
                return Ok(written);
            }
            if hint != 0 && self.used == self.buffer.len() {
                self.fill(1)?;
                if self.buffer.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete frame"));
                }
            }
        }
    }
}

/// Bytes of the window of a frame, by its first [`HEADER_BYTES_MAX`] bytes (fewer if the file is shorter); 0
/// for a skippable frame. `None` if it is no zstd frame.
pub(super) fn window_bytes(header: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic & 0xffff_fff0 == 0x184d_2a50 {
        return Some(0);
    }
    let descriptor = *header.get(4).filter(|_| magic == 0xfd2f_b528)?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = header.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The window is the contents.
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = header.get(5 + dictionary_bytes..)?.get(..size_bytes)?;
    let size = field.iter().rev().fold(0, |size: u64, byte| size << 8 | u64::from(*byte));
    Some(size + if size_bytes == 2 { 256 } else { 0 })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compressed(bytes: &[u8], window_log: Option<u32>) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("level 1");
        if let Some(window_log) = window_log {
            encoder.window_log(window_log).expect("a window");
        }
        encoder.write_all(bytes).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    }

    #[test]
    fn the_window_is_read_from_each_form_of_header() {
        for window_log in [10, 20, 27] {
            let file = compressed(&[1; 5000], Some(window_log));
            assert_eq!(window_bytes(&file), Some(1 << window_log), "{window_log}");
        }
        for size in [0, 1, 255, 256, 70_000] {
            let file = zstd::bulk::compress(&vec![7; size], 1).expect("compressed");
            assert_eq!(window_bytes(&file), Some(size as u64), "a single segment of {size}");
        }
        assert_eq!(window_bytes(&[0x50, 0x2a, 0x4d, 0x18]), Some(0));
        for bad in [&b""[..], b"PK", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00", b"\xfd7zXZ\0"] {
            assert_eq!(window_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn several_frames_are_one_file_and_a_cut_or_strange_one_is_none() {
        let (one, two) = (vec![1; 300_000], vec![2; 10]);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let file =
            [compressed(&one, Some(20)), skippable, compressed(&two, None), compressed(&[], None)].concat();
        let decode = |file: &[u8]| {
            let mut out = Vec::new();
            Frames::new(file, WINDOW_BYTES_MAX).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(decode(&file).expect("whole"), [one, two].concat());
        assert!(decode(&file[..file.len() - 1]).is_err() && decode(&[&file[..], b"tail"].concat()).is_err());
        assert_eq!(decode(b"").expect("empty"), b"");
    }
}
