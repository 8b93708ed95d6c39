//! Memory of decoders: however many files with large windows are fetched at once, they share a budget, and
//! each comes whole.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support;
use crate::support::addresses::field;
use crate::support::{Cache, Client, Compression, Derivation, Http, NixStore, Release, Upstream};

/// Fetches at once.
const FILES: usize = 8;
/// Bytes of each NAR, more than its window.
const FILE_BYTES: u64 = 132 << 20;
/// Power of two of the window: 128 MiB, as `zstd --ultra -22` and `--long` have it.
const WINDOW_LOG: u32 = 27;
/// Bytes that the server may take: the budget of its decoders, and as much again for all else. Without a
/// budget it takes 1 GiB.
const MEMORY_BYTES_MAX: u64 = 544 << 20;

/// The same bytes as a file with a large window.
fn with_a_large_window(file: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("level 1");
    encoder.window_log(WINDOW_LOG).expect("a window");
    encoder.write_all(&zstd::decode_all(file).expect("a zstd file")).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[test]
fn eight_fetches_of_files_with_a_window_of_128_mib_stay_within_the_budget() {
    let store = NixStore::new(Release::Host);
    let outputs: Vec<String> = (0..FILES).map(|number| format!("o{number}")).collect();
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    // Sparse, and each another one.
    let script = format!(
        "for o in $outputs; do echo $o > ${{!o}}; truncate -s {FILE_BYTES} ${{!o}}; echo $o >> ${{!o}}; done"
    );
    let made = store.instantiate(&Derivation::new("large", &script).outputs(&names));
    store.realise(&made.drv);
    let paths: Vec<PathBuf> = made.outputs.into_iter().map(|(_, path)| path).collect();
    let borrowed: Vec<&Path> = paths.iter().map(|path| &**path).collect();
    let upstream = Upstream::of(support::BinaryCache::new(&store, Compression::Zstd, &borrowed));
    for path in &paths {
        upstream.cache.replace_nar(path, &with_a_large_window(&upstream.cache.nar_bytes(path)));
    }
    store.gc();
    let cache = Cache::of(store, &["--upstream", &upstream.flag()], &[]);
    let nars: Vec<String> = paths.iter().map(|path| field(&cache.narinfo(path), "URL").to_owned()).collect();
    std::thread::scope(|scope| {
        for nar in &nars {
            let http = Http::new(&cache.ondine.url());
            scope.spawn(move || {
                let answer = http.get(&format!("/{nar}"));
                assert_eq!(answer.status, 200, "{}", answer.text());
                // It is compressed anew: readers need little memory.
                let mut decoder = zstd::Decoder::new(&answer.body[..]).expect("a decoder");
                decoder.window_log_max(23).expect("8 MiB");
                let bytes = std::io::copy(&mut decoder, &mut std::io::sink()).expect("a whole file");
                assert!(bytes > FILE_BYTES, "{bytes}");
            });
        }
    });
    let peak = cache.ondine.peak_rss_bytes();
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
    let client = Client::new(Release::Host, &cache.store.store_dir());
    client.fetch(&cache.ondine.substituter(), &borrowed[..1]).must_succeed();
    assert!(client.has(borrowed[0]));
}
