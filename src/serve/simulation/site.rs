//! Derivations of a run, and the machines of its servers: a build takes its time, and its outputs stay in the
//! Nix store of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use narinfo::{NarHash, PathInfo, StorePath};
use tokio::time::sleep;

use super::World;
use super::history::Event;
use crate::build::simulated::{BuildSite, SiteFuture};
use crate::model::{NarRow, PathRow};

/// Time that storing a NAR takes at most.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// A derivation.
#[derive(Clone)]
pub(super) struct Package {
    pub(super) number: u64,
    /// Derivations that it needs, which need none.
    pub(super) inputs: BTreeSet<u64>,
    pub(super) takes: Duration,
    pub(super) fails: bool,
}

pub(super) fn drv(number: u64) -> StorePath {
    StorePath::parse(&format!("1{number:031}-p.drv")).expect("a path")
}

pub(super) fn output(number: u64) -> StorePath {
    StorePath::parse(&format!("0{number:031}-p")).expect("a path")
}

fn nar(number: u64) -> NarHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    NarHash::from_bytes(bytes)
}

/// The machine of a server.
pub(super) struct Site {
    pub(super) world: Arc<World>,
    pub(super) server: usize,
}

impl Site {
    fn package(&self, drv: &StorePath) -> Package {
        self.world.package(drv)
    }

    fn has(&self, number: u64) -> bool {
        self.world.stores()[self.server].contains(&number)
    }
}

impl BuildSite for Site {
    fn lacking(&self, wanted: &StorePath) -> BTreeMap<StorePath, BTreeSet<StorePath>> {
        let package = self.package(wanted);
        let mut lacking = BTreeMap::new();
        if self.has(package.number) {
            return lacking;
        }
        let inputs: BTreeSet<StorePath> =
            package.inputs.iter().filter(|number| !self.has(**number)).map(|number| drv(*number)).collect();
        lacking.extend(inputs.iter().map(|input| (input.clone(), BTreeSet::new())));
        lacking.insert(wanted.clone(), inputs);
        lacking
    }

    fn build(&self, epoch: u64, drv: &StorePath) -> SiteFuture<Result<Duration, String>> {
        let (world, server, drv, package) =
            (Arc::clone(&self.world), self.server, drv.clone(), self.package(drv));
        world.note(Event::Started { server, epoch, drv: drv.clone() });
        Box::pin(async move {
            sleep(package.takes).await;
            world.network.thawed(server).await;
            world.note(Event::Ended { server, drv, well: !package.fails });
            if package.fails {
                return Err("the builder failed".to_owned());
            }
            world.stores()[server].insert(package.number);
            Ok(package.takes)
        })
    }

    fn store(&self, drv: &StorePath) -> SiteFuture<Vec<(PathRow, NarRow)>> {
        let (world, package) = (Arc::clone(&self.world), self.package(drv));
        Box::pin(async move {
            let mut rows = Vec::new();
            for number in package.inputs.iter().copied().chain([package.number]) {
                sleep(world.dice.of(2, number).time(STORED_WITHIN)).await;
                world.note(Event::Stored(nar(number)));
                let is_input = number != package.number;
                let references = match is_input {
                    true => BTreeSet::new(),
                    false => package.inputs.iter().map(|input| output(*input)).collect(),
                };
                let info = PathInfo {
                    path: output(number),
                    nar_hash: nar(number),
                    nar_size: 1,
                    references,
                    deriver: None,
                    ca: None,
                    signatures: Vec::new(),
                };
                let row = NarRow { nar_hash: nar(number), file_hash: nar(number), file_size: 1 };
                rows.push((PathRow { info, built: true }, row));
            }
            rows
        })
    }
}
