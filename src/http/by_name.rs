//! Packages by name: an attribute as JSON, and its download for people who have no Nix. A download waits for
//! the build in silence, since its answer, a redirect or an error, is known only then. Decides nothing about
//! builds: the name leads to a hash, which is asked for as by any client.

use std::time::Duration;

use narinfo::{Compression, NarHash, StorePath};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::{AttributeDependant, AttributeDetails, AttributeOutput, RememberedFailure};
use super::call::{Call, parameters};
use super::error::Error;
use super::response_future::ResponseFuture;
use crate::catalogue::{NoSuchName, ResolvedName, Selection, SetName};
use crate::index;
use crate::model::AttributeName;
use crate::substitute::{Missing, OnMiss, WaitEnd};

/// Derivations that need a package, in an answer.
const DEPENDANTS_MAX: u32 = 100;

/// A package of a set, as an address names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackageAddress {
    set: SetName,
    /// The attribute, and the output of it that is named.
    selection: Selection,
    /// The system that is named.
    system: Option<String>,
    /// Form of the download: plain, or zstd.
    compression: Compression,
}

impl PackageAddress {
    /// Parses `<set>` and `<attribute>[^<output>]`, and the query behind them.
    pub(super) fn parse([set, attribute]: [&str; 2], query: Option<&str>) -> Option<Self> {
        let mut address = Self {
            set: SetName::new(set)?,
            selection: Selection::parse(attribute)?,
            system: None,
            compression: Compression::None,
        };
        for (key, value) in parameters(query) {
            let value: String = value?;
            match key {
                "system" => address.system = Some(value),
                "compression" if value == "none" => address.compression = Compression::None,
                "compression" if value == "zstd" => address.compression = Compression::Zstd,
                _ => return None,
            }
        }
        Some(address)
    }
}

/// Describes an attribute, and what of it is served.
pub(super) fn describe(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, address) = (call.service.clone(), PackageAddress::parse(call.arguments, call.query)?);
    Some(ResponseFuture::pending(async move { Ok(json(&description(&service, &address).await?)) }))
}

/// Redirects to the NAR of an output, which is built first where need be.
pub(super) fn download(call: Call<'_>) -> Option<ResponseFuture> {
    let address = PackageAddress::parse(call.arguments, call.query)?;
    let (service, on_miss) = (call.service.clone(), call.on_miss());
    // Folders below the cache's own address: an attribute may have slashes.
    let depth = call.raw_path.matches('/').count() - 1;
    Some(ResponseFuture::pending(async move { nar_address(&service, &address, on_miss, depth).await }))
}

/// An attribute, and what of it is served.
pub(super) async fn description(service: &Service, name: &PackageAddress) -> Result<AttributeDetails, Error> {
    let (named, _) = find(service, name).await?;
    let view = view(service, named).await;
    view.map_err(|error| Error::index(&error, "an attribute cannot be read"))
}

async fn nar_address(
    service: &Service,
    name: &PackageAddress,
    on_miss: OnMiss,
    depth: usize,
) -> Result<Answer, Error> {
    let (named, output) = find(service, name).await?;
    let denied = Missing::Denied { drv: named.drv.clone(), set: named.set.to_string() };
    if named.denied && named.outputs.is_empty() {
        return Err(denied.into());
    }
    let on_miss = if named.denied { on_miss.without_building() } else { on_miss };
    let path = named.output(output)?;
    match service.wait(path.hash(), on_miss).ended().await {
        WaitEnd::Ready(ready) => Ok(leads_to(ready.nar_hash, name.compression, depth)),
        WaitEnd::Missing(Missing::NotBuilt(_)) if named.denied => Err(denied.into()),
        WaitEnd::Missing(reason) => Err(reason.into()),
        WaitEnd::Stopped => {
            let reason = "the server stops while this is built; ask again, it keeps its place";
            Err(Error::unavailable(reason))
        }
    }
}

/// The address is relative, since the cache may itself be in a folder of a proxy.
fn leads_to(nar: NarHash, compression: Compression, depth: usize) -> Answer {
    let (up, ending) = ("../".repeat(depth), compression.file_ending());
    answer::redirect(&format!("{up}nar/{}.nar{ending}", nar.to_nixbase32()))
}

/// The package that a name stands for, and the output that is named.
async fn find<'a>(
    service: &Service,
    name: &'a PackageAddress,
) -> Result<(ResolvedName, Option<&'a str>), NoSuchName> {
    service.state.names.select(&name.set, &name.selection, name.system.as_deref()).await
}

