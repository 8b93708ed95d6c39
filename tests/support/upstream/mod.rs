//! Another cache for a server to have behind it: real store paths in a folder that `nix copy` made, signed,
//! and an HTTP server of that folder that misbehaves as a test says and notes all that it is asked.

pub mod binary_cache;
pub mod bombs;
pub mod fault;
pub mod log;
pub mod sample;
pub mod server;
pub mod tls;

use std::path::Path;

pub use binary_cache::{BinaryCache, Compression};
pub use fault::{Fault, Valve};
pub use log::Seen;
pub use sample::Sample;
pub use server::FileServer;
pub use tls::TlsServer;

use super::http::Http;
use super::ondine::Ondine;
use super::store::{NixStore, write};

/// A cache in a folder and the server before it.
pub struct Upstream {
    /// Answers, and notes who asks.
    pub server: FileServer,
    /// The folder.
    pub cache: BinaryCache,
}

impl Upstream {
    /// A cache of these paths of `store` and of all that they refer to, compressed with xz, and its server.
    #[track_caller]
    pub fn new(store: &NixStore, paths: &[&Path]) -> Upstream {
        Upstream::of(BinaryCache::new(store, Compression::Xz, paths))
    }

    /// A server of this cache.
    #[track_caller]
    pub fn of(cache: BinaryCache) -> Upstream {
        Upstream { server: FileServer::new(cache.folder()), cache }
    }

    /// The cache as one table of the server's settings, over HTTP, with more lines such as `priority = 1`.
    pub fn table(&self, more: &str) -> String {
        table(&self.server.url(), &[&self.cache.public_key()], more)
    }

    /// The cache as the flag `--upstream` wants it.
    pub fn flag(&self) -> String {
        format!("{} {}", self.server.url(), self.cache.public_key())
    }
}

/// One table of a settings file.
pub fn table(url: &str, public_keys: &[&str], more: &str) -> String {
    let keys = public_keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ");
    format!("[[upstream]]\nurl = \"{url}\"\npublic-keys = [{keys}]\n{more}\n")
}

/// Writes a settings file of these tables into the folder of `store`, and gives its path.
#[track_caller]
pub fn settings_file(store: &NixStore, tables: &[String]) -> String {
    let number = std::fs::read_dir(store.folder()).expect("the fixture's own folder").count();
    let file = store.folder().join(format!("ondine-{number}.toml"));
    write(&file, &tables.join("\n"));
    super::store::text(&file).to_owned()
}

/// Number of narinfos (`what` is `narinfos`) or NARs (`nars`) of all upstreams that came out in one of these
/// ways.
#[track_caller]
pub fn counted(ondine: &Ondine, what: &str, outcomes: &[&str]) -> u64 {
    let name = format!("ondine_upstream_{what}_total{{");
    let labels: Vec<String> = outcomes.iter().map(|outcome| format!("outcome=\"{outcome}\"")).collect();
    let metrics = Http::new(&ondine.url()).get("/metrics").text();
    let lines = metrics.lines().filter(|line| line.starts_with(&name));
    let lines = lines.filter(|line| labels.iter().any(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// The files in the server's NAR store, drafts and marks and all, from its folder.
#[track_caller]
pub fn stored_nars(ondine: &Ondine) -> Vec<String> {
    let root = ondine.state_dir().join("nar");
    // The file that the marks are names of.
    let stamp = root.join("unnamed/mark");
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        // What is removed in this very moment is not there.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path == stamp => {}
                false => files.push(path.strip_prefix(&root).expect("below it").display().to_string()),
            }
        }
    }
    files
}
