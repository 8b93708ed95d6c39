//! Explanation of one hash, path, derivation or name: where it is, or why it is not, and what to do. Starts
//! nothing.

use std::collections::BTreeSet;

use narinfo::StorePath;

use super::Service;
use super::answer::json;
use super::api::{BuildItem, BuildItemState, Explanation, unix_seconds};
use super::call::Call;
use super::error::{Error, REMEMBERED};
use super::response_future::ResponseFuture;
use crate::escape::Line;
use crate::model::Search;
use crate::nearest::similar;
use crate::requests::{OutputChoice, RequestTarget};
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

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, asked) = (call.service.clone(), call.arguments[0].to_owned());
    let (what, on_miss) = (Failed::parse(&asked)?, call.on_miss().without_building());
    Some(ResponseFuture::pending(async move { Ok(json(&explain(&service, asked, what, on_miss).await?)) }))
}

/// An explanation of what is named.
pub(super) async fn explain(
    service: &Service,
    asked: String,
    what: Failed,
    on_miss: OnMiss,
) -> Result<Explanation, Error> {
    let state = &service.state;
    let targets = match what {
        Failed::Derivation(drv) => vec![RequestTarget::Derivation { drv, outputs: OutputChoice::All }],
        Failed::Hash(hash) => vec![RequestTarget::Hash(hash)],
        Failed::Name(name) => named(service, &name).await?,
    };
    if targets.is_empty() {
        let hint = similar_name(service, &asked).await.unwrap_or_default();
        let reason = format!(
            "{} is no hash, store path, attribute of a package set or derivation{hint}",
            Line(&asked)
        );
        return Err(Error::not_found(reason));
    }
    let may_not_build = matches!(on_miss, OnMiss::Unentitled(_));
    let mut items = state.requests.ask(targets, on_miss, None, None).await?;
    // Of a name that several sets may have, the first that is known.
    let known = items.iter().position(|item| item.drv.is_some()).unwrap_or_default();
    let mut item = BuildItem::new(asked, items.swap_remove(known), &state.store_dir);
    if item.state == BuildItemState::Unknown
        && item.derivation.is_none()
        && let Some(hint) = similar_name(service, &item.asked).await
    {
        item.reason = Some(item.reason.unwrap_or_else(|| "nothing has this name".to_owned()) + &hint);
    }
    if may_not_build && item.state == BuildItemState::Known {
        let drv = item.derivation.as_deref().and_then(|drv| StorePath::parse(drv).ok());
        item.state = BuildItemState::Refused;
        item.reason = drv.map(|drv| Missing::NeedsRight(drv).to_string());
    }
    explanation(service, item).await
}

/// The attribute of this name in the set that it names, or in each set; then the derivations of this name
/// that were requested or have failed, and those that were pushed, the latest used first.
async fn named(service: &Service, name: &str) -> Result<Vec<RequestTarget>, Error> {
    let state = &service.state;
    let unreadable = |error| Error::index(&error, "the explanation cannot be given");
    let mut targets = attributes_named(service, name);
    let mut derivations = state.builds.requested();
    let failures = state.failures.list().await.map_err(unreadable)?.into_iter();
    derivations.extend(failures.map(|failure| failure.drv));
    derivations.retain(|drv| has_name(drv, name));
    let drv_name = format!("{}.drv", name.strip_suffix(".drv").unwrap_or(name));
    derivations.extend(state.index.pushed_named(drv_name).await.map_err(unreadable)?);
    let mut seen = BTreeSet::new();
    let derivations = derivations.into_iter().filter(|drv| seen.insert(drv.clone())).take(NAMED_MAX);
    targets.extend(derivations.map(|drv| RequestTarget::Derivation { drv, outputs: OutputChoice::All }));
    Ok(targets)
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

fn attributes_named(service: &Service, name: &str) -> Vec<RequestTarget> {
    let sets: Vec<&str> = service.state.catalogue.sets().map(|(set, _)| set.name.as_str()).collect();
    let with_set = name.split_once('/').filter(|(set, _)| sets.contains(set));
    match with_set {
        Some((set, attribute)) => RequestTarget::attribute(set, attribute, None).into_iter().collect(),
        None => sets.into_iter().filter_map(|set| RequestTarget::attribute(set, name, None).ok()).collect(),
    }
}

async fn explanation(service: &Service, item: BuildItem) -> Result<Explanation, Error> {
    let state = &service.state;
    let unreadable = |error| Error::index(&error, "the explanation cannot be given");
    let drv = item.derivation.as_deref().and_then(|drv| StorePath::parse(drv).ok());
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
        advice: advice(&item, failure.as_ref().map(|failure| &failure.cause)),
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

fn advice(item: &BuildItem, cause: Option<&StorePath>) -> String {
    let cause = cause.map_or_else(|| "DERIVATION".to_owned(), ToString::to_string);
    let drv = item.derivation.as_deref().unwrap_or("DERIVATION");
    match item.state {
        BuildItemState::Served => "fetch it with this cache as a substituter".to_owned(),
        BuildItemState::Building | BuildItemState::Queued => {
            format!("wait for it: a client that asks for it now is held until it is built. {REMEMBERED}")
        }
        BuildItemState::Known => format!(
            "ask for it, and it is built: with this cache as a substituter, with `ondine build`, or by its name. \
             {REMEMBERED}"
        ),
        BuildItemState::Failed => format!(
            "read the log (`ondine log {cause}`) and repair what failed; `ondine retry {drv}` builds it again at once, \
             and any request does so once the failure is forgotten. {REMEMBERED}"
        ),
        BuildItemState::Refused => "see the reason, which says what would have to change".to_owned(),
        BuildItemState::Unknown => {
            "give the server its derivation: `nix copy --derivation --to URL DERIVATION` with a \
                                    token that may push, or a package set that has it"
                .to_owned()
        }
    }
}