async fn view(service: &Service, named: ResolvedName) -> Result<AttributeDetails, index::Error> {
    let state = &service.state;
    let failure = state.failures.of(&named.drv).await?;
    let mut outputs = Vec::new();
    for (name, path) in named.outputs {
        outputs.push(output_view(service, name, path).await?);
    }
    let dependants = dependants(service, &named.drv).await?;
    let durations = state.builds.latest_durations(&named.drv, &named.system);
    let (attribute, system) = (named.attribute.to_string(), named.system);
    let name = AttributeName { set: named.set.to_string(), attribute, system };
    Ok(AttributeDetails {
        build_seconds: durations.iter().map(Duration::as_secs_f64).collect(),
        dependants,
        asked: state.builds.asked_lately(&name),
        set: name.set,
        generation: named.generation,
        attribute: name.attribute,
        system: name.system,
        queued: state.builds.contains(&named.drv),
        derivation: named.drv.to_string(),
        output: named.own_output,
        denied: named.denied,
        failure: failure.map(RememberedFailure::from),
        outputs,
    })
}

/// Derivations that need this one, with their names in package sets.
async fn dependants(service: &Service, drv: &StorePath) -> Result<Vec<AttributeDependant>, index::Error> {
    let found = service.state.retry.local.dependants_of(drv, DEPENDANTS_MAX).await;
    let mut names = service.state.index.names_of(found.clone()).await?;
    let dependant = |drv: StorePath| {
        let (set, attribute) = names.remove(&drv).map(|name| (name.set, name.attribute)).unzip();
        AttributeDependant { derivation: drv.to_string(), set, attribute }
    };
    Ok(found.into_iter().map(dependant).collect())
}

async fn output_view(
    service: &Service,
    name: String,
    path: Option<StorePath>,
) -> Result<AttributeOutput, index::Error> {
    let hash = path.as_ref().map(StorePath::hash);
    let hit = match hash {
        Some(hash) => service.state.index.find(hash).await?,
        None => None,
    };
    Ok(AttributeOutput {
        name,
        path: path.as_ref().map(ToString::to_string),
        hash: hash.map(|hash| hash.to_string()),
        served: hit.is_some(),
        narinfo: hash.map(|hash| format!("/{hash}.narinfo")),
        nar: hit.map(|hit| format!("/nar/{}.nar.zst", hit.row.info.nar_hash.to_nixbase32())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::AttributePath;

    #[test]
    fn a_name_may_have_an_output_a_system_and_a_compression_and_nothing_else() {
        let name = |attribute: &str, output: Option<&str>, system: Option<&str>, compression| {
            let otherwise = output.and_then(|output| AttributePath::parse(&format!("{attribute}^{output}")));
            PackageAddress {
                set: SetName::new("pkgs").expect("a name"),
                selection: Selection {
                    path: AttributePath::parse(attribute).expect("a path"),
                    output: output.map(str::to_owned),
                    otherwise,
                },
                system: system.map(str::to_owned),
                compression,
            }
        };
        let parse = |attribute, query| PackageAddress::parse(["pkgs", attribute], query);
        for (path, query, expected) in [
            ("hello", None, name("hello", None, None, Compression::None)),
            ("a.narinfo", None, name("a.narinfo", None, None, Compression::None)),
            ("a.doi", None, name("a.doi", None, None, Compression::None)),
            ("a/b", None, name("\"a/b\"", None, None, Compression::None)),
            ("007 +%", None, name("\"007 +%\"", None, None, Compression::None)),
            ("a.b^dev", None, name("a.b", Some("dev"), None, Compression::None)),
            (
                "a.\"b.c\"^dev",
                Some("system=a-linux&compression=zstd"),
                name("a.\"b.c\"", Some("dev"), Some("a-linux"), Compression::Zstd),
            ),
        ] {
            assert_eq!(parse(path, query), Some(expected), "{path} {query:?}");
        }
        for (path, query) in [
            ("a..b", None),
            ("\"a", None),
            ("a\0", None),
            ("^out", None),
            ("a^", None),
            ("a", Some("sistem=a-linux")),
            ("a", Some("compression=xz")),
        ] {
            assert_eq!(parse(path, query), None, "{path} {query:?}");
        }
        assert_eq!(PackageAddress::parse(["p.k", "a"], None), None);
    }
}
