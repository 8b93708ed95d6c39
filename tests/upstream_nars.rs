//! What may be wrong with a NAR of another cache, one after the other: no client gets a complete body that is wrong, nothing
//! wrong is kept, and where a second cache has the path, its bytes are delivered.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::addresses::{field, narinfo_address};
use support::derivations::{noise, text_file};
use support::upstream::bombs::{bomb, xz_with_a_dictionary_of_4_gib, zstd_bomb, zstd_with_a_window_of_2_gib};
use support::upstream::{counted, settings_file, stored_nars};
use support::{
    BinaryCache, Client, Compression, Daemon, Ending, Fault, FileServer, Http, NixStore, Ondine, Release,
    Sample, Upstream, wait_until,
};

/// Memory that a hostile file may cost the server, in bytes.
const MEMORY_MAX: u64 = 64 << 20;
/// Bytes that the server may have taken of a body that has no end; the buffers of two sockets are among them.
const TAKEN_MAX: u64 = 32 << 20;
/// Lines of every upstream here: a test need not wait for long.
const HASTE: &str = "connect-timeout = \"1s\"\nstall-timeout = \"1s\"\n";
/// The time in which a stalled upstream must be given up, with all that is tried again.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(15);

/// A path that only other caches have, and one of them that is as it should be.
struct World {
    store: NixStore,
    _daemon: Daemon,
    sample: Sample,
    other: Sample,
    good: Upstream,
}

/// What a client gets of a NAR.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    /// The right bytes, and their end.
    Right,
    /// A 404, for the narinfo or for the NAR.
    Missing,
    /// A body that was cut.
    Cut,
}

impl World {
    fn new(compression: Compression) -> World {
        let store = NixStore::new(Release::Host);
        let sample = Sample::new(&store, &noise("noise", 300_000));
        let other = Sample::new(&store, &text_file("other", "other"));
        let good = BinaryCache::new(&store, compression, &[&sample.path, &other.path]);
        sample.collect_with_derivation(&store);
        World { _daemon: store.daemon(), store, sample, other, good: Upstream::of(good) }
    }

    /// An upstream like the good one, which a test then spoils.
    fn twin(&self) -> Upstream {
        Upstream::of(self.good.cache.twin())
    }

    fn path(&self) -> &Path {
        &self.sample.path
    }

    /// A server with these upstreams, the first preferred.
    fn behind(&self, upstreams: &[&Upstream]) -> Ondine {
        let numbered = upstreams.iter().enumerate();
        let tables: Vec<_> = numbered
            .map(|(number, upstream)| upstream.table(&format!("{HASTE}priority = {number}")))
            .collect();
        Ondine::start(&self.store, &["--config", &settings_file(&self.store, &tables)])
    }

    /// Asks for the narinfo, then for the NAR in the form of the narinfo or plain.
    fn get(&self, ondine: &Ondine, plain: bool) -> Got {
        let http = Http::new(&ondine.url());
        let narinfo = http.get(&narinfo_address(self.path()));
        if narinfo.status == 404 {
            return Got::Missing;
        }
        assert_eq!(narinfo.status, 200, "{}", narinfo.text());
        let address = format!("/{}", field(&narinfo.text(), "URL"));
        let address = if plain { address.trim_end_matches(".zst") } else { &address };
        let mut answer = http.open(address, &[]);
        if answer.status == 404 {
            return Got::Missing;
        }
        assert_eq!(answer.status, 200);
        let (body, ending) = answer.read_to_end();
        if ending != Ending::Complete {
            return Got::Cut;
        }
        let nar = if plain {
            body
        } else {
            zstd::decode_all(&body[..]).expect("a body that ended well is a zstd file")
        };
        self.sample.assert_is_nar(&nar);
        Got::Right
    }

    /// The promise about a spoilt NAR: alone, it reaches nobody whole and is not kept; before a good one, it does not keep
    /// that from being delivered. `at_once` says that the first who asks gets it, because nothing wrong was sent before.
    fn refuses(&self, spoilt: &Upstream, said: &str, at_once: bool) {
        let ondine = self.behind(&[spoilt]);
        let idle = ondine.rss_bytes();
        for plain in [false, true, false] {
            let begun = Instant::now();
            let got = self.get(&ondine, plain);
            assert_ne!(got, Got::Right, "{said}, plain {plain}");
            assert!(!at_once || got == Got::Missing, "{said}, plain {plain}: cut, though no byte was good");
            assert!(begun.elapsed() < GIVEN_UP_WITHIN, "{said}: {:?}", begun.elapsed());
        }
        wait_until(&format!("{said}: nothing is left in the NAR store"), Duration::from_secs(5), || {
            stored_nars(&ondine).is_empty()
        });
        assert!(
            ondine.peak_rss_bytes() < idle + MEMORY_MAX,
            "{said}: {} from {idle}",
            ondine.peak_rss_bytes()
        );
        assert!(counted(&ondine, "nars", &["failed", "refused"]) > 0, "{said}: not counted");

        let ondine = self.behind(&[spoilt, &self.good]);
        let got: Vec<Got> = (0..3).map(|_| self.get(&ondine, false)).collect();
        assert_eq!(got[2], Got::Right, "{said}: {got:?}");
        assert!(!at_once || got[0] == Got::Right, "{said}: {got:?}");
        let client = Client::new(Release::Host, &self.store.store_dir());
        client.fetch(&ondine.substituter(), &[self.path()]).must_succeed();
        self.sample.assert_held_by(&client);
    }

