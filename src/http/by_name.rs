//! Packages by name: an attribute as JSON, and its download for people who have no Nix. A download waits for
//! the build in silence, since its answer, a redirect or an error, is known only then. Decides nothing about
//! builds: the name leads to a hash, which is asked for as by any client.

use std::sync::Arc;
use std::time::Duration;

use narinfo::{Compression, StorePath, StorePathHash};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::{
    AttributeDependant, AttributeDetails, AttributeOutput, AttributeVersion, RememberedFailure,
};
use super::call::{Call, parameters, unknown_parameter};
use super::delivery::{Delivery, DeliveryRequest, wait_of};
use super::error::Error;
use super::response_future::ResponseFuture;
use crate::catalogue::{NoSuchName, ResolvedName, Selection, SetName};
use crate::escape::Line;
use crate::index::{self, CachedNarInfo};
use crate::model::AttributeName;
use crate::substitute::Missing;

/// Ending of an address that leads to a tar file.
const TAR: &str = ".tar.zst";

/// Derivations that need a package, in an answer.
const DEPENDANTS_MAX: u32 = 100;

/// Versions of an attribute, and programs of an output, in an answer.
const VERSIONS_MAX: u32 = 50;
const PROGRAMS_MAX: u32 = 100;

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
    /// Longest wait for a build.
    wait: Option<Duration>,
    /// Error of the query, for whoever looks for the package.
    misread: Option<String>,
}

/// A package that was found, and the output of it that is wanted.
#[derive(Clone, Debug)]
pub(super) struct NamedOutput {
    pub(super) named: Arc<ResolvedName>,
    /// `None` for the attribute's own.
    output: Option<String>,
}

impl PackageAddress {
    /// An attribute without its address.
    pub(super) fn of(set: SetName, selection: Selection, system: Option<String>) -> Self {
        Self { set, selection, system, compression: Compression::None, wait: None, misread: None }
    }

    /// Parses `<set>` and `<attribute>[^<output>]`, and the query behind them, which has some of these keys.
    /// `None` where the names have not that form.
    pub(super) fn parse([set, attribute]: [&str; 2], query: Option<&str>, keys: &[&str]) -> Option<Self> {
        let mut address = Self::of(SetName::new(set)?, Selection::parse(attribute)?, None);
        address.misread = address.read(query, keys).err();
        Some(address)
    }

    fn read(&mut self, query: Option<&str>, keys: &[&str]) -> Result<(), String> {
        for (key, value) in parameters(query) {
            let value = value.ok_or_else(|| format!("{} is no UTF-8", Line(key)))?;
            match (key, &*value) {
                _ if !keys.contains(&key) => return Err(unknown_parameter(key, keys)),
                ("system", _) => self.system = Some(value),
                ("compression", "none") => self.compression = Compression::None,
                ("compression", "zstd") => self.compression = Compression::Zstd,
                ("compression", _) => return Err("compression is none or zstd".to_owned()),
                ("wait", seconds) => self.wait = Some(wait_of(seconds)?),
                // For the handler.
                _ => {}
            }
        }
        Ok(())
    }

    /// The package that it stands for, and the output that is named.
    pub(super) async fn resolve(&self, service: &Service) -> Result<NamedOutput, NoSuchName> {
        let names = &service.state.names;
        let (named, output) = names.select(&self.set, &self.selection, self.system.as_deref()).await?;
        Ok(NamedOutput { named: Arc::new(named), output: output.map(str::to_owned) })
    }

    /// The same; the error suggests the nearest name, or what the query may have.
    pub(super) async fn find(&self, service: &Service) -> Result<NamedOutput, Error> {
        if let Some(reason) = &self.misread {
            return Err(Error::BadRequest(reason.clone()));
        }
        match self.resolve(service).await {
            Ok(named) => Ok(named),
            Err(reason @ NoSuchName::Attribute { .. }) => {
                let attribute = self.selection.path.to_string();
                let similar =
                    service.state.names.similar(&self.set, &attribute, self.system.as_deref()).await;
                let hint = similar.map(|name| format!("; did you mean {}?", Line(name))).unwrap_or_default();
                Err(Error::NotFound(format!("{reason}{hint}")))
            }
            Err(reason) => Err(reason.into()),
        }
    }
}

impl NamedOutput {
    /// The path, once it is served.
    pub(super) async fn delivered(&self, asked: &DeliveryRequest) -> Result<Delivery, Error> {
        let named = &*self.named;
        let denied = || Missing::Denied { drv: named.drv.clone(), set: named.set.to_string() };
        if named.denied && named.outputs.is_empty() {
            return Err(denied().into());
        }
        let hash = self.path()?.hash();
        if !named.denied {
            return asked.path(hash, asked.on_miss.clone()).await;
        }
        match asked.path(hash, asked.on_miss.clone().without_building()).await {
            Err(Error::Missing(missing)) if matches!(*missing, Missing::NotBuilt(_)) => Err(denied().into()),
            delivered => delivered,
        }
    }

    /// Its path, which need not be served.
    pub(super) fn path(&self) -> Result<&StorePath, NoSuchName> {
        self.named.output(self.output.as_deref())
    }

