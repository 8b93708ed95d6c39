//! Questions of clients about paths and derivations.

use std::collections::{BTreeMap, BTreeSet};

use narinfo::{NarInfo, StoreDir, StorePath, StorePathHash};
use tokio::task::JoinSet;

use super::session::{BuilderSession, NotDone};
use crate::nix::{BuildTarget, ClientTarget, MissingPaths};
use crate::remote::{self, BuildsQuestion, Remote, RemoteItem, through_outage};

/// Narinfos that a connection remembers: a client asks for the record of a path, and then for its NAR.
const REMEMBERED_MAX: usize = 10_000;
/// Questions to the server at a time.
const QUESTIONS_MAX: usize = 16;

impl BuilderSession {
    /// The narinfo of a path that is served; nothing is built for it.
    pub(super) async fn find(&mut self, path: &StorePath) -> Result<Option<NarInfo>, NotDone> {
        Ok(self.find_hash(path.hash()).await?.filter(|found| found.path_info.path == *path))
    }

    /// The narinfo of the served path with this hash.
    pub(super) async fn find_hash(&mut self, hash: StorePathHash) -> Result<Option<NarInfo>, NotDone> {
        if let Some(found) = self.paths.0.get(&hash) {
            return Ok(Some(found.clone()));
        }
        let Some(text) = through_outage(|| narinfo(&self.remote, hash)).await? else { return Ok(None) };
        let parsed = NarInfo::parse(self.client.store_dir(), text.as_bytes());
        let parsed = parsed.map_err(|error| remote::Error::OtherVersion(error.to_string()))?;
        if self.paths.0.len() >= REMEMBERED_MAX {
            self.paths.0.clear();
        }
        self.paths.0.insert(hash, parsed.clone());
        Ok(Some(parsed))
    }

    /// Those of `paths` that a client need not copy here: they are served, or an upstream has them.
    pub(super) async fn valid_paths(
        &mut self,
        mut paths: BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>, NotDone> {
        let missing = through_outage(|| self.remote.missing_paths(&paths)).await?;
        let (mut questions, mut absent) = (JoinSet::new(), missing.clone());
        // Derivations are in no other cache.
        let mut open = missing.into_iter().filter(|path| !path.is_derivation());
        loop {
            while questions.len() < QUESTIONS_MAX
                && let Some(path) = open.next()
            {
                let remote = self.remote.clone();
                questions.spawn(async move {
                    let found = narinfo(&remote, path.hash()).await;
                    (path, found)
                });
            }
            match questions.join_next().await {
                // A path about which the server cannot say anything now is copied.
                Some(Ok((path, Ok(Some(_))))) => {
                    absent.remove(&path);
                }
                Some(_) => {}
                None => break,
            }
        }
        paths.retain(|path| !absent.contains(path));
        Ok(paths)
    }

    /// The outputs of a derivation that the server has.
    pub(super) async fn outputs(
        &mut self,
        drv: &StorePath,
    ) -> Result<BTreeMap<String, Option<StorePath>>, NotDone> {
        let target = ClientTarget::Outputs(BuildTarget::All { drv: drv.clone() });
        let item = through_outage(|| ask_item(&self.remote, &target)).await?;
        if item.outputs.is_empty() {
            return Err(NotDone::Refused(reason_of(&item)));
        }
        Ok(outputs_of(self.client.store_dir(), &item)?)
    }

    /// The work that targets would take, as far as that is known before it begins.
    pub(super) async fn missing(&mut self, targets: &[ClientTarget]) -> Result<MissingPaths, NotDone> {
        let mut missing = MissingPaths::default();
        let items = through_outage(|| ask_items(&self.remote, targets)).await?;
        for (target, item) in targets.iter().zip(items) {
            match (&*item.state, target) {
                ("served", _) => {}
                ("known" | "queued" | "building" | "failed", ClientTarget::Outputs(target)) => {
                    missing.will_build.insert(target.drv().clone());
                }
                ("known" | "queued" | "building", ClientTarget::Path(path)) => {
                    missing.will_substitute.insert(path.clone());
                }
                _ => {
                    missing.unknown.insert(target.path().clone());
                }
            }
        }
        Ok(missing)
    }
}

/// The text of the narinfo of a path that is served.
async fn narinfo(remote: &Remote, hash: StorePathHash) -> Result<Option<String>, remote::Error> {
    match remote.get(&format!("cached/{hash}.narinfo")).await {
        Ok(reply) => reply.text().await.map(Some),
        Err(remote::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The state of a target; nothing is started for it.
pub(super) async fn ask_item(remote: &Remote, target: &ClientTarget) -> Result<RemoteItem, remote::Error> {
    let mut items = ask_items(remote, std::slice::from_ref(target)).await?;
    items.pop().ok_or_else(|| remote::Error::OtherVersion("it says nothing about a target".to_owned()))
}

/// The state of each target, in their order.
pub(super) async fn ask_items(
    remote: &Remote,
    targets: &[ClientTarget],
) -> Result<Vec<RemoteItem>, remote::Error> {
    let mut question = BuildsQuestion::default();
    let (mut of_derivations, mut of_hashes) = (Vec::new(), Vec::new());
    for (at, target) in targets.iter().enumerate() {
        match target {
            ClientTarget::Path(path) => {
                question.hashes.push(path.hash().to_string());
                of_hashes.push(at);
            }
            ClientTarget::Outputs(BuildTarget::All { drv }) => {
                question.derivations.push(drv.to_string());
                of_derivations.push(at);
            }
            ClientTarget::Outputs(BuildTarget::Outputs { drv, outputs }) => {
                let outputs = outputs.iter().map(String::as_str).collect::<Vec<_>>().join(",");
                question.derivations.push(format!("{drv}^{outputs}"));
                of_derivations.push(at);
            }
        }
    }
    // In the answer, derivations come first.
    let order = of_derivations.into_iter().chain(of_hashes);
    let mut items: Vec<(usize, RemoteItem)> = order.zip(remote.ask_builds(&question).await?).collect();
    items.sort_by_key(|(at, _)| *at);
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

/// The outputs of an item by name.
pub(super) fn outputs_of(
    store_dir: &StoreDir,
    item: &RemoteItem,
) -> Result<BTreeMap<String, Option<StorePath>>, remote::Error> {
    let parse = |path: &String| {
        StorePath::parse_either(store_dir, path)
            .map_err(|error| remote::Error::OtherVersion(error.to_string()))
    };
    let mut outputs = BTreeMap::new();
    for output in &item.outputs {
        let path = output.path.as_ref().map(parse).transpose()?;
        outputs.insert(output.name.clone().unwrap_or_default(), path);
    }
    Ok(outputs)
}

/// The server's words about an item that it does not serve.
pub(super) fn reason_of(item: &RemoteItem) -> String {
    item.reason.clone().unwrap_or_else(|| format!("the server says only that it is {}", item.state))
}
