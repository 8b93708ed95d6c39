//! Undoes the compressions that NARs come in, within a budget of memory for all of them.
//! Reads blocking and gives what there is; how much of it is wanted is for the reader to bound.

mod budget;
mod lzma;
mod zstd_frames;

use std::io::{self, BufRead, BufReader, Cursor, Read};

use lz4_flex::frame::FrameDecoder;
use narinfo::Compression;

use budget::Reservation;
use zstd_frames::{Frames, HEADER_BYTES_MAX, WINDOW_BYTES_MAX};

/// Bytes of the largest window of a zstd file that is stored as it came: each of its readers needs as much
/// memory. More than that have only the highest levels.
pub const STORED_WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Power of two of the largest window of what is encoded for the way alone (RFC 9659): 8 MiB.
const ENCODING_WINDOW_LOG_MAX: u32 = 23;
/// Bytes of compressed input that are read at a time.
const INPUT_BYTES: usize = 64 * 1024;
/// Bytes that decoders of these formats need at most: blocks of 900 kB, a window of 16 MiB, blocks of 8 MiB.
const BZIP2_BYTES: u64 = 4 * 1024 * 1024;
const BROTLI_BYTES: u64 = 18 * 1024 * 1024;
const LZ4_BYTES: u64 = 17 * 1024 * 1024;

/// Decodes `input`. Waits for memory while other decoders have it.
///
/// # Errors
/// No decoder can be made. Reading fails when the input is damaged, ends early, or asks for too much
/// memory.
pub fn plain<'a>(
    compression: Compression,
    input: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let buffered = |input| BufReader::with_capacity(INPUT_BYTES, input);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Zstd => Box::new(Frames::new(input, WINDOW_BYTES_MAX)),
        Compression::Xz => Box::new(lzma::Decoder::new(input, lzma::Format::Xz, lzma::DICTIONARY_LOG_MAX)?),
        Compression::Lzma => {
            Box::new(lzma::Decoder::new(input, lzma::Format::Lzma, lzma::DICTIONARY_LOG_MAX)?)
        }
        Compression::Lzip => {
            Box::new(lzma::Decoder::new(input, lzma::Format::Lzip, lzma::DICTIONARY_LOG_MAX)?)
        }
        Compression::Bzip2 => {
            Reserved::boxed(BZIP2_BYTES, || bzip2::bufread::MultiBzDecoder::new(buffered(input)))
        }
        // Its window has 32 kB.
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(input))),
        Compression::Br => {
            Reserved::boxed(BROTLI_BYTES, || brotli_decompressor::Decompressor::new(input, INPUT_BYTES))
        }
        Compression::Lz4 => {
            Reserved::boxed(LZ4_BYTES, || Lz4Frames(Some(FrameDecoder::new(buffered(input)))))
        }
    })
}

/// Decodes a Content-Encoding. Has a small window, and takes nothing of the budget, for which a decoder of
/// the contents may wait.
///
/// # Errors
/// As [`plain`].
pub fn encoded<'a>(
    encoding: Compression,
    input: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let buffered = BufReader::with_capacity(INPUT_BYTES, input);
    Ok(match encoding {
        Compression::None => Box::new(buffered),
        Compression::Zstd => Box::new(Frames::new(buffered, 1 << ENCODING_WINDOW_LOG_MAX)),
        Compression::Xz => Box::new(lzma::Decoder::new(buffered, lzma::Format::Xz, ENCODING_WINDOW_LOG_MAX)?),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered)),
        Compression::Br => Box::new(brotli_decompressor::Decompressor::new(buffered, INPUT_BYTES)),
        _ => return Err(io::Error::other("this is no Content-Encoding")),
    })
}

/// Decoder with the memory that it needs.
struct Reserved<D> {
    _memory: Reservation,
    decoder: D,
}

impl<'a, D: Read + Send + 'a> Reserved<D> {
    fn boxed(bytes: u64, decoder: impl FnOnce() -> D) -> Box<dyn Read + Send + 'a> {
        let memory = Reservation::of(bytes);
        Box::new(Reserved { _memory: memory, decoder: decoder() })
    }
}

impl<D: Read> Read for Reserved<D> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(output)
    }
}

