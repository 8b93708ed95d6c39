//! An HTTP/1.1 server of a folder on the loopback interface: kept connections, HEAD, Range, ETag. It may be
//! stopped and started again on its port; each answer may be spoilt by a [`Fault`]. Threads and blocking
//! sockets, nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::fault::Fault;
use super::log::Seen;

/// Bytes of one piece of a body.
const PIECE_BYTES: usize = 64 * 1024;
/// Interval at which a slowed answer sends something.
const BEAT: Duration = Duration::from_millis(20);

/// The server; dropping it closes everything.
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    rules: Vec<Rule>,
    door: Option<Door>,
    seen: Vec<Seen>,
    connections: Vec<TcpStream>,
}

/// Lets a request in, or has it answered with 401.
type Door = Box<dyn Fn(&Seen) -> bool + Send>;

/// Which answers are spoilt, how, and how many of them still are.
struct Rule {
    pattern: String,
    fault: Fault,
    times: usize,
}

impl FileServer {
    /// A server of `folder` on a free port.
    #[track_caller]
    pub fn new(folder: PathBuf) -> FileServer {
        let shared = Arc::new(Shared { folder, state: Mutex::default() });
        let mut server =
            FileServer { address: SocketAddr::from(([127, 0, 0, 1], 0)), shared, accepting: None };
        server.start_again();
        server
    }

    /// Its address, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils every answer whose address contains `pattern`. Of several faults that fit, the one set last
    /// counts.
    pub fn fault(&self, pattern: &str, fault: Fault) {
        self.fault_times(pattern, usize::MAX, fault);
    }

    /// The same for so many answers.
    pub fn fault_times(&self, pattern: &str, times: usize, fault: Fault) {
        self.shared.state().rules.insert(0, Rule { pattern: pattern.to_owned(), fault, times });
    }

    /// Takes every fault back; answers under way keep theirs.
    pub fn mend(&self) {
        self.shared.state().rules.clear();
    }

    /// Answers 401 to every request that `door` does not let in.
    pub fn guard(&self, door: impl Fn(&Seen) -> bool + Send + 'static) {
        self.shared.state().door = Some(Box::new(door));
    }

    /// All requests so far, in the order they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Those whose address contains `pattern`.
    pub fn seen_of(&self, pattern: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.target().contains(pattern)).collect()
    }

    /// Closes the port and every connection: from here on connecting to it is refused.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.state().stopped = true;
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
        accepting.join().expect("the thread that accepts connections does not panic");
        for connection in self.shared.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Opens the port again, the same one. It must be closed.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.accepting.is_none(), "the upstream of this test still runs");
        self.shared.state().stopped = false;
        let listener = TcpListener::bind(self.address).expect("the port is free");
        self.address = listener.local_addr().expect("a bound socket has an address");
        let shared = self.shared.clone();
        self.accepting = Some(std::thread::spawn(move || accept(&listener, &shared)));
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let heads = self.seen().into_iter().map(|seen| format!("{} {}", seen.method(), seen.target()));
            eprintln!("--- {} was asked for\n{}", self.url(), heads.collect::<Vec<_>>().join("\n"));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with the upstream's state locked")
    }

    /// Notes a request. Gives its number and what is to go wrong with its answer.
    fn note(&self, head: String) -> (usize, Option<Fault>) {
        let mut state = self.state();
        let seen = Seen::new(head);
        let target = seen.target().to_owned();
        let is_let_in = state.door.as_ref().is_none_or(|door| door(&seen));
        state.seen.push(seen);
        if !is_let_in {
            return (state.seen.len() - 1, Some(Fault::Status(401)));
        }
        let rule = state.rules.iter_mut().find(|rule| rule.times > 0 && target.contains(&rule.pattern));
        let fault = rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        (state.seen.len() - 1, fault)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming().map_while(Result::ok) {
        let mut state = shared.state();
        if state.stopped {
            return;
        }
        let _ = connection.set_nodelay(true);
        state.connections.push(connection.try_clone().expect("a descriptor can be doubled"));
        let shared = shared.clone();
        std::thread::spawn(move || {
            let _ = converse(&connection, &shared);
            let _ = connection.shutdown(Shutdown::Both);
        });
    }
}

