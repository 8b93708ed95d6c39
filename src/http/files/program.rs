//! `/bin/…`: the executable of a program by its name. Of several packages that have one, the statically
//! linked one comes first, where its set says which those are; then the attribute of the same name, in the
//! order of the sets.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use narinfo::nar::{EntryKind, ListingEntry};

use super::RegularFile;
use crate::catalogue::{AttributePath, NoSuchName, Selection, SetName};
use crate::contents::{ResolveError, ResolvedFile};
use crate::escape::Line;
use crate::http::answer::{self, Answer};
use crate::http::by_name::{NamedOutput, PackageAddress};
use crate::http::call::{Call, parameters};
use crate::http::delivery::{Delivery, DeliveryRequest, wait_of};
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;
use crate::index::CachedNarInfo;
use crate::nearest::similar;

/// Folder of programs in a store path.
const FOLDER: &str = "bin";
/// Output that has programs where they are apart from the rest, and the one that has everything else.
const PROGRAM_OUTPUTS: [&str; 2] = ["bin", "out"];
/// Bytes of a name at most, as in a file system.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of a program at most whose digest is told: it is computed before the first byte is sent.
const DIGESTED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A program, as an address names it.
struct ProgramAddress {
    program: String,
    system: Option<String>,
    wait: Option<Duration>,
}

/// The result for one package.
enum ProgramLookup {
    Found(ResolvedFile),
    Pending(Answer),
    /// Its programs are others, for this reason.
    Lacks(String),
}

/// A program of any package set.
pub(in crate::http) fn program(call: Call<'_>) -> Option<ResponseFuture> {
    let address = ProgramAddress::parse(call.arguments[0], call.query)?;
    let asked = DeliveryRequest::of(call).waiting(address.wait);
    Some(ResponseFuture::pending(async move { of_any_set(&asked, &address).await }))
}

/// A program of an attribute.
pub(in crate::http) fn program_of(call: Call<'_>) -> Option<ResponseFuture> {
    let [set, attribute, program] = call.arguments;
    let address = ProgramAddress::parse(program, call.query)?;
    let package = PackageAddress::parse([set, attribute], call.query, &["system", "wait"])?;
    let asked = DeliveryRequest::of(call).waiting(address.wait);
    Some(ResponseFuture::pending(async move {
        let named = package.find(&asked.service).await?;
        match of_package(&asked, &named, &address.program).await? {
            ProgramLookup::Found(found) => send(&asked, &found, &address.program).await,
            ProgramLookup::Pending(answer) => Ok(answer),
            ProgramLookup::Lacks(reason) => Err(Error::NotFound(reason)),
        }
    }))
}

impl ProgramAddress {
    fn parse(program: &str, query: Option<&str>) -> Option<Self> {
        let is_name = !matches!(program, "" | "." | "..") && program.len() <= NAME_BYTES_MAX;
        if !is_name || program.contains(['/', '\0']) {
            return None;
        }
        let mut address = Self { program: program.to_owned(), system: None, wait: None };
        for (key, value) in parameters(query) {
            match (key, value?) {
                ("system", value) => address.system = Some(value),
                ("wait", value) => address.wait = Some(wait_of(&value)?),
                _ => return None,
            }
        }
        Some(address)
    }
}

async fn of_any_set(asked: &DeliveryRequest, address: &ProgramAddress) -> Result<Answer, Error> {
    let ProgramAddress { program, system, .. } = address;
    let mut lacking = None;
    let mut refused = None;
    for package in candidates(asked, address) {
        let named = match package.resolve(&asked.service).await {
            Ok(named) => named,
            Err(NoSuchName::Attribute { .. }) => continue,
            // Another set may have it.
            Err(reason) => {
                refused.get_or_insert(reason);
                continue;
            }
        };
        match of_package(asked, &named, program).await? {
            ProgramLookup::Found(found) => return send(asked, &found, program).await,
            ProgramLookup::Pending(answer) => return Ok(answer),
            ProgramLookup::Lacks(reason) => {
                lacking.get_or_insert(reason);
            }
        }
    }
    match (lacking, refused) {
        (Some(reason), _) => Err(Error::NotFound(reason)),
        (None, Some(reason)) => Err(reason.into()),
        (None, None) => Err(Error::NotFound(unknown(asked, program, system.as_deref()).await)),
    }
}

/// The packages that may have a program, those that are preferred first.
fn candidates(asked: &DeliveryRequest, address: &ProgramAddress) -> Vec<PackageAddress> {
    let sets: Vec<_> = asked.service.state.catalogue.sets().map(|(settings, _)| settings).collect();
    let of = |set: &SetName, names: Vec<String>| {
        let path = AttributePath::new(names)?;
        let selection = Selection { path, output: None, otherwise: None };
        Some(PackageAddress::of(set.clone(), selection, address.system.clone()))
    };
    let program = || address.program.clone();
    let linked_statically = sets.iter().filter_map(|settings| {
        let mut names = settings.static_attributes.as_ref()?.names().to_vec();
        names.push(program());
        of(&settings.name, names)
    });
    let plain = sets.iter().filter_map(|settings| of(&settings.name, vec![program()]));
    linked_statically.chain(plain).collect()
}

