//! A stock Nix that asks servers for a path until it has it, as a person does who runs the command again, and
//! has a reason to complain if a server that was there all the time did not answer.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Substituter};
use super::process::{Background, Finished};
use super::store::text;

/// Time limit of one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);
/// Pause before the command is run again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Times at which servers were killed, and started again; clones share them.
#[derive(Clone, Default)]
pub struct Outages(Arc<Mutex<Vec<Outage>>>);

struct Outage {
    server: usize,
    from: Instant,
    until: Option<Instant>,
}

/// Ends an outage when it is dropped.
pub struct OutageGuard {
    outages: Outages,
    at: usize,
}

impl Outages {
    /// Notes that a server is killed, and started again once the guard is dropped.
    pub fn begin(&self, server: usize) -> OutageGuard {
        let mut all = self.0.lock().expect("nothing panics with this locked");
        all.push(Outage { server, from: Instant::now(), until: None });
        OutageGuard { outages: self.clone(), at: all.len() - 1 }
    }

    /// True if the server was killed, or away, since then.
    fn has_had(&self, server: usize, since: Instant) -> bool {
        let all = self.0.lock().expect("nothing panics with this locked");
        all.iter().any(|outage| outage.server == server && outage.until.is_none_or(|until| until >= since))
    }
}

impl Drop for OutageGuard {
    fn drop(&mut self) {
        let mut all = self.outages.0.lock().expect("nothing panics with this locked");
        all[self.at].until = Some(Instant::now());
    }
}

/// The client in a thread of its own.
pub struct PersistentClient {
    path: PathBuf,
    thread: JoinHandle<Result<(), String>>,
}

impl PersistentClient {
    /// Asks for a path after some time, at the servers of these numbers one after the other.
    pub fn start(
        client: Client,
        path: PathBuf,
        servers: Vec<Substituter>,
        order: Vec<usize>,
        after: Duration,
        outages: &Outages,
    ) -> PersistentClient {
        let (wanted, outages) = (path.clone(), outages.clone());
        let thread = std::thread::spawn(move || {
            std::thread::sleep(after);
            for (round, server) in order.into_iter().enumerate() {
                let since = Instant::now();
                let ended = ask(&client, &servers[server], &wanted, round);
                if ended.succeeded() {
                    return client
                        .has(&wanted)
                        .then_some(())
                        .ok_or_else(|| format!("it has nothing: {ended}"));
                }
                if !outages.has_had(server, since) {
                    return Err(format!("server {server} was there all the time, but: {ended}"));
                }
                std::thread::sleep(AGAIN_AFTER);
            }
            Err("it has given up".to_owned())
        });
        PersistentClient { path, thread }
    }

    /// Fails the test unless the client has the path before the deadline.
    #[track_caller]
    pub fn assert_served(self, deadline: Instant) {
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "a client still waits for {}", self.path.display());
            std::thread::sleep(Duration::from_millis(50));
        }
        let outcome = self.thread.join().expect("no panic");
        outcome.unwrap_or_else(|complaint| panic!("{}: {complaint}", self.path.display()));
    }
}

/// Asks once, with one command or another.
fn ask(client: &Client, server: &Substituter, path: &std::path::Path, round: usize) -> Finished {
    if (round + text(path).len() + usize::from(text(path).as_bytes()[20])).is_multiple_of(2) {
        return client.start_fetch(server, &[path]).finish_within(COMMAND_LIMIT);
    }
    let options =
        ["--option", "substituters", &server.url, "--option", "trusted-public-keys", &server.public_key];
    let arguments = [&["--realise", text(path)], &options[..]].concat();
    Background::start(client.command("nix-store", &arguments)).finish_within(COMMAND_LIMIT)
}