/// Answers one request after the other until one of both sides has enough.
fn converse(connection: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let (number, fault) = shared.note(head);
        let mut answer = Answer { to: connection, shared, number };
        let kept = answer.send(fault, &mut reader);
        shared.state().seen[number].over = true;
        if !kept? {
            return Ok(());
        }
    }
}

/// An answer under way.
struct Answer<'a> {
    to: &'a TcpStream,
    shared: &'a Shared,
    number: usize,
}

impl Answer<'_> {
    /// Answers; whether the connection is good for another request.
    fn send(&mut self, fault: Option<Fault>, reader: &mut impl Read) -> std::io::Result<bool> {
        let seen = self.shared.state().seen[self.number].clone();
        let file = match &fault {
            Some(Fault::Instead(body)) => Some((body.to_vec(), "\"another\"".to_owned())),
            _ => file(&self.shared.folder, seen.target()),
        };
        match &fault {
            Some(Fault::CloseEarly) => return Ok(false),
            Some(Fault::Silence) => {
                // Until the other side gives up.
                let _ = reader.read(&mut [0]);
                return Ok(false);
            }
            Some(Fault::Status(status)) => return self.refuse(*status, ""),
            Some(Fault::RetryAfter(status, seconds)) => {
                return self.refuse(*status, &format!("Retry-After: {seconds}\r\n"));
            }
            Some(Fault::Redirect(to)) => return self.refuse(302, &format!("Location: {to}\r\n")),
            Some(Fault::Late(delay)) => std::thread::sleep(*delay),
            Some(Fault::Held(valve)) => valve.pass(),
            _ => {}
        }
        let Some((body, tag)) = file else { return self.refuse(404, "") };
        let ranged = !matches!(fault, Some(Fault::NoRange)) && seen.header("range").is_some();
        let ranged = ranged && seen.header("if-range").is_none_or(|wanted| wanted == tag);
        let whole = body.len();
        let start = if ranged { usize::try_from(seen.starts_at()).unwrap_or(usize::MAX) } else { 0 };
        if start > 0 && start >= whole {
            return self.refuse(416, &format!("Content-Range: bytes */{whole}\r\n"));
        }
        let end = if ranged { last_byte(&seen).map_or(whole, |last| whole.min(last + 1)) } else { whole };
        let unsaid = matches!(fault, Some(Fault::PartUnsaid));
        let whole_said = unsaid || matches!(fault, Some(Fault::PartCalledWhole));
        let status = if ranged && !whole_said { "206 Partial Content" } else { "200 OK" };
        let mut head = format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nAccept-Ranges: bytes\r\n");
        if ranged && !unsaid {
            head.push_str(&format!("Content-Range: bytes {start}-{}/{whole}\r\n", end - 1));
        }
        if seen.method() == "HEAD" {
            head.push_str(&format!("Content-Length: {}\r\n\r\n", end - start));
            return self.raw(head.as_bytes()).map(|()| true);
        }
        let mut part = body[start..end].to_vec();
        if let (Some(Fault::PartSpoilt), true, Some(byte)) = (&fault, ranged, part.first_mut()) {
            *byte ^= 0x55;
        }
        self.body(fault, head, &part)
    }

    /// A status without a file.
    fn refuse(&mut self, status: u16, headers: &str) -> std::io::Result<bool> {
        let text = "the words of a server\n";
        let head = format!("HTTP/1.1 {status} Said\r\n{headers}Content-Length: {}\r\n\r\n", text.len());
        self.raw(head.as_bytes())?;
        let with_body = self.shared.state().seen[self.number].method() != "HEAD";
        if with_body {
            self.raw(text.as_bytes())?;
        }
        Ok(true)
    }

    /// The headers that say how the body comes, and the body, as the fault has it.
    fn body(&mut self, fault: Option<Fault>, mut head: String, body: &[u8]) -> std::io::Result<bool> {
        let cut = |at: &usize| &body[..body.len().min(*at)];
        let chunked = "Transfer-Encoding: chunked\r\n";
        match &fault {
            Some(Fault::ChunksCut(_) | Fault::ChunksEnd(_) | Fault::Endless | Fault::PartUnsaid) => {
                head.push_str(chunked);
            }
            Some(Fault::CloseEnds(_)) => head.push_str("Connection: close\r\n"),
            Some(Fault::ShortLength(at)) => head.push_str(&format!("Content-Length: {}\r\n", cut(at).len())),
            _ => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
        }
        if let Some(Fault::Encoded(coding)) = &fault {
            head.push_str(&format!("Content-Encoding: {coding}\r\n"));
        }
        head.push_str("\r\n");
        self.raw(head.as_bytes())?;
        match &fault {
            Some(Fault::Drip) => self.pieces(body, 1, Duration::from_secs(1))?,
            Some(Fault::Rate(rate)) => {
                let piece = rate * u64::try_from(BEAT.as_millis()).unwrap_or(1) / 1000;
                self.pieces(body, usize::try_from(piece).unwrap_or(1).max(1), BEAT)?;
            }
            Some(Fault::Cut(at) | Fault::CloseEnds(at)) => {
                self.plain(cut(at))?;
                return Ok(false);
            }
            Some(Fault::ChunksCut(at)) => {
                self.chunks(cut(at))?;
                return Ok(false);
            }
            Some(Fault::ChunksEnd(at)) => {
                self.chunks(cut(at))?;
                self.raw(b"0\r\n\r\n")?;
            }
            Some(Fault::PartUnsaid) => {
                self.chunks(body)?;
                self.raw(b"0\r\n\r\n")?;
            }
            Some(Fault::ShortLength(at)) => self.plain(cut(at))?,
            Some(Fault::Endless) => {
                self.chunks(body)?;
                loop {
                    self.chunks(&[0; PIECE_BYTES])?;
                }
            }
            _ => self.plain(body)?,
        }
        Ok(true)
    }

    fn plain(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.pieces(bytes, PIECE_BYTES, Duration::ZERO)
    }

    fn pieces(&mut self, bytes: &[u8], length: usize, pause: Duration) -> std::io::Result<()> {
        for piece in bytes.chunks(length) {
            self.raw(piece)?;
            self.sent(piece.len());
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn chunks(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.raw(format!("{:x}\r\n", piece.len()).as_bytes())?;
            self.raw(piece)?;
            self.raw(b"\r\n")?;
            self.sent(piece.len());
        }
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.to.write_all(bytes)
    }

    fn sent(&self, bytes: usize) {
        let seen = &mut self.shared.state().seen[self.number];
        seen.first_byte.get_or_insert_with(Instant::now);
        seen.sent += bytes as u64;
    }
}

/// The last byte that a Range asks for, if it names one.
fn last_byte(seen: &Seen) -> Option<usize> {
    seen.header("range")?.rsplit_once('-')?.1.parse().ok()
}

/// The folder's file at an address, and its ETag; nothing outside of it.
fn file(folder: &Path, target: &str) -> Option<(Vec<u8>, String)> {
    // As a proxy it is asked for whole addresses.
    let path =
        target.split_once("://").map_or(target, |(_, rest)| &rest[rest.find('/').unwrap_or(rest.len())..]);
    let name = path.strip_prefix('/')?.split('?').next()?;
    if name.split('/').any(|part| part == "..") {
        return None;
    }
    let file = folder.join(name);
    let changed = std::fs::metadata(&file).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let bytes = std::fs::read(&file).ok()?;
    let tag = format!("\"{:x}-{:x}\"", bytes.len(), changed.as_nanos());
    Some((bytes, tag))
}
