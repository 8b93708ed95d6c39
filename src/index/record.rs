//! One line of the ledger: all that a served path, or a realisation, needs to be served again. A line whose
//! checksum does not fit is skipped: corrupt bytes are never taken for data.

use std::collections::BTreeMap;

use narinfo::derivation::InputHash;
use narinfo::{Compression, DrvOutput, NarHash, PathInfo, Realisation, StorePath};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::{NarRow, PathRow, PushedDerivation, UpstreamNar};

/// Characters of the checksum at the start of a line, in hexadecimal.
const CHECKSUM_CHARS: usize = 16;

/// The record of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A path is served.
    Path(Box<Recorded>),
    /// An output of a content-addressed derivation is a served path.
    Realisation(Realisation),
    /// A derivation was pushed.
    Pushed(PushedDerivation),
}

/// A served path and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The path.
    pub path: PathRow,
    /// Its file, where it is packed.
    pub packed: Option<NarRow>,
    /// The upstreams that have its contents.
    pub upstreams: Vec<UpstreamNar>,
}

/// The record as it is written. Names are short: there are very many lines.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum LedgerLine {
    Path(PathLine),
    Realisation {
        id: String,
        body: String,
    },
    Pushed {
        drv: String,
        outputs: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
        fixed: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathLine {
    path: String,
    nar_hash: String,
    nar_size: u64,
    refs: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deriver: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
    sigs: Vec<String>,
    built: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileLine>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    upstreams: Vec<UpstreamLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileLine {
    hash: String,
    size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamLine {
    upstream: String,
    url: String,
    compression: String,
    file_hash: Option<String>,
    file_size: Option<u64>,
    redirect: bool,
}

impl Record {
    /// The line, with its end.
    pub(super) fn render(&self) -> String {
        let line = match self {
            Self::Path(recorded) => LedgerLine::Path(recorded.line()),
            Self::Realisation(realisation) => {
                LedgerLine::Realisation { id: realisation.id().file(), body: realisation.render() }
            }
            Self::Pushed(pushed) => pushed_line(pushed),
        };
        // Strings, numbers and nothing else: there is nothing in it that JSON could refuse.
        let text = serde_json::to_string(&line).unwrap_or_default();
        format!("{} {text}\n", checksum(&text))
    }

    /// Reads a line without its end; `None` where it is none, or not as it was written.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (sum, text) = std::str::from_utf8(line).ok()?.split_at_checked(CHECKSUM_CHARS)?;
        let text = text.strip_prefix(' ')?;
        if checksum(text) != sum {
            return None;
        }
        Some(match narinfo::json::from_str(text).ok()? {
            LedgerLine::Path(line) => Self::Path(Box::new(line.recorded()?)),
            LedgerLine::Realisation { id, body } => {
                let id = DrvOutput::from_file(&id).ok()?;
                Self::Realisation(Realisation::parse(&id, body.as_bytes()).ok()?)
            }
            LedgerLine::Pushed { drv, outputs, identity, fixed } => {
                let identity = identity.map(|text| NarHash::from_nixbase32(&text)).transpose().ok()?;
                let output = |(name, path): (String, String)| Some((name, StorePath::parse(&path).ok()?));
                Self::Pushed(PushedDerivation {
                    drv: StorePath::parse(&drv).ok()?,
                    outputs: outputs.into_iter().map(output).collect::<Option<_>>()?,
                    input_hash: match identity.map(|hash| *hash.as_bytes()) {
                        Some(hash) if fixed => InputHash::Fixed(hash),
                        Some(hash) => InputHash::Regular(hash),
                        None => InputHash::Deferred,
                    },
                })
            }
        })
    }
}

fn pushed_line(pushed: &PushedDerivation) -> LedgerLine {
    let PushedDerivation { drv, outputs, input_hash } = pushed;
    let (identity, fixed) = match input_hash {
        InputHash::Regular(hash) => (Some(hash), false),
        InputHash::Fixed(hash) => (Some(hash), true),
        InputHash::Deferred => (None, false),
    };
    LedgerLine::Pushed {
        drv: drv.to_string(),
        outputs: outputs.iter().map(|(name, path)| (name.clone(), path.to_string())).collect(),
        identity: identity.map(|hash| NarHash::from_bytes(*hash).to_nixbase32()),
        fixed,
    }
}

fn checksum(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().take(CHECKSUM_CHARS / 2).map(|byte| format!("{byte:02x}")).collect()
}

impl Recorded {
    fn line(&self) -> PathLine {
        let Self { path: PathRow { info, built }, packed, upstreams } = self;
        PathLine {
            path: info.path.to_string(),
            nar_hash: info.nar_hash.to_nixbase32(),
            nar_size: info.nar_size,
            refs: info.references.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            deriver: info.deriver.as_ref().map(ToString::to_string),
            ca: info.ca.as_ref().map(ToString::to_string),
            sigs: info.signatures.iter().map(ToString::to_string).collect(),
            built: *built,
            file: packed.map(|nar| FileLine { hash: nar.file_hash.to_nixbase32(), size: nar.file_size }),
            upstreams: upstreams
                .iter()
                .map(|nar| UpstreamLine {
                    upstream: nar.upstream.clone(),
                    url: nar.url.clone(),
                    compression: nar.compression.to_string(),
                    file_hash: nar.file_hash.map(|hash| hash.to_nixbase32()),
                    file_size: nar.file_size,
                    redirect: nar.redirect,
                })
                .collect(),
        }
    }
}

impl PathLine {
    fn recorded(self) -> Option<Recorded> {
        let nar_hash = NarHash::from_nixbase32(&self.nar_hash).ok()?;
        let optional =
            |text: Option<String>| text.map(|text| NarHash::from_nixbase32(&text)).transpose().ok();
        let packed = match self.file {
            Some(FileLine { hash, size }) => {
                let file_hash = NarHash::from_nixbase32(&hash).ok()?;
                Some(NarRow { nar_hash, file_hash, file_size: size })
            }
            None => None,
        };
        let upstreams = self.upstreams.into_iter().map(|line| {
            Some(UpstreamNar {
                nar_hash,
                upstream: line.upstream,
                url: line.url,
                compression: Compression::from_name(&line.compression)?,
                file_hash: optional(line.file_hash)?,
                file_size: line.file_size,
                redirect: line.redirect,
            })
        });
        let info = PathInfo {
            path: StorePath::parse(&self.path).ok()?,
            nar_hash,
            nar_size: self.nar_size,
            references: self
                .refs
                .split_ascii_whitespace()
                .map(StorePath::parse)
                .collect::<Result<_, _>>()
                .ok()?,
            deriver: self.deriver.map(|drv| StorePath::parse(&drv)).transpose().ok()?,
            ca: self.ca.map(|ca| ca.parse()).transpose().ok()?,
            signatures: self.sigs.iter().map(|sig| sig.parse()).collect::<Result<_, _>>().ok()?,
        };
        Some(Recorded {
            packed,
            upstreams: upstreams.collect::<Option<_>>()?,
            path: PathRow { info, built: self.built },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::samples::{nar, row, upstream_nar};

    #[test]
    fn a_line_says_what_was_written_and_nothing_once_a_bit_of_it_is_another() {
        let packed = NarRow { nar_hash: nar(2), file_hash: nar(9), file_size: 7 };
        let all = Recorded { path: row(2, &[1, 2]), packed: Some(packed), upstreams: vec![upstream_nar(2)] };
        let least = Recorded { path: row(1, &[]), packed: None, upstreams: Vec::new() };
        let pushed = |input_hash| {
            let outputs = BTreeMap::from([("out".to_owned(), row(1, &[]).info.path)]);
            Record::Pushed(PushedDerivation { drv: row(3, &[]).info.path, outputs, input_hash })
        };
        for record in [
            Record::Path(Box::new(all)),
            Record::Path(Box::new(least)),
            pushed(InputHash::Regular([7; 32])),
            pushed(InputHash::Fixed([8; 32])),
            pushed(InputHash::Deferred),
        ] {
            let line = record.render();
            let bytes = line.strip_suffix('\n').expect("a line").as_bytes();
            assert_eq!(Record::parse(bytes).as_ref(), Some(&record));
            for at in 0..bytes.len() {
                let mut spoilt = bytes.to_vec();
                spoilt[at] ^= 1;
                assert_eq!(Record::parse(&spoilt), None, "{at} of {line}");
            }
            assert_eq!(Record::parse(&bytes[..bytes.len() - 1]), None);
        }
    }
}
