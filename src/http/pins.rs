//! Pins: their list as JSON, pinning and unpinning. A name is resolved when it is pinned, as in any request
//! by name; an ambiguous one is refused with the choices.

use std::collections::BTreeSet;

use narinfo::{StorePath, StorePathHash};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::PinView;
use super::call::Call;
use super::error::Error;
use super::response_future::ResponseFuture;
use crate::caller::{Action, Caller, may_for};
use crate::catalogue::{NoSuchName, Selection, SetName, SetSettings};
use crate::escape::{Line, Lines};
use crate::index;
use crate::retention::{Pinned, Pinning};

/// An attribute, named with or without its set.
struct PinTarget {
    set: Option<SetName>,
    selection: Selection,
}

impl PinTarget {
    /// `<set>/<attribute>` where there is such a set; else all of it is the attribute.
    fn parse(text: &str, is_set: impl Fn(&SetName) -> bool) -> Option<Self> {
        let with_set =
            text.split_once('/').and_then(|(set, rest)| Some((SetName::new(set).filter(is_set)?, rest)));
        let (set, rest) = with_set.map_or((None, text), |(set, rest)| (Some(set), rest));
        Some(Self { set, selection: Selection::parse(rest)? })
    }

    /// The canonical spelling.
    fn written(&self) -> String {
        let attribute = self.attribute();
        self.set.as_ref().map_or(attribute.clone(), |set| format!("{set}/{attribute}"))
    }

    fn attribute(&self) -> String {
        let Selection { path, output, .. } = &self.selection;
        output.as_ref().map_or(path.to_string(), |output| format!("{path}^{output}"))
    }
}

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

/// The outputs of an attribute in the one set that has it, and the name of the pin.
async fn attribute(service: &Service, text: &str) -> Result<(String, Vec<Pinning>), Error> {
    let sets: Vec<SetSettings> = service.state.catalogue.sets().map(|(set, _)| set.clone()).collect();
    let is_set = |name: &SetName| sets.iter().any(|set| set.name == *name);
    let nothing = || {
        Error::NotFound(format!(
            "there is no attribute {} with a derivation in any package set; `ondine attributes SET` lists those of one",
            Line(text)
        ))
    };
    let named = PinTarget::parse(text, is_set).ok_or_else(nothing)?;
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    for set in sets.iter().filter(|set| named.set.as_ref().is_none_or(|name| set.name == *name)) {
        match outputs(service, set, &named.selection).await {
            Ok(pinnings) => found.push((&set.name, pinnings)),
            Err(reason) => reasons.push(reason),
        }
    }
    if found.len() > 1 {
        let choices: Vec<String> =
            found.iter().map(|(set, _)| format!("{set}/{}", named.attribute())).collect();
        return Err(ambiguous(text, &choices));
    }
    if let Some((_, pinnings)) = found.pop() {
        return Ok((named.written(), pinnings));
    }
    // A reason that says more than "no such attribute".
    let reason = reasons.into_iter().find(|reason| !matches!(reason, NoSuchName::Attribute { .. }));
    Err(reason.map_or_else(nothing, Error::from))
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
    let (name, hash) = match what {
        Pinned::Path(hash, name) => (name, Some(hash)),
        Pinned::Attribute(text) => (name_of_pin(service, text).await?, None),
    };
    if is_bound(caller) {
        let pins = service.state.retention.pins().await.map_err(unreadable)?;
        for pin in pins.into_iter().filter(|pin| pin.name == name || Some(pin.hash) == hash) {
            let path = match pin.path {
                Some(path) => Some(path),
                None => path_of(service, caller, pin.hash).await?,
            };
            may_pin(caller, path.as_ref())?;
        }
    }
    match service.state.retention.unpin(name, hash).await.map_err(unchangeable)? {
        0 => Err(Error::not_found("there is no such pin; `ondine pins` lists all")),
        count => Ok(answer::ready(answer::TEXT, format!("unpinned: {count}\n"))),
    }
}

/// The name of a pin that is given with its set, or without, or in another spelling.
async fn name_of_pin(service: &Service, text: String) -> Result<String, Error> {
    let pins = service.state.retention.pins().await.map_err(unreadable)?;
    let names: BTreeSet<String> = pins.into_iter().map(|pin| pin.name).collect();
    // A set that is not configured any more may have pins, too.
    let parse = |name: &str| PinTarget::parse(name, |_| true);
    let Some(wanted) = parse(&text).filter(|_| !names.contains(&text)) else { return Ok(text) };
    let is_same = |name: &&String| {
        parse(name).is_some_and(|named| {
            named.attribute() == wanted.attribute()
                && (named.set.is_none() || wanted.set.is_none() || named.set == wanted.set)
        })
    };
    let same: Vec<String> = names.iter().filter(is_same).cloned().collect();
    match &same[..] {
        [] => Ok(text),
        [one] => Ok(one.clone()),
        choices => Err(ambiguous(&text, choices)),
    }
}

fn ambiguous(text: &str, choices: &[String]) -> Error {
    let choices = choices.join(", ");
    Error::NotFound(format!("{} may be each of these; say which: {choices}", Line(text)))
}

fn unreadable(error: index::Error) -> Error {
    Error::index(&error, "the pins cannot be read")
}

fn unchangeable(error: index::Error) -> Error {
    Error::index(&error, "the pins cannot be changed")
}
