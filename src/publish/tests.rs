//! Publication from a real index into a bucket in memory, which checks after each step that nothing in it
//! points at nothing.

mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use narinfo::{CacheInfo, Compression, NarHash, NarInfo, PathInfo, StoreDir, StorePathHash};
use tokio::sync::Notify;

use super::{Inner, Publication, file_name};
use crate::index::samples::{nar, path, row};
use crate::index::{ChangedPaths, Index};
use crate::key::{Keys, WantedName};
use crate::model::{NarRow, PathRow, UpstreamNar};
use crate::nar_store::blobs::memory::MemoryBlobs;
use crate::nar_store::{CacheFile, CacheFiles, NarStore, Settings};

pub(super) fn hash(digit: u8) -> StorePathHash {
    path(digit).hash()
}

pub(super) fn info(digit: u8, references: &[u8]) -> PathInfo {
    row(digit, references).info
}

/// A bucket in memory.
#[derive(Clone, Debug, Default)]
struct MemoryFiles(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    files: BTreeMap<String, String>,
    nars: BTreeSet<NarHash>,
    is_away: bool,
    /// Requests that change something, which are answered until it is away.
    answers_left: Option<usize>,
    puts: usize,
    /// True while what is put gets no answer.
    loses_answers: bool,
    /// True where a NAR was deleted by hand.
    has_lost_nars: bool,
    /// Narinfos that went without those that refer to them, which follow.
    lacks: BTreeSet<StorePathHash>,
    /// Another tag than usual, as of a bucket with a key of its own.
    has_own_tags: bool,
}

impl Held {
    fn ask(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.answers_left {
            self.is_away = *left == 0;
            *left = left.saturating_sub(1);
        }
        if self.is_away { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    /// Each narinfo has its NAR, and those of all its references.
    fn check(&self) {
        for (name, text) in &self.files {
            let Ok(info) = NarInfo::parse(&StoreDir::default(), text.as_bytes()) else { continue };
            let has_nar = self.nars.contains(&info.path_info.nar_hash);
            assert!(has_nar || self.has_lost_nars, "{name} has no NAR");
            for reference in &info.path_info.references {
                let is_there = self.files.contains_key(&file_name(reference.hash()));
                assert!(is_there || self.lacks.contains(&reference.hash()), "{name} lacks {reference}");
            }
        }
    }
}

impl MemoryFiles {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no test panics with this locked")
    }

    /// Answers everything again.
    fn recover(&self) {
        let mut held = self.held();
        (held.answers_left, held.is_away, held.loses_answers) = (None, false, false);
    }

    /// The digits of the paths whose narinfos it has.
    fn narinfos(&self) -> Vec<u8> {
        (0..10).filter(|digit| self.held().files.contains_key(&file_name(hash(*digit)))).collect()
    }
}

impl CacheFiles for MemoryFiles {
    fn put_file(&self, name: &str, text: String) -> io::Result<()> {
        let mut held = self.held();
        held.ask()?;
        held.puts += 1;
        held.files.insert(name.to_owned(), text);
        held.check();
        if held.loses_answers { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn read_file(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.held().files.get(name).map(|text| text.clone().into_bytes()))
    }

    fn delete_file(&self, name: &str) -> io::Result<()> {
        let mut held = self.held();
        held.ask()?;
        held.files.remove(name);
        held.check();
        Ok(())
    }

    fn list_files(&self, page: Option<String>) -> io::Result<(Vec<CacheFile>, Option<String>)> {
        let held = self.held();
        let behind = held.files.iter().filter(|(name, _)| page.as_ref().is_none_or(|page| *name > page));
        let tag = |text: &str| if held.has_own_tags { "another".to_owned() } else { self.usual_tag(text) };
        let mut files: Vec<_> =
            behind.map(|(name, text)| CacheFile { name: name.clone(), tag: tag(text) }).collect();
        let next = (files.len() > 2).then(|| files[1].name.clone());
        files.truncate(2);
        Ok((files, next))
    }

    fn has_nar(&self, key: NarHash) -> io::Result<bool> {
        Ok(self.held().nars.contains(&key))
    }

    fn list_nars(&self, after: Option<NarHash>) -> io::Result<Vec<NarHash>> {
        let held = self.held();
        Ok(held.nars.iter().filter(|nar| after.is_none_or(|after| **nar > after)).take(2).copied().collect())
    }

    fn usual_tag(&self, text: &str) -> String {
        format!("tag of {text}")
    }
}

/// An index and a bucket.
struct Fixture {
    index: Index,
    bucket: MemoryFiles,
    inner: Arc<Inner>,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let index = Index::open(&folder.path().join("index")).expect("opened");
        Self::over(folder, index)
    }

