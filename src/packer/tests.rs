//! Serving and receiving of NARs, on every kind of blobs: what is asked for is packed once and given whole,
//! what is received stays for as long as its lease, and nothing that goes wrong leaves a NAR under way.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::Duration;

use narinfo::{Compression, NarHash, PathInfo, StoreDir, StorePath};
use sha2::{Digest, Sha256};

use super::{Error, Limits, Packer, PackerHandles, ReceiveError, ReceivedFile};
use crate::index::Index;
use crate::model::{NarRow, PathRow};
use crate::nar_store::blobs::memory::MemoryBlobs;
use crate::nar_store::blobs::{Blobs, LocalBlobs};
use crate::nar_store::{Form, Nar, NarDigest, NarStore, NarStream, PackError, Settings};
use crate::nix::{Environment, Options, Pool};
use crate::publish::Publication;
use crate::roots::Roots;
use crate::tasks::{Supervisor, Tasks};
use crate::upstream::{self, Upstreams, ViaName};

/// Bytes of contents whose NAR is served from its file, and of contents whose NAR is served from memory.
const LARGE: usize = 3_000_000;
const SMALL: usize = 1_000;
const LIMITS: Limits = Limits { nar_bytes_max: 10_000_000, is_by_room: false };
const SOON: Duration = Duration::from_secs(30);

/// A packer over a store directory of its own, without a Nix daemon.
struct Fixture {
    packer: Packer,
    index: Index,
    blobs: Arc<dyn Blobs>,
    store: PathBuf,
    _folder: tempfile::TempDir,
    _supervisor: Supervisor,
}

impl Fixture {
    fn new(blobs: impl FnOnce(PathBuf) -> Arc<dyn Blobs>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let store = path("store");
        std::fs::create_dir(&store).expect("a folder");
        let store_dir = StoreDir::new(store.to_str().expect("text")).expect("a store directory");
        let blobs = blobs(path("nar"));
        let settings = Settings {
            zstd_level: 3,
            zstd_threads: 2,
            memory_bytes_max: 1 << 20,
            plain_bytes_max: 1 << 30,
            ..Settings::default()
        };
        let nars = NarStore::new(Arc::clone(&blobs), folder.path(), settings).expect("opened");
        let index = Index::open(&path("index")).expect("opened");
        let environment = Environment {
            store_dir: store_dir.clone(),
            state_dir: path("nix"),
            log_dir: path("nix-log"),
            socket: path("no-socket"),
        };
        let pool = Pool::new(environment, Options::default());
        let upstreams = Upstreams::new(upstream::Settings::default(), &store_dir, ViaName::of("key"));
        let upstreams = upstreams.expect("none");
        let roots = Roots::open(&path("roots"), store_dir.clone()).expect("opened");
        let (tasks, supervisor) = Tasks::new();
        let packer = Packer::new(PackerHandles {
            index: index.clone(),
            nars,
            publication: Publication::default(),
            roots,
            upstreams,
            pool,
            store_dir,
            nar_bytes_max: None,
            tasks,
        });
        Self { packer, index, blobs, store, _folder: folder, _supervisor: supervisor }
    }

    fn local() -> Self {
        Self::new(|folder| Arc::new(LocalBlobs::open(&folder).expect("opened")))
    }

    fn memory() -> (Self, MemoryBlobs) {
        let memory = MemoryBlobs::default();
        (Self::new(|_| Arc::new(memory.clone())), memory)
    }

    /// Puts a file of so many bytes into the store, and publishes its path. Returns its NAR.
    async fn publish(&self, bytes: usize) -> Vec<u8> {
        let path = StorePath::parse(&format!("{bytes:032}-p")).expect("a path");
        let file = self.store.join(path.to_string());
        std::fs::write(&file, contents(bytes)).expect("written");
        let nar = nar_of(&file);
        let NarDigest { hash, bytes } = digest(&nar);
        let info = PathInfo {
            path,
            nar_hash: hash,
            nar_size: bytes,
            references: Default::default(),
            deriver: None,
            ca: None,
            signatures: Vec::new(),
        };
        assert!(self.index.publish(vec![PathRow { info, built: false }]).await.expect("published"));
        nar
    }

