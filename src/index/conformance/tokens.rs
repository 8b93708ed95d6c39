//! Promises of every backend about tokens.

use crate::index::Index;
use crate::index::samples::at;
use crate::model::NewToken;

fn token(name: &str) -> NewToken {
    NewToken {
        name: name.to_owned(),
        digest: [7; 32],
        rights: vec!["read".to_owned(), "push".to_owned()],
        patterns: vec!["a b*".to_owned(), "c".to_owned()],
        created_at: at(1),
        expires_at: Some(at(9)),
        queued_max: Some(3),
    }
}

pub(super) async fn a_token_is_read_as_it_was_recorded_and_neither_its_name_nor_its_number_is_given_twice(
    index: Index,
) {
    let plain =
        NewToken { rights: vec![], patterns: vec![], expires_at: None, queued_max: None, ..token("b") };
    let first = index.add_token(token("a")).await.expect("written").expect("a new name");
    let second = index.add_token(plain.clone()).await.expect("written").expect("a new name");
    assert_eq!(index.add_token(token("a")).await.expect("asked"), None);
    let rows = index.tokens().await.expect("read");
    let expected = [(first, &token("a"), None), (second, &plain, None)];
    assert_eq!(rows.iter().map(|row| (row.id, &row.token, row.used_at)).collect::<Vec<_>>(), expected);
    assert!(index.remove_token(second).await.expect("written"));
    assert!(!index.remove_token(second).await.expect("asked"));
    let third = index.add_token(token("b")).await.expect("written").expect("the name is free again");
    assert!(third > second);
}

pub(super) async fn the_last_use_of_a_token_is_the_latest_that_was_recorded(index: Index) {
    let id = index.add_token(token("a")).await.expect("written").expect("a new name");
    index.record_token_uses(vec![(id, at(5)), (id, at(4)), (id + 1, at(6))]).await.expect("written");
    index.record_token_uses(vec![(id, at(3))]).await.expect("written");
    let rows = index.tokens().await.expect("read");
    assert_eq!(rows.iter().map(|row| row.used_at).collect::<Vec<_>>(), [Some(at(5))]);
}
