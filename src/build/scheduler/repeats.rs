//! Second builds of derivations, each on another machine than the first, to compare the outputs. They take
//! slots that are free while nothing that waits could have them.

use std::collections::VecDeque;

use narinfo::StorePath;

use super::Scheduler;
use crate::build::farm::MachineId;

/// Second builds that wait, at most; those of more derivations are left out.
const DUE_MAX: usize = 1_000;

/// A derivation to be built again.
#[derive(Clone, Debug)]
pub(in crate::build) struct Repeat {
    pub(in crate::build) drv: StorePath,
    /// The machine that has built it.
    pub(in crate::build) first: MachineId,
    /// Others that can.
    others: Vec<MachineId>,
}

/// Second builds that wait.
#[derive(Default)]
pub(super) struct Repeats(VecDeque<Repeat>);

impl Repeats {
    /// A machine has built a derivation that these others can build, too.
    pub(super) fn built(&mut self, drv: &StorePath, first: MachineId, others: Vec<MachineId>) {
        if !others.is_empty() && self.0.len() < DUE_MAX {
            self.0.push_back(Repeat { drv: drv.clone(), first, others });
        }
    }
}

impl Scheduler {
    /// The next derivation to build a second time, and the machine that is to do it; it takes up a slot there
    /// until it has [ended](Self::repeated).
    pub(in crate::build) fn next_repeat(&self) -> Option<(Repeat, MachineId)> {
        if !self.0.may_start() {
            return None;
        }
        let mut state = self.0.lock();
        let free = |repeat: &Repeat| repeat.others.iter().copied().find(|id| state.machines.is_free(*id));
        let (at, machine) =
            state.repeats.0.iter().enumerate().find_map(|(at, repeat)| Some((at, free(repeat)?)))?;
        let repeat = state.repeats.0.remove(at)?;
        state.machines.occupy(&repeat.drv, machine);
        Some((repeat, machine))
    }

    /// A second build has ended. `failed` where that is the fault of the build.
    pub(in crate::build) fn repeated(&self, repeat: &Repeat, on: MachineId, failed: bool) {
        let mut state = self.0.lock();
        state.machines.vacate(&repeat.drv, on);
        if failed {
            state.machines.disagree(&repeat.drv, on, repeat.first);
        }
        drop(state);
        self.wake();
    }
}
