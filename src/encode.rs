//! Content-Encodings of answers that are made anew for each request (RFC 9110, 8.4.1).

use std::io::{self, Write};

/// Level of zstd, and quality and window of brotli: as fast as the answer is made.
const ZSTD_LEVEL: i32 = 3;
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW_LOG: u32 = 20;
/// Bytes of brotli's buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// An encoding that clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// zstd (RFC 8878).
    Zstd,
    /// brotli (RFC 7932).
    Brotli,
}

impl Encoding {
    /// Its name in Content-Encoding.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// The first of these encodings that an Accept-Encoding names and does not rule out.
    #[must_use]
    pub fn accepted(header: &str) -> Option<Self> {
        let accepts = |name: &str| {
            header.split(',').any(|one| {
                let (token, quality) = one.split_once(';').unwrap_or((one, ""));
                let quality = quality.trim().strip_prefix("q=").and_then(|quality| quality.parse().ok());
                token.trim().eq_ignore_ascii_case(name) && quality.unwrap_or(1.0) > 0.0
            })
        };
        [Self::Zstd, Self::Brotli].into_iter().find(|encoding| accepts(encoding.name()))
    }

    /// The encoded bytes.
    ///
    /// # Errors
    /// The encoder fails.
    pub fn encode(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL),
            Self::Brotli => {
                let mut encoded = Vec::new();
                let mut encoder = brotli::CompressorWriter::new(
                    &mut encoded,
                    BUFFER_BYTES,
                    BROTLI_QUALITY,
                    BROTLI_WINDOW_LOG,
                );
                encoder.write_all(bytes)?;
                drop(encoder);
                Ok(encoded)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use narinfo::Compression;

    use super::*;
    use crate::decode;

    #[test]
    fn what_is_encoded_is_decoded_to_the_same() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(|n| (n % 1000).to_le_bytes()).collect();
        for (encoding, compression) in
            [(Encoding::Zstd, Compression::Zstd), (Encoding::Brotli, Compression::Br)]
        {
            let encoded = encoding.encode(&bytes).expect("encoded");
            assert!(encoded.len() < bytes.len() / 2);
            let mut decoded = Vec::new();
            let mut decoder = decode::encoded(compression, &encoded[..]).expect("a decoder");
            decoder.read_to_end(&mut decoded).expect("decoded");
            assert!(decoded == bytes, "{encoding:?}");
        }
    }

    #[test]
    fn the_encoding_is_one_that_the_client_accepts() {
        for (header, encoding) in [
            ("", None),
            ("gzip, deflate", None),
            ("deflate, gzip, br, zstd", Some(Encoding::Zstd)),
            ("BR;q=0.5, gzip", Some(Encoding::Brotli)),
            ("zstd;q=0, br", Some(Encoding::Brotli)),
            ("zstdx", None),
        ] {
            assert_eq!(Encoding::accepted(header), encoding, "{header}");
        }
    }
}
