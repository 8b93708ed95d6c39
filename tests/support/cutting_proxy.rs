//! A TCP proxy between a client and the server that cuts the first answer with a NAR after a number of bytes,
//! as a bad network would. It passes everything else on unchanged and remembers which requests for NARs it
//! saw.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::cache::Cache;
use super::client::{Client, Substituter};

/// The proxy; its threads end with the connections they serve.
pub struct CuttingProxy {
    url: String,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    /// Bytes of the first answer with a NAR that are passed on; `None` once it was cut.
    cut_after: Option<usize>,
    requests: Vec<String>,
}

impl CuttingProxy {
    /// A proxy for the server at `server`, such as `127.0.0.1:8080`.
    #[track_caller]
    pub fn new(server: &str, cut_after: usize) -> CuttingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let shared = Arc::new(Mutex::new(Shared { cut_after: Some(cut_after), requests: Vec::new() }));
        let (server, of_threads) = (server.to_owned(), shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&server) else { continue };
                pass_on(client, server, &of_threads);
            }
        });
        CuttingProxy { url, shared }
    }

    /// Its URL, for clients.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// True if the answer was cut.
    pub fn has_cut(&self) -> bool {
        lock(&self.shared).cut_after.is_none()
    }

    /// The heads of all requests for NARs, in order.
    pub fn nar_requests(&self) -> Vec<String> {
        lock(&self.shared).requests.clone()
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().expect("nothing panics with the proxy's memory locked")
}

/// Joins the two ends with a thread for each direction.
fn pass_on(client: TcpStream, server: TcpStream, shared: &Arc<Mutex<Shared>>) {
    let double = |stream: &TcpStream| stream.try_clone().expect("a descriptor can be doubled");
    // Whether the answer that comes next on this connection has a NAR: clients do not pipeline.
    let nar_next = Arc::new(Mutex::new(false));
    let (from, to) = (double(&client), double(&server));
    let (asking, requests) = (nar_next.clone(), shared.clone());
    std::thread::spawn(move || pass_requests(from, to, &asking, &requests));
    let shared = shared.clone();
    std::thread::spawn(move || pass_answers(server, client, &nar_next, &shared));
}

fn pass_requests(
    mut client: TcpStream,
    mut server: TcpStream,
    nar_next: &Mutex<bool>,
    shared: &Mutex<Shared>,
) {
    let mut head = Vec::new();
    let mut byte = [0];
    while let Ok(1) = client.read(&mut byte) {
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head).into_owned();
            let nar = text.starts_with("GET /nar/");
            *nar_next.lock().expect("nothing panics with this locked") = nar;
            if nar {
                lock(shared).requests.push(text);
            }
            if server.write_all(&head).is_err() {
                break;
            }
            head.clear();
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

fn pass_answers(
    mut server: TcpStream,
    mut client: TcpStream,
    nar_next: &Mutex<bool>,
    shared: &Mutex<Shared>,
) {
    let mut piece = vec![0; 16 * 1024];
    let mut passed = 0;
    while let Ok(length @ 1..) = server.read(&mut piece) {
        let mut length = length;
        let mut cut = false;
        if *nar_next.lock().expect("nothing panics with this locked") {
            let mut shared = lock(shared);
            if let Some(limit) = shared.cut_after {
                if passed + length >= limit {
                    length = limit - passed;
                    cut = true;
                    shared.cut_after = None;
                }
                passed += length;
            }
        }
        if client.write_all(&piece[..length]).is_err() || cut {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

/// A stock client that fetched a path, its first NAR cut after so many bytes: it must have resumed by Range.
#[track_caller]
pub fn client_that_resumed(cache: &Cache, path: &Path, cut_after: usize) -> Client {
    let proxy = CuttingProxy::new(cache.ondine.address(), cut_after);
    let through = Substituter { url: proxy.url(), public_key: cache.ondine.public_key().to_owned() };
    let client = cache.client(&[]);
    client.fetch(&through, &[path]).must_succeed();
    assert!(proxy.has_cut(), "nothing was cut");
    let requests = proxy.nar_requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let resumed = requests[1].to_lowercase();
    let from = resumed.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let from: usize =
        from.and_then(|from| from.parse().ok()).unwrap_or_else(|| panic!("no range: {resumed}"));
    assert!(0 < from && from <= cut_after, "resumed at {from}");
    client
}
