//! Explanation of one hash, path, derivation or name: where it is, or why it is not, and what to do. Starts
//! nothing.

use std::collections::BTreeSet;

use narinfo::{StorePath, StorePathHash};

use super::Service;
use super::answer::json;
use super::api::{BuildItem, BuildItemState, Explanation, unix_seconds};
use super::call::Call;
use super::error::{Error, REMEMBERED};
use super::packages::{self, FoundPackage, NoPackage};
use super::response_future::ResponseFuture;
use crate::catalogue::{NoSuchName, Selection, SetName};
use crate::escape::Line;
use crate::model::Search;
use crate::nearest::similar;
use crate::requests::{OutputChoice, RequestItem, RequestTarget};
use crate::retry::{Failed, has_name};
use crate::substitute::{Missing, OnMiss};

/// Characters at the start of a name that are taken to be right.
const START_CHARS: usize = 2;
/// Bytes of a name that may be misspelt, at most: a store path has more.
const NAME_BYTES_MAX: usize = 30;
/// Attributes of a set that a misspelt name is compared with, at most.
const SIMILAR_MAX: u32 = 1000;
/// Derivations of one name that are looked at, at most.
const NAMED_MAX: usize = 10;

/// Meanings of a name.
struct NameMeanings {
    targets: Vec<RequestTarget>,
    /// The package set that has the first of them.
    set: Option<SetName>,
    /// The reason where there is nothing.
    unknown: String,
}

impl From<RequestTarget> for NameMeanings {
    fn from(target: RequestTarget) -> Self {
        Self { targets: vec![target], set: None, unknown: String::new() }
    }
}

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, asked) = (call.service.clone(), call.arguments[0].to_owned());
    let (what, on_miss) = (Failed::parse(&asked)?, call.on_miss().without_building());
    Some(ResponseFuture::pending(async move {
        let mut explanation = explain(&service, asked, what, on_miss).await?;
        // What cannot be built here is refused once it is asked for, and better said before.
        if explanation.item.state == BuildItemState::Known
            && let Some(drv) = derivation_of(&explanation.item)
            && let Some(reason) = service.state.worker.refusal(&drv).await
        {
            explanation.item.state = BuildItemState::Refused;
            explanation.item.reason = Some(format!("{drv} cannot be built here\n{reason}"));
            explanation.advice = advice(&explanation.item, None, None);
        }
        Ok(json(&explanation))
    }))
}

/// An explanation of what is named.
pub(super) async fn explain(
    service: &Service,
    asked: String,
    what: Failed,
    on_miss: OnMiss,
) -> Result<Explanation, Error> {
    let state = &service.state;
    let NameMeanings { targets, set, unknown } = match what {
        Failed::Derivation(drv) => RequestTarget::Derivation { drv, outputs: OutputChoice::All }.into(),
        Failed::Hash(hash) => of_hash(service, hash).await?.into(),
        Failed::Name(name) if Selection::parse(&name).is_none() => {
            let name = Line(name);
            return Err(Error::not_found(format!("{name} is no hash, store path, attribute or derivation")));
        }
        Failed::Name(name) => named(service, &name).await?,
    };
    let may_not_build = matches!(on_miss, OnMiss::Unentitled(_));
    let mut items = state.requests.ask(targets, on_miss, None, None).await?;
    // Of a name that several have, the first that is known.
    let known = items.iter().position(|item| item.drv.is_some()).unwrap_or_default();
    let found = if items.is_empty() { RequestItem::unknown(unknown) } else { items.swap_remove(known) };
    let set = set.filter(|_| known == 0);
    let mut item = BuildItem::new(asked, found, &state.store_dir);
    if item.derivation.is_none()
        && let Some(path) = item.outputs.iter().find_map(|output| output.path.as_deref())
        && let Ok(path) = StorePath::parse_in(&state.store_dir, path)
    {
        let makers = state.substitute.makers_of(&path).await.unwrap_or_default();
        item.derivation = makers.first().map(ToString::to_string);
    }
    if item.state == BuildItemState::Unknown
        && item.derivation.is_none()
        && let Some(hint) = similar_name(service, &item.asked).await
    {
        item.reason = Some(item.reason.unwrap_or_else(|| "nothing has this name".to_owned()) + &hint);
    }
    if may_not_build && item.state == BuildItemState::Known {
        item.state = BuildItemState::Refused;
        item.reason = derivation_of(&item).map(|drv| Missing::NeedsRight(drv).to_string());
    }
    explanation(service, item, set).await
}

