//! The machines that build, as they are configured, and which of them a derivation can be built on: by its
//! system and features as Nix matches them. No state: whether a machine is there is for the scheduler to
//! know.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use narinfo::{Derivation, StorePath};

use crate::nix::{Capabilities, Lack, Machine, SshMachine};

/// Weight of a builder without one of its own.
pub const WEIGHT: u32 = 1;
/// Name of the local Nix daemon among the builders.
pub const LOCAL: &str = "local";

/// A remote builder as it is configured.
#[derive(Clone, Debug)]
pub struct BuilderSettings {
    /// Name, for people.
    pub name: String,
    /// The machine and how it is reached.
    pub ssh: SshMachine,
    /// Public key of the host, where it was given with the machine: a line of a known-hosts file without the
    /// host.
    pub host_key: Option<String>,
    /// Systems and features.
    pub machine: Machine,
    /// Builds at a time.
    pub slots: NonZeroUsize,
    /// Speed in comparison with others.
    pub speed: f64,
    /// Preference before others, whatever is to be copied there.
    pub weight: u32,
    /// Silence after which it counts as lost.
    pub silent_max: Option<Duration>,
    /// Address at which it reaches this server; `None` for that of all clients.
    pub cache_url: Option<String>,
}

/// Settings of the machines that build.
#[derive(Clone, Debug, Default)]
pub struct FarmSettings {
    /// Builds at a time on the local Nix daemon; `None` leaves all to the builders.
    pub local_slots: Option<NonZeroUsize>,
    /// Other machines.
    pub builders: Vec<BuilderSettings>,
}

/// Names a machine of the farm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub(in crate::build) usize);

/// A machine that builds.
#[derive(Clone, Debug)]
pub struct FarmMachine {
    /// Name, for people.
    pub name: String,
    /// Login; `None` for the local Nix daemon.
    pub address: Option<String>,
    /// Systems and features; of the local one they are detected.
    pub machine: Machine,
    /// Builds at a time.
    pub slots: NonZeroUsize,
    /// Speed in comparison with others.
    pub speed: f64,
    /// Preference before others, whatever is to be copied there.
    pub weight: u32,
}

/// All machines that build.
#[derive(Clone, Debug)]
pub struct Farm {
    machines: Vec<FarmMachine>,
}

/// Machines that a derivation can be built on, and what it is built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::build) struct Placement {
    pub(in crate::build) fits: Vec<MachineId>,
    /// Derivations whose outputs it needs: where they were built, they need not be copied.
    pub(in crate::build) inputs: BTreeSet<StorePath>,
}

impl Farm {
    /// The local Nix daemon alone, which is taken to build whatever was admitted.
    #[must_use]
    pub fn local(lanes: NonZeroUsize) -> Self {
        Self::new(&FarmSettings { local_slots: Some(lanes), builders: Vec::new() })
    }

    /// The machines of these settings. The local one is the first where there is one.
    #[must_use]
    pub fn new(settings: &FarmSettings) -> Self {
        let local = settings.local_slots.map(|slots| FarmMachine {
            name: LOCAL.to_owned(),
            address: None,
            machine: Machine::default(),
            slots,
            speed: 1.0,
            weight: WEIGHT,
        });
        let remote = settings.builders.iter().map(|builder| FarmMachine {
            name: builder.name.clone(),
            address: Some(builder.ssh.target.to_string()),
            machine: builder.machine.clone(),
            slots: builder.slots,
            speed: builder.speed,
            weight: builder.weight,
        });
        Self { machines: local.into_iter().chain(remote).collect() }
    }

    /// The machines with their names.
    pub(in crate::build) fn machines(&self) -> impl Iterator<Item = (MachineId, &FarmMachine)> {
        self.machines.iter().enumerate().map(|(number, machine)| (MachineId(number), machine))
    }