    fn over(folder: tempfile::TempDir, index: Index) -> Self {
        let bucket = MemoryFiles::default();
        let inner = publication(&folder, &index, &bucket);
        Self { index, bucket, inner, folder }
    }

    /// Another run of the server over the same index and bucket.
    fn restart(&mut self) {
        self.inner = publication(&self.folder, &self.index, &self.bucket);
    }

    fn publication(&self) -> Publication {
        Publication(Some(Arc::clone(&self.inner)))
    }

    async fn serve(&self, digit: u8, references: &[u8]) {
        assert!(self.index.publish(vec![row(digit, references)]).await.expect("published"));
    }

    async fn pack(&self, digit: u8) {
        self.bucket.held().nars.insert(nar(digit));
        let row = NarRow { nar_hash: nar(digit), file_hash: nar(digit), file_size: 1 };
        self.index.record_packed(row.into()).await.expect("recorded");
    }

    /// A bucket in which all of them are published.
    async fn published() -> Self {
        let fixture = Self::new();
        fixture.begin().await;
        fixture.serve_all().await;
        for digit in 1..=5 {
            fixture.pack(digit).await;
        }
        fixture.settle().await;
        fixture
    }

    /// Paths that refer to those before them: 4 → 3 → 2 → 1 and 5 → 2.
    async fn serve_all(&self) {
        for (digit, references) in [(1, vec![]), (2, vec![1]), (3, vec![2, 3]), (4, vec![3, 1]), (5, vec![2])]
        {
            self.serve(digit, &references).await;
        }
    }

    async fn begin(&self) {
        self.inner.reconcile().await.expect("read");
        self.settle().await;
    }

    fn hear(&self) {
        let changed = self.index.take_changed();
        let ChangedPaths::Listed(changed) = changed else { panic!("something was missed") };
        changed.into_iter().for_each(|hash| self.order().push_changed(hash));
    }

    /// Does all that is due.
    async fn settle(&self) {
        self.hear();
        while self.inner.publish_some().await.expect("published") {}
    }

    fn order(&self) -> tokio::sync::MutexGuard<'_, super::Order> {
        self.inner.order.try_lock().expect("nobody publishes")
    }

    /// Removes a NAR as the packer does.
    async fn quarantine(&self, digit: u8) {
        let publication = self.publication();
        let _withdrawn = publication.withdraw_nar(nar(digit)).await.expect("withdrawn");
        self.bucket.held().nars.remove(&nar(digit));
        self.index.forget_packed(nar(digit)).await.expect("forgotten");
    }
}

fn publication(folder: &tempfile::TempDir, index: &Index, bucket: &MemoryFiles) -> Arc<Inner> {
    let nars = NarStore::new(Arc::new(MemoryBlobs::default()), folder.path(), Settings::default());
    let name = WantedName { name: "test-1".parse().expect("a name"), given: false };
    let keys = Keys::open(folder.path(), &[], &name, false).expect("made");
    let info = CacheInfo { store_dir: StoreDir::default(), want_mass_query: true, priority: 49 };
    Arc::new(Inner {
        index: index.clone(),
        nars: nars.expect("opened"),
        files: Arc::new(bucket.clone()),
        keys: Arc::new(keys),
        info,
        metrics: super::Metrics::new(),
        is_doubted: Default::default(),
        order: Default::default(),
    })
}

#[tokio::test]
async fn a_narinfo_comes_after_its_nar_and_those_of_its_references_in_whatever_order_they_are_packed() {
    for order in [[5, 4, 3, 2, 1], [1, 2, 3, 4, 5], [2, 4, 1, 5, 3]] {
        let fixture = Fixture::new();
        fixture.begin().await;
        fixture.serve_all().await;
        fixture.settle().await;
        assert_eq!(fixture.bucket.narinfos(), [0; 0]);
        for digit in order {
            fixture.pack(digit).await;
            fixture.settle().await;
        }
        assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
        assert_eq!(fixture.order().waiting(), 0);
        let held = fixture.bucket.held();
        assert_eq!(held.files["nix-cache-info"], fixture.inner.info.render());
        let narinfo = NarInfo::parse(&StoreDir::default(), held.files[&file_name(hash(4))].as_bytes());
        let narinfo = narinfo.expect("a narinfo");
        assert_eq!(narinfo.url, format!("nar/{}.nar.zst", nar(4).to_nixbase32()));
        assert_eq!(narinfo.path_info.signatures.len(), 1, "it is signed as it is served");
    }
}

