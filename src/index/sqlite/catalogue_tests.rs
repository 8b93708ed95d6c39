//! Generations of package sets whose rows were spoilt by a clock ahead of this one.

use std::time::Duration;

use narinfo::{StorePath, StorePathHash};

use crate::index::Index;
use crate::model::{AttributeRow, GenerationSize, NewGeneration, OutputRow, Swapped};

fn hash(letter: char) -> StorePathHash {
    letter.to_string().repeat(32).parse().expect("a hash")
}

fn drv(name: &str) -> StorePath {
    StorePath::parse(&format!("{}-{name}.drv", "0".repeat(32))).expect("a name")
}

fn output(letter: char, name: &str, denied: bool) -> OutputRow {
    OutputRow { hash: hash(letter), drv: drv(name), denied }
}

async fn opened(folder: &tempfile::TempDir) -> Index {
    let index = Index::open(&folder.path().join("index")).expect("opened");
    index.sync_sets(vec!["one".into(), "two".into()]).await.expect("kept");
    index
}

async fn bump(index: &Index, set: &str, outputs: Vec<OutputRow>) -> Swapped {
    index.start_generation().await.expect("started");
    let row = |output: &OutputRow| AttributeRow {
        attribute: format!("attribute-{}", output.drv.name()),
        system: "a-linux".into(),
        outcome: Ok(output.drv.clone()),
        output: None,
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

#[tokio::test]
async fn a_generation_that_was_replaced_by_a_clock_ahead_of_this_one_expires_in_its_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = opened(&folder).await;
    bump(&index, "one", vec![output('a', "a", false)]).await;
    bump(&index, "one", vec![output('b', "b", false)]).await;
    let ahead = || {
        let sql = "UPDATE catalogue_generation SET replaced_at = replaced_at + 86400 WHERE replaced_at > 0";
        let other = rusqlite::Connection::open(folder.path().join("index")).expect("opened");
        other.execute(sql, []).expect("set ahead")
    };
    let expire = async |seconds| {
        let keep = Duration::from_secs(seconds);
        index.expire_generations("one".into(), keep).await.expect("expired");
        index.set("one".into()).await.expect("read").generations.len()
    };
    assert_eq!(ahead(), 1);
    assert_eq!(expire(3600).await, 2, "an hour from now on");
    assert_eq!(expire(0).await, 1);
}
