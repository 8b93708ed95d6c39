//! All attributes of a set for one system with
//! [nix-eval-jobs](https://github.com/nix-community/nix-eval-jobs), several at a time. It ends with the first
//! attribute that brings a worker down: that one, and all that were under way, are left to a walk, and it is
//! run again without them. Whatever else goes wrong is an error, for which all of the set may be left to a
//! walk.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::available_parallelism;

use percent_encoding::percent_decode_str;

use super::attribute::Evaluated;
use super::evaluate::{Evaluator, EvaluatorEnd, EvaluatorEvent, Program};
use super::settings::SetSettings;
use super::source::{AttributePlace, EvaluatorRun};
use super::trouble;
use super::walk::{Attribute, DerivationNames, Task, WalkError, derivation, shortened, trouble_in};

const NIX_EVAL_JOBS: Program = Program { name: "nix-eval-jobs", prints: true };
/// Bytes of memory for which there is one worker: those of a large set need as much.
const WORKER_MEMORY_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Runs for one system.
const RUNS_MAX: usize = 4;
/// Attributes that are left to walks of their own.
const LEFT_MAX: usize = 64;

/// Why a set cannot be evaluated with nix-eval-jobs. The text is for who runs the server.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The run ended at no attribute.
    #[error("nix-eval-jobs failed: {0}")]
    Failed(String),
    /// Too many attributes bring it down, or need more memory than a worker has.
    #[error("too many attributes are too much for nix-eval-jobs (max-memory-bytes, attribute-timeout): {0}")]
    TooMuch(String),
    /// Its output is malformed.
    #[error("nix-eval-jobs printed what makes no sense: {0}")]
    Nonsense(String),
    /// The program could not be run.
    #[error("nix-eval-jobs cannot be run")]
    System(#[from] std::io::Error),
    /// A walk would do no better.
    #[error(transparent)]
    Whole(#[from] WalkError),
}

/// An evaluation under way.
pub(super) struct Jobs<'a> {
    task: Task<'a>,
    workers: u64,
    running: Option<Evaluator>,
    runs: usize,
    /// Finished attributes, failed ones included.
    known: BTreeSet<AttributePlace>,
    /// Attributes left to a walk.
    left: BTreeSet<AttributePlace>,
    /// This run has reached an attribute.
    has_begun: bool,
    /// Begun and unfinished evaluations of each attribute: one for each worker, and below zero where one of
    /// its two outputs is ahead.
    under_way: BTreeMap<AttributePlace, i64>,
}

/// An event: on its standard error, from our expression, or on its standard output.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum JobEvent {
    Event {
        root: usize,
        begun: Option<Vec<String>>,
        done: Option<Vec<String>>,
    },
    #[serde(rename_all = "camelCase")]
    Job {
        attr_path: Vec<String>,
        error: Option<String>,
        drv_path: Option<String>,
        /// Its name, its own output and its program, as JSON: what else it tells is not ours.
        #[serde(default)]
        name: String,
    },
}

/// Number of workers that evaluate a set, each with its part of the memory; `None` where nix-eval-jobs is not
/// to be had.
pub(super) fn workers(set: &SetSettings) -> Option<u64> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let path = env::var_os("PATH")?;
    env::split_paths(&path).find(|folder| is_program(&folder.join(NIX_EVAL_JOBS.name)))?;
    let cores = available_parallelism().map_or(1, |cores| cores.get() as u64);
    Some((set.evaluation.memory_bytes_max / WORKER_MEMORY_BYTES).clamp(1, cores))
}

impl<'a> Jobs<'a> {
    pub(super) fn new(task: Task<'a>, workers: u64) -> Self {
        let (known, left, under_way) = Default::default();
        Self { task, workers, running: None, runs: 0, known, left, has_begun: false, under_way }
    }

