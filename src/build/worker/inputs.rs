//! Inputs that are served, and not valid in the Nix store: pushed, fetched, or collected there since. They
//! are brought there before a build, which would build them again.

use std::collections::BTreeSet;

use narinfo::StorePath;

use super::{Planned, Worker};
use crate::nix::{Daemon, DaemonError};

impl Worker {
    /// Adds to the Nix store what is served of the inputs that a plan would build. True where something was
    /// added: the plan is to be made again. One that cannot be added is built.
    pub(super) async fn bring_inputs(
        &self,
        daemon: &mut Daemon,
        drv: &StorePath,
        planned: &Planned,
    ) -> Result<bool, DaemonError> {
        let inputs = planned.needs.keys().filter(|input| *input != drv);
        let outputs = inputs.filter_map(|input| planned.outputs.get(input)).flatten();
        let hashes: Vec<_> = outputs.map(StorePath::hash).collect();
        if hashes.is_empty() {
            return Ok(false);
        }
        let served = match self.index.served(hashes).await {
            Ok(served) => served,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%drv, error, "cannot look up the inputs of a build; those that are served are built again");
                return Ok(false);
            }
        };
        let wanted = nearest(planned, drv, |output| served.get(&output.hash()) == Some(output));
        if wanted.is_empty() {
            return Ok(false);
        }
        let Err(error) = self.importer.bring_into_store(daemon, &wanted).await else { return Ok(true) };
        match error.lost() {
            Ok(lost) => Err(lost),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    %drv,
                    error,
                    "cannot add served inputs to the Nix store, so they are built again; make the server's user a trusted \
                     user of the Nix daemon, or its key a trusted public key"
                );
                Ok(false)
            }
        }
    }
}

/// Outputs that are served, of the inputs that are needed: an input whose outputs are all served needs no
/// others.
fn nearest(planned: &Planned, drv: &StorePath, is_served: impl Fn(&StorePath) -> bool) -> Vec<StorePath> {
    let (mut wanted, mut seen, mut open) = (Vec::new(), BTreeSet::from([drv]), vec![drv]);
    while let Some(next) = open.pop() {
        for input in planned.needs.get(next).into_iter().flatten().filter(|input| seen.insert(input)) {
            let outputs = planned.outputs.get(input).map_or(&[][..], Vec::as_slice);
            let served = outputs.iter().filter(|output| is_served(output));
            let before = wanted.len();
            wanted.extend(served.cloned());
            if outputs.is_empty() || wanted.len() - before < outputs.len() {
                open.push(input);
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn path(name: &str) -> StorePath {
        let digit = name.as_bytes()[0] as char;
        StorePath::parse(&format!("{}-{name}", digit.to_string().repeat(32))).expect("a path")
    }

    #[test]
    fn nothing_is_brought_that_only_a_served_input_needs() {
        // d needs a and b; a needs c, b has a second output that is not served.
        let needs = [("d", vec!["a", "b"]), ("a", vec!["c"]), ("b", vec!["c"]), ("c", vec![])];
        let plan = |served: &[&str]| {
            let planned = Planned {
                needs: needs
                    .iter()
                    .map(|(drv, inputs)| (path(drv), inputs.iter().map(|input| path(input)).collect()))
                    .collect(),
                systems: BTreeMap::new(),
                outputs: [("a", vec!["a-out"]), ("b", vec!["b-out", "b-doc"]), ("c", vec!["c-out"])]
                    .map(|(drv, outputs)| (path(drv), outputs.into_iter().map(path).collect()))
                    .into(),
                placements: BTreeMap::new(),
            };
            let served: Vec<StorePath> = served.iter().map(|path_name| path(path_name)).collect();
            let mut wanted = nearest(&planned, &path("d"), |output| served.contains(output));
            wanted.sort();
            wanted.iter().map(|path| path.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(plan(&["a-out", "b-out", "b-doc", "c-out"]), ["a-out", "b-doc", "b-out"]);
        assert_eq!(plan(&["a-out", "b-out", "c-out"]), ["a-out", "b-out", "c-out"]);
        assert_eq!(plan(&["c-out"]), ["c-out"]);
        assert!(plan(&[]).is_empty());
    }
}
