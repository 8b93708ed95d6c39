//! Downloads whose bytes go nowhere: what is counted is the server. Where the length is known the kernel is
//! told to drop the body, so that this program does not even copy it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use super::load::{Head, Times};
use super::requests::Wanted;
use super::usage::{Processes, Used, Window};

/// Bytes received at a time. The kernel only compares with it, nothing is written there.
const SINK_BYTES: usize = 8 << 20;
/// Bytes copied at a time where the end must be looked for.
const COPY_BYTES: usize = 1 << 20;
/// A server that sends nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The end of a body in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Bodies of a server, counted.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Bytes of plain NAR that what was sent stands for.
    pub nar_bytes: f64,
    /// Processor time and memory that they cost.
    pub used: Used,
}

/// Downloads over and over on so many connections, each on its own thread.
///
/// # Errors
/// An answer is not 200 or is cut.
pub fn measure(
    address: SocketAddr,
    wanted: &Wanted,
    connections: usize,
    processes: &Processes,
    times: Times,
) -> io::Result<Seen> {
    let (stop, received, ready) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let wire_bytes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| {
                let (stop, received, ready, wire_bytes) = (&stop, &received, &ready, &wire_bytes);
                scope.spawn(move || {
                    let mut sink = Sink::connect(address)?;
                    // The first tells how many bytes come over the wire, and warms up.
                    let first = sink.fetch(wanted, |_| true);
                    ready.fetch_add(1, Ordering::Relaxed);
                    wire_bytes.store(first?, Ordering::Relaxed);
                    while !stop.load(Ordering::Relaxed) {
                        sink.fetch(wanted, |bytes| {
                            received.fetch_add(bytes, Ordering::Relaxed);
                            !stop.load(Ordering::Relaxed)
                        })?;
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        while ready.load(Ordering::Relaxed) < connections as u64 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(times.warm_up);
        let (before, window) = (received.load(Ordering::Relaxed), Window::open(processes));
        std::thread::sleep(times.counted);
        let (used, after) = (window.close(), received.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("the sink does not panic")?;
        }
        let plain_per_wire = wanted.nar_bytes as f64 / wire_bytes.load(Ordering::Relaxed) as f64;
        Ok(Seen { nar_bytes: (after - before) as f64 * plain_per_wire, used })
    })
}

/// One download, from the request to the last byte.
///
/// # Errors
/// The answer is not 200 or is cut.
pub fn once(address: SocketAddr, wanted: &Wanted, processes: &Processes) -> io::Result<Seen> {
    let mut sink = Sink::connect(address)?;
    let window = Window::open(processes);
    let begun = Instant::now();
    sink.fetch(wanted, |_| true)?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Seen { nar_bytes: wanted.nar_bytes as f64, used: Used { seconds, ..window.close() } })
}

/// A connection and its buffer.
struct Sink {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Sink {
    fn connect(address: SocketAddr) -> io::Result<Sink> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Sink { stream, buffer: vec![0; SINK_BYTES] })
    }

    /// Asks, and drops the answer. `more` hears of all bytes that come, and says whether to go on; after a no
    /// the connection is of no use. Gives the bytes of the body as they came over the wire.
    fn fetch(&mut self, wanted: &Wanted, mut more: impl FnMut(u64) -> bool) -> io::Result<u64> {
        self.stream.write_all(&wanted.request)?;
        let mut filled = 0;
        let head = loop {
            // A page or so: what is behind the head is to be dropped, not copied.
            let read = self.stream.read(&mut self.buffer[filled..4096])?;
            filled += read;
            match Head::find(&self.buffer[..filled]) {
                Some(head) => break head,
                None if read == 0 || filled == 4096 => return Err(cut()),
                None => {}
            }
        };
        if &head.status != b"200" {
            let text = String::from_utf8_lossy(&self.buffer[..head.bytes]).into_owned();
            return Err(io::Error::other(format!("not the answer that was expected: {text}")));
        }
        let begun = (filled - head.bytes) as u64;
        match head.length {
            Some(length) => {
                let mut left = length - begun;
                let mut go_on = more(begun);
                while left > 0 && go_on {
                    let size = usize::try_from(left).unwrap_or(usize::MAX).min(SINK_BYTES);
                    let (_, received) = recv(&self.stream, &mut self.buffer[..size], RecvFlags::TRUNC)?;
                    if received == 0 {
                        return Err(cut());
                    }
                    left -= received as u64;
                    go_on = more(received as u64);
                }
                Ok(length)
            }
            None => self.drop_chunks(head.bytes, filled, more),
        }
    }

    /// The body of an answer without a length: chunks, whose framing is counted as if it were body.
    fn drop_chunks(
        &mut self,
        head: usize,
        filled: usize,
        mut more: impl FnMut(u64) -> bool,
    ) -> io::Result<u64> {
        let mut end = self.buffer[head..filled].to_vec();
        let mut sum = end.len() as u64;
        let mut go_on = more(sum);
        while !end.ends_with(LAST_CHUNK) && go_on {
            let received = self.stream.read(&mut self.buffer[..COPY_BYTES])?;
            if received == 0 {
                return Err(cut());
            }
            let keep = received.min(LAST_CHUNK.len());
            end.extend_from_slice(&self.buffer[received - keep..received]);
            end.drain(..end.len().saturating_sub(LAST_CHUNK.len()));
            sum += received as u64;
            go_on = more(received as u64);
        }
        Ok(sum)
    }
}

fn cut() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "an answer was cut")
}
