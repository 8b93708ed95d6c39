//! Questions that are sent to real Nix daemons before the answers to others have come: each answer is that of
//! its question, and what is found to be valid is held.

use std::collections::BTreeSet;

use narinfo::StorePath;
use ondine::nix::{BuildOrder, BuildStatus};

use crate::daemon::{Nix, all_of};
use crate::support::derivations::{failing, text_file};
use crate::support::text;

/// More than are sent at once.
const PATHS: usize = 300;

#[tokio::test]
async fn a_build_gives_the_records_of_its_outputs_and_none_where_it_fails() {
    for nix in Nix::all() {
        let mut daemon = nix.connect().await;
        for (derivation, expected) in [
            (text_file("made", "made"), BuildStatus::Built),
            (failing("failed"), BuildStatus::PermanentFailure),
        ] {
            let drv = nix.instantiate(&derivation);
            let outputs = daemon.query_derivation_output_map(&drv).await.expect("known");
            let asked = [outputs["out"].clone().expect("known before the build"), drv.clone()];
            let target = all_of(&drv);
            let built = daemon.build_and_describe(BuildOrder::Target(&target), &asked, |_| {}).await;
            let (result, described) = built.expect("a result");
            assert_eq!(result.status, expected, "{result:?}");
            assert_eq!(described[0].is_some(), expected == BuildStatus::Built);
            assert!(described[1].is_some(), "the derivation is there in any case");
            for (path, record) in asked.iter().zip(&described) {
                assert_eq!(*record, daemon.query_path_info(path).await.expect("still usable"));
            }
            assert_eq!(daemon.query_path_infos(&asked).await.expect("asked"), described);
        }
    }
}

#[tokio::test]
async fn a_build_that_the_daemon_refuses_leaves_no_answer_to_be_taken_for_another() {
    for nix in Nix::all() {
        let mut daemon = nix.connect().await;
        let absent = StorePath::parse(&format!("{}-absent.drv", "a".repeat(32))).expect("a path");
        let target = all_of(&absent);
        let asked = [absent.clone()];
        match daemon.build_and_describe(BuildOrder::Target(&target), &asked, |_| {}).await {
            Ok((result, described)) => {
                assert!(!result.status.is_success(), "{result:?}");
                assert_eq!(described, [None]);
                assert!(!daemon.is_valid_path(&absent).await.expect("usable"));
            }
            Err(_) => assert!(!daemon.usable()),
        }
    }
}

#[tokio::test]
async fn of_many_paths_the_valid_ones_are_held_and_the_others_are_told() {
    for nix in Nix::all() {
        let all: Vec<String> =
            (0..PATHS).map(|number| text_file(&format!("p{number}"), "made").to_nix()).collect();
        let dir = &nix.environment.store_dir;
        let drvs = nix.store.nix_instantiate(&format!("[ {} ]", all.join(" ")));
        let valid: BTreeSet<StorePath> =
            drvs.iter().map(|drv| StorePath::parse_in(dir, text(drv)).expect("a store path")).collect();
        let absent: BTreeSet<StorePath> = (0..PATHS)
            .map(|number| StorePath::parse(&format!("{number:032}-absent")).expect("a path"))
            .collect();
        let mut daemon = nix.connect().await;
        let told = daemon.hold_valid(valid.iter().chain(&absent)).await.expect("asked");
        assert_eq!(told, absent);
        nix.store.gc();
        assert_eq!(daemon.query_valid_paths(&valid).await.expect("asked"), valid, "they are held");
        assert_eq!(daemon.hold_valid(&valid).await.expect("nothing is asked"), BTreeSet::new());
    }
}
