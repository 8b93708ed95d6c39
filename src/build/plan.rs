//! Plan of a request: the derivations of its closure that have no outputs yet, each with its inputs among
//! them; or why it is not even begun. Builds nothing itself, and takes nothing for there that is not valid in
//! the Nix store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narinfo::{Derivation, StoreDir, StorePath};

use super::admission;
use super::farm::{Farm, MachineId, Placement};
use super::runner::known_outputs;
use super::verdict::Verdict;
use crate::index::Index;
use crate::nix::{BuildTarget, Capabilities, Daemon, DaemonError, Lack, SentDerivation, read_derivation};

/// Derivations that are looked at for one request at most.
const READ_MAX: usize = 100_000;

/// The derivations that a request lacks, each with its inputs among them.
pub(super) type Needs = BTreeMap<StorePath, BTreeSet<StorePath>>;

/// Derivations to build for a request.
#[derive(Default)]
pub(super) struct Planned {
    /// The derivations that it lacks.
    pub(super) needs: Needs,
    /// The system each of them is built on, where that is known.
    pub(super) systems: BTreeMap<StorePath, String>,
    /// The outputs of each of them, where they are known before it is built.
    pub(super) outputs: BTreeMap<StorePath, Vec<StorePath>>,
    /// Machines that can build each of them; nothing where there is but the local Nix daemon.
    pub(super) placements: BTreeMap<StorePath, Placement>,
}

/// Conditions of a plan.
#[derive(Clone)]
pub(super) struct PlanRules {
    /// Derivations to build at most.
    pub(super) derivations_max: usize,
    /// Capabilities of the local Nix daemon.
    pub(super) capabilities: Arc<Capabilities>,
    /// The machines that build.
    pub(super) farm: Arc<Farm>,
    /// Index of served paths.
    pub(super) index: Index,
    /// The machine that alone may build what is wanted, where one was named.
    pub(super) only: Option<MachineId>,
}

/// Why there is no plan.
pub(super) enum Error {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The request cannot be completed as things stand.
    Impossible(Verdict),
    /// The machine that was named cannot build it; others may.
    Unfit(String),
    /// The derivation is not in the Nix store (any more).
    Collected,
}

impl From<DaemonError> for Error {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

/// The derivations to build so that every output of `drv` is there; none when they are. Refused when there
/// are more than allowed, or when one needs what no machine has.
pub(super) async fn plan(daemon: &mut Daemon, drv: &StorePath, rules: &PlanRules) -> Result<Planned, Error> {
    if !daemon.is_valid_path(drv).await? {
        return Err(Error::Collected);
    }
    let missing = daemon.query_missing(&[BuildTarget::All { drv: drv.clone() }]).await?;
    let mut will_build = missing.will_build;
    if !rules.farm.is_local() {
        // What other machines have built is served, and not in the Nix store.
        will_build = not_served(daemon.store_dir(), drv, will_build, rules).await?;
    }
    let count = will_build.len();
    if let Some(refusal) = admission::too_many(count, rules.derivations_max) {
        return Err(Error::Impossible(refusal));
    }
    let (store_dir, unknown) = (daemon.store_dir().clone(), missing.unknown);
    let reading = tokio::task::spawn_blocking({
        let (unknown, rules, drv) = (unknown.clone(), rules.clone(), drv.clone());
        move || read(&store_dir, &drv, will_build, &unknown, &rules)
    });
    let Read { mut needs, systems, outputs, placements, unfit, lacks, unread, mut absent } =
        reading.await.map_err(not_read)?;
    if let Some(reason) = unfit {
        return Err(Error::Unfit(reason));
    }
    if let Some(refusal) = admission::lacking(&lacks, count) {
        return Err(Error::Impossible(refusal));
    }
    for drv in unread {
        let info = daemon.query_path_info(&drv).await?;
        let inputs = info.map(|valid| valid.info.references).unwrap_or_default();
        absent = absent.or_else(|| inputs.intersection(&unknown).next().cloned());
        needs.insert(drv, inputs);
    }
    // Not all that is unknown: the daemon counts what its substituters lack of a closure that they have in
    // part, and builds that.
    if let Some(absent) = absent {
        let reason = format!("{absent} is needed, is not in the Nix store, and no known derivation makes it");
        return Err(Error::Impossible(Verdict::transient(reason)));
    }
    // The daemon would fetch what it is asked for, as far as it knows. Whether it can is seen when it does:
    // what it cannot fetch, it builds. A system or a feature that is lacking here is no reason against
    // fetching.
    if !needs.contains_key(drv) && !has_outputs(daemon, drv, rules).await? {
        needs.insert(drv.clone(), BTreeSet::new());
    }
    let planned: BTreeSet<StorePath> = needs.keys().cloned().collect();
    needs.values_mut().for_each(|inputs| inputs.retain(|input| planned.contains(input)));
    Ok(Planned { needs, systems, outputs, placements })
}

/// The same for a derivation that a client has sent with the paths that it is built from: it needs no other
/// one.
pub(super) async fn plan_sent(
    daemon: &mut Daemon,
    sent: &SentDerivation,
    rules: &PlanRules,
) -> Result<Planned, Error> {
    let mut planned = Planned::default();
    let mut lacks_output = false;
    for output in &sent.outputs {
        let is_served =
            matches!(rules.index.find(output.hash()).await, Ok(Some(hit)) if hit.row.info.path == *output);
        lacks_output |= !is_served && !daemon.is_valid_path(output).await?;
    }
    if !lacks_output {
        return Ok(planned);
    }
    let (drv, outline) = (&sent.drv, &sent.outline);
    let lack = rules.farm.capabilities(&rules.capabilities).lack(outline);
    let lacks: Vec<_> = lack.map(|lack| (drv.clone(), lack)).into_iter().collect();
    if let Some(refusal) = admission::lacking(&lacks, 1) {
        return Err(Error::Impossible(refusal));
    }
    if !rules.farm.is_local() {
        let placement = placement(outline, rules.only, rules).map_err(Error::Unfit)?;
        planned.placements.insert(drv.clone(), placement);
    }
    planned.systems.insert(drv.clone(), outline.system.clone());
    planned.outputs.insert(drv.clone(), sent.outputs.clone());
    planned.needs.insert(drv.clone(), BTreeSet::new());
    Ok(planned)
}

fn not_read(error: tokio::task::JoinError) -> Error {
    DaemonError::Protocol(format!("reading .drv files failed: {error}")).into()
}

/// Those of `will_build` that are needed for `drv` and of which not all outputs are served. What only others
/// need that are served is not needed.
async fn not_served(
    store_dir: &StoreDir,
    drv: &StorePath,
    will_build: BTreeSet<StorePath>,
    rules: &PlanRules,
) -> Result<BTreeSet<StorePath>, Error> {
    if let Some(refusal) = admission::too_many(will_build.len(), READ_MAX) {
        return Err(Error::Impossible(refusal));
    }
    let store_dir = store_dir.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let outline = |drv: StorePath| match read_derivation(&store_dir, &drv) {
            Ok(derivation) => {
                let outputs = derivation.outputs.into_values().collect::<Option<Vec<_>>>();
                (drv, (outputs, derivation.input_derivations))
            }
            // It is told when it is read to be built.
            Err(_) => (drv, (None, BTreeSet::new())),
        };
        will_build.into_iter().map(outline).collect::<BTreeMap<_, _>>()
    });
    let outlines = reading.await.map_err(not_read)?;
    let paths = outlines.values().filter_map(|(outputs, _)| outputs.as_ref()).flatten();
    let served = rules.index.served(paths.map(StorePath::hash).collect()).await;
    // What is served may be built again: better than not at all.
    let served = served.unwrap_or_default();
    let is_served = |outputs: &Option<Vec<StorePath>>| {
        outputs.as_ref().is_some_and(|paths| paths.iter().all(|path| served.get(&path.hash()) == Some(path)))
    };
    let (mut needed, mut open) = (BTreeSet::new(), vec![drv.clone()]);
    while let Some(drv) = open.pop() {
        if let Some((outputs, inputs)) = outlines.get(&drv)
            && !is_served(outputs)
            && needed.insert(drv)
        {
            open.extend(inputs.iter().cloned());
        }
    }
    Ok(needed)
}

