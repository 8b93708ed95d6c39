//! Package sets as JSON, and their refresh, whose progress is streamed as lines of text until it is over.

use std::time::Duration;

use super::Service;
use super::answer::{self, Answer, json};
use super::api::unix_seconds;
use super::api::{EvaluationFailure, PackageSet, PackageSetDetails, PackageSetGeneration};
use super::call::Call;
use super::error::Error;
use super::response_future::ResponseFuture;
use super::stream_body::{Aborted, BodyWriter, stream_body};
use crate::catalogue::{RefreshHandle, RefreshUpdate, SetName, SetSettings};
use crate::index;

/// Errors of one set in an answer at most.
const ERRORS_TOLD_MAX: u32 = 1_000;
/// Time between two lines of one refresh.
const LINE_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn all(call: Call<'_>) -> Option<ResponseFuture> {
    let service = call.service.clone();
    Some(ResponseFuture::pending(async move { Ok(json(&sets(&service).await?)) }))
}

pub(super) fn one(call: Call<'_>) -> Option<ResponseFuture> {
    let (service, name) = (call.service.clone(), SetName::new(call.arguments[0])?);
    Some(ResponseFuture::pending(async move { Ok(json(&details(&service, &name).await?)) }))
}

pub(super) fn refresh_all(call: Call<'_>) -> Option<ResponseFuture> {
    Some(refreshed(call.service, None).into())
}

pub(super) fn refresh(call: Call<'_>) -> Option<ResponseFuture> {
    let name = SetName::new(call.arguments[0])?;
    Some(refreshed(call.service, Some(name)).into())
}

/// All sets.
pub(super) async fn sets(service: &Service) -> Result<Vec<PackageSet>, Error> {
    let mut views = Vec::new();
    for (settings, state) in service.state.catalogue.sets() {
        views.push(view(service, settings, state.to_string()).await.map_err(unreadable)?);
    }
    Ok(views)
}

/// One set, with the attributes that failed.
pub(super) async fn details(service: &Service, name: &SetName) -> Result<PackageSetDetails, Error> {
    let mut sets = service.state.catalogue.sets();
    let (settings, state) =
        sets.find(|(set, _)| set.name == *name).ok_or_else(|| service.state.catalogue.no_such_set(name))?;
    let set = view(service, settings, state.to_string()).await.map_err(unreadable)?;
    let failed = service.state.index.failed_attributes(name.to_string(), ERRORS_TOLD_MAX).await;
    let errors = failed.map_err(unreadable)?.into_iter().map(EvaluationFailure::from).collect();
    Ok(PackageSetDetails { set, errors })
}

/// Starts a refresh of one set, or of all, and streams its progress.
fn refreshed(service: &Service, name: Option<SetName>) -> Result<Answer, Error> {
    match service.state.catalogue.refresh(name.as_ref().map(SetName::as_str)) {
        Some(following) => {
            let service = service.clone();
            Ok(answer::streamed(
                answer::TEXT,
                stream_body(|writer| async move {
                    tokio::select! {
                        sent = stream_progress(writer, following) => sent,
                        () = service.stopping() => Err(Aborted),
                    }
                }),
            ))
        }
        None => Err(match name {
            Some(name) => service.state.catalogue.no_such_set(&name).into(),
            None => Error::not_found("there is no package set"),
        }),
    }
}

async fn stream_progress(mut writer: BodyWriter, following: Vec<RefreshHandle>) -> Result<(), Aborted> {
    if following.is_empty() {
        writer.send("there is no package set ([[catalogue]] in the settings)\n").await;
    }
    for mut set in following {
        let mut before = None;
        loop {
            match set.news() {
                RefreshUpdate::Done(Ok(done)) => {
                    writer.send_line(format!("done: {}: {done}", set.set)).await;
                    break;
                }
                RefreshUpdate::Done(Err(error)) => {
                    writer.send_line(format!("failed: {}: {}", set.set, error.replace('\n', "\n  "))).await;
                    break;
                }
                RefreshUpdate::Running(state) if before.as_ref() != Some(&state) => {
                    writer.send_line(format!("{}: {state}", set.set)).await;
                    before = Some(state);
                    // The end is reported at once.
                    let _ = tokio::time::timeout(LINE_INTERVAL, set.over()).await;
                }
                RefreshUpdate::Running(_) => {
                    if !set.changed().await {
                        return Err(Aborted);
                    }
                }
            }
        }
    }
    Ok(())
}

async fn view(service: &Service, settings: &SetSettings, state: String) -> Result<PackageSet, index::Error> {
    let row = service.state.index.set(settings.name.to_string()).await?;
    Ok(PackageSet {
        name: settings.name.to_string(),
        source: settings.origin.to_string(),
        systems: settings.systems.clone(),
        index: settings.indexing.into(),
        refresh_seconds: settings.refresh.map(|every| every.as_secs()),
        keep_seconds: settings.keep.as_secs(),
        state,
        tried_at: row.tried_at.map(unix_seconds),
        failure: row.failure,
        generations: row.generations.into_iter().map(PackageSetGeneration::from).collect(),
    })
}

fn unreadable(error: index::Error) -> Error {
    Error::index(&error, "package sets cannot be read")
}
