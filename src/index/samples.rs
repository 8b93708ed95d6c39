//! Rows to test with, each by a digit; generations of package sets; eviction and its order.

use std::time::{Duration, SystemTime};

use narinfo::{Compression, NarHash, PathInfo, StorePath, StorePathHash};

use super::Index;
use crate::model::{
    AttributeRow, Candidate, Evicted, EvictionBounds, GenerationSize, NewGeneration, OutputRow, PathRow,
    Swapped, UpstreamNar,
};

pub(crate) fn path(digit: u8) -> StorePath {
    StorePath::parse(&format!("{digit}123456789abcdfghijklmnpqrsvwxyz-p")).expect("a path")
}

pub(crate) fn nar(digit: u8) -> NarHash {
    NarHash::from_bytes([digit; 32])
}

pub(crate) fn row(digit: u8, references: &[u8]) -> PathRow {
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

pub(super) fn hash(letter: char) -> StorePathHash {
    letter.to_string().repeat(32).parse().expect("a hash")
}

pub(super) fn drv(name: &str) -> StorePath {
    StorePath::parse(&format!("{}-{name}.drv", "0".repeat(32))).expect("a name")
}

pub(super) fn output(letter: char, name: &str, denied: bool) -> OutputRow {
    OutputRow { hash: hash(letter), drv: drv(name), denied }
}

pub(super) async fn configure(index: &Index) {
    index.sync_sets(vec!["one".into(), "two".into()]).await.expect("configured");
}

pub(super) async fn bump(index: &Index, set: &str, outputs: Vec<OutputRow>) -> Swapped {
    index.start_generation().await.expect("started");
    let row = |output: &OutputRow| AttributeRow {
        attribute: format!("attribute-{}", output.drv.name()),
        system: "a-linux".into(),
        outcome: Ok(output.drv.clone()),
        output: None,
        program: None,
        denied: output.denied,
    };
    index.add_attributes(outputs.iter().map(row).collect()).await.expect("added");
    index.add_outputs(outputs).await.expect("added");
    let new = NewGeneration {
        set: set.into(),
        made_by: String::new(),
        holder: drv("holder"),
        size: GenerationSize::default(),
    };
    index.swap_generation(new).await.expect("swapped")
}

pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Bounds by which everything may go that was used before the hundredth second.
pub(super) fn down_to(target_bytes: u64) -> EvictionBounds {
    EvictionBounds { target_bytes, used_since: at(100), pushed_since: at(100) }
}

/// All paths in eviction order.
pub(super) async fn order(index: &Index) -> Vec<Candidate> {
    let evicted = index.preview_eviction(at(9), None, down_to(0)).await.expect("asked");
    let Evicted::Paths(all) = evicted else { panic!("the order is not known yet") };
    all
}
