//! Promises that every [`Blobs`] keeps, each tried on all of them. A new one is added to the list at the end.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use narinfo::NarHash;

use super::memory::MemoryBlobs;
use super::{Blob, Blobs, Commit, LIST_PAGE_MAX, LocalBlobs, Upload};

/// Uploads that commit the same key at the same time.
const RACING: usize = 8;

/// Blobs to try, and a count of what their uploads have left behind.
struct Subject {
    blobs: Box<dyn Blobs>,
    leftovers: Box<dyn Fn() -> usize>,
}

fn key(number: u8) -> NarHash {
    // The last byte makes the first characters of the text: three folders, each with several files.
    let mut bytes = [number; 32];
    bytes[31] = (number % 3) << 4;
    NarHash::from_bytes(bytes)
}

impl Subject {
    fn upload(&self, bytes: &[u8]) -> Box<dyn Upload> {
        let upload = self.blobs.begin().expect("there is room");
        (&**upload.file()).write_all(bytes).expect("written");
        upload
    }

    fn put(&self, key: NarHash, bytes: &[u8]) {
        assert_eq!(self.upload(bytes).commit(key).expect("committed"), Commit::Won);
    }

    fn get(&self, key: NarHash) -> Option<Vec<u8>> {
        self.blobs.open(key).expect("opened").map(|blob| contents(&blob))
    }
}

fn contents(blob: &Blob) -> Vec<u8> {
    let mut contents = Vec::new();
    blob.reader().read_to_end(&mut contents).expect("all of them are there");
    contents
}

fn what_was_committed_is_opened_whole(subject: &Subject) {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    for (number, bytes) in [&bytes[..], &bytes[..1], &[]].into_iter().enumerate() {
        let key = key(number as u8);
        assert_eq!(subject.get(key), None);
        subject.put(key, bytes);
        let blob = subject.blobs.open(key).expect("opened").expect("it is there");
        assert_eq!((blob.bytes(), contents(&blob)), (bytes.len() as u64, bytes.to_vec()));
    }
}

fn only_what_is_there_is_at_hand(subject: &Subject) {
    let is_remote = subject.blobs.is_remote();
    assert!(!subject.blobs.is_at_hand(key(1)));
    subject.put(key(1), b"bytes");
    assert!(!is_remote || !subject.blobs.is_at_hand(key(1)), "storage elsewhere would have to be asked");
    assert!(!subject.blobs.is_at_hand(key(4)), "another one in its folder");
    assert!(subject.blobs.delete(key(1)).expect("deleted"));
    assert!(!subject.blobs.is_at_hand(key(1)));
}

fn an_upload_is_read_while_it_is_written_and_not_opened_before_its_commit(subject: &Subject) {
    let upload = subject.upload(b"one");
    let mut read = [0; 3];
    upload.file().read_exact_at(&mut read, 0).expect("it is there");
    assert_eq!(&read, b"one");
    assert_eq!((subject.get(key(1)), subject.blobs.list(None).expect("listed")), (None, Vec::new()));
    (&**upload.file()).write_all(b" two").expect("written");
    upload.check_room().expect("there is room");
    assert_eq!(upload.commit(key(1)).expect("committed"), Commit::Won);
    assert_eq!(subject.get(key(1)).as_deref(), Some(&b"one two"[..]));
}

fn an_upload_that_is_dropped_leaves_nothing(subject: &Subject) {
    let upload = subject.upload(b"bytes");
    assert_eq!((subject.leftovers)(), 1, "the count would show it");
    drop(upload);
    assert_eq!(((subject.leftovers)(), subject.blobs.list(None).expect("listed")), (0, Vec::new()));
    subject.put(key(1), b"bytes");
    assert_eq!((subject.leftovers)(), 0, "a commit leaves nothing, either");
}

fn of_concurrent_commits_of_a_key_one_wins_and_stays(subject: &Subject) {
    let uploads: Vec<_> = (0..RACING).map(|number| subject.upload(&[number as u8; 1000])).collect();
    let barrier = Barrier::new(RACING);
    let commits: Vec<_> = std::thread::scope(|scope| {
        let commit = |upload: Box<dyn Upload>| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                upload.commit(key(1)).expect("committed")
            })
        };
        let threads: Vec<_> = uploads.into_iter().map(commit).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let winners: Vec<_> = (0..RACING).filter(|number| commits[*number] == Commit::Won).collect();
    assert_eq!(winners.len(), 1, "{commits:?}");
    let winner = vec![winners[0] as u8; 1000];
    assert_eq!(subject.get(key(1)), Some(winner.clone()));
    assert_eq!(subject.upload(b"late").commit(key(1)).expect("committed"), Commit::Lost);
    assert_eq!((subject.get(key(1)), (subject.leftovers)()), (Some(winner), 0));
}

