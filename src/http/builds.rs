//! Requests for builds: many at once, their states, the wait for one, and its cancellation. Decides nothing
//! about them (see `requests`).

use std::time::Duration;

use hyper::header;

use super::Service;
use super::answer::{self, json};
use super::api::{BuildItem, BuildList, BuildsAnswer, BuildsRequest, RequestStatus};
use super::build_details::{details, no_such_request, not_cancelled};
use super::call::{Call, parameters};
use super::error::Error;
use super::events;
use super::request_body::{self, BodyBounds};
use super::response_future::ResponseFuture;
use crate::build::Cancellation;
use crate::caller::{Action, may};
use crate::requests::{ITEMS_MAX, RequestTarget};

/// Bounds of a request for builds.
const BODY: BodyBounds = BodyBounds { bytes_max: 4 * 1024 * 1024, time_max: Duration::from_secs(60) };
/// Longest wait for the end of a request; whoever waits longer asks again.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Requests that have ended in a list.
const ENDED_LISTED: usize = 100;

/// Gives the state of each item, and starts what is to be built.
pub(super) fn ask(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, on_miss) = (call.service.clone(), call.on_miss());
    let (caller, body) = (call.caller, call.body);
    Some(ResponseFuture::pending(async move {
        let wanted: BuildsRequest = request_body::json_within(body, BODY).await?;
        let (starter, on_miss) =
            if wanted.start { (Some(&caller), on_miss) } else { (None, on_miss.without_building()) };
        let store_dir = &service.state.store_dir;
        let builder = wanted.on.clone();
        if let Some(builder) = &builder {
            // Others who want the same wait for that machine, too.
            may(&caller, Action::Admin).map_err(Error::Refused)?;
            service.state.builds.check_builder(builder)?;
        }
        let (asked, targets) = targets(&service, wanted)?;
        let items = service.state.requests.ask(targets, on_miss, starter, builder.as_deref()).await?;
        let items = asked.into_iter().zip(items).map(|(asked, item)| BuildItem::new(asked, item, store_dir));
        Ok(json(&BuildsAnswer { items: items.collect() }))
    }))
}

fn targets(service: &Service, wanted: BuildsRequest) -> Result<(Vec<String>, Vec<RequestTarget>), Error> {
    let BuildsRequest { derivations, hashes, attributes, start: _, on: _ } = wanted;
    let count = derivations.len() + hashes.len() + attributes.len();
    if count > ITEMS_MAX {
        let reason = format!("{count} items are more than {ITEMS_MAX}: ask for them in several requests");
        return Err(Error::BadRequest(reason));
    }
    let store_dir = &service.state.store_dir;
    let of_derivations = derivations.iter().map(|text| RequestTarget::derivation(store_dir, text));
    let of_hashes = hashes.iter().map(|text| RequestTarget::hash(text));
    let of_attributes = attributes
        .iter()
        .map(|named| RequestTarget::attribute(&named.set, &named.attribute, named.system.clone()));
    let targets = of_derivations.chain(of_hashes).chain(of_attributes).collect::<Result<Vec<_>, _>>();
    let targets = targets.map_err(|error| Error::BadRequest(error.to_string()))?;
    let named = attributes.into_iter().map(|named| format!("{}/{}", named.set, named.attribute));
    Ok((derivations.into_iter().chain(hashes).chain(named).collect(), targets))
}

pub(super) fn list(call: Call<'_>) -> Option<ResponseFuture> {
    Some(ResponseFuture::ready(json(&all(call.service))))
}

/// Requests that wait, and those that ended last.
pub(super) fn all(service: &Service) -> BuildList {
    let builds = &service.state.builds;
    let (waiting, ended) = (builds.snapshot(), builds.ended_requests(ENDED_LISTED));
    BuildList {
        total: waiting.total,
        requests: waiting.requests.into_iter().map(RequestStatus::from).collect(),
        ended: ended.into_iter().map(RequestStatus::from).collect(),
    }
}

/// One request: at once, or when it has ended or the time is over.
pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, id) = (call.service.clone(), call.arguments[0].parse().ok()?);
    let wait = match wait(call.query) {
        Ok(wait) => wait,
        Err(reason) => return Some(ResponseFuture::failed(Error::BadRequest(reason))),
    };
    let events = call.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let events = events.is_some_and(|accept| accept.contains("text/event-stream"));
    let (owner, caller) = (call.caller.key(), call.caller);
    Some(ResponseFuture::pending(async move {
        let heir = may(&caller, Action::Build).is_ok().then_some(&caller);
        service.state.requests.polled(id, &owner, heir);
        if events {
            return events::answer(&service, id, owner);
        }
        if let Some(mut end) = service.state.builds.end_signal(id).filter(|_| !wait.is_zero()) {
            tokio::select! {
                () = end.ended() => {}
                () = tokio::time::sleep(wait) => {}
                () = service.stopping() => {}
            }
            service.state.requests.polled(id, &owner, None);
        }
        let request = service.state.builds.request(id).ok_or_else(|| no_such_request(id))?;
        Ok(json(&details(&service, request).await))
    }))
}

fn wait(query: Option<&str>) -> Result<Duration, String> {
    let mut wait = Duration::ZERO;
    for (key, value) in parameters(query) {
        let seconds = value.and_then(|value| value.parse().ok()).filter(|_| key == "wait");
        let seconds = seconds.filter(|seconds| *seconds <= WAIT_MAX.as_secs());
        wait = Duration::from_secs(
            seconds.ok_or_else(|| format!("expected wait, in seconds, at most {}", WAIT_MAX.as_secs()))?,
        );
    }
    Ok(wait)
}

/// Cancels a request, for its owner.
pub(super) fn cancel(call: Call<'_>) -> Option<ResponseFuture> {
    let id = call.arguments[0].parse().ok()?;
    let cancelled = match call.service.state.requests.cancel(id, &call.caller) {
        Ok(cancelled) => cancelled,
        Err(not_owner) => return Some(ResponseFuture::failed(Error::Forbidden(not_owner.to_string()))),
    };
    let line = match cancelled {
        None => {
            let request = call.service.state.builds.request(id);
            return Some(ResponseFuture::failed(not_cancelled(id, request.as_ref())));
        }
        Some(Cancellation::Cancelled) => format!("cancelled: request {id}\n"),
        Some(Cancellation::Awaited(1)) => format!("goes on: another client waits for request {id}\n"),
        Some(Cancellation::Awaited(clients)) => {
            format!("goes on: {clients} other clients wait for request {id}\n")
        }
        Some(Cancellation::Left) => {
            format!("given up: request {id} ends soon, unless who asked for it returns\n")
        }
        Some(Cancellation::Delivering) => format!("too late: request {id} is being delivered\n"),
    };
    Some(ResponseFuture::ready(answer::ready(answer::TEXT, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_number_of_seconds_within_its_bound() {
        assert_eq!(wait(None), Ok(Duration::ZERO));
        assert_eq!(wait(Some("wait=0")), Ok(Duration::ZERO));
        assert_eq!(wait(Some("wait=300")), Ok(WAIT_MAX));
        for query in ["wait=301", "wait=-1", "wait=x", "wait=", "weight=1"] {
            assert!(wait(Some(query)).is_err_and(|reason| reason.contains("300")), "{query}");
        }
    }
}
