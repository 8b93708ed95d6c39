//! Cores for who asks and who answers. On the same two, most of what an answer takes is to wake the other
//! one, which sleeps between two questions, and how long that takes differs from minute to minute; and
//! servers with more threads than cores are switched between, which servers of as many machines are not.

use std::fs;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::serving::usage::Processes;
use crate::support::process::tree_of;

/// This thread, and those that it starts, are on one core, and all of some servers on one core, until this is
/// dropped.
pub struct Pinned<'p> {
    processes: &'p Processes,
    /// Where they were before.
    before: CpuSet,
}

impl Pinned<'_> {
    /// All on the first core that this thread may use.
    pub fn together(processes: &Processes) -> Pinned<'_> {
        Pinned::new(processes, 0)
    }

    /// This thread on the first core, the servers on the second, if there is one.
    pub fn apart(processes: &Processes) -> Pinned<'_> {
        Pinned::new(processes, 1)
    }

    fn new(processes: &Processes, servers: usize) -> Pinned<'_> {
        let before = sched_getaffinity(None).expect("the system tells");
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).collect();
        let pinned = Pinned { processes, before };
        pinned.move_all(&only(cores[0]), &only(*cores.get(servers).unwrap_or(&cores[0])));
        pinned
    }

    fn move_all(&self, own: &CpuSet, servers: &CpuSet) {
        sched_setaffinity(None, own).expect("this thread is moved");
        for thread in threads_of(self.processes) {
            // One that has just ended needs no core.
            let _ = sched_setaffinity(Some(thread), servers);
        }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.move_all(&self.before, &self.before);
    }
}

fn only(core: usize) -> CpuSet {
    let mut cores = CpuSet::new();
    cores.set(core);
    cores
}

fn threads_of(processes: &Processes) -> impl Iterator<Item = Pid> {
    let roots = processes.helpers.iter().chain([&processes.server]);
    let tasks =
        roots.flat_map(|root| tree_of(*root)).filter_map(|id| fs::read_dir(format!("/proc/{id}/task")).ok());
    let names = tasks.flatten().filter_map(|task| task.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Pid::from_raw(name.parse().ok()?))
}