    /// The output at the path with this hash, if it has one.
    pub(super) fn at(&self, hash: StorePathHash) -> Option<Self> {
        let mut outputs = self.named.outputs.iter();
        let (name, _) = outputs.find(|(_, path)| path.as_ref().is_some_and(|path| path.hash() == hash))?;
        Some(Self { named: Arc::clone(&self.named), output: Some(name.clone()) })
    }

    /// The output that is named; else these, as far as there are such, and the attribute's own.
    pub(super) fn outputs(&self, preferred: &[&str]) -> Vec<Self> {
        if self.output.is_some() {
            return vec![self.clone()];
        }
        let (own, known) = (self.named.own_output.as_deref(), &self.named.outputs);
        let mut names: Vec<&str> =
            preferred.iter().copied().filter(|name| known.contains_key(*name)).collect();
        names.extend(own.filter(|own| !names.contains(own)));
        if names.is_empty() {
            return vec![self.clone()];
        }
        let output = |name: &str| Self { named: Arc::clone(&self.named), output: Some(name.to_owned()) };
        names.into_iter().map(output).collect()
    }
}

/// Describes an attribute, and what of it is served.
pub(super) fn describe(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, address) = (call.service.clone(), described(&call)?);
    Some(ResponseFuture::pending(async move { Ok(json(&description(&service, &address).await?)) }))
}

/// The attribute that an address describes.
pub(super) fn described(call: &Call<'_>) -> Option<PackageAddress> {
    let [set, attribute, ..] = call.arguments;
    PackageAddress::parse([set, attribute], call.query, &["system"])
}

/// Redirects to the NAR of an output, or to its closure as a tar file; it is built first where need be.
pub(super) fn download(call: Call<'_>) -> Option<ResponseFuture> {
    let [set, attribute, ..] = call.arguments;
    let (attribute, is_tar) = match attribute.strip_suffix(TAR) {
        Some(attribute) => (attribute, true),
        None => (attribute, false),
    };
    let address = PackageAddress::parse([set, attribute], call.query, &["system", "compression", "wait"])?;
    // Folders below the cache's own address: an attribute may have slashes.
    let up = "../".repeat(call.raw_path.matches('/').count() - 1);
    let asked = DeliveryRequest::of(call).waiting(address.wait);
    Some(ResponseFuture::pending(async move {
        match address.find(&asked.service).await?.delivered(&asked).await? {
            Delivery::Ready(ready) if is_tar => {
                Ok(asked.counted(answer::redirect(&format!("{up}closure/{}{TAR}", ready.path.hash()))))
            }
            Delivery::Ready(ready) => Ok(asked.counted(leads_to(&up, &ready, address.compression))),
            Delivery::Pending(answer) => Ok(answer),
        }
    }))
}

/// An attribute, and what of it is served.
pub(super) async fn description(service: &Service, name: &PackageAddress) -> Result<AttributeDetails, Error> {
    let named = name.find(service).await?.named;
    let view = view(service, Arc::unwrap_or_clone(named)).await;
    view.map_err(|error| Error::index(&error, "an attribute cannot be read"))
}

/// The address is relative, since the cache may itself be in a folder of a proxy. It says under which name
/// the file is saved.
fn leads_to(up: &str, ready: &CachedNarInfo, compression: Compression) -> Answer {
    let (nar, ending) = (ready.nar_hash.to_nixbase32(), compression.file_ending());
    let name = utf8_percent_encode(ready.path.name(), NON_ALPHANUMERIC);
    answer::redirect(&format!("{up}nar/{nar}.nar{ending}?name={name}"))
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
    let versions = state.index.versions(name.clone(), VERSIONS_MAX).await?;
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
        main_program: named.program,
        versions: versions.into_iter().map(AttributeVersion::from).collect(),
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
    let programs = match &hit {
        Some(hit) => service.state.index.programs_of(hit.row.info.nar_hash, PROGRAMS_MAX).await?,
        None => Vec::new(),
    };
    Ok(AttributeOutput {
        name,
        path: path.as_ref().map(ToString::to_string),
        hash: hash.map(|hash| hash.to_string()),
        served: hit.is_some(),
        narinfo: hash.map(|hash| format!("/{hash}.narinfo")),
        nar: hit.map(|hit| format!("/nar/{}.nar.zst", hit.row.info.nar_hash.to_nixbase32())),
        programs,
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
                wait: None,
                misread: None,
            }
        };
        let keys = ["system", "compression", "wait"];
        let parse = |attribute, query| PackageAddress::parse(["pkgs", attribute], query, &keys);
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
        for (path, query) in [("a..b", None), ("\"a", None), ("a\0", None), ("^out", None), ("a^", None)] {
            assert_eq!(parse(path, query), None, "{path} {query:?}");
        }
        assert_eq!(PackageAddress::parse(["p.k", "a"], None, &keys), None);
        for (query, keys, words) in [
            ("sistem=a-linux", &keys[..], "no parameter sistem here, but system, compression, wait"),
            ("compression=xz", &keys, "compression is none or zstd"),
            ("wait=301", &keys, "wait is a number of seconds, 0 to 300"),
            ("system=%ff", &keys, "system is no UTF-8"),
            ("compression=zstd", &["system"], "no parameter compression here, but system"),
        ] {
            let parsed = PackageAddress::parse(["pkgs", "a"], Some(query), keys).expect("names");
            assert!(parsed.misread.is_some_and(|reason| reason.contains(words)), "{query}");
        }
    }
}