    /// The same for answers of the upstream's server.
    fn refuses_answers(&self, fault: Fault, at_once: bool) {
        let said = format!("{fault:?}");
        let spoilt = self.twin();
        spoilt.server.fault("/nar/", fault);
        self.refuses(&spoilt, &said, at_once);
    }

    /// The same for a file.
    fn refuses_file(&self, file: &[u8], said: &str) {
        let spoilt = self.twin();
        spoilt.cache.replace_nar(self.path(), file);
        for named in ["FileSize", "FileHash"] {
            // What a client need not believe must not be what saves us.
            spoilt.cache.remove(self.path(), named);
        }
        self.refuses(&spoilt, said, false);
    }
}

#[test]
fn a_nar_with_another_hash_reaches_nobody() {
    let world = World::new(Compression::None);
    let right = world.good.cache.nar_bytes(world.path());
    let mut flipped = right.clone();
    flipped[150_000] ^= 1;
    let mut longer = right.clone();
    longer.extend([0; 8]);
    let other = world.good.cache.nar_bytes(&world.other.path);
    let named: [(&str, &[u8]); 5] = [
        ("one bit is wrong", &flipped),
        ("eight bytes too many", &longer),
        ("another NAR", &other),
        ("no NAR", b"<html>Please log in</html>"),
        ("nothing", b""),
    ];
    for (said, file) in named {
        world.refuses_file(file, said);
    }
}

#[test]
fn a_file_that_is_not_in_the_compression_named_reaches_nobody() {
    for compression in Compression::ALL.into_iter().filter(|compression| *compression != Compression::None) {
        let world = World::new(compression);
        let mut file = world.good.cache.nar_bytes(world.path());
        let middle = file.len() / 2;
        file[middle] ^= 0x55;
        world.refuses_file(&file, &format!("a byte of a {compression:?} file is wrong"));
    }
}

#[test]
fn a_nar_that_was_cut_off_reaches_nobody() {
    let world = World::new(Compression::Xz);
    for fault in [
        Fault::Cut(1000),
        Fault::ChunksCut(1000),
        Fault::ChunksEnd(1000),
        Fault::CloseEnds(1000),
        Fault::ShortLength(1000),
    ] {
        world.refuses_answers(fault, false);
    }
    let file = world.good.cache.nar_bytes(world.path());
    world.refuses_file(&file[..file.len() / 2], "half a file");
}

#[test]
fn half_a_plain_nar_reaches_nobody() {
    let world = World::new(Compression::None);
    let file = world.good.cache.nar_bytes(world.path());
    world.refuses_file(&file[..file.len() / 2], "half a file");
    world.refuses_answers(Fault::ChunksEnd(1000), false);
}

#[test]
fn a_body_without_end_is_left() {
    for (compression, sized) in
        [(Compression::Xz, true), (Compression::Xz, false), (Compression::None, false)]
    {
        let world = World::new(compression);
        let endless = world.twin();
        endless.server.fault("/nar/", Fault::Endless);
        if !sized {
            endless.cache.remove(world.path(), "FileSize");
        }
        let ondine = world.behind(&[&endless]);
        let idle = ondine.rss_bytes();
        // All that is right comes first, so the right bytes may be delivered; nothing else, and not for ever.
        let _ = world.get(&ondine, false);
        wait_until("the upstream is left", GIVEN_UP_WITHIN, || {
            endless.server.seen_of("/nar/").iter().all(|seen| seen.over)
        });
        let taken: u64 = endless.server.seen_of("/nar/").iter().map(|seen| seen.sent).sum();
        assert!(taken < TAKEN_MAX, "{compression:?}, {sized}: {taken} bytes were taken");
        assert!(ondine.peak_rss_bytes() < idle + MEMORY_MAX);
    }
}