    /// Asks for a part of a NAR as a client does, and reads it to its end.
    async fn ask(&self, nar: NarHash, form: Form, part: Range<u64>) -> Result<Vec<u8>, Error> {
        let mut served = self.packer.find(nar, Some(form)).await?.expect("a path has it");
        if let Some(small) = &served.small {
            let end = usize::try_from(part.end).unwrap_or(usize::MAX).min(small.bytes.len());
            return Ok(small.bytes[part.start as usize..end].to_vec());
        }
        let (opened, given) = self.packer.open(&mut served, form).await?;
        let bytes =
            if let (Nar::Stored(blob), true) = (&opened, form == given) { blob.bytes() } else { u64::MAX };
        let part = part.start..part.end.min(bytes);
        let mut stream = match given {
            Form::Zstd if form == Form::Plain => NarStream::decoded(opened, part).expect("a decoder"),
            _ => NarStream::as_it_is(opened, part),
        };
        let mut read = Vec::new();
        while let Some(piece) = stream.next_piece().await.map_err(Error::Store)? {
            read.extend_from_slice(&piece);
        }
        Ok(read)
    }

    async fn packed(&self, nar: NarHash) -> NarRow {
        let packed = async {
            loop {
                match self.index.packed(nar).await.expect("read") {
                    Some(row) => return row,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(SOON, packed).await.expect("it is packed")
    }

    fn file(&self, nar: NarHash) -> Option<u64> {
        self.blobs.open(nar).expect("opened").map(|blob| blob.bytes())
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect(what);
}

/// Bytes that compress to about half.
fn contents(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn nar_of(file: &std::path::Path) -> Vec<u8> {
    let mut nar = Vec::new();
    narinfo::nar::dump(file, &mut nar).expect("a NAR");
    nar
}

fn digest(bytes: &[u8]) -> NarDigest {
    NarDigest { hash: NarHash::from_bytes(Sha256::digest(bytes).into()), bytes: bytes.len() as u64 }
}

/// The NAR of a file of so many bytes that no store has.
fn sent(bytes: usize) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), contents(bytes)).expect("written");
    nar_of(file.path())
}

fn compressed(nar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Zstd => zstd::encode_all(nar, 7).expect("compressed"),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(nar).expect("compressed");
            encoder.finish().expect("compressed")
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(nar).expect("compressed");
            encoder.finish().expect("compressed")
        }
        _ => nar.to_vec(),
    }
}

async fn receive(
    fixture: &Fixture,
    nar: &[u8],
    compression: Compression,
) -> Result<ReceivedFile, ReceiveError> {
    let input = io::Cursor::new(compressed(nar, compression));
    fixture.packer.receive(input, compression, LIMITS).await
}

async fn a_nar_is_packed_once_for_all_who_ask_and_given_whole_in_both_forms(fixture: Fixture) {
    for (bytes, plain_first) in [(LARGE, true), (LARGE + 8, false), (SMALL, true)] {
        let nar = fixture.publish(bytes).await;
        let NarDigest { hash, bytes } = digest(&nar);
        if plain_first {
            assert_eq!(fixture.ask(hash, Form::Plain, 0..bytes).await.expect("given"), nar, "not packed yet");
        }
        let ask = || fixture.ask(hash, Form::Zstd, 0..u64::MAX);
        let (first, second, third) = tokio::join!(ask(), ask(), ask());
        let files = [first, second, third].map(|file| file.expect("given"));
        let row = fixture.packed(hash).await;
        assert_eq!((digest(&files[0]).hash, files[0].len() as u64), (row.file_hash, row.file_size));
        assert!(files.iter().all(|file| *file == files[0]));
        assert_eq!(zstd::decode_all(&files[0][..]).expect("a zstd file"), nar);
        // Twice: the first may make what the second is given.
        for _ in 0..2 {
            let ask = |form, part| fixture.ask(hash, form, part);
            assert_eq!(ask(Form::Zstd, 0..row.file_size).await.expect("given"), files[0]);
            assert_eq!(ask(Form::Plain, 0..bytes).await.expect("given"), nar);
            assert_eq!(ask(Form::Plain, 100..900).await.expect("given"), nar[100..900]);
        }
        assert_eq!(fixture.file(hash), Some(row.file_size));
    }
}