#[tokio::test]
async fn a_path_is_not_published_before_all_that_it_refers_to_is_stored() {
    let fixture = Fixture::new();
    fixture.begin().await;
    fixture.serve_all().await;
    for digit in [1, 3, 4, 5] {
        fixture.pack(digit).await;
    }
    fixture.settle().await;
    assert_eq!((fixture.bucket.narinfos(), fixture.order().waiting()), (vec![1], 3));
    // On record, and not yet in the bucket, as while a directory is moved there.
    fixture.pack(2).await;
    fixture.bucket.held().nars.remove(&nar(2));
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1]);
    fixture.bucket.held().nars.insert(nar(2));
    fixture.order().resume();
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn what_only_an_upstream_has_is_stored_for_the_sake_of_what_refers_to_it() {
    let fixture = Fixture::new();
    fixture.begin().await;
    let upstream = UpstreamNar {
        nar_hash: nar(1),
        upstream: "https://cache.example.org".to_owned(),
        url: "nar/x.nar.xz".to_owned(),
        compression: Compression::Xz,
        file_hash: None,
        file_size: None,
        redirect: true,
    };
    let row = PathRow { info: info(1, &[]), built: false };
    assert!(fixture.index.publish_from_upstream(vec![(row, upstream)]).await.expect("published"));
    // Nobody needs it in the bucket.
    fixture.settle().await;
    assert_eq!(fixture.order().take_wanted(), None);
    for digit in [2, 3] {
        fixture.serve(digit, &[1]).await;
        fixture.pack(digit).await;
    }
    fixture.settle().await;
    let (tried, stored) = (AtomicUsize::new(0), Notify::new());
    let store = async |row: PathRow| {
        assert_eq!(row.info.path, path(1));
        let is_second = tried.fetch_add(1, Ordering::Relaxed) == 1;
        if is_second {
            fixture.pack(1).await;
            stored.notify_one();
        }
        is_second
    };
    tokio::select! {
        () = fixture.inner.store_wanted(store) => {}
        () = stored.notified() => {}
    }
    fixture.settle().await;
    assert_eq!((fixture.bucket.narinfos(), tried.into_inner()), (vec![1, 2, 3], 2));
}

#[tokio::test]
async fn a_nar_goes_after_its_narinfo_which_comes_back_with_it_and_what_refers_to_it() {
    let fixture = Fixture::published().await;
    {
        let publication = fixture.publication();
        let _withdrawn = publication.withdraw_nar(nar(4)).await.expect("withdrawn");
        assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 5]);
    }
    // Nothing was removed after all.
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
    fixture.quarantine(4).await;
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 5]);
    fixture.pack(4).await;
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
    // A path that is served no longer takes what refers to it along, the furthest first.
    fixture.index.forget_paths(nar(2)).await.expect("forgotten");
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1]);
    fixture.serve(2, &[1]).await;
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn what_refers_to_a_nar_that_was_removed_follows_its_narinfo_and_comes_back_with_it() {
    let fixture = Fixture::published().await;
    fixture.bucket.held().lacks.insert(hash(2));
    fixture.quarantine(2).await;
    assert_eq!(fixture.bucket.narinfos(), [1, 3, 4, 5]);
    fixture.settle().await;
    assert_eq!((fixture.bucket.narinfos(), fixture.order().waiting()), (vec![1], 3));
    fixture.bucket.held().lacks.clear();
    fixture.pack(2).await;
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_bucket_that_fails_at_any_request_is_whole_at_each_moment_and_complete_once_it_is_back() {
    for answers in 0..12 {
        let mut fixture = Fixture::new();
        fixture.serve_all().await;
        for digit in 1..=5 {
            fixture.pack(digit).await;
        }
        fixture.bucket.held().answers_left = Some(answers);
        let begun = fixture.inner.reconcile().await;
        while begun.is_ok() && fixture.inner.publish_some().await.is_ok_and(|some| some) {}
        fixture.index.forget_paths(nar(5)).await.expect("forgotten");
        // Of a server that is killed, only the bucket and the index are left.
        if answers % 2 == 0 || begun.is_err() {
            fixture.restart();
        }
        fixture.bucket.held().answers_left = None;
        fixture.bucket.held().is_away = false;
        match begun.is_ok() && answers % 2 == 1 {
            true => fixture.settle().await,
            false => fixture.begin().await,
        }
        assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4], "after {answers} answers");
        assert_eq!(fixture.order().waiting(), 0);
    }
}