#[test]
fn a_bomb_goes_off_nowhere() {
    for (compression, program) in
        [(Compression::Xz, "xz"), (Compression::Bzip2, "bzip2"), (Compression::Gzip, "gzip")]
    {
        World::new(compression).refuses_file(&bomb(program), &format!("a {program} bomb"));
    }
    World::new(Compression::Zstd).refuses_file(&zstd_bomb(), "a zstd bomb");
}

#[test]
fn a_file_that_asks_for_gigabytes_of_memory_is_refused() {
    let world = World::new(Compression::None);
    let nar = world.good.cache.nar_bytes(world.path());
    let large = zstd_with_a_window_of_2_gib(&nar);
    let mut decoder = zstd::Decoder::new(&large[..]).expect("a decoder");
    decoder.window_log_max(31).expect("allowed");
    let mut decoded = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut decoded).expect("a valid file, but for its window");
    assert_eq!(decoded, nar);
    World::new(Compression::Zstd).refuses_file(&large, "a zstd window of 2 GiB");

    let world = World::new(Compression::Xz);
    let large = xz_with_a_dictionary_of_4_gib(&world.good.cache.nar_bytes(world.path()));
    world.refuses_file(&large, "an xz dictionary of 4 GiB");
}

#[test]
fn an_upstream_that_stalls_is_left_for_the_next() {
    let world = World::new(Compression::Xz);
    world.refuses_answers(Fault::Silence, true);
    world.refuses_answers(Fault::Drip, false);
}

#[test]
fn an_upstream_that_refuses_the_nar_is_left_for_the_next_before_the_client_sees_a_byte() {
    let world = World::new(Compression::Xz);
    for fault in [
        Fault::Status(404),
        Fault::Status(403),
        Fault::Status(429),
        Fault::Status(500),
        Fault::Status(503),
        Fault::CloseEarly,
    ] {
        world.refuses_answers(fault, true);
    }
}

#[test]
fn a_body_that_is_said_to_be_encoded_once_more_is_never_taken_for_another() {
    let world = World::new(Compression::None);
    let encoded = world.twin();
    encoded.server.fault("/nar/", Fault::Encoded("gzip".into()));
    // Refused, or the right bytes: the test is within.
    let _ = world.get(&world.behind(&[&encoded]), false);
}

// Redirects.

#[test]
fn a_redirect_is_followed_within_the_upstream_and_not_for_ever() {
    let world = World::new(Compression::Xz);
    let file = Arc::new(world.good.cache.nar_bytes(world.path()));
    for (hops, followed) in [(1, true), (5, true), (6, false)] {
        let upstream = world.twin();
        upstream.server.fault("/nar/", Fault::Redirect("/hop-1".into()));
        for hop in 1..hops {
            upstream.server.fault(&format!("/hop-{hop}"), Fault::Redirect(format!("/hop-{}", hop + 1)));
        }
        upstream.server.fault(&format!("/hop-{hops}"), Fault::Instead(file.clone()));
        let got = world.get(&world.behind(&[&upstream]), false);
        assert_eq!(got == Got::Right, followed, "{hops} hops");
    }
}

#[test]
fn a_redirect_that_leads_to_itself_is_left_for_the_next_upstream() {
    let world = World::new(Compression::Xz);
    let address = field(&world.good.cache.narinfo(world.path()), "URL").to_owned();
    world.refuses_answers(Fault::Redirect(format!("/{address}")), true);
}

#[test]
fn a_redirect_that_leads_astray_is_refused() {
    let world = World::new(Compression::Xz);
    let trap = FileServer::new(world.good.cache.folder());
    let nar = field(&world.good.cache.narinfo(world.path()), "URL").to_owned();
    let port = trap.url().rsplit(':').next().expect("a port").to_owned();
    for to in [
        format!("http://169.254.169.254/{nar}"),
        format!("http://[fe80::1]/{nar}"),
        format!("http://127.0.0.1:{port}/{nar}"),
        format!("http://127.1.2.3:{port}/{nar}"),
        format!("http://localhost:{port}/{nar}"),
        format!("http://[::1]:{port}/{nar}"),
        format!("http://0.0.0.0:{port}/{nar}"),
        format!("//127.0.0.1:{port}/{nar}"),
        format!("file://{}", world.good.cache.nar_file(world.path()).display()),
        "ftp://127.0.0.1/nar".to_owned(),
        "gopher://127.0.0.1/nar".to_owned(),
        "http://".to_owned(),
    ] {
        // One leads astray when asked for the narinfo, the other when asked for the NAR.
        let [first, second] = [world.twin(), world.twin()];
        first.server.fault(".narinfo", Fault::Redirect(to.clone()));
        second.server.fault("/nar/", Fault::Redirect(to.clone()));
        assert_eq!(world.get(&world.behind(&[&first, &second]), false), Got::Missing, "{to}");
        assert_eq!(trap.seen().len(), 0, "{to} was followed");
    }
}
