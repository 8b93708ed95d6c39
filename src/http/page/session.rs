//! Tokens and themes in cookies. A token's cookie counts for pages alone, never for the API; scripts cannot
//! read it, no other site can have it sent, and every form that changes something has a proof beside it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{self, HeaderMap};
use sha2::{Digest, Sha256};

/// Text before a token, of which a form's proof is made.
const PROOF_CONTEXT: &str = "ondine form proof\n";
/// Name of the cookie with a token.
pub(super) const TOKEN_COOKIE: &str = "ondine_token";
/// Name of the cookie with a theme.
pub(super) const THEME_COOKIE: &str = "ondine_theme";

/// A token in a cookie.
pub(super) struct Session(String);

/// Colours of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Theme {
    Light,
    Dark,
}

impl Session {
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        cookie(headers, TOKEN_COOKIE).map(|token| Self(token.to_owned()))
    }

    /// The token as in a header Authorization.
    pub(super) fn credentials(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Proof that a form was made for the holder of this token.
    pub(super) fn proof(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(format!("{PROOF_CONTEXT}{}", self.0)))
    }
}

impl Theme {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Light, Self::Dark].into_iter().find(|theme| theme.name() == text)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// The value of a cookie.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}