fn derivation_of(item: &BuildItem) -> Option<StorePath> {
    item.derivation.as_deref().and_then(|drv| StorePath::parse(drv).ok())
}

/// The derivation with this hash, where there is one; else the path with it.
async fn of_hash(service: &Service, hash: StorePathHash) -> Result<RequestTarget, Error> {
    let state = &service.state;
    let unreadable = |error| Error::index(&error, "the explanation cannot be given");
    let served = state.index.find(hash).await.map_err(unreadable)?.map(|hit| hit.row.info.path);
    let failures = state.failures.list().await.map_err(unreadable)?.into_iter();
    // What keeps the Nix store from being asked is told by the question for the path.
    let stored = state.substitute.local.valid_path(hash).await.ok().flatten();
    let known = served.into_iter().chain(stored).chain(failures.map(|failure| failure.drv));
    let mut known = known.chain(state.builds.requested());
    let drv = known.find(|path| path.is_derivation() && path.hash() == hash);
    Ok(drv.map_or(RequestTarget::Hash(hash), |drv| RequestTarget::Derivation {
        drv,
        outputs: OutputChoice::All,
    }))
}

/// The attribute of this name, and the set that has it; then the derivations of this name that were requested
/// or have failed, and those that were pushed, the latest used first; else the attribute whose derivation has
/// this name.
async fn named(service: &Service, name: &str) -> Result<NameMeanings, Error> {
    let state = &service.state;
    let unreadable = |error| Error::index(&error, "the explanation cannot be given");
    let (found, untold) = one(name, packages::find(service, name).await)?;
    let mut derivations = state.builds.requested();
    let failures = state.failures.list().await.map_err(unreadable)?.into_iter();
    derivations.extend(failures.map(|failure| failure.drv));
    derivations.retain(|drv| has_name(drv, name));
    let drv_name = format!("{}.drv", name.strip_suffix(".drv").unwrap_or(name));
    derivations.extend(state.index.pushed_named(drv_name).await.map_err(unreadable)?);
    let found = match found {
        None if derivations.is_empty() => one(name, packages::of_derivation(service, name).await)?.0,
        found => found,
    };
    let set = found.as_ref().map(|found| found.set.clone());
    let mut targets: Vec<RequestTarget> = found.iter().map(FoundPackage::target).collect();
    let mut seen = BTreeSet::new();
    let derivations = derivations.into_iter().filter(|drv| seen.insert(drv.clone())).take(NAMED_MAX);
    targets.extend(derivations.map(|drv| RequestTarget::Derivation { drv, outputs: OutputChoice::All }));
    let unknown = untold.map_or_else(
        || {
            format!(
                "unknown: no package set has {}, and no derivation of this name was requested, pushed or has failed",
                Line(name)
            )
        },
        |reason| reason.to_string(),
    );
    Ok(NameMeanings { targets, set, unknown })
}

/// The package that was found, or why a set cannot tell.
fn one(
    name: &str,
    found: Result<FoundPackage, NoPackage>,
) -> Result<(Option<FoundPackage>, Option<NoSuchName>), Error> {
    match found {
        Ok(found) => Ok((Some(found), None)),
        Err(NoPackage::Unknown) => Ok((None, None)),
        Err(NoPackage::Untold(reason)) => Ok((None, Some(reason))),
        Err(NoPackage::Ambiguous(choices)) => Err(packages::ambiguous(name, &choices)),
    }
}

