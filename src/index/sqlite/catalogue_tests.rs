//! Generations of package sets whose rows were spoilt by a clock ahead of this one.

use std::time::Duration;

use crate::index::Index;
use crate::index::samples::{bump, configure, output};

async fn opened(folder: &tempfile::TempDir) -> Index {
    let index = Index::open(&folder.path().join("index")).expect("opened");
    configure(&index).await;
    index
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
