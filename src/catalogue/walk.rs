//! Evaluates all attributes of a set for one system, one after the other, and survives each: an evaluator
//! that an attribute crashes is started again behind it. An attribute that cannot be evaluated comes with its
//! error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};

use narinfo::{StoreDir, StorePath};
use tokio::time::Instant;

use super::attribute::{AttributePath, Evaluated, FoundDerivation};
use super::evaluate::{
    Enclosure, Evaluator, EvaluatorEnd, EvaluatorEvent, EvaluatorLimits, Invocation, Program, StartError,
};
use super::settings::SetSettings;
use super::source::{AttributePlace, EvaluatorRun, Prepared};
use super::trouble;

/// The evaluator that every Nix has.
const NIX_INSTANTIATE: Program = Program { name: "nix-instantiate", prints: false };
/// The part of its memory that an evaluator begins with, and the bytes that this is at most. By itself Nix
/// takes that many wherever the machine has them, and lacks them later where it may have little more.
const HEAP_SHARE: u64 = 8;
const HEAP_BYTES_MAX: u64 = 384 * 1024 * 1024;
/// Errors whose text is looked for with a run of their own; of more it is only told that there is one.
const EXPLAINED_MAX: usize = 50;
/// Bytes of an error at most.
const ERROR_BYTES_MAX: usize = 2_000;
/// The error of an attribute that throws, until someone requests its own words.
pub(super) const THROWN: &str = "it throws an error, or an assertion of it fails; its own words are looked for when it is asked for by name";
/// Why a set cannot be evaluated. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// Before the first attribute.
    #[error("the evaluation failed: {0}")]
    Failed(String),
    /// Took too long.
    #[error("the evaluation was stopped: it was not done after {} (timeout)", humantime::format_duration(*.0))]
    Late(std::time::Duration),
    /// Was silent before the first attribute.
    #[error(
        "the evaluation was stopped: it did not come to an attribute within {} (attribute-timeout)",
        humantime::format_duration(*.0)
    )]
    Silent(std::time::Duration),
    /// Printed too much before the first attribute.
    #[error("the evaluation was stopped: it printed more than 32 MiB")]
    OutputLimit,
    /// Malformed output.
    #[error("the evaluation said what makes no sense: {0}")]
    Nonsense(String),
    /// The evaluator could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Its output could not be read.
    #[error("the evaluator cannot be run: {0}")]
    System(#[from] std::io::Error),
}

/// An attribute, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Its path within the set.
    pub(super) attribute: AttributePath,
    /// Where it comes from: of several with one path the lowest counts, and the links of a folder are 0.
    pub(super) rank: usize,
    /// The result.
    pub(super) outcome: Evaluated,
}

/// A system's evaluation and its resources.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) set: &'a SetSettings,
    pub(super) system: &'a str,
    pub(super) source: &'a Prepared,
    pub(super) store_dir: &'a StoreDir,
    /// The environment of evaluators.
    pub(super) variables: &'a [(String, OsString)],
    /// The kernel's limits.
    pub(super) enclosure: Option<&'a Enclosure>,
    /// The moment of the time-out.
    pub(super) deadline: Instant,
}

/// A walk under way.
pub(super) struct Walk<'a> {
    task: Task<'a>,
    running: Option<RunningEvaluator>,
    next: Option<EvaluatorRun>,
    /// Throwing attributes that are not explained yet.
    thrown: VecDeque<AttributePlace>,
    explained: usize,
}

/// An evaluator, and how far it is.
struct RunningEvaluator {
    evaluator: Evaluator,
    run: EvaluatorRun,
    /// Attributes that it began.
    begun: u64,
    at: Option<AttributePlace>,
    /// The current attribute has its result.
    settled: bool,
}

/// An event of an evaluator.
#[derive(serde::Deserialize)]
pub(super) struct Event {
    root: usize,
    pub(super) begun: Option<Vec<String>>,
    thrown: Option<Vec<String>>,
    found: Option<Vec<String>>,
    /// There is no such attribute.
    pub(super) missing: Option<Vec<String>>,
    #[serde(default)]
    pub(super) drv: String,
    #[serde(flatten)]
    pub(super) names: DerivationNames,
}

/// Names of a derivation, beside that of its file.
#[derive(serde::Deserialize)]
pub(super) struct DerivationNames {
    #[serde(default)]
    pub(super) name: String,
    /// The output that the attribute itself is.
    pub(super) output: Option<String>,
    /// The program that it is run by.
    pub(super) program: Option<String>,
}