/// True when every output of a derivation is valid, as far as their paths are known.
async fn has_outputs(daemon: &mut Daemon, drv: &StorePath, rules: &PlanRules) -> Result<bool, DaemonError> {
    for output in known_outputs(daemon, drv).await? {
        if !daemon.is_valid_path(&output).await? && !is_built_elsewhere(&output, rules).await {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True for a path that is served though it need not be in the Nix store, as what other machines have built.
async fn is_built_elsewhere(path: &StorePath, rules: &PlanRules) -> bool {
    !rules.farm.is_local()
        && matches!(rules.index.find(path.hash()).await, Ok(Some(hit)) if hit.row.info.path == *path)
}

/// Contents of the files of derivations.
#[derive(Default)]
struct Read {
    needs: Needs,
    systems: BTreeMap<StorePath, String>,
    outputs: BTreeMap<StorePath, Vec<StorePath>>,
    placements: BTreeMap<StorePath, Placement>,
    /// Why the machine that was named cannot build what is wanted.
    unfit: Option<String>,
    lacks: Vec<(StorePath, Lack)>,
    /// Those that cannot be read: the daemon knows what they need, and will say what it cannot build.
    unread: Vec<StorePath>,
    /// An input of one of them that nobody has.
    absent: Option<StorePath>,
}

fn read(
    store_dir: &StoreDir,
    wanted: &StorePath,
    drvs: BTreeSet<StorePath>,
    unknown: &BTreeSet<StorePath>,
    rules: &PlanRules,
) -> Read {
    let mut read = Read::default();
    let capabilities = match rules.farm.is_local() {
        true => Capabilities::clone(&rules.capabilities),
        false => rules.farm.capabilities(&rules.capabilities),
    };
    for drv in drvs {
        match read_derivation(store_dir, &drv) {
            Ok(derivation) => {
                read.lacks.extend(capabilities.lack(&derivation).map(|lack| (drv.clone(), lack)));
                if !rules.farm.is_local() {
                    match placement(&derivation, rules.only.filter(|_| drv == *wanted), rules) {
                        Ok(placement) => drop(read.placements.insert(drv.clone(), placement)),
                        Err(reason) => read.unfit = Some(reason),
                    }
                }
                let mut inputs = derivation.input_sources.iter().chain(&derivation.input_derivations);
                read.absent = read.absent.or_else(|| inputs.find(|input| unknown.contains(*input)).cloned());
                let outputs = derivation.outputs.into_values().flatten();
                read.outputs.insert(drv.clone(), outputs.collect());
                read.systems.insert(drv.clone(), derivation.system);
                read.needs.insert(drv, derivation.input_derivations);
            }
            Err(reason) => {
                tracing::warn!(%drv, reason, "cannot read a derivation, so its system and features are not checked");
                read.unread.push(drv);
            }
        }
    }
    read
}

/// Machines for a derivation; the one that was named, where one was.
fn placement(
    derivation: &Derivation,
    only: Option<MachineId>,
    rules: &PlanRules,
) -> Result<Placement, String> {
    match only {
        Some(machine) => rules.farm.placement_on(machine, derivation, &rules.capabilities),
        None => Ok(rules.farm.placement(derivation, &rules.capabilities)),
    }
}
