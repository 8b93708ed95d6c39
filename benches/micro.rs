//! Time of the hot functions, each by itself: parsing a hash, looking up the index, rendering and signing a
//! narinfo, and making and packing a NAR. `cargo bench --bench micro`; `-- NAME` measures what has that in
//! its name.

#[allow(dead_code)]
#[path = "../tests/simulation/random.rs"]
mod random;

use std::fs;
use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use narinfo::{Compression, NarHash, NarInfo, PathInfo, SecretKey, StoreDir, StorePath, StorePathHash};
use ondine::index::Index;
use ondine::model::{NarRow, PathRow};
use ondine::nar_store::{NarDigest, NarStore, Settings};
use sha2::{Digest, Sha256};

use random::Random;

/// Rows of the index.
const ROWS: usize = 10_000;
/// Rows that are published at once.
const BATCH: usize = 1_000;
/// Files of the tree of small files, and their bytes.
const SMALL_FILES: (usize, usize) = (2_000, 3_000);
/// Bytes of the large file.
const LARGE_BYTES: usize = 32 << 20;

fn path(random: &mut Random) -> StorePath {
    StorePath::parse(&format!("{}-glibc-2.42-61", random.hash())).expect("a store path")
}

fn nar_hash(random: &mut Random) -> NarHash {
    NarHash::from_bytes(std::array::from_fn(|_| random.next() as u8))
}

/// A narinfo as most are: a few references, one signature to come.
fn narinfo(random: &mut Random) -> NarInfo {
    let nar_hash = nar_hash(random);
    let path_info = PathInfo {
        path: path(random),
        nar_hash,
        nar_size: 400_000,
        references: (0..5).map(|_| path(random)).collect(),
        deriver: Some(
            StorePath::parse(&format!("{}-glibc-2.42-61.drv", random.hash())).expect("a store path"),
        ),
        ca: None,
        signatures: Vec::new(),
    };
    NarInfo {
        path_info,
        url: format!("nar/{}.nar.zst", nar_hash.to_nixbase32()),
        compression: Compression::Zstd,
        file_hash: Some(nar_hash),
        file_size: Some(100_000),
    }
}

fn formats(criterion: &mut Criterion) {
    let mut random = Random(1);
    let (text, nar_text) = (random.hash(), nar_hash(&mut random).to_nixbase32());
    criterion.bench_function("hash of a store path, parsed", |b| {
        b.iter(|| black_box(&text).parse::<StorePathHash>());
    });
    criterion.bench_function("hash of a NAR, parsed", |b| {
        b.iter(|| NarHash::from_nixbase32(black_box(&nar_text)))
    });

    let store_dir = StoreDir::default();
    let mut info = narinfo(&mut random);
    let key = SecretKey::generate("bench-1".parse().expect("a name"));
    let fingerprint = info.path_info.fingerprint(&store_dir);
    let signature = key.sign(&fingerprint);
    let public_key = key.public_key();
    criterion.bench_function("narinfo, its fingerprint", |b| {
        b.iter(|| black_box(&info.path_info).fingerprint(&store_dir))
    });
    criterion.bench_function("narinfo, signed", |b| b.iter(|| key.sign(black_box(&fingerprint))));
    criterion.bench_function("narinfo, its signature verified", |b| {
        b.iter(|| assert!(public_key.verify(black_box(&signature), &fingerprint)));
    });
    info.path_info.signatures.push(signature);
    let rendered = info.render(&store_dir);
    criterion.bench_function("narinfo, rendered", |b| b.iter(|| black_box(&info).render(&store_dir)));
    criterion.bench_function("narinfo, parsed", |b| {
        b.iter(|| NarInfo::parse(&store_dir, black_box(rendered.as_bytes())).expect("a narinfo"));
    });
}

fn look_ups(criterion: &mut Criterion) {
    let mut random = Random(2);
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let index = Index::open(&folder.path().join("index.sqlite")).expect("an index");
    let rows: Vec<PathRow> = (0..ROWS).map(|_| row(&mut random)).collect();
    for batch in rows.chunks(BATCH) {
        runtime.block_on(index.publish(batch.to_vec())).expect("published");
    }
    for row in &rows[..BATCH] {
        let nar = NarRow { nar_hash: row.info.nar_hash, file_hash: row.info.nar_hash, file_size: 100_000 };
        runtime.block_on(index.record_packed(nar.into())).expect("recorded");
    }
    let mut turn = 0;
    criterion.bench_function("index, a path that is there", |b| {
        b.iter(|| {
            turn = (turn + 1) % BATCH;
            runtime.block_on(index.find(rows[turn].info.path.hash())).expect("read").expect("it is there")
        });
    });
    criterion.bench_function("index, a path that is not there", |b| {
        b.iter_batched(
            || random.hash().parse().expect("a hash"),
            |hash| assert!(runtime.block_on(index.find(hash)).expect("read").is_none()),
            BatchSize::SmallInput,
        );
    });
}

fn row(random: &mut Random) -> PathRow {
    PathRow { info: narinfo(random).path_info, built: true }
}

/// Bytes that compress about as well as text does.
fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..500).map(|_| format!("{:x} ", random.next() >> 40).into_bytes()).collect();
    let mut bytes = Vec::with_capacity(count + 16);
    while bytes.len() < count {
        bytes.extend_from_slice(&words[random.below(500) as usize]);
    }
    bytes.truncate(count);
    bytes
}

fn nars(criterion: &mut Criterion) {
    let mut random = Random(3);
    let folder = tempfile::tempdir().expect("a folder");
    let (many, large) = (folder.path().join("many"), folder.path().join("large"));
    for number in 0..SMALL_FILES.0 {
        let inner = many.join((number / 100).to_string());
        fs::create_dir_all(&inner).expect("the folder can be written to");
        fs::write(inner.join(number.to_string()), bytes(&mut random, SMALL_FILES.1)).expect("written");
    }
    fs::write(&large, bytes(&mut random, LARGE_BYTES)).expect("written");
    let store = NarStore::open(&folder.path().join("nars"), settings()).expect("a NAR store");
    let mut group = criterion.benchmark_group("NAR");
    group.sample_size(20);
    for (name, tree) in [("of many small files", &many), ("of a large file", &large)] {
        let expected = expected(tree);
        group.throughput(Throughput::Bytes(expected.bytes));
        group.bench_function(format!("{name}, dumped"), |b| {
            b.iter(|| narinfo::nar::dump(tree, &mut std::io::sink()).expect("dumped"));
        });
        group.bench_function(format!("{name}, packed"), |b| {
            b.iter(|| {
                let (draft, _growing) = store.draft().expect("a draft");
                store.pack(&draft, tree, expected).expect("packed")
            });
        });
    }
}

fn settings() -> Settings {
    Settings {
        zstd_level: 1,
        zstd_threads: Settings::usual_threads(),
        memory_bytes_max: 0,
        plain_bytes_max: 0,
        ..Settings::default()
    }
}

/// The result that packing must have.
fn expected(tree: &Path) -> NarDigest {
    let mut nar = Vec::new();
    narinfo::nar::dump(tree, &mut nar).expect("dumped");
    NarDigest { hash: NarHash::from_bytes(Sha256::digest(&nar).into()), bytes: nar.len() as u64 }
}

criterion_group!(benches, formats, look_ups, nars);
criterion_main!(benches);
