//! Very many small requests on kept connections, as light as can be: two threads that wait for whichever
//! connection has an answer, find the end of its head, skip its body and ask again.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::usage::{Processes, Used, Window};

/// Threads that keep connections busy.
const THREADS: usize = 2;
/// Bytes received at a time: a small NAR and its head.
const BUFFER_BYTES: usize = 64 * 1024;
/// A server that answers nobody for so long has failed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// Lengths of a measurement.
#[derive(Clone, Copy)]
pub struct Times {
    /// Before it is counted.
    pub warm_up: Duration,
    /// Time that is counted.
    pub counted: Duration,
}

/// Work of a server under load.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Answers in the window.
    pub answers: f64,
    /// Processor time and memory that they cost.
    pub used: Used,
}

/// The head of an answer.
pub struct Head {
    /// Its bytes, the empty line included.
    pub bytes: usize,
    /// The status, three digits.
    pub status: [u8; 3],
    /// Bytes of the body; without this, the body comes in chunks.
    pub length: Option<u64>,
}

impl Head {
    /// The head at the start of `data`, once all of it is there.
    pub fn find(data: &[u8]) -> Option<Head> {
        let bytes = data.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let lines = data[..bytes].split(|byte| *byte == b'\n');
        let value = |line: &[u8]| {
            let (name, value) = line.split_at_checked(15)?;
            name.eq_ignore_ascii_case(b"content-length:").then_some(())?;
            std::str::from_utf8(value).ok()?.trim().parse().ok()
        };
        let status = data.get(9..12).and_then(|digits| digits.try_into().ok()).unwrap_or_default();
        Some(Head { bytes, status, length: lines.filter_map(value).next() })
    }
}

/// Asks for `requests` in turn on so many connections, each from another place on, and counts the answers.
/// The connections are shared out among the servers at `addresses`. Every answer must have this status.
///
/// # Errors
/// An answer is another one, or none comes.
pub fn measure(
    addresses: &[SocketAddr],
    connections: usize,
    requests: &[Vec<u8>],
    status: [u8; 3],
    processes: &Processes,
    times: Times,
) -> io::Result<Seen> {
    let (stop, answers, connected) = (AtomicBool::new(false), AtomicU64::new(0), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (stop, answers, connected) = (&stop, &answers, &connected);
                scope.spawn(move || {
                    // Every THREADS-th, from this one on.
                    let mine = (thread..connections).step_by(THREADS);
                    let places = mine.map(|number| {
                        let address = addresses[number / THREADS % addresses.len()];
                        (address, number * requests.len() / connections)
                    });
                    let driver = Driver::new(requests, status, places);
                    connected.wait();
                    driver?.drive(stop, answers)
                })
            })
            .collect();
        connected.wait();
        std::thread::sleep(times.warm_up);
        let (before, window) = (answers.load(Ordering::Relaxed), Window::open(processes));
        std::thread::sleep(times.counted);
        let (used, after) = (window.close(), answers.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("the load does not panic")?;
        }
        Ok(Seen { answers: (after - before) as f64, used })
    })
}

/// Time of each answer, one after the other on one connection, in order of length. `more` hears of the
/// number of answers so far and says whether to go on.
///
/// # Errors
/// An answer has another status, or none comes.
pub fn latencies(
    address: SocketAddr,
    requests: &[Vec<u8>],
    status: [u8; 3],
    mut more: impl FnMut(usize) -> bool,
) -> io::Result<Vec<Duration>> {
    let mut driver = Driver::new(requests, status, std::iter::once((address, 0)))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut asked = Instant::now();
    let mut taken = Vec::new();
    while more(taken.len()) {
        if driver.serve(0, &mut buffer)? {
            // The next was asked for already: this is a whole turn, with the sending in it.
            let now = Instant::now();
            taken.push(now - asked);
            asked = now;
        }
    }
    taken.sort_unstable();
    Ok(taken)
}

/// One thread and its connections.
struct Driver<'a> {
    requests: &'a [Vec<u8>],
    status: [u8; 3],
    epoll: rustix::fd::OwnedFd,
    clients: Vec<Client>,
}

