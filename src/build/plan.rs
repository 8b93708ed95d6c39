//! Plan of a request: the derivations of its closure that have no outputs yet, each with its inputs among
//! them; or why it is not even begun. Builds nothing itself, and takes nothing for there that is not valid in
//! the Nix store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use narinfo::{StoreDir, StorePath};

use super::admission;
use super::runner::known_outputs;
use super::verdict::Verdict;
use crate::nix::{BuildTarget, Capabilities, Daemon, DaemonError, Lack, read_derivation};

/// The derivations that a request lacks, each with its inputs among them.
pub(super) type Needs = BTreeMap<StorePath, BTreeSet<StorePath>>;

/// Derivations to build for a request.
pub(super) struct Planned {
    /// The derivations that it lacks.
    pub(super) needs: Needs,
    /// The system each of them is built on, where that is known.
    pub(super) systems: BTreeMap<StorePath, String>,
    /// The outputs of each of them, where they are known before it is built.
    pub(super) outputs: BTreeMap<StorePath, Vec<StorePath>>,
}

/// Why there is no plan.
pub(super) enum Error {
    /// The daemon failed.
    Daemon(DaemonError),
    /// The request cannot be completed as things stand.
    Impossible(Verdict),
    /// The derivation is not in the Nix store (any more).
    Collected,
}

impl From<DaemonError> for Error {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

/// The derivations to build so that every output of `drv` is there; none when they are. Refused when there
/// are more than `derivations_max` of them, or when one needs what is not among `capabilities`.
pub(super) async fn plan(
    daemon: &mut Daemon,
    drv: &StorePath,
    derivations_max: usize,
    capabilities: &Arc<Capabilities>,
) -> Result<Planned, Error> {
    if !daemon.is_valid_path(drv).await? {
        return Err(Error::Collected);
    }
    let missing = daemon.query_missing(&[BuildTarget::All { drv: drv.clone() }]).await?;
    let count = missing.will_build.len();
    if let Some(refusal) = admission::too_many(count, derivations_max) {
        return Err(Error::Impossible(refusal));
    }
    let (store_dir, capabilities) = (daemon.store_dir().clone(), Arc::clone(capabilities));
    let unknown = missing.unknown;
    let reading = tokio::task::spawn_blocking({
        let unknown = unknown.clone();
        move || read(&store_dir, missing.will_build, &unknown, &capabilities)
    });
    let Read { mut needs, systems, outputs, lacks, unread, mut absent } = match reading.await {
        Ok(read) => read,
        Err(error) => return Err(DaemonError::Protocol(format!("reading .drv files failed: {error}")).into()),
    };
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
    if !needs.contains_key(drv) && !has_outputs(daemon, drv).await? {
        needs.insert(drv.clone(), BTreeSet::new());
    }
    let planned: BTreeSet<StorePath> = needs.keys().cloned().collect();
    needs.values_mut().for_each(|inputs| inputs.retain(|input| planned.contains(input)));
    Ok(Planned { needs, systems, outputs })
}

/// True when every output of a derivation is valid, as far as their paths are known.
async fn has_outputs(daemon: &mut Daemon, drv: &StorePath) -> Result<bool, DaemonError> {
    for output in known_outputs(daemon, drv).await? {
        if !daemon.is_valid_path(&output).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Contents of the files of derivations.
#[derive(Default)]
struct Read {
    needs: Needs,
    systems: BTreeMap<StorePath, String>,
    outputs: BTreeMap<StorePath, Vec<StorePath>>,
    lacks: Vec<(StorePath, Lack)>,
    /// Those that cannot be read: the daemon knows what they need, and will say what it cannot build.
    unread: Vec<StorePath>,
    /// An input of one of them that nobody has.
    absent: Option<StorePath>,
}

fn read(
    store_dir: &StoreDir,
    drvs: BTreeSet<StorePath>,
    unknown: &BTreeSet<StorePath>,
    capabilities: &Capabilities,
) -> Read {
    let mut read = Read::default();
    for drv in drvs {
        match read_derivation(store_dir, &drv) {
            Ok(derivation) => {
                read.lacks.extend(capabilities.lack(&derivation).map(|lack| (drv.clone(), lack)));
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
