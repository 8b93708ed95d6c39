//! Reading a narinfo: every field checked, nothing guessed. Stricter than Nix where Nix is careless:
//! duplicate fields, odd sizes and URLs that leave the cache are refused. What Nix is known to take from
//! caches that are in use, such as a file's size of 0, is taken as Nix does.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::{Compression, NarInfo, PathInfo};
use crate::content_address::ContentAddressError;
use crate::hash::{HashError, NarHash};
use crate::signature::{Signature, SignatureError};
use crate::store_path::{StoreDir, StorePath, StorePathError};

/// Bytes of a narinfo at most.
pub const NARINFO_BYTES_MAX: usize = 1024 * 1024;
/// Deriver that older servers write where none is known.
const UNKNOWN_DERIVER: &str = "unknown-deriver";
/// Signatures of a path at most: each is kept, passed on, and verified by whoever trusts its key.
pub const SIGNATURES_MAX: usize = 64;
/// Characters of a value that a message shows.
const EXCERPT_CHARS: usize = 120;

/// Why a narinfo is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More than [`NARINFO_BYTES_MAX`].
    #[error("the narinfo has {0} bytes, at most {NARINFO_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Bytes that are no text, or control characters within a line.
    #[error("the narinfo is not plain text")]
    NotText,
    /// The last line has no end: it was cut off.
    #[error("the narinfo ends in the middle of a line")]
    Cut,
    /// A line is not `Name: value`.
    #[error("the line {0:?} of the narinfo is not \"Name: value\"")]
    Line(String),
    /// A field that there can be only one of.
    #[error("the narinfo has more than one {0}")]
    Duplicate(&'static str),
    /// A field that must be there.
    #[error("the narinfo has no {0}")]
    Missing(&'static str),
    /// A size that is none.
    #[error("the narinfo's {field} is {value:?}: a number from 1 to 18446744073709551615 is needed")]
    Size {
        /// Which size.
        field: &'static str,
        /// Its text.
        value: String,
    },
    /// A compression that nobody here can undo.
    #[error("the narinfo's compression {0:?} is unknown")]
    Compression(String),
    /// A URL that is malformed, or leads out of the cache.
    #[error("the narinfo's URL {0:?} is refused: it must stay within the cache, or be plain http(s)")]
    Url(String),
    /// A field with a store path that is none.
    #[error("the narinfo's {field} is refused")]
    StorePath {
        /// Which field.
        field: &'static str,
        /// The defect.
        source: StorePathError,
    },
    /// A field with a hash that is none.
    #[error("the narinfo's {field} is refused")]
    Hash {
        /// Which field.
        field: &'static str,
        /// The defect.
        source: HashError,
    },
    /// More signatures than anybody makes.
    #[error("the narinfo has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// A malformed signature.
    #[error("a signature of the narinfo is malformed")]
    Signature(#[from] SignatureError),
    /// A malformed content address.
    #[error("the narinfo's content address is malformed")]
    ContentAddress(#[from] ContentAddressError),
}

/// The fields that there can be only one of.
const SINGLE: [&str; 9] =
    ["StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "CA"];

pub(super) fn parse(store_dir: &StoreDir, bytes: &[u8]) -> Result<NarInfo, ParseError> {
    let (fields, signatures) = fields(bytes)?;
    let get = |field| fields.get(field).copied();
    let need = |field| get(field).ok_or(ParseError::Missing(field));
    let path_error = |field| move |source| ParseError::StorePath { field, source };
    let path = StorePath::parse_in(store_dir, need("StorePath")?).map_err(path_error("StorePath"))?;
    let references = get("References").unwrap_or_default();
    let references: BTreeSet<StorePath> = references
        .split_ascii_whitespace()
        .map(|reference| StorePath::parse(reference).map_err(path_error("References")))
        .collect::<Result<_, _>>()?;
    let path_info = PathInfo {
        path,
        nar_hash: hash("NarHash", need("NarHash")?)?,
        nar_size: size("NarSize", need("NarSize")?)?,
        references,
        deriver: get("Deriver").map(StorePath::parse).transpose().map_err(path_error("Deriver"))?,
        ca: get("CA").filter(|ca| !ca.is_empty()).map(FromStr::from_str).transpose()?,
        signatures,
    };
    Ok(NarInfo {
        path_info,
        url: url(need("URL")?)?.to_owned(),
        compression: compression(get("Compression"))?,
        // Of the file nothing is verified: its hash may be of any kind, and a size of 0 is none.
        file_hash: get("FileHash").map(file_hash).transpose()?.flatten(),
        file_size: get("FileSize")
            .filter(|size| *size != "0")
            .map(|value| size("FileSize", value))
            .transpose()?,
    })
}

type Fields<'a> = BTreeMap<&'static str, &'a str>;

/// The known fields; unknown ones are passed over, as clients do.
fn fields(bytes: &[u8]) -> Result<(Fields<'_>, Vec<Signature>), ParseError> {
    if bytes.len() > NARINFO_BYTES_MAX {
        return Err(ParseError::TooLarge(bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ParseError::NotText)?;
    if text.contains(|c: char| c.is_control() && c != '\n') {
        return Err(ParseError::NotText);
    }
    let text = text.strip_suffix('\n').ok_or(ParseError::Cut)?;
    let (mut fields, mut signatures, mut malformed) = (BTreeMap::new(), Vec::new(), None);
    for line in text.split('\n') {
        let (name, value) = line.split_once(':').ok_or_else(|| ParseError::Line(excerpt(line)))?;
        // A value begins with one space; a line that ends at its colon has an empty value.
        let value = match value.strip_prefix(' ') {
            Some(value) => value,
            None if value.is_empty() => value,
            None => return Err(ParseError::Line(excerpt(line))),
        };
        if name == "Sig" {
            if signatures.len() == SIGNATURES_MAX {
                return Err(ParseError::TooManySignatures);
            }
            // One without a value is none.
            match value.parse() {
                Ok(signature) => signatures.push(signature),
                Err(error) if !value.is_empty() => malformed = Some(error),
                Err(_) => {}
            }
        } else if name == "Deriver" {
            // Of several the last one that says something counts.
            if !value.is_empty() && value != UNKNOWN_DERIVER {
                fields.insert("Deriver", value);
            }
        } else if let Some(single) = SINGLE.into_iter().find(|single| *single == name)
            && fields.insert(single, value).is_some()
        {
            return Err(ParseError::Duplicate(single));
        }
    }
    // Beside one that can be verified it is passed over, and not passed on.
    match malformed {
        Some(error) if signatures.is_empty() => Err(ParseError::Signature(error)),
        _ => Ok((fields, signatures)),
    }
}

fn compression(value: Option<&str>) -> Result<Compression, ParseError> {
    let name = value.filter(|value| !value.is_empty()).unwrap_or("bzip2");
    Compression::from_name(name).ok_or_else(|| ParseError::Compression(excerpt(name)))
}

/// Digits alone: no sign, no space, nothing that another reader could take for another number.
fn size(field: &'static str, value: &str) -> Result<u64, ParseError> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match value.parse() {
        Ok(size) if digits && size > 0 => Ok(size),
        _ => Err(ParseError::Size { field, value: excerpt(value) }),
    }
}

fn hash<T: FromStr<Err = HashError>>(field: &'static str, value: &str) -> Result<T, ParseError> {
    value.parse().map_err(|source| ParseError::Hash { field, source })
}

/// The hash of a file, if it is a SHA-256.
fn file_hash(value: &str) -> Result<Option<NarHash>, ParseError> {
    if crate::hash::is_of_another_kind(value) { Ok(None) } else { hash("FileHash", value).map(Some) }
}

/// A relative URL must not climb out of the cache, however it is resolved or decoded; an absolute one must be
/// http or https. One that begins with a slash is on the cache's own host.
fn url(value: &str) -> Result<&str, ParseError> {
    let error = || ParseError::Url(excerpt(value));
    let absolute = ["http://", "https://"].iter().find_map(|scheme| value.strip_prefix(scheme));
    let path = match absolute {
        Some(rest) => {
            let (host, path) = rest.split_once('/').ok_or_else(error)?;
            // A query or fragment before the first slash would mean that what follows it is no path.
            if host.is_empty() || host.starts_with(':') || host.contains(['@', '?', '#']) {
                return Err(error());
            }
            path
        }
        None => value,
    };
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    let before_query = path.split(['?', '#']).next().unwrap_or_default();
    let encoded = |text: &str, codes: &[&str]| {
        let lower = text.to_ascii_lowercase();
        codes.iter().any(|code| lower.contains(code))
    };
    // Dots and slashes steer a path alone; control characters (%00 to %1f, %7f) have no place in a query
    // either.
    let hidden = encoded(before_query, &["%2e", "%2f", "%5c", "%25"]) || encoded(value, &["%0", "%1", "%7f"]);
    let leaves = before_query.split('/').any(|part| part == "..");
    // A scheme (RFC 3986, 4.2), or a host without one: both would lead away from the cache.
    let first = before_query.split('/').next().unwrap_or_default();
    let elsewhere = absolute.is_none() && (before_query.starts_with("//") || first.contains(':'));
    let names_nothing = before_query.split('/').all(|part| part.is_empty() || part == ".");
    if names_nothing || !value.chars().all(plain) || hidden || leaves || elsewhere {
        return Err(error());
    }
    Ok(value)
}

fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARS).collect()
}
