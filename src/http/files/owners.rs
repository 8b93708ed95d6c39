//! The packages that have a program of some name, in the order in which they are tried. Statically linked
//! ones come first, where their set says which those are; of these and of the others, the attribute of the
//! same name comes before those whose description names the program, and these before what was read of built
//! outputs.

use narinfo::StorePathHash;

use crate::catalogue::{AttributePath, NoSuchName, Selection, SetName, SetSettings};
use crate::escape::Line;
use crate::http::Service;
use crate::http::answer;
use crate::http::api::{ProgramDetails, ProgramPackage};
use crate::http::by_name::{NamedOutput, PackageAddress};
use crate::http::call::{Call, parameters, unknown_parameter};
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;
use crate::model::ProgramOwner;
use crate::nearest::similar;

/// Output that has programs where they are apart from the rest, and the one that has everything else.
pub(super) const PROGRAM_OUTPUTS: [&str; 2] = ["bin", "out"];
/// Packages of a program that are looked at, at most.
const OWNERS_MAX: u32 = 200;
/// Characters that a suggested name has in common with the one that nothing has, and names that are compared
/// at most.
const SAME_CHARS: usize = 2;
const COMPARED_MAX: u32 = 2000;

/// A package that may have the program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProgramCandidate {
    set: SetName,
    attribute: AttributePath,
    system: String,
    /// The path that has it, where that was read.
    path: Option<StorePathHash>,
    is_static: bool,
}

impl ProgramCandidate {
    /// Its outputs that may have the program; none where it is not as it was when the path was read.
    pub(super) async fn outputs(&self, service: &Service) -> Result<Vec<NamedOutput>, NoSuchName> {
        let selection = Selection { path: self.attribute.clone(), output: None, otherwise: None };
        let package = PackageAddress::of(self.set.clone(), selection, Some(self.system.clone()));
        let named = package.resolve(service).await?;
        Ok(match self.path {
            Some(hash) => named.at(hash).into_iter().collect(),
            None => named.outputs(&PROGRAM_OUTPUTS),
        })
    }
}

/// The packages that may have a program, those that are preferred first. An attribute of its name need not
/// exist.
pub(super) async fn candidates(
    service: &Service,
    program: &str,
    system: Option<&str>,
) -> Result<Vec<ProgramCandidate>, Error> {
    let sets: Vec<&SetSettings> = service.state.catalogue.sets().map(|(settings, _)| settings).collect();
    let owners = service.state.index.program_owners(program.to_owned(), OWNERS_MAX).await;
    let owners = owners.map_err(|error| Error::index(&error, "programs cannot be looked up"))?;
    // A set that is not evaluated for the system is left to fail by its own reason.
    let system_of =
        |set: &SetSettings| set.system(system).or(system.ok_or(())).unwrap_or_default().to_owned();
    let named = |set: &SetSettings, folder: &[String]| {
        let names = folder.iter().cloned().chain([program.to_owned()]).collect();
        let attribute = AttributePath::new(names)?;
        let (set, system) = (set.name.clone(), system_of(set));
        Some(ProgramCandidate { set, attribute, system, path: None, is_static: !folder.is_empty() })
    };
    let linked = sets.iter().filter(|set| !static_folder(set).is_empty());
    let mut found: Vec<ProgramCandidate> = linked.filter_map(|set| named(set, static_folder(set))).collect();
    let mut others: Vec<(usize, ProgramCandidate)> = Vec::new();
    for ProgramOwner { name, path } in owners {
        let place =
            sets.iter().position(|set| set.name.as_str() == name.set && system_of(set) == name.system);
        let Some((place, attribute)) = place.zip(AttributePath::parse(&name.attribute)) else { continue };
        let folder = static_folder(sets[place]);
        let is_static = !folder.is_empty() && attribute.names().starts_with(folder);
        let (set, system) = (sets[place].name.clone(), name.system);
        others.push((place, ProgramCandidate { set, attribute, system, path, is_static }));
    }
    others.sort_by_key(|(place, owner)| (owner.path.is_some(), *place));
    let (linked, plain): (Vec<_>, Vec<_>) =
        others.into_iter().map(|(_, owner)| owner).partition(|owner| owner.is_static);
    found.extend(linked);
    found.extend(sets.iter().filter_map(|set| named(set, &[])));
    found.extend(plain);
    Ok(found)
}

