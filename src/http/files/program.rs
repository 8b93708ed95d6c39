//! `/bin/…`: the executable of a program by its name, of the first package that has one (`owners.rs`).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use narinfo::nar::{EntryKind, ListingEntry};

use super::RegularFile;
use super::owners::{PROGRAM_OUTPUTS, candidates, unknown};
use crate::catalogue::NoSuchName;
use crate::contents::{ResolveError, ResolvedFile};
use crate::escape::Line;
use crate::http::answer::{self, Answer};
use crate::http::by_name::{NamedOutput, PackageAddress};
use crate::http::call::{Call, parameters, unknown_parameter};
use crate::http::delivery::{Delivery, DeliveryRequest, wait_of};
use crate::http::error::Error;
use crate::http::response_future::ResponseFuture;
use crate::index::CachedNarInfo;
use crate::nearest::similar;

/// Folder of programs in a store path.
const FOLDER: &str = "bin";
/// Packages that are tried at most, and built where need be.
const TRIED_MAX: usize = 8;
/// Bytes of a name at most, as in a file system.
const NAME_BYTES_MAX: usize = 255;
/// Parameters of an address.
const QUERY_KEYS: [&str; 2] = ["system", "wait"];
/// Bytes of a program at most whose digest is told: it is computed before the first byte is sent.
const DIGESTED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A program, as an address names it.
struct ProgramAddress {
    program: String,
    system: Option<String>,
    wait: Option<Duration>,
    /// Error of the query.
    misread: Option<String>,
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
    let package = PackageAddress::parse([set, attribute], call.query, &QUERY_KEYS)?;
    let asked = DeliveryRequest::of(call).waiting(address.wait);
    Some(ResponseFuture::pending(async move {
        let named = package.find(&asked.service).await?;
        match of_outputs(&asked, named.outputs(&PROGRAM_OUTPUTS), &address.program).await? {
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
        let (program, system, wait) = (program.to_owned(), None, None);
        let mut address = Self { program, system, wait, misread: None };
        address.misread = address.read(query).err();
        Some(address)
    }

    fn read(&mut self, query: Option<&str>) -> Result<(), String> {
        for (key, value) in parameters(query) {
            let value = value.ok_or_else(|| format!("{} is no UTF-8", Line(key)))?;
            match key {
                "system" => self.system = Some(value),
                "wait" => self.wait = Some(wait_of(&value)?),
                _ => return Err(unknown_parameter(key, &QUERY_KEYS)),
            }
        }
        Ok(())
    }
}

async fn of_any_set(asked: &DeliveryRequest, address: &ProgramAddress) -> Result<Answer, Error> {
    if let Some(reason) = &address.misread {
        return Err(Error::BadRequest(reason.clone()));
    }
    let program = &address.program;
    let (mut failed, mut lacking, mut refused, mut tried) = (None, None, None, 0);
    for candidate in candidates(&asked.service, program, address.system.as_deref()).await? {
        let outputs = match candidate.outputs(&asked.service).await {
            Ok(outputs) if outputs.is_empty() => continue,
            Ok(outputs) => outputs,
            Err(NoSuchName::Attribute { .. }) => continue,
            // Another set may have it.
            Err(reason) => {
                refused.get_or_insert(reason);
                continue;
            }
        };
        tried += 1;
        match of_outputs(asked, outputs, program).await {
            Ok(ProgramLookup::Found(found)) => return send(asked, &found, program).await,
            Ok(ProgramLookup::Pending(answer)) => return Ok(answer),
            Ok(ProgramLookup::Lacks(reason)) => {
                lacking.get_or_insert(reason);
            }
            // Another package may have it.
            Err(
                error @ (Error::Missing(_)
                | Error::BuildFailed { .. }
                | Error::NotFound(_)
                | Error::Forbidden(_)),
            ) => {
                failed.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
        if tried == TRIED_MAX {
            break;
        }
    }
    match (failed, lacking, refused) {
        (Some(error), ..) => Err(error),
        (None, Some(reason), _) => Err(Error::NotFound(reason)),
        (None, None, Some(reason)) => Err(reason.into()),
        (None, None, None) => {
            Err(Error::NotFound(unknown(&asked.service, program, address.system.as_deref()).await))
        }
    }
}

/// A program of one of these outputs, which are built first where need be.
async fn of_outputs(
    asked: &DeliveryRequest,
    outputs: Vec<NamedOutput>,
    program: &str,
) -> Result<ProgramLookup, Error> {
    let mut lacks = None;
    for output in outputs {
        let ready = match output.delivered(asked).await? {
            Delivery::Ready(ready) => ready,
            Delivery::Pending(answer) => return Ok(ProgramLookup::Pending(answer)),
        };
        let contents = &asked.service.state.contents;
        match contents.resolve(&ready.path, ready.nar_hash, format!("{FOLDER}/{program}").as_bytes()).await {
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

async fn send(asked: &DeliveryRequest, found: &ResolvedFile, program: &str) -> Result<Answer, Error> {
    let Some(file) = RegularFile::of(found) else { return Err(Error::not_found("it is no file")) };
    let mut answer = file.answer(asked, answer::BYTES).await?;
    if !asked.head && file.bytes <= DIGESTED_BYTES_MAX {
        let part = file.offset..file.offset + file.bytes;
        let digest = asked.service.state.contents.sha256(file.nar, part).await?;
        answer = answer::with_digest(answer, &STANDARD.encode(digest));
    }
    Ok(asked.counted(answer::saved_as(answer, program)))
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
        for (program, query) in [("", None), ("..", None), ("a\0", None), ("a/b", None), (&*long, None)] {
            assert!(ProgramAddress::parse(program, query).is_none(), "{program:.20} {query:?}");
        }
        for (query, words) in [
            ("wait=301", "wait is a number of seconds, 0 to 300"),
            ("wait=-1", "wait is a number of seconds, 0 to 300"),
            ("compression=zstd", "no parameter compression here, but system, wait"),
        ] {
            let parsed = ProgramAddress::parse("jq", Some(query)).expect("a program");
            assert!(parsed.misread.is_some_and(|reason| reason.contains(words)), "{query}");
        }
    }
}
