//! Plain HTTP to the server under test: whole answers, bodies read piece by piece that tell an end from a
//! cut, and bytes sent raw for requests that no client would make.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Response as UreqResponse};
use ureq::{Agent, Body};

use super::process::wait_until;

/// Time limit of one whole request.
const REQUEST_LIMIT: Duration = Duration::from_secs(300);

/// Time limit until the server has found out all that it must know.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, empty for HEAD.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text, undecodable bytes replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value; none and one that is not text are alike.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// An HTTP client bound to one server, such as `http://127.0.0.1:8080`.
pub struct Http {
    agent: Agent,
    url: String,
}

impl Http {
    /// A client of the server at `url`. It follows no redirect and takes every status for an answer.
    pub fn new(url: &str) -> Http {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding("")
            .timeout_global(Some(REQUEST_LIMIT))
            .build();
        Http { agent: config.into(), url: url.trim_end_matches('/').to_owned() }
    }

    /// Waits until the server can do all of its work.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        wait_until("the server is ready", READY_WITHIN, || self.get("/readyz").status == 200);
    }

    /// GET of a path such as `/nix-cache-info`, to the end of the body.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.get_with(path, &[])
    }

    /// GET with headers.
    #[track_caller]
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut streaming = self.open(path, headers);
        match streaming.read_to_end() {
            (body, Ending::Complete) => {
                Response { status: streaming.status, headers: streaming.headers, body }
            }
            (body, Ending::Cut(why)) => {
                panic!("the body of GET {path} was cut after {} bytes: {why}", body.len())
            }
        }
    }

    /// HEAD of a path.
    #[track_caller]
    pub fn head(&self, path: &str) -> Response {
        self.head_with(path, &[])
    }

    /// HEAD with headers.
    #[track_caller]
    pub fn head_with(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.agent.head(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.call().unwrap_or_else(|error| panic!("HEAD {path}: {error}"));
        Response { status: answer.status().as_u16(), headers: answer.headers().clone(), body: Vec::new() }
    }

    /// POST with a JSON body.
    #[track_caller]
    pub fn post_json(&self, path: &str, body: &serde_json::Value) -> Response {
        let request =
            self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let answer = request
            .send(body.to_string())
            .unwrap_or_else(|error| panic!("POST {path} of {} bytes: {error}", body.to_string().len()));
        let mut streaming = Streaming::new(answer);
        let (body, ending) = streaming.read_to_end();
        assert_eq!(ending, Ending::Complete, "the answer to POST {path} was cut");
        Response { status: streaming.status, headers: streaming.headers, body }
    }

    /// POST of a form, with these headers more.
    #[track_caller]
    pub fn post_form(&self, path: &str, fields: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.send(fields).unwrap_or_else(|error| panic!("POST {path}: {error}"));
        let mut streaming = Streaming::new(answer);
        let (body, ending) = streaming.read_to_end();
        assert_eq!(ending, Ending::Complete, "the answer to POST {path} was cut");
        Response { status: streaming.status, headers: streaming.headers, body }
    }

    /// GET that returns as soon as the headers are there.
    #[track_caller]
    pub fn open(&self, path: &str, headers: &[(&str, &str)]) -> Streaming {
        self.try_open(path, headers).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// The same, with the error when no answer came.
    pub fn try_open(&self, path: &str, headers: &[(&str, &str)]) -> Result<Streaming, ureq::Error> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map(Streaming::new)
    }
}

/// End of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// As HTTP says a body ends: the last chunk, or as many bytes as promised.
    Complete,
    /// Before that, with what the reader said.
    Cut(String),
}

/// An answer whose body is still arriving.
pub struct Streaming {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    body: Box<dyn Read + Send>,
}

impl Streaming {
    fn new(answer: UreqResponse<Body>) -> Streaming {
        let (parts, body) = answer.into_parts();
        Streaming {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: Box::new(body.into_reader()),
        }
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The next bytes that arrive, or the end of the body.
    pub fn next_piece(&mut self) -> Result<Vec<u8>, Ending> {
        let mut piece = vec![0; 64 * 1024];
        match self.body.read(&mut piece) {
            Ok(0) => Err(Ending::Complete),
            Ok(length) => {
                piece.truncate(length);
                Ok(piece)
            }
            Err(error) => Err(Ending::Cut(error.to_string())),
        }
    }

    /// Text of the body until it has these words.
    #[track_caller]
    pub fn read_until(&mut self, words: &str) -> String {
        let mut text = String::new();
        while !text.contains(words) {
            match self.next_piece() {
                Ok(piece) => text += &String::from_utf8_lossy(&piece),
                Err(ending) => panic!("{words:?} did not come, the body ended: {ending:?}; it had:\n{text}"),
            }
        }
        text
    }

    /// The rest of the body and how it ended.
    pub fn read_to_end(&mut self) -> (Vec<u8>, Ending) {
        let mut body = Vec::new();
        loop {
            match self.next_piece() {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(ending) => return (body, ending),
            }
        }
    }
}

/// Sends `bytes` to `address` as they are and returns all that comes back until the server closes, or until
/// `limit` is over; the flag tells whether it closed.
#[track_caller]
pub fn raw(address: &str, bytes: &[u8], limit: Duration) -> (Vec<u8>, bool) {
    let mut stream = connect(address);
    // A server that refuses early may close while we still send: its answer is what counts.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let deadline = Instant::now() + limit;
    let mut piece = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (answer, false);
        }
        stream.set_read_timeout(Some(left)).expect("a time-out above zero is a valid one");
        match stream.read(&mut piece) {
            Ok(0) => return (answer, true),
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (answer, false);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return (answer, true),
        }
    }
}

/// A TCP connection to the server, for tests that write to it themselves.
#[track_caller]
pub fn connect(address: &str) -> TcpStream {
    let stream =
        TcpStream::connect(address).unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
    stream.set_nodelay(true).expect("a TCP socket takes this option");
    stream
}

/// Closes a connection in both directions, as a client that goes away does.
pub fn hang_up(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}
