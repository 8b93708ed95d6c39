//! Faults of NARs of another cache, one after the other: no client gets a complete body that is wrong,
//! nothing wrong is kept, and where a second cache has the path, its bytes are delivered.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::addresses::{field, narinfo_address};
use crate::support::upstream::bombs::{
    bomb, xz_with_a_dictionary_of_4_gib, zstd_bomb, zstd_with_a_window_of_2_gib,
};
use crate::support::upstream::{counted, settings_file, stored_nars};
use crate::support::{
    BinaryCache, Client, Compression, Daemon, Derivation, Ending, Fault, FileServer, Http, NixStore, Ondine,
    Release, Upstream, text, wait_until,
};
use narinfo::NarHash;
use sha2::{Digest, Sha256};

/// Memory that all hostile files of a test together may cost the server, in bytes.
const MEMORY_MAX: u64 = 64 << 20;
/// Bytes that the server may have taken of a body that has no end; the buffers of two sockets are among them.
const TAKEN_MAX: u64 = 32 << 20;
/// Lines of every upstream here: a test need not wait for long.
const HASTE: &str = "connect-timeout = \"1s\"\nstall-timeout = \"1s\"\n";
/// The time in which a spoilt NAR must be given up, with all that is tried again.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(15);

/// Bytes of a path whose file is spoilt: more than what is read at a time.
const LARGE_BYTES: usize = 300_000;
/// Bytes of one whose file is as it should be.
const SMALL_BYTES: usize = 40_000;

/// A fault of a NAR.
enum Spoilt {
    /// The answer of the server, so that the first who asks gets another upstream's bytes or a 404.
    BeforeAnyByte(Fault),
    /// The answer of the server.
    Answer(Fault),
    /// The file, made from the right one.
    File(&'static str, fn(&[u8]) -> Vec<u8>),
}

use Spoilt::{Answer, BeforeAnyByte, File};

/// A spoilt upstream with two paths, one of which the good upstream has, too.
struct Row {
    said: String,
    spoilt: Upstream,
    what: Spoilt,
    lonely: PathBuf,
    shared: PathBuf,
}

/// A server with a spoilt upstream for each row, and after them one that is as it should be.
struct World {
    store: NixStore,
    _daemon: Daemon,
    rows: Vec<Row>,
    good: Upstream,
}

/// A client's part of a NAR.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    /// The right bytes, and their end.
    Right,
    /// A 404, for the narinfo or for the NAR.
    Missing,
    /// A body that was cut.
    Cut,
}

/// Asks for the narinfo, then for the NAR in the form of the narinfo or plain. A whole NAR must be the one
/// promised.
fn get(ondine: &Ondine, path: &Path, nar_hash: &str, plain: bool) -> Got {
    let http = Http::new(&ondine.url());
    let narinfo = http.get(&narinfo_address(path));
    if narinfo.status == 404 {
        return Got::Missing;
    }
    assert_eq!((narinfo.status, field(&narinfo.text(), "NarHash")), (200, nar_hash));
    let address = format!("/{}", field(&narinfo.text(), "URL"));
    let address = if plain { address.trim_end_matches(".zst") } else { &address };
    // Where the body breaks off at once, not even the headers need come.
    let Ok(mut answer) = http.try_open(address, &[]) else { return Got::Cut };
    if answer.status == 404 {
        return Got::Missing;
    }
    let (body, ending) = answer.read_to_end();
    if ending != Ending::Complete {
        return Got::Cut;
    }
    let nar = if plain {
        body
    } else {
        zstd::decode_all(&body[..]).expect("a body that ended well is a zstd file")
    };
    assert_eq!(
        (answer.status, &*NarHash::from_bytes(Sha256::digest(&nar).into()).to_string()),
        (200, nar_hash)
    );
    Got::Right
}

