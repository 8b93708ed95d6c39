//! What a request needs built: the derivations of its closure that have no outputs yet, dependencies first.
//! Builds nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::StorePath;

use crate::nix::{BuildTarget, Daemon, DaemonError};

use super::verdict::Verdict;

/// Why there is no plan.
pub(super) enum Error {
    /// The daemon failed.
    Daemon(DaemonError),
    /// It cannot be built as things stand.
    Impossible(Verdict),
}

impl From<DaemonError> for Error {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error)
    }
}

/// The derivations to build so that every output of `drv` is there; empty when they are.
pub(super) async fn plan(daemon: &mut Daemon, drv: &StorePath) -> Result<Vec<StorePath>, Error> {
    if !daemon.is_valid_path(drv).await? {
        let reason = format!("the derivation {drv} is not in the Nix store any more (garbage-collected?)");
        return Err(Error::Impossible(Verdict::passing(reason)));
    }
    let missing = daemon.query_missing(&[BuildTarget::All { drv: drv.clone() }]).await?;
    if let Some(unknown) = missing.unknown.first() {
        let reason =
            format!("{unknown} is needed, is not in the Nix store, and no known derivation makes it");
        return Err(Error::Impossible(Verdict::passing(reason)));
    }
    let mut needs = BTreeMap::new();
    for drv in &missing.will_build {
        let info = daemon.query_path_info(drv).await?;
        let inputs = info.map(|info| info.references).unwrap_or_default();
        needs.insert(drv.clone(), inputs);
    }
    Ok(in_order(&needs))
}

/// The keys of `needs`, each after those keys that it needs. Derivations cannot form a cycle: a name holds the hash of its inputs.
fn in_order(needs: &BTreeMap<StorePath, BTreeSet<StorePath>>) -> Vec<StorePath> {
    let mut ordered = Vec::with_capacity(needs.len());
    let mut seen = BTreeSet::new();
    for start in needs.keys() {
        // Depth first with a stack of our own: a chain of derivations may be thousands long.
        let mut stack = vec![(start, false)];
        while let Some((drv, inputs_done)) = stack.pop() {
            if inputs_done {
                ordered.push(drv.clone());
            } else if seen.insert(drv) {
                stack.push((drv, true));
                stack
                    .extend(needs[drv].iter().filter(|input| needs.contains_key(*input)).map(|i| (i, false)));
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drv(letter: char) -> StorePath {
        StorePath::parse(&format!("{}-x.drv", letter.to_string().repeat(32))).expect("a store path")
    }

    #[test]
    fn dependencies_come_first_and_each_once() {
        let needs = BTreeMap::from([
            (drv('a'), BTreeSet::from([drv('b'), drv('c'), drv('z')])),
            (drv('b'), BTreeSet::from([drv('d')])),
            (drv('c'), BTreeSet::from([drv('d')])),
            (drv('d'), BTreeSet::new()),
        ]);
        let order = in_order(&needs);
        let place = |letter| order.iter().position(|d| *d == drv(letter)).expect("in the order");
        assert_eq!(order.len(), 4, "what is there already is not built");
        assert!(place('d') < place('b') && place('d') < place('c'));
        assert!(place('b') < place('a') && place('c') < place('a'));
    }

    #[test]
    fn a_long_chain_does_not_overflow_the_stack() {
        let name = |n: usize| StorePath::parse(&format!("{}-{n}.drv", "a".repeat(32))).expect("a store path");
        let needs: BTreeMap<_, _> = (0..20_000).map(|n| (name(n), BTreeSet::from([name(n + 1)]))).collect();
        let order = in_order(&needs);
        assert_eq!((order.first(), order.last()), (Some(&name(19_999)), Some(&name(0))));
    }
}
