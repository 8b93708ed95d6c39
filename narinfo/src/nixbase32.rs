//! Nix's base 32: its own alphabet, least significant bits last, no padding.
//! Decoding is strict: every byte sequence has exactly one spelling.

/// The digits in order of their value: no e, o, t, u.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// Bits of one digit.
const DIGIT_BITS: usize = 5;

/// Digits and bytes of the smallest group of whole bytes.
const GROUP_DIGITS: usize = 8;
const GROUP_BYTES: usize = GROUP_DIGITS * DIGIT_BITS / 8;

/// No digit: has bits that no digit has.
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

/// True where every character is a digit.
pub(crate) fn are_digits(text: &[u8]) -> bool {
    // Without a branch for each character: this runs for each request.
    text.iter().fold(0, |bits, character| bits | VALUES[usize::from(*character)]) != FOREIGN
}

/// The bytes that `text` spells; `None` when it has another length, a foreign character, or bits beyond the
/// last byte.
pub(crate) fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != length(N) {
        return None;
    }
    let mut bytes = [0; N];
    let (mut digits, mut beyond) = (0, 0);
    // Eight digits are five bytes, from the end of the text on; the last group may have fewer of both.
    for (characters, spelt) in text.rchunks(GROUP_DIGITS).zip(bytes.chunks_mut(GROUP_BYTES)) {
        let mut group = 0_u64;
        for character in characters {
            let digit = VALUES[usize::from(*character)];
            digits |= digit;
            group = group << DIGIT_BITS | u64::from(digit);
        }
        spelt.copy_from_slice(&group.to_le_bytes()[..spelt.len()]);
        beyond |= group >> (8 * spelt.len());
    }
    (usize::from(digits) < ALPHABET.len() && beyond == 0).then_some(bytes)
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
    fn a_foreign_character_is_refused_wherever_it_stands() {
        let text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        for at in 0..text.len() {
            for foreign in [b'e', b'A', b'/', 0, 0xff] {
                let mut text = text.as_bytes().to_vec();
                text[at] = foreign;
                assert_eq!(decode::<32>(&text), None, "{foreign} at {at}");
            }
        }
        assert_eq!(decode::<32>(&text.as_bytes()[1..]), None);
        assert_eq!(decode::<20>(text.as_bytes()), None);
    }

    #[test]
    fn what_is_spelt_is_read_for_every_number_of_bytes() {
        fn both<const N: usize>() {
            let bytes: [u8; N] = std::array::from_fn(|at| (at as u8).wrapping_mul(83) ^ 0xa5);
            assert_eq!(decode(encode(&bytes).as_bytes()), Some(bytes));
        }
        both::<0>();
        both::<1>();
        both::<2>();
        both::<3>();
        both::<4>();
        both::<5>();
        both::<20>();
        both::<32>();
        both::<64>();
    }

    #[test]
    fn bits_beyond_the_last_byte_are_refused() {
        let fits = format!("1{}", "z".repeat(51));
        let too_large = format!("2{}", "z".repeat(51));
        assert!(decode::<32>(fits.as_bytes()).is_some());
        assert!(decode::<32>(too_large.as_bytes()).is_none());
    }
}
