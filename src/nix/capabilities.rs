//! Capabilities of the Nix daemon, and the requirements of a derivation that it lacks. The rules are Nix's
//! own: the daemon's machine or one remote builder must have the system and every feature. Lenient in doubt:
//! a derivation that passes wrongly fails in the daemon, as it would without this check. No I/O.

use std::collections::BTreeSet;
use std::fmt;

use narinfo::Derivation;

/// The system of what every Nix builds itself, such as a download.
const BUILTIN: &str = "builtin";

/// One machine on which the daemon builds: its own, or a remote builder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Systems it builds for, such as `x86_64-linux`.
    pub systems: BTreeSet<String>,
    /// Features it offers, such as `kvm`.
    pub features: BTreeSet<String>,
    /// Features it offers, too, and that whatever it builds must require.
    pub mandatory: BTreeSet<String>,
}

/// Systems and features that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capabilities {
    /// Nobody knows: then nothing is said to be lacking.
    Unknown,
    /// Capabilities of each of these machines.
    Machines(Vec<Machine>),
}

/// A requirement of a derivation that no machine meets. Its text names the existing ones instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// A system.
    System {
        /// The system it is for.
        needed: String,
        /// The systems that there are.
        here: BTreeSet<String>,
    },
    /// Features, of those machines that have the system.
    Features {
        /// Those that none of them has; when each of them has some: all that it requires.
        needed: BTreeSet<String>,
        /// The features that there are.
        here: BTreeSet<String>,
    },
    /// The machines for it build only what requires something that this does not.
    Mandatory {
        /// The system it is for.
        system: String,
        /// Features that a derivation must require to be built there.
        required: BTreeSet<String>,
    },
}

impl Machine {
    fn has_system(&self, derivation: &Derivation) -> bool {
        derivation.is_builtin || derivation.system == BUILTIN || self.systems.contains(&derivation.system)
    }

    fn offers(&self, feature: &String) -> bool {
        self.features.contains(feature) || self.mandatory.contains(feature)
    }
}

impl Capabilities {
    /// True if the daemon's own machine is known to be the only one.
    #[must_use]
    pub fn has_one_machine(&self) -> bool {
        matches!(self, Self::Machines(machines) if machines.len() == 1)
    }

    /// Capabilities of these machines and of `more`.
    #[must_use]
    pub fn and(&self, more: impl IntoIterator<Item = Machine>) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            Self::Machines(machines) => Self::Machines(machines.iter().cloned().chain(more).collect()),
        }
    }

    /// All systems and features together, as of one machine; none where nobody knows them. Mandatory are the
    /// features that each machine insists on.
    #[must_use]
    pub fn summary(&self) -> Machine {
        let Self::Machines(machines) = self else { return Machine::default() };
        let mut mandatory = union(machines, |m| &m.mandatory);
        mandatory.retain(|feature| machines.iter().all(|machine| machine.mandatory.contains(feature)));
        Machine {
            systems: union(machines, |m| &m.systems),
            features: union(machines, |m| &m.features),
            mandatory,
        }
    }

    /// The requirement of `derivation` that nobody here meets; `None` if it can be built.
    #[must_use]
    pub fn lack(&self, derivation: &Derivation) -> Option<Lack> {
        let Self::Machines(machines) = self else { return None };
        let required = &derivation.required_features;
        let suitable: Vec<&Machine> = machines.iter().filter(|m| m.has_system(derivation)).collect();
        if suitable.is_empty() {
            return Some(Lack::System {
                needed: derivation.system.clone(),
                here: union(machines, |m| &m.systems),
            });
        }
        let mut able =
            suitable.iter().filter(|machine| required.iter().all(|f| machine.offers(f))).peekable();
        if able.peek().is_none() {
            let nowhere = |feature: &&String| !suitable.iter().any(|machine| machine.offers(feature));
            let missing: BTreeSet<String> = required.iter().filter(nowhere).cloned().collect();
            let needed = if missing.is_empty() { required.clone() } else { missing };
            let mut here = union(suitable.iter().copied(), |m| &m.features);
            here.extend(union(suitable.iter().copied(), |m| &m.mandatory));
            return Some(Lack::Features { needed, here });
        }
        let unmet: Vec<&Machine> = able.copied().collect();
        if unmet.iter().any(|machine| machine.mandatory.is_subset(required)) {
            return None;
        }
        let insists = unmet.first().map(|machine| machine.mandatory.clone()).unwrap_or_default();
        Some(Lack::Mandatory { system: derivation.system.clone(), required: insists })
    }

    /// The same with an admin's overrides: these systems, these features, on all machines.
    #[must_use]
    pub fn with(self, systems: Option<BTreeSet<String>>, features: Option<BTreeSet<String>>) -> Self {
        if systems.is_none() && features.is_none() {
            return self;
        }
        let found = match &self {
            Self::Machines(machines) => machines.as_slice(),
            // The other half of what nobody knows stays unknown.
            Self::Unknown if systems.is_none() || features.is_none() => return self,
            Self::Unknown => &[],
        };
        let systems = systems.unwrap_or_else(|| union(found, |m| &m.systems));
        let features = features.unwrap_or_else(|| {
            let mut all = union(found, |m| &m.features);
            all.extend(union(found, |m| &m.mandatory));
            all
        });
        Self::Machines(vec![Machine { systems, features, mandatory: BTreeSet::new() }])
    }
}

fn union<'a>(
    machines: impl IntoIterator<Item = &'a Machine>,
    of: impl Fn(&Machine) -> &BTreeSet<String>,
) -> BTreeSet<String> {
    machines.into_iter().flat_map(|machine| of(machine).clone()).collect()
}