/// A program of one package, which is built first where need be.
async fn of_package(
    asked: &DeliveryRequest,
    named: &NamedOutput,
    program: &str,
) -> Result<ProgramLookup, Error> {
    let mut lacks = None;
    for output in named.outputs(&PROGRAM_OUTPUTS) {
        let ready = match output.delivered(asked).await? {
            Delivery::Ready(ready) => ready,
            Delivery::Pending(answer) => return Ok(ProgramLookup::Pending(answer)),
        };
        let contents = &asked.service.state.contents;
        match contents.resolve(&ready.path, ready.nar_hash, &format!("{FOLDER}/{program}")).await {
            Ok(found) if matches!(found.kind(), EntryKind::Regular { executable: true, .. }) => {
                return Ok(ProgramLookup::Found(found));
            }
            Ok(_) => {
                lacks.get_or_insert(format!("{}/{FOLDER}/{program} is not executable", ready.path));
            }
            Err(ResolveError::NotFound { .. } | ResolveError::NotDirectory(_)) => {
                let reason = programs_instead(asked, &ready, program).await?;
                lacks.get_or_insert(reason);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ProgramLookup::Lacks(lacks.unwrap_or_else(|| format!("no output of it has {FOLDER}/{program}"))))
}

/// The reason why a path has no program of a name, with those that it has.
async fn programs_instead(
    asked: &DeliveryRequest,
    ready: &CachedNarInfo,
    program: &str,
) -> Result<String, Error> {
    let listing = asked.service.state.contents.listing(ready.nar_hash).await?;
    let folder = listing.root().child(FOLDER.as_bytes());
    let names = folder.into_iter().flat_map(ListingEntry::children).map(ListingEntry::name);
    let names: Vec<String> =
        names.take(50).map(|name| Line(String::from_utf8_lossy(name)).to_string()).collect();
    let path = &ready.path;
    if names.is_empty() {
        return Ok(format!("no such program: {path} has none"));
    }
    let similar = similar(program, names.iter().map(String::as_str));
    let hint = similar.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    Ok(format!("no such program: {path} has {}{hint}", names.join(", ")))
}

/// The reason why no set has a program.
async fn unknown(asked: &DeliveryRequest, program: &str, system: Option<&str>) -> String {
    let state = &asked.service.state;
    let sets: Vec<SetName> = state.catalogue.sets().map(|(set, _)| set.name.clone()).collect();
    if sets.is_empty() {
        return "no such program: this server has no package set (setting [[catalogue]])".to_owned();
    }
    let names: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let mut hint = String::new();
    for set in &sets {
        if let Some(similar) = state.names.similar(set, program, system).await {
            hint = format!("; did you mean {}?", Line(similar));
            break;
        }
    }
    let (program, sets) = (Line(program), names.join(", "));
    format!(
        "no such program: no package set ({sets}) has the attribute {program}{hint}; a program of another attribute is at \
         /bin/<set>/<attribute>/{program}"
    )
}

async fn send(asked: &DeliveryRequest, found: &ResolvedFile, program: &str) -> Result<Answer, Error> {
    let Some(file) = RegularFile::of(found) else { return Err(Error::not_found("it is no file")) };
    let mut answer = file.answer(asked, answer::BYTES).await?;
    if !asked.head && file.bytes <= DIGESTED_BYTES_MAX {
        let part = file.offset..file.offset + file.bytes;
        let digest = asked.service.state.contents.sha256(file.nar, part).await?;
        answer = answer::with_digest(answer, &STANDARD.encode(digest));
    }
    Ok(answer::saved_as(answer, program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_the_name_of_a_file_and_a_system_and_a_wait_where_wanted() {
        let parsed = ProgramAddress::parse("jq", Some("system=a-linux&wait=0")).expect("an address");
        assert_eq!((&*parsed.program, parsed.system.as_deref()), ("jq", Some("a-linux")));
        assert_eq!(parsed.wait, Some(Duration::ZERO));
        assert!(ProgramAddress::parse("[", None).is_some_and(|address| address.wait.is_none()));
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for (program, query) in [
            ("", None),
            ("..", None),
            ("a\0", None),
            ("a/b", None),
            (&*long, None),
            ("jq", Some("wait=301")),
            ("jq", Some("wait=-1")),
            ("jq", Some("compression=zstd")),
        ] {
            assert!(ProgramAddress::parse(program, query).is_none(), "{program:.20} {query:?}");
        }
    }
}
