//! Copies to a builder by one connection or several, over the loopback interface and over one with a delay:
//! whether several connections copy inputs faster than the one stream that the server uses.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use narinfo::{ContentAddress, NarHash, PathInfo, StoreDir};
use ondine::nix::{DaemonAddress, NarChunks, Options, Pool, SshMachine};
use sha2::{Digest, Sha256};

use super::support::{Builder, NixStore, Release, text};

/// Paths of a copy, and the bytes of each.
const PATHS: usize = 16;
const PATH_BYTES: u64 = 6 << 20;
/// Bytes that are read at a time by the delay.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks under way in one direction: more than any window has.
const CHUNKS_MAX: usize = 4096;
const CONNECTIONS: [usize; 3] = [1, 2, 4];
/// Delays of a round trip.
pub const DELAYS_MS: [u64; 2] = [0, 40];

/// A path that no store has, and its NAR.
struct Sample {
    info: PathInfo,
    nar: Bytes,
}

/// A NAR in one piece.
struct Whole(Option<Bytes>);

impl NarChunks for Whole {
    async fn next_chunk(&mut self) -> std::io::Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

impl Sample {
    fn new(store: &NixStore, number: usize) -> Sample {
        let file = store.folder().join("sample");
        let mut random = std::fs::File::open("/dev/urandom").expect("there").take(PATH_BYTES);
        std::io::copy(&mut random, &mut std::fs::File::create(&file).expect("made")).expect("written");
        let mut nar = Vec::new();
        narinfo::nar::dump(&file, &mut nar).expect("a file has a NAR");
        let nar_hash = NarHash::from_bytes(Sha256::digest(&nar).into());
        let ca: ContentAddress =
            format!("fixed:r:sha256:{}", nar_hash.to_nixbase32()).parse().expect("a content address");
        let store_dir = StoreDir::new(text(&store.store_dir())).expect("a store");
        let path = ca.path(&store_dir, &format!("sample-{number}"), []).expect("a name");
        let info = PathInfo {
            path,
            nar_hash,
            nar_size: nar.len() as u64,
            references: [].into(),
            deriver: None,
            ca: Some(ca),
            signatures: Vec::new(),
        };
        Sample { info, nar: nar.into() }
    }
}

/// Seconds of a copy by each number of connections, for each delay.
pub fn seconds() -> Vec<(u64, Vec<(usize, f64)>)> {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let store = NixStore::new(Release::Host);
    let builder = Builder::start(&store, &Release::Host, "far");
    let by_connections = |delay_ms: u64| {
        let pool = pool(&store, &builder, delay_ms);
        let copy = |connections: usize| {
            let samples = (0..PATHS).map(|number| Sample::new(&store, number)).collect();
            (connections, runtime.block_on(copied(&pool, samples, connections)).as_secs_f64())
        };
        // The first one warms both sides up.
        copy(1);
        CONNECTIONS.into_iter().map(copy).collect()
    };
    DELAYS_MS.into_iter().map(|delay| (delay, by_connections(delay))).collect()
}

/// Megabytes of a copy.
pub fn megabytes() -> u64 {
    (PATHS as u64 * PATH_BYTES) >> 20
}

/// Connections to a builder, each byte of which takes half of this time.
fn pool(store: &NixStore, builder: &Builder, delay_ms: u64) -> Pool {
    let (port, known_hosts) = match delay_ms {
        0 => (builder.port(), builder.known_hosts()),
        _ => {
            let port = delayed(builder.port(), Duration::from_millis(delay_ms) / 2);
            let known = std::fs::read_to_string(builder.known_hosts()).expect("it was written");
            let file: PathBuf = store.folder().join("known-hosts");
            std::fs::write(&file, known.replace(&builder.port().to_string(), &port.to_string()))
                .expect("written");
            (port, file)
        }
    };
    let machine = SshMachine {
        target: format!("root@127.0.0.1:{port}").parse().expect("a login"),
        key_file: Some(builder.key_file()),
        known_hosts: Some(known_hosts),
        remote_program: "nix-daemon".to_owned(),
        store_dir: StoreDir::new(text(&store.store_dir())).expect("a store"),
        operation_timeout: Duration::from_secs(600),
    };
    Pool::new(DaemonAddress::Ssh(machine), Options::default())
}

/// Time until all are valid there.
async fn copied(pool: &Pool, samples: Vec<Sample>, connections: usize) -> Duration {
    let mut lanes: Vec<Vec<Sample>> = (0..connections).map(|_| Vec::new()).collect();
    for (number, sample) in samples.into_iter().enumerate() {
        lanes[number % connections].push(sample);
    }
    let mut open = Vec::new();
    for lane in lanes {
        open.push((pool.get_fresh().await.expect("the builder answers"), lane));
    }
    let begun = Instant::now();
    let mut copies = tokio::task::JoinSet::new();
    for (mut daemon, lane) in open {
        copies.spawn(async move {
            let mut additions = daemon.begin_additions(lane.len()).await.expect("begun");
            for Sample { info, nar } in lane {
                additions.add(&info, Whole(Some(nar))).await.expect("sent");
            }
            additions.finish().await.expect("added");
            daemon.discard();
        });
    }
    copies.join_all().await;
    begun.elapsed()
}

/// Port that leads to another one with a delay of each byte, for as long as the program runs.
fn delayed(to: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(("127.0.0.1", to)).expect("sshd listens");
            for stream in [&client, &server] {
                stream.set_nodelay(true).expect("a TCP stream");
            }
            let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
            pass(clone(&client), clone(&server), delay);
            pass(server, client, delay);
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, chunks) = mpsc::sync_channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read) = from.read(&mut buffer)
            && read > 0
            && sender.send((Instant::now() + delay, buffer[..read].to_vec())).is_ok()
        {}
    });
    thread::spawn(move || {
        for (due, chunk) in chunks {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
