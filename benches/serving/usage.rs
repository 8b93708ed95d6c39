//! Usage of servers, as the kernel counts it: processor time and memory of their process trees, and how much
//! of the machine others took meanwhile.

use std::fs;
use std::time::Instant;

use crate::support::process::{memory_bytes, tree_of};

/// Clock ticks in a second, as /proc writes times: fixed by Linux for programs, whatever the kernel's own
/// clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// The processes of a server.
#[derive(Clone, Debug)]
pub struct Processes {
    /// The server; its children belong to it.
    pub server: u32,
    /// Others that work for it, such as the Nix daemon: their time is counted, their memory is not.
    pub helpers: Vec<u32>,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident bytes.
    pub resident: u64,
    /// Without mapped files, which the kernel can drop at any time.
    pub anonymous: u64,
}

impl Processes {
    /// Seconds of processor time since they were started.
    pub fn cpu(&self) -> f64 {
        let roots = self.helpers.iter().chain([&self.server]);
        roots.flat_map(|id| tree_of(*id)).map(|id| cpu_of(&id.to_string())).sum()
    }

    /// Memory of the server and its children now.
    pub fn memory(&self) -> Memory {
        let mut sum = Memory::default();
        for id in tree_of(self.server) {
            sum.resident += memory_bytes(id, "VmRSS").unwrap_or(0);
            sum.anonymous += memory_bytes(id, "RssAnon").unwrap_or(0);
        }
        sum
    }
}

/// Seconds of processor time of one process and of its children that have ended.
fn cpu_of(id: &str) -> f64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { return 0.0 };
    // The name may hold anything; behind it, from the eleventh field on: utime, stime, cutime, cstime
    // (proc(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// Seconds of processor time of all programs of this machine together, and of other machines on the same
/// hardware.
fn cpu_of_all() -> f64 {
    let stat = fs::read_to_string("/proc/stat").expect("the kernel counts");
    // user, nice, system, and steal (proc(5)).
    let fields: Vec<f64> = stat.split_whitespace().skip(1).map_while(|ticks| ticks.parse().ok()).collect();
    [0, 1, 2, 7].into_iter().filter_map(|field| fields.get(field)).sum::<f64>() / TICKS_PER_SECOND
}

/// A stretch of time in which everything is counted.
pub struct Window<'p> {
    processes: &'p Processes,
    opened: Instant,
    server: f64,
    own: f64,
    all: f64,
}

/// Usage in a window.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Its length in seconds.
    pub seconds: f64,
    /// Seconds of processor time of the server.
    pub server: f64,
    /// The same of this program, which makes the load.
    pub own: f64,
    /// The share of the machine that others had, of 1.
    pub others: f64,
}

impl<'p> Window<'p> {
    /// Begins to count.
    pub fn open(processes: &'p Processes) -> Window<'p> {
        let (all, own, server) = (cpu_of_all(), cpu_of("self"), processes.cpu());
        Window { processes, opened: Instant::now(), server, own, all }
    }

    /// Ends it.
    pub fn close(self) -> Used {
        let seconds = self.opened.elapsed().as_secs_f64();
        let server = self.processes.cpu() - self.server;
        let own = cpu_of("self") - self.own;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let others = (cpu_of_all() - self.all - server - own) / (seconds * cores);
        Used { seconds, server, own, others: others.max(0.0) }
    }
}

/// The process that listens on a port of this machine: the first, where it was inherited by others.
pub fn listener(port: u16) -> Option<u32> {
    let listening = |table: &str| {
        let lines = fs::read_to_string(table).unwrap_or_default();
        lines.lines().filter_map(|line| inode_of_listener(line, port)).map(str::to_owned).collect::<Vec<_>>()
    };
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .flat_map(listening)
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let ids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    })
    .min()
}

/// The inode in a line of /proc/net/tcp that tells of a socket listening on `port`.
fn inode_of_listener(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    (local.ends_with(&format!(":{port:04X}")) && *state == "0A").then_some(*inode)
}
