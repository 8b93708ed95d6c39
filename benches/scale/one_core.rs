//! One core for who asks and who answers. On two, most of what an answer takes is to wake the other one,
//! which sleeps between two questions, and how long that takes differs from minute to minute.

use std::fs;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::serving::usage::Processes;
use crate::support::process::tree_of;

/// This thread and all of the server's are on one core until this is dropped.
pub struct OneCore<'p> {
    processes: &'p Processes,
    /// Where they were before.
    before: CpuSet,
}

impl OneCore<'_> {
    /// The first core that this thread may use.
    pub fn of(processes: &Processes) -> OneCore<'_> {
        let before = sched_getaffinity(None).expect("the system tells");
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|core| before.is_set(*core)).expect("it runs somewhere"));
        let alone = OneCore { processes, before };
        alone.move_all(&one);
        alone
    }

    fn move_all(&self, cores: &CpuSet) {
        sched_setaffinity(None, cores).expect("this thread is moved");
        for thread in threads_of(self.processes) {
            // One that has just ended needs no core.
            let _ = sched_setaffinity(Some(thread), cores);
        }
    }
}

impl Drop for OneCore<'_> {
    fn drop(&mut self) {
        self.move_all(&self.before);
    }
}

fn threads_of(processes: &Processes) -> impl Iterator<Item = Pid> {
    let tasks =
        tree_of(processes.server).into_iter().filter_map(|id| fs::read_dir(format!("/proc/{id}/task")).ok());
    let names = tasks.flatten().filter_map(|task| task.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Pid::from_raw(name.parse().ok()?))
}
