//! All attributes of a set for one system, one after the other, whatever some of them do: an evaluator that an attribute brings
//! down is started again behind it. An attribute that cannot be evaluated comes with its error.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};

use narinfo::{StoreDir, StorePath};
use tokio::time::Instant;

use super::evaluate::{Bounds, Ending, Evaluator, Step};
use super::settings::SetSettings;
use super::source::{PROGRAM, Place, Prepared, Run};

/// Errors whose text is looked for with a run of their own; of more it is only told that there is one.
const EXPLAINED_MAX: usize = 50;
/// Bytes of an error at most.
const ERROR_BYTES_MAX: usize = 2_000;
/// What is told of an attribute that throws, where its own words are not known.
const THROWN: &str = "it throws an error, or an assertion of it fails";
/// What evaluators say when the machine, or its daemon, is in trouble.
const TROUBLE: [&str; 5] = [
    "cannot connect to socket",
    "daemon disconnected",
    "cannot open connection to remote store",
    "No space left on device",
    "nix-instantiate: not found",
];

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
    Garrulous,
    /// What it said makes no sense.
    #[error("the evaluation said what makes no sense: {0}")]
    Nonsense(String),
    /// It could not be run.
    #[error("the evaluator cannot be run: {0}")]
    System(#[from] std::io::Error),
}

/// A derivation and its name, or why there is none.
pub(super) type Outcome = Result<(StorePath, String), String>;

/// An attribute, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Its path within the set, with dots.
    pub(super) attribute: String,
    /// What it is.
    pub(super) outcome: Outcome,
}

/// A walk under way.
pub(super) struct Walk<'a> {
    set: &'a SetSettings,
    system: &'a str,
    source: &'a Prepared,
    store_dir: &'a StoreDir,
    variables: &'a [(String, OsString)],
    deadline: Instant,
    running: Option<Running>,
    next: Option<Run>,
    /// What threw, and has not been explained.
    thrown: VecDeque<Place>,
    explained: usize,
}

/// An evaluator, and how far it is.
struct Running {
    evaluator: Evaluator,
    run: Run,
    /// Attributes that it began.
    begun: u64,
    at: Option<Place>,
    /// Whether all is told of the one where it is.
    settled: bool,
}

/// What an evaluator tells.
#[derive(serde::Deserialize)]
pub(super) struct Event {
    root: usize,
    begun: Option<Vec<String>>,
    thrown: Option<Vec<String>>,
    found: Option<Vec<String>>,
    /// There is no such attribute.
    pub(super) missing: Option<Vec<String>>,
    #[serde(default)]
    pub(super) drv: String,
    #[serde(default)]
    pub(super) name: String,
}

/// A line for us as what it tells.
pub(super) fn event(json: &str) -> Result<Event, WalkError> {
    serde_json::from_str(json).map_err(|error| WalkError::Nonsense(error.to_string()))
}

/// Starts a run within the bounds of its set.
pub(super) fn start(
    set: &SetSettings,
    system: &str,
    source: &Prepared,
    variables: &[(String, OsString)],
    deadline: Instant,
    run: &Run,
) -> Result<Evaluator, WalkError> {
    let token = format!("ondine-{:016x}", RandomState::new().build_hasher().finish());
    let evaluation = &set.evaluation;
    let bounds = Bounds {
        deadline,
        silence_max: evaluation.attribute_time_max,
        memory_bytes_max: evaluation.memory_bytes_max,
    };
    let arguments = source.arguments(system, &token, run);
    let mark = format!("trace: {token} ");
    Ok(Evaluator::start(PROGRAM, &arguments, variables, mark, bounds)?)
}

/// What an evaluator has found, where it is a derivation.
pub(super) fn derivation(store_dir: &StoreDir, drv: String, name: String) -> Outcome {
    let parsed = StorePath::parse_in(store_dir, &drv).ok().filter(StorePath::is_derivation);
    parsed.map(|drv| (drv, name)).ok_or_else(|| format!("its drvPath is no derivation: {drv:?}"))
}

/// An error where the machine, or its daemon, is in trouble, which is not to be blamed on an attribute.
pub(super) fn trouble(ending: &Ending) -> Result<(), WalkError> {
    match ending {
        Ending::Failed(text) | Ending::Died(text) if TROUBLE.iter().any(|sign| text.contains(sign)) => {
            Err(WalkError::Failed(shortened(text.clone())))
        }
        _ => Ok(()),
    }
}

