//! Store paths that another cache has and the server's own store has lost: built for real, copied there, then
//! collected. What Nix says of their contents is kept for comparing.

use std::path::{Path, PathBuf};

use narinfo::NarHash;
use sha2::{Digest, Sha256};

use super::binary_cache::{BinaryCache, Compression};
use crate::support::addresses::{field, narinfo_address};
use crate::support::cache::assert_narinfo;
use crate::support::client::Client;
use crate::support::derivations::Derivation;
use crate::support::http::Http;
use crate::support::ondine::Ondine;
use crate::support::store::{Instantiated, NixStore, text};

/// A path, all that it refers to, and the hashes of their NARs.
pub struct Sample {
    /// The path.
    pub path: PathBuf,
    /// The derivation that makes it.
    pub drv: PathBuf,
    /// The path and its closure, references first.
    pub closure: Vec<PathBuf>,
    hashes: Vec<NarHash>,
}

impl Sample {
    /// Builds the first output of a derivation.
    #[track_caller]
    pub fn new(store: &NixStore, derivation: &Derivation) -> Sample {
        let Instantiated { drv, outputs } = store.instantiate(derivation);
        Sample::of(store, drv, outputs[0].1.clone())
    }

    /// Builds an output of a derivation.
    #[track_caller]
    pub fn of(store: &NixStore, drv: PathBuf, path: PathBuf) -> Sample {
        store.realise(&drv);
        let closure = store.nix_store(&["--query", "--requisites", text(&path)]);
        let closure: Vec<PathBuf> = closure.lines().map(Into::into).collect();
        let arguments = query_hashes(&closure);
        let hashes = parsed(&store.nix_store(&arguments.iter().map(String::as_str).collect::<Vec<_>>()));
        Sample { path, drv, closure, hashes }
    }

    /// The closure as arguments.
    pub fn paths(&self) -> Vec<&Path> {
        self.closure.iter().map(|path| &**path).collect()
    }

    /// A cache that has it.
    #[track_caller]
    pub fn copied(&self, store: &NixStore, compression: Compression) -> BinaryCache {
        BinaryCache::new(store, compression, &[&self.path])
    }

    /// Collects what was built and keeps how to build it again.
    #[track_caller]
    pub fn collect(&self, store: &NixStore) {
        if !store.state_dir().join("gcroots").join(self.drv.file_name().expect("a name")).exists() {
            store.root(&self.drv);
        }
        store.gc();
        assert!(!store.is_valid(&self.path), "something in the store holds {}", self.path.display());
    }

    /// Collects what was built and how to build it, so that nothing but another cache has it.
    #[track_caller]
    pub fn collect_with_derivation(&self, store: &NixStore) {
        store.gc();
        assert!(!store.is_valid(&self.drv), "something in the store holds {}", self.drv.display());
    }

    /// The client has all of it, and the very bytes: its Nix hashes them anew.
    #[track_caller]
    pub fn assert_held_by(&self, client: &Client) {
        let arguments = query_hashes(&self.closure);
        let held = client.run("nix-store", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(parsed(&held.must_succeed().text()), self.hashes);
        let mut verify = vec!["--verify-path"];
        verify.extend(self.closure.iter().map(|path| text(path)));
        client.run("nix-store", &verify).must_succeed();
    }

    /// The hash of the NAR of the path.
    pub fn nar_hash(&self) -> NarHash {
        *self.hashes.last().expect("a path is in its closure")
    }

    /// These bytes are the NAR of the path.
    #[track_caller]
    pub fn assert_is_nar(&self, nar: &[u8]) {
        let hash = NarHash::from_bytes(Sha256::digest(nar).into());
        assert_eq!(hash, self.nar_hash(), "{} bytes are not its NAR", nar.len());
    }

    /// The server serves the path: its narinfo, and its very bytes.
    #[track_caller]
    pub fn assert_served_by(&self, ondine: &Ondine) {
        let http = Http::new(&ondine.url());
        let narinfo = http.get(&narinfo_address(&self.path));
        assert_narinfo(&narinfo, &self.path);
        let nar = http.get(&format!("/{}", field(&narinfo.text(), "URL")));
        assert_eq!(nar.status, 200, "{}", nar.text());
        self.assert_is_nar(&zstd::decode_all(&nar.body[..]).expect("a zstd file"));
    }
}

/// Asks Nix for the hashes of the NARs of these paths.
fn query_hashes(paths: &[PathBuf]) -> Vec<String> {
    let words = ["--query", "--hash"].map(str::to_owned).into_iter();
    words.chain(paths.iter().map(|path| text(path).to_owned())).collect()
}

/// Its answer.
#[track_caller]
fn parsed(hashes: &str) -> Vec<NarHash> {
    hashes.lines().map(|hash| hash.parse().unwrap_or_else(|error| panic!("{hash}: {error}"))).collect()
}