/// One connection.
struct Client {
    address: SocketAddr,
    stream: TcpStream,
    /// The request that was sent last.
    asked: usize,
    /// Bytes of a head that have come, if it did not come at once.
    head: Vec<u8>,
    body: Body,
}

/// Rest of an answer's body.
enum Body {
    /// Even the head.
    Unknown,
    /// So many bytes.
    Bytes(u64),
    /// Chunks: the end is known when it is seen. Only peers need this.
    Chunks,
}

impl<'a> Driver<'a> {
    /// A connection for each of `places`: its server, and the request that it begins with.
    fn new(
        requests: &'a [Vec<u8>],
        status: [u8; 3],
        places: impl Iterator<Item = (SocketAddr, usize)>,
    ) -> io::Result<Driver<'a>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut driver = Driver { requests, status, epoll, clients: Vec::new() };
        for (number, (address, asked)) in places.enumerate() {
            let client = driver.connect(number, address, asked)?;
            driver.clients.push(client);
        }
        Ok(driver)
    }

    /// A connection on which the request `asked` was sent.
    fn connect(&self, number: usize, address: SocketAddr, asked: usize) -> io::Result<Client> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
        stream.write_all(&self.requests[asked])?;
        Ok(Client { address, stream, asked, head: Vec::new(), body: Body::Unknown })
    }

    fn drive(mut self, stop: &AtomicBool, answers: &AtomicU64) -> io::Result<()> {
        if self.clients.is_empty() {
            return Ok(());
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(self.clients.len());
        let mut buffer = vec![0; BUFFER_BYTES];
        while !stop.load(Ordering::Relaxed) {
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&PATIENCE))?;
            if events.is_empty() {
                return Err(io::Error::new(ErrorKind::TimedOut, "the server answers nobody"));
            }
            let mut whole = 0;
            for event in &events {
                let data = event.data;
                whole += u64::from(self.serve(data.u64() as usize, &mut buffer)?);
            }
            answers.fetch_add(whole, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Receives what is there for one client. Whether an answer is whole now; then the next was asked for.
    fn serve(&mut self, number: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let client = &mut self.clients[number];
        let received = client.stream.read(buffer)?;
        if received == 0 && matches!(client.body, Body::Unknown) && client.head.is_empty() {
            // Some servers close a connection after so many requests.
            let (address, asked) = (client.address, client.asked);
            self.clients[number] = self.connect(number, address, asked)?;
            return Ok(false);
        }
        if received == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "an answer was cut"));
        }
        if !client.take(&buffer[..received], self.status)? {
            return Ok(false);
        }
        client.body = Body::Unknown;
        client.asked = (client.asked + 1) % self.requests.len();
        client.stream.write_all(&self.requests[client.asked])?;
        Ok(true)
    }
}

impl Client {
    /// True if the answer is whole with `data`.
    fn take(&mut self, data: &[u8], status: [u8; 3]) -> io::Result<bool> {
        let mut body = data;
        if matches!(self.body, Body::Unknown) {
            let joined = (!self.head.is_empty()).then(|| [&self.head, data].concat());
            let data = joined.as_deref().unwrap_or(data);
            let Some(head) = Head::find(data) else {
                self.head = data.to_vec();
                return Ok(false);
            };
            if head.status != status {
                let text = String::from_utf8_lossy(&data[..head.bytes]).into_owned();
                return Err(io::Error::other(format!("not the answer that was expected: {text}")));
            }
            self.body = head.length.map_or(Body::Chunks, Body::Bytes);
            // Of these bytes, those at the end that are no head.
            body = &body[body.len() - (data.len() - head.bytes)..];
            self.head.clear();
        }
        match &mut self.body {
            Body::Bytes(left) => {
                *left = left.checked_sub(body.len() as u64).ok_or_else(|| {
                    io::Error::new(ErrorKind::InvalidData, "an answer is longer than it says")
                })?;
                Ok(*left == 0)
            }
            _ => Ok(body.ends_with(b"0\r\n\r\n")),
        }
    }
}
