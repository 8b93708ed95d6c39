//! The first page: what is being built, who waits, what has ended, and how the server is. Clients that are no
//! browsers get the text of `info`.

use std::collections::BTreeMap;

use askama::Template;
use narinfo::StorePath;

use super::super::Service;
use super::super::api::{
    BuildList, BuilderPhase, BuilderStatus, CacheCounts, RememberedFailure, RequestPhase, RequestStatus,
    RunningBuild, ServerStatus, UpstreamHealth, UpstreamMode, UpstreamStatus,
};
use super::super::build_details::last_lines;
use super::super::call::Call;
use super::super::response_future::ResponseFuture;
use super::super::{builds, error, failures, info, status};
use super::chart::Chart;
use super::format::{ByteCount, Count, PageTime, PathLabel, Span};
use super::statistics::{latest_hours, sizes_chart};
use super::visitor::{PageFrame, Visitor, answer, respond, wants_html};
use crate::caller::Action;

/// Requests of the queue that are shown; the rest is a number.
const QUEUE_SHOWN: usize = 12;
/// Requests that have ended, and failures, that are shown.
const ENDED_SHOWN: usize = 10;
/// Lines of the log of a build that runs.
const LOG_LINES: usize = 14;
/// Builds that run whose logs are shown.
const RUNNING_SHOWN: usize = 6;

#[derive(Template)]
#[template(path = "home.html", config = "src/http/page/askama.toml")]
struct HomePage {
    shell: PageFrame,
    running: Vec<RunningCard>,
    /// Builds that run, of which some have a card.
    building: usize,
    /// Requests in the queue, and those of them for which nothing is built yet.
    requests: usize,
    waiting: usize,
    queue: Vec<QueueLine>,
    stalled: Option<String>,
    ended: Vec<EndedLine>,
    failures: Vec<FailureLine>,
    status: ServerStatus,
    cache: Option<CacheFigures>,
    /// Size of the cache over some days.
    sizes: Option<Chart>,
    /// Machines that build; none where the local Nix daemon is the only one.
    builders: Vec<BuilderRow>,
    upstreams: Vec<UpstreamRow>,
    url: String,
}

/// Contents of the cache.
struct CacheFigures {
    paths: Count,
    nars: Count,
    bytes: ByteCount,
    reproduced: Count,
    not_reproduced: Option<Count>,
}

/// A machine that builds.
struct BuilderRow {
    builder: BuilderStatus,
    since: PageTime,
}

/// An upstream.
struct UpstreamRow {
    upstream: UpstreamStatus,
    found: Count,
    fetched: ByteCount,
}

/// A build that runs.
struct RunningCard {
    label: PathLabel,
    span: Span,
    build: RunningBuild,
    log: Vec<String>,
}

/// A request that waits.
pub(super) struct QueueLine {
    pub(super) label: PathLabel,
    pub(super) request: RequestStatus,
    pub(super) asked: PageTime,
}

/// A request that has ended.
pub(super) struct EndedLine {
    label: PathLabel,
    request: RequestStatus,
    ended: PageTime,
    took: Span,
}

/// A failure.
pub(super) struct FailureLine {
    pub(super) label: PathLabel,
    pub(super) cause: PathLabel,
    pub(super) since: PageTime,
    pub(super) failure: RememberedFailure,
    /// Number of other failures that it causes.
    pub(super) blocks: usize,
}

impl CacheFigures {
    fn of(counts: &CacheCounts) -> Self {
        Self {
            paths: Count(counts.paths),
            nars: Count(counts.nars),
            bytes: ByteCount(counts.nar_bytes),
            reproduced: Count(counts.reproduced),
            not_reproduced: Some(counts.not_reproduced).filter(|count| *count > 0).map(Count),
        }
    }
}

impl BuilderRow {
    /// Its state, and its class of the style sheet.
    fn state(&self) -> (&'static str, &'static str) {
        match self.builder.state {
            BuilderPhase::Up => ("up", "served"),
            BuilderPhase::Connecting => ("connecting", "waiting"),
            BuilderPhase::Resting => ("lost", "failed"),
            BuilderPhase::Draining => ("draining", "refused"),
            BuilderPhase::Drained => ("drained", "refused"),
        }
    }

