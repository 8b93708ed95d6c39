//! Builds of derivations that a client sends without their files, with the paths that they are made from
//! instead of the derivations which make these: Nix up to 2.8 sends all of them so, newer releases those with
//! fixed outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;

use narinfo::derivation::ResolvedDerivation;
use narinfo::{ContentAddress, NarHash, PathInfo, StorePath};
use sha2::{Digest, Sha256};

use super::add::pack_text;
use super::build::{failure, floating};
use super::query::{ask_item, ask_items, outputs_of};
use super::session::{BuilderSession, NotDone};
use crate::nix::{BuildResult, BuildStatus, BuildTarget, ClientTarget, derivation_text};
use crate::remote::{self, Unsigned, Uploads, through_outage};

/// Address that takes derivations.
const DERIVATIONS: &str = "api/v1/derivations";

impl BuilderSession {
    /// Has a derivation built: by its name where the server knows it, else by its outputs where it knows how
    /// these are made. One with fixed outputs can be had by anybody, since what comes of it is verified. For
    /// any other one nothing speaks but this client, which may need to be believed.
    pub(super) async fn build_derivation(
        &mut self,
        drv: &StorePath,
        resolved: &ResolvedDerivation,
    ) -> Result<BuildResult, NotDone> {
        let target = all_of(drv);
        let item = through_outage(|| ask_item(&self.remote, &target)).await?;
        let known = outputs_of(self.client.store_dir(), &item)?;
        if !known.is_empty() {
            let expected = resolved.outputs.iter().map(|(name, output)| (name.clone(), output.path.clone()));
            if expected.collect::<BTreeMap<_, _>>() != known {
                return Ok(failure(
                    BuildStatus::InputRejected,
                    format!("the outputs that the client expects of {drv} are not those that it has"),
                ));
            }
            return self.build_one(target, None).await;
        }
        let Some(outputs) = resolved.output_paths() else {
            let name = resolved.outputs.iter().find(|(_, output)| output.path.is_none());
            return Ok(floating(drv, name.map_or("out", |(name, _)| name)));
        };
        if self.are_served(&outputs).await? {
            return Ok(BuildResult { status: BuildStatus::AlreadyValid, outputs, ..BuildResult::default() });
        }
        let paths: Vec<ClientTarget> = outputs.values().cloned().map(ClientTarget::Path).collect();
        let items = through_outage(|| ask_items(&self.remote, &paths)).await?;
        if items.iter().all(|item| matches!(&*item.state, "served" | "known" | "queued" | "building")) {
            let results = self.build(paths).await?;
            let failed = results.iter().find(|(_, result)| !result.status.is_success());
            let result = failed.or(results.first()).map(|(_, result)| result.clone()).unwrap_or_default();
            return Ok(with_outputs(result, outputs));
        }
        let target = if resolved.is_fixed() {
            all_of(&self.upload_fixed(drv, resolved).await?)
        } else {
            match self.send_derivation(drv, resolved).await? {
                Ok(()) => all_of(drv),
                Err(refused) => return Ok(refused),
            }
        };
        self.build_one(target, Some(outputs)).await
    }

    async fn build_one(
        &mut self,
        target: ClientTarget,
        outputs: Option<BTreeMap<String, StorePath>>,
    ) -> Result<BuildResult, NotDone> {
        let results = self.build(vec![target]).await?;
        let result = results.into_iter().map(|(_, result)| result).next().unwrap_or_default();
        Ok(match outputs {
            Some(outputs) => with_outputs(result, outputs),
            None => result,
        })
    }

    /// True where all outputs are served, or another cache has them.
    async fn are_served(&mut self, outputs: &BTreeMap<String, StorePath>) -> Result<bool, NotDone> {
        for path in outputs.values() {
            if self.find(path).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Uploads the file of a derivation with fixed outputs, as it is when the paths that it needs stand for
    /// those that make them: another one than the client has, with the same outputs.
    async fn upload_fixed(
        &mut self,
        drv: &StorePath,
        resolved: &ResolvedDerivation,
    ) -> Result<StorePath, NotDone> {
        let store_dir = self.client.store_dir().clone();
        let text = resolved.to_aterm(&store_dir);
        let hash = NarHash::from_bytes(Sha256::digest(&text).into());
        let ca = format!("text:sha256:{}", hash.to_nixbase32()).parse::<ContentAddress>();
        let ca = ca.map_err(|error| NotDone::Refused(error.to_string()))?;
        let references: BTreeSet<StorePath> = resolved.inputs.clone();
        let path = ca
            .path(&store_dir, drv.name(), &references)
            .ok_or_else(|| NotDone::Refused(format!("{} is no name of a derivation", drv.name())))?;
        let packed = pack_text(text.as_bytes())?;
        let info = PathInfo {
            path: path.clone(),
            nar_hash: packed.nar_hash,
            nar_size: packed.nar_size,
            references,
            deriver: None,
            ca: Some(ca),
            signatures: Vec::new(),
        };
        let mut uploads = Uploads::new(&self.remote, &store_dir, Unsigned::Fail);
        uploads.begin(info, ready(Ok(packed))).await?;
        uploads.finish().await?;
        Ok(path)
    }

    /// Sends a derivation to the server; or the result for one that it does not take of this client.
    async fn send_derivation(
        &mut self,
        drv: &StorePath,
        resolved: &ResolvedDerivation,
    ) -> Result<Result<(), BuildResult>, NotDone> {
        let Some(text) = derivation_text(drv, resolved) else { return Ok(Err(floating(drv, "out"))) };
        match through_outage(async || self.remote.post(DERIVATIONS, &text).await.map(drop)).await {
            Ok(()) => Ok(Ok(())),
            Err(remote::Error::Refused { reason, .. }) => Ok(Err(failure(
                BuildStatus::InputRejected,
                format!(
                    "the server does not know {drv}, and this release of Nix sends derivations without what they are \
                     made from; {reason}. Or copy it there first: nix copy --derivation --to ssh-ng://HOST {}. Newer \
                     releases do so by themselves",
                    drv.in_dir(self.client.store_dir())
                ),
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

fn all_of(drv: &StorePath) -> ClientTarget {
    ClientTarget::Outputs(BuildTarget::All { drv: drv.clone() })
}

/// A result with the outputs by the names that the client has for them.
fn with_outputs(result: BuildResult, outputs: BTreeMap<String, StorePath>) -> BuildResult {
    if result.status.is_success() { BuildResult { outputs, ..result } } else { result }
}
