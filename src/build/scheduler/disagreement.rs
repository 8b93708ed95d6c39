//! Failures by machine, to tell which machines disagree: one on which a derivation fails, and another one on
//! which it is built. One of the two is not as it should be.

use std::collections::{BTreeMap, VecDeque};

use narinfo::StorePath;

use crate::build::farm::MachineId;

/// Failures that are remembered.
const FAILURES_MAX: usize = 1_000;

/// Derivations whose latest build failed, each with the machine.
#[derive(Default)]
pub(super) struct FailedBuilds {
    machines: BTreeMap<StorePath, MachineId>,
    oldest_first: VecDeque<StorePath>,
}

impl FailedBuilds {
    pub(super) fn failed(&mut self, drv: &StorePath, on: MachineId) {
        if self.machines.insert(drv.clone(), on).is_none() {
            self.oldest_first.push_back(drv.clone());
        }
        if self.oldest_first.len() > FAILURES_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.machines.remove(&oldest);
        }
    }

    /// The machine on which the latest build of a derivation failed.
    pub(super) fn machine_of(&self, drv: &StorePath) -> Option<MachineId> {
        self.machines.get(drv).copied()
    }

    /// A derivation was built: its failure is over. Gives the machine that it failed on.
    pub(super) fn built(&mut self, drv: &StorePath) -> Option<MachineId> {
        let machine = self.machines.remove(drv)?;
        self.oldest_first.retain(|other| other != drv);
        Some(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_failures_are_remembered_with_their_machines_until_the_derivation_is_built() {
        let drv = |number: usize| StorePath::parse(&format!("{number:032}-p.drv")).expect("a path");
        let mut failed = FailedBuilds::default();
        for number in 0..=FAILURES_MAX {
            failed.failed(&drv(number), MachineId(number));
        }
        assert_eq!(failed.machine_of(&drv(0)), None, "there is room for the latest only");
        failed.failed(&drv(1), MachineId(7));
        assert_eq!(failed.machine_of(&drv(1)), Some(MachineId(7)));
        assert_eq!((failed.built(&drv(1)), failed.built(&drv(1))), (Some(MachineId(7)), None));
        assert_eq!(failed.oldest_first.len(), failed.machines.len());
    }
}
