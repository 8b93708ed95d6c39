//! Nix's base 32: its own alphabet, least significant bits last, no padding.
//! Decoding is strict: every byte sequence has exactly one spelling.

/// The digits in order of their value: no e, o, t, u.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// Bits of one digit.
const DIGIT_BITS: usize = 5;

/// No digit.
const FOREIGN: u8 = u8::MAX;
/// The value of each character.
const VALUES: [u8; 256] = {
    let (mut values, mut value) = ([FOREIGN; 256], 0);
    while value < ALPHABET.len() {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Characters that `bytes` bytes take.
pub(crate) const fn length(bytes: usize) -> usize {
    (bytes * 8).div_ceil(DIGIT_BITS)
}

/// Spells `bytes`.
pub(crate) fn encode(bytes: &[u8]) -> String {
    (0..length(bytes.len()))
        .rev()
        .map(|digit| {
            let (byte, bit) = (digit * DIGIT_BITS / 8, digit * DIGIT_BITS % 8);
            let low = u16::from(bytes[byte]);
            let high = u16::from(bytes.get(byte + 1).copied().unwrap_or(0));
            let value = ((high << 8 | low) >> bit) & 0x1f;
            char::from(ALPHABET[usize::from(value)])
        })
        .collect()
}

/// The bytes that `text` spells; `None` when it has another length, a foreign character, or bits beyond the
/// last byte.
pub(crate) fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != length(N) {
        return None;
    }
    let mut bytes = [0; N];
    for (digit, character) in text.iter().rev().enumerate() {
        let value = match VALUES[usize::from(*character)] {
            FOREIGN => return None,
            value => u16::from(value),
        };
        let (byte, bit) = (digit * DIGIT_BITS / 8, digit * DIGIT_BITS % 8);
        let [low, high] = (value << bit).to_le_bytes();
        bytes[byte] |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spelling_is_that_of_nix() {
        // nix hash to-base32 --type sha256 of the hash of the empty file
        let empty = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
            0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
        ];
        let text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        assert_eq!(encode(&empty), text);
        assert_eq!(decode(text.as_bytes()), Some(empty));
    }

    #[test]
    fn bits_beyond_the_last_byte_are_refused() {
        let fits = format!("1{}", "z".repeat(51));
        let too_large = format!("2{}", "z".repeat(51));
        assert!(decode::<32>(fits.as_bytes()).is_some());
        assert!(decode::<32>(too_large.as_bytes()).is_none());
    }
}
