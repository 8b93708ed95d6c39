//! Promises of every backend about programs, and the packages that have them.

use crate::index::Index;
use crate::index::samples::{at, bump, configure, down_to, drv, nar, path, row};
use crate::model::{
    AttributeName, AttributeRow, Evicted, GenerationSize, NarRow, NewGeneration, NewNar, OutputRow,
    ProgramOwner, UploadOutcome,
};

const LINUX: &str = "a-linux";

/// A package whose output is the path of a digit.
fn package(attribute: &str, program: Option<&str>, digit: u8, denied: bool) -> (AttributeRow, OutputRow) {
    let row = AttributeRow {
        attribute: attribute.into(),
        system: LINUX.into(),
        outcome: Ok(drv(attribute)),
        output: None,
        program: program.map(str::to_owned),
        denied,
    };
    (row, OutputRow { hash: path(digit).hash(), drv: drv(attribute), denied })
}

fn packed(digit: u8) -> NarRow {
    NarRow { nar_hash: nar(digit), file_hash: nar(9), file_size: 5 }
}

/// Makes a generation of the set `one` with these packages.
async fn generation(index: &Index, packages: Vec<(AttributeRow, OutputRow)>) {
    let (rows, outputs) = packages.into_iter().unzip();
    index.start_generation().await.expect("started");
    index.add_attributes(rows).await.expect("added");
    index.add_outputs(outputs).await.expect("added");
    let size = GenerationSize::default();
    let new = NewGeneration { set: "one".into(), made_by: String::new(), holder: drv("holder"), size };
    index.swap_generation(new).await.expect("swapped");
}

async fn record(index: &Index, digit: u8, programs: &[&str]) {
    let programs = programs.iter().map(ToString::to_string).collect();
    index.record_programs(nar(digit), programs).await.expect("recorded");
}

/// Attributes that have a program, each with the path where that was read.
async fn owners(index: &Index, program: &str) -> Vec<(String, bool)> {
    let found = index.program_owners(program.into(), 10).await.expect("read");
    let shown = |ProgramOwner { name: AttributeName { set, attribute, system }, path }| {
        assert_eq!((&*set, &*system), ("one", LINUX));
        (attribute, path.is_some())
    };
    found.into_iter().map(shown).collect()
}

pub(super) async fn a_program_is_found_by_what_was_read_and_by_what_descriptions_say(index: Index) {
    configure(&index).await;
    assert!(index.publish(vec![row(1, &[]), row(2, &[]), row(3, &[])]).await.expect("published"));
    record(&index, 1, &["grep", "rg"]).await;
    record(&index, 1, &["rg"]).await;
    record(&index, 3, &["rg"]).await;
    assert_eq!(owners(&index, "rg").await, [], "no package has the path");
    let packages = vec![
        package("ripgrep", Some("rg"), 1, false),
        package("tools", Some("rg"), 2, false),
        package("denied", Some("rg"), 3, true),
    ];
    generation(&index, packages).await;
    let all = [("tools".into(), false), ("ripgrep".into(), false), ("ripgrep".into(), true)];
    assert_eq!(owners(&index, "rg").await, all);
    assert_eq!(owners(&index, "grep").await, [("ripgrep".into(), true)]);
    assert_eq!(owners(&index, "gre").await, []);
    assert_eq!(index.program_owners("rg".into(), 1).await.expect("read").len(), 1);
    for (beginning, max, expected) in
        [("", 9, &["grep", "rg"][..]), ("r", 9, &["rg"]), ("", 1, &["grep"]), ("rgx", 9, &[])]
    {
        let found = index.programs_like(beginning.into(), max).await.expect("read");
        assert_eq!(found, expected, "{beginning} {max}");
    }
    assert_eq!(index.programs_of(nar(1), 9).await.expect("read"), ["grep", "rg"]);
    assert_eq!(index.programs_of(nar(1), 1).await.expect("read"), ["grep"]);
    assert_eq!(index.programs_of(nar(2), 9).await.expect("read"), [""; 0]);
    // With another generation, and none of the attributes.
    bump(&index, "one", Vec::new()).await;
    assert_eq!(owners(&index, "rg").await, []);
}

pub(super) async fn programs_are_recorded_with_the_nar_that_has_them_or_not_at_all(index: Index) {
    let new = |digit, program: &str| NewNar { row: packed(digit), programs: vec![program.to_owned()] };
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    index.record_packed(new(1, "jq")).await.expect("recorded");
    assert_eq!(index.programs_of(nar(1), 9).await.expect("read"), ["jq"]);
    let lacking = index.publish_upload(row(3, &[2]), new(3, "fd"), None).await.expect("asked");
    assert_eq!(lacking, UploadOutcome::Lacks(path(2)));
    assert_eq!(index.programs_of(nar(3), 9).await.expect("read"), [""; 0], "nothing is left of it");
    let published = index.publish_upload(row(2, &[]), new(2, "rg"), None).await.expect("written");
    assert_eq!(published, UploadOutcome::Published);
    assert_eq!(index.programs_of(nar(2), 9).await.expect("read"), ["rg"]);
}

pub(super) async fn the_programs_of_an_evicted_path_are_remembered_with_it(index: Index) {
    configure(&index).await;
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    let new = NewNar { row: packed(1), programs: vec!["jq".to_owned()] };
    index.record_packed(new).await.expect("recorded");
    generation(&index, vec![package("jq", None, 1, false)]).await;
    index.access_log().note(nar(1));
    index.record_uses(at(1)).await.expect("written");
    loop {
        if let Evicted::Paths(_) = index.evict(at(200), down_to(0)).await.expect("evicted") {
            break;
        }
    }
    assert_eq!(index.find(path(1).hash()).await.expect("read"), None);
    assert_eq!(owners(&index, "jq").await, [("jq".into(), true)]);
}
