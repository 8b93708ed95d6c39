//! The conformance suite: promises that every backend keeps, each run against SQLite, PostgreSQL and memory,
//! behind the same hot layer. A new backend is one more module in the macro below.

mod builds;
mod catalogue;
mod closures;
pub(super) mod cluster;
mod health;
mod nars;
mod paths;
mod programs;
mod pushed;
mod realisations;
mod retention;
mod sets;
mod tokens;

use super::memory_backend::MemoryBackend;
use super::samples::{path, row};
use super::tests::{every_write_that_changes_a_narinfo_is_told_of_at_once, what_is_written_is_never_denied};
use super::{Index, Sqlite};
use builds::*;
use catalogue::*;
use closures::*;
use health::*;
use nars::*;
use paths::*;
use programs::*;
use pushed::*;
use realisations::*;
use retention::*;
use sets::*;
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

        #[cfg(feature = "postgres")]
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let url = crate::support::PostgresServer::shared().schema();
                    let Some(crate::index::IndexLocation::Postgres(url)) = crate::index::IndexLocation::parse(&url) else {
                        panic!("no URL: {url}")
                    };
                    let index = super::Index::open_postgres(&url, None, super::NARINFO_BYTES).await;
                    super::$promise(index.expect("opened")).await;
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
    a_failure_is_known_until_it_expires_or_another_takes_its_place,
    the_latest_thousand_failures_are_listed_the_latest_first,
    a_failure_is_forgotten_with_its_cause_and_all_that_it_caused,
    a_failure_ends_sooner_where_that_is_asked_for_and_never_later,
    a_shorter_lifetime_holds_for_what_is_remembered_of_its_class,
    refusals_are_forgotten_and_failures_are_not,
    the_queue_is_what_was_recorded_last_and_no_number_comes_twice,
    the_latest_durations_of_each_kind_of_work_are_kept_in_their_order,
    demand_is_that_of_each_day_since_the_first_that_counts,
    the_time_spent_ahead_is_that_of_the_latest_day,
    only_differences_are_written_and_what_went_answers_until_it_expires,
    a_set_that_allows_wins_over_one_that_denies_and_now_wins_over_then,
    attributes_are_those_of_the_current_generation_and_nobody_sees_the_next_one_early,
    a_sound_index_is_found_to_be_sound_and_closes,
    the_latest_record_counts_and_closures_are_whole,
    each_write_that_changes_an_answer_is_told_once_in_its_order,
    a_nar_is_found_with_its_paths_and_its_file,
    what_only_the_nix_store_has_is_to_be_packed_the_oldest_first,
    packed_nars_come_in_order_and_those_of_no_path_apart,
    upstreams_that_are_configured_no_more_take_along_what_only_they_had,
    own_builds_are_compared_in_turn_until_an_upstream_has_them,
    a_closure_is_published_whole_or_not_at_all,
    a_hash_that_is_served_keeps_its_first_row,
    a_closure_of_an_upstream_comes_with_the_addresses_there,
    every_path_with_a_nar_is_forgotten_with_it_and_no_other,
    all_paths_come_in_batches_in_the_order_of_their_hashes,
    signatures_are_replaced_or_added_where_they_belong,
    the_totals_follow_what_comes_and_goes,
    references_are_known_both_ways_as_long_as_the_paths_are_served,
    an_hour_has_the_latest_totals_and_all_its_events,
    all_hashes_are_sent_that_may_be_answered,
    a_program_is_found_by_what_was_read_and_by_what_descriptions_say,
    programs_are_recorded_with_the_nar_that_has_them_or_not_at_all,
    the_programs_of_an_evicted_path_are_remembered_with_it,
    a_realisation_goes_with_the_path_that_it_names_and_with_those_it_needs,
    none_is_published_when_one_names_a_path_that_is_not_served,
    one_that_needs_another_path_than_its_dependency_names_is_not_whole,
    of_two_realisations_of_an_output_the_first_stays_as_long_as_it_is_served,
    a_use_counts_for_all_that_is_referred_to_as_soon_as_something_is_to_be_evicted,
    an_upload_is_published_whole_once_and_never_over_another_path,
    a_pushed_derivation_is_found_by_its_outputs_and_its_name_until_it_is_evicted,
    what_is_evicted_is_not_served_any_more_and_remembered_for_those_who_ask_for_its_nar,
    a_token_is_read_as_it_was_recorded_and_neither_its_name_nor_its_number_is_given_twice,
    the_last_use_of_a_token_is_the_latest_that_was_recorded,
    what_is_pinned_or_not_packed_yet_is_retained_with_all_that_it_refers_to,
    a_preview_evicts_nothing_and_goes_on_behind_a_place,
    a_file_goes_with_the_last_path_that_has_its_contents,
    pins_are_by_name_and_path_and_of_what_is_served_or_not,
    attributes_are_listed_by_system_name_and_pattern,
    a_name_and_a_derivation_are_looked_up_in_current_generations_alone,
    what_failed_is_listed_and_explained_as_long_as_it_is_current,
    derivations_are_denied_and_allowed_under_all_their_names,
    sets_that_are_configured_no_more_go_with_all_they_had,
    a_set_tells_its_generations_and_its_latest_refresh,
    a_swap_forgets_the_failures_of_what_is_there_no_more,
    an_output_that_is_allowed_once_is_not_denied_any_more,
    the_versions_of_an_attribute_are_those_of_the_generations_that_are_kept,
    an_attribute_that_is_evaluated_later_joins_its_generation_while_that_is_current,
}

#[tokio::test]
async fn a_hot_layer_that_misses_changes_answers_maybe_until_it_has_read_everything_again() {
    let memory = MemoryBackend::default();
    let index = Index::new(memory.clone(), NARINFO_BYTES);
    assert!(index.publish(vec![row(1, &[])]).await.expect("published"));
    index.fill_filter().await.expect("read");
    let cache = async || {
        let found = index.lookup(path(1).hash()).await.expect("read");
        found.map(|found| index.cache(found, "a narinfo".into()))
    };
    assert!(cache().await.is_some() && index.lookup_cached(path(1).hash()).is_some());
    assert!(index.definitely_absent(path(2).hash()));
    memory.interrupt();
    assert!(index.publish(vec![row(2, &[])]).await.expect("published"));
    index.fill_filter().await.expect("asked");
    assert!(!index.definitely_absent(path(2).hash()), "it was published, and nobody was told");
    assert!(!index.definitely_absent(path(3).hash()), "nobody knows");
    assert!(index.lookup_cached(path(1).hash()).is_some(), "hits go on");
    let found = index.lookup(path(2).hash()).await.expect("read").expect("served");
    let _ = index.cache(found, "a narinfo".into());
    assert!(index.lookup_cached(path(2).hash()).is_none(), "nothing is added meanwhile");
    memory.resume();
    assert!(index.publish(vec![row(4, &[])]).await.expect("published"));
    assert!(!index.definitely_absent(path(3).hash()), "what was missed is not read yet");
    assert!(index.lookup_cached(path(1).hash()).is_none(), "it may have changed");
    index.fill_filter().await.expect("read");
    assert!(index.definitely_absent(path(3).hash()) && !index.definitely_absent(path(2).hash()));
    assert!(cache().await.is_some() && index.lookup_cached(path(1).hash()).is_some());
}