/// One derivation with so many outputs of so many bytes that do not compress, no two alike.
fn noises(count: usize, bytes: usize) -> Derivation {
    let outputs: Vec<String> = (0..count).map(|number| format!("o{number}")).collect();
    let script = format!("for output in $outputs; do perl -e '
        my ($state) = unpack \"N\", pack \"H8\", substr(shift, 0, 8);
        for (1 .. {words}) {{ $state = ($state * 1664525 + 1013904223) & 0xffffffff; print pack \"N\", $state ^ ($state >> 15); }}
    ' $(printf '%s' \"$output\" | md5sum) > \"${{!output}}\"; done", words = bytes / 4);
    Derivation::new("noise", &script).outputs(&outputs.iter().map(String::as_str).collect::<Vec<_>>())
}

impl World {
    fn new(rows: Vec<(Compression, Spoilt)>) -> World {
        let store = NixStore::new(Release::Host);
        let files = rows.iter().any(|(_, what)| matches!(what, File(..)));
        let noises = noises(2 * rows.len(), if files { LARGE_BYTES } else { SMALL_BYTES });
        let drv = store.nix_instantiate(&noises.to_nix()).swap_remove(0);
        store.realise(&drv);
        let paths = store.nix_store(&["--query", "--outputs", text(&drv)]);
        let paths: Vec<&Path> = paths.lines().map(Path::new).collect();
        let good = BinaryCache::empty("upstream-1");
        for compression in Compression::ALL {
            let in_it = rows.iter().zip(paths.chunks(2)).filter(|((wanted, _), _)| *wanted == compression);
            let in_it: Vec<&Path> = in_it.flat_map(|(_, paths)| paths).copied().collect();
            if !in_it.is_empty() {
                good.add(&store, compression, &in_it);
            }
        }
        let rows: Vec<Row> = rows
            .into_iter()
            .zip(paths.chunks(2))
            .map(|((compression, what), own)| {
                let spoilt = good.twin();
                paths.iter().filter(|path| !own.contains(path)).for_each(|path| spoilt.forget(path));
                let spoilt = Upstream::of(spoilt);
                let said = what.spoil(&spoilt, compression, own);
                let [lonely, shared] = [0, 1].map(|number| own[number].to_owned());
                Row { said, spoilt, what, lonely, shared }
            })
            .collect();
        rows.iter().for_each(|row| good.forget(&row.lonely));
        store.gc();
        World { _daemon: store.daemon(), store, rows, good: Upstream::of(good) }
    }

    /// A server with these upstreams, the first preferred.
    fn behind(&self, upstreams: &[&Upstream]) -> Ondine {
        let numbered = upstreams.iter().enumerate();
        let tables: Vec<_> = numbered
            .map(|(number, upstream)| upstream.table(&format!("{HASTE}priority = {number}")))
            .collect();
        let settings = settings_file(&self.store, &tables);
        // What does not pass need not be waited out.
        Ondine::start(&self.store, &["--config", &settings, "--transient-retry", "1s"])
    }

    /// The promise about a spoilt NAR: where nobody else has it, it reaches nobody whole and is not kept;
    /// where another upstream has it, that one's bytes are delivered, at the latest to whoever asks again.
    fn refuses(&self) {
        let mut upstreams: Vec<&Upstream> = self.rows.iter().map(|row| &row.spoilt).collect();
        upstreams.push(&self.good);
        let ondine = self.behind(&upstreams);
        let idle = ondine.rss_bytes();
        let told = |what: &str| counted(&ondine, what, &["failed", "refused", "missing"]);
        for Row { said, spoilt, what, lonely, shared } in &self.rows {
            let at_once = matches!(what, BeforeAnyByte(_));
            // What breaks off on its way does so for all forms alike, and takes its time.
            let forms: &[bool] = if matches!(what, Answer(_)) { &[false] } else { &[false, true] };
            let before = told("nars");
            let of = |path: &Path| field(&spoilt.cache.narinfo(path), "NarHash").to_owned();
            let got: Vec<Got> = (0..3).map(|_| get(&ondine, shared, &of(shared), false)).collect();
            assert_eq!(got[2], Got::Right, "{said}: {got:?}");
            assert!(!at_once || got[0] == Got::Right, "{said}: {got:?}");
            for &plain in forms {
                let begun = Instant::now();
                let got = get(&ondine, lonely, &of(lonely), plain);
                assert_ne!(got, Got::Right, "{said}, plain {plain}");
                assert!(
                    !at_once || got == Got::Missing,
                    "{said}, plain {plain}: cut, though no byte was good"
                );
                assert!(begun.elapsed() < GIVEN_UP_WITHIN, "{said}: {:?}", begun.elapsed());
            }
            assert!(told("nars") > before + 1, "{said}: not counted");
        }
        wait_until("nothing is kept but what is right", Duration::from_secs(5), || {
            let stored = stored_nars(&ondine);
            stored.len() == self.rows.len() && stored.iter().all(|file| !file.starts_with("tmp/"))
        });
        assert!(ondine.peak_rss_bytes() < idle + MEMORY_MAX, "{} from {idle}", ondine.peak_rss_bytes());
        let client = Client::new(Release::Host, &self.store.store_dir());
        let shared: Vec<&Path> = self.rows.iter().map(|row| &*row.shared).collect();
        client.fetch(&ondine.substituter(), &shared).must_succeed();
        assert!(shared.iter().all(|path| client.has(path)));
    }
}

impl Spoilt {
    /// Spoils the NARs of these paths, and says how.
    fn spoil(&self, upstream: &Upstream, compression: Compression, paths: &[&Path]) -> String {
        match self {
            BeforeAnyByte(fault) | Answer(fault) => {
                upstream.server.fault("/nar/", fault.clone());
                format!("{fault:.100?}")
            }
            File(what, change) => {
                for path in paths {
                    upstream.cache.replace_nar(path, &change(&upstream.cache.nar_bytes(path)));
                    for named in ["FileSize", "FileHash"] {
                        // What a client need not believe must not be what saves us.
                        upstream.cache.remove(path, named);
                    }
                }
                format!("{what}, {compression:?}")
            }
        }
    }
}

/// The same fault in every compression but none.
fn compressed(spoilt: impl Fn() -> Spoilt) -> Vec<(Compression, Spoilt)> {
    let compressions = Compression::ALL.into_iter().filter(|compression| *compression != Compression::None);
    compressions.map(|compression| (compression, spoilt())).collect()
}

fn flipped(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let middle = file.len() / 2;
    file[middle] ^= 0x55;
    file
}

fn half(file: &[u8]) -> Vec<u8> {
    file[..file.len() / 2].to_vec()
}

#[test]
fn a_nar_with_another_hash_reaches_nobody() {
    let file = |said, change| (Compression::None, File(said, change));
    let rows = vec![
        file("a byte is wrong", flipped),
        file("eight bytes too many", |file| [file, &[0; 8]].concat()),
        file("half of it", half),
        file("twice", |file| file.repeat(2)),
        file("no NAR", |_| b"<html>Please log in</html>".to_vec()),
        file("nothing", |_| Vec::new()),
    ];
    World::new(rows).refuses();
}

#[test]
fn a_damaged_file_reaches_nobody_in_any_compression() {
    let mut rows = compressed(|| File("a byte is wrong", flipped));
    rows.extend(compressed(|| File("half of it", half)));
    rows.push((Compression::Xz, File("no xz file", |_| b"<html>Please log in</html>".to_vec())));
    World::new(rows).refuses();
}

#[test]
fn a_nar_that_was_cut_off_reaches_nobody() {
    let faults = [
        Fault::Cut(1000),
        Fault::ChunksCut(1000),
        Fault::ChunksEnd(1000),
        Fault::CloseEnds(1000),
        Fault::ShortLength(1000),
    ];
    let mut rows: Vec<_> = faults.map(|fault| (Compression::Xz, Answer(fault))).into();
    rows.push((Compression::None, Answer(Fault::ChunksEnd(1000))));
    World::new(rows).refuses();
}

#[test]
fn a_body_without_end_is_left() {
    for (compression, sized) in
        [(Compression::Xz, true), (Compression::Xz, false), (Compression::None, false)]
    {
        let world = World::new(vec![(compression, Answer(Fault::Endless))]);
        let Row { spoilt: endless, lonely, .. } = &world.rows[0];
        if !sized {
            endless.cache.remove(lonely, "FileSize");
        }
        let ondine = world.behind(&[endless]);
        let idle = ondine.rss_bytes();
        // All that is right comes first, so the right bytes may be delivered; nothing else, and not for ever.
        get(&ondine, lonely, field(&endless.cache.narinfo(lonely), "NarHash"), false);
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
    World::new(vec![
        (Compression::Xz, File("a bomb", |_| bomb("xz"))),
        (Compression::Bzip2, File("a bomb", |_| bomb("bzip2"))),
        (Compression::Gzip, File("a bomb", |_| bomb("gzip"))),
        (Compression::Zstd, File("a bomb", |_| zstd_bomb())),
    ])
    .refuses();
}

#[test]
fn a_file_that_asks_for_gigabytes_of_memory_is_refused() {
    World::new(vec![
        (Compression::Xz, File("a dictionary of 4 GiB", xz_with_a_dictionary_of_4_gib)),
        (Compression::Zstd, File("a window of 2 GiB", |file| zstd_with_a_window_of_2_gib(&nar_in(file)))),
    ])
    .refuses();
}

fn nar_in(file: &[u8]) -> Vec<u8> {
    zstd::decode_all(file).expect("a zstd file")
}

#[test]
fn that_file_would_be_right_for_whoever_has_the_memory() {
    // The control of the test above: nothing else is wrong with it.
    let nar = b"any bytes at all".repeat(20_000);
    let large = zstd_with_a_window_of_2_gib(&nar);
    let mut decoder = zstd::Decoder::new(&large[..]).expect("a decoder");
    decoder.window_log_max(31).expect("the largest there is");
    let mut decoded = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut decoded).expect("a valid file");
    assert_eq!(decoded, nar);
}

#[test]
fn an_upstream_that_stalls_is_left_for_the_next() {
    World::new(vec![
        (Compression::Xz, BeforeAnyByte(Fault::Silence)),
        (Compression::Xz, Answer(Fault::Drip)),
    ])
    .refuses();
}

#[test]
fn an_upstream_that_refuses_the_nar_is_left_for_the_next_before_the_client_sees_a_byte() {
    let mut faults: Vec<Fault> = [404, 403, 429, 500, 503].map(Fault::Status).into();
    faults.push(Fault::CloseEarly);
    World::new(faults.into_iter().map(|fault| (Compression::Xz, BeforeAnyByte(fault))).collect()).refuses();
}

#[test]
fn a_body_that_is_said_to_be_encoded_once_more_is_never_taken_for_another() {
    let world = World::new(vec![(Compression::None, Answer(Fault::Encoded("gzip".into())))]);
    let Row { spoilt, lonely, .. } = &world.rows[0];
    // Refused, or the right bytes: the test is within.
    get(&world.behind(&[spoilt]), lonely, field(&spoilt.cache.narinfo(lonely), "NarHash"), false);
}

// Redirects.

#[test]
fn a_redirect_is_followed_within_the_upstream_and_not_for_ever() {
    let hops = [(1, true), (5, true), (6, false)];
    let world = World::new(hops.map(|_| (Compression::Xz, Answer(Fault::Redirect("/hop-1".into())))).into());
    for ((hops, followed), Row { spoilt, lonely, .. }) in hops.into_iter().zip(&world.rows) {
        for hop in 1..hops {
            spoilt.server.fault(&format!("/hop-{hop}"), Fault::Redirect(format!("/hop-{}", hop + 1)));
        }
        let file = Arc::new(spoilt.cache.nar_bytes(lonely));
        spoilt.server.fault(&format!("/hop-{hops}"), Fault::Instead(file));
        let nar_hash = spoilt.cache.narinfo(lonely);
        let got = get(&world.behind(&[spoilt]), lonely, field(&nar_hash, "NarHash"), false);
        assert_eq!(got == Got::Right, followed, "{hops} hops");
    }
}

#[test]
fn a_redirect_that_leads_astray_is_refused() {
    let trap_folder = support::store::Folder::new();
    let trap = FileServer::new(trap_folder.path().to_owned());
    let port = trap.url().rsplit(':').next().expect("a port").to_owned();
    let astray = [
        "http://169.254.169.254/nar".to_owned(),
        "http://[fe80::1]/nar".to_owned(),
        format!("http://127.0.0.1:{port}/nar"),
        format!("http://127.1.2.3:{port}/nar"),
        format!("http://localhost:{port}/nar"),
        format!("http://[::1]:{port}/nar"),
        format!("http://[::ffff:127.0.0.1]:{port}/nar"),
        format!("http://0.0.0.0:{port}/nar"),
        format!("//127.0.0.1:{port}/nar"),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/nar".to_owned(),
        "http://".to_owned(),
        // To itself, for ever.
        String::new(),
    ];
    let rows = astray.clone().map(|to| (Compression::Xz, BeforeAnyByte(Fault::Redirect(to))));
    let world = World::new(rows.into());
    world.refuses();
    // A narinfo is not looked for there either.
    for row in &world.rows {
        row.spoilt.server.mend();
    }
    for (to, row) in astray.iter().zip(&world.rows) {
        row.spoilt.server.fault(".narinfo", Fault::Redirect(to.clone()));
    }
    let ondine = world.behind(&world.rows.iter().map(|row| &row.spoilt).collect::<Vec<_>>());
    for row in &world.rows {
        assert_eq!(get(&ondine, &row.lonely, "", false), Got::Missing, "{}", row.said);
    }
    assert_eq!(trap.seen().len(), 0, "{:?}", trap.seen());
}
