//! A real engine of Azure Blob Storage, Azurite, which is started once for all tests of a program and ends
//! with it; a container of its own for each test. `ONDINE_TEST_AZURE_STORE` names the program
//! (`azurite-blob`, of the npm package azurite); without it the tests of containers do nothing, and `.ci/run`
//! always sets it.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::buckets::TestBucket;
use super::engine::{Engine, RunningEngine, free_ports, kept};
use super::process::{Finished, run};
use super::store::Folder;

/// The account that it knows, and its key before base64.
const ACCOUNT: &str = "acme";
const KEY: &[u8] = b"a secret key of the tests, which have an account of their own...";

/// A fresh container.
pub struct AzureContainer {
    name: String,
    port: u16,
}

/// The engine of this program.
static ENGINE: Engine =
    Engine::new("ONDINE_TEST_AZURE_STORE", "npm install azurite, then the path of azurite-blob");

fn start(program: &str) -> RunningEngine {
    let [port] = free_ports();
    let mut azurite = kept(program, Folder::new());
    azurite.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
    azurite.args(["--silent", "--disableTelemetry", "--inMemoryPersistence", "--disableProductStyleUrl"]);
    azurite.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{}", STANDARD.encode(KEY)));
    let probe = AzureContainer { name: "probe".to_owned(), port };
    RunningEngine::start(program, azurite, port, || probe.create().succeeded())
}

impl AzureContainer {
    /// An empty one; `None` where there is no engine to test with.
    pub fn new() -> Option<AzureContainer> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let port = ENGINE.port(start)?;
        let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let container = AzureContainer { name, port };
        container.create().must_succeed();
        Some(container)
    }

    fn create(&self) -> Finished {
        self.curl("", "restype=container", &["-X", "PUT", "-d", ""])
    }

    /// A shared access signature for all of the account.
    pub fn signature() -> String {
        let (version, expiry) = ("2021-12-02", "2099-01-01T00:00:00Z");
        let text = format!("{ACCOUNT}\nrwdlac\nb\nsco\n\n{expiry}\n\n\n{version}\n\n");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, KEY);
        let signature = STANDARD.encode(ring::hmac::sign(&key, text.as_bytes()));
        let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC).to_string();
        format!("sv={version}&ss=b&srt=sco&sp=rwdlac&se={expiry}&sig={signature}")
    }

    /// A file of credentials that has such a signature instead of the key.
    pub fn signed_credentials() -> String {
        format!("AccountName={ACCOUNT}\nSharedAccessSignature={}\n", Self::signature())
    }

    fn curl(&self, place: &str, query: &str, arguments: &[&str]) -> Finished {
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "-H", "x-ms-version: 2021-12-02"]).args(arguments);
        let Self { name, port } = self;
        curl.arg(format!("http://127.0.0.1:{port}/{ACCOUNT}/{name}{place}?{query}&{}", Self::signature()));
        run(curl)
    }

    #[track_caller]
    fn list(&self, parameters: &str) -> Vec<String> {
        let query = format!("restype=container&comp=list&prefix=cache%2F{parameters}");
        let list = self.curl("", &query, &[]).must_succeed().text();
        let names = list.split("<Name>").skip(1).filter_map(|rest| rest.split_once("</Name>"));
        names.map(|(name, _)| name.trim_start_matches("cache/").to_owned()).collect()
    }
}

impl TestBucket for AzureContainer {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn url_through(&self, address: &str) -> String {
        format!("az://{}/cache?endpoint=http://{address}/{ACCOUNT}&allow-http=true", self.name)
    }

    /// A connection string.
    fn credentials(&self) -> String {
        format!("DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={}", self.secret())
    }

    fn secret(&self) -> String {
        STANDARD.encode(KEY)
    }

    fn keys(&self) -> Vec<String> {
        self.list("")
    }

    fn get(&self, key: &str) -> Vec<u8> {
        self.curl(&format!("/cache/{key}"), "", &[]).must_succeed().stdout
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let folder = Folder::new();
        let file = folder.path().join("object");
        std::fs::write(&file, bytes).expect("written");
        let arguments = ["-H", "x-ms-blob-type: BlockBlob", "-T", file.to_str().expect("a name")];
        self.curl(&format!("/cache/{key}"), "", &arguments).must_succeed();
    }

    /// Blobs of which there are parts alone.
    fn uploads(&self) -> usize {
        self.list("&include=uncommittedblobs").len() - self.keys().len()
    }
}
