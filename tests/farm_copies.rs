//! Copies of large inputs to a builder, over several connections: all of them arrive, whatever becomes of one
//! of the connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::builder::{note_start, settings};
use crate::support::cache::assert_narinfo;
use crate::support::derivations::noise;
use crate::support::{Builder, Cache, Derivation, NixStore, Release};

/// Bytes that are passed on at a time, and the pause after each: others connect while there is more to copy.
const PIECE_BYTES: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(16);
/// The connection that is cut, and the bytes from the server after which it is.
const CUT_CONNECTION: usize = 2;
const CUT_AFTER_BYTES: usize = 2 << 20;

/// A slow network between a server and an sshd.
struct SlowNetwork {
    port: u16,
    connections: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
}

impl SlowNetwork {
    /// One that leads to this port. With `cuts`, one connection breaks.
    fn new(to: u16, cuts: bool) -> SlowNetwork {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let network = SlowNetwork { port, connections: Arc::default(), cuts: Arc::default() };
        let (connections, cut) = (Arc::clone(&network.connections), Arc::clone(&network.cuts));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let double = |stream: &TcpStream| stream.try_clone().expect("a descriptor can be doubled");
                let (from, back, cut) = (double(&client), double(&server), Arc::clone(&cut));
                let limit = if cuts && number == CUT_CONNECTION { CUT_AFTER_BYTES } else { usize::MAX };
                std::thread::spawn(move || {
                    if pass(from, server, limit) > limit {
                        cut.fetch_add(1, Ordering::SeqCst);
                    }
                });
                std::thread::spawn(move || pass(back, client, usize::MAX));
            }
        });
        network
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

/// Passes one direction on until it ends, or has come to more bytes than that. Gives their number.
fn pass(mut from: TcpStream, mut to: TcpStream, limit: usize) -> usize {
    let (mut piece, mut passed) = (vec![0; PIECE_BYTES], 0);
    while passed <= limit
        && let Ok(bytes @ 1..) = from.read(&mut piece)
        && to.write_all(&piece[..bytes]).is_ok()
    {
        passed += bytes;
        if bytes == PIECE_BYTES {
            std::thread::sleep(PAUSE);
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
    passed
}

/// Fifty megabytes in eight paths, most of which refer to others.
fn large_inputs() -> Vec<Derivation> {
    let refers = |name: &str, to: &[&Derivation]| {
        let mut derivation = Derivation::new(
            name,
            "mkdir $out\nhead -c 6000000 /dev/urandom > noise\ncp noise $out\necho $a $b > $out/refers",
        );
        for (variable, input) in ["a", "b"].iter().zip(to) {
            derivation = derivation.input(variable, input);
        }
        derivation
    };
    let (base, apart) = (noise("base", 7_000_000), noise("apart", 8_000_000));
    let one = refers("one", &[&base]);
    let two = refers("two", &[&one, &apart]);
    let more = ["c", "d", "e"].map(|name| refers(name, &[&base]));
    let top = refers("large", &[&two, &more[0]]);
    [base, apart, one, two, top].into_iter().chain(more).collect()
}

#[test]
fn large_inputs_are_copied_over_several_connections_and_arrive_also_where_one_breaks() {
    let releases = Release::all();
    for (release, cuts) in [(&releases[0], true), (&releases[releases.len() - 1], false)] {
        let store = NixStore::new(Release::Host);
        let starts = store.folder().join("starts");
        let builder = Builder::start(&store, release, "far");
        let network = SlowNetwork::new(builder.port(), cuts);
        let inputs = large_inputs();
        let made: Vec<_> = inputs.iter().map(|input| store.instantiate(input)).collect();
        for input in &made {
            store.realise(&input.drv);
            store.root(input.out());
        }
        let script = format!("{}cat $i2/refers $i3/refers > $out", note_start(&store, &starts, "top"));
        let numbered = inputs.iter().enumerate();
        let top = numbered.fold(Derivation::new("top", &script), |top, (number, input)| {
            top.input(&format!("i{number}"), input)
        });
        let top = store.instantiate(&top);
        let file = settings(&store, &format!("lanes = 0\n{}", builder.table_at(network.port, "")));
        let cache = Cache::of(store, &["--config", &file], &[]);
        assert_narinfo(&cache.ask(top.out()), top.out());
        let name = release.name();
        for input in &made {
            assert!(builder.has(input.out()), "{name}: {}", input.out().display());
        }
        assert!(network.connections() >= 3, "{name}: {} connections", network.connections());
        assert_eq!(network.cuts(), usize::from(cuts), "{name}");
        let lost = cache.ondine.log().contains("lost a connection that copies inputs");
        assert_eq!(lost, cuts, "{name}: {}", cache.ondine.log());
        let starts = std::fs::read_to_string(&starts).expect("it was built");
        assert_eq!(starts, "top far\n", "{name}: the build itself has lost nothing");
    }
}
