//! The SHA-256 that names a NAR (or any other file) and its spellings.
//! Bounds: one algorithm, one length; Nix has allowed nothing else for NARs since its first release.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::nixbase32;

/// Bytes of a SHA-256.
const BYTES: usize = 32;
/// Characters of its spellings.
const HEX_CHARS: usize = 2 * BYTES;
const BASE64_CHARS: usize = BYTES.div_ceil(3) * 4;
/// Algorithms of hashes that Nix knows beside SHA-256, and their bytes.
const OTHERS: [(&str, usize); 4] = [("md5", 16), ("sha1", 20), ("sha512", 64), ("blake3", 32)];

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash([u8; BYTES]);

/// Not the spelling of a SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a SHA-256 hash (sha256: and 52 characters of Nix's base 32, 64 hexadecimal digits or base64; or sha256-<base64>)"
)]
pub struct HashError(String);

impl HashError {
    /// Messages show the beginning of what was wrong.
    fn of(text: &str) -> Self {
        Self(text.chars().take(80).collect())
    }
}

impl NarHash {
    /// The hash with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// Parses 52 characters of Nix's base 32, without a prefix.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn from_nixbase32(text: &str) -> Result<Self, HashError> {
        nixbase32::decode(text.as_bytes()).map(Self).ok_or_else(|| HashError::of(text))
    }

    /// Parses 64 hexadecimal digits, without a prefix.
    ///
    /// # Errors
    /// The text is anything else.
    pub fn from_hex(text: &str) -> Result<Self, HashError> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        match digits {
            Some(digits) if digits.len() == 2 * BYTES => {
                let mut bytes = [0; BYTES];
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
                    *byte = pair[0] << 4 | pair[1];
                }
                Ok(Self(bytes))
            }
            _ => Err(HashError::of(text)),
        }
    }

    fn from_base64(text: &str) -> Result<Self, HashError> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| HashError::of(text))
    }

    /// 52 characters of Nix's base 32, as file names and URLs have them.
    #[must_use]
    pub fn to_nixbase32(&self) -> String {
        nixbase32::encode(&self.0)
    }

    /// 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// True when the text is a hash of an algorithm that Nix knows and that is not SHA-256, in any spelling.
pub(crate) fn is_of_another_kind(text: &str) -> bool {
    OTHERS.into_iter().any(|(name, bytes)| {
        let Some(rest) = text.strip_prefix(name) else { return false };
        let is_base64 = |text: &str| STANDARD.decode(text).is_ok_and(|decoded| decoded.len() == bytes);
        match rest.split_at_checked(1) {
            Some(("-", digest)) => is_base64(digest),
            Some((":", digest)) if digest.len() == 2 * bytes => digest.bytes().all(|b| b.is_ascii_hexdigit()),
            Some((":", digest)) if digest.len() == (8 * bytes).div_ceil(5) => {
                digest.bytes().all(|b| nixbase32::ALPHABET.contains(&b))
            }
            Some((":", digest)) => is_base64(digest),
            _ => false,
        }
    })
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_nixbase32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NarHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        if let Some(base64) = text.strip_prefix("sha256-") {
            return Self::from_base64(base64).map_err(|_| HashError::of(text));
        }
        let digits = text.strip_prefix("sha256:").ok_or_else(|| HashError::of(text))?;
        let parsed = match digits.len() {
            HEX_CHARS => Self::from_hex(digits),
            BASE64_CHARS => Self::from_base64(digits),
            _ => Self::from_nixbase32(digits),
        };
        // The message shows the whole of it, not what was left without the prefix.
        parsed.map_err(|_| HashError::of(text))
    }
}