    /// Reason why it is not in use.
    fn trouble(&self) -> Option<&str> {
        self.builder.last_error.as_deref().filter(|_| self.builder.state == BuilderPhase::Resting)
    }

    fn built(&self) -> Count {
        Count(self.builder.built)
    }
}

impl UpstreamRow {
    fn new(upstream: UpstreamStatus) -> Self {
        Self { found: Count(upstream.found), fetched: ByteCount(upstream.fetched_bytes), upstream }
    }

    /// Its state, and its class of the style sheet.
    fn state(&self) -> (&'static str, &'static str) {
        match self.upstream.health {
            UpstreamHealth::Answers => ("answers", "served"),
            UpstreamHealth::Failing => ("failing", "refused"),
            UpstreamHealth::Resting => ("left alone for a while", "failed"),
        }
    }

    fn role(&self) -> &'static str {
        match self.upstream.mode {
            UpstreamMode::Cache => "cached here",
            UpstreamMode::Redirect => "clients are redirected",
            UpstreamMode::BuildOnly => "inputs of builds only",
        }
    }
}

impl QueueLine {
    /// Part of its derivations that is built, in percent.
    fn percent(&self) -> Option<usize> {
        let place = self.request.place.as_ref()?;
        let (built, lacked) = (place.built?, place.lacked?);
        (lacked > 0).then(|| built.min(lacked) * 100 / lacked)
    }

    fn position(&self) -> String {
        self.request.place.as_ref().map(|place| place.position.to_string()).unwrap_or_default()
    }

    fn state(&self) -> &'static str {
        state_word(&self.request.phase)
    }

    /// Time of its delivery.
    fn forecast(&self) -> String {
        match self.request.place.as_ref().and_then(|place| place.eta_seconds) {
            Some((earliest, latest)) => format!("{} to {}", Span(earliest), Span(latest)),
            None => "not known yet".to_owned(),
        }
    }

    fn progress(&self) -> String {
        match self.request.place.as_ref().and_then(|place| place.built.zip(place.lacked)) {
            Some((built, lacked)) => format!("{built} of {lacked}"),
            None => "to be planned".to_owned(),
        }
    }
}

impl EndedLine {
    fn state(&self) -> &'static str {
        state_word(&self.request.phase)
    }
}

impl FailureLine {
    pub(super) fn new(failure: RememberedFailure) -> Self {
        Self {
            label: PathLabel::new(&*failure.derivation),
            cause: PathLabel::new(&*failure.cause),
            since: PageTime(failure.since),
            failure,
            blocks: 0,
        }
    }

    /// The first line of the reason, without the path that the daemon opens it with.
    fn summary(&self) -> &str {
        let line = self.failure.reason.lines().next().unwrap_or_default();
        let rest = line.strip_prefix("builder for '").and_then(|rest| rest.split_once("' "));
        rest.map_or(line, |(_, rest)| rest).trim_end_matches(';')
    }
}

pub(super) fn state_word(phase: &RequestPhase) -> &'static str {
    match phase {
        RequestPhase::Waiting => "waiting",
        RequestPhase::Building { .. } => "building",
        RequestPhase::Delivering => "delivering",
        RequestPhase::Served => "served",
        RequestPhase::Failed { .. } => "failed",
        RequestPhase::Refused { .. } => "refused",
        RequestPhase::Dropped => "dropped",
        RequestPhase::Cancelled => "cancelled",
    }
}

impl HomePage {
    /// Nothing was ever served, built or asked for.
    fn is_new(&self) -> bool {
        let is_empty =
            self.status.cache.as_ref().is_some_and(|cache| cache.paths == 0 && cache.failures == 0);
        is_empty && self.building == 0 && self.requests == 0 && self.ended.is_empty()
    }

    fn headline(&self) -> String {
        match (self.building, &self.stalled) {
            (_, Some(_)) => "Builds are stalled".to_owned(),
            (0, None) if self.waiting > 0 => format!("{} waiting", Count(self.waiting as u64)),
            (0, None) if self.requests > 0 => "Delivering what is built".to_owned(),
            (0, None) => "Nothing to build".to_owned(),
            (1, None) => {
                format!("Building {}", self.running.first().map_or("", |card| card.label.name()))
            }
            (many, None) => format!("{many} builds run"),
        }
    }

