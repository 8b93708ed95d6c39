//! Package sets by name: what an attribute is, as JSON, and a download of it for those who have no Nix. A download waits for the
//! build in silence, since its answer is known only then: where the NAR is, or why there is none. Decides nothing about
//! what is built: the name leads to a hash, and all else is as for that.

use narinfo::{NarHash, StorePath};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::index_failed;
use super::failures::RememberedFailure;
use super::pursuit::{End, Pursuit};
use super::route::Name;
use crate::catalogue::{Named, NoSuchName};
use crate::index::{self, AttributeName};
use crate::substitute::{Missing, OnMiss};

/// What an attribute is.
#[derive(serde::Serialize)]
struct AttributeView {
    set: String,
    generation: u64,
    attribute: String,
    system: String,
    /// Base name of its derivation.
    derivation: String,
    /// Name of the output that the attribute itself is.
    output: Option<String>,
    /// Whether the set denies it.
    denied: bool,
    /// Why its build failed, as long as that is remembered.
    failure: Option<RememberedFailure>,
    /// Whether someone waits for its build now.
    queued: bool,
    /// How often it was asked for in the last four weeks; null where nothing is pre-built.
    asked: Option<u32>,
    outputs: Vec<OutputView>,
}

#[derive(serde::Serialize)]
struct OutputView {
    name: String,
    /// Base name of its store path; null where it is known only after the build.
    path: Option<String>,
    /// What a narinfo is asked for by.
    hash: Option<String>,
    served: bool,
    /// Where its narinfo is, from when it was built.
    narinfo: Option<String>,
    /// Where its contents are; null until it is served.
    nar: Option<String>,
}

/// What the attribute is, and what of it is there.
pub(super) async fn describe(service: &Service, name: &Name) -> Answer {
    let told = async {
        let (named, _) = find(service, name).await?;
        let told = view(service, named).await;
        Ok(told
            .map_or_else(|error| index_failed(&error, "an attribute cannot be told of"), |view| json(&view)))
    };
    told.await.unwrap_or_else(|reason: NoSuchName| match reason {
        NoSuchName::Index => answer::failed(reason),
        _ if reason.may_pass() => answer::unavailable(reason),
        _ => answer::no_such(reason),
    })
}

/// Why there is no download: 404 only where that is so.
fn refused(reason: NoSuchName) -> Answer {
    if reason.may_pass() { answer::not_ready(reason) } else { answer::missing(reason) }
}

fn not_had(reason: Missing) -> Answer {
    if matches!(reason, Missing::Unavailable(_)) {
        answer::not_ready(reason)
    } else {
        answer::missing_path(reason)
    }
}

/// Leads to the contents of an output, which is built first where need be.
pub(super) async fn download(service: &Service, name: &Name, on_miss: OnMiss) -> Answer {
    let (named, output) = match find(service, name).await {
        Ok(found) => found,
        Err(reason) => return refused(reason),
    };
    let denied = Missing::Denied { drv: named.drv.clone(), set: named.set.to_string() };
    if named.denied && named.outputs.is_empty() {
        return answer::missing(denied);
    }
    let on_miss = if named.denied { on_miss.without_building() } else { on_miss };
    let path = match named.output(output) {
        Ok(path) => path,
        Err(reason) => return refused(reason),
    };
    match Pursuit::new(service, path.hash(), on_miss).ended().await {
        End::Ready(ready) => leads_to(ready.nar_hash, name),
        End::Missing(Missing::NotBuilt(_)) if named.denied => answer::missing(denied),
        End::Missing(reason) => not_had(reason),
        End::Stopped => {
            answer::not_ready("the server stops while this is built; ask again, it keeps its place")
        }
    }
}

fn leads_to(nar: NarHash, name: &Name) -> Answer {
    let ending = name.compression.file_ending();
    // From /get/<set>/<attribute>, whatever that is below of.
    let up = "../".repeat(name.depth);
    answer::elsewhere(&format!("{up}nar/{}.nar{ending}", nar.to_nixbase32()))
}

/// What a name stands for, and the output that was named.
async fn find<'a>(service: &Service, name: &'a Name) -> Result<(Named, Option<&'a str>), NoSuchName> {
    service.parts.names.select(&name.set, &name.selection, name.system.as_deref()).await
}

async fn view(service: &Service, named: Named) -> Result<AttributeView, index::Error> {
    let parts = &service.parts;
    let failure = parts.failures.of(&named.drv).await?;
    let mut outputs = Vec::new();
    for (name, path) in named.outputs {
        outputs.push(output_view(service, name, path).await?);
    }
    let (attribute, system) = (named.attribute.to_string(), named.system);
    let name = AttributeName { set: named.set.to_string(), attribute, system };
    Ok(AttributeView {
        asked: parts.builds.asked_lately(&name),
        set: name.set,
        generation: named.generation,
        attribute: name.attribute,
        system: name.system,
        queued: parts.builds.contains(&named.drv),
        derivation: named.drv.to_string(),
        output: named.own_output,
        denied: named.denied,
        failure: failure.map(RememberedFailure::from),
        outputs,
    })
}

async fn output_view(
    service: &Service,
    name: String,
    path: Option<StorePath>,
) -> Result<OutputView, index::Error> {
    let hash = path.as_ref().map(StorePath::hash);
    let hit = match hash {
        Some(hash) => service.parts.index.find(hash).await?,
        None => None,
    };
    Ok(OutputView {
        name,
        path: path.as_ref().map(ToString::to_string),
        hash: hash.map(|hash| hash.to_string()),
        served: hit.is_some(),
        narinfo: hash.map(|hash| format!("/{hash}.narinfo")),
        nar: hit.map(|hit| format!("/nar/{}.nar.zst", hit.row.nar_hash.to_nixbase32())),
    })
}