/// Decoder of concatenated lz4 frames. Each has a decoder of its own, because one takes no second frame with
/// another block size.
struct Lz4Frames<R: Read>(Option<FrameDecoder<R>>);

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            let read = decoder.read(output)?;
            // The decoder reports the end of a frame like the end of the file.
            if read > 0 || output.is_empty() || decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(read);
            }
            self.0 = self.0.take().map(|decoder| FrameDecoder::new(decoder.into_inner()));
        }
        Ok(0)
    }
}

/// Bytes of the window of a zstd file's first frame, and the file; `None` if it is no zstd file.
///
/// # Errors
/// The file cannot be read.
pub fn window_of<R: Read>(mut input: R) -> io::Result<(Option<u64>, impl Read + use<R>)> {
    let mut header = Vec::new();
    input.by_ref().take(HEADER_BYTES_MAX as u64).read_to_end(&mut header)?;
    Ok((zstd_frames::window_bytes(&header), Cursor::new(header).chain(input)))
}

/// Compression that a Content-Encoding names (RFC 9110, 8.4.1), if it can be decoded.
#[must_use]
pub fn content_encoding(name: &str) -> Option<Compression> {
    match name.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Some(Compression::None),
        "zstd" => Some(Compression::Zstd),
        "xz" => Some(Compression::Xz),
        "bzip2" => Some(Compression::Bzip2),
        "gzip" | "x-gzip" => Some(Compression::Gzip),
        "br" => Some(Compression::Br),
        _ => None,
    }
}

/// Decodes a small file into at most `bytes_max` bytes.
///
/// # Errors
/// The file is damaged or longer than that.
pub fn all(compression: Compression, bytes: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    encoded(compression, bytes)?.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
    if out.len() > bytes_max { Err(io::Error::other("it is too large")) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_is_found_by_its_name_in_any_case_and_others_are_not() {
        assert_eq!(content_encoding("GZip"), Some(Compression::Gzip));
        assert_eq!(content_encoding(""), Some(Compression::None));
        assert_eq!(content_encoding("zstd, br"), None);
    }

    #[test]
    fn what_is_longer_than_wanted_or_ends_early_is_refused() {
        let bytes = zstd::encode_all(&[7; 1000][..], 1).expect("compressed");
        assert_eq!(all(Compression::Zstd, &bytes, 1000).expect("plain"), [7; 1000]);
        assert!(all(Compression::Zstd, &bytes, 999).is_err());
        assert!(all(Compression::Zstd, &bytes[..bytes.len() - 1], 1000).is_err());
    }

    #[test]
    fn a_zstd_file_that_asks_for_too_large_a_window_is_refused() {
        // A frame with a window of 2^28 bytes (RFC 8878, 3.1.1.1.2): magic number, descriptor, window, an
        // empty last block.
        let frame = |exponent: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (exponent - 10) << 3, 1, 0, 0];
        let read = |decoder: io::Result<Box<dyn Read + Send>>| decoder.expect("a decoder").read(&mut [0]);
        let plain = |exponent| read(plain(Compression::Zstd, Cursor::new(frame(exponent))));
        let encoded = |exponent| read(encoded(Compression::Zstd, Cursor::new(frame(exponent))));
        assert!(plain(27).is_ok() && plain(28).is_err());
        assert!(encoded(23).is_ok() && encoded(24).is_err());
        let (window, mut file) = window_of(Cursor::new(frame(27))).expect("memory can be read");
        let mut whole = Vec::new();
        file.read_to_end(&mut whole).expect("memory can be read");
        assert_eq!((window, &whole[..]), (Some(1 << 27), &frame(27)[..]));
    }

    #[test]
    fn lz4_frames_are_one_file() {
        let frame = |bytes: &[u8]| {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            io::Write::write_all(&mut encoder, bytes).expect("memory takes everything");
            encoder.finish().expect("memory takes everything")
        };
        let file = [frame(&[1; 100_000]), frame(&[]), frame(&[2; 3])].concat();
        let mut out = Vec::new();
        plain(Compression::Lz4, &file[..]).expect("a decoder").read_to_end(&mut out).expect("whole");
        assert_eq!(out, [&[1; 100_000][..], &[2; 3]].concat());
    }
}