    /// The queue in a few words.
    fn activity(&self) -> String {
        match (self.waiting, self.building + self.requests) {
            (0, 0) => "Idle".to_owned(),
            (0, _) => "Nothing else waits".to_owned(),
            (waiting, _) => format!("{} waiting", Count(waiting as u64)),
        }
    }

    fn public_key(&self) -> &str {
        self.status.public_key.as_deref().unwrap_or_default()
    }

    fn rest_of_queue(&self) -> Option<Count> {
        let rest = self.requests.saturating_sub(self.queue.len()) as u64;
        (rest > 0).then_some(Count(rest))
    }
}

/// The page for a browser, and the text for anything else.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    if !wants_html(&call.headers) {
        return info::home(call);
    }
    respond(
        &call,
        Action::Read,
        |service, visitor| async move { Ok(answer(&page(&service, &visitor).await?)) },
    )
}

async fn page(service: &Service, visitor: &Visitor) -> Result<HomePage, error::Error> {
    let BuildList { total, requests, ended } = builds::all(service);
    let (mut status, _) = status::server_status(service, visitor.url.to_string()).await;
    let remembered = failures::remembered(service).await?;
    let building = status.queue.running.len();
    let started = requests.iter().filter(|request| !matches!(request.phase, RequestPhase::Waiting)).count();
    let mut running = Vec::new();
    for build in std::mem::take(&mut status.queue.running).into_iter().take(RUNNING_SHOWN) {
        let log = match StorePath::parse(&build.derivation) {
            Ok(drv) => last_lines(service, drv, LOG_LINES).await,
            Err(_) => Vec::new(),
        };
        let (label, span) = (PathLabel::new(&*build.derivation), Span(build.seconds));
        running.push(RunningCard { label, span, build, log });
    }
    let line = |request: RequestStatus| QueueLine {
        label: PathLabel::new(&*request.derivation),
        asked: PageTime(request.asked_at),
        request,
    };
    let upstreams = std::mem::take(&mut status.upstreams).into_iter().map(UpstreamRow::new).collect();
    Ok(HomePage {
        shell: visitor.shell("Overview", "overview"),
        running,
        building,
        requests: total,
        waiting: total.saturating_sub(started),
        queue: requests.into_iter().take(QUEUE_SHOWN).map(line).collect(),
        stalled: status.queue.stalled.take(),
        ended: ended.into_iter().take(ENDED_SHOWN).map(ended_line).collect(),
        failures: causes(remembered),
        cache: status.cache.as_ref().map(CacheFigures::of),
        sizes: latest_hours(service).await.ok().map(|hours| sizes_chart(&hours)).filter(|it| !it.is_empty),
        builders: builder_lines(service),
        upstreams,
        status,
        url: visitor.url.clone(),
    })
}

/// The machines that build, unless the local Nix daemon is the only one.
fn builder_lines(service: &Service) -> Vec<BuilderRow> {
    let builders = service.state.builds.builders().into_iter().map(BuilderStatus::from);
    let lines: Vec<BuilderRow> =
        builders.map(|builder| BuilderRow { since: PageTime(builder.since), builder }).collect();
    let is_farm = lines.iter().any(|line| line.builder.address.is_some());
    if is_farm { lines } else { Vec::new() }
}

/// Failures that are causes themselves, each with the number of those that it blocks.
fn causes(remembered: Vec<RememberedFailure>) -> Vec<FailureLine> {
    let mut blocked: BTreeMap<String, usize> = BTreeMap::new();
    for failure in remembered.iter().filter(|failure| failure.derivation != failure.cause) {
        *blocked.entry(failure.cause.clone()).or_default() += 1;
    }
    let causes = remembered.into_iter().filter(|failure| failure.derivation == failure.cause);
    let line = |failure: RememberedFailure| FailureLine {
        blocks: blocked.get(&failure.derivation).copied().unwrap_or_default(),
        ..FailureLine::new(failure)
    };
    causes.take(ENDED_SHOWN).map(line).collect()
}

fn ended_line(request: RequestStatus) -> EndedLine {
    let ended_at = request.ended_at.unwrap_or(request.asked_at);
    EndedLine {
        label: PathLabel::new(&*request.derivation),
        ended: PageTime(ended_at),
        took: Span(ended_at.saturating_sub(request.asked_at)),
        request,
    }
}