/// A question for the attribute that a name may mean, where one is much like it.
async fn similar_name(service: &Service, name: &str) -> Option<String> {
    let bare = name.rsplit_once('/').map_or(name, |(_, bare)| bare);
    // A hash or a path is no misspelt name.
    let is_name = bare.chars().count() >= START_CHARS && bare.len() <= NAME_BYTES_MAX;
    let like = is_name.then(|| bare.chars().take(START_CHARS).collect::<String>() + "*")?;
    let mut attributes = Vec::new();
    for (set, _) in service.state.catalogue.sets() {
        let system = set.systems.first().cloned().unwrap_or_default();
        let search = Search { like: Some(like.clone()), after: String::new(), system, max: SIMILAR_MAX };
        let listed = service.state.index.listed(set.name.to_string(), search).await.ok().flatten();
        attributes.extend(listed.into_iter().flat_map(|(_, rows)| rows).map(|row| row.attribute));
    }
    let found = similar(bare, attributes.iter().map(String::as_str))?;
    Some(format!("; did you mean {}?", Line(found)))
}

async fn explanation(service: &Service, item: BuildItem, set: Option<SetName>) -> Result<Explanation, Error> {
    let state = &service.state;
    let unreadable = |error| Error::index(&error, "the explanation cannot be given");
    let drv = derivation_of(&item);
    let failure = match (&drv, item.state) {
        (Some(drv), BuildItemState::Failed | BuildItemState::Refused) => {
            state.failures.of(drv).await.map_err(unreadable)?
        }
        _ => None,
    };
    let served = item.outputs.iter().find(|output| output.served).and_then(|output| output.path.as_deref());
    let served = served.and_then(|path| StorePath::parse_in(&state.store_dir, path).ok());
    let mut made_by = Vec::new();
    if let Some(path) = served
        && let Some(hit) = state.index.find(path.hash()).await.map_err(unreadable)?
    {
        made_by.extend(hit.row.built.then(|| "this server".to_owned()));
        let upstreams = state.index.upstreams_with(hit.row.info.nar_hash).await.map_err(unreadable)?;
        made_by.extend(upstreams.into_iter().map(|nar| nar.upstream));
    }
    Ok(Explanation {
        advice: advice(&item, failure.as_ref().map(|failure| &failure.cause), set.as_ref()),
        notes: notes(&item),
        made_by,
        failed_since: failure.as_ref().map(|failure| unix_seconds(failure.failed_at)),
        retry_at: failure.as_ref().map(|failure| unix_seconds(failure.expires_at)),
        log: failure.map(|failure| format!("/log/{}", failure.cause)),
        item,
    })
}

/// Notes on clients that do not get what is served.
fn notes(item: &BuildItem) -> Vec<String> {
    match item.state {
        BuildItemState::Served => vec![
            REMEMBERED.to_owned(),
            "A derivation with allowSubstitutes = false is fetched only with always-allow-substitutes = true (Nix \
             2.19 and later), or by the path of its output."
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

fn advice(item: &BuildItem, cause: Option<&StorePath>, set: Option<&SetName>) -> String {
    match item.state {
        BuildItemState::Served => "fetch it with this cache as a substituter".to_owned(),
        BuildItemState::Building | BuildItemState::Queued => {
            format!("wait for it: a client that asks for it now is held until it is built. {REMEMBERED}")
        }
        BuildItemState::Known => format!(
            "ask for it, and it is built: with this cache as a substituter, with `ondine build`, or by its name. \
             {REMEMBERED}"
        ),
        BuildItemState::Failed => failed_advice(item.derivation.as_deref(), cause, set),
        BuildItemState::Refused => "see the reason, which says what would have to change".to_owned(),
        BuildItemState::Unknown => {
            "give the server its derivation: `nix copy --derivation --to URL DERIVATION` with a \
                                    token that may push, or a package set that has it"
                .to_owned()
        }
    }
}

fn failed_advice(drv: Option<&str>, cause: Option<&StorePath>, set: Option<&SetName>) -> String {
    match (drv, set) {
        (Some(drv), _) => {
            let cause = cause.map_or_else(|| drv.to_owned(), ToString::to_string);
            format!(
                "read the log (`ondine log {cause}`) and repair what failed; `ondine retry {drv}` builds it again at \
                 once, and any request does so once the failure is forgotten. {REMEMBERED}"
            )
        }
        (None, Some(set)) => format!("repair the expression, then `ondine refresh {set}`"),
        (None, None) => "repair its expression".to_owned(),
    }
}