/// Names of the attribute below which a set's packages are linked statically; none where it does not say so.
fn static_folder(set: &SetSettings) -> &[String] {
    set.static_attributes.as_ref().map_or(&[][..], AttributePath::names)
}

/// The reason why no set has a program, with the nearest name that there is.
pub(super) async fn unknown(service: &Service, program: &str, system: Option<&str>) -> String {
    let sets: Vec<String> = service.state.catalogue.sets().map(|(set, _)| set.name.to_string()).collect();
    if sets.is_empty() {
        return "no such program: this server has no package set (setting [[catalogue]])".to_owned();
    }
    let similar = nearest(service, program, system).await;
    let hint = similar.map(|name| format!("; did you mean {}?", Line(name))).unwrap_or_default();
    let (program, sets) = (Line(program), sets.join(", "));
    format!(
        "no such program: no package of the sets ({sets}) is known to have {program}{hint}; a program of a package that \
         was never built here is at /bin/<set>/<attribute>/{program}"
    )
}

/// The name of an attribute or a program that is most like this one.
async fn nearest(service: &Service, program: &str, system: Option<&str>) -> Option<String> {
    let state = &service.state;
    let beginning: String = program.chars().take(SAME_CHARS).collect();
    let mut names = state.index.programs_like(beginning, COMPARED_MAX).await.unwrap_or_default();
    for (set, _) in state.catalogue.sets() {
        names.extend(state.names.similar(&set.name, program, system).await);
    }
    similar(program, names.iter().map(String::as_str)).map(str::to_owned)
}

fn misread(reason: String) -> ResponseFuture {
    ResponseFuture::failed(Error::BadRequest(reason))
}

/// Tells which packages have a program.
pub(in crate::http) fn owners(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, program) = (call.service.clone(), call.arguments[0].to_owned());
    let mut system = None;
    for (key, value) in parameters(call.query) {
        match key {
            "system" if value.is_some() => system = value,
            "system" => return Some(misread("system is no UTF-8".to_owned())),
            _ => return Some(misread(unknown_parameter(key, &["system"]))),
        }
    }
    Some(ResponseFuture::pending(async move {
        let packages = packages(&service, &program, system.as_deref()).await?;
        let is_unknown = packages.is_empty();
        let similar = if is_unknown { nearest(&service, &program, system.as_deref()).await } else { None };
        Ok(answer::json(&ProgramDetails { program, packages, similar }))
    }))
}

async fn packages(
    service: &Service,
    program: &str,
    system: Option<&str>,
) -> Result<Vec<ProgramPackage>, Error> {
    let mut found = Vec::new();
    for candidate in candidates(service, program, system).await? {
        let Ok(outputs) = candidate.outputs(service).await else { continue };
        let Some(path) = outputs.first().and_then(|output| output.path().ok()) else { continue };
        found.push((candidate, path.clone()));
    }
    let hashes = found.iter().map(|(_, path)| path.hash()).collect();
    let served = service.state.index.served(hashes).await;
    let served = served.map_err(|error| Error::index(&error, "paths cannot be looked up"))?;
    let mut packages: Vec<ProgramPackage> = Vec::new();
    for (candidate, path) in found {
        let ProgramCandidate { set, attribute, system, path: read, is_static } = candidate;
        let (set, attribute) = (set.to_string(), attribute.to_string());
        if let Some(known) =
            packages.iter_mut().find(|known| known.set == set && known.attribute == attribute)
        {
            known.is_certain |= read.is_some();
            continue;
        }
        packages.push(ProgramPackage {
            set,
            attribute,
            system,
            served: served.contains_key(&path.hash()),
            path: path.to_string(),
            is_certain: read.is_some(),
            is_static,
        });
    }
    Ok(packages)
}
