//! Promises of every backend about generations of package sets.

use std::time::Duration;

use crate::index::Index;
use crate::index::samples::{bump, configure, drv, hash, output};
use crate::model::Maker;

const LETTERS: [char; 4] = ['a', 'b', 'c', 'd'];

async fn makers(index: &Index, letter: char) -> Vec<(String, Option<String>)> {
    let found = index.makers(hash(letter)).await.expect("read");
    found.into_iter().map(|Maker { drv, denied_by }| (drv.name().to_owned(), denied_by)).collect()
}

pub(super) async fn only_differences_are_written_and_what_went_answers_until_it_expires(index: Index) {
    configure(&index).await;
    let first =
        bump(&index, "one", vec![output('a', "a", false), output('b', "b", false), output('b', "b", false)])
            .await;
    assert_eq!((first.added, first.removed), (2, 0));
    let second = bump(&index, "one", vec![output('a', "a", false), output('c', "c", false)]).await;
    assert_eq!((second.added, second.removed), (1, 1));
    let third = bump(&index, "one", vec![output('a', "a", false), output('b', "b2", false)]).await;
    assert_eq!((third.added, third.removed), (1, 1));
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), None)]);
    // What is current comes first.
    assert_eq!(makers(&index, 'b').await, [("b2.drv".into(), None), ("b.drv".into(), None)]);
    assert_eq!(makers(&index, 'c').await, [("c.drv".into(), None)]);
    let all = index.makers_of_all(LETTERS.map(hash).to_vec()).await.expect("read");
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [hash('a'), hash('b'), hash('c')]);
    assert_eq!(all[&hash('b')], index.makers(hash('b')).await.expect("read"));
    index.expire_generations("one".into(), Duration::from_secs(60)).await.expect("expired");
    assert_eq!(index.set("one".into()).await.expect("read").generations.len(), 3);
    index.expire_generations("one".into(), Duration::ZERO).await.expect("expired");
    assert_eq!(index.set("one".into()).await.expect("read").generations.len(), 1);
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), None)]);
    assert_eq!(makers(&index, 'b').await, [("b2.drv".into(), None)]);
    assert_eq!(makers(&index, 'c').await, []);
}

pub(super) async fn a_set_that_allows_wins_over_one_that_denies_and_now_wins_over_then(index: Index) {
    configure(&index).await;
    bump(&index, "one", vec![output('a', "a", false)]).await;
    bump(&index, "one", vec![output('a', "a", true)]).await;
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), Some("one".into()))]);
    bump(&index, "two", vec![output('a', "a", false)]).await;
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), None)]);
    index.sync_sets(vec!["one".into()]).await.expect("kept");
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), Some("one".into()))]);
    bump(&index, "one", vec![output('a', "a", false)]).await;
    assert_eq!(makers(&index, 'a').await, [("a.drv".into(), None)]);
}

pub(super) async fn attributes_are_those_of_the_current_generation_and_nobody_sees_the_next_one_early(
    index: Index,
) {
    configure(&index).await;
    bump(&index, "one", vec![output('a', "a", false)]).await;
    index.start_generation().await.expect("started");
    index.add_outputs(vec![output('d', "d", false)]).await.expect("added");
    let look = |name: &str| index.attribute("one".into(), format!("attribute-{name}.drv"), "a-linux".into());
    let first = look("a").await.expect("read").expect("a generation");
    assert_eq!(first.row.expect("there").outcome, Ok(drv("a")));
    assert_eq!(makers(&index, 'd').await, []);
    index.record_refresh("one".into(), Some("why".into())).await.expect("recorded");
    bump(&index, "one", vec![output('b', "b", false)]).await;
    assert_eq!(look("a").await.expect("read").expect("a generation").row, None);
    let second = look("b").await.expect("read").expect("a generation");
    assert_eq!(second.row.expect("there").outcome, Ok(drv("b")));
    assert!(second.generation > first.generation);
    assert_eq!(index.attribute("two".into(), "b".into(), "a-linux".into()).await.expect("read"), None);
    for (letter, count) in LETTERS.into_iter().zip([1, 1, 0, 0]) {
        assert_eq!(makers(&index, letter).await.len(), count, "{letter}");
    }
}
