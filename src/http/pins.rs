//! Pins: their list as JSON, pinning and unpinning. A name is resolved when it is pinned, as in any request
//! by name; an ambiguous one is refused with the choices.

use std::collections::BTreeSet;

use narinfo::{StorePath, StorePathHash};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::PinView;
use super::call::Call;
use super::error::Error;
use super::packages::{self, NoPackage, PackageName};
use super::response_future::ResponseFuture;
use crate::caller::{Action, Caller, may_for};
use crate::catalogue::{NoSuchName, Selection, SetName, SetSettings};
use crate::escape::{Line, Lines};
use crate::index;
use crate::model::PinRow;
use crate::retention::{Pinned, Pinning};

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { all(&service).await }))
}

pub(super) fn pin(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, what) = (call.service.clone(), Pinned::parse(call.arguments[0])?);
    let caller = call.caller;
    Some(ResponseFuture::pending(async move { pinned(&service, &caller, what).await }))
}

pub(super) fn unpin(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, what) = (call.service.clone(), Pinned::parse(call.arguments[0])?);
    let caller = call.caller;
    Some(ResponseFuture::pending(async move { unpinned(&service, &caller, what).await }))
}

async fn all(service: &Service) -> Result<Answer, Error> {
    let pins = service.state.retention.pins().await.map_err(unreadable)?;
    Ok(json(&pins.into_iter().map(PinView::from).collect::<Vec<_>>()))
}

async fn pinned(service: &Service, caller: &Caller, what: Pinned) -> Result<Answer, Error> {
    let (name, pinnings) = match what {
        Pinned::Path(hash, name) => {
            let path = path_of(service, caller, hash).await?;
            let sent = StorePath::parse(&name).ok();
            if let (Some(path), Some(sent)) = (&path, &sent)
                && path != sent
            {
                return Err(Error::BadRequest(format!("{sent} is not what its hash names, which is {path}")));
            }
            // The name that was sent proves nothing: an unknown path has none that a pattern could allow.
            may_pin(caller, path.as_ref())?;
            (name, vec![Pinning { of: None, hash, path: path.or(sent), served: false }])
        }
        Pinned::Attribute(text) => attribute(service, &text).await?,
    };
    for pinning in pinnings.iter().filter(|pinning| pinning.of.is_some()) {
        may_pin(caller, pinning.path.as_ref())?;
    }
    let pinnings = service.state.retention.pin(name, pinnings).await.map_err(unchangeable)?;
    let lines: String = pinnings.iter().map(|pinning| format!("pinned: {pinning}\n")).collect();
    Ok(answer::ready(answer::TEXT, Lines(lines).to_string()))
}

fn may_pin(caller: &Caller, path: Option<&StorePath>) -> Result<(), Error> {
    may_for(caller, Action::Pin, path.map_or("", StorePath::name)).map_err(Error::Refused)
}

/// The path with this hash, as the index names it; for who is bound to names, else as a derivation that makes
/// it does.
async fn path_of(
    service: &Service,
    caller: &Caller,
    hash: StorePathHash,
) -> Result<Option<StorePath>, Error> {
    let served = service.state.index.find(hash).await.map_err(unreadable)?;
    match served {
        Some(hit) => Ok(Some(hit.row.info.path)),
        None if is_bound(caller) => Ok(service.state.substitute.path_to_build(hash).await?),
        None => Ok(None),
    }
}

fn is_bound(caller: &Caller) -> bool {
    caller.grant().is_some_and(|grant| !grant.only.is_empty())
}

/// The outputs of an attribute, and the name of the pin.
async fn attribute(service: &Service, text: &str) -> Result<(String, Vec<Pinning>), Error> {
    let nothing = || {
        Error::NotFound(format!(
            "there is no attribute {0} with a derivation in any package set, and none whose derivation is called \
             {0}; `ondine attributes SET` lists those of one",
            Line(text)
        ))
    };
    let (found, name) = match packages::find(service, text).await {
        Ok(found) => {
            let is_set = |set: &SetName| *set == found.set;
            let name = PackageName::parse(text, is_set).map(|named| named.written());
            (found, name)
        }
        Err(NoPackage::Unknown) => match packages::of_derivation(service, text).await {
            Ok(found) => (found, None),
            Err(NoPackage::Ambiguous(choices)) => return Err(packages::ambiguous(text, &choices)),
            Err(NoPackage::Untold(reason)) => return Err(reason.into()),
            Err(NoPackage::Unknown) => return Err(nothing()),
        },
        Err(NoPackage::Ambiguous(choices)) => return Err(packages::ambiguous(text, &choices)),
        Err(NoPackage::Untold(reason)) => return Err(reason.into()),
    };
    let set = service.state.catalogue.sets().map(|(set, _)| set).find(|set| set.name == found.set);
    let set = set.cloned().ok_or_else(nothing)?;
    let pinnings = outputs(service, &set, &found.selection).await?;
    Ok((name.unwrap_or_else(|| found.written()), pinnings))
}

