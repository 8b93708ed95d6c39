//! The promise about a large NAR of another cache: a hundred clients at once have one fetch, each gets its
//! first bytes when the first bytes are there, and the server stays small however slowly some of them read.

use std::io::Write;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::support::addresses::{field, narinfo_address};
use crate::support::derivations::{LARGE_FILE_BYTES, large_file};
use crate::support::http::Streaming;
use crate::support::{Compression, Ending, Fault, Http, NixStore, Ondine, Release, Sample, Upstream};
use narinfo::NarHash;
use sha2::{Digest, Sha256};

const CLIENTS: usize = 100;
/// Every so many clients, one reads all; the others stop after their first bytes and stay, which is the
/// harder part.
const READS_ALL: usize = 20;
/// The most memory that the server may have held, in bytes.
const MEMORY_MAX: u64 = 100 << 20;
/// From the upstream's first byte to that of the slowest client: a second, and two for a server that is not
/// optimised.
const FIRST_BYTE_WITHIN: Duration = Duration::from_secs(3);
/// Bytes that the upstream sends in a second, so that all have asked long before it is done.
const RATE: u64 = 60 << 20;

#[test]
fn a_hundred_clients_at_once_share_one_fetch_and_none_waits_for_its_end() {
    let store = NixStore::new(Release::Host);
    let sample = Sample::new(&store, &large_file("large"));
    let upstream = Upstream::of(sample.copied(&store, Compression::None));
    sample.collect_with_derivation(&store);
    let _daemon = store.daemon();
    let ondine = Ondine::start(&store, &["--upstream", &upstream.flag()]);
    let url = ondine.url();
    let idle = ondine.rss_bytes();
    let narinfo = Http::new(&url).get(&narinfo_address(&sample.path)).text();
    let address = format!("/{}", field(&narinfo, "URL"));
    upstream.server.fault("/nar/", Fault::Rate(RATE));

    let together = Barrier::new(CLIENTS);
    let client = |number: usize| {
        let http = Http::new(&url);
        together.wait();
        let mut answer = http.open(&address, &[]);
        let first = answer.next_piece();
        let at = Instant::now();
        let all = number.is_multiple_of(READS_ALL).then(|| nar_hash(first, &mut answer));
        // The connection of who does not read all stays, too.
        (at, answer, all)
    };
    let clients: Vec<_> = std::thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for (_, answer, all) in &clients {
        assert_eq!(answer.status, 200);
        assert!(all.as_ref().is_none_or(|all| *all == Ok(sample.nar_hash())), "{all:?}");
    }

    let seen = upstream.server.seen_of("/nar/");
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].sent >= LARGE_FILE_BYTES);
    let begun = seen[0].first_byte.expect("bytes were sent");
    let slowest = clients.iter().map(|(at, ..)| *at).max().expect("clients") - begun;
    let peak = ondine.peak_rss_bytes();
    println!(
        "the slowest client had its first byte after {slowest:.2?}; {} MiB at most, {} MiB when idle",
        peak >> 20,
        idle >> 20
    );
    assert!(slowest < FIRST_BYTE_WITHIN, "{slowest:?}");
    assert!(peak < MEMORY_MAX, "{} MiB", peak >> 20);
}

/// The hash of the NAR in a zstd body that comes piece by piece, or what was wrong with it.
fn nar_hash(mut piece: Result<Vec<u8>, Ending>, answer: &mut Streaming) -> Result<NarHash, String> {
    let mut sum = Sha256::new();
    let mut decoder = zstd::stream::write::Decoder::new(&mut sum).expect("a decoder");
    while let Ok(bytes) = &piece {
        decoder.write_all(bytes).map_err(|error| error.to_string())?;
        piece = answer.next_piece();
    }
    if piece != Err(Ending::Complete) {
        return Err(format!("{piece:?}"));
    }
    decoder.flush().expect("memory takes everything");
    drop(decoder);
    Ok(NarHash::from_bytes(sum.finalize().into()))
}
