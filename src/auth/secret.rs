//! The text of a token, `ondine_<number>_<secret>`, and the header that clients send it in. Must never let a
//! secret be shown or logged.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use narinfo::{NIXBASE32_ALPHABET, NarHash};
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Prefix by which people and secret scanners recognise a token.
const PREFIX: &str = "ondine_";
/// Characters of the secret: 256 bits in Nix's base 32.
const SECRET_CHARS: usize = 52;
/// Characters of the number at most.
const NUMBER_CHARS_MAX: usize = 20;
/// Begin of a JSON object in base64url.
const OBJECT: &str = "eyJ";
/// Characters of each part of an identity token: the shortest header that names an algorithm has more.
const PART_CHARS_MIN: usize = 16;
/// Times that a text may be percent-encoded and is still searched for tokens: proxies may have done so.
const ENCODED_TIMES_MAX: usize = 2;
/// Characters of the shortest token, ours or an identity token.
const TOKEN_CHARS_MIN: usize = PREFIX.len() + 2 + SECRET_CHARS;

/// The text of a token, as its user has it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    id: u64,
    secret: String,
}

/// Shows no secret.
impl fmt::Debug for TokenText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}_…", self.id)
    }
}

/// A secret that is not yet that of a token.
pub struct Secret(String);

impl Secret {
    /// A new secret, from the system's randomness.
    ///
    /// # Errors
    /// The system gives none.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(NarHash::from_bytes(bytes).to_nixbase32()))
    }

    /// SHA-256 of it, which is kept.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// The token of this number that has it.
    #[must_use]
    pub fn into_token(self, id: u64) -> TokenText {
        TokenText { id, secret: self.0 }
    }
}

impl TokenText {
    /// Parses the text of a token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let digits =
            (1..=NUMBER_CHARS_MAX).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        let fits = secret.len() == SECRET_CHARS && secret.bytes().all(|b| NIXBASE32_ALPHABET.contains(&b));
        (digits && fits).then_some(())?;
        Some(Self { id: number.parse().ok()?, secret: secret.to_owned() })
    }

    /// Number of the token.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// True if its secret has this digest. Takes as long where it has not.
    #[must_use]
    pub fn has_digest(&self, digest: &[u8; 32]) -> bool {
        let own: [u8; 32] = Sha256::digest(&self.secret).into();
        own.ct_eq(digest).into()
    }

    /// All of it, for the one time that it is shown.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }
}

/// True where a text, such as the address of a request, has a token in it, of ours or of an issuer of
/// identity tokens, also one that is percent-encoded. Costs nothing for the address of a narinfo.
#[must_use]
pub fn has_token(text: &str) -> bool {
    if text.len() < TOKEN_CHARS_MIN {
        return false;
    }
    let mut text = Cow::Borrowed(text);
    for _ in 0..=ENCODED_TIMES_MAX {
        if has_plain_token(&text) || has_identity_token(&text) {
            return true;
        }
        if memchr::memchr(b'%', text.as_bytes()).is_none() {
            return false;
        }
        text = percent_decode_str(&text).decode_utf8_lossy().into_owned().into();
    }
    false
}

fn has_plain_token(text: &str) -> bool {
    memchr::memmem::find_iter(text.as_bytes(), PREFIX).any(|at| {
        let rest = &text[at + PREFIX.len()..];
        let Some((number, secret)) = rest.split_once('_') else { return false };
        let secret = secret.as_bytes().get(..SECRET_CHARS).unwrap_or_default();
        !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
            && secret.len() == SECRET_CHARS
            && secret.iter().all(u8::is_ascii_alphanumeric)
    })
}

