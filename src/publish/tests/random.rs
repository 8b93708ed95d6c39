//! Histories of an index and a bucket that fails, most of them random: at no moment does anything in the
//! bucket point at nothing, and what should be published is, once the bucket answers.

use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};
use proptest::proptest;

use super::*;
use crate::index::MemoryBackend;
use crate::model::{Evicted, EvictionBounds};

/// Each path with what it refers to.
const PATHS: [(u8, &[u8]); 7] =
    [(1, &[]), (2, &[1]), (3, &[2, 3]), (4, &[3, 1]), (5, &[2]), (6, &[]), (7, &[6, 5, 1])];

impl Fixture {
    /// Something happens to the path with this digit, or to the bucket.
    async fn happen(&mut self, event: u8, digit: u8) {
        let path = PATHS.iter().find(|(of, _)| *of == digit).expect("a path");
        match event {
            0..=3 => {
                let is_published = self.index.publish(vec![row(digit, path.1)]).await.expect("asked");
                if is_published {
                    self.pack(digit).await;
                }
            }
            4 => drop(self.index.publish(vec![row(digit, path.1)]).await.expect("asked")),
            5..=6 => self.evict(digit.into()).await,
            7 => self.index.forget_paths(nar(digit)).await.expect("forgotten"),
            8 => self.try_quarantine(digit).await,
            9 => {
                // It is not removed after all.
                self.bucket.held().lacks.insert(hash(digit));
                drop(self.publication().withdraw_nar(nar(digit)).await);
            }
            10 => {
                let signature = format!("other-1:{}==", "A".repeat(86)).parse().expect("a signature");
                self.index
                    .add_signatures(vec![(hash(digit), nar(digit), vec![signature])])
                    .await
                    .expect("added");
            }
            11 => self.bucket.held().answers_left = Some(digit.into()),
            12 => self.bucket.held().loses_answers = true,
            13..=14 => self.bucket.recover(),
            15 => self.restart(),
            16 => drop(self.inner.reconcile().await),
            17 => self.remove_orphans().await,
            _ if self.try_hear().await => drop(self.inner.publish_some().await),
            _ => {}
        }
    }

    /// Hears of what has changed, or compares everything. False where that fails.
    async fn try_hear(&self) -> bool {
        // No path has this hash.
        let is_compared = !self.order().may_have(hash(9));
        match self.index.take_changed() {
            ChangedPaths::Listed(changed) if is_compared => {
                changed.into_iter().for_each(|hash| self.order().push_changed(hash));
                true
            }
            _ => self.inner.reconcile().await.is_ok(),
        }
    }

    /// Evicts as retention does, down to so many bytes.
    async fn evict(&self, target_bytes: u64) {
        let (now, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(1_000));
        let bounds = EvictionBounds { target_bytes, used_since: later, pushed_since: later };
        let mut evicted = Vec::new();
        for _ in 0..5 {
            if let Evicted::Paths(paths) = self.index.evict(now, bounds).await.expect("evicted") {
                evicted.extend(paths);
            }
        }
        let hashes: Vec<_> = evicted.iter().map(|candidate| candidate.path.hash()).collect();
        if self.publication().withdraw(&hashes).await.is_err() {
            return;
        }
        for nar in evicted.iter().filter(|one| one.file_bytes.is_some()).map(|one| one.nar) {
            self.discard(nar).await;
        }
    }

    async fn discard(&self, nar: NarHash) {
        let publication = self.publication();
        if let Ok(_withdrawn) = publication.withdraw_nar(nar).await
            && self.index.packed(nar).await.expect("asked").is_none()
        {
            self.bucket.held().nars.remove(&nar);
        }
    }

    async fn try_quarantine(&self, digit: u8) {
        // What refers to it is withdrawn afterwards.
        self.bucket.held().lacks.insert(hash(digit));
        let publication = self.publication();
        if let Ok(_withdrawn) = publication.withdraw_nar(nar(digit)).await {
            self.bucket.held().nars.remove(&nar(digit));
            self.index.forget_packed(nar(digit)).await.expect("forgotten");
        }
    }

    /// Does as `ondine gc`.
    async fn remove_orphans(&self) {
        if self.publication().wait_until_clear(Duration::ZERO).await.is_err() {
            return;
        }
        let nars: Vec<NarHash> = self.bucket.held().nars.iter().copied().collect();
        for nar in nars {
            let is_packed = self.index.packed(nar).await.expect("asked").is_some();
            if !is_packed && self.index.path_with_nar(nar).await.expect("asked").is_none() {
                self.discard(nar).await;
            }
        }
    }

    /// Checks that all that should be published is, and nothing else.
    async fn check(&self) {
        let mut expected = BTreeSet::new();
        for (digit, references) in PATHS {
            let hit = self.index.find(hash(digit)).await.expect("asked");
            let is_packed = hit.is_some_and(|hit| hit.packed.is_some());
            let has_nar = self.bucket.held().nars.contains(&nar(digit));
            if is_packed && has_nar && references.iter().all(|of| *of == digit || expected.contains(of)) {
                expected.insert(digit);
            }
        }
        assert_eq!(self.bucket.narinfos(), Vec::from_iter(expected));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn whatever_happens_nothing_in_the_bucket_points_at_nothing_and_it_is_complete_in_the_end(
        events in vec((0_u8..30, 1_u8..=7), 1..60),
        restarts in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let folder = tempfile::tempdir().expect("a folder");
            let mut fixture = Fixture::over(folder, Index::new(MemoryBackend::default(), 0));
            fixture.begin().await;
            for (event, digit) in events {
                fixture.happen(event, digit).await;
            }
            fixture.bucket.recover();
            if restarts {
                fixture.restart();
                fixture.begin().await;
            }
            assert!(fixture.try_hear().await);
            while fixture.inner.publish_some().await.expect("published") {}
            fixture.bucket.held().lacks.clear();
            fixture.bucket.held().check();
            fixture.check().await;
        });
    }
}

#[tokio::test]
async fn what_was_evicted_while_the_bucket_failed_is_withdrawn_in_its_order_afterwards() {
    let fixture = Fixture::published().await;
    // Queued already, before what refers to it.
    fixture.order().push(hash(1));
    fixture.bucket.held().answers_left = Some(0);
    fixture.evict(0).await;
    fixture.hear();
    fixture.inner.publish_some().await.expect_err("no answer");
    fixture.bucket.recover();
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [0; 0]);
}

#[tokio::test]
async fn what_no_index_knows_is_withdrawn_in_the_order_of_its_references() {
    let mut fixture = Fixture::published().await;
    fixture.index = Index::new(MemoryBackend::default(), 0);
    fixture.restart();
    fixture.begin().await;
    assert_eq!((fixture.bucket.narinfos(), fixture.order().is_clear()), (vec![], true));
}