/// What is to be told of an attribute that ended an evaluation.
pub(super) fn blame(ending: Ending, limit: std::time::Duration) -> String {
    shortened(match ending {
        Ending::Silent | Ending::Late => {
            format!("it was not done after {} (attribute-timeout)", humantime::format_duration(limit))
        }
        Ending::Garrulous => "it printed more than 32 MiB".to_owned(),
        Ending::Died(text) => format!("the evaluator died of it (max-memory-bytes?): {text}"),
        Ending::Failed(text) => text,
        Ending::Well => "it is no derivation".to_owned(),
    })
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        set: &'a SetSettings,
        system: &'a str,
        source: &'a Prepared,
        store_dir: &'a StoreDir,
        variables: &'a [(String, OsString)],
        deadline: Instant,
    ) -> Self {
        Self {
            set,
            system,
            source,
            store_dir,
            variables,
            deadline,
            running: None,
            next: Some(Run::Walk),
            thrown: VecDeque::new(),
            explained: 0,
        }
    }

    /// The next attribute.
    ///
    /// # Errors
    /// When the set as a whole cannot be evaluated.
    pub(super) async fn next(&mut self) -> Result<Option<Attribute>, WalkError> {
        loop {
            let running = match &mut self.running {
                Some(running) => running,
                None => {
                    let explain = || self.thrown.front().cloned().map(Run::Explain);
                    let Some(run) = self.next.take().or_else(explain) else { return Ok(None) };
                    let running = self.start(run)?;
                    self.running.insert(running)
                }
            };
            let attribute = match running.evaluator.step().await? {
                Step::Told(json) => self.told(&json)?,
                Step::Ended(ending) => self.ended(ending)?,
            };
            if attribute.is_some() {
                return Ok(attribute);
            }
        }
    }

    fn start(&self, run: Run) -> Result<Running, WalkError> {
        let evaluator = start(self.set, self.system, self.source, self.variables, self.deadline, &run)?;
        Ok(Running { evaluator, run, begun: 0, at: None, settled: true })
    }

    fn told(&mut self, json: &str) -> Result<Option<Attribute>, WalkError> {
        let event = event(json)?;
        let Some(running) = &mut self.running else { return Ok(None) };
        let root = event.root;
        if let Some(path) = event.begun {
            running.begun += 1;
            running.at = Some(Place { root, path });
            running.settled = false;
            return Ok(None);
        }
        running.settled = true;
        if let Some(path) = event.thrown {
            let place = Place { root, path };
            if self.explained + self.thrown.len() < EXPLAINED_MAX {
                self.thrown.push_back(place);
                return Ok(None);
            }
            return Ok(Some(self.failed(&place, THROWN.to_owned())));
        }
        let Some(path) = event.found else { return Ok(None) };
        let attribute = self.attribute(&Place { root, path });
        Ok(Some(Attribute { attribute, outcome: derivation(self.store_dir, event.drv, event.name) }))
    }

    fn ended(&mut self, ending: Ending) -> Result<Option<Attribute>, WalkError> {
        let Some(running) = self.running.take() else { return Ok(None) };
        if let Run::Explain(place) = running.run {
            self.thrown.pop_front();
            self.explained += 1;
            let error = match ending {
                Ending::Failed(error) => error,
                _ => THROWN.to_owned(),
            };
            return Ok(Some(self.failed(&place, error)));
        }
        match ending {
            Ending::Well => return Ok(None),
            Ending::Late => return Err(WalkError::Late(self.set.evaluation.time_max)),
            _ => {}
        }
        let limit = self.set.evaluation.attribute_time_max;
        // Neither is to be blamed on an attribute: a machine in trouble, and what comes where a whole set begins.
        trouble(&ending)?;
        let prefix = |place: &Place| self.source.prefixes.get(place.root).map_or(0, Vec::len);
        let whole = |place: &Place| place.path.is_empty() && prefix(place) == 0;
        let Some(place) = running.at.filter(|place| running.settled || !whole(place)) else {
            return Err(match ending {
                Ending::Silent => WalkError::Silent(limit),
                Ending::Garrulous => WalkError::Garrulous,
                Ending::Failed(text) | Ending::Died(text) => WalkError::Failed(shortened(text)),
                Ending::Well | Ending::Late => WalkError::Failed(String::new()),
            });
        };
        // An evaluator keeps what it has evaluated: with nothing before it, an attribute may well do.
        let retry = matches!(ending, Ending::Died(_)) && running.begun > 1;
        if running.settled || retry {
            self.next = Some(Run::Resume { from: place, again: !running.settled });
            return Ok(None);
        }
        let failed = self.failed(&place, blame(ending, limit));
        self.next = Some(Run::Resume { from: place, again: false });
        Ok(Some(failed))
    }

    fn failed(&self, place: &Place, error: String) -> Attribute {
        Attribute { attribute: self.attribute(place), outcome: Err(shortened(error)) }
    }

    fn attribute(&self, place: &Place) -> String {
        let prefix = self.source.prefixes.get(place.root).map_or(&[][..], Vec::as_slice);
        let names: Vec<String> = prefix.iter().chain(&place.path).map(|name| written(name)).collect();
        if names.is_empty() { "default".to_owned() } else { names.join(".") }
    }
}

/// As an attribute path has it: quoted where it has a dot.
fn written(name: &str) -> String {
    if name.contains(['.', '"']) { format!("{name:?}") } else { name.to_owned() }
}

/// The names of an attribute path as [`written`] has them.
pub(super) fn path(attribute: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = attribute.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => name.extend(characters.next()),
            '.' if !quoted => names.push(std::mem::take(&mut name)),
            _ => name.push(c),
        }
    }
    names.push(name);
    names
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_attribute_is_read_as_it_is_written() {
        for names in [&["hello"][..], &["a", "b"], &["a", "b.c", "d"], &["q\"uote"], &["with space", "x"]] {
            let written: Vec<String> = names.iter().map(|name| written(name)).collect();
            assert_eq!(path(&written.join(".")), names);
        }
    }
}