/// True where three parts in base64url stand in a row, the first two of which begin as JSON objects do (RFC
/// 7519).
fn has_identity_token(text: &str) -> bool {
    let is_part = |part: &str| part.len() >= PART_CHARS_MIN;
    let part = |text: &str| -> usize {
        text.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')).count()
    };
    memchr::memmem::find_iter(text.as_bytes(), OBJECT).any(|at| {
        let (head, rest) = text[at..].split_at(part(&text[at..]));
        let Some(rest) = rest.strip_prefix('.').filter(|rest| rest.starts_with(OBJECT)) else { return false };
        let (body, rest) = rest.split_at(part(rest));
        let Some(rest) = rest.strip_prefix('.') else { return false };
        is_part(head) && is_part(body) && is_part(&rest[..part(rest)])
    })
}

/// The password of Basic credentials (RFC 7617), or what Bearer has (RFC 6750).
pub(super) fn credentials(header: &[u8]) -> Option<String> {
    let (scheme, value) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    let value = value.trim_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdfghijklmnpqrsvwxyz0123456789abcdfghijk";

    #[test]
    fn a_token_is_read_as_it_was_shown_and_nothing_else_is_one() {
        let made = Secret::generate().expect("randomness");
        let digest = made.digest();
        let token = made.into_token(17);
        let read = TokenText::parse(&token.reveal()).expect("a token");
        assert!(read == token && read.id() == 17 && read.has_digest(&digest) && !read.has_digest(&[0; 32]));
        assert_eq!(format!("{token:?}"), "ondine_17_…");
        let other = Secret::generate().expect("randomness").into_token(17);
        assert!(other != token && !other.has_digest(&digest));
        for wrong in [
            "",
            "ondine_",
            "ondine_1_",
            &format!("ondine__{SECRET}"),
            &format!("ondine_+1_{SECRET}"),
            &format!("ondine_1_{SECRET}0"),
            &format!("ondine_1_{}", SECRET.to_uppercase()),
            &format!("ondine_99999999999999999999_{SECRET}"),
            &format!(" ondine_1_{SECRET}"),
        ] {
            assert_eq!(TokenText::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_found_wherever_it_stands_in_a_text() {
        for text in ["/?token=ondine_1_", "/ondine_12_", "ondine_ondine_3_"] {
            assert!(has_token(&format!("{text}{SECRET}")), "{text}");
            assert!(!has_token(&format!("{text}{}", &SECRET[1..])), "{text}");
        }
        assert!(!has_token(&format!("/get/pkgs/ondine_x_{SECRET}")));
        assert!(!has_token("/0123456789abcdfghijklmnpqrsvwxyz.narinfo"));
        assert!(!has_token(&format!("/nar/{SECRET}.nar.zst")));
        for text in ["/log/ondine%5F2%5F", "/log/%6Fndine_2_", "/x/ondine%255F2%255F"] {
            assert!(has_token(&format!("{text}{SECRET}")), "{text}");
        }
    }

    #[test]
    fn an_identity_token_is_found_in_a_text() {
        let (header, claims) = ("eyJhbGciOiJSUzI1NiJ9", "eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIn0");
        let jwt = format!("{header}.{claims}.{SECRET}");
        for text in [
            format!("/{jwt}"),
            format!("/log/x-{jwt}.drv"),
            format!("token={jwt}&x"),
            jwt.replace('.', "%2E"),
        ] {
            assert!(has_token(&text), "{text}");
        }
        for text in [
            format!("/{header}.{claims}."),
            format!("/{header}.{SECRET}.{claims}"),
            format!("/{header}/{claims}/{SECRET}"),
        ] {
            assert!(!has_token(&text), "{text}");
        }
    }

    #[test]
    fn credentials_are_the_password_of_any_user_or_a_bearer_token() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (header, expected) in [
            (basic("anyone:secret"), Some("secret")),
            (basic(":secret"), Some("secret")),
            (basic("a:b:c"), Some("b:c")),
            (basic("secret"), None),
            ("Bearer secret".to_owned(), Some("secret")),
            ("bearer  secret ".to_owned(), Some("secret")),
            ("Basic !".to_owned(), None),
            ("Digest secret".to_owned(), None),
            ("secret".to_owned(), None),
        ] {
            assert_eq!(credentials(header.as_bytes()).as_deref(), expected, "{header}");
        }
    }
}