fn a_blob_is_told_from_one_that_takes_its_place(subject: &Subject) {
    let open = || subject.blobs.open(key(1)).expect("opened").expect("it is there");
    subject.put(key(1), b"first");
    let first = open();
    assert!(first.is(&open()).expect("both are there"));
    assert!(subject.blobs.delete(key(1)).expect("deleted"));
    subject.put(key(1), b"other");
    assert!(!first.is(&open()).expect("both are there"));
    match first {
        Blob::File(_) => assert_eq!(contents(&first), b"first", "who has it open has all of it"),
        // Never a part of the other.
        Blob::Object(_) => drop(first.reader().read_to_end(&mut Vec::new()).expect_err("it is gone")),
    }
}

fn each_who_opens_a_blob_reads_it_from_its_start(subject: &Subject) {
    subject.put(key(1), b"bytes");
    let open = || subject.blobs.open(key(1)).expect("opened").expect("it is there");
    let blobs = [open(), open()];
    for blob in &blobs {
        let bytes = match blob {
            // As a reader of the descriptor has it.
            Blob::File(file) => std::io::read_to_string(&*file.file).expect("read").into_bytes(),
            Blob::Object(_) => contents(blob),
        };
        assert_eq!(bytes, b"bytes");
    }
}

fn deleting_says_whether_there_was_something(subject: &Subject) {
    subject.put(key(1), b"one");
    subject.put(key(2), b"two");
    assert!(subject.blobs.delete(key(1)).expect("deleted"));
    assert!(!subject.blobs.delete(key(1)).expect("there is nothing to delete"));
    assert_eq!((subject.get(key(1)), subject.get(key(2)).is_some()), (None, true));
    assert_eq!(subject.blobs.list(None).expect("listed"), [key(2)]);
}

fn keys_are_listed_in_order_page_by_page(subject: &Subject) {
    let mut keys: Vec<_> = (0..3 * LIST_PAGE_MAX as u8 + 1).map(key).collect();
    keys.iter().for_each(|key| subject.put(*key, b"bytes"));
    keys.sort_by_key(|key| key.to_nixbase32());
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = subject.blobs.list(after).expect("listed");
        listed.extend_from_slice(&page);
        assert!(page.len() <= LIST_PAGE_MAX);
        after = page.last().copied();
        if page.len() < LIST_PAGE_MAX {
            break;
        }
    }
    assert_eq!(listed, keys);
    // A key that is gone by now is a place in the order all the same.
    assert!(subject.blobs.delete(keys[3]).expect("deleted"));
    assert_eq!(subject.blobs.list(Some(keys[3])).expect("listed")[0], keys[4]);
}

fn a_blob_in_quarantine_is_neither_opened_nor_listed_and_its_key_is_free(subject: &Subject) {
    subject.put(key(1), b"damaged");
    subject.blobs.quarantine(key(1)).expect("moved or deleted");
    assert_eq!((subject.get(key(1)), subject.blobs.list(None).expect("listed")), (None, Vec::new()));
    subject.put(key(1), b"right");
    subject.blobs.empty_quarantine(0);
    assert_eq!(subject.get(key(1)).as_deref(), Some(&b"right"[..]));
}

/// Runs each promise on a fresh subject of each kind.
macro_rules! on_all {
    ($($promise:ident)*) => {
        mod local {
            $(#[test] fn $promise() {
                let folder = tempfile::tempdir().expect("a folder");
                let uploads = folder.path().join("tmp");
                super::$promise(&super::Subject {
                    blobs: Box::new(super::LocalBlobs::open(folder.path()).expect("opened")),
                    leftovers: Box::new(move || std::fs::read_dir(&uploads).expect("a folder").count()),
                });
            })*
        }
        #[cfg(feature = "object-store")]
        mod bucket {
            $(#[test] fn $promise() {
                let Some(bucket) = super::on_bucket::Fixture::s3() else { return };
                super::$promise(&bucket.subject());
            })*
        }
        #[cfg(feature = "object-store")]
        mod google {
            $(#[test] fn $promise() {
                super::$promise(&super::on_bucket::Fixture::google().subject());
            })*
        }
        #[cfg(feature = "object-store")]
        mod azure {
            $(#[test] fn $promise() {
                let Some(container) = super::on_bucket::Fixture::azure() else { return };
                super::$promise(&container.subject());
            })*
        }
        mod memory {
            $(#[test] fn $promise() {
                let blobs = super::MemoryBlobs::default();
                super::$promise(&super::Subject {
                    blobs: Box::new(blobs.clone()),
                    leftovers: Box::new(move || blobs.uploads()),
                });
            })*
        }
    };
}

