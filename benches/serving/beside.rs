//! What packing costs those who read at the same time: an Ondine that has never seen the paths packs the large one, while a client
//! asks for narinfos, one after the other.

use std::sync::atomic::{AtomicBool, Ordering};

use super::data::{PACKED_WITHIN, packed};
use super::load;
use super::parts::Bench;
use super::report::Target::AtMost;
use super::servers::Server;
use crate::support::addresses::narinfo_address;
use crate::support::store::Folder;
use crate::support::{Http, wait_until};

/// Answers that are timed before, when nothing else is done.
const IDLE_ANSWERS: usize = 20_000;
/// How much longer one in a hundred may take meanwhile.
const GROWTH_MAX: f64 = 3.0;

impl Bench<'_> {
    /// The 99th percentile before and meanwhile.
    pub(super) fn beside(&mut self) {
        let state = Folder::new();
        let server = Server::ondine(&self.data.cache, &state.path().join("state"), &self.data.files, &[]);
        let running = server.start();
        let http = Http::new(&server.url());
        let ask = |path| assert_eq!(http.get(&narinfo_address(path)).status, 200);
        ask(&self.data.closure);
        let small = self.data.small.len() as u64 + 1;
        wait_until("the small paths are packed", PACKED_WITHIN, || packed(&http) == small);

        let requests: Vec<_> =
            self.data.small.iter().map(|path| server.request(&narinfo_address(path), "")).collect();
        let p99 = |more: &mut dyn FnMut(usize) -> bool| {
            let taken = load::latencies(server.address, &requests, *b"200", more);
            let taken = taken.expect("the server answers");
            taken[taken.len() * 99 / 100].as_secs_f64() * 1e6
        };
        let idle = p99(&mut |answers| answers < IDLE_ANSWERS);
        let done = AtomicBool::new(false);
        let beside = std::thread::scope(|scope| {
            ask(&self.data.large);
            scope.spawn(|| {
                wait_until("the large path is packed", PACKED_WITHIN, || packed(&http) == small + 1);
                done.store(true, Ordering::Relaxed);
            });
            p99(&mut |_| !done.load(Ordering::Relaxed))
        });
        drop(running);
        self.add("hit, p99 when idle", "µs", None, &server, idle);
        self.add("hit, p99 while a NAR is packed", "µs", None, &server, beside);
        self.add(
            "hit, p99 while a NAR is packed",
            "x idle",
            Some(AtMost(GROWTH_MAX)),
            &server,
            beside / idle,
        );
    }
}