#[tokio::test]
async fn a_narinfo_that_was_put_though_the_answer_was_lost_goes_before_its_nar() {
    let fixture = Fixture::new();
    fixture.begin().await;
    fixture.serve(1, &[]).await;
    fixture.pack(1).await;
    fixture.serve(2, &[1]).await;
    fixture.hear();
    fixture.bucket.held().loses_answers = true;
    fixture.inner.publish_some().await.expect_err("no answer");
    assert_eq!(fixture.bucket.narinfos(), [1]);
    fixture.bucket.held().loses_answers = false;
    fixture.quarantine(1).await;
    assert_eq!(fixture.bucket.narinfos(), [0; 0]);
    fixture.pack(1).await;
    fixture.pack(2).await;
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2]);
}

#[tokio::test]
async fn a_narinfo_whose_nar_was_deleted_by_hand_is_withdrawn_with_those_that_refer_to_it() {
    let fixture = Fixture::published().await;
    {
        let mut held = fixture.bucket.held();
        held.has_lost_nars = true;
        held.nars.remove(&nar(3));
    }
    fixture.begin().await;
    assert_eq!((fixture.bucket.narinfos(), fixture.order().waiting()), (vec![1, 2, 5], 2));
    fixture.bucket.held().nars.insert(nar(3));
    fixture.order().resume();
    fixture.settle().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_bucket_is_compared_with_the_index_and_what_others_have_put_there_stays() {
    let mut fixture = Fixture::published().await;
    for has_own_tags in [false, true] {
        fixture.restart();
        let puts = fixture.bucket.held().puts;
        fixture.bucket.held().has_own_tags = has_own_tags;
        fixture.begin().await;
        assert_eq!(fixture.bucket.held().puts, puts, "all of it was published already");
    }
    // While no server ran: a path is evicted, one has another narinfo, one is lost from the bucket.
    {
        let mut held = fixture.bucket.held();
        let name = |digit| file_name(hash(digit));
        let other = held.files[&name(4)].replace("NarSize: 1", "NarSize: 2");
        held.files.insert(name(4), other);
        let foreign = held.files[&name(1)].replace("nar/", "nar/other-");
        held.files.insert(name(9), foreign);
        held.files.remove(&name(5));
    }
    let evicted = fixture.bucket.held().files[&file_name(hash(1))].clone();
    fixture.bucket.held().files.insert(file_name(hash(8)), evicted);
    fixture.restart();
    fixture.begin().await;
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 4, 5, 9]);
    assert!(fixture.bucket.held().files[&file_name(hash(4))].contains("NarSize: 1\n"));
    // What is withdrawn is ours alone.
    fixture.publication().withdraw(&[hash(9), hash(5), hash(4)]).await.expect("withdrawn");
    assert_eq!(fixture.bucket.narinfos(), [1, 2, 3, 9]);
}

#[tokio::test]
async fn a_server_that_has_not_listed_the_bucket_withdraws_what_it_removes_all_the_same() {
    let mut fixture = Fixture::published().await;
    fixture.restart();
    fixture.quarantine(5).await;
    fixture.publication().withdraw(&[hash(4), hash(3)]).await.expect("withdrawn");
    assert_eq!(fixture.bucket.narinfos(), [1, 2]);
    fixture.bucket.held().is_away = true;
    fixture.publication().withdraw(&[hash(2)]).await.expect_err("nothing may go");
    fixture.publication().withdraw_nar(nar(2)).await.map(drop).expect_err("nothing may go");
    assert_eq!(fixture.bucket.narinfos(), [1, 2]);
}

#[tokio::test]
async fn what_gains_a_signature_is_published_again() {
    let fixture = Fixture::new();
    fixture.begin().await;
    fixture.serve(1, &[]).await;
    fixture.pack(1).await;
    fixture.settle().await;
    let signature = "other-1:".to_owned() + &"A".repeat(86) + "==";
    let added = vec![(hash(1), nar(1), vec![signature.parse().expect("a signature")])];
    assert_eq!(fixture.index.add_signatures(added).await.expect("added"), 1);
    fixture.settle().await;
    assert!(fixture.bucket.held().files[&file_name(hash(1))].contains(&signature));
    assert!(!fixture.inner.publish_some().await.expect("asked"), "nothing is left to do");
}
