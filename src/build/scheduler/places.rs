//! Places where the derivations of the queue may be built, by class: the few sets of machines that differ,
//! each with a number, so that the queue need not look at every derivation to find one for a free machine.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use narinfo::StorePath;

use crate::build::farm::{MachineId, Placement};
use crate::build::queue::PlaceClass;

/// Why nothing can be built on the builder that is named.
#[derive(Debug, thiserror::Error)]
pub enum NoBuilder {
    /// There is none of this name.
    #[error("no builder is called {name}; there are {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The administrator wants nothing to be built there.
    #[error("the builder {0} is drained: `ondine builders resume {0}` uses it again")]
    Drained(String),
}

/// Places of derivations.
pub(super) struct BuildPlaces {
    /// Machines of each class. The first is that of derivations of which nothing is known.
    classes: Vec<Vec<MachineId>>,
    by_drv: BTreeMap<StorePath, Placed>,
    no_inputs: BTreeSet<StorePath>,
}

struct Placed {
    class: PlaceClass,
    inputs: BTreeSet<StorePath>,
    /// True where a request names its machine: no other request that needs it changes that.
    is_fixed: bool,
}

impl BuildPlaces {
    pub(super) fn new(anywhere: Placement) -> Self {
        let Placement { fits, inputs } = anywhere;
        Self { classes: vec![fits], by_drv: BTreeMap::new(), no_inputs: inputs }
    }

    /// Takes places of derivations; that of `fixed` is kept whatever other requests need it.
    pub(super) fn expect(&mut self, placements: BTreeMap<StorePath, Placement>, fixed: Option<&StorePath>) {
        let mut seen: HashMap<Vec<MachineId>, PlaceClass> = HashMap::new();
        for (drv, Placement { fits, inputs }) in placements {
            let is_fixed = fixed == Some(&drv);
            if !is_fixed && self.by_drv.get(&drv).is_some_and(|placed| placed.is_fixed) {
                continue;
            }
            let class = *seen.entry(fits).or_insert_with_key(|fits| class_of(&mut self.classes, fits));
            self.by_drv.insert(drv, Placed { class, inputs, is_fixed });
        }
    }

    /// The place of a derivation is from now on that of the next request which needs it.
    pub(super) fn unfix(&mut self, drv: &StorePath) {
        if let Some(placed) = self.by_drv.get_mut(drv) {
            placed.is_fixed = false;
        }
    }

    pub(super) fn class(&self, drv: &StorePath) -> PlaceClass {
        self.by_drv.get(drv).map(|placed| placed.class).unwrap_or_default()
    }

    /// Machines that can build a derivation.
    pub(super) fn fits(&self, drv: &StorePath) -> &[MachineId] {
        let PlaceClass(class) = self.class(drv);
        &self.classes[class as usize]
    }

    /// Derivations whose outputs it needs.
    pub(super) fn inputs(&self, drv: &StorePath) -> &BTreeSet<StorePath> {
        self.by_drv.get(drv).map_or(&self.no_inputs, |placed| &placed.inputs)
    }

    pub(super) fn forget(&mut self, drv: &StorePath) {
        self.by_drv.remove(drv);
    }

    pub(super) fn len(&self) -> usize {
        self.by_drv.len()
    }

    pub(super) fn retain(&mut self, waits: impl Fn(&StorePath) -> bool) {
        self.by_drv.retain(|drv, _| waits(drv));
    }
}

fn class_of(classes: &mut Vec<Vec<MachineId>>, fits: &[MachineId]) -> PlaceClass {
    let known = classes.iter().position(|class| class == fits);
    let number = known.unwrap_or_else(|| {
        classes.push(fits.to_vec());
        classes.len() - 1
    });
    PlaceClass(u32::try_from(number).unwrap_or_default())
}