impl fmt::Display for Lack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { needed, here } => write!(out, "system {needed} (here: {})", list(here)),
            Self::Features { needed, here } => {
                let word = if needed.len() == 1 { "feature" } else { "features" };
                write!(out, "{word} {} (here: {})", list(needed), list(here))
            }
            Self::Mandatory { system, required } => {
                write!(out, "system {system} (here only for what requires {})", list(required))
            }
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Machines(machines) = self else { return out.write_str("anything, as far as is known") };
        for (number, machine) in machines.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            write!(out, "{separator}{} with {}", list(&machine.systems), list(&machine.features))?;
            if !machine.mandatory.is_empty() {
                write!(out, ", only for {}", list(&machine.mandatory))?;
            }
        }
        Ok(())
    }
}

fn list(names: &BTreeSet<String>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn machine(systems: &str, features: &str, mandatory: &str) -> Machine {
        Machine { systems: set(systems), features: set(features), mandatory: set(mandatory) }
    }

    fn derivation(system: &str, features: &str) -> Derivation {
        Derivation {
            outputs: BTreeMap::new(),
            input_derivations: BTreeSet::new(),
            input_outputs: BTreeMap::new(),
            input_sources: BTreeSet::new(),
            system: system.to_owned(),
            is_builtin: false,
            name: "x".to_owned(),
            required_features: set(features),
            prefers_local: false,
        }
    }

    /// The missing requirement as text; empty if there is none.
    fn lack(machines: &[Machine], system: &str, features: &str) -> String {
        let lack = Capabilities::Machines(machines.to_vec()).lack(&derivation(system, features));
        lack.map(|lack| lack.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_derivation_needs_a_machine_with_its_system_and_all_its_features() {
        let local = machine("x86_64-linux i686-linux", "kvm benchmark", "");
        let remote = machine("aarch64-linux", "big-parallel nixos-test", "");
        for (system, features, expected) in [
            ("x86_64-linux", "", ""),
            ("i686-linux", "kvm benchmark", ""),
            ("aarch64-linux", "big-parallel", ""),
            ("riscv64-linux", "kvm", "system riscv64-linux (here: aarch64-linux, i686-linux, x86_64-linux)"),
            ("aarch64-linux", "kvm", "feature kvm (here: big-parallel, nixos-test)"),
            ("x86_64-linux", "kvm moon mars", "features mars, moon (here: benchmark, kvm)"),
        ] {
            assert_eq!(lack(&[local.clone(), remote.clone()], system, features), expected);
        }
        assert_eq!(lack(&[], "x86_64-linux", ""), "system x86_64-linux (here: none)");
    }

    #[test]
    fn features_of_two_machines_do_not_add_up() {
        let machines = [machine("x86_64-linux", "a", ""), machine("x86_64-linux", "b", "")];
        assert_eq!(lack(&machines, "x86_64-linux", "a b"), "features a, b (here: a, b)");
    }

    #[test]
    fn a_machine_with_mandatory_features_takes_only_what_requires_them_all() {
        let picky = [machine("aarch64-linux", "kvm", "benchmark big")];
        assert_eq!(lack(&picky, "aarch64-linux", "benchmark big"), "");
        assert_eq!(lack(&picky, "aarch64-linux", "benchmark big kvm"), "");
        for features in ["", "kvm", "benchmark"] {
            assert_eq!(
                lack(&picky, "aarch64-linux", features),
                "system aarch64-linux (here only for what requires benchmark, big)"
            );
        }
        assert_eq!(lack(&picky, "aarch64-linux", "moon"), "feature moon (here: benchmark, big, kvm)");
    }

    #[test]
    fn what_nix_builds_itself_has_a_system_everywhere() {
        let local = [machine("x86_64-linux", "", "")];
        assert_eq!(lack(&local, "builtin", ""), "");
        assert_eq!(lack(&local, "builtin", "moon"), "feature moon (here: none)");
        let download = Derivation { is_builtin: true, ..derivation("riscv64-linux", "") };
        assert_eq!(Capabilities::Machines(local.to_vec()).lack(&download), None);
    }

    #[test]
    fn a_daemon_with_remote_builders_is_shown_with_all_that_they_build() {
        let local = machine("x86_64-linux i686-linux", "kvm", "");
        let picky = machine("aarch64-linux", "", "benchmark");
        let all = Capabilities::Machines(vec![local, picky.clone()]).summary();
        assert_eq!(all, machine("x86_64-linux i686-linux aarch64-linux", "kvm", ""));
        assert_eq!(Capabilities::Machines(vec![picky.clone()]).summary(), picky);
        assert_eq!(Capabilities::Unknown.summary(), Machine::default());
    }

    #[test]
    fn nothing_is_lacking_where_nothing_is_known() {
        assert_eq!(Capabilities::Unknown.lack(&derivation("vax-vms", "moon")), None);
    }

    #[test]
    fn what_an_admin_says_stands_for_all_machines() {
        let found = Capabilities::Machines(vec![machine("a-linux", "f", ""), machine("b-linux", "", "g")]);
        assert_eq!(found.clone().with(None, None), found);
        let systems = found.clone().with(Some(set("c-linux")), None);
        assert_eq!(systems, Capabilities::Machines(vec![machine("c-linux", "f g", "")]));
        let features = found.with(None, Some(set("h")));
        assert_eq!(features, Capabilities::Machines(vec![machine("a-linux b-linux", "h", "")]));
        let unknown = Capabilities::Unknown;
        assert_eq!(unknown.clone().with(Some(set("c-linux")), None), unknown);
        let both = unknown.with(Some(set("c-linux")), Some(set("")));
        assert_eq!(both, Capabilities::Machines(vec![machine("c-linux", "", "")]));
    }
}