/// A line for us as what it tells.
pub(super) fn event(json: &str) -> Result<Event, WalkError> {
    narinfo::json::from_str(json).map_err(|error| WalkError::Nonsense(error.to_string()))
}

impl Task<'_> {
    /// Starts a run of `nix-instantiate` within the bounds of its set.
    pub(super) fn start(&self, run: &EvaluatorRun) -> Result<Evaluator, WalkError> {
        self.start_with(NIX_INSTANTIATE, run, self.set.evaluation.memory_bytes_max)
    }

    /// The same of any program, with so many bytes of address space for each of its processes.
    pub(super) fn start_with(
        &self,
        program: Program,
        run: &EvaluatorRun,
        memory_bytes_max: u64,
    ) -> Result<Evaluator, WalkError> {
        let token = format!("ondine-{:016x}", RandomState::new().build_hasher().finish());
        let silence_max = self.set.evaluation.attribute_time_max;
        let bounds = EvaluatorLimits { deadline: self.deadline, silence_max, memory_bytes_max };
        let arguments = self.source.arguments(self.system, &token, run);
        let mark = format!("trace: {token} ");
        let heap_bytes = (memory_bytes_max / HEAP_SHARE).min(HEAP_BYTES_MAX);
        let heap = ("GC_INITIAL_HEAP_SIZE".to_owned(), heap_bytes.to_string().into());
        let variables: Vec<_> = self.variables.iter().cloned().chain([heap]).collect();
        let (arguments, variables, enclosure) = (&*arguments, &*variables, self.enclosure);
        Ok(Evaluator::start(Invocation { program, arguments, variables, mark, bounds, enclosure })?)
    }

    /// The attribute at a place, as people know it, and what became of it.
    pub(super) fn attribute(&self, place: &AttributePlace, outcome: Evaluated) -> Attribute {
        Attribute { attribute: self.path(place), rank: place.root + 1, outcome }
    }

    /// The path of the attribute at a place.
    pub(super) fn path(&self, place: &AttributePlace) -> AttributePath {
        let names = self.prefix(place).iter().chain(&place.path).cloned().collect();
        AttributePath::new(names).unwrap_or_else(AttributePath::of_the_whole)
    }

    /// True if a place is the root of the source: an error there is not to be blamed on an attribute.
    pub(super) fn is_whole(&self, place: &AttributePlace) -> bool {
        place.path.is_empty() && self.prefix(place).is_empty()
    }

    fn prefix(&self, place: &AttributePlace) -> &[String] {
        self.source.prefixes.get(place.root).map_or(&[], Vec::as_slice)
    }
}

/// The result of an evaluator for a derivation.
pub(super) fn derivation(store_dir: &StoreDir, drv: String, names: DerivationNames) -> Evaluated {
    let DerivationNames { name, output, program } = names;
    let parsed = StorePath::parse_in(store_dir, &drv).ok().filter(StorePath::is_derivation);
    let parsed = parsed.ok_or_else(|| format!("its drvPath is no derivation: {drv:?}"));
    parsed.map(|drv| FoundDerivation { drv, name, output, program })
}

/// An error where the machine, or its daemon, is in trouble, which is not to be blamed on an attribute.
pub(super) fn trouble(ending: &EvaluatorEnd) -> Result<(), WalkError> {
    match ending {
        EvaluatorEnd::Failed(text) | EvaluatorEnd::Died(text) => trouble_in(text),
        _ => Ok(()),
    }
}

/// The same for the error of an attribute.
pub(super) fn trouble_in(error: &str) -> Result<(), WalkError> {
    if trouble::is_of_machine(error) { Err(WalkError::Failed(shortened(error.to_owned()))) } else { Ok(()) }
}

/// The error of an attribute that ended an evaluation.
pub(super) fn blame(ending: EvaluatorEnd, limit: std::time::Duration) -> String {
    shortened(match ending {
        EvaluatorEnd::Silent | EvaluatorEnd::Late => {
            format!("it was not done after {} (attribute-timeout)", humantime::format_duration(limit))
        }
        EvaluatorEnd::OutputLimit => "it printed more than 32 MiB".to_owned(),
        EvaluatorEnd::Died(text) => format!("the evaluator died of it (max-memory-bytes?): {text}"),
        EvaluatorEnd::Failed(text) => text,
        EvaluatorEnd::Well => "it is no derivation".to_owned(),
    })
}