    /// The next attribute, in any order.
    ///
    /// # Errors
    /// The set as a whole cannot be evaluated.
    pub(super) async fn next(&mut self) -> Result<Option<Attribute>, JobsError> {
        loop {
            let running = match &mut self.running {
                Some(running) => running,
                None => {
                    let started = self.start()?;
                    self.running.insert(started)
                }
            };
            match running.step().await? {
                EvaluatorEvent::Line(json) => {
                    if let Some(attribute) = self.told(&json)? {
                        return Ok(Some(attribute));
                    }
                }
                EvaluatorEvent::Ended(ending) => {
                    let is_over = self.ended(ending)?;
                    if is_over {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Attributes left to a walk, with all below them.
    pub(super) fn left(&self) -> impl Iterator<Item = &AttributePlace> {
        self.left.difference(&self.known)
    }

    fn start(&mut self) -> Result<Evaluator, JobsError> {
        if self.runs == RUNS_MAX {
            return Err(self.too_much());
        }
        self.runs += 1;
        self.has_begun = false;
        let memory_bytes_max = self.task.set.evaluation.memory_bytes_max / self.workers;
        // One attribute more may need as much again.
        let memory_bytes = memory_bytes_max / 2;
        let run = EvaluatorRun::Jobs {
            workers: self.workers,
            memory_bytes,
            skip: self.left.iter().cloned().collect(),
        };
        Ok(self.task.start_with(NIX_EVAL_JOBS, &run, memory_bytes_max)?)
    }

    fn told(&mut self, json: &str) -> Result<Option<Attribute>, JobsError> {
        let nonsense = |why: &str| JobsError::Nonsense(shortened(format!("{why}: {json}")));
        let told = narinfo::json::from_str(json).map_err(|error| nonsense(&error.to_string()))?;
        let (attr_path, error, drv_path, name) = match told {
            JobEvent::Job { attr_path, error, drv_path, name } => (attr_path, error, drv_path, name),
            JobEvent::Event { root, begun, done } => {
                let change = if begun.is_some() { 1 } else { -1 };
                if let Some(path) = begun.or(done) {
                    self.count(&AttributePlace { root, path }, change);
                }
                return Ok(None);
            }
        };
        let place = place(&attr_path).ok_or_else(|| nonsense("not an attribute of this set"))?;
        let outcome = match (error, drv_path) {
            (None, Some(drv)) => {
                let told = narinfo::json::from_str(&name);
                let (name, output, program) = told.map_err(|_| nonsense("not a derivation of this set"))?;
                derivation(self.task.store_dir, drv, DerivationNames { name, output, program })
            }
            (None, None) => return Err(nonsense("neither a derivation nor an error")),
            (Some(error), _) => {
                let error = self.running.as_ref().map_or(error.clone(), |running| running.explained(&error));
                trouble_in(&error)?;
                if self.task.is_whole(&place) {
                    return Err(JobsError::Failed(shortened(error)));
                }
                self.count(&place, -1);
                if trouble::is_of_memory(&error) {
                    // With all the memory it may well do.
                    self.leave(vec![place])?;
                    return Ok(None);
                }
                Err(shortened(error))
            }
        };
        Ok(self.settled(place, outcome))
    }

    fn count(&mut self, place: &AttributePlace, change: i64) {
        self.has_begun = true;
        let times = self.under_way.entry(place.clone()).or_default();
        *times += change;
        if *times == 0 {
            self.under_way.remove(place);
        }
    }

    /// An attribute of which all is known, unless it was so before.
    fn settled(&mut self, place: AttributePlace, outcome: Evaluated) -> Option<Attribute> {
        let attribute = self.task.attribute(&place, outcome);
        (!self.left.contains(&place) && self.known.insert(place)).then_some(attribute)
    }

    /// True if it has reached all attributes but those that are left.
    fn ended(&mut self, ending: EvaluatorEnd) -> Result<bool, JobsError> {
        self.running = None;
        let is_well = ending == EvaluatorEnd::Well && self.has_begun;
        let why = match ending {
            EvaluatorEnd::Late => return Err(WalkError::Late(self.task.set.evaluation.time_max).into()),
            EvaluatorEnd::Silent => "it came to no attribute for too long (attribute-timeout)".to_owned(),
            EvaluatorEnd::OutputLimit => "it printed more than 32 MiB".to_owned(),
            EvaluatorEnd::Well => "it came to no attribute".to_owned(),
            EvaluatorEnd::Failed(text) | EvaluatorEnd::Died(text) if text.is_empty() => {
                "it said nothing".to_owned()
            }
            EvaluatorEnd::Failed(text) | EvaluatorEnd::Died(text) => shortened(last_error(&text).to_owned()),
        };
        trouble_in(&why)?;
        let under_way = std::mem::take(&mut self.under_way).into_iter();
        let under_way: Vec<AttributePlace> =
            under_way.filter_map(|(place, times)| (times > 0).then_some(place)).collect();
        let is_whole = |place: &AttributePlace| self.task.is_whole(place);
        if !is_well && (under_way.is_empty() || under_way.iter().any(is_whole)) {
            return Err(JobsError::Failed(why));
        }
        self.leave(under_way)?;
        Ok(is_well)
    }

    /// Leaves these to a walk, and out of the next run.
    fn leave(&mut self, places: Vec<AttributePlace>) -> Result<(), JobsError> {
        self.left.extend(places);
        if self.left.len() > LEFT_MAX { Err(self.too_much()) } else { Ok(()) }
    }

    fn too_much(&self) -> JobsError {
        let names: Vec<String> = self.left.iter().map(|place| self.task.path(place).to_string()).collect();
        JobsError::TooMuch(shortened(names.join(", ")))
    }
}

/// The error that ended it: those of attributes come before.
fn last_error(text: &str) -> &str {
    text.rfind("\nerror:").map_or(text, |at| &text[at + 1..])
}

/// The place that the names of our expression lead to: each begins with `_`, and has some characters as `%`
/// and two digits.
fn place(attr_path: &[String]) -> Option<AttributePlace> {
    let decoded = |name: &String| {
        let name = percent_decode_str(name.strip_prefix('_')?).decode_utf8().ok()?;
        Some(name.into_owned())
    };
    let mut names = attr_path.iter().map(decoded);
    Some(AttributePlace { root: names.next()??.parse().ok()?, path: names.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_the_attribute() {
        let read = |names: &[&str]| place(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        let path = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        assert_eq!(read(&["_1"]), Some(AttributePlace { root: 1, path: Vec::new() }));
        let odd = read(&["_0", "_x%2Ey", "_2048", "_a%252Eb", "_q%22", "__"]);
        assert_eq!(odd, Some(AttributePlace { root: 0, path: path(&["x.y", "2048", "a%2Eb", "q\"", "_"]) }));
        for names in [&[][..], &["0"], &["_x"], &["_0", "x"], &["_0", "_%ff"]] {
            assert_eq!(read(names), None, "{names:?}");
        }
    }
}