    /// Names of the machines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.machines.iter().map(|machine| machine.name.as_str())
    }

    /// The machine of this name.
    pub(in crate::build) fn find(&self, name: &str) -> Option<MachineId> {
        self.machines().find(|(_, machine)| machine.name == name).map(|(id, _)| id)
    }

    /// True where nothing but the local Nix daemon builds.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.machines.iter().all(|machine| machine.address.is_none())
    }

    /// Builds at a time in all.
    #[must_use]
    pub fn lanes(&self) -> NonZeroUsize {
        let lanes = self.machines.iter().map(|machine| machine.slots.get()).sum();
        NonZeroUsize::new(lanes).unwrap_or(NonZeroUsize::MIN)
    }

    /// The local machine where it builds, else all others.
    pub(in crate::build) fn default_placement(&self) -> Placement {
        let local = self.machines().filter(|(_, machine)| machine.address.is_none());
        let local: Vec<MachineId> = local.map(|(id, _)| id).collect();
        let fits = if local.is_empty() { self.machines().map(|(id, _)| id).collect() } else { local };
        Placement { fits, inputs: BTreeSet::new() }
    }

    /// Capabilities of all machines; `local` has those of the local daemon.
    pub(in crate::build) fn capabilities(&self, local: &Capabilities) -> Capabilities {
        let builds_here = self.machines.iter().any(|machine| machine.address.is_none());
        let here = if builds_here { local.clone() } else { Capabilities::Machines(Vec::new()) };
        let remote = self.machines.iter().filter(|machine| machine.address.is_some());
        here.and(remote.map(|machine| machine.machine.clone()))
    }

    /// Machines that a derivation can be built on. What prefers to be built locally is built nowhere else
    /// where that is possible. Outputs whose paths are known only after the build are not copied from machine
    /// to machine, so they are built locally, too.
    pub(in crate::build) fn placement(&self, derivation: &Derivation, local: &Capabilities) -> Placement {
        let is_fit = |machine: &FarmMachine| machine.lack(derivation, local).is_none();
        let is_known = derivation.outputs.values().all(Option::is_some);
        let stays = derivation.prefers_local || !is_known;
        let mut fits: Vec<MachineId> =
            self.machines().filter(|(_, machine)| is_fit(machine)).map(|(id, _)| id).collect();
        let here = fits.iter().copied().find(|id| self.machines[id.0].address.is_none());
        if let (true, Some(here)) = (stays, here) {
            fits = vec![here];
        }
        Placement { fits, inputs: derivation.input_derivations.clone() }
    }

    /// The same where one machine is named, whatever the derivation prefers.
    ///
    /// # Errors
    /// With the reason why it cannot be built there.
    pub(in crate::build) fn placement_on(
        &self,
        machine: MachineId,
        derivation: &Derivation,
        local: &Capabilities,
    ) -> Result<Placement, String> {
        let named = &self.machines[machine.0];
        let cannot = |reason: String| Err(format!("the builder {} cannot build it: {reason}", named.name));
        if let Some(lack) = named.lack(derivation, local) {
            return cannot(format!("it lacks {lack}"));
        }
        if named.address.is_some() && derivation.outputs.values().any(Option::is_none) {
            return cannot(
                "floating content-addressed outputs are built on the local daemon alone".to_owned(),
            );
        }
        Ok(Placement { fits: vec![machine], inputs: derivation.input_derivations.clone() })
    }
}

impl FarmMachine {
    /// Requirement of a derivation that the machine lacks; `local` has the capabilities of the local daemon.
    fn lack(&self, derivation: &Derivation, local: &Capabilities) -> Option<Lack> {
        match self.address {
            None => local.lack(derivation),
            Some(_) => Capabilities::Machines(vec![self.machine.clone()]).lack(derivation),
        }
    }
}

