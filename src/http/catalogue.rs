//! The package sets as JSON, and the refresh that is asked for through the control socket: a text that grows, line by line,
//! with what is done, until it is over.

use std::time::{Duration, SystemTime};

use super::Service;
use super::answer::{self, Answer, json};
use super::api::index_failed;
use super::pipe::{Cut, Pipe, written};
use crate::catalogue::{Following, Indexing, News, SetName, SetSettings};
use crate::index::{self, AttributeRow, Generation, GenerationSize};

/// Said when the index cannot tell of package sets.
const UNTOLD: &str = "package sets cannot be told of";
/// Errors of one set that are told.
const ERRORS_TOLD_MAX: u32 = 1_000;
/// The time between two lines of one refresh.
const LINE_INTERVAL: Duration = Duration::from_millis(500);

/// A set.
#[derive(serde::Serialize)]
struct SetView {
    name: String,
    source: String,
    systems: Vec<String>,
    /// When its attributes are evaluated.
    index: Indexing,
    /// Seconds from one refresh to the next; null where that is manual.
    refresh_seconds: Option<u64>,
    keep_seconds: u64,
    /// What is done for it now.
    state: String,
    /// When a refresh ended last, in Unix seconds.
    tried_at: Option<u64>,
    /// Why that failed; null where it went well.
    failure: Option<String>,
    /// The current one first.
    generations: Vec<GenerationView>,
}

#[derive(serde::Serialize)]
struct GenerationView {
    id: u64,
    current: bool,
    /// Unix seconds.
    made_at: u64,
    replaced_at: Option<u64>,
    #[serde(flatten)]
    size: GenerationSize,
}

/// A set with its errors.
#[derive(serde::Serialize)]
struct Detailed {
    #[serde(flatten)]
    set: SetView,
    /// The attributes that failed to evaluate, up to a thousand.
    errors: Vec<AttributeView>,
}

#[derive(serde::Serialize)]
struct AttributeView {
    attribute: String,
    system: String,
    error: String,
}

pub(super) async fn all(service: &Service) -> Answer {
    let mut views = Vec::new();
    for (settings, state) in service.parts.catalogue.sets() {
        match view(service, settings, state.to_string()).await {
            Ok(view) => views.push(view),
            Err(error) => return index_failed(&error, UNTOLD),
        }
    }
    json(&views)
}

pub(super) async fn one(service: &Service, name: &SetName) -> Answer {
    let Some((settings, state)) = service.parts.catalogue.sets().find(|(set, _)| set.name == *name) else {
        return unknown(name);
    };
    let told = async {
        let set = view(service, settings, state.to_string()).await?;
        let failed = service.parts.index.failed_attributes(name.to_string(), ERRORS_TOLD_MAX).await?;
        Ok(Detailed { set, errors: failed.into_iter().map(AttributeView::from).collect() })
    };
    match told.await {
        Ok(detailed) => json(&detailed),
        Err(error) => index_failed(&error, UNTOLD),
    }
}

/// Asks for a refresh of one set, or of all, and tells of it.
pub(super) fn refresh(service: &Service, name: Option<SetName>) -> Answer {
    match service.parts.catalogue.refresh(name.as_ref().map(SetName::as_str)) {
        Some(following) => {
            let service = service.clone();
            answer::streamed(
                answer::TEXT,
                written(|pipe| async move {
                    tokio::select! {
                        told = tell(pipe, following) => told,
                        () = service.stopping() => Err(Cut),
                    }
                }),
            )
        }
        None => match name {
            Some(name) => unknown(&name),
            None => answer::no_such("there is no package set"),
        },
    }
}

async fn tell(mut pipe: Pipe, following: Vec<Following>) -> Result<(), Cut> {
    if following.is_empty() {
        pipe.send("there is no package set ([[catalogue]] in the settings)\n").await;
    }
    for mut set in following {
        let mut before = None;
        loop {
            match set.news() {
                News::Over(Ok(done)) => {
                    pipe.send_line(format!("done: {}: {done}", set.set)).await;
                    break;
                }
                News::Over(Err(error)) => {
                    pipe.send_line(format!("failed: {}: {}", set.set, error.replace('\n', "\n  "))).await;
                    break;
                }
                News::Under(state) if before.as_ref() != Some(&state) => {
                    pipe.send_line(format!("{}: {state}", set.set)).await;
                    before = Some(state);
                    // The end is told at once.
                    let _ = tokio::time::timeout(LINE_INTERVAL, set.over()).await;
                }
                News::Under(_) => {
                    if !set.changed().await {
                        return Err(Cut);
                    }
                }
            }
        }
    }
    Ok(())
}

async fn view(service: &Service, settings: &SetSettings, state: String) -> Result<SetView, index::Error> {
    let row = service.parts.index.set(settings.name.to_string()).await?;
    Ok(SetView {
        name: settings.name.to_string(),
        source: settings.origin.to_string(),
        systems: settings.systems.clone(),
        index: settings.indexing,
        refresh_seconds: settings.refresh.map(|every| every.as_secs()),
        keep_seconds: settings.keep.as_secs(),
        state,
        tried_at: row.tried_at.map(unix),
        failure: row.failure,
        generations: row.generations.into_iter().map(GenerationView::from).collect(),
    })
}

impl From<Generation> for GenerationView {
    fn from(generation: Generation) -> Self {
        Self {
            id: generation.id,
            current: generation.replaced_at.is_none(),
            made_at: unix(generation.made_at),
            replaced_at: generation.replaced_at.map(unix),
            size: generation.size,
        }
    }
}

impl From<AttributeRow> for AttributeView {
    fn from(row: AttributeRow) -> Self {
        let error = row.outcome.err().unwrap_or_default();
        Self { attribute: row.attribute, system: row.system, error }
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn unknown(name: &SetName) -> Answer {
    answer::no_such(format_args!("there is no package set {name}; /api/v1/catalogue lists them"))
}
