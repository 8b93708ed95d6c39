//! Decoder of xz, lzma and lzip files. liblzma reports only that it lacks memory, not how much: its limit is
//! raised step by step, and each step is reserved from the budget before it is used.

use std::io::{self, BufRead, BufReader, Read};

use liblzma::stream::{Action, CONCATENATED, Error, Status, Stream};

use super::budget::Reservation;

/// Bytes of compressed input that are read at a time.
const INPUT_BYTES: usize = 64 * 1024;
/// Bytes that a decoder needs beside its dictionary.
const DECODER_BYTES: u64 = 2 * 1024 * 1024;
/// Power of two of the first step, a dictionary of 64 KiB.
const DICTIONARY_LOG_MIN: u32 = 16;
/// Power of two of the largest dictionary that is decoded: 128 MiB, where `xz -9` has 64.
pub(super) const DICTIONARY_LOG_MAX: u32 = 27;

/// Format of liblzma.
#[derive(Clone, Copy, Debug)]
pub(super) enum Format {
    Xz,
    Lzma,
    Lzip,
}

/// The decoder.
pub(super) struct Decoder<R> {
    input: BufReader<R>,
    stream: Stream,
    reservation: Reservation,
    dictionary_log_max: u32,
    is_done: bool,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(input: R, format: Format, dictionary_log_max: u32) -> io::Result<Self> {
        let least = memory(DICTIONARY_LOG_MIN);
        let stream = match format {
            Format::Xz => Stream::new_stream_decoder(least, CONCATENATED)?,
            Format::Lzma => Stream::new_lzma_decoder(least)?,
            Format::Lzip => Stream::new_lzip_decoder(least, CONCATENATED)?,
        };
        let (input, reservation) = (BufReader::with_capacity(INPUT_BYTES, input), Reservation::of(least));
        Ok(Self { input, stream, reservation, dictionary_log_max, is_done: false })
    }

    /// Raises the memory limit to the step that is needed.
    fn raise(&mut self) -> io::Result<()> {
        for log in DICTIONARY_LOG_MIN..=self.dictionary_log_max {
            if self.stream.set_memlimit(memory(log)).is_ok() {
                self.reservation.grow_to(memory(log));
                return Ok(());
            }
        }
        let max = memory(self.dictionary_log_max);
        Err(io::Error::other(format!("it asks for more memory than the {max} bytes that a decoder may have")))
    }
}

fn memory(dictionary_log: u32) -> u64 {
    (1 << dictionary_log) + DECODER_BYTES
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        while !self.is_done && !output.is_empty() {
            let input = self.input.fill_buf()?;
            let is_at_end = input.is_empty();
            let action = if is_at_end { Action::Finish } else { Action::Run };
            let (read, written) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.process(input, output, action);
            let read = (self.stream.total_in() - read) as usize;
            let written = (self.stream.total_out() - written) as usize;
            self.input.consume(read);
            match status {
                Ok(Status::StreamEnd) => {
                    self.is_done = true;
                    // Only xz and lzip files may be concatenated.
                    if !is_at_end && written == 0 && !self.input.fill_buf()?.is_empty() {
                        return Err(io::Error::other("there is something behind its end"));
                    }
                }
                Ok(_) if is_at_end && written == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(Error::MemLimit) => self.raise()?,
                Err(error) => return Err(error.into()),
            }
            if written > 0 {
                return Ok(written);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use liblzma::stream::{Check, Filters, LzmaOptions};
    use liblzma::write::XzEncoder;

    use super::*;

    fn encoded(stream: Stream, bytes: &[u8]) -> Vec<u8> {
        let mut encoder = XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(bytes).expect("memory takes everything");
        encoder.finish().expect("memory takes everything")
    }

    fn xz(dictionary_bytes: u32, bytes: &[u8]) -> Vec<u8> {
        let mut options = LzmaOptions::new_preset(0).expect("a preset");
        options.dict_size(dictionary_bytes);
        let stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc32);
        encoded(stream.expect("an encoder"), bytes)
    }

    fn decode(format: Format, file: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(file, format, DICTIONARY_LOG_MAX)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn dictionaries_up_to_128_mib_are_decoded() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        for dictionary_bytes in [4096, 8 << 20, 64 << 20, 128 << 20] {
            let decoded = decode(Format::Xz, &xz(dictionary_bytes, &bytes)).expect("decoded");
            assert!(decoded == bytes, "{dictionary_bytes}");
        }
        let error = decode(Format::Xz, &xz(256 << 20, &bytes)).expect_err("too much").to_string();
        assert!(error.contains("memory"), "{error}");
    }

    #[test]
    fn each_format_is_decoded_whole_and_not_when_it_is_cut_or_goes_on() {
        let bytes = vec![5; 100_000];
        let options = LzmaOptions::new_preset(6).expect("a preset");
        let lzma = encoded(Stream::new_lzma_encoder(&options).expect("an encoder"), &bytes);
        let xz = [xz(4096, &bytes[..7]), xz(1 << 20, &bytes[7..])].concat();
        for (format, file) in [(Format::Lzma, lzma), (Format::Xz, xz)] {
            assert!(decode(format, &file).expect("whole") == bytes, "{format:?}");
            assert!(decode(format, &file[..file.len() - 5]).is_err(), "{format:?}");
            assert!(decode(format, b"no such file, but something else").is_err(), "{format:?}");
        }
    }
}
