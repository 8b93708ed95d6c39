//! A NAR from a directory, from a bucket, and from the copy that a server has of what is in a bucket.

use crate::comparison::{Comparison, Goal};
use crate::serving::load::Times;
use crate::serving::requests::Wanted;
use crate::serving::servers::Server;
use crate::serving::sink;
use crate::support::addresses::field;
use crate::support::{Bucket, Cache, Derivation, NixStore, Release, TestBucket, wait_until};

/// Connections that download at the same time.
const CONNECTIONS: [(usize, &str); 2] = [(1, "a NAR, one connection"), (4, "a NAR, four connections")];
/// Downloads before a server counts as one with a copy: the second one makes it.
const FIRST_DOWNLOADS: usize = 3;

/// Servers with the same NAR in different places, in the order of the table.
pub struct NarServers(Vec<NarServer>);

struct NarServer {
    kind: &'static str,
    server: Server,
    wanted: Wanted,
    _cache: Cache,
}

impl NarServers {
    /// Servers that have stored a NAR of this size; `None` where there is no object store.
    pub fn new(mebibytes: u64) -> Option<NarServers> {
        let bucket = || Bucket::new().map(|bucket| bucket.url());
        let (cold, copied) = (bucket()?, bucket()?);
        let servers = [
            ("directory", vec![]),
            ("bucket", vec!["--nar-store", &cold, "--nar-cache-bytes", "0"]),
            ("bucket, with a copy", vec!["--nar-store", &copied]),
        ];
        Some(NarServers(servers.map(|(kind, arguments)| NarServer::new(kind, &arguments, mebibytes)).into()))
    }

    /// One round of downloads from each.
    pub fn measure(&self, table: &mut Comparison, times: Times) {
        for (connections, what) in CONNECTIONS {
            for NarServer { kind, server, wanted, .. } in &self.0 {
                let running = server.start();
                let seen = sink::measure(server.address, wanted, connections, &running.processes, times);
                let sink::Seen { nar_bytes, used } = seen.expect("the NAR comes");
                let gigabytes = nar_bytes / 1e9;
                table.add(what, "GB/s", Goal::Nothing, kind, gigabytes / used.seconds);
                table.add(what, "CPU s/GB", Goal::Nothing, kind, used.server / gigabytes);
            }
        }
    }
}

impl NarServer {
    fn new(kind: &'static str, arguments: &[&str], mebibytes: u64) -> NarServer {
        let cache = Cache::of(NixStore::new(Release::Host), arguments, &Bucket::VARIABLES);
        // Bytes that do not compress: what is sent is as large as the NAR.
        let script = format!("head -c {} /dev/urandom > \"$out\"", mebibytes << 20);
        let path = cache.store.instantiate(&Derivation::new("large", &script));
        let narinfo = cache.narinfo(path.out());
        wait_until("the NAR is stored", crate::serving::data::PACKED_WITHIN, || {
            cache.narinfo(path.out()).contains("FileHash: ")
        });
        let server = Server::peer(&format!("{kind}={}", cache.ondine.url())).expect("an address");
        let request = server.request(&format!("/{}", field(&narinfo, "URL")), "");
        let wanted = Wanted { request, nar_bytes: field(&narinfo, "NarSize").parse().expect("a size") };
        let running = server.start();
        for _ in 0..FIRST_DOWNLOADS {
            sink::once(server.address, &wanted, &running.processes).expect("the NAR comes");
        }
        NarServer { kind, server, wanted, _cache: cache }
    }
}
