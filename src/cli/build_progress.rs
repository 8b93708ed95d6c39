//! Progress of requests for builds: on a terminal a bar for each of the first few, elsewhere a line for each
//! change.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use narinfo::StorePath;

use crate::escape::{Line, in_one_line};
use crate::remote::RemoteRequest;

/// Bars at a time.
const BARS_MAX: usize = 8;
/// Characters of a line of a log in a bar.
const LOG_CHARS_MAX: usize = 80;
/// Characters of the server's words on a wait.
const WAIT_CHARS_MAX: usize = 150;
/// Steps of a bar.
const STEPS: u64 = 1_000;
/// Interval at which the sign of life of a bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Progress of several requests.
pub(super) struct BuildProgress {
    /// None where nobody watches.
    bars: Option<MultiProgress>,
    shown: BTreeMap<u64, ShownRequest>,
    total: usize,
    ended: usize,
}

/// A request, as it was shown last.
struct ShownRequest {
    since: Instant,
    bar: Option<ProgressBar>,
    line: String,
}

/// Words on the wait for one output.
pub(super) struct OutputProgress<'a> {
    progress: &'a BuildProgress,
    name: String,
    bar: Option<ProgressBar>,
    line: String,
}

impl BuildProgress {
    pub(super) fn new(total: usize) -> Self {
        let bars = io::stderr().is_terminal().then(MultiProgress::new);
        Self { bars, shown: BTreeMap::new(), total, ended: 0 }
    }

    /// True where somebody watches, and wants to see the last line of a log soon.
    pub(super) fn is_watched(&self) -> bool {
        self.bars.is_some()
    }

    /// Shows the state of a request.
    pub(super) fn show(&mut self, id: u64, request: &RemoteRequest) {
        let number = self.shown.len() + self.ended;
        let shown = self.shown.entry(id).or_insert_with(|| ShownRequest {
            since: Instant::now(),
            bar: None,
            line: String::new(),
        });
        if request.has_ended() {
            self.ended += 1;
            let shown = self.shown.remove(&id);
            if let Some(bar) = shown.and_then(|shown| shown.bar) {
                bar.finish_and_clear();
            }
            self.print(&format!("{}: {}", name(&request.derivation), ended_as(&request.state)));
            return;
        }
        match &self.bars {
            Some(bars) => {
                if shown.bar.is_none() && number < BARS_MAX {
                    shown.bar = Some(bars.add(request_bar(&name(&request.derivation))));
                }
                if let Some(bar) = &shown.bar {
                    bar.set_position(part_done(shown.since.elapsed(), request.eta_seconds));
                    bar.set_message(format!("{}{}", phase(request), log_line(request)));
                }
            }
            None => {
                let line = phase(request);
                if line != shown.line {
                    eprintln!("{}: {line}", name(&request.derivation));
                    shown.line = line;
                }
            }
        }
    }

    /// A line that stays, above the bars.
    fn print(&self, line: &str) {
        let line = format!("[{}/{}] {line}", self.ended, self.total);
        match &self.bars {
            // A terminal that has gone reads nothing.
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    /// Progress of the wait for an output of this name.
    pub(super) fn output(&self, name: &str) -> OutputProgress<'_> {
        OutputProgress { progress: self, name: name.to_owned(), bar: None, line: String::new() }
    }
}

impl OutputProgress<'_> {
    /// Shows the server's words.
    pub(super) fn show(&mut self, words: &str) {
        let words = Line(in_one_line(words, WAIT_CHARS_MAX)).to_string();
        match &self.progress.bars {
            Some(bars) => {
                let bar = self.bar.get_or_insert_with(|| bars.add(request_bar(&self.name)));
                bar.set_message(words);
            }
            None if words != self.line => {
                eprintln!("{}: {words}", self.name);
                self.line = words;
            }
            None => {}
        }
    }
}

impl Drop for OutputProgress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn request_bar(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix} [{bar:16}] {wide_msg}");
    let bar = ProgressBar::new(STEPS).with_prefix(name.to_owned());
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.enable_steady_tick(TICK);
    bar
}

/// The part of a request that is done, in steps, where its end can be told.
fn part_done(elapsed: Duration, eta_seconds: Option<(u64, u64)>) -> u64 {
    let Some((from, to)) = eta_seconds else { return 0 };
    let (elapsed, left) = (elapsed.as_secs(), from.midpoint(to));
    (STEPS * elapsed).checked_div(elapsed + left).unwrap_or(0)
}

/// Name of a derivation for people, from its base name.
fn name(derivation: &str) -> String {
    let parsed = StorePath::parse(derivation);
    let name = parsed.as_ref().map_or(derivation, StorePath::name);
    Line(name.strip_suffix(".drv").unwrap_or(name)).to_string()
}

/// Place, phase and time left.
fn phase(request: &RemoteRequest) -> String {
    let mut text = match &*request.state {
        "waiting" => "waits".to_owned(),
        "delivering" => "is being published".to_owned(),
        state => Line(state).to_string(),
    };
    if let Some(building) = request.building.as_ref().filter(|building| **building != request.derivation) {
        text += &format!(" {}", name(building));
    }
    if let (Some(position), Some(of)) = (request.position, request.of) {
        text += &format!(", {position} of {of} in the queue");
    }
    if let Some((from, to)) = request.eta_seconds {
        let time = |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string();
        text += &if from == to {
            format!(", {} left", time(to))
        } else {
            format!(", {} to {} left", time(from), time(to))
        };
    }
    text
}

fn log_line(request: &RemoteRequest) -> String {
    let Some(line) = request.log.last() else { return String::new() };
    let line = anstream::adapter::strip_str(line).to_string();
    format!(": {}", Line(in_one_line(&line, LOG_CHARS_MAX)))
}

fn ended_as(state: &str) -> String {
    match state {
        "served" => "built".to_owned(),
        other => Line(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(state: &str) -> RemoteRequest {
        RemoteRequest {
            state: state.to_owned(),
            derivation: "a.drv".to_owned(),
            building: None,
            position: None,
            of: None,
            eta_seconds: None,
            cause: None,
            reason: None,
            log: Vec::new(),
        }
    }

    #[test]
    fn a_request_is_told_with_its_place_its_phase_its_time_and_its_last_line() {
        let mut waiting = request("waiting");
        (waiting.position, waiting.of) = (Some(2), Some(5));
        assert_eq!(phase(&waiting), "waits, 2 of 5 in the queue");
        let mut building = request("building");
        (building.building, building.eta_seconds) = (Some("b.drv".to_owned()), Some((60, 90)));
        building.log = vec!["first".to_owned(), "\u{1b}[31mred\u{1b}[0m\u{7}".to_owned()];
        assert_eq!(phase(&building), "building b, 1m to 1m 30s left");
        assert_eq!(name(&format!("{}-hello-2.12.drv", "a".repeat(32))), "hello-2.12");
        assert!(
            log_line(&building).starts_with(": red") && !log_line(&building).contains(['\u{1b}', '\u{7}'])
        );
    }

    #[test]
    fn a_bar_never_goes_beyond_its_end_and_stands_still_without_an_estimate() {
        let second = Duration::from_secs(1);
        for (elapsed, eta, done) in [
            (second, None, 0),
            (Duration::ZERO, Some((0, 0)), 0),
            (second, Some((1, 1)), 500),
            (second, Some((0, 0)), STEPS),
            (9 * second, Some((0, 2)), 900),
        ] {
            assert_eq!(part_done(elapsed, eta), done, "{elapsed:?} {eta:?}");
        }
    }
}
