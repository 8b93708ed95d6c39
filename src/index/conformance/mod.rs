//! The conformance suite: promises that every backend keeps, each run against SQLite and against memory,
//! behind the same hot layer. A new backend is one more module in the macro below.

mod catalogue;
mod realisations;
mod retention;
mod tokens;

use super::memory_backend::MemoryBackend;
use super::samples::{path, row};
use super::tests::{every_write_that_changes_a_narinfo_is_told_of_at_once, what_is_written_is_never_denied};
use super::{Index, Sqlite};
use catalogue::*;
use realisations::*;
use retention::*;
use tokens::*;

/// Room for narinfos in memory.
const NARINFO_BYTES: u64 = 64 * 1024;

macro_rules! promises {
    ($($promise:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let folder = tempfile::tempdir().expect("a folder");
                    let sqlite = super::Sqlite::open(&folder.path().join("index")).expect("opened");
                    super::$promise(super::Index::new(sqlite, super::NARINFO_BYTES)).await;
                }
            )*
        }

        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let memory = super::MemoryBackend::default();
                    super::$promise(super::Index::new(memory, super::NARINFO_BYTES)).await;
                }
            )*
        }
    };
}

promises! {
    every_write_that_changes_a_narinfo_is_told_of_at_once,
    what_is_written_is_never_denied,
    only_differences_are_written_and_what_went_answers_until_it_expires,
    a_set_that_allows_wins_over_one_that_denies_and_now_wins_over_then,
    attributes_are_those_of_the_current_generation_and_nobody_sees_the_next_one_early,
    a_realisation_goes_with_the_path_that_it_names_and_with_those_it_needs,
    none_is_published_when_one_names_a_path_that_is_not_served,
    one_that_needs_another_path_than_its_dependency_names_is_not_whole,
    a_use_counts_for_all_that_is_referred_to_as_soon_as_something_is_to_be_evicted,
    what_is_evicted_is_not_served_any_more_and_remembered_for_those_who_ask_for_its_nar,
    a_token_is_read_as_it_was_recorded_and_neither_its_name_nor_its_number_is_given_twice,
    the_last_use_of_a_token_is_the_latest_that_was_recorded,
}

#[tokio::test]
async fn a_hot_layer_that_misses_changes_answers_maybe_until_it_has_read_everything_again() {
    let memory = MemoryBackend::default();
    let index = Index::new(memory.clone(), NARINFO_BYTES);
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    index.fill_filter().await.expect("read");
    let cache = async || index.lookup(path(1).hash(), |_| "a narinfo".into()).await.expect("read");
    assert!(cache().await.is_some() && index.lookup_cached(path(1).hash()).is_some());
    assert!(index.definitely_absent(path(2).hash()));
    memory.interrupt();
    assert!(index.publish(vec![row(2, &[])]).await.expect("published"));
    index.fill_filter().await.expect("asked");
    assert!(!index.definitely_absent(path(2).hash()), "it was published, and nobody was told");
    assert!(!index.definitely_absent(path(3).hash()), "nobody knows");
    assert!(cache().await.is_some() && index.lookup_cached(path(1).hash()).is_none());
    memory.resume();
    assert!(index.publish(vec![row(4, &[])]).await.expect("published"));
    assert!(!index.definitely_absent(path(3).hash()), "what was missed is not read yet");
    index.fill_filter().await.expect("read");
    assert!(index.definitely_absent(path(3).hash()) && !index.definitely_absent(path(2).hash()));
    assert!(cache().await.is_some() && index.lookup_cached(path(1).hash()).is_some());
}
