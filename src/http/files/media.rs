//! Media types of files: by the name, else by the first bytes.

use hyper::header::HeaderValue;
use narinfo::NarHash;

use super::RegularFile;
use crate::contents::Contents;
use crate::http::answer;
use crate::http::error::Error;

/// Bytes of a file that are looked at.
const SNIFFED_BYTES: u64 = 512;
/// Text in a character set that is nearly always this one.
const CHARSET: &str = "; charset=utf-8";

/// The media type of a file of this name.
pub(super) async fn media_type(
    contents: &Contents,
    file: &RegularFile,
    name: &str,
) -> Result<HeaderValue, Error> {
    if let Some(found) = by_name(name) {
        return Ok(found);
    }
    let RegularFile { nar, bytes, offset } = *file;
    Ok(by_contents(&beginning(contents, nar, offset, bytes).await?))
}

async fn beginning(contents: &Contents, nar: NarHash, offset: u64, bytes: u64) -> Result<Vec<u8>, Error> {
    if bytes == 0 {
        return Ok(Vec::new());
    }
    Ok(contents.beginning(nar, offset..offset + bytes, SNIFFED_BYTES).await?)
}

fn by_name(name: &str) -> Option<HeaderValue> {
    let found = mime_guess::from_path(name).first_raw()?;
    let charset = if found.starts_with("text/") { CHARSET } else { "" };
    HeaderValue::from_str(&format!("{found}{charset}")).ok()
}

/// Text, unless there is anything in it that no text has.
fn by_contents(beginning: &[u8]) -> HeaderValue {
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => Some(text),
        // The last character was cut.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&beginning[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let is_text =
        |text: &str| !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{1b}'));
    if text.is_some_and(is_text) { answer::TEXT } else { answer::BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_that_of_the_name_or_else_of_the_first_bytes() {
        let named = |name: &str| by_name(name).map(|found| found.to_str().expect("text").to_owned());
        assert_eq!(named("index.html").as_deref(), Some("text/html; charset=utf-8"));
        assert_eq!(named("a.png").as_deref(), Some("image/png"));
        assert_eq!((named("hello"), named("libx.so.1.2"), named("")), (None, None, None));
        for (bytes, expected) in [
            (&b"#!/bin/sh\n"[..], answer::TEXT),
            (b"", answer::TEXT),
            ("caf\u{e9}".as_bytes(), answer::TEXT),
            (&"caf\u{e9}".as_bytes()[..4], answer::TEXT),
            (b"\x7fELF\x02\x01\x01\0", answer::BYTES),
            (b"\xff\xfe", answer::BYTES),
        ] {
            assert_eq!(by_contents(bytes), expected, "{bytes:?}");
        }
    }
}