#[cfg(test)]
impl BuilderSettings {
    /// A machine with one slot.
    pub(in crate::build) fn sample(name: &str, machine: Machine) -> Self {
        let ssh = SshMachine {
            target: name.parse().expect("a host"),
            key_file: None,
            known_hosts: None,
            remote_program: "nix-daemon".to_owned(),
            store_dir: narinfo::StoreDir::default(),
            operation_timeout: Duration::from_secs(60),
        };
        Self {
            name: name.to_owned(),
            ssh,
            host_key: None,
            machine,
            slots: NonZeroUsize::MIN,
            speed: 1.0,
            weight: WEIGHT,
            silent_max: None,
            cache_url: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn builder(name: &str, systems: &str, features: &str, mandatory: &str) -> BuilderSettings {
        let machine = Machine { systems: set(systems), features: set(features), mandatory: set(mandatory) };
        BuilderSettings::sample(name, machine)
    }

    fn derivation(system: &str, features: &str, prefers_local: bool) -> Derivation {
        Derivation {
            outputs: BTreeMap::new(),
            input_derivations: BTreeSet::new(),
            input_outputs: BTreeMap::new(),
            input_sources: BTreeSet::new(),
            system: system.to_owned(),
            is_builtin: false,
            name: "x".to_owned(),
            required_features: set(features),
            prefers_local,
        }
    }

    /// Names of the machines that can build it.
    fn names(farm: &Farm, derivation: &Derivation) -> Vec<String> {
        let here = Machine { systems: set("x86_64-linux i686-linux"), ..Machine::default() };
        let placement = farm.placement(derivation, &Capabilities::Machines(vec![here]));
        placement.fits.iter().map(|id| farm.machines[id.0].name.clone()).collect()
    }

    #[test]
    fn a_derivation_is_built_where_its_system_and_features_are() {
        let builders = vec![
            builder("arm", "aarch64-linux", "", ""),
            builder("big", "x86_64-linux aarch64-linux", "kvm", ""),
            builder("picky", "x86_64-linux", "", "benchmark"),
        ];
        let farm = Farm::new(&FarmSettings { local_slots: Some(NonZeroUsize::MIN), builders });
        for (system, features, expected) in [
            ("x86_64-linux", "", &["local", "big"][..]),
            ("i686-linux", "", &["local"]),
            ("aarch64-linux", "", &["arm", "big"]),
            ("aarch64-linux", "kvm", &["big"]),
            ("x86_64-linux", "benchmark", &["picky"]),
            ("riscv64-linux", "", &[]),
        ] {
            assert_eq!(names(&farm, &derivation(system, features, false)), expected, "{system} {features}");
        }
        assert_eq!(names(&farm, &derivation("x86_64-linux", "", true)), ["local"]);
        assert_eq!(names(&farm, &derivation("aarch64-linux", "", true)), ["arm", "big"]);
        let mut floating = derivation("x86_64-linux", "", false);
        floating.outputs.insert("out".to_owned(), None);
        assert_eq!(names(&farm, &floating), ["local"]);
    }

    #[test]
    fn a_machine_that_is_named_is_taken_whatever_is_preferred_unless_it_cannot() {
        let builders =
            vec![builder("far", "x86_64-linux", "kvm", ""), builder("arm", "aarch64-linux", "", "")];
        let farm = Farm::new(&FarmSettings { local_slots: Some(NonZeroUsize::MIN), builders });
        let here = Machine { systems: set("x86_64-linux"), ..Machine::default() };
        let local = Capabilities::Machines(vec![here]);
        let on = |name: &str, derivation: &Derivation| {
            let machine = farm.find(name).expect("it is there");
            farm.placement_on(machine, derivation, &local).map(|placement| placement.fits == [machine])
        };
        let preferring = derivation("x86_64-linux", "", true);
        assert_eq!((on("far", &preferring), on(LOCAL, &preferring)), (Ok(true), Ok(true)));
        for (name, derivation, words) in [
            ("arm", derivation("x86_64-linux", "", false), "system x86_64-linux (here: aarch64-linux)"),
            (LOCAL, derivation("x86_64-linux", "kvm", false), "feature kvm"),
        ] {
            let reason = on(name, &derivation).expect_err("it cannot");
            assert!(reason.contains(name) && reason.contains(words), "{reason}");
        }
        let mut floating = derivation("x86_64-linux", "", false);
        floating.outputs.insert("out".to_owned(), None);
        assert!(on("far", &floating).is_err() && on(LOCAL, &floating).is_ok());
        assert_eq!(farm.find("nobody"), None);
    }

    #[test]
    fn without_local_builds_the_builders_alone_count() {
        let builders = vec![builder("arm", "aarch64-linux", "", "")];
        let farm = Farm::new(&FarmSettings { local_slots: None, builders });
        assert_eq!(names(&farm, &derivation("x86_64-linux", "", true)), [""; 0]);
        assert_eq!(farm.default_placement().fits, [MachineId(0)]);
        let local = Capabilities::Unknown;
        assert!(farm.capabilities(&local).lack(&derivation("x86_64-linux", "", false)).is_some());
    }
}