async fn a_received_nar_stays_for_as_long_as_its_lease_and_is_swept_afterwards(fixture: Fixture) {
    let nar = sent(LARGE / 10);
    for compression in [Compression::None, Compression::Zstd, Compression::Xz, Compression::Gzip] {
        let ReceivedFile { received, durable, lease, version: _ } =
            receive(&fixture, &nar, compression).await.expect("stored");
        durable.wait().await.expect("durable");
        let hash = received.nar.hash;
        assert_eq!(received.nar, digest(&nar), "{compression}");
        assert_eq!(fixture.file(hash), Some(received.packed.file_size), "{compression}");
        assert_eq!(fixture.packer.orphans().await.expect("listed"), []);
        assert!(!fixture.packer.discard(hash).await.expect("asked"), "it is leased");
        fixture.packer.sweep().await;
        assert!(fixture.file(hash).is_some());
        drop(lease);
        assert_eq!(fixture.packer.orphans().await.expect("listed"), [hash]);
        fixture.packer.sweep().await;
        assert_eq!(fixture.file(hash), None, "{compression}");
    }
}

async fn a_received_nar_with_a_row_stays_and_equal_ones_share_its_file(fixture: Fixture) {
    let nar = sent(LARGE);
    let first = receive(&fixture, &nar, Compression::None).await.expect("stored");
    // Its own zstd file would be another one.
    let second = receive(&fixture, &nar, Compression::Zstd).await.expect("stored");
    assert_eq!(first.received, second.received);
    let (hash, packed) = (first.received.nar.hash, first.received.packed);
    let row = NarRow { nar_hash: hash, file_hash: packed.file_hash, file_size: packed.file_size };
    fixture.index.record_packed(row.into()).await.expect("recorded");
    first.lease.recorded();
    drop(second.lease);
    fixture.packer.sweep().await;
    assert_eq!(fixture.file(hash), Some(packed.file_size));
    assert!(!fixture.packer.discard(hash).await.expect("asked"), "it has a row");
}

async fn what_is_no_nar_too_large_or_breaks_off_is_not_stored(fixture: Fixture) {
    let nar = sent(LARGE);
    let page = b"<html>Please log in</html>".repeat(1_000);
    let cut = &nar[..nar.len() - 8];
    for (wrong, compression) in
        [(&page[..], Compression::None), (cut, Compression::None), (cut, Compression::Zstd)]
    {
        let error = receive(&fixture, wrong, compression).await.err().expect("it is no NAR");
        assert!(matches!(error, ReceiveError::Pack(PackError::Malformed(_))), "{error:?}");
    }
    let small = Limits { nar_bytes_max: nar.len() as u64 - 1, is_by_room: false };
    for compression in [Compression::None, Compression::Zstd] {
        let input = io::Cursor::new(compressed(&nar, compression));
        let error = fixture.packer.receive(input, compression, small).await.err().expect("it is too large");
        assert!(matches!(error, ReceiveError::Pack(PackError::TooLarge { .. })), "{error:?}");
    }
    // Frames without contents, one after the other, for ever.
    let endless = SkippableFrames { at: 0 };
    let error = fixture.packer.receive(endless, Compression::Zstd, LIMITS).await.err().expect("no NAR");
    assert!(matches!(error, ReceiveError::Pack(PackError::Sent(_))), "{error:?}");
    assert_eq!(fixture.blobs.list(None).expect("listed"), []);
}

/// Endless skippable frames (RFC 8878, 3.1.2) of 1,000 bytes.
struct SkippableFrames {
    at: usize,
}

impl Read for SkippableFrames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const HEADER: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 0xe8, 3, 0, 0];
        for byte in buffer.iter_mut() {
            *byte = HEADER.get(self.at).copied().unwrap_or_default();
            self.at = (self.at + 1) % 1_008;
        }
        Ok(buffer.len())
    }
}

/// Runs each promise on each kind of blobs.
macro_rules! on_all {
    ($($promise:ident)*) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $promise() {
                super::$promise(super::Fixture::local()).await;
            })*
        }
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $promise() {
                super::$promise(super::Fixture::memory().0).await;
            })*
        }
    };
}

