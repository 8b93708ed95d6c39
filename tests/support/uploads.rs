//! Uploads by hand: requests as a stock client sends them, each byte chosen by the test.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::cache::Cache;
use super::door::Door;
use super::http::{connect, raw};

/// Time within which every answer comes.
const SOON: Duration = Duration::from_secs(60);

/// The hash of a path that nothing makes.
pub const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// A server, and a way in for an administrator who uploads.
pub struct Uploads {
    /// The server.
    pub cache: Cache,
    /// The way in.
    pub door: Door,
}

impl Uploads {
    /// A server with these arguments.
    #[track_caller]
    pub fn new(arguments: &[&str]) -> Uploads {
        let cache = Cache::new(arguments);
        Uploads { door: Door::to(&cache.ondine), cache }
    }

    /// The same with small disks: see [`Cache::on_disks`].
    #[track_caller]
    pub fn on_disks(arguments: &[&str], disks: &[(&str, &str)]) -> Uploads {
        let cache = Cache::on_disks(arguments, disks);
        Uploads { door: Door::to(&cache.ondine), cache }
    }

    /// The address of the way in.
    pub fn address(&self) -> &str {
        self.door.url().strip_prefix("http://").expect("it is http")
    }

    /// Status and text of a PUT with these bytes.
    #[track_caller]
    pub fn put(&self, path: &str, body: &[u8]) -> (u16, String) {
        self.send(path, &format!("Content-Length: {}\r\n", body.len()), body)
    }

    /// The same with these headers instead of a length.
    #[track_caller]
    pub fn send(&self, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut request = head(path, &format!("Connection: close\r\n{headers}")).into_bytes();
        request.extend_from_slice(body);
        let (answer, _) = raw(self.address(), &request, SOON);
        parsed(&answer)
    }

    /// Uploads a plain NAR, and gives the name of its file.
    #[track_caller]
    pub fn upload(&self, nar: &[u8]) -> String {
        let (status, text) = self.put(&format!("/nar/{}.nar", "0".repeat(52)), nar);
        assert_eq!(status, 400, "{text}");
        let name = text.split("which is ").nth(1).expect("the refusal names it")[..52].to_owned();
        assert_eq!(self.put(&format!("/nar/{name}.nar"), nar).0, 200);
        name
    }

    /// The narinfo of a path whose plain NAR is in the file `url`.
    pub fn narinfo(&self, path: &str, url: &str, nar_hash: &str, nar: &[u8], references: &str) -> String {
        let dir = self.cache.store.store_dir();
        format!(
            "StorePath: {}/{path}\nURL: nar/{url}.nar\nCompression: none\nNarHash: sha256:{nar_hash}\nNarSize: {}\n\
             References: {references}\n",
            dir.display(),
            nar.len()
        )
    }

    /// Number of paths that are served.
    #[track_caller]
    pub fn served(&self) -> u64 {
        let status = super::Http::new(&self.cache.ondine.url()).get("/api/v1/status").text();
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        status.pointer("/cache/paths").and_then(serde_json::Value::as_u64).expect("a number")
    }

    /// Number of files in the NAR store.
    pub fn nar_files(&self) -> usize {
        let folders = std::fs::read_dir(self.cache.ondine.state_dir().join("nar")).expect("the NAR store");
        let folders = folders
            .map(|folder| folder.expect("an entry").path())
            .filter(|folder| folder.is_dir() && folder.file_name().is_some_and(|name| name.len() == 2));
        folders.map(|folder| std::fs::read_dir(folder).expect("a folder").count()).sum()
    }
}

/// The head of a PUT with these headers.
pub fn head(path: &str, headers: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

/// Status and text of an answer.
#[track_caller]
pub fn parsed(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

/// The NAR of a file.
pub fn nar(contents: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), contents).expect("written");
    let mut bytes = Vec::new();
    narinfo::nar::dump(&folder.path().join("file"), &mut bytes).expect("a NAR");
    bytes
}

/// An upload whose bytes are sent one part after the other.
pub struct OpenUpload(TcpStream);

impl OpenUpload {
    /// Sends the head of a PUT with these headers.
    #[track_caller]
    pub fn begin(address: &str, path: &str, headers: &str) -> OpenUpload {
        let mut stream = connect(address);
        stream.write_all(head(path, headers).as_bytes()).expect("the server takes the head");
        OpenUpload(stream)
    }

    /// Sends more; false once the server does not listen any more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Sends one chunk of a chunked body.
    pub fn send_chunk(&mut self, bytes: &[u8]) -> bool {
        self.send(format!("{:x}\r\n", bytes.len()).as_bytes()) && self.send(bytes) && self.send(b"\r\n")
    }

    /// Status and text of the answer, once its head is there.
    #[track_caller]
    pub fn answer(&mut self) -> (u16, String) {
        parsed(&self.read(SOON))
    }

    /// Bytes that come until the end of a short answer, the end of the connection or of this time.
    pub fn read(&mut self, limit: Duration) -> Vec<u8> {
        self.0.set_read_timeout(Some(limit)).expect("more than zero");
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.0.read(&mut piece) {
                Ok(0) => return answer,
                Ok(length) => answer.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return answer,
            }
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.to_lowercase().split("content-length: ").nth(1).and_then(|rest| {
                    rest.split("\r\n").next().and_then(|length| length.trim().parse::<usize>().ok())
                });
                if length.is_some_and(|length| body.len() >= length) {
                    return answer;
                }
            }
        }
    }
}
