//! Disk space of the NAR store by package set and closure, as JSON.

use super::Service;
use super::answer::{Answer, json};
use super::api::{ClosureSize, PackageSetSize, UsageReport};
use super::call::{Call, parameters};
use super::error::Error;
use super::response_future::ResponseFuture;
use crate::retention::{self, ClosureUsage, SetUsage};

/// Closures in an answer, by default and at most.
const CLOSURES: usize = 20;
const CLOSURES_MAX: usize = 1000;

pub(super) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let limit = match limit(call.query) {
        Ok(limit) => limit,
        Err(reason) => return Some(ResponseFuture::failed(Error::BadRequest(reason))),
    };
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { report(&service, limit).await }))
}

fn limit(query: Option<&str>) -> Result<usize, String> {
    let mut limit = CLOSURES;
    for (key, value) in parameters(query) {
        let number = value.and_then(|value| value.parse().ok()).filter(|_| key == "limit");
        let number = number.filter(|number| (1..=CLOSURES_MAX).contains(number));
        limit = number.ok_or_else(|| format!("expected limit, a number from 1 to {CLOSURES_MAX}"))?;
    }
    Ok(limit)
}

async fn report(service: &Service, limit: usize) -> Result<Answer, Error> {
    let state = &service.state;
    let unreadable =
        |error: &(dyn std::error::Error + 'static)| Error::internal(error, "sizes cannot be measured");
    let counts = state.index.counts().await.map_err(|error| unreadable(&error))?;
    let sets = state.catalogue.sets().map(|(set, _)| set.name.to_string()).collect();
    let usage: Result<_, retention::Error> = state.retention.usage(sets, limit).await;
    let usage = usage.map_err(|error| unreadable(&error))?;
    let set =
        |SetUsage { name, outputs, paths, bytes }: SetUsage| PackageSetSize { name, outputs, paths, bytes };
    let closure = |ClosureUsage { path, paths, bytes, exclusive_bytes }: ClosureUsage| ClosureSize {
        path: path.to_string(),
        paths,
        bytes,
        exclusive_bytes,
    };
    Ok(json(&UsageReport {
        nars: counts.nars,
        nar_bytes: counts.nar_bytes,
        package_sets: usage.sets.into_iter().map(set).collect(),
        closures: usage.closures.into_iter().map(closure).collect(),
    }))
}