on_all! {
    a_nar_is_packed_once_for_all_who_ask_and_given_whole_in_both_forms
    a_received_nar_stays_for_as_long_as_its_lease_and_is_swept_afterwards
    a_received_nar_with_a_row_stays_and_equal_ones_share_its_file
    what_is_no_nar_too_large_or_breaks_off_is_not_stored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packing_that_panics_has_no_row_and_the_next_request_begins_anew() {
    let (fixture, memory) = Fixture::memory();
    let nar = fixture.publish(LARGE).await;
    let hash = digest(&nar).hash;
    memory.panic_on_commits(1);
    let served = fixture.index.path_with_nar(hash).await.expect("read").expect("published");
    let started = fixture.packer.start(served, super::Priority::Client).await.expect("begun");
    let Nar::Growing(mut growing) = started else { panic!("nothing is stored yet") };
    growing.finished().await.expect_err("its commit panics");
    let awaited = || fixture.packer.0.awaited.load(Ordering::Relaxed);
    until("nothing is under way", || awaited() == 0).await;
    assert_eq!((fixture.index.packed(hash).await.expect("read"), fixture.file(hash)), (None, None));
    assert_eq!(memory.uploads(), 0);
    let file = fixture.ask(hash, Form::Zstd, 0..u64::MAX).await.expect("given");
    assert_eq!(zstd::decode_all(&file[..]).expect("a zstd file"), nar);
    assert_eq!(fixture.packed(hash).await.file_size, file.len() as u64);
}

#[tokio::test]
async fn a_request_that_is_cancelled_while_it_begins_leaves_the_lead_to_the_next() {
    let (fixture, memory) = Fixture::memory();
    let nar = fixture.publish(LARGE).await;
    let hash = digest(&nar).hash;
    let row = fixture.index.path_with_nar(hash).await.expect("read").expect("published");
    {
        let _held = memory.hold();
        let begun = fixture.packer.start(row, super::Priority::Client);
        let mut context = Context::from_waker(Waker::noop());
        let polled = std::pin::pin!(begun).poll(&mut context);
        assert!(polled.is_pending(), "its file is held");
    }
    fixture.ask(hash, Form::Zstd, 0..u64::MAX).await.expect("given");
    fixture.packed(hash).await;
    until("the upload that was cancelled is gone", || memory.uploads() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_storage_fails_each_request_by_itself_and_gives_what_it_has() {
    let (fixture, memory) = Fixture::memory();
    let (stored, next) = (fixture.publish(LARGE).await, fixture.publish(LARGE + 8).await);
    let (stored, next) = (digest(&stored).hash, digest(&next).hash);
    fixture.ask(stored, Form::Zstd, 0..u64::MAX).await.expect("given");
    fixture.packed(stored).await;
    memory.set_full(true);
    fixture.ask(stored, Form::Zstd, 0..u64::MAX).await.expect("it is there");
    for _ in 0..2 {
        let error = fixture.ask(next, Form::Zstd, 0..u64::MAX).await.expect_err("there is no room");
        assert!(
            matches!(&error, Error::Store(full) if full.kind() == io::ErrorKind::StorageFull),
            "{error:?}"
        );
    }
    fixture.packer.check_writable().await.expect_err("there is no room");
    memory.set_full(false);
    fixture.ask(next, Form::Zstd, 0..u64::MAX).await.expect("given");
    fixture.packed(next).await;
    fixture.packer.check_writable().await.expect("there is room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_received_nar_whose_file_cannot_be_made_durable_is_gone_and_can_be_sent_again() {
    let (fixture, memory) = Fixture::memory();
    let nar = sent(LARGE / 10);
    memory.fail_syncs(true);
    let failed = receive(&fixture, &nar, Compression::Zstd).await.expect("received");
    let error = failed.durable.wait().await.expect_err("not durable");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fixture.file(digest(&nar).hash), None);
    drop(failed);
    memory.fail_syncs(false);
    let stored = receive(&fixture, &nar, Compression::Zstd).await.expect("received");
    stored.durable.wait().await.expect("durable");
    assert_eq!(fixture.file(digest(&nar).hash), Some(stored.received.packed.file_size));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_two_uploads_of_a_nar_win_the_row_is_that_of_the_one_that_stays() {
    let (fixture, memory) = Fixture::memory();
    let nar = fixture.publish(LARGE).await;
    let hash = digest(&nar).hash;
    // The same NAR as another server packs it.
    let other = zstd::encode_all(&nar[..], 19).expect("encoded");
    let expected = NarRow { nar_hash: hash, file_hash: digest(&other).hash, file_size: other.len() as u64 };
    memory.overtake_next(other);
    fixture.ask(hash, Form::Zstd, 0..u64::MAX).await.expect("given");
    let deadline = std::time::Instant::now() + SOON;
    while fixture.index.packed(hash).await.expect("read") != Some(expected) {
        assert!(std::time::Instant::now() < deadline, "{:?}", fixture.index.packed(hash).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
