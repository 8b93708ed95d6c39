//! One derivation: its state, inputs, outputs, failure and log.

use askama::Template;
use narinfo::{Derivation, StorePath};

use super::super::Service;
use super::super::api::{BuildItemOutput, BuildItemState, Explanation, RememberedFailure};
use super::super::call::{Call, parameters};
use super::super::error::Error;
use super::super::log::LogSnapshot;
use super::super::response_future::ResponseFuture;
use super::super::{explain, failures};
use super::failures::{BLOCKED_SHOWN, RetryOffer};
use super::format::{Count, PageTime, PathLabel, form_encoded};
use super::graph::{Graph, Node};
use super::log_text::{LogPhase, LogWindow, WINDOW_LINES, Wanted};
use super::visitor::{PageFrame, Visitor, answer, respond};
use crate::caller::Action;
use crate::nix::read_derivation;
use crate::requests::{OutputChoice, RequestTarget};
use crate::retry::Failed;
use crate::substitute::OnMiss;

/// Lines of a window up to which all its phases are open.
const OPEN_LINES: usize = 100;
/// Inputs whose states are shown; of more, only the names.
const STATES_MAX: usize = 400;

#[derive(Template)]
#[template(path = "derivation.html", config = "src/http/page/askama.toml")]
struct DerivationPage {
    shell: PageFrame,
    label: PathLabel,
    drv: Option<Derivation>,
    explained: Explanation,
    state: &'static str,
    failure: Option<RememberedFailure>,
    cause: Option<PathLabel>,
    /// Failed derivations that are so because of this one, as far as they are listed, and the number of all.
    blocked: Vec<PathLabel>,
    blocked_total: usize,
    graph: Option<Graph>,
    log: Option<LogView>,
    wanted: Wanted,
    retry: RetryOffer,
    store_dir: String,
}

/// Lines of a log.
struct LogView {
    phases: Vec<LogPhase>,
    /// Numbers of the first and the last line that are shown.
    first: usize,
    last: usize,
    lines: usize,
    is_running: bool,
}

/// The page.
pub(in crate::http) fn get(call: Call<'_>) -> Option<ResponseFuture> {
    let drv = StorePath::parse(call.arguments[0]).ok().filter(StorePath::is_derivation)?;
    let (wanted, on_miss) = (wanted(call.query), call.on_miss().without_building());
    respond(&call, Action::Read, |service, visitor| async move {
        let wanted = wanted.map_err(Error::BadRequest)?;
        Ok(answer(&page(&service, &visitor, drv, wanted, on_miss).await?))
    })
}

fn wanted(query: Option<&str>) -> Result<Wanted, String> {
    let mut wanted = Wanted::End;
    for (key, value) in parameters(query.map(form_encoded).as_deref()) {
        let value = value.unwrap_or_default();
        match key {
            "find" if value.is_empty() => {}
            "find" => wanted = Wanted::With(value),
            "from" => {
                let from: usize = value.parse().map_err(|_| "from is the number of a line".to_owned())?;
                wanted = Wanted::From(from.max(1));
            }
            _ => return Err("expected find or from".to_owned()),
        }
    }
    Ok(wanted)
}

async fn page(
    service: &Service,
    visitor: &Visitor,
    drv: StorePath,
    wanted: Wanted,
    on_miss: OnMiss,
) -> Result<DerivationPage, Error> {
    let label = PathLabel::new(drv.to_string());
    let failed = Failed::Derivation(drv.clone());
    let explained = explain::explain(service, label.base.clone(), failed, on_miss.clone()).await?;
    let parsed = {
        let (store_dir, drv) = (service.state.store_dir.clone(), drv.clone());
        tokio::task::spawn_blocking(move || read_derivation(&store_dir, &drv).ok()).await.ok().flatten()
    };
    let log = log(service, &drv, wanted.clone()).await;
    if parsed.is_none() && log.is_none() && explained.item.state == BuildItemState::Unknown {
        return Err(Error::not_found(format!("nothing is known of the derivation {drv}")));
    }
    let remembered = failures::remembered(service).await?;
    let blocked =
        remembered.iter().filter(|failure| failure.cause == label.base && failure.derivation != label.base);
    let mut blocked: Vec<PathLabel> = blocked.map(|failure| PathLabel::new(&*failure.derivation)).collect();
    let blocked_total = blocked.len();
    blocked.truncate(BLOCKED_SHOWN);
    let failure = remembered.into_iter().find(|failure| failure.derivation == label.base);
    let cause = failure.as_ref().filter(|failure| failure.cause != label.base);
    let graph = match &parsed {
        Some(parsed) => graph(service, &label, parsed, on_miss).await?,
        None => None,
    };
    Ok(DerivationPage {
        shell: visitor.shell(label.name(), ""),
        cause: cause.map(|failure| PathLabel::new(&*failure.cause)),
        state: item_word(explained.item.state),
        drv: parsed,
        explained,
        failure,
        blocked,
        blocked_total,
        graph,
        log,
        wanted,
        retry: RetryOffer::of(visitor),
        store_dir: service.state.store_dir.to_string(),
        label,
    })
}

