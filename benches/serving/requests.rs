//! Requests to a server, as bytes that are ready to send: taken from its own narinfos, so that each
//! server is asked for NARs where it has them.

use std::path::{Path, PathBuf};

use super::data::{Data, Seed};
use super::servers::{Running, Server};
use crate::support::Http;
use crate::support::addresses::{field, narinfo_address};

/// Hashes that nobody knows: more than a server would remember.
const MISSES: usize = 50_000;

/// All requests to one server.
pub struct Requests {
    /// The narinfo of each small path.
    pub narinfos: Vec<Vec<u8>>,
    /// Narinfos of unknown hashes, where a miss builds nothing.
    pub misses: Vec<Vec<u8>>,
    /// The NAR of each small path, as its narinfo says.
    pub small: Vec<Vec<u8>>,
    /// The NAR of the path of mixed files.
    pub large: Forms,
    /// The NAR of the path of small files.
    pub many: Forms,
}

/// A NAR in the forms that a server has.
pub struct Forms {
    /// Without compression.
    pub plain: Option<Wanted>,
    /// As zstd.
    pub zstd: Option<Wanted>,
}

/// A NAR to download.
pub struct Wanted {
    /// The request.
    pub request: Vec<u8>,
    /// Bytes of the plain NAR.
    pub nar_bytes: u64,
}

impl Requests {
    /// Asks a running server for all narinfos.
    #[track_caller]
    pub fn of(server: &Server, _: &Running, data: &Data) -> Requests {
        let http = Http::new(&server.url());
        let narinfo = |path: &Path| {
            let answer = http.get(&narinfo_address(path));
            assert_eq!(answer.status, 200, "{} does not serve {}", server.name, path.display());
            answer.text()
        };
        let nar = |path: &PathBuf| server.request(&format!("/{}", field(&narinfo(path), "URL")), "");
        let mut seed = Seed::new();
        Requests {
            narinfos: data.small.iter().map(|path| server.request(&narinfo_address(path), "")).collect(),
            misses: (0..MISSES).map(|_| server.request(&server.miss_address(&seed.hash()), "")).collect(),
            small: data.small.iter().map(nar).collect(),
            large: forms(server, &narinfo(&data.large)),
            many: forms(server, &narinfo(&data.many)),
        }
    }
}

fn forms(server: &Server, narinfo: &str) -> Forms {
    let url = format!("/{}", field(narinfo, "URL"));
    let nar_bytes = field(narinfo, "NarSize").parse().expect("a size");
    let wanted = |url: &str, headers: &str| Some(Wanted { request: server.request(url, headers), nar_bytes });
    match field(narinfo, "Compression") {
        // A peer that compresses does it on the way.
        "none" => Forms { plain: wanted(&url, ""), zstd: wanted(&url, "Accept-Encoding: zstd\r\n") },
        "zstd" => {
            let plain = url.strip_suffix(".nar.zst").filter(|_| server.serves_plain());
            Forms { plain: plain.and_then(|url| wanted(&format!("{url}.nar"), "")), zstd: wanted(&url, "") }
        }
        _ => Forms { plain: None, zstd: None },
    }
}
