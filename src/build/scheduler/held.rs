//! Outputs that must not be collected before the requests that need them have ended.

use std::collections::{BTreeSet, HashMap};

use narinfo::StorePath;

use crate::build::queue::RequestId;

/// Outputs with the requests that need them, each found by its requests: many are held for each of thousands
/// of requests.
#[derive(Default)]
pub(super) struct HeldOutputs {
    builds: HashMap<u64, HeldBuild>,
    /// Numbers of the builds that each request needs.
    of_request: HashMap<RequestId, Vec<u64>>,
    /// Outputs that nobody needs.
    unneeded: Vec<StorePath>,
    last: u64,
}

struct HeldBuild {
    outputs: Vec<StorePath>,
    needed_by: BTreeSet<RequestId>,
}

impl HeldOutputs {
    /// Holds the outputs of one build until these requests have ended.
    pub(super) fn hold(&mut self, outputs: Vec<StorePath>, needed_by: BTreeSet<RequestId>) {
        if needed_by.is_empty() || outputs.is_empty() {
            self.unneeded.extend(outputs);
            return;
        }
        self.last += 1;
        for id in &needed_by {
            self.of_request.entry(*id).or_default().push(self.last);
        }
        self.builds.insert(self.last, HeldBuild { outputs, needed_by });
    }

    /// A request needs nothing any more. Gives the outputs that nobody needs.
    pub(super) fn release(&mut self, id: RequestId) -> Vec<StorePath> {
        let mut unneeded = std::mem::take(&mut self.unneeded);
        for number in self.of_request.remove(&id).into_iter().flatten() {
            let Some(build) = self.builds.get_mut(&number) else { continue };
            build.needed_by.remove(&id);
            if build.needed_by.is_empty() {
                unneeded.extend(self.builds.remove(&number).into_iter().flat_map(|build| build.outputs));
            }
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_held_until_the_last_request_that_needs_it_has_ended() {
        let path = |name: &str| StorePath::parse(&format!("{}-{name}", "a".repeat(32))).expect("a path");
        let ids = |numbers: &[u64]| numbers.iter().map(|number| RequestId(*number)).collect();
        let mut held = HeldOutputs::default();
        held.hold(vec![path("both")], ids(&[1, 2]));
        held.hold(vec![path("one")], ids(&[1]));
        held.hold(vec![path("nobody")], ids(&[]));
        assert_eq!(held.release(RequestId(3)), [path("nobody")]);
        assert_eq!(held.release(RequestId(1)), [path("one")]);
        assert_eq!(held.release(RequestId(1)), []);
        assert_eq!(held.release(RequestId(2)), [path("both")]);
        assert!(held.builds.is_empty() && held.of_request.is_empty());
    }
}
