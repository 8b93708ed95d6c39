//! Very many clients at once, each with a connection of its own, who ask for the same path and wait. They are
//! driven by one thread, so that the machine is the server's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use ureq::http::HeaderMap;

use super::addresses::narinfo_address;
use super::cache::Cache;
use super::cache::assert_narinfo;
use super::http::Response;
use super::process::wait_until;

/// Time limit until all clients wait, and until all are answered.
const LIMIT: Duration = Duration::from_secs(120);

/// Descriptors that a process needs besides one for each client.
const DESCRIPTORS_BESIDE: u64 = 200;

/// Costs of a crowd: the server's memory, and time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The server's memory before anyone asked.
    pub idle_bytes: u64,
    /// The most memory it had.
    pub peak_bytes: u64,
    /// From the opening of the build's gate to the last byte of the last answer.
    pub since_open: Duration,
    /// From the moment the server said that it is built.
    pub since_built: Duration,
}

/// A crowd of so many waits for one build behind a gate, past the hold. Each gets the whole narinfo, or the
/// test fails.
#[track_caller]
pub fn waits_for_one_build(size: usize) -> Seen {
    let cache = Cache::new(&["--hold", "1s", "--keep-alive-interval", "5s"]);
    let gate = cache.store.gate();
    let wanted = cache.gated("wanted", &gate);
    let idle_bytes = cache.ondine.rss_bytes();
    let crowd = Crowd::ask(cache.ondine.address(), wanted.out(), size);
    wait_until("all hear that they wait", LIMIT, || crowd.told() == size);
    gate.open();
    let opened = Instant::now();
    wait_until("the server says that it is built", LIMIT, || cache.ondine.log().contains(": built "));
    let built = Instant::now();
    let answers = crowd.answers();
    assert_eq!(answers.len(), size);
    for answer in &answers {
        let response = answer.response.as_ref().expect("an answer was cut");
        assert_narinfo(response, wanted.out());
    }
    assert_eq!(gate.starts(), ["wanted"]);
    let last = answers.iter().map(|answer| answer.at).max().expect("there are some");
    Seen {
        idle_bytes,
        peak_bytes: cache.ondine.peak_rss_bytes(),
        since_open: last - opened,
        since_built: last - built,
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Seen { idle_bytes, peak_bytes, since_open, since_built } = self;
        write!(
            out,
            "{:.1} MiB at most, {:.1} MiB when idle; the last answer {since_open:.2?} after the gate opened, \
             {since_built:.2?} after the server said that it is built",
            mib(*peak_bytes),
            mib(*idle_bytes),
        )
    }
}

/// Clients under way.
pub struct Crowd {
    /// Number of clients that have heard that they wait.
    told: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Answered>>,
}

/// One client's answer.
pub struct Answered {
    /// The answer, if it was a 200 that came to its end; without its headers.
    pub response: Option<Response>,
    /// Arrival of its last byte.
    pub at: Instant,
}

impl Crowd {
    /// So many clients, who ask the server at `address` for the narinfo of `path`.
    #[track_caller]
    pub fn ask(address: &str, path: &Path, size: usize) -> Crowd {
        raise_descriptor_limit(size);
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", narinfo_address(path));
        let (address, told) = (address.to_owned(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&told);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut clients = JoinSet::new();
                for _ in 0..size {
                    // One after the other: a listener's backlog is shorter than this.
                    let stream = TcpStream::connect(&address).await.expect("the server accepts");
                    clients.spawn(client(stream, request.clone(), Arc::clone(&counter)));
                }
                clients.join_all().await
            })
        });
        Crowd { told, thread }
    }

    /// Number of clients that have heard that they wait.
    pub fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    /// All their answers.
    #[track_caller]
    pub fn answers(self) -> Vec<Answered> {
        wait_until("all are answered", LIMIT, || self.thread.is_finished());
        self.thread.join().expect("all were answered")
    }
}

async fn client(mut stream: TcpStream, request: String, told: Arc<AtomicUsize>) -> Answered {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let (mut answer, mut waits) = (Vec::new(), false);
    // As clients do, it leaves the connection open for more.
    while !answer.ends_with(b"\r\n0\r\n\r\n") && stream.read_buf(&mut answer).await.expect("an answer") > 0 {
        if !waits && contains(&answer, b"X-Ondine-Wait: ") {
            waits = true;
            told.fetch_add(1, Ordering::Relaxed);
        }
    }
    let at = Instant::now();
    let response = whole_body(&answer).map(|body| Response { status: 200, headers: HeaderMap::new(), body });
    Answered { response, at }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The body of an answer 200 in chunks, if its last chunk is there.
fn whole_body(answer: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, mut rest) = text.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    let mut body = Vec::new();
    loop {
        let (length, chunks) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return (chunks == "\r\n").then_some(body);
        }
        body.extend_from_slice(chunks.get(..length)?.as_bytes());
        rest = chunks.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// Lets this process, and those it starts from here on, hold a connection for each of so many clients.
#[track_caller]
pub fn raise_descriptor_limit(clients: usize) {
    let wanted = clients as u64 + DESCRIPTORS_BESIDE;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).unwrap_or_else(|error| {
            panic!("{clients} clients need a limit of {wanted} open files (ulimit -Hn {wanted}): {error}")
        });
    }
}
