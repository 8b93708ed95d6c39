//! Undoes the compressions that NARs come in, with a bound on the memory each may ask for.
//! Reads blocking and gives what there is; how much of it is wanted is for the reader to bound.

use std::io::{self, BufReader, Read};

use liblzma::stream::{CONCATENATED, Stream};
use narinfo::Compression;

/// The largest zstd window as a power of two: 128 MiB, what zstd itself reads unasked (zstd --long=27).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes an xz decoder may take; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 80 * 1024 * 1024;
/// Bytes read at a time from what is compressed.
const INPUT_BYTES: usize = 64 * 1024;

/// The plain bytes of `input`.
///
/// # Errors
/// When no decoder can be made. Reading fails where the input is damaged, ends early, or asks for too much memory.
pub fn plain<'a>(
    compression: Compression,
    input: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
            let input = BufReader::with_capacity(INPUT_BYTES, input);
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Bzip2 => {
            Box::new(bzip2::bufread::MultiBzDecoder::new(BufReader::with_capacity(INPUT_BYTES, input)))
        }
        Compression::Gzip => {
            Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(INPUT_BYTES, input)))
        }
        Compression::Br => Box::new(brotli_decompressor::Decompressor::new(input, INPUT_BYTES)),
    })
}

/// The compression that a Content-Encoding names (RFC 9110, 8.4.1), where there is one that we can undo.
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

/// All of a small file that is at most `bytes_max` long when it is plain.
///
/// # Errors
/// When it is damaged or longer than that.
pub fn all(compression: Compression, bytes: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    plain(compression, bytes)?.take(bytes_max as u64 + 1).read_to_end(&mut out)?;
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
        // A frame with a window of 2^28 bytes (RFC 8878, 3.1.1.1.2): magic number, descriptor, window, an empty last block.
        let frame = |exponent: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, (exponent - 10) << 3, 1, 0, 0];
        assert!(all(Compression::Zstd, &frame(27), 10).expect("plain").is_empty());
        assert!(all(Compression::Zstd, &frame(28), 10).is_err());
    }
}