async fn graph(
    service: &Service,
    label: &PathLabel,
    derivation: &Derivation,
    on_miss: OnMiss,
) -> Result<Option<Graph>, Error> {
    let inputs: Vec<StorePath> = derivation.input_derivations.iter().take(STATES_MAX).cloned().collect();
    if inputs.is_empty() {
        return Ok(None);
    }
    let target = |drv: &StorePath| RequestTarget::Derivation { drv: drv.clone(), outputs: OutputChoice::All };
    let items = service.state.requests.ask(inputs.iter().map(target).collect(), on_miss, None, None).await?;
    let nodes = inputs.iter().zip(items).map(|(drv, item)| Node {
        label: PathLabel::new(drv.to_string()),
        state: item_word(BuildItemState::from(item.state)),
    });
    Ok(Some(Graph::new(label.clone(), nodes.collect(), derivation.input_derivations.len())))
}

/// Lines of the log; `None` where there is none.
async fn log(service: &Service, drv: &StorePath, wanted: Wanted) -> Option<LogView> {
    let (mut source, is_running) = LogSnapshot::of(service, drv).await?;
    let mut window = LogWindow::new(wanted);
    while let Ok(Some(bytes)) = source.next().await {
        window.push(&bytes);
    }
    let (phases, (first, last), lines) = window.finish();
    Some(LogView { phases, first, last, lines, is_running })
}

pub(super) fn item_word(state: BuildItemState) -> &'static str {
    match state {
        BuildItemState::Served => "served",
        BuildItemState::Building => "building",
        BuildItemState::Queued => "queued",
        BuildItemState::Known => "not built",
        BuildItemState::Failed => "failed",
        BuildItemState::Refused => "refused",
        BuildItemState::Unknown => "unknown",
    }
}

impl DerivationPage {
    fn hash<'p>(&self, output: &'p BuildItemOutput) -> &'p str {
        let base = output.path.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        base.split_once('-').map_or("", |(hash, _)| hash)
    }

    fn since(&self) -> Option<PageTime> {
        self.failure.as_ref().map(|failure| PageTime(failure.since))
    }

    fn until(&self) -> Option<PageTime> {
        self.failure.as_ref().map(|failure| PageTime(failure.until))
    }

    fn found(&self) -> &str {
        match &self.wanted {
            Wanted::With(text) => text,
            _ => "",
        }
    }

    fn class(&self) -> &'static str {
        if self.state == "not built" { "waiting" } else { self.state }
    }
}

impl LogView {
    /// True for a phase that is not folded: of the end of a long log, the last one that has lines.
    fn is_open(&self, phase: &LogPhase, wanted: &Wanted) -> bool {
        let last = || self.phases.iter().rfind(|phase| !phase.lines.is_empty());
        let is_last = || last().is_some_and(|last| std::ptr::eq(last, phase));
        *wanted != Wanted::End || self.last.saturating_sub(self.first) < OPEN_LINES || is_last()
    }

    /// Number of the first line of the window before this one.
    fn earlier(&self) -> Option<usize> {
        (self.first > 1).then(|| self.first.saturating_sub(WINDOW_LINES).max(1))
    }

    /// Number of the first line of the window after this one.
    fn later(&self) -> Option<usize> {
        (self.last < self.lines).then_some(self.last + 1)
    }

    fn count(&self) -> Count {
        Count(self.lines as u64)
    }
}