on_all! {
    what_was_committed_is_opened_whole
    only_what_is_there_is_at_hand
    an_upload_is_read_while_it_is_written_and_not_opened_before_its_commit
    an_upload_that_is_dropped_leaves_nothing
    of_concurrent_commits_of_a_key_one_wins_and_stays
    a_blob_is_told_from_one_that_takes_its_place
    each_who_opens_a_blob_reads_it_from_its_start
    deleting_says_whether_there_was_something
    keys_are_listed_in_order_page_by_page
    a_blob_in_quarantine_is_neither_opened_nor_listed_and_its_key_is_free
}

#[cfg(feature = "object-store")]
mod on_bucket {
    use std::sync::OnceLock;

    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::super::{Bucket, BucketUrl, CacheFile, CacheFiles, PlacedBlob};
    use super::*;
    use crate::support::{self, TestBucket};

    /// Pairs of uploads that race, one after the other.
    const RACES: u8 = 8;

    /// A bucket, and a directory for its uploads.
    pub(super) struct Fixture {
        bucket: Box<dyn TestBucket>,
        folder: TempDir,
    }

    impl Fixture {
        pub(super) fn s3() -> Option<Self> {
            support::Bucket::new().map(Self::of)
        }

        pub(super) fn google() -> Self {
            Self::of(support::GoogleBucket::new())
        }

        pub(super) fn azure() -> Option<Self> {
            support::AzureContainer::new().map(Self::of)
        }

        /// Those that there are.
        fn all() -> impl Iterator<Item = Self> {
            [Self::s3(), Some(Self::google()), Self::azure()].into_iter().flatten()
        }

        fn of(bucket: impl TestBucket + 'static) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("key"), bucket.credentials()).expect("written");
            Self { bucket: Box::new(bucket), folder }
        }

        fn open(&self) -> Bucket {
            static RUNTIME: OnceLock<Runtime> = OnceLock::new();
            let _entered = RUNTIME.get_or_init(|| Runtime::new().expect("a runtime")).enter();
            let url = BucketUrl::parse(&self.bucket.url()).expect("an address");
            Bucket::open(url, Some(&self.folder.path().join("key")), false, self.folder.path())
                .expect("opened")
        }

        pub(super) fn subject(&self) -> Subject {
            let uploads = self.folder.path().join("tmp");
            let leftovers = move || std::fs::read_dir(&uploads).expect("a folder").count();
            Subject { blobs: Box::new(self.open()), leftovers: Box::new(leftovers) }
        }
    }

    #[test]
    fn a_large_blob_is_put_in_parts_of_which_none_is_left_and_the_first_stays() {
        for fixture in Fixture::all() {
            let subject = fixture.subject();
            let large: Vec<u8> = (0..20 << 20).map(|n: u32| (n % 251) as u8).collect();
            subject.put(key(1), &large);
            let blob = subject.blobs.open(key(1)).expect("opened").expect("it is there");
            assert!(contents(&blob) == large, "it has other bytes");
            assert_eq!(subject.upload(&large[1..]).commit(key(1)).expect("committed"), Commit::Lost);
            assert_eq!(blob.bytes(), large.len() as u64);
            assert_eq!((fixture.bucket.uploads(), (subject.leftovers)()), (0, 0), "{}", fixture.bucket.url());
        }
    }

