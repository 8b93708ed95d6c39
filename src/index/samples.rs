//! Rows to test with, each by a digit.

use narinfo::{Compression, NarHash, PathInfo, StorePath};

use crate::model::{PathRow, UpstreamNar};

pub(super) fn path(digit: u8) -> StorePath {
    StorePath::parse(&format!("{digit}123456789abcdfghijklmnpqrsvwxyz-p")).expect("a path")
}

pub(super) fn nar(digit: u8) -> NarHash {
    NarHash::from_bytes([digit; 32])
}

pub(super) fn row(digit: u8, references: &[u8]) -> PathRow {
    row_of(PathInfo {
        path: path(digit),
        nar_hash: nar(digit),
        nar_size: 1,
        references: references.iter().map(|digit| path(*digit)).collect(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    })
}

pub(super) fn row_of(info: PathInfo) -> PathRow {
    PathRow { info, built: true }
}

pub(super) fn upstream_nar(digit: u8) -> UpstreamNar {
    UpstreamNar {
        nar_hash: nar(digit),
        upstream: "https://cache.example.org".to_owned(),
        url: format!("nar/{digit}.nar.xz"),
        compression: Compression::Xz,
        file_hash: None,
        file_size: None,
        redirect: false,
    }
}