impl<'a> Walk<'a> {
    pub(super) fn new(task: Task<'a>) -> Self {
        Self { task, running: None, next: Some(EvaluatorRun::Walk), thrown: VecDeque::new(), explained: 0 }
    }

    /// The next attribute.
    ///
    /// # Errors
    /// The set as a whole cannot be evaluated.
    pub(super) async fn next(&mut self) -> Result<Option<Attribute>, WalkError> {
        loop {
            let running = match &mut self.running {
                Some(running) => running,
                None => {
                    let explain = || self.thrown.front().cloned().map(EvaluatorRun::Explain);
                    let Some(run) = self.next.take().or_else(explain) else { return Ok(None) };
                    let running = self.start(run)?;
                    self.running.insert(running)
                }
            };
            let attribute = match running.evaluator.step().await? {
                EvaluatorEvent::Line(json) => self.told(&json)?,
                EvaluatorEvent::Ended(ending) => self.ended(ending)?,
            };
            if attribute.is_some() {
                return Ok(attribute);
            }
        }
    }

    fn start(&self, run: EvaluatorRun) -> Result<RunningEvaluator, WalkError> {
        let evaluator = self.task.start(&run)?;
        Ok(RunningEvaluator { evaluator, run, begun: 0, at: None, settled: true })
    }

    fn told(&mut self, json: &str) -> Result<Option<Attribute>, WalkError> {
        let event = event(json)?;
        let Some(running) = &mut self.running else { return Ok(None) };
        let root = event.root;
        if let Some(path) = event.begun {
            running.begun += 1;
            running.at = Some(AttributePlace { root, path });
            running.settled = false;
            return Ok(None);
        }
        running.settled = true;
        if let Some(path) = event.thrown {
            let place = AttributePlace { root, path };
            if self.explained + self.thrown.len() < EXPLAINED_MAX {
                self.thrown.push_back(place);
                return Ok(None);
            }
            return Ok(Some(self.failed(&place, THROWN.to_owned())));
        }
        let Some(path) = event.found else { return Ok(None) };
        let outcome = derivation(self.task.store_dir, event.drv, event.names);
        Ok(Some(self.task.attribute(&AttributePlace { root, path }, outcome)))
    }

    fn ended(&mut self, ending: EvaluatorEnd) -> Result<Option<Attribute>, WalkError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        if let EvaluatorRun::Explain(place) = running.run {
            self.thrown.pop_front();
            self.explained += 1;
            let error = match ending {
                EvaluatorEnd::Failed(error) => error,
                _ => THROWN.to_owned(),
            };
            return Ok(Some(self.failed(&place, error)));
        }
        match ending {
            EvaluatorEnd::Well => return Ok(None),
            EvaluatorEnd::Late => return Err(WalkError::Late(self.task.set.evaluation.time_max)),
            _ => {}
        }
        let limit = self.task.set.evaluation.attribute_time_max;
        // Neither is to be blamed on an attribute: a machine in trouble, and what comes where a whole set
        // begins.
        trouble(&ending)?;
        let Some(place) = running.at.filter(|place| running.settled || !self.task.is_whole(place)) else {
            return Err(match ending {
                EvaluatorEnd::Silent => WalkError::Silent(limit),
                EvaluatorEnd::OutputLimit => WalkError::OutputLimit,
                EvaluatorEnd::Failed(text) | EvaluatorEnd::Died(text) => WalkError::Failed(shortened(text)),
                EvaluatorEnd::Well | EvaluatorEnd::Late => WalkError::Failed(String::new()),
            });
        };
        // An evaluator keeps what it has evaluated: with nothing before it, an attribute may well do.
        let retry = matches!(ending, EvaluatorEnd::Died(_)) && running.begun > 1;
        if running.settled || retry {
            self.next = Some(EvaluatorRun::Resume { from: place, again: !running.settled });
            return Ok(None);
        }
        let failed = self.failed(&place, blame(ending, limit));
        self.next = Some(EvaluatorRun::Resume { from: place, again: false });
        Ok(Some(failed))
    }

    fn failed(&self, place: &AttributePlace, error: String) -> Attribute {
        self.task.attribute(place, Err(shortened(error)))
    }
}

/// An error as it is kept.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
        text.push('…');
    }
    text
}