    #[test]
    fn of_uploads_in_parts_that_win_at_the_same_moment_one_alone_has_the_version_that_stays() {
        for fixture in Fixture::all() {
            let subject = fixture.subject();
            for round in 0..RACES {
                let uploads = [1, 2].map(|number| subject.upload(&vec![number; 9 << 20]));
                let barrier = Barrier::new(uploads.len());
                let placed = std::thread::scope(|scope| {
                    let place = |upload: Box<dyn Upload>| {
                        let barrier = &barrier;
                        scope.spawn(move || {
                            barrier.wait();
                            upload.place(key(round)).expect("placed")
                        })
                    };
                    uploads.map(place).map(|thread| thread.join().expect("no panic"))
                });
                let blob = subject.blobs.open(key(round)).expect("opened").expect("it is there");
                let stays = |placed: &PlacedBlob| {
                    placed.outcome() == Commit::Won
                        && placed.version().is_none_or(|version| Some(version) == blob.version())
                };
                let stay: Vec<_> = placed.iter().map(stays).collect();
                assert!(stay[0] != stay[1], "{stay:?} in round {round} of {}", fixture.bucket.url());
                let winner = if stay[0] { 1 } else { 2 };
                assert!(contents(&blob) == vec![winner; 9 << 20], "the bytes are not those of the winner");
            }
        }
    }

    #[test]
    fn a_list_of_files_has_the_tags_of_their_contents() {
        for fixture in Fixture::all() {
            let bucket = fixture.open();
            let files: Vec<_> = (0..LIST_PAGE_MAX + 2).map(|number| format!("{number:02}.narinfo")).collect();
            for name in &files {
                bucket.put_file(name, format!("text of {name}")).expect("put");
            }
            fixture.subject().put(key(1), b"not beside them");
            let (mut listed, mut page) = (Vec::new(), None);
            loop {
                let (found, next) = bucket.list_files(page).expect("listed");
                listed.extend(found);
                page = next;
                if page.is_none() {
                    break;
                }
            }
            let expected = files.iter().map(|name| CacheFile {
                name: name.clone(),
                tag: bucket.usual_tag(&format!("text of {name}")),
            });
            assert_eq!(listed, expected.collect::<Vec<_>>(), "{}", fixture.bucket.url());
            bucket.delete_file(&files[0]).expect("deleted");
            bucket.delete_file(&files[0]).expect("it is gone");
            assert_eq!(bucket.read_file(&files[0]).expect("read"), None);
            let text = bucket.read_file(&files[1]).expect("read");
            assert_eq!(text, Some(format!("text of {}", files[1]).into_bytes()));
        }
    }

    /// Parts at Azure have no upload that could be aborted: they expire.
    #[test]
    fn uploads_that_an_interrupted_run_left_are_aborted_at_the_next_start() {
        for fixture in [Fixture::s3(), Some(Fixture::google())].into_iter().flatten() {
            let bucket = fixture.open();
            std::mem::forget(fixture.subject().upload(b"half"));
            let before = fixture.bucket.uploads();
            bucket.begin_parts_and_forget(key(1)).expect("begun");
            assert!(fixture.bucket.uploads() > before);
            let subject = fixture.subject();
            support::wait_until("the upload is aborted", std::time::Duration::from_secs(30), || {
                fixture.bucket.uploads() == 0
            });
            assert_eq!((subject.leftovers)(), 0);
        }
    }
}

/// Shown where a test can fill the storage; tests/full_disk.rs does it to a directory.
#[test]
fn a_full_storage_refuses_more_and_keeps_what_it_has() {
    let memory = MemoryBlobs::default();
    let subject = Subject { blobs: Box::new(memory.clone()), leftovers: Box::new(|| 0) };
    subject.put(key(1), b"bytes");
    let begun = subject.upload(b"more");
    memory.set_full(true);
    for refused in [
        subject.blobs.begin().map(drop),
        begun.check_room(),
        subject.blobs.room().and_then(|room| room.check()),
    ] {
        assert_eq!(refused.expect_err("it is full").kind(), std::io::ErrorKind::StorageFull);
    }
    assert_eq!(subject.get(key(1)).as_deref(), Some(&b"bytes"[..]));
    memory.set_full(false);
    subject.put(key(2), b"bytes");
}

#[test]
fn a_directory_of_blobs_opens_again_without_uploads_that_an_interrupted_run_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || LocalBlobs::open(folder.path()).expect("opened");
    let subject = Subject { blobs: Box::new(open()), leftovers: Box::new(|| 0) };
    subject.put(key(1), b"bytes");
    std::mem::forget(subject.upload(b"half"));
    let uploads = || std::fs::read_dir(folder.path().join("tmp")).expect("a folder").count();
    assert_eq!(uploads(), 1);
    let bytes = contents(&open().open(key(1)).expect("opened").expect("it is there"));
    assert_eq!((&bytes[..], uploads()), (&b"bytes"[..], 0));
}
