//! Promises of every backend about realisations.

use narinfo::{DrvOutput, NarHash, PathInfo, Realisation, StorePath};

use crate::index::Index;
use crate::model::{PathRow, RealisationOutcome};

fn path(digit: u8) -> StorePath {
    StorePath::parse(&format!("{digit}123456789abcdfghijklmnpqrsvwxyz-p")).expect("a path")
}

fn id(digit: u8) -> DrvOutput {
    format!("sha256:{}!out", digit.to_string().repeat(64)).parse().expect("a name")
}

/// The realisation number `digit`, which needs the others.
fn realisation(digit: u8, needs: &[u8]) -> Realisation {
    let needs: Vec<_> =
        needs.iter().map(|other| format!("\"{}\":\"{}\"", id(*other), path(*other))).collect();
    let text = format!(
        "{{\"dependentRealisations\":{{{}}},\"id\":\"{}\",\"outPath\":\"{}\",\"signatures\":[]}}",
        needs.join(","),
        id(digit),
        path(digit)
    );
    Realisation::parse(&id(digit), text.as_bytes()).expect("a realisation")
}

/// Serves the paths number 1 to 3, each with a NAR of its own.
async fn serve(index: &Index) {
    let info = |digit| PathInfo {
        path: path(digit),
        nar_hash: NarHash::from_bytes([digit; 32]),
        nar_size: 1,
        references: [].into(),
        deriver: None,
        ca: None,
        signatures: Vec::new(),
    };
    let rows = (1..=3).map(|digit| PathRow { info: info(digit), built: true });
    assert!(index.publish(rows.collect()).await.expect("published"));
}

pub(super) async fn a_realisation_goes_with_the_path_that_it_names_and_with_those_it_needs(index: Index) {
    serve(&index).await;
    let all = [realisation(1, &[2]), realisation(2, &[3]), realisation(3, &[3])];
    assert_eq!(index.publish_realisations(all.to_vec()).await.expect("asked"), RealisationOutcome::Published);
    for one in &all {
        assert_eq!(index.realisation(one.id().clone()).await.expect("read").as_ref(), Some(one));
    }
    index.forget_paths(NarHash::from_bytes([3; 32])).await.expect("forgotten");
    for one in &all {
        assert_eq!(index.realisation(one.id().clone()).await.expect("read"), None);
    }
}

pub(super) async fn none_is_published_when_one_names_a_path_that_is_not_served(index: Index) {
    serve(&index).await;
    let all = vec![realisation(1, &[]), realisation(4, &[])];
    let lacks = RealisationOutcome::Lacks(path(4));
    assert_eq!(index.publish_realisations(all).await.expect("asked"), lacks);
    assert_eq!(index.realisation(id(1)).await.expect("read"), None);
}

pub(super) async fn one_that_needs_another_path_than_its_dependency_names_is_not_whole(index: Index) {
    serve(&index).await;
    let other = Realisation::new(id(2), path(3));
    let published = index.publish_realisations(vec![realisation(1, &[2]), other.clone()]).await;
    assert_eq!(published.expect("asked"), RealisationOutcome::Published);
    assert_eq!(index.realisation(id(1)).await.expect("read"), None);
    assert_eq!(index.realisation(id(2)).await.expect("read"), Some(other));
}

pub(super) async fn of_two_realisations_of_an_output_the_first_stays_as_long_as_it_is_served(index: Index) {
    serve(&index).await;
    let publish = async |all: &[Realisation]| index.publish_realisations(all.to_vec()).await.expect("asked");
    let all = [realisation(1, &[2]), realisation(2, &[])];
    for _ in 0..2 {
        assert_eq!(publish(&all).await, RealisationOutcome::Published);
    }
    let conflict = RealisationOutcome::Conflict { id: id(2), known: path(2) };
    let other = Realisation::new(id(2), path(3));
    assert_eq!(publish(&[realisation(3, &[]), other.clone()]).await, conflict);
    assert_eq!(index.realisation(id(3)).await.expect("read"), None, "none of them is published");
    // The same without what it needs, or with other needs, changes nothing.
    assert_eq!(publish(&[realisation(1, &[]), realisation(2, &[3])]).await, RealisationOutcome::Published);
    for one in &all {
        assert_eq!(index.realisation(one.id().clone()).await.expect("read").as_ref(), Some(one));
    }
    index.forget_paths(NarHash::from_bytes([2; 32])).await.expect("forgotten");
    assert_eq!(publish(std::slice::from_ref(&other)).await, RealisationOutcome::Published);
    assert_eq!(index.realisation(id(2)).await.expect("read"), Some(other));
}