/// The outputs that an attribute of a set has for each of its systems: all, or the one that is named.
async fn outputs(
    service: &Service,
    set: &SetSettings,
    selection: &Selection,
) -> Result<Vec<Pinning>, NoSuchName> {
    let (mut pinnings, mut refused) = (Vec::new(), None);
    for system in &set.systems {
        let found = service.state.names.select(&set.name, selection, Some(system)).await;
        let paths = found.and_then(|(named, output)| match output {
            Some(output) => Ok(vec![named.output(Some(output))?.clone()]),
            None if named.outputs.values().all(Option::is_none) => {
                named.output(None).map(|path| vec![path.clone()])
            }
            None => Ok(named.outputs.into_values().flatten().collect()),
        });
        match paths {
            Ok(paths) => pinnings.extend(paths.into_iter().map(|path| Pinning {
                of: Some((set.name.to_string(), system.clone())),
                hash: path.hash(),
                path: Some(path),
                served: false,
            })),
            Err(reason) => refused = Some(reason),
        }
    }
    match refused {
        Some(reason) if pinnings.is_empty() => Err(reason),
        _ => Ok(pinnings),
    }
}

async fn unpinned(service: &Service, caller: &Caller, what: Pinned) -> Result<Answer, Error> {
    let pins = service.state.retention.pins().await.map_err(unreadable)?;
    let (name, hash) = match what {
        Pinned::Path(hash, name) => (name, Some(hash)),
        Pinned::Attribute(text) => (name_of_pin(&pins, &text)?, None),
    };
    let removed: Vec<PinRow> =
        pins.into_iter().filter(|pin| pin.name == name || Some(pin.hash) == hash).collect();
    if is_bound(caller) {
        for pin in &removed {
            let path = match &pin.path {
                Some(path) => Some(path.clone()),
                None => path_of(service, caller, pin.hash).await?,
            };
            may_pin(caller, path.as_ref())?;
        }
    }
    if service.state.retention.unpin(name, hash).await.map_err(unchangeable)? == 0 {
        return Err(no_such_pin(&[]));
    }
    let lines: String = removed.iter().map(unpinned_line).collect();
    Ok(answer::ready(answer::TEXT, Lines(lines).to_string()))
}

fn unpinned_line(PinRow { name, hash, path, .. }: &PinRow) -> String {
    match path {
        Some(path) if path.to_string() != *name => format!("unpinned: {name} ({path})\n"),
        None if hash.to_string() != *name => format!("unpinned: {name} ({hash})\n"),
        _ => format!("unpinned: {name}\n"),
    }
}

/// The name of a pin, which may be written in another spelling, with its set exactly where the pin has one.
fn name_of_pin(pins: &[PinRow], text: &str) -> Result<String, Error> {
    // A set that is not configured any more may have pins, too.
    let parse = |name: &str| PackageName::parse(name, |_| true);
    let names: BTreeSet<&str> = pins.iter().map(|pin| &*pin.name).collect();
    if names.contains(text) {
        return Ok(text.to_owned());
    }
    let Some(wanted) = parse(text) else { return Err(no_such_pin(&[])) };
    let mut alike = Vec::new();
    for name in names {
        match parse(name) {
            Some(named) if named.written() == wanted.written() => return Ok(name.to_owned()),
            Some(named) if named.attribute() == wanted.attribute() => alike.push(name),
            _ => {}
        }
    }
    Err(no_such_pin(&alike))
}

fn no_such_pin(alike: &[&str]) -> Error {
    let hint = match alike {
        [] => "`ondine pins` lists all".to_owned(),
        alike => format!("there are {}", alike.join(", ")),
    };
    Error::NotFound(format!("there is no such pin; {hint}"))
}

fn unreadable(error: index::Error) -> Error {
    Error::index(&error, "the pins cannot be read")
}

fn unchangeable(error: index::Error) -> Error {
    Error::index(&error, "the pins cannot be changed")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn pin(name: &str) -> PinRow {
        let path = StorePath::parse(&format!("{HASH}-hello-2.12")).expect("a path");
        PinRow {
            hash: path.hash(),
            name: name.to_owned(),
            pinned_at: SystemTime::UNIX_EPOCH,
            path: Some(path),
        }
    }

    #[test]
    fn a_pin_is_removed_by_its_own_name_in_any_spelling_and_by_no_other() {
        let pins = ["hello", "nixpkgs/hello", "team/\"slash/ed\"", "old/only"].map(pin);
        for (text, name) in [
            ("hello", "hello"),
            ("nixpkgs/hello", "nixpkgs/hello"),
            ("team/slash/ed", "team/\"slash/ed\""),
            ("old/\"only\"", "old/only"),
        ] {
            assert_eq!(name_of_pin(&pins, text).ok().as_deref(), Some(name), "{text}");
        }
        let refused = |text: &str| match name_of_pin(&pins[1..], text) {
            Err(Error::NotFound(text)) => text,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(refused("hello"), "there is no such pin; there are nixpkgs/hello");
        assert_eq!(refused("team/hello"), "there is no such pin; there are nixpkgs/hello");
        assert_eq!(refused("nope"), "there is no such pin; `ondine pins` lists all");
        assert_eq!(unpinned_line(&pins[1]), format!("unpinned: nixpkgs/hello ({HASH}-hello-2.12)\n"));
        assert_eq!(
            unpinned_line(&pin(&format!("{HASH}-hello-2.12"))),
            format!("unpinned: {HASH}-hello-2.12\n")
        );
    }
}
