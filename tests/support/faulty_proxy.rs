//! A TCP proxy before an object store that fails on demand: it answers 503, hangs, is slow, or cuts uploads
//! or downloads in the middle.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes that are passed on at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Fault of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketFault {
    /// Nothing.
    None,
    /// Every request is answered with 503.
    Unavailable,
    /// Requests are taken and never answered.
    Hanging,
    /// A pause of this length follows each 16 KiB of a request or an answer.
    Slow(Duration),
    /// Answers of a connection are cut after so many bytes.
    CutDownloads(usize),
    /// Requests of a connection are cut after so many bytes.
    CutUploads(usize),
    /// Connections are cut once a request for such a thing comes: its first line has this in it.
    Refuse(&'static str),
}

/// The proxy; its threads end with the connections they serve.
pub struct FaultyProxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    fault: Mutex<BucketFault>,
    requests: AtomicUsize,
    cuts: AtomicUsize,
    /// First lines of all requests.
    lines: Mutex<Vec<String>>,
}

impl FaultyProxy {
    /// A proxy for the server at `server`, such as `127.0.0.1:8080`, which does nothing wrong yet.
    #[track_caller]
    pub fn new(server: &str) -> FaultyProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let shared = Arc::new(Shared {
            fault: Mutex::new(BucketFault::None),
            requests: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
            lines: Mutex::default(),
        });
        let (server, of_threads) = (server.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (server, shared) = (server.clone(), Arc::clone(&of_threads));
                std::thread::spawn(move || serve(client, &server, &shared));
            }
        });
        FaultyProxy { address, shared }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Does this wrong from now on, also to what is under way.
    pub fn set(&self, fault: BucketFault) {
        *self.shared.fault.lock().expect("nothing panics with this locked") = fault;
    }

    /// Connections that came so far.
    pub fn connections(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// First lines of the requests so far that begin with this word, such as `DELETE`.
    pub fn requests(&self, method: &str) -> Vec<String> {
        let lines = self.shared.lines.lock().expect("nothing panics with this locked");
        lines.iter().filter(|line| line.starts_with(method)).cloned().collect()
    }

    /// Requests and answers that were cut so far.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn fault(&self) -> BucketFault {
        *self.fault.lock().expect("nothing panics with this locked")
    }
}

fn serve(mut client: TcpStream, server: &str, shared: &Arc<Shared>) {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    match shared.fault() {
        BucketFault::Unavailable => {
            refuse(&mut client);
            return;
        }
        BucketFault::Hanging => {
            while shared.fault() == BucketFault::Hanging {
                std::thread::sleep(Duration::from_millis(50));
            }
            return;
        }
        _ => {}
    }
    let Ok(server) = TcpStream::connect(server) else { return };
    let double = |stream: &TcpStream| stream.try_clone().expect("a descriptor can be doubled");
    let (from, to, requests) = (double(&client), double(&server), Arc::clone(shared));
    std::thread::spawn(move || pass(from, to, &requests, true));
    pass(server, client, shared, false);
}

/// Reads the head of a request, and what came with it, and answers 503.
fn refuse(client: &mut TcpStream) {
    let (mut head, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut piece) {
            Ok(bytes @ 1..) => head.extend_from_slice(&piece[..bytes]),
            _ => return,
        }
    }
    let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = client.write_all(answer.as_bytes());
    let _ = client.shutdown(Shutdown::Both);
}

/// First lines of the requests that begin in a piece.
fn request_lines(piece: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(piece);
    let begins = |line: &&str| {
        ["GET /", "HEAD /", "PUT /", "POST /", "DELETE /"].iter().any(|with| line.starts_with(with))
    };
    text.split("\r\n").filter(begins).map(str::to_owned).collect()
}

/// Passes one direction on, until it ends or is to fail.
fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared, is_upload: bool) {
    let (mut piece, mut passed) = (vec![0; PIECE_BYTES], 0);
    while let Ok(mut bytes @ 1..) = from.read(&mut piece) {
        let fault = shared.fault();
        let lines = if is_upload { request_lines(&piece[..bytes]) } else { Vec::new() };
        if let BucketFault::Refuse(word) = fault
            && lines.iter().any(|line| line.contains(word))
        {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        shared.lines.lock().expect("nothing panics with this locked").extend(lines);
        let is_cut = match fault {
            BucketFault::Unavailable | BucketFault::Hanging => break,
            BucketFault::Slow(pause) => {
                std::thread::sleep(pause);
                false
            }
            BucketFault::CutUploads(limit) if is_upload => passed + bytes > limit,
            BucketFault::CutDownloads(limit) if !is_upload => passed + bytes > limit,
            _ => false,
        };
        if let (true, BucketFault::CutUploads(limit) | BucketFault::CutDownloads(limit)) = (is_cut, fault) {
            bytes = bytes.min(limit.saturating_sub(passed));
            shared.cuts.fetch_add(1, Ordering::SeqCst);
        }
        if to.write_all(&piece[..bytes]).is_err() || is_cut {
            break;
        }
        passed += bytes;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
